//! Where code runs: the contract of a backend, and what the pool hands to it.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    EnvValue, Error, Instance, InstanceEvents, InstanceId, LogSink, Result, RevisionKey, RevisionName,
    RevisionSpec, Secret, SpecErrors, TenantKey, Usage,
};

/// How strongly instances are kept apart, weakest first. `Shared` editions refuse less than they ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
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
    /// Instances can be taken off the CPU: [`Instance::suspend`] and [`Instance::resume`] work.
    pub suspend: bool,
    /// Stems can be booted: [`Runtime::start_stem`] works.
    pub stems: bool,
    /// [`Instance::usage`] tells what instances have used.
    pub usage: bool,
    /// [`Instance::exec`] runs commands, so that probes may be commands.
    pub exec: bool,
    /// Instances are called ([`crate::InstanceTarget::Call`]) and listen on no socket: no probe that connects reaches
    /// them. They are ready once [`Runtime::start`] has returned, so a spec with a start-up or readiness probe is
    /// refused at deploy; their liveness is asked by HTTP, which calls them.
    pub called: bool,
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
            called: false,
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
    /// How instances of the revision run.
    pub spec: Arc<RevisionSpec>,
    /// The name of the revision, for logs and errors.
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

/// Everything that a start needs, so that backends keep no registry of their own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StartRequest {
    /// The id that the instance answers to.
    pub id: InstanceId,
    /// The revision that the instance is of.
    pub revision: RevisionKey,
    /// Its code, spec, name and tenant.
    pub deployed: Arc<Deployed>,
    /// The resolved secrets of the environment, by variable name.
    pub secrets: Option<Arc<BTreeMap<String, Secret>>>,
    /// Where its output goes.
    pub logs: Arc<dyn LogSink>,
    /// Whom it tells about its life.
    pub events: Arc<dyn InstanceEvents>,
    /// When the start is given up.
    pub deadline: Instant,
}

impl StartRequest {
    /// A request without secrets.
    pub fn new(
        id: InstanceId,
        revision: RevisionKey,
        deployed: Arc<Deployed>,
        logs: Arc<dyn LogSink>,
        events: Arc<dyn InstanceEvents>,
        deadline: Instant,
    ) -> Self {
        Self { id, revision, deployed, secrets: None, logs, events, deadline }
    }

    /// How the instance is to run.
    pub fn spec(&self) -> &Arc<RevisionSpec> {
        &self.deployed.spec
    }

    /// The name of the revision, for logs and errors.
    pub fn name(&self) -> &RevisionName {
        &self.deployed.name
    }

    /// The tenant whose revision it is.
    pub fn tenant(&self) -> TenantKey {
        self.deployed.tenant
    }

    /// The declared environment with its secrets resolved, in the order of the names. A secret that was not
    /// resolved is left out: the pool refuses such a start before a runtime sees it.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.deployed.spec.env.iter().filter_map(|(name, value)| {
            let value = match value {
                EnvValue::Literal(text) => text.as_str(),
                EnvValue::Secret(_) => self.secrets.as_deref()?.get(name)?.expose(),
            };
            Some((name.as_str(), value))
        })
    }
}

/// A way to run code.
///
/// The pool starts instances by it, the control plane prepares revisions. It is given to the builder's `runtime`.
///
/// # Contract
/// - Instances are independent: the end of one touches no other.
/// - [`InstanceEvents::exited`] is told once for every instance whose `start` succeeded.
/// - Nothing blocks in `Drop`; what must be cleaned up goes to a reaper of the runtime's own, and
///   [`Runtime::quiesce`] waits for it.
/// - Secrets in a [`StartRequest`] reach the instance and nothing else.
///
/// # Minimal implementation
/// `name`, `capabilities`, `prepare`, `start`, `quiesce`, and for the instance `id`, `target` and `stop`. `examples/custom_runtime.rs` is one.
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
    /// Who is told of the stem's life.
    pub events: Arc<dyn InstanceEvents>,
    /// When the boot is given up.
    pub deadline: Instant,
}

impl StemRequest {
    /// A request to boot a stem of `class`.
    pub fn new(id: InstanceId, class: StemClass, events: Arc<dyn InstanceEvents>, deadline: Instant) -> Self {
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
