//! Instances and the slots on them.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Cx, Deployed, Endpoint, Error, ErrorKind, Instance, InstanceId, Load, QuotaExceeded, Quotas, Reason,
    Result, Retry, RevisionKey, RevisionSpec, Runtime, SpecErrors, StartTimings, StemClass, TenantKey,
    Timestamp, Usage,
};

/// What a caller wants: any free slot of a revision, with hints.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Claim {
    /// The revision whose instance is wanted.
    pub revision: RevisionKey,
    /// The tenant on whose behalf is asked, for fairness and budgets.
    pub tenant: TenantKey,
    /// Callers with the same value want the same instance, if that is possible.
    pub affinity: Option<u64>,
    /// An instance that just failed this request.
    pub exclude: Option<InstanceId>,
    /// 0 is ordinary; higher goes first at the start gate.
    pub priority: u8,
    /// Whether the claim counts for scaling and metering; false for test runs and probes.
    pub metered: bool,
    /// Whether the claim may start an instance; false for probes, which then fail with [`ClaimError::Asleep`].
    pub wakes: bool,
    /// Bytes that the waiting request holds in memory, for the pool's queue budgets.
    pub bytes: u32,
}

impl Claim {
    /// An ordinary claim: metered, of priority 0, and it may wake the revision.
    pub const fn new(revision: RevisionKey, tenant: TenantKey) -> Self {
        Self {
            revision,
            tenant,
            affinity: None,
            exclude: None,
            priority: 0,
            metered: true,
            wakes: true,
            bytes: 0,
        }
    }
}

/// How the call on a lease went, for outlier ejection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// It answered.
    Ok,
    /// It answered with a server error, or too late.
    Failed,
    /// The connection or the instance was lost.
    Lost,
    /// The lease was given back without a call.
    Unused,
}

/// Who gets a slot back. Release is synchronous: it hands the slot to the next waiter, stamps idleness, meters.
pub trait LeaseOwner: Send + Sync + 'static {
    /// Takes the slot of `token` back. Called once per lease, from any thread, also from `Drop`: never blocks.
    fn release(&self, token: u64, outcome: Outcome);

    /// When the instance of `token` stops at the latest, once it drains; `None` while it stays. Whoever holds a
    /// lease for long (a stream, an upgraded connection) asks about once a second, so that it can end in order.
    fn draining(&self, token: u64) -> Option<Instant> {
        let _ = token;
        None
    }
}

/// One concurrency slot of one instance, given back on drop.
pub struct Lease {
    /// Where to send the request.
    pub instance: Arc<dyn Instance>,
    /// How it went; [`Outcome::Unused`] until somebody says.
    pub outcome: Outcome,
    /// The phases of the start that this claim waited for; `None` when a warm instance took it.
    pub start: Option<Arc<StartTimings>>,
    owner: Arc<dyn LeaseOwner>,
    token: u64,
}

impl Lease {
    /// A slot of `instance` that goes back to `owner` under `token`.
    pub fn new(instance: Arc<dyn Instance>, owner: Arc<dyn LeaseOwner>, token: u64) -> Self {
        Self { instance, outcome: Outcome::Unused, start: None, owner, token }
    }

    /// When the instance stops at the latest, once it drains; `None` while it stays.
    pub fn draining(&self) -> Option<Instant> {
        self.owner.draining(self.token)
    }

    /// The same, telling that the claim waited for a start.
    #[must_use]
    pub fn after_start(mut self, start: Arc<StartTimings>) -> Self {
        self.start = Some(start);
        self
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("instance", &self.instance.id())
            .field("outcome", &self.outcome)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.owner.release(self.token, self.outcome);
    }
}

/// Why no slot was given.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// Too many wait already.
    #[error("the activation queue is full ({resource})")]
    QueueFull {
        /// Which bound was met: `revision`, `tenant`, `host` or one of these with `bytes`.
        resource: &'static str,
        /// When to come back.
        retry_after: Duration,
    },
    /// A budget or quota was met that waiting would not lift in time.
    #[error("{resource} is used up")]
    Exhausted {
        /// The name of the budget or quota that is used up.
        resource: &'static str,
        /// When to come back.
        retry_after: Duration,
    },
    /// A quota of the tenant is used up, and no instance of the revision could serve the request otherwise.
    #[error("{0}")]
    Quota(QuotaExceeded),
    /// The deadline passed while waiting.
    #[error("the deadline passed while waiting for an instance")]
    Deadline,
    /// The deadline passed while instances of this revision were on their way, or failed to start.
    #[error("the deadline passed while waiting for an instance: {error}")]
    StartPending {
        /// Why the start is not over, or why the last one failed.
        #[source]
        error: Arc<Error>,
    },
    /// Instances of this revision fail to start, and the last attempt is too recent to try again.
    #[error("instances fail to start: {error}")]
    Start {
        /// The error of the last start.
        #[source]
        error: Arc<Error>,
        /// When the next attempt is due.
        retry_after: Duration,
    },
    /// The revision has no instance, and this claim must not start one.
    #[error("the revision is asleep, and this request may not wake it")]
    Asleep,
    /// No such revision (any more).
    #[error("no such revision")]
    Unknown,
    /// The pool is shutting down.
    #[error("shutting down")]
    Closed,
}

impl ClaimError {
    /// When the caller may come back, where that is known.
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::QueueFull { retry_after, .. }
            | Self::Exhausted { retry_after, .. }
            | Self::Start { retry_after, .. } => Some(*retry_after),
            Self::Quota(exceeded) => Some(exceeded.retry_after),
            _ => None,
        }
    }
}

/// For a caller that goes on with one error type; the claim's own is its source.
///
/// What is used up is `Exhausted` and a start that fails `Unavailable`, both with the time after which to come back; a
/// deadline is `Timeout`; a revision that is gone is `NotFound`; one that may not be woken, and a pool that closes, are
/// `Unavailable`.
impl From<ClaimError> for Error {
    fn from(error: ClaimError) -> Self {
        let kind = match &error {
            ClaimError::QueueFull { .. } | ClaimError::Exhausted { .. } | ClaimError::Quota(_) => {
                ErrorKind::Exhausted
            }
            ClaimError::Deadline | ClaimError::StartPending { .. } => ErrorKind::Timeout,
            ClaimError::Start { .. } | ClaimError::Asleep | ClaimError::Closed => ErrorKind::Unavailable,
            ClaimError::Unknown => ErrorKind::NotFound,
        };
        let retry = error.retry_after().map_or(Retry::Never, Retry::After);
        Self::new(kind, "claim", error.to_string()).with_retry(retry).with_source(error)
    }
}

/// A place in a pool's queue. A lease handed to a place that was just given up goes to the next in line.
pub trait WaitList: Send + Sync + 'static {
    /// Polls the place of `ticket`. After `Ready` the ticket is spent.
    fn poll(&self, ticket: u64, cx: &mut Context<'_>) -> Poll<Result<Lease, ClaimError>>;
    /// Gives the place up. Never called for a spent ticket.
    fn leave(&self, ticket: u64);
}

/// The wait for a slot: a concrete future, so that waiting needs no box. Dropping it leaves the queue.
#[must_use = "futures do nothing unless polled"]
pub struct Waiting(State);

enum State {
    Ready(Result<Lease, ClaimError>),
    Queued { list: Arc<dyn WaitList>, ticket: u64 },
    Done,
}

impl Waiting {
    /// A wait that is over already.
    pub fn ready(result: Result<Lease, ClaimError>) -> Self {
        Self(State::Ready(result))
    }

    /// Waits in `list` as `ticket`.
    pub fn queued(list: Arc<dyn WaitList>, ticket: u64) -> Self {
        Self(State::Queued { list, ticket })
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            State::Ready(_) => "Waiting(ready)",
            State::Queued { .. } => "Waiting(queued)",
            State::Done => "Waiting(done)",
        })
    }
}

impl Future for Waiting {
    type Output = Result<Lease, ClaimError>;

    /// # Panics
    /// When polled after it was ready.
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Queued { list, ticket } = &self.0 {
            let polled = list.poll(*ticket, cx);
            if polled.is_ready() {
                self.0 = State::Done;
            }
            return polled;
        }
        match std::mem::replace(&mut self.0, State::Done) {
            State::Ready(result) => Poll::Ready(result),
            _ => panic!("Waiting polled after it was ready"),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let State::Queued { list, ticket } = &self.0 {
            list.leave(*ticket);
        }
    }
}

/// What an instance is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum InstanceState {
    /// Waiting for the start gate, or starting.
    Starting,
    /// Taking requests.
    Ready,
    /// Idle and off the CPU.
    Suspended,
    /// Taking no more requests, finishing those it has.
    Draining,
    /// Being stopped.
    Stopping,
}

/// An instance as operators see it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstanceView {
    /// The id of the instance.
    pub id: InstanceId,
    /// What the instance is doing now.
    pub state: InstanceState,
    /// How many leases of it are out.
    pub in_flight: u32,
    /// Leases at most; `u32::MAX`: unlimited.
    pub limit: u32,
    /// Since it was asked for.
    pub age: Duration,
    /// How its start went; `None` while it starts.
    pub start: Option<StartTimings>,
    /// Where it listens, if it does.
    pub endpoint: Option<Endpoint>,
    /// What it has used, if the runtime knows.
    pub usage: Option<Usage>,
    /// Whether the balancer leaves it out for its failures.
    pub ejected: bool,
}

impl InstanceView {
    /// A view of a young instance.
    pub fn new(id: InstanceId, state: InstanceState, in_flight: u32, limit: u32, age: Duration) -> Self {
        Self { id, state, in_flight, limit, age, start: None, endpoint: None, usage: None, ejected: false }
    }
}

/// A revision as operators see it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RevisionStatus {
    /// The last decision, 0 before any, within the bounds that hold.
    pub desired: u32,
    /// The last decision before [`SizeBounds`] that are in force were put on it.
    pub asked: u32,
    /// Instances that take requests.
    pub ready: u32,
    /// Instances on their way up.
    pub starting: u32,
    /// Instances on their way out.
    pub draining: u32,
    /// How many requests wait for a slot.
    pub queued: u32,
    /// How many requests are on instances.
    pub in_flight: u32,
    /// The error of the last start, until one succeeds.
    pub last_start_error: Option<Arc<Error>>,
    /// Starts that failed in a row.
    pub failed_starts: u32,
    /// Why the first of its starts that wait at a gate or for a budget still does; `None`: none waits there.
    pub gated: Option<String>,
    /// Whether an instance of it was ever ready since it was registered: what is shown before that as unknown.
    pub started: bool,
    /// When its last idle instance may go by the plan of a keep-alive policy, if no call comes before; `None`: there is no plan.
    pub sleeps_at: Option<Timestamp>,
    /// When an instance is started ahead of a call that a keep-alive policy expects; `None`: none is expected.
    pub wakes_at: Option<Timestamp>,
    /// Instances that the budgets have room for: those that hold a place in them, and those that would find one now. `None`:
    /// nothing bounds them but the spec.
    pub room: Option<u32>,
}

/// What holds for the size of a revision beside its spec, for as long as a roll-out moves or several hosts run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SizeBounds {
    /// Instances at least; it stands for the minimum of the spec.
    pub floor: u32,
    /// Instances at most that a scaler's decision makes. What waits for a slot is served beyond that.
    pub ceiling: u32,
    /// Instances at most, whatever waits; the spec's maximum holds as well.
    pub limit: u32,
    /// What a decision that follows of them gives as its reason: [`Reason::RollOut`], or [`Reason::Part`].
    pub reason: Reason,
}

impl SizeBounds {
    /// From `floor` to `ceiling`, and never more than `limit`, because of a roll-out.
    pub const fn new(floor: u32, ceiling: u32, limit: u32) -> Self {
        Self { floor, ceiling, limit, reason: Reason::RollOut }
    }

    /// From `floor` to `limit`, because other hosts have the rest.
    pub const fn part(floor: u32, limit: u32) -> Self {
        Self { floor, ceiling: u32::MAX, limit, reason: Reason::Part }
    }

    /// What holds when both do.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let (ceiling, limit) = (self.ceiling.min(other.ceiling), self.limit.min(other.limit));
        let floor = self.floor.max(other.floor).min(ceiling).min(limit);
        Self { floor, ceiling, limit, reason: self.reason }
    }
}

/// Why a pool holds as many stems of a class as it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum CapacityReason {
    /// The class is new: its minimum.
    New,
    /// What the capacity law says.
    Law,
    /// The law says less than the minimum.
    Minimum,
    /// The law says more than the maximum.
    Maximum,
    /// The memory of stems does not hold what the law says.
    Memory,
    /// No revision that is registered can come from the class.
    Unused,
}

/// The stems of one class as operators see them. Counts are since the pool was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StemView {
    /// The class of these stems.
    pub class: StemClass,
    /// Stems that are held.
    pub ready: u32,
    /// How many stems are booting now.
    pub booting: u32,
    /// How many are to be held.
    pub size: u32,
    /// What the capacity law asked for, before its bounds and the budget of memory.
    pub wanted: u32,
    /// Why `size` is what it is.
    pub reason: CapacityReason,
    /// When `size` was decided.
    pub decided_at: Timestamp,
    /// Bytes that one counts with.
    pub memory_bytes: u64,
    /// How many stems have booted since the pool began.
    pub booted: u64,
    /// Starts that took one.
    pub used: u64,
    /// Starts that found none.
    pub missed: u64,
    /// Stems that ended without being used.
    pub wasted: u64,
    /// How many boots have failed since the pool began.
    pub failed: u64,
}

impl StemView {
    /// A class that holds nothing yet.
    pub const fn new(class: StemClass, memory_bytes: u64) -> Self {
        Self {
            class,
            ready: 0,
            booting: 0,
            size: 0,
            wanted: 0,
            reason: CapacityReason::New,
            decided_at: Timestamp(0),
            memory_bytes,
            booted: 0,
            used: 0,
            missed: 0,
            wasted: 0,
            failed: 0,
        }
    }
}

/// What a pool holds in all, and what it did ahead of demand. Counts are since the pool was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolTotals {
    /// Instances that hold a place in the budgets: starting, ready and draining.
    pub instances: u64,
    /// Bytes that instances and stems count with.
    pub memory_bytes: u64,
    /// Bytes that they may count with; `None`: no bound.
    pub memory_limit_bytes: Option<u64>,
    /// Starts that wait for the start gate or for a budget.
    pub waiting_starts: u64,
    /// Instances that were started ahead of a call that was expected.
    pub wake_aheads: u64,
    /// Of these, such that a call came while they were kept for it.
    pub wake_aheads_used: u64,
    /// Of these, such that no call came in time.
    pub wake_aheads_wasted: u64,
}

/// A change of a revision's size that the pool decided by itself, beside what it was told by [`Pool::set_desired`]. The
/// driver takes these ([`Pool::take_decisions`]), numbers them with its own and keeps them in the revision's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolDecision {
    /// Of which revision.
    pub revision: RevisionKey,
    /// When it was decided.
    pub at: Timestamp,
    /// Instances before it.
    pub before: u32,
    /// Instances from now on, until something else is decided.
    pub desired: u32,
    /// Why: one of those of which [`Reason::is_pools_own`] says yes.
    pub reason: Reason,
    /// Until when what was started ahead is kept for its call.
    pub until: Option<Timestamp>,
    /// Requests that found no slot and waited, with [`Reason::Activated`]; else 0. They are counted, like the instances in
    /// `desired`, from the first of them until the driver took the decision.
    pub waited: u32,
}

impl PoolDecision {
    /// A decision from `before` to `desired` instances.
    pub const fn new(
        revision: RevisionKey,
        at: Timestamp,
        before: u32,
        desired: u32,
        reason: Reason,
    ) -> Self {
        Self { revision, at, before, desired, reason, until: None, waited: 0 }
    }
}

/// What the instances and stems of a pool may use in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PoolBudget {
    /// Instances at once; `None`: no bound.
    pub instances: Option<u32>,
    /// Bytes that instances and stems may count with; `None`: no bound.
    pub memory_bytes: Option<u64>,
}

/// Holds the instances of all revisions and gives out their slots.
///
/// The gateway claims slots, the driver sizes revisions, the control plane registers them. It is given to the builder's `pool`;
/// `examples/custom_parts.rs` wraps the default one.
///
/// # Contract
/// - An instance never has more leases out than its limit.
/// - A claim is answered exactly once: with a lease, or with an error at the latest at its deadline.
/// - Starts belong to the pool: a caller that goes away takes nothing with it.
/// - The pool holds min(limit, max(desired, ⌈waiting ÷ concurrency⌉)) instances, where an unlimited concurrency
///   counts as one instance for all that wait; the first arrival starts instances at once.
/// - Shrinking takes idle instances first, busy ones only after their drain.
/// - A pool that tells no load ([`Pool::take_load`]) sizes itself: nobody will call [`Pool::set_desired`] then.
///
/// # Minimal implementation
/// `register`, `unregister`, `deployed`, `claim`, `drain` and `shutdown`: enough to serve. `try_claim` spares warm requests a
/// future; `set_desired` and `take_load` let the platform's scalers size it; `instances`, `status` and `recycle` show
/// it to operators and to health checks; `stems` shows what it holds ahead of demand.
#[async_trait]
pub trait Pool: fmt::Debug + Send + Sync + 'static {
    /// Takes a revision in, at zero instances, or at its minimum if it has one. Costs bytes, not tasks.
    ///
    /// # Errors
    /// `Exhausted` when the pool is full; `Unavailable` when it shuts down.
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey>;

    /// Whether an instance of `spec`, and as many as it always wants, could ever be held, were there nothing else: what
    /// is beyond the pool's budgets is refused at deploy instead of waiting for room that never comes. What could be held
    /// but finds no room now is admitted. `runtime` is the one that would start it. A pool without budgets admits all.
    ///
    /// # Errors
    /// The fields of [`RevisionSpec`] that ask for too much, each with its value, the budget and the remedy.
    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        let _ = (spec, runtime);
        Ok(())
    }

    /// Forgets a revision: waiting claims fail with [`ClaimError::Unknown`], instances drain and stop. Idempotent.
    fn unregister(&self, revision: RevisionKey);

    /// What was registered under the key. The data plane asks with each request: short.
    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>>;

    /// Warm way: a free slot now, or `None`. Never waits, never starts anything. A pool without one leaves it to
    /// [`Pool::claim`].
    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        let _ = claim;
        None
    }

    /// Cold way: waits in the bounded queue until a slot is free, the deadline of `cx` passes, or starts fail.
    ///
    /// **Cancel safety:** dropping the future leaves the queue without trace.
    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting;

    /// Intent of the scaler; returns at once. Clamped to the spec's bounds; what waits is served all the same. A pool
    /// that sizes itself is never asked.
    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        let _ = (revision, desired);
    }

    /// [`Pool::set_desired`] for many revisions, one after the other. A pool of its own may take a lock once for all
    /// that it guards; the driver tells the decisions of a batch together.
    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        for (revision, desired) in decisions {
            self.set_desired(*revision, *desired);
        }
    }

    /// Sets what holds for the size of a revision beside its spec, at once; `None`: the spec alone again, from the next
    /// decision on. A pool without such bounds ignores it, and does not tell [`RevisionStatus::asked`]: roll-outs then do
    /// not size.
    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        let _ = (revision, bounds);
    }

    /// Whether a request more would have to wait, and no instance more may start for it: the revision's maximum is reached,
    /// or the pool's budgets are. Asked for services that several hosts run; a pool that does not know keeps its requests.
    fn is_full(&self, revision: RevisionKey) -> bool {
        let _ = revision;
        false
    }

    /// Visits the revisions of a shard that want more instances than the pool's budgets have room for. A pool without
    /// budgets has none.
    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        let _ = (shard, visit);
    }

    /// A ready instance by its id, for health checks that ask it beside its requests; `None`: gone, not ready, or not
    /// known to this pool.
    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        let _ = (revision, id);
        None
    }

    /// The instances of a revision; none where the pool does not show them.
    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        let _ = revision;
        Vec::new()
    }

    /// The state of a revision; `None`: no such revision, or not told.
    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        let _ = revision;
        None
    }

    /// Ends one instance as a crash would be mended: it leaves the rotation, drains for `grace`, stops, and is
    /// replaced if it is still wanted. False when there is no such instance, or none can be ended.
    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        let _ = (revision, instance, grace);
        false
    }

    /// Takes what the pool decided by itself in a shard since the last call, oldest first: what a keep-alive policy started
    /// ahead of a call or let go, and what was stopped because others lacked room. A pool that decides nothing by itself
    /// has nothing to tell.
    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        let _ = (shard, visit);
    }

    /// Takes the load of each active revision of a shard since the last call: what was counted is told once. A
    /// revision is active while it has instances or waiting claims, and once more after that; sleeping ones cost
    /// nothing.
    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        let _ = (shard, visit);
    }

    /// How many shards there are, 1 unless the pool says otherwise. Constant.
    fn shards(&self) -> usize {
        1
    }

    /// The stems that are held, by class; none where the pool has none.
    fn stems(&self) -> Vec<StemView> {
        Vec::new()
    }

    /// What the pool holds in all, and what it did ahead of demand.
    fn totals(&self) -> PoolTotals {
        PoolTotals::default()
    }

    /// Who holds tenants to their quotas of instances, memory, CPU, starts and queues; `None`: nobody does, and quotas of
    /// these are refused.
    fn quotas(&self) -> Option<&dyn Quotas> {
        None
    }

    /// Changes what the pool may use from now on. What it has beyond that is not stopped for it: nothing more starts until
    /// enough has ended.
    ///
    /// # Errors
    /// `Unsupported` by a pool without budgets.
    fn set_budget(&self, budget: PoolBudget) -> Result<()> {
        let _ = budget;
        Err(Error::unsupported("changing the budget of the pool"))
    }

    /// Stops all instances of a revision, each after its leases came back or after `grace`; resolves when they are
    /// gone. The revision stays registered and wakes again on the next claim.
    async fn drain(&self, revision: RevisionKey, grace: Duration);

    /// Refuses new claims, lets running ones finish until `deadline`, stops everything and joins every task.
    /// Calling it again waits for the same end.
    async fn shutdown(&self, deadline: Instant);
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Pool + ?Sized> Pool for Arc<T> {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        (**self).register(deployed)
    }

    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        (**self).admits(spec, runtime)
    }

    fn unregister(&self, revision: RevisionKey) {
        (**self).unregister(revision);
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        (**self).deployed(revision)
    }

    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        (**self).try_claim(claim)
    }

    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        (**self).claim(claim, cx)
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        (**self).set_desired(revision, desired);
    }

    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        (**self).set_desired_all(decisions);
    }

    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        (**self).set_bounds(revision, bounds);
    }

    fn is_full(&self, revision: RevisionKey) -> bool {
        (**self).is_full(revision)
    }

    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        (**self).visit_short(shard, visit);
    }

    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        (**self).instance(revision, id)
    }

    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        (**self).instances(revision)
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        (**self).status(revision)
    }

    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        (**self).recycle(revision, instance, grace)
    }

    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        (**self).take_load(shard, visit);
    }

    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        (**self).take_decisions(shard, visit);
    }

    fn shards(&self) -> usize {
        (**self).shards()
    }

    fn stems(&self) -> Vec<StemView> {
        (**self).stems()
    }

    fn totals(&self) -> PoolTotals {
        (**self).totals()
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        (**self).quotas()
    }

    fn set_budget(&self, budget: PoolBudget) -> Result<()> {
        (**self).set_budget(budget)
    }

    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        (**self).drain(revision, grace).await;
    }

    async fn shutdown(&self, deadline: Instant) {
        (**self).shutdown(deadline).await;
    }
}
