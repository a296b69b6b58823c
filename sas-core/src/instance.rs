//! A running copy of a revision: how it is reached and asked, and what it tells its owner.

use std::{fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Answer, Call, CallError, Cx, Error, InstanceId, Request, Result, Timestamp};

/// What came of a command that was run within an instance. See [`Instance::exec`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecOutput {
    /// Its exit status; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The beginning of what it wrote to both streams, at most [`ExecOutput::MOST`] bytes.
    pub output: Vec<u8>,
}

impl ExecOutput {
    /// How many bytes of output are kept.
    pub const MOST: usize = 4096;

    /// The outcome of a command. Output beyond [`ExecOutput::MOST`] bytes is cut.
    pub fn new(code: Option<i32>, mut output: Vec<u8>) -> Self {
        output.truncate(Self::MOST);
        Self { code, output }
    }
}

/// A running copy of a revision.
///
/// A runtime makes it, the pool keeps it and gives out leases of it, the data plane calls it. `examples/custom_runtime.rs` has one.
#[async_trait]
pub trait Instance: fmt::Debug + Send + Sync + 'static {
    /// The id from its [`crate::StartRequest`].
    fn id(&self) -> InstanceId;

    /// How requests reach it: at a socket, or by a call in this process. Always the same.
    fn target(&self) -> InstanceTarget<'_>;

    /// Runs `command` where the instance runs, with its environment, working directory and limits, until it ends. For
    /// probes of the kind [`crate::ProbeAction::Exec`]; gated by [`crate::Capabilities::exec`].
    ///
    /// **Cancel safety:** dropping the future kills the command.
    ///
    /// # Errors
    /// `Unsupported` unless gated in; `NotFound` when there is no such program; `Crashed` when the instance is gone.
    async fn exec(&self, command: &[String]) -> Result<ExecOutput> {
        let _ = command;
        Err(Error::unsupported("exec"))
    }

    /// What it has used so far; `None`: not known. Cheap enough for once a second.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Ends it: politely, then by force after `grace`. Idempotent; resolves when it is gone.
    ///
    /// **Cancel safety:** once polled, the stop goes on without the future.
    ///
    /// # Errors
    /// `Unexpected` when it can't be made sure that it is gone.
    async fn stop(&self, grace: Duration) -> Result<()>;

    /// Takes it off the CPU. Gated by [`crate::Capabilities::suspend`]. Idempotent.
    ///
    /// # Errors
    /// `Unsupported` unless gated in; `Crashed` when it is gone.
    async fn suspend(&self) -> Result<()> {
        Err(Error::unsupported("suspend"))
    }

    /// Undoes [`Instance::suspend`]. Idempotent.
    ///
    /// # Errors
    /// As `suspend`.
    async fn resume(&self) -> Result<()> {
        Err(Error::unsupported("resume"))
    }
}

impl dyn Instance {
    /// Where it listens; `None` when it is called.
    pub fn endpoint(&self) -> Option<&Endpoint> {
        match self.target() {
            InstanceTarget::Endpoint(endpoint) => Some(endpoint),
            InstanceTarget::Call(_) => None,
        }
    }

    /// Calls it, when it is called at all.
    ///
    /// # Errors
    /// As [`Call::call`]; `Unsupported`, with the request, when it listens on a socket instead.
    pub async fn call(&self, request: Request, cx: &Cx) -> std::result::Result<Answer, CallError> {
        match self.target() {
            InstanceTarget::Call(callee) => callee.call(request, cx).await,
            InstanceTarget::Endpoint(_) => Err(CallError::unsent(Error::unsupported("call"), request)),
        }
    }
}

/// Where an instance listens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Endpoint {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A host by its name, such as a Pod's in a cluster, and a TCP port. Whoever connects resolves the name, anew for
    /// every connection, and tries its addresses in the order in which they come.
    Host {
        /// A DNS name, or the text of an IP address.
        name: Arc<str>,
        /// The TCP port.
        port: u16,
    },
    /// A Unix socket.
    Unix(Arc<Path>),
    /// A TCP address that means something for sockets of this source only.
    Within(SocketAddr, Arc<dyn SocketSource>),
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Tcp(one), Self::Tcp(other)) => one == other,
            (Self::Host { name: one, port: at }, Self::Host { name: other, port: to }) => {
                one == other && at == to
            }
            (Self::Unix(one), Self::Unix(other)) => one == other,
            (Self::Within(one, here), Self::Within(other, there)) => one == other && Arc::ptr_eq(here, there),
            _ => false,
        }
    }
}

impl Eq for Endpoint {}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Within(address, _) => write!(f, "{address} in a network of its own"),
        }
    }
}

/// How requests reach an instance. See [`Instance::target`].
#[derive(Clone, Copy)]
pub enum InstanceTarget<'a> {
    /// It listens on a socket: the data plane owns the HTTP client, its connections and time-outs.
    Endpoint(&'a Endpoint),
    /// It is in this process (a closure, a WebAssembly guest) and is called.
    Call(&'a dyn Call),
}

impl fmt::Debug for InstanceTarget<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Endpoint(endpoint) => f.debug_tuple("Endpoint").field(endpoint).finish(),
            Self::Call(_) => f.write_str("Call"),
        }
    }
}

/// Makes the sockets by which an instance is reached that no address of the host's network leads to: one that has a
/// network namespace of its own. A socket belongs to the namespace in which it was made.
pub trait SocketSource: fmt::Debug + Send + Sync + 'static {
    /// A TCP socket for addresses of the family of `to`: not connected yet, non-blocking. It may visit the namespace
    /// for a fraction of a millisecond, and never waits for a peer.
    ///
    /// # Errors
    /// Those of socket(2), or the namespace is gone with its instance.
    fn tcp_socket(&self, to: &SocketAddr) -> std::io::Result<std::os::fd::OwnedFd>;
}

/// What an instance tells its owner, from whatever thread: no task waits on a quiet instance.
///
/// All methods return at once and never block; an implementation must bear late and repeated calls.
pub trait InstanceEvents: fmt::Debug + Send + Sync + 'static {
    /// A start came this far. The owner stamps the time.
    fn phase(&self, id: InstanceId, phase: StartPhase);
    /// A start goes on, and this is why it is not over yet: what it waits for, where the program listens instead, what
    /// it has printed. Told now and then by runtimes that can look; the owner keeps the last word for those whose own
    /// deadline comes before the end of the start.
    fn waiting(&self, id: InstanceId, why: Arc<Error>) {
        let _ = (id, why);
    }
    /// The instance (or stem) is gone. Told exactly once for each that started, whether it was asked to stop or not.
    fn exited(&self, id: InstanceId, report: ExitReport);
}

/// How an instance ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ExitReport {
    /// Exit status, if it has one.
    pub code: Option<i32>,
    /// The signal that ended it, if one did.
    pub signal: Option<i32>,
    /// Whether it was killed for want of memory, as far as the runtime can tell.
    pub out_of_memory: bool,
    /// Which ceiling it met, with its value and the setting that changes it; `None` when it met none that is known.
    pub reason: Option<Arc<str>>,
    /// The time at which it ended.
    pub at: Timestamp,
}

impl ExitReport {
    /// An end without status, such as that of a closure.
    pub const fn at(at: Timestamp) -> Self {
        Self { code: None, signal: None, out_of_memory: false, reason: None, at }
    }

    /// With an exit status.
    #[must_use]
    pub const fn with_code(mut self, code: i32) -> Self {
        self.code = Some(code);
        self
    }

    /// With the signal that ended it.
    #[must_use]
    pub const fn with_signal(mut self, signal: i32) -> Self {
        self.signal = Some(signal);
        self
    }

    /// Killed for want of memory.
    #[must_use]
    pub const fn with_out_of_memory(mut self) -> Self {
        self.out_of_memory = true;
        self
    }

    /// With the ceiling that it met.
    #[must_use]
    pub fn with_reason(mut self, reason: impl Into<Arc<str>>) -> Self {
        self.reason = Some(reason.into());
        self
    }
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.out_of_memory, self.signal, self.code) {
            (true, _, _) => f.write_str("killed for want of memory"),
            (_, Some(signal), _) => write!(f, "killed by signal {signal}"),
            (_, _, Some(code)) => write!(f, "exited with status {code}"),
            _ => f.write_str("ended"),
        }?;
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}

/// What an instance has used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct Usage {
    /// CPU time of all its threads and children, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes now (the proportional share where that is known, else resident).
    pub memory_bytes: u64,
}

impl Usage {
    /// A sample of CPU time in nanoseconds and memory in bytes.
    pub const fn new(cpu_ns: u64, memory_bytes: u64) -> Self {
        Self { cpu_ns, memory_bytes }
    }
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StartPhase {
    /// The process, sandbox or container exists.
    Spawned,
    /// It accepts connections.
    Listening,
    /// It can serve.
    Ready,
}

/// The phases of one start, each counted from the moment the pool decided to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StartTimings {
    /// Waiting for the start gate and for budgets.
    pub gated: Duration,
    /// Until it was spawned; `None`: the runtime has no such phase.
    pub spawned: Option<Duration>,
    /// Until it listened; `None`: the runtime has no such phase.
    pub listening: Option<Duration>,
    /// Until it was ready.
    pub ready: Duration,
    /// Whether it was made of a stem.
    pub from_stem: bool,
}
