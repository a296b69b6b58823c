//! The decision from two averages and the ready instances.

use serde::{Deserialize, Serialize};

use crate::window::{MaxWindow, Nanos, SECOND};

/// What the decider works with. Durations are signed nanoseconds, since the algorithm does not refuse negative ones.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub(crate) struct DeciderSpec {
    /// At most this many times the ready instances in one decision.
    pub max_scale_up_rate: f64,
    /// At least one in this many of the ready instances stays in one decision.
    pub max_scale_down_rate: f64,
    /// What one instance should carry, utilisation included.
    pub target_value: f64,
    /// What one instance could carry.
    pub total_value: f64,
    /// Requests beyond capacity that must find room; -1: unlimited.
    pub target_burst_capacity: f64,
    /// Requests at once per activator.
    pub activator_capacity: f64,
    /// Panic when the short window wants this many times what is ready.
    pub panic_threshold: f64,
    /// How long a panic holds, in nanoseconds.
    pub stable_window_ns: i64,
    /// How long a lower decision waits, in nanoseconds.
    pub scale_down_delay_ns: i64,
    /// Instances of a new revision.
    pub initial_scale: i32,
    /// Instances to wake up to; 0: off.
    pub activation_scale: i32,
    /// Whether traffic can come.
    pub reachable: bool,
}

impl DeciderSpec {
    /// The algorithm's defaults around a target: what one instance should carry with and without utilisation.
    pub(crate) const fn for_target(target_value: f64, total_value: f64) -> Self {
        Self {
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            target_value,
            total_value,
            target_burst_capacity: 211.0,
            activator_capacity: 100.0,
            panic_threshold: 2.0,
            stable_window_ns: 60_000_000_000,
            scale_down_delay_ns: 0,
            initial_scale: 1,
            activation_scale: 0,
            reachable: true,
        }
    }
}

/// How coarse the window of the scale-down delay is: one autoscaler tick of Knative.
pub(super) const DELAY_GRANULARITY: Nanos = 2 * SECOND;

/// What a decider remembers of its revision between ticks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Decider {
    pub(crate) panic_since: Option<Nanos>,
    pub(crate) max_panic_pods: i32,
    pub(crate) delay: Option<MaxWindow>,
}

/// How many instances are ready, when somebody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// So many.
    Count(i32),
    /// There is no such revision in the instance listing: counts as none.
    #[cfg(test)]
    NotFound,
    /// The count failed: nothing is decided.
    #[cfg(test)]
    Unknown,
}

/// The two averages of a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Averages {
    /// Over the stable window.
    pub stable: f64,
    /// Over the panic window.
    pub panic: f64,
}

/// What a tick decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scaled {
    /// How many instances there should be.
    pub desired: i32,
    /// Requests that could still burst in; negative: capacity is short.
    pub excess_burst: i32,
    /// What the stable window alone asks for, before any limit.
    pub stable_wants: i32,
    /// What the panic window alone asks for, before any limit.
    pub panic_wants: i32,
    /// The limits that changed the answer.
    pub clamps: sas_core::Clamps,
    /// Whether the panic window, or a panic that still holds, gave the number.
    pub by_panic: bool,
    /// Whether the delay held it up.
    pub delayed: bool,
}

/// What the default preset knows beyond Knative.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Corrections {
    /// Instances that start: they count when it is judged whether to panic.
    pub(crate) starting: i32,
    /// The highest sample of a recent stretch, once it is long enough to be trusted.
    pub(crate) recent: Option<f64>,
}

/// `value` as Go converts it: towards zero. What does not fit saturates.
#[allow(clippy::cast_possible_truncation, reason = "saturates, as documented")]
pub(crate) const fn int(value: f64) -> i32 {
    value as i32
}

impl Decider {
    /// The decider of a revision that has `ready` instances now: with more than one it starts in panic, so that a
    /// restart takes none away before a window was seen.
    pub(crate) fn new(spec: &DeciderSpec, now: Nanos, ready: Ready) -> Self {
        #[cfg_attr(
            not(test),
            expect(clippy::infallible_destructuring_match, reason = "the others are of the tests")
        )]
        let ready = match ready {
            Ready::Count(count) => count,
            #[cfg(test)]
            Ready::NotFound | Ready::Unknown => 0,
        };
        Self {
            panic_since: (ready > 1).then_some(now),
            max_panic_pods: ready,
            delay: (spec.scale_down_delay_ns > 0)
                .then(|| MaxWindow::new(spec.scale_down_delay_ns, DELAY_GRANULARITY)),
        }
    }

    /// Whether the revision is in panic mode now.
    pub(crate) const fn is_panicking(&self) -> bool {
        self.panic_since.is_some()
    }

    /// The highest number of this panic.
    #[cfg(test)]
    pub(crate) const fn max_panic_pods(&self) -> i32 {
        self.max_panic_pods
    }

    /// Decides. `None` when the count or the averages are not to be had: the last decision stays, and nothing
    /// changes here.
    #[cfg(test)]
    pub(crate) fn scale(
        &mut self,
        spec: &DeciderSpec,
        now: Nanos,
        ready: Ready,
        averages: Option<Averages>,
    ) -> Option<Scaled> {
        let ready = match ready {
            Ready::Count(count) => count,
            Ready::NotFound => 0,
            Ready::Unknown => return None,
        };
        Some(self.decide(spec, now, ready, averages?, &Corrections::default()))
    }

    /// The same with what the default preset mends.
    pub(crate) fn decide(
        &mut self,
        spec: &DeciderSpec,
        now: Nanos,
        ready: i32,
        averages: Averages,
        corrections: &Corrections,
    ) -> Scaled {
        use sas_core::Clamps;
        let counted = f64::from(ready.max(1));
        let up = (spec.max_scale_up_rate * counted).ceil();
        let down = if spec.reachable { (counted / spec.max_scale_down_rate).floor() } else { 0.0 };
        let window_wants = (averages.stable / spec.target_value).ceil();
        let panic_wants = (averages.panic / spec.target_value).ceil();
        let recent_wants = corrections.recent.map(|recent| {
            // While the window still shows traffic, one instance stays.
            (recent / spec.target_value).ceil().max(if window_wants > 0.0 { 1.0 } else { 0.0 })
        });
        let clear = recent_wants.is_some_and(|recent| recent * 2.0 <= window_wants);
        // What is past is no reason to grow: where it shrank already, it does not come back for an old average.
        let past =
            recent_wants.is_some_and(|recent| recent < window_wants && f64::from(ready) < window_wants);
        let quiet = clear || past;
        let stable_wants = match recent_wants {
            Some(recent) if clear => recent,
            Some(recent) if past => recent.max(f64::from(ready)),
            _ => window_wants,
        };
        let mut stable = int(stable_wants.max(down).min(up));
        let mut panic = int(panic_wants.max(down).min(up));
        // Above 1 and not above 0: an activation scale of 1 says nothing.
        let (mut stable_raised, mut panic_raised) = (false, false);
        if spec.activation_scale > 1 {
            stable_raised = stable_wants > 0.0 && spec.activation_scale > stable;
            panic_raised = panic_wants > 0.0 && spec.activation_scale > panic;
            if stable_raised {
                stable = spec.activation_scale;
            }
            if panic_raised {
                panic = spec.activation_scale;
            }
        }
        let over = panic_wants / f64::from(ready.saturating_add(corrections.starting).max(1))
            >= spec.panic_threshold;
        let calm = recent_wants.is_some_and(|recent| recent * 2.0 <= f64::from(self.max_panic_pods));
        if over {
            self.panic_since = Some(now);
        } else if let Some(since) = self.panic_since
            && (since.saturating_add(spec.stable_window_ns) < now || calm)
        {
            self.panic_since = None;
            self.max_panic_pods = 0;
        }
        let mut desired = stable;
        let mut by_panic = false;
        let mut clamps = Clamps::default();
        if self.is_panicking() {
            desired = stable.max(panic);
            if self.max_panic_pods > desired {
                clamps.insert(Clamps::PANIC);
            }
            self.max_panic_pods = self.max_panic_pods.max(desired);
            by_panic = self.max_panic_pods > stable;
            desired = self.max_panic_pods;
        }
        let (wants, raised) =
            if by_panic { (panic_wants, panic_raised) } else { (stable_wants, stable_raised) };
        if raised {
            clamps.insert(Clamps::ACTIVATION);
        } else if wants.max(down) > up {
            clamps.insert(Clamps::UP_RATE);
        } else if wants < down {
            clamps.insert(Clamps::DOWN_RATE);
        }
        if quiet && !by_panic {
            clamps.insert(Clamps::QUIET);
        }
        let mut delayed = false;
        if spec.reachable
            && let Some(delay) = &mut self.delay
        {
            delay.record(now, desired);
            let held = delay.current();
            delayed = held > desired;
            desired = held;
        }
        if delayed {
            clamps.insert(Clamps::DELAY);
        }
        Scaled {
            desired,
            excess_burst: excess_burst(spec, ready, averages.panic),
            stable_wants: int(window_wants),
            panic_wants: int(panic_wants),
            clamps,
            by_panic,
            delayed,
        }
    }
}

/// Requests that `ready` instances could still take beyond the burst that is kept free; -1: always short.
pub(crate) fn excess_burst(spec: &DeciderSpec, ready: i32, panic: f64) -> i32 {
    let capacity = spec.target_burst_capacity;
    if capacity == 0.0 {
        0
    } else if capacity > 0.0 {
        int((f64::from(ready) * spec.total_value - capacity - panic).floor())
    } else {
        -1
    }
}
