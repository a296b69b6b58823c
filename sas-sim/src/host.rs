//! One life of a host: a platform of the facade, with simulated parts.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use parking_lot::Mutex;
use sas::{BuildError, BuildPart, Machine, Platform, Preset};
use sas_autoscale::{BacklogSpec, Driver, Options, ScheduleWindow};
use sas_control::{Control, Meter, MeterConfig, Recovery};
use sas_core::{
    EnvValue, KeepAlive, KeepAlivePolicy, Pool, Probe, ProbeAction, Quotas as _, RevisionKey, RevisionSpec,
    RolloutPlan, Source, Store, TenantKey, Timestamp,
};
use sas_knative::manifest::ServiceManifest;
use sas_pool::{
    InstancePool,
    config::IdleRule,
    keep_alive::{Hazard, HazardConfig},
};
use sas_router::{Admission, AdmissionConfig, Gateway};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Plant,
    books::Books,
    clock::SimClock,
    draw::Draw,
    history::History,
    plan::Special,
    queue::{self, QueueSource, SimQueue},
    runtime::{BAD, LIMIT, SimRuntime},
    store::SimStore,
    watch::{HostStore, Life, WatchedDecisions, WatchedInvoker, WatchedMeter, WatchedPool},
};

/// What every simulated host has: nothing of the machine that the simulator runs on shows in a history.
const MACHINE: Machine = Machine::new(2).with_memory(8 << 30);

/// How long an instance may take to end after it was asked to.
pub(crate) const STOP_GRACE: Duration = Duration::from_secs(5);
/// The liveness probe of every revision.
pub(crate) const PROBE_PERIOD: Duration = Duration::from_secs(2);
/// How long one answer may take.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);
/// How far the keep-alive policy of the preset `Default` looks ahead.
pub(crate) const HORIZON_MINUTES: u32 = 15;
/// Failures in a row.
pub(crate) const PROBE_FAILURES: u32 = 2;

/// Everything of one host life.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) life: Arc<Life>,
    /// Whether it keeps instances warm, and starts them ahead of calls, as it pleases.
    pub(crate) ahead: bool,
    pub(crate) runtime: Arc<SimRuntime>,
    admission: Arc<Admission>,
    platform: Platform,
    meter: Arc<Meter>,
    /// Writes what the meter reads; cancelled at the end.
    writing: (CancellationToken, Mutex<Option<JoinHandle<()>>>),
    /// Cancelled when the host is killed.
    pub(crate) lost: CancellationToken,
}

impl Host {
    /// Builds a platform on `store`, which brings back what is in it.
    pub(crate) async fn boot(
        history: &Arc<History>,
        store: &Arc<SimStore>,
        clock: &Arc<SimClock>,
        (queue, books): (&Arc<SimQueue>, &Arc<Books>),
        draw: Draw,
        (preset, plant): (Preset, Option<Plant>),
        epoch: u64,
    ) -> Result<Arc<Self>, BuildError> {
        let life = Life::new(Arc::clone(history), Arc::clone(books), epoch, plant);
        let inner: Arc<dyn Store> = Arc::new(HostStore { inner: Arc::clone(store), life: Arc::clone(&life) });
        let mut metering = MeterConfig::default();
        (metering.store, metering.clock) = (Arc::clone(&inner), Arc::clone(clock) as _);
        let meter = Arc::new(Meter::new(metering));
        let open = Books::is_open(store).await;
        meter.begin().await.map_err(|error| BuildError::Part { part: BuildPart::Usage, error })?;
        books.audit(store, open).await;
        let ahead = preset == Preset::Default;
        let runtime = Arc::new(SimRuntime::new(
            Arc::clone(history),
            Arc::clone(clock) as _,
            draw.clone(),
            plant,
            epoch,
        ));
        let (in_pool, in_triggers) = (Arc::clone(&life), Arc::clone(&life));
        let admission = Admission::new(AdmissionConfig::default());
        let (in_gateway, queue) = (Arc::clone(&admission), Arc::clone(queue));
        let built = Platform::builder()
            .preset(preset)
            .machine(MACHINE)
            .seed(draw.clone().next())
            .clock(Arc::clone(clock))
            .runtime(Arc::clone(&runtime))
            .store(inner)
            .configure_pool(move |pool| {
                pool.shards = 4;
                pool.backoff.longest = Duration::from_secs(10);
                if plant == Some(Plant::KeepsForever) && ahead {
                    pool.idle = IdleRule::policy(KeepsForever);
                } else if ahead {
                    pool.idle = IdleRule::policy(short_sighted());
                }
            })
            .pool(move |config| {
                Arc::new(WatchedPool { inner: InstancePool::new(config), life: Arc::clone(&in_pool) })
            })
            .gateway(|gateway| gateway.admission = in_gateway)
            .trigger_kind(queue::KIND, move |_| Ok(Arc::new(QueueSource(Arc::clone(&queue)))))
            .trigger_invoker(|inner| Arc::new(WatchedInvoker { inner, life: in_triggers }))
            .decision_sink(WatchedDecisions(Arc::clone(&life)))
            .meter_sink(WatchedMeter { inner: Arc::clone(&meter), life: Arc::clone(&life) })
            .driver(|driver| driver.history = 4000)
            .build()
            .await;
        let platform = built?;
        let (lost, stop) = (CancellationToken::new(), CancellationToken::new());
        let writer = {
            let (meter, lost, stop) = (Arc::clone(&meter), lost.clone(), stop.clone());
            tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = lost.cancelled() => {}
                    () = meter.run(stop) => {}
                }
            })
        };
        let writing = (stop, Mutex::new(Some(writer)));
        Ok(Arc::new(Self { life, ahead, runtime, admission, platform, meter, writing, lost }))
    }

    /// SIGKILL. What the parts still do is seen by nobody, and ends.
    pub(crate) async fn kill(&self) {
        self.runtime.kill_all();
        self.life.dead.store(true, SeqCst);
        self.lost.cancel();
        self.written().await;
        self.platform.shutdown(Duration::ZERO).await;
    }

    /// An orderly end within `limit`.
    pub(crate) async fn end(&self, limit: Duration) {
        self.platform.shutdown(limit).await;
        self.writing.0.cancel();
        self.written().await;
        if self.meter.close().await.is_ok() {
            self.life.books.close();
        }
    }

    /// Nobody writes readings any more.
    async fn written(&self) {
        let writer = self.writing.1.lock().take();
        if let Some(writer) = writer {
            let _ = writer.await;
        }
    }

    /// The planted bug: what the tenant may use is forgotten where it is to hold.
    pub(crate) fn forget_quota(&self) {
        self.admission.set_tenant(TenantKey(1), None);
    }

    pub(crate) fn pool(&self) -> &Arc<dyn Pool> {
        self.platform.pool()
    }

    pub(crate) fn gateway(&self) -> &Arc<Gateway> {
        self.platform.gateway()
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        self.platform.control()
    }

    pub(crate) fn driver(&self) -> Arc<Driver> {
        self.platform.driver()
    }

    /// What came back at its start.
    pub(crate) fn recovery(&self) -> Recovery {
        self.platform.recovery()
    }

    /// All revisions that are registered, with the names of their services.
    pub(crate) fn revisions(&self) -> Vec<(String, RevisionKey)> {
        let mut all = Vec::new();
        for record in self.control().records() {
            for revision in &record.revisions {
                let key = self.control().revision_key("default", &record.name, &revision.name);
                all.extend(key.map(|key| (record.name.clone(), key)));
            }
        }
        all
    }

    /// The keys of all revisions that are registered for a service.
    pub(crate) fn keys(&self, service: u32) -> Vec<RevisionKey> {
        let Ok(record) = self.control().record("default", &name(service)) else { return Vec::new() };
        let revisions = record.revisions.iter();
        revisions.filter_map(|it| self.control().revision_key("default", &name(service), &it.name)).collect()
    }
}

/// The name of a service.
pub(crate) fn name(service: u32) -> String {
    format!("svc-{service}")
}

/// The preset's policy, which looks ahead for minutes only and keeps what is likelier to be called than the preset asks
/// for: that it lets go is seen within the run of a seed.
fn short_sighted() -> Hazard {
    let mut config = HazardConfig::with_threshold(0.06);
    config.horizon_minutes = HORIZON_MINUTES;
    Hazard::new(&config).expect("values within bounds")
}

/// The planted bug: a policy that keeps what was called once.
#[derive(Debug)]
struct KeepsForever;

impl KeepAlivePolicy for KeepsForever {
    fn called(&mut self, _: RevisionKey, _: Timestamp) {}
    fn idle(&mut self, _: RevisionKey, now: Timestamp) -> KeepAlive {
        KeepAlive::until(now + Duration::from_secs(24 * 3600))
    }
    fn forget(&mut self, _: RevisionKey) {}
    fn bytes(&self) -> usize {
        0
    }
}

/// What a deploy asks for. `version` makes it differ from the one before. `ahead`: on a platform that decides itself when
/// what sleeps, so the service does not say so.
pub(crate) fn manifest(
    service: u32,
    concurrency: u32,
    max: u32,
    version: u64,
    ahead: bool,
) -> ServiceManifest {
    let mut spec = RevisionSpec::new("sim", Source::Function("f".into()));
    spec.concurrency = concurrency;
    spec.env.insert(LIMIT.into(), EnvValue::Literal(concurrency.to_string()));
    spec.env.insert("VERSION".into(), EnvValue::Literal(version.to_string()));
    spec.timeouts.start = Duration::from_secs(10);
    spec.timeouts.stop_grace = STOP_GRACE;
    spec.timeouts.request = Duration::from_secs(60);
    spec.scaling.max = max;
    if !ahead {
        spec.scaling.stable_window = Duration::from_secs(10);
        spec.scaling.scale_to_zero_grace = Duration::from_secs(2);
    }
    let mut probe =
        Probe::new(ProbeAction::Http { path: "/healthz".into(), port: None, headers: Vec::new() });
    (probe.period, probe.timeout, probe.failure_threshold) = (PROBE_PERIOD, PROBE_TIMEOUT, PROBE_FAILURES);
    spec.liveness = Some(probe);
    ServiceManifest::new("default", name(service), spec)
}

/// The same with what is special about it.
pub(crate) fn special(service: u32, special: Special, version: u64, ahead: bool) -> ServiceManifest {
    let mut manifest = manifest(service, 2, 5, version, ahead);
    match special {
        Special::Backlog => {
            let scaling = &mut manifest.spec.scaling;
            scaling.scaler = "backlog".to_owned();
            let options = Options { backlog: Some(BacklogSpec::default()), ..Options::default() };
            scaling.options = options.into();
        }
        Special::Scheduled => {
            let scaling = &mut manifest.spec.scaling;
            scaling.scaler = "scheduled".to_owned();
            let window = ScheduleWindow::floor("*/20 * * * * *", Duration::from_secs(5), 2);
            scaling.options = Options { schedule: vec![window], ..Options::default() }.into();
        }
        Special::Rollout { bad } => {
            let mut plan = RolloutPlan::default();
            plan.steps = vec![20, 100];
            plan.hold = Duration::from_secs(5);
            plan.min_requests = 3;
            manifest.plan = Some(plan);
            if bad {
                manifest.spec.env.insert(BAD.into(), EnvValue::Literal("yes".into()));
            }
        }
    }
    manifest
}
