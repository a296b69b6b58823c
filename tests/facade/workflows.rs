//! Workflows on a whole platform: from the manifest to the picture of a run, over the admin API and over a restart.

use std::{path::Path, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas::prelude::*;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// Services that note what they are asked for; `billing` refuses, or does not answer, as long as it is told to.
#[derive(Default)]
struct Shop {
    called: Mutex<Vec<String>>,
    refuses: Mutex<bool>,
    hangs: Mutex<bool>,
}

fn functions(shop: &Arc<Shop>) -> InlineRuntime {
    let answer = |shop: &Arc<Shop>, name: &'static str| {
        let shop = Arc::clone(shop);
        move |request: Request, _cx| {
            let shop = Arc::clone(&shop);
            async move {
                let key = request.headers()["idempotency-key"].to_str().expect("text").to_owned();
                shop.called.lock().push(format!("{name} {key}"));
                let body = request.into_body().collect(4096).await.unwrap_or_default();
                while name == "billing" && *shop.hangs.lock() {
                    sleep(Duration::from_millis(20)).await;
                }
                let refuses = name == "billing" && *shop.refuses.lock();
                let mut response = Response::new(Body::from(body));
                if refuses {
                    *response.status_mut() = http::StatusCode::CONFLICT;
                }
                response
            }
        }
    };
    InlineRuntime::new().with("stock", answer(shop, "stock")).with("billing", answer(shop, "billing"))
}

async fn platform(shop: &Arc<Shop>, state: &Path) -> Platform {
    let platform = Platform::builder()
        .runtime(functions(shop))
        .state_dir(state)
        .admin_token("key")
        .build()
        .await
        .expect("a platform");
    for name in ["stock", "billing"] {
        let spec = RevisionSpec::new("inline", Source::Function(name.to_owned()));
        platform.deploy("default", name, spec).await.expect("deployed");
    }
    platform
}

const ORDER: &str = r#"
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: order}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - reserve: {call: stock, with: {item: '${ .item }'}}
    - pay: {call: billing, with: {item: '${ .item }', amount: 7}}
    - parcel: {listen: {to: {one: {with: {type: sent}}}}}
    - done: {set: {parcel: '${ .[0].number }'}}
"#;

async fn admin(platform: &Platform, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request
        .header("authorization", "Bearer key")
        .header("content-type", "application/json")
        .body(Body::from(text))
        .expect("a request");
    let response = platform.admin().handle(request).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(1 << 20).await.expect("a body");
    let text = String::from_utf8(body.to_vec()).expect("text");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}

async fn until(platform: &Platform, run: &str, is: impl Fn(&Value) -> bool) -> Value {
    let late = Instant::now() + Duration::from_secs(20);
    loop {
        let (status, shown) = admin(platform, "GET", &format!("/v1/runs/default/{run}"), &Value::Null).await;
        if status == 200 && is(&shown) {
            return shown;
        }
        assert!(Instant::now() < late, "{status} {shown:#}");
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_workflow_is_deployed_run_steered_seen_and_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let shop = Arc::new(Shop::default());
    let one = platform(&shop, dir.path()).await;
    one.apply(ORDER, None).await.expect("applied");
    let wrong = ORDER.replace("call: stock, with", "call: stock, wth");
    let refused = one.apply(&wrong, None).await.unwrap_err().to_string();
    assert!(refused.contains("spec.do[0].reserve"), "{refused}");
    let newer = ORDER.replace("amount: 7", "amount: 8");
    assert_eq!(one.apply(&newer, None).await.unwrap_err().kind, ErrorKind::Conflict, "a version is for ever");
    let (_, listed) = admin(&one, "GET", "/v1/workflows", &Value::Null).await;
    assert_eq!(listed["workflows"][0]["version"], "1.0.0", "{listed}");

    *shop.refuses.lock() = true;
    let start =
        json!({"id": "o-1", "input": {"item": "bicycle"}, "labels": {"customer": "c7"}, "waitSeconds": 20});
    let (status, run) = admin(&one, "POST", "/v1/workflows/default/order/runs", &start).await;
    assert_eq!((status, &run["status"]), (200, &json!("faulted")), "it has ended: {run}");
    *shop.refuses.lock() = false;
    let (status, run) = admin(&one, "POST", "/v1/runs/default/o-1/retry", &Value::Null).await;
    assert_eq!((status, &run["status"]), (200, &json!("running")), "{run}");
    let shown = until(&one, "o-1", |run| run["steps"][2]["waitsFor"] == "event").await;
    assert_eq!(shown["steps"][1]["retries"], 1, "{shown:#}");
    // It waits as long as it is told to for the run, which goes on.
    let start =
        json!({"id": "o-1", "input": {"item": "bicycle"}, "labels": {"customer": "c7"}, "waitSeconds": 1});
    let (status, again) = admin(&one, "POST", "/v1/workflows/default/order/runs", &start).await;
    assert_eq!((status, &again["id"]), (202, &json!("o-1")), "a second start starts nothing: {again}");
    let (_, found) =
        admin(&one, "GET", "/v1/runs/default?label=customer%3Dc7&status=running", &Value::Null).await;
    assert_eq!(found["runs"].as_array().map(Vec::len), Some(1), "{found}");
    let held = admin(&one, "DELETE", "/v1/workflows/default/order/versions/1.0.0", &Value::Null).await;
    assert_eq!(held.0, 409, "{held:?}");
    let (_, log) = admin(&one, "GET", "/v1/audit", &Value::Null).await;
    assert_eq!(log["records"][1]["path"], "/v1/workflows/default/order/runs", "{log:#}");
    assert_eq!(log["records"][2]["path"], "/v1/runs/default/o-1/retry", "{log:#}");
    one.shutdown(Duration::from_secs(5)).await;

    let two = platform(&shop, dir.path()).await;
    let event =
        json!({"specversion": "1.0", "id": "1", "source": "/post", "type": "sent", "data": {"number": "P9"}});
    let (status, told) = admin(&two, "POST", "/v1/runs/default/o-1/events", &event).await;
    assert_eq!(status, 200, "{told}");
    let shown = until(&two, "o-1", |run| run["status"] == "completed").await;
    assert_eq!(shown["output"], json!({"parcel": "P9"}));
    let called = shop.called.lock().clone();
    assert_eq!(called.len(), 3, "stock once, billing twice: {called:?}");
    assert_ne!(called[1], called[2], "an operator's retry has a key of its own");
    let (status, svg) = admin(&two, "GET", "/v1/runs/default/o-1/graph", &Value::Null).await;
    assert!(status == 200 && svg.as_str().is_some_and(|svg| svg.starts_with("<svg")), "{svg}");
    let (status, gone) =
        admin(&two, "DELETE", "/v1/workflows/default/order/versions/1.0.0", &Value::Null).await;
    assert_eq!(status, 200, "{gone}");
    two.shutdown(Duration::from_secs(5)).await;
}

/// A run that asks by an event, one that each such event starts to answer, and the trigger that brings the answer.
const ASKS: &str = r#"
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: asks}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - tell: {emit: {event: {with: {type: asked, source: /asks, data: {n: '${ .n }'}}}}}
    - answer: {listen: {to: {one: {with: {type: answered}, correlate: {n: {from: .data.n, expect: '$workflow.input.n'}}}}}}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: answers}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  schedule: {on: {one: {with: {type: asked}}}}
  do:
    - rest: {wait: {milliseconds: 300}}
    - tell: {emit: {event: {with: {type: answered, source: /answers, data: {n: '${ .[0].n }'}}}}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: to-runs}
spec:
  source: {kind: broker, options: {broker: default}}
  target: {sink: workflow-events}
"#;

#[tokio::test]
async fn events_and_schedules_start_runs_and_reach_those_that_listen() {
    let dir = tempfile::tempdir().expect("a directory");
    let shop = Arc::new(Shop::default());
    let platform = platform(&shop, dir.path()).await;
    let manifests = format!(
        "{ASKS}---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {{name: ticks}}
spec:
  document: {{dsl: '1.0.3', version: '1.0.0'}}
  schedule: {{every: {{milliseconds: 1000}}}}
  do: [{{s: {{set: {{ticked: true}}}}}}]
"
    );
    platform.apply(&manifests, None).await.expect("applied");
    let start = json!({"id": "a-1", "input": {"n": 5}});
    let (status, run) = admin(&platform, "POST", "/v1/workflows/default/asks/runs", &start).await;
    assert_eq!(status, 202, "{run}");
    let shown = until(&platform, "a-1", |run| run["status"] == "completed").await;
    assert_eq!(shown["output"], json!([{"n": 5}]));
    let late = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, found) = admin(&platform, "GET", "/v1/runs/default?workflow=ticks", &Value::Null).await;
        let runs = found["runs"].as_array().cloned().unwrap_or_default();
        if runs.len() >= 2 && runs.iter().any(|run| run["output"] == json!({"ticked": true})) {
            break;
        }
        assert!(Instant::now() < late, "{found}");
        sleep(Duration::from_millis(50)).await;
    }
    let wrong = manifests.replace("{every: {milliseconds: 1000}}", "{cron: 'every day'}");
    let refused = platform.apply(&wrong, None).await.unwrap_err().to_string();
    assert!(refused.contains("spec.schedule"), "{refused}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_schedule_that_no_timer_keeps_is_refused_before_it_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let one = platform(&Arc::new(Shop::default()), dir.path()).await;
    for every in ["P400D", "PT0S"] {
        let scheduled = format!("{ORDER}  schedule: {{every: {every}}}\n");
        let refused = one.apply(&scheduled, None).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidSpec, "{refused}");
        assert!(refused.to_string().contains("spec.schedule"), "{refused}");
    }
    let (_, listed) = admin(&one, "GET", "/v1/workflows", &Value::Null).await;
    assert_eq!(listed["workflows"], json!([]), "nothing is stored: {listed}");
    one.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_step_that_a_shutdown_cuts_off_is_done_after_the_next_start_and_is_no_failure() {
    let dir = tempfile::tempdir().expect("a directory");
    let shop = Arc::new(Shop::default());
    *shop.hangs.lock() = true;
    let one = platform(&shop, dir.path()).await;
    one.apply(ORDER, None).await.expect("applied");
    let start = json!({"id": "o-1", "input": {"item": "bicycle"}});
    admin(&one, "POST", "/v1/workflows/default/order/runs", &start).await;
    until(&one, "o-1", |run| run["steps"][1]["waitsFor"] == "invoke").await;
    let late = Instant::now() + Duration::from_secs(20);
    while shop.called.lock().len() < 2 {
        assert!(Instant::now() < late, "billing is called");
        sleep(Duration::from_millis(10)).await;
    }
    one.shutdown(Duration::from_secs(1)).await;
    *shop.hangs.lock() = false;

    let two = platform(&shop, dir.path()).await;
    let shown = until(&two, "o-1", |run| run["steps"][2]["waitsFor"] == "event").await;
    assert_eq!(shown["steps"][1]["state"], "answered", "{shown:#}");
    let called = shop.called.lock().clone();
    assert_eq!(called.len(), 3, "billing twice: {called:?}");
    assert_eq!(called[1], called[2], "under one key");
    two.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_run_is_told_in_events_metrics_and_spans() {
    let dir = tempfile::tempdir().expect("a directory");
    let shop = Arc::new(Shop::default());
    let traces = Arc::new(sas_testkit::fake::RecordingTraces::default());
    traces.sample(true);
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let shown = recorder.handle();
    let platform = Platform::builder()
        .runtime(functions(&shop))
        .state_dir(dir.path())
        .admin_token("key")
        .recorder(sas::core::Recorder::new(Arc::new(recorder)))
        .trace_sink(Arc::clone(&traces))
        .workflows(|runs| runs.lifecycle = true)
        .build()
        .await
        .expect("a platform");
    for name in ["stock", "billing"] {
        let spec = RevisionSpec::new("inline", Source::Function(name.to_owned()));
        platform.deploy("default", name, spec).await.expect("deployed");
    }
    let manifests = format!(
        "{ORDER}---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {{name: default}}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {{name: notes}}
spec:
  document: {{dsl: '1.0.3', version: '1.0.0'}}
  schedule: {{on: {{one: {{with: {{type: io.serverlessworkflow.workflow.cancelled.v1}}}}}}}}
  do: [{{s: {{set: {{noted: '${{ .[0].name }}'}}}}}}]
"
    );
    platform.apply(&manifests, None).await.expect("applied");
    let start = json!({"id": "o-1", "input": {"item": "bicycle"}});
    admin(&platform, "POST", "/v1/workflows/default/order/runs", &start).await;
    until(&platform, "o-1", |run| run["steps"][2]["waitsFor"] == "event").await;
    admin(&platform, "POST", "/v1/runs/default/o-1/cancel", &Value::Null).await;
    // The end of one run starts another one, by its event.
    let late = Instant::now() + Duration::from_secs(20);
    loop {
        let (_, found) = admin(&platform, "GET", "/v1/runs/default?workflow=notes", &Value::Null).await;
        if found["runs"][0]["output"] == json!({"noted": "order-o-1.default"}) {
            break;
        }
        assert!(Instant::now() < late, "{found}");
        sleep(Duration::from_millis(50)).await;
    }
    let metrics = shown.render();
    for line in [
        "sas_workflow_runs_started_total{namespace=\"default\"} 2",
        "sas_workflow_runs_ended_total{namespace=\"default\",status=\"cancelled\"} 1",
        "sas_workflow_steps_total{kind=\"invoke\",outcome=\"answered\"} 2",
        "sas_workflow_append_seconds_count",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let steps = traces.steps();
    let invoked: Vec<_> = steps.iter().filter(|step| step.kind == "invoke").collect();
    assert_eq!(invoked.len(), 2, "{steps:?}");
    let requests = traces.requests();
    for step in invoked {
        let below = requests.iter().find(|request| request.context.trace == step.context.trace);
        assert!(below.is_some_and(|request| request.context.sampled()), "{step:?} in {requests:?}");
    }
    platform.shutdown(Duration::from_secs(5)).await;
}

/// One of two hosts on a store in memory.
async fn one_of_two(name: &str, store: &Arc<sas::core::MemoryStore>) -> Platform {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let listen = taken.local_addr().expect("an address");
    drop(taken);
    let secret = sas::core::Secret::new("0123456789abcdef0123456789abcdef");
    let mut options = sas::ClusterOptions::new(name, listen, secret);
    options.term = Duration::from_secs(2);
    Platform::builder()
        .runtime(functions(&Arc::default()))
        .store(Arc::clone(store))
        .admin_token("key")
        .listen(listen)
        .cluster(options)
        .build()
        .await
        .expect("a platform")
}

#[tokio::test]
async fn what_a_run_emits_reaches_those_that_listen_whichever_host_was_asked_and_after_one_has_left() {
    let store = Arc::new(sas::core::MemoryStore::default());
    let (a, b) = (one_of_two("a", &store).await, one_of_two("b", &store).await);
    let acts = |host: &Platform, namespace: &str| {
        matches!(host.cluster().expect("a host").place(namespace), sas::core::Place::Here(_))
    };
    let late = Instant::now() + Duration::from_secs(20);
    while [&a, &b].iter().any(|host| host.cluster().expect("a host").list().len() < 2)
        || acts(&a, "default") == acts(&b, "default")
    {
        assert!(Instant::now() < late, "the hosts agree");
        sleep(Duration::from_millis(20)).await;
    }
    let (owner, other) = if acts(&a, "default") { (a, b) } else { (b, a) };
    // Everything is asked of the host that has nothing of it.
    other.apply(ASKS, None).await.expect("applied");
    let late = Instant::now() + Duration::from_secs(20);
    while owner.control().trigger_status().len() < 2 {
        assert!(Instant::now() < late, "the owner runs both: {:?}", owner.control().trigger_status());
        sleep(Duration::from_millis(20)).await;
    }
    let start = json!({"id": "a-1", "input": {"n": 5}});
    admin(&other, "POST", "/v1/workflows/default/asks/runs", &start).await;
    let shown = until(&other, "a-1", |run| run["status"] == "completed").await;
    assert_eq!(shown["output"], json!([{"n": 5}]));

    // One waits when the owner goes: the other host has the schedule, the broker and the runs from then on.
    let start = json!({"id": "a-2", "input": {"n": 6}});
    admin(&other, "POST", "/v1/workflows/default/asks/runs", &start).await;
    owner.shutdown(Duration::from_secs(6)).await;
    let shown = until(&other, "a-2", |run| run["status"] == "completed").await;
    assert_eq!(shown["output"], json!([{"n": 6}]));
    let start = json!({"id": "a-3", "input": {"n": 7}});
    admin(&other, "POST", "/v1/workflows/default/asks/runs", &start).await;
    let shown = until(&other, "a-3", |run| run["status"] == "completed").await;
    assert_eq!(shown["output"], json!([{"n": 7}]));
    other.shutdown(Duration::from_secs(5)).await;
}
