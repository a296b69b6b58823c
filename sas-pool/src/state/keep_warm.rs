//! Keep-alive: when the last instance of an idle revision goes, and when one is started ahead of the next call.

use sas_core::{Reason, Timestamp};

use super::*;

impl State {
    /// Tells the policy of a call that found the revision idle or asleep.
    pub(crate) fn called(&mut self, rules: &Rules, a: u32, now: u64) {
        let active = &mut self.actives[a as usize];
        if rules.idle != Idle::Policy || active.leases > 0 || active.waiting() > 0 {
            return;
        }
        active.called = active.kept;
        if std::mem::take(&mut active.woken) {
            rules.metrics.wakes.pay();
        }
        if !rules.resolution.is_zero() {
            // Of calls that the policy does not tell apart the first says it all, and a plan that is due stays due.
            if active.told_at > 0 && now.saturating_sub(active.told_at) < nanos(rules.resolution) {
                return;
            }
            active.told_at = now;
        }
        let key = active.key.0;
        if let Some(timer) = active.sleep.take() {
            self.timers.cancel(timer);
        }
        self.forget_wake(key);
        rules.with_policy(|policy| policy.called(key, rules.config.clock.now()));
    }

    /// Tells the policy of a start: what is given up when memory is short is a matter of size and start time.
    pub(super) fn tell_policy(&self, rules: &Rules, a: u32, bytes: Option<u64>, start: Duration) {
        let Active { key, measured, .. } = &self.actives[a as usize];
        let (key, measured) = (key.0, *measured);
        let bytes = bytes.unwrap_or_else(|| rules.memory_of(self.deployed(a), measured));
        rules.with_policy(|policy| policy.started(key, bytes, start));
    }

    /// A call that was expected came, or never will.
    pub(crate) fn forget_wake(&mut self, key: RevisionKey) {
        if let Some((timer, _)) = self.wakes.remove(&key) {
            self.timers.cancel(timer);
        }
    }

    /// The last running call of a revision ended: asks the policy what is next, at once or when it rests.
    pub(crate) fn revision_idle(&mut self, rules: &Rules, a: u32, now: u64, fx: &mut Effects) {
        let active = &self.actives[a as usize];
        if self.closed || active.orphan || !active.called {
            return;
        }
        let key = active.key.0;
        if rules.resolution.is_zero() {
            self.ask_policy(rules, a, now, fx);
        } else if active.sleep.is_none() {
            self.sleep_later(a, key, now + nanos(rules.resolution), fx);
        }
    }

    /// Asks the policy how long a revision that was called is to stay.
    pub(crate) fn ask_policy(&mut self, rules: &Rules, a: u32, now: u64, fx: &mut Effects) {
        let active = &mut self.actives[a as usize];
        active.called = false;
        let key = active.key.0;
        let wall = rules.config.clock.now();
        let Some(keep) = rules.with_policy(|policy| policy.idle(key, wall)) else { return };
        let at = |time: Timestamp| now.saturating_add(nanos(time.since(wall)));
        self.sleep_later(a, key, at(keep.sleep_at), fx);
        if let (Some(wake), Some(until)) = (keep.wake_at, keep.wake_until) {
            self.forget_wake(key);
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

    /// The time of the revision's plan has come: it sleeps, unless the policy or the last decision keeps it.
    pub(crate) fn sleep(&mut self, rules: &Rules, key: RevisionKey, now: u64, fx: &mut Effects) {
        let Some(a) = self.lookup(rules, key).and_then(|slot| self.active(slot)) else { return };
        let active = &mut self.actives[a as usize];
        active.sleep = None;
        if active.leases > 0 || active.waiting() > 0 {
            return;
        }
        if active.called {
            // While a decision keeps it there is nothing to plan; the policy is asked when that ends.
            if active.decided == 0 && !self.closed && !active.orphan {
                self.ask_policy(rules, a, now, fx);
            }
            return;
        }
        if self.plan_goes_on(rules, a, key, now, fx) {
            return;
        }
        let active = &mut self.actives[a as usize];
        if std::mem::take(&mut active.woken) {
            rules.metrics.wakes.waste();
        }
        active.raised = 0;
        let (before, target) = (active.have(), active.target());
        if target < before {
            self.decided_here(rules, a, (before, target), Reason::NotExpected, None);
        }
        self.shrink(rules, a, false, now, fx);
        self.rest(now, a, fx);
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
        if active.have() == 0 {
            active.woken = true;
            rules.metrics.wakes.begin();
            let left = Duration::from_nanos(until.saturating_sub(now));
            self.decided_here(rules, a, (0, 1), Reason::Expected, Some(rules.config.clock.now() + left));
        }
        self.grow(rules, a, 0, now, fx);
        let active = &self.actives[a as usize];
        if active.leases == 0 && active.waiting() == 0 {
            self.sleep_later(a, key, until, fx);
        }
    }
}
