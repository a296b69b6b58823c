//! From the decision to stop an instance until nothing of it is left.

use sas_core::Reason;

use super::*;

impl State {
    /// Takes an instance out of rotation.
    pub(crate) fn take_out(&mut self, rules: &Rules, i: u32) {
        let position = self.position(rules, i);
        let instance = &mut self.instances[i as usize];
        let active = &mut self.actives[instance.active as usize];
        let slot = active.slots.remove(position);
        if slot.ejected {
            active.ejected -= 1;
        } else {
            active.free -= u64::from(slot.limit - slot.in_flight);
        }
        instance.in_flight = slot.in_flight;
        if let Some(key) = instance.suspend.take() {
            self.timers.cancel(key);
        }
    }

    /// Brings the number of instances down: what has not begun, what is suspended, what is idle; and with `busy`
    /// also what is starting and, after its drain, what works.
    pub(crate) fn shrink(&mut self, rules: &Rules, a: u32, busy: bool, now: u64, fx: &mut Effects) {
        let active = &self.actives[a as usize];
        let mut surplus = active.have().saturating_sub(active.target());
        let mut at = active.coming.len();
        while surplus > 0 && at > 0 {
            at -= 1;
            let i = self.actives[a as usize].coming[at];
            if self.instances[i as usize].phase == Phase::Gated && self.withdraw(rules, i, now, fx) {
                surplus -= 1;
            }
        }
        while surplus > 0
            && let Some(i) = self.actives[a as usize].suspended.pop()
        {
            self.stop(rules, i, None, now, fx);
            surplus -= 1;
        }
        let mut at = self.actives[a as usize].slots.len();
        while surplus > 0 && at > 0 {
            at -= 1;
            let slot = &self.actives[a as usize].slots[at];
            if slot.in_flight == 0 {
                let i = rules.ids.slot(slot.id);
                self.take_out(rules, i);
                self.stop(rules, i, None, now, fx);
                surplus -= 1;
            }
        }
        if !busy {
            return;
        }
        while surplus > 0
            && let Some(&i) = self.actives[a as usize].coming.last()
            && self.instances[i as usize].phase == Phase::Starting
        {
            self.uncome(i);
            self.instances[i as usize].cancelled = true;
            surplus -= 1;
        }
        while surplus > 0 {
            let active = &self.actives[a as usize];
            let Some(slot) = active.slots.iter().min_by_key(|slot| slot.in_flight) else { break };
            let i = rules.ids.slot(slot.id);
            let grace = self.deployed(a).spec.timeouts.request;
            self.drain_one(rules, i, grace, true, now, fx);
            surplus -= 1;
        }
    }

    /// Takes a start back that did not have its turn. False when it has.
    pub(super) fn withdraw(&mut self, rules: &Rules, i: u32, now: u64, fx: &mut Effects) -> bool {
        let id = self.id(rules, i);
        if !rules.gate.lock().withdraw(id) {
            return false;
        }
        // Those who stood behind it may have their turn.
        fx.pump = true;
        fx.withdrawn.push(id);
        self.uncome(i);
        self.leaves_line(i);
        self.gone(rules, i, now, fx);
        true
    }

    /// Lets an instance in rotation finish what it has, for `grace` at most, and stops it then. A shrink is as patient
    /// as the revision's request time-out, which ends every request but an upgraded connection.
    pub(super) fn drain_one(
        &mut self,
        rules: &Rules,
        i: u32,
        grace: Duration,
        may_return: bool,
        now: u64,
        fx: &mut Effects,
    ) {
        self.take_out(rules, i);
        let id = self.id(rules, i);
        let instance = &mut self.instances[i as usize];
        if instance.in_flight == 0 {
            self.stop(rules, i, None, now, fx);
            return;
        }
        instance.phase = Phase::Draining;
        instance.may_return = may_return;
        if rules.metering {
            self.meters[i as usize].enter(MeterPhase::Draining, now);
        }
        let a = instance.active;
        if may_return {
            self.actives[a as usize].draining.push(i);
        }
        let at = now + nanos(grace);
        self.instances[i as usize].grace = Some(self.timers.set(at, Timer::Grace(id)));
        fx.arm(at);
    }

    /// Ends an instance that is out of rotation.
    pub(crate) fn stop(
        &mut self,
        rules: &Rules,
        i: u32,
        grace: Option<Duration>,
        now: u64,
        fx: &mut Effects,
    ) {
        let id = self.id(rules, i);
        let a = self.instances[i as usize].active;
        let grace = grace.unwrap_or(self.deployed(a).spec.timeouts.stop_grace);
        let instance = &mut self.instances[i as usize];
        let thaw = matches!(instance.phase, Phase::Suspended | Phase::Resuming);
        instance.phase = Phase::Stopping;
        if rules.metering {
            self.meters[i as usize].enter(MeterPhase::Draining, now);
        }
        for key in [instance.grace.take(), instance.suspend.take()].into_iter().flatten() {
            self.timers.cancel(key);
        }
        if std::mem::take(&mut instance.may_return) {
            self.actives[a as usize].draining.retain(|&other| other != i);
        }
        let handle = self.instances[i as usize].instance.clone().expect("only what runs is stopped");
        let sample = self.last_sample(rules, i);
        fx.stop.push(Stop { id, instance: handle, grace, thaw, sample });
    }

    fn last_sample(&self, rules: &Rules, i: u32) -> Option<LastSample> {
        let instance = &self.instances[i as usize];
        let active = &self.actives[instance.active as usize];
        if !rules.metering || !active.sampled {
            return None;
        }
        let (at, cpu_ns) = instance.sampled.map_or((instance.ready, 0), |(at, usage)| (at, usage.cpu_ns));
        Some(LastSample { revision: active.key.0, deployed: active.deployed.clone()?, at, cpu_ns })
    }

    /// A stop is over. Only the meter asks when (`now`): what is stopped has no requests, so no load to account.
    pub(crate) fn stopped(&mut self, rules: &Rules, id: InstanceId, now: Option<u64>, fx: &mut Effects) {
        let Some(i) = self.find(rules, id) else { return };
        if self.instances[i as usize].phase == Phase::Stopping {
            let a = self.instances[i as usize].active;
            let now = now.unwrap_or(self.actives[a as usize].changed);
            self.gone(rules, i, now, fx);
            self.rest(now, a, fx);
        }
    }

    /// An instance ended, whoever wanted it.
    pub(crate) fn exited(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        report: &ExitReport,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(rules, id) else { return };
        let a = self.instances[i as usize].active;
        let phase = self.instances[i as usize].phase;
        match phase {
            Phase::Free | Phase::Gone => return,
            // Told before the start was over: it decides then.
            Phase::Gated | Phase::Starting => {
                self.instances[i as usize].exited = true;
                return;
            }
            Phase::Ready => self.take_out(rules, i),
            Phase::Suspended => self.actives[a as usize].suspended.retain(|&other| other != i),
            Phase::Resuming => self.uncome(i),
            Phase::Draining => self.actives[a as usize].draining.retain(|&other| other != i),
            Phase::Stopping => {}
        }
        let instance = &self.instances[i as usize];
        let unasked = !matches!(phase, Phase::Draining | Phase::Stopping);
        let hasty = unasked
            && instance.served == 0
            && now.saturating_sub(instance.ready) < nanos(rules.config.backoff.settle);
        self.gone(rules, i, now, fx);
        if unasked {
            rules.metrics.deaths.increment(1);
            let reason = if report.out_of_memory { "out_of_memory" } else { "crashed" };
            self.tell_failure(rules, a, id, reason, || report.to_string(), fx);
        }
        let active = &mut self.actives[a as usize];
        active.deaths = if hasty { active.deaths + 1 } else { 0 };
        if hasty {
            let message = format!("instance {id} {report} right after it was ready");
            self.failed(rules, a, &Arc::new(Error::new(ErrorKind::Crashed, "start", message)), now, fx);
        }
        self.grow(rules, a, 0, now, fx);
        self.rest(now, a, fx);
    }

    /// Nothing of an instance is left; its slot stays until its leases are back.
    pub(super) fn gone(&mut self, rules: &Rules, i: u32, now: u64, fx: &mut Effects) {
        let id = self.id(rules, i);
        let instance = &mut self.instances[i as usize];
        let a = instance.active;
        let active = &mut self.actives[a as usize];
        if rules.metering {
            let meter = &mut self.meters[i as usize];
            meter.end(now);
            let key = active.key.0;
            let deployed = active.deployed.as_ref().expect("a record in use has its revision");
            fx.readings.extend(
                meter.take(now).map(|(phase, ns)| Reading::Phase(id, key, Arc::clone(deployed), phase, ns)),
            );
        }
        if let Some(memory) = instance.budget.take() {
            let deployed = active.deployed.as_ref().expect("a record in use has its revision");
            let takes = Takes { memory, cpu_millis: rules.cpu_of(deployed) };
            rules.gate.lock().gone(active.tenant.0, takes);
            fx.pump = true;
        }
        for key in [instance.grace.take(), instance.suspend.take()].into_iter().flatten() {
            self.timers.cancel(key);
        }
        active.instances -= 1;
        fx.gone = true;
        instance.phase = Phase::Gone;
        fx.dropped.extend(instance.instance.take());
        if instance.in_flight == 0 {
            self.free_instance(rules, i);
        }
    }

    pub(crate) fn free_instance(&mut self, rules: &Rules, i: u32) {
        let instance = &mut self.instances[i as usize];
        let generation = instance.generation;
        *instance = InstanceSlot { generation, ..InstanceSlot::default() };
        if generation < rules.ids.last {
            self.free_instances.push(i);
        }
    }

    /// Makes an instance of whatever phase go within `grace`. False when it was going already.
    pub(super) fn retire(
        &mut self,
        rules: &Rules,
        i: u32,
        grace: Duration,
        now: u64,
        fx: &mut Effects,
    ) -> bool {
        let a = self.instances[i as usize].active;
        let phase = self.instances[i as usize].phase;
        match phase {
            Phase::Gated if self.withdraw(rules, i, now, fx) => {}
            Phase::Gated | Phase::Starting if self.instances[i as usize].cancelled => return false,
            Phase::Gated | Phase::Starting => {
                self.uncome(i);
                self.instances[i as usize].cancelled = true;
            }
            Phase::Ready => self.drain_one(rules, i, grace, false, now, fx),
            Phase::Suspended => {
                self.actives[a as usize].suspended.retain(|&other| other != i);
                self.stop(rules, i, None, now, fx);
            }
            Phase::Resuming => {
                self.uncome(i);
                self.stop(rules, i, None, now, fx);
            }
            Phase::Draining => {
                let id = self.id(rules, i);
                let at = now + nanos(grace);
                let instance = &mut self.instances[i as usize];
                if std::mem::take(&mut instance.may_return) {
                    self.actives[a as usize].draining.retain(|&other| other != i);
                }
                let instance = &mut self.instances[i as usize];
                if instance.grace.is_none_or(|(due, _)| at < due) {
                    let timer = self.timers.set(at, Timer::Grace(id));
                    if let Some(key) = instance.grace.replace(timer) {
                        self.timers.cancel(key);
                    }
                    fx.arm(at);
                }
                return false;
            }
            Phase::Free | Phase::Stopping | Phase::Gone => return false,
        }
        true
    }

    /// Makes all instances of a revision go within `grace`; the ids of those that are still there.
    pub(crate) fn drain(
        &mut self,
        rules: &Rules,
        a: u32,
        grace: Duration,
        now: u64,
        fx: &mut Effects,
    ) -> Vec<InstanceId> {
        let active = &mut self.actives[a as usize];
        active.decided = 0;
        active.asked = 0;
        active.raised = 0;
        active.drained = true;
        let mut left = Vec::new();
        for i in 0..self.instances.len() as u32 {
            let instance = &self.instances[i as usize];
            if instance.active != a || matches!(instance.phase, Phase::Free | Phase::Gone) {
                continue;
            }
            let id = self.id(rules, i);
            self.retire(rules, i, grace, now, fx);
            if self.find(rules, id).is_some() {
                left.push(id);
            }
        }
        // Who waits is served by what starts from now on.
        self.grow(rules, a, 0, now, fx);
        self.rest(now, a, fx);
        left
    }

    /// Whether the instance is still there.
    pub(crate) fn is_there(&self, rules: &Rules, id: InstanceId) -> bool {
        self.find(rules, id).is_some_and(|i| self.instances[i as usize].phase != Phase::Gone)
    }

    /// Fails all that waits, for good.
    pub(crate) fn close(&mut self, rules: &Rules, grace: Duration, now: u64, fx: &mut Effects) {
        self.closed = true;
        for a in self.live.clone() {
            self.fail_line(rules, a, now, fx, || ClaimError::Closed);
            self.actives[a as usize].failures = 0;
            self.drain(rules, a, grace, now, fx);
        }
    }

    /// All instances that are there.
    pub(crate) fn all(&self, rules: &Rules) -> Vec<InstanceId> {
        (0..self.instances.len() as u32)
            .filter(|&i| !matches!(self.instances[i as usize].phase, Phase::Free | Phase::Gone))
            .map(|i| self.id(rules, i))
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

    /// The idle instances that hold a part of a budget.
    pub(crate) fn idle(&self, rules: &Rules) -> Vec<Candidate> {
        (0..self.instances.len() as u32)
            .filter(|&i| self.instances[i as usize].budget.is_some() && self.is_idle(rules, i))
            .map(|i| {
                let instance = &self.instances[i as usize];
                let active = &self.actives[instance.active as usize];
                let worth = rules.with_policy(|policy| policy.worth(active.key.0)).flatten().unwrap_or(0.0);
                let cpu_millis = active.deployed.as_ref().map_or(0, |deployed| rules.cpu_of(deployed));
                Candidate {
                    id: self.id(rules, i),
                    tenant: active.tenant.0,
                    takes: Takes { memory: instance.budget.unwrap_or(0), cpu_millis },
                    worth,
                    since: instance.idle,
                }
            })
            .collect()
    }

    /// Stops an instance for somebody who waits for a budget, if it still is idle and above its revision's minimum.
    pub(crate) fn reclaim(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        left: &mut Shortage,
        over_share_only: bool,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(rules, id).filter(|&i| self.is_idle(rules, i)) else { return };
        let a = self.instances[i as usize].active;
        let active = &mut self.actives[a as usize];
        if active.have() <= active.min || over_share_only && !rules.gate.lock().is_over_share(active.tenant.0)
        {
            return;
        }
        let rest = active.have() - 1;
        active.raised = active.raised.min(rest);
        active.decided = active.decided.min(rest);
        active.asked = active.asked.min(rest);
        let key = active.key.0;
        self.decided_here(rules, a, (rest + 1, rest), Reason::Reclaimed, None);
        let memory = self.instances[i as usize].budget.unwrap_or(0);
        left.instances = left.instances.saturating_sub(1);
        left.memory = left.memory.saturating_sub(memory);
        if self.instances[i as usize].phase == Phase::Suspended {
            self.actives[a as usize].suspended.retain(|&other| other != i);
        } else {
            self.take_out(rules, i);
        }
        rules.with_policy(|policy| policy.evicted(key));
        self.stop(rules, i, None, now, fx);
    }

    pub(super) fn is_idle(&self, rules: &Rules, i: u32) -> bool {
        let instance = &self.instances[i as usize];
        match instance.phase {
            Phase::Suspended => true,
            Phase::Ready => {
                let at = self.position(rules, i);
                self.actives[instance.active as usize].slots[at].in_flight == 0
            }
            _ => false,
        }
    }
}
