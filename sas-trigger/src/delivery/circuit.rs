//! Leaves a target alone that is down, so that events wait upstream instead of being tried in vain.

use std::{pin::pin, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// When a target is taken to be down, and how often it is asked then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitPolicy {
    /// Attempts in a row that got no answer, or one that the target is to blame for (5xx), before it is taken to be down;
    /// 0: it never is.
    pub failures: u32,
    /// How long it is left alone first. Then one attempt is made; while that fails, the time doubles.
    pub first: Duration,
    /// The longest such time.
    pub longest: Duration,
}

impl Default for CircuitPolicy {
    fn default() -> Self {
        Self { failures: 10, first: Duration::from_secs(1), longest: Duration::from_secs(30) }
    }
}

#[derive(Debug)]
pub(super) struct Circuit {
    policy: CircuitPolicy,
    state: Mutex<State>,
    changed: Notify,
    /// Told when the target may be mended while it is left alone.
    renewed: Notify,
}

#[derive(Debug)]
struct State {
    failures: u32,
    /// While it is open: when the next attempt may be made.
    until: Option<Instant>,
    /// How long it stays open next time.
    period: Duration,
    /// Whether the one attempt is under way.
    probing: bool,
}

/// The leave to make one attempt.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    circuit: &'a Circuit,
    probe: bool,
}

impl Circuit {
    pub(super) fn new(policy: CircuitPolicy) -> Self {
        let state = State { failures: 0, until: None, period: policy.first, probing: false };
        Self { policy, state: Mutex::new(state), changed: Notify::new(), renewed: Notify::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.lock().until.is_some()
    }

    /// What was wrong with the target may be mended: an attempt may be made at once, and if it fails the pauses begin anew.
    pub(super) fn retry_now(&self) {
        let mut state = self.state.lock();
        state.period = self.policy.first;
        if state.until.is_none() {
            return;
        }
        // One that is under way says by itself how it went.
        if !state.probing {
            state.until = Some(Instant::now());
        }
        self.changed.notify_waiters();
        self.renewed.notify_waiters();
    }

    /// Waits until the target, which is left alone, may be mended. A target that merely failed now and then is not waited
    /// for: its events have their pauses, and only so many attempts.
    pub(super) async fn renewed(&self) {
        self.renewed.notified().await;
    }

    /// Waits until an attempt may be made.
    pub(super) async fn admit(&self) -> Pass<'_> {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Enrolled before the look, so that a change after it wakes us.
            changed.as_mut().enable();
            let wait = {
                let mut state = self.state.lock();
                match state.until {
                    None => return Pass { circuit: self, probe: false },
                    Some(_) if state.probing => None,
                    Some(until) if until <= Instant::now() => {
                        state.probing = true;
                        return Pass { circuit: self, probe: true };
                    }
                    Some(until) => Some(until),
                }
            };
            wait_for(changed, wait).await;
        }
    }

    /// Waits until an attempt could be made, without taking the leave.
    pub(super) async fn passable(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let wait = {
                let state = self.state.lock();
                match state.until {
                    None => return,
                    Some(_) if state.probing => None,
                    Some(until) if until <= Instant::now() => return,
                    Some(until) => Some(until),
                }
            };
            wait_for(changed, wait).await;
        }
    }
}

async fn wait_for(changed: impl Future<Output = ()>, until: Option<Instant>) {
    match until {
        None => changed.await,
        Some(until) => tokio::select! {
            biased;
            () = changed => {}
            () = sleep_until(until) => {}
        },
    }
}

impl Pass<'_> {
    /// The target answered.
    pub(super) fn succeeded(mut self) {
        self.probe = false;
        let mut state = self.circuit.state.lock();
        state.failures = 0;
        state.period = self.circuit.policy.first;
        state.probing = false;
        if state.until.take().is_some() {
            self.circuit.changed.notify_waiters();
        }
    }

    /// It did not, and may have asked for a pause.
    pub(super) fn failed(mut self, asked: Option<Duration>) {
        let policy = self.circuit.policy;
        let mut state = self.circuit.state.lock();
        state.failures = state.failures.saturating_add(1);
        let trips = policy.failures > 0 && state.failures >= policy.failures && state.until.is_none();
        if self.probe || trips {
            state.until = Some(Instant::now() + state.period.max(asked.unwrap_or_default()));
            state.period = state.period.saturating_mul(2).min(policy.longest);
            state.probing = false;
            self.circuit.changed.notify_waiters();
        }
        drop(state);
        self.probe = false;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        // Dropped in the middle of the attempt: another may make it.
        if self.probe {
            self.circuit.state.lock().probing = false;
            self.circuit.changed.notify_waiters();
        }
    }
}
