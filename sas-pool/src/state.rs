//! The machine of a shard: what claims, releases, starts, exits and decisions do to revisions, instances and waiters.
//!
//! Everything here runs under the shard's lock and touches nothing outside of it but the leaf locks of the gate and
//! of the queue's bounds; what has to happen outside is collected in [`Effects`].

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use sas_core::{
    Claim, ClaimError, Deployed, Error, ErrorKind, ExitReport, Instance, InstanceId, MeterPhase, Outcome,
    Pick, Retry, RevisionKey, SlotView, StartPhase, StartTimings,
};

#[path = "keep_warm.rs"]
mod keep_warm;
#[path = "lifecycle.rs"]
mod lifecycle;

pub(crate) use lifecycle::Holds;

use crate::{
    core::{Core, Idle},
    draw,
    effects::{Effects, Freeze, Plan, Reading, Stop},
    gate::Shortage,
    instance::{IdLayout, InstanceSlot, LAST_GENERATION, METERED, Meter, Phase},
    queue::{Grant, Place, Waiter},
    revision::{Active, Ended, Link, PackedLink, RevisionKey0, RevisionSlot},
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
    pub(crate) waiters: Vec<Waiter>,
    pub(crate) free_waiters: Vec<u32>,
    pub(crate) timers: Timers,
    /// Revisions that are to be woken ahead of a call: the timer, and until when they are kept then.
    pub(crate) wakes: BTreeMap<RevisionKey, ((u64, u64), u64)>,
    pub(crate) draws: u64,
    /// When a scaler last visited; `None`: none ever did.
    pub(crate) visited: Option<u64>,
    pub(crate) closed: bool,
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
            waiters: Vec::new(),
            free_waiters: Vec::new(),
            timers: Timers::default(),
            wakes: BTreeMap::new(),
            draws: draw::mix(seed ^ draw::mix(u64::from(shard))),
            visited: None,
            closed: false,
        }
    }

    // Revisions.

    /// The slot of a registered revision.
    pub(crate) fn lookup(&self, core: &Core, key: RevisionKey) -> Option<u32> {
        let slot = key.slot() >> core.ids.shard_bits;
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
        let active = &self.actives[a as usize];
        active.orphan.as_ref().unwrap_or_else(|| {
            self.revisions[active.slot as usize].deployed.as_ref().expect("an active revision is registered")
        })
    }

    /// The activation record of a revision, made on demand.
    pub(crate) fn activate(&mut self, core: &Core, slot: u32, now: u64) -> u32 {
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
        revision.link = PackedLink::new(Link::Active(a));
        let deployed = revision.deployed.as_ref().expect("a registered revision");
        let spec = &deployed.spec;
        let said = if spec.concurrency == 0 { u32::MAX } else { spec.concurrency };
        let active = &mut self.actives[a as usize];
        active.key =
            RevisionKey0(RevisionKey::new(slot << core.ids.shard_bits | self.shard, revision.generation));
        active.slot = slot;
        active.tenant = deployed.tenant;
        active.limit =
            deployed.runtime.capabilities().max_concurrency.map_or(said, |most| said.min(most)).max(1);
        active.max = if spec.scaling.max == 0 { u32::MAX } else { spec.scaling.max };
        active.min = spec.scaling.min.min(active.max);
        active.balancer = core.balancer_of(spec);
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
            self.revisions[moved.slot as usize].link = PackedLink::new(Link::Ended(at));
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
        for key in [active.retry.take(), active.sleep.take()].into_iter().flatten() {
            self.timers.cancel(key);
        }
        if active.unmetered > 0 {
            fx.readings.push(Reading::Requests(active.key.0, active.tenant, active.unmetered));
        }
        let ended = Ended {
            slot: active.slot,
            area: active.area,
            requests: active.requests,
            start_time: active.start_time,
        };
        if active.orphan.is_none() {
            let link = if self.visited.is_some() {
                self.ended.push(ended);
                Link::Ended(self.ended.len() as u32 - 1)
            } else {
                Link::Asleep
            };
            self.revisions[active.slot as usize].link = PackedLink::new(link);
        }
        let listed = active.listed;
        active.reset();
        self.live.swap_remove(listed as usize);
        if let Some(&moved) = self.live.get(listed as usize) {
            self.actives[moved as usize].listed = listed;
        }
        self.free_actives.push(a);
    }

    // Slots.

    /// The slot of an instance, if the id still is its.
    pub(crate) fn find(&self, core: &Core, id: InstanceId) -> Option<u32> {
        let slot = core.ids.slot(id);
        let instance = self.instances.get(slot as usize)?;
        (instance.generation == IdLayout::generation(id) && instance.phase != Phase::Free).then_some(slot)
    }

    pub(crate) fn id(&self, core: &Core, slot: u32) -> InstanceId {
        core.ids.id(self.shard, slot, self.instances[slot as usize].generation)
    }

    /// Where an instance in rotation is among its revision's slots. Instances are taken out in place and put in at
    /// the end, so it can only have moved to the front.
    fn position(&self, core: &Core, i: u32) -> usize {
        let instance = &self.instances[i as usize];
        let slots = &self.actives[instance.active as usize].slots;
        let id = self.id(core, i);
        let from = (instance.position as usize).min(slots.len() - 1);
        slots[..=from].iter().rposition(|slot| slot.id == id).expect("a ready instance is in rotation")
    }

    /// A slot for `claim`, by the balancer.
    fn pick(&mut self, core: &Core, a: u32, claim: &Claim, now: u64) -> Option<usize> {
        let active = &mut self.actives[a as usize];
        if active.free == 0 {
            return None;
        }
        if let [only] = active.slots.as_slice() {
            // The only instance is given even to a claim that it failed before, unless another is on its way.
            let shunned = claim.exclude == Some(only.id) && active.coming.len() + active.suspended.len() > 0;
            return (only.has_room() && !shunned).then_some(0);
        }
        let excluded =
            claim.exclude.and_then(|id| active.slots.iter().position(|slot| slot.id == id && !slot.ejected));
        if let Some(at) = excluded {
            active.slots[at].ejected = true;
        }
        let pick = Pick::new(claim, draw::next(&mut self.draws), (now / 1_000_000) as u32);
        let balancer = core.balancer(active.balancer);
        let picked = balancer
            .pick(&active.slots, &pick, &mut active.cursor)
            .filter(|&at| active.slots.get(at).is_some_and(SlotView::has_room));
        if let Some(at) = excluded {
            active.slots[at].ejected = false;
        }
        picked
    }

    /// Lends a slot of the instance at `position`.
    fn lend(&mut self, core: &Core, a: u32, position: usize, metered: bool, now: u64) -> Grant {
        let active = &mut self.actives[a as usize];
        let slot = &mut active.slots[position];
        debug_assert!(slot.in_flight < slot.limit, "no more leases than the limit");
        slot.in_flight += 1;
        let (id, first) = (slot.id, slot.in_flight == 1);
        active.free -= 1;
        active.leases += 1;
        let instance = &mut self.instances[core.ids.slot(id) as usize];
        instance.position = position as u32;
        if first {
            if core.metering {
                instance.meter.enter(MeterPhase::Busy, now);
            }
            if let Some(key) = instance.suspend.take() {
                self.timers.cancel(key);
            }
        }
        let token = if metered { id.0 | METERED } else { id.0 };
        let instance = instance.instance.as_ref().expect("an instance in rotation is there");
        Grant { instance: Arc::clone(instance), token, start: None }
    }

    /// A free slot now.
    pub(crate) fn try_claim(&mut self, core: &Core, claim: &Claim) -> Option<Grant> {
        let a = self.active(self.lookup(core, claim.revision)?)?;
        let active = &self.actives[a as usize];
        if active.free == 0 || active.line.len() > 0 || self.closed {
            return None;
        }
        let now = core.now();
        let position = self.pick(core, a, claim, now)?;
        self.called(core, a);
        self.actives[a as usize].arrive(claim.metered, now);
        Some(self.lend(core, a, position, claim.metered, now))
    }

    /// A free slot now, or a count among those that wait, with starts for them in `fx`.
    pub(crate) fn claim(&mut self, core: &Core, claim: &Claim, deadline: u64, fx: &mut Effects) -> Met {
        if self.closed {
            return Met::Decided(Err(ClaimError::Closed));
        }
        let Some(slot) = self.lookup(core, claim.revision) else {
            return Met::Decided(Err(ClaimError::Unknown));
        };
        let now = core.now();
        let woken = self.active(slot).is_none();
        if woken && !claim.wakes {
            return Met::Decided(Err(ClaimError::Asleep));
        }
        let a = self.activate(core, slot, now);
        if self.actives[a as usize].line.len() == 0
            && let Some(position) = self.pick(core, a, claim, now)
        {
            self.called(core, a);
            self.actives[a as usize].arrive(claim.metered, now);
            return Met::Decided(Ok(self.lend(core, a, position, claim.metered, now)));
        }
        if let Err(error) = self.may_wait(core, a, claim, deadline, now) {
            self.rest(now, a, fx);
            return Met::Decided(Err(error));
        }
        self.called(core, a);
        let active = &mut self.actives[a as usize];
        active.arrive(claim.metered, now);
        active.drained = false;
        active.inline += 1;
        active.raised = active.raised.max(active.floor());
        self.grow(core, a, claim.priority, now, fx);
        Met::Waits(a)
    }

    fn may_wait(
        &mut self,
        core: &Core,
        a: u32,
        claim: &Claim,
        deadline: u64,
        now: u64,
    ) -> Result<(), ClaimError> {
        let active = &self.actives[a as usize];
        if !claim.wakes && active.have() == 0 {
            return Err(ClaimError::Asleep);
        }
        if let Some(error) = self.shut(core, a, now) {
            return Err(error);
        }
        if deadline <= now {
            return Err(ClaimError::Deadline);
        }
        let retry_after = core.config.queue.retry_after;
        let limit = self.deployed(a).spec.queue_limit;
        if active.waiting() >= limit {
            return Err(ClaimError::QueueFull { resource: "revision", retry_after });
        }
        if active.line_bytes + u64::from(claim.bytes) > core.config.queue.revision_bytes {
            return Err(ClaimError::QueueFull { resource: "revision bytes", retry_after });
        }
        Ok(())
    }

    /// The error of the last start, while the revision's gate is shut for it.
    fn shut(&self, core: &Core, a: u32, now: u64) -> Option<ClaimError> {
        let active = &self.actives[a as usize];
        let error = active.error.as_ref()?;
        (active.failures >= core.config.backoff.attempts && active.have() == 0 && now < active.retry_at).then(
            || ClaimError::Start {
                error: Arc::clone(error),
                retry_after: Duration::from_nanos(active.retry_at - now),
            },
        )
    }

    /// A claim that started an instance itself takes a slot after all, or gets a place in the line.
    pub(crate) fn enqueue(
        &mut self,
        core: &Core,
        a: u32,
        claim: &Claim,
        deadline: u64,
        fx: &mut Effects,
    ) -> Result<Result<Grant, ClaimError>, u64> {
        let now = core.now();
        let active = &mut self.actives[a as usize];
        active.inline -= 1;
        let decided = if self.closed {
            Some(Err(ClaimError::Closed))
        } else if active.orphan.is_some() {
            Some(Err(ClaimError::Unknown))
        } else if active.line.len() == 0
            && let Some(position) = self.pick(core, a, claim, now)
        {
            return Ok(Ok(self.lend(core, a, position, claim.metered, now)));
        } else if let Some(error) = self.shut(core, a, now) {
            Some(Err(error))
        } else {
            core.bounds.lock().enter(&core.config.queue, claim).err().map(Err)
        };
        if let Some(refused) = decided {
            self.actives[a as usize].depart(claim.metered, now);
            self.rest(now, a, fx);
            return Ok(refused);
        }
        let w = self.free_waiters.pop().unwrap_or_else(|| {
            self.waiters.push(Waiter::free());
            self.waiters.len() as u32 - 1
        });
        let generation = self.waiters[w as usize].generation;
        self.waiters[w as usize] = Waiter {
            generation,
            active: a,
            claim: *claim,
            place: Place::Waiting,
            waker: None,
            timer: Some(self.timers.set(deadline, Timer::Waiter(w))),
            arrived: now,
        };
        fx.arm(deadline);
        let active = &mut self.actives[a as usize];
        active.line_bytes += u64::from(claim.bytes);
        active.line.push(claim.priority, (w, generation));
        Err(u64::from(generation) << 32 | u64::from(w))
    }

    /// Polls a place in the line.
    pub(crate) fn poll(&mut self, ticket: u64, waker: &Waker) -> Poll<Result<Grant, ClaimError>> {
        let waiter = &mut self.waiters[ticket as u32 as usize];
        debug_assert_eq!(waiter.generation, (ticket >> 32) as u32, "a spent ticket is not polled");
        match std::mem::replace(&mut waiter.place, Place::Waiting) {
            Place::Granted(grant) => {
                self.free_waiter(ticket as u32);
                Poll::Ready(Ok(grant))
            }
            Place::Failed(error) => {
                self.free_waiter(ticket as u32);
                Poll::Ready(Err(error))
            }
            Place::Waiting => {
                if !waiter.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    waiter.waker = Some(waker.clone());
                }
                Poll::Pending
            }
            Place::Free => unreachable!("a free place has no ticket"),
        }
    }

    /// Gives a place in the line up. A slot that was granted to it is returned to be released.
    pub(crate) fn leave(&mut self, core: &Core, ticket: u64, fx: &mut Effects) -> Option<Grant> {
        let w = ticket as u32;
        let waiter = &mut self.waiters[w as usize];
        match std::mem::replace(&mut waiter.place, Place::Free) {
            Place::Granted(grant) => {
                self.free_waiter(w);
                Some(grant)
            }
            Place::Waiting => {
                let now = core.now();
                let (a, claim) = (waiter.active, waiter.claim);
                self.unqueue(core, w, now);
                self.free_waiter(w);
                let waiters = &self.waiters;
                self.actives[a as usize].line.left(|entry| is_waiting(waiters, entry));
                self.actives[a as usize].depart(claim.metered, now);
                self.rest(now, a, fx);
                None
            }
            Place::Failed(_) | Place::Free => {
                self.free_waiter(w);
                None
            }
        }
    }

    fn free_waiter(&mut self, w: u32) {
        let waiter = &mut self.waiters[w as usize];
        waiter.place = Place::Free;
        waiter.waker = None;
        waiter.generation = waiter.generation.wrapping_add(1);
        self.free_waiters.push(w);
    }

    /// What a waiter held besides its place in the line: its deadline and its part of the bounds.
    fn unqueue(&mut self, core: &Core, w: u32, now: u64) {
        let waiter = &mut self.waiters[w as usize];
        if let Some(key) = waiter.timer.take() {
            self.timers.cancel(key);
        }
        self.actives[waiter.active as usize].line_bytes -= u64::from(waiter.claim.bytes);
        core.bounds.lock().leave(&waiter.claim);
        core.metrics.waited(now.saturating_sub(waiter.arrived));
    }

    /// Hands free slots to those who wait, the slot at `freed` first.
    fn serve(&mut self, core: &Core, a: u32, freed: Option<usize>, now: u64, fx: &mut Effects) {
        let mut freed = freed;
        while self.actives[a as usize].free > 0 && self.actives[a as usize].line.len() > 0 {
            let active = &mut self.actives[a as usize];
            let direct = freed.take().filter(|&at| active.slots[at].has_room());
            let shunned = direct.map(|at| active.slots[at].id);
            let alone = active.have() == 1;
            let waiters = &self.waiters;
            let Some(w) = active.line.take(
                |entry| is_waiting(waiters, entry),
                |w| alone || shunned.is_none() || waiters[w as usize].claim.exclude != shunned,
            ) else {
                if direct.is_some() {
                    continue;
                }
                break;
            };
            let claim = self.waiters[w as usize].claim;
            let Some(position) = direct.or_else(|| self.pick(core, a, &claim, now)) else {
                // Free slots, but none for this one: it excludes the only instance that has room.
                let generation = self.waiters[w as usize].generation;
                self.actives[a as usize].line.put_back(claim.priority, (w, generation));
                break;
            };
            self.unqueue(core, w, now);
            let mut grant = self.lend(core, a, position, claim.metered, now);
            let instance = &self.instances[core.ids.slot(InstanceId(grant.token & !METERED)) as usize];
            if instance.asked <= self.waiters[w as usize].arrived
                || instance.ready >= self.waiters[w as usize].arrived
            {
                grant.start.clone_from(&instance.start);
            }
            let waiter = &mut self.waiters[w as usize];
            waiter.place = Place::Granted(grant);
            fx.wake.extend(waiter.waker.take());
        }
    }

    /// Answers all who wait with an error.
    fn fail_line(&mut self, core: &Core, a: u32, now: u64, fx: &mut Effects, error: impl Fn() -> ClaimError) {
        loop {
            let waiters = &self.waiters;
            let taken = self.actives[a as usize].line.take(|entry| is_waiting(waiters, entry), |_| true);
            let Some(w) = taken else { break };
            self.fail_waiter(core, w, now, fx, error());
        }
    }

    fn fail_waiter(&mut self, core: &Core, w: u32, now: u64, fx: &mut Effects, error: ClaimError) {
        self.unqueue(core, w, now);
        let waiter = &mut self.waiters[w as usize];
        waiter.place = Place::Failed(error);
        fx.wake.extend(waiter.waker.take());
        let (a, metered) = (waiter.active, waiter.claim.metered);
        self.actives[a as usize].depart(metered, now);
    }

    /// Takes a lease back.
    pub(crate) fn release(&mut self, core: &Core, token: u64, outcome: Outcome, fx: &mut Effects) {
        let id = InstanceId(token & !METERED);
        let metered = token & METERED != 0;
        let Some(i) = self.find(core, id) else { return };
        let now = core.now();
        let a = self.instances[i as usize].active;
        let active = &mut self.actives[a as usize];
        active.leases -= 1;
        active.depart(metered, now);
        if metered && outcome != Outcome::Unused {
            active.unmetered += 1;
        }
        match self.instances[i as usize].phase {
            Phase::Ready => {
                let position = self.position(core, i);
                let active = &mut self.actives[a as usize];
                let slot = &mut active.slots[position];
                slot.in_flight -= 1;
                if !slot.ejected {
                    active.free += 1;
                }
                self.judge(core, i, position, outcome, now, fx);
                if self.actives[a as usize].line.len() > 0 && !self.yields(core, a) {
                    self.serve(core, a, Some(position), now, fx);
                }
                if self.actives[a as usize].slots[position].in_flight == 0 {
                    self.fell_idle(core, i, now, fx);
                }
            }
            phase => {
                let instance = &mut self.instances[i as usize];
                instance.in_flight -= 1;
                if instance.in_flight == 0 {
                    match phase {
                        Phase::Draining => self.stop(core, i, None, now, fx),
                        Phase::Gone => {
                            self.free_instance(i);
                            self.rest(now, a, fx);
                        }
                        _ => {}
                    }
                }
            }
        }
    }

    /// Whether the revision's tenant holds more than its share of a budget that others wait for: a slot that comes
    /// free is then not lent again.
    fn yields(&self, core: &Core, a: u32) -> bool {
        core.is_short() && core.gate.lock().is_over_share(self.actives[a as usize].tenant)
    }

    /// An instance has no lease any more.
    fn fell_idle(&mut self, core: &Core, i: u32, now: u64, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        let a = instance.active;
        instance.idle = now;
        if core.metering {
            instance.meter.enter(MeterPhase::Idle, now);
        }
        if core.is_short() && (self.actives[a as usize].waiting() == 0 || self.yields(core, a)) {
            let active = &mut self.actives[a as usize];
            if active.have() > active.min {
                active.raised = active.raised.min(active.have() - 1);
                active.decided = active.decided.min(active.have() - 1);
                self.take_out(core, i);
                self.stop(core, i, None, now, fx);
                return;
            }
        }
        if core.idle == Idle::AtOnce {
            let active = &mut self.actives[a as usize];
            if active.waiting() == 0 {
                active.raised = 0;
            }
        }
        let active = &self.actives[a as usize];
        if active.have() > active.target() {
            self.shrink(core, a, false, now, fx);
        }
        if self.instances[i as usize].phase == Phase::Ready {
            self.suspend_later(core, i, now, fx);
            if self.actives[a as usize].leases == 0 && self.actives[a as usize].waiting() == 0 {
                self.revision_idle(core, a, now, fx);
            }
        }
    }

    fn suspend_later(&mut self, core: &Core, i: u32, now: u64, fx: &mut Effects) {
        let Some(after) = core.config.suspend_after else { return };
        let a = self.instances[i as usize].active;
        if !self.deployed(a).runtime.capabilities().suspend {
            return;
        }
        let at = now + nanos(after);
        let id = self.id(core, i);
        let instance = &mut self.instances[i as usize];
        if let Some(key) = instance.suspend.replace(self.timers.set(at, Timer::Suspend(id))) {
            self.timers.cancel(key);
        }
        fx.arm(at);
    }

    /// Feeds the outcome of a lease to outlier ejection.
    fn judge(&mut self, core: &Core, i: u32, position: usize, outcome: Outcome, now: u64, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        let active = &mut self.actives[instance.active as usize];
        if outcome == Outcome::Ok {
            instance.served = instance.served.saturating_add(1);
            active.deaths = 0;
        }
        let Some(config) = &core.config.outliers else { return };
        if active.slots[position].ejected {
            return;
        }
        let total = active.slots.len() as u32;
        let Some(time) = instance.outliers.observe(config, outcome, total, active.ejected) else { return };
        let slot = &mut active.slots[position];
        slot.ejected = true;
        active.free -= u64::from(slot.limit - slot.in_flight);
        active.ejected += 1;
        let at = now + nanos(time);
        self.timers.set(at, Timer::Readmit(slot.id));
        core.metrics.ejections.increment(1);
        fx.arm(at);
    }
}

/// Whether an entry of a line still waits.
fn is_waiting(waiters: &[Waiter], (w, generation): (u32, u32)) -> bool {
    let waiter = &waiters[w as usize];
    waiter.generation == generation && matches!(waiter.place, Place::Waiting)
}

/// A duration in the pool's nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX >> 1).min(u64::MAX >> 1)
}

impl State {
    /// Takes a revision in.
    pub(crate) fn register(&mut self, core: &Core, deployed: Arc<Deployed>, fx: &mut Effects) -> RevisionKey {
        let wants = deployed.spec.scaling.min > 0;
        let slot = match self.free_revisions.pop() {
            Some(slot) => {
                self.revisions[slot as usize].deployed = Some(deployed);
                slot
            }
            None => {
                let revision =
                    RevisionSlot { deployed: Some(deployed), generation: 0, link: PackedLink::ASLEEP };
                self.revisions.push(revision);
                self.revisions.len() as u32 - 1
            }
        };
        let generation = self.revisions[slot as usize].generation;
        if wants {
            let now = core.now();
            let a = self.activate(core, slot, now);
            self.grow(core, a, 0, now, fx);
        }
        RevisionKey::new(slot << core.ids.shard_bits | self.shard, generation)
    }

    /// All instances that are there.
    pub(crate) fn all(&self, core: &Core) -> Vec<InstanceId> {
        (0..self.instances.len() as u32)
            .filter(|&i| !matches!(self.instances[i as usize].phase, Phase::Free | Phase::Gone))
            .map(|i| self.id(core, i))
            .collect()
    }

    /// The longest grace of a stop in the shard.
    pub(crate) fn longest_grace(&self) -> Duration {
        self.live.iter().map(|&a| self.deployed(a).spec.timeouts.stop_grace).max().unwrap_or_default()
    }

    /// Lets go of everything, without a word to anybody: the pool is dropped.
    pub(crate) fn abandon(&mut self) -> Vec<Arc<dyn Instance>> {
        self.closed = true;
        self.timers.clear();
        let mut held = Vec::new();
        for instance in &mut self.instances {
            held.extend(instance.instance.take());
            *instance = InstanceSlot { generation: instance.generation, ..InstanceSlot::default() };
        }
        held
    }

    /// Stops idle instances for somebody who waits for a budget, those that were idle longest first.
    pub(crate) fn reclaim(
        &mut self,
        core: &Core,
        left: &mut Shortage,
        over_share_only: bool,
        fx: &mut Effects,
    ) {
        let now = core.now();
        let mut idle: Vec<(u64, u32)> = (0..self.instances.len() as u32)
            .filter(|&i| self.instances[i as usize].budget.is_some())
            .filter(|&i| self.is_idle(core, i))
            .map(|i| (self.instances[i as usize].idle, i))
            .collect();
        idle.sort_unstable();
        for (_, i) in idle {
            if *left == Shortage::default() {
                return;
            }
            let a = self.instances[i as usize].active;
            let active = &self.actives[a as usize];
            if active.have() <= active.min
                || over_share_only && !core.gate.lock().is_over_share(active.tenant)
            {
                continue;
            }
            let active = &mut self.actives[a as usize];
            let rest = active.have() - 1;
            active.raised = active.raised.min(rest);
            active.decided = active.decided.min(rest);
            let memory = self.instances[i as usize].budget.unwrap_or(0);
            left.instances = left.instances.saturating_sub(1);
            left.memory = left.memory.saturating_sub(memory);
            if self.instances[i as usize].phase == Phase::Suspended {
                self.actives[a as usize].suspended.retain(|&other| other != i);
            } else {
                self.take_out(core, i);
            }
            self.stop(core, i, None, now, fx);
        }
    }

    fn is_idle(&self, core: &Core, i: u32) -> bool {
        let instance = &self.instances[i as usize];
        match instance.phase {
            Phase::Suspended => true,
            Phase::Ready => {
                let at = self.position(core, i);
                self.actives[instance.active as usize].slots[at].in_flight == 0
            }
            _ => false,
        }
    }
}
