//! Native stems: a program that has initialised itself forks an instance for each start.
//!
//! A program opts in by the option [`crate::options::ZYGOTE`]. It is then started once per prepared revision, with a
//! Unix socket of type `SOCK_SEQPACKET` as standard input, `PATH` as its only variable, and no port. When it can fork
//! instances it sends one byte, `R`. For each start it receives one message:
//!
//! - three descriptors (`SCM_RIGHTS`): the listening socket, and where the instance's standard output and error go;
//! - the bytes `NAME=value\0` of each environment variable, `PORT` and Knative's among them.
//!
//! It forks, best by `clone` with `CLONE_PARENT`, so that the instance is the host's own child and its exit status is
//! known (without, it is not), and sends the process number of the instance, 4 bytes in the machine's order, or 0 when
//! it could not. The child calls `setpgid(0, 0)`, takes the three descriptors as 0, 1 and 2, takes on the environment
//! and serves. `tests/programs/zygote.rs` of this crate is one in a hundred lines of Rust.
//!
//! A zygote belongs to one artifact, and so to one tenant: nothing that one revision did is inherited by another. It
//! ends when its artifact goes. A zygote that died is started anew by the next start.
//!
//! It is no stem of the pool ([`sas_core::Stem`]), though it is one in spirit: a stem belongs to no revision, is kept in
//! numbers, becomes one instance and is used up by that; a zygote belongs to a revision, is one, and stays. So the
//! runtime keeps it, and the pool sees starts that are quick.

use std::{
    io::IoSlice,
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType},
    process::{Pid, PidfdFlags},
};
use sas_core::{Error, ErrorKind, Result, Retry};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Semaphore,
};

use crate::{
    engine::{Engine, NewProc, Proc, Spawned},
    logs::LogTarget,
    spawn::{self, Environment, SpawnRequest},
};

/// The longest environment that fits into one message.
const MAX_MESSAGE: usize = 128 * 1024;

/// The zygote of one artifact.
#[derive(Debug)]
pub(crate) struct Zygote {
    engine: Arc<Engine>,
    running: Mutex<Option<Arc<Running>>>,
    /// One asks at a time, so that each answer belongs to the last question.
    turn: Arc<Semaphore>,
}

#[derive(Debug)]
struct Running {
    proc: Arc<Proc>,
    control: AsyncFd<OwnedFd>,
}

impl Zygote {
    pub(crate) fn new(engine: &Arc<Engine>) -> Self {
        Self { engine: Arc::clone(engine), running: Mutex::new(None), turn: Arc::new(Semaphore::new(1)) }
    }

    /// Forks an instance that serves `listener`.
    pub(crate) async fn fork(
        &self,
        boot: impl FnOnce() -> SpawnRequest,
        listener: OwnedFd,
        env: &Environment,
        logs: LogTarget,
    ) -> Result<Spawned> {
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "start", "the zygote is gone").with_source(error)
        })?;
        let known = self.running.lock().clone().filter(|running| running.proc.exit().is_none());
        let running = match known {
            Some(running) => running,
            None => {
                let booted = Arc::new(self.boot(boot()).await?);
                *self.running.lock() = Some(Arc::clone(&booted));
                booted
            }
        };
        let no_pipe = |error: std::io::Error| {
            Error::new(ErrorKind::Exhausted, "start", format!("output pipes: {error}"))
                .with_retry(Retry::After(Duration::from_secs(1)))
        };
        let (stdout, stdout_of_child) = spawn::output_pipe().map_err(no_pipe)?;
        let (stderr, stderr_of_child) = spawn::output_pipe().map_err(no_pipe)?;
        let mut message = Vec::new();
        for (name, value) in &env.0 {
            message.extend_from_slice(name.as_bytes());
            message.push(b'=');
            message.extend_from_slice(value.as_bytes());
            message.push(0);
        }
        if message.len() > MAX_MESSAGE {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                "start",
                format!(
                    "env: {} bytes, a zygote takes {MAX_MESSAGE}; pass less by the environment",
                    message.len()
                ),
            ));
        }
        // From the question to the adoption of its answer nothing may be dropped half-way: the instance would be
        // nobody's. So it runs in a task of its own, which ends by itself.
        let engine = Arc::clone(&self.engine);
        let asked = Arc::clone(&running);
        let exchange = async move {
            let fds = [listener.as_fd(), stdout_of_child.as_fd(), stderr_of_child.as_fd()];
            asked.send(&message, &fds).await?;
            let pid = asked.pid().await?;
            drop(turn);
            drop((listener, stdout_of_child, stderr_of_child));
            adopt(&engine, pid, stdout, stderr, logs)
        };
        let spawned = tokio::spawn(exchange);
        tokio::select! {
            biased;
            done = spawned => done.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "start", "the host shuts down").with_source(error)
            })?,
            report = running.proc.exited() => Err(Error::new(
                ErrorKind::Crashed,
                "start",
                format!("the zygote {report}; the next start boots another"),
            )),
        }
    }

    async fn boot(&self, mut plan: SpawnRequest) -> Result<Running> {
        let failed = |what: String| Error::new(ErrorKind::Unavailable, "start", format!("zygote: {what}"));
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| failed(error.to_string()))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(|error| failed(error.to_string()))?;
        plan.stdin = Some(theirs);
        let (spawned, _) = spawn::spawn(&self.engine, plan).await?;
        #[allow(
            deprecated,
            reason = "its successor is an unsafe fn; the descriptor is owned and never replaced"
        )]
        let control = AsyncFd::with_interest(ours, Interest::READABLE | Interest::WRITABLE)
            .map_err(|error| failed(error.to_string()))?;
        let running = Running { proc: Arc::clone(spawned.proc()), control };
        let died = |report: &sas_core::ExitReport| {
            let words = running.proc.last_words().map(|words| format!("; its last output: {words}"));
            Error::new(
                ErrorKind::Crashed,
                "start",
                format!("the zygote {report} before it was ready{}", words.unwrap_or_default()),
            )
        };
        tokio::select! {
            biased;
            report = running.proc.exited() => return Err(died(&report)),
            said = running.receive() => match said.as_deref() {
                Ok(b"R") => {}
                // Its end of the socket closes a moment before its exit is told.
                Ok(b"") | Err(_)
                    if let Ok(report) =
                        tokio::time::timeout(Duration::from_secs(1), running.proc.exited()).await =>
                {
                    return Err(died(&report));
                }
                _ => return Err(failed("it did not say that it is ready (one byte, R, on descriptor 0)".into())),
            },
            () = tokio::time::sleep(Duration::from_secs(60)) => {
                return Err(failed("it was not ready within 60 s".into()));
            }
        }
        spawned.keep();
        Ok(running)
    }
}

impl Drop for Zygote {
    fn drop(&mut self) {
        if let Some(running) = self.running.get_mut().take() {
            self.engine.stop(&running.proc, Duration::ZERO);
        }
    }
}

impl Running {
    async fn send(&self, message: &[u8], fds: &[std::os::fd::BorrowedFd<'_>; 3]) -> Result<()> {
        let lost = |error: String| {
            Error::new(ErrorKind::Crashed, "start", format!("the zygote took no message: {error}"))
        };
        loop {
            let mut ready = self.control.writable().await.map_err(|error| lost(error.to_string()))?;
            let sent = ready.try_io(|control| {
                let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
                let mut rights = SendAncillaryBuffer::new(&mut space);
                rights.push(SendAncillaryMessage::ScmRights(fds));
                let bytes = [IoSlice::new(message)];
                Ok(rustix::net::sendmsg(control.get_ref(), &bytes, &mut rights, SendFlags::NOSIGNAL)?)
            });
            match sent {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(lost(error.to_string())),
                Err(_would_block) => {}
            }
        }
    }

    async fn receive(&self) -> std::io::Result<Vec<u8>> {
        loop {
            let mut ready = self.control.readable().await?;
            let mut buffer = [0u8; 16];
            match ready.try_io(|control| Ok(rustix::io::read(control.get_ref(), &mut buffer)?)) {
                Ok(read) => return read.map(|n| buffer[..n].to_vec()),
                Err(_would_block) => {}
            }
        }
    }

    /// The process that was forked.
    async fn pid(&self) -> Result<Pid> {
        let answer = self.receive().await.ok().and_then(|bytes| <[u8; 4]>::try_from(bytes.as_slice()).ok());
        answer
            .map(i32::from_ne_bytes)
            .and_then(Pid::from_raw)
            .ok_or_else(|| Error::new(ErrorKind::Crashed, "start", "the zygote could not fork an instance"))
    }
}

fn adopt(
    engine: &Arc<Engine>,
    pid: Pid,
    stdout: OwnedFd,
    stderr: OwnedFd,
    logs: LogTarget,
) -> Result<Spawned> {
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|error| {
        Error::new(ErrorKind::Crashed, "start", format!("the forked instance {pid:?}: {error}"))
    })?;
    // Also by us: between its fork and its own call it would still be in the zygote's group.
    let _ = rustix::process::setpgid(Some(pid), Some(pid));
    // Until now it had the zygote's.
    let mark = engine.mark();
    engine.put_mark(mark, pid);
    engine.adopt(NewProc {
        pid,
        pidfd,
        stdout: Some(stdout),
        stderr: Some(stderr),
        logs: Some(logs),
        adopted: true,
        cell: None,
        mark: Some(mark),
    })
}
