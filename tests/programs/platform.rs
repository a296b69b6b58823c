//! The `platform` example as its users meet it: a process, real programs, the admin API.

use std::{fs, time::Duration};

use crate::shared::{
    Answer, PlatformProcess, call, call_admin, eventually, hello, hello_manifest, platform_command,
    processes_below,
};

async fn admin(platform: &PlatformProcess, method: &str, path: &str, body: &str) -> Answer {
    call_admin(platform.admin, method, path, body).await.expect("the admin API answers")
}

async fn get(platform: &PlatformProcess, service: &str, path: &str) -> Answer {
    let host = format!("{service}.default.localhost");
    call(platform.listen, "GET", &host, path, "").await.expect("the ingress answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_deployed_called_inspected_and_deleted() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let manifest = dir.path().join("hello.yaml");
    fs::write(&manifest, hello_manifest("hello", "", 0)).expect("written");
    let platform = PlatformProcess::start(&[manifest.to_str().expect("UTF-8")]);
    let ready = async || {
        let shown = admin(&platform, "GET", "/v1/services/default/hello", "").await.json();
        let condition = &shown["conditions"][0];
        assert_eq!(condition["type"], "Ready", "{shown}");
        (condition["status"].clone(), condition["reason"].clone())
    };

    assert_eq!(ready().await, ("Unknown".into(), "NeverStarted".into()), "a deploy alone proves nothing");
    let answer = get(&platform, "hello", "/").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, "hello from hello-00001\n"));
    assert_eq!(ready().await, ("True".into(), "".into()), "an instance has started");
    assert!(answer.head.contains("x-request-id: "), "every answer has a request id: {}", answer.head);

    assert_eq!(admin(&platform, "GET", "/healthz", "").await.status, 200);
    assert_eq!(admin(&platform, "GET", "/readyz", "").await.status, 200);
    assert!(admin(&platform, "GET", "/metrics", "").await.body.contains("sas_"), "Prometheus text");
    assert!(admin(&platform, "GET", "/v1/services", "").await.body.contains("hello"));
    let service = "/v1/services/default/hello";
    assert_eq!(admin(&platform, "GET", service, "").await.status, 200);
    let instances = admin(&platform, "GET", &format!("{service}/instances"), "").await;
    assert!(instances.body.contains("ready"), "{}", instances.body);
    eventually("a decision is recorded", Duration::from_secs(20), async || {
        admin(&platform, "GET", &format!("{service}/decisions"), "").await.body.contains("reason")
    })
    .await;
    eventually("the program's line is in the log", Duration::from_secs(10), async || {
        admin(&platform, "GET", &format!("{service}/logs"), "").await.body.contains("listens on port")
    })
    .await;
    let invoked = admin(&platform, "POST", &format!("{service}/invoke"), r#"{"path":"/"}"#).await;
    assert_eq!(invoked.status, 200, "{}", invoked.body);
    assert!(invoked.body.contains("hello from"), "{}", invoked.body);

    let refused = admin(
        &platform,
        "PUT",
        &format!("{service}/traffic"),
        r#"[{"revisionName":"hello-00001","percent":90}]"#,
    )
    .await;
    assert!((400..500).contains(&refused.status) && refused.body.contains("100"), "{refused:?}");
    let unknown = get(&platform, "nobody", "/").await;
    assert_eq!(unknown.status, 404);
    assert!(unknown.json()["request_id"].is_string(), "{}", unknown.body);

    let deleted = admin(&platform, "DELETE", service, "").await;
    assert!((200..300).contains(&deleted.status), "{deleted:?}");
    assert_eq!(get(&platform, "hello", "/").await.status, 404);
    assert!(platform.terminate().success(), "SIGTERM drains and exits with 0");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whose_time_is_over_before_the_start_is_hears_what_the_program_said() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (program, manifest) = (dir.path().join("app"), dir.path().join("slow.yaml"));
    fs::write(&program, "#!/bin/sh\necho 'no answer of db.example:5432 yet'\nexec sleep 60\n")
        .expect("written");
    let text = hello_manifest("slow", "", 0)
        .replace(&hello().display().to_string(), &program.display().to_string())
        .replace("      containers:", "      timeoutSeconds: 3\n      containers:");
    fs::write(&manifest, text).expect("written");
    let platform = PlatformProcess::start(&[manifest.to_str().expect("UTF-8")]);
    let answer = get(&platform, "slow", "/").await;
    assert_eq!((answer.status, &answer.json()["reason"]), (504, &"start_timeout".into()), "{answer:?}");
    assert!(answer.body.contains("no answer of db.example:5432 yet"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_die_with_a_killed_host_and_services_come_back() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state");
    let manifest = dir.path().join("hello.yaml");
    fs::write(&manifest, hello_manifest("hello", "", 4)).expect("written");
    let arguments = ["--state", state.to_str().expect("UTF-8"), manifest.to_str().expect("UTF-8")];
    let mut platform = PlatformProcess::start(&arguments);

    let mut load = tokio::task::JoinSet::new();
    let listen = platform.listen;
    for _ in 0..16 {
        load.spawn(async move {
            while call(listen, "GET", "hello.default.localhost", "/work?ms=20", "").await.is_ok() {}
        });
    }
    eventually("instances run", Duration::from_secs(20), async || !processes_below(&state).is_empty()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    platform.kill();
    load.join_all().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(processes_below(&state), Vec::<u32>::new(), "a second later none of its instances runs");

    let platform = PlatformProcess::start(&arguments[..2]);
    let answer = get(&platform, "hello", "/").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(platform.terminate().success());
    assert_eq!(processes_below(&state), Vec::<u32>::new());
}

const FOLLOWED: &str = "apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: life, namespace: ops}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: to-file, namespace: ops}
spec:
  source: {kind: broker, options: {broker: life, start: earliest}}
  filter: {prefix: {type: dev.sas.}}
  target: {sink: file, options: {name: life}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_published_to_a_broker_and_a_trigger_gets_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (state, files) = (dir.path().join("state"), dir.path().join("events"));
    let platform = PlatformProcess::start(&[
        "--state",
        state.to_str().expect("UTF-8"),
        "--event-files",
        files.to_str().expect("UTF-8"),
        "--lifecycle-events",
        "ops/life",
    ]);
    let done = async |method: &str, path: &str, body: &str| {
        let answer = admin(&platform, method, path, body).await;
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
    };
    done("POST", "/v1/services", FOLLOWED).await;
    let heard = || -> Vec<serde_json::Value> {
        let text = fs::read_to_string(files.join("ops.life.jsonl")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let of = |kind: &str, revision: &str| {
        let mut heard = heard();
        heard.retain(|event| event["type"] == format!("dev.sas.{kind}"));
        heard.retain(|event| revision.is_empty() || event["data"]["revision"] == revision);
        heard
    };
    let comes = async |kind: &str, revision: &str| {
        eventually(kind, Duration::from_secs(20), async || !of(kind, revision).is_empty()).await;
    };
    done("POST", "/v1/services", &hello_manifest("hello", "", 0)).await;
    assert_eq!(get(&platform, "hello", "/").await.status, 200);
    comes("revision.ready", "hello-00001").await;
    comes("scaled", "hello-00001").await;
    // It may sleep again by now.
    assert_eq!(get(&platform, "hello", "/").await.status, 200);
    for process in processes_below(&state) {
        let killed = std::process::Command::new("kill").args(["-KILL", &process.to_string()]).status();
        assert!(killed.expect("kill runs").success());
    }
    comes("instance.failed", "hello-00001").await;
    let crashed = &of("instance.failed", "hello-00001")[0];
    assert_eq!((&crashed["subject"], &crashed["namespace"]), (&"default/hello".into(), &"default".into()));
    assert_eq!(crashed["data"]["reason"], "crashed");
    assert_eq!(crashed["data"]["message"], "killed by signal 9", "{crashed}");
    done("POST", "/v1/services/default/hello/disable", r#"{"reason": "over"}"#).await;
    done("PUT", "/v1/engines/bank", r#"{"kind": "dedicated", "namespaces": ["bank"]}"#).await;
    done("DELETE", "/v1/services/default/hello", "").await;
    for kind in
        ["service.deployed", "service.disabled", "service.deleted", "engine.provisioning", "engine.ready"]
    {
        comes(kind, "").await;
    }
    let mut ids: Vec<String> = heard().iter().map(|event| event["id"].to_string()).collect();
    let all = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), all, "each comes once, with an id of its own");
    let metrics = admin(&platform, "GET", "/metrics", "").await.body;
    assert!(metrics.contains(r#"sas_lifecycle_events_total{outcome="published"}"#), "{metrics}");
    assert!(platform.terminate().success());
}

#[tokio::test]
async fn mistakes_end_it_with_words_that_name_them() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address").to_string();
    let bad = dir.path().join("bad.yaml");
    fs::write(
        &bad,
        hello_manifest("hello", "", 0).replace("containerConcurrency: 0", "containerConcurrency: -1"),
    )
    .expect("written");
    let bad = bad.to_str().expect("UTF-8").to_owned();
    let free = "127.0.0.1:0";
    for (args, words) in [
        (vec!["--listen", &address, "--admin", free], address.as_str()),
        (vec!["--listen", "nonsense", "--admin", free], "nonsense"),
        (vec!["--listen", free, "--admin", free, "missing.yaml"], "missing.yaml"),
        (vec!["--listen", free, "--admin", free, &bad], "containerConcurrency"),
        (vec!["--unknown"], "--unknown"),
        // Its token stands in SAS_ADMIN_TOKEN.
        (vec!["--listen", free, "--admin", free, "--admin-token-file", &bad], "SAS_ADMIN_TOKEN"),
    ] {
        let output = platform_command(&args).output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
    assert!(hello().exists());
}
