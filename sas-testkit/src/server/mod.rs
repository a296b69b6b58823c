//! Real servers that tests start on free ports of loopback, kill, and start again with what is on their disks.
//!
//! Each has a directory of its own, which goes with it. Where a program is not installed, a test is to return: a line says
//! that it was skipped, and in CI (the environment has `CI`) that is a failure.
//!
//! ```no_run
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let Some(mut server) = sas_testkit::server::nats("").await else { return };
//! println!("nats://{}", server.address());
//! server.kill();
//! server.restart().await;
//! # }
//! ```

mod certificate;
mod etcd;
mod kafka;
mod kubernetes;
mod postgres;
mod programs;
mod rabbitmq;

use std::{
    fmt,
    fs::Permissions,
    io,
    net::{TcpListener, TcpStream},
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

pub use certificate::{Authority, Certificate};
pub use etcd::EtcdServer;
pub use kafka::{kafka, kafka_tool};
pub use kubernetes::{Kubectl, KubernetesCluster, PAUSE};
pub use postgres::PostgresServer;
pub use programs::{mosquitto, moto, nats, redis};
pub use rabbitmq::rabbitmq;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::time::Instant;

/// How long a server may take until it listens, on a busy machine.
const STARTS: Duration = Duration::from_secs(180);

/// A port of loopback that nobody listened at a moment ago.
///
/// # Panics
/// When the machine has none.
pub fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    free.expect("loopback has free ports").port()
}

/// Where a server's files and ports are.
#[derive(Debug)]
struct Site {
    dir: PathBuf,
    port: u16,
    /// For what it speaks about with its like.
    inner: [u16; 2],
}

impl Site {
    /// The file of its settings.
    fn settings(&self) -> PathBuf {
        self.dir.join("server.conf")
    }
}

/// Writes a file into a server's directory, for whoever that belongs to and for nobody else.
fn write_for(dir: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let (path, owner) = (dir.join(name), std::fs::metadata(dir)?);
    std::fs::write(&path, text)?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&path, Some(owner.uid()), Some(owner.gid()))?;
    Ok(path)
}

/// `None`, and a line about a server that is not there; in CI, a failure.
#[track_caller]
fn missing<T>(name: &str, problem: &str, from: &str) -> Option<T> {
    crate::skip(&format!("{name}: {problem} ({from})"));
    None
}

type Prepare = dyn Fn(&Site) -> io::Result<Option<Child>> + Send + Sync;

/// What it takes to start a server.
struct Program {
    name: &'static str,
    /// Where it comes from, for those who do not have it.
    from: &'static str,
    /// Whether it has children that must go with it.
    group: bool,
    /// Makes what it finds at its first start, and what runs beside it and listens at the second of its inner ports.
    prepare: Box<Prepare>,
    command: Box<dyn Fn(&Site) -> Command + Send + Sync>,
}

/// A server that a test has started. Dropping it kills it and removes its files.
pub struct Server {
    program: Program,
    child: Child,
    beside: Option<Child>,
    site: Site,
    _dir: tempfile::TempDir,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("program", &self.program.name).field("site", &self.site).finish()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        if let Some(beside) = &mut self.beside {
            let _ = beside.kill();
            let _ = beside.wait();
        }
    }
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null())
}

fn spawn(program: &Program, site: &Site) -> io::Result<Child> {
    let mut command = (program.command)(site);
    if program.group {
        command.process_group(0);
    }
    quiet(&mut command).spawn()
}

impl Server {
    /// Starts it with these settings, in which `$DIR`, `$PORT`, `$INNER0` and `$INNER1` stand for its directory and ports.
    async fn start(program: Program, settings: &str) -> Option<Self> {
        let (name, from) = (program.name, program.from);
        match Self::try_start(program, settings).await {
            Ok(mut server) => {
                server.listens().await;
                Some(server)
            }
            Err(error) => missing(name, &error.to_string(), from),
        }
    }

    async fn try_start(program: Program, settings: &str) -> io::Result<Self> {
        let dir = tempfile::tempdir()?;
        let site = Site { dir: dir.path().to_owned(), port: free_port(), inner: [free_port(), free_port()] };
        let text = settings
            .replace("$DIR", &site.dir.display().to_string())
            .replace("$PORT", &site.port.to_string())
            .replace("$INNER0", &site.inner[0].to_string())
            .replace("$INNER1", &site.inner[1].to_string());
        std::fs::write(site.settings(), text)?;
        let mut beside = (program.prepare)(&site)?;
        let began = Instant::now();
        while let Some(child) = &mut beside
            && TcpStream::connect(("127.0.0.1", site.inner[1])).is_err()
        {
            let ended = child.try_wait()?;
            if ended.is_some() || began.elapsed() >= STARTS {
                let _ = child.kill();
                let _ = child.wait();
                let problem =
                    ended.map_or_else(|| format!("not within {STARTS:?}"), |status| status.to_string());
                let message = format!("what runs beside it does not come up: {problem}");
                return Err(io::Error::other(message));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let child = spawn(&program, &site)?;
        Ok(Self { program, child, beside, site, _dir: dir })
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.site.port
    }

    /// `127.0.0.1:port`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.site.port)
    }

    /// The directory of its files.
    pub fn dir(&self) -> &Path {
        &self.site.dir
    }

    /// Writes a file that the server alone can read, and says where it is.
    ///
    /// # Panics
    /// When it can't be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        write_for(&self.site.dir, name, text).expect("the server's directory can be written to")
    }

    /// Adds lines to its settings, for the next start.
    ///
    /// # Panics
    /// When its settings can't be read and written.
    pub fn configure(&self, lines: &str) {
        let mut text = std::fs::read_to_string(self.site.settings()).expect("its settings are there");
        text.push_str(&format!("\n{lines}\n"));
        std::fs::write(self.site.settings(), text).expect("its settings can be written");
    }

    /// Puts other words into its settings, for the next start.
    ///
    /// # Panics
    /// When its settings do not have `from`.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.site.settings()).expect("its settings are there");
        assert!(text.contains(from), "{from} is not in its settings");
        std::fs::write(self.site.settings(), text.replace(from, to)).expect("its settings can be written");
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = match self.program.group {
                true => kill_process_group(pid, signal),
                false => kill_process(pid, signal),
            };
        }
    }

    /// Kills it with SIGKILL, and what it has started.
    pub fn kill(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal(Signal::KILL);
        }
        let _ = self.child.wait();
    }

    /// Asks it to end, and waits until it has.
    pub fn end(&mut self) {
        self.signal(Signal::TERM);
        let _ = self.child.wait();
    }

    /// Starts it again, after [`Server::kill`] or [`Server::end`], with what it has on disk.
    ///
    /// # Panics
    /// When it does not come up.
    pub async fn restart(&mut self) {
        // What it had started may take a moment longer to go, and would be taken for the new one.
        let began = Instant::now();
        while self.is_listening() {
            let what = "somebody else listens at the port of";
            assert!(began.elapsed() < STARTS, "{what} {}, which has ended", self.program.name);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.child = spawn(&self.program, &self.site).expect("it was started before");
        self.listens().await;
    }

    fn is_listening(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.site.port)).is_ok()
    }

    /// Waits until it listens; one that found something of its former self in its way is started again.
    async fn listens(&mut self) {
        let began = Instant::now();
        while !self.is_listening() {
            assert!(began.elapsed() < STARTS, "{} does not come up", self.program.name);
            if self.child.try_wait().is_ok_and(|ended| ended.is_some()) {
                self.child = spawn(&self.program, &self.site).expect("it was started before");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
