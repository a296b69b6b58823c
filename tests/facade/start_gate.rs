//! The start gate and the budgets as users meet them: what can't ever start is refused, what waits says for what, and
//! nothing keeps those out that fit.

use std::{sync::Arc, time::Duration};

use sas::prelude::*;
use tokio::sync::Semaphore;

const MIB: u64 = 1 << 20;

async fn platform(gate: &Arc<Semaphore>) -> Platform {
    let gate = Arc::clone(gate);
    let runtime = InlineRuntime::new()
        .with("answers", |_: Request, _cx| async { Response::new(Body::from("here")) })
        .with("holds", move |_: Request, _cx| {
            let gate = Arc::clone(&gate);
            async move {
                let _turn = gate.acquire().await;
                Response::new(Body::from("held"))
            }
        });
    Platform::builder()
        .runtime(runtime)
        .configure_pool(|pool| pool.budget.memory_bytes = 100 * MIB)
        .build()
        .await
        .expect("a platform")
}

fn taking(function: &str, mib: u64) -> RevisionSpec {
    let mut spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
    spec.resources.memory_limit_bytes = Some(mib * MIB);
    spec.timeouts.request = Duration::from_millis(300);
    spec
}

fn get(name: &str) -> Request {
    let host = format!("{name}.default.localhost");
    http::Request::get("/").header("host", host).body(Body::empty()).expect("a request")
}

async fn text(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect(64 << 10).await.expect("a whole answer");
    (status, String::from_utf8(body.to_vec()).expect("UTF-8"))
}

#[tokio::test]
async fn what_the_budget_could_never_hold_is_refused_at_deploy() {
    let platform = platform(&Arc::new(Semaphore::new(0))).await;
    let refused = platform.deploy("default", "huge", taking("answers", 101)).await.expect_err("too large");
    assert_eq!(refused.kind, ErrorKind::InvalidSpec);
    let field = &refused.fields().expect("it names its field").0[0];
    assert_eq!(field.field, "RevisionSpec.resources.memory_limit_bytes");
    assert_eq!(field.value, (101 * MIB).to_string());
    assert!(field.problem.contains("101 MiB") && field.problem.contains("100 MiB"), "{field}");

    let mut many = taking("answers", 40);
    many.scaling.min = 3;
    let refused = platform.deploy("default", "many", many.clone()).await.expect_err("three of 40 MiB");
    assert_eq!(refused.fields().expect("fields").0[0].field, "RevisionSpec.scaling.min", "{refused}");
    many.scaling.min = 2;
    platform.deploy("default", "many", many).await.expect("two fit");

    let manifest = "apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: huge}
spec:
  template:
    metadata:
      annotations: {sas.dev/function: answers}
    spec:
      containers:
      - resources: {limits: {memory: 1Gi}}
";
    let refused = platform.control().apply(manifest, &mut Vec::new()).await.expect_err("too large");
    let fields = refused.fields().unwrap_or_else(|| panic!("{refused}"));
    assert_eq!(fields.0[0].field, "spec.template.spec.containers[0].resources.limits.memory", "{refused}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_start_that_waits_for_room_says_so_and_its_end_lets_the_others_go() {
    let held = Arc::new(Semaphore::new(0));
    let platform = platform(&held).await;
    let mut busy = taking("holds", 60);
    busy.timeouts.request = Duration::from_secs(60);
    for (name, spec) in [("busy", busy), ("large", taking("answers", 70)), ("small", taking("answers", 10))] {
        platform.deploy("default", name, spec).await.expect("each fits alone");
    }
    let gateway = Arc::clone(platform.gateway());
    let first = tokio::spawn(async move { gateway.handle(get("busy")).await.status() });
    while platform.pool().totals().instances == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let (status, body) = text(platform.gateway().handle(get("large")).await).await;
    assert_eq!(status, 504, "{body}");
    assert!(body.contains("waits at the gate for memory") && body.contains("70 MiB"), "{body}");
    let record = platform.control().record("default", "large").expect("it is there");
    let revision = record.latest_created().expect("it was deployed");
    let conditions = format!("{:?}", platform.control().revision_view(&record, revision).conditions);
    assert!(conditions.contains("waits at the gate for memory"), "{conditions}");
    // Until its own start goes: then what stood behind it goes at once.
    let gateway = Arc::clone(platform.gateway());
    let mut small = taking("answers", 10);
    small.timeouts.request = Duration::from_secs(8);
    platform.deploy("default", "small", small).await.expect("a revision with more patience");
    let waits = tokio::spawn(async move { gateway.handle(get("small")).await.status() });
    while platform.pool().totals().waiting_starts < 2 {
        assert!(!waits.is_finished(), "the large one holds the line");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.control().delete("default", "large").await.expect("deleted");
    assert_eq!(waits.await.expect("it ends"), 200);
    held.add_permits(9);
    assert_eq!(first.await.expect("it ends"), 200);
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_budget_that_shrinks_below_a_demand_fails_that_service_and_no_other() {
    let platform = platform(&Arc::new(Semaphore::new(0))).await;
    platform.deploy("default", "large", taking("answers", 70)).await.expect("it fits");
    platform.deploy("default", "small", taking("answers", 10)).await.expect("it fits");
    // What is set aside for another engine is gone for this one.
    let mut bank = EngineSpec::new("bank", EngineKind::Dedicated);
    bank.reserved.memory_bytes = Some(50 * MIB);
    platform.control().declare_engine(bank).await.expect("an engine");

    let (status, body) = text(platform.gateway().handle(get("large")).await).await;
    assert_eq!(status, 503, "at once, and not at its deadline: {body}");
    assert!(body.contains("70 MiB") && body.contains("50 MiB"), "{body}");
    assert_eq!(platform.gateway().handle(get("small")).await.status(), 200);
    let refused = platform.deploy("default", "late", taking("answers", 60)).await.expect_err("too large now");
    assert_eq!(refused.kind, ErrorKind::InvalidSpec);
    platform.shutdown(Duration::from_secs(5)).await;
}
