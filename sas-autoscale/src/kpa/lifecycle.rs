//! What the reconciler makes of a decision: bounds, scale to zero, the condition of the revision, its mode.

use std::time::Duration;

use sas_core::ScalingSpec;
use serde::{Deserialize, Serialize};

use crate::window::{Nanos, SECOND};

/// The condition `Active` of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Activity {
    /// Instances are on their way.
    #[default]
    Activating,
    /// Enough are ready.
    Active,
    /// It sleeps, or is about to.
    Inactive,
}

/// Whether requests go through the activator, or straight to the instances.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// Through the activator, which can hold them.
    #[default]
    Proxy,
    /// Straight to the instances.
    Serve,
}

/// Why the condition is what it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ActivityReason {
    /// It is active.
    #[default]
    None,
    /// Requests wait for instances.
    Queued,
    /// Nothing is asked of it.
    NoTraffic,
    /// No instance became ready in time.
    TimedOut,
}

/// What of the configuration the reconciler needs. Times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub(crate) struct LifecycleSpec {
    /// The least instances while the revision is active.
    pub min: i32,
    /// Most instances; 0: unlimited.
    pub max: i32,
    /// Instances of a new revision.
    pub initial: i32,
    /// Whether traffic can come.
    pub reachable: bool,
    /// Whether it may sleep.
    pub scale_to_zero: bool,
    /// The length of the stable window, in nanoseconds.
    pub stable_window: Nanos,
    /// How long a first instance may take.
    pub activation_timeout: Nanos,
    /// How long the last instance stays for the routing to change.
    pub grace: Nanos,
    /// How long the last instance stays at least.
    pub retention: Nanos,
    /// Whether every request goes through the activator anyway (a target burst capacity of -1).
    pub always_proxied: bool,
}

impl LifecycleSpec {
    /// The part of a spec.
    pub(crate) fn from_scaling(spec: &ScalingSpec) -> Self {
        let nanos = |duration: Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let count = |scale: u32| i32::try_from(scale).unwrap_or(i32::MAX);
        Self {
            min: count(spec.min),
            max: count(spec.max),
            initial: count(spec.initial),
            reachable: true,
            scale_to_zero: spec.scale_to_zero,
            stable_window: nanos(spec.stable_window),
            activation_timeout: nanos(spec.activation_timeout),
            grace: nanos(spec.scale_to_zero_grace),
            retention: nanos(spec.retention),
            always_proxied: spec.target_burst_capacity == -1.0,
        }
    }

    /// Ready instances that make a revision active.
    pub(crate) fn active_threshold(&self, initialized: bool) -> i32 {
        let min = if self.reachable { self.min } else { 0 };
        if initialized { min.max(1) } else { min.max(self.initial) }
    }
}

/// What one call of the reconciler's `scale` looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct ScaleCall {
    /// The decision; -1: none yet.
    pub desired: i32,
    /// Instances asked for so far.
    pub replicas: i32,
    /// The condition `Active` as it is after this step.
    pub activity: Activity,
    /// How long it has been so.
    pub activity_age: Nanos,
    /// Whether the initial scale was reached once.
    pub initialized: bool,
    /// The mode so far.
    pub mode: Mode,
    /// How long requests have gone through the activator; `None`: they do not.
    pub proxied_for: Option<Nanos>,
    /// Whether the activator answers for the revision's address.
    pub probe_ok: bool,
}

impl ScaleCall {
    /// A call for a revision that has just begun.
    #[cfg(test)]
    pub(crate) const fn new(desired: i32, replicas: i32) -> Self {
        Self {
            desired,
            replicas,
            activity: Activity::Activating,
            activity_age: 0,
            initialized: false,
            mode: Mode::Proxy,
            proxied_for: Some(0),
            probe_ok: true,
        }
    }
}

/// What one step of the life cycle answers to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct ScaleAnswer {
    /// Instances that are wanted; -1: nobody knows.
    pub want: i32,
    /// Instances to ask for now; `None`: leave what was asked for.
    pub patched: Option<i32>,
    /// Look again after this long.
    pub enqueue: Option<Nanos>,
    /// Whether the activator was asked.
    pub probed: bool,
    /// Whether it is to be asked again until it answers.
    pub async_probe: bool,
}

/// How soon a revision that was just marked inactive is looked at again.
const REENQUEUE_AFTER_INACTIVE: Nanos = 3 * SECOND;

/// Bounds, then scale to zero.
pub(crate) fn scale(spec: &LifecycleSpec, call: &ScaleCall) -> ScaleAnswer {
    let mut answer = ScaleAnswer::default();
    if call.desired < 0 && call.activity != Activity::Activating {
        answer.want = call.desired;
        return answer;
    }
    let mut min = if spec.reachable { spec.min } else { 0 };
    if spec.initial > 1 && !call.initialized && spec.reachable {
        min = min.max(spec.initial);
    }
    // The minimum wins over the maximum: an initial scale may be above it.
    let desired = if call.desired < min {
        min
    } else if spec.max != 0 && call.desired > spec.max {
        spec.max
    } else {
        call.desired
    };
    let apply = to_zero(spec, call, desired, &mut answer);
    answer.patched = (apply && answer.want != call.replicas).then_some(answer.want);
    answer
}

/// Sets what is wanted, and says whether it may be asked for.
fn to_zero(spec: &LifecycleSpec, call: &ScaleCall, desired: i32, answer: &mut ScaleAnswer) -> bool {
    answer.want = desired;
    if desired != 0 {
        return true;
    }
    if !spec.scale_to_zero {
        answer.want = 1;
        return true;
    }
    let age = call.activity_age;
    match call.activity {
        Activity::Activating => {
            if age > spec.activation_timeout {
                return true;
            }
            answer.enqueue = Some(spec.activation_timeout);
            answer.want = -1;
            false
        }
        Activity::Active => {
            if age >= spec.stable_window {
                if call.mode == Mode::Proxy {
                    answer.enqueue = Some(REENQUEUE_AFTER_INACTIVE);
                }
                return false;
            }
            // One is enough for the rest of the idle time.
            answer.enqueue = Some(spec.stable_window - age);
            answer.want = 1;
            true
        }
        Activity::Inactive => {
            if !spec.always_proxied {
                answer.probed = true;
                if !call.probe_ok {
                    answer.async_probe = true;
                    return false;
                }
            }
            let retention = if spec.reachable { spec.retention } else { 0 };
            if age >= spec.grace.max(retention) {
                return true;
            }
            if retention > 0 && age < retention {
                answer.enqueue = Some(retention - age);
                return false;
            }
            let rest = spec.grace - call.proxied_for.unwrap_or(0);
            if rest <= 0 {
                return true;
            }
            answer.enqueue = Some(rest);
            false
        }
    }
}

/// The state of one revision in the reconciler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lifecycle {
    activity: Activity,
    reason: ActivityReason,
    since: Nanos,
    initialized: bool,
    mode: Mode,
    proxied_since: Option<Nanos>,
    named: bool,
    replicas: i32,
}

/// What one reconcile looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) struct Observed {
    /// The time at which was looked, in nanoseconds.
    pub now: Nanos,
    /// The decision; -1: none yet.
    pub desired: i32,
    /// Its excess burst capacity.
    pub excess_burst: i32,
    /// How many instances are ready to serve.
    pub ready: i32,
    /// Whether the activator answers for the revision's address.
    pub probe_ok: bool,
}

impl Observed {
    /// What is seen where every request passes the gateway, which always answers.
    pub(crate) const fn new(now: Nanos, desired: i32, excess_burst: i32, ready: i32) -> Self {
        Self { now, desired, excess_burst, ready, probe_ok: true }
    }
}

impl Lifecycle {
    /// A revision that was created at `now` with `replicas` asked for.
    pub(crate) const fn new(now: Nanos, replicas: i32) -> Self {
        Self {
            activity: Activity::Activating,
            reason: ActivityReason::Queued,
            since: now,
            initialized: false,
            mode: Mode::Proxy,
            proxied_since: None,
            named: false,
            replicas,
        }
    }

    /// The condition and its reason.
    pub(crate) const fn activity(&self) -> (Activity, ActivityReason) {
        (self.activity, self.reason)
    }

    /// Where requests go as of the last step.
    #[cfg(test)]
    pub(crate) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether the initial scale was reached once.
    pub(crate) const fn is_initialized(&self) -> bool {
        self.initialized
    }

    /// How many instances were asked for in the last step.
    pub(crate) const fn replicas(&self) -> i32 {
        self.replicas
    }

    /// The first reconcile, in which the private service is made: nothing is scaled.
    pub(crate) fn create(&mut self, spec: &LifecycleSpec, now: Nanos) {
        self.mode = Mode::Proxy;
        self.condition(spec, now, -1, 0);
        self.named = true;
        self.route(now, 0);
    }

    /// Takes any step but the first, from what was seen.
    pub(crate) fn reconcile(&mut self, spec: &LifecycleSpec, seen: &Observed) -> ScaleAnswer {
        let answer = scale(
            spec,
            &ScaleCall {
                desired: seen.desired,
                replicas: self.replicas,
                activity: self.activity,
                activity_age: seen.now.saturating_sub(self.since),
                initialized: self.initialized,
                mode: self.mode,
                proxied_for: self.proxied_since.map(|since| seen.now.saturating_sub(since)),
                probe_ok: seen.probe_ok,
            },
        );
        if let Some(replicas) = answer.patched {
            self.replicas = replicas;
        }
        self.mode = if answer.want > 0 && seen.excess_burst >= 0 { Mode::Serve } else { Mode::Proxy };
        self.condition(spec, seen.now, answer.want, seen.ready);
        self.route(seen.now, seen.ready);
        answer
    }

    fn route(&mut self, now: Nanos, ready: i32) {
        if ready == 0 || self.mode == Mode::Proxy {
            self.proxied_since.get_or_insert(now);
        } else {
            self.proxied_since = None;
        }
    }

    fn condition(&mut self, spec: &LifecycleSpec, now: Nanos, want: i32, ready: i32) {
        let threshold = spec.active_threshold(self.initialized);
        if ready >= threshold && self.named {
            self.initialized = true;
        }
        let next = if want == 0 || threshold == 0 {
            if self.activity == Activity::Activating && threshold > 0 {
                Some((Activity::Inactive, ActivityReason::TimedOut))
            } else {
                Some((Activity::Inactive, ActivityReason::NoTraffic))
            }
        } else if ready < threshold {
            if want > 0 || self.activity != Activity::Inactive {
                Some((Activity::Activating, ActivityReason::Queued))
            } else {
                Some((Activity::Inactive, ActivityReason::NoTraffic))
            }
        } else if want > 0 || self.activity != Activity::Inactive {
            Some((Activity::Active, ActivityReason::None))
        } else {
            None
        };
        // The clock restarts when status or reason changes.
        if let Some(next) = next
            && next != (self.activity, self.reason)
        {
            (self.activity, self.reason) = next;
            self.since = now;
        }
    }
}
