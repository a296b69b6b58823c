//! What the tests share: a cluster with a node, images with the test program, and a runtime that has the
//! rights of the shipped Role and no others.

use std::{
    fs,
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Weak},
    time::Duration,
};

use sas_core::{
    Deployed, Instance, InstanceId, Result, RevisionKey, RevisionName, RevisionSpec, Runtime, Secret, Source,
    StartRequest, TenantKey,
};
use sas_runtime_kubernetes::{Access, KubernetesConfig, KubernetesRuntime};
use sas_testkit::{
    fake::{RecordingEvents, RecordingLogs},
    server::{KubernetesCluster, PAUSE},
};
use tokio::sync::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The image of the test program.
pub(crate) const APP: &str = "sas.test/app:1";

/// Compiles the test program of the container runtime static, once until it changes.
fn program() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../container/tests/programs/app.rs");
    let mut hash = std::hash::DefaultHasher::new();
    fs::read(&source).unwrap().hash(&mut hash);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes-programs");
    let out = dir.join(format!("{:016x}", hash.finish())).join("app");
    static LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let _one = LOCK.lock();
    if !out.exists() {
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        let scratch = tempfile::tempdir_in(&dir).unwrap();
        let made = scratch.path().join("app");
        let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--edition", "2024", "-C", "opt-level=1", "-C", "debuginfo=0", "-C", "strip=symbols"])
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(&made)
            .arg(&source)
            .output()
            .expect("rustc, which built this test, runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::rename(made, &out).unwrap();
    }
    out
}

/// A cluster with images, as long as a test has it.
pub(crate) struct Place {
    pub(crate) cluster: Mutex<KubernetesCluster>,
    /// Who takes a part of the cluster away wants it alone.
    users: RwLock<()>,
}

/// The cluster of this test program; `None` where there is none to be started.
pub(crate) async fn place() -> Option<Arc<Place>> {
    static PLACE: Mutex<Weak<Place>> = Mutex::const_new(Weak::new());
    let mut known = PLACE.lock().await;
    if let Some(place) = known.upgrade() {
        return Some(place);
    }
    let cluster = KubernetesCluster::start_with_node().await?;
    cluster.import(PAUSE, &program(), &["side"]);
    cluster.import(APP, &program(), &[]);
    let place = Arc::new(Place { cluster: Mutex::new(cluster), users: RwLock::new(()) });
    *known = Arc::downgrade(&place);
    Some(place)
}

impl Place {
    /// With the others.
    pub(crate) async fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.users.read().await
    }

    /// When all others are done with it, and before the next.
    pub(crate) async fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.users.write().await
    }

    /// A namespace with the shipped Role, bound to an account; and the configuration of a runtime that comes in as that.
    pub(crate) async fn config(&self, namespace: &str) -> KubernetesConfig {
        let cluster = self.cluster.lock().await;
        let role = fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/kubernetes/role.yaml"),
        )
        .unwrap();
        cluster.admin().run(
            &["apply", "-f", "-"],
            &format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n"),
        );
        cluster.admin().run(&["-n", namespace, "apply", "-f", "-"], &role);
        // Every Pod has one, and a controller makes it.
        let made = || cluster.admin().names(namespace, "serviceaccounts").contains(&"default".into());
        until("the namespace's own account", Duration::from_secs(60), made).await;
        let kubeconfig = cluster.account_kubeconfig(namespace, "sas-host");
        let subject = format!("--serviceaccount={namespace}:sas-host");
        let binding = ["-n", namespace, "create", "rolebinding", "sas-host", "--role=sas-host", &subject];
        let bound = cluster.admin().command().args(binding).output().unwrap();
        assert!(bound.status.success() || String::from_utf8_lossy(&bound.stderr).contains("exists"));
        let mut config = KubernetesConfig::new(namespace);
        config.access = Access::Kubeconfig(kubeconfig);
        config.term = Duration::from_secs(3);
        config.node_lost_after = Duration::from_secs(2);
        config
    }
}

/// The test program with arguments.
pub(crate) fn app(args: &[&str]) -> RevisionSpec {
    let mut spec = RevisionSpec::new("kubernetes", Source::Image(APP.into()));
    spec.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    spec.timeouts.start = Duration::from_secs(60);
    spec
}

/// A started instance and what was told about it.
pub(crate) struct Started {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) events: Arc<RecordingEvents>,
}

pub(crate) async fn deployed(runtime: &Arc<KubernetesRuntime>, spec: RevisionSpec) -> Result<Arc<Deployed>> {
    runtime.accepts(&spec)?;
    let artifact = runtime.prepare_for(&spec, TenantKey(1)).await?;
    let name = RevisionName::new("default", "hello", "hello-00001");
    Ok(Arc::new(Deployed::new(Arc::clone(runtime) as _, artifact, Arc::new(spec), name, TenantKey(1))))
}

pub(crate) async fn start(runtime: &Arc<KubernetesRuntime>, spec: RevisionSpec, id: u64) -> Result<Started> {
    start_deployed(runtime, &deployed(runtime, spec).await?, id).await
}

pub(crate) async fn start_deployed(
    runtime: &Arc<KubernetesRuntime>,
    deployed: &Arc<Deployed>,
    id: u64,
) -> Result<Started> {
    start_request(runtime, deployed, id, None).await
}

pub(crate) async fn start_with_secret(
    runtime: &Arc<KubernetesRuntime>,
    spec: RevisionSpec,
    name: &str,
    value: &str,
) -> Result<Started> {
    let secrets = [(name.to_owned(), Secret::new(value))].into();
    start_request(runtime, &deployed(runtime, spec).await?, 1, Some(Arc::new(secrets))).await
}

async fn start_request(
    runtime: &Arc<KubernetesRuntime>,
    deployed: &Arc<Deployed>,
    id: u64,
    secrets: Option<Arc<std::collections::BTreeMap<String, Secret>>>,
) -> Result<Started> {
    let events = Arc::new(RecordingEvents::default());
    let deadline = tokio::time::Instant::now() + deployed.spec.timeouts.start;
    let mut request = StartRequest::new(
        InstanceId(id),
        RevisionKey(7),
        Arc::clone(deployed),
        Arc::new(RecordingLogs::default()),
        Arc::clone(&events) as _,
        deadline,
    );
    request.secrets = secrets;
    let instance = runtime.start(request).await?;
    Ok(Started { instance, events })
}

/// The answer of an instance to `GET path`.
pub(crate) async fn get(instance: &dyn Instance, path: &str) -> Result<String, String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let sas_core::Endpoint::Tcp(at) = instance.endpoint().unwrap() else {
        panic!("{:?}", instance.endpoint())
    };
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect(at).await?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: hello\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let read = stream.read(&mut piece).await?;
            answer.extend_from_slice(&piece[..read]);
            let text = String::from_utf8_lossy(&answer);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                if length.is_some_and(|length| length.parse() == Ok(body.len())) {
                    return Ok(body.to_owned());
                }
            }
            if read == 0 {
                return Err(std::io::Error::other(format!("no whole answer: {text}")));
            }
        }
    };
    let answer: std::io::Result<String> = asked.await;
    answer.map_err(|error| error.to_string())
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, limit: Duration, holds: impl Fn() -> bool) {
    let began = tokio::time::Instant::now();
    while !holds() {
        assert!(began.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
