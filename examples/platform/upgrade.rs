//! A new process takes over from this one, with the sockets on which it listens: nobody is refused.
//!
//! The old process starts the new one with the listening sockets as descriptors 3 and 4, and the path of a socket in
//! `SAS_UPGRADE`, over which they agree: the new one reads its configuration and says `prepared`; the old one answers what it
//! has taken, gives up the state and says `state`; the new one opens the state, serves and says `ready`. What comes in
//! between waits in the queues of the listening sockets. Whichever step fails, one of the two serves.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::Duration,
};

use command_fds::{CommandFdExt as _, FdMapping};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
};

use crate::{
    Signals,
    config::{AdminAt, Config},
};

/// Where the new process finds the old one.
const PLACE: &str = "SAS_UPGRADE";
/// How long the new process may take to read its configuration, and to bring back the state.
const PREPARES: Duration = Duration::from_secs(30);
const STARTS: Duration = Duration::from_secs(120);
/// Connections that wait in the queue of a listening socket, unless the kernel has a lower bound (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// The sockets on which a platform listens: opened, or inherited from a supervisor (`LISTEN_FDS`: first the one for requests,
/// then the admin API's) or from the process before.
#[derive(Debug)]
pub(crate) struct Sockets {
    pub(crate) requests: TcpListener,
    /// `None`: the admin API is on a Unix socket.
    pub(crate) admin: Option<TcpListener>,
}

/// Sockets that this process was started with.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    requests: Option<TcpListener>,
    admin: Option<TcpListener>,
}

impl Inherited {
    /// Takes them. To be called before there are other threads: it changes the environment.
    pub(crate) fn take() -> io::Result<Self> {
        let mut inherited = listenfd::ListenFd::from_env();
        if inherited.len() > 2 {
            let problem =
                "LISTEN_FDS: more than two sockets; give the one for requests, then the admin API's";
            return Err(io::Error::other(problem));
        }
        let mut take = |at| match at < inherited.len() {
            true => inherited.take_tcp_listener(at),
            false => Ok(None),
        };
        Ok(Self { requests: take(0)?, admin: take(1)? })
    }
}

impl Sockets {
    /// Those that were inherited, whatever the configuration says of them; the others are opened.
    pub(crate) fn open(config: &Config, inherited: Inherited) -> io::Result<Self> {
        let requests = match inherited.requests {
            Some(requests) => requests,
            None => listen("listen", config.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080))))?,
        };
        let admin = match (inherited.admin, config.admin.clone().unwrap_or_default()) {
            (_, AdminAt::Socket(_)) => None,
            (Some(admin), AdminAt::Address(_)) => Some(admin),
            (None, AdminAt::Address(address)) => Some(listen("admin", address)?),
        };
        Ok(Self { requests, admin })
    }
}

fn listen(flag: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let opened = || {
        let socket = match address {
            SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4(),
            SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6(),
        }?;
        // As listeners of the standard library have it: a port is free again at once.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    opened().map_err(|error| {
        io::Error::new(error.kind(), format!("--{flag} {address}: can't listen there: {error}"))
    })
}

/// The process that this one takes over from.
#[derive(Debug)]
pub(crate) struct Predecessor(BufReader<UnixStream>);

impl Predecessor {
    /// Finds it, if there is one.
    pub(crate) async fn find() -> io::Result<Option<Self>> {
        let Some(place) = std::env::var_os(PLACE) else { return Ok(None) };
        Ok(Some(Self(BufReader::new(UnixStream::connect(place).await?))))
    }

    /// Says that the configuration is good, and waits until the state is free.
    pub(crate) async fn state(&mut self) -> io::Result<()> {
        self.0.write_all(b"prepared\n").await?;
        let mut line = String::new();
        self.0.read_line(&mut line).await?;
        match line.trim_end() {
            "state" => Ok(()),
            // It died on the way: whatever it was about to say, the state is free.
            "" => Ok(()),
            other => Err(io::Error::other(format!("the process before said {other:?}"))),
        }
    }

    /// Says that this one serves.
    pub(crate) async fn ready(mut self) {
        // Nobody reads it any more? Then nobody else serves.
        let _told = self.0.write_all(b"ready\n").await;
    }
}

/// The process that takes over from this one.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Started,
    said: BufReader<UnixStream>,
    _place: Place,
}

/// A new process, which ends with this unless it serves: it would take the state of an old one that lets go of it.
#[derive(Debug)]
struct Started(Option<Child>);

impl Started {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("it is taken when it serves, which is the last that is done with it")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            // It may have ended by itself.
            let _killed = child.kill();
            let _ended = child.wait();
        }
    }
}

/// A directory of this user's alone, gone with it.
#[derive(Debug)]
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

impl Successor {
    /// Starts `program` with the arguments of this process, and waits until it is prepared. Until then, and if it fails, this
    /// process goes on as if nothing had been.
    pub(crate) async fn prepare(program: &Path, sockets: &Sockets) -> Result<Self, String> {
        let dir = std::env::temp_dir().join(format!("sas-upgrade-{}", std::process::id()));
        sas::control::private_dir(&dir).map_err(|error| error.to_string())?;
        let place = Place(dir);
        let path = place.0.join("socket");
        let listener = UnixListener::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let spawned = spawn(program, &path, sockets).map_err(|error| {
            format!("{} can't be started: {error}; is the new program there?", program.display())
        })?;
        let mut child = Started(Some(spawned));
        let prepared = async {
            let (stream, _) = listener.accept().await?;
            let mut said = BufReader::new(stream);
            expect(&mut said, "prepared").await?;
            io::Result::Ok(said)
        };
        let said = until(prepared, child.child(), PREPARES).await?;
        Ok(Self { child, said, _place: place })
    }

    /// Gives it the state, which this process has closed, and waits until it serves. Is this process to end meanwhile, the new
    /// one is told so instead, which has the state.
    pub(crate) async fn take_over(mut self, signals: &mut Signals) -> Result<(), String> {
        let served = async {
            self.said.write_all(b"state\n").await?;
            expect(&mut self.said, "ready").await
        };
        let pid = self.child.child().id();
        let served = tokio::select! {
            biased;
            () = signals.end() => {
                let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
                if let Some(pid) = pid {
                    // It may have ended by itself.
                    let _told = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
                }
                Ok(())
            }
            served = until(served, self.child.child(), STARTS) => served,
        };
        if served.is_ok() {
            self.child.0.take();
        }
        served
    }
}

fn spawn(program: &Path, place: &Path, sockets: &Sockets) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(PLACE, place);
    let given = [Some(&sockets.requests), sockets.admin.as_ref()];
    let mut mappings = Vec::new();
    for (socket, child_fd) in given.into_iter().flatten().zip(3..) {
        mappings.push(FdMapping { parent_fd: OwnedFd::from(socket.try_clone()?), child_fd });
    }
    command.env("LISTEN_FDS", mappings.len().to_string()).env_remove("LISTEN_PID");
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    command.spawn()
}

async fn expect(said: &mut BufReader<UnixStream>, word: &str) -> io::Result<()> {
    let mut line = String::new();
    said.read_line(&mut line).await?;
    match line.trim_end() {
        found if found == word => Ok(()),
        found => Err(io::Error::other(format!("the new process said {found:?}, not {word:?}"))),
    }
}

/// `work`, unless the child ends first or the time does.
async fn until<T>(
    work: impl Future<Output = io::Result<T>>,
    child: &mut Child,
    limit: Duration,
) -> Result<T, String> {
    let ended = async {
        loop {
            match child.try_wait() {
                Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(Some(status)) => return format!("the new process ended, with {status}; it said why"),
                Err(error) => return format!("the new process can't be watched: {error}"),
            }
        }
    };
    let mut ended = std::pin::pin!(ended);
    tokio::select! {
        biased;
        done = work => match done {
            Ok(done) => Ok(done),
            // That it ended says more than that it said nothing.
            Err(error) => Err(tokio::time::timeout(Duration::from_secs(1), &mut ended).await.unwrap_or(error.to_string())),
        },
        problem = &mut ended => Err(problem),
        () = tokio::time::sleep(limit) => Err(format!("the new process was not done within {limit:?}")),
    }
}
