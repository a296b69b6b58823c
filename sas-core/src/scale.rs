//! How many instances a revision should have, and why.

use std::{any::Any, fmt, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Load, SpecErrors, Timestamp};

/// What a scaler looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Metric {
    /// Requests in the revision at once.
    #[default]
    Concurrency,
    /// Requests per second.
    Rps,
    /// CPU per instance.
    Cpu,
    /// Memory per instance.
    Memory,
    /// What waits upstream.
    Backlog,
    /// A window of a schedule.
    Schedule,
    /// A forecast.
    Forecast,
}

/// How many instances a revision may have and what decides within these bounds.
///
/// The defaults are Knative's. Durations are in nanosecond precision; percentages are written as such (200 = 200 %).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ScalingSpec {
    /// Which scaler, by [`Scaler::name`].
    pub scaler: String,
    /// Least instances while the revision gets traffic.
    pub min: u32,
    /// Most instances; 0: unlimited.
    pub max: u32,
    /// Instances of a new revision before its first decision.
    pub initial: u32,
    /// Instances to wake up to, when more than none are wanted; 0 or 1: as many as are wanted.
    pub activation: u32,
    /// Whether it may sleep.
    pub scale_to_zero: bool,
    /// What the target is about.
    pub metric: Metric,
    /// What one instance should carry at 100 % utilisation: requests at once, or per second.
    pub target: f64,
    /// The share of the target to aim at, above 0 and at most 1.
    pub utilization: f64,
    /// Over how long the metric is averaged.
    pub stable_window: Duration,
    /// The share of the stable window that shows a panic, in percent.
    pub panic_window_percentage: f64,
    /// Panic when the short window wants this many percent of what is ready.
    pub panic_threshold_percentage: f64,
    /// Requests beyond capacity that must find room; 0: none is kept, -1: unlimited.
    pub target_burst_capacity: f64,
    /// At most this many times the ready instances in one decision.
    pub max_scale_up_rate: f64,
    /// At least one in this many of the ready instances stays in one decision.
    pub max_scale_down_rate: f64,
    /// How long a lower decision waits.
    pub scale_down_delay: Duration,
    /// How long the last instance stays after the decision to sleep.
    pub scale_to_zero_grace: Duration,
    /// How long the last instance stays at least after the last request.
    pub retention: Duration,
    /// How a window is averaged.
    pub aggregation: Aggregation,
}

/// How a metric window is averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Aggregation {
    /// The mean.
    #[default]
    Linear,
    /// Younger seconds count more.
    WeightedExponential,
}

impl Default for ScalingSpec {
    fn default() -> Self {
        Self {
            scaler: "kpa".to_owned(),
            min: 0,
            max: 0,
            initial: 1,
            activation: 0,
            scale_to_zero: true,
            metric: Metric::Concurrency,
            target: 100.0,
            utilization: 0.7,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            target_burst_capacity: 211.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_down_delay: Duration::ZERO,
            scale_to_zero_grace: Duration::from_secs(30),
            retention: Duration::ZERO,
            aggregation: Aggregation::Linear,
        }
    }
}

impl ScalingSpec {
    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.max != 0 && self.min > self.max {
            errors.push("min", self.min, format!("at most max, which is {}", self.max));
        }
        let mut positive = |name: &str, value: f64, least: f64, most: f64| {
            if !(value >= least && value <= most) {
                errors.push(name, value, format!("a number from {least} to {most}"));
            }
        };
        positive("target", self.target, 0.01, 1e9);
        positive("utilization", self.utilization, f64::MIN_POSITIVE, 1.0);
        positive("panic_window_percentage", self.panic_window_percentage, 1.0, 100.0);
        positive("panic_threshold_percentage", self.panic_threshold_percentage, 100.0, 1000.0);
        positive("max_scale_up_rate", self.max_scale_up_rate, 1.0 + f64::EPSILON, 1e9);
        positive("max_scale_down_rate", self.max_scale_down_rate, 1.0 + f64::EPSILON, 1e9);
        if !(self.target_burst_capacity == -1.0 || (0.0..=1e9).contains(&self.target_burst_capacity)) {
            errors.push("target_burst_capacity", self.target_burst_capacity, "-1, or a number from 0 to 1e9");
        }
        let hour = Duration::from_secs(3600);
        if self.stable_window < Duration::from_secs(1) || self.stable_window > hour {
            errors.push("stable_window", format!("{:?}", self.stable_window), "1s to 1h");
        }
        for (name, value) in [("scale_down_delay", self.scale_down_delay), ("retention", self.retention)] {
            if value > hour {
                errors.push(name, format!("{value:?}"), "at most 1h");
            }
        }
        errors.into_result()
    }

    /// `desired` within `min` and `max`.
    pub fn clamp(&self, desired: u32) -> u32 {
        let desired = desired.max(self.min);
        if self.max == 0 { desired } else { desired.min(self.max) }
    }
}

/// All that a decision is made from. No clock, no I/O.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ScaleInput<'a> {
    /// The row of the revision in the scaler's state: dense, given by the driver, reused after
    /// [`Scaler::retire`].
    pub row: u32,
    /// When.
    pub now: Timestamp,
    /// The revision's configuration.
    pub spec: &'a ScalingSpec,
    /// What was measured.
    pub load: &'a Load,
    /// The decision before this one.
    pub desired: Option<u32>,
}

impl<'a> ScaleInput<'a> {
    /// An input.
    pub const fn new(
        row: u32,
        now: Timestamp,
        spec: &'a ScalingSpec,
        load: &'a Load,
        desired: Option<u32>,
    ) -> Self {
        Self { row, now, spec, load, desired }
    }
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Leave things as they are: there is nothing to decide from.
    Hold,
    /// Have this many instances.
    Set(u32),
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// No sample in the window.
    NoData,
    /// The stable window decided.
    Stable,
    /// The panic window decided, or a panic holds the number.
    Panic,
    /// An earlier, higher decision is held for the scale-down delay.
    Delayed,
    /// Nothing was asked for a whole window.
    Idle,
    /// Requests wait: the number fits them.
    Waiting,
    /// The input was not usable (NaN, a clock that jumped back); the last decision stays.
    BadInput,
    /// The scaler panicked; the last decision stays.
    ScalerFailed,
    /// After a restart nothing shrinks before a stable window was seen.
    WarmingUp,
    /// A custom policy's own.
    Custom(u16),
}

/// Which bounds acted on a decision, as a set.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Clamps(pub u16);

impl Clamps {
    /// `max_scale_up_rate` held it down.
    pub const UP_RATE: Self = Self(1);
    /// `max_scale_down_rate` held it up.
    pub const DOWN_RATE: Self = Self(1 << 1);
    /// `activation` raised it.
    pub const ACTIVATION: Self = Self(1 << 2);
    /// `scale_down_delay` held it up.
    pub const DELAY: Self = Self(1 << 3);
    /// `min` raised it.
    pub const MIN: Self = Self(1 << 4);
    /// `max` held it down.
    pub const MAX: Self = Self(1 << 5);
    /// `initial` raised it.
    pub const INITIAL: Self = Self(1 << 6);
    /// A running panic held it up.
    pub const PANIC: Self = Self(1 << 7);
    /// The revision may not sleep (yet): grace, retention, or `scale_to_zero` off.
    pub const ZERO: Self = Self(1 << 8);
    /// A policy's ceiling or floor.
    pub const SCHEDULE: Self = Self(1 << 9);

    const NAMES: [(Self, &'static str); 10] = [
        (Self::UP_RATE, "up_rate"),
        (Self::DOWN_RATE, "down_rate"),
        (Self::ACTIVATION, "activation"),
        (Self::DELAY, "delay"),
        (Self::MIN, "min"),
        (Self::MAX, "max"),
        (Self::INITIAL, "initial"),
        (Self::PANIC, "panic"),
        (Self::ZERO, "zero"),
        (Self::SCHEDULE, "schedule"),
    ];

    /// Adds `other`.
    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    /// Whether all of `other` are in it.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The names of those in it.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(clamp, _)| self.contains(*clamp)).map(|(_, name)| name)
    }
}

impl fmt::Debug for Clamps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// What one metric wanted.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Vote {
    /// Which.
    pub metric: Metric,
    /// Its value over the window; `None`: not measured.
    pub value: Option<f64>,
    /// What one instance should carry.
    pub target: f64,
    /// The instances that it asks for; `None`: no opinion.
    pub desired: Option<u32>,
}

impl Vote {
    /// A vote.
    pub const fn new(metric: Metric, value: Option<f64>, target: f64, desired: Option<u32>) -> Self {
        Self { metric, value, target, desired }
    }
}

/// A verdict and its whole story.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Decision {
    /// What to do.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// Which bounds acted.
    pub clamps: Clamps,
    /// Requests that could still burst in before capacity is short; negative: it is short.
    pub excess_burst: i32,
    /// What each metric wanted; for the KPA the stable window, then the panic window.
    pub votes: Vec<Vote>,
}

impl Decision {
    /// Leave things as they are.
    pub const fn hold(reason: Reason) -> Self {
        Self { verdict: Verdict::Hold, reason, clamps: Clamps(0), excess_burst: 0, votes: Vec::new() }
    }

    /// Have `desired` instances.
    pub const fn set(desired: u32, reason: Reason) -> Self {
        Self { verdict: Verdict::Set(desired), reason, clamps: Clamps(0), excess_burst: 0, votes: Vec::new() }
    }

    /// The number, when there is one.
    pub const fn desired(&self) -> Option<u32> {
        match self.verdict {
            Verdict::Set(desired) => Some(desired),
            Verdict::Hold => None,
        }
    }
}

/// How a policy is written: typed, serialisable state; state + input → decision. No I/O, clock, randomness or lock.
///
/// ```
/// use sas_core::{Decision, Policy, Reason, ScaleInput};
///
/// /// One instance for every ten requests.
/// #[derive(Debug)]
/// struct Tenth;
///
/// impl Policy for Tenth {
///     type State = ();
///     fn name(&self) -> &'static str {
///         "tenth"
///     }
///     fn decide(&self, _: &mut (), input: &ScaleInput<'_>) -> Decision {
///         Decision::set((input.load.concurrency / 10.0).ceil() as u32, Reason::Stable)
///     }
/// }
/// ```
pub trait Policy: fmt::Debug + Send + Sync + 'static {
    /// What it remembers of one revision.
    type State: Default + Clone + Serialize + DeserializeOwned + Send + 'static;
    /// The name by which specs ask for it, with a version when its decisions change.
    fn name(&self) -> &'static str;
    /// Decides. The same state and input give the same decision, bit for bit. Bounds of the spec are applied by
    /// the driver, not here.
    fn decide(&self, state: &mut Self::State, input: &ScaleInput<'_>) -> Decision;
}

/// How the platform drives a policy: one object for all revisions that it serves, so that state can lie in columns.
/// Every [`Policy`] is one, with a state per row.
pub trait Scaler: fmt::Debug + Send + Sync + 'static {
    /// The name by which specs ask for it.
    fn name(&self) -> &'static str;
    /// Empty state.
    fn new_states(&self) -> Box<dyn Any + Send>;
    /// Decides for each input, in order, pushing one decision each to `out`. A row that was not seen since
    /// [`Scaler::retire`] starts from nothing.
    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>);
    /// Forgets a row.
    fn retire(&self, states: &mut (dyn Any + Send), row: u32);
    /// The state of a row, for a checkpoint; `None` when the row is empty.
    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value>;
    /// Puts a checkpoint back.
    ///
    /// # Errors
    /// `InvalidSpec` when it is not one of this scaler's.
    fn restore(
        &self,
        states: &mut (dyn Any + Send),
        row: u32,
        checkpoint: serde_json::Value,
    ) -> crate::Result<()>;
}

/// The rows of a [`Policy`].
type Rows<P> = Vec<Option<<P as Policy>::State>>;

impl<P: Policy> Scaler for P {
    fn name(&self) -> &'static str {
        Policy::name(self)
    }

    fn new_states(&self) -> Box<dyn Any + Send> {
        Box::<Rows<P>>::default()
    }

    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        let Some(rows) = states.downcast_mut::<Rows<P>>() else {
            out.extend(batch.iter().map(|_| Decision::hold(Reason::ScalerFailed)));
            return;
        };
        for input in batch {
            let row = input.row as usize;
            if rows.len() <= row {
                rows.resize_with(row + 1, || None);
            }
            out.push(self.decide(rows[row].get_or_insert_default(), input));
        }
    }

    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        if let Some(slot) = states.downcast_mut::<Rows<P>>().and_then(|rows| rows.get_mut(row as usize)) {
            *slot = None;
        }
    }

    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        let state = states.downcast_ref::<Rows<P>>()?.get(row as usize)?.as_ref()?;
        serde_json::to_value(state).ok()
    }

    fn restore(
        &self,
        states: &mut (dyn Any + Send),
        row: u32,
        checkpoint: serde_json::Value,
    ) -> crate::Result<()> {
        let bad = |message: String| crate::Error::new(crate::ErrorKind::InvalidSpec, "restore", message);
        let state = serde_json::from_value(checkpoint)
            .map_err(|error| bad(format!("not a checkpoint of {}: {error}", Policy::name(self))))?;
        let rows = states
            .downcast_mut::<Rows<P>>()
            .ok_or_else(|| bad(format!("these are not states of {}", Policy::name(self))))?;
        let row = row as usize;
        if rows.len() <= row {
            rows.resize_with(row + 1, || None);
        }
        rows[row] = Some(state);
        Ok(())
    }
}
