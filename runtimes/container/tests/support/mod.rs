//! What the tests of this crate share: an image with a static test program, a runtime, a registry, and a bare client.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::print_stdout, reason = "what is skipped is said")]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use sas_core::{
    Deployed, Endpoint, Error, ErrorKind, Instance, InstanceId, Result, RevisionKey, RevisionName,
    RevisionSpec, Runtime, SecretSource, Source, StartRequest, TenantKey,
};
use sas_runtime_container::{ContainerConfig, ContainerRuntime, ImageSettings, write_image};
use sas_testkit::fake::{RecordingEvents, RecordingLogs};

/// Why containers can't be run here; `None`: they can. In CI they have to.
pub(crate) fn missing() -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let why = match ContainerRuntime::new(ContainerConfig::in_store(dir.path().join("store"))) {
        Ok(_) => return None,
        Err(error) => error.to_string(),
    };
    sas_testkit::skip(&why);
    Some(why)
}

/// Returns from a test where containers can't be run.
macro_rules! needs_containers {
    () => {
        if support::missing().is_some() {
            return;
        }
    };
}
pub(crate) use needs_containers;

/// Compiles `tests/programs/app.rs` static, once for all test binaries until it changes.
pub(crate) fn program() -> PathBuf {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    static LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/app.rs");
    let mut hash = DefaultHasher::new();
    fs::read(&source).unwrap().hash(&mut hash);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("container-programs");
    let out = dir.join(format!("{:016x}", hash.finish())).join("app");
    let _one = LOCK.lock();
    if !out.exists() {
        fs::create_dir_all(&dir).unwrap();
        let scratch = tempfile::tempdir_in(&dir).unwrap();
        let made = scratch.path().join("app");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "-C", "opt-level=1", "-C", "debuginfo=0", "-C", "strip=symbols"])
            .args(["-C", "target-feature=+crt-static", "-o"])
            .arg(&made)
            .arg(&source)
            .output()
            .expect("rustc, which built this test, runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::create_dir_all(out.parent().unwrap()).unwrap();
        fs::rename(made, &out).unwrap();
    }
    out
}

/// A root file system with the test program and a few users.
pub(crate) fn root_files(dir: &Path) -> PathBuf {
    let root = dir.join("root");
    for part in ["bin", "etc", "data", "home/dev"] {
        fs::create_dir_all(root.join(part)).unwrap();
    }
    fs::copy(program(), root.join("bin/app")).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\ndev:x:1234:1300:dev:/home/dev:/bin/sh\n";
    fs::write(root.join("etc/passwd"), passwd).unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\ndevs:x:1300:\naudio:x:29:dev\n").unwrap();
    fs::write(root.join("data/file"), "of the image").unwrap();
    root
}

pub(crate) fn settings() -> ImageSettings {
    let mut settings = ImageSettings::new(["/bin/app"]);
    settings.prefix = Some("/".into());
    settings.env = BTreeMap::from([("FROM_IMAGE".to_owned(), "yes".to_owned())]);
    settings
}

/// A place with a layout of one image, and the settings of a runtime that reads it.
pub(crate) struct Workplace {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) layout: PathBuf,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let dir_path = fs::canonicalize(dir.path()).unwrap();
        let layout = dir_path.join("layout");
        let root = root_files(&dir_path);
        write_image(&root, &layout, "app", &settings()).unwrap();
        Self { dir, layout }
    }

    pub(crate) fn store(&self) -> PathBuf {
        fs::canonicalize(self.dir.path()).unwrap().join("store")
    }

    pub(crate) fn config(&self) -> ContainerConfig {
        let mut config = ContainerConfig::in_store(self.store());
        config.local_images.push(self.layout.clone());
        config.secrets = Some(Arc::new(Vault));
        if let Some(program) = std::env::var_os("SAS_CONTAINER_PROGRAM") {
            config.programs = vec![program.into_string().unwrap()];
        }
        config
    }

    pub(crate) fn runtime(&self) -> Arc<ContainerRuntime> {
        Arc::new(ContainerRuntime::new(self.config()).unwrap_or_else(|error| panic!("{error}")))
    }

    /// With a store of its own.
    pub(crate) fn runtime_in(&self, store: &str) -> Arc<ContainerRuntime> {
        let mut config = self.config();
        config.store = self.store().with_file_name(store);
        Arc::new(ContainerRuntime::new(config).unwrap_or_else(|error| panic!("{error}")))
    }

    /// The image of this place with arguments.
    pub(crate) fn app(&self, args: &[&str]) -> RevisionSpec {
        self.image("app", args)
    }

    pub(crate) fn image(&self, tag: &str, args: &[&str]) -> RevisionSpec {
        let mut spec =
            RevisionSpec::new("container", Source::Image(format!("oci:{}:{tag}", self.layout.display())));
        spec.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        spec.timeouts.start = Duration::from_secs(20);
        spec
    }
}

/// A few secrets.
#[derive(Debug)]
pub(crate) struct Vault;

impl Vault {
    fn all(reference: &str) -> Option<BTreeMap<String, Bytes>> {
        let pairs: &[(&str, &str)] = match reference {
            "secret/db" => &[("USER", "me"), ("PASSWORD", "hidden")],
            "configmap/app" => &[("color", "blue"), ("deep.conf", "a = 1\n")],
            _ => return None,
        };
        Some(
            pairs
                .iter()
                .map(|(key, value)| ((*key).to_owned(), Bytes::from_static(value.as_bytes())))
                .collect(),
        )
    }

    fn none(reference: &str) -> Error {
        Error::new(ErrorKind::NotFound, "resolve", format!("{reference}: there is none"))
    }
}

#[async_trait::async_trait]
impl SecretSource for Vault {
    async fn resolve(&self, reference: &str, _: TenantKey) -> Result<Bytes> {
        let (name, key) = reference.rsplit_once('/').ok_or_else(|| Self::none(reference))?;
        Self::all(name).and_then(|all| all.get(key).cloned()).ok_or_else(|| Self::none(reference))
    }

    async fn entries(&self, reference: &str, _: TenantKey) -> Result<BTreeMap<String, Bytes>> {
        Self::all(reference).ok_or_else(|| Self::none(reference))
    }
}

/// A started instance and what was told about it.
pub(crate) struct Started {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) logs: Arc<RecordingLogs>,
    pub(crate) events: Arc<RecordingEvents>,
}

pub(crate) async fn prepare(runtime: &Arc<ContainerRuntime>, spec: RevisionSpec) -> Result<Arc<Deployed>> {
    runtime.accepts(&spec)?;
    let spec = runtime.pin(&spec, TenantKey(1)).await?;
    let artifact = runtime.prepare_for(&spec, TenantKey(1)).await?;
    Ok(Arc::new(Deployed::new(
        Arc::clone(runtime) as Arc<dyn Runtime>,
        artifact,
        Arc::new(spec),
        RevisionName::new("default", "hello", "hello-00001"),
        TenantKey(1),
    )))
}

pub(crate) async fn start_deployed(
    runtime: &Arc<ContainerRuntime>,
    deployed: &Arc<Deployed>,
    id: u64,
) -> Result<Started> {
    let logs = Arc::new(RecordingLogs::default());
    let events = Arc::new(RecordingEvents::default());
    let deadline = tokio::time::Instant::now() + deployed.spec.timeouts.start;
    let request = StartRequest::new(
        InstanceId(id),
        RevisionKey(7),
        Arc::clone(deployed),
        Arc::clone(&logs) as _,
        Arc::clone(&events) as _,
        deadline,
    );
    let instance = runtime.start(request).await?;
    Ok(Started { instance, logs, events })
}

pub(crate) async fn start(runtime: &Arc<ContainerRuntime>, spec: RevisionSpec) -> Result<Started> {
    let deployed = prepare(runtime, spec).await?;
    start_deployed(runtime, &deployed, 1).await
}

async fn connect(endpoint: &Endpoint) -> std::io::Result<tokio::net::TcpStream> {
    match endpoint {
        Endpoint::Tcp(address) => tokio::net::TcpStream::connect(address).await,
        Endpoint::Within(address, sockets) => {
            let socket = std::net::TcpStream::from(sockets.tcp_socket(address)?);
            tokio::net::TcpSocket::from_std_stream(socket).connect(*address).await
        }
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn get_with(
    instance: &dyn Instance,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<(u16, String)> {
    let stream = connect(instance.endpoint().unwrap()).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    tokio::spawn(connection);
    let mut request = http::Request::get(path).header("host", "hello");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.map_err(std::io::Error::other)?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

pub(crate) async fn get(instance: &dyn Instance, path: &str) -> String {
    let (status, body) =
        get_with(instance, path, &[]).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(status, 200, "{path}: {body}");
    body
}

/// A server that answers as it is told, and counts how often it was asked.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    pub(crate) asked: Arc<std::sync::atomic::AtomicUsize>,
}

impl Fake {
    pub(crate) async fn start(
        answer: impl Fn(&http::request::Parts, usize) -> http::Response<http_body_util::Full<Bytes>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (count, answer) = (Arc::clone(&asked), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, count) = (Arc::clone(&answer), Arc::clone(&count));
                tokio::spawn(async move {
                    let service =
                        hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                            let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                            let response = answer(&request.into_parts().0, number);
                            async move { Ok::<_, std::convert::Infallible>(response) }
                        });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { address, asked }
    }
}

/// The blobs of a place's image, by digest, and its manifest.
pub(crate) fn blobs(place: &Workplace) -> (std::collections::HashMap<String, Bytes>, Bytes) {
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(place.layout.join("index.json")).unwrap()).unwrap();
    let manifest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let all: std::collections::HashMap<String, Bytes> = fs::read_dir(place.layout.join("blobs/sha256"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (format!("sha256:{}", entry.file_name().display()), Bytes::from(fs::read(entry.path()).unwrap()))
        })
        .collect();
    let body = all[&manifest].clone();
    (all, body)
}

/// Waits until `done`, for ten seconds at most.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What exists of the containers of a store: processes whose standard input is of it, their control groups, mounts,
/// and files of its runs beyond those that every run has.
pub(crate) fn census(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let text = store.display().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let stdin = fs::read_link(entry.path().join("fd/0")).unwrap_or_default();
        if stdin.starts_with(store) {
            found.push(format!("process {}", entry.file_name().display()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    found.extend(mounts.lines().filter(|line| line.contains(&text)).map(|line| format!("mount {line}")));
    for run in fs::read_dir(store.join("runs")).into_iter().flatten().flatten() {
        for part in ["tmp", "pod"] {
            for left in fs::read_dir(run.path().join(part)).into_iter().flatten().flatten() {
                found.push(left.path().display().to_string());
            }
        }
        let groups = fs::read_to_string(run.path().join("cgroups")).unwrap_or_default();
        for group in groups.lines() {
            let one = fs::read_dir(group).into_iter().flatten().flatten();
            let all: Vec<_> = one.filter(|one| one.file_type().is_ok_and(|kind| kind.is_dir())).collect();
            // Some are kept ready, empty.
            let full =
                |dir: &Path| fs::read_to_string(dir.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
            let too_many = all.len() > 2;
            let left = all.into_iter().map(|one| one.path()).filter(|dir| too_many || full(dir));
            found.extend(left.map(|dir| dir.display().to_string()));
        }
    }
    found
}

/// A registry of Debian's `docker-registry` on loopback.
pub(crate) struct Registry {
    child: std::process::Child,
    pub(crate) address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// `None` where it is not installed, which in CI it has to be.
    pub(crate) async fn start() -> Option<Self> {
        let program = Path::new("/usr/bin/docker-registry");
        if !program.exists() {
            sas_testkit::skip("docker-registry is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n\
             http: {{addr: \"{address}\"}}\n",
            dir.path().display()
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new(program)
            .arg("serve")
            .arg(&file)
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        until("the registry answers", || std::net::TcpStream::connect(address).is_ok()).await;
        Some(Self { child, address, _dir: dir })
    }

    /// Pushes an image of a layout by `oci-client`, as any client of a registry would.
    pub(crate) async fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        push(layout, tag, &format!("{}/{name}", self.address)).await
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Pushes an image of a layout to a registry by plain HTTP.
pub(crate) async fn push(layout: &Path, tag: &str, to: &str) -> String {
    use oci_client::{
        Client, Reference, RegistryOperation,
        client::{ClientConfig, ClientProtocol},
        secrets::RegistryAuth,
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::new(ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() });
    let reference: Reference = to.parse().unwrap();
    let auth = RegistryAuth::Anonymous;
    client.auth(&reference, &auth, RegistryOperation::Push).await.unwrap();
    let blob = |digest: &str| {
        fs::read(layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap())).unwrap()
    };
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let entry = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["annotations"]["org.opencontainers.image.ref.name"] == tag)
        .unwrap();
    let manifest = blob(entry["digest"].as_str().unwrap());
    let parsed: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let parts = parsed["layers"].as_array().unwrap().iter().chain([&parsed["config"]]);
    for part in parts {
        let digest = part["digest"].as_str().unwrap();
        client.push_blob(&reference, Bytes::from(blob(digest)), digest).await.unwrap();
    }
    let kind = parsed["mediaType"].as_str().unwrap().parse().unwrap();
    client.push_manifest_raw(&reference, Bytes::from(manifest), kind).await.unwrap();
    entry["digest"].as_str().unwrap().to_owned()
}
