//! The `sas.dev/` annotations, for what Knative has no words for.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{ScalingSpec, SpecErrors, parse_duration};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use crate::{
    go,
    keys::{self, own},
    quantity,
};

/// The annotation that sets a field of the spec.
pub(super) fn annotation_of(field: &str, annotations: &BTreeMap<String, String>) -> String {
    let field = field.strip_prefix("options.").unwrap_or(field);
    let first = field.split(['.', '[']).next().unwrap_or(field);
    let option = format!("{}{first}", own::SCALER_OPTION);
    if annotations.contains_key(&option) {
        return option;
    }
    match first {
        "scaler" if !annotations.contains_key(own::SCALER) && annotations.contains_key(keys::CLASS[0]) => {
            keys::CLASS[0]
        }
        "scaler" => own::SCALER,
        "metrics" | "custom" => own::METRICS,
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
    .to_owned()
}

/// Reads them into `spec`.
pub(super) fn read(annotations: &BTreeMap<String, String>, spec: &mut ScalingSpec, errors: &mut SpecErrors) {
    if let Some(scaler) = annotations.get(own::SCALER) {
        spec.scaler.clone_from(scaler);
    }
    if let Some(text) = annotations.get(own::METRICS) {
        match metrics(text) {
            Ok((metrics, custom)) => {
                option(spec, "metrics", metrics);
                if !custom.is_empty() {
                    option(spec, "custom", custom);
                }
            }
            Err(problem) => errors.push(own::METRICS, text, problem),
        }
        if !annotations.contains_key(own::SCALER) {
            "combined".clone_into(&mut spec.scaler);
        }
    }
    match annotations.get(own::COMBINE).map(String::as_str) {
        None | Some("max") => {}
        Some("priority") => option(spec, "combine", "priority"),
        Some(other) => errors.push(own::COMBINE, other, "max or priority"),
    }
    if let Some(windows) = json::<Vec<Window>>(annotations, own::SCHEDULE, errors) {
        let windows: Vec<Value> = windows.into_iter().filter_map(|window| window.build(errors)).collect();
        option(spec, "schedule", windows);
    }
    if let Some(backlog) = json::<Backlog>(annotations, own::BACKLOG, errors) {
        option(spec, "backlog", backlog.build());
    }
    if let Some(forecast) =
        json::<Forecast>(annotations, own::FORECAST, errors).and_then(|forecast| forecast.build(errors))
    {
        option(spec, "forecast", forecast);
    }
    if let Some(resource) =
        json::<Resource>(annotations, own::RESOURCE, errors).and_then(|resource| resource.build(errors))
    {
        option(spec, "resource", resource);
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
            option(spec, name, value.clone());
        }
    }
}

fn option(spec: &mut ScalingSpec, name: &str, value: impl Into<Value>) {
    spec.options.insert(name, value);
}

/// `concurrency=70, rps=100, cpu=80%, memory=512Mi, backlog=10, schedule, forecast, custom.sessions=100`
fn metrics(text: &str) -> Result<(Vec<Value>, Vec<Value>), String> {
    let (mut known, mut reported) = (Vec::new(), Vec::new());
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        match part.strip_prefix(CUSTOM) {
            Some(named) => reported.push(custom(part, named)?),
            None => known.push(metric(part)?),
        }
    }
    Ok((known, reported))
}

/// What the names of metrics begin with that the host reports.
const CUSTOM: &str = "custom.";

fn custom(part: &str, named: &str) -> Result<Value, String> {
    let target =
        named.split_once('=').and_then(|(name, target)| Some((name.trim(), quantity::parse(target.trim())?)));
    let Some((name, target)) = target else {
        return Err(format!("{part:?}: a name and what one instance carries, such as custom.sessions=100"));
    };
    Ok(json!({ "name": name, "target": target }))
}

fn metric(part: &str) -> Result<Value, String> {
    const KNOWN: [&str; 7] = ["concurrency", "rps", "cpu", "memory", "backlog", "schedule", "forecast"];
    let (name, value) = match part.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (part, None),
    };
    if !KNOWN.contains(&name) {
        return Err(format!("{name:?} is not one of {}, or custom.NAME", KNOWN.join(", ")));
    }
    let target = match value {
        None => return Ok(json!({ "metric": name })),
        Some(value) => match value.strip_suffix('%') {
            Some(percent) => {
                let percent = go::parse_float(percent.trim())
                    .map_err(|error| format!("{part:?}: a percentage ({error})"))?;
                json!({ "utilization": percent })
            }
            None => {
                let amount = quantity::parse(value)
                    .ok_or_else(|| format!("{part:?}: a quantity such as 10, 500m or 512Mi"))?;
                json!({ "average": amount })
            }
        },
    };
    Ok(json!({ "metric": name, "target": target }))
}

/// As serde writes a [`Duration`].
pub(super) fn duration(span: Duration) -> Value {
    json!({ "secs": span.as_secs(), "nanos": span.subsec_nanos() })
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
    match parse_duration(text).map(u64::try_from) {
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
    fn build(self, errors: &mut SpecErrors) -> Option<Value> {
        let span = span(own::SCHEDULE, &self.duration, errors)?;
        Some(json!({
            "schedule": self.schedule,
            "time_zone": self.time_zone,
            "duration": duration(span),
            "min": self.min,
            "max": self.max,
        }))
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
    behavior: Option<String>,
}

impl Backlog {
    fn build(self) -> Value {
        let mut backlog = Map::new();
        backlog.extend(self.target.map(|target| ("target".to_owned(), json!(target))));
        backlog.insert("activation".to_owned(), json!(self.activation));
        if let Some(given) = self.fallback {
            let mut fallback = Map::new();
            fallback.insert("failure_threshold".to_owned(), json!(given.failure_threshold));
            fallback.insert("replicas".to_owned(), json!(given.replicas));
            fallback.extend(given.behavior.map(|behavior| ("behavior".to_owned(), json!(behavior))));
            backlog.insert("fallback".to_owned(), Value::Object(fallback));
        }
        Value::Object(backlog)
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
    fn build(self, errors: &mut SpecErrors) -> Option<Value> {
        let mut forecast = Map::new();
        for (name, text) in [("slot", self.slot), ("lead", self.lead)] {
            if let Some(text) = text {
                forecast.insert(name.to_owned(), duration(span(own::FORECAST, &text, errors)?));
            }
        }
        forecast.extend(self.season.map(|season| ("season".to_owned(), json!(season))));
        forecast.extend(self.headroom.map(|headroom| ("headroom".to_owned(), json!(headroom))));
        Some(Value::Object(forecast))
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
    fn build(self, errors: &mut SpecErrors) -> Option<Value> {
        let mut resource = Map::new();
        resource.extend(self.tolerance.map(|tolerance| ("tolerance".to_owned(), json!(tolerance))));
        for (given, name) in [(self.scale_up, "scale_up"), (self.scale_down, "scale_down")] {
            let Some(given) = given else { continue };
            let mut rules = Map::new();
            if let Some(seconds) = given.stabilization_window_seconds {
                let window = duration(Duration::from_secs(seconds));
                rules.insert("stabilization_window".to_owned(), window);
            }
            match given.select_policy.as_deref() {
                None => {}
                Some(select @ ("Max" | "Min" | "Disabled")) => {
                    rules.insert("select".to_owned(), json!(select.to_ascii_lowercase()));
                }
                Some(other) => {
                    errors.push(own::RESOURCE, other, "selectPolicy is Max, Min or Disabled");
                    return None;
                }
            }
            if let Some(given) = given.policies {
                let mut policies = Vec::with_capacity(given.len());
                for policy in given {
                    let kind = match policy.kind.as_str() {
                        kind @ ("Pods" | "Percent") => kind.to_ascii_lowercase(),
                        other => {
                            errors.push(own::RESOURCE, other, "the type of a policy is Pods or Percent");
                            return None;
                        }
                    };
                    let period = duration(Duration::from_secs(policy.period_seconds));
                    policies.push(json!({ kind: { "value": policy.value, "period": period } }));
                }
                rules.insert("policies".to_owned(), Value::Array(policies));
            }
            resource.insert(name.to_owned(), Value::Object(rules));
        }
        Some(Value::Object(resource))
    }
}
