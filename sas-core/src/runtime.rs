//! Where code runs.

use std::{any::Any, fmt, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    CallError, Cx, Error, InstanceId, Request, Response, Result, RevisionName, RevisionSpec, SpecErrors,
    StartPhase, StartRequest, TenantKey, Timestamp,
};

/// How strongly instances are kept apart, weakest first. `Shared` editions refuse less than they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Isolation {
    /// One address space with the host.
    None,
    /// A process of its own; processes of one user can read each other's environment.
    Process,
    /// Namespaces and cgroups of its own.
    Container,
    /// A software sandbox such as WebAssembly, with capabilities.
    Sandbox,
    /// A virtual machine.
    MicroVm,
}

/// What a backend can do beyond the required methods. Suites skip by these flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// What keeps instances apart.
    pub isolation: Isolation,
    /// [`Instance::suspend`] and [`Instance::resume`].
    pub suspend: bool,
    /// [`Runtime::start_stem`].
    pub stems: bool,
    /// [`Instance::usage`] says something.
    pub usage: bool,
    /// [`Instance::exec`] runs commands, so that probes may be commands.
    pub exec: bool,
    /// [`RevisionSpec::resources`] limits are enforced.
    pub limits: bool,
    /// Starting burns CPU, so the pool's start gate applies.
    pub cpu_bound_start: bool,
    /// The most requests that one instance takes at once; `None`: as many as the spec says.
    pub max_concurrency: Option<u32>,
}

impl Capabilities {
    /// No optional ability at all.
    pub const fn new(isolation: Isolation) -> Self {
        Self {
            isolation,
            suspend: false,
            stems: false,
            usage: false,
            exec: false,
            limits: false,
            cpu_bound_start: false,
            max_concurrency: None,
        }
    }
}

/// What `prepare` made of the code: an unpacked package, a compiled module, a root file system. Opaque to the
/// platform; what it holds on disk or in memory is freed when the last clone is dropped.
#[derive(Clone)]
pub struct Artifact {
    content: Arc<dyn Any + Send + Sync>,
    info: Arc<ArtifactInfo>,
}

/// What the platform may know of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ArtifactInfo {
    /// Digest of the code as `sha256:<64 hex digits>`; empty for code without bytes (a closure).
    pub digest: String,
    /// Bytes that the prepared form takes.
    pub bytes: u64,
    /// The class of stems that can become this artifact; `None`: every start is cold.
    pub stem: Option<StemClass>,
    /// What a developer should know, such as why no stem can be used. Shown in the revision's conditions.
    pub notes: Vec<String>,
}

impl Artifact {
    /// Wraps a backend's own type.
    pub fn new<T: Any + Send + Sync>(content: T, info: ArtifactInfo) -> Self {
        Self { content: Arc::new(content), info: Arc::new(info) }
    }

    /// The backend's own type back; `None` when another backend made it.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<&T> {
        self.content.downcast_ref()
    }

    /// What the platform may know.
    pub fn info(&self) -> &ArtifactInfo {
        &self.info
    }
}

impl fmt::Debug for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Artifact").field(&self.info).finish()
    }
}

/// All that the pool must know to start a revision. Specs and artifacts are shared between equal revisions.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Deployed {
    /// The runtime that starts its instances.
    pub runtime: Arc<dyn Runtime>,
    /// What that runtime's [`Runtime::prepare`] made of the code.
    pub artifact: Artifact,
    /// How it runs.
    pub spec: Arc<RevisionSpec>,
    /// Its name.
    pub name: RevisionName,
    /// The tenant whose it is.
    pub tenant: TenantKey,
}

impl Deployed {
    /// A revision that `runtime` has prepared as `artifact`.
    pub const fn new(
        runtime: Arc<dyn Runtime>,
        artifact: Artifact,
        spec: Arc<RevisionSpec>,
        name: RevisionName,
        tenant: TenantKey,
    ) -> Self {
        Self { runtime, artifact, spec, name, tenant }
    }
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
    /// When.
    pub at: Timestamp,
}

impl ExitReport {
    /// An end without status, such as that of a closure.
    pub const fn at(at: Timestamp) -> Self {
        Self { code: None, signal: None, out_of_memory: false, at }
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
}

impl fmt::Display for ExitReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.out_of_memory, self.signal, self.code) {
            (true, _, _) => f.write_str("killed for want of memory"),
            (_, Some(signal), _) => write!(f, "killed by signal {signal}"),
            (_, _, Some(code)) => write!(f, "exited with status {code}"),
            _ => f.write_str("ended"),
        }
    }
}

/// What an instance has used since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Usage {
    /// CPU time of all its threads and children, in nanoseconds.
    pub cpu_ns: u64,
    /// Memory in bytes now (the proportional share where that is known, else resident).
    pub memory_bytes: u64,
}

impl Usage {
    /// A sample.
    pub const fn new(cpu_ns: u64, memory_bytes: u64) -> Self {
        Self { cpu_ns, memory_bytes }
    }
}

/// A way to run code.
///
/// # Contract
/// - Instances are independent: the end of one touches no other.
/// - [`InstanceEvents::exited`] is told once for every instance whose `start` succeeded.
/// - Nothing blocks in `Drop`; what must be cleaned up goes to a reaper of the runtime's own, and
///   [`Runtime::quiesce`] waits for it.
/// - Secrets in a [`StartRequest`] reach the instance and nothing else.
///
/// # Minimal implementation
/// `name`, `capabilities`, `prepare`, `start`, `quiesce`, and for the instance `id`, `target` and `stop`. `examples/custom_runtime.rs` is one in under a hundred lines.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// The name by which specs ask for it.
    fn name(&self) -> &'static str;

    /// What it can do. Constant.
    fn capabilities(&self) -> Capabilities;

    /// Whether it could run `spec`, as far as the spec itself tells: its source, its options, and what only containers
    /// can be given ([`RevisionSpec::container`]). It reads no file and waits for nothing; what shows only in the code
    /// is [`Runtime::prepare`]'s to refuse.
    ///
    /// The control plane asks before it stores a revision. A spec that names a runtime is asked of that one. A spec
    /// with an empty [`RevisionSpec::runtime`] is asked of all, and exactly one must accept it; so a runtime accepts
    /// such a spec only when the source is plainly of its kind.
    ///
    /// By default: what names this runtime and needs no container.
    ///
    /// # Errors
    /// Every field that stands against it, with its value and the remedy.
    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = spec.container_fields(self.name());
        if spec.runtime != self.name() {
            errors.push(
                "runtime",
                &spec.runtime,
                format!("the {} runtime serves what asks for it by name", self.name()),
            );
        }
        errors.into_result()
    }

    /// The spec with all names pinned that could mean something else tomorrow: an image's tag gets the digest that it
    /// has at this moment. The control plane asks for a revision of an image when it is deployed and records the answer,
    /// so that all its instances are the same. `tenant` is whose credentials are used. By default the spec as it is.
    ///
    /// **Cancel safety:** nothing is left.
    ///
    /// # Errors
    /// `NotFound` when there is no such code, `InvalidSpec` when this tenant may not have it or it can never run,
    /// `Unavailable` when who knows can't be asked now.
    async fn pin(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<RevisionSpec> {
        let _ = tenant;
        Ok(spec.clone())
    }

    /// Makes the code ready to start: fetch, verify, unpack, compile. Off the request path; idempotent and cached.
    ///
    /// **Cancel safety:** dropping the future leaves no half-made artifact behind.
    ///
    /// # Errors
    /// `InvalidSpec` with the field, the value and the remedy, when this code or these options can never run.
    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact>;

    /// The same for a tenant, for runtimes that share scarce means among those who deploy, such as turns at a compiler,
    /// or that make the code ready for a user of the tenant's own. The control plane calls this one.
    ///
    /// **Cancel safety** and errors as [`Runtime::prepare`], to which it goes by default.
    async fn prepare_for(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        let _ = tenant;
        self.prepare(spec).await
    }

    /// Starts an instance and resolves when it can serve, at the latest at `request.deadline`.
    ///
    /// **Cancel safety:** dropping the future hands what it made to the runtime's reaper; nothing is left after
    /// [`Runtime::quiesce`].
    ///
    /// # Errors
    /// `Timeout` when it was not ready by the deadline, `Crashed` when it ended before (with its last words where
    /// they are known), `Exhausted` when the host has no room.
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>>;

    /// A start that completes at once, for runtimes that can: no future, no task. `None`: use [`Runtime::start`].
    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        let _ = request;
        None
    }

    /// Waits until everything that was dropped or stopped is gone. Does not stop anything itself.
    async fn quiesce(&self);

    /// Boots an instance that belongs to no revision yet. Gated by [`Capabilities::stems`].
    ///
    /// Cancel safety and errors as [`Runtime::start`].
    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        let _ = request;
        Err(Error::unsupported("start_stem"))
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

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Runtime + ?Sized> Runtime for Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        (**self).accepts(spec)
    }

    async fn pin(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<RevisionSpec> {
        (**self).pin(spec, tenant).await
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        (**self).prepare(spec).await
    }

    async fn prepare_for(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        (**self).prepare_for(spec, tenant).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        (**self).start(request).await
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        (**self).try_start(request)
    }

    async fn quiesce(&self) {
        (**self).quiesce().await;
    }

    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        (**self).start_stem(request).await
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

/// Bytes both ways, after an upgrade.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// What an instance in this process answers.
pub enum Answer {
    /// A response.
    Http(Response),
    /// A switch of protocols.
    Upgrade {
        /// The head of the 101 answer.
        head: http::Response<()>,
        /// The instance's end of the connection.
        io: Box<dyn Io>,
    },
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(response) => f.debug_tuple("Http").field(response).finish(),
            Self::Upgrade { head, .. } => f.debug_tuple("Upgrade").field(head).finish(),
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

/// What answers requests within this process. The data plane calls it for each request that has a lease of the
/// instance.
#[async_trait]
pub trait Call: Send + Sync {
    /// Answers one request.
    ///
    /// **Cancel safety:** dropping the future (or the response's body) aborts the call.
    ///
    /// # Errors
    /// `Crashed` when the instance ended or trapped; `Exhausted` when a limit of the call was met; `Timeout` at
    /// `cx.deadline`. The request is handed back iff nothing of it was used.
    async fn call(&self, request: Request, cx: &Cx) -> std::result::Result<Answer, CallError>;
}

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
#[async_trait]
pub trait Instance: fmt::Debug + Send + Sync + 'static {
    /// The id from its [`StartRequest`].
    fn id(&self) -> InstanceId;

    /// How requests reach it: at a socket, or by a call in this process. Always the same.
    fn target(&self) -> InstanceTarget<'_>;

    /// Runs `command` where the instance runs, with its environment, working directory and limits, until it ends. For
    /// probes of the kind [`crate::ProbeAction::Exec`]; gated by [`Capabilities::exec`].
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

    /// Takes it off the CPU. Gated by [`Capabilities::suspend`]. Idempotent.
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

/// What a stem can become: runtime, stack, size; for example `process/java17/256Mi`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StemClass(pub Arc<str>);

impl fmt::Display for StemClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What is needed to boot a stem.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StemRequest {
    /// The id under which its exit is told while it is still a stem.
    pub id: InstanceId,
    /// What it is to be.
    pub class: StemClass,
    /// Whom to tell.
    pub events: Arc<dyn InstanceEvents>,
    /// When the boot is given up.
    pub deadline: tokio::time::Instant,
}

impl StemRequest {
    /// A request to boot a stem of `class`.
    pub fn new(
        id: InstanceId,
        class: StemClass,
        events: Arc<dyn InstanceEvents>,
        deadline: tokio::time::Instant,
    ) -> Self {
        Self { id, class, events, deadline }
    }
}

/// A booted, pre-touched instance that belongs to no revision yet (OpenWhisk's stem cell).
#[async_trait]
pub trait Stem: fmt::Debug + Send + Sync + 'static {
    /// Becomes an instance, for one tenant, once. On error it is gone and the caller starts cold.
    ///
    /// After success, exits are told under `request.id`; the stem's own id is never told.
    ///
    /// **Cancel safety:** as [`Runtime::start`].
    ///
    /// # Errors
    /// As [`Runtime::start`]; any error means that a cold start may still succeed.
    async fn specialize(self: Box<Self>, request: StartRequest) -> Result<Arc<dyn Instance>>;

    /// What it uses.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// As [`Instance::stop`].
    async fn stop(self: Box<Self>) -> Result<()>;
}
