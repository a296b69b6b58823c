//! What ConfigMap and annotations mean together.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{Aggregation, Metric, Scalers, ScalingSpec, SpecErrors, parse_duration};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    AutoscalerConfig, Fidelity,
    annotations::get,
    go,
    keys::{self, HPA_CLASS, KPA_CLASS},
    own, validate_annotations,
};

/// Whether traffic can come to a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reachability {
    /// Nobody said; counts as reachable.
    #[default]
    Unknown,
    /// A route leads to it.
    Reachable,
    /// No route leads to it.
    Unreachable,
}

/// What Knative's run-time code makes of a ConfigMap and annotations. Durations are signed nanoseconds, since that code
/// does not refuse negative ones.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Resolved {
    /// The autoscaler's class that decides, such as `kpa.autoscaling.knative.dev`.
    pub class: String,
    /// The metric; empty for classes that are not Knative's and name none.
    pub metric: String,
    /// The text of the aggregation algorithm.
    pub aggregation: String,
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
    /// How long a lower decision waits, in nanoseconds.
    pub scale_down_delay_ns: i64,
    /// Instances to wake up to; 0: off.
    pub activation_scale: i32,
    /// Whether traffic can come.
    pub reachable: bool,
    /// The stable window in nanoseconds.
    pub stable_window_ns: i64,
    /// The panic window in nanoseconds.
    pub panic_window_ns: i64,
    /// Least instances; 0 while it is unreachable.
    pub min_scale: i32,
    /// Most instances; 0: unlimited.
    pub max_scale: i32,
    /// Instances of a new revision.
    pub initial_scale: i32,
    /// How long the last instance stays at least, in nanoseconds.
    pub retention_ns: i64,
    /// How long a revision may take to become ready, in nanoseconds.
    pub progress_deadline_ns: i64,
    /// The target annotation, if there is one that can be read.
    pub target: Option<f64>,
    /// The utilisation that `target_value` includes.
    pub utilization: f64,
}

impl Resolved {
    /// How a window is averaged: whatever is not the weighted algorithm acts as linear.
    pub fn aggregation(&self) -> Aggregation {
        if self.aggregation == "weighted-exponential" {
            Aggregation::WeightedExponential
        } else {
            Aggregation::Linear
        }
    }

    /// How long a first instance may take before the revision goes back to sleep, in nanoseconds: the progress
    /// deadline, of the annotation where there is one, and half a minute more.
    pub fn activation_timeout_ns(&self) -> i64 {
        self.progress_deadline_ns.saturating_add(30_000_000_000)
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// What Knative's run-time code makes of annotations, without any check: what can't be read counts as absent, what
/// is out of range is taken as it is.
pub fn resolve(
    annotations: &BTreeMap<String, String>,
    container_concurrency: u32,
    reachability: Reachability,
    config: &AutoscalerConfig,
) -> Resolved {
    let float = |keys| get(annotations, keys).and_then(|(_, text)| go::parse_float(text).ok());
    let int = |keys| get(annotations, keys).and_then(|(_, text)| go::parse_int32(text).ok());
    let span = |keys| get(annotations, keys).and_then(|(_, text)| parse_duration(text).ok());

    let class =
        get(annotations, keys::CLASS).map_or(config.pod_autoscaler_class.as_str(), |(_, class)| class);
    let metric = get(annotations, keys::METRIC).map_or_else(
        || match class {
            KPA_CLASS => "concurrency",
            HPA_CLASS => "cpu",
            _ => "",
        },
        |(_, metric)| metric,
    );
    let (mut total, mut utilization) = if metric == "rps" {
        (config.requests_per_second_target_default, AutoscalerConfig::RPS_TARGET_FRACTION)
    } else {
        let total = if container_concurrency == 0 {
            config.container_concurrency_target_default
        } else {
            f64::from(container_concurrency)
        };
        (total, config.container_concurrency_target_fraction)
    };
    let target = float(keys::TARGET);
    if let Some(target) = target {
        total = target;
        if metric == "concurrency" && container_concurrency != 0 {
            total = target.min(f64::from(container_concurrency));
        }
    }
    if let Some(percent) = float(keys::TARGET_UTILIZATION) {
        utilization = percent / 100.0;
    }
    let stable_window_ns = span(keys::WINDOW).unwrap_or(nanos(config.stable_window));
    let panic_percentage = float(keys::PANIC_WINDOW_PERCENTAGE).unwrap_or(config.panic_window_percentage);
    let initial_scale = int(keys::INITIAL_SCALE)
        .filter(|scale| *scale != 0 || config.allow_zero_initial_scale)
        .unwrap_or(config.initial_scale);
    let min_scale = match reachability {
        Reachability::Unreachable => 0,
        _ => int(keys::MIN_SCALE).unwrap_or(config.min_scale),
    };
    let aggregation = match get(annotations, keys::AGGREGATION).map_or("", |(_, text)| text) {
        "weightedExponential" => "weighted-exponential",
        text => text,
    };
    Resolved {
        class: class.to_owned(),
        metric: metric.to_owned(),
        aggregation: aggregation.to_owned(),
        max_scale_up_rate: config.max_scale_up_rate,
        max_scale_down_rate: config.max_scale_down_rate,
        target_value: (total * utilization).max(0.01),
        total_value: total,
        target_burst_capacity: float(keys::TARGET_BURST_CAPACITY).unwrap_or(config.target_burst_capacity),
        activator_capacity: config.activator_capacity,
        panic_threshold: float(keys::PANIC_THRESHOLD_PERCENTAGE).unwrap_or(config.panic_threshold_percentage)
            / 100.0,
        scale_down_delay_ns: span(keys::SCALE_DOWN_DELAY).unwrap_or(nanos(config.scale_down_delay)),
        activation_scale: int(keys::ACTIVATION_SCALE).unwrap_or(0),
        reachable: reachability != Reachability::Unreachable,
        stable_window_ns,
        panic_window_ns: panic_window(stable_window_ns, panic_percentage),
        min_scale,
        max_scale: int(keys::MAX_SCALE).unwrap_or(config.max_scale),
        initial_scale,
        retention_ns: span(keys::RETENTION).unwrap_or(nanos(config.scale_to_zero_pod_retention_period)),
        progress_deadline_ns: span(keys::PROGRESS_DEADLINE).unwrap_or(nanos(config.progress_deadline)),
        target,
        utilization,
    }
}

/// Its share of the stable window, rounded to a second half away from zero, at least one second.
#[allow(clippy::cast_possible_truncation, reason = "saturates")]
fn panic_window(stable_ns: i64, percentage: f64) -> i64 {
    const SECOND: i64 = 1_000_000_000;
    let window = (stable_ns as f64 * percentage / 100.0) as i64;
    let rest = window % SECOND;
    let down = window - rest;
    let rounded = if rest.abs() * 2 < SECOND { down } else { down.saturating_add(SECOND * rest.signum()) };
    rounded.max(SECOND)
}

/// The scaling of a revision as its annotations, Knative's and `sas.dev/`, ask for it.
///
/// `container_concurrency` is the revision's hard limit of requests at once, 0 for none. [`Fidelity::Corrected`] allows
/// windows from one second where Knative starts at six. With `scalers`, those of the platform, the scaler must be one of
/// them and is asked about its options; without, only what all scalers share is checked here. Docs of the `sas.dev/` annotations are in
/// `docs/scaling.md`.
///
/// # Errors
/// All mistakes at once, each with its annotation.
pub fn scaling_from_annotations(
    annotations: &BTreeMap<String, String>,
    container_concurrency: u32,
    defaults: &AutoscalerConfig,
    fidelity: Fidelity,
    scalers: Option<&Scalers>,
) -> Result<ScalingSpec, SpecErrors> {
    let mut errors = SpecErrors::default();
    if let Err(mut found) = validate_annotations(annotations, defaults) {
        if fidelity == Fidelity::Corrected {
            found.0.retain(|error| !is_short_window(error.field.as_str(), &error.value));
        }
        errors.0.append(&mut found.0);
    }
    let resolved = resolve(annotations, container_concurrency, Reachability::Unknown, defaults);
    let span = |nanos: i64| Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    let count = |scale: i32| u32::try_from(scale).unwrap_or(0);
    let mut spec = ScalingSpec::default();
    spec.fidelity = fidelity;
    spec.min = count(resolved.min_scale);
    spec.max = count(resolved.max_scale);
    spec.initial = count(resolved.initial_scale);
    spec.activation = count(resolved.activation_scale);
    spec.scale_to_zero = defaults.enable_scale_to_zero;
    spec.target = resolved.total_value;
    spec.utilization = resolved.utilization;
    spec.stable_window = span(resolved.stable_window_ns);
    spec.panic_window_percentage = get(annotations, keys::PANIC_WINDOW_PERCENTAGE)
        .and_then(|(_, text)| go::parse_float(text).ok())
        .unwrap_or(defaults.panic_window_percentage);
    spec.panic_threshold_percentage = resolved.panic_threshold * 100.0;
    spec.target_burst_capacity = resolved.target_burst_capacity;
    spec.max_scale_up_rate = defaults.max_scale_up_rate;
    spec.max_scale_down_rate = defaults.max_scale_down_rate;
    spec.scale_down_delay = span(resolved.scale_down_delay_ns);
    spec.scale_to_zero_grace = defaults.scale_to_zero_grace_period;
    spec.retention = span(resolved.retention_ns);
    spec.activation_timeout = span(resolved.activation_timeout_ns());
    spec.aggregation = resolved.aggregation();
    if let Some((key, text)) = get(annotations, keys::PROGRESS_DEADLINE) {
        match parse_duration(text) {
            Ok(nanos) if nanos >= 1_000_000_000 => {}
            Ok(_) => errors.push(key, text, "at least 1s"),
            Err(error) => errors.push(key, text, format!("a duration such as 600s ({error})")),
        }
    }
    class(&resolved, &mut spec, &mut errors);
    own::read(annotations, &mut spec, &mut errors);
    if let Err(found) = scalers.map_or_else(|| spec.validate(), |scalers| scalers.validate(&spec)) {
        for mut error in found.0 {
            error.field = own::annotation_of(&error.field, annotations);
            // Knative's own checks said it already.
            if !errors.0.iter().any(|other| keys_are_aliases(&other.field, &error.field)) {
                errors.0.push(error);
            }
        }
    }
    errors.into_result().map(|()| spec)
}

fn class(resolved: &Resolved, spec: &mut ScalingSpec, errors: &mut SpecErrors) {
    match resolved.class.as_str() {
        KPA_CLASS => {
            if resolved.metric == "rps" {
                spec.metric = Metric::Rps;
            }
        }
        HPA_CLASS => {
            spec.scaler = "resource".to_owned();
            // What means requests in the other class means percent or MiB here.
            (spec.target, spec.utilization) =
                (ScalingSpec::default().target, ScalingSpec::default().utilization);
            // `window` sets both stabilisation windows of the class.
            let rules = json!({ "stabilization_window": own::duration(spec.stable_window) });
            spec.options.insert("resource", json!({ "scale_up": rules, "scale_down": rules }));
            let target: Option<Value> = match (resolved.metric.as_str(), resolved.target) {
                // 80 % is what Kubernetes takes where nothing is said.
                ("cpu", target) => Some(json!({ "utilization": target.map_or(80.0, f64::ceil) })),
                ("memory", Some(target)) => Some(json!({ "average": target.trunc() * 1_048_576.0 })),
                ("memory", None) => {
                    errors.push(keys::TARGET[0], "", "the memory in MiB that an instance should use");
                    None
                }
                (other, _) => {
                    errors.push(
                        keys::METRIC[0],
                        other,
                        "cpu or memory; others go with sas.dev/scaler: combined",
                    );
                    None
                }
            };
            if let Some(target) = target {
                let metric = json!({ "metric": resolved.metric, "target": target });
                spec.options.insert("metrics", vec![metric]);
            }
        }
        other => spec.scaler = other.to_owned(),
    }
}

/// Whether Knative's only objection is a window below six seconds, which the default fidelity allows.
fn is_short_window(field: &str, value: &str) -> bool {
    field == keys::WINDOW[0]
        && parse_duration(value)
            .is_ok_and(|nanos| (1_000_000_000..6_000_000_000).contains(&nanos) && nanos % 1_000_000_000 == 0)
}

fn keys_are_aliases(one: &str, other: &str) -> bool {
    let plain = |key: &str| key.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
    plain(one) == plain(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_deadline_of_the_annotation_goes_before_the_platforms() {
        let config =
            AutoscalerConfig { progress_deadline: Duration::from_secs(120), ..AutoscalerConfig::default() };
        for (text, seconds) in [(None, 150), (Some("45s"), 75), (Some("1h"), 3630), (Some("soon"), 150)] {
            let annotations: BTreeMap<_, _> =
                text.iter().map(|text| (keys::PROGRESS_DEADLINE[0].to_owned(), (*text).to_owned())).collect();
            let resolved = resolve(&annotations, 0, Reachability::Unknown, &config);
            assert_eq!(resolved.activation_timeout_ns(), seconds * 1_000_000_000, "{text:?}");
            let spec = scaling_from_annotations(&annotations, 0, &config, Fidelity::Corrected, None);
            match spec {
                Ok(spec) => assert_eq!(spec.activation_timeout, Duration::from_secs(seconds as u64)),
                Err(errors) => {
                    assert_eq!((text, &*errors.0[0].field), (Some("soon"), keys::PROGRESS_DEADLINE[0]))
                }
            }
        }
    }
}
