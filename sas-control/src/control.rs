//! The control plane: what is wanted is stored first, then done; what was not finished is done again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    path::PathBuf,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use sas_core::{
    Artifact, Clock, Deployed, Error, ErrorKind, Invoker, Pool, Recorder, RequestId, Result, RevisionKey,
    RevisionName, RevisionSpec, Router, Runtime, Source, SpecErrors, Store, SystemClock, TenantKey,
    TriggerSpec, TriggerStatus, Triggers, Version,
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    decisions::DecisionLog,
    engine::{Edition, Engine},
    logs::LogBuffer,
    manifest::{Manifest, ParseOptions, ServiceManifest, TrafficTarget, parse},
    meter::Meter,
    metrics::Metrics,
    package::{self, PackageStore},
    reconcile::{Command, Observed, Registration, Rules, reconcile, waits_for_time},
    record::{Field, RevisionRecord, RevisionState, Rolling, ServiceRecord, sha256},
};

/// Where services are in the store.
const SERVICES: &str = "service/";
/// Where triggers are in the store.
const TRIGGERS: &str = "triggers/";
/// Where tenants are in the store.
const TENANTS: &str = "tenant/";
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
    /// Where instances are.
    pub pool: Arc<dyn Pool>,
    /// Who routes.
    pub router: Arc<dyn Router>,
    /// Who calls, for test runs.
    pub invoker: Arc<dyn Invoker>,
    /// What can run code.
    pub runtimes: Vec<Arc<dyn Runtime>>,
    /// For whom the platform is.
    pub edition: Edition,
    /// Who runs triggers; without it, manifests of triggers are refused.
    pub triggers: Option<Arc<dyn Triggers>>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Services answer at `name.namespace.domain`.
    pub domain: String,
    /// Where packages are copied to when they are deployed, so that the platform comes back with them; `None`: a
    /// revision runs from where its package is, and is refused if that has changed.
    pub packages: Option<PathBuf>,
    /// What manifests mean beyond what they say.
    pub manifests: ParseOptions,
    /// How old revisions go; the domain in it is set from [`ControlConfig::domain`].
    pub rules: Rules,
    /// How long the requests of a revision that lost its traffic may take to end.
    pub drain_grace: Duration,
    /// Where instances log to.
    pub logs: Arc<LogBuffer>,
    /// Where the autoscaler's decisions go.
    pub decisions: Arc<DecisionLog>,
    /// What was used.
    pub meter: Arc<Meter>,
    /// Where metrics go.
    pub recorder: Recorder,
    /// Seed of the ids of test runs.
    pub seed: u64,
}

impl ControlConfig {
    /// A dedicated platform on the system's clock, at `localhost`, that keeps no packages.
    pub fn new(
        store: Arc<dyn Store>,
        pool: Arc<dyn Pool>,
        router: Arc<dyn Router>,
        invoker: Arc<dyn Invoker>,
        runtimes: Vec<Arc<dyn Runtime>>,
    ) -> Self {
        Self {
            store,
            pool,
            router,
            invoker,
            runtimes,
            edition: Edition::default(),
            triggers: None,
            clock: Arc::new(SystemClock),
            domain: "localhost".to_owned(),
            packages: None,
            manifests: ParseOptions::default(),
            rules: Rules::new("localhost"),
            drain_grace: Duration::from_secs(300),
            logs: Arc::default(),
            decisions: Arc::default(),
            meter: Arc::default(),
            recorder: Recorder::default(),
            seed: 0,
        }
    }
}

/// The control plane of one platform. Cheap to share; made by [`Control::new`].
#[derive(Debug)]
pub struct Control {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) pool: Arc<dyn Pool>,
    router: Arc<dyn Router>,
    pub(crate) invoker: Arc<dyn Invoker>,
    pub(crate) engine: Engine,
    triggers: Option<Arc<dyn Triggers>>,
    pub(crate) clock: Arc<dyn Clock>,
    packages: Option<PackageStore>,
    /// Where packages that came as bytes are, if no place for copies is configured. Removed by the shutdown.
    scratch: OnceLock<PackageStore>,
    manifests: ParseOptions,
    pub(crate) rules: Rules,
    drain_grace: Duration,
    pub(crate) logs: Arc<LogBuffer>,
    pub(crate) decisions: Arc<DecisionLog>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) metrics: Metrics,
    seed: u64,
    requests: AtomicU64,
    services: RwLock<BTreeMap<String, Arc<Live>>>,
    /// Services of which a write failed: it may have been done all the same, so they are read again first.
    unsure: Mutex<BTreeSet<String>>,
    /// Services with steps to be done, now or when time has passed: what housekeeping looks at.
    restless: Mutex<BTreeSet<String>>,
    /// One change of a service at a time.
    changing: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    tenants: Mutex<HashMap<String, TenantKey>>,
    /// One tenant is made at a time.
    new_tenant: tokio::sync::Mutex<()>,
    ready: AtomicBool,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A service and what runs of it.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) state: Mutex<LiveState>,
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
    /// A trigger runs.
    Trigger(TriggerSpec),
}

/// What came back after a start.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Recovery {
    /// Services that serve again.
    pub services: usize,
    /// Triggers that run again.
    pub triggers: usize,
    /// What did not come back, with the reason: `Service namespace/name` or `Trigger namespace/name`.
    pub failed: Vec<(String, Arc<Error>)>,
}

fn invalid(
    operation: &'static str,
    field: impl Into<String>,
    value: impl std::fmt::Display,
    problem: impl Into<String>,
) -> Error {
    let mut errors = SpecErrors::default();
    errors.push(field, value, problem);
    refused(operation, errors)
}

fn refused(operation: &'static str, errors: SpecErrors) -> Error {
    Error::new(ErrorKind::InvalidSpec, operation, errors.to_string()).with_source(errors)
}

pub(crate) fn no_service(path: &str) -> Error {
    Error::new(ErrorKind::NotFound, "service", format!("there is no service {path}"))
}

impl Control {
    /// A control plane with nothing in it yet; [`Control::recover`] brings back what the store holds. Must be called
    /// within a tokio runtime: housekeeping is a task of its own until [`Control::shutdown`].
    pub fn new(config: ControlConfig) -> Arc<Self> {
        let rules = Rules { domain: config.domain, ..config.rules };
        let control = Arc::new(Self {
            store: config.store,
            pool: config.pool,
            router: config.router,
            invoker: config.invoker,
            engine: Engine::new(config.edition, config.runtimes),
            triggers: config.triggers,
            clock: config.clock,
            packages: config.packages.map(PackageStore::new),
            scratch: OnceLock::new(),
            manifests: config.manifests,
            rules,
            drain_grace: config.drain_grace,
            logs: config.logs,
            decisions: config.decisions,
            meter: config.meter,
            metrics: Metrics::new(&config.recorder),
            seed: config.seed,
            requests: AtomicU64::new(0),
            services: RwLock::default(),
            unsure: Mutex::default(),
            restless: Mutex::default(),
            changing: Mutex::default(),
            tenants: Mutex::default(),
            new_tenant: tokio::sync::Mutex::default(),
            ready: AtomicBool::new(false),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        control.tasks.spawn(housekeeping(Arc::downgrade(&control), control.stop.clone()));
        control
    }

    /// The runtimes and the edition.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// What manifests mean here beyond what they say.
    pub fn manifest_options(&self) -> &ParseOptions {
        &self.manifests
    }

    /// Whether [`Control::recover`] is done and the platform is not shutting down.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire) && !self.stop.is_cancelled()
    }

    /// Brings back the services and triggers of the store: prepared, registered, routed. What fails is reported and
    /// does not hold up the rest. Afterwards [`Control::is_ready`].
    ///
    /// # Errors
    /// `Unavailable` when the store can't be read.
    pub async fn recover(self: &Arc<Self>) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        for entry in self.entries(TENANTS).await? {
            let id: u32 = serde_json::from_slice(&entry.value).map_err(|error| {
                Error::new(
                    ErrorKind::InvalidSpec,
                    "recover",
                    format!("{} is not a tenant: {error}", entry.key),
                )
            })?;
            self.tenants.lock().insert(entry.key[TENANTS.len()..].to_owned(), TenantKey(id));
        }
        let mut paths = Vec::new();
        for entry in self.entries(SERVICES).await? {
            match ServiceRecord::decode(&entry.key, &entry.value) {
                Ok(record) => {
                    paths.push(record.path());
                    self.services.write().insert(record.path(), Arc::new(Live::new(record, entry.version)));
                }
                Err(error) => {
                    let name = format!("Service {}", &entry.key[SERVICES.len()..]);
                    recovery.failed.push((name, Arc::new(error)));
                }
            }
        }
        if let Some(packages) = self.packages.clone() {
            let kept = self.package_digests();
            blocking(move || packages.sweep(|digest| kept.contains(digest))).await?;
        }
        let limit = Arc::new(tokio::sync::Semaphore::new(RECOVERIES));
        let mut settling = tokio::task::JoinSet::new();
        for path in paths {
            let (control, limit) = (Arc::clone(self), Arc::clone(&limit));
            settling.spawn(async move {
                let _permit = limit.acquire().await;
                let _changing = control.change(&path).await;
                let settled = control.settle(&path).await.and_then(|()| control.unblocked(&path));
                (path, settled)
            });
        }
        while let Some(joined) = settling.join_next().await {
            match joined {
                Ok((_, Ok(()))) => recovery.services += 1,
                Ok((path, Err(error))) => recovery.failed.push((format!("Service {path}"), Arc::new(error))),
                Err(error) => {
                    let error = Error::new(ErrorKind::Unexpected, "recover", error.to_string());
                    recovery.failed.push(("Service".to_owned(), Arc::new(error)));
                }
            }
        }
        for entry in self.entries(TRIGGERS).await? {
            match self.recover_trigger(&entry.value).await {
                Ok(()) => recovery.triggers += 1,
                Err(error) => {
                    let name = format!("Trigger {}", &entry.key[TRIGGERS.len()..]);
                    recovery.failed.push((name, Arc::new(error)));
                }
            }
        }
        recovery.failed.sort_by(|a, b| a.0.cmp(&b.0));
        self.count();
        self.ready.store(true, Ordering::Release);
        Ok(recovery)
    }

    /// What keeps a revision of the service from running, as an error.
    fn unblocked(&self, path: &str) -> Result<()> {
        let Some(live) = self.live(path) else { return Ok(()) };
        let state = live.state.lock();
        match state.observed.blocked.iter().next() {
            Some((revision, blocked)) => {
                let message = format!("{revision}: {}", blocked.message);
                Err(Error::new(ErrorKind::Unavailable, "recover", message))
            }
            None => Ok(()),
        }
    }

    async fn recover_trigger(&self, value: &[u8]) -> Result<()> {
        let spec: TriggerSpec = serde_json::from_slice(value).map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "recover", format!("not a trigger: {error}"))
        })?;
        self.trigger_host()?.apply(spec).await
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

    /// Reads manifests and applies each in turn.
    ///
    /// # Errors
    /// `InvalidSpec` with every mistake of every manifest, before anything is done; later the first error, after
    /// which the rest is not applied: `applied` tells what was.
    pub async fn apply(self: &Arc<Self>, text: &str, applied: &mut Vec<Applied>) -> Result<()> {
        let manifests = parse(text, &self.manifests).map_err(|errors| refused("manifest", errors))?;
        self.apply_all(manifests, applied).await
    }

    /// Applies manifests that were read already, each in turn.
    ///
    /// # Errors
    /// As [`Control::apply`].
    pub async fn apply_all(
        self: &Arc<Self>,
        manifests: Vec<Manifest>,
        applied: &mut Vec<Applied>,
    ) -> Result<()> {
        self.check_triggers(&manifests)?;
        for manifest in manifests {
            let done = match manifest {
                Manifest::Service(service) => Applied::Service(self.deploy(*service).await?),
                Manifest::Trigger(trigger) => Applied::Trigger(self.apply_trigger(*trigger).await?),
            };
            applied.push(done);
        }
        Ok(())
    }

    fn check_triggers(&self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            if let Manifest::Trigger(trigger) = manifest {
                self.trigger_host()?
                    .check(trigger)
                    .map_err(|errors| refused("manifest", trigger_fields(errors)))?;
            }
        }
        Ok(())
    }

    /// Deploys a service: stores what is wanted, prepares a new revision if the manifest describes one, and moves the
    /// traffic. When the revision can't be prepared the service keeps what it had, and the revision's condition says
    /// why.
    ///
    /// **Cancel safety:** what was stored is done all the same, at the latest by housekeeping.
    ///
    /// # Errors
    /// `InvalidSpec` with fields for what can never run, `Unsupported` for what this platform has not,
    /// `Conflict` when the revision's name is taken, `Exhausted` when the tenant has too many services, and whatever
    /// the runtime's `prepare` gives.
    pub async fn deploy(self: &Arc<Self>, manifest: ServiceManifest) -> Result<DeployOutcome> {
        let began = Instant::now();
        let deployed = self.deploy_inner(manifest).await;
        self.metrics.deployed(deployed.is_ok(), began.elapsed());
        self.count();
        deployed
    }

    async fn deploy_inner(self: &Arc<Self>, manifest: ServiceManifest) -> Result<DeployOutcome> {
        self.open()?;
        let path = format!("{}/{}", manifest.namespace, manifest.name);
        manifest.validate().map_err(|errors| refused("deploy", errors))?;
        let tenant = self.tenant(&manifest.namespace).await?;
        // The runtime first: an image where there are no containers is refused for that, not for its volumes.
        if let Err(mut error) = self.engine.runtime(&manifest.spec.runtime, tenant) {
            if !manifest.unsupported.is_empty() {
                // All at once: what else would be missing.
                let mut errors = fields_of(&error);
                errors.0.extend(manifest.unsupported.0);
                error.source = Some(Box::new(errors));
            }
            return Err(error);
        }
        if !manifest.unsupported.is_empty() {
            let message = format!("unsupported: {}", manifest.unsupported);
            return Err(
                Error::new(ErrorKind::Unsupported, "deploy", message).with_source(manifest.unsupported)
            );
        }
        let (spec, package) =
            self.pin(&manifest.spec).await.map_err(|error| at_annotation(error, &manifest))?;
        let digest = identity(&spec, package.as_deref())?;

        let changing = self.change(&path).await;
        let before = self.live(&path).and_then(|live| live.record());
        if before.is_none()
            && let Some(most) = self.engine.edition().services_per_tenant
            && tenant != TenantKey::default()
            && self.records().iter().filter(|record| record.tenant == tenant).count() >= most
        {
            let message =
                format!("namespace {} has {most} services, its quota; delete one first", manifest.namespace);
            return Err(Error::new(ErrorKind::Exhausted, "deploy", message));
        }
        let now = self.clock.now();
        let mut record = match &before {
            Some(before) => ServiceRecord::clone(before),
            None => ServiceRecord::new(&manifest.namespace, &manifest.name, tenant, now),
        };
        record.generation += 1;
        record.labels = manifest.labels;
        record.annotations = manifest.annotations;
        record.cluster_local = manifest.cluster_local;
        record.affinity = manifest.affinity;
        record.placeholder = manifest.placeholder;
        record.rollout = manifest.rollout;
        let same = record.latest_created().filter(|latest| {
            latest.digest == digest && manifest.revision.as_ref().is_none_or(|name| *name == latest.name)
        });
        let (revision, new_revision) = match same {
            Some(latest) => (latest.name.clone(), false),
            None => {
                let name = match manifest.revision {
                    Some(name) => match record.revision(&name) {
                        Some(taken) if taken.digest != digest => {
                            let problem = "names a revision that is there and differs; revisions never change: give another name, or none";
                            let field = "spec.template.metadata.name";
                            let mut error = invalid("deploy", field, &name, problem);
                            error.kind = ErrorKind::Conflict;
                            return Err(error);
                        }
                        _ => name,
                    },
                    None => {
                        let (name, next) = record.next_name();
                        record.next_number = next;
                        name
                    }
                };
                let known = record.revision(&name).is_some();
                if !known {
                    record.revisions.push(RevisionRecord {
                        name: name.clone(),
                        generation: record.generation,
                        created_at: now,
                        digest,
                        package,
                        artifact: None,
                        labels: manifest.template_labels,
                        annotations: manifest.template_annotations,
                        spec: Arc::new(spec),
                        state: RevisionState::Pending,
                        notes: Vec::new(),
                        retired_at: None,
                    });
                }
                (name, !known)
            }
        };
        // A revision that failed is tried again when it is asked for again.
        if let Some(failed) = record.revision_mut(&revision)
            && matches!(failed.state, RevisionState::Failed { .. })
        {
            failed.state = RevisionState::Pending;
        }
        record.traffic = manifest.traffic.unwrap_or_else(|| vec![TrafficTarget::latest()]);
        check_targets(&record, &record.traffic, "spec.traffic", Some(&revision))?;
        let record = self.save(&path, record, before.is_none()).await?;
        tracing::info!(service = %path, revision, new_revision, "deployed");

        self.settle(&path).await?;
        drop(changing);
        let record = self.live(&path).and_then(|live| live.record()).unwrap_or(record);
        if let Some(RevisionRecord { state: RevisionState::Failed { reason, message, fields }, .. }) =
            record.revision(&revision)
        {
            return Err(prepare_failed(reason, message, fields));
        }
        Ok(DeployOutcome { record, revision, created: before.is_none(), new_revision })
    }

    /// The spec with its package pinned, and the package's digest.
    async fn pin(&self, spec: &RevisionSpec) -> Result<(RevisionSpec, Option<String>)> {
        let mut spec = spec.clone();
        if let Source::Path(path) = &spec.source {
            let absolute = std::path::absolute(path).map_err(|error| {
                invalid("deploy", "sas.dev/package", path.display(), format!("is not a path: {error}"))
            })?;
            spec.source = Source::Path(absolute);
        }
        match (&spec.source, &self.packages) {
            (Source::Path(_) | Source::Bytes { .. }, Some(packages)) => {
                let (packages, source) = (packages.clone(), spec.source.clone());
                let pinned = blocking(move || packages.pin(&source)).await?;
                spec.source = pinned.source;
                Ok((spec, Some(pinned.digest)))
            }
            (Source::Bytes { .. }, None) => {
                let (packages, source) =
                    (self.scratch.get_or_init(PackageStore::scratch).clone(), spec.source.clone());
                let pinned = blocking(move || packages.pin(&source)).await?;
                spec.source = pinned.source;
                Ok((spec, Some(pinned.digest)))
            }
            (Source::Path(_), None) => {
                let source = spec.source.clone();
                let digest = blocking(move || package::digest(&source)).await?;
                Ok((spec, digest))
            }
            _ => Ok((spec, None)),
        }
    }

    /// Changes where the traffic of a service goes.
    ///
    /// # Errors
    /// `NotFound`; `InvalidSpec` for targets that name no ready revision of the service or do not add up to 100.
    pub async fn set_traffic(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        targets: Vec<TrafficTarget>,
    ) -> Result<Arc<ServiceRecord>> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let before = self.record(namespace, name)?;
        let sum: u32 = targets.iter().map(|target| target.percent).sum();
        if sum != 100 {
            return Err(invalid("traffic", "traffic", format!("{sum} %"), "the percents must add up to 100"));
        }
        check_targets(&before, &targets, "traffic", None)?;
        let mut record = ServiceRecord::clone(&before);
        record.generation += 1;
        record.traffic = targets;
        // Who sets the traffic by hand wants it now.
        record.rolling = None;
        let record = self.save(&path, record, false).await?;
        self.settle(&path).await?;
        Ok(self.live(&path).and_then(|live| live.record()).unwrap_or(record))
    }

    /// Sends all traffic to an earlier revision: the one that is named, or the one before the latest that is ready.
    ///
    /// # Errors
    /// `NotFound` when there is no such revision, or none to go back to; otherwise as [`Control::set_traffic`].
    pub async fn roll_back(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        to: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        let record = self.record(namespace, name)?;
        let target = match to {
            Some(to) => record.revision(to),
            None => {
                let now = self.clock.now();
                let shares = record.shares(now);
                let current =
                    shares.iter().max_by_key(|share| share.percent).map(|share| share.revision.as_str());
                let at = record.revisions.iter().position(|r| Some(r.name.as_str()) == current);
                let older = record.revisions.iter().take(at.unwrap_or(record.revisions.len()));
                older.rev().find(|revision| revision.state == RevisionState::Ready)
            }
        };
        let Some(target) = target else {
            let message = match to {
                Some(to) => format!("{namespace}/{name} has no revision {to}"),
                None => format!("{namespace}/{name} has no earlier revision that is ready"),
            };
            return Err(Error::new(ErrorKind::NotFound, "roll back", message));
        };
        let tags = record.traffic.iter().filter(|target| target.tag.is_some()).cloned().map(|mut tagged| {
            tagged.percent = 0;
            tagged
        });
        let targets =
            std::iter::once(TrafficTarget::revision(target.name.clone(), 100)).chain(tags).collect();
        self.set_traffic(namespace, name, targets).await
    }

    /// Deletes a service with all its revisions. Requests that it has are finished in the background.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when another control plane changed it; `Unavailable` when the store fails.
    pub async fn delete(self: &Arc<Self>, namespace: &str, name: &str) -> Result<()> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let live = self.live(&path).ok_or_else(|| no_service(&path))?;
        let (record, version) = {
            let state = live.state.lock();
            (state.record.clone().ok_or_else(|| no_service(&path))?, state.version)
        };
        self.unsure.lock().insert(path.clone());
        self.store.delete(&format!("{SERVICES}{path}"), version).await?;
        self.unsure.lock().remove(&path);
        live.state.lock().record = None;
        tracing::info!(service = %path, "deleted");
        self.settle(&path).await?;
        self.services.write().remove(&path);
        let packages = record.revisions.iter().filter_map(|revision| revision.package.clone()).collect();
        self.drop_packages(packages).await;
        self.count();
        Ok(())
    }

    /// A service.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn record(&self, namespace: &str, name: &str) -> Result<Arc<ServiceRecord>> {
        let path = format!("{namespace}/{name}");
        self.live(&path).and_then(|live| live.record()).ok_or_else(|| no_service(&path))
    }

    /// All services, by namespace and name.
    pub fn records(&self) -> Vec<Arc<ServiceRecord>> {
        self.services.read().values().filter_map(|live| live.record()).collect()
    }

    /// The key under which a revision takes traffic now; `None` when it takes none.
    pub fn revision_key(&self, namespace: &str, name: &str, revision: &str) -> Option<RevisionKey> {
        let live = self.live(&format!("{namespace}/{name}"))?;
        let state = live.state.lock();
        let found = state.observed.registrations.iter().filter(|r| r.revision == revision && !r.retiring);
        found.max_by_key(|registration| registration.routable).map(|registration| registration.key)
    }

    /// Declares a trigger and runs it.
    ///
    /// # Errors
    /// `InvalidSpec` with fields; `Unsupported` when the platform runs no triggers.
    pub async fn apply_trigger(&self, mut spec: TriggerSpec) -> Result<TriggerSpec> {
        self.open()?;
        let host = self.trigger_host()?;
        let namespace = spec.target.split('/').next().unwrap_or_default();
        spec.tenant = self.tenant(namespace).await?;
        host.check(&spec).map_err(|errors| refused("trigger", trigger_fields(errors)))?;
        let key = format!("{TRIGGERS}{}", spec.name);
        let value = serde_json::to_vec(&spec).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "trigger", format!("{} can't be written: {error}", spec.name))
        })?;
        let expected = self.store.get(&key).await?.map(|entry| entry.version);
        self.store.put(&key, expected, value.into()).await?;
        host.apply(spec.clone()).await?;
        Ok(spec)
    }

    /// Stops a trigger and forgets it.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn delete_trigger(&self, namespace: &str, name: &str) -> Result<()> {
        self.open()?;
        let name = format!("{namespace}/{name}");
        let key = format!("{TRIGGERS}{name}");
        let Some(entry) = self.store.get(&key).await? else {
            return Err(Error::new(ErrorKind::NotFound, "trigger", format!("there is no trigger {name}")));
        };
        self.store.delete(&key, entry.version).await?;
        match &self.triggers {
            Some(triggers) => triggers.remove(&name).await,
            None => Ok(()),
        }
    }

    /// Events of a trigger that could not be delivered, oldest first, as their deliveries wrote them.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn dead_letters(
        &self,
        namespace: &str,
        name: &str,
        most: usize,
    ) -> Result<Vec<serde_json::Value>> {
        let entries = self.store.list(&format!("{DEAD_LETTERS}{namespace}/{name}/"), None, most).await?;
        let letters = entries.iter().map(|entry| {
            serde_json::from_slice(&entry.value).map_err(|error| {
                Error::new(
                    ErrorKind::Unexpected,
                    "dead letters",
                    format!("{} is not one: {error}", entry.key),
                )
            })
        });
        letters.collect()
    }

    /// Forgets them. How many there were.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn discard_dead_letters(&self, namespace: &str, name: &str) -> Result<usize> {
        self.open()?;
        let entries = self.entries(&format!("{DEAD_LETTERS}{namespace}/{name}/")).await?;
        for entry in &entries {
            self.store.delete(&entry.key, entry.version).await?;
        }
        Ok(entries.len())
    }

    /// All triggers, and how they are doing.
    pub fn trigger_status(&self) -> Vec<TriggerStatus> {
        self.triggers.as_ref().map_or_else(Vec::new, |triggers| triggers.status())
    }

    fn trigger_host(&self) -> Result<&Arc<dyn Triggers>> {
        self.triggers.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "trigger", "this platform was composed without triggers")
        })
    }

    /// Ends housekeeping, finishes what is draining until `deadline`, and refuses further changes. The desired state
    /// stays. Idempotent.
    pub async fn shutdown(&self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout_at(deadline, self.tasks.wait()).await;
        if let Some(scratch) = self.scratch.get().cloned()
            && let Err(error) = blocking(move || scratch.remove_all()).await
        {
            tracing::warn!(error = %error.chain(), "packages that came as bytes could not be removed");
        }
    }

    fn open(&self) -> Result<()> {
        if self.stop.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "control", "the platform is shutting down"));
        }
        Ok(())
    }

    pub(crate) fn live(&self, path: &str) -> Option<Arc<Live>> {
        self.services.read().get(path).cloned()
    }

    /// The turn to change a service.
    pub(crate) async fn change(&self, path: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut changing = self.changing.lock();
            if changing.len() > 1024 {
                changing.retain(|_, turn| turn.strong_count() > 0);
            }
            match changing.get(path).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(tokio::sync::Mutex::new(()));
                    changing.insert(path.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        let turn = turn.lock_owned().await;
        if self.unsure.lock().contains(path)
            && let Err(error) = self.read_again(path).await
        {
            tracing::warn!(service = %path, error = %error.chain(), "can't be read; its last write may be done or not");
        }
        turn
    }

    /// Takes over what the store has of a service after a write of which nobody knows whether it was done. To be
    /// called in the service's turn.
    async fn read_again(&self, path: &str) -> Result<()> {
        let key = format!("{SERVICES}{path}");
        match self.store.get(&key).await? {
            Some(entry) => {
                let record = ServiceRecord::decode(&entry.key, &entry.value)?;
                match self.live(path) {
                    Some(live) => {
                        let mut state = live.state.lock();
                        state.version = entry.version;
                        state.record = Some(Arc::new(record));
                    }
                    None => {
                        let live = Arc::new(Live::new(record, entry.version));
                        self.services.write().insert(path.to_owned(), live);
                    }
                }
            }
            None => {
                if let Some(live) = self.live(path) {
                    live.state.lock().record = None;
                }
            }
        }
        self.unsure.lock().remove(path);
        Ok(())
    }

    /// Makes housekeeping look at a service.
    pub(crate) fn keep_an_eye_on(&self, path: &str) {
        self.restless.lock().insert(path.to_owned());
    }

    /// Finishes what was left half done by writes that failed.
    async fn mend(self: &Arc<Self>) {
        let unsure: Vec<String> = self.unsure.lock().iter().cloned().collect();
        for path in unsure {
            let _changing = self.change(&path).await;
            if self.unsure.lock().contains(&path) {
                // The store still fails; the next round may find it well.
                continue;
            }
            if let Err(error) = self.settle(&path).await {
                tracing::warn!(service = %path, error = %error.chain(), "not settled after a failed write");
            }
            if self.live(&path).is_some_and(|live| live.record().is_none()) {
                self.services.write().remove(&path);
            }
        }
    }

    /// Writes a record, if nobody else did since it was read.
    async fn save(&self, path: &str, record: ServiceRecord, new: bool) -> Result<Arc<ServiceRecord>> {
        let live = self.live(path);
        let expected = match (&live, new) {
            (Some(live), false) => Some(live.state.lock().version),
            _ => None,
        };
        let value = record.encode()?;
        // Until it returns, also when nobody waits any more, nobody knows whether it was done.
        self.unsure.lock().insert(path.to_owned());
        let version = self.store.put(&format!("{SERVICES}{path}"), expected, value).await?;
        self.unsure.lock().remove(path);
        self.restless.lock().insert(path.to_owned());
        let record = Arc::new(record);
        match live {
            Some(live) if !new => {
                let mut state = live.state.lock();
                state.version = version;
                state.record = Some(Arc::clone(&record));
            }
            _ => {
                let live = Live::new(ServiceRecord::clone(&record), version);
                self.services.write().insert(path.to_owned(), Arc::new(live));
            }
        }
        Ok(record)
    }

    /// The tenant of a namespace, made when it is first seen.
    pub(crate) async fn tenant(&self, namespace: &str) -> Result<TenantKey> {
        if let Some(tenant) = self.tenants.lock().get(namespace) {
            return Ok(*tenant);
        }
        let _one = self.new_tenant.lock().await;
        let key = format!("{TENANTS}{namespace}");
        let stored = self.store.get(&key).await?;
        let tenant = match stored.and_then(|entry| serde_json::from_slice(&entry.value).ok()) {
            Some(id) => TenantKey(id),
            None => {
                let highest = self.tenants.lock().values().map(|tenant| tenant.0).max().unwrap_or(0);
                let tenant = TenantKey(highest + 1);
                self.store.put(&key, None, tenant.0.to_string().into()).await?;
                tenant
            }
        };
        self.tenants.lock().insert(namespace.to_owned(), tenant);
        Ok(tenant)
    }

    /// The namespace of a tenant.
    pub(crate) fn namespace_of(&self, tenant: TenantKey) -> Option<String> {
        self.tenants.lock().iter().find(|(_, key)| **key == tenant).map(|(namespace, _)| namespace.clone())
    }

    /// Does what [`reconcile`] asks for until it asks for nothing. The caller has the turn.
    pub(crate) async fn settle(self: &Arc<Self>, path: &str) -> Result<()> {
        self.restless.lock().insert(path.to_owned());
        for _ in 0..ROUNDS {
            let Some(live) = self.live(path) else { return Ok(()) };
            let (record, commands) = {
                let state = live.state.lock();
                let record = state.record.clone();
                let commands = reconcile(record.as_deref(), &state.observed, self.clock.now(), &self.rules);
                (record, commands)
            };
            if commands.is_empty() {
                let state = live.state.lock();
                if !waits_for_time(state.record.as_deref(), &state.observed, &self.rules) {
                    self.restless.lock().remove(path);
                }
                return Ok(());
            }
            for command in commands {
                self.execute(path, &live, record.as_deref(), command).await?;
            }
        }
        Err(Error::new(
            ErrorKind::Unexpected,
            "reconcile",
            format!("{path} does not settle in {ROUNDS} rounds"),
        ))
    }

    async fn execute(
        self: &Arc<Self>,
        path: &str,
        live: &Arc<Live>,
        record: Option<&ServiceRecord>,
        command: Command,
    ) -> Result<()> {
        match command {
            Command::Start { revision } => {
                let Some(record) = record else { return Ok(()) };
                let was_ready = record.revision(&revision).is_some_and(|r| r.state == RevisionState::Ready);
                match self.start(live, record, &revision, true).await {
                    Ok((_, artifact)) => {
                        live.state.lock().observed.blocked.remove(&revision);
                        self.prepared(path, live, &revision, Ok(&artifact)).await
                    }
                    // It ran before: what hinders it now may pass, so it is tried again.
                    Err(error) if was_ready => {
                        tracing::warn!(service = %path, revision, error = %error.chain(), "starting failed");
                        let now = self.clock.now();
                        let mut state = live.state.lock();
                        let blocked = state.observed.blocked.entry(revision).or_default();
                        blocked.fail(now, error.message);
                        Ok(())
                    }
                    Err(error) => self.prepared(path, live, &revision, Err(&error)).await,
                }
            }
            Command::Prepare { revision } => {
                let Some(record) = record else { return Ok(()) };
                let prepared = self.artifact(live, record, &revision).await;
                self.prepared(path, live, &revision, prepared.as_ref()).await
            }
            Command::Route(changes) => {
                self.router.apply(changes.clone())?;
                let mut state = live.state.lock();
                for change in changes {
                    match change {
                        sas_core::RouteChange::Set { host, rules } => {
                            state.observed.hosts.insert(host, rules);
                        }
                        sas_core::RouteChange::Remove { host } => {
                            state.observed.hosts.remove(&host);
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Command::Retire { key } => {
                self.retire(live, key);
                Ok(())
            }
            Command::MarkRetired { revision, retired } => {
                let now = self.clock.now();
                self.amend(path, live, |record| {
                    if let Some(revision) = record.revision_mut(&revision) {
                        revision.retired_at = retired.then_some(now);
                    }
                })
                .await
            }
            Command::Collect { revisions } => {
                let mut packages = Vec::new();
                self.amend(path, live, |record| {
                    record.revisions.retain(|revision| {
                        let goes = revisions.contains(&revision.name);
                        if goes {
                            packages.extend(revision.package.clone());
                        }
                        !goes
                    });
                })
                .await?;
                {
                    let mut state = live.state.lock();
                    state.artifacts.retain(|name, _| !revisions.contains(name));
                }
                self.drop_packages(packages).await;
                Ok(())
            }
            Command::FinishRollout => self.amend(path, live, |record| record.rolling = None).await,
        }
    }

    /// Changes the record without a new generation.
    async fn amend(&self, path: &str, live: &Live, change: impl FnOnce(&mut ServiceRecord)) -> Result<()> {
        let Some(record) = live.record() else { return Ok(()) };
        let mut record = ServiceRecord::clone(&record);
        change(&mut record);
        self.save(path, record, false).await.map(|_| ())
    }

    /// Notes how preparing went, and starts the roll-out of a revision that got ready.
    async fn prepared(
        &self,
        path: &str,
        live: &Live,
        revision: &str,
        result: std::result::Result<&Artifact, &Error>,
    ) -> Result<()> {
        let now = self.clock.now();
        self.amend(path, live, |record| {
            let before = record.latest_ready().map(|revision| revision.name.clone());
            let over = record.rollout;
            let Some(changed) = record.revision_mut(revision) else { return };
            let was_pending = changed.state == RevisionState::Pending;
            match result {
                Ok(artifact) => {
                    changed.state = RevisionState::Ready;
                    let digest = &artifact.info().digest;
                    changed.artifact = (!digest.is_empty()).then(|| digest.clone());
                    changed.notes.clone_from(&artifact.info().notes);
                }
                Err(error) => {
                    tracing::warn!(service = %path, revision, error = %error.chain(), "preparing failed");
                    let fields = fields_of(error);
                    changed.state = RevisionState::Failed {
                        reason: error.kind.as_str().to_owned(),
                        message: error.message.clone(),
                        fields: fields.0.iter().map(Field::from).collect(),
                    };
                }
            }
            let after = record.latest_ready().map(|revision| revision.name.clone());
            if was_pending
                && result.is_ok()
                && !over.is_zero()
                && let (Some(from), Some(to)) = (before, after)
                && from != to
            {
                record.rolling = Some(Rolling { from, to, since: now, over });
            }
        })
        .await
    }

    /// What preparing the revision made; from before, if it is still there.
    async fn artifact(&self, live: &Live, record: &ServiceRecord, revision: &str) -> Result<Artifact> {
        let found = found(record, revision)?;
        let runtime = self.engine.runtime(&found.spec.runtime, record.tenant)?;
        if let Some(artifact) = live.state.lock().artifacts.get(revision).cloned() {
            return Ok(artifact);
        }
        self.unchanged(found).await?;
        let began = Instant::now();
        let artifact = runtime.prepare(&found.spec).await?;
        self.metrics.prepared(began.elapsed());
        live.state.lock().artifacts.insert(revision.to_owned(), artifact.clone());
        Ok(artifact)
    }

    /// Prepares and registers a revision, to take traffic or for test runs only.
    pub(crate) async fn start(
        &self,
        live: &Live,
        record: &ServiceRecord,
        revision: &str,
        routable: bool,
    ) -> Result<(RevisionKey, Artifact)> {
        let found = found(record, revision)?;
        let runtime = self.engine.runtime(&found.spec.runtime, record.tenant)?;
        let artifact = self.artifact(live, record, revision).await?;
        let spec = if routable || found.spec.scaling.min == 0 {
            Arc::clone(&found.spec)
        } else {
            // A revision without traffic has no minimum, as Knative's unreachable ones.
            let mut spec = RevisionSpec::clone(&found.spec);
            spec.scaling.min = 0;
            Arc::new(spec)
        };
        let key = self.pool.register(Arc::new(Deployed {
            runtime: Arc::clone(runtime),
            artifact: artifact.clone(),
            spec,
            name: RevisionName::new(&record.namespace, &record.name, revision),
            tenant: record.tenant,
        }))?;
        let registration = Registration::new(revision, key, routable, self.clock.now());
        live.state.lock().observed.registrations.push(registration);
        Ok((key, artifact))
    }

    /// Without copies of packages, a revision is refused when its package is no longer what it was.
    async fn unchanged(&self, revision: &RevisionRecord) -> Result<()> {
        let (None, Some(recorded)) = (&self.packages, &revision.package) else { return Ok(()) };
        let source = revision.spec.source.clone();
        let digest = blocking(move || package::digest(&source)).await?;
        if digest.as_ref() == Some(recorded) {
            return Ok(());
        }
        let problem = format!("changed since {} was deployed; deploy it again", revision.name);
        Err(invalid("prepare", "sas.dev/package", digest.unwrap_or_default(), problem))
    }

    /// Drains a registration in the background, then unregisters it.
    fn retire(self: &Arc<Self>, live: &Arc<Live>, key: RevisionKey) {
        {
            let mut state = live.state.lock();
            let Some(registration) = state.observed.registrations.iter_mut().find(|r| r.key == key) else {
                return;
            };
            registration.retiring = true;
        }
        let (control, live) = (Arc::clone(self), Arc::clone(live));
        self.tasks.spawn(async move {
            let deadline = Instant::now() + control.drain_grace;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                control.pool.drain(key, left).await;
                // A request that was routed before the routes changed may have come in since.
                let busy = control.pool.status(key).is_some_and(|status| {
                    status.in_flight + status.queued + status.ready + status.starting > 0
                });
                if !busy || left.is_zero() || control.stop.is_cancelled() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            control.pool.unregister(key);
            let forgotten = live.retired(key);
            for key in forgotten {
                control.logs.forget(key);
                control.decisions.forget(key);
                control.meter.forget(key);
            }
        });
    }

    /// Removes copies of packages that no revision needs any more.
    async fn drop_packages(&self, digests: Vec<String>) {
        let Some(packages) = self.packages.clone() else { return };
        let kept = self.package_digests();
        let unneeded: Vec<String> = digests.into_iter().filter(|digest| !kept.contains(digest)).collect();
        if unneeded.is_empty() {
            return;
        }
        let removed = blocking(move || unneeded.iter().try_for_each(|digest| packages.remove(digest))).await;
        if let Err(error) = removed {
            tracing::warn!(error = %error.chain(), "a package that nobody needs could not be removed");
        }
    }

    fn package_digests(&self) -> std::collections::HashSet<String> {
        self.records()
            .iter()
            .flat_map(|record| record.revisions.iter().filter_map(|revision| revision.package.clone()))
            .collect()
    }

    fn count(&self) {
        let services = self.services.read();
        let revisions = services.values().filter_map(|live| live.record()).map(|r| r.revisions.len()).sum();
        self.metrics.count(services.len(), revisions);
    }

    /// An id for a request that the control plane makes.
    pub(crate) fn request_id(&self) -> RequestId {
        let count = self.requests.fetch_add(1, Ordering::Relaxed);
        let high = split_mix(self.seed ^ split_mix(self.clock.now().0.cast_unsigned()));
        RequestId(u128::from(high) << 64 | u128::from(split_mix(high ^ count)))
    }

    /// What is due without anybody asking: roll-outs, old revisions, unused test registrations, and what a cancelled
    /// change left.
    async fn tidy(self: &Arc<Self>) {
        let now = self.clock.now();
        let mut due: Vec<String> = self.restless.lock().iter().cloned().collect();
        due.retain(|path| match self.live(path) {
            Some(live) => {
                let state = live.state.lock();
                !reconcile(state.record.as_deref(), &state.observed, now, &self.rules).is_empty()
            }
            None => {
                self.restless.lock().remove(path);
                false
            }
        });
        for path in due {
            if self.stop.is_cancelled() {
                return;
            }
            let _changing = self.change(&path).await;
            if let Err(error) = self.settle(&path).await {
                tracing::warn!(service = %path, error = %error.chain(), "reconciling failed; it is tried again");
            }
        }
    }
}

async fn housekeeping(control: Weak<Control>, stop: CancellationToken) {
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
        let Some(control) = control.upgrade() else { return };
        control.mend().await;
        control.tidy().await;
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
            }),
        }
    }

    pub(crate) fn record(&self) -> Option<Arc<ServiceRecord>> {
        self.state.lock().record.clone()
    }

    /// Notes that a registration is gone; the keys whose logs nobody will ask for any more.
    fn retired(&self, key: RevisionKey) -> Vec<RevisionKey> {
        let mut state = self.state.lock();
        let at = state.observed.registrations.iter().position(|registration| registration.key == key);
        if let Some(at) = at {
            let registration = state.observed.registrations.remove(at);
            state.past.push_back((registration.revision, key));
        }
        let most = if state.record.is_some() { PAST_KEYS } else { 0 };
        let surplus = state.past.len().saturating_sub(most);
        state.past.drain(..surplus).map(|(_, key)| key).collect()
    }
}

fn found<'r>(record: &'r ServiceRecord, revision: &str) -> Result<&'r RevisionRecord> {
    record.revision(revision).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "revision", format!("{} has no revision {revision}", record.path()))
    })
}

/// Every target names a ready revision of the service, or the one that is being deployed.
fn check_targets(
    record: &ServiceRecord,
    targets: &[TrafficTarget],
    field: &str,
    coming: Option<&str>,
) -> Result<()> {
    let mut errors = SpecErrors::default();
    for (at, target) in targets.iter().enumerate() {
        let Some(name) = &target.revision_name else { continue };
        let field = format!("{field}[{at}].revisionName");
        match record.revision(name).map(|revision| &revision.state) {
            Some(RevisionState::Ready) => {}
            Some(_) if coming == Some(name) => {}
            Some(RevisionState::Pending) => errors.push(field, name, "is not ready yet"),
            Some(RevisionState::Failed { message, .. }) => {
                errors.push(field, name, format!("can't take traffic, it failed: {message}"));
            }
            None => {
                let known: Vec<&str> =
                    record.revisions.iter().rev().take(10).map(|r| r.name.as_str()).collect();
                errors.push(
                    field,
                    name,
                    format!("is no revision of this service; there are: {}", known.join(", ")),
                );
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(refused("traffic", errors)) }
}

/// What makes two revisions the same: spec and content, wherever the content lies.
fn identity(spec: &RevisionSpec, package: Option<&str>) -> Result<String> {
    let mut spec = spec.clone();
    if package.is_some() {
        // The copy's file name is part of the package's digest.
        spec.source = Source::Path(PathBuf::new());
    }
    let text = serde_json::to_vec(&spec).map_err(|error| {
        Error::new(ErrorKind::InvalidSpec, "deploy", format!("the spec can't be written: {error}"))
            .with_source(error)
    })?;
    Ok(sha256(&[&text, package.unwrap_or_default().as_bytes()]))
}

/// The fields that an error carries.
fn fields_of(error: &Error) -> SpecErrors {
    let source = std::error::Error::source(error);
    source.and_then(|source| source.downcast_ref::<SpecErrors>()).cloned().unwrap_or_default()
}

/// An error about the package, at the annotation that names it.
fn at_annotation(error: Error, manifest: &ServiceManifest) -> Error {
    const PACKAGE: &str = "sas.dev/package";
    let place = if manifest.template_annotations.contains_key(PACKAGE) {
        "spec.template.metadata.annotations"
    } else if manifest.annotations.contains_key(PACKAGE) {
        "metadata.annotations"
    } else {
        return error;
    };
    let mut errors = fields_of(&error);
    if errors.is_empty() {
        return error;
    }
    for error in &mut errors.0 {
        if error.field == PACKAGE {
            error.field = format!("{place}[{PACKAGE}]");
        }
    }
    let mut moved = Error::new(error.kind, error.operation, errors.to_string());
    moved.source = Some(Box::new(errors));
    moved
}

fn prepare_failed(reason: &str, message: &str, fields: &[Field]) -> Error {
    const KINDS: [ErrorKind; 9] = [
        ErrorKind::InvalidSpec,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Unsupported,
        ErrorKind::Unavailable,
        ErrorKind::Exhausted,
        ErrorKind::Timeout,
        ErrorKind::Crashed,
        ErrorKind::Unexpected,
    ];
    let kind = KINDS.into_iter().find(|kind| kind.as_str() == reason).unwrap_or(ErrorKind::Unexpected);
    let error = Error::new(kind, "prepare", message);
    if fields.is_empty() {
        return error;
    }
    let mut errors = SpecErrors::default();
    for field in fields {
        errors.push(&field.field, &field.value, &field.problem);
    }
    error.with_source(errors)
}

/// The fields of a trigger as its manifest has them.
fn trigger_fields(errors: SpecErrors) -> SpecErrors {
    let mut renamed = SpecErrors::default();
    for error in errors.0 {
        let field = match error.field.strip_prefix("options.") {
            Some(option @ ("schedule" | "timezone")) => format!("spec.{option}"),
            Some(option) => format!("metadata.annotations[sas.dev/{option}]"),
            None => format!("spec.{}", error.field),
        };
        renamed.push(field, error.value, error.problem);
    }
    renamed
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(ErrorKind::Unexpected, "control", format!("a thread ended: {error}"))),
    }
}

/// Sebastiano Vigna's SplitMix64.
fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
