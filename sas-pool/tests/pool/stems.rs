//! Stems: taken first, refilled behind, used once, given up under pressure.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use async_trait::async_trait;
use sas_core::{
    Artifact, Capabilities, CapacityInput, CapacityPolicy, CapacityReason, Deployed, Error, ErrorKind,
    ExitReport, Instance, InstanceEvents, InstanceId, Pool, Result, RevisionSpec, Runtime, StartRequest,
    Stem, StemClass, StemRequest, TenantKey, Timestamp,
};
use sas_pool::{
    InstancePool, PoolConfig,
    config::{AutomaticStems, StemClassConfig},
};

use crate::fake::{self, FakeRuntime, MS, SECOND, Start, claim, deployed_of};

/// A runtime with stems around the fake one: a boot takes 200 ms, a cold start 500 ms, to become an instance 5 ms.
#[derive(Debug)]
struct Stemmed {
    inner: fake::Handle,
    boots: AtomicU32,
    booted: Mutex<Vec<Told>>,
    used: Mutex<Vec<InstanceId>>,
    stopped: AtomicU32,
    /// What stems do when they are used.
    break_them: AtomicBool,
}

/// A stem, and whom it tells.
type Told = (InstanceId, StemClass, Arc<dyn InstanceEvents>);

#[derive(Debug)]
struct FakeStem {
    id: InstanceId,
    runtime: Arc<Stemmed>,
}

#[async_trait]
impl Stem for FakeStem {
    async fn specialize(self: Box<Self>, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.runtime.used.lock().unwrap().push(self.id);
        tokio::time::sleep(5 * MS).await;
        if self.runtime.break_them.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Crashed, "specialize", "the stem died"));
        }
        self.runtime.inner.0.script.lock().unwrap().push_front(Start::AtOnce);
        self.runtime.inner.start(request).await
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.runtime.stopped.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// The `Arc` that stems refer back to.
#[derive(Clone, Debug)]
struct Shared(Arc<Stemmed>);

#[async_trait]
impl Runtime for Shared {
    fn name(&self) -> &'static str {
        "stemmed"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.0.inner.capabilities();
        capabilities.stems = true;
        capabilities
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.0.inner.prepare(spec).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.0.inner.start(request).await
    }

    async fn quiesce(&self) {}

    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        self.0.boots.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(200 * MS).await;
        let told = (request.id, request.class.clone(), Arc::clone(&request.events));
        self.0.booted.lock().unwrap().push(told);
        Ok(Box::new(FakeStem { id: request.id, runtime: Arc::clone(&self.0) }))
    }
}

fn stemmed() -> (Arc<Stemmed>, Shared) {
    let stemmed = Arc::new(Stemmed {
        inner: fake::Handle(FakeRuntime::new(Start::After(500 * MS))),
        boots: AtomicU32::new(0),
        booted: Mutex::default(),
        used: Mutex::default(),
        stopped: AtomicU32::new(0),
        break_them: AtomicBool::new(false),
    });
    (Arc::clone(&stemmed), Shared(stemmed))
}

fn class(name: &str) -> StemClass {
    StemClass(name.into())
}

fn config(runtime: &Shared, classes: &[(&str, u32, u32, u64)]) -> PoolConfig {
    let mut config = PoolConfig::default();
    config.stems.classes = classes
        .iter()
        .map(|&(name, min, max, bytes)| {
            (class(name), StemClassConfig::new(Arc::new(runtime.clone()), min, max, bytes))
        })
        .collect();
    config
}

fn app(runtime: &Shared, name: &str, stem: &str, change: impl FnOnce(&mut RevisionSpec)) -> Arc<Deployed> {
    let mut deployed =
        (*deployed_of(&runtime.0.inner.0, name, TenantKey(1), Some(class(stem)), change)).clone();
    deployed.runtime = Arc::new(runtime.clone());
    Arc::new(deployed)
}

/// Stems of a class that are ready, that boot, and that are to be held; `None`: no such class is held.
fn counts(pool: &InstancePool, class: &StemClass) -> Option<(u32, u32, u32)> {
    let views = pool.stems();
    views.iter().find(|view| view.class == *class).map(|view| (view.ready, view.booting, view.size))
}

#[tokio::test(start_paused = true)]
async fn a_cold_start_takes_a_stem_and_the_pool_refills_behind_it() {
    let (told, runtime) = stemmed();
    let pool = InstancePool::new(config(&runtime, &[("java", 2, 4, 1 << 20)]));
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((2, 0, 2)));
    let key = pool.register(app(&runtime, "a", "java", |_| {})).unwrap();
    let lease = claim(&pool, key, SECOND).await.unwrap();
    let start = lease.start.as_deref().unwrap();
    assert!(start.from_stem);
    assert_eq!(start.ready, 5 * MS);
    tokio::time::sleep(SECOND).await;
    assert_eq!((counts(&pool, &class("java")), told.boots.load(Ordering::SeqCst)), (Some((2, 0, 2)), 3));
    // Used once, in the order in which they were booted.
    let other = pool.register(app(&runtime, "b", "java", |_| {})).unwrap();
    drop(claim(&pool, other, SECOND).await.unwrap());
    let used = told.used.lock().unwrap().clone();
    assert_eq!(used.len(), 2);
    assert_ne!(used[0], used[1]);
}

#[tokio::test(start_paused = true)]
async fn a_stem_that_breaks_or_is_missing_falls_back_to_a_cold_start() {
    let (told, runtime) = stemmed();
    let pool = InstancePool::new(config(&runtime, &[("java", 1, 1, 1 << 20)]));
    tokio::time::sleep(SECOND).await;
    told.break_them.store(true, Ordering::SeqCst);
    let key = pool.register(app(&runtime, "a", "java", |_| {})).unwrap();
    let lease = claim(&pool, key, SECOND).await.unwrap();
    let start = lease.start.as_deref().unwrap();
    assert!(!start.from_stem);
    assert_eq!(start.ready, 505 * MS);
    assert_eq!(told.inner.0.begun(), 1, "one cold start, for the same request");
    // No stem of that class is held: cold, and nothing is booted for it.
    let other = pool.register(app(&runtime, "b", "node", |_| {})).unwrap();
    assert!(!claim(&pool, other, SECOND).await.unwrap().start.as_ref().unwrap().from_stem);
    assert_eq!(counts(&pool, &class("node")), None);
}

#[tokio::test(start_paused = true)]
async fn a_stem_that_dies_while_it_waits_is_replaced() {
    let (told, runtime) = stemmed();
    let pool = InstancePool::new(config(&runtime, &[("java", 2, 2, 1 << 20)]));
    tokio::time::sleep(SECOND).await;
    let (id, _, events) = told.booted.lock().unwrap()[0].clone();
    events.exited(id, ExitReport::at(Timestamp(0)).with_signal(9));
    events.exited(id, ExitReport::at(Timestamp(0)).with_signal(9));
    assert_eq!(counts(&pool, &class("java")).unwrap().0, 1);
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((2, 0, 2)));
    assert_eq!(told.boots.load(Ordering::SeqCst), 3);
}

#[derive(Debug)]
struct TwiceTaken;

impl CapacityPolicy for TwiceTaken {
    fn target(&mut self, input: &CapacityInput) -> u32 {
        assert_eq!(input.slot, SECOND);
        input.taken * 2
    }
}

#[tokio::test(start_paused = true)]
async fn capacity_follows_the_policy_within_its_bounds() {
    let (told, runtime) = stemmed();
    let mut config = config(&runtime, &[("java", 1, 6, 1 << 20)]);
    config.stems.slot = SECOND;
    config.stems.capacity = Some(Arc::new(|_: &StemClass| Box::new(TwiceTaken)));
    let pool = InstancePool::new(config);
    tokio::time::sleep(500 * MS).await;
    assert_eq!(counts(&pool, &class("java")).unwrap().2, 1);
    for n in 0..5 {
        let key = pool.register(app(&runtime, &format!("a{n}"), "java", |_| {})).unwrap();
        let pool = Arc::clone(&pool);
        tokio::spawn(async move { drop(claim(&pool, key, SECOND).await) });
    }
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")).unwrap().2, 6, "2 × 5, at most 6");
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((1, 0, 1)), "nothing taken: back to the minimum");
    assert!(told.stopped.load(Ordering::SeqCst) >= 4);
}

#[tokio::test(start_paused = true)]
async fn classes_share_the_memory_and_none_starves() {
    let (_, runtime) = stemmed();
    let mut config = config(&runtime, &[("big", 100, 100, 10 << 20), ("small", 3, 3, 1 << 20)]);
    config.stems.memory_bytes = 64 << 20;
    let pool = InstancePool::new(config);
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(counts(&pool, &class("small")), Some((3, 0, 3)));
    assert_eq!(counts(&pool, &class("big")), Some((6, 0, 6)));
}

#[tokio::test(start_paused = true)]
async fn stems_go_first_when_memory_is_short() {
    let (told, runtime) = stemmed();
    let mut config = config(&runtime, &[("java", 3, 3, 100 << 20)]);
    config.budget.memory_bytes = 400 << 20;
    config.budget.reserve = 0.0;
    let pool = InstancePool::new(config);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(counts(&pool, &class("java")).unwrap().0, 3);
    let key = pool
        .register(app(&runtime, "a", "none", |spec| spec.resources.memory_limit_bytes = Some(250 << 20)))
        .unwrap();
    let lease = claim(&pool, key, 2 * SECOND).await.unwrap();
    assert_eq!(told.stopped.load(Ordering::SeqCst), 2, "150 MiB of 300 were needed");
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(counts(&pool, &class("java")).unwrap().0, 1, "and are not booted again while it runs");
    drop(lease);
    pool.set_desired(key, 0);
    tokio::time::sleep(61 * SECOND).await;
    assert_eq!(counts(&pool, &class("java")).unwrap().0, 3);
}

#[tokio::test(start_paused = true)]
async fn a_budget_smaller_than_a_stem_is_refused_with_the_field() {
    let (_, runtime) = stemmed();
    let mut config = config(&runtime, &[("java", 1, 1, 2 << 30)]);
    config.stems.memory_bytes = 1 << 30;
    let error = config.validate().unwrap_err().to_string();
    assert!(error.contains("stems.classes[java].memory_bytes") && error.contains("at most"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn shutdown_stops_the_stems_and_joins_their_boots() {
    let (told, runtime) = stemmed();
    let pool = InstancePool::new(config(&runtime, &[("java", 2, 2, 1 << 20)]));
    tokio::time::sleep(300 * MS).await;
    let have = counts(&pool, &class("java")).unwrap().0;
    pool.shutdown(tokio::time::Instant::now() + SECOND).await;
    assert_eq!(told.stopped.load(Ordering::SeqCst), have);
    assert_eq!(counts(&pool, &class("java")).unwrap().0, 0);
}

fn automatic(min: u32, classes: u32) -> PoolConfig {
    let mut automatic = AutomaticStems::default();
    automatic.min = min;
    automatic.max = 4;
    automatic.memory_bytes = 1 << 20;
    automatic.classes = classes;
    let mut config = PoolConfig::default();
    config.stems.automatic = Some(automatic);
    config
}

#[tokio::test(start_paused = true)]
async fn a_class_is_held_from_the_first_revision_that_can_come_from_it_to_the_last() {
    let (told, runtime) = stemmed();
    let pool = InstancePool::new(automatic(1, 16));
    assert_eq!(pool.stems(), []);
    let one = pool.register(app(&runtime, "a", "java", |_| {})).unwrap();
    let two = pool.register(app(&runtime, "b", "java", |_| {})).unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((1, 0, 1)));
    let lease = claim(&pool, one, SECOND).await.unwrap();
    assert!(lease.start.as_deref().unwrap().from_stem, "without a word of configuration");
    drop(lease);
    tokio::time::sleep(SECOND).await;
    pool.unregister(one);
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((1, 0, 1)), "another revision can come from it");
    pool.unregister(two);
    tokio::time::sleep(SECOND).await;
    let view = pool.stems().remove(0);
    assert_eq!((view.ready, view.size, view.reason), (0, 0, CapacityReason::Unused));
    assert_eq!((view.booted, view.used, view.missed, view.wasted, view.failed), (2, 1, 0, 1, 0));
    assert_eq!(told.stopped.load(Ordering::SeqCst), 1);
    let three = pool.register(app(&runtime, "c", "java", |_| {})).unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("java")), Some((1, 0, 1)), "held again");
    pool.unregister(three);
}

#[tokio::test(start_paused = true)]
async fn more_classes_than_may_be_held_start_cold_until_one_goes() {
    let (_, runtime) = stemmed();
    let pool = InstancePool::new(automatic(1, 1));
    let one = pool.register(app(&runtime, "a", "java", |_| {})).unwrap();
    let two = pool.register(app(&runtime, "b", "node", |_| {})).unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("node")), None);
    let lease = claim(&pool, two, SECOND).await.unwrap();
    assert!(!lease.start.as_deref().unwrap().from_stem);
    drop(lease);
    pool.unregister(one);
    tokio::time::sleep(SECOND).await;
    pool.register(app(&runtime, "c", "node", |_| {})).unwrap();
    tokio::time::sleep(SECOND).await;
    assert_eq!(counts(&pool, &class("node")), Some((1, 0, 1)));
    assert_eq!(counts(&pool, &class("java")), None);
}

#[tokio::test(start_paused = true)]
async fn a_size_says_why() {
    let (_, runtime) = stemmed();
    let mut config = automatic(1, 4);
    config.stems.slot = SECOND;
    config.stems.memory_bytes = 3 << 20;
    config.stems.capacity = Some(Arc::new(|_: &StemClass| Box::new(TwiceTaken)));
    let pool = InstancePool::new(config);
    let keys: Vec<_> =
        (0..5).map(|n| pool.register(app(&runtime, &format!("a{n}"), "java", |_| {})).unwrap()).collect();
    assert_eq!(pool.stems()[0].reason, CapacityReason::New);
    tokio::time::sleep(1500 * MS).await;
    assert_eq!(pool.stems()[0].reason, CapacityReason::Minimum, "nothing was taken");
    drop(claim(&pool, keys[0], SECOND).await.unwrap());
    tokio::time::sleep(SECOND).await;
    let view = pool.stems().remove(0);
    assert_eq!((view.size, view.wanted, view.reason), (2, 2, CapacityReason::Law));
    for key in &keys[1..3] {
        drop(claim(&pool, *key, SECOND).await.unwrap());
    }
    tokio::time::sleep(SECOND).await;
    let view = pool.stems().remove(0);
    assert_eq!((view.size, view.wanted, view.reason), (3, 4, CapacityReason::Memory));
}
