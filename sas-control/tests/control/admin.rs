//! The admin API, answer by answer.

use std::{sync::Arc, time::Duration};

use sas_core::{
    Clamps, Decision, DecisionRecord, DecisionSink, ErrorKind, InstanceId, Load, LogRecord, LogSink,
    LogStream, MemoryStore, MeterPhase, MeterSink, Metered, Metric, Reason, RequestUsage, RevisionName,
    TenantKey, Vote,
};

use crate::support::{self, World};

const SERVICE: &str = "/v1/services/default/hello";

#[tokio::test(start_paused = true)]
async fn health_readiness_and_metrics_answer() {
    let world = World::new().await;
    assert_eq!(world.call("GET", "/healthz", "").await.0, 200);
    assert_eq!(world.call("GET", "/readyz", "").await.0, 200);
    let metrics = world.raw("GET", "/metrics", "").await;
    assert_eq!(metrics.status(), 200);
    assert!(metrics.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
    world.control.shutdown(tokio::time::Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(world.call("GET", "/readyz", "").await.0, 503);
    assert_eq!(world.call("GET", "/healthz", "").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn services_are_posted_listed_shown_and_deleted() {
    let world = World::new().await;
    let (status, posted) = world.call("POST", "/v1/services", &world.manifest("one")).await;
    assert_eq!(status, 201, "{posted}");
    let applied = &posted["applied"][0];
    assert_eq!(
        (applied["revision"].as_str(), applied["created"].as_bool()),
        (Some("hello-00001"), Some(true))
    );
    assert_eq!(applied["host"], "hello.default.example.org");
    let (status, again) = world.call("POST", "/v1/services", &world.manifest("one")).await;
    assert_eq!((status, &again["applied"][0]["newRevision"]), (200, &false.into()));

    let (_, list) = world.call("GET", "/v1/services", "").await;
    assert_eq!(list["services"].as_array().unwrap().len(), 1);
    let (_, none) = world.call("GET", "/v1/services?namespace=other", "").await;
    assert_eq!(none["services"].as_array().unwrap().len(), 0);
    let (status, shown) = world.call("GET", SERVICE, "").await;
    assert_eq!((status, &shown["latestReadyRevision"]), (200, &"hello-00001".into()));
    let ready = &shown["conditions"][0];
    assert_eq!((&ready["status"], &ready["reason"]), (&"Unknown".into(), &"NeverStarted".into()));
    world.pool.succeed_starts("hello-00001");
    let (_, shown) = world.call("GET", SERVICE, "").await;
    assert_eq!(
        shown["conditions"][0],
        serde_json::json!({"type": "Ready", "status": "True", "reason": "", "message": ""})
    );
    assert_eq!(shown["revisions"][0]["notes"][0], "starts cold");

    assert_eq!(world.call("DELETE", SERVICE, "").await.0, 200);
    let (status, gone) = world.call("GET", SERVICE, "").await;
    assert_eq!((status, &gone["reason"]), (404, &"not_found".into()));
    assert_eq!(world.call("DELETE", SERVICE, "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn manifests_may_be_json() {
    let world = World::new().await;
    let manifest = serde_json::json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello", "annotations": {"sas.dev/package": world.package("one")}},
        "spec": {"template": {"spec": {"containerConcurrency": 1}}},
    });
    assert_eq!(world.call("POST", "/v1/services", &manifest.to_string()).await.0, 201);
}

#[tokio::test(start_paused = true)]
async fn every_mistake_of_a_manifest_is_told_with_its_field() {
    let world = World::new().await;
    let manifest = world.manifest("one").replace(
        "containerConcurrency: 5",
        "containerConcurrency: -1\n      bogus: 1\n      timeoutSeconds: soon",
    );
    let (status, answer) = world.call("POST", "/v1/services", &manifest).await;
    assert_eq!(status, 422);
    let error = &answer;
    assert_eq!((&error["component"], &error["reason"]), (&"control".into(), &"invalid_spec".into()));
    let fields: Vec<&str> =
        error["fields"].as_array().unwrap().iter().map(|f| f["field"].as_str().unwrap()).collect();
    for field in ["containerConcurrency", "bogus", "timeoutSeconds"] {
        assert!(fields.contains(&format!("spec.template.spec.{field}").as_str()), "{field}: {fields:?}");
    }
    assert!(world.control.records().is_empty());
}

#[tokio::test(start_paused = true)]
async fn of_several_documents_those_before_a_failure_are_told() {
    let world = World::new().await;
    let good = world.manifest("one");
    let bad = good.replace("name: hello", "name: other").replace("app.sh", "missing.sh");
    let (status, answer) = world.call("POST", "/v1/services", &format!("{good}---\n{bad}")).await;
    assert_eq!(status, 422, "{answer}");
    assert_eq!(answer["applied"][0]["name"], "hello");
    assert!(answer["message"].as_str().unwrap().contains("missing.sh"));
    assert_eq!(answer["fields"][0]["field"], "metadata.annotations[sas.dev/package]");
    assert_eq!(world.control.records().len(), 1, "nothing of the other is left");
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_refuses_is_named_as_the_component() {
    let world = World::new().await;
    world.runtime.fail(ErrorKind::InvalidSpec, "there is no way to start it");
    let (status, answer) = world.call("POST", "/v1/services", &world.manifest("one")).await;
    assert_eq!(status, 422);
    assert_eq!(answer["component"], "runtime");
    let (_, shown) = world.call("GET", SERVICE, "").await;
    assert_eq!(shown["conditions"][0]["status"], "False");
}

#[tokio::test(start_paused = true)]
async fn wrong_methods_and_paths_are_told_apart() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    for (method, path, allow) in [
        ("PUT", "/v1/services", "GET, POST"),
        ("POST", SERVICE, "GET, DELETE"),
        ("GET", "/v1/services/default/hello/invoke", "POST"),
        ("POST", "/v1/services/default/hello/traffic", "GET, PUT"),
        ("DELETE", "/healthz", "GET"),
    ] {
        let response = world.raw(method, path, "").await;
        assert_eq!(response.status(), 405, "{method} {path}");
        assert_eq!(response.headers()["allow"], allow, "{method} {path}");
    }
    for path in [
        "/",
        "/v1",
        "/v2/services",
        "/v1/services/default",
        "/v1/services/default/hello/nothing",
        "/v1/services/a/b/c/d/e",
    ] {
        assert_eq!(world.call("GET", path, "").await.0, 404, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn traffic_is_put_and_what_cannot_be_is_refused() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.deploy("two").await.unwrap();
    let path = format!("{SERVICE}/traffic");
    let split = r#"{"traffic": [{"revisionName": "hello-00001", "percent": 20, "tag": "old"}, {"latestRevision": true, "percent": 80}]}"#;
    let (status, answer) = world.call("PUT", &path, split).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        world.split("hello.default.example.org"),
        [("hello-00001".to_owned(), 20), ("hello-00002".to_owned(), 80)]
    );
    assert_eq!(answer["traffic"][0]["host"], "old-hello.default.example.org");
    for (body, field) in [
        (r#"[{"revisionName": "hello-00001", "percent": 99}]"#, "traffic"),
        (
            r#"[{"revisionName": "hello-00001", "latestRevision": true, "percent": 100}]"#,
            "traffic[0].latestRevision",
        ),
        (r#"[{"revisionName": "hello-00009", "percent": 100}]"#, "traffic[0].revisionName"),
        (r#"[{"percent": 100, "weight": 3}]"#, "traffic[0].weight"),
        (r#"[{"percent": 50, "tag": "a"}, {"percent": 50, "tag": "a"}]"#, "traffic[1].tag"),
        (r#"[{"percent": 101}]"#, "traffic[0].percent"),
        ("{}", "traffic"),
        ("", "$"),
        ("[", "$"),
    ] {
        let (status, answer) = world.call("PUT", &path, body).await;
        assert_eq!(status, 422, "{body}: {answer}");
        assert_eq!(answer["fields"][0]["field"], field, "{body}");
    }
    assert_eq!(world.split("hello.default.example.org").len(), 2, "refused changes change nothing");
}

#[tokio::test(start_paused = true)]
async fn roll_back_and_revisions_answer() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.deploy("two").await.unwrap();
    assert_eq!(world.call("POST", &format!("{SERVICE}/rollback"), "").await.0, 200);
    assert_eq!(world.split("hello.default.example.org"), [("hello-00001".to_owned(), 100)]);
    let (status, _) =
        world.call("POST", &format!("{SERVICE}/rollback"), r#"{"revision": "hello-00002"}"#).await;
    assert_eq!(status, 200);
    assert_eq!(world.call("POST", &format!("{SERVICE}/rollback"), r#"{"revision": "x"}"#).await.0, 404);
    assert_eq!(world.call("POST", &format!("{SERVICE}/rollback"), r#"{"to": "x"}"#).await.0, 422);
    let (_, revisions) = world.call("GET", &format!("{SERVICE}/revisions"), "").await;
    assert_eq!(revisions["revisions"][0]["name"], "hello-00002");
    let (_, one) = world.call("GET", &format!("{SERVICE}/revisions/hello-00001"), "").await;
    assert_eq!(one["spec"]["concurrency"], 5);
    assert_eq!(world.call("GET", &format!("{SERVICE}/revisions/hello-00007"), "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_test_run_answers_with_phases_status_headers_and_body() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let path = format!("{SERVICE}/invoke");
    let body = r#"{"revision": "hello-00001", "method": "PUT", "path": "/x", "headers": {"x-a": "b"}, "body": "hi"}"#;
    let (status, answer) = world.call("POST", &path, body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!((answer["status"].as_u64(), answer["body"].as_str()), (Some(200), Some("PUT /x")));
    assert_eq!(answer["headers"][0], serde_json::json!(["x-answer", "yes"]));
    assert_eq!((answer["cold"].as_bool(), answer["phases"]["queuedMs"].as_f64()), (Some(true), Some(3.0)));
    assert_eq!(answer["requestId"].as_str().unwrap().len(), 32);
    assert_eq!(world.invoker.seen()[0].head.headers()["x-a"], "b");
    assert_eq!(world.call("POST", &path, "").await.0, 200, "an empty body is a GET of /");
    for body in [
        r#"{"path": "x"}"#,
        r#"{"method": "G T"}"#,
        r#"{"verb": "GET"}"#,
        r#"{"timeoutMs": 0}"#,
        r#"{"headers": {"a b": "c"}}"#,
        "[]",
    ] {
        assert_eq!(world.call("POST", &path, body).await.0, 422, "{body}");
    }
    assert_eq!(world.call("POST", &path, r#"{"revision": "hello-00009"}"#).await.0, 404);
    world.invoker.set_time(Duration::from_secs(5));
    assert_eq!(world.call("POST", &path, r#"{"timeoutMs": 1000}"#).await.0, 504);
}

#[tokio::test(start_paused = true)]
async fn logs_decisions_instances_and_usage_are_shown() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let key = world.pool.key("hello-00001").unwrap();
    let mut config_logs = Vec::new();
    for at in 0..150 {
        config_logs.push(format!("line {at}"));
    }
    let logs = world.logs();
    for line in &config_logs {
        logs.line(&LogRecord::new(InstanceId(1), key, support::START, LogStream::Stdout, line.as_bytes()));
    }
    let (_, tail) = world.call("GET", &format!("{SERVICE}/logs"), "").await;
    let lines = tail["lines"].as_array().unwrap();
    assert_eq!((lines.len(), &lines[99]["line"]), (100, &"line 149".into()));
    assert_eq!(lines[0]["at"], "2026-01-05T00:00:00.000Z");
    let after = lines[97]["sequence"].as_u64().unwrap();
    let (_, rest) = world.call("GET", &format!("{SERVICE}/logs?tail=5&after={after}"), "").await;
    assert_eq!(rest["lines"].as_array().unwrap().len(), 2);
    assert_eq!(world.call("GET", &format!("{SERVICE}/logs?tail=many"), "").await.0, 422);
    assert_eq!(world.call("GET", &format!("{SERVICE}/logs?revision=hello-9"), "").await.0, 404);
    let structured = r#"{"level":"error","order":7,"request_id":"000000000000000000000000000000ff"}"#;
    logs.line(&LogRecord::new(InstanceId(2), key, support::START, LogStream::Stdout, structured.as_bytes()));
    for found in
        ["level=warn", "request=000000000000000000000000000000ff", "instance=i-00000002", "text=ORDER"]
    {
        let (_, page) = world.call("GET", &format!("{SERVICE}/logs?{found}"), "").await;
        let lines = page["lines"].as_array().unwrap();
        assert_eq!(
            (lines.len(), &lines[0]["level"], &lines[0]["fields"]["order"]),
            (1, &"error".into(), &7.into())
        );
    }
    let later = format!("{SERVICE}/logs?from={}", support::START.as_secs() + 1);
    assert!(world.call("GET", &later, "").await.1["lines"].as_array().unwrap().is_empty());
    for bad in ["level=loud", "request=x", "instance=x", "from=soon"] {
        assert_eq!(world.call("GET", &format!("{SERVICE}/logs?{bad}"), "").await.0, 422, "{bad}");
    }

    let mut decision = Decision::set(3, Reason::Panic).because("orders");
    decision.clamps.insert(Clamps::MAX);
    decision.votes.push(Vote::new(Metric::Concurrency, Some(21.0), 7.0, Some(3)));
    let record = DecisionRecord::new(1, support::START, Load::idle(key), Some(0), decision);
    world.decisions().decided(key, &record);
    let (_, decisions) = world.call("GET", &format!("{SERVICE}/decisions"), "").await;
    let decision = &decisions["decisions"][0];
    assert_eq!(decision["revision"], "hello-00001");
    assert_eq!(decision["decision"]["reason"], "panic");
    assert_eq!(decision["decision"]["clamps"], serde_json::json!(["max"]));
    assert_eq!(decision["decision"]["votes"][0]["desired"], 3);
    // Nothing of the record is left out: all but what is written for readers is as the record has it.
    let mut whole = serde_json::json!(record);
    whole["revision"] = "hello-00001".into();
    whole["at"] = "2026-01-05T00:00:00.000Z".into();
    whole["decision"]["clamps"] = serde_json::json!(["max"]);
    assert_eq!(*decision, whole);

    let (_, instances) = world.call("GET", &format!("{SERVICE}/instances"), "").await;
    assert_eq!(
        (&instances["instances"][0]["state"], &instances["instances"][0]["limit"]),
        (&"ready".into(), &serde_json::Value::Null)
    );

    let tenant = world.control.record("default", "hello").unwrap().tenant;
    let name = RevisionName::new("default", "hello", "hello-00001");
    world.meter().phase(Metered::of(key, tenant, &name), InstanceId(1), MeterPhase::Busy, 5);
    let (_, usage) = world.call("GET", "/v1/usage", "").await;
    assert_eq!(
        (&usage["tenants"][0]["namespace"], &usage["tenants"][0]["totals"]["busyNs"]),
        (&"default".into(), &5.into())
    );
    let (_, hours) = world.call("GET", "/v1/usage/hours?namespace=default&service=hello", "").await;
    assert_eq!(hours["hours"][0]["totals"]["busyNs"], 5, "{hours}");
    assert_eq!(world.call("GET", "/v1/usage/hours?after=x", "").await.0, 422);
    let (status, refused) = world.call("GET", "/v1/usage/cost", "").await;
    assert_eq!(status, 422, "no price table: {refused}");
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_shown_and_discarded() {
    let world = World::new().await;
    for at in 0..3 {
        let event = r#"{"specversion":"1.0","id":"e","source":"/s","type":"t","data":{"n":1}}"#;
        // The first as versions kept it that had no whole events.
        let event = if at == 0 { String::new() } else { format!(r#", "event": {event}"#) };
        let letter = format!(r#"{{"id": "{at}", "reason": "the service answered 400"{event}}}"#);
        world.store.put(&format!("deadletter/default/t/{at}"), None, letter.into()).await.unwrap();
    }
    let path = "/v1/triggers/default/t/deadletters";
    let (_, letters) = world.call("GET", &format!("{path}?limit=2"), "").await;
    assert_eq!(
        (letters["deadLetters"].as_array().unwrap().len(), &letters["deadLetters"][1]["id"]),
        (2, &"1".into())
    );
    assert_eq!(letters["deadLetters"][0]["event"], serde_json::Value::Null, "{letters}");
    assert_eq!(letters["deadLetters"][1]["event"]["data"]["n"], 1, "{letters}");
    assert_eq!(letters["deadLetters"][1]["letter"], "1", "{letters}");
    assert_eq!(world.call("DELETE", path, "").await.1["discarded"], 3);
    assert_eq!(world.call("GET", path, "").await.1["deadLetters"], serde_json::json!([]));
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_long_or_not_text_are_refused() {
    let world = World::new().await;
    assert_eq!(world.call("POST", "/v1/services", &"a".repeat(6 << 20)).await.0, 413);
    let request = http::Request::post("/v1/services")
        .header("host", "localhost")
        .header("authorization", format!("Bearer {}", support::TOKEN))
        .body(sas_core::Body::from(vec![0xFF_u8, 0xFE]))
        .unwrap();
    let response = sas_core::Handler::handle(&world.admin, request).await;
    assert_eq!(response.status(), 400);
}

#[tokio::test(start_paused = true)]
async fn triggers_without_a_host_are_refused() {
    let world = World::with(Arc::new(MemoryStore::default()), |_| {}).await;
    let ping = "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata: {name: p}\nspec:\n  schedule: '* * * * *'\n  sink: {ref: {kind: Service, name: hello}}\n";
    let (status, answer) = world.call("POST", "/v1/services", ping).await;
    assert_eq!((status, &answer["reason"]), (422, &"unsupported".into()));
    assert_eq!(world.call("DELETE", "/v1/triggers/default/p", "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn revisions_keep_their_author() {
    let world = World::new().await;
    world.call("POST", "/v1/services", &world.manifest("one")).await;
    let (_, shown) = world.call("GET", SERVICE, "").await;
    assert_eq!(shown["revisions"][0]["author"], "admin");
    world.deploy("two").await.unwrap();
    let (_, shown) = world.call("GET", SERVICE, "").await;
    assert_eq!(
        (&shown["revisions"][0]["author"], &shown["revisions"][1]["author"]),
        (&serde_json::Value::Null, &"admin".into())
    );

    // Who changed the service last is kept beside the authors of its revisions.
    world
        .control
        .set_traffic("default", "hello", vec![sas_knative::manifest::TrafficTarget::latest()])
        .await
        .unwrap();
    assert_eq!(world.call("GET", SERVICE, "").await.1["changedBy"], serde_json::Value::Null);
    let (status, rolled) = world.call("POST", &format!("{SERVICE}/rollback"), "").await;
    assert_eq!((status, &rolled["changedBy"]), (200, &"admin".into()));
    let stored = world.control.record("default", "hello").unwrap();
    assert_eq!(stored.changed_by, Some(sas_core::Principal::new("admin")));
    world.control.roll_back("default", "hello", Some("hello-00002")).await.unwrap();
    let traffic = r#"[{"latestRevision": true, "percent": 100}]"#;
    let (status, set) = world.call("PUT", &format!("{SERVICE}/traffic"), traffic).await;
    assert_eq!((status, &set["changedBy"]), (200, &"admin".into()));
}

#[tokio::test(start_paused = true)]
async fn what_did_not_come_back_is_told_until_it_is_back() {
    let store: Arc<dyn sas_core::Store> = Arc::new(MemoryStore::default());
    store.put("service/default/hello", None, "{ torn".into()).await.unwrap();
    store.put("service/default/other", None, "{}".into()).await.unwrap();
    let world = World::with(Arc::clone(&store), |_| {}).await;
    let (status, ready) = world.call("GET", "/readyz", "").await;
    assert_eq!((status, &ready["status"], &ready["missing"]), (200, &"degraded".into(), &2.into()));
    assert_eq!(
        ready["reasons"][0],
        serde_json::json!({"what": "Service default/hello", "reason": "invalid_spec"})
    );
    let (_, recovery) = world.call("GET", "/v1/recovery", "").await;
    assert_eq!(recovery["missing"][1]["what"], "Service default/other");
    assert!(recovery["missing"][0]["message"].as_str().unwrap().contains("deploy it again"), "{recovery}");
    world.deploy("one").await.unwrap();
    let (_, ready) = world.call("GET", "/readyz", "").await;
    assert_eq!(ready["missing"], 1, "{ready}");
    assert_eq!(world.call("DELETE", "/v1/services/default/other", "").await.0, 200);
    assert_eq!(world.call("GET", "/readyz", "").await.1, serde_json::json!({"status": "ready"}));
    assert_eq!(world.control.recovery().failed.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn usage_counts_revisions_that_are_gone() {
    let world = World::new().await;
    let mut expected = 0;
    // More than the registrations that are remembered one by one.
    for at in 0..24_u64 {
        world.deploy(&format!("version {at}")).await.unwrap();
        let latest = world.control.record("default", "hello").unwrap().latest_ready().unwrap().name.clone();
        let key = world.pool.key(&latest).unwrap();
        let name = RevisionName::new("default", "hello", &latest);
        world.meter().requests(Metered::of(key, TenantKey(1), &name), &RequestUsage::of(at + 1));
        expected += at + 1;
        support::eventually(|| world.pool.names().len() == 1).await;
    }
    let (_, usage) = world.call("GET", &format!("{SERVICE}/usage"), "").await;
    assert_eq!(usage["total"]["requests"], expected, "{usage}");
    assert_eq!(usage["usage"].as_array().unwrap().last().unwrap()["totals"]["requests"], 24);
}
