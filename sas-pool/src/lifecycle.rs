//! The lives of instances: decided, started, in rotation, drained, stopped, gone.

use super::*;

impl State {
    /// Starts, revives or resumes instances until there are as many as there should be.
    pub(crate) fn grow(&mut self, core: &Core, a: u32, priority: u8, now: u64, fx: &mut Effects) {
        if self.closed || self.actives[a as usize].orphan.is_some() {
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
                    self.thaw(core, i, fx);
                }
                continue;
            }
            if active.have() >= active.target() {
                return;
            }
            if let Some(i) = active.draining.pop() {
                self.come_back(core, i, now, fx);
                continue;
            }
            // After a failure one start at a time finds out whether it goes again.
            if active.failures > 0 && (now < active.retry_at || !active.coming.is_empty()) {
                return;
            }
            let Some(plan) = self.plan(core, a, priority, now) else { return };
            fx.begin.push(plan);
        }
    }

    /// Decides a start.
    fn plan(&mut self, core: &Core, a: u32, priority: u8, now: u64) -> Option<Plan> {
        let i = match self.free_instances.pop() {
            Some(i) => i,
            None => {
                let i = u32::try_from(self.instances.len()).ok()?;
                if i >= 1 << (32 - core.ids.shard_bits) {
                    return None;
                }
                self.instances.push(InstanceSlot::default());
                i
            }
        };
        let deployed = Arc::clone(self.deployed(a));
        let active = &mut self.actives[a as usize];
        let instance = &mut self.instances[i as usize];
        instance.generation += 1;
        instance.phase = Phase::Gated;
        instance.active = a;
        instance.position = active.coming.len() as u32;
        instance.asked = now;
        if core.metering {
            instance.meter = Meter::begin(now);
        }
        active.coming.push(i);
        active.instances += 1;
        let revision = active.key.0;
        Some(Plan { id: self.id(core, i), revision, deployed, priority })
    }

    /// A decided start has its turn, and holds what it was given from now on. False when it is not wanted any more.
    pub(crate) fn begin(&mut self, core: &Core, id: InstanceId, holds: Holds, fx: &mut Effects) -> bool {
        // A start is withdrawn only from the line of the gate, so one that has its turn is still there.
        let Some(i) = self.find(core, id) else { return false };
        let instance = &mut self.instances[i as usize];
        instance.permit = holds.permit;
        instance.budget = holds.memory;
        if !instance.cancelled {
            instance.phase = Phase::Starting;
            instance.begun = core.now();
            return true;
        }
        let a = instance.active;
        self.give_permit_back(core, i, fx);
        let now = core.now();
        self.gone(core, i, now, fx);
        self.rest(now, a, fx);
        false
    }

    fn give_permit_back(&mut self, core: &Core, i: u32, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        if std::mem::take(&mut instance.permit) {
            core.gate.lock().started(self.actives[instance.active as usize].tenant);
            fx.pump = true;
        }
    }

    /// The start of an instance came this far.
    pub(crate) fn phase(&mut self, core: &Core, id: InstanceId, phase: StartPhase) {
        let Some(i) = self.find(core, id) else { return };
        let instance = &mut self.instances[i as usize];
        if instance.phase != Phase::Starting {
            return;
        }
        match phase {
            StartPhase::Spawned => instance.spawned = core.now(),
            StartPhase::Listening => instance.listening = core.now(),
            _ => {}
        }
    }

    /// A start is over. `claim` is the one that made it, if it still waits without a place in the line: it gets the
    /// first slot, and its grant is returned.
    pub(crate) fn started(
        &mut self,
        core: &Core,
        id: InstanceId,
        result: Result<Arc<dyn Instance>, Arc<Error>>,
        from_stem: bool,
        claim: Option<&Claim>,
        fx: &mut Effects,
    ) -> Option<Grant> {
        let i = self.find(core, id)?;
        let now = core.now();
        let a = self.instances[i as usize].active;
        self.give_permit_back(core, i, fx);
        match result {
            Err(error) => {
                core.metrics.start_failed();
                self.uncome(i);
                let wanted = !self.instances[i as usize].cancelled;
                self.gone(core, i, now, fx);
                if wanted {
                    self.failed(core, a, &error, now, fx);
                }
                self.rest(now, a, fx);
                None
            }
            Ok(handle) => {
                let instance = &mut self.instances[i as usize];
                instance.instance = Some(handle);
                instance.from_stem = from_stem;
                if instance.exited {
                    self.uncome(i);
                    self.gone(core, i, now, fx);
                    let error =
                        Error::new(ErrorKind::Crashed, "start", "the instance ended as it became ready");
                    self.failed(core, a, &Arc::new(error), now, fx);
                    self.rest(now, a, fx);
                    return None;
                }
                if instance.cancelled || self.closed {
                    self.uncome(i);
                    self.stop(core, i, None, now, fx);
                    return None;
                }
                self.ready(core, i, now, claim, fx)
            }
        }
    }

    /// An instance can serve.
    fn ready(
        &mut self,
        core: &Core,
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
        core.metrics.started(&timings);
        self.actives[a as usize].start_time = nanos(timings.ready);
        instance.start = Some(Arc::new(timings));
        let active = &mut self.actives[a as usize];
        active.failures = 0;
        active.error = None;
        if let Some(key) = active.retry.take() {
            self.timers.cancel(key);
        }
        let position = self.rotate_in(core, i, now);
        let mut grant = None;
        if let Some(claim) = claim {
            let active = &mut self.actives[a as usize];
            active.inline -= 1;
            let mut lent = self.lend(core, a, position, claim.metered, now);
            lent.start.clone_from(&self.instances[i as usize].start);
            grant = Some(lent);
        }
        self.serve(core, a, Some(position), now, fx);
        let position = self.position(core, i);
        if self.actives[a as usize].slots[position].in_flight == 0 {
            self.fell_idle(core, i, now, fx);
        }
        // After a failure only one start went: now the others follow.
        self.grow(core, a, 0, now, fx);
        grant
    }

    /// Puts an instance into rotation, at the end.
    fn rotate_in(&mut self, core: &Core, i: u32, now: u64) -> usize {
        let id = self.id(core, i);
        let instance = &mut self.instances[i as usize];
        let active = &mut self.actives[instance.active as usize];
        let mut slot = SlotView::new(id, active.limit);
        slot.ready_ms = (instance.ready / 1_000_000) as u32;
        slot.in_flight = instance.in_flight;
        active.free += u64::from(slot.limit - slot.in_flight);
        active.slots.push(slot);
        instance.phase = Phase::Ready;
        instance.position = active.slots.len() as u32 - 1;
        if core.metering {
            let phase = if instance.in_flight > 0 { MeterPhase::Busy } else { MeterPhase::Idle };
            instance.meter.enter(phase, now);
        }
        instance.position as usize
    }

    /// A draining instance is wanted after all.
    fn come_back(&mut self, core: &Core, i: u32, now: u64, fx: &mut Effects) {
        let instance = &mut self.instances[i as usize];
        if let Some(key) = instance.grace.take() {
            self.timers.cancel(key);
        }
        instance.may_return = false;
        let a = instance.active;
        let position = self.rotate_in(core, i, now);
        self.serve(core, a, Some(position), now, fx);
    }

    /// Takes an instance off the list of those that come.
    fn uncome(&mut self, i: u32) {
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

    /// Takes an instance out of rotation.
    pub(crate) fn take_out(&mut self, core: &Core, i: u32) {
        let position = self.position(core, i);
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
    pub(crate) fn shrink(&mut self, core: &Core, a: u32, busy: bool, now: u64, fx: &mut Effects) {
        let active = &self.actives[a as usize];
        let mut surplus = active.have().saturating_sub(active.target());
        let mut at = active.coming.len();
        while surplus > 0 && at > 0 {
            at -= 1;
            let i = self.actives[a as usize].coming[at];
            if self.instances[i as usize].phase == Phase::Gated && self.withdraw(core, i, now, fx) {
                surplus -= 1;
            }
        }
        while surplus > 0
            && let Some(i) = self.actives[a as usize].suspended.pop()
        {
            self.stop(core, i, None, now, fx);
            surplus -= 1;
        }
        let mut at = self.actives[a as usize].slots.len();
        while surplus > 0 && at > 0 {
            at -= 1;
            let slot = &self.actives[a as usize].slots[at];
            if slot.in_flight == 0 {
                let i = core.ids.slot(slot.id);
                self.take_out(core, i);
                self.stop(core, i, None, now, fx);
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
            let i = core.ids.slot(slot.id);
            let grace = self.deployed(a).spec.timeouts.request;
            self.drain_one(core, i, grace, true, now, fx);
            surplus -= 1;
        }
    }

    /// Takes a start back that did not have its turn. False when it has.
    fn withdraw(&mut self, core: &Core, i: u32, now: u64, fx: &mut Effects) -> bool {
        let id = self.id(core, i);
        if !core.gate.lock().withdraw(id) {
            return false;
        }
        self.uncome(i);
        self.gone(core, i, now, fx);
        true
    }

    /// Lets an instance in rotation finish what it has, for `grace` at most, and stops it then. A shrink is as patient
    /// as the revision's request time-out, which ends every request but an upgraded connection.
    fn drain_one(
        &mut self,
        core: &Core,
        i: u32,
        grace: Duration,
        may_return: bool,
        now: u64,
        fx: &mut Effects,
    ) {
        self.take_out(core, i);
        let id = self.id(core, i);
        let instance = &mut self.instances[i as usize];
        if instance.in_flight == 0 {
            self.stop(core, i, None, now, fx);
            return;
        }
        instance.phase = Phase::Draining;
        instance.may_return = may_return;
        if core.metering {
            instance.meter.enter(MeterPhase::Draining, now);
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
    pub(crate) fn stop(&mut self, core: &Core, i: u32, grace: Option<Duration>, now: u64, fx: &mut Effects) {
        let id = self.id(core, i);
        let a = self.instances[i as usize].active;
        let grace = grace.unwrap_or(self.deployed(a).spec.timeouts.stop_grace);
        let instance = &mut self.instances[i as usize];
        let thaw = matches!(instance.phase, Phase::Suspended | Phase::Resuming);
        instance.phase = Phase::Stopping;
        if core.metering {
            instance.meter.enter(MeterPhase::Draining, now);
        }
        for key in [instance.grace.take(), instance.suspend.take()].into_iter().flatten() {
            self.timers.cancel(key);
        }
        if std::mem::take(&mut instance.may_return) {
            self.actives[a as usize].draining.retain(|&other| other != i);
        }
        let handle = self.instances[i as usize].instance.clone().expect("only what runs is stopped");
        fx.stop.push(Stop { id, instance: handle, grace, thaw });
    }

    /// A stop is over.
    pub(crate) fn stopped(&mut self, core: &Core, id: InstanceId, fx: &mut Effects) {
        let Some(i) = self.find(core, id) else { return };
        if self.instances[i as usize].phase == Phase::Stopping {
            let now = core.now();
            let a = self.instances[i as usize].active;
            self.gone(core, i, now, fx);
            self.rest(now, a, fx);
        }
    }

    /// An instance ended, whoever wanted it.
    pub(crate) fn exited(&mut self, core: &Core, id: InstanceId, report: &ExitReport, fx: &mut Effects) {
        let Some(i) = self.find(core, id) else { return };
        let now = core.now();
        let a = self.instances[i as usize].active;
        let phase = self.instances[i as usize].phase;
        match phase {
            Phase::Free | Phase::Gone => return,
            // Told before the start was over: it decides then.
            Phase::Gated | Phase::Starting => {
                self.instances[i as usize].exited = true;
                return;
            }
            Phase::Ready => self.take_out(core, i),
            Phase::Suspended => self.actives[a as usize].suspended.retain(|&other| other != i),
            Phase::Resuming => self.uncome(i),
            Phase::Draining => self.actives[a as usize].draining.retain(|&other| other != i),
            Phase::Stopping => {}
        }
        let instance = &self.instances[i as usize];
        let unasked = !matches!(phase, Phase::Draining | Phase::Stopping);
        let hasty = unasked
            && instance.served == 0
            && now.saturating_sub(instance.ready) < nanos(core.config.backoff.settle);
        self.gone(core, i, now, fx);
        if unasked {
            core.metrics.deaths.increment(1);
        }
        let active = &mut self.actives[a as usize];
        active.deaths = if hasty { active.deaths + 1 } else { 0 };
        if hasty {
            let message = format!("instance {id} {report} right after it was ready");
            self.failed(core, a, &Arc::new(Error::new(ErrorKind::Crashed, "start", message)), now, fx);
        }
        self.grow(core, a, 0, now, fx);
        self.rest(now, a, fx);
    }

    /// Nothing of an instance is left; its slot stays until its leases are back.
    fn gone(&mut self, core: &Core, i: u32, now: u64, fx: &mut Effects) {
        let id = self.id(core, i);
        let instance = &mut self.instances[i as usize];
        let a = instance.active;
        let active = &mut self.actives[a as usize];
        if core.metering {
            instance.meter.end(now);
            let (revision, tenant) = (active.key.0, active.tenant);
            fx.readings.extend(
                instance.meter.take(now).map(|(phase, ns)| Reading::Phase(id, revision, tenant, phase, ns)),
            );
        }
        if let Some(memory) = instance.budget.take() {
            core.gate.lock().gone(active.tenant, memory);
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
            self.free_instance(i);
        }
    }

    pub(crate) fn free_instance(&mut self, i: u32) {
        let instance = &mut self.instances[i as usize];
        let generation = instance.generation;
        *instance = InstanceSlot { generation, ..InstanceSlot::default() };
        if generation < LAST_GENERATION {
            self.free_instances.push(i);
        }
    }

    /// A start failed.
    fn failed(&mut self, core: &Core, a: u32, error: &Arc<Error>, now: u64, fx: &mut Effects) {
        let backoff = &core.config.backoff;
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
        if self.shut(core, a, now).is_some() {
            self.actives[a as usize].raised = 0;
            let error = Arc::clone(error);
            self.fail_line(core, a, now, fx, || ClaimError::Start {
                error: Arc::clone(&error),
                retry_after: pause,
            });
        }
    }

    /// The intent of the scaler.
    pub(crate) fn set_desired(&mut self, core: &Core, key: RevisionKey, desired: u32, fx: &mut Effects) {
        let Some(slot) = self.lookup(core, key) else { return };
        if self.closed || (desired == 0 && self.active(slot).is_none()) {
            return;
        }
        let now = core.now();
        let a = self.activate(core, slot, now);
        let active = &mut self.actives[a as usize];
        active.decided = desired.clamp(active.min, active.max);
        active.raised = 0;
        active.drained &= desired == 0;
        // The keep-alive policy has the last word about the last one.
        if active.decided == 0 && active.have() > 0 && active.sleep.is_some() {
            self.actives[a as usize].raised = 1;
        }
        let active = &self.actives[a as usize];
        if active.have() < active.target() {
            self.grow(core, a, 0, now, fx);
        } else {
            self.shrink(core, a, true, now, fx);
        }
        self.rest(now, a, fx);
    }

    /// Mends an instance as a crash would be mended.
    pub(crate) fn recycle(
        &mut self,
        core: &Core,
        key: RevisionKey,
        id: InstanceId,
        grace: Duration,
        fx: &mut Effects,
    ) -> bool {
        let Some(a) = self.lookup(core, key).and_then(|slot| self.active(slot)) else { return false };
        let Some(i) = self.find(core, id).filter(|&i| self.instances[i as usize].active == a) else {
            return false;
        };
        let now = core.now();
        if !self.retire(core, i, grace, now, fx) {
            return false;
        }
        self.grow(core, a, 0, now, fx);
        self.rest(now, a, fx);
        true
    }

    /// Makes an instance of whatever phase go within `grace`. False when it was going already.
    fn retire(&mut self, core: &Core, i: u32, grace: Duration, now: u64, fx: &mut Effects) -> bool {
        let a = self.instances[i as usize].active;
        let phase = self.instances[i as usize].phase;
        match phase {
            Phase::Gated if self.withdraw(core, i, now, fx) => {}
            Phase::Gated | Phase::Starting if self.instances[i as usize].cancelled => return false,
            Phase::Gated | Phase::Starting => {
                self.uncome(i);
                self.instances[i as usize].cancelled = true;
            }
            Phase::Ready => self.drain_one(core, i, grace, false, now, fx),
            Phase::Suspended => {
                self.actives[a as usize].suspended.retain(|&other| other != i);
                self.stop(core, i, None, now, fx);
            }
            Phase::Resuming => {
                self.uncome(i);
                self.stop(core, i, None, now, fx);
            }
            Phase::Draining => {
                let id = self.id(core, i);
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
        core: &Core,
        a: u32,
        grace: Duration,
        now: u64,
        fx: &mut Effects,
    ) -> Vec<InstanceId> {
        let active = &mut self.actives[a as usize];
        active.decided = 0;
        active.raised = 0;
        active.drained = true;
        let mut left = Vec::new();
        for i in 0..self.instances.len() as u32 {
            let instance = &self.instances[i as usize];
            if instance.active != a || matches!(instance.phase, Phase::Free | Phase::Gone) {
                continue;
            }
            let id = self.id(core, i);
            self.retire(core, i, grace, now, fx);
            if self.find(core, id).is_some() {
                left.push(id);
            }
        }
        // Who waits is served by what starts from now on.
        self.grow(core, a, 0, now, fx);
        self.rest(now, a, fx);
        left
    }

    /// When the instance of a lease stops at the latest, if it drains.
    pub(crate) fn draining(&self, core: &Core, token: u64) -> Option<u64> {
        let i = self.find(core, InstanceId(token & !METERED))?;
        let instance = &self.instances[i as usize];
        match instance.phase {
            Phase::Draining => instance.grace.map(|(at, _)| at),
            Phase::Stopping | Phase::Gone => Some(core.now()),
            _ => None,
        }
    }

    /// Whether the instance is still there.
    pub(crate) fn is_there(&self, core: &Core, id: InstanceId) -> bool {
        self.find(core, id).is_some_and(|i| self.instances[i as usize].phase != Phase::Gone)
    }

    /// Forgets a revision.
    pub(crate) fn unregister(&mut self, core: &Core, key: RevisionKey, fx: &mut Effects) -> bool {
        let Some(slot) = self.lookup(core, key) else { return false };
        let now = core.now();
        match self.revisions[slot as usize].link.get() {
            Link::Asleep => {}
            Link::Ended(at) => drop(self.take_ended(at)),
            Link::Active(a) => {
                let active = &mut self.actives[a as usize];
                active.orphan = self.revisions[slot as usize].deployed.clone();
                active.min = 0;
                active.failures = 0;
                active.error = None;
                for timer in [active.retry.take(), active.sleep.take()].into_iter().flatten() {
                    self.timers.cancel(timer);
                }
                self.fail_line(core, a, now, fx, || ClaimError::Unknown);
                let grace = self.deployed(a).spec.timeouts.request;
                self.drain(core, a, grace, now, fx);
            }
        }
        self.forget_wake(key);
        core.with_policy(|policy| policy.forget(key));
        let revision = &mut self.revisions[slot as usize];
        fx.forgotten = revision.deployed.take();
        revision.link = PackedLink::ASLEEP;
        if revision.generation < u32::MAX {
            revision.generation += 1;
            self.free_revisions.push(slot);
        }
        true
    }

    /// Fails all that waits, for good.
    pub(crate) fn close(&mut self, core: &Core, grace: Duration, fx: &mut Effects) {
        self.closed = true;
        let now = core.now();
        for a in self.live.clone() {
            self.fail_line(core, a, now, fx, || ClaimError::Closed);
            self.actives[a as usize].failures = 0;
            self.drain(core, a, grace, now, fx);
        }
    }

    /// Does what is due, and says when the next is.
    pub(crate) fn expire(&mut self, core: &Core, fx: &mut Effects) -> u64 {
        let now = core.now();
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Waiter(w) => {
                    let waiter = &mut self.waiters[w as usize];
                    waiter.timer = None;
                    let a = waiter.active;
                    // Out of the line first: a failed waiter is not one of those that wait.
                    let generation = waiter.generation;
                    let waiters = &self.waiters;
                    self.actives[a as usize].line.take(
                        |entry| is_waiting(waiters, entry),
                        |entry| entry == w && waiters[entry as usize].generation == generation,
                    );
                    self.fail_waiter(core, w, now, fx, ClaimError::Deadline);
                    core.metrics.deadlines.increment(1);
                    self.rest(now, a, fx);
                }
                Timer::Grace(id) => {
                    if let Some(i) = self.find(core, id) {
                        self.instances[i as usize].grace = None;
                        if self.instances[i as usize].phase == Phase::Draining {
                            self.stop(core, i, None, now, fx);
                        }
                    }
                }
                Timer::Suspend(id) => self.suspend(core, id, fx),
                Timer::Readmit(id) => self.readmit(core, id, now, fx),
                Timer::Retry(key) => self.retry(core, key, now, fx),
                Timer::Sleep(key) => self.sleep(core, key, now, fx),
                Timer::Wake(key) => self.wake_ahead(core, key, now, fx),
            }
        }
        self.timers.next()
    }

    /// The pause after a failed start is over: another attempt, if anybody wants one.
    fn retry(&mut self, core: &Core, key: RevisionKey, now: u64, fx: &mut Effects) {
        let Some(a) = self.lookup(core, key).and_then(|slot| self.active(slot)) else { return };
        let active = &mut self.actives[a as usize];
        active.retry = None;
        if active.have() < active.target() {
            self.grow(core, a, 0, now, fx);
            return;
        }
        // Nobody does. The failures are remembered for a while, so that the pauses of a revision that is called now
        // and then still grow.
        let memory = nanos(core.config.backoff.pause(active.failures)).saturating_mul(10);
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

    /// An ejected instance comes back.
    fn readmit(&mut self, core: &Core, id: InstanceId, now: u64, fx: &mut Effects) {
        let Some(i) = self.find(core, id) else { return };
        if self.instances[i as usize].phase != Phase::Ready {
            return;
        }
        let position = self.position(core, i);
        let a = self.instances[i as usize].active;
        let active = &mut self.actives[a as usize];
        let slot = &mut active.slots[position];
        if std::mem::take(&mut slot.ejected) {
            active.free += u64::from(slot.limit - slot.in_flight);
            active.ejected -= 1;
            self.serve(core, a, Some(position), now, fx);
        }
    }

    /// Takes an instance off the CPU if it is still idle.
    fn suspend(&mut self, core: &Core, id: InstanceId, fx: &mut Effects) {
        let Some(i) = self.find(core, id) else { return };
        self.instances[i as usize].suspend = None;
        if self.instances[i as usize].phase != Phase::Ready {
            return;
        }
        let position = self.position(core, i);
        let a = self.instances[i as usize].active;
        if self.actives[a as usize].slots[position].in_flight > 0 {
            return;
        }
        self.take_out(core, i);
        let instance = &mut self.instances[i as usize];
        instance.phase = Phase::Suspended;
        instance.freezing = true;
        self.actives[a as usize].suspended.push(i);
        let handle = self.instances[i as usize].instance.clone().expect("an instance in rotation is there");
        fx.freeze.push(Freeze { id, instance: handle, thaw: false });
    }

    /// The call that takes an instance off the CPU is over.
    pub(crate) fn suspended(
        &mut self,
        core: &Core,
        id: InstanceId,
        result: Result<(), Error>,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(core, id) else { return };
        self.instances[i as usize].freezing = false;
        match (self.instances[i as usize].phase, result) {
            // Wanted back meanwhile.
            (Phase::Resuming, _) => self.thaw(core, i, fx),
            (Phase::Suspended, Err(error)) => {
                tracing::warn!(instance = %id, error = %error.chain(), "an instance could not be suspended");
                let now = core.now();
                let a = self.instances[i as usize].active;
                self.actives[a as usize].suspended.retain(|&other| other != i);
                let position = self.rotate_in(core, i, now);
                self.serve(core, a, Some(position), now, fx);
            }
            _ => {}
        }
    }

    fn thaw(&mut self, core: &Core, i: u32, fx: &mut Effects) {
        let id = self.id(core, i);
        let handle = self.instances[i as usize].instance.clone().expect("a suspended instance is there");
        fx.freeze.push(Freeze { id, instance: handle, thaw: true });
    }

    /// An instance is back on the CPU, or could not be brought there.
    pub(crate) fn resumed(
        &mut self,
        core: &Core,
        id: InstanceId,
        result: Result<(), Error>,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(core, id) else { return };
        if self.instances[i as usize].phase != Phase::Resuming {
            return;
        }
        let now = core.now();
        self.uncome(i);
        let a = self.instances[i as usize].active;
        match result {
            Ok(()) => {
                let position = self.rotate_in(core, i, now);
                self.serve(core, a, Some(position), now, fx);
                let position = self.position(core, i);
                if self.actives[a as usize].slots[position].in_flight == 0 {
                    self.fell_idle(core, i, now, fx);
                }
            }
            Err(error) => {
                tracing::warn!(instance = %id, error = %error.chain(), "an instance could not be resumed");
                self.stop(core, i, None, now, fx);
                self.grow(core, a, 0, now, fx);
            }
        }
    }
}

/// What a start holds while it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holds {
    pub(crate) permit: bool,
    pub(crate) memory: Option<u64>,
}
