//! Keep-alive: when the last instance of an idle revision goes, and when one is started ahead of the next call.

use sas_core::Timestamp;

use super::*;

impl State {
    /// Tells the policy of a call that found the revision idle or asleep.
    pub(crate) fn called(&mut self, rules: &Rules, a: u32) {
        if rules.idle != Idle::Policy {
            return;
        }
        let active = &mut self.actives[a as usize];
        if active.leases > 0 || active.waiting() > 0 {
            return;
        }
        active.called = true;
        if let Some(key) = active.sleep.take() {
            self.timers.cancel(key);
        }
        let key = active.key.0;
        self.forget_wake(key);
        rules.with_policy(|policy| policy.called(key, rules.config.clock.now()));
    }

    /// Tells the policy of a start: what is given up when memory is short is a matter of size and start time.
    pub(super) fn tell_policy(&self, rules: &Rules, a: u32, bytes: Option<u64>, start: Duration) {
        let key = self.actives[a as usize].key.0;
        let bytes = bytes.unwrap_or_else(|| rules.memory_of(&self.deployed(a).spec));
        rules.with_policy(|policy| policy.started(key, bytes, start));
    }

    /// A call that was expected came, or never will.
    pub(crate) fn forget_wake(&mut self, key: RevisionKey) {
        if let Some((timer, _)) = self.wakes.remove(&key) {
            self.timers.cancel(timer);
        }
    }

    /// The last running call of a revision ended: asks the policy what is next.
    pub(crate) fn revision_idle(&mut self, rules: &Rules, a: u32, now: u64, fx: &mut Effects) {
        let active = &mut self.actives[a as usize];
        if self.closed || active.orphan || !std::mem::take(&mut active.called) {
            return;
        }
        let key = active.key.0;
        let wall = rules.config.clock.now();
        let Some(keep) = rules.with_policy(|policy| policy.idle(key, wall)) else { return };
        let at = |time: Timestamp| now.saturating_add(nanos(time.since(wall)));
        self.sleep_later(a, key, at(keep.sleep_at), fx);
        if let (Some(wake), Some(until)) = (keep.wake_at, keep.wake_until) {
            let timer = self.timers.set(at(wake), Timer::Wake(key));
            self.wakes.insert(key, (timer, at(until).max(at(wake))));
            fx.arm(at(wake));
        }
    }

    fn sleep_later(&mut self, a: u32, key: RevisionKey, at: u64, fx: &mut Effects) {
        let timer = self.timers.set(at, Timer::Sleep(key));
        if let Some(timer) = self.actives[a as usize].sleep.replace(timer) {
            self.timers.cancel(timer);
        }
        fx.arm(at);
    }

    /// The policy lets the revision sleep.
    pub(crate) fn sleep(&mut self, rules: &Rules, key: RevisionKey, now: u64, fx: &mut Effects) {
        let Some(a) = self.lookup(rules, key).and_then(|slot| self.active(slot)) else { return };
        let active = &mut self.actives[a as usize];
        active.sleep = None;
        if active.leases == 0 && active.waiting() == 0 {
            if self.plan_goes_on(rules, a, key, now, fx) {
                return;
            }
            let active = &mut self.actives[a as usize];
            active.decided = 0;
            active.raised = 0;
            self.shrink(rules, a, false, now, fx);
            self.rest(now, a, fx);
        }
    }

    /// A plan ended without a call: whether the policy keeps the revision warm on. When it does not, it may say when to
    /// wake it instead.
    fn plan_goes_on(&mut self, rules: &Rules, a: u32, key: RevisionKey, now: u64, fx: &mut Effects) -> bool {
        if self.closed || self.wakes.contains_key(&key) {
            return false;
        }
        let wall = rules.config.clock.now();
        let Some(keep) = rules.with_policy(|policy| policy.unused(key, wall)) else { return false };
        let at = |time: Timestamp| now.saturating_add(nanos(time.since(wall)));
        if let (Some(wake), Some(until)) = (keep.wake_at, keep.wake_until) {
            let timer = self.timers.set(at(wake), Timer::Wake(key));
            self.wakes.insert(key, (timer, at(until).max(at(wake))));
            fx.arm(at(wake));
        }
        let goes_on = keep.sleep_at > wall;
        if goes_on {
            self.sleep_later(a, key, at(keep.sleep_at), fx);
        }
        goes_on
    }

    /// A call is expected soon.
    pub(crate) fn wake_ahead(&mut self, rules: &Rules, key: RevisionKey, now: u64, fx: &mut Effects) {
        let Some((_, until)) = self.wakes.remove(&key) else { return };
        let Some(slot) = self.lookup(rules, key) else { return };
        if self.closed {
            return;
        }
        let a = self.activate(rules, slot, now);
        let active = &mut self.actives[a as usize];
        active.raised = active.raised.max(1);
        self.grow(rules, a, 0, now, fx);
        let active = &self.actives[a as usize];
        if active.leases == 0 && active.waiting() == 0 {
            self.sleep_later(a, key, until, fx);
        }
    }
}
