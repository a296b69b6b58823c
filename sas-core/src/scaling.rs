//! What a revision asks of its scaler: bounds, targets, windows, and the parts that single scalers need.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Metric, SpecErrors};

/// How much of Knative's behaviour is kept: all of it with its hazards, or mended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Preset {
    /// Knative's algorithm with its known hazards mended; windows from one second.
    #[default]
    Default,
    /// Knative's decisions bit for bit.
    Knative,
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

/// How several metrics make one decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Combine {
    /// The highest vote.
    #[default]
    Max,
    /// The vote of the first metric that was measured.
    Priority,
}

/// What one instance should carry of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MetricTarget {
    /// In the metric's own unit: requests at once, requests per second, cores, bytes, messages.
    Average(f64),
    /// In percent of the resource that an instance requests; for CPU and memory.
    Utilization(f64),
}

/// One metric of a revision that is scaled by several.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct MetricSpec {
    /// Which.
    pub metric: Metric,
    /// What one instance should carry; `None`: what the spec says elsewhere (`target`, `backlog.target`), and for
    /// schedules and forecasts nothing.
    #[serde(default)]
    pub target: Option<MetricTarget>,
}

impl MetricSpec {
    /// A metric with a target.
    pub const fn new(metric: Metric, target: Option<MetricTarget>) -> Self {
        Self { metric, target }
    }
}

/// Which of several policies decides how far one step may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SelectPolicy {
    /// The one that allows most.
    #[default]
    Max,
    /// The one that allows least.
    Min,
    /// No step in this direction.
    Disabled,
}

/// How far one direction may go within a period.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScalingPolicy {
    /// So many instances.
    Pods {
        /// How many.
        value: u32,
        /// Within how long, at most half an hour.
        period: Duration,
    },
    /// So many percent of the instances at the period's start.
    Percent {
        /// How many percent.
        value: u32,
        /// Within how long, at most half an hour.
        period: Duration,
    },
}

/// What Kubernetes calls the rules of one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScalingRules {
    /// A step is only taken when everything recommended in this time agrees; at most an hour.
    pub stabilization_window: Duration,
    /// Which policy decides.
    #[serde(default)]
    pub select: SelectPolicy,
    /// The policies.
    pub policies: Vec<ScalingPolicy>,
}

impl ScalingRules {
    /// Rules without a window and with `policies`.
    pub const fn new(
        stabilization_window: Duration,
        select: SelectPolicy,
        policies: Vec<ScalingPolicy>,
    ) -> Self {
        Self { stabilization_window, select, policies }
    }
}

/// How the `resource` scaler moves: Kubernetes' HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ResourceSpec {
    /// How far, as a share, the metric may be off its target before anything happens.
    pub tolerance: f64,
    /// Upwards.
    pub scale_up: ScalingRules,
    /// Downwards.
    pub scale_down: ScalingRules,
}

impl Default for ResourceSpec {
    fn default() -> Self {
        let period = Duration::from_secs(15);
        Self {
            tolerance: 0.1,
            scale_up: ScalingRules::new(
                Duration::ZERO,
                SelectPolicy::Max,
                vec![ScalingPolicy::Percent { value: 100, period }, ScalingPolicy::Pods { value: 4, period }],
            ),
            scale_down: ScalingRules::new(
                Duration::from_secs(300),
                SelectPolicy::Max,
                vec![ScalingPolicy::Percent { value: 100, period }],
            ),
        }
    }
}

/// What to do when a metric can't be had for long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Fallback {
    /// After this many ticks in a row without a value.
    pub failure_threshold: u32,
    /// Have this many instances,
    pub replicas: u32,
    /// in this way.
    #[serde(default)]
    pub behavior: FallbackBehavior,
}

impl Fallback {
    /// `replicas` after `failure_threshold` ticks.
    pub const fn new(failure_threshold: u32, replicas: u32) -> Self {
        Self { failure_threshold, replicas, behavior: FallbackBehavior::Static }
    }
}

/// How fall-back replicas and those that run make a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FallbackBehavior {
    /// The fall-back.
    #[default]
    Static,
    /// What runs.
    CurrentReplicas,
    /// The higher of both.
    CurrentReplicasIfHigher,
    /// The lower of both.
    CurrentReplicasIfLower,
}

/// What the `backlog` scaler needs: what may wait upstream per instance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct BacklogSpec {
    /// Messages (or lag) that one instance should carry.
    pub target: f64,
    /// The revision wakes when more than this many wait.
    pub activation: u64,
    /// When the backlog can't be measured.
    pub fallback: Option<Fallback>,
}

impl Default for BacklogSpec {
    fn default() -> Self {
        Self { target: 5.0, activation: 0, fallback: None }
    }
}

/// A recurring stretch of time with a floor or a ceiling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct ScheduleWindow {
    /// When it opens, as a cron expression.
    pub schedule: String,
    /// In which time zone, such as `Europe/Berlin`; `None`: UTC.
    #[serde(default)]
    pub time_zone: Option<String>,
    /// How long it stays open: time that passes, whatever the wall clock does meanwhile.
    pub duration: Duration,
    /// Least instances while it is open.
    #[serde(default)]
    pub min: Option<u32>,
    /// Most instances while it is open.
    #[serde(default)]
    pub max: Option<u32>,
}

impl ScheduleWindow {
    /// A window with a floor.
    pub fn floor(schedule: impl Into<String>, duration: Duration, min: u32) -> Self {
        Self { schedule: schedule.into(), time_zone: None, duration, min: Some(min), max: None }
    }
}

/// What the `forecast` scaler learns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ForecastSpec {
    /// The length of one step of the season.
    pub slot: Duration,
    /// Steps per season: 60 slots of a minute are an hour, 1,440 a day.
    pub season: u32,
    /// Head-room in standard deviations of the forecast's own error.
    pub headroom: f64,
    /// How far ahead the floor is raised beyond the measured start time.
    pub lead: Duration,
}

impl Default for ForecastSpec {
    fn default() -> Self {
        Self { slot: Duration::from_secs(60), season: 1440, headroom: 1.0, lead: Duration::from_secs(10) }
    }
}

/// How many instances a revision may have and what decides within these bounds.
///
/// The defaults are Knative's. Percentages are written as such (200 = 200 %).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ScalingSpec {
    /// Which scaler, by [`crate::Scaler::name`].
    pub scaler: String,
    /// With Knative's hazards, or without.
    pub preset: Preset,
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
    /// The metrics of the `combined` and `resource` scalers, in order of priority.
    pub metrics: Vec<MetricSpec>,
    /// How they make one decision.
    pub combine: Combine,
    /// How the `resource` scaler moves; `None`: Kubernetes' defaults.
    pub resource: Option<ResourceSpec>,
    /// What the `backlog` scaler needs; `None`: its defaults.
    pub backlog: Option<BacklogSpec>,
    /// The windows of the `scheduled` scaler.
    pub schedule: Vec<ScheduleWindow>,
    /// What the `forecast` scaler learns; `None`: its defaults.
    pub forecast: Option<ForecastSpec>,
    /// Settings of a scaler of the integrator's own, which validates them.
    pub options: BTreeMap<String, String>,
}

impl Default for ScalingSpec {
    fn default() -> Self {
        Self {
            scaler: "kpa".to_owned(),
            preset: Preset::Default,
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
            metrics: Vec::new(),
            combine: Combine::Max,
            resource: None,
            backlog: None,
            schedule: Vec::new(),
            forecast: None,
            options: BTreeMap::new(),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const COUNT_MAX: u32 = i32::MAX as u32;

impl ScalingSpec {
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
                "concurrency or rps; other metrics belong into metrics",
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
        let least = match self.preset {
            Preset::Default => Duration::from_secs(1),
            Preset::Knative => Duration::from_secs(6),
        };
        span(&mut errors, "stable_window", self.stable_window, least, HOUR);
        if self.stable_window.subsec_nanos() != 0 {
            errors.push("stable_window", Shown(self.stable_window), "whole seconds");
        }
        // Knative's ConfigMap allows more than its annotation does; a day is enough for both.
        span(&mut errors, "scale_down_delay", self.scale_down_delay, Duration::ZERO, DAY);
        span(&mut errors, "scale_to_zero_grace", self.scale_to_zero_grace, Duration::ZERO, DAY);
        span(&mut errors, "retention", self.retention, Duration::ZERO, DAY);
        span(&mut errors, "activation_timeout", self.activation_timeout, Duration::from_secs(1), DAY);
        self.validate_metrics(&mut errors);
        if let Some(resource) = &self.resource {
            resource.validate(&mut errors);
        }
        if let Some(backlog) = &self.backlog {
            number(&mut errors, "backlog.target", backlog.target, 0.01, 1e12);
            if let Some(fallback) = &backlog.fallback {
                if fallback.failure_threshold == 0 {
                    errors.push("backlog.fallback.failure_threshold", 0, "at least 1");
                }
                if fallback.replicas > COUNT_MAX {
                    errors.push(
                        "backlog.fallback.replicas",
                        fallback.replicas,
                        format!("at most {COUNT_MAX}"),
                    );
                }
            }
        }
        self.validate_schedule(&mut errors);
        if let Some(forecast) = &self.forecast {
            span(&mut errors, "forecast.slot", forecast.slot, Duration::from_secs(1), HOUR);
            if !(2..=10_080).contains(&forecast.season) {
                errors.push("forecast.season", forecast.season, "2 to 10080 slots");
            }
            number(&mut errors, "forecast.headroom", forecast.headroom, 0.0, 100.0);
            span(&mut errors, "forecast.lead", forecast.lead, Duration::ZERO, HOUR);
        }
        errors.into_result()
    }

    fn validate_metrics(&self, errors: &mut SpecErrors) {
        if self.scaler == "combined" && self.metrics.is_empty() {
            errors.push("metrics", "[]", "at least one metric, or another scaler than combined");
        }
        for (at, metric) in self.metrics.iter().enumerate() {
            let field = format!("metrics[{at}]");
            if self.metrics[..at].iter().any(|other| other.metric == metric.metric) {
                errors.push(&field, format!("{:?}", metric.metric), "each metric at most once");
            }
            match metric.target {
                Some(MetricTarget::Average(value)) => {
                    number(errors, &format!("{field}.target.average"), value, 0.000_001, 1e18);
                }
                Some(MetricTarget::Utilization(value)) => {
                    number(errors, &format!("{field}.target.utilization"), value, 1.0, 10_000.0);
                    if !matches!(metric.metric, Metric::Cpu | Metric::Memory) {
                        errors.push(
                            format!("{field}.target.utilization"),
                            value,
                            "an average: only cpu and memory have a utilisation",
                        );
                    }
                }
                None if matches!(metric.metric, Metric::Cpu | Metric::Memory) => {
                    errors.push(format!("{field}.target"), "", "a target, such as {\"utilization\": 80}");
                }
                None => {}
            }
            if metric.metric == Metric::Schedule && self.schedule.is_empty() {
                errors.push("schedule", "[]", "at least one window, since the metric schedule is asked for");
            }
        }
        if self.scaler == "scheduled" && self.schedule.is_empty() {
            errors.push("schedule", "[]", "at least one window, or another scaler than scheduled");
        }
        if self.scaler == "resource" {
            if self.metrics.is_empty() {
                errors.push("metrics", "[]", "cpu, memory or both, each with a target");
            }
            for metric in &self.metrics {
                if !matches!(metric.metric, Metric::Cpu | Metric::Memory) {
                    errors.push(
                        "metrics",
                        format!("{:?}", metric.metric),
                        "cpu or memory; others go with combined",
                    );
                }
            }
        }
    }

    fn validate_schedule(&self, errors: &mut SpecErrors) {
        for (at, window) in self.schedule.iter().enumerate() {
            let field = format!("schedule[{at}]");
            if window.schedule.trim().is_empty() {
                errors.push(format!("{field}.schedule"), "", "a cron expression");
            }
            let most = Duration::from_secs(366 * 24 * 3600);
            span(errors, &format!("{field}.duration"), window.duration, Duration::from_secs(1), most);
            match (window.min, window.max) {
                (None, None) => errors.push(&field, "", "a min, a max, or both"),
                (Some(min), Some(max)) if min > max => {
                    errors.push(format!("{field}.min"), min, format!("at most its max, which is {max}"));
                }
                (min, max) => {
                    for (name, value) in [("min", min), ("max", max)] {
                        if let Some(value) = value.filter(|value| *value > COUNT_MAX) {
                            errors.push(format!("{field}.{name}"), value, format!("at most {COUNT_MAX}"));
                        }
                    }
                }
            }
        }
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

impl ResourceSpec {
    fn validate(&self, errors: &mut SpecErrors) {
        number(errors, "resource.tolerance", self.tolerance, 0.0, 1.0);
        for (name, rules) in [("scale_up", &self.scale_up), ("scale_down", &self.scale_down)] {
            let field = format!("resource.{name}");
            span(
                errors,
                &format!("{field}.stabilization_window"),
                rules.stabilization_window,
                Duration::ZERO,
                HOUR,
            );
            if rules.policies.is_empty() && rules.select != SelectPolicy::Disabled {
                errors.push(format!("{field}.policies"), "[]", "at least one policy, or select: disabled");
            }
            for (at, policy) in rules.policies.iter().enumerate() {
                let (ScalingPolicy::Pods { value, period } | ScalingPolicy::Percent { value, period }) =
                    *policy;
                if value == 0 {
                    errors.push(format!("{field}.policies[{at}].value"), 0, "at least 1");
                }
                let most = Duration::from_secs(1800);
                span(errors, &format!("{field}.policies[{at}].period"), period, Duration::from_secs(1), most);
            }
        }
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
