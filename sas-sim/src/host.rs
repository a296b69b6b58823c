//! One life of a host: the production parts, put together as the facade puts them together.

use std::{
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use sas_autoscale::{Driver, DriverConfig};
use sas_control::{Control, ControlConfig, Recovery};
use sas_core::{
    Clock, EnvValue, Invoker, Pool, Result, RevisionKey, RevisionSpec, Runtime, Source, Store, Triggers,
};
use sas_knative::manifest::ServiceManifest;
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{Gateway, GatewayConfig, RouteTable};
use sas_trigger::{TriggerHost, TriggerHostConfig};
use tokio::{task::JoinHandle, time::Instant};
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

/// Everything of one host life.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) life: Arc<Life>,
    pub(crate) runtime: Arc<SimRuntime>,
    pub(crate) pool: Arc<WatchedPool>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) control: Arc<Control>,
    pub(crate) driver: Arc<Driver>,
    /// What came back at its start.
    pub(crate) recovery: Recovery,
    triggers: Arc<TriggerHost>,
    /// Cancelled when the host is killed.
    pub(crate) lost: CancellationToken,
    stop: CancellationToken,
    driving: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl Host {
    /// Puts a host together on `store` and brings back what is in it.
    pub(crate) async fn boot(
        history: &Arc<History>,
        store: &Arc<SimStore>,
        clock: &Arc<SimClock>,
        draw: Draw,
        plant: Option<Plant>,
        epoch: u64,
    ) -> Result<Arc<Self>> {
        let life = Life::new(Arc::clone(history), epoch, plant);
        let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
        let runtime =
            Arc::new(SimRuntime::new(Arc::clone(history), Arc::clone(&clock), draw.clone(), plant, epoch));
        let seed = draw.clone().next();
        let store: Arc<dyn Store> = Arc::new(HostStore { inner: Arc::clone(store), life: Arc::clone(&life) });

        let mut config = PoolConfig::seeded(seed);
        config.shards = 4;
        config.clock = Arc::clone(&clock);
        config.meter = Some(Arc::new(WatchedMeter(Arc::clone(&life))));
        config.backoff.longest = Duration::from_secs(10);
        let pool = Arc::new(WatchedPool { inner: InstancePool::new(config), life: Arc::clone(&life) });

        let router = Arc::new(RouteTable::new(seed));
        let mut config = GatewayConfig::default();
        config.seed = seed;
        let gateway = Gateway::new(Arc::clone(&router) as _, Arc::clone(&pool) as Arc<dyn Pool>, config);

        let invoker = Arc::new(WatchedInvoker {
            inner: Arc::clone(&gateway) as Arc<dyn Invoker>,
            life: Arc::clone(&life),
        });
        let mut config = TriggerHostConfig::new(invoker, Arc::clone(&store));
        config.clock = Arc::clone(&clock);
        let triggers = TriggerHost::new(config);

        let mut config = ControlConfig::new(
            store,
            Arc::clone(&pool) as Arc<dyn Pool>,
            router,
            Arc::clone(&gateway) as Arc<dyn Invoker>,
            vec![Arc::clone(&runtime) as Arc<dyn Runtime>],
        );
        config.triggers = Some(Arc::clone(&triggers) as Arc<dyn Triggers>);
        config.clock = Arc::clone(&clock);
        config.seed = seed;
        let control = Control::new(config);

        let mut config = DriverConfig::default();
        config.clock = clock;
        config.sink = Arc::new(WatchedDecisions(Arc::clone(&life)));
        config.history = 4000;
        let scalers = sas_autoscale::default_scalers();
        let driver = Driver::new(Arc::clone(&pool) as Arc<dyn Pool>, scalers, config);

        let stop = CancellationToken::new();
        let driving = tokio::spawn({
            let (driver, stop) = (Arc::clone(&driver), stop.clone());
            async move { driver.run(stop).await }
        });
        let recovered = control.recover().await;
        let (recovery, failed) = match recovered {
            Ok(recovery) => (recovery, None),
            Err(error) => (Recovery::default(), Some(error)),
        };
        let host = Arc::new(Self {
            life,
            runtime,
            pool,
            gateway,
            control,
            driver,
            recovery,
            triggers,
            lost: CancellationToken::new(),
            stop,
            driving: parking_lot::Mutex::new(Some(driving)),
        });
        match failed {
            None => Ok(host),
            Some(error) => {
                host.kill().await;
                Err(error)
            }
        }
    }

    /// SIGKILL. What the parts still do is seen by nobody, and ends.
    pub(crate) async fn kill(self: &Arc<Self>) {
        self.runtime.kill_all();
        self.life.dead.store(true, SeqCst);
        self.lost.cancel();
        self.end(Instant::now()).await;
    }

    /// An orderly end, in the order of the facade.
    pub(crate) async fn end(&self, deadline: Instant) {
        self.triggers.shutdown(deadline).await;
        self.gateway.shutdown(deadline).await;
        self.stop.cancel();
        let driving = self.driving.lock().take();
        if let Some(driving) = driving {
            let _ = driving.await;
        }
        self.control.shutdown(deadline).await;
        self.pool.shutdown(deadline).await;
        self.runtime.quiesce().await;
    }

    /// All revisions that are registered, with the names of their services.
    pub(crate) fn revisions(&self) -> Vec<(String, RevisionKey)> {
        let mut all = Vec::new();
        for record in self.control.records() {
            for revision in &record.revisions {
                let key = self.control.revision_key("default", &record.name, &revision.name);
                all.extend(key.map(|key| (record.name.clone(), key)));
            }
        }
        all
    }

    /// The keys of all revisions that are registered for a service.
    pub(crate) fn keys(&self, service: u32) -> Vec<RevisionKey> {
        let Ok(record) = self.control.record("default", &name(service)) else { return Vec::new() };
        let revisions = record.revisions.iter();
        revisions.filter_map(|it| self.control.revision_key("default", &name(service), &it.name)).collect()
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
