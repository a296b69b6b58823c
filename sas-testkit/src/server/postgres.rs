//! PostgreSQL.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::{free_port, missing, write_for};

/// How long a server may take until it answers.
const ANSWERS: Duration = Duration::from_secs(60);

/// Who PostgreSQL runs as where tests run as root, which it refuses.
const NOBODY: u32 = 65534;

/// A PostgreSQL whose superuser is `postgres` with the password `admin-pass`. It is killed when this is dropped.
///
/// Its `fsync` is off unless it is started with another setting: what tests kill is the process, and the kernel keeps what
/// was written.
pub struct PostgresServer {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
    settings: Vec<String>,
}

impl fmt::Debug for PostgresServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresServer").field("port", &self.port).finish_non_exhaustive()
    }
}

/// A program of the newest PostgreSQL of this machine.
fn postgres_program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

impl PostgresServer {
    /// Starts one. `None`, and a line on stderr, where there is none to be started.
    ///
    /// # Panics
    /// Instead, when `CI` is set; and when it does not answer within a minute.
    pub async fn start() -> Option<Self> {
        Self::start_with(&[]).await
    }

    /// Starts one with settings, such as `max_connections=10`.
    ///
    /// # Panics
    /// As [`PostgresServer::start`].
    pub async fn start_with(settings: &[&str]) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = dir.path().join("password");
        std::fs::write(&file, "admin-pass").expect("written");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("given away");
        }
        let data = dir.path().join("data");
        let made = Self::command("initdb")
            .arg("-D")
            .arg(&data)
            .args(["-U", "postgres", "--auth-host=scram-sha-256", "--auth-local=trust", "--no-sync"])
            .args(["--encoding=UTF8", "--no-locale", "--pwfile"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status();
        Self::run(made, dir, settings).await
    }

    async fn run(
        made: io::Result<std::process::ExitStatus>,
        dir: tempfile::TempDir,
        settings: &[&str],
    ) -> Option<Self> {
        let problem = match made {
            Ok(status) if status.success() => {
                let port = free_port();
                let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
                match Self::spawn(dir.path(), port, &settings) {
                    Ok(child) => {
                        let mut server = Self { child, dir, port, settings };
                        server.answers().await;
                        return Some(server);
                    }
                    Err(error) => error.to_string(),
                }
            }
            Ok(status) => format!("initdb: {status}"),
            Err(error) => format!("initdb: {error}"),
        };
        missing("PostgreSQL", &problem, "Debian has it as postgresql")
    }

    /// A program of PostgreSQL, as an ordinary user, since the server refuses to run as root.
    pub fn command(program: &str) -> Command {
        if !rustix::process::geteuid().is_root() {
            return Command::new(postgres_program(program));
        }
        let mut command = Command::new("setpriv");
        let nobody = NOBODY.to_string();
        command
            .args([format!("--reuid={nobody}"), format!("--regid={nobody}"), "--clear-groups".to_owned()])
            .arg(postgres_program(program));
        command
    }

    fn spawn(dir: &Path, port: u16, settings: &[String]) -> io::Result<Child> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
        let mut command = Self::command("postgres");
        command.arg("-D").arg(dir.join("data"));
        command.args(["-p", &port.to_string(), "-h", "127.0.0.1"]);
        for setting in
            ["unix_socket_directories=", "fsync=off"].into_iter().chain(settings.iter().map(String::as_str))
        {
            command.args(["-c", setting]);
        }
        command.stdout(Stdio::null()).stderr(log).spawn()
    }

    /// Waits until it takes connections; one that could not begin since its predecessor's children were not gone is
    /// started again.
    async fn answers(&mut self) {
        let began = Instant::now();
        loop {
            let port = self.port.to_string();
            let mut asked = Self::command("pg_isready");
            asked.args(["-q", "-h", "127.0.0.1", "-p", &port]);
            let ready = tokio::task::spawn_blocking(move || asked.status()).await;
            if ready.is_ok_and(|status| status.is_ok_and(|status| status.success())) {
                return;
            }
            if self.child.try_wait().expect("a child of this process").is_some() {
                self.child =
                    Self::spawn(self.dir.path(), self.port, &self.settings).expect("it was started before");
            }
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            assert!(began.elapsed() < ANSWERS, "PostgreSQL does not answer:\n{}", log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where it listens, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Writes a file that the server alone can read, and says where it is.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        write_for(self.dir.path(), name, text).expect("the server's directory can be written to")
    }

    /// Adds lines to its configuration, for the next start.
    ///
    /// # Panics
    /// When that can't be written.
    pub fn configure(&self, lines: &str) {
        let file = self.dir.path().join("data/postgresql.conf");
        let mut text = std::fs::read_to_string(&file).expect("initdb has made it");
        text.push_str(&format!("\n{lines}\n"));
        std::fs::write(file, text).expect("it can be written");
    }

    /// The process of the server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The directory below which its data is, in `data`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it at once but in order: connections are told, and what is on the disk is whole.
    pub fn stop(&mut self) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::INT);
        }
        let _ = self.child.wait();
    }

    /// Starts it again with what is on its disk, and returns when it answers.
    ///
    /// # Panics
    /// When it does not within a minute.
    pub async fn restart(&mut self) {
        self.child = Self::spawn(self.dir.path(), self.port, &self.settings).expect("it was started before");
        self.answers().await;
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.kill();
    }
}
