//! From annotations to the options of the scalers, and from the scalers' objections back to the annotations.

use std::{sync::Arc, time::Duration};

use sas_autoscale::{
    Combine, CustomMetric, Fallback, MetricTarget, Options, ScalingPolicy, ScheduleParser,
    scalers_with_schedules,
};
use sas_core::{Fidelity, Metric, Scalers, ScalingSpec, Schedule, SpecErrors, Timestamp};
use sas_knative::{AutoscalerConfig, keys::own, scaling_from_annotations};

#[derive(Debug)]
struct Hourly;

impl Schedule for Hourly {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        Some(after + Duration::from_secs(3600))
    }
}

fn scalers() -> Scalers {
    scalers_with_schedules(ScheduleParser::new(|_, _| Ok(Arc::new(Hourly) as Arc<dyn Schedule>))).into()
}

fn options_of(spec: &ScalingSpec) -> Options {
    Options::of(spec).unwrap().into_owned()
}

fn read(pairs: &[(&str, &str)]) -> Result<ScalingSpec, SpecErrors> {
    let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    scaling_from_annotations(
        &annotations,
        0,
        &AutoscalerConfig::default(),
        Fidelity::Corrected,
        Some(&scalers()),
    )
}

#[test]
fn a_manifest_asks_for_several_metrics_at_once() {
    let spec = read(&[
        (own::METRICS, "concurrency=70, rps=100, cpu=80%, memory=512Mi, backlog"),
        (own::COMBINE, "priority"),
        (
            own::BACKLOG,
            r#"{"target": 20, "activation": 5, "fallback": {"failureThreshold": 3, "replicas": 6}}"#,
        ),
    ])
    .unwrap();
    assert_eq!(spec.scaler, "combined");
    assert_eq!(options_of(&spec).combine, Combine::Priority);
    let metrics: Vec<_> =
        options_of(&spec).metrics.iter().map(|metric| (metric.metric, metric.target)).collect();
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
    let backlog = options_of(&spec).backlog.unwrap();
    assert_eq!((backlog.target, backlog.activation), (20.0, 5));
    assert_eq!(backlog.fallback, Some(Fallback::new(3, 6)));
}

#[test]
fn a_manifest_asks_for_windows_forecast_and_behavior() {
    let spec = read(&[
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
    assert_eq!(options_of(&spec).schedule[0].duration, Duration::from_secs(36_000));
    assert_eq!(options_of(&spec).forecast.unwrap().lead, Duration::from_secs(30));
    let down = options_of(&spec).resource.unwrap().scale_down;
    assert_eq!(down.policies, [ScalingPolicy::Pods { value: 2, period: Duration::from_secs(30) }]);
}

#[test]
fn a_manifest_asks_for_metrics_that_the_host_names() {
    let spec = read(&[(own::METRICS, "rps=100, custom.sessions=10, custom.queue.depth=1k")]).unwrap();
    assert_eq!(spec.scaler, "combined");
    let options = options_of(&spec);
    assert_eq!(options.metrics.len(), 1);
    assert_eq!(
        options.custom,
        [CustomMetric::new("sessions", 10.0), CustomMetric::new("queue.depth", 1000.0)]
    );
    let alone = read(&[(own::METRICS, "custom.sessions=10")]).unwrap();
    assert_eq!((alone.scaler.as_str(), options_of(&alone).custom.len()), ("combined", 1));
}

#[test]
fn each_mistake_names_its_annotation() {
    for (pairs, field) in [
        (vec![(own::METRICS, "qps=3")], own::METRICS),
        (vec![(own::METRICS, "cpu")], own::METRICS),
        (vec![(own::METRICS, "rps=0")], own::METRICS),
        (vec![(own::METRICS, "rps=80%")], own::METRICS),
        (vec![(own::METRICS, "custom.sessions")], own::METRICS),
        (vec![(own::METRICS, "custom.sessions=many")], own::METRICS),
        (vec![(own::METRICS, "custom.two words=3")], own::METRICS),
        (vec![(own::METRICS, "custom.sessions=0")], own::METRICS),
        (vec![(own::METRICS, "schedule")], own::SCHEDULE),
        (vec![(own::SCHEDULE, "daily")], own::SCHEDULE),
        (vec![(own::SCHEDULE, r#"[{"schedule": "0 8 * * *", "duration": "0s", "min": 1}]"#)], own::SCHEDULE),
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
        let errors = read(&pairs).expect_err(&format!("{pairs:?}"));
        assert!(errors.0.iter().any(|error| error.field == field), "{pairs:?}: {errors}");
    }
}

#[test]
fn the_default_preset_takes_windows_from_one_second() {
    let window = [("autoscaling.knative.dev/window", "1s")];
    assert_eq!(read(&window).unwrap().stable_window, Duration::from_secs(1));
    let annotations = window.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let errors =
        scaling_from_annotations(&annotations, 0, &AutoscalerConfig::default(), Fidelity::Exact, None)
            .unwrap_err();
    assert_eq!(errors.0[0].field, "autoscaling.knative.dev/window");
}

#[test]
fn the_class_for_resources_becomes_the_resource_scaler() {
    let spec = read(&[
        ("autoscaling.knative.dev/class", "hpa.autoscaling.knative.dev"),
        ("autoscaling.knative.dev/metric", "memory"),
        ("autoscaling.knative.dev/target", "64.9"),
        ("autoscaling.knative.dev/window", "90s"),
    ])
    .unwrap();
    assert_eq!(spec.scaler, "resource");
    assert_eq!(options_of(&spec).metrics[0].target, Some(MetricTarget::Average(64.0 * 1_048_576.0)));
    assert_eq!(options_of(&spec).resource.unwrap().scale_down.stabilization_window, Duration::from_secs(90));
}

#[test]
fn a_class_that_nobody_has_is_refused_with_the_names_that_there_are() {
    for (key, value) in [("autoscaling.knative.dev/class", "kpaa"), (own::SCALER, "kpaa")] {
        let errors = read(&[(key, value)]).unwrap_err();
        let [error] = &errors.0[..] else { panic!("{errors}") };
        assert_eq!((&*error.field, &*error.value), (key, "kpaa"));
        assert!(error.problem.contains("one of kpa, concurrency, rps, resource"), "{error}");
    }
}

#[test]
fn an_option_that_the_scaler_does_not_know_is_refused_at_its_annotation() {
    let errors = read(&[("sas.dev/scaler-option.stepp", "4")]).unwrap_err();
    assert_eq!(errors.0[0].field, "sas.dev/scaler-option.stepp");
}
