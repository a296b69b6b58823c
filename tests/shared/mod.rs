//! What the end-to-end tests share: a compiled program to deploy, the `platform` example as a child, a tiny client.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The program of `examples/apps/hello.rs`, compiled once per test binary.
pub(crate) fn hello() -> &'static Path {
    static HELLO: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    &HELLO
        .get_or_init(|| {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let program = dir.path().join("hello");
            let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
            let status = Command::new(rustc)
                .args(["-O", "--edition", "2024", "-o"])
                .arg(&program)
                .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps/hello.rs"))
                .status()
                .expect("rustc runs");
            assert!(status.success(), "examples/apps/hello.rs compiles");
            (dir, program)
        })
        .1
}

/// A manifest for [`hello`].
pub(crate) fn hello_manifest(name: &str, annotations: &str, concurrency: u32) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: {name}
  annotations:
    sas.dev/package: {}
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/window: 6s
{annotations}
    spec:
      containerConcurrency: {concurrency}
      containers: [{{}}]
",
        hello().display()
    )
}

/// The `platform` example as a child process, killed when it is dropped.
pub(crate) struct PlatformProcess {
    child: Child,
    stdout: BufReader<ChildStdout>,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// The first line of its output.
    pub(crate) ready: serde_json::Value,
    /// The file with the admin token, where the ready line names one.
    pub(crate) token_file: Option<PathBuf>,
}

pub(crate) fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test's own path");
    let target = test.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let path = target.join("examples").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` of the package builds it; with `--test` alone, `cargo build --example {name}` first, \
         with the same features",
        path.display()
    );
    path
}

/// What `platform` is given in `SAS_ADMIN_TOKEN`.
pub(crate) const ADMIN_TOKEN: &str = "a-token-of-the-tests";

/// `platform` with arguments, not started.
pub(crate) fn platform_command(args: &[&str]) -> Command {
    let mut command = Command::new(example("platform"));
    command.args(args).stdin(Stdio::null()).env("SAS_ADMIN_TOKEN", ADMIN_TOKEN);
    command
}

impl PlatformProcess {
    pub(crate) fn start(args: &[&str]) -> Self {
        Self::run(platform_command(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]), args)
    }

    /// The same where nobody gave it a token.
    pub(crate) fn start_without_token(args: &[&str]) -> Self {
        let mut command = platform_command(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.env_remove("SAS_ADMIN_TOKEN");
        Self::run(command, args)
    }

    /// The same with its admin API at a Unix socket: `unix:PATH`.
    pub(crate) fn start_at(admin: &str, args: &[&str]) -> Self {
        let mut command = platform_command(&["--listen", "127.0.0.1:0", "--admin", admin]);
        command.env_remove("SAS_ADMIN_TOKEN");
        Self::run(command, args)
    }

    /// Whatever command it is that starts it.
    pub(crate) fn run(mut command: Command, args: &[&str]) -> Self {
        let mut child = command.args(args).stdout(Stdio::piped()).spawn().expect("the example starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|error| {
            let _ = child.kill();
            panic!("the first line of stdout is JSON: {error}: {line:?}")
        });
        assert_eq!(ready["ready"], true);
        let address = |key: &str| match ready[key].as_str().expect("an address") {
            // Tests of sockets take the path from what they asked for.
            socket if socket.starts_with("unix:") => SocketAddr::from(([127, 0, 0, 1], 0)),
            address => address.parse().expect("an address"),
        };
        let token_file = ready["adminTokenFile"].as_str().map(PathBuf::from);
        Self { listen: address("listen"), admin: address("admin"), token_file, ready, child, stdout }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("SIGKILL");
        self.child.wait().expect("it ends");
    }

    /// Whether it ends by itself in time, with success.
    #[allow(clippy::disallowed_methods, reason = "a process is waited for, in no runtime")]
    pub(crate) fn ended(&mut self, limit: Duration) -> bool {
        for _ in 0..limit.as_millis() / 20 {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    pub(crate) fn terminate(mut self) -> std::process::ExitStatus {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &id]).status().expect("kill runs").success());
        self.child.wait().expect("it ends")
    }
}

impl Drop for PlatformProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("JSON: {error}: {}", self.body))
    }
}

/// One request over a connection of its own. Errors are those of the connection.
pub(crate) async fn call(
    to: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    body: &str,
) -> std::io::Result<Answer> {
    call_with(to, method, host, "", path, body).await
}

/// One request to the admin API, with the token.
pub(crate) async fn call_admin(
    to: SocketAddr,
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<Answer> {
    let token = format!("authorization: Bearer {ADMIN_TOKEN}\r\n");
    call_with(to, method, "localhost", &token, path, body).await
}

/// The same with header lines of one's own, each with its end.
pub(crate) async fn call_with(
    to: SocketAddr,
    method: &str,
    host: &str,
    headers: &str,
    path: &str,
    body: &str,
) -> std::io::Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {host}\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let bytes = match tokio::time::timeout(Duration::from_secs(60), exchange).await {
        Ok(bytes) => bytes?,
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    };
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, rest) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status =
        head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunk(rest)
    } else {
        rest.to_owned()
    };
    Ok(Answer { status, head: head.to_ascii_lowercase(), body })
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || after.len() < size {
            break;
        }
        body.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    body
}

/// Asks until `condition` holds, for at most `limit`.
pub(crate) async fn eventually<F: AsyncFnMut() -> bool>(what: &str, limit: Duration, mut condition: F) {
    let deadline = tokio::time::Instant::now() + limit;
    while !condition().await {
        assert!(tokio::time::Instant::now() < deadline, "within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Processes whose executable lies below `dir`.
pub(crate) fn processes_below(dir: &Path) -> Vec<u32> {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe.starts_with(&dir)))
        .collect()
}
