//! What is due: deadlines, graces, pauses; and instances that leave the CPU.

use super::*;

impl State {
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

    /// An ejected instance comes back.
    pub(super) fn readmit(&mut self, core: &Core, id: InstanceId, now: u64, fx: &mut Effects) {
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
    pub(super) fn suspend(&mut self, core: &Core, id: InstanceId, fx: &mut Effects) {
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

    pub(super) fn thaw(&mut self, core: &Core, i: u32, fx: &mut Effects) {
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
