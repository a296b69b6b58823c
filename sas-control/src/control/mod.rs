//! The control plane: what is wanted is stored first, then done; what was not finished is done again.

mod apps;
mod deploy;
mod domains;
mod engines;
mod hosts;
mod identity;
mod letters;
mod life;
mod parts;
mod precondition;
mod quotas;
mod recover;
mod recovered;
mod rehearsals;
mod rollout;
mod spread;
mod steps;
mod triggers;
mod uploads;
mod usage;
mod workflows;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sas_core::{
    AnswerCounter, Artifact, BlobStore, BrokerSpec, Clock, Commit, DataPlane, DecisionQuery, DecisionSink,
    Error, ErrorKind, HostShares, Hosts, Invoker, LifecycleEvent, LifecycleSink, LogQuery, LogSink,
    MeterSink, Pool, Principal, Recorder, Rehearsals, RequestId, Result, RevisionKey, Router, Scalers,
    SizeBounds, Store, SystemClock, TenantKey, TenantQuota, TriggerSpec, Triggers, UsageQuery, Version,
    WorkflowHost, WorkflowSpec, commit_as_owner,
};
use sas_knative::manifest::{DomainMapping, ParseOptions};
use tokio::time::Instant;

use crate::{
    admission::AdmissionHook,
    audit::{AuditLimits, AuditLog, AuditRecord, AuditSink},
    decisions::DecisionLog,
    diagnosis::{DiagnosisConfig, Memory, Records},
    engine::Engines,
    invalid::{invalid, refused},
    logs::LogBuffer,
    meter::{Meter, PriceTable},
    metrics::Metrics,
    reconcile::{Observed, Rules},
    record::ServiceRecord,
    registry::RuntimeRegistry,
    requests::RequestLog,
    spread::SpreadConfig,
    tokens::Tokens,
};
use parts::{DamagedKeys, Lifecycle, Names, Pins, RequestIds, Services, Sinks, TenantQuotas, Tenants, Turns};
use recovered::RecoveryReport;

pub use apps::{AppRecord, EnvVersion};
pub use domains::DomainRecord;
pub use letters::DeadLetter;
pub use life::Purged;
pub(crate) use precondition::{Declaration, Expected, PRECONDITION, expecting};
pub use rollout::RolloutAction;
pub use usage::{HourUsageView, NamespaceUsageView, UsageGapView, UsageHoursView, UsageView};

/// Where services are in the store.
pub(crate) const SERVICES: &str = "service/";
/// Where brokers are in the store.
pub(crate) const BROKERS: &str = "brokers/";
/// Where whoever runs workflows keeps their definitions in the store, as `namespace/name/version`.
pub(crate) const WORKFLOWS: &str = "workflow/definition/";
/// Where triggers are in the store.
pub(crate) const TRIGGERS: &str = "triggers/";
/// Where tenants are in the store.
const TENANTS: &str = "tenant/";
/// Where quotas of tenants are in the store.
const QUOTAS: &str = "quota/";
/// Where declared engines are in the store.
const ENGINES: &str = "engine/";
/// Where hosts that are mapped to services are in the store.
const DOMAINS: &str = "domain/";
/// Where deliveries keep events that they could not deliver.
const DEAD_LETTERS: &str = "deadletter/";
/// Entries that are read from the store in one go.
const PAGE: usize = 256;
/// Rounds of reconciling that a change may take; one takes four.
const ROUNDS: usize = 64;
/// Keys of earlier registrations whose logs are kept.
const PAST_KEYS: usize = 16;
/// How often old revisions, finished roll-outs and unused test registrations are looked for.
const HOUSEKEEPING: Duration = Duration::from_secs(1);
/// Services that are brought back at once after a start.
const RECOVERIES: usize = 8;

/// What a control plane works with.
#[derive(Clone, Debug)]
pub struct ControlConfig {
    /// Where the desired state is.
    pub store: Arc<dyn Store>,
    /// Where instances are, and what can run code.
    pub engines: Arc<Engines>,
    /// What requests come in through.
    pub plane: DataPlane,
    /// Who runs triggers; without it, manifests of triggers are refused.
    pub triggers: Option<Arc<dyn Triggers>>,
    /// Who runs workflows; without it, manifests of workflows are refused.
    pub workflows: Option<Arc<dyn WorkflowHost>>,
    /// What the tenants of these namespaces may use, unless they are given another quota by the admin API.
    pub tenant_quotas: BTreeMap<String, TenantQuota>,
    /// What every tenant may use that has no quota of its own.
    pub default_tenant_quota: TenantQuota,
    /// The hosts that share the store, if there are several: what this one acts for is told by them.
    pub hosts: Option<Arc<dyn Hosts>>,
    /// The scalers of the platform: a spec that none of them serves is refused. Without them, scalers are not checked here.
    pub scalers: Option<Scalers>,
    /// The clock that stamps records and conditions.
    pub clock: Arc<dyn Clock>,
    /// Services answer at `name.namespace.domain`.
    pub domain: String,
    /// Where packages are copied to when they are deployed, so that the platform comes back with them, such as a
    /// [`crate::PackageDir`]; `None`: a revision runs from where its package is, and is refused if that has changed.
    pub packages: Option<Arc<dyn BlobStore>>,
    /// What manifests mean beyond what they say.
    pub manifests: ParseOptions,
    /// How old revisions go; the domain in it is set from [`ControlConfig::domain`].
    pub rules: Rules,
    /// How long the requests of a revision that lost its traffic may take to end.
    pub drain_grace: Duration,
    /// Where instances log to. What it can read back is shown by the admin API.
    pub logs: Arc<dyn LogSink>,
    /// Where the autoscaler's decisions go. What it can read back is shown by the admin API.
    pub decisions: Arc<dyn DecisionSink>,
    /// Where readings of what was used go. What it can read back is shown by the admin API.
    pub meter: Arc<dyn MeterSink>,
    /// What the gateway tells of requests that are over, for those who look; `None`: the admin API shows no single requests
    /// and no rates. It has to be told of them as well: it is the gateway's trace sink.
    pub requests: Option<Arc<RequestLog>>,
    /// Who is asked at each deploy, in this order.
    pub admission: Vec<Arc<dyn AdmissionHook>>,
    /// How much is kept of who changed what.
    pub audit: AuditLimits,
    /// Who is told each change beside that; `None`: nobody.
    pub audit_sink: Option<Arc<dyn AuditSink>>,
    /// Who is told what happens to services, revisions and engines, and what the platform's own diagnosis finds; `None`:
    /// nobody.
    pub lifecycle: Option<Arc<dyn LifecycleSink>>,
    /// What use costs; `None`: costs are not told.
    pub prices: Option<PriceTable>,
    /// The recorder that the control plane's metrics go to.
    pub recorder: Recorder,
    /// What counts as wrong with the platform, and how often it is looked for.
    pub diagnosis: DiagnosisConfig,
    /// How fast services spread over several hosts that need more than one, and come back.
    pub spread: SpreadConfig,
    /// Seed of the ids of test runs.
    pub seed: u64,
}

impl ControlConfig {
    /// A platform on the system's clock, at `localhost`, that keeps no packages.
    pub fn new(store: Arc<dyn Store>, engines: Arc<Engines>, plane: DataPlane) -> Self {
        Self {
            store,
            engines,
            plane,
            triggers: None,
            hosts: None,
            workflows: None,
            tenant_quotas: BTreeMap::new(),
            default_tenant_quota: TenantQuota::default(),
            scalers: None,
            clock: Arc::new(SystemClock),
            domain: "localhost".to_owned(),
            packages: None,
            manifests: ParseOptions::default(),
            rules: Rules::new("localhost"),
            drain_grace: Duration::from_secs(300),
            logs: Arc::new(LogBuffer::default()),
            decisions: Arc::new(DecisionLog::default()),
            meter: Arc::new(Meter::default()),
            requests: None,
            admission: Vec::new(),
            audit: AuditLimits::default(),
            audit_sink: None,
            lifecycle: None,
            prices: None,
            recorder: Recorder::default(),
            diagnosis: DiagnosisConfig::default(),
            spread: SpreadConfig::default(),
            seed: 0,
        }
    }
}

/// The control plane of one platform. Cheap to share; made by [`Control::new`].
#[derive(Debug)]
pub struct Control {
    pub(crate) store: Arc<dyn Store>,
    engines: Arc<Engines>,
    /// The same, as who only asks for instances sees them.
    pub(crate) pool: Arc<dyn Pool>,
    router: Arc<dyn Router>,
    pub(crate) invoker: Arc<dyn Invoker>,
    triggers: Option<Arc<dyn Triggers>>,
    hosts: Option<Arc<dyn Hosts>>,
    following: hosts::Following,
    workflows: Option<Arc<dyn WorkflowHost>>,
    answers: Option<Arc<dyn AnswerCounter>>,
    pub(crate) rehearsals: Option<Arc<dyn Rehearsals>>,
    pub(crate) clock: Arc<dyn Clock>,
    manifests: ParseOptions,
    pub(crate) rules: Rules,
    drain_grace: Duration,
    sinks: Sinks,
    prices: ArcSwapOption<PriceTable>,
    requests: Option<Arc<RequestLog>>,
    pub(crate) metrics: Metrics,
    request_ids: RequestIds,
    services: Services,
    turns: Turns,
    /// Services of which a write failed: it may have been done all the same, so they are read again first.
    stale_after_write: Names,
    /// Services with steps to be done, now or when time has passed: what housekeeping looks at.
    pending_reconcile: Names,
    damaged: DamagedKeys,
    /// Keys of services in the store that can't be read, damaged or of another version. While there are any, nobody knows
    /// which packages they need, and none is removed.
    unreadable: Names,
    tenants: Tenants,
    tenant_quotas: TenantQuotas,
    admission: Vec<Arc<dyn AdmissionHook>>,
    pub(crate) domains: domains::Domains,
    pins: Pins,
    uploads: uploads::Uploads,
    apps: apps::Apps,
    /// Services that have not the environment of their app yet.
    behind: Names,
    spreads: spread::Spreads,
    shares: Option<Arc<dyn HostShares>>,
    purges: life::Purges,
    tokens: Tokens,
    pub(crate) audit: AuditLog,
    followers: Option<Arc<dyn LifecycleSink>>,
    recovery_report: RecoveryReport,
    /// Triggers that send into another namespace, by name.
    crossing: triggers::Crossing,
    pub(crate) diagnosis: Mutex<Memory>,
    pub(crate) stored: Records,
    pub(crate) diagnosis_config: DiagnosisConfig,
    /// One backup at a time.
    pub(crate) backups: Arc<tokio::sync::Semaphore>,
    lifecycle: Lifecycle,
}

/// A service and what runs of it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) state: Mutex<LiveState>,
    /// Held while the sizes of a roll-out are told to the pool, which is not only done by who has the turn: what was
    /// decided first is told first.
    sizing: Mutex<()>,
}

#[derive(Debug)]
pub(crate) struct LiveState {
    /// `None` once it was deleted.
    pub(crate) record: Option<Arc<ServiceRecord>>,
    version: Version,
    pub(crate) observed: Observed,
    /// Keys of earlier registrations, youngest last, for their logs.
    pub(crate) past: VecDeque<(String, RevisionKey)>,
    /// What was prepared and is not registered now: keeps the artifact while the revision may be started again.
    artifacts: HashMap<String, Artifact>,
    /// Revisions whose answers are counted for a roll-out.
    counted: Vec<RevisionKey>,
    /// Revisions whose size a roll-out has its hand on.
    bounded: Vec<rollout::Bounded>,
    /// What the pool was told of the sizes of revisions, because of a roll-out or of a part.
    told: Vec<(RevisionKey, SizeBounds)>,
    /// The version of the parts that holds here: the pool and the gateway were told of it.
    applied: u64,
    /// Revisions that started while the pool held them and that it does not hold now.
    pub(crate) started: HashSet<String>,
}

/// What a deploy did.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeployOutcome {
    /// The service, as it is now.
    pub record: Arc<ServiceRecord>,
    /// The revision that the manifest describes.
    pub revision: String,
    /// Whether the service is new.
    pub created: bool,
    /// Whether the revision is new; false when nothing that runs has changed.
    pub new_revision: bool,
}

/// What became of one manifest of several.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Applied {
    /// A service was deployed.
    Service(DeployOutcome),
    /// A trigger runs, unless it is declared as paused.
    Trigger(TriggerSpec),
    /// A broker takes events.
    Broker(BrokerSpec),
    /// A host leads to a service.
    Domain(DomainMapping),
    /// A workflow can be run; whether this version of it is new.
    Workflow(Box<WorkflowSpec>, bool),
}

/// What came back after a start.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Services that serve again.
    pub services: usize,
    /// Triggers that run again.
    pub triggers: usize,
    /// What did not come back, with the reason: `Service namespace/name`, `Trigger namespace/name`, and `Tenant
    /// namespace` or `Quota namespace` for what the store has of a namespace. A service or trigger whose record is
    /// damaged comes back when it is deployed again, and goes when it is deleted; one that another version wrote stays
    /// as it is.
    pub failed: Vec<(String, Arc<Error>)>,
}

fn unreadable(what: &'static str, sink: &str) -> Error {
    let message =
        format!("the platform's {sink} only passes on what it takes; ask the system that it passes it to");
    Error::new(ErrorKind::Unsupported, what, message)
}

pub(crate) fn no_service(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, "service", format!("there is no service {path}"))
}

impl Control {
    /// A control plane with nothing in it yet; [`Control::recover`] brings back what the store holds. Must be called
    /// within a tokio runtime: housekeeping is a task of its own until [`Control::shutdown`].
    pub fn new(config: ControlConfig) -> Arc<Self> {
        let rules = Rules { domain: config.domain, ..config.rules };
        let mut manifests = config.manifests;
        manifests.scalers = config.scalers.or(manifests.scalers);
        let tokens = Tokens::new(Arc::clone(&config.store), Arc::clone(&config.clock));
        let audit = AuditLog::new(
            Arc::clone(&config.store),
            Arc::clone(&config.clock),
            config.audit,
            config.audit_sink,
        );
        if let Some(followers) = &config.lifecycle {
            config.engines.tell(Arc::clone(followers), Arc::clone(&config.clock));
        }
        let control = Arc::new(Self {
            store: config.store,
            pool: Arc::clone(&config.engines) as _,
            engines: config.engines,
            router: config.plane.router,
            invoker: config.plane.invoker,
            triggers: config.triggers,
            hosts: config.hosts,
            following: hosts::Following::default(),
            workflows: config.workflows,
            answers: config.plane.answers,
            rehearsals: config.plane.rehearsals,
            clock: config.clock,
            manifests,
            rules,
            drain_grace: config.drain_grace,
            sinks: Sinks { logs: config.logs, decisions: config.decisions, meter: config.meter },
            prices: ArcSwapOption::from(config.prices.map(Arc::new)),
            requests: config.requests,
            metrics: Metrics::new(&config.recorder),
            followers: config.lifecycle,
            request_ids: RequestIds::new(config.seed),
            services: Services::default(),
            turns: Turns::default(),
            stale_after_write: Names::default(),
            pending_reconcile: Names::default(),
            damaged: DamagedKeys::default(),
            unreadable: Names::default(),
            tenants: Tenants::default(),
            tenant_quotas: TenantQuotas::new(
                config.default_tenant_quota,
                config.tenant_quotas,
                config.plane.quotas,
            ),
            admission: config.admission,
            domains: domains::Domains::default(),
            pins: Pins::new(config.packages),
            uploads: uploads::Uploads::default(),
            apps: apps::Apps::default(),
            behind: Names::default(),
            spreads: spread::Spreads::new(config.spread),
            shares: config.plane.shares,
            purges: life::Purges::default(),
            tokens,
            audit,
            recovery_report: RecoveryReport::default(),
            crossing: triggers::Crossing::default(),
            diagnosis: Mutex::default(),
            stored: Records::default(),
            diagnosis_config: config.diagnosis,
            backups: Arc::new(tokio::sync::Semaphore::new(1)),
            lifecycle: Lifecycle::default(),
        });
        let housekeeping = recover::housekeeping(Arc::downgrade(&control), control.lifecycle.stop.clone());
        control.lifecycle.tasks.spawn(housekeeping);
        if control.hosts.is_some() && control.shares.is_some() {
            let spreading = spread::spreading(Arc::downgrade(&control), control.lifecycle.stop.clone());
            control.lifecycle.tasks.spawn(spreading);
        }
        control
    }

    /// The runtimes of the default engine, and for whom it is.
    pub fn runtimes(&self) -> Arc<RuntimeRegistry> {
        Arc::clone(&self.engines.default_engine().runtimes)
    }

    /// The engines of the platform.
    pub fn engines(&self) -> &Arc<Engines> {
        &self.engines
    }

    /// What manifests mean here beyond what they say.
    pub fn manifest_options(&self) -> &ParseOptions {
        &self.manifests
    }

    /// The tokens of the admin API, beside what its authenticator knows.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// The last changes that were asked for at the admin API, youngest first, up to `most`.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn audit(&self, most: usize) -> Result<Vec<AuditRecord>> {
        self.audit.list(&Principal::host(), None, most).await.map(|(records, _)| records)
    }

    /// Ends when the platform shuts down.
    /// Where copies of packages are kept, if a place is configured.
    pub(crate) fn package_copies(&self) -> Option<Arc<dyn BlobStore>> {
        self.pins.copies().cloned()
    }

    /// Keeps all packages that are there, until the guard goes.
    pub(crate) async fn pin_packages(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.pins.pinning().await
    }

    pub(crate) async fn stopping(&self) {
        self.lifecycle.stop.cancelled().await;
    }

    /// Reads the logs of instances back.
    ///
    /// # Errors
    /// `Unsupported` when the log sink of [`ControlConfig::logs`] only passes lines on.
    pub fn logs(&self) -> Result<&dyn LogQuery> {
        self.sinks.logs.log_query().ok_or_else(|| unreadable("logs", "log sink"))
    }

    /// Reads the autoscaler's decisions back.
    ///
    /// # Errors
    /// `Unsupported` when the sink of [`ControlConfig::decisions`] only passes decisions on.
    pub fn decisions(&self) -> Result<&dyn DecisionQuery> {
        self.sinks.decisions.decision_query().ok_or_else(|| unreadable("decisions", "decision sink"))
    }

    /// Reads back what was used.
    ///
    /// # Errors
    /// `Unsupported` when the sink of [`ControlConfig::meter`] only passes readings on.
    pub fn usage(&self) -> Result<&dyn UsageQuery> {
        self.sinks.meter.usage_query().ok_or_else(|| unreadable("usage", "meter sink"))
    }

    /// The last requests.
    ///
    /// # Errors
    /// `Unsupported` when [`ControlConfig::requests`] is `None`.
    pub fn requests(&self) -> Result<&Arc<RequestLog>> {
        self.requests.as_ref().ok_or_else(|| {
            let message = "this platform keeps no requests; build it with a console, or with `keep_requests`";
            Error::new(ErrorKind::Unsupported, "requests", message)
        })
    }

    /// Whether [`Control::recover`] is done and the platform is not shutting down.
    pub fn is_ready(&self) -> bool {
        self.lifecycle.is_ready()
    }

    async fn entries(&self, prefix: &str) -> Result<Vec<sas_core::Entry>> {
        let mut entries: Vec<sas_core::Entry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.key.clone());
            let page = self.store.list(prefix, after.as_deref(), PAGE).await?;
            let more = page.len() == PAGE;
            entries.extend(page);
            if !more {
                return Ok(entries);
            }
        }
    }

    /// A service.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn record(&self, namespace: &str, name: &str) -> Result<Arc<ServiceRecord>> {
        let path = format!("{namespace}/{name}");
        self.live(&path).and_then(|live| live.record()).ok_or_else(|| no_service(&path))
    }

    /// The version that a service is stored with: of the last change of what is wanted. `None` when there is none.
    pub fn version(&self, namespace: &str, name: &str) -> Option<Version> {
        let live = self.live(&format!("{namespace}/{name}"))?;
        let state = live.state.lock();
        state.record.is_some().then_some(state.version)
    }

    /// All services, by namespace and name.
    pub fn records(&self) -> Vec<Arc<ServiceRecord>> {
        self.services.records()
    }

    /// The services of a namespace, by name.
    pub(crate) fn records_of(&self, namespace: &str) -> Vec<Arc<ServiceRecord>> {
        self.services.page(Some(namespace), None, usize::MAX, |_| true)
    }

    /// The first `most` services that are wanted, by namespace and name, behind the one with the path `after`.
    pub(crate) fn page_of_records(
        &self,
        namespace: Option<&str>,
        after: Option<&str>,
        most: usize,
        wanted: impl Fn(&ServiceRecord) -> bool,
    ) -> Vec<Arc<ServiceRecord>> {
        self.services.page(namespace, after, most, wanted)
    }

    /// The key under which a revision takes traffic now; `None` when it takes none.
    pub fn revision_key(&self, namespace: &str, name: &str, revision: &str) -> Option<RevisionKey> {
        let live = self.live(&format!("{namespace}/{name}"))?;
        let state = live.state.lock();
        let found = state.observed.registrations.iter().filter(|r| r.revision == revision && !r.retiring);
        found.max_by_key(|registration| registration.routable).map(|registration| registration.key)
    }

    /// Ends housekeeping, finishes what is draining until `deadline`, and refuses further changes. The desired state
    /// stays. Idempotent.
    pub async fn shutdown(&self, deadline: Instant) {
        self.lifecycle.end(deadline).await;
        self.pins.remove_scratch().await;
    }

    pub(crate) fn open(&self) -> Result<()> {
        self.lifecycle.open()
    }

    pub(crate) fn live(&self, path: &str) -> Option<Arc<Live>> {
        self.services.get(path)
    }

    /// The turn to change a service.
    pub(crate) async fn change(&self, path: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = self.turns.take(path).await;
        if self.stale_after_write.contains(path)
            && let Err(error) = self.read_again(path).await
        {
            tracing::warn!(service = %path, error = %error.chain(), "can't be read; its last write may be done or not");
        }
        turn
    }

    /// Writes a record, if nobody else did since it was read.
    async fn save(&self, path: &str, record: ServiceRecord, new: bool) -> Result<Arc<ServiceRecord>> {
        // What people want may be written by any host.
        self.save_by(self.acts_for(path), path, record, new).await
    }

    /// The same; `owner`: only if this host acts for the service.
    async fn save_by(
        &self,
        owner: bool,
        path: &str,
        record: ServiceRecord,
        new: bool,
    ) -> Result<Arc<ServiceRecord>> {
        let (live, key) = (self.live(path), format!("{SERVICES}{path}"));
        let expected = match (&live, new) {
            (Some(live), false) => Some(live.state.lock().version),
            _ => self.damaged.version(&key),
        };
        precondition::check(path, expected)?;
        let value = record.encode()?;
        // Until it returns, also when nobody waits any more, nobody knows whether it was done.
        self.stale_after_write.add(path);
        let commit = Commit::new().guard(&key, expected).put(&key, value);
        let version = match owner {
            true => commit_as_owner(&*self.store, self.hosts.as_ref(), path, commit).await?,
            false => self.store.commit(commit).await?,
        };
        self.stale_after_write.remove(path);
        self.damaged.remove(&key);
        self.unreadable.remove(&key);
        self.pending_reconcile.add(path);
        let record = Arc::new(record);
        if self.followers.is_some() {
            let before = live.as_ref().and_then(|live| live.record());
            self.tell(crate::lifecycle::between(before.as_deref(), &record, self.clock.now()));
        }
        match live {
            Some(live) if !new => {
                let mut state = live.state.lock();
                state.version = version;
                state.record = Some(Arc::clone(&record));
            }
            _ => {
                self.services.insert(path, Live::new(ServiceRecord::clone(&record), version));
            }
        }
        Ok(record)
    }

    /// Tells what happened, to who follows it.
    pub(crate) fn tell(&self, events: impl IntoIterator<Item = LifecycleEvent>) {
        if let Some(followers) = &self.followers {
            events.into_iter().for_each(|event| followers.told(event));
        }
    }

    /// The tenant of a namespace, made when it is first seen.
    pub(crate) async fn tenant(&self, namespace: &str) -> Result<TenantKey> {
        if let Some(tenant) = self.tenants.get(namespace) {
            return Ok(tenant);
        }
        let _one = self.tenants.make().await;
        let key = format!("{TENANTS}{namespace}");
        let stored = self.store.get(&key).await?;
        let read = stored.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
        let tenant = match read {
            Some(id) => TenantKey(id),
            None if self.hosts.is_some() => self.number_tenant(namespace).await?,
            None => {
                let tenant = self.tenant_for(namespace);
                // What is there and can't be read is written over.
                let expected = stored.map(|entry| entry.version);
                self.store.put(&key, expected, tenant.0.to_string().into()).await?;
                tenant
            }
        };
        self.tenants.insert(namespace, tenant);
        self.limit_tenant(namespace);
        Ok(tenant)
    }

    /// The tenant that the services of a namespace have, or one that nobody has.
    fn tenant_for(&self, namespace: &str) -> TenantKey {
        let records = self.records();
        if let Some(record) = records.iter().find(|record| record.namespace == namespace) {
            return record.tenant;
        }
        let known = self.tenants.highest();
        let used = records.iter().map(|record| record.tenant.0).max();
        TenantKey(known.max(used).unwrap_or(0) + 1)
    }

    /// All services, and what runs of them.
    pub(crate) fn lives(&self) -> Vec<Arc<Live>> {
        self.services.lives()
    }

    /// The namespace of a tenant.
    /// The tenant of a namespace; `None`: nothing was deployed there yet.
    pub fn tenant_of(&self, namespace: &str) -> Option<TenantKey> {
        self.tenants.get(namespace)
    }

    pub(crate) fn namespace_of(&self, tenant: TenantKey) -> Option<String> {
        self.tenants.namespace_of(tenant)
    }

    /// Sets the gauges. It looks at every service, so it is done after a start and by housekeeping now and then.
    fn count(&self) {
        let revisions = self.records().iter().map(|record| record.revisions.len()).sum();
        self.metrics.count(self.services.len(), revisions);
        self.metrics.quotas(&self.quota_pressure());
    }

    /// An id for a request that the control plane makes.
    pub(crate) fn request_id(&self) -> RequestId {
        self.request_ids.next(self.clock.now())
    }
}

impl Live {
    fn new(record: ServiceRecord, version: Version) -> Self {
        Self {
            state: Mutex::new(LiveState {
                record: Some(Arc::new(record)),
                version,
                observed: Observed::default(),
                past: VecDeque::new(),
                artifacts: HashMap::new(),
                counted: Vec::new(),
                bounded: Vec::new(),
                told: Vec::new(),
                applied: 0,
                started: HashSet::new(),
            }),
            sizing: Mutex::new(()),
        }
    }

    pub(crate) fn record(&self) -> Option<Arc<ServiceRecord>> {
        self.state.lock().record.clone()
    }

    /// Says whether registrations are on their way out: routes lead to no such ones.
    fn retiring(&self, keys: impl IntoIterator<Item = RevisionKey>, retiring: bool) {
        let mut state = self.state.lock();
        for key in keys {
            for registration in state.observed.registrations.iter_mut().filter(|r| r.key == key) {
                registration.retiring = retiring;
            }
        }
    }

    /// Forgets revisions that the record has no more.
    fn forget(&self, gone: impl Fn(&str) -> bool) {
        let mut state = self.state.lock();
        state.artifacts.retain(|name, _| !gone(name));
        state.started.retain(|name| !gone(name));
        state.observed.blocked.retain(|name, _| !gone(name));
    }

    /// Notes that a registration is gone; the keys whose logs nobody will ask for any more.
    fn retired(&self, key: RevisionKey, started: bool) -> Vec<RevisionKey> {
        let mut state = self.state.lock();
        let at = state.observed.registrations.iter().position(|registration| registration.key == key);
        if let Some(at) = at {
            let registration = state.observed.registrations.remove(at);
            if started {
                state.started.insert(registration.revision.clone());
            }
            state.past.push_back((registration.revision, key));
        }
        let most = if state.record.is_some() { PAST_KEYS } else { 0 };
        let surplus = state.past.len().saturating_sub(most);
        state.past.drain(..surplus).map(|(_, key)| key).collect()
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Unexpected, "control", format!("a thread ended: {error}"))),
    }
}
