//! The options of the scalers of this crate, within the `options` of a [`ScalingSpec`].

use std::{borrow::Cow, fmt, time::Duration};

use sas_core::{Metric, ScalerOptions, ScalingSpec, SpecErrors};
use serde::{Deserialize, Deserializer, Serialize};

/// What the scalers of this crate read beyond the fields that all scalers share. One type for all of them, since
/// `combined` uses what the others do.
///
/// ```
/// use sas_autoscale::{BacklogSpec, Options};
/// use sas_core::ScalingSpec;
///
/// let mut backlog = BacklogSpec::default();
/// backlog.target = 20.0;
/// let mut spec = ScalingSpec::default();
/// spec.scaler = "backlog".to_owned();
/// spec.options = Options { backlog: Some(backlog), ..Options::default() }.into();
/// assert_eq!(Options::of(&spec)?.backlog, Some(backlog));
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The metrics of the `combined` and `resource` scalers, in order of priority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricSpec>,
    /// Metrics that the host reports by name, for `combined`; in order of priority, after those of `metrics`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub custom: Vec<CustomMetric>,
    /// How they make one decision.
    #[serde(skip_serializing_if = "is_default")]
    pub combine: Combine,
    /// How the `resource` scaler moves; `None`: Kubernetes' defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<ResourceSpec>,
    /// What the `backlog` scaler needs; `None`: its defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backlog: Option<BacklogSpec>,
    /// The windows of the `scheduled` scaler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<ScheduleWindow>,
    /// What the `forecast` scaler learns; `None`: its defaults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forecast: Option<ForecastSpec>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
    /// The metric that this target is about.
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

/// A metric that the host reports by name, of a whole service: so many instances that each carries at most the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct CustomMetric {
    /// The name under which it is reported.
    pub name: String,
    /// What one instance should carry of it.
    pub target: f64,
    /// The revision wakes when it is above this.
    #[serde(default)]
    pub activation: f64,
}

impl CustomMetric {
    /// A metric that wakes the revision when it is above zero.
    pub fn new(name: impl Into<String>, target: f64) -> Self {
        Self { name: name.into(), target, activation: 0.0 }
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
    /// Which of the policies decides where several of them answer.
    #[serde(default)]
    pub select: SelectPolicy,
    /// The policies, each a bound on the change within its period.
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
    /// Upwards. What is not given is as in Kubernetes' defaults, here and downwards.
    #[serde(deserialize_with = "rules_up")]
    pub scale_up: ScalingRules,
    /// The rules for having fewer instances.
    #[serde(deserialize_with = "rules_down")]
    pub scale_down: ScalingRules,
}

/// Rules as they are given: in part.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PartialRules {
    stabilization_window: Option<Duration>,
    select: Option<SelectPolicy>,
    policies: Option<Vec<ScalingPolicy>>,
}

fn rules<'de, D: Deserializer<'de>>(given: D, default: ScalingRules) -> Result<ScalingRules, D::Error> {
    let given = PartialRules::deserialize(given)?;
    Ok(ScalingRules {
        stabilization_window: given.stabilization_window.unwrap_or(default.stabilization_window),
        select: given.select.unwrap_or(default.select),
        policies: given.policies.unwrap_or(default.policies),
    })
}

fn rules_up<'de, D: Deserializer<'de>>(given: D) -> Result<ScalingRules, D::Error> {
    rules(given, ResourceSpec::default().scale_up)
}

fn rules_down<'de, D: Deserializer<'de>>(given: D) -> Result<ScalingRules, D::Error> {
    rules(given, ResourceSpec::default().scale_down)
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

const HOUR: Duration = Duration::from_secs(3600);
const COUNT_MAX: u32 = i32::MAX as u32;

/// Metrics by name at most, of one revision.
pub(crate) const MOST_CUSTOM: usize = 16;
/// What [`is_metric_name`] asks for.
pub(crate) const METRIC_NAME: &str = "1 to 63 letters, digits, dashes, dots or underscores";

pub(crate) fn is_metric_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
}

impl From<Options> for ScalerOptions {
    fn from(options: Options) -> Self {
        // Structs, enums, numbers and texts: nothing that JSON has not.
        Self::of(&options).unwrap_or_default()
    }
}

impl Options {
    /// Those of a spec.
    ///
    /// # Errors
    /// When a value is not of its option's type, or there is no such option, each as `options.NAME`.
    pub fn of(spec: &ScalingSpec) -> Result<Cow<'_, Self>, SpecErrors> {
        spec.options.read()
    }

    /// Changes those of a spec.
    ///
    /// ```
    /// use sas_autoscale::{Combine, Options};
    /// let mut spec = sas_core::ScalingSpec::default();
    /// Options::edit(&mut spec, |options| options.combine = Combine::Priority)?;
    /// assert_eq!(spec.options.get("combine"), Some(&"priority".into()));
    /// # Ok::<(), sas_core::SpecErrors>(())
    /// ```
    ///
    /// # Errors
    /// As [`Options::of`]; then nothing is changed.
    pub fn edit(spec: &mut ScalingSpec, change: impl FnOnce(&mut Self)) -> Result<(), SpecErrors> {
        let mut options = Self::of(spec)?.into_owned();
        change(&mut options);
        spec.options = options.into();
        Ok(())
    }

    /// Those of a spec that was validated; of another one what can be had: none.
    pub(crate) fn served(spec: &ScalingSpec) -> Cow<'_, Self> {
        static NONE: Options = Options {
            metrics: Vec::new(),
            custom: Vec::new(),
            combine: Combine::Max,
            resource: None,
            backlog: None,
            schedule: Vec::new(),
            forecast: None,
        };
        if spec.options.is_empty() {
            return Cow::Borrowed(&NONE);
        }
        Self::of(spec).unwrap_or(Cow::Borrowed(&NONE))
    }

    /// Reads and checks those of a spec; `needs` adds what its scaler asks for beyond.
    pub(crate) fn check(
        spec: &ScalingSpec,
        needs: impl FnOnce(&Self, &mut SpecErrors),
    ) -> Result<(), SpecErrors> {
        let options = Self::of(spec)?;
        let mut errors = SpecErrors::default();
        options.validate(&mut errors);
        needs(&options, &mut errors);
        errors.into_result()
    }

    fn validate(&self, errors: &mut SpecErrors) {
        self.validate_metrics(errors);
        if let Some(resource) = &self.resource {
            resource.validate(errors);
        }
        if let Some(backlog) = &self.backlog {
            number(errors, "options.backlog.target", backlog.target, 0.01, 1e12);
            if let Some(fallback) = &backlog.fallback {
                if fallback.failure_threshold == 0 {
                    errors.push("options.backlog.fallback.failure_threshold", 0, "at least 1");
                }
                if fallback.replicas > COUNT_MAX {
                    errors.push(
                        "options.backlog.fallback.replicas",
                        fallback.replicas,
                        format!("at most {COUNT_MAX}"),
                    );
                }
            }
        }
        for (at, metric) in self.custom.iter().enumerate() {
            let field = format!("options.custom[{at}]");
            if !is_metric_name(&metric.name) {
                errors.push(format!("{field}.name"), &metric.name, METRIC_NAME);
            }
            if self.custom[..at].iter().any(|other| other.name == metric.name) {
                errors.push(format!("{field}.name"), &metric.name, "each metric at most once");
            }
            number(errors, &format!("{field}.target"), metric.target, 0.000_001, 1e18);
            number(errors, &format!("{field}.activation"), metric.activation, 0.0, 1e18);
        }
        if self.custom.len() > MOST_CUSTOM {
            errors.push("options.custom", self.custom.len(), format!("at most {MOST_CUSTOM} metrics"));
        }
        self.validate_schedule(errors);
        if let Some(forecast) = &self.forecast {
            span(errors, "options.forecast.slot", forecast.slot, Duration::from_secs(1), HOUR);
            if !(2..=10_080).contains(&forecast.season) {
                errors.push("options.forecast.season", forecast.season, "2 to 10080 slots");
            }
            number(errors, "options.forecast.headroom", forecast.headroom, 0.0, 100.0);
            span(errors, "options.forecast.lead", forecast.lead, Duration::ZERO, HOUR);
        }
    }

    fn validate_metrics(&self, errors: &mut SpecErrors) {
        for (at, metric) in self.metrics.iter().enumerate() {
            let field = format!("options.metrics[{at}]");
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
                errors.push(
                    "options.schedule",
                    "[]",
                    "at least one window, since the metric schedule is asked for",
                );
            }
        }
    }

    fn validate_schedule(&self, errors: &mut SpecErrors) {
        for (at, window) in self.schedule.iter().enumerate() {
            let field = format!("options.schedule[{at}]");
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
}

impl ResourceSpec {
    fn validate(&self, errors: &mut SpecErrors) {
        number(errors, "options.resource.tolerance", self.tolerance, 0.0, 1.0);
        for (name, rules) in [("scale_up", &self.scale_up), ("scale_down", &self.scale_down)] {
            let field = format!("options.resource.{name}");
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

pub(crate) fn need_schedule(options: &Options, errors: &mut SpecErrors) {
    if options.schedule.is_empty() {
        errors.push("options.schedule", "[]", "at least one window, or another scaler than scheduled");
    }
}

pub(crate) fn need_metrics(options: &Options, errors: &mut SpecErrors) {
    if options.metrics.is_empty() && options.custom.is_empty() {
        errors.push("options.metrics", "[]", "at least one metric, or another scaler than combined");
    }
}

pub(crate) fn need_resources(options: &Options, errors: &mut SpecErrors) {
    if options.metrics.is_empty() {
        errors.push("options.metrics", "[]", "cpu, memory or both, each with a target");
    }
    for metric in &options.metrics {
        if !matches!(metric.metric, Metric::Cpu | Metric::Memory) {
            let problem = "cpu or memory; others go with combined";
            errors.push("options.metrics", format!("{:?}", metric.metric), problem);
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
