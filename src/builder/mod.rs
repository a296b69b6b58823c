//! Composing a platform: every part has a default, and every part can be replaced.

mod assemble;

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, sync::Arc};

use sas_autoscale::DriverConfig;
use sas_control::{
    AdmissionHook, AuditSink, ControlConfig, DecisionLog, DiagnosisConfig, LogFileLimits, MeterConfig,
    Namespaces, PackageRoots, PriceTable, ProgramConfig, RequestLimits, SecretDir, SecretEnv, UsageExport,
    UsageKey,
};
use sas_core::{
    Authenticator, BlobStore, Clock, DecisionSink, EngineSpec, EventLog, EventPublisher, Fidelity, Invoker,
    LogSink, MeterSink, Pool, Recorder, Router, Runtime, Scaler, SecretSource, SinkSpec, SpecErrors, Store,
    SystemClock, TenantQuota, TraceSink, TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_knative::manifest::ParseOptions;
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{AdmissionConfig, GatewayConfig, ServerConfig};
use sas_trigger::{AsyncConfig, TriggerHostConfig};

use crate::{
    access::Access,
    engines::{ConfigurePool, MakePool},
    machine::Machine,
    membership::ClusterOptions,
    platform::Platform,
    preset::Preset,
};

type SinkFactory =
    dyn Fn(&SinkSpec, TriggerSecrets) -> Result<Arc<dyn EventPublisher>, SpecErrors> + Send + Sync;
type SourceFactory = dyn Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync;

/// Composes a [`Platform`]. Every part has a default; each can be replaced by one's own implementation of its trait, or
/// by an `Arc` of one that the host keeps a handle to.
///
/// | Part | Method | Default |
/// |---|---|---|
/// | where code runs | [`runtime`](Self::runtime) | none: add at least one |
/// | instances | [`pool`](Self::pool) | [`InstancePool`], as the preset says |
/// | engines | [`engine`](Self::engine) | one, for all namespaces |
/// | routes | [`router`](Self::router) | [`RouteTable`](sas_router::RouteTable) |
/// | state | [`store`](Self::store), [`state_dir`](Self::state_dir) | in memory |
/// | one of several hosts | [`cluster`](Self::cluster) | the only one |
/// | events of brokers | [`event_log`](Self::event_log) | in the store |
/// | code packages | [`packages`](Self::packages) | in the state directory; without one, where they were deployed from |
/// | how many instances | [`scaler`](Self::scaler) | those of `sas-autoscale` |
/// | declared triggers | [`trigger_kind`](Self::trigger_kind) | `cron` (with the feature), `timer`, `broker`, `webhook` |
/// | where events go but to services and brokers | [`trigger_sink`](Self::trigger_sink) | none; `webhook` by `webhook_hosts`, `file` by `event_files` |
/// | calls that want no answer now | [`async_calls`](Self::async_calls) | taken, as durable as the store |
/// | output of instances | [`log_sink`](Self::log_sink) | [`LogBuffer`](sas_control::LogBuffer) |
/// | scaling decisions | [`decision_sink`](Self::decision_sink) | [`DecisionLog`] |
/// | the last requests | [`keep_requests`](Self::keep_requests) | not kept; with a console, the last 4,096 |
/// | usage | [`meter_sink`](Self::meter_sink) | [`Meter`](sas_control::Meter), on the platform's store |
/// | who is told what is changed at the admin API | [`audit_sink`](Self::audit_sink) | nobody; the store keeps the last 10,000 |
/// | secrets | [`secrets_dir`](Self::secrets_dir), [`secrets_env`](Self::secrets_env), [`secrets`](Self::secrets) | none: a service that refers to one does not start |
/// | who is asked at each deploy | [`admission`](Self::admission) | nobody |
/// | who is told of requests and events, for traces | [`trace_sink`](Self::trace_sink) | nobody; an exporter by `otel`, with the feature |
/// | wall time | [`clock`](Self::clock) | the system's |
///
/// `examples/custom_parts.rs` replaces those that do the work: runtime, pool, router, store, log of events, packages, a
/// scaler, a kind of trigger, the sinks of output, decisions, usage, changes and traces, a hook of deploys, secrets and the clock.
/// `docs/configuration.md` lists each field of each part's configuration, and the method that reaches it.
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
    cluster: Option<ClusterOptions>,
    packages: Option<Arc<dyn BlobStore>>,
    clock: Arc<dyn Clock>,
    recorder: Option<Recorder>,
    traces: Option<Arc<dyn TraceSink>>,
    #[cfg(feature = "otel")]
    otel: Option<sas_otel::OtelConfig>,
    logs: Option<Arc<dyn LogSink>>,
    log_file: Option<(PathBuf, LogFileLimits)>,
    decisions: Arc<dyn DecisionSink>,
    meter: Option<Arc<dyn MeterSink>>,
    meter_config: Vec<ChangeMeter>,
    events: Option<Arc<dyn EventLog>>,
    audit: Option<Arc<dyn AuditSink>>,
    pub(crate) lifecycle: Option<crate::lifecycle::Wanted>,
    control: Vec<ChangeControl>,
    triggers: Vec<ChangeTriggers>,
    prices: Option<PriceTable>,
    usage_exports: Vec<(String, UsageKey, Arc<dyn UsageExport>)>,
    secrets: Option<Arc<dyn SecretSource>>,
    /// The same, if it is ours: it has to be told the namespaces.
    namespaces: Namespaces,
    wrap_invoker: Option<WrapInvoker>,
    machine: Option<Machine>,
    preset: Preset,
    fidelity: Option<Fidelity>,
    domain: String,
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_listener: Option<std::net::TcpListener>,
    listener: Option<std::net::TcpListener>,
    package_roots: Option<PackageRoots>,
    access: Access,
    publisher: Option<Arc<dyn EventPublisher>>,
    seed: u64,
    pool: Vec<ConfigurePool>,
    gateway: GatewayConfig,
    quotas: Option<AdmissionConfig>,
    tenant_quotas: BTreeMap<String, TenantQuota>,
    default_tenant_quota: TenantQuota,
    admission: Vec<Arc<dyn AdmissionHook>>,
    server: ServerConfig,
    driver: DriverConfig,
    manifests: ParseOptions,
    metrics: Option<MetricsText>,
    diagnosis: DiagnosisConfig,
    program_config: Option<Arc<dyn ProgramConfig>>,
    requests: Option<RequestLimits>,
    #[cfg(feature = "console")]
    console: bool,
    #[cfg(feature = "workflow")]
    pub(crate) workflow: crate::workflows::Wanted,
    #[cfg(feature = "tls")]
    certificates: Option<PathBuf>,
}

type ChangeControl = Box<dyn FnOnce(&mut ControlConfig) + Send + Sync>;
type ChangeMeter = Box<dyn FnOnce(&mut MeterConfig) + Send + Sync>;
type ChangeTriggers = Box<dyn FnOnce(&mut TriggerHostConfig) + Send + Sync>;
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
            cluster: None,
            packages: None,
            clock: Arc::new(SystemClock),
            recorder: None,
            traces: None,
            #[cfg(feature = "otel")]
            otel: None,
            logs: None,
            log_file: None,
            decisions: Arc::new(DecisionLog::default()),
            meter: None,
            meter_config: Vec::new(),
            events: None,
            audit: None,
            lifecycle: None,
            control: Vec::new(),
            triggers: Vec::new(),
            prices: None,
            usage_exports: Vec::new(),
            secrets: None,
            namespaces: Namespaces::default(),
            wrap_invoker: None,
            machine: None,
            preset: Preset::Default,
            fidelity: None,
            domain: "localhost".to_owned(),
            listen: None,
            admin: None,
            admin_listener: None,
            listener: None,
            package_roots: None,
            access: Access::default(),
            publisher: None,
            seed: 0,
            pool: Vec::new(),
            gateway: GatewayConfig::default(),
            quotas: None,
            tenant_quotas: BTreeMap::new(),
            default_tenant_quota: TenantQuota::default(),
            admission: Vec::new(),
            server: ServerConfig::default(),
            driver: DriverConfig::default(),
            manifests: ParseOptions::default(),
            metrics: None,
            diagnosis: DiagnosisConfig::default(),
            program_config: None,
            requests: None,
            #[cfg(feature = "console")]
            console: false,
            #[cfg(feature = "workflow")]
            workflow: crate::workflows::Wanted::default(),
            #[cfg(feature = "tls")]
            certificates: None,
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

    /// Lets triggers read streams and lists of these Redis servers, by the sources `redis-stream` and `redis-list`, and write to
    /// streams, by the sink `redis-stream`: each `host:port`, as it stands in a trigger's `url`. Without it the kinds are unknown, and other servers
    /// are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().redis_hosts(["127.0.0.1:6379"]);
    /// ```
    #[cfg(feature = "redis")]
    #[must_use]
    pub fn redis_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let servers = sas_redis::RedisServers::new(hosts);
        let (lists, sinks) = (servers.clone(), servers.clone());
        self.trigger_kind("redis-stream", move |spec| Ok(Arc::new(servers.source(spec)?)))
            .trigger_kind("redis-list", move |spec| Ok(Arc::new(lists.list(spec)?)))
            .trigger_sink("redis-stream", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read streams of these NATS servers, by the source `nats-jetstream`, and publish to them, by the sink of
    /// the same name: each `host:port`, as it stands in a trigger's `url`. Without it the kinds are unknown, and other
    /// servers are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().nats_hosts(["127.0.0.1:4222"]);
    /// ```
    #[cfg(feature = "nats")]
    #[must_use]
    pub fn nats_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let servers = sas_nats::NatsServers::new(hosts);
        let sinks = servers.clone();
        self.trigger_kind("nats-jetstream", move |spec| Ok(Arc::new(servers.source(spec)?)))
            .trigger_sink("nats-jetstream", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read outbox tables of these PostgreSQL servers, by the source `postgres-outbox`, and write to them, by
    /// the sink of the same name: each `host:port`, as it stands in a trigger's `url`. Without it the kinds are unknown, and
    /// other servers are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().postgres_hosts(["127.0.0.1:5432"]);
    /// ```
    #[cfg(feature = "postgres")]
    #[must_use]
    pub fn postgres_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let servers = sas_postgres::PostgresServers::new(hosts);
        let sinks = servers.clone();
        self.trigger_kind("postgres-outbox", move |spec| Ok(Arc::new(servers.source(spec)?)))
            .trigger_sink("postgres-outbox", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read topics of these Apache Kafka brokers, by the source `kafka`, and write to them, by the sink `kafka`:
    /// each `host:port`, as it stands in a trigger's `brokers`. Without it the kinds are unknown, and other brokers are
    /// refused; the brokers of a cluster say each other's addresses.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().kafka_hosts(["127.0.0.1:9092"]);
    /// ```
    #[cfg(feature = "kafka")]
    #[must_use]
    pub fn kafka_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let brokers = sas_kafka::KafkaBrokers::new(hosts);
        let sinks = brokers.clone();
        self.trigger_kind("kafka", move |spec| Ok(Arc::new(brokers.source(spec)?)))
            .trigger_sink("kafka", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read topics of these MQTT brokers, by the source `mqtt`, and send to them, by the sink `mqtt`: each
    /// `host:port`, as it stands in a trigger's `url`. Without it the kinds are unknown, and other brokers are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().mqtt_hosts(["127.0.0.1:1883"]);
    /// ```
    #[cfg(feature = "mqtt")]
    #[must_use]
    pub fn mqtt_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let brokers = sas_mqtt::MqttBrokers::new(hosts);
        let sinks = brokers.clone();
        self.trigger_kind("mqtt", move |spec| Ok(Arc::new(brokers.source(spec)?)))
            .trigger_sink("mqtt", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read queues of these RabbitMQ servers, by the source `rabbitmq-queue`, and send to their queues and
    /// exchanges, by the sink of the same name: each `host:port`, as it stands in a trigger's `url`. Without it the kinds are
    /// unknown, and other servers are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().rabbitmq_hosts(["127.0.0.1:5672"]);
    /// ```
    #[cfg(feature = "rabbitmq")]
    #[must_use]
    pub fn rabbitmq_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let servers = sas_rabbitmq::RabbitServers::new(hosts);
        let sinks = servers.clone();
        self.trigger_kind("rabbitmq-queue", move |spec| Ok(Arc::new(servers.source(spec)?)))
            .trigger_sink("rabbitmq-queue", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers read queues of Amazon SQS at these servers, by the source `sqs`, and send to them, by the sink of the same
    /// name: each as it stands in a queue's URL. Without it the kinds are unknown, and other servers are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().sqs_hosts(["sqs.eu-central-1.amazonaws.com"]);
    /// ```
    #[cfg(feature = "sqs")]
    #[must_use]
    pub fn sqs_hosts<H: Into<String>>(self, hosts: impl IntoIterator<Item = H>) -> Self {
        let servers = sas_sqs::SqsServers::new(hosts);
        let sinks = servers.clone();
        self.trigger_kind("sqs", move |spec| Ok(Arc::new(servers.source(spec)?)))
            .trigger_sink("sqs", move |spec, secrets| sinks.sink(spec, secrets))
    }

    /// Lets triggers watch files in these directories and below them, by the source `files`. Without it the kind is
    /// unknown, and other directories are refused.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().file_roots(["/srv/uploads"]);
    /// ```
    #[cfg(feature = "files")]
    #[must_use]
    pub fn file_roots<D: Into<PathBuf>>(self, roots: impl IntoIterator<Item = D>) -> Self {
        let files = sas_files::FilesBelow::new(roots);
        self.trigger_kind("files", move |spec| Ok(Arc::new(files.source(spec)?)))
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

    /// Makes the platform one of several hosts that share its [`PlatformBuilder::store`]. Each service has one host that
    /// starts its instances; the others pass its requests on. `docs/hosts.md` says what is promised and how hosts are run.
    /// The platform must listen without TLS, on the network of the hosts.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use sas::{core::{MemoryStore, Secret}, prelude::*, ClusterOptions};
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let store = Arc::new(MemoryStore::default()); // one that the other hosts reach too
    /// let secret = Secret::new("at least 32 random bytes, as openssl rand -hex 32 makes");
    /// let here = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    /// let platform = Platform::builder()
    ///     .store(store)
    ///     .listen(here)
    ///     .cluster(ClusterOptions::new("host-a", here, secret))
    ///     .build()
    ///     .await?;
    /// assert_eq!(platform.cluster().expect("it is a host").name(), "host-a");
    /// platform.shutdown(std::time::Duration::from_secs(5)).await;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cluster(mut self, options: ClusterOptions) -> Self {
        self.cluster = Some(options);
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

    /// The durable log that brokers keep their events in. In the platform's store unless this says otherwise; what was
    /// accepted into another log before is not taken over.
    #[must_use]
    pub fn event_log(mut self, log: impl EventLog) -> Self {
        self.events = Some(Arc::new(log));
        self
    }

    /// Where the output of instances goes. The admin API and [`Platform::logs`] read back what it can read back.
    #[must_use]
    pub fn log_sink(mut self, sink: impl LogSink) -> Self {
        self.logs = Some(Arc::new(sink));
        self
    }

    /// Writes the output of instances to this file too, as JSON lines with names, level and request: see [`LogFiles`](sas_control::LogFiles).
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

    /// Keeps the last requests in memory: the admin API and [`Platform::requests`] tell rates, errors and durations by
    /// revision, the instances of each second, and the way of single requests. It costs each request a lock and some allocations, and
    /// the memory that the limits name.
    #[must_use]
    pub fn keep_requests(mut self, limits: RequestLimits) -> Self {
        self.requests = Some(limits);
        self
    }

    /// Serves the console at `/console` of the admin API's listener: pages for operators, who sign in with a token of the
    /// admin API. It keeps the last requests, as [`keep_requests`](Self::keep_requests) does. Where the admin API is on a
    /// socket or on a server of the host's own, a [`Console`](sas_console::Console) is put before it by hand.
    #[cfg(feature = "console")]
    #[must_use]
    pub fn console(mut self) -> Self {
        self.console = true;
        self.requests.get_or_insert_default();
        self
    }

    /// Where readings of what instances and requests used go. The admin API and [`Platform::usage`] read back what it
    /// can read back.
    #[must_use]
    pub fn meter_sink(mut self, sink: impl MeterSink) -> Self {
        self.meter = Some(Arc::new(sink));
        self
    }

    /// Changes the configuration of the platform's meter: how often it writes to the store, for how long hours are kept,
    /// under which name of this host. Its `store` and `clock` are the platform's own whatever it says. Of no effect with a
    /// [`PlatformBuilder::meter_sink`] of one's own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use sas::prelude::*;
    /// let builder = Platform::builder().meter(|meter| meter.checkpoint = Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn meter(mut self, change: impl FnOnce(&mut MeterConfig) + Send + Sync + 'static) -> Self {
        self.meter_config.push(Box::new(change));
        self
    }

    /// Who is told each change that somebody asks for at the admin API, done or refused, as it is answered. The platform
    /// keeps the last ones in its store all the same ([`PlatformBuilder::control`]: `audit`).
    #[must_use]
    pub fn audit_sink(mut self, sink: impl AuditSink) -> Self {
        self.audit = Some(Arc::new(sink));
        self
    }

    /// Changes the configuration of the control plane: when old revisions go (`rules.gc`), how long one that lost its
    /// traffic may drain (`drain_grace`), how much is kept of who changed what (`audit`). What another method of this
    /// builder sets is the platform's own whatever it says.
    ///
    /// ```
    /// use std::time::Duration;
    /// use sas::prelude::*;
    /// let builder = Platform::builder().control(|control| {
    ///     control.rules.gc.max_non_active = 5;
    ///     control.drain_grace = Duration::from_secs(30);
    /// });
    /// ```
    #[must_use]
    pub fn control(mut self, change: impl FnOnce(&mut ControlConfig) + Send + Sync + 'static) -> Self {
        self.control.push(Box::new(change));
        self
    }

    /// Changes the configuration of what runs triggers: how many events are under way at once (`slots`), how long a source
    /// that failed waits before it is started again. What another method of this builder sets is the platform's own
    /// whatever it says.
    #[must_use]
    pub fn triggers(mut self, change: impl FnOnce(&mut TriggerHostConfig) + Send + Sync + 'static) -> Self {
        self.triggers.push(Box::new(change));
        self
    }

    /// What use costs: [`Control::usage_cost`](sas_control::Control::usage_cost) and the admin API tell costs by it, those of idle instances apart from those
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

    /// Asks `hook` at each deploy of a service, after the hooks that were given before: a policy, a check of signatures, or
    /// an [`AllowedSources`](sas_control::AllowedSources). What it refuses is not stored, and whoever deploys is told why.
    #[must_use]
    pub fn admission(mut self, hook: impl AdmissionHook) -> Self {
        self.admission.push(Arc::new(hook));
        self
    }

    /// Resolves references to secrets from the files of a directory, `NAMESPACE/secret/NAME/KEY`; see
    /// [`SecretDir`](sas_control::SecretDir). Instead of [`secrets`](Self::secrets).
    #[must_use]
    pub fn secrets_dir(self, dir: impl Into<PathBuf>) -> Self {
        let dir = SecretDir::new(dir, self.namespaces.clone());
        self.secrets(dir)
    }

    /// Resolves references to secrets from the environment of this process, `PREFIXNAMESPACE__NAME__KEY` in capitals; see
    /// [`SecretEnv`](sas_control::SecretEnv). Instead of [`secrets`](Self::secrets).
    #[must_use]
    pub fn secrets_env(self, prefix: impl Into<String>) -> Self {
        let variables = SecretEnv::new(prefix, self.namespaces.clone());
        self.secrets(variables)
    }

    /// Whose namespace is whose, for a [`SecretSource`] of one's own that keeps secrets by namespace: it knows as soon as the
    /// platform is there.
    pub fn namespaces(&self) -> Namespaces {
        self.namespaces.clone()
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

    /// Who is told of every request and delivery when it is over, for traces. Without it, and without `otel`, nobody:
    /// instances get the context of a trace all the same.
    #[must_use]
    pub fn trace_sink(mut self, sink: impl TraceSink) -> Self {
        self.traces = Some(Arc::new(sink));
        self
    }

    /// Exports traces, metrics and, where its configuration says so, the lines of instances to an OpenTelemetry collector.
    /// Metrics go to the platform's recorder too; recorder and clock of the configuration are set by the builder. A
    /// [`Self::trace_sink`] is told instead of the exporter.
    ///
    /// ```
    /// use sas::{otel::OtelConfig, prelude::*};
    /// let mut config = OtelConfig::new("http://127.0.0.1:4318");
    /// config.sampling.ratio = 0.01;
    /// let builder = Platform::builder().otel(config);
    /// ```
    #[cfg(feature = "otel")]
    #[must_use]
    pub fn otel(mut self, config: sas_otel::OtelConfig) -> Self {
        self.otel = Some(config);
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
        self.listener = None;
        self
    }

    /// Listens for requests on a listener that the host opened, or was handed by the process before it: what came to it and
    /// was not taken yet is served.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn listener(mut self, listener: std::net::TcpListener) -> std::io::Result<Self> {
        self.listen = Some(listener.local_addr()?);
        self.listener = Some(listener);
        Ok(self)
    }

    /// Serves the admin API at this address, to those who have the admin token: see
    /// [`PlatformBuilder::admin_token`].
    #[must_use]
    pub fn admin(mut self, address: SocketAddr) -> Self {
        self.admin = Some(address);
        self.admin_listener = None;
        self
    }

    /// Serves the admin API on a listener that the host opened, as [`admin`](Self::admin) does on an address. A host whose
    /// admin port is chosen by the kernel learns it here before it makes its runtimes, and closes it to their instances
    /// (`JailConfig::closed_ports`).
    ///
    /// ```
    /// # #[cfg(feature = "inline")]
    /// # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let port = listener.local_addr()?.port();
    /// let platform = sas::Platform::builder()
    ///     .runtime(sas::inline::InlineRuntime::new())
    ///     .admin_listener(listener)?
    ///     .build()
    ///     .await?;
    /// assert_eq!(platform.admin_addr().map(|address| address.port()), Some(port));
    /// platform.shutdown(std::time::Duration::from_secs(1)).await;
    /// # Ok(()) }
    /// # #[cfg(not(feature = "inline"))]
    /// # fn main() {}
    /// ```
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn admin_listener(mut self, listener: std::net::TcpListener) -> std::io::Result<Self> {
        self.admin = Some(listener.local_addr()?);
        self.admin_listener = Some(listener);
        Ok(self)
    }

    /// Serves the admin API on a Unix socket of mode 0600, beside or instead of an address. Alone and without a token, a
    /// platform that is root lets in whoever can open the socket, which is root. One of an ordinary user asks for a token
    /// there too (made and kept as for a listener): its instances are the same user.
    #[cfg(unix)]
    #[must_use]
    pub fn admin_socket(mut self, path: impl Into<PathBuf>) -> Self {
        self.access.socket = Some(path.into());
        self
    }

    /// The bearer token of the admin API. Without one, it is made once and kept in the state directory as
    /// `admin-token` with mode 0600; without a state directory, it is made for a listener at each start, in a temporary
    /// file that [`Platform::admin_token_file`] names; without a listener, nobody is let in. It can be changed while the
    /// platform runs: by writing its file, or by [`Platform::replace_admin_token`]. Beside a file or an authenticator it is
    /// refused when the platform is built.
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

    /// What the tenant of a namespace may use: requests, instances, memory, CPU, cold starts, queues, storage, events. The
    /// admin API may give it another quota, which is stored and goes before this one as a whole.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder()
    ///     .default_tenant_quota(TenantQuota::default().with_instances(20).with_queue_bytes(16 << 20))
    ///     .tenant_quota("shop", TenantQuota::default().with_instances(200).with_memory_bytes(16 << 30))
    ///     .tenant_quota("guest", Quota::rate(10.0, 20));
    /// ```
    #[must_use]
    pub fn tenant_quota(mut self, namespace: impl Into<String>, quota: impl Into<TenantQuota>) -> Self {
        self.tenant_quotas.insert(namespace.into(), quota.into());
        self
    }

    /// What every tenant may use that has no quota of its own.
    #[must_use]
    pub fn default_tenant_quota(mut self, quota: impl Into<TenantQuota>) -> Self {
        self.default_tenant_quota = quota.into();
        self
    }

    /// Serves requests from this many threads of the listener's own, each with a runtime of one thread: a connection stays
    /// on the core that took it, and so do the connections to instances that it uses. As many as there are cores, for a
    /// program that does little else; functions that compute for long hold up the other connections of their thread. 0, the
    /// default: requests are served by the runtime that the platform is built in. The admin API always is.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().workers(2);
    /// ```
    #[must_use]
    pub fn workers(mut self, workers: usize) -> Self {
        self.server.workers = workers;
        self
    }

    /// Changes the configuration of the listeners. Unless it says how many connections they take, they take what the
    /// machine's descriptors are enough for.
    #[must_use]
    pub fn server(mut self, change: impl FnOnce(&mut ServerConfig)) -> Self {
        change(&mut self.server);
        self
    }

    /// Encrypts the listeners with the certificates of a directory, each for the hosts that stand in it: see
    /// [`Certificates`](sas_router::Certificates) for what the directory holds. Its files are looked at every five seconds, and
    /// new ones are shown to connections to come; where they are wrong, those before stay, and log and diagnosis say why.
    /// [`Platform::reload_certificates`] reads them at once. Instead of `tls` of [`server`](Self::server).
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().certificates("/etc/sas/certificates");
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn certificates(mut self, dir: impl Into<PathBuf>) -> Self {
        self.certificates = Some(dir.into());
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

    /// Shows the configuration of the program at the admin API (`GET /v1/config`), and has it reloaded by that
    /// (`POST /v1/config/reload`). What it puts in force is the program's to say:
    /// [`Control::set_default_tenant_quota`](sas_control::Control::set_default_tenant_quota),
    /// [`Control::set_prices`](sas_control::Control::set_prices), [`Admin::change`](sas_control::Admin::change),
    /// [`Platform::set_package_roots`], [`Tls::reload`](sas_router::Tls::reload) and hooks of its own.
    #[must_use]
    pub fn program_config(mut self, config: Arc<dyn ProgramConfig>) -> Self {
        self.program_config = Some(config);
        self
    }

    /// Lets services have their requests meet faults on purpose (`sas.dev/faults`, `PUT …/faults` of the admin API), so that
    /// tests of one's own see what comes of delays and errors. Without it they are refused.
    #[must_use]
    pub fn allow_faults(self) -> Self {
        self.control(|control| control.rules.allow_faults = true)
    }

    /// Changes what counts as wrong with the platform, and how often it looks by itself. The state directory and the one for
    /// temporary files are among those that are watched.
    #[must_use]
    pub fn diagnosis(mut self, change: impl FnOnce(&mut DiagnosisConfig)) -> Self {
        change(&mut self.diagnosis);
        self
    }
}

impl Platform {
    /// Starts composing a platform.
    pub fn builder() -> PlatformBuilder {
        PlatformBuilder::default()
    }
}
