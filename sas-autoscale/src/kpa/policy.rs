//! The default scaler: the KPA over what the pool measures.

use std::time::Duration;

use sas_core::{
    Aggregation, Clamps, Decision, Fidelity, Load, Metric, Policy, Reason, ScaleInput, ScalingSpec,
    SpecErrors, Vote,
};
use serde::{Deserialize, Serialize};

use super::decider::{Averages, Corrections, Decider, DeciderSpec, Ready, Scaled};
use crate::{
    options::Options,
    window::{Nanos, SECOND, Window},
};

/// More than this is no measurement.
pub(super) const SAMPLE_MAX: f64 = 1e12;
/// How often the exact algorithm decides.
const EXACT_TICK: Nanos = 2 * SECOND;
/// How much of the highest arrival rate is left after a second.
pub(super) const PEAK_DECAY: f32 = 0.8;

/// Requests at once, or per second: the KPA, with the spec's fidelity.
///
/// It serves specs under the names `kpa` (the spec's `metric` says which), `concurrency` and `rps`. For many active
/// revisions, [`super::KpaColumns`] decides the same from state in columns.
#[derive(Clone, Copy, Debug)]
pub struct Kpa {
    name: &'static str,
    metric: Option<Metric>,
}

impl Default for Kpa {
    fn default() -> Self {
        Self { name: "kpa", metric: None }
    }
}

impl Kpa {
    /// Counts up when decisions change.
    pub const VERSION: u32 = 1;

    /// By requests at once, whatever the spec's metric.
    pub const fn concurrency() -> Self {
        Self { name: "concurrency", metric: Some(Metric::Concurrency) }
    }

    /// By requests per second, whatever the spec's metric.
    pub const fn rps() -> Self {
        Self { name: "rps", metric: Some(Metric::Rps) }
    }

    pub(crate) fn metric(&self, spec: &ScalingSpec) -> Metric {
        self.metric.unwrap_or(spec.metric)
    }

    /// Decides for one of several metrics, whose target may be its own.
    pub(crate) fn decide_for(
        state: &mut KpaState,
        input: &ScaleInput<'_>,
        metric: Metric,
        target: Option<f64>,
    ) -> Decision {
        let params = Params::new(input, metric, target);
        let Some(sample) = Sample::of(input.load, input.elapsed, metric) else {
            return Decision::hold(Reason::BadInput);
        };
        match input.spec.fidelity {
            Fidelity::Exact => state.exact(input, &params, &sample),
            _ => state.corrected(input, &params, &sample),
        }
    }
}

impl Policy for Kpa {
    type State = KpaState;

    fn name(&self) -> &'static str {
        self.name
    }

    fn version(&self) -> u32 {
        Self::VERSION
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, |_, _| {})
    }

    fn decide(&self, state: &mut KpaState, input: &ScaleInput<'_>) -> Decision {
        Self::decide_for(state, input, self.metric(input.spec), None)
    }
}

/// What the spec says in the decider's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Params {
    pub(crate) spec: DeciderSpec,
    pub(crate) metric: Metric,
    pub(crate) panic_window: Nanos,
    pub(crate) aggregation: Aggregation,
}

fn nanos(duration: Duration) -> Nanos {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

pub(super) fn scale_of(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Params {
    pub(crate) fn new(input: &ScaleInput<'_>, metric: Metric, target: Option<f64>) -> Self {
        let spec = input.spec;
        let mut total = target.unwrap_or(spec.target);
        if metric == Metric::Concurrency && input.concurrency != 0 {
            total = total.min(f64::from(input.concurrency));
        }
        let mut decider = DeciderSpec::for_target((total * spec.utilization).max(0.01), total);
        decider.max_scale_up_rate = spec.max_scale_up_rate;
        decider.max_scale_down_rate = spec.max_scale_down_rate;
        decider.target_burst_capacity = spec.target_burst_capacity;
        decider.panic_threshold = spec.panic_threshold_percentage / 100.0;
        decider.stable_window_ns = nanos(spec.stable_window);
        decider.scale_down_delay_ns = nanos(spec.scale_down_delay);
        decider.initial_scale = scale_of(spec.initial);
        decider.activation_scale = scale_of(spec.activation);
        Self {
            spec: decider,
            metric,
            panic_window: nanos(spec.panic_window()),
            aggregation: spec.aggregation,
        }
    }
}

/// One tick's measurement, checked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    /// Of the metric.
    pub(crate) value: f64,
    /// Requests at once, whatever the metric.
    pub(crate) concurrency: f64,
    /// Requests per second that arrived.
    pub(crate) arrivals: f64,
    pub(crate) queued: f64,
    pub(crate) ready: i32,
    pub(crate) starting: i32,
    /// Since the last tick, in seconds.
    pub(crate) elapsed: f64,
}

impl Sample {
    /// `None` for what is no measurement: NaN, infinite, negative, absurdly large.
    pub(crate) fn of(load: &Load, elapsed: Duration, metric: Metric) -> Option<Self> {
        let elapsed = elapsed.as_secs_f64().min(3600.0);
        let arrivals = if elapsed > 0.0 { f64::from(load.requests) / elapsed } else { 0.0 };
        let value = if metric == Metric::Rps { arrivals } else { load.concurrency };
        (load.concurrency >= 0.0 && load.concurrency <= SAMPLE_MAX && value <= SAMPLE_MAX).then(|| Self {
            value,
            concurrency: load.concurrency,
            arrivals,
            queued: f64::from(load.queued),
            ready: scale_of(load.ready),
            starting: scale_of(load.starting),
            elapsed,
        })
    }
}

/// What the default scaler remembers of a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KpaState {
    pub(super) windows: Option<(Window, Window)>,
    pub(super) decider: Decider,
    /// The time of the last tick on the scaler's own clock: wall time when it is exact, seconds counted from the
    /// first tick when it is corrected.
    pub(super) clock: Nanos,
    pub(super) pending: Pending,
    pub(super) recent: Recent,
    /// The highest arrival rate of late.
    pub(super) peak: f32,
    /// Ticks for which what just started is given time to work.
    pub(super) settling: u32,
    /// When the exact algorithm decided last, and how many instances.
    #[serde(default)]
    pub(super) decided: Option<(Nanos, i32)>,
}

/// Samples on their way into whole seconds, so that early, late and missing ticks weigh what they should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) weighted: f64,
    pub(super) seconds: f64,
    /// How far the ticks are ahead of the whole seconds that were counted, at most half a second either way.
    pub(super) drift: f32,
}

impl Pending {
    /// Adds a sample; gives the mean and over how many whole seconds it holds, once it is nearly one.
    #[allow(clippy::cast_possible_truncation, reason = "at most an hour of seconds; drift is below one")]
    fn add(&mut self, value: f64, seconds: f64, first: bool) -> Option<(f64, i64)> {
        self.weighted += value * seconds;
        self.seconds += seconds;
        let due = self.seconds + f64::from(self.drift);
        let mut whole = due.round();
        if first && whole < 1.0 {
            whole = 1.0;
        }
        if whole < 1.0 {
            return None;
        }
        let mean = if self.seconds > 0.0 { self.weighted / self.seconds } else { value };
        *self = Self { drift: (due - whole).clamp(-0.5, 0.5) as f32, ..Self::default() };
        Some((mean, whole as i64))
    }
}

/// The highest sample of the last one to two stretches of a panic window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Recent {
    pub(super) current: f32,
    pub(super) before: f32,
    pub(super) count: u32,
    pub(super) full: u8,
}

impl Recent {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "seven digits are enough to compare by a factor of two"
    )]
    fn add(&mut self, value: f64, stretch: u32) {
        self.current = self.current.max(value as f32);
        self.count += 1;
        if self.count >= stretch {
            self.before = self.current;
            self.current = 0.0;
            self.count = 0;
            self.full = (self.full + 1).min(2);
        }
    }

    fn highest(&self) -> Option<f64> {
        (self.full == 2).then(|| f64::from(self.current.max(self.before)))
    }
}

impl KpaState {
    fn windows(&mut self, params: &Params, now: Nanos) -> (&mut Window, &mut Window) {
        let (stable, panic) = self.windows.get_or_insert_with(|| {
            (
                Window::new(params.spec.stable_window_ns, SECOND, params.aggregation),
                Window::new(params.panic_window, SECOND, params.aggregation),
            )
        });
        stable.resize(now, params.spec.stable_window_ns);
        panic.resize(now, params.panic_window);
        (stable, panic)
    }

    /// Exactly: wall-clock buckets of what an instance would report each second, a decision every two seconds,
    /// and one at once for the first request after zero.
    fn exact(&mut self, input: &ScaleInput<'_>, params: &Params, sample: &Sample) -> Decision {
        let now = input.now.0;
        let first = self.windows.is_none();
        if !first && now < self.clock {
            return Decision::hold(Reason::BadInput);
        }
        self.clock = now;
        if first {
            self.decider = Decider::new(&params.spec, now, Ready::Count(sample.ready));
        }
        let passed = self.pending.add(sample.value, sample.elapsed, first);
        let (stable, panic) = self.windows(params, now);
        // Nobody reports when there is no instance and nothing waits.
        if let Some((mean, seconds)) = passed
            && (sample.ready > 0 || mean > 0.0)
        {
            for back in (0..seconds.min(params.spec.stable_window_ns / SECOND)).rev() {
                let at = now.saturating_sub(back.saturating_mul(SECOND));
                stable.record(at, mean);
                panic.record(at, mean);
            }
        }
        let (no_data, averages) = (
            stable.is_empty(now) && params.spec.target_burst_capacity != -1.0,
            Averages { stable: stable.average(now), panic: panic.average(now) },
        );
        let poked = sample.concurrency > 0.0 && self.decided.is_some_and(|(_, desired)| desired == 0);
        // The tick nearest to the time, since ticks are not exact.
        let slack = nanos(input.elapsed) / 2;
        let due =
            self.decided.is_none_or(|(at, _)| now.saturating_sub(at).saturating_add(slack) >= EXACT_TICK);
        if !due && !poked {
            return Decision::hold(Reason::BetweenTicks);
        }
        let before = self.decided.map_or(-1, |(_, desired)| desired);
        self.decided = Some((now, before));
        if no_data {
            return Decision::hold(Reason::NoData);
        }
        let scaled = self.decider.decide(&params.spec, now, sample.ready, averages, &Corrections::default());
        self.decided = Some((now, scaled.desired));
        decision(params, averages, &scaled)
    }

    #[allow(clippy::cast_possible_truncation, reason = "seven digits of a rate are enough")]
    /// The default: seconds are counted from the first tick, so that no clock can disturb them.
    fn corrected(&mut self, input: &ScaleInput<'_>, params: &Params, sample: &Sample) -> Decision {
        let first = self.windows.is_none();
        let panic_slots = u32::try_from(params.panic_window / SECOND).unwrap_or(1).max(1);
        self.peak = (sample.arrivals as f32).max(self.peak * PEAK_DECAY);
        let peak = f64::from(self.peak);
        if sample.starting > 0 {
            self.settling = panic_slots;
        } else {
            self.settling = self.settling.saturating_sub(1);
        }
        // While instances start, and for a panic window after, a queue says more about the starts than about the
        // load: more than they will carry counts only as far as it arrives.
        let provided = f64::from(sample.ready.saturating_add(sample.starting)) * params.spec.target_value;
        let trusted = peak.max(provided);
        let partly = self.settling > 0 && params.metric == Metric::Concurrency && sample.value > trusted;
        let value = if partly { trusted } else { sample.value };
        let passed = self.pending.add(value, sample.elapsed, first);
        let seconds = passed.map_or(0, |(_, seconds)| seconds);
        self.clock = self.clock.saturating_add(seconds.saturating_mul(SECOND));
        let now = self.clock;
        if first {
            self.decider = Decider::new(&params.spec, now, Ready::Count(sample.ready));
        }
        let (stable, panic) = self.windows(params, now);
        if let Some((mean, seconds)) = passed {
            let kept = seconds.min(params.spec.stable_window_ns / SECOND);
            for back in (0..kept).rev() {
                stable.record(now - back * SECOND, mean);
                panic.record(now - back * SECOND, mean);
            }
        }
        let averages = Averages { stable: stable.average(now), panic: panic.average(now) };
        if let Some((mean, seconds)) = passed {
            for _ in 0..seconds {
                self.recent.add(mean, panic_slots);
            }
        }
        let corrections = Corrections { starting: sample.starting, recent: self.recent.highest() };
        let mut scaled = self.decider.decide(&params.spec, now, sample.ready, averages, &corrections);
        let waiting = self.wake(input, params, sample, &mut scaled);
        if partly {
            scaled.clamps.insert(Clamps::STARTING);
        }
        let mut decision = decision(params, averages, &scaled);
        if waiting {
            decision.reason = Reason::Waiting;
        }
        decision
    }

    /// With nothing ready, the decision fits what waits, and is held like a panic's: 0 to M in one step.
    fn wake(
        &mut self,
        input: &ScaleInput<'_>,
        params: &Params,
        sample: &Sample,
        scaled: &mut Scaled,
    ) -> bool {
        if sample.ready > 0 || sample.queued == 0.0 {
            return false;
        }
        let per_instance = match (input.concurrency, params.metric) {
            (0, Metric::Concurrency) => params.spec.total_value,
            // Without a limit, one instance may take all that wait.
            (0, _) => sample.queued,
            (limit, _) => f64::from(limit),
        };
        let wanted =
            super::decider::int((sample.queued.min(f64::from(self.peak).max(1.0)) / per_instance).ceil());
        if wanted <= scaled.desired {
            return false;
        }
        scaled.desired = wanted;
        self.decider.panic_since = Some(self.clock);
        self.decider.max_panic_pods = self.decider.max_panic_pods.max(wanted);
        true
    }
}

/// The decision of a tick with its votes.
pub(crate) fn decision(params: &Params, averages: Averages, scaled: &Scaled) -> Decision {
    let desired = u32::try_from(scaled.desired).unwrap_or(0);
    let reason = if scaled.delayed {
        Reason::Delayed
    } else if scaled.by_panic {
        Reason::Panic
    } else if desired == 0 {
        Reason::Idle
    } else {
        Reason::Stable
    };
    let mut decision = Decision::set(desired, reason);
    decision.clamps = scaled.clamps;
    decision.excess_burst = scaled.excess_burst;
    decision.version = Kpa::VERSION;
    let vote = |value: f64, wants: i32| {
        Vote::new(
            params.metric,
            Some(value),
            params.spec.target_value,
            Some(u32::try_from(wants).unwrap_or(0)),
        )
    };
    decision.votes.push(vote(averages.stable, scaled.stable_wants));
    decision.votes.push(vote(averages.panic, scaled.panic_wants));
    decision
}
