//! The engines of a platform: one pool each, and together the pool that the data plane works over.

mod pool;

use std::{collections::BTreeMap, fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sas_core::{
    DEFAULT_ENGINE, Engine, EngineFactory, EngineKey, EngineSpec, Error, ErrorKind, Pool, Result, RevisionKey,
};
use tokio::time::Instant;

use crate::registry::RuntimeRegistry;

/// The engines of a platform, by name, and which namespace is on which.
///
/// It is a [`Pool`] itself, of all revisions of all engines: the keys say to which engine each belongs. The data plane is
/// made over it once, and engines come and go below. [`crate::Control`] registers each service's revisions on the engine of
/// its namespace.
pub struct Engines {
    /// Those that are there, by [`EngineKey::place`]: read with every request.
    places: [ArcSwapOption<Running>; EngineKey::PLACES],
    factory: Option<Arc<dyn EngineFactory>>,
    state: Mutex<State>,
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
struct State {
    /// The number of the next engine that is built.
    next: u16,
    /// Engines by name.
    engines: BTreeMap<String, Declared>,
}

/// An engine as it was declared, and what works of it.
#[derive(Debug)]
struct Declared {
    spec: EngineSpec,
    /// Where new registrations go.
    running: Arc<Running>,
}

impl fmt::Debug for Engines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engines").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Engines {
    fn empty(factory: Option<Arc<dyn EngineFactory>>) -> Self {
        Self { places: std::array::from_fn(|_| ArcSwapOption::empty()), factory, state: Mutex::default() }
    }

    /// The engine [`DEFAULT_ENGINE`] and those of `specs`, made by `factory`, which may make more later. What of the
    /// default engine `specs` do not say is [`EngineSpec::default`].
    ///
    /// # Errors
    /// `InvalidSpec` for specs that are wrong or name a namespace twice; else as [`EngineFactory::build`]. What was built
    /// is stopped then.
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
        let state = State {
            next: running.engine.key.number() + 1,
            engines: BTreeMap::from([(DEFAULT_ENGINE.to_owned(), Declared { spec, running })]),
        };
        *engines.state.lock() = state;
        Arc::new(engines)
    }

    /// The names of all engines, in order.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().engines.keys().cloned().collect()
    }

    /// Builds an engine and lets its namespaces' new registrations go there.
    async fn add(&self, spec: EngineSpec) -> Result<()> {
        spec.validate().map_err(|errors| invalid_spec(&spec, errors))?;
        let key = {
            let mut state = self.state.lock();
            if state.engines.contains_key(&spec.name) {
                let message = format!("there is an engine {} already", spec.name);
                return Err(Error::new(ErrorKind::Conflict, "engine", message));
            }
            for (name, other) in &state.engines {
                if let Some(taken) =
                    spec.namespaces.iter().find(|namespace| other.spec.namespaces.contains(namespace))
                {
                    let message =
                        format!("namespace {taken} is on the engine {name}; take it off there first");
                    return Err(Error::new(ErrorKind::Conflict, "engine", message));
                }
            }
            self.next_key(&mut state)?
        };
        let running = Running::new(self.factory()?.build(key, &spec).await?, &spec);
        self.places[key.place()].store(Some(Arc::clone(&running)));
        self.state.lock().engines.insert(spec.name.clone(), Declared { spec, running });
        Ok(())
    }

    fn factory(&self) -> Result<&Arc<dyn EngineFactory>> {
        self.factory.as_ref().ok_or_else(|| {
            let message = "this host made its one engine itself: give it an engine factory to have others";
            Error::new(ErrorKind::Unsupported, "engine", message)
        })
    }

    /// A key whose place is free.
    fn next_key(&self, state: &mut State) -> Result<EngineKey> {
        let full = |message: String| Error::new(ErrorKind::Exhausted, "engine", message);
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

    /// The engine on which the services of a namespace start.
    pub(crate) fn of(&self, namespace: &str) -> Arc<Running> {
        let state = self.state.lock();
        let named =
            state.engines.values().find(|engine| engine.spec.namespaces.iter().any(|n| n == namespace));
        let declared = named.or_else(|| state.engines.get(DEFAULT_ENGINE));
        Arc::clone(&declared.expect("a platform has its default engine from the start").running)
    }

    /// The engine of all namespaces that no other names.
    pub(crate) fn default_engine(&self) -> Arc<Running> {
        self.of("")
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

    /// Stops all engines: requests may finish until `deadline`. Idempotent.
    pub async fn stop(&self, deadline: Instant) {
        let mut stopping = tokio::task::JoinSet::new();
        for running in self.all() {
            match &self.factory {
                Some(factory) => {
                    let factory = Arc::clone(factory);
                    stopping.spawn(async move { factory.stop(&running.engine, deadline).await });
                }
                None => {
                    stopping.spawn(async move { running.engine.pool.shutdown(deadline).await });
                }
            }
        }
        while stopping.join_next().await.is_some() {}
    }
}

fn invalid_spec(spec: &EngineSpec, errors: sas_core::SpecErrors) -> Error {
    let message = format!("engine {:?}: {errors}", spec.name);
    Error::new(ErrorKind::InvalidSpec, "engine", message).with_source(errors)
}
