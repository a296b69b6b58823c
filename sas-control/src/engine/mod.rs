//! The engines of a platform: one pool each, and together the pool that the data plane works over.

mod life;
mod pool;
mod quotas;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sas_core::{
    Clock, DEFAULT_ENGINE, Engine, EngineFactory, EngineKey, EngineSpec, Error, ErrorKind, LifecycleEvent,
    LifecycleSink, Pool, Result, RevisionKey, TenantKey, TenantQuota,
};
use tokio::time::Instant;

use crate::registry::RuntimeRegistry;

pub use life::{EnginePhase, EngineView, LeftBehind, UpgradeReport};

/// The engines of a platform, by name, and which namespaces are on which.
///
/// It is a [`Pool`] itself, of all revisions of all engines: the keys say to which engine each belongs. The data plane is
/// made over it once, and engines come and go below. [`crate::Control`] registers each service's revisions on the engine of
/// its namespace.
pub struct Engines {
    /// Those that are there, by [`EngineKey::place`]: read with every request.
    pub(crate) places: [ArcSwapOption<Running>; EngineKey::PLACES],
    factory: Option<Arc<dyn EngineFactory>>,
    pub(crate) state: Mutex<State>,
    /// One engine is built, replaced or removed at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// What tenants may use, for engines that are built later.
    tenants: Mutex<HashMap<TenantKey, TenantQuota>>,
    /// Who is told what becomes of them, and when that is.
    followers: OnceLock<(Arc<dyn LifecycleSink>, Arc<dyn Clock>)>,
}

/// An engine that works.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) engine: Engine,
    pub(crate) runtimes: Arc<RuntimeRegistry>,
}

impl Running {
    fn new(engine: Engine, spec: &EngineSpec) -> Arc<Self> {
        let runtimes = Arc::new(RuntimeRegistry::new(spec.kind, engine.runtimes.iter().cloned()));
        Arc::new(Self { engine, runtimes })
    }
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The number of the next engine that is built.
    next: u16,
    /// Engines by name.
    pub(crate) engines: BTreeMap<String, Declared>,
}

/// An engine as it was declared, and what works of it.
#[derive(Debug)]
pub(crate) struct Declared {
    pub(crate) spec: EngineSpec,
    pub(crate) phase: EnginePhase,
    /// Where new registrations go; `None`: it could not be built, or is not any more.
    pub(crate) running: Option<Arc<Running>>,
    /// Those that it replaced, as long as they still hold something.
    pub(crate) draining: Vec<Arc<Running>>,
    /// Why it is not as it should be.
    pub(crate) problem: Option<String>,
    pub(crate) last_upgrade: Option<UpgradeReport>,
}

impl Declared {
    fn new(spec: EngineSpec) -> Self {
        Self {
            spec,
            phase: EnginePhase::Provisioning,
            running: None,
            draining: Vec::new(),
            problem: None,
            last_upgrade: None,
        }
    }
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Engines {
    fn empty(factory: Option<Arc<dyn EngineFactory>>) -> Self {
        Self {
            places: std::array::from_fn(|_| ArcSwapOption::empty()),
            factory,
            state: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            tenants: Mutex::default(),
            followers: OnceLock::new(),
        }
    }

    /// The engine [`DEFAULT_ENGINE`] and those of `specs`, made by `factory`, which may make more later. What of the
    /// default engine `specs` do not say is [`EngineSpec::default`].
    ///
    /// # Errors
    /// `InvalidSpec` for specs that are wrong; `Conflict` for two that name one namespace; else as
    /// [`EngineFactory::build`]. What was built is stopped then.
    pub async fn build(factory: Arc<dyn EngineFactory>, specs: Vec<EngineSpec>) -> Result<Arc<Self>> {
        let engines = Arc::new(Self::empty(Some(factory)));
        let mut specs = specs;
        if !specs.iter().any(|spec| spec.name == DEFAULT_ENGINE) {
            specs.insert(0, EngineSpec::default());
        }
        // First, so that the platform's first engine is the one that nearly everything runs on.
        specs.sort_by_key(|spec| spec.name != DEFAULT_ENGINE);
        for spec in specs {
            if let Err(error) = engines.add(spec).await {
                engines.stop(Instant::now()).await;
                return Err(error);
            }
        }
        Ok(engines)
    }

    /// One engine that the host made itself, for all namespaces. It can't be replaced, and none can be added.
    pub fn single(engine: Engine, spec: EngineSpec) -> Arc<Self> {
        let engines = Self::empty(None);
        let running = Running::new(engine, &spec);
        engines.places[running.engine.key.place()].store(Some(Arc::clone(&running)));
        {
            let mut state = engines.state.lock();
            state.next = running.engine.key.number() + 1;
            let mut declared = Declared::new(spec);
            declared.running = Some(running);
            declared.phase = EnginePhase::Ready;
            state.engines.insert(DEFAULT_ENGINE.to_owned(), declared);
        }
        Arc::new(engines)
    }

    /// The names of all engines, in order.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().engines.keys().cloned().collect()
    }

    /// Checks that a spec fits beside the engines that there are, leaving out the one of its own name.
    pub(crate) fn check(&self, spec: &EngineSpec) -> Result<()> {
        spec.validate().map_err(|errors| {
            let message = format!("engine {:?}: {errors}", spec.name);
            Error::new(ErrorKind::InvalidSpec, "engine", message).with_source(errors)
        })?;
        for (name, other) in &self.state.lock().engines {
            let taken = spec.namespaces.iter().find(|namespace| other.spec.namespaces.contains(namespace));
            if let Some(taken) = taken.filter(|_| *name != spec.name) {
                let message = format!("namespace {taken} is on the engine {name}; take it off there first");
                return Err(Error::new(ErrorKind::Conflict, "engine", message));
            }
        }
        Ok(())
    }

    /// Builds an engine and lets its namespaces' new registrations go there. One that can't be built stays declared, so
    /// that its namespaces are on no other.
    pub(crate) async fn add(&self, spec: EngineSpec) -> Result<()> {
        self.check(&spec)?;
        {
            let mut state = self.state.lock();
            if state.engines.contains_key(&spec.name) {
                let message = format!("there is an engine {} already", spec.name);
                return Err(Error::new(ErrorKind::Conflict, "engine", message));
            }
            state.engines.insert(spec.name.clone(), Declared::new(spec.clone()));
        }
        self.told(&spec.name, EnginePhase::Provisioning, None);
        let built = self.provision(&spec).await;
        self.update(&spec.name, |declared| match &built {
            Ok(running) => {
                declared.running = Some(Arc::clone(running));
                declared.phase = EnginePhase::Ready;
            }
            Err(error) => {
                declared.phase = EnginePhase::Stopped;
                declared.problem = Some(error.chain());
            }
        });
        built.map(|_| ())
    }

    /// Builds an engine and puts it in its place.
    pub(crate) async fn provision(&self, spec: &EngineSpec) -> Result<Arc<Running>> {
        let factory = self.factory()?;
        let key = self.next_key()?;
        let running = Running::new(factory.build(key, spec).await?, spec);
        self.hold_tenants(&*running.engine.pool);
        self.places[key.place()].store(Some(Arc::clone(&running)));
        Ok(running)
    }

    /// Changes what is known of an engine, and tells a new phase of its life.
    pub(crate) fn update<T>(&self, name: &str, change: impl FnOnce(&mut Declared) -> T) -> Option<T> {
        let (changed, moved) = {
            let mut state = self.state.lock();
            let declared = state.engines.get_mut(name)?;
            let before = declared.phase;
            let changed = change(declared);
            let moved = (declared.phase != before).then(|| (declared.phase, declared.problem.clone()));
            (changed, moved)
        };
        if let Some((phase, problem)) = moved {
            self.told(name, phase, problem);
        }
        Some(changed)
    }

    /// From now on `followers` are told what becomes of engines.
    pub(crate) fn tell(&self, followers: Arc<dyn LifecycleSink>, clock: Arc<dyn Clock>) {
        let _ = self.followers.set((followers, clock));
    }

    pub(crate) fn told(&self, name: &str, phase: EnginePhase, problem: Option<String>) {
        if let Some((followers, clock)) = self.followers.get() {
            let event = LifecycleEvent::new(phase.kind(), name, clock.now());
            followers.told(match problem {
                Some(problem) => event.with("problem", problem),
                None => event,
            });
        }
    }

    pub(crate) fn factory(&self) -> Result<&Arc<dyn EngineFactory>> {
        self.factory.as_ref().ok_or_else(|| {
            let message = "this host made its one engine itself: give it an engine factory to have others";
            Error::new(ErrorKind::Unsupported, "engine", message)
        })
    }

    /// A key whose place is free.
    fn next_key(&self) -> Result<EngineKey> {
        let full = |message: String| Error::new(ErrorKind::Exhausted, "engine", message);
        let mut state = self.state.lock();
        for number in (state.next..).take(EngineKey::PLACES) {
            let Some(key) = EngineKey::new(number) else {
                let message = format!("this process has built {} engines: start it anew", EngineKey::MOST);
                return Err(full(message));
            };
            if self.places[key.place()].load().is_none() {
                state.next = number + 1;
                return Ok(key);
            }
        }
        Err(full(format!("there are {} engines, as many as there may be", EngineKey::PLACES)))
    }

    /// The name of the engine that a namespace is on.
    pub fn engine_of(&self, namespace: &str) -> String {
        let state = self.state.lock();
        let named =
            state.engines.iter().find(|(_, engine)| engine.spec.namespaces.iter().any(|n| n == namespace));
        named.map_or_else(|| DEFAULT_ENGINE.to_owned(), |(name, _)| name.clone())
    }

    /// The engine on which the services of a namespace start.
    ///
    /// # Errors
    /// `Unavailable` while it is not there: nothing of the namespace starts on another one then.
    pub(crate) fn of(&self, namespace: &str) -> Result<Arc<Running>> {
        let name = self.engine_of(namespace);
        let state = self.state.lock();
        let declared = state.engines.get(&name);
        if let Some(running) = declared.and_then(|declared| declared.running.as_ref()) {
            return Ok(Arc::clone(running));
        }
        let why = declared.and_then(|declared| declared.problem.as_deref()).unwrap_or("it is not built yet");
        let message = format!("the engine {name} of namespace {namespace} is not there: {why}");
        Err(Error::new(ErrorKind::Unavailable, "engine", message))
    }

    /// The engine of all namespaces that no other names.
    pub(crate) fn default_engine(&self) -> Arc<Running> {
        let state = self.state.lock();
        let default = state.engines.get(DEFAULT_ENGINE).and_then(|declared| declared.running.as_ref());
        Arc::clone(
            default
                .expect("a platform is built with its default engine, which is replaced and never removed"),
        )
    }

    /// The key of the engine of all namespaces that no other names.
    pub fn default_key(&self) -> EngineKey {
        self.default_engine().engine.key
    }

    /// The engine that a revision runs on.
    fn at(&self, revision: RevisionKey) -> Option<Arc<Running>> {
        self.places[revision.place()].load_full()
    }

    fn all(&self) -> impl Iterator<Item = Arc<Running>> + '_ {
        self.places.iter().filter_map(ArcSwapOption::load_full)
    }

    /// Stops one engine and frees its place.
    pub(crate) async fn end(&self, running: &Running, deadline: Instant) {
        match &self.factory {
            Some(factory) => factory.stop(&running.engine, deadline).await,
            None => running.engine.pool.shutdown(deadline).await,
        }
    }

    /// Stops all engines: requests may finish until `deadline`. Idempotent.
    pub async fn stop(&self, deadline: Instant) {
        let ends = self.all().map(|running| async move { self.end(&running, deadline).await });
        let mut ends: Vec<_> = ends.map(Box::pin).collect();
        // At the same time: each may take until the deadline.
        std::future::poll_fn(|cx| {
            ends.retain_mut(|end| end.as_mut().poll(cx).is_pending());
            if ends.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        for declared in self.state.lock().engines.values_mut() {
            declared.phase = EnginePhase::Stopped;
        }
    }
}
