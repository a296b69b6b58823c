//! Roll-outs through a whole platform in virtual time: capacity that is conserved, sizes before traffic, latencies, blue-green;
//! and what is tried out on live traffic.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sas::{
    core::{
        Artifact, Capabilities, EnvValue, Instance, Pool as _, RevisionKey, RevisionStatus, Runtime,
        StartRequest, Timestamp, TokioClock,
    },
    prelude::*,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const TOKEN: &str = "a-token-of-the-tests";
const START: Timestamp = Timestamp::from_secs(1_767_571_200);

/// Functions whose instances take a second to start, or never start, as the environment of the revision says.
#[derive(Debug)]
struct Starting(InlineRuntime);

#[async_trait::async_trait]
impl Runtime for Starting {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn prepare(&self, spec: &RevisionSpec) -> sas::core::Result<Artifact> {
        self.0.prepare(spec).await
    }
    async fn start(&self, request: StartRequest) -> sas::core::Result<Arc<dyn Instance>> {
        match request.deployed.spec.env.get("START") {
            Some(EnvValue::Literal(how)) if how == "hangs" => std::future::pending().await,
            Some(EnvValue::Literal(how)) if how == "fails" => {
                Err(Error::new(ErrorKind::Crashed, "start", "no such file: config.toml"))
            }
            _ => {
                sleep(Duration::from_secs(1)).await;
                self.0.start(request).await
            }
        }
    }
    async fn quiesce(&self) {
        self.0.quiesce().await;
    }
}

fn runtime() -> Starting {
    let answers = |millis| {
        move |request: Request, _: Cx| async move {
            sleep(Duration::from_millis(millis)).await;
            let copied = request.headers().contains_key("x-sas-mirrored");
            Response::new(Body::from(if copied { "copy" } else { "answer" }))
        }
    };
    Starting(
        InlineRuntime::new()
            .with("quick", answers(100))
            .with("slow", answers(250))
            .with("long", answers(400)),
    )
}

async fn platform(change: impl FnOnce(PlatformBuilder) -> PlatformBuilder) -> Arc<Platform> {
    let builder =
        Platform::builder().admin_token(TOKEN).runtime(runtime()).clock(TokioClock::starting_at(START));
    Arc::new(change(builder).build().await.expect("a platform"))
}

/// A service of four requests at once per instance, on windows of ten seconds.
fn manifest(name: &str, function: &str, version: u32, how: &str, annotations: &[String]) -> String {
    let lines: String = annotations.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
         sas.dev/function: {function}\n    sas.dev/runtime: inline\n{lines}spec:\n  template:\n    metadata:\n      annotations:\n        \
         autoscaling.knative.dev/window: 10s\n        autoscaling.knative.dev/max-scale: \"30\"\n    spec:\n      \
         containerConcurrency: 4\n      containers:\n      - env:\n        - {{name: VERSION, value: \"{version}\"}}\n        \
         - {{name: START, value: \"{how}\"}}\n"
    )
}

async fn deploy(platform: &Platform, name: &str, function: &str, version: u32, how: &str, lines: &[String]) {
    platform.apply(&manifest(name, function, version, how, lines), None).await.expect("deployed");
}

async fn admin(platform: &Platform, method: &str, path: &str, body: &str) -> (u16, Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Body::from(body.to_owned()));
    let response = platform.admin().handle(request.expect("a request")).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

async fn rollout(platform: &Platform) -> Value {
    admin(platform, "GET", "/v1/services/default/hello/rollout", "").await.1["rollout"].clone()
}

/// Clients that ask without a pause.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    errors: Arc<AtomicU64>,
    /// The longest wait for an answer since somebody asked, in milliseconds.
    longest: Arc<AtomicU64>,
}

impl Load {
    fn on(platform: &Arc<Platform>, name: &str, clients: u64) -> Self {
        let load = Self {
            stop: Arc::default(),
            answers: Arc::default(),
            errors: Arc::default(),
            longest: Arc::default(),
        };
        for client in 0..clients {
            let (platform, host) = (Arc::clone(platform), format!("{name}.default.localhost"));
            let (stop, answers) = (Arc::clone(&load.stop), Arc::clone(&load.answers));
            let (errors, longest) = (Arc::clone(&load.errors), Arc::clone(&load.longest));
            tokio::spawn(async move {
                sleep(Duration::from_millis(client * 7)).await;
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let request =
                        http::Request::get("/").header("host", &host).body(Body::empty()).expect("a request");
                    let answer = platform.gateway().handle(request).await;
                    answers.fetch_add(1, Ordering::Relaxed);
                    errors.fetch_add(u64::from(answer.status() != 200), Ordering::Relaxed);
                    longest.fetch_max(asked.elapsed().as_millis() as u64, Ordering::Relaxed);
                    // What is refused at once is not asked for again at once.
                    sleep(Duration::from_millis(1)).await;
                }
            });
        }
        load
    }

    fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn status(platform: &Platform, name: &str, revision: &str) -> RevisionStatus {
    let key: Option<RevisionKey> = platform.control().revision_key("default", name, revision);
    key.and_then(|key| platform.pool().status(key)).unwrap_or_default()
}

async fn until(platform: &Platform, what: &str, seconds: u64, holds: impl Fn(&Value) -> bool) -> Value {
    let by = Instant::now() + Duration::from_secs(seconds);
    loop {
        let view = rollout(platform).await;
        if holds(&view) {
            return view;
        }
        assert!(Instant::now() < by, "{what}: {view:#}");
        sleep(Duration::from_millis(100)).await;
    }
}

const QUICK: [&str; 3] = ["rollout-steps: 5,30,60,100", "rollout-hold: 15s", "rollout-min-requests: \"1\""];

fn lines<'a>(of: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    of.into_iter().map(|line| format!("sas.dev/{line}")).collect()
}

/// The service beside one with the same load and one revision: what the latter needs is what the former may have, and the
/// surge.
async fn conserves(surge: &str, clients: u64) {
    let platform = platform(|builder| builder).await;
    let annotations = lines(QUICK.into_iter().chain([format!("rollout-surge: \"{surge}\"").as_str()]));
    for name in ["hello", "twin"] {
        deploy(&platform, name, "long", 1, "", &annotations).await;
    }
    let loads = ["hello", "twin"].map(|name| Load::on(&platform, name, clients));
    sleep(Duration::from_secs(40)).await;
    let of = |needed: u32| match surge.strip_suffix('%') {
        Some(percent) => (needed * percent.parse::<u32>().expect("a number")).div_ceil(100),
        None => surge.parse().expect("a number"),
    };
    deploy(&platform, "hello", "long", 2, "", &annotations).await;
    let began = Instant::now();
    let (mut needed, mut shares) = (Vec::new(), BTreeMap::new());
    loop {
        let view = rollout(&platform).await;
        needed.push(status(&platform, "twin", "twin-00001").desired);
        let [old, new] = ["hello-00001", "hello-00002"].map(|revision| status(&platform, "hello", revision));
        // The bounds are of a second ago, and the two loads are not in step.
        let most = needed.iter().rev().take(30).max().copied().unwrap_or(0) + 1;
        let together = old.desired + new.desired;
        assert!(
            together <= (most + of(most)).max(2),
            "surge {surge}, {clients} clients: {} and {} with {most} needed at {view}",
            old.desired,
            new.desired,
        );
        if view.is_null() {
            break;
        }
        assert_eq!(view["state"], "moving", "{view}");
        shares.entry(view["percent"].as_u64().expect("percent")).or_insert((old.ready, new.ready));
        assert!(began.elapsed() < Duration::from_secs(300), "it does not come to its end: {view:#}");
        sleep(Duration::from_millis(250)).await;
    }
    // A share came after the instances for it; those for more came while it was held.
    let least = *needed.iter().min().expect("samples");
    for (percent, (_, new)) in &shares {
        let for_it = (least.saturating_sub(1) * *percent as u32) / 100;
        assert!(*new >= for_it, "surge {surge}: {new} instances had {percent} % of {least}: {shares:?}");
    }
    assert!(loads.iter().all(|load| load.errors() == 0));
    let waited = loads[0].longest.load(Ordering::Relaxed);
    drop(loads);
    assert!(waited < 8_000, "a request waited {waited} ms");
    let platform = finish(platform).await;
    platform.shutdown(Duration::from_secs(10)).await;
}

/// The clients are gone after their last answer.
async fn finish(platform: Arc<Platform>) -> Platform {
    let mut platform = platform;
    for _ in 0..1_000 {
        match Arc::try_unwrap(platform) {
            Ok(alone) => return alone,
            Err(shared) => platform = shared,
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("somebody holds the platform");
}

#[tokio::test(start_paused = true)]
async fn both_revisions_together_have_what_one_needs_and_the_surge() {
    for (surge, clients) in [("25%", 24), ("0", 12), ("0", 2)] {
        conserves(surge, clients).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_never_gets_ready_is_stopped_in_time_and_the_old_one_loses_nothing() {
    for (how, within, says) in [("hangs", 60, "after 40 s"), ("fails", 60, "5 starts in a row failed")] {
        let platform = platform(|builder| builder).await;
        let annotations = lines(QUICK.into_iter().chain(["rollout-ready-within: 40s"]));
        deploy(&platform, "hello", "quick", 1, "", &annotations).await;
        let load = Load::on(&platform, "hello", 20);
        sleep(Duration::from_secs(40)).await;
        let ready = status(&platform, "hello", "hello-00001").ready;
        load.longest.store(0, Ordering::Relaxed);
        deploy(&platform, "hello", "quick", 2, how, &annotations).await;
        let by = Instant::now() + Duration::from_secs(within);
        let view = loop {
            let view = rollout(&platform).await;
            if view["state"] == "stopped" {
                break view;
            }
            assert_eq!(view["percent"], 0, "it gets no traffic before it has instances: {view}");
            let has = status(&platform, "hello", "hello-00001").ready;
            assert!(has + 1 >= ready, "{has} of {ready} are left");
            assert!(Instant::now() < by, "{view:#}");
            sleep(Duration::from_millis(500)).await;
        };
        let reason = view["reason"].as_str().expect("a reason");
        assert!(reason.contains(says), "{reason}");
        assert_eq!(load.errors(), 0);
        assert!(load.longest.load(Ordering::Relaxed) < 1_000, "nobody waited");
        drop(load);
        finish(platform).await.shutdown(Duration::from_secs(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn blue_green_switches_once_and_goes_back_without_a_start() {
    let platform = platform(|builder| builder).await;
    let annotations = lines(["rollout: blue-green", "rollout-keep-old: 60s"]);
    deploy(&platform, "hello", "quick", 1, "", &annotations).await;
    let load = Load::on(&platform, "hello", 20);
    sleep(Duration::from_secs(40)).await;
    let ready = status(&platform, "hello", "hello-00001").ready;
    deploy(&platform, "hello", "quick", 2, "", &annotations).await;
    assert_eq!(rollout(&platform).await["percent"], 0, "first its instances");
    let view = until(&platform, "switched", 30, |view| view["percent"] != 0).await;
    assert_eq!(
        (&view["percent"], &view["state"], &view["kind"]),
        (&json!(100), &json!("moving"), &json!("blue-green"))
    );
    assert!(status(&platform, "hello", "hello-00002").ready >= ready, "sized for all of it");
    sleep(Duration::from_secs(45)).await;
    let kept = status(&platform, "hello", "hello-00001");
    assert!(kept.ready + 1 >= ready && kept.in_flight == 0, "kept warm: {kept:?}");

    load.longest.store(0, Ordering::Relaxed);
    let (code, view) =
        admin(&platform, "POST", "/v1/services/default/hello/rollout", r#"{"action": "stop"}"#).await;
    assert_eq!((code, &view["traffic"][0]["revisionName"]), (200, &json!("hello-00001")), "{view}");
    sleep(Duration::from_secs(20)).await;
    assert_eq!(load.errors(), 0);
    let waited = load.longest.load(Ordering::Relaxed);
    assert!(waited < 900, "a start takes a second, and a request waited {waited} ms");

    // Once more, to its end: then the old one goes.
    admin(&platform, "POST", "/v1/services/default/hello/rollout", r#"{"action": "restart"}"#).await;
    until(&platform, "switched again", 30, |view| view["percent"] == 100).await;
    until(&platform, "over", 70, Value::is_null).await;
    assert_eq!(load.errors(), 0);
    drop(load);
    finish(platform).await.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_slow_canary_is_stopped_with_numbers_and_an_equal_one_is_not() {
    let platform = platform(|builder| builder).await;
    let annotations = lines(["rollout-steps: 20,100", "rollout-hold: 20s", "rollout-max-slower: 50%"]);
    deploy(&platform, "hello", "quick", 1, "", &annotations).await;
    let load = Load::on(&platform, "hello", 12);
    sleep(Duration::from_secs(30)).await;
    deploy(&platform, "hello", "slow", 2, "", &annotations).await;
    let view = until(&platform, "stopped", 120, |view| view["state"] == "stopped").await;
    let reason = view["reason"].as_str().expect("a reason");
    assert!(reason.contains("too slow at 20 %") && reason.contains("p95"), "{reason}");
    deploy(&platform, "hello", "quick", 3, "", &annotations).await;
    let view = until(&platform, "counted", 60, |view| view["latency"]["toMillis"].is_number()).await;
    assert_eq!((&view["maxSlower"], &view["latency"]["quantile"]), (&json!(0.5), &json!(0.95)));
    until(&platform, "through", 300, Value::is_null).await;
    assert_eq!(load.errors(), 0);
    drop(load);
    finish(platform).await.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_service_that_sleeps_is_rolled_out_and_sleeps_on() {
    let platform = platform(|builder| builder).await;
    let annotations = lines(["rollout-steps: 50,100", "rollout-hold: 2s", "rollout-surge: \"0\""]);
    deploy(&platform, "hello", "quick", 1, "", &annotations).await;
    sleep(Duration::from_secs(120)).await;
    deploy(&platform, "hello", "quick", 2, "", &annotations).await;
    assert_eq!(rollout(&platform).await["percent"], 50, "there is nothing to size");
    until(&platform, "over", 60, Value::is_null).await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(status(&platform, "hello", "hello-00002").ready, 0);
    finish(platform).await.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn copies_and_faults_come_from_manifest_and_admin_api() {
    let traffic = "  traffic:\n  - {revisionName: hello-00001, percent: 100}\n  - {latestRevision: true, percent: 0, tag: next}\n";
    let deploy = async |platform: &Platform, version: u32, annotations: &[String], traffic: &str| {
        platform.apply(&(manifest("hello", "quick", version, "", annotations) + traffic), None).await
    };
    let strict = platform(|builder| builder).await;
    let faults = r#"faults: '[{"percent": 50, "abort": 503}]'"#;
    let refused = deploy(&strict, 1, &lines([faults]), "").await.expect_err("not allowed");
    assert!(
        refused.message.contains("--allow-faults") && refused.message.contains("sas.dev/faults"),
        "{refused}"
    );
    finish(strict).await.shutdown(Duration::from_secs(10)).await;

    let platform = platform(PlatformBuilder::allow_faults).await;
    deploy(&platform, 1, &[], "").await.expect("deployed");
    let refused = deploy(&platform, 2, &lines(["mirror: next=50%"]), "").await.expect_err("no such tag");
    assert!(refused.message.contains("sas.dev/mirror") && refused.message.contains("tag"), "{refused}");
    for wrong in [
        "mirror: next",
        "mirror: next=0%",
        "mirror: next=101%",
        "faults: '[{}]'",
        "faults: '[{\"delay\": \"1h\"}]'",
    ] {
        deploy(&platform, 2, &lines([wrong]), traffic).await.expect_err(wrong);
    }
    deploy(&platform, 2, &lines(["mirror: next=50%"]), traffic).await.expect("deployed");
    let ask = async || {
        let request = http::Request::get("/").header("host", "hello.default.localhost").body(Body::empty());
        platform.gateway().handle(request.expect("a request")).await
    };
    for _ in 0..10 {
        assert_eq!(ask().await.status(), 200);
    }
    sleep(Duration::from_secs(5)).await;
    let (_, page) = admin(&platform, "GET", "/v1/services/default/hello/mirror", "").await;
    assert_eq!(
        (&page["mirror"], &page["counts"]["answered"]),
        (&json!({"tag": "next", "percent": 50}), &json!(5)),
        "{page}"
    );
    let (_, usage) = admin(&platform, "GET", "/v1/services/default/hello/usage", "").await;
    assert!(usage.to_string().contains("\"mirrored\":5"), "{usage}");

    let path = "/v1/services/default/hello";
    for (body, status) in [
        (r#"{"tag": "none", "percent": 5}"#, 422),
        (r#"{"tag": "next"}"#, 422),
        ("{}", 422),
        (r#"{"tag": "next", "percent": 100}"#, 200),
    ] {
        assert_eq!(admin(&platform, "PUT", &format!("{path}/mirror"), body).await.0, status, "{body}");
    }
    assert_eq!(admin(&platform, "DELETE", &format!("{path}/mirror"), "").await.0, 200);
    assert_eq!(
        admin(&platform, "GET", &format!("{path}/mirror"), "").await.1,
        json!({"mirror": null, "counts": null})
    );

    for (body, status) in [
        ("{}", 422),
        (r#"{"faults": [{"percent": 10}]}"#, 422),
        (r#"{"faults": [{"abort": 200}]}"#, 422),
        (r#"{"faults": [{"revision": "hello-00009", "abort": 500}]}"#, 422),
        (
            r#"{"faults": [{"path": "/", "percent": 30, "delay": "250ms", "abort": 503}, {"revision": "hello-00002", "abort": 500}]}"#,
            200,
        ),
    ] {
        let (got, said) = admin(&platform, "PUT", &format!("{path}/faults"), body).await;
        assert_eq!(got, status, "{body}: {said}");
    }
    let mut aborted = 0;
    for _ in 0..20 {
        let answer = ask().await;
        if answer.status() == 503 {
            assert_eq!(answer.headers()["x-sas-fault"], "delay=250ms, abort=503");
            aborted += 1;
        }
    }
    assert_eq!(aborted, 6);
    let (_, page) = admin(&platform, "GET", &format!("{path}/faults"), "").await;
    assert_eq!((&page["faults"][0]["met"], &page["faults"][1]["met"]), (&json!(6), &json!(0)), "{page}");
    let (_, diagnosis) = admin(&platform, "GET", "/v1/diagnosis", "").await;
    let found = diagnosis["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .find(|found| found["name"] == "faults_on_purpose");
    assert!(found.is_some_and(|found| found.to_string().contains("6 requests met one")), "{diagnosis}");
    assert_eq!(admin(&platform, "DELETE", &format!("{path}/faults"), "").await.0, 200);
    assert_eq!(ask().await.status(), 200);
    finish(platform).await.shutdown(Duration::from_secs(10)).await;
}
