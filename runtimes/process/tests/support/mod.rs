//! What the tests of this crate share: the compiled test program, sinks, and a bare HTTP client.

#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use sas_core::{
    Deployed, Endpoint, Instance, InstanceId, NoSink, Result, RevisionKey, RevisionName, RevisionSpec,
    Runtime, Source, StartRequest, TenantKey,
};
use sas_runtime_process::{ProcessConfig, ProcessRuntime};
use sas_testkit::fake::{RecordingEvents, RecordingLogs};

/// Compiles `tests/programs/<name>.rs`, once for all test binaries until it changes.
pub(crate) fn program(name: &str) -> PathBuf {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    static LOCK: parking_lot::Mutex<()> = parking_lot::Mutex::new(());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/programs/{name}.rs"));
    let mut hash = DefaultHasher::new();
    std::fs::read(&source).unwrap().hash(&mut hash);
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("programs");
    let out = dir.join(format!("{name}-{:016x}", hash.finish()));
    let _one = LOCK.lock();
    if !out.exists() {
        std::fs::create_dir_all(&dir).unwrap();
        // Other test binaries may be at it too: whole it comes by the rename.
        let scratch = tempfile::tempdir_in(&dir).unwrap();
        let made = scratch.path().join(name);
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "-C", "opt-level=1", "-C", "debuginfo=0", "-o"])
            .arg(&made)
            .arg(&source)
            .output()
            .expect("rustc, which built this test, runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::rename(made, &out).unwrap();
    }
    out
}

/// A runtime with a store of its own.
pub(crate) fn runtime() -> (tempfile::TempDir, ProcessRuntime) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("store"))).unwrap();
    (dir, runtime)
}

pub(crate) fn spec(source: impl Into<PathBuf>) -> RevisionSpec {
    let mut spec = RevisionSpec::new("process", Source::Path(source.into()));
    spec.timeouts.start = Duration::from_secs(20);
    spec
}

/// The test program with arguments.
pub(crate) fn app(args: &[&str]) -> RevisionSpec {
    let mut spec = spec(program("app"));
    spec.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    spec
}

/// A started instance and what was told about it.
pub(crate) struct Started {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) logs: Arc<RecordingLogs>,
    pub(crate) events: Arc<RecordingEvents>,
}

pub(crate) async fn prepare(runtime: &Arc<ProcessRuntime>, spec: RevisionSpec) -> Result<Arc<Deployed>> {
    let artifact = runtime.prepare(&spec).await?;
    Ok(Arc::new(Deployed::new(
        Arc::clone(runtime) as Arc<dyn Runtime>,
        artifact,
        Arc::new(spec),
        RevisionName::new("default", "hello", "hello-00001"),
        TenantKey(1),
    )))
}

pub(crate) fn request(
    deployed: &Arc<Deployed>,
    id: u64,
) -> (StartRequest, Arc<RecordingLogs>, Arc<RecordingEvents>) {
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
    (request, logs, events)
}

pub(crate) async fn start_deployed(
    runtime: &ProcessRuntime,
    deployed: &Arc<Deployed>,
    id: u64,
) -> Result<Started> {
    let (request, logs, events) = request(deployed, id);
    let instance = runtime.start(request).await?;
    Ok(Started { instance, logs, events })
}

pub(crate) async fn start(runtime: &Arc<ProcessRuntime>, spec: RevisionSpec) -> Result<Started> {
    let deployed = prepare(runtime, spec).await?;
    start_deployed(runtime, &deployed, 1).await
}

pub(crate) fn address(instance: &Arc<dyn Instance>) -> SocketAddr {
    match instance.endpoint() {
        Some(Endpoint::Tcp(address)) => *address,
        other => panic!("a TCP endpoint, not {other:?}"),
    }
}

/// The process that an instance calls by a number of its own namespace, as this machine numbers it.
pub(crate) fn on_host(instance: &Arc<dyn Instance>, pid: &str) -> i32 {
    let variable = format!("PORT={}", address(instance).port());
    // A process that is about to become its program shows no environment, and a walk through all may pass by a new one.
    for _look in 0..100 {
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
            let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            if numbers.split_whitespace().last() == Some(pid.trim())
                && environ.split(|byte| *byte == 0).any(|one| one == variable.as_bytes())
            {
                return entry.file_name().to_str().unwrap().parse().unwrap();
            }
        }
    }
    panic!("process {pid} of the instance is not there");
}

/// `GET path`, blocking; the body of the answer.
pub(crate) fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    // In one write: PHP's own server closes when the request's line comes in pieces.
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut text = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let n = stream.read(&mut buffer)?;
        text.extend_from_slice(&buffer[..n]);
        let shown = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = shown.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse::<usize>().ok()
            });
            if length.is_some_and(|length| body.len() >= length) || (n == 0 && length.is_none()) {
                return Ok(body.to_owned());
            }
        }
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// `get` away from the async threads.
pub(crate) async fn fetch(instance: &Arc<dyn Instance>, path: &'static str) -> std::io::Result<String> {
    let address = address(instance);
    tokio::task::spawn_blocking(move || get(address, path)).await.unwrap()
}

/// Whether a process runs (zombies do not).
pub(crate) fn runs(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}

/// Processes whose program lies below `dir`.
pub(crate) fn processes_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
            && std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(dir))
        {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    found
}

/// Waits until `check` holds, for at most 20 s.
pub(crate) async fn eventually(what: &str, check: impl Fn() -> bool) {
    for _ in 0..2000 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within 20 s: {what}");
}

/// Whether a program is missing, which is said; in CI, a failure.
#[track_caller]
pub(crate) fn missing(program: &str) -> bool {
    let found = ProcessConfig::default().path.split(':').any(|dir| Path::new(dir).join(program).exists());
    if !found {
        sas_testkit::skip(&format!("{program} is not installed"));
    }
    !found
}

pub(crate) fn nowhere() -> Arc<dyn sas_core::LogSink> {
    NoSink::logs()
}
