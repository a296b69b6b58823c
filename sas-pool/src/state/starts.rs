//! From the decision to start an instance until it serves, or until its start failed.

use super::*;

impl State {
    /// Starts, revives or resumes instances until there are as many as there should be.
    pub(crate) fn grow(&mut self, rules: &Rules, a: u32, priority: u8, now: u64, fx: &mut Effects) {
        if self.closed || self.actives[a as usize].orphan {
            return;
        }
        loop {
            let active = &mut self.actives[a as usize];
            // What is suspended counts as there, but those who wait need it awake.
            if (active.coming.len() as u32) < active.floor()
                && let Some(i) = active.suspended.pop()
            {
                let instance = &mut self.instances[i as usize];
                instance.phase = Phase::Resuming;
                instance.position = active.coming.len() as u32;
                active.coming.push(i);
                if !instance.freezing {
                    self.thaw(rules, i, fx);
                }
                continue;
            }
            if active.have() >= active.target() {
                return;
            }
            if let Some(i) = active.draining.pop() {
                self.come_back(rules, i, now, fx);
                continue;
            }
            // After a failure one start at a time finds out whether it goes again.
            if active.failures > 0 && (now < active.retry_at || !active.coming.is_empty()) {
                return;
            }
            let Some(plan) = self.plan(rules, a, priority, now) else { return };
            fx.begin.push(plan);
        }
    }

    /// Decides a start.
    pub(super) fn plan(&mut self, rules: &Rules, a: u32, priority: u8, now: u64) -> Option<DecidedStart> {
        let i = match self.free_instances.pop() {
            Some(i) => i,
            None => {
                let i = u32::try_from(self.instances.len()).ok()?;
                if u64::from(i) >= 1 << (32 - rules.ids.shard_bits) {
                    return None;
                }
                let generation = rules.ids.first;
                self.instances.push(InstanceSlot { generation, ..InstanceSlot::default() });
                i
            }
        };
        let deployed = Arc::clone(self.deployed(a));
        let gated = rules.is_gated(deployed.runtime.capabilities().cpu_bound_start, deployed.tenant);
        let active = &mut self.actives[a as usize];
        let instance = &mut self.instances[i as usize];
        instance.generation += 1;
        // Without a gate there is no turn to wait for: it begins as soon as the lock is free.
        instance.phase = if gated { Phase::Gated } else { Phase::Starting };
        instance.active = a;
        instance.position = active.coming.len() as u32;
        instance.need = if (active.coming.len() as u32) < active.floor() {
            Need::Requests
        } else if active.woken {
            Need::Expected
        } else {
            Need::Size
        };
        let need = instance.need;
        active.unclaimed += u32::from(gated && need != Need::Requests);
        instance.asked = now;
        instance.begun = now;
        active.coming.push(i);
        active.instances += 1;
        let revision = active.key.0;
        let id = self.id(rules, i);
        if rules.metering {
            let meter = PhaseMeter::begin(id, a, now);
            match self.meters.get_mut(i as usize) {
                Some(free) => *free = meter,
                None => self.meters.push(meter),
            }
        }
        let measured = self.actives[a as usize].measured;
        Some(DecidedStart { id, revision, deployed, priority, need, asked: now, gated, measured })
    }

    /// A decided start has its turn, and holds what it was given from now on. False when it is not wanted any more.
    pub(crate) fn begin(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        holds: Holds,
        now: u64,
        fx: &mut Effects,
    ) -> bool {
        // A start is withdrawn only from the line of the gate, so one that has its turn is still there.
        let Some(i) = self.find(rules, id) else { return false };
        self.leaves_line(i);
        let instance = &mut self.instances[i as usize];
        instance.need = holds.need;
        instance.permit = holds.permit;
        instance.budget = holds.memory;
        if !instance.cancelled {
            instance.phase = Phase::Starting;
            instance.begun = now;
            return true;
        }
        let a = instance.active;
        self.give_permit_back(rules, i, fx);
        self.gone(rules, i, now, fx);
        self.rest(now, a, fx);
        false
    }

    /// A start is not in the gate's line any more.
    pub(super) fn leaves_line(&mut self, i: u32) {
        let instance = &mut self.instances[i as usize];
        if instance.phase == Phase::Gated && std::mem::take(&mut instance.need) != Need::Requests {
            self.actives[instance.active as usize].unclaimed -= 1;
        }
    }

    /// Who needs a start that waits at the gate.
    pub(crate) fn need(&self, rules: &Rules, id: InstanceId) -> Need {
        self.find(rules, id).map_or(Need::default(), |i| self.instances[i as usize].need)
    }

    /// Requests wait: as many of the starts in the gate's line as they need go with them from now on.
    pub(super) fn promote(&mut self, rules: &Rules, a: u32, fx: &mut Effects) {
        let active = &mut self.actives[a as usize];
        if active.unclaimed == 0 {
            return;
        }
        for &i in active.coming.iter().take(active.floor() as usize) {
            let instance = &mut self.instances[i as usize];
            if instance.phase == Phase::Gated && instance.need != Need::Requests {
                instance.need = Need::Requests;
                active.unclaimed -= 1;
                fx.promoted.push(rules.ids.id(self.shard, i, instance.generation));
            }
        }
    }

    /// A start in the gate's line can't ever have its turn: the revision fails until its demand or the budget changes.
    pub(crate) fn refused(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        error: &Arc<Error>,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(rules, id) else { return };
        let a = self.instances[i as usize].active;
        rules.metrics.start_failed();
        self.uncome(i);
        self.leaves_line(i);
        let wanted = !self.instances[i as usize].cancelled;
        self.gone(rules, i, now, fx);
        if wanted {
            let active = &mut self.actives[a as usize];
            active.failures = active.failures.max(rules.config.backoff.attempts - 1);
            self.tell_failure(rules, a, id, "start_failed", || error.chain(), fx);
            self.failed(rules, a, error, now, fx);
        }
        self.rest(now, a, fx);
    }

    /// The tenant's quota has no room for a start that requests wait for. A revision that has instances, or gets some
    /// otherwise, serves them with these, and the start stays in line; else it is taken back, and those who wait are
    /// told. How many were.
    pub(crate) fn over_quota(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        over: QuotaExceeded,
        now: u64,
        fx: &mut Effects,
    ) -> u64 {
        let Some(i) = self.find(rules, id) else { return 0 };
        let a = self.instances[i as usize].active;
        let active = &self.actives[a as usize];
        let gated: SmallVec<[u32; 4]> = active
            .coming
            .iter()
            .copied()
            .filter(|&i| self.instances[i as usize].phase == Phase::Gated)
            .collect();
        if active.have() > gated.len() as u32 || !active.draining.is_empty() {
            return 0;
        }
        for i in gated {
            self.withdraw(rules, i, now, fx);
        }
        let active = &mut self.actives[a as usize];
        if active.have() > 0 {
            // One had its turn meanwhile.
            return 0;
        }
        active.raised = 0;
        // Nothing came of it: a flood of refusals is no history of sizes.
        active.activation = None;
        active.over = Some(Box::new(over));
        let refused = u64::from(active.waiting());
        self.fail_line(rules, a, now, fx, || ClaimError::Quota(over));
        self.rest(now, a, fx);
        refused
    }

    /// Counts the instances of a tenant that began when nobody counted them.
    pub(crate) fn adopt(&mut self, rules: &Rules, tenant: TenantKey) {
        for i in 0..self.instances.len() {
            let instance = &self.instances[i];
            let counted = instance.budget.is_some()
                || matches!(instance.phase, Phase::Free | Phase::Gated | Phase::Gone);
            if counted {
                continue;
            }
            let active = &self.actives[instance.active as usize];
            if active.tenant.0 == tenant
                && let Some(deployed) = &active.deployed
            {
                let memory = rules.adopt(deployed, active.measured);
                self.instances[i].budget = Some(memory);
            }
        }
    }

    pub(super) fn give_permit_back(&mut self, rules: &Rules, i: u32, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        if std::mem::take(&mut instance.permit) {
            let tenant = self.actives[instance.active as usize].tenant.0;
            rules.gate.lock().started(tenant, instance.need);
            fx.pump = true;
        }
    }

    /// The start of an instance came this far.
    pub(crate) fn phase(&mut self, rules: &Rules, id: InstanceId, phase: StartPhase, now: u64) {
        let Some(i) = self.find(rules, id) else { return };
        let instance = &mut self.instances[i as usize];
        if instance.phase != Phase::Starting {
            return;
        }
        match phase {
            StartPhase::Spawned => instance.spawned = now,
            StartPhase::Listening => instance.listening = now,
            _ => {}
        }
    }

    /// The start of an instance is not over yet, for this reason.
    pub(crate) fn waiting(&mut self, rules: &Rules, id: InstanceId, why: Arc<Error>) {
        let Some(i) = self.find(rules, id) else { return };
        let instance = &self.instances[i as usize];
        if instance.phase == Phase::Starting && !instance.cancelled {
            self.actives[instance.active as usize].error = Some(why);
        }
    }

    /// What a claim is told whose deadline came: why nothing has started, when that is known.
    pub(super) fn too_late(&self, rules: &Rules, a: u32) -> ClaimError {
        let active = &self.actives[a as usize];
        if let Some(why) = self.gated(rules, a) {
            let error = Error::new(ErrorKind::Exhausted, "start", why);
            return ClaimError::StartPending { error: Arc::new(error) };
        }
        match &active.error {
            Some(error) if active.slots.is_empty() => ClaimError::StartPending { error: Arc::clone(error) },
            _ => ClaimError::Deadline,
        }
    }

    /// Instances that the budgets have room for: those that hold a place in them, and those that would find one now.
    pub(crate) fn room(&self, rules: &Rules, a: u32) -> Option<u32> {
        let measured = self.actives[a as usize].measured;
        let free = rules.gate.lock().free(rules.memory_of(self.deployed(a), measured))?;
        Some(free.saturating_add(self.placed(a)))
    }

    /// Instances that hold a place in the budgets.
    fn placed(&self, a: u32) -> u32 {
        let active = &self.actives[a as usize];
        let waits = active.coming.iter().filter(|&&i| self.instances[i as usize].phase == Phase::Gated);
        active.have() - waits.count() as u32
    }

    /// Whether a request more would wait although nothing more may start for it.
    pub(crate) fn is_full(&self, rules: &Rules, a: u32) -> bool {
        let active = &self.actives[a as usize];
        active.free == 0
            && (active.have() >= active.max || self.room(rules, a).is_some_and(|room| room <= self.placed(a)))
    }

    /// Whether it wants more instances than the budgets have room for.
    pub(crate) fn is_short(&self, rules: &Rules, a: u32) -> bool {
        let active = &self.actives[a as usize];
        let wanted = active.asked.max(active.min).max(active.floor());
        !active.orphan && wanted > self.placed(a) && self.room(rules, a).is_some_and(|room| wanted > room)
    }

    /// Why the first of a revision's starts that wait at the gate still does; `None`: none does.
    pub(crate) fn gated(&self, rules: &Rules, a: u32) -> Option<String> {
        let coming = &self.actives[a as usize].coming;
        let i = coming.iter().copied().find(|&i| self.instances[i as usize].phase == Phase::Gated)?;
        rules.gate.lock().why(self.id(rules, i))
    }

    /// A start is over. `claim` is the one that made it, if it still waits without a place in the line: it gets the
    /// first slot, and its grant is returned.
    pub(crate) fn started(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        result: Result<Started, Arc<Error>>,
        claim: Option<&Claim>,
        now: u64,
        fx: &mut Effects,
    ) -> Option<Grant> {
        let i = self.find(rules, id)?;
        let a = self.instances[i as usize].active;
        self.give_permit_back(rules, i, fx);
        match result {
            Err(error) => {
                rules.metrics.start_failed();
                self.uncome(i);
                let wanted = !self.instances[i as usize].cancelled;
                self.gone(rules, i, now, fx);
                if wanted {
                    self.tell_failure(rules, a, id, "start_failed", || error.chain(), fx);
                    self.failed(rules, a, &error, now, fx);
                }
                self.rest(now, a, fx);
                None
            }
            Ok(started) => {
                let instance = &mut self.instances[i as usize];
                instance.instance = Some(started.instance);
                instance.from_stem = started.from_stem;
                if instance.exited {
                    self.uncome(i);
                    self.gone(rules, i, now, fx);
                    let error =
                        Error::new(ErrorKind::Crashed, "start", "the instance ended as it became ready");
                    self.tell_failure(rules, a, id, "crashed", || error.chain(), fx);
                    self.failed(rules, a, &Arc::new(error), now, fx);
                    self.rest(now, a, fx);
                    return None;
                }
                if instance.cancelled || self.closed {
                    self.uncome(i);
                    self.stop(rules, i, None, now, fx);
                    return None;
                }
                self.ready(rules, i, now, claim, fx)
            }
        }
    }

    /// An instance can serve.
    pub(super) fn ready(
        &mut self,
        rules: &Rules,
        i: u32,
        now: u64,
        claim: Option<&Claim>,
        fx: &mut Effects,
    ) -> Option<Grant> {
        self.uncome(i);
        let instance = &mut self.instances[i as usize];
        let a = instance.active;
        let since = |at: u64| Duration::from_nanos(at.saturating_sub(instance.asked));
        let mut timings = StartTimings::default();
        timings.gated = since(instance.begun);
        timings.spawned = (instance.spawned > 0).then(|| since(instance.spawned));
        timings.listening = (instance.listening > 0).then(|| since(instance.listening));
        timings.ready = since(now);
        timings.from_stem = instance.from_stem;
        instance.ready = now;
        rules.metrics.started(&timings);
        self.actives[a as usize].start_time = nanos(timings.ready);
        instance.start = Some(Arc::new(timings));
        if rules.idle == Idle::Policy {
            let bytes = instance.budget;
            self.tell_policy(rules, a, bytes, timings.ready);
        }
        let active = &mut self.actives[a as usize];
        if !active.orphan {
            self.revisions[active.slot as usize].link.set_started();
        }
        active.failures = 0;
        active.error = None;
        if let Some(key) = active.retry.take() {
            self.timers.cancel(key);
        }
        let position = self.rotate_in(rules, i, now);
        let mut grant = None;
        if let Some(claim) = claim {
            let active = &mut self.actives[a as usize];
            active.inline -= 1;
            let mut lent = self.lend(rules, a, position, claim.metered, now);
            lent.start.clone_from(&self.instances[i as usize].start);
            grant = Some(lent);
        }
        self.serve(rules, a, Some(position), now, fx);
        let position = self.position(rules, i);
        if self.actives[a as usize].slots[position].in_flight == 0 {
            self.fell_idle(rules, i, now, fx);
        }
        // After a failure only one start went: now the others follow.
        self.grow(rules, a, 0, now, fx);
        grant
    }

    /// Puts an instance into rotation, at the end.
    pub(super) fn rotate_in(&mut self, rules: &Rules, i: u32, now: u64) -> usize {
        let id = self.id(rules, i);
        let instance = &mut self.instances[i as usize];
        let active = &mut self.actives[instance.active as usize];
        let mut slot = SlotView::new(id, active.limit);
        slot.ready_ms = (instance.ready / 1_000_000) as u32;
        slot.in_flight = instance.in_flight;
        active.free += u64::from(slot.limit - slot.in_flight);
        active.slots.push(slot);
        instance.phase = Phase::Ready;
        instance.position = active.slots.len() as u32 - 1;
        if rules.metering {
            let phase = if instance.in_flight > 0 { MeterPhase::Busy } else { MeterPhase::Idle };
            self.meters[i as usize].enter(phase, now);
        }
        instance.position as usize
    }

    /// A draining instance is wanted after all.
    pub(super) fn come_back(&mut self, rules: &Rules, i: u32, now: u64, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        if let Some(key) = instance.grace.take() {
            self.timers.cancel(key);
        }
        instance.may_return = false;
        let a = instance.active;
        let position = self.rotate_in(rules, i, now);
        self.serve(rules, a, Some(position), now, fx);
    }

    /// Takes an instance off the list of those that come.
    pub(super) fn uncome(&mut self, i: u32) {
        let instance = &self.instances[i as usize];
        if !instance.phase.is_coming() || instance.cancelled {
            return;
        }
        let (at, coming) = (instance.position, &mut self.actives[instance.active as usize].coming);
        coming.swap_remove(at as usize);
        if let Some(&moved) = coming.get(at as usize) {
            self.instances[moved as usize].position = at;
        }
    }

    /// An instance failed, for whoever is told of it.
    pub(super) fn tell_failure(
        &self,
        rules: &Rules,
        a: u32,
        id: InstanceId,
        reason: &'static str,
        message: impl FnOnce() -> String,
        fx: &mut Effects,
    ) {
        if rules.config.lifecycle.is_some() {
            let deployed = Arc::clone(self.deployed(a));
            fx.failures.push(Failure { id, deployed, reason, message: message() });
        }
    }

    /// A start failed.
    pub(super) fn failed(&mut self, rules: &Rules, a: u32, error: &Arc<Error>, now: u64, fx: &mut Effects) {
        let backoff = &rules.config.backoff;
        let active = &mut self.actives[a as usize];
        active.failures = (active.failures + 1).max(active.deaths);
        if matches!(error.kind, ErrorKind::InvalidSpec | ErrorKind::Unsupported) {
            active.failures = active.failures.max(backoff.attempts);
        }
        let pause = match error.retry {
            Retry::After(pause) => pause.min(backoff.longest),
            _ => backoff.pause(active.failures),
        };
        active.error = Some(Arc::clone(error));
        active.retry_at = now + nanos(pause);
        let at = active.retry_at;
        let key = active.key.0;
        if let Some(timer) = active.retry.replace(self.timers.set(at, Timer::Retry(key))) {
            self.timers.cancel(timer);
        }
        fx.arm(at);
        tracing::warn!(revision = %self.deployed(a).name, error = %error.chain(), "a start failed");
        if self.shut(rules, a, now).is_some() {
            self.actives[a as usize].raised = 0;
            let error = Arc::clone(error);
            self.fail_line(rules, a, now, fx, || ClaimError::Start {
                error: Arc::clone(&error),
                retry_after: pause,
            });
        }
    }

    /// The pause after a failed start is over: another attempt, if anybody wants one.
    pub(super) fn retry(&mut self, rules: &Rules, key: RevisionKey, now: u64, fx: &mut Effects) {
        let Some(a) = self.lookup(rules, key).and_then(|slot| self.active(slot)) else { return };
        let active = &mut self.actives[a as usize];
        active.retry = None;
        if active.have() < active.target() {
            let (from_zero, waiting) = (active.have() == 0, active.waiting());
            self.grow(rules, a, 0, now, fx);
            // Where no decision asks for it, it is those who wait who do.
            if from_zero && self.actives[a as usize].decided == 0 {
                self.note_activation(rules, a, true, waiting);
            }
            return;
        }
        // Nobody does. The failures are remembered for a while, so that the pauses of a revision that is called now
        // and then still grow.
        let memory = nanos(rules.config.backoff.pause(active.failures)).saturating_mul(10);
        let forget_at = active.retry_at.saturating_add(memory);
        if now < forget_at {
            active.retry = Some(self.timers.set(forget_at, Timer::Retry(key)));
            fx.arm(forget_at);
            return;
        }
        active.failures = 0;
        active.deaths = 0;
        active.error = None;
        self.rest(now, a, fx);
    }
}
