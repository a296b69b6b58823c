//! Claims: a slot now, a place in the line, or an error; and the way back.

use super::*;

impl State {
    /// The record of a revision that may have a free slot for a claim that nobody is in line before. It needs no time,
    /// and most claims that find nothing end here.
    pub(crate) fn open(&self, rules: &Rules, revision: RevisionKey) -> Option<u32> {
        let a = self.active(self.lookup(rules, revision)?)?;
        let active = &self.actives[a as usize];
        (active.free > 0 && active.line.len() == 0 && !self.closed).then_some(a)
    }

    /// A free slot now, of a revision that is [`State::open`].
    pub(crate) fn try_claim(&mut self, rules: &Rules, a: u32, claim: &Claim, now: u64) -> Option<Grant> {
        let position = self.pick(rules, a, claim, now)?;
        self.called(rules, a, now);
        self.actives[a as usize].arrive(claim.metered, now);
        Some(self.lend(rules, a, position, claim.metered, now))
    }

    /// A free slot now, or a count among those that wait, with starts for them in `fx`.
    pub(crate) fn claim(
        &mut self,
        rules: &Rules,
        claim: &Claim,
        deadline: u64,
        now: u64,
        fx: &mut Effects,
    ) -> Met {
        if self.closed {
            return Met::Decided(Err(ClaimError::Closed));
        }
        let Some(slot) = self.lookup(rules, claim.revision) else {
            return Met::Decided(Err(ClaimError::Unknown));
        };
        let woken = self.active(slot).is_none();
        if woken && !claim.wakes {
            return Met::Decided(Err(ClaimError::Asleep));
        }
        let a = self.activate(rules, slot, now);
        if self.actives[a as usize].line.len() == 0
            && let Some(position) = self.pick(rules, a, claim, now)
        {
            self.called(rules, a, now);
            self.actives[a as usize].arrive(claim.metered, now);
            return Met::Decided(Ok(self.lend(rules, a, position, claim.metered, now)));
        }
        if let Err(error) = self.may_wait(rules, a, claim, deadline, now) {
            self.rest(now, a, fx);
            return Met::Decided(Err(error));
        }
        self.called(rules, a, now);
        let active = &mut self.actives[a as usize];
        active.arrive(claim.metered, now);
        active.drained = false;
        active.over = None;
        active.inline += 1;
        active.raised = active.raised.max(active.demand());
        let from_zero = active.have() == 0;
        self.grow(rules, a, claim.priority, now, fx);
        self.note_activation(rules, a, from_zero, 1);
        self.promote(rules, a, fx);
        Met::Waits(a)
    }

    pub(super) fn may_wait(
        &mut self,
        rules: &Rules,
        a: u32,
        claim: &Claim,
        deadline: u64,
        now: u64,
    ) -> Result<(), ClaimError> {
        let active = &self.actives[a as usize];
        if !claim.wakes && active.have() == 0 {
            return Err(ClaimError::Asleep);
        }
        if let Some(error) = self.shut(rules, a, now) {
            return Err(error);
        }
        if deadline <= now {
            return Err(self.too_late(rules, a));
        }
        let retry_after = rules.config.queue.retry_after;
        let limit = self.deployed(a).spec.queue_limit;
        if active.waiting() >= limit {
            return Err(ClaimError::QueueFull { resource: "revision", retry_after });
        }
        if active.line_bytes + u64::from(claim.bytes) > rules.config.queue.revision_bytes {
            return Err(ClaimError::QueueFull { resource: "revision bytes", retry_after });
        }
        Ok(())
    }

    /// The error of the last start, while the revision's gate is shut for it.
    pub(super) fn shut(&self, rules: &Rules, a: u32, now: u64) -> Option<ClaimError> {
        let active = &self.actives[a as usize];
        let error = active.error.as_ref()?;
        (active.failures >= rules.config.backoff.attempts && active.have() == 0 && now < active.retry_at)
            .then(|| ClaimError::Start {
                error: Arc::clone(error),
                retry_after: Duration::from_nanos(active.retry_at - now),
            })
    }

    /// What of the tenant's quota was in the way when a claim last asked for the first instance of a revision that still
    /// has none.
    fn over(&self, a: u32) -> Option<QuotaExceeded> {
        let active = &self.actives[a as usize];
        active.over.as_deref().copied().filter(|_| active.have() == 0)
    }

    /// A claim that started an instance itself takes a slot after all, or gets a place in the line.
    pub(crate) fn enqueue(
        &mut self,
        rules: &Rules,
        a: u32,
        claim: &Claim,
        deadline: u64,
        now: u64,
        fx: &mut Effects,
    ) -> Result<Result<Grant, ClaimError>, u64> {
        let active = &mut self.actives[a as usize];
        active.inline -= 1;
        let decided = if self.closed {
            Some(Err(ClaimError::Closed))
        } else if active.orphan {
            Some(Err(ClaimError::Unknown))
        } else if active.line.len() == 0
            && let Some(position) = self.pick(rules, a, claim, now)
        {
            return Ok(Ok(self.lend(rules, a, position, claim.metered, now)));
        } else if let Some(error) = self.shut(rules, a, now) {
            Some(Err(error))
        } else if let Some(over) = self.over(a) {
            Some(Err(ClaimError::Quota(over)))
        } else {
            rules.bounds.lock().enter(&rules.config.queue, claim).err().map(Err)
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
            place: WaiterState::Waiting,
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
        match std::mem::replace(&mut waiter.place, WaiterState::Waiting) {
            WaiterState::Granted(grant) => {
                self.free_waiter(ticket as u32);
                Poll::Ready(Ok(grant))
            }
            WaiterState::Failed(error) => {
                self.free_waiter(ticket as u32);
                Poll::Ready(Err(error))
            }
            WaiterState::Waiting => {
                if !waiter.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
                    waiter.waker = Some(waker.clone());
                }
                Poll::Pending
            }
            WaiterState::Free => unreachable!("a free place has no ticket"),
        }
    }

    /// Gives a place in the line up. A slot that was granted to it is returned to be released.
    pub(crate) fn leave(&mut self, rules: &Rules, ticket: u64, now: u64, fx: &mut Effects) -> Option<Grant> {
        let w = ticket as u32;
        let waiter = &mut self.waiters[w as usize];
        match std::mem::replace(&mut waiter.place, WaiterState::Free) {
            WaiterState::Granted(grant) => {
                self.free_waiter(w);
                Some(grant)
            }
            WaiterState::Waiting => {
                let (a, claim) = (waiter.active, waiter.claim);
                self.unqueue(rules, w, now);
                self.free_waiter(w);
                let waiters = &self.waiters;
                self.actives[a as usize].line.left(|entry| is_waiting(waiters, entry));
                self.actives[a as usize].depart(claim.metered, now);
                self.rest(now, a, fx);
                None
            }
            WaiterState::Failed(_) | WaiterState::Free => {
                self.free_waiter(w);
                None
            }
        }
    }

    pub(super) fn free_waiter(&mut self, w: u32) {
        let waiter = &mut self.waiters[w as usize];
        waiter.place = WaiterState::Free;
        waiter.waker = None;
        waiter.generation = waiter.generation.wrapping_add(1);
        self.free_waiters.push(w);
    }

    /// What a waiter held besides its place in the line: its deadline and its part of the bounds.
    pub(super) fn unqueue(&mut self, rules: &Rules, w: u32, now: u64) {
        let waiter = &mut self.waiters[w as usize];
        if let Some(key) = waiter.timer.take() {
            self.timers.cancel(key);
        }
        self.actives[waiter.active as usize].line_bytes -= u64::from(waiter.claim.bytes);
        rules.bounds.lock().leave(&waiter.claim);
        rules.metrics.waited(now.saturating_sub(waiter.arrived));
    }

    /// Hands free slots to those who wait, the slot at `freed` first.
    pub(super) fn serve(&mut self, rules: &Rules, a: u32, freed: Option<usize>, now: u64, fx: &mut Effects) {
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
            let Some(position) = direct.or_else(|| self.pick(rules, a, &claim, now)) else {
                // Free slots, but none for this one: it excludes the only instance that has room.
                let generation = self.waiters[w as usize].generation;
                self.actives[a as usize].line.put_back(claim.priority, (w, generation));
                break;
            };
            self.unqueue(rules, w, now);
            let mut grant = self.lend(rules, a, position, claim.metered, now);
            let instance = &self.instances[rules.ids.slot(InstanceId(grant.token & !METERED)) as usize];
            if instance.asked <= self.waiters[w as usize].arrived
                || instance.ready >= self.waiters[w as usize].arrived
            {
                grant.start.clone_from(&instance.start);
            }
            let waiter = &mut self.waiters[w as usize];
            waiter.place = WaiterState::Granted(grant);
            fx.wake.extend(waiter.waker.take());
        }
    }

    /// Answers all who wait with an error.
    pub(super) fn fail_line(
        &mut self,
        rules: &Rules,
        a: u32,
        now: u64,
        fx: &mut Effects,
        error: impl Fn() -> ClaimError,
    ) {
        loop {
            let waiters = &self.waiters;
            let taken = self.actives[a as usize].line.take(|entry| is_waiting(waiters, entry), |_| true);
            let Some(w) = taken else { break };
            self.fail_waiter(rules, w, now, fx, error());
        }
    }

    pub(super) fn fail_waiter(
        &mut self,
        rules: &Rules,
        w: u32,
        now: u64,
        fx: &mut Effects,
        error: ClaimError,
    ) {
        self.unqueue(rules, w, now);
        let waiter = &mut self.waiters[w as usize];
        waiter.place = WaiterState::Failed(error);
        fx.wake.extend(waiter.waker.take());
        let (a, metered) = (waiter.active, waiter.claim.metered);
        self.actives[a as usize].depart(metered, now);
    }
}
