//! The pool as the platform sees it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Claim, ClaimError, Cx, Deployed, Error, ErrorKind, Instance, InstanceId, InstanceState, InstanceView,
    Lease, Load, Pool, PoolBudget, PoolDecision, PoolTotals, QuotaPressure, Quotas, Result, RevisionKey,
    RevisionSpec, RevisionStatus, Runtime, SizeBounds, SpecErrors, StemView, TenantKey, TenantQuota, Waiting,
};
use tokio::time::Instant;

use crate::{
    config::PoolConfig,
    coordinator::Coordinator,
    instance::Phase,
    rules::{BALANCER_OPTION, Rules},
    shard::Shard,
    shared::Shared,
    sync::{AtomicBool, AtomicU32, Ordering},
};

/// The instances of all revisions, in shards.
///
/// A registered revision that sleeps is sixteen bytes and a reference to what was registered. Claims, releases and
/// decisions take one short lock each, that of the revision's shard; tasks exist only for starts and stops that don't
/// complete at once, and one for the deadlines of those who wait.
pub struct InstancePool {
    coordinator: Arc<Coordinator>,
    registered: AtomicU32,
    /// In which shard the next revision goes: around, so that the same calls give the same keys.
    next: AtomicU32,
    closed: AtomicBool,
}

impl InstancePool {
    /// A pool. Its tasks run on the tokio runtime in which this is called, else on that of the first caller.
    ///
    /// # Panics
    /// When the config is not valid; see [`PoolConfig::validate`].
    pub fn new(config: PoolConfig) -> Arc<Self> {
        if let Err(errors) = config.validate() {
            panic!("{errors}");
        }
        Arc::new(Self {
            coordinator: Coordinator::new(config),
            registered: AtomicU32::new(0),
            next: AtomicU32::new(0),
            closed: AtomicBool::new(false),
        })
    }

    /// What it was made with. The idle rule's policy has moved into the pool.
    pub fn config(&self) -> &PoolConfig {
        &self.rules().config
    }

    /// How many revisions are registered.
    pub fn registered(&self) -> u32 {
        self.registered.load(Ordering::Relaxed)
    }

    fn shared(&self) -> &Shared {
        &self.coordinator.shared
    }

    fn rules(&self) -> &Rules {
        &self.coordinator.shared.rules
    }

    fn every_shard(&self) -> &[Arc<Shard>] {
        &self.coordinator.shards
    }

    fn shard(&self, key: RevisionKey) -> &Arc<Shard> {
        &self.every_shard()[key.slot() as usize & (self.every_shard().len() - 1)]
    }

    async fn gone(&self, shard: &Shard, ids: Vec<InstanceId>) {
        self.shared().waiting_for_gone.fetch_add(1, Ordering::AcqRel);
        let _count = Counted(&self.shared().waiting_for_gone);
        loop {
            let mut told = std::pin::pin!(self.shared().gone.notified());
            told.as_mut().enable();
            let there = {
                let state = shard.state.lock();
                ids.iter().any(|&id| state.is_there(self.rules(), id))
            };
            if !there {
                return;
            }
            told.await;
        }
    }
}

/// Somebody waits for instances to be gone.
struct Counted<'a>(&'a AtomicU32);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl fmt::Debug for InstancePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstancePool")
            .field("shards", &self.every_shard().len())
            .field("registered", &self.registered())
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Pool for InstancePool {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "register", "the pool shuts down"));
        }
        if let Some(name) = deployed.spec.options.get(BALANCER_OPTION)
            && !self.rules().config.balancers.contains_key(name)
        {
            let known: Vec<&str> = self.rules().config.balancers.keys().map(String::as_str).collect();
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                "register",
                format!("options[{BALANCER_OPTION}]: {name:?}: name one of {known:?}, or leave it out"),
            ));
        }
        if self.registered.fetch_add(1, Ordering::Relaxed) >= self.rules().config.max_revisions {
            self.registered.fetch_sub(1, Ordering::Relaxed);
            return Err(Error::new(
                ErrorKind::Exhausted,
                "register",
                format!("max_revisions of {} are registered", self.rules().config.max_revisions),
            ));
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed) as usize & (self.every_shard().len() - 1);
        self.shared().stems.registered(&deployed);
        Ok(self.every_shard()[at].with(|state, rules, fx| state.register(rules, deployed, rules.now(), fx)))
    }

    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        self.rules().admits(spec, runtime)
    }

    fn unregister(&self, revision: RevisionKey) {
        let deployed = self.deployed(revision);
        if self.shard(revision).with(|state, rules, fx| state.unregister(rules, revision, rules.now(), fx)) {
            self.registered.fetch_sub(1, Ordering::Relaxed);
            if let Some(deployed) = deployed {
                self.shared().stems.unregistered(&deployed);
            }
        }
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        let state = self.shard(revision).state.lock();
        let slot = state.lookup(self.rules(), revision)?;
        state.revisions[slot as usize].deployed.clone()
    }

    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        self.shard(claim.revision).try_claim(claim)
    }

    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        if self.closed.load(Ordering::Acquire) {
            return Waiting::ready(Err(ClaimError::Closed));
        }
        self.shard(claim.revision).claim(claim, cx)
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        self.set_desired_all(&[(revision, desired)]);
    }

    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        let shard = |revision: RevisionKey| revision.slot() & (self.every_shard().len() as u32 - 1);
        for same in decisions.chunk_by(|one, next| shard(one.0) == shard(next.0)) {
            // Not longer under the lock than a claim may wait for it.
            for some in same.chunks(DECIDED_AT_ONCE) {
                self.shard(some[0].0).with(|state, rules, fx| {
                    state.set_desired(rules, some, rules.now(), fx);
                });
            }
        }
    }

    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        self.shard(revision).with(|state, rules, fx| {
            state.set_bounds(rules, revision, bounds, rules.now(), fx);
        });
    }

    fn is_full(&self, revision: RevisionKey) -> bool {
        let state = self.shard(revision).state.lock();
        let Some(slot) = state.lookup(self.rules(), revision) else { return false };
        if let Some(a) = state.active(slot) {
            return state.is_full(self.rules(), a);
        }
        let deployed = state.revisions[slot as usize].deployed.as_ref();
        let free =
            deployed.and_then(|deployed| self.rules().gate.lock().free(self.rules().memory_of(deployed, 0)));
        free == Some(0) || state.bounds.get(&revision).is_some_and(|bounds| bounds.limit == 0)
    }

    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        let Some(shard) = self.every_shard().get(shard) else { return };
        let short: Vec<Arc<Deployed>> = {
            let state = shard.state.lock();
            let short = state.live.iter().filter(|&&a| state.is_short(self.rules(), a));
            short.map(|&a| Arc::clone(state.deployed(a))).collect()
        };
        short.iter().for_each(visit);
    }

    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        let mut views = Vec::new();
        let mut handles = Vec::new();
        {
            let state = self.shard(revision).state.lock();
            let Some(a) = state.lookup(self.rules(), revision).and_then(|slot| state.active(slot)) else {
                return views;
            };
            let now = self.rules().now();
            let active = &state.actives[a as usize];
            for (i, instance) in state.instances.iter().enumerate() {
                if instance.active != a {
                    continue;
                }
                let kind = match instance.phase {
                    Phase::Free | Phase::Gone => continue,
                    Phase::Gated | Phase::Starting | Phase::Resuming => InstanceState::Starting,
                    Phase::Ready => InstanceState::Ready,
                    Phase::Suspended => InstanceState::Suspended,
                    Phase::Draining => InstanceState::Draining,
                    Phase::Stopping => InstanceState::Stopping,
                };
                let id = state.id(self.rules(), i as u32);
                let slot = active.slots.iter().find(|slot| slot.id == id);
                let in_flight = slot.map_or(instance.in_flight, |slot| slot.in_flight);
                let age = Duration::from_nanos(now.saturating_sub(instance.asked));
                let mut view = InstanceView::new(id, kind, in_flight, active.limit, age);
                view.start = instance.start.as_deref().copied();
                view.ejected = slot.is_some_and(|slot| slot.ejected);
                views.push(view);
                handles.push(instance.instance.clone());
            }
        }
        // Outside of the lock: a runtime may read files for it.
        for (view, handle) in views.iter_mut().zip(handles) {
            if let Some(handle) = handle {
                view.endpoint = handle.endpoint().cloned();
                view.usage = handle.usage();
            }
        }
        views.sort_by_key(|view| (std::cmp::Reverse(view.age), view.id));
        views
    }

    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        let state = self.shard(revision).state.lock();
        let slot = state.lookup(self.rules(), revision)?;
        let instance = &state.instances[state.find(self.rules(), id)? as usize];
        let theirs = instance.active == state.active(slot)? && instance.phase == Phase::Ready;
        theirs.then(|| instance.instance.clone())?
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        let state = self.shard(revision).state.lock();
        let slot = state.lookup(self.rules(), revision)?;
        let mut status = RevisionStatus::default();
        status.started = state.revisions[slot as usize].link.started();
        let wall = |at: u64| {
            let left = Duration::from_nanos(at.saturating_sub(self.rules().now()));
            self.rules().config.clock.now() + left
        };
        status.wakes_at = state.wakes.get(&revision).map(|((at, _), _)| wall(*at));
        let Some(a) = state.active(slot) else {
            let deployed = state.revisions[slot as usize].deployed.as_ref()?;
            status.room = self.rules().gate.lock().free(self.rules().memory_of(deployed, 0));
            return Some(status);
        };
        status.room = state.room(self.rules(), a);
        let active = &state.actives[a as usize];
        status.desired = active.decided;
        status.asked = active.asked;
        status.ready = (active.slots.len() + active.suspended.len()) as u32;
        status.starting = active.coming.len() as u32;
        status.draining = active.instances - active.have();
        status.queued = active.waiting();
        status.in_flight = active.leases;
        status.last_start_error.clone_from(&active.error);
        status.failed_starts = active.failures;
        status.gated = state.gated(self.rules(), a);
        // While it was called since, the timer is when the policy is asked, and its answer is not known.
        status.sleeps_at = active.sleep.filter(|_| !active.called).map(|(at, _)| wall(at));
        Some(status)
    }

    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        self.shard(revision)
            .with(|state, rules, fx| state.recycle(rules, revision, instance, grace, rules.now(), fx))
    }

    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        if shard == 0 {
            let (stems, totals) = (self.shared().stems.views(), self.totals());
            self.rules().metrics.held(&stems, &totals);
            self.rules().ahead.tell(self.rules().now(), &stems, &totals);
        }
        let Some(shard) = self.every_shard().get(shard) else { return };
        crate::load::take(shard, visit);
    }

    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        let Some(shard) = self.every_shard().get(shard) else { return };
        let taken = shard.state.lock().take_decisions();
        for (decision, deployed) in &taken {
            visit(decision, deployed);
        }
    }

    fn shards(&self) -> usize {
        self.every_shard().len()
    }

    fn stems(&self) -> Vec<StemView> {
        self.shared().stems.views()
    }

    fn totals(&self) -> PoolTotals {
        self.rules().totals()
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        Some(self)
    }

    fn set_budget(&self, budget: PoolBudget) -> Result<()> {
        self.rules().set_budget(budget);
        self.shared().pump();
        Ok(())
    }

    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        let shard = self.shard(revision);
        let left = shard.with(|state, rules, fx| {
            let Some(a) = state.lookup(rules, revision).and_then(|slot| state.active(slot)) else {
                return Vec::new();
            };
            state.drain(rules, a, grace, rules.now(), fx)
        });
        self.gone(shard, left).await;
    }

    async fn shutdown(&self, deadline: Instant) {
        self.closed.store(true, Ordering::Release);
        let grace = deadline.saturating_duration_since(Instant::now());
        self.shared().stems.close();
        for shard in self.every_shard() {
            shard.with(|state, rules, fx| state.close(rules, grace, rules.now(), fx));
        }
        let mut longest = Duration::ZERO;
        for shard in self.every_shard() {
            let (left, grace) = {
                let state = shard.state.lock();
                (state.all(self.rules()), state.longest_grace())
            };
            longest = longest.max(grace);
            // Stops may take their grace after the deadline; what is starting is ended at the deadline.
            let limit = (deadline + longest).saturating_duration_since(Instant::now()) + STOP_SLACK;
            let waiting = self.gone(shard, left);
            if crate::shard::within(limit, waiting).await.is_none() {
                tracing::error!("instances did not stop in time; their runtimes are left to reap them");
            }
        }
        self.shared().executor.ended.cancel();
        self.shared().executor.tasks.close();
        self.shared().executor.tasks.wait().await;
    }
}

impl Quotas for InstancePool {
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        self.coordinator.limit(tenant, quota);
    }

    fn pressure(&self) -> Vec<QuotaPressure> {
        self.rules().pressure()
    }
}

/// Decisions that are carried out under one lock.
const DECIDED_AT_ONCE: usize = 64;

/// What a stop may take beyond its grace before a shutdown goes on without it.
const STOP_SLACK: Duration = Duration::from_secs(1);

impl Drop for InstancePool {
    /// Without a shutdown before, instances are left to their runtimes' reapers.
    fn drop(&mut self) {
        self.shared().executor.ended.cancel();
        for shard in self.every_shard() {
            let abandoned = shard.state.lock().abandon();
            drop(abandoned);
            shard.plans.lock().clear();
        }
    }
}
