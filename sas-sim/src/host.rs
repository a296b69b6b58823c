//! One life of a host: a platform of the facade, with simulated parts.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use sas::{BuildError, Machine, Platform, Preset};
use sas_autoscale::Driver;
use sas_control::{Control, Recovery};
use sas_core::{EnvValue, Pool, RevisionKey, RevisionSpec, Source};
use sas_knative::manifest::ServiceManifest;
use sas_pool::InstancePool;
use sas_router::Gateway;
use tokio_util::sync::CancellationToken;

use crate::{
    Plant,
    clock::SimClock,
    draw::Draw,
    history::History,
    runtime::{LIMIT, SimRuntime},
    store::SimStore,
    watch::{HostStore, Life, WatchedDecisions, WatchedInvoker, WatchedMeter, WatchedPool},
};

/// What every simulated host has: nothing of the machine that the simulator runs on shows in a history.
const MACHINE: Machine = Machine::new(2).with_memory(8 << 30);

/// Everything of one host life.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) life: Arc<Life>,
    pub(crate) runtime: Arc<SimRuntime>,
    platform: Platform,
    /// Cancelled when the host is killed.
    pub(crate) lost: CancellationToken,
}

impl Host {
    /// Builds a platform on `store`, which brings back what is in it.
    pub(crate) async fn boot(
        history: &Arc<History>,
        store: &Arc<SimStore>,
        clock: &Arc<SimClock>,
        draw: Draw,
        plant: Option<Plant>,
        epoch: u64,
    ) -> Result<Arc<Self>, BuildError> {
        let life = Life::new(Arc::clone(history), epoch, plant);
        let runtime =
            Arc::new(SimRuntime::new(Arc::clone(history), Arc::clone(clock) as _, draw.clone(), plant, epoch));
        let (in_pool, in_triggers) = (Arc::clone(&life), Arc::clone(&life));
        let built = Platform::builder()
            // What works ahead of demand sleeps when it pleases; the promises about sleep are Knative's.
            .preset(Preset::Knative)
            .machine(MACHINE)
            .seed(draw.clone().next())
            .clock(Arc::clone(clock))
            .runtime(Arc::clone(&runtime))
            .store(HostStore { inner: Arc::clone(store), life: Arc::clone(&life) })
            .configure_pool(|pool| {
                pool.shards = 4;
                pool.backoff.longest = Duration::from_secs(10);
            })
            .pool(|config| Arc::new(WatchedPool { inner: InstancePool::new(config), life: in_pool }))
            .trigger_invoker(|inner| Arc::new(WatchedInvoker { inner, life: in_triggers }))
            .decision_sink(WatchedDecisions(Arc::clone(&life)))
            .meter_sink(WatchedMeter(Arc::clone(&life)))
            .driver(|driver| driver.history = 4000)
            .build()
            .await;
        let platform = built?;
        Ok(Arc::new(Self { life, runtime, platform, lost: CancellationToken::new() }))
    }

    /// SIGKILL. What the parts still do is seen by nobody, and ends.
    pub(crate) async fn kill(&self) {
        self.runtime.kill_all();
        self.life.dead.store(true, SeqCst);
        self.lost.cancel();
        self.platform.shutdown(Duration::ZERO).await;
    }

    /// An orderly end within `limit`.
    pub(crate) async fn end(&self, limit: Duration) {
        self.platform.shutdown(limit).await;
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

    pub(crate) fn driver(&self) -> &Arc<Driver> {
        self.platform.driver()
    }

    /// What came back at its start.
    pub(crate) fn recovery(&self) -> &Recovery {
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

/// What a deploy asks for. `version` makes it differ from the one before.
pub(crate) fn manifest(service: u32, concurrency: u32, max: u32, version: u64) -> ServiceManifest {
    let mut spec = RevisionSpec::new("sim", Source::Function("f".into()));
    spec.concurrency = concurrency;
    spec.env.insert(LIMIT.into(), EnvValue::Literal(concurrency.to_string()));
    spec.env.insert("VERSION".into(), EnvValue::Literal(version.to_string()));
    spec.timeouts.start = Duration::from_secs(10);
    spec.timeouts.stop_grace = Duration::from_secs(5);
    spec.timeouts.request = Duration::from_secs(60);
    spec.scaling.max = max;
    spec.scaling.stable_window = Duration::from_secs(10);
    spec.scaling.scale_to_zero_grace = Duration::from_secs(2);
    ServiceManifest::new("default", name(service), spec)
}
