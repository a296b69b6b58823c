//! The default engine factory: a pool as the preset says, and what drives it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_autoscale::{Driver, DriverConfig};
use sas_core::{
    Clock, DEFAULT_ENGINE, Engine, EngineFactory, EngineKey, EngineSpec, Error, ErrorKind, LifecycleSink,
    LogSink, MeterSink, Pool, PoolBudget, Recorder, Reserved, Result, RevisionKey, Runtime, Scalers,
    SecretSource, SpecErrors,
};
use sas_pool::PoolConfig;
use sas_router::HealthChecks;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{machine::Machine, preset::Preset};

pub(crate) type ConfigurePool = Box<dyn Fn(&mut PoolConfig) + Send + Sync>;
pub(crate) type MakePool = Box<dyn Fn(PoolConfig) -> Arc<dyn Pool> + Send + Sync>;

/// What all engines of a platform are made of.
pub(crate) struct Template {
    pub(crate) preset: Preset,
    pub(crate) machine: Machine,
    pub(crate) configure: Vec<ConfigurePool>,
    pub(crate) make_pool: MakePool,
    pub(crate) seed: u64,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) logs: Arc<dyn LogSink>,
    pub(crate) meter: Arc<dyn MeterSink>,
    pub(crate) lifecycle: Option<Arc<dyn LifecycleSink>>,
    pub(crate) secrets: Option<Arc<dyn SecretSource>>,
    pub(crate) recorder: Recorder,
    pub(crate) runtimes: Vec<Arc<dyn Runtime>>,
    pub(crate) scalers: Scalers,
    pub(crate) driver: DriverConfig,
    /// Ends what drives the engines.
    pub(crate) stop: CancellationToken,
}

/// Makes engines from one template. Each has its own pool and its own driver; the runtimes are shared.
pub(crate) struct PlatformEngines {
    template: Template,
    /// What was set aside, by the engine's name; the default one is always there.
    set_aside: Mutex<BTreeMap<String, Reserved>>,
    driven: Mutex<BTreeMap<EngineKey, Driven>>,
}

/// An engine, and what drives it.
#[derive(Clone)]
struct Driven {
    name: String,
    pool: Arc<dyn Pool>,
    driver: Arc<Driver>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for PlatformEngines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlatformEngines")
            .field("preset", &self.template.preset)
            .field("built", &self.driven.lock().keys())
            .finish_non_exhaustive()
    }
}

impl PlatformEngines {
    /// Makes engines by `template`; `declared` are those that will be built at the start.
    pub(crate) fn new(template: Template, declared: &[EngineSpec]) -> Arc<Self> {
        let mut set_aside: BTreeMap<_, _> =
            declared.iter().map(|spec| (spec.name.clone(), spec.reserved)).collect();
        set_aside.entry(DEFAULT_ENGINE.to_owned()).or_default();
        Arc::new(Self { template, set_aside: Mutex::new(set_aside), driven: Mutex::default() })
    }

    /// The pool's configuration of the whole machine, as preset and builder leave it.
    fn whole(&self) -> PoolConfig {
        let template = &self.template;
        let mut config = template.preset.pool(template.machine);
        for change in &template.configure {
            change(&mut config);
        }
        config
    }

    /// The pool's configuration for an engine.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub(crate) fn config(&self, key: EngineKey, spec: &EngineSpec) -> Result<PoolConfig, SpecErrors> {
        let template = &self.template;
        let mut config = self.whole();
        config.engine = key;
        config.seed = template.seed.wrapping_add(u64::from(key.number()));
        config.clock = Arc::clone(&template.clock);
        config.logs = Arc::clone(&template.logs);
        config.meter = Some(Arc::clone(&template.meter));
        config.lifecycle.clone_from(&template.lifecycle);
        config.secrets = template.secrets.clone().or(config.secrets);
        config.recorder = self.recorder(spec);
        let (memory, stems) = (config.budget.memory_bytes, config.stems.memory_bytes);
        let budget = self.budget(spec, &config)?;
        config.budget.memory_bytes = budget.memory_bytes.unwrap_or(u64::MAX);
        config.budget.instances = budget.instances.unwrap_or(u32::MAX);
        if config.budget.memory_bytes < memory && stems < u64::MAX {
            // Stems keep their share of what the engine has.
            let share =
                u128::from(stems) * u128::from(config.budget.memory_bytes) / u128::from(memory.max(1));
            config.stems.memory_bytes = u64::try_from(share).unwrap_or(stems);
            let holds = |bytes: u64| bytes <= config.stems.memory_bytes;
            config.stems.automatic = config.stems.automatic.filter(|stems| holds(stems.memory_bytes));
        }
        config.validate()?;
        Ok(config)
    }

    /// What an engine may use: what was set aside for it, and what nobody set aside.
    fn budget(&self, spec: &EngineSpec, whole: &PoolConfig) -> Result<PoolBudget, SpecErrors> {
        let set_aside = self.set_aside.lock();
        let others =
            || set_aside.iter().filter(|(name, _)| **name != spec.name).map(|(_, reserved)| reserved);
        let memory_taken: u64 =
            others().filter_map(|reserved| reserved.memory_bytes).fold(0, u64::saturating_add);
        let instances_taken: u32 =
            others().filter_map(|reserved| reserved.instances).fold(0, u32::saturating_add);
        let memory = (whole.budget.memory_bytes != u64::MAX).then_some(whole.budget.memory_bytes);
        let instances = (whole.budget.instances != u32::MAX).then_some(whole.budget.instances);
        let memory_left = memory.map(|all| all.saturating_sub(memory_taken));
        let instances_left = instances.map(|all| all.saturating_sub(instances_taken));
        let mut errors = SpecErrors::default();
        // What is left over is for the default engine above all: unless something is set aside for that one, an engine may
        // not take the last of it.
        let of_default = match spec.name.as_str() {
            DEFAULT_ENGINE => spec.reserved,
            _ => set_aside.get(DEFAULT_ENGINE).copied().unwrap_or_default(),
        };
        if let (Some(asked), Some(left)) = (spec.reserved.memory_bytes, memory_left)
            && (asked > left || asked == left && of_default.memory_bytes.is_none())
        {
            let problem =
                format!("the machine has {left} bytes that no other engine set aside: ask for less");
            errors.push("reserved.memoryBytes", asked, problem);
        }
        if let (Some(asked), Some(left)) = (spec.reserved.instances, instances_left)
            && (asked > left || asked == left && of_default.instances.is_none())
        {
            let problem = format!("the platform has {left} that no other engine set aside: ask for fewer");
            errors.push("reserved.instances", asked, problem);
        }
        errors.into_result()?;
        let mut budget = PoolBudget::default();
        budget.memory_bytes = spec.reserved.memory_bytes.or(memory_left);
        budget.instances = spec.reserved.instances.or(instances_left);
        Ok(budget)
    }

    /// Metrics of other engines than the default one carry their name.
    fn recorder(&self, spec: &EngineSpec) -> Recorder {
        if spec.name == DEFAULT_ENGINE {
            self.template.recorder.clone()
        } else {
            self.template.recorder.labelled("engine", &spec.name)
        }
    }

    /// Lets the default engines have what was set aside for them, else what no engine set aside.
    fn share_out(&self) {
        let mut spec = EngineSpec::default();
        spec.reserved = self.set_aside.lock().get(DEFAULT_ENGINE).copied().unwrap_or_default();
        let Ok(budget) = self.budget(&spec, &self.whole()) else { return };
        let pools = self
            .driven
            .lock()
            .values()
            .filter(|engine| engine.name == spec.name)
            .cloned()
            .collect::<Vec<_>>();
        for engine in pools {
            if let Err(error) = engine.pool.set_budget(budget) {
                tracing::warn!(error = %error.chain(), "what was set aside for an engine is not kept from the default one");
            }
        }
    }

    /// What drives the engine that a revision runs on.
    pub(crate) fn driver_of(&self, revision: RevisionKey) -> Option<Arc<Driver>> {
        let driven = self.driven.lock();
        let found = driven.iter().find(|(key, _)| key.place() == revision.place());
        found.map(|(_, engine)| Arc::clone(&engine.driver))
    }

    /// What drives the engine of that key.
    pub(crate) fn driver(&self, key: EngineKey) -> Option<Arc<Driver>> {
        self.driven.lock().get(&key).map(|engine| Arc::clone(&engine.driver))
    }
}

#[async_trait]
impl EngineFactory for PlatformEngines {
    async fn build(&self, key: EngineKey, spec: &EngineSpec) -> Result<Engine> {
        let config = self.config(key, spec).map_err(|errors| {
            Error::new(ErrorKind::InvalidSpec, "engine", format!("{}: {errors}", spec.name))
                .with_source(errors)
        })?;
        let template = &self.template;
        let pool = (template.make_pool)(config);
        let mut config = template.driver.clone();
        config.recorder = self.recorder(spec);
        let driver = Driver::new(Arc::clone(&pool), template.scalers.clone(), config);
        let (tasks, stop) = (TaskTracker::new(), template.stop.child_token());
        tasks.spawn({
            let (driver, stop) = (Arc::clone(&driver), stop.clone());
            async move { driver.run(stop).await }
        });
        let checks = HealthChecks::new(Arc::clone(&pool));
        tasks.spawn(check_health(Arc::clone(&driver), checks, stop.clone()));
        tasks.close();
        let name = spec.name.clone();
        self.driven
            .lock()
            .insert(key, Driven { name: name.clone(), pool: Arc::clone(&pool), driver, tasks, stop });
        // What was declared at the start was left out of the default engine's budget from its beginning.
        if self.set_aside.lock().insert(name, spec.reserved) != Some(spec.reserved) {
            self.share_out();
        }
        Ok(Engine::new(key, pool, template.runtimes.clone()))
    }

    async fn stop(&self, engine: &Engine, deadline: Instant) {
        let driven = self.driven.lock().get(&engine.key).cloned();
        if let Some(driven) = &driven {
            driven.stop.cancel();
            driven.tasks.wait().await;
        }
        engine.pool.shutdown(deadline).await;
        // At a shutdown the last decisions stay to be read.
        if let Some(Driven { name, .. }) = driven
            && !self.template.stop.is_cancelled()
        {
            let mut all = self.driven.lock();
            all.remove(&engine.key);
            // Not while it is replaced: the next one of its name is there already.
            let last = !all.values().any(|other| other.name == name);
            drop(all);
            if last {
                self.set_aside.lock().remove(&name);
                self.share_out();
            }
        }
    }
}

/// Asks the instances of active revisions that have a liveness probe, once a second.
async fn check_health(driver: Arc<Driver>, mut checks: HealthChecks, stop: CancellationToken) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let mut revisions = Vec::new();
        driver.visit_active(|key, deployed| {
            if deployed.spec.liveness.is_some() {
                revisions.push(key);
            }
        });
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = checks.round(&revisions) => {}
        }
    }
}
