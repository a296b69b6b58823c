//! A secret goes through all of a platform, and is found nowhere but where it is used.

use std::{
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use sas::{
    async_trait,
    control::{LogFileLimits, Namespaces, PackageRoots, SecretDir, SecretEnv},
    core::{
        Artifact, ArtifactInfo, Capabilities, Instance, Isolation, Recorder, Runtime, Secret,
        SecretSource as _, StartRequest, TriggerSecrets,
    },
    inline::Env,
    prelude::*,
};

const MARKER: &str = "m4rk3r";
const FIRST: &str = "m4rk3r-of-the-first";
const SECOND: &str = "m4rk3r-of-the-second-one";
const HOOK: &str = "m4rk3r-of-the-hook";

/// What was written there, by whoever.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn bytes(&self) -> Vec<u8> {
        self.0.lock().expect("no panic").clone()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn found(haystack: &[u8], needle: &[u8]) -> bool {
    needle.is_empty() || haystack.windows(needle.len()).any(|window| window == needle)
}

/// Nothing of the marker is in `bytes`, neither as it is nor as hexadecimal digits, and they are what they should be: `holds`.
fn clean(what: &str, bytes: &[u8], holds: &str) {
    assert!(
        found(bytes, holds.as_bytes()),
        "{what} should hold {holds:?}: {}",
        String::from_utf8_lossy(bytes)
    );
    let hex: String = MARKER.bytes().map(|byte| format!("{byte:02x}")).collect();
    for needle in [MARKER, &hex] {
        assert!(
            !found(bytes, needle.as_bytes()),
            "a secret is in {what}: {}",
            String::from_utf8_lossy(bytes)
        );
    }
}

/// Sees what a runtime sees, keeps how it looks, and starts nothing.
#[derive(Debug, Default)]
struct Peek(Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Runtime for Peek {
    fn name(&self) -> &'static str {
        "peek"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::Process)
    }

    fn accepts(&self, spec: &RevisionSpec) -> Result<(), sas::core::SpecErrors> {
        let mut errors = sas::core::SpecErrors::default();
        if !matches!(&spec.source, Source::Function(name) if name == "peek") {
            errors.push("source", "", "a function called peek");
        }
        errors.into_result()
    }

    async fn prepare(&self, _: &RevisionSpec) -> sas::core::Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> sas::core::Result<Arc<dyn Instance>> {
        let password =
            request.environment().find(|(name, _)| *name == "PASSWORD").map(|(_, value)| value.to_owned());
        assert!(password.is_some_and(|password| password.starts_with(MARKER)), "it has the secret");
        self.0.lock().expect("no panic").push(format!("{request:?} {:?}", request.deployed));
        Err(Error::new(ErrorKind::Crashed, "start", "it never starts"))
    }

    async fn quiesce(&self) {}
}

fn write(dir: &Path, name: &str, value: &str) {
    let file = dir.join(name);
    std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
    std::fs::write(file, value).expect("written");
}

fn manifest(name: &str, annotations: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  labels: {{sas.dev/app: shop}}\n  \
         annotations: {{{annotations}}}\nspec:\n  template:\n    spec:\n      containers:\n        - env:\n            - \
         name: PASSWORD\n              valueFrom: {{secretKeyRef: {{name: db, key: password}}}}\n"
    )
}

async fn ask(platform: &Platform, method: &str, path: &str, body: &str) -> (u16, Vec<u8>) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", "Bearer a-token-of-the-tests")
        .body(Body::from(body.to_owned()));
    let response = platform.admin().handle(request.expect("a request")).await;
    let status = response.status().as_u16();
    (status, response.into_body().collect(16 << 20).await.expect("a body").to_vec())
}

/// Everything in the files of a directory.
fn files(dir: &Path, all: &mut Vec<u8>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        all.extend(path.to_string_lossy().bytes());
        if path.is_dir() && !path.is_symlink() {
            files(&path, all);
        } else if path.is_file() {
            all.extend(std::fs::read(&path).unwrap_or_default());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_found_nowhere_but_in_the_instance_that_it_is_for() {
    let logged = Kept::default();
    let writer = logged.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    subscriber.try_init().expect("the only one of this test");

    let dir = tempfile::tempdir().expect("a directory");
    let vault = tempfile::tempdir().expect("a directory");
    write(vault.path(), "default/secret/db/password", FIRST);
    write(vault.path(), "default/secret/hook/key", HOOK);
    write(dir.path(), "app/app.sh", "echo it ends >&2; exit 3\n");

    let peek = Peek::default();
    let seen = Arc::clone(&peek.0);
    let inline = InlineRuntime::new()
        .with("good", |request: Request, _cx| async move {
            let env = request.extensions().get::<Env>().cloned().expect("an environment");
            let length = env.get("PASSWORD").map_or(0, str::len);
            Response::new(Body::from(format!("{length} {env:?}")))
        })
        .with("panics", |request: Request, _cx| async move {
            assert!(request.uri().path() != "/", "it panics");
            Response::new(Body::empty())
        });
    let process =
        ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("unpacked"))).expect("a runtime");
    let prometheus = PrometheusBuilder::new().build_recorder();
    let metrics = prometheus.handle();
    let builder = Platform::builder()
        .admin_token("a-token-of-the-tests")
        .state_dir(dir.path().join("state"))
        .log_file(dir.path().join("lines.log"), LogFileLimits::default())
        .recorder(Recorder::new(Arc::new(prometheus)))
        .metrics_text(move || metrics.render())
        .runtime(inline)
        .runtime(process)
        .runtime(peek)
        .package_roots(PackageRoots::none().with(dir.path()))
        .secrets_dir(vault.path());
    let platform = builder.build().await.expect("a platform");

    // Deployed and used, then replaced and used again: a drain is no deploy.
    let deploys = [
        ("good", "sas.dev/function: good".to_owned()),
        ("panics", "sas.dev/function: panics".to_owned()),
        ("peek", "sas.dev/function: peek, sas.dev/runtime: peek".to_owned()),
        (
            "ends",
            format!("sas.dev/package: {}, sas.dev/command: sh app.sh", dir.path().join("app").display()),
        ),
    ];
    for (name, annotations) in &deploys {
        let (status, answer) = ask(&platform, "POST", "/v1/services", &manifest(name, annotations)).await;
        assert_eq!(status, 201, "{name}: {}", String::from_utf8_lossy(&answer));
        clean("the answer to a deploy", &answer, name);
    }
    let call = async |name: &str| {
        let request = http::Request::get("/").header("host", format!("{name}.default.localhost"));
        let response = platform.gateway().handle(request.body(Body::empty()).expect("a request")).await;
        let status = response.status().as_u16();
        (status, response.into_body().collect(1 << 20).await.unwrap_or_default().to_vec())
    };
    let (status, answer) = call("good").await;
    assert_eq!((status, answer), (200, format!("{} {{\"PASSWORD\"}}", FIRST.len()).into_bytes()));
    write(vault.path(), "default/secret/db/password", SECOND);
    let key = platform.control().revision_key("default", "good", "good-00001").expect("registered");
    platform.pool().drain(key, Duration::ZERO).await;
    let (_, answer) = call("good").await;
    assert!(answer.starts_with(SECOND.len().to_string().as_bytes()), "the new one, without a deploy");

    // What fails: an instance that panics, one that ends, a runtime that starts nothing, a secret that is not there.
    for (name, least) in [("panics", 500), ("ends", 500), ("peek", 500)] {
        let (status, answer) = call(name).await;
        assert!(status >= least, "{name}: {status}");
        clean("the answer of a service that fails", &answer, "");
    }
    {
        let seen = seen.lock().expect("no panic");
        clean(
            "Debug of a start request",
            seen.first().expect("it was asked to start").as_bytes(),
            "PASSWORD",
        );
    }
    let missing = manifest("missing", "sas.dev/function: good").replace("key: password", "key: none");
    assert_eq!(ask(&platform, "POST", "/v1/services", &missing).await.0, 201);
    clean("the answer without a secret", &call("missing").await.1, "secret/db/none");
    std::fs::remove_file(vault.path().join("default/secret/db/password")).expect("removed");
    write(vault.path(), "default/secret/db/password/is-a-directory", SECOND);
    platform.pool().drain(key, Duration::ZERO).await;
    clean("the answer when a secret can't be read", &call("good").await.1, "secret/db/password");

    // A webhook's, with a request that is signed wrongly; and one of an app's environment.
    let hook = "apiVersion: sas.dev/v1\nkind: Trigger\nmetadata: {name: pushed}\nspec:\n  source: {kind: webhook, options: \
                {signing-secret: secret/hook/key, signature: github}}\n  target: {service: good}\n";
    let (status, answer) = ask(&platform, "POST", "/v1/services", hook).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    let request = http::Request::post("/hooks/default/pushed").header("host", "events.localhost");
    let request = request.header("x-hub-signature-256", format!("sha256={}", "0".repeat(64)));
    let response = platform.entrance().handle(request.body(Body::from("{}")).expect("a request")).await;
    assert_eq!(response.status(), 401);
    clean(
        "the answer to a request that is signed wrongly",
        &response.into_body().collect(4096).await.expect("a body"),
        "sign",
    );
    let variables = r#"{"variables": {"TOKEN": {"secret": "secret/hook/key"}}}"#;
    let (status, answer) = ask(&platform, "PUT", "/v1/apps/default/shop/environment", variables).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));

    // All that is kept and told.
    for (path, holds) in [
        ("/v1/services", "good"),
        ("/v1/services/default/good", "good"),
        ("/v1/services/default/good/revisions", "good-00001"),
        ("/v1/services/default/good/manifest", "secretKeyRef"),
        ("/v1/services/default/good/logs?tail=1000", ""),
        ("/v1/services/default/good/decisions", "decisions"),
        ("/v1/services/default/ends/logs?tail=1000", "it ends"),
        ("/v1/services/default/peek", "peek-00001"),
        ("/v1/apps/default/shop", "TOKEN"),
        ("/v1/audit?limit=1000", "/v1/services"),
        ("/v1/diagnosis", ""),
        ("/v1/usage", ""),
        ("/v1/triggers", "pushed"),
        ("/v1/pool", "instances"),
        ("/v1/recovery", ""),
        ("/v1/tenants/default", "default"),
        ("/metrics", "sas_pool_starts_total"),
    ] {
        let (status, answer) = ask(&platform, "GET", path, "").await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&answer));
        clean(path, &answer, holds);
    }
    let namespaces = Namespaces::default();
    namespaces.bind(platform.control());
    let source = SecretDir::new(vault.path(), namespaces.clone());
    let tenant = platform.control().record("default", "good").expect("it is there").tenant;
    let value = source.resolve("secret/hook/key", tenant).await.expect("it is there");
    assert_eq!(value, HOOK);
    let secret = Secret::new(std::str::from_utf8(&value).expect("text"));
    let of_trigger = TriggerSecrets::new(Some(Arc::new(source.clone())), Some(tenant));
    let looks = format!(
        "{secret:?} {source:?} {of_trigger:?} {:?} {:?} {:?} {platform:?} {:?} {:?}",
        SecretEnv::new("P_", namespaces),
        platform.control(),
        platform.pool(),
        platform.control().record("default", "good"),
        platform.pool().deployed(key),
    );
    clean("Debug of what holds it", looks.as_bytes(), "Secret(..)");

    let report = platform.shutdown(Duration::from_secs(10)).await;
    clean("the report of the shutdown", format!("{report:?}").as_bytes(), "");
    let mut kept = Vec::new();
    files(dir.path(), &mut kept);
    clean("files of the platform", &kept, "good-00001");
    clean("the platform's log", &logged.bytes(), "a start failed");
}
