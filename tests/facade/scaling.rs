//! Scaling through a whole platform: which scalers there are, and what is measured outside.

use std::time::Duration;

use sas::{
    autoscale::{CustomMetric, Measurement, Options},
    core::{Decision, Policy, Reason, RevisionKey, ScaleInput},
    knative::manifest::TrafficTarget,
    prelude::*,
};

use crate::{TOKEN, admin};

#[derive(Debug)]
struct OneSpare;

impl Policy for OneSpare {
    type State = ();

    fn name(&self) -> &'static str {
        "one-spare"
    }

    fn decide(&self, (): &mut (), input: &ScaleInput<'_>) -> Decision {
        Decision::set(input.load.queued + 1, Reason::Custom(1))
    }
}

async fn platform() -> Platform {
    let runtime =
        InlineRuntime::new().with("good", |_: Request, _cx| async { Response::new(Body::from("good")) });
    Platform::builder()
        .admin_token(TOKEN)
        .runtime(runtime)
        .scaler(OneSpare)
        .build()
        .await
        .expect("a platform")
}

fn manifest(name: &str, annotation: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
         sas.dev/function: good\nspec:\n  template:\n    metadata:\n      annotations:\n        {annotation}\n    \
         spec: {{}}\n"
    )
}

#[tokio::test]
async fn a_scaler_that_nobody_has_is_refused_wherever_it_comes_from_and_ones_own_is_known() {
    let platform = platform().await;
    let said_of = |text: &str| {
        ["kpaa", "kpa", "combined", "scheduled", "one-spare"].iter().all(|name| text.contains(name))
    };

    let mut spec = RevisionSpec::new("inline", Source::Function("good".to_owned()));
    spec.scaling.scaler = "kpaa".to_owned();
    let error = platform.deploy("default", "wrong", spec.clone()).await.expect_err("nobody has it");
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    assert!(said_of(&error.message) && error.message.contains("scaling.scaler"), "{error}");

    for annotation in ["autoscaling.knative.dev/class: kpaa", "sas.dev/scaler: kpaa"] {
        let text = manifest("wrong", annotation);
        let error = platform.apply(&text, None).await.expect_err("nobody has it");
        let key = annotation.split(':').next().unwrap();
        assert!(said_of(&error.message) && error.message.contains(key), "{error}");
        let (status, body) = admin(&platform, "POST", "/v1/services", &text).await;
        assert!((400..500).contains(&status) && said_of(&body.to_string()), "{status} {body}");
    }

    spec.scaling.scaler = "one-spare".to_owned();
    platform.deploy("default", "right", spec).await.expect("a custom scaler is known");
    platform.apply(&manifest("too", "sas.dev/scaler: one-spare"), None).await.expect("in manifests too");
    platform.shutdown(Duration::from_secs(5)).await;
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within ten seconds: {what}");
}

fn key(platform: &Platform, service: &str) -> RevisionKey {
    let revision = format!("{service}-00001");
    platform.control().revision_key("default", service, &revision).expect("a revision that runs")
}

#[tokio::test]
async fn a_metric_that_the_host_reports_by_service_and_name_scales_and_wakes_it() {
    let platform = platform().await;
    let ready = |key| platform.pool().status(key).expect("it is registered").ready;

    // Asleep from the beginning: it wakes at the report, with what the report asks for.
    let mut spec = RevisionSpec::new("inline", Source::Function("good".to_owned()));
    spec.scaling.scaler = "combined".to_owned();
    spec.scaling.initial = 0;
    Options::edit(&mut spec.scaling, |options| options.custom = vec![CustomMetric::new("sessions", 10.0)])
        .expect("options");
    platform.deploy("default", "asleep", spec).await.expect("deployed");
    let asleep = key(&platform, "asleep");
    assert_eq!(ready(asleep), 0);
    platform.report_metric("default", "asleep", "sessions", 35.0).expect("taken");
    let first = platform.driver().history(asleep).into_iter().next().expect("it is decided at once");
    assert_eq!((first.sequence, first.previous, first.decision.desired()), (1, Some(0), Some(4)));
    until("four are ready", || ready(asleep) == 4).await;

    // The same in a manifest; what runs follows the reports.
    platform.apply(&manifest("runs", "sas.dev/metrics: custom.orders=2"), None).await.expect("applied");
    let runs = key(&platform, "runs");
    platform.report_metric("default", "runs", "orders", 5.0).expect("taken");
    until("three are ready", || ready(runs) == 3).await;
    until("the decision is kept", || {
        platform.driver().history(runs).iter().any(|record| {
            let because = record.decision.details.as_ref().and_then(|details| details.because.as_deref());
            record.named.get("orders") == Some(5.0)
                && because == Some("orders")
                && record.decision.named_votes()[0].desired == Some(3)
        })
    })
    .await;
    let (status, told) = admin(&platform, "GET", "/v1/services/default/runs/decisions", "").await;
    assert!(status == 200 && told.to_string().contains(r#""because":"orders""#), "{status} {told}");

    let kind = |service, name, value| {
        let refused = platform.report_metric("default", service, name, value);
        refused.expect_err("it is no report").kind
    };
    assert_eq!(kind("nobody", "orders", 1.0), ErrorKind::NotFound);
    assert_eq!(kind("runs", "two words", 1.0), ErrorKind::InvalidSpec);
    assert_eq!(kind("runs", "orders", f64::NAN), ErrorKind::InvalidSpec);
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_revision_that_is_one_too_many_leaves_the_shares_of_the_others_as_they_were_measured() {
    let runtime =
        InlineRuntime::new().with("good", |_: Request, _cx| async { Response::new(Body::from("good")) });
    let platform = Platform::builder().runtime(runtime).driver(|driver| driver.measured_revisions = 1);
    let platform = platform.build().await.expect("a platform");
    let mut spec = RevisionSpec::new("inline", Source::Function("good".to_owned()));
    spec.scaling.scaler = "combined".to_owned();
    spec.scaling.initial = 0;
    Options::edit(&mut spec.scaling, |options| options.custom = vec![CustomMetric::new("orders", 2.0)])
        .expect("options");
    platform.deploy("default", "split", spec.clone()).await.expect("deployed");
    spec.queue_limit += 1;
    platform.deploy("default", "split", spec).await.expect("deployed again");
    let targets = ["split-00001", "split-00002"].map(|name| TrafficTarget::revision(name, 50));
    platform.control().set_traffic("default", "split", targets.to_vec()).await.expect("split");

    // The only place is the second's.
    let second =
        platform.control().revision_key("default", "split", "split-00002").expect("it takes traffic");
    platform.driver().report(second, Measurement::Named("orders".to_owned(), 1.0)).expect("taken");
    let error = platform.report_metric("default", "split", "orders", 12.0).expect_err("one is too many");
    assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
    until("the second has the instances for its half", || {
        platform.pool().status(second).is_some_and(|status| status.ready == 3)
    })
    .await;
    platform.shutdown(Duration::from_secs(5)).await;
}
