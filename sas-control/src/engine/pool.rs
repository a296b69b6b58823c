//! All engines' pools as one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Claim, ClaimError, Cx, Deployed, EngineKey, Error, ErrorKind, Instance, InstanceId, InstanceView, Lease,
    Load, Pool, PoolBudget, PoolDecision, PoolTotals, Quotas, Result, RevisionKey, RevisionSpec,
    RevisionStatus, Runtime, SizeBounds, SpecErrors, StemView, Waiting,
};
use tokio::time::Instant;

use super::Engines;

impl Engines {
    /// Registers on that engine, and holds its pool to the keys that it was given.
    pub(crate) fn register_on(
        &self,
        running: &super::Running,
        deployed: Arc<Deployed>,
    ) -> Result<RevisionKey> {
        let key = running.engine.pool.register(deployed)?;
        if key.place() == running.engine.key.place() {
            return Ok(key);
        }
        running.engine.pool.unregister(key);
        let message = format!(
            "the pool of the engine at place {} gave out a key of place {}: it has to count generations from \
             EngineKey::first_generation of the key in its configuration",
            running.engine.key.place(),
            key.place(),
        );
        Err(Error::new(ErrorKind::Unsupported, "register", message))
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Pool for Engines {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        let running = self.of(deployed.name.namespace())?;
        self.register_on(&running, deployed)
    }

    /// Each engine has budgets of its own, so it is asked itself: here the first that would hold it says
    /// yes, else the last says why not.
    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        let mut said = Ok(());
        for running in self.all() {
            said = running.engine.pool.admits(spec, runtime);
            if said.is_ok() {
                break;
            }
        }
        said
    }

    fn unregister(&self, revision: RevisionKey) {
        if let Some(running) = self.at(revision) {
            running.engine.pool.unregister(revision);
        }
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        let running = self.places[revision.place()].load();
        running.as_ref()?.engine.pool.deployed(revision)
    }

    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        let running = self.places[claim.revision.place()].load();
        running.as_ref()?.engine.pool.try_claim(claim)
    }

    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        match &*self.places[claim.revision.place()].load() {
            Some(running) => running.engine.pool.claim(claim, cx),
            None => Waiting::ready(Err(ClaimError::Unknown)),
        }
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        if let Some(running) = self.at(revision) {
            running.engine.pool.set_desired(revision, desired);
        }
    }

    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        for same in decisions.chunk_by(|one, next| one.0.place() == next.0.place()) {
            if let Some(running) = self.at(same[0].0) {
                running.engine.pool.set_desired_all(same);
            }
        }
    }

    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        if let Some(running) = self.at(revision) {
            running.engine.pool.set_bounds(revision, bounds);
        }
    }

    fn is_full(&self, revision: RevisionKey) -> bool {
        let running = self.places[revision.place()].load();
        running.as_ref().is_some_and(|running| running.engine.pool.is_full(revision))
    }

    /// Of the shard of [`Pool::take_load`].
    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        let (place, at) = (shard % EngineKey::PLACES, shard / EngineKey::PLACES);
        let Some(running) = self.places[place].load_full() else { return };
        let pool = &running.engine.pool;
        let last = at + 1 == self.shards() / EngineKey::PLACES;
        let end = if last { pool.shards() } else { (at + 1).min(pool.shards()) };
        for shard in at..end {
            pool.visit_short(shard, visit);
        }
    }

    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        self.at(revision)?.engine.pool.instance(revision, id)
    }

    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        self.at(revision).map_or_else(Vec::new, |running| running.engine.pool.instances(revision))
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        self.at(revision)?.engine.pool.status(revision)
    }

    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        self.at(revision).is_some_and(|running| running.engine.pool.recycle(revision, instance, grace))
    }

    /// Shard `n` is shard `n / PLACES` of the engine at place `n % PLACES`; what an engine has of shards beyond those of
    /// the first is visited with its last. Engines are usually driven one by one, each by a driver of its own.
    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        let (place, at) = (shard % EngineKey::PLACES, shard / EngineKey::PLACES);
        let Some(running) = self.places[place].load_full() else { return };
        let pool = &running.engine.pool;
        let last = at + 1 == self.shards() / EngineKey::PLACES;
        let end = if last { pool.shards() } else { (at + 1).min(pool.shards()) };
        for shard in at..end {
            pool.take_load(shard, visit);
        }
    }

    /// Of the shard of [`Pool::take_load`].
    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        let (place, at) = (shard % EngineKey::PLACES, shard / EngineKey::PLACES);
        let Some(running) = self.places[place].load_full() else { return };
        let pool = &running.engine.pool;
        let last = at + 1 == self.shards() / EngineKey::PLACES;
        let end = if last { pool.shards() } else { (at + 1).min(pool.shards()) };
        for shard in at..end {
            pool.take_decisions(shard, visit);
        }
    }

    fn shards(&self) -> usize {
        let first = self.all().next();
        first.map_or(1, |running| running.engine.pool.shards()) * EngineKey::PLACES
    }

    fn stems(&self) -> Vec<StemView> {
        self.all().flat_map(|running| running.engine.pool.stems()).collect()
    }

    fn totals(&self) -> PoolTotals {
        let mut all = PoolTotals::default();
        let mut limit = Some(0_u64);
        for running in self.all() {
            let totals = running.engine.pool.totals();
            all.instances += totals.instances;
            all.memory_bytes += totals.memory_bytes;
            limit = limit.zip(totals.memory_limit_bytes).map(|(sum, one)| sum.saturating_add(one));
            all.waiting_starts += totals.waiting_starts;
            all.wake_aheads += totals.wake_aheads;
            all.wake_aheads_used += totals.wake_aheads_used;
            all.wake_aheads_wasted += totals.wake_aheads_wasted;
        }
        all.memory_limit_bytes = limit;
        all
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        self.hold_quotas().then_some(self)
    }

    /// Each engine has a budget of its own: the host changes those of its engines' pools.
    fn set_budget(&self, _budget: PoolBudget) -> Result<()> {
        Err(Error::unsupported("changing the budget of all engines at once"))
    }

    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        if let Some(running) = self.at(revision) {
            running.engine.pool.drain(revision, grace).await;
        }
    }

    async fn shutdown(&self, deadline: Instant) {
        self.stop(deadline).await;
    }
}
