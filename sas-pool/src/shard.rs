//! A shard: the state machine under its lock, and what is done around it.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use sas_core::{
    Claim, ClaimError, Cx, EnvValue, Error, ErrorKind, ExitReport, InstanceEvents, InstanceId, Lease,
    LeaseOwner, Outcome, QuotaExceeded, StartPhase, StartRequest, TenantKey, WaitList, Waiting,
};
use tokio::time::Instant;

use crate::{
    effects::{Candidate, DecidedStart, Effects, Freeze, Holds, Started, Stop},
    gate::{Ask, Need, Shortage, mib},
    queue::Grant,
    rules::Rules,
    shared::Shared,
    start,
    start_executor::{Guard, Made, StartOwner, Work},
    state::{Met, State},
    sync::Mutex,
};

/// How long after its deadline a start is ended by the pool.
const SLACK: Duration = Duration::from_millis(500);

pub(crate) struct Shard {
    me: Weak<Shard>,
    pub(crate) index: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Mutex<State>,
    /// Starts that wait for their turn at the gate.
    pub(crate) plans: Mutex<std::collections::BTreeMap<InstanceId, DecidedStart>>,
}

impl Shard {
    pub(crate) fn new(shared: &Arc<Shared>, index: u32) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            index,
            shared: Arc::clone(shared),
            state: Mutex::new(State::new(index, shared.rules.config.seed)),
            plans: Mutex::new(std::collections::BTreeMap::new()),
        })
    }

    pub(crate) fn me(&self) -> Arc<Self> {
        self.me.upgrade().expect("a shard that is used is referred to")
    }

    fn lease(&self, owner: Arc<Self>, grant: Grant) -> Lease {
        let lease = Lease::new(grant.instance, owner, grant.token);
        match grant.start {
            Some(start) => lease.after_start(start),
            None => lease,
        }
    }

    pub(crate) fn try_claim(self: &Arc<Self>, claim: &Claim) -> Option<Lease> {
        let rules = &self.shared.rules;
        let mut state = self.state.lock();
        let a = state.open(rules, claim.revision)?;
        let grant = state.try_claim(rules, a, claim, rules.now())?;
        drop(state);
        Some(self.lease(Arc::clone(self), grant))
    }

    pub(crate) fn claim(self: &Arc<Self>, claim: &Claim, cx: &Cx) -> Waiting {
        let rules = &self.shared.rules;
        let deadline = rules.clock.at(cx.deadline);
        let mut fx = Effects::default();
        let met = {
            let mut state = self.state.lock();
            state.claim(rules, claim, deadline, rules.now(), &mut fx)
        };
        let a = match met {
            Met::Decided(result) => {
                self.perform(&mut fx);
                return Waiting::ready(self.answer(result));
            }
            Met::Waits(a) => a,
        };
        // The first start is made here, and if it completes at once its first slot is this claim's.
        if !fx.begin.is_empty() {
            let plan = if fx.begin.len() == 1 { fx.begin.pop() } else { Some(fx.begin.remove(0)) };
            let plan = plan.expect("there is one");
            self.perform(&mut fx);
            if let Some(grant) = self.decide(Arc::clone(self), plan, Some(claim)) {
                return Waiting::ready(Ok(self.lease(Arc::clone(self), grant)));
            }
        } else {
            self.perform(&mut fx);
        }
        let mut fx = Effects::default();
        let queued = {
            let mut state = self.state.lock();
            state.enqueue(rules, a, claim, deadline, rules.now(), &mut fx)
        };
        self.perform(&mut fx);
        match queued {
            Ok(result) => Waiting::ready(self.answer(result)),
            Err(ticket) => Waiting::queued(Arc::clone(self) as Arc<dyn WaitList>, ticket),
        }
    }

    fn answer(self: &Arc<Self>, result: Result<Grant, ClaimError>) -> Result<Lease, ClaimError> {
        match result {
            Ok(grant) => Ok(self.lease(Arc::clone(self), grant)),
            Err(error) => {
                self.shared.rules.refused(&error);
                Err(error)
            }
        }
    }

    /// Locks the state, and does what comes of it when the lock is free again.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut State, &Rules, &mut Effects) -> T) -> T {
        let mut fx = Effects::default();
        let result = change(&mut self.state.lock(), &self.shared.rules, &mut fx);
        self.perform(&mut fx);
        result
    }

    /// Does what was decided under the lock.
    pub(crate) fn perform(&self, fx: &mut Effects) {
        if let Some(at) = fx.armed {
            self.shared.executor.arm(at);
        }
        // Most changes have no effect of a kind, and a look is cheaper than a drain of nothing.
        if !fx.wake.is_empty() {
            fx.wake.drain(..).for_each(Waker::wake);
        }
        if !fx.begin.is_empty() {
            for plan in fx.begin.drain(..) {
                self.decide(self.me(), plan, None);
            }
        }
        if !fx.stop.is_empty() {
            for stop in fx.stop.drain(..) {
                self.stop(stop);
            }
        }
        for freeze in fx.freeze.drain(..) {
            self.freeze(freeze);
        }
        for failure in fx.failures.drain(..) {
            self.shared.rules.tell(failure);
        }
        if fx.gone || !fx.readings.is_empty() {
            self.shared.tell(fx);
        }
        if !fx.promoted.is_empty() {
            let mut gate = self.shared.rules.gate.lock();
            fx.promoted.drain(..).for_each(|id| gate.promote(id));
            fx.pump = true;
        }
        if !fx.withdrawn.is_empty() {
            let mut plans = self.plans.lock();
            fx.withdrawn.drain(..).for_each(|id| drop(plans.remove(&id)));
        }
        if fx.pump {
            self.shared.pump();
        }
    }

    /// Starts now, or puts the start in line at the gate.
    fn decide(&self, me: Arc<Self>, plan: DecidedStart, claim: Option<&Claim>) -> Option<Grant> {
        if !plan.gated {
            return self.start(me, plan, claim);
        }
        let cpu_bound = plan.deployed.runtime.capabilities().cpu_bound_start;
        let ask = Ask {
            tenant: plan.deployed.tenant,
            shard: self.index,
            id: plan.id,
            priority: plan.priority,
            need: plan.need,
            gated: cpu_bound,
            memory: self.shared.rules.memory_of(&plan.deployed, plan.measured),
            cpu_millis: self.shared.rules.cpu_of(&plan.deployed),
            told: 0,
            weight: 1,
            class: 0,
        };
        self.plans.lock().insert(plan.id, plan);
        self.shared.rules.ask(ask);
        // A request that came since could not promote what was not in line yet.
        if ask.need != Need::Requests && self.state.lock().need(&self.shared.rules, ask.id) == Need::Requests
        {
            self.shared.rules.gate.lock().promote(ask.id);
        }
        self.shared.pump();
        None
    }

    /// Makes a start. One that completes at once costs nothing else; `claim` then gets its first slot.
    fn start(&self, me: Arc<Self>, plan: DecidedStart, claim: Option<&Claim>) -> Option<Grant> {
        let id = plan.id;
        let rules = &self.shared.rules;
        // The wait at the gate is not the start's.
        let begun = if plan.gated { Instant::now() } else { rules.clock.instant(plan.asked) };
        let deadline = begun + plan.deployed.spec.timeouts.start;
        let logs = Arc::clone(&rules.config.logs);
        logs.starts(plan.revision, &plan.deployed.name, plan.deployed.tenant);
        let request = StartRequest::new(id, plan.revision, plan.deployed, logs, me, deadline);
        let deployed = &request.deployed;
        let needs_secrets = deployed.spec.env.values().any(|value| matches!(value, EnvValue::Secret(_)));
        let stem = deployed.artifact.info().stem.is_some() && deployed.runtime.capabilities().stems;
        let work: Work = if needs_secrets || stem {
            Box::pin(start::make(Arc::clone(&self.shared), request))
        } else {
            let guard = Guard::new(self, id);
            let tried = deployed.runtime.try_start(&request);
            guard.disarm();
            if let Some(result) = tried {
                return self.is_started(id, result, false, claim);
            }
            Box::pin(start::cold(request))
        };
        let owner = self.me() as Arc<dyn StartOwner>;
        let made = self.shared.starts(self.index).admit(owner, id, work, deadline + SLACK)?;
        self.is_started(id, made.result, made.from_stem, claim)
    }

    /// A start has its turn.
    pub(crate) fn begin(&self, id: InstanceId, holds: Holds) {
        let plan = self.plans.lock().remove(&id);
        let wanted = self.with(|state, rules, fx| state.begin(rules, id, holds, rules.now(), fx));
        if let (true, Some(plan)) = (wanted, plan) {
            self.start(self.me(), plan, None);
        }
    }

    /// A start can't ever have its turn, with a budget of memory of so many bytes.
    pub(crate) fn refuse(&self, ask: &Ask, budget: u64) {
        self.plans.lock().remove(&ask.id);
        let message = format!(
            "an instance counts with {}, and all instances together have {}: ask for less memory, or raise the \
             budget of memory",
            mib(ask.memory),
            mib(budget),
        );
        let error = Arc::new(Error::new(ErrorKind::Exhausted, "start", message));
        self.with(|state, rules, fx| state.refused(rules, ask.id, &error, rules.now(), fx));
    }

    /// The tenant's quota has no room for a start that requests wait for; how many of them were told so.
    pub(crate) fn over_quota(&self, id: InstanceId, over: QuotaExceeded) -> u64 {
        self.with(|state, rules, fx| state.over_quota(rules, id, over, rules.now(), fx))
    }

    /// Counts the instances of a tenant that began when nobody counted them.
    pub(crate) fn adopt(&self, tenant: TenantKey) {
        self.with(|state, rules, _| state.adopt(rules, tenant));
    }

    /// A start is over.
    fn is_started(
        &self,
        id: InstanceId,
        result: Result<Arc<dyn sas_core::Instance>, Error>,
        from_stem: bool,
        claim: Option<&Claim>,
    ) -> Option<Grant> {
        let result = result.map(|instance| Started { instance, from_stem }).map_err(Arc::new);
        self.with(|state, rules, fx| state.started(rules, id, result, claim, rules.now(), fx))
    }

    fn stop(&self, mut stop: Stop) {
        let id = stop.id;
        // The last look: afterwards nobody knows what it used.
        if let Some(sample) = stop.sample.take()
            && let Some(usage) = stop.instance.usage()
        {
            let rules = &self.shared.rules;
            rules.meter(sample.reading(id, usage, rules.now()).into_iter());
        }
        {
            // `stop` goes on by itself once it was polled: one that is over at once needs no task.
            let mut stopping = if stop.thaw { None } else { Some(stop.instance.stop(stop.grace)) };
            let polled = stopping
                .as_mut()
                .map(|stopping| stopping.as_mut().poll(&mut Context::from_waker(Waker::noop())));
            if let Some(Poll::Ready(result)) = polled {
                self.was_stopped(id, result);
                return;
            }
        }
        let shard = self.me();
        let ended = self.shared.executor.ended.clone();
        self.shared.executor.spawn(async move {
            let stopping = async {
                if stop.thaw
                    && let Err(error) = stop.instance.resume().await
                {
                    tracing::debug!(instance = %id, error = %error.chain(), "not resumed before its stop");
                }
                stop.instance.stop(stop.grace).await
            };
            let result = tokio::select! {
                biased;
                result = stopping => result,
                () = ended.cancelled() => Ok(()),
            };
            shard.was_stopped(id, result);
        });
    }

    fn was_stopped(&self, id: InstanceId, result: sas_core::Result<()>) {
        if let Err(error) = result {
            tracing::error!(instance = %id, error = %error.chain(), "an instance may not be gone");
        }
        self.with(|state, rules, fx| {
            let now = rules.metering.then(|| rules.now());
            state.stopped(rules, id, now, fx);
        });
    }

    fn freeze(&self, freeze: Freeze) {
        let Freeze { id, instance, thaw } = freeze;
        let mut work =
            Box::pin(async move { if thaw { instance.resume().await } else { instance.suspend().await } });
        match work.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => self.was_frozen(id, thaw, result),
            Poll::Pending => {
                let shard = self.me();
                let ended = self.shared.executor.ended.clone();
                self.shared.executor.spawn(async move {
                    let result = tokio::select! {
                        biased;
                        result = work => result,
                        () = ended.cancelled() => return,
                    };
                    shard.was_frozen(id, thaw, result);
                });
            }
        }
    }

    fn was_frozen(&self, id: InstanceId, thaw: bool, result: sas_core::Result<()>) {
        self.with(|state, rules, fx| {
            let now = rules.now();
            if thaw {
                state.resumed(rules, id, result, now, fx);
            } else {
                state.suspended(rules, id, result, now, fx);
            }
        });
    }

    /// Does what is due, and says when the next is.
    pub(crate) fn expire(&self) -> u64 {
        self.with(|state, rules, fx| state.expire(rules, rules.now(), fx))
    }

    /// The idle instances that hold a part of a budget.
    pub(crate) fn idle(&self) -> Vec<Candidate> {
        self.state.lock().idle(&self.shared.rules)
    }

    /// Stops an idle instance for somebody who waits for a budget.
    pub(crate) fn reclaim(&self, id: InstanceId, left: &mut Shortage, over_share_only: bool) {
        self.with(|state, rules, fx| {
            state.reclaim(rules, id, left, over_share_only, rules.now(), fx);
        });
    }
}

impl StartOwner for Shard {
    fn started(&self, id: InstanceId, made: Made) {
        self.is_started(id, made.result, made.from_stem, None);
    }
}

impl LeaseOwner for Shard {
    fn release(&self, token: u64, outcome: Outcome) {
        self.with(|state, rules, fx| state.release(rules, token, outcome, rules.now(), fx));
    }

    fn draining(&self, token: u64) -> Option<Instant> {
        let rules = &self.shared.rules;
        self.state.lock().draining(rules, token, rules.now()).map(|at| rules.clock.instant(at))
    }
}

impl WaitList for Shard {
    fn poll(&self, ticket: u64, cx: &mut Context<'_>) -> Poll<Result<Lease, ClaimError>> {
        let polled = self.state.lock().poll(ticket, cx.waker());
        polled.map(|result| match result {
            Ok(grant) => Ok(self.lease(self.me(), grant)),
            Err(error) => {
                self.shared.rules.refused(&error);
                Err(error)
            }
        })
    }

    fn leave(&self, ticket: u64) {
        let grant = self.with(|state, rules, fx| state.leave(rules, ticket, rules.now(), fx));
        if let Some(grant) = grant {
            // A slot that was on its way to somebody who just left goes to the next in line.
            self.release(grant.token, Outcome::Unused);
        }
    }
}

impl InstanceEvents for Shard {
    fn phase(&self, id: InstanceId, phase: StartPhase) {
        let rules = &self.shared.rules;
        self.state.lock().phase(rules, id, phase, rules.now());
    }

    fn waiting(&self, id: InstanceId, why: Arc<Error>) {
        self.state.lock().waiting(&self.shared.rules, id, why);
    }

    fn exited(&self, id: InstanceId, report: ExitReport) {
        self.with(|state, rules, fx| state.exited(rules, id, &report, rules.now(), fx));
    }
}

impl fmt::Debug for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shard")
    }
}

/// Waits for a future for at most so long, if it is one that must end.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, pin!(work)).await.ok()
}
