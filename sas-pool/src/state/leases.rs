//! Leases: which instance is lent, and what happens when a lease comes back.

use sas_core::Reason;

use super::*;

impl State {
    /// Where an instance in rotation is among its revision's slots. Instances are taken out in place and put in at
    /// the end, so it can only have moved to the front.
    pub(super) fn position(&self, rules: &Rules, i: u32) -> usize {
        let instance = &self.instances[i as usize];
        let slots = &self.actives[instance.active as usize].slots;
        let id = self.id(rules, i);
        let from = (instance.position as usize).min(slots.len() - 1);
        slots[..=from].iter().rposition(|slot| slot.id == id).expect("a ready instance is in rotation")
    }

    /// A slot for `claim`, by the balancer.
    pub(super) fn pick(&mut self, rules: &Rules, a: u32, claim: &Claim, now: u64) -> Option<usize> {
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
        let balancer = rules.balancer(active.balancer);
        let picked = balancer
            .pick(&active.slots, &pick, &mut active.cursor)
            .filter(|&at| active.slots.get(at).is_some_and(SlotView::has_room));
        if let Some(at) = excluded {
            active.slots[at].ejected = false;
        }
        picked
    }

    /// Lends a slot of the instance at `position`.
    pub(super) fn lend(&mut self, rules: &Rules, a: u32, position: usize, metered: bool, now: u64) -> Grant {
        let active = &mut self.actives[a as usize];
        let slot = &mut active.slots[position];
        debug_assert!(slot.in_flight < slot.limit, "no more leases than the limit");
        slot.in_flight += 1;
        let (id, first) = (slot.id, slot.in_flight == 1);
        active.free -= 1;
        active.leases += 1;
        let instance = &mut self.instances[rules.ids.slot(id) as usize];
        instance.position = position as u32;
        if first {
            if rules.metering {
                self.meters[rules.ids.slot(id) as usize].enter(MeterPhase::Busy, now);
            }
            if let Some(key) = instance.suspend.take() {
                self.timers.cancel(key);
            }
        }
        let token = if metered { id.0 | METERED } else { id.0 };
        let instance = instance.instance.as_ref().expect("an instance in rotation is there");
        Grant { instance: Arc::clone(instance), token, start: None }
    }

    /// Takes a lease back.
    pub(crate) fn release(
        &mut self,
        rules: &Rules,
        token: u64,
        outcome: Outcome,
        now: u64,
        fx: &mut Effects,
    ) {
        let id = InstanceId(token & !METERED);
        let metered = token & METERED != 0;
        let Some(i) = self.find(rules, id) else { return };
        let a = self.instances[i as usize].active;
        let active = &mut self.actives[a as usize];
        active.leases -= 1;
        active.depart(metered, now);
        match self.instances[i as usize].phase {
            Phase::Ready => {
                let position = self.position(rules, i);
                let active = &mut self.actives[a as usize];
                let slot = &mut active.slots[position];
                slot.in_flight -= 1;
                if !slot.ejected {
                    active.free += 1;
                }
                self.judge(rules, i, position, outcome, now, fx);
                if self.actives[a as usize].line.len() > 0 && !self.yields(rules, a) {
                    self.serve(rules, a, Some(position), now, fx);
                }
                if self.actives[a as usize].slots[position].in_flight == 0 {
                    self.fell_idle(rules, i, now, fx);
                }
            }
            phase => {
                let instance = &mut self.instances[i as usize];
                instance.in_flight -= 1;
                if instance.in_flight == 0 {
                    match phase {
                        Phase::Draining => self.stop(rules, i, None, now, fx),
                        Phase::Gone => {
                            self.free_instance(rules, i);
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
    pub(super) fn yields(&self, rules: &Rules, a: u32) -> bool {
        rules.is_short() && rules.gate.lock().is_over_share(self.actives[a as usize].tenant.0)
    }

    /// An instance has no lease any more.
    pub(super) fn fell_idle(&mut self, rules: &Rules, i: u32, now: u64, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        let a = instance.active;
        instance.idle = now;
        if rules.metering {
            self.meters[i as usize].enter(MeterPhase::Idle, now);
        }
        if rules.is_short() && (self.actives[a as usize].waiting() == 0 || self.yields(rules, a)) {
            let active = &mut self.actives[a as usize];
            if active.have() > active.min {
                let rest = active.have() - 1;
                active.raised = active.raised.min(rest);
                active.decided = active.decided.min(rest);
                active.asked = active.asked.min(rest);
                self.decided_here(rules, a, (rest + 1, rest), Reason::Reclaimed, None);
                self.take_out(rules, i);
                self.stop(rules, i, None, now, fx);
                return;
            }
        }
        if rules.idle == Idle::AtOnce {
            let active = &mut self.actives[a as usize];
            if active.waiting() == 0 {
                active.raised = 0;
            }
        }
        let active = &self.actives[a as usize];
        if active.have() > active.target() {
            self.shrink(rules, a, false, now, fx);
        }
        if self.instances[i as usize].phase == Phase::Ready {
            self.suspend_later(rules, i, now, fx);
            if self.actives[a as usize].leases == 0 && self.actives[a as usize].waiting() == 0 {
                self.revision_idle(rules, a, now, fx);
            }
        }
    }

    pub(super) fn suspend_later(&mut self, rules: &Rules, i: u32, now: u64, fx: &mut Effects) {
        let Some(after) = rules.config.suspend_after else { return };
        let a = self.instances[i as usize].active;
        if !self.deployed(a).runtime.capabilities().suspend {
            return;
        }
        let at = now + nanos(after);
        let id = self.id(rules, i);
        let instance = &mut self.instances[i as usize];
        if let Some(key) = instance.suspend.replace(self.timers.set(at, Timer::Suspend(id))) {
            self.timers.cancel(key);
        }
        fx.arm(at);
    }

    /// Feeds the outcome of a lease to outlier ejection.
    pub(super) fn judge(
        &mut self,
        rules: &Rules,
        i: u32,
        position: usize,
        outcome: Outcome,
        now: u64,
        fx: &mut Effects,
    ) {
        let instance = &mut self.instances[i as usize];
        let active = &mut self.actives[instance.active as usize];
        if outcome == Outcome::Ok {
            instance.served = instance.served.saturating_add(1);
            active.deaths = 0;
        }
        let Some(config) = &rules.config.outliers else { return };
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
        rules.metrics.ejections.increment(1);
        fx.arm(at);
    }

    /// When the instance of a lease stops at the latest, if it drains.
    pub(crate) fn draining(&self, rules: &Rules, token: u64, now: u64) -> Option<u64> {
        let i = self.find(rules, InstanceId(token & !METERED))?;
        let instance = &self.instances[i as usize];
        match instance.phase {
            Phase::Draining => instance.grace.map(|(at, _)| at),
            Phase::Stopping | Phase::Gone => Some(now),
            _ => None,
        }
    }
}
