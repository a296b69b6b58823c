//! The `sas.dev/` annotations, for what Knative has no words for.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{
    BacklogSpec, Combine, Fallback, FallbackBehavior, ForecastSpec, Metric, MetricSpec, MetricTarget,
    ResourceSpec, ScalingPolicy, ScalingSpec, ScheduleWindow, SelectPolicy, SpecErrors,
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{
    go,
    keys::{self, own},
    quantity,
};

/// The annotation that sets a field of the spec.
pub(super) fn annotation_of(field: &str) -> &str {
    let first = field.split(['.', '[']).next().unwrap_or(field);
    match first {
        "scaler" => own::SCALER,
        "metrics" => own::METRICS,
        "combine" => own::COMBINE,
        "schedule" => own::SCHEDULE,
        "backlog" => own::BACKLOG,
        "forecast" => own::FORECAST,
        "resource" => own::RESOURCE,
        "scale_to_zero_grace" => own::SCALE_TO_ZERO_GRACE,
        "max_scale_up_rate" => own::MAX_SCALE_UP_RATE,
        "max_scale_down_rate" => own::MAX_SCALE_DOWN_RATE,
        "min" => keys::MIN_SCALE[0],
        "max" => keys::MAX_SCALE[0],
        "initial" => keys::INITIAL_SCALE[0],
        "activation" => keys::ACTIVATION_SCALE[0],
        "metric" => keys::METRIC[0],
        "target" => keys::TARGET[0],
        "utilization" => keys::TARGET_UTILIZATION[0],
        "stable_window" => keys::WINDOW[0],
        "panic_window_percentage" => keys::PANIC_WINDOW_PERCENTAGE[0],
        "panic_threshold_percentage" => keys::PANIC_THRESHOLD_PERCENTAGE[0],
        "target_burst_capacity" => keys::TARGET_BURST_CAPACITY[0],
        "scale_down_delay" => keys::SCALE_DOWN_DELAY[0],
        "retention" => keys::RETENTION[0],
        "activation_timeout" => keys::PROGRESS_DEADLINE[0],
        _ => field,
    }
}

/// Reads them into `spec`.
pub(super) fn read(annotations: &BTreeMap<String, String>, spec: &mut ScalingSpec, errors: &mut SpecErrors) {
    if let Some(scaler) = annotations.get(own::SCALER) {
        spec.scaler.clone_from(scaler);
    }
    if let Some(text) = annotations.get(own::METRICS) {
        match metrics(text) {
            Ok(metrics) => spec.metrics = metrics,
            Err(problem) => errors.push(own::METRICS, text, problem),
        }
        if !annotations.contains_key(own::SCALER) {
            "combined".clone_into(&mut spec.scaler);
        }
    }
    match annotations.get(own::COMBINE).map(String::as_str) {
        None => {}
        Some("max") => spec.combine = Combine::Max,
        Some("priority") => spec.combine = Combine::Priority,
        Some(other) => errors.push(own::COMBINE, other, "max or priority"),
    }
    if let Some(windows) = json::<Vec<Window>>(annotations, own::SCHEDULE, errors) {
        spec.schedule = windows.into_iter().filter_map(|window| window.build(errors)).collect();
    }
    if let Some(backlog) = json::<Backlog>(annotations, own::BACKLOG, errors) {
        spec.backlog = Some(backlog.build());
    }
    if let Some(forecast) = json::<Forecast>(annotations, own::FORECAST, errors) {
        spec.forecast = forecast.build(errors);
    }
    if let Some(resource) = json::<Resource>(annotations, own::RESOURCE, errors) {
        spec.resource = resource.build(errors);
    }
    if let Some(text) = annotations.get(own::SCALE_TO_ZERO_GRACE)
        && let Some(grace) = span(own::SCALE_TO_ZERO_GRACE, text, errors)
    {
        spec.scale_to_zero_grace = grace;
    }
    for (key, rate) in [
        (own::MAX_SCALE_UP_RATE, &mut spec.max_scale_up_rate),
        (own::MAX_SCALE_DOWN_RATE, &mut spec.max_scale_down_rate),
    ] {
        if let Some(text) = annotations.get(key) {
            match go::parse_float(text) {
                Ok(value) => *rate = value,
                Err(error) => errors.push(key, text, format!("a number above 1 ({error})")),
            }
        }
    }
    if let Some(text) = annotations.get(own::SCALE_TO_ZERO) {
        match go::parse_bool(text) {
            Ok(flag) => spec.scale_to_zero = flag,
            Err(_) => errors.push(own::SCALE_TO_ZERO, text, "true or false"),
        }
    }
    for (key, value) in annotations {
        if let Some(name) = key.strip_prefix(own::SCALER_OPTION) {
            spec.options.insert(name.to_owned(), value.clone());
        }
    }
}

/// `concurrency=70, rps=100, cpu=80%, memory=512Mi, backlog=10, schedule, forecast`
fn metrics(text: &str) -> Result<Vec<MetricSpec>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(metric).collect()
}

fn metric(part: &str) -> Result<MetricSpec, String> {
    let (name, value) = match part.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (part, None),
    };
    let metric = match name {
        "concurrency" => Metric::Concurrency,
        "rps" => Metric::Rps,
        "cpu" => Metric::Cpu,
        "memory" => Metric::Memory,
        "backlog" => Metric::Backlog,
        "schedule" => Metric::Schedule,
        "forecast" => Metric::Forecast,
        _ => {
            return Err(format!(
                "{name:?} is not one of concurrency, rps, cpu, memory, backlog, schedule, forecast"
            ));
        }
    };
    let target = match value {
        None => None,
        Some(value) => Some(match value.strip_suffix('%') {
            Some(percent) => MetricTarget::Utilization(
                go::parse_float(percent.trim())
                    .map_err(|error| format!("{part:?}: a percentage ({error})"))?,
            ),
            None => MetricTarget::Average(
                quantity::parse(value)
                    .ok_or_else(|| format!("{part:?}: a quantity such as 10, 500m or 512Mi"))?,
            ),
        }),
    };
    Ok(MetricSpec::new(metric, target))
}

fn json<T: DeserializeOwned>(
    annotations: &BTreeMap<String, String>,
    key: &str,
    errors: &mut SpecErrors,
) -> Option<T> {
    let text = annotations.get(key)?;
    serde_json::from_str(text).map_err(|error| errors.push(key, text, format!("JSON: {error}"))).ok()
}

fn span(field: &str, text: &str, errors: &mut SpecErrors) -> Option<Duration> {
    match go::parse_duration(text).map(u64::try_from) {
        Ok(Ok(nanos)) => Some(Duration::from_nanos(nanos)),
        Ok(Err(_)) => {
            errors.push(field, text, "not negative");
            None
        }
        Err(error) => {
            errors.push(field, text, format!("a duration such as 30s ({error})"));
            None
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Window {
    schedule: String,
    time_zone: Option<String>,
    duration: String,
    min: Option<u32>,
    max: Option<u32>,
}

impl Window {
    fn build(self, errors: &mut SpecErrors) -> Option<ScheduleWindow> {
        let duration = span(own::SCHEDULE, &self.duration, errors)?;
        let mut window = ScheduleWindow::floor(self.schedule, duration, 0);
        (window.time_zone, window.min, window.max) = (self.time_zone, self.min, self.max);
        Some(window)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Backlog {
    target: Option<f64>,
    #[serde(default)]
    activation: u64,
    fallback: Option<BacklogFallback>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct BacklogFallback {
    failure_threshold: u32,
    replicas: u32,
    #[serde(default)]
    behavior: FallbackBehavior,
}

impl Backlog {
    fn build(self) -> BacklogSpec {
        let mut spec = BacklogSpec::default();
        spec.target = self.target.unwrap_or(spec.target);
        spec.activation = self.activation;
        spec.fallback = self.fallback.map(|given| {
            let mut fallback = Fallback::new(given.failure_threshold, given.replicas);
            fallback.behavior = given.behavior;
            fallback
        });
        spec
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Forecast {
    slot: Option<String>,
    season: Option<u32>,
    headroom: Option<f64>,
    lead: Option<String>,
}

impl Forecast {
    fn build(self, errors: &mut SpecErrors) -> Option<ForecastSpec> {
        let default = ForecastSpec::default();
        let mut read = |text: Option<String>, default| match text {
            Some(text) => span(own::FORECAST, &text, errors),
            None => Some(default),
        };
        let mut spec = default;
        spec.slot = read(self.slot, default.slot)?;
        spec.lead = read(self.lead, default.lead)?;
        spec.season = self.season.unwrap_or(default.season);
        spec.headroom = self.headroom.unwrap_or(default.headroom);
        Some(spec)
    }
}

/// The part of a HorizontalPodAutoscaler's `behavior` that Kubernetes' users know.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Resource {
    tolerance: Option<f64>,
    scale_up: Option<Rules>,
    scale_down: Option<Rules>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rules {
    stabilization_window_seconds: Option<u64>,
    select_policy: Option<String>,
    policies: Option<Vec<HpaPolicy>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct HpaPolicy {
    #[serde(rename = "type")]
    kind: String,
    value: u32,
    period_seconds: u64,
}

impl Resource {
    fn build(self, errors: &mut SpecErrors) -> Option<ResourceSpec> {
        let mut spec = ResourceSpec::default();
        if let Some(tolerance) = self.tolerance {
            spec.tolerance = tolerance;
        }
        for (given, rules) in [(self.scale_up, &mut spec.scale_up), (self.scale_down, &mut spec.scale_down)] {
            let Some(given) = given else { continue };
            if let Some(seconds) = given.stabilization_window_seconds {
                rules.stabilization_window = Duration::from_secs(seconds);
            }
            match given.select_policy.as_deref() {
                None => {}
                Some("Max") => rules.select = SelectPolicy::Max,
                Some("Min") => rules.select = SelectPolicy::Min,
                Some("Disabled") => rules.select = SelectPolicy::Disabled,
                Some(other) => {
                    errors.push(own::RESOURCE, other, "selectPolicy is Max, Min or Disabled");
                    return None;
                }
            }
            if let Some(policies) = given.policies {
                rules.policies.clear();
                for policy in policies {
                    let period = Duration::from_secs(policy.period_seconds);
                    rules.policies.push(match policy.kind.as_str() {
                        "Pods" => ScalingPolicy::Pods { value: policy.value, period },
                        "Percent" => ScalingPolicy::Percent { value: policy.value, period },
                        other => {
                            errors.push(own::RESOURCE, other, "the type of a policy is Pods or Percent");
                            return None;
                        }
                    });
                }
            }
        }
        Some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AutoscalerConfig, Preset, scaling_from_annotations};

    fn spec(pairs: &[(&str, &str)]) -> Result<ScalingSpec, SpecErrors> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        scaling_from_annotations(&annotations, 0, &AutoscalerConfig::default(), Preset::Default)
    }

    #[test]
    fn a_manifest_asks_for_several_metrics_at_once() {
        let spec = spec(&[
            (own::METRICS, "concurrency=70, rps=100, cpu=80%, memory=512Mi, backlog"),
            (own::COMBINE, "priority"),
            (
                own::BACKLOG,
                r#"{"target": 20, "activation": 5, "fallback": {"failureThreshold": 3, "replicas": 6}}"#,
            ),
        ])
        .unwrap();
        assert_eq!(spec.scaler, "combined");
        assert_eq!(spec.combine, Combine::Priority);
        let metrics: Vec<_> = spec.metrics.iter().map(|metric| (metric.metric, metric.target)).collect();
        assert_eq!(
            metrics,
            [
                (Metric::Concurrency, Some(MetricTarget::Average(70.0))),
                (Metric::Rps, Some(MetricTarget::Average(100.0))),
                (Metric::Cpu, Some(MetricTarget::Utilization(80.0))),
                (Metric::Memory, Some(MetricTarget::Average(536_870_912.0))),
                (Metric::Backlog, None),
            ]
        );
        let backlog = spec.backlog.unwrap();
        assert_eq!((backlog.target, backlog.activation), (20.0, 5));
        assert_eq!(backlog.fallback, Some(Fallback::new(3, 6)));
    }

    #[test]
    fn a_manifest_asks_for_windows_forecast_and_behavior() {
        let spec = spec(&[
            (own::SCALER, "scheduled"),
            (
                own::SCHEDULE,
                r#"[{"schedule": "0 8 * * *", "timeZone": "Europe/Berlin", "duration": "10h", "min": 5, "max": 50}]"#,
            ),
            (own::FORECAST, r#"{"season": 60, "lead": "30s"}"#),
            (
                own::RESOURCE,
                r#"{"scaleDown": {"stabilizationWindowSeconds": 60, "selectPolicy": "Min",
                    "policies": [{"type": "Pods", "value": 2, "periodSeconds": 30}]}}"#,
            ),
        ])
        .unwrap();
        assert_eq!(spec.schedule[0].duration, Duration::from_secs(36_000));
        assert_eq!(spec.forecast.unwrap().lead, Duration::from_secs(30));
        let down = spec.resource.unwrap().scale_down;
        assert_eq!(down.policies, [ScalingPolicy::Pods { value: 2, period: Duration::from_secs(30) }]);
    }

    #[test]
    fn each_mistake_names_its_annotation() {
        for (pairs, field) in [
            (vec![(own::METRICS, "qps=3")], own::METRICS),
            (vec![(own::METRICS, "cpu")], own::METRICS),
            (vec![(own::METRICS, "rps=0")], own::METRICS),
            (vec![(own::METRICS, "rps=80%")], own::METRICS),
            (vec![(own::METRICS, "schedule")], own::SCHEDULE),
            (vec![(own::SCHEDULE, "daily")], own::SCHEDULE),
            (
                vec![(own::SCHEDULE, r#"[{"schedule": "0 8 * * *", "duration": "0s", "min": 1}]"#)],
                own::SCHEDULE,
            ),
            (vec![(own::SCHEDULE, r#"[{"schedule": "0 8 * * *", "duration": "1h"}]"#)], own::SCHEDULE),
            (vec![(own::BACKLOG, r#"{"target": 0}"#)], own::BACKLOG),
            (vec![(own::FORECAST, r#"{"slot": "soon"}"#)], own::FORECAST),
            (vec![(own::COMBINE, "sum")], own::COMBINE),
            (vec![(own::MAX_SCALE_UP_RATE, "NaN")], own::MAX_SCALE_UP_RATE),
            (vec![(own::SCALE_TO_ZERO_GRACE, "-1s")], own::SCALE_TO_ZERO_GRACE),
            (vec![("autoscaling.knative.dev/target", "NaN")], "autoscaling.knative.dev/target"),
            (vec![("autoscaling.knative.dev/window", "0s")], "autoscaling.knative.dev/window"),
            (
                vec![("autoscaling.knative.dev/min-scale", "5"), ("autoscaling.knative.dev/max-scale", "2")],
                "autoscaling.knative.dev/max-scale",
            ),
        ] {
            let errors = spec(&pairs).expect_err(&format!("{pairs:?}"));
            assert!(errors.0.iter().any(|error| error.field == field), "{pairs:?}: {errors}");
        }
    }

    #[test]
    fn the_default_preset_takes_windows_from_one_second() {
        let window = [("autoscaling.knative.dev/window", "1s")];
        assert_eq!(spec(&window).unwrap().stable_window, Duration::from_secs(1));
        let annotations =
            window.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let errors = scaling_from_annotations(&annotations, 0, &AutoscalerConfig::default(), Preset::Knative)
            .unwrap_err();
        assert_eq!(errors.0[0].field, "autoscaling.knative.dev/window");
    }

    #[test]
    fn the_class_for_resources_becomes_the_resource_scaler() {
        let spec = spec(&[
            ("autoscaling.knative.dev/class", "hpa.autoscaling.knative.dev"),
            ("autoscaling.knative.dev/metric", "memory"),
            ("autoscaling.knative.dev/target", "64.9"),
            ("autoscaling.knative.dev/window", "90s"),
        ])
        .unwrap();
        assert_eq!(spec.scaler, "resource");
        assert_eq!(spec.metrics[0].target, Some(MetricTarget::Average(64.0 * 1_048_576.0)));
        assert_eq!(spec.resource.unwrap().scale_down.stabilization_window, Duration::from_secs(90));
    }
}
