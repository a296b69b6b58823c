//! Starts that do not complete at once: the pool drives them itself, without a task for each.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, ClaimError, Deployed, Error, ErrorKind, Instance, Isolation, Pool,
    Result, RevisionName, RevisionSpec, Runtime, Source, StartRequest, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use tokio::{task::JoinSet, time::Instant};

use crate::fake::{FakeRuntime, MS, SECOND, Start, claim, deployed};

#[tokio::test(start_paused = true)]
async fn a_hundred_pending_starts_share_a_task() {
    let runtime = FakeRuntime::new(Start::After(100 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let keys: Vec<_> =
        (0..100).map(|n| pool.register(deployed(&runtime, &format!("r{n}"), |_| {})).unwrap()).collect();
    let mut claims = JoinSet::new();
    for key in keys {
        let pool = Arc::clone(&pool);
        claims.spawn(async move { claim(&pool, key, SECOND).await.unwrap() });
    }
    tokio::time::sleep(50 * MS).await;
    assert_eq!(runtime.starting.load(Ordering::SeqCst), 100);
    // The claims, the pool's clock and the one that drives the starts.
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 102);
    let leases = claims.join_all().await;
    assert!(leases.iter().all(|lease| lease.start.as_ref().unwrap().ready == 100 * MS));
}

#[tokio::test(start_paused = true)]
async fn each_start_ends_at_its_own_deadline() {
    let runtime = FakeRuntime::new(Start::Hang);
    let pool = InstancePool::new(PoolConfig::default());
    let begun = Instant::now();
    // The longest first, so that sooner ones come to a driver that sleeps already.
    let mut ends = JoinSet::new();
    for seconds in [7, 2, 5] {
        let timeout = Duration::from_secs(seconds);
        let key = pool
            .register(deployed(&runtime, &format!("r{seconds}"), |spec| spec.timeouts.start = timeout))
            .unwrap();
        pool.set_desired(key, 1);
        tokio::time::sleep(MS).await;
        let pool = Arc::clone(&pool);
        ends.spawn(async move {
            while pool.status(key).unwrap().failed_starts == 0 {
                tokio::time::sleep(10 * MS).await;
            }
            (seconds, begun.elapsed())
        });
    }
    for (seconds, after) in ends.join_all().await {
        let due = Duration::from_secs(seconds) + 500 * MS;
        assert!(after >= due && after <= due + 20 * MS, "{seconds} s: after {after:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pool_that_ends_answers_for_what_it_was_starting() {
    let runtime = FakeRuntime::new(Start::Hang);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let waits = {
        let pool = Arc::clone(&pool);
        tokio::spawn(async move { claim(&pool, key, 60 * SECOND).await.map(drop) })
    };
    tokio::time::sleep(MS).await;
    assert_eq!(runtime.starting.load(Ordering::SeqCst), 1);
    pool.shutdown(Instant::now() + SECOND).await;
    assert!(matches!(waits.await.unwrap(), Err(ClaimError::Closed)));
    assert_eq!(runtime.starting.load(Ordering::SeqCst), 0, "the start was dropped");
}

/// A start in steps that the test takes: pending until it is opened, counting how often it is polled.
#[derive(Debug, Default)]
struct Steps {
    polls: AtomicU32,
    waker: Mutex<Option<Waker>>,
    open: Mutex<Option<Ending>>,
}

#[derive(Clone, Copy, Debug)]
enum Ending {
    Fails,
    Panics,
    /// Keeps the thread busy for so long, and goes on after that.
    Burns(Duration),
}

impl Steps {
    fn end(&self, ending: Ending) {
        *self.open.lock().unwrap() = Some(ending);
        if let Some(waker) = self.waker.lock().unwrap().take() {
            waker.wake();
        }
    }
}

struct Stepping(Arc<Steps>);

impl Future for Stepping {
    type Output = Result<Arc<dyn Instance>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.polls.fetch_add(1, Ordering::SeqCst);
        *self.0.waker.lock().unwrap() = Some(cx.waker().clone());
        let ending = self.0.open.lock().unwrap().take();
        match ending {
            None => Poll::Pending,
            Some(Ending::Fails) => {
                Poll::Ready(Err(Error::new(ErrorKind::Crashed, "start", "as the test wants")))
            }
            Some(Ending::Panics) => panic!("as the test wants"),
            Some(Ending::Burns(time)) => {
                #[allow(clippy::disallowed_methods, reason = "a start that blocks is what is tested")]
                std::thread::sleep(time);
                Poll::Pending
            }
        }
    }
}

#[derive(Debug)]
struct Stepped(Arc<Steps>);

#[async_trait]
impl Runtime for Stepped {
    fn name(&self) -> &'static str {
        "stepped"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }
    async fn start(&self, _: StartRequest) -> Result<Arc<dyn Instance>> {
        Stepping(Arc::clone(&self.0)).await
    }
    async fn quiesce(&self) {}
}

fn stepped(steps: &Arc<Steps>) -> Arc<Deployed> {
    Arc::new(Deployed::new(
        Arc::new(Stepped(Arc::clone(steps))),
        Artifact::new((), ArtifactInfo::default()),
        Arc::new(RevisionSpec::new("stepped", Source::Function("a".into()))),
        RevisionName::new("default", "a", "a"),
        TenantKey(1),
    ))
}

/// Until `reached`, for at most ten seconds of a loaded machine.
async fn until(mut reached: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if reached() {
            return;
        }
        tokio::time::sleep(5 * MS).await;
    }
    panic!("not reached");
}

#[tokio::test]
async fn a_start_that_panics_while_it_is_pending_harms_no_other() {
    let (steps, fine) = (Arc::new(Steps::default()), FakeRuntime::new(Start::After(50 * MS)));
    let mut config = PoolConfig::default();
    config.shards = 1;
    let pool = InstancePool::new(config);
    let bad = pool.register(stepped(&steps)).unwrap();
    let good = pool.register(deployed(&fine, "b", |_| {})).unwrap();
    pool.set_desired(bad, 1);
    pool.set_desired(good, 1);
    until(|| steps.polls.load(Ordering::SeqCst) == 1).await;
    steps.end(Ending::Panics);
    until(|| pool.status(bad).unwrap().failed_starts == 1).await;
    let error = pool.status(bad).unwrap().last_start_error.unwrap();
    assert!(error.to_string().contains("panicked"), "{error}");
    drop(claim(&pool, good, 10 * SECOND).await.unwrap());
}

#[tokio::test]
async fn a_start_that_keeps_the_thread_gets_a_task_of_its_own_and_still_ends() {
    let steps = Arc::new(Steps::default());
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(stepped(&steps)).unwrap();
    pool.set_desired(key, 1);
    until(|| steps.polls.load(Ordering::SeqCst) == 1).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    steps.end(Ending::Burns(50 * MS));
    until(|| tasks() == before + 1).await;
    // Polled once more by its task, so that it knows whom to wake.
    until(|| steps.polls.load(Ordering::SeqCst) >= 3).await;
    steps.end(Ending::Fails);
    until(|| pool.status(key).unwrap().failed_starts == 1).await;
}

#[tokio::test]
async fn wake_ups_in_vain_end_nothing() {
    let steps = Arc::new(Steps::default());
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(stepped(&steps)).unwrap();
    pool.set_desired(key, 1);
    for polls in 1..20 {
        until(|| steps.polls.load(Ordering::SeqCst) >= polls).await;
        let waker = steps.waker.lock().unwrap().clone().unwrap();
        waker.wake_by_ref();
        waker.wake_by_ref();
    }
    assert_eq!((pool.status(key).unwrap().starting, pool.status(key).unwrap().failed_starts), (1, 0));
    steps.end(Ending::Fails);
    until(|| pool.status(key).unwrap().failed_starts == 1).await;
    // The next start takes the same place; a waker of the last one is none of its business.
    let old = steps.waker.lock().unwrap().clone().unwrap();
    until(|| pool.status(key).unwrap().starting == 1).await;
    old.wake();
    assert_eq!(pool.status(key).unwrap().failed_starts, 1);
}
