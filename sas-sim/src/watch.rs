//! What the simulator puts between production parts: it writes down what passes, and breaks it where a bug is planted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_control::Meter;
use sas_core::{
    CallError, Claim, ClaimError, Commit, Cx, DecisionRecord, DecisionSink, Deployed, Entry, Error,
    ErrorKind, Instance, InstanceId, InstanceView, Invoker, Lease, Load, MeterPhase, MeterSink, Metered,
    Pool, PoolBudget, PoolDecision, PoolTotals, Quotas, Reason, Request, RequestUsage, Response, Result,
    RevisionKey, RevisionSpec, RevisionStatus, Runtime, SizeBounds, SpecErrors, StemView, Store, StoreLimits,
    Target, UsageQuery, Version, WaitList, Waiting, Watched, Write,
};
use sas_pool::InstancePool;
use tokio::time::Instant;

use crate::{
    Plant,
    books::Books,
    history::{Fact, History},
};

/// What the parts of one host life share.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) history: Arc<History>,
    pub(crate) epoch: u64,
    pub(crate) plant: Option<Plant>,
    pub(crate) dead: AtomicBool,
    count: AtomicU64,
    /// Claims that the planted bug keeps from the pool.
    overlooked: AtomicU64,
    pub(crate) books: Arc<Books>,
}

impl Life {
    pub(crate) fn new(
        history: Arc<History>,
        books: Arc<Books>,
        epoch: u64,
        plant: Option<Plant>,
    ) -> Arc<Self> {
        Arc::new(Self {
            history,
            books,
            epoch,
            plant,
            dead: AtomicBool::new(false),
            count: AtomicU64::new(0),
            overlooked: AtomicU64::new(0),
        })
    }

    fn tell(&self, fact: Fact) {
        if !self.dead.load(SeqCst) {
            self.history.tell(fact);
        }
    }

    /// Whether the planted bug strikes now: each `every`-th time.
    fn strikes(&self, plant: Plant, every: u64) -> bool {
        self.plant == Some(plant) && self.count.fetch_add(1, SeqCst) % every == every - 1
    }

    pub(crate) fn revision(&self, key: RevisionKey) -> u64 {
        // Generations are small; the epoch goes above them.
        (self.epoch << 48) ^ key.0
    }
}

/// The pool as gateway, driver and control see it.
#[derive(Debug)]
pub(crate) struct WatchedPool {
    pub(crate) inner: Arc<InstancePool>,
    pub(crate) life: Arc<Life>,
}

/// A place in line that nobody looks at for some seconds, whatever is free.
struct Overlooked {
    pool: Arc<InstancePool>,
    life: Arc<Life>,
    claim: Claim,
    cx: Cx,
    state: Mutex<LookState>,
}

enum LookState {
    Waiting(std::pin::Pin<Box<tokio::time::Sleep>>),
    Seen(std::pin::Pin<Box<Waiting>>),
    Done,
}

impl WaitList for Overlooked {
    fn poll(&self, _: u64, cx: &mut Context<'_>) -> Poll<Result<Lease, ClaimError>> {
        let mut place = self.state.lock();
        loop {
            match &mut *place {
                LookState::Waiting(sleep) => {
                    std::task::ready!(sleep.as_mut().poll(cx));
                    self.life.overlooked.fetch_sub(1, SeqCst);
                    *place = LookState::Seen(Box::pin(self.pool.claim(&self.claim, &self.cx)));
                }
                LookState::Seen(waiting) => {
                    let answer = std::task::ready!(waiting.as_mut().poll(cx));
                    *place = LookState::Done;
                    return Poll::Ready(answer);
                }
                LookState::Done => return Poll::Ready(Err(ClaimError::Closed)),
            }
        }
    }

    fn leave(&self, _: u64) {
        let left = std::mem::replace(&mut *self.state.lock(), LookState::Done);
        if matches!(left, LookState::Waiting(_)) {
            self.life.overlooked.fetch_sub(1, SeqCst);
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Pool for WatchedPool {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        if self.life.plant == Some(Plant::RaisesLimits) && deployed.spec.concurrency > 0 {
            let mut spec = (*deployed.spec).clone();
            spec.concurrency += 1;
            let mut raised = Deployed::clone(&deployed);
            raised.spec = Arc::new(spec);
            return self.inner.register(Arc::new(raised));
        }
        self.inner.register(deployed)
    }

    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        self.inner.admits(spec, runtime)
    }

    fn unregister(&self, revision: RevisionKey) {
        self.inner.unregister(revision);
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.inner.deployed(revision)
    }

    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        let lease = self.inner.try_claim(claim)?;
        if self.life.strikes(Plant::LeaksLeases, 10) {
            std::mem::forget(self.inner.try_claim(claim));
        }
        Some(lease)
    }

    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        if self.life.strikes(Plant::LosesWakeups, 3) {
            self.life.overlooked.fetch_add(1, SeqCst);
            let sleep = Box::pin(tokio::time::sleep(Duration::from_secs(5)));
            return Waiting::queued(
                Arc::new(Overlooked {
                    pool: Arc::clone(&self.inner),
                    life: Arc::clone(&self.life),
                    claim: *claim,
                    cx: *cx,
                    state: Mutex::new(LookState::Waiting(sleep)),
                }),
                0,
            );
        }
        self.inner.claim(claim, cx)
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        if self.life.plant == Some(Plant::NeverSleeps) && desired == 0 {
            return;
        }
        self.life.tell(Fact::Wished { revision: self.life.revision(revision), desired });
        self.inner.set_desired(revision, desired);
        if self.life.strikes(Plant::WishesOfItsOwn, 20) {
            self.life.tell(Fact::Wished { revision: self.life.revision(revision), desired: desired + 7 });
        }
    }

    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        let sleepless = self.life.plant == Some(Plant::NeverSleeps);
        let heard: Vec<(RevisionKey, u32)> =
            decisions.iter().filter(|(_, desired)| !sleepless || *desired > 0).copied().collect();
        for (revision, desired) in &heard {
            self.life.tell(Fact::Wished { revision: self.life.revision(*revision), desired: *desired });
        }
        // The production pool's own way, which takes its locks once for many.
        self.inner.set_desired_all(&heard);
        for (revision, desired) in heard {
            if self.life.strikes(Plant::WishesOfItsOwn, 20) {
                self.life.tell(Fact::Wished { revision: self.life.revision(revision), desired: desired + 7 });
            }
        }
    }

    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        let told = bounds.map(|bounds| (bounds.floor, bounds.ceiling, bounds.limit));
        self.life.tell(Fact::Bounded { revision: self.life.revision(revision), bounds: told });
        if self.life.plant != Some(Plant::ForgetsBounds) {
            self.inner.set_bounds(revision, bounds);
        }
    }

    fn is_full(&self, revision: RevisionKey) -> bool {
        self.inner.is_full(revision)
    }

    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        self.inner.visit_short(shard, visit);
    }

    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        self.inner.instance(revision, id)
    }

    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        self.inner.instances(revision)
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        let mut status = self.inner.status(revision)?;
        status.queued += u32::try_from(self.life.overlooked.load(SeqCst)).unwrap_or(u32::MAX);
        Some(status)
    }

    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        if self.life.plant == Some(Plant::KeepsTheIll) {
            return true;
        }
        let recycled = self.inner.recycle(revision, instance, grace);
        if recycled {
            self.life.tell(Fact::Recycled { instance: (self.life.epoch << 48) ^ instance.0 });
        }
        recycled
    }

    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        self.inner.take_load(shard, visit);
    }

    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        let mut seen = |decision: &PoolDecision, deployed: &Arc<Deployed>| {
            if self.life.plant == Some(Plant::HidesActivations) && decision.reason == Reason::Activated {
                return;
            }
            let revision = self.life.revision(decision.revision);
            if self.inner.deployed(decision.revision).is_some() {
                let ahead = decision.reason == Reason::Expected;
                self.life.tell(Fact::OwnSize { revision, desired: decision.desired, ahead });
            }
            visit(decision, deployed);
        };
        self.inner.take_decisions(shard, &mut seen);
    }

    fn shards(&self) -> usize {
        self.inner.shards()
    }

    fn stems(&self) -> Vec<StemView> {
        self.inner.stems()
    }

    fn totals(&self) -> PoolTotals {
        self.inner.totals()
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        self.inner.quotas()
    }

    fn set_budget(&self, budget: PoolBudget) -> Result<()> {
        self.inner.set_budget(budget)
    }

    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        self.inner.drain(revision, grace).await;
    }

    async fn shutdown(&self, deadline: Instant) {
        self.inner.shutdown(deadline).await;
    }
}

/// Where decisions go.
#[derive(Debug)]
pub(crate) struct WatchedDecisions(pub(crate) Arc<Life>);

impl DecisionSink for WatchedDecisions {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        self.0.tell(Fact::Decided {
            revision: self.0.revision(revision),
            sequence: record.sequence,
            desired: record.decision.desired(),
            reason: format!("{:?}", record.decision.reason),
            grounds: record.load.concurrency.is_finite(),
        });
    }
}

/// Where readings go.
#[derive(Debug)]
pub(crate) struct WatchedMeter {
    pub(crate) inner: Arc<Meter>,
    pub(crate) life: Arc<Life>,
}

#[deny(clippy::missing_trait_methods)]
impl MeterSink for WatchedMeter {
    fn phase(&self, of: Metered<'_>, instance: InstanceId, phase: MeterPhase, ns: u64) {
        let life = &self.life;
        if !life.strikes(Plant::DropsReadings, 15) {
            life.tell(Fact::Metered { instance: (life.epoch << 48) ^ instance.0, ns });
        }
        // What the dead still say is written by nobody.
        if !life.dead.load(SeqCst) {
            life.books.read(of, ns);
        }
        self.inner.phase(of, instance, phase, ns);
    }

    fn resources(&self, of: Metered<'_>, instance: InstanceId, cpu_ns: u64, memory_byte_ns: u128) {
        self.inner.resources(of, instance, cpu_ns, memory_byte_ns);
    }

    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        let count = used.requests;
        if !self.life.strikes(Plant::DropsRequests, 40) {
            self.life.tell(Fact::MeteredRequests { epoch: self.life.epoch, count });
        }
        self.inner.requests(of, used);
    }

    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        self.inner.usage_query()
    }

    fn forget(&self, revision: RevisionKey) {
        self.inner.forget(revision);
    }
}

/// What triggers call through.
#[derive(Debug)]
pub(crate) struct WatchedInvoker {
    pub(crate) inner: Arc<dyn Invoker>,
    pub(crate) life: Arc<Life>,
}

#[async_trait]
impl Invoker for WatchedInvoker {
    async fn invoke(&self, target: Target, request: Request, cx: &Cx) -> Result<Response, CallError> {
        if self.life.plant == Some(Plant::SwallowsEvents) {
            return Ok(Response::new(sas_core::Body::empty()));
        }
        self.inner.invoke(target, request, cx).await
    }
}

/// The store as one host life sees it: gone when the host is.
#[derive(Debug)]
pub(crate) struct HostStore {
    pub(crate) inner: Arc<crate::store::SimStore>,
    pub(crate) life: Arc<Life>,
}

impl HostStore {
    fn alive(&self, operation: &'static str) -> Result<()> {
        if self.life.dead.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, operation, "simulated: the host is dead"));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for HostStore {
    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.alive("version")?;
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.alive("get")?;
        self.inner.get(key).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<Version> {
        self.alive("commit")?;
        let is_mark = |write: &Write| write.key.starts_with("usage/mark/");
        let forgotten = commit.writes.iter().any(is_mark) && self.life.strikes(Plant::ForgetsMarks, 3);
        if forgotten {
            commit.writes.retain(|write| !is_mark(write));
        }
        let keys: Vec<String> = commit.writes.iter().map(|write| write.key.clone()).collect();
        let version = self.inner.commit(commit).await?;
        if forgotten {
            return Err(Error::new(ErrorKind::Unavailable, "commit", "simulated: the answer is lost"));
        }
        self.life.books.committed(keys.iter().map(String::as_str));
        Ok(version)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.alive("list")?;
        self.inner.list(prefix, after, limit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.alive("watch")?;
        self.inner.watch(prefix, since).await
    }
}
