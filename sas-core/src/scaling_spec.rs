//! What a revision asks of its scaler: bounds, targets and windows that scalers share, and the options of one.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{ScalerOptions, SpecErrors};

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

/// How closely scaling follows the algorithm that the default scaler and the rules of scaling to zero are made after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Fidelity {
    /// With the known hazards of the algorithm corrected; windows from one second.
    // By its older name in what is stored and hashed: another one would make every service a new revision.
    #[default]
    #[serde(rename = "mended")]
    Corrected,
    /// The decisions of the algorithm bit for bit; windows from six seconds.
    Exact,
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

/// How many instances a revision may have and what decides within these bounds: what all scalers share, the name of the
/// one that decides, and its own options.
///
/// Percentages are written as such (200 = 200 %).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ScalingSpec {
    /// Which scaler, by [`crate::Scaler::name`].
    pub scaler: String,
    /// How closely the algorithm is followed.
    pub fidelity: Fidelity,
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
    /// How long a first instance may take to become ready before the revision goes back to sleep.
    pub activation_timeout: Duration,
    /// How a window is averaged.
    pub aggregation: Aggregation,
    /// What only the scaler of this spec knows. It reads and validates them.
    pub options: ScalerOptions,
}

impl Default for ScalingSpec {
    fn default() -> Self {
        Self {
            scaler: "kpa".to_owned(),
            fidelity: Fidelity::Corrected,
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
            activation_timeout: Duration::from_secs(630),
            aggregation: Aggregation::Linear,
            options: ScalerOptions::new(),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const COUNT_MAX: u32 = i32::MAX as u32;

impl ScalingSpec {
    /// Whether the revision says itself when it sleeps: it never does, keeps a minimum, or has a stable window, grace or
    /// retention other than the default. A keep-alive policy of the platform then leaves it alone.
    pub fn says_when_to_sleep(&self) -> bool {
        let default = Self::default();
        !self.scale_to_zero
            || self.min > 0
            || self.stable_window != default.stable_window
            || self.scale_to_zero_grace != default.scale_to_zero_grace
            || self.retention != default.retention
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.scaler.is_empty() {
            errors.push("scaler", "", "name a scaler that the platform has, such as kpa");
        }
        if self.max != 0 && self.min > self.max {
            errors.push("min", self.min, format!("at most max, which is {}", self.max));
        }
        for (name, value) in
            [("min", self.min), ("max", self.max), ("initial", self.initial), ("activation", self.activation)]
        {
            if value > COUNT_MAX {
                errors.push(name, value, format!("at most {COUNT_MAX}"));
            }
        }
        if self.activation > 1 {
            if self.min > self.activation {
                errors.push("activation", self.activation, format!("at least min, which is {}", self.min));
            }
            if self.max != 0 && self.activation > self.max {
                errors.push("activation", self.activation, format!("at most max, which is {}", self.max));
            }
        }
        if !matches!(self.metric, Metric::Concurrency | Metric::Rps) {
            errors.push(
                "metric",
                format!("{:?}", self.metric),
                "concurrency or rps; others are options of the scalers that look at them",
            );
        }
        number(&mut errors, "target", self.target, 0.01, 1e9);
        number(&mut errors, "utilization", self.utilization, 0.000_001, 1.0);
        number(&mut errors, "panic_window_percentage", self.panic_window_percentage, 1.0, 100.0);
        number(&mut errors, "panic_threshold_percentage", self.panic_threshold_percentage, 1.0, 1e6);
        for (name, value) in
            [("max_scale_up_rate", self.max_scale_up_rate), ("max_scale_down_rate", self.max_scale_down_rate)]
        {
            if !(value > 1.0 && value <= 1e9) {
                errors.push(name, value, "a number above 1 and at most 1e9");
            }
        }
        if !(self.target_burst_capacity == -1.0 || (0.0..=1e9).contains(&self.target_burst_capacity)) {
            errors.push("target_burst_capacity", self.target_burst_capacity, "-1, or a number from 0 to 1e9");
        }
        let least = match self.fidelity {
            Fidelity::Corrected => Duration::from_secs(1),
            Fidelity::Exact => Duration::from_secs(6),
        };
        span(&mut errors, "stable_window", self.stable_window, least, HOUR);
        if self.stable_window.subsec_nanos() != 0 {
            errors.push("stable_window", Shown(self.stable_window), "whole seconds");
        }
        span(&mut errors, "scale_down_delay", self.scale_down_delay, Duration::ZERO, DAY);
        span(&mut errors, "scale_to_zero_grace", self.scale_to_zero_grace, Duration::ZERO, DAY);
        span(&mut errors, "retention", self.retention, Duration::ZERO, DAY);
        span(&mut errors, "activation_timeout", self.activation_timeout, Duration::from_secs(1), DAY);
        errors.into_result()
    }

    /// `desired` within `min` and `max`.
    pub fn clamp(&self, desired: u32) -> u32 {
        let desired = desired.max(self.min);
        if self.max == 0 { desired } else { desired.min(self.max) }
    }

    /// The panic window: its share of the stable window, rounded to whole seconds, at least one.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "at most an hour, never negative"
    )]
    pub fn panic_window(&self) -> Duration {
        let nanos = (self.stable_window.as_nanos() as f64 * self.panic_window_percentage / 100.0).trunc();
        Duration::from_secs(((nanos / 1e9).round() as u64).max(1))
    }
}

fn number(errors: &mut SpecErrors, field: &str, value: f64, least: f64, most: f64) {
    // Written so that NaN fails.
    if !(value >= least && value <= most) {
        errors.push(field, value, format!("a number from {least} to {most}"));
    }
}

fn span(errors: &mut SpecErrors, field: &str, value: Duration, least: Duration, most: Duration) {
    if value < least || value > most {
        errors.push(field, Shown(value), format!("{least:?} to {most:?}"));
    }
}

struct Shown(Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
