//! etcd.

use std::{
    fmt, io,
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{free_port, missing};

/// How long a server may take until it answers.
const ANSWERS: Duration = Duration::from_secs(60);

/// A cluster of one etcd. It is killed when this is dropped.
pub struct EtcdServer {
    child: Child,
    dir: tempfile::TempDir,
    ports: (u16, u16),
    settings: Vec<String>,
}

impl fmt::Debug for EtcdServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdServer").field("port", &self.ports.0).finish_non_exhaustive()
    }
}

impl EtcdServer {
    /// Starts one. `None`, and a line on stderr, where there is none to be started.
    ///
    /// # Panics
    /// Instead, when `CI` is set; and when it does not answer within a minute.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one with flags, such as `--quota-backend-bytes=1000000`.
    ///
    /// # Panics
    /// As [`EtcdServer::start`].
    pub async fn start_with(settings: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let ports = (free_port(), free_port());
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        match Self::spawn(dir.path(), ports, &settings) {
            Ok(child) => {
                let mut server = Self { child, dir, ports, settings };
                server.answers().await;
                Some(server)
            }
            Err(error) => missing("etcd", &error.to_string(), "Debian has it as etcd-server"),
        }
    }

    fn spawn(dir: &Path, (port, peers): (u16, u16), settings: &[String]) -> io::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
        let (clients, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
        Command::new("etcd")
            .arg("--data-dir")
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
            .args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers])
            .args(["--initial-cluster", &format!("default={peers}")])
            .args(settings)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
    }

    async fn answers(&mut self) {
        let began = Instant::now();
        while !is_healthy(self.ports.0).await {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            let ended = self.child.try_wait().expect("a child of this process").is_some();
            assert!(!ended && began.elapsed() < ANSWERS, "etcd does not answer:\n{}", log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where it takes clients, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.ports.0
    }

    /// A call of `etcdctl` on it.
    pub fn etcdctl(&self) -> Command {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints=http://127.0.0.1:{}", self.ports.0));
        command
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again with what is on its disk, and returns when it answers.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn restart(&mut self) {
        self.child = Self::spawn(self.dir.path(), self.ports, &self.settings).expect("it was started before");
        self.answers().await;
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether an etcd says that it has a leader.
async fn is_healthy(port: u16) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let asked = async {
        let mut stream = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(5), asked).await;
    // What is full answers, too.
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.contains("\"health\":")))
}
