//! The machine of a shard: what claims, releases, starts, exits and decisions do to revisions, instances and waiters.
//!
//! Everything here runs under the shard's lock and touches nothing outside of it but the leaf locks of the [`Rules`];
//! the time comes in, and what has to happen outside is collected in [`Effects`]. So its tests need no task and no
//! clock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use sas_core::{
    Claim, ClaimError, Deployed, Error, ErrorKind, ExitReport, Instance, InstanceId, MeterPhase, Outcome,
    Pick, QuotaExceeded, Reason, Retry, RevisionKey, RevisionSpec, SizeBounds, SlotView, StartPhase,
    StartTimings, TenantKey,
};
use smallvec::SmallVec;

mod claims;
mod decisions;
mod keep_warm;
mod leases;
mod starts;
mod stops;
#[cfg(test)]
mod tests;
mod timed;

use self::decisions::OwnDecisions;
use crate::{
    clock::nanos,
    draw,
    effects::{Candidate, DecidedStart, Effects, Failure, Freeze, Holds, LastSample, Reading, Started, Stop},
    gate::{Need, Shortage},
    instance::{IdLayout, InstanceSlot, METERED, Phase, PhaseMeter},
    limits::Takes,
    queue::{Grant, Waiter, WaiterState},
    revision::{Active, Ended, Link, PackedLink, RevisionKey0, RevisionSlot},
    rules::{Idle, Rules},
    timer::{Timer, Timers},
};

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) shard: u32,
    pub(crate) revisions: Vec<RevisionSlot>,
    pub(crate) free_revisions: Vec<u32>,
    pub(crate) actives: Vec<Active>,
    pub(crate) free_actives: Vec<u32>,
    /// The records in use.
    pub(crate) live: Vec<u32>,
    pub(crate) ended: Vec<Ended>,
    pub(crate) instances: Vec<InstanceSlot>,
    pub(crate) free_instances: Vec<u32>,
    /// By instance; none where nobody meters.
    pub(crate) meters: Vec<PhaseMeter>,
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) free_waiters: Vec<u32>,
    pub(crate) timers: Timers,
    /// Revisions that are to be woken ahead of a call: the timer, and until when they are kept then.
    pub(crate) wakes: BTreeMap<RevisionKey, ((u64, u64), u64)>,
    /// What holds for the size of revisions beside their specs: those of roll-outs under way, so a handful.
    pub(crate) bounds: BTreeMap<RevisionKey, SizeBounds>,
    pub(crate) draws: u64,
    /// When a scaler last visited; `None`: none ever did.
    pub(crate) visited: Option<u64>,
    pub(crate) closed: bool,
    /// What was decided here and not by a scaler, until the next visit of one.
    pub(crate) own: OwnDecisions,
}

/// What a claim met.
pub(crate) enum Met {
    /// A lease, or an error.
    Decided(Result<Grant, ClaimError>),
    /// Nothing: it counts as waiting now, in this record.
    Waits(u32),
}

impl State {
    pub(crate) fn new(shard: u32, seed: u64) -> Self {
        Self {
            shard,
            revisions: Vec::new(),
            free_revisions: Vec::new(),
            actives: Vec::new(),
            free_actives: Vec::new(),
            live: Vec::new(),
            ended: Vec::new(),
            instances: Vec::new(),
            free_instances: Vec::new(),
            meters: Vec::new(),
            waiters: Vec::new(),
            free_waiters: Vec::new(),
            timers: Timers::default(),
            wakes: BTreeMap::new(),
            bounds: BTreeMap::new(),
            draws: draw::mix(seed ^ draw::mix(u64::from(shard))),
            visited: None,
            closed: false,
            own: OwnDecisions::default(),
        }
    }

    /// The slot of a registered revision.
    pub(crate) fn lookup(&self, rules: &Rules, key: RevisionKey) -> Option<u32> {
        let slot = key.slot() >> rules.ids.shard_bits;
        let revision = self.revisions.get(slot as usize)?;
        (revision.generation == key.generation() && revision.deployed.is_some()).then_some(slot)
    }

    pub(crate) fn active(&self, slot: u32) -> Option<u32> {
        match self.revisions[slot as usize].link.get() {
            Link::Active(at) => Some(at),
            _ => None,
        }
    }

    pub(crate) fn deployed(&self, a: u32) -> &Arc<Deployed> {
        self.actives[a as usize].deployed.as_ref().expect("a record in use has its revision")
    }

    /// The activation record of a revision, made on demand.
    pub(crate) fn activate(&mut self, rules: &Rules, slot: u32, now: u64) -> u32 {
        let link = self.revisions[slot as usize].link.get();
        if let Link::Active(at) = link {
            return at;
        }
        let ended = match link {
            Link::Ended(at) => Some(self.take_ended(at)),
            _ => None,
        };
        let a = self.free_actives.pop().unwrap_or_else(|| {
            self.actives.push(Active::default());
            self.actives.len() as u32 - 1
        });
        let revision = &mut self.revisions[slot as usize];
        revision.link.set(Link::Active(a));
        let deployed = revision.deployed.as_ref().expect("a registered revision");
        let spec = &deployed.spec;
        let said = if spec.concurrency == 0 { u32::MAX } else { spec.concurrency };
        let active = &mut self.actives[a as usize];
        active.key =
            RevisionKey0(RevisionKey::new(slot << rules.ids.shard_bits | self.shard, revision.generation));
        active.slot = slot;
        active.tenant.0 = deployed.tenant;
        let capabilities = deployed.runtime.capabilities();
        active.sampled = capabilities.usage;
        active.kept = rules.idle == Idle::Policy && !deployed.spec.scaling.says_when_to_sleep();
        active.limit = capabilities.max_concurrency.map_or(said, |most| said.min(most)).max(1);
        let bounds = self.bounds.get(&active.key.0).copied();
        (active.min, active.ceiling, active.max) = size_of(spec, bounds);
        active.balancer = rules.balancer_of(spec);
        active.deployed = Some(Arc::clone(deployed));
        active.since = now;
        active.changed = now;
        if let Some(ended) = ended {
            active.area = ended.area;
            active.requests = ended.requests;
            active.start_time = ended.start_time;
        }
        active.listed = self.live.len() as u32;
        self.live.push(a);
        a
    }

    /// Takes the record of an ended load out.
    pub(crate) fn take_ended(&mut self, at: u32) -> Ended {
        let ended = self.ended.swap_remove(at as usize);
        if let Some(moved) = self.ended.get(at as usize) {
            self.revisions[moved.slot as usize].link.set(Link::Ended(at));
        }
        ended
    }

    /// Gives the record back when nothing of the revision waits or runs.
    pub(crate) fn rest(&mut self, now: u64, a: u32, fx: &mut Effects) {
        let active = &mut self.actives[a as usize];
        if !active.is_over() {
            return;
        }
        active.account(now);
        self.own.end_activation(active, self.visited.is_some());
        for key in [active.retry.take(), active.sleep.take()].into_iter().flatten() {
            self.timers.cancel(key);
        }
        let ended = Ended {
            slot: active.slot,
            area: active.area,
            requests: active.requests,
            start_time: active.start_time,
        };
        if active.orphan {
            fx.forgotten = active.deployed.take();
        } else {
            let link = if self.visited.is_some() {
                self.ended.push(ended);
                Link::Ended(self.ended.len() as u32 - 1)
            } else {
                Link::Asleep
            };
            self.revisions[active.slot as usize].link.set(link);
        }
        let listed = active.listed;
        active.reset();
        self.live.swap_remove(listed as usize);
        if let Some(&moved) = self.live.get(listed as usize) {
            self.actives[moved as usize].listed = listed;
        }
        self.free_actives.push(a);
    }

    /// The slot of an instance, if the id still is its.
    pub(crate) fn find(&self, rules: &Rules, id: InstanceId) -> Option<u32> {
        let slot = rules.ids.slot(id);
        let instance = self.instances.get(slot as usize)?;
        (instance.generation == IdLayout::generation(id) && instance.phase != Phase::Free).then_some(slot)
    }

    pub(crate) fn id(&self, rules: &Rules, slot: u32) -> InstanceId {
        rules.ids.id(self.shard, slot, self.instances[slot as usize].generation)
    }

    /// Takes a revision in.
    pub(crate) fn register(
        &mut self,
        rules: &Rules,
        deployed: Arc<Deployed>,
        now: u64,
        fx: &mut Effects,
    ) -> RevisionKey {
        let wants = deployed.spec.scaling.min > 0;
        let slot = match self.free_revisions.pop() {
            Some(slot) => {
                self.revisions[slot as usize].deployed = Some(deployed);
                slot
            }
            None => {
                let revision = RevisionSlot {
                    deployed: Some(deployed),
                    generation: rules.ids.first,
                    link: PackedLink::ASLEEP,
                };
                self.revisions.push(revision);
                self.revisions.len() as u32 - 1
            }
        };
        let generation = self.revisions[slot as usize].generation;
        if wants {
            let a = self.activate(rules, slot, now);
            self.grow(rules, a, 0, now, fx);
        }
        RevisionKey::new(slot << rules.ids.shard_bits | self.shard, generation)
    }

    /// The intents of the scaler.
    pub(crate) fn set_desired(
        &mut self,
        rules: &Rules,
        decisions: &[(RevisionKey, u32)],
        now: u64,
        fx: &mut Effects,
    ) {
        if self.closed {
            return;
        }
        // Where they are is looked up for all first: each is a miss of the caches, and so they are waited for together.
        let found: SmallVec<[Option<u32>; 16]> =
            decisions.iter().map(|(key, _)| self.lookup(rules, *key)).collect();
        for ((_, desired), slot) in decisions.iter().zip(found) {
            if let Some(slot) = slot
                && (*desired > 0 || self.active(slot).is_some())
            {
                self.decide(rules, slot, *desired, now, fx);
            }
        }
    }

    fn decide(&mut self, rules: &Rules, slot: u32, desired: u32, now: u64, fx: &mut Effects) {
        let a = self.activate(rules, slot, now);
        let active = &mut self.actives[a as usize];
        active.asked = desired;
        active.bind();
        active.raised = 0;
        active.drained &= desired == 0;
        // The keep-alive policy has the last word about the last one, once no decision keeps it.
        if active.decided == 0
            && active.called
            && active.have() > 0
            && active.leases == 0
            && active.waiting() == 0
            && !active.orphan
        {
            self.ask_policy(rules, a, now, fx);
        }
        let active = &mut self.actives[a as usize];
        if active.decided == 0 && active.have() > 0 && active.sleep.is_some() {
            active.raised = 1;
        }
        let (have, target) = (active.have(), active.target());
        if have < target {
            self.grow(rules, a, 0, now, fx);
        } else if have > target && active.waiting() == 0 {
            // While requests wait, a decision made from older load takes nothing away from those that run.
            self.shrink(rules, a, true, now, fx);
        }
        self.rest(now, a, fx);
    }

    /// What holds for the size of a revision beside its spec.
    pub(crate) fn set_bounds(
        &mut self,
        rules: &Rules,
        key: RevisionKey,
        bounds: Option<SizeBounds>,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(slot) = self.lookup(rules, key).filter(|_| !self.closed) else { return };
        let before = match bounds {
            Some(bounds) => self.bounds.insert(key, bounds),
            None => self.bounds.remove(&key),
        };
        if before == bounds {
            return;
        }
        let wakes = bounds.is_some_and(|bounds| bounds.floor > 0);
        let reason = bounds.or(before).map_or(Reason::RollOut, |bounds| bounds.reason);
        let a = match self.active(slot) {
            Some(a) => a,
            None if wakes => self.activate(rules, slot, now),
            None => return,
        };
        let size = size_of(&self.deployed(a).spec, bounds);
        let active = &mut self.actives[a as usize];
        (active.min, active.ceiling, active.max) = size;
        active.drained &= !wakes;
        active.bind();
        let (have, target) = (active.have(), active.target());
        if have < target {
            self.decided_here(rules, a, (have, target), reason, None);
            self.grow(rules, a, 0, now, fx);
        } else if have > target && active.waiting() == 0 && bounds.is_some() {
            // Once they are lifted, the next decision says what goes.
            self.decided_here(rules, a, (have, target), reason, None);
            self.shrink(rules, a, true, now, fx);
        }
        self.rest(now, a, fx);
    }

    /// Mends an instance as a crash would be mended.
    pub(crate) fn recycle(
        &mut self,
        rules: &Rules,
        key: RevisionKey,
        id: InstanceId,
        grace: Duration,
        now: u64,
        fx: &mut Effects,
    ) -> bool {
        let Some(a) = self.lookup(rules, key).and_then(|slot| self.active(slot)) else { return false };
        let Some(i) = self.find(rules, id).filter(|&i| self.instances[i as usize].active == a) else {
            return false;
        };
        if !self.retire(rules, i, grace, now, fx) {
            return false;
        }
        self.grow(rules, a, 0, now, fx);
        self.rest(now, a, fx);
        true
    }

    /// Forgets a revision.
    pub(crate) fn unregister(&mut self, rules: &Rules, key: RevisionKey, now: u64, fx: &mut Effects) -> bool {
        let Some(slot) = self.lookup(rules, key) else { return false };
        match self.revisions[slot as usize].link.get() {
            Link::Asleep => {}
            Link::Ended(at) => drop(self.take_ended(at)),
            Link::Active(a) => {
                let active = &mut self.actives[a as usize];
                active.orphan = true;
                active.min = 0;
                active.failures = 0;
                active.error = None;
                for timer in [active.retry.take(), active.sleep.take()].into_iter().flatten() {
                    self.timers.cancel(timer);
                }
                self.fail_line(rules, a, now, fx, || ClaimError::Unknown);
                let grace = self.deployed(a).spec.timeouts.request;
                self.drain(rules, a, grace, now, fx);
            }
        }
        self.forget_wake(key);
        self.bounds.remove(&key);
        rules.with_policy(|policy| policy.forget(key));
        let revision = &mut self.revisions[slot as usize];
        fx.forgotten = revision.deployed.take();
        revision.link = PackedLink::ASLEEP;
        if revision.generation < rules.ids.last {
            revision.generation += 1;
            self.free_revisions.push(slot);
        }
        true
    }
}

/// Least instances, most that a decision makes, and most.
fn size_of(spec: &RevisionSpec, bounds: Option<SizeBounds>) -> (u32, u32, u32) {
    let max = if spec.scaling.max == 0 { u32::MAX } else { spec.scaling.max };
    match bounds {
        Some(bounds) => {
            let max = max.min(bounds.limit);
            (bounds.floor.min(max), bounds.ceiling, max)
        }
        None => (spec.scaling.min.min(max), u32::MAX, max),
    }
}

/// Whether an entry of a line still waits.
fn is_waiting(waiters: &[Waiter], (w, generation): (u32, u32)) -> bool {
    let waiter = &waiters[w as usize];
    waiter.generation == generation && matches!(waiter.place, WaiterState::Waiting)
}
