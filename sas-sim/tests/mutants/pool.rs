use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Artifact, Capabilities, Claim, ClaimError, Clock, Cx, Deployed, ExitReport, Instance, InstanceEvents,
    InstanceId, InstanceView, Lease, LeaseOwner, Load, Outcome, Pool, Result, RevisionKey, RevisionSpec,
    RevisionStatus, Runtime, StartPhase, StartRequest, StartTimings, Timestamp, WaitList, Waiting,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_testkit::{
    fake::FakeClock,
    pool::{Subject, suite},
};
use tokio::time::Instant;

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// No bug: the base of the others.
    Sound,
    StartsWhenRegistered,
    TryClaimStarts,
    HidesHowTheStartWent,
    WarmClaimsLookCold,
    OneLeaseTooMany,
    LosesPlacesInLine,
    DroppedClaimsStayInLine,
    DroppedClaimsTakeTheirStartAlong,
    AnswersAfterTheDeadline,
    QueueWithoutEnd,
    ProbesWake,
    ForgetsWhomToExclude,
    LeasesDieWithTheirThread,
    UnregisterForgetsWhoWaits,
    KeysComeBack,
    SharesInstances,
    OneStartPerClaim,
    StartsOneMore,
    IgnoresMax,
    IgnoresMin,
    NeverShrinks,
    HearsTheFirstOfMany,
    WishesKeepClaimsOut,
    ShrinksTheBusy,
    CutsTheBusy,
    NeverWakesAgain,
    DrainDoesNotWait,
    DrainWaitsForEver,
    DroppedDrainClosesTheRevision,
    TellsNobodyThatItDrains,
    CountsTestRuns,
    TellsLoadsOfSleepers,
    ForgetsWhoWaitsInLoads,
    LoadsThatAreNoNumbers,
    HidesStartErrors,
    TriesForEver,
    NeverTriesAgain,
    WaitsForHungStarts,
    GivesOutTheDead,
    CountsExitsTwice,
    RecyclesAnything,
    RecycleCuts,
    ShutdownCuts,
    ShutdownWaitsForEver,
    ShutdownForgetsWhoWaits,
    RegistersWhileShuttingDown,
    LivesByTheWallClock,
}

/// The production pool behind a bug.
#[derive(Debug)]
struct Broken {
    inner: Arc<InstancePool>,
    bug: Bug,
    clock: FakeClock,
    calls: AtomicU64,
    closed: AtomicBool,
    /// Keys that were given back, and what keys stand for, where keys come back.
    free: Mutex<Vec<RevisionKey>>,
    keys: Mutex<BTreeMap<u64, RevisionKey>>,
    revisions: Mutex<Vec<RevisionKey>>,
    wishes: Mutex<BTreeMap<u64, u32>>,
    /// Revisions that the bug has spoilt.
    spoilt: Arc<Mutex<BTreeSet<u64>>>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Lease, ClaimError>> + Send>>;

/// A claim that goes its own way.
struct OwnWay {
    future: Mutex<Option<Answer>>,
    /// Goes on when its claim is dropped.
    stays: bool,
    /// What happens when its claim is dropped.
    left: Box<dyn Fn() + Send + Sync>,
}

impl WaitList for OwnWay {
    fn poll(&self, _: u64, cx: &mut Context<'_>) -> Poll<Result<Lease, ClaimError>> {
        match &mut *self.future.lock() {
            Some(future) => future.as_mut().poll(cx),
            None => Poll::Ready(Err(ClaimError::Closed)),
        }
    }

    fn leave(&self, _: u64) {
        let future = self.future.lock().take();
        if self.stays
            && let Some(future) = future
        {
            tokio::spawn(async move { std::mem::forget(future.await) });
        }
        (self.left)();
    }
}

fn own_way(future: impl Future<Output = Result<Lease, ClaimError>> + Send + 'static) -> Waiting {
    let list = OwnWay { future: Mutex::new(Some(Box::pin(future))), stays: false, left: Box::new(|| {}) };
    Waiting::queued(Arc::new(list), 0)
}

/// A lease that has another owner than the pool.
struct Owner {
    lease: Mutex<Option<Lease>>,
    thread: Option<std::thread::ThreadId>,
}

impl LeaseOwner for Owner {
    fn release(&self, _: u64, outcome: Outcome) {
        let Some(mut lease) = self.lease.lock().take() else { return };
        if self.thread.is_none_or(|thread| thread == std::thread::current().id()) {
            lease.outcome = outcome;
        } else {
            std::mem::forget(lease);
        }
    }
}

fn owned(lease: Lease, thread: Option<std::thread::ThreadId>) -> Lease {
    let (instance, start) = (Arc::clone(&lease.instance), lease.start.clone());
    let mut owned = Lease::new(instance, Arc::new(Owner { lease: Mutex::new(Some(lease)), thread }), 0);
    owned.start = start;
    owned
}

/// It only comes back in the thread that took it.
fn own_thread(lease: Lease) -> Lease {
    owned(lease, Some(std::thread::current().id()))
}

/// It does not tell that its instance drains.
fn untold(lease: Lease) -> Lease {
    owned(lease, None)
}

/// A runtime between the suite's and the pool, with a bug in what the pool is told.
#[derive(Debug)]
struct Between {
    inner: Arc<dyn Runtime>,
    bug: Bug,
}

#[derive(Debug)]
struct Events {
    inner: Arc<dyn InstanceEvents>,
    bug: Bug,
    told: AtomicBool,
}

impl InstanceEvents for Events {
    fn phase(&self, id: InstanceId, phase: StartPhase) {
        self.inner.phase(id, phase);
    }

    fn exited(&self, id: InstanceId, report: ExitReport) {
        if self.bug == Bug::CountsExitsTwice && self.told.swap(true, SeqCst) {
            // What was counted already is booked on the neighbours.
            self.inner.exited(InstanceId(id.0 + 1), report.clone());
            self.inner.exited(InstanceId(id.0.wrapping_sub(1)), report);
            return;
        }
        if self.bug == Bug::GivesOutTheDead {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(10)).await;
                inner.exited(id, report);
            });
            return;
        }
        self.inner.exited(id, report);
    }
}

#[async_trait]
impl Runtime for Between {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.inner.prepare(spec).await
    }

    async fn start(&self, mut request: StartRequest) -> Result<Arc<dyn Instance>> {
        request.events =
            Arc::new(Events { inner: request.events, bug: self.bug, told: AtomicBool::new(false) });
        self.inner.start(request).await
    }

    async fn quiesce(&self) {
        self.inner.quiesce().await;
    }
}

impl Broken {
    fn new(bug: Bug) -> Arc<Self> {
        let clock = FakeClock::starting_at(Timestamp::from_secs(1_767_571_200));
        let mut config = PoolConfig::seeded(1);
        config.clock = Arc::new(clock.clone());
        if bug == Bug::TriesForEver {
            config.backoff.attempts = u32::MAX;
        }
        Arc::new(Self {
            inner: InstancePool::new(config),
            bug,
            clock,
            calls: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            free: Mutex::default(),
            keys: Mutex::default(),
            revisions: Mutex::default(),
            wishes: Mutex::default(),
            spoilt: Arc::default(),
        })
    }

    fn key(&self, key: RevisionKey) -> RevisionKey {
        if self.bug == Bug::KeysComeBack {
            return self.keys.lock().get(&key.0).copied().unwrap_or(key);
        }
        if self.bug == Bug::SharesInstances {
            return self.revisions.lock().first().copied().unwrap_or(key);
        }
        key
    }

    /// Each `every`-th time.
    fn strikes(&self, every: u64) -> bool {
        self.calls.fetch_add(1, SeqCst) % every == every - 1
    }

    fn is_spoilt(&self, key: RevisionKey) -> bool {
        self.spoilt.lock().contains(&key.0)
    }

    fn in_flight(&self, key: RevisionKey) -> u32 {
        self.inner.instances(key).iter().map(|view| view.in_flight).sum()
    }
}

#[async_trait]
impl Pool for Broken {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        let mut deployed = (*deployed).clone();
        let mut spec = (*deployed.spec).clone();
        match self.bug {
            Bug::OneLeaseTooMany if spec.concurrency > 0 => spec.concurrency += 1,
            Bug::QueueWithoutEnd => spec.queue_limit = 10_000,
            Bug::OneStartPerClaim if spec.concurrency == 0 => spec.concurrency = 1,
            Bug::IgnoresMax => spec.scaling.max = 0,
            Bug::IgnoresMin => spec.scaling.min = 0,
            Bug::WaitsForHungStarts => spec.timeouts.start = Duration::from_secs(3600),
            _ => {}
        }
        if self.bug == Bug::RegistersWhileShuttingDown && self.closed.load(SeqCst) {
            return Ok(RevisionKey(7));
        }
        deployed.spec = Arc::new(spec);
        deployed.runtime = Arc::new(Between { inner: deployed.runtime, bug: self.bug });
        let key = self.inner.register(Arc::new(deployed))?;
        self.revisions.lock().push(key);
        if self.bug == Bug::StartsWhenRegistered {
            self.inner.set_desired(key, 1);
        }
        if self.bug == Bug::KeysComeBack
            && let Some(before) = self.free.lock().pop()
        {
            self.keys.lock().insert(before.0, key);
            return Ok(before);
        }
        Ok(key)
    }

    fn unregister(&self, revision: RevisionKey) {
        match self.bug {
            Bug::UnregisterForgetsWhoWaits if self.in_flight(revision) > 0 => {}
            Bug::KeysComeBack => {
                self.inner.unregister(self.key(revision));
                self.keys.lock().remove(&revision.0);
                self.free.lock().push(revision);
            }
            _ => self.inner.unregister(revision),
        }
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.inner.deployed(self.key(revision))
    }

    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        let mut claim = *claim;
        claim.revision = self.key(claim.revision);
        claim.metered |= self.bug == Bug::CountsTestRuns;
        let lease = self.inner.try_claim(&claim);
        match (self.bug, lease) {
            (Bug::TryClaimStarts, None) => {
                self.inner.set_desired(claim.revision, 1);
                None
            }
            (Bug::WarmClaimsLookCold, Some(lease)) => {
                Some(lease.after_start(Arc::new(StartTimings::default())))
            }
            (Bug::LeasesDieWithTheirThread, Some(lease)) => Some(own_thread(lease)),
            (Bug::TellsNobodyThatItDrains, Some(lease)) => Some(untold(lease)),
            (_, lease) => lease,
        }
    }

    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        let (mut claim, mut cx) = (*claim, *cx);
        claim.revision = self.key(claim.revision);
        let revision = claim.revision;
        let pool = Arc::clone(&self.inner);
        let spoilt = Arc::clone(&self.spoilt);
        match self.bug {
            Bug::AnswersAfterTheDeadline => cx.deadline += Duration::from_secs(3),
            Bug::ProbesWake => claim.wakes = true,
            Bug::ForgetsWhomToExclude => claim.exclude = None,
            Bug::StartsOneMore => {
                let ready = self.inner.status(revision).map_or(0, |it| it.queued);
                self.inner.set_desired(revision, ready.div_ceil(10) + 1);
            }
            Bug::NeverWakesAgain if self.is_spoilt(revision) => {
                return Waiting::ready(Err(ClaimError::Asleep));
            }
            Bug::DroppedDrainClosesTheRevision if self.is_spoilt(revision) => {
                return Waiting::ready(Err(ClaimError::Closed));
            }
            Bug::HidesHowTheStartWent => {
                return own_way(async move {
                    let mut lease = pool.claim(&claim, &cx).await?;
                    lease.start = None;
                    Ok(lease)
                });
            }
            Bug::LosesPlacesInLine if self.strikes(2) => {
                return own_way(async move {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    pool.claim(&claim, &cx).await
                });
            }
            Bug::DroppedClaimsStayInLine => {
                let future: Answer = Box::pin(async move { pool.claim(&claim, &cx).await });
                let list = OwnWay { future: Mutex::new(Some(future)), stays: true, left: Box::new(|| {}) };
                return Waiting::queued(Arc::new(list), 0);
            }
            Bug::DroppedClaimsTakeTheirStartAlong => {
                let victims = Arc::clone(&pool);
                let left = Box::new(move || {
                    let victims = Arc::clone(&victims);
                    tokio::spawn(async move { victims.drain(revision, Duration::ZERO).await });
                });
                let future: Answer = Box::pin(async move { pool.claim(&claim, &cx).await });
                let list = OwnWay { future: Mutex::new(Some(future)), stays: false, left };
                return Waiting::queued(Arc::new(list), 0);
            }
            Bug::WishesKeepClaimsOut => {
                let wish = self.wishes.lock().get(&revision.0).copied().unwrap_or(0);
                let there = self.inner.instances(revision).len();
                if wish > 0 && there >= wish as usize {
                    return own_way(async move {
                        loop {
                            if let Some(lease) = pool.try_claim(&claim) {
                                return Ok(lease);
                            }
                            if Instant::now() > cx.deadline {
                                return Err(ClaimError::Deadline);
                            }
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    });
                }
            }
            Bug::HidesStartErrors => {
                return own_way(async move {
                    match pool.claim(&claim, &cx).await {
                        Err(ClaimError::Start { .. }) => {
                            tokio::time::sleep_until(cx.deadline).await;
                            Err(ClaimError::Deadline)
                        }
                        answer => answer,
                    }
                });
            }
            Bug::NeverTriesAgain => {
                if self.is_spoilt(revision) {
                    let error = sas_core::Error::new(sas_core::ErrorKind::Crashed, "start", "as before");
                    let retry_after = Duration::from_secs(1);
                    return Waiting::ready(Err(ClaimError::Start { error: Arc::new(error), retry_after }));
                }
                return own_way(async move {
                    let answer = pool.claim(&claim, &cx).await;
                    if matches!(answer, Err(ClaimError::Start { .. })) {
                        spoilt.lock().insert(revision.0);
                    }
                    answer
                });
            }
            Bug::ShutdownForgetsWhoWaits => {
                return own_way(async move {
                    match pool.claim(&claim, &cx).await {
                        Err(ClaimError::Closed) => std::future::pending().await,
                        answer => answer,
                    }
                });
            }
            Bug::LeasesDieWithTheirThread => {
                return own_way(async move { pool.claim(&claim, &cx).await.map(own_thread) });
            }
            Bug::TellsNobodyThatItDrains => {
                return own_way(async move { pool.claim(&claim, &cx).await.map(untold) });
            }
            Bug::LivesByTheWallClock => {
                // A deadline by the wall clock: after a jump nobody has time left.
                let clock = self.clock.clone();
                let until = clock.now() + (cx.deadline - Instant::now());
                return own_way(async move {
                    let lease = pool.claim(&claim, &cx).await?;
                    if clock.now() > until { Err(ClaimError::Deadline) } else { Ok(lease) }
                });
            }
            _ => {}
        }
        self.inner.claim(&claim, &cx)
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        let revision = self.key(revision);
        let before = self.wishes.lock().insert(revision.0, desired).unwrap_or(0);
        let views = self.inner.instances(revision);
        match self.bug {
            Bug::NeverShrinks if desired < before => return,
            Bug::ShrinksTheBusy if desired < before => {
                let busy = views.iter().filter(|view| view.in_flight > 0);
                for view in busy.take((before - desired) as usize) {
                    self.inner.recycle(revision, view.id, Duration::ZERO);
                }
            }
            Bug::CutsTheBusy if desired == 0 => {
                let pool = Arc::clone(&self.inner);
                tokio::spawn(async move { pool.drain(revision, Duration::ZERO).await });
            }
            Bug::NeverWakesAgain if desired == 0 && !views.is_empty() => {
                self.spoilt.lock().insert(revision.0);
            }
            _ => {}
        }
        self.inner.set_desired(revision, desired);
    }

    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        let heard = if self.bug == Bug::HearsTheFirstOfMany { 1 } else { decisions.len() };
        for (revision, desired) in decisions.iter().take(heard) {
            self.set_desired(*revision, *desired);
        }
    }

    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        self.inner.instances(self.key(revision))
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        self.inner.status(self.key(revision))
    }

    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        let grace = if self.bug == Bug::RecycleCuts { Duration::ZERO } else { grace };
        self.inner.recycle(self.key(revision), instance, grace) || self.bug == Bug::RecyclesAnything
    }

    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        let mut seen = BTreeSet::new();
        self.inner.take_load(shard, &mut |load, deployed| {
            let mut load = *load;
            seen.insert(load.revision.0);
            match self.bug {
                Bug::ForgetsWhoWaitsInLoads => load.queued = 0,
                Bug::LoadsThatAreNoNumbers => {
                    load.cpu = load.cpu.map(|cpu| if cpu > 1e3 { f64::INFINITY } else { cpu });
                    load.memory = load.memory.map(|memory| if memory > 1e15 { f64::NAN } else { memory });
                }
                _ => {}
            }
            visit(&load, deployed);
        });
        if self.bug == Bug::TellsLoadsOfSleepers && shard == 0 {
            for key in self.revisions.lock().iter().filter(|key| !seen.contains(&key.0)) {
                if let Some(deployed) = self.inner.deployed(*key) {
                    visit(&Load::idle(*key), &deployed);
                }
            }
        }
    }

    fn shards(&self) -> usize {
        self.inner.shards()
    }

    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        let revision = self.key(revision);
        match self.bug {
            Bug::DrainDoesNotWait => {
                let pool = Arc::clone(&self.inner);
                tokio::spawn(async move { pool.drain(revision, grace).await });
            }
            Bug::DrainWaitsForEver => self.inner.drain(revision, grace + Duration::from_secs(600)).await,
            Bug::DroppedDrainClosesTheRevision => {
                self.spoilt.lock().insert(revision.0);
                self.inner.drain(revision, grace).await;
                self.spoilt.lock().remove(&revision.0);
            }
            _ => self.inner.drain(revision, grace).await,
        }
    }

    async fn shutdown(&self, deadline: Instant) {
        self.closed.store(true, SeqCst);
        match self.bug {
            Bug::ShutdownCuts => self.inner.shutdown(Instant::now()).await,
            Bug::ShutdownWaitsForEver => self.inner.shutdown(deadline + Duration::from_secs(600)).await,
            _ => self.inner.shutdown(deadline).await,
        }
    }
}

const MUTANTS: [(Bug, &str); 47] = [
    (Bug::StartsWhenRegistered, "a registered revision has no instance"),
    (Bug::TryClaimStarts, "try_claim never starts"),
    (Bug::HidesHowTheStartWent, "tells how its start went"),
    (Bug::WarmClaimsLookCold, "a warm claim"),
    (Bug::OneLeaseTooMany, "more leases out than its limit"),
    (Bug::LosesPlacesInLine, "goes to the next in line"),
    (Bug::DroppedClaimsStayInLine, "a dropped claim leaves the queue"),
    (Bug::DroppedClaimsTakeTheirStartAlong, "its start goes on"),
    (Bug::AnswersAfterTheDeadline, "at the latest at its deadline"),
    (Bug::QueueWithoutEnd, "a full queue refuses"),
    (Bug::ProbesWake, "a probe wakes nothing"),
    (Bug::ForgetsWhomToExclude, "an excluded instance"),
    (Bug::LeasesDieWithTheirThread, "dropped by any thread"),
    (Bug::UnregisterForgetsWhoWaits, "unregistering fails what waits"),
    (Bug::KeysComeBack, "a key is never used again"),
    (Bug::SharesInstances, "each other's instances"),
    (Bug::OneStartPerClaim, "unlimited concurrency start one"),
    (Bug::StartsOneMore, "start exactly ten"),
    (Bug::IgnoresMax, "max holds"),
    (Bug::IgnoresMin, "has it without a claim"),
    (Bug::NeverShrinks, "a wish grows and shrinks"),
    (Bug::HearsTheFirstOfMany, "wishes that are told together"),
    (Bug::WishesKeepClaimsOut, "an older wish"),
    (Bug::ShrinksTheBusy, "idle instances before busy"),
    (Bug::CutsTheBusy, "only after its drain"),
    (Bug::NeverWakesAgain, "sleeps and wakes again"),
    (Bug::DrainDoesNotWait, "drain resolves when all are gone"),
    (Bug::DrainWaitsForEver, "drain ends at its grace"),
    (Bug::DroppedDrainClosesTheRevision, "a drain that is dropped"),
    (Bug::TellsNobodyThatItDrains, "told until when"),
    (Bug::CountsTestRuns, "load tells"),
    (Bug::TellsLoadsOfSleepers, "load tells"),
    (Bug::ForgetsWhoWaitsInLoads, "load tells"),
    (Bug::LoadsThatAreNoNumbers, "usage that lies"),
    (Bug::HidesStartErrors, "fails what waits, with its error"),
    (Bug::TriesForEver, "repeated failures fail fast"),
    (Bug::NeverTriesAgain, "the pool recovers"),
    (Bug::WaitsForHungStarts, "a start that hangs"),
    (Bug::GivesOutTheDead, "never given out"),
    (Bug::CountsExitsTwice, "told twice counts once"),
    (Bug::RecyclesAnything, "recycle replaces"),
    (Bug::RecycleCuts, "recycle replaces"),
    (Bug::ShutdownCuts, "lets running calls finish"),
    (Bug::ShutdownWaitsForEver, "ends at its deadline"),
    (Bug::ShutdownForgetsWhoWaits, "answers those who wait"),
    (Bug::RegistersWhileShuttingDown, "takes no revision in"),
    (Bug::LivesByTheWallClock, "a wall clock that jumps"),
];

fn subject(bug: Bug) -> Subject {
    let broken = Broken::new(bug);
    let clock = broken.clock.clone();
    Subject::new(broken, Duration::from_secs(31)).on_clock(clock)
}

#[tokio::test(start_paused = true)]
async fn every_broken_pool_is_refused() {
    suite(async || ((), subject(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in MUTANTS {
        let report = suite(async || ((), subject(bug))).await;
        caught(bug, &report, by);
    }
}
