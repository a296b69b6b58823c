//! What is due: deadlines, graces, pauses; and instances that leave the CPU.

use super::*;

impl State {
    /// Does what is due, and says when the next is.
    pub(crate) fn expire(&mut self, rules: &Rules, now: u64, fx: &mut Effects) -> u64 {
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
                    let error = self.too_late(rules, a);
                    self.fail_waiter(rules, w, now, fx, error);
                    rules.metrics.deadlines.increment(1);
                    self.rest(now, a, fx);
                }
                Timer::Grace(id) => {
                    if let Some(i) = self.find(rules, id) {
                        self.instances[i as usize].grace = None;
                        if self.instances[i as usize].phase == Phase::Draining {
                            self.stop(rules, i, None, now, fx);
                        }
                    }
                }
                Timer::Suspend(id) => self.suspend(rules, id, fx),
                Timer::Readmit(id) => self.readmit(rules, id, now, fx),
                Timer::Retry(key) => self.retry(rules, key, now, fx),
                Timer::Sleep(key) => self.sleep(rules, key, now, fx),
                Timer::Wake(key) => self.wake_ahead(rules, key, now, fx),
            }
        }
        self.timers.next()
    }

    /// An ejected instance comes back.
    pub(super) fn readmit(&mut self, rules: &Rules, id: InstanceId, now: u64, fx: &mut Effects) {
        let Some(i) = self.find(rules, id) else { return };
        if self.instances[i as usize].phase != Phase::Ready {
            return;
        }
        let position = self.position(rules, i);
        let a = self.instances[i as usize].active;
        let active = &mut self.actives[a as usize];
        let slot = &mut active.slots[position];
        if std::mem::take(&mut slot.ejected) {
            active.free += u64::from(slot.limit - slot.in_flight);
            active.ejected -= 1;
            self.serve(rules, a, Some(position), now, fx);
        }
    }

    /// Takes an instance off the CPU if it is still idle.
    pub(super) fn suspend(&mut self, rules: &Rules, id: InstanceId, fx: &mut Effects) {
        let Some(i) = self.find(rules, id) else { return };
        self.instances[i as usize].suspend = None;
        if self.instances[i as usize].phase != Phase::Ready {
            return;
        }
        let position = self.position(rules, i);
        let a = self.instances[i as usize].active;
        if self.actives[a as usize].slots[position].in_flight > 0 {
            return;
        }
        self.take_out(rules, i);
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
        rules: &Rules,
        id: InstanceId,
        result: Result<(), Error>,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(rules, id) else { return };
        self.instances[i as usize].freezing = false;
        match (self.instances[i as usize].phase, result) {
            // Wanted back meanwhile.
            (Phase::Resuming, _) => self.thaw(rules, i, fx),
            (Phase::Suspended, Err(error)) => {
                tracing::warn!(instance = %id, error = %error.chain(), "an instance could not be suspended");
                let a = self.instances[i as usize].active;
                self.actives[a as usize].suspended.retain(|&other| other != i);
                let position = self.rotate_in(rules, i, now);
                self.serve(rules, a, Some(position), now, fx);
            }
            _ => {}
        }
    }

    pub(super) fn thaw(&mut self, rules: &Rules, i: u32, fx: &mut Effects) {
        let id = self.id(rules, i);
        let handle = self.instances[i as usize].instance.clone().expect("a suspended instance is there");
        fx.freeze.push(Freeze { id, instance: handle, thaw: true });
    }

    /// An instance is back on the CPU, or could not be brought there.
    pub(crate) fn resumed(
        &mut self,
        rules: &Rules,
        id: InstanceId,
        result: Result<(), Error>,
        now: u64,
        fx: &mut Effects,
    ) {
        let Some(i) = self.find(rules, id) else { return };
        if self.instances[i as usize].phase != Phase::Resuming {
            return;
        }
        self.uncome(i);
        let a = self.instances[i as usize].active;
        match result {
            Ok(()) => {
                let position = self.rotate_in(rules, i, now);
                self.serve(rules, a, Some(position), now, fx);
                let position = self.position(rules, i);
                if self.actives[a as usize].slots[position].in_flight == 0 {
                    self.fell_idle(rules, i, now, fx);
                }
            }
            Err(error) => {
                tracing::warn!(instance = %id, error = %error.chain(), "an instance could not be resumed");
                self.stop(rules, i, None, now, fx);
                self.grow(rules, a, 0, now, fx);
            }
        }
    }
}
