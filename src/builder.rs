//! Composing a platform: every part has a default, and every part can be replaced.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sas_autoscale::{DriverConfig, ScheduleParser};
use sas_control::{
    Admin, Control, ControlConfig, DecisionLog, DiagnosisConfig, Engines, LogBuffer, LogFileLimits, LogFiles,
    Meter, MeterConfig, PackageDir, PackageRoots, PriceTable, UsageExport, UsageExporter, UsageKey,
};
use sas_core::{
    AnswerCounter, Authenticator, BlobStore, Clock, DataPlane, DecisionSink, EngineFactory, EngineKey,
    EngineSpec, Error, ErrorKind, EventPublisher, Fidelity, Handler, Invoker, LogSink, MemoryStore,
    MeterSink, Pool, Quota, Quotas, Recorder, Router, Runtime, Scaler, Scalers, Schedule, SecretSource,
    SinkSpec, SpecErrors, Store, SystemClock, TriggerSecrets, TriggerSource, TriggerSpec, Triggers,
};
use sas_knative::manifest::ParseOptions;
use sas_pool::{InstancePool, PoolConfig};
#[cfg(unix)]
use sas_router::UnixServer;
use sas_router::{Admission, AdmissionConfig, Gateway, GatewayConfig, RouteTable, Server, ServerConfig};
#[cfg(feature = "cron")]
use sas_trigger::CronSchedule;
use sas_trigger::{AsyncCalls, AsyncConfig, EventIngress, TriggerHost, TriggerHostConfig};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Access,
    backlog,
    engines::{ConfigurePool, MakePool, PlatformEngines, Template},
    machine::Machine,
    platform::{Parts, Platform},
    preset::Preset,
};

type SinkFactory =
    dyn Fn(&SinkSpec, TriggerSecrets) -> Result<Arc<dyn EventPublisher>, SpecErrors> + Send + Sync;
type SourceFactory = dyn Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync;

/// The part of a platform that could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BuildPart {
    /// The pool.
    Pool,
    /// The engines, of [`PlatformBuilder::engine`].
    Engines,
    /// The scaling driver.
    Driver,
    /// The quota of a tenant, of [`PlatformBuilder::tenant_quota`].
    TenantQuota,
    /// The state directory, of [`PlatformBuilder::state_dir`].
    StateDirectory,
    /// The admin token, of [`PlatformBuilder::admin_token`] or [`PlatformBuilder::admin_token_file`].
    AdminToken,
    /// The listener for requests, of [`PlatformBuilder::listen`].
    Ingress,
    /// The listener of the admin API, of [`PlatformBuilder::admin`] or `admin_socket`.
    Admin,
    /// The store, when what it holds was to be brought back.
    Recovery,
    /// The meter, or an export of usage, of [`PlatformBuilder::usage_export`].
    Usage,
    /// The file of [`PlatformBuilder::log_file`].
    LogFile,
}

impl fmt::Display for BuildPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Engines => "engines",
            Self::Driver => "driver",
            Self::TenantQuota => "tenant quota",
            Self::StateDirectory => "state directory",
            Self::AdminToken => "admin token",
            Self::Ingress => "ingress",
            Self::Admin => "admin",
            Self::Recovery => "recovery",
            Self::Usage => "usage",
            Self::LogFile => "log file",
        })
    }
}

/// Why a platform could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A part's configuration has mistakes, each with its field.
    #[error("{part}: {errors}")]
    Config {
        /// Which part.
        part: BuildPart,
        /// What is wrong.
        #[source]
        errors: SpecErrors,
    },
    /// A part refused to start.
    #[error("{part}: {error}")]
    Part {
        /// Which part.
        part: BuildPart,
        /// Why.
        #[source]
        error: Error,
    },
}

/// How scaling schedules are read: as cron expressions, in UTC unless a zone is given.
#[cfg(feature = "cron")]
fn cron(expression: &str, zone: Option<&str>) -> Result<Arc<dyn Schedule>, Error> {
    match CronSchedule::new(expression, zone.unwrap_or("UTC")) {
        // One that never came would scale nothing, and nobody would notice.
        Ok(schedule) if schedule.next_after(sas_core::Timestamp(0)).is_none() => {
            let message = format!("{expression}: never fires: there is no such time");
            Err(Error::new(ErrorKind::InvalidSpec, "schedule", message))
        }
        Ok(schedule) => Ok(Arc::new(schedule)),
        Err(error) => {
            Err(Error::new(ErrorKind::InvalidSpec, "schedule", error.to_string()).with_source(error))
        }
    }
}

/// Without the feature `cron` no schedule can be read.
#[cfg(not(feature = "cron"))]
fn cron(expression: &str, _: Option<&str>) -> Result<Arc<dyn Schedule>, Error> {
    let message = format!("{expression}: this platform was built without the feature cron");
    Err(Error::new(ErrorKind::Unsupported, "schedule", message))
}

/// The store that a platform opened by itself, and closes.
#[cfg(feature = "redb")]
pub(crate) type OwnStore = sas_store_redb::RedbStore;
/// Without the feature `redb` it opens none.
#[cfg(not(feature = "redb"))]
pub(crate) type OwnStore = MemoryStore;

/// The platform's state in a directory.
#[cfg(feature = "redb")]
async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    OwnStore::open(dir.join("state.redb")).await.map(Arc::new)
}

#[cfg(not(feature = "redb"))]
async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    let message = format!(
        "{}: this build keeps no state in directories: build with the feature `redb`, or give a `store`",
        dir.display()
    );
    Err(Error::new(ErrorKind::Unsupported, "state directory", message))
}

fn invalid(part: BuildPart) -> impl Fn(SpecErrors) -> BuildError {
    move |errors| BuildError::Config { part, errors }
}

fn part(part: BuildPart) -> impl Fn(Error) -> BuildError {
    move |error| BuildError::Part { part, error }
}

/// Composes a [`Platform`]. Every part has a default; each can be replaced by one's own implementation of its trait, or
/// by an `Arc` of one that the host keeps a handle to.
///
/// | Part | Method | Default |
/// |---|---|---|
/// | where code runs | [`runtime`](Self::runtime) | none: add at least one |
/// | instances | [`pool`](Self::pool) | [`InstancePool`], as the preset says |
/// | engines | [`engine`](Self::engine) | one, for all namespaces |
/// | routes | [`router`](Self::router) | [`RouteTable`] |
/// | state | [`store`](Self::store), [`state_dir`](Self::state_dir) | in memory |
/// | code packages | [`packages`](Self::packages) | in the state directory; without one, where they were deployed from |
/// | how many instances | [`scaler`](Self::scaler) | those of `sas-autoscale` |
/// | declared triggers | [`trigger_kind`](Self::trigger_kind) | `cron` (with the feature), `timer`, `broker`, `webhook` |
/// | where events go but to services and brokers | [`trigger_sink`](Self::trigger_sink) | none; `webhook` by `webhook_hosts`, `file` by `event_files` |
/// | calls that want no answer now | [`async_calls`](Self::async_calls) | taken, as durable as the store |
/// | output of instances | [`log_sink`](Self::log_sink) | [`LogBuffer`] |
/// | scaling decisions | [`decision_sink`](Self::decision_sink) | [`DecisionLog`] |
/// | usage | [`meter_sink`](Self::meter_sink) | [`Meter`], on the platform's store |
/// | secrets | [`secrets`](Self::secrets) | none: a service that refers to one does not start |
/// | wall time | [`clock`](Self::clock) | the system's |
///
/// `examples/custom_parts.rs` replaces those that do the work: runtime, pool, router, store, packages, a scaler, a kind of
/// trigger, the sinks of output, decisions and usage, secrets and the clock.
///
/// ```
/// use sas::prelude::*;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let platform = Platform::builder().preset(Preset::Knative).domain("example.org").build().await?;
/// assert_eq!(platform.listen_addr(), None, "no listener unless one is asked for");
/// platform.shutdown(std::time::Duration::from_secs(1)).await;
/// # Ok(())
/// # }
/// ```
pub struct PlatformBuilder {
    runtimes: Vec<Arc<dyn Runtime>>,
    scalers: Vec<Arc<dyn Scaler>>,
    kinds: Vec<(String, Box<SourceFactory>)>,
    sinks: Vec<(String, Box<SinkFactory>)>,
    calls: AsyncConfig,
    make_pool: MakePool,
    engines: Vec<EngineSpec>,
    router: Option<Arc<dyn Router>>,
    store: Option<Arc<dyn Store>>,
    state: Option<PathBuf>,
    packages: Option<Arc<dyn BlobStore>>,
    clock: Arc<dyn Clock>,
    recorder: Option<Recorder>,
    logs: Arc<dyn LogSink>,
    log_file: Option<(PathBuf, LogFileLimits)>,
    decisions: Arc<dyn DecisionSink>,
    meter: Option<Arc<dyn MeterSink>>,
    meter_checkpoint: Duration,
    prices: Option<PriceTable>,
    usage_exports: Vec<(String, UsageKey, Arc<dyn UsageExport>)>,
    secrets: Option<Arc<dyn SecretSource>>,
    wrap_invoker: Option<WrapInvoker>,
    machine: Option<Machine>,
    preset: Preset,
    fidelity: Option<Fidelity>,
    domain: String,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    package_roots: Option<PackageRoots>,
    access: Access,
    publisher: Option<Arc<dyn EventPublisher>>,
    seed: u64,
    pool: Vec<ConfigurePool>,
    gateway: GatewayConfig,
    quotas: Option<AdmissionConfig>,
    tenant_quotas: BTreeMap<String, Quota>,
    server: ServerConfig,
    driver: DriverConfig,
    manifests: ParseOptions,
    metrics: Option<MetricsText>,
    diagnosis: DiagnosisConfig,
}

type MetricsText = Box<dyn Fn() -> String + Send + Sync>;
type WrapInvoker = Box<dyn FnOnce(Arc<dyn Invoker>) -> Arc<dyn Invoker> + Send>;

impl fmt::Debug for PlatformBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformBuilder")
            .field("runtimes", &self.runtimes)
            .field("preset", &self.preset)
            .field("fidelity", &self.fidelity)
            .field("domain", &self.domain)
            .field("listen", &self.listen)
            .field("admin", &self.admin)
            .finish_non_exhaustive()
    }
}

impl Default for PlatformBuilder {
    fn default() -> Self {
        Self {
            runtimes: Vec::new(),
            scalers: Vec::new(),
            kinds: Vec::new(),
            sinks: Vec::new(),
            calls: AsyncConfig::default(),
            make_pool: Box::new(|config| InstancePool::new(config)),
            engines: Vec::new(),
            router: None,
            store: None,
            state: None,
            packages: None,
            clock: Arc::new(SystemClock),
            recorder: None,
            logs: Arc::new(LogBuffer::default()),
            log_file: None,
            decisions: Arc::new(DecisionLog::default()),
            meter: None,
            meter_checkpoint: MeterConfig::default().checkpoint,
            prices: None,
            usage_exports: Vec::new(),
            secrets: None,
            wrap_invoker: None,
            machine: None,
            preset: Preset::Default,
            fidelity: None,
            domain: "localhost".to_owned(),
            listen: None,
            admin: None,
            package_roots: None,
            access: Access::default(),
            publisher: None,
            seed: 0,
            pool: Vec::new(),
            gateway: GatewayConfig::default(),
            quotas: None,
            tenant_quotas: BTreeMap::new(),
            server: ServerConfig::default(),
            driver: DriverConfig::default(),
            manifests: ParseOptions::default(),
            metrics: None,
            diagnosis: DiagnosisConfig::default(),
        }
    }
}

impl PlatformBuilder {
    /// Adds a runtime, known by its name; a later one of the same name replaces an earlier one.
    #[must_use]
    pub fn runtime(mut self, runtime: impl Runtime) -> Self {
        self.runtimes.push(Arc::new(runtime));
        self
    }

    /// Adds a scaler, known by its name, beside those of `sas-autoscale`; it replaces one of the same name.
    #[must_use]
    pub fn scaler(mut self, scaler: impl Scaler) -> Self {
        self.scalers.push(Arc::new(scaler));
        self
    }

    /// Makes declared triggers of `kind` known; it replaces one of the same kind. `make` checks the options of a
    /// declaration and says what is wrong with them, or makes its source. It is asked when a trigger is deployed, and at
    /// the next start for each that is stored.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use sas::{core::SpecErrors, prelude::*, trigger::{EventTemplate, SchedulePolicy, TimerTrigger}};
    ///
    /// let builder = Platform::builder().trigger_kind("heartbeat", |spec| {
    ///     let mut errors = SpecErrors::default();
    ///     let given = spec.options.get("seconds").map_or("", String::as_str);
    ///     let seconds = given.parse().ok().filter(|seconds| *seconds > 0);
    ///     let Some(seconds) = seconds else {
    ///         errors.push("options.seconds", given, "must be a whole number of seconds");
    ///         return Err(errors);
    ///     };
    ///     let template = EventTemplate::new("/heart", "beat");
    ///     match TimerTrigger::new(Duration::from_secs(seconds), SchedulePolicy::default(), template) {
    ///         Ok(source) => Ok(Arc::new(source)),
    ///         Err(error) => {
    ///             errors.push("options.seconds", given, error.message);
    ///             Err(errors)
    ///         }
    ///     }
    /// });
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn trigger_kind(
        mut self,
        kind: impl Into<String>,
        make: impl Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync + 'static,
    ) -> Self {
        self.kinds.push((kind.into(), Box::new(make)));
        self
    }

    /// Makes a kind of sink known: what a trigger sends to by the target `sink:kind`, and dead letters by that. `make` checks
    /// the options of a declaration and says what is wrong with them, or makes whoever takes the events.
    #[must_use]
    pub fn trigger_sink(
        mut self,
        kind: impl Into<String>,
        make: impl Fn(&SinkSpec, TriggerSecrets) -> Result<Arc<dyn EventPublisher>, SpecErrors>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        self.sinks.push((kind.into(), Box::new(make)));
        self
    }

    /// Lets triggers send events to URLs of these hosts, by the sink `webhook`, and asynchronous calls send their answers
    /// there: names as they stand in URLs, with a port where only that one is meant, or `*.example.org`. Without it, and to
    /// others, nothing is sent.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().webhook_hosts(["hooks.example.org", "*.internal.example.org"]);
    /// ```
    #[cfg(feature = "webhook")]
    #[must_use]
    pub fn webhook_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let webhooks = sas_sinks::Webhooks::to_hosts(hosts);
        self.trigger_sink("webhook", move |spec, secrets| webhooks.sink(spec, secrets))
    }

    /// Lets triggers append events to files in this directory, by the sink `file`: `<namespace>.<name>.jsonl`.
    #[cfg(feature = "webhook")]
    #[must_use]
    pub fn event_files(self, dir: impl Into<PathBuf>) -> Self {
        let files = sas_sinks::FileSinks::new(dir);
        self.trigger_sink("file", move |spec, _| files.sink(spec))
    }

    /// Changes how calls with `Prefer: respond-async` are taken and made. `most_calls = 0` refuses them.
    #[must_use]
    pub fn async_calls(mut self, change: impl FnOnce(&mut AsyncConfig)) -> Self {
        change(&mut self.calls);
        self
    }

    /// Replaces the pool, or wraps the default one. `make` is called once for each engine that is built, with the
    /// configuration as preset and builder leave it: its bounds, and the platform's clock, sinks, recorder, secrets and
    /// seed, which are also for a pool of one's own to use. A pool of one's own counts generations of its keys from
    /// [`sas_core::EngineKey::first_generation`] of the engine in the configuration.
    ///
    /// ```
    /// use sas::{pool::InstancePool, prelude::*};
    /// let builder = Platform::builder().pool(|config| InstancePool::new(config));
    /// ```
    #[must_use]
    pub fn pool<P: Pool>(mut self, make: impl Fn(PoolConfig) -> Arc<P> + Send + Sync + 'static) -> Self {
        self.make_pool = Box::new(move |config| make(config));
        self
    }

    /// Changes the configuration of each engine's pool after the preset has filled it in. Clock, sinks, recorder, secrets
    /// and seed are set by the builder.
    #[must_use]
    pub fn configure_pool(mut self, change: impl Fn(&mut PoolConfig) + Send + Sync + 'static) -> Self {
        self.pool.push(Box::new(change));
        self
    }

    /// Replaces the route table.
    #[must_use]
    pub fn router(mut self, router: impl Router) -> Self {
        self.router = Some(Arc::new(router));
        self
    }

    /// Where services are kept. In memory unless this or [`PlatformBuilder::state_dir`] says otherwise.
    #[must_use]
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Keeps services and packages in a directory, so that the platform comes back with them after a kill. It is made,
    /// and is its owner's alone (mode 0700), also when it was there with another mode; one that belongs to another user
    /// is refused. One platform at a time may use it; after [`Platform::shutdown`] the next one may at once.
    ///
    /// Services are kept in a file in it by the feature `redb`; without it, give a [`PlatformBuilder::store`], too.
    #[must_use]
    pub fn state_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.state = Some(dir.into());
        self
    }

    /// Where code packages are kept that are deployed, so that the platform comes back with them. In the state directory
    /// unless this says otherwise.
    #[must_use]
    pub fn packages(mut self, packages: impl BlobStore) -> Self {
        self.packages = Some(Arc::new(packages));
        self
    }

    /// Where the output of instances goes. The admin API and [`Platform::logs`] read back what it can read back.
    #[must_use]
    pub fn log_sink(mut self, sink: impl LogSink) -> Self {
        self.logs = Arc::new(sink);
        self
    }

    /// Writes the output of instances to this file too, as JSON lines with names, level and request: see [`LogFiles`].
    #[must_use]
    pub fn log_file(mut self, path: impl Into<PathBuf>, limits: LogFileLimits) -> Self {
        self.log_file = Some((path.into(), limits));
        self
    }

    /// Where scaling decisions go. The admin API and [`Platform::decisions`] read back what it can read back.
    #[must_use]
    pub fn decision_sink(mut self, sink: impl DecisionSink) -> Self {
        self.decisions = Arc::new(sink);
        self
    }

    /// Where readings of what instances and requests used go. The admin API and [`Platform::usage`] read back what it
    /// can read back.
    #[must_use]
    pub fn meter_sink(mut self, sink: impl MeterSink) -> Self {
        self.meter = Some(Arc::new(sink));
        self
    }

    /// How often the platform's meter writes to the store while anything is used: what is lost at most when the host
    /// dies. 10 s unless this says otherwise. Of no effect with a [`PlatformBuilder::meter_sink`] of one's own.
    #[must_use]
    pub fn meter_checkpoint(mut self, every: Duration) -> Self {
        self.meter_checkpoint = every;
        self
    }

    /// What use costs: [`Control::usage_cost`] and the admin API tell costs by it, those of idle instances apart from those
    /// of busy ones.
    #[must_use]
    pub fn prices(mut self, prices: PriceTable) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Exports what was used, by the hour and signed with `key`, once an hour is over; the store remembers under `name` how
    /// far it is. Several exports, each under a name of its own, do not wait for each other. Needs the platform's own
    /// meter.
    #[must_use]
    pub fn usage_export(mut self, name: impl Into<String>, key: UsageKey, target: impl UsageExport) -> Self {
        self.usage_exports.push((name.into(), key, Arc::new(target)));
        self
    }

    /// What resolves the references to secrets in specs, when an instance starts. Without it, services that refer to
    /// secrets do not start and say so.
    #[must_use]
    pub fn secrets(mut self, source: impl SecretSource) -> Self {
        self.secrets = Some(Arc::new(source));
        self
    }

    /// Puts something between triggers and the gateway that they call services through, such as an account of
    /// deliveries of one's own.
    #[must_use]
    pub fn trigger_invoker(
        mut self,
        wrap: impl FnOnce(Arc<dyn Invoker>) -> Arc<dyn Invoker> + Send + 'static,
    ) -> Self {
        self.wrap_invoker = Some(Box::new(wrap));
        self
    }

    /// Wall time, for stamps and schedules.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Where metrics go; without this, to the process-wide recorder of the crate `metrics`.
    #[must_use]
    pub fn recorder(mut self, recorder: Recorder) -> Self {
        self.recorder = Some(recorder);
        self
    }

    /// What the admin API answers at `/metrics`: the text of an exporter, such as Prometheus'.
    #[must_use]
    pub fn metrics_text(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Some(Box::new(render));
        self
    }

    /// What manifests mean beyond what they say: the default namespace, the autoscaler's defaults. How closely scaling
    /// follows Knative (`fidelity`) is set by [`PlatformBuilder::preset`] and [`PlatformBuilder::fidelity`] whatever it says.
    #[must_use]
    pub fn manifests(mut self, change: impl FnOnce(&mut ParseOptions)) -> Self {
        change(&mut self.manifests);
        self
    }

    /// Declares an engine: for whom it is, which namespaces are on it, what is set aside for it. One named
    /// [`sas_core::DEFAULT_ENGINE`] says it of the engine that has all other namespaces, which is dedicated to one owner
    /// unless this is called. A later one of the same name replaces an earlier one.
    ///
    /// ```
    /// use sas::{core::{DEFAULT_ENGINE, Isolation}, prelude::*};
    /// let mut payments = EngineSpec::new("payments", EngineKind::Dedicated);
    /// payments.namespaces.push("payments".to_owned());
    /// payments.reserved.instances = Some(50);
    /// let builder = Platform::builder()
    ///     .engine(EngineSpec::new(DEFAULT_ENGINE, EngineKind::shared(Isolation::Container)))
    ///     .engine(payments);
    /// # drop(builder);
    /// ```
    #[must_use]
    pub fn engine(mut self, spec: EngineSpec) -> Self {
        self.engines.retain(|other| other.name != spec.name);
        self.engines.push(spec);
        self
    }

    /// What works ahead of demand, and how closely scaling follows Knative. [`Preset::Default`] unless this is called.
    #[must_use]
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// What the platform may use of the machine, of which the preset takes its bounds. Without this, what
    /// [`Machine::here`] finds.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = Some(machine);
        self
    }

    /// How closely scaling follows Knative, whatever the preset says.
    #[must_use]
    pub fn fidelity(mut self, fidelity: Fidelity) -> Self {
        self.fidelity = Some(fidelity);
        self
    }

    /// Services answer at `<name>.<namespace>.<domain>`. Default `localhost`.
    #[must_use]
    pub fn domain(mut self, domain: impl Into<String>) -> Self {
        self.domain = domain.into();
        self
    }

    /// Listens for requests at this address. Port 0 takes a free one; see [`Platform::listen_addr`].
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = Some(address);
        self
    }

    /// Serves the admin API at this address, to those who have the admin token: see
    /// [`PlatformBuilder::admin_token`].
    #[must_use]
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self
    }

    /// Serves the admin API on a Unix socket of mode 0600, beside or instead of an address. Alone and without a token, it
    /// lets in whoever can open the socket: the platform's own user, and root.
    #[cfg(unix)]
    #[must_use]
    pub fn admin_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.access.socket = Some(path.into());
        self
    }

    /// The bearer token of the admin API. Without one, it is made once and kept in the state directory as
    /// `admin-token` with mode 0600; without a state directory, it is made for a listener at each start, in a temporary
    /// file that [`Platform::admin_token_file`] names; without a listener, nobody is let in. It can be changed while the
    /// platform runs: by writing its file, or by [`Platform::replace_admin_token`].
    #[must_use]
    pub fn admin_token(mut self, token: impl Into<String>) -> Self {
        self.access.token = Some(token.into());
        self
    }

    /// Keeps the admin token in this file, which only its owner may be able to read. One that is not there is made, with
    /// a random token. The file is read at each request.
    #[must_use]
    pub fn admin_token_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.access.token_file = Some(path.into());
        self
    }

    /// Asks this authenticator who uses the admin API, instead of comparing a token: at the platform's listener, and
    /// where the host mounts [`Platform::admin`].
    #[must_use]
    pub fn admin_authenticator(mut self, authenticator: Arc<dyn Authenticator>) -> Self {
        self.access.authenticator = Some(authenticator);
        self
    }

    /// Answers admin requests for this host too: a name or an address, for any port unless one is given. Loopback and
    /// the address of the listener are known; everything else is refused, since a name that a web page chose may lead
    /// here.
    #[must_use]
    pub fn admin_host(mut self, host: impl Into<String>) -> Self {
        self.access.hosts.push(host.into());
        self
    }

    /// Lets pages of this origin, such as `https://console.example.org`, use the admin API with a token.
    #[must_use]
    pub fn admin_origin(mut self, origin: impl Into<String>) -> Self {
        self.access.origins.push(origin.into());
        self
    }

    /// Refuses changes of services at the admin API, with 428, that do not say what they have seen: without `If-Match`,
    /// or `If-None-Match: *` for a new one.
    #[must_use]
    pub fn require_conditions(mut self) -> Self {
        self.access.require_conditions = true;
        self
    }

    /// How often each principal may use the admin API: `rate` requests per second, `burst` at once after quiet; 429
    /// beyond. Without this, 500 and 1,000.
    #[must_use]
    pub fn admin_rate_limit(mut self, rate: f64, burst: u32) -> Self {
        self.access.rate = Some((rate, burst));
        self
    }

    /// Lets the admin API listen beyond loopback without TLS, which is refused else: tokens and secrets go over that
    /// network in the clear. For networks that encrypt themselves, or behind a proxy that does.
    #[must_use]
    pub fn admin_without_tls(mut self) -> Self {
        self.access.without_tls = true;
        self
    }

    /// Gives `/metrics` to whoever asks, as scrapers without a token need it.
    #[must_use]
    pub fn open_metrics(mut self) -> Self {
        self.access.open_metrics = true;
        self
    }

    /// From which directories of this host a manifest that comes over the admin API may take its package, and from no
    /// other. Without this, from any for the operator (who has the platform's own token, or is the peer of its Unix
    /// socket) as long as the API is reached from this machine only, and from none where it listens on another address,
    /// has an authenticator of the program's own, or is mounted in the program's server. What the program deploys itself
    /// ([`Platform::apply`], [`Platform::deploy`]) may come from anywhere.
    #[must_use]
    pub fn package_roots(mut self, roots: PackageRoots) -> Self {
        self.package_roots = Some(roots);
        self
    }

    /// Where all randomness comes from: request ids, splits, balancing.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Changes the gateway's configuration. Its `seed`, `recorder` and `meter` are the platform's own whatever it says, as
    /// [`PlatformBuilder::seed`], [`PlatformBuilder::recorder`] and [`PlatformBuilder::meter_sink`] set them; so is its
    /// `admission` where [`PlatformBuilder::quotas`] is called.
    #[must_use]
    pub fn gateway(mut self, change: impl FnOnce(&mut GatewayConfig)) -> Self {
        change(&mut self.gateway);
        self
    }

    /// Where events go that leave the platform: dead letters of triggers with the option `dead-letter: publish`.
    #[must_use]
    pub fn event_publisher(mut self, publisher: Arc<dyn EventPublisher>) -> Self {
        self.publisher = Some(publisher);
        self
    }

    /// What every tenant and every service may use that has no quota of its own, and the budget of bytes of all requests.
    /// Services are given their own by annotations (`sas.dev/quota-rate`, ...), tenants by
    /// [`PlatformBuilder::tenant_quota`] or the admin API.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().quotas(|quotas| {
    ///     quotas.per_tenant = Quota::rate(1_000.0, 2_000);
    ///     quotas.per_service = Quota::UNLIMITED.with_concurrency(500);
    /// });
    /// ```
    #[must_use]
    pub fn quotas(mut self, change: impl FnOnce(&mut AdmissionConfig)) -> Self {
        change(self.quotas.get_or_insert_default());
        self
    }

    /// What the tenant of a namespace may use. The admin API may give it another quota, which is stored and goes before
    /// this one.
    #[must_use]
    pub fn tenant_quota(mut self, namespace: impl Into<String>, quota: Quota) -> Self {
        self.tenant_quotas.insert(namespace.into(), quota);
        self
    }

    /// Changes the configuration of the listeners. Unless it says how many connections they take, they take what the
    /// machine's descriptors are enough for.
    #[must_use]
    pub fn server(mut self, change: impl FnOnce(&mut ServerConfig)) -> Self {
        change(&mut self.server);
        self
    }

    /// Changes the configuration of the scaling driver. Its `clock`, `sink` and `recorder` are the platform's own whatever
    /// it says, as [`PlatformBuilder::clock`], [`PlatformBuilder::decision_sink`] and [`PlatformBuilder::recorder`] set
    /// them.
    #[must_use]
    pub fn driver(mut self, change: impl FnOnce(&mut DriverConfig)) -> Self {
        change(&mut self.driver);
        self
    }

    /// Changes what counts as wrong with the platform, and how often it looks by itself. The state directory and the one for
    /// temporary files are among those that are watched.
    #[must_use]
    pub fn diagnosis(mut self, change: impl FnOnce(&mut DiagnosisConfig)) -> Self {
        change(&mut self.diagnosis);
        self
    }

    /// Builds the platform, brings back what the store holds, and starts to listen where asked to. On an error
    /// nothing is left running.
    ///
    /// # Errors
    /// [`BuildError`] names the part and what it refused.
    pub async fn build(mut self) -> Result<Platform, BuildError> {
        let recorder = self.recorder.unwrap_or_default();
        for describe in [
            sas_autoscale::metrics::describe,
            sas_control::metrics::describe,
            sas_pool::metrics::describe,
            sas_router::metrics::describe,
            sas_trigger::metrics::describe,
        ] {
            describe(&recorder);
        }

        for quota in self.tenant_quotas.values() {
            quota.validate().map_err(|errors| BuildError::Config { part: BuildPart::TenantQuota, errors })?;
        }
        self.driver.validate().map_err(|errors| BuildError::Config { part: BuildPart::Driver, errors })?;
        if let Some(dir) = &self.state {
            let dir = dir.clone();
            let made = tokio::task::spawn_blocking(move || sas_control::private_dir(&dir)).await;
            let ended = |error| Error::new(ErrorKind::Unexpected, "state directory", format!("{error}"));
            made.map_err(ended).flatten().map_err(part(BuildPart::StateDirectory))?;
        }
        let (store, own_store): (Arc<dyn Store>, _) = match (self.store, &self.state) {
            (Some(store), _) => (store, None),
            (None, Some(dir)) => {
                let own = open_state(dir).await.map_err(part(BuildPart::StateDirectory))?;
                (Arc::clone(&own) as _, Some(own))
            }
            (None, None) => (Arc::new(MemoryStore::default()), None),
        };

        let (meter, own_meter): (Arc<dyn MeterSink>, _) = match self.meter {
            Some(meter) => (meter, None),
            None => {
                let mut config = MeterConfig::default();
                config.store = Arc::clone(&store);
                config.clock = Arc::clone(&self.clock);
                config.checkpoint = self.meter_checkpoint;
                let own = Arc::new(Meter::new(config));
                (Arc::clone(&own) as _, Some(own))
            }
        };
        let mut exporters = Vec::new();
        for (name, key, target) in self.usage_exports {
            let own = own_meter.as_ref().ok_or_else(|| {
                let message =
                    "a meter sink of one's own exports its records itself: leave one of the two out";
                Error::new(ErrorKind::Unsupported, "usage export", message)
            });
            let exporter = own.and_then(|own| UsageExporter::new(Arc::clone(own), &name, key, target));
            exporters.push(exporter.map_err(part(BuildPart::Usage))?);
        }
        let mut log_files = None;
        if let Some((path, limits)) = self.log_file {
            let files =
                LogFiles::new(path, limits, Arc::clone(&self.logs)).map_err(part(BuildPart::LogFile))?;
            let files = Arc::new(files);
            self.logs = Arc::clone(&files) as _;
            log_files = Some(files);
        }
        let mut scalers = self.scalers;
        scalers.extend(sas_autoscale::scalers_with_schedules(ScheduleParser::new(cron)));
        let scalers = Scalers::new(scalers);
        let mut driver = self.driver;
        driver.clock = Arc::clone(&self.clock);
        driver.sink = Arc::clone(&self.decisions);
        let stop = CancellationToken::new();
        let machine = self.machine.unwrap_or_else(Machine::here);
        let template = Template {
            preset: self.preset,
            machine,
            configure: self.pool,
            make_pool: self.make_pool,
            seed: self.seed,
            clock: Arc::clone(&self.clock),
            logs: Arc::clone(&self.logs),
            meter: Arc::clone(&meter),
            secrets: self.secrets.clone(),
            recorder: recorder.clone(),
            runtimes: self.runtimes.clone(),
            scalers: scalers.clone(),
            driver,
            stop: stop.clone(),
        };
        let factory = PlatformEngines::new(template, &self.engines);
        // Each mistake with its field, before anything is built.
        #[cfg(feature = "tls")]
        let encrypted = self.server.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let encrypted = false;
        self.access.check_listener(self.admin, encrypted).map_err(invalid(BuildPart::Admin))?;
        for spec in &self.engines {
            factory.config(EngineKey::FIRST, spec).map_err(invalid(BuildPart::Engines))?;
        }
        factory.config(EngineKey::FIRST, &EngineSpec::default()).map_err(invalid(BuildPart::Pool))?;
        let building = Engines::build(Arc::clone(&factory) as Arc<dyn EngineFactory>, self.engines);
        let engines = building.await.map_err(part(BuildPart::Engines))?;
        let pool = Arc::clone(&engines) as Arc<dyn Pool>;
        let router = self.router.unwrap_or_else(|| Arc::new(RouteTable::new(self.seed)));
        let mut gateway_config = self.gateway;
        gateway_config.seed = self.seed;
        gateway_config.recorder = recorder.clone();
        gateway_config.meter = Some(Arc::clone(&meter));
        if let Some(quotas) = self.quotas {
            gateway_config.admission = Admission::new(quotas);
        }
        let admission = Arc::clone(&gateway_config.admission);
        let gateway = Gateway::new(Arc::clone(&router), Arc::clone(&pool), gateway_config);

        let invoker = Arc::clone(&gateway) as Arc<dyn Invoker>;
        let invoker = match self.wrap_invoker {
            Some(wrap) => wrap(invoker),
            None => invoker,
        };
        let mut trigger_config = TriggerHostConfig::new(invoker, Arc::clone(&store));
        trigger_config.clock = Arc::clone(&self.clock);
        trigger_config.recorder = recorder.clone();
        trigger_config.publisher = self.publisher;
        trigger_config.secrets = self.secrets;
        let triggers = TriggerHost::new(trigger_config);
        // Before the recovery, which brings stored triggers of these kinds back.
        for (kind, make) in self.kinds {
            triggers.register_kind(kind, make);
        }
        for (kind, make) in self.sinks {
            triggers.register_sink(kind, make);
        }
        let calls = AsyncCalls::new(
            Arc::clone(&gateway) as Arc<dyn Handler>,
            Arc::clone(&store),
            Arc::clone(&self.clock),
            Arc::clone(&triggers),
            self.calls,
        );
        let entrance = EventIngress::new(Arc::clone(&gateway) as _, Arc::clone(&triggers), &self.domain)
            .with_async_calls(Arc::clone(&calls));

        let mut plane = DataPlane::new(router, Arc::clone(&gateway) as Arc<dyn Invoker>);
        plane.quotas = Some(admission as Arc<dyn Quotas>);
        plane.answers = Some(Arc::clone(&gateway) as Arc<dyn AnswerCounter>);
        let mut control_config = ControlConfig::new(Arc::clone(&store), engines, plane);
        control_config.triggers = Some(Arc::clone(&triggers) as Arc<dyn Triggers>);
        control_config.tenant_quotas = self.tenant_quotas;
        control_config.scalers = Some(scalers);
        control_config.clock = Arc::clone(&self.clock);
        control_config.domain = self.domain;
        control_config.packages = self
            .packages
            .or_else(|| self.state.as_ref().map(|dir| Arc::new(PackageDir::new(dir.join("packages"))) as _));
        control_config.manifests = self.manifests;
        control_config.manifests.fidelity = self.fidelity.unwrap_or_else(|| self.preset.fidelity());
        control_config.logs = self.logs;
        control_config.decisions = Arc::clone(&self.decisions);
        control_config.meter = meter;
        control_config.prices = self.prices;
        control_config.diagnosis = self.diagnosis;
        let watched = [Some(std::env::temp_dir()), self.state.clone()];
        control_config.diagnosis.directories.extend(watched.into_iter().flatten());
        control_config.recorder = recorder.clone();
        control_config.seed = self.seed;
        let control = Control::new(control_config);

        let roots = self.access.package_roots(self.package_roots.take(), self.admin);
        let keys = self
            .access
            .keys(self.state.as_deref(), self.admin.is_some())
            .map_err(part(BuildPart::AdminToken))?;
        let mut admin =
            Admin::new(Arc::clone(&control), Arc::clone(&keys.authenticator)).with_package_roots(roots);
        let socket = self.access.socket.take();
        admin = self.access.open(admin, self.admin);
        if let Some(render) = self.metrics {
            admin = admin.with_metrics(render);
        }
        let admin = Arc::new(admin);
        let mut parts = Parts {
            admin,
            keys,
            control,
            triggers,
            factory,
            calls,
            entrance: Arc::new(entrance),
            clock: self.clock,
            gateway,
            pool,
            runtimes: self.runtimes,
            own_store,
            own_meter: None,
            exporters,
            log_files,
            ingress: None,
            admin_server: None,
            #[cfg(unix)]
            admin_socket: None,
            tasks: TaskTracker::new(),
            stop,
        };
        let mut server_config = self.server;
        server_config.recorder = recorder;
        server_config.max_connections = Some(Preset::connections(machine, server_config.max_connections));
        match parts.start(self.listen, self.admin, socket, server_config, own_meter).await {
            Ok(()) => Ok(Platform::new(parts)),
            Err(error) => {
                Platform::new(parts).shutdown(Duration::from_secs(1)).await;
                Err(error)
            }
        }
    }
}

impl Parts {
    async fn start(
        &mut self,
        listen: Option<SocketAddr>,
        admin: Option<SocketAddr>,
        socket: Option<PathBuf>,
        server: ServerConfig,
        own_meter: Option<Arc<Meter>>,
    ) -> Result<(), BuildError> {
        // Ports first: a port that is taken is the mistake that is quickest to mend.
        let bind = async |address: Option<SocketAddr>, handler: Arc<dyn Handler>, name| match address {
            Some(address) => {
                Server::bind(address, handler, server.clone()).await.map(Some).map_err(part(name))
            }
            None => Ok(None),
        };
        self.ingress = bind(listen, Arc::clone(&self.entrance) as _, BuildPart::Ingress).await?;
        self.admin_server = bind(admin, Arc::clone(&self.admin) as _, BuildPart::Admin).await?;
        #[cfg(unix)]
        if let Some(path) = socket {
            let bound = UnixServer::bind(path, Arc::clone(&self.admin) as _, server.clone());
            self.admin_socket = Some(bound.map_err(part(BuildPart::Admin))?);
        }
        #[cfg(not(unix))]
        let _ = socket;
        if let Some(meter) = own_meter {
            // Before the first instance, so that no reading comes before the books are open; and only what was opened is
            // closed, or a start that failed would hide the gap of a kill.
            meter.begin().await.map_err(part(BuildPart::Usage))?;
            self.own_meter = Some(Arc::clone(&meter));
            let stop = self.stop.clone();
            self.tasks.spawn(async move { meter.run(stop).await });
        }
        for exporter in self.exporters.drain(..) {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { exporter.run(stop).await });
        }
        self.control.recover().await.map_err(part(BuildPart::Recovery))?;
        self.calls.recover().await.map_err(part(BuildPart::Recovery))?;
        self.tasks.spawn(backlog::report(
            Arc::clone(&self.triggers),
            Arc::clone(&self.control),
            Arc::clone(&self.factory),
            Arc::clone(&self.clock),
            self.stop.clone(),
        ));
        self.tasks.close();
        Ok(())
    }
}
