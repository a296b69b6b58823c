//! Quotas and roll-outs through a whole platform: manifest, control plane, gateway, instances.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sas::{
    core::{Payer, Triggers as _},
    prelude::*,
};
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};

use crate::{TOKEN, admin};

/// Three functions: one that answers, one that fails, one that waits until it is told to go on.
fn functions(go_on: &Arc<Notify>) -> InlineRuntime {
    let waits = Arc::clone(go_on);
    InlineRuntime::new()
        .with("good", |_: Request, _cx| async { Response::new(Body::from("good")) })
        .with("better", |_: Request, _cx| async { Response::new(Body::from("better")) })
        .with("bad", |_: Request, _cx| async {
            let mut response = Response::new(Body::from("bad"));
            *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
            response
        })
        .with("waits", move |_: Request, _cx| {
            let waits = Arc::clone(&waits);
            async move {
                waits.notified().await;
                Response::new(Body::from("done"))
            }
        })
}

fn manifest(namespace: &str, name: &str, function: &str, annotations: &[&str]) -> String {
    let lines: String = annotations.iter().map(|line| format!("    {line}\n")).collect();
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
         annotations:\n    sas.dev/function: {function}\n{lines}spec:\n  template:\n    spec: {{}}\n"
    )
}

/// A request from outside.
async fn ask(platform: &Platform, namespace: &str, name: &str) -> (u16, String, Option<String>) {
    let request = http::Request::get("/")
        .header("host", format!("{name}.{namespace}.localhost"))
        .body(Body::empty())
        .expect("a request");
    let response = platform.gateway().handle(request).await;
    let retry = response.headers().get("retry-after").map(|after| after.to_str().expect("digits").to_owned());
    let status = response.status().as_u16();
    let body = response.into_body().collect(4096).await.expect("a body");
    (status, String::from_utf8_lossy(&body).into_owned(), retry)
}

fn reason(body: &str) -> String {
    let said: Value = serde_json::from_str(body).expect("JSON");
    said["reason"].as_str().expect("a word").to_owned()
}

#[tokio::test]
async fn quotas_come_from_builder_annotation_and_admin_api() {
    let go_on = Arc::new(Notify::new());
    let platform = Platform::builder()
        .admin_token(TOKEN)
        .runtime(functions(&go_on))
        // So slow that the test sees no second token, however long it takes.
        .tenant_quota("frugal", Quota::rate(0.0001, 3))
        .quotas(|quotas| quotas.per_service = Quota::UNLIMITED.with_concurrency(2))
        .build()
        .await
        .expect("a platform");
    for (namespace, name, function, annotations) in [
        ("frugal", "one", "good", &[][..]),
        ("frugal", "two", "good", &[]),
        ("free", "many", "good", &[]),
        ("free", "slow", "waits", &[]),
        ("free", "slower", "waits", &["sas.dev/quota-concurrency: \"1\""]),
        ("free", "rated", "good", &["sas.dev/quota-rate: \"0.0001\"", "sas.dev/quota-burst: \"1\""]),
    ] {
        platform.apply(&manifest(namespace, name, function, annotations), None).await.expect("deployed");
    }

    // A tenant's requests to all of its services are one sum.
    for name in ["one", "two", "one"] {
        assert_eq!(ask(&platform, "frugal", name).await.0, 200);
    }
    let (status, body, retry) = ask(&platform, "frugal", "two").await;
    assert_eq!((status, reason(&body).as_str()), (429, "tenant_rate"));
    assert!(retry.expect("Retry-After").parse::<u64>().expect("seconds") > 1);
    for _ in 0..20 {
        assert_eq!(ask(&platform, "free", "many").await.0, 200, "another tenant is not held to it");
    }

    assert_eq!(ask(&platform, "free", "rated").await.0, 200);
    let (status, body, _) = ask(&platform, "free", "rated").await;
    assert_eq!((status, reason(&body).as_str()), (429, "service_rate"));

    // At once: two by what all services may, one by the annotation.
    let platform = Arc::new(platform);
    for (name, at_once) in [("slow", 2), ("slower", 1)] {
        let waiting: Vec<_> = (0..at_once)
            .map(|_| {
                let platform = Arc::clone(&platform);
                tokio::spawn(async move { ask(&platform, "free", name).await })
            })
            .collect();
        let by = Instant::now() + Duration::from_secs(20);
        loop {
            let revision = format!("{name}-00001");
            let key = platform.control().revision_key("free", name, &revision).expect("it runs");
            let status = sas::core::Pool::status(&**platform.pool(), key).expect("registered");
            if status.in_flight == at_once {
                break;
            }
            assert!(Instant::now() < by, "{name}: {} in flight", status.in_flight);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let (status, body, _) = ask(&platform, "free", name).await;
        assert_eq!((status, reason(&body).as_str()), (429, "service_concurrency"), "{name}");
        for one in waiting {
            go_on.notify_one();
            assert_eq!(one.await.expect("no panic").0, 200);
        }
    }

    // The admin API lifts what the builder said, and what it said is back when that is taken away.
    assert_eq!(admin(&platform, "PUT", "/v1/quotas/frugal", r#"{"rate": null}"#).await.0, 200);
    for _ in 0..10 {
        assert_eq!(ask(&platform, "frugal", "one").await.0, 200);
    }
    assert_eq!(admin(&platform, "DELETE", "/v1/quotas/frugal", "").await.0, 200);
    assert_eq!(ask(&platform, "frugal", "one").await.0, 429);
    let platform = Arc::into_inner(platform).expect("no task holds it");
    assert!(platform.shutdown(Duration::from_secs(10)).await.drained);
}

const PLAN: [&str; 3] = [
    "sas.dev/rollout-steps: 20,60,100",
    "sas.dev/rollout-hold: 300ms",
    "sas.dev/rollout-min-requests: \"20\"",
];

/// Asks without a pause until it is dropped; how many answers were errors.
struct Load {
    stop: Arc<AtomicBool>,
    errors: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<usize>,
}

impl Load {
    fn on(platform: &Arc<Platform>) -> Self {
        let (stop, errors) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let (platform, stop, errors) = (Arc::clone(platform), Arc::clone(&stop), Arc::clone(&errors));
            async move {
                let mut answered = 0;
                while !stop.load(Ordering::Relaxed) {
                    let (status, ..) = ask(&platform, "default", "hello").await;
                    answered += 1;
                    if status != 200 {
                        errors.fetch_add(1, Ordering::Relaxed);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                answered
            }
        });
        Self { stop, errors, task }
    }

    async fn end(self) -> (usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        let answered = self.task.await.expect("no panic");
        (answered, self.errors.load(Ordering::Relaxed))
    }
}

async fn until(platform: &Platform, what: &str, holds: impl Fn(&Value) -> bool) {
    let by = Instant::now() + Duration::from_secs(60);
    loop {
        let (_, view) = admin(platform, "GET", "/v1/services/default/hello", "").await;
        if holds(&view) {
            return;
        }
        assert!(Instant::now() < by, "{what}: {view:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_roll_out_by_annotation_stops_at_errors_and_finishes_without() {
    let go_on = Arc::new(Notify::new());
    let platform =
        Platform::builder().admin_token(TOKEN).runtime(functions(&go_on)).build().await.expect("a platform");
    let platform = Arc::new(platform);
    let deploy = async |function: &str| {
        platform.apply(&manifest("default", "hello", function, &PLAN), None).await.expect("deployed");
    };
    deploy("good").await;

    let load = Load::on(&platform);
    deploy("bad").await;
    until(&platform, "it is stopped", |view| view["rollout"]["state"] == "stopped").await;
    until(&platform, "all is with the old one", |view| {
        view["traffic"].as_array().is_some_and(|traffic| {
            traffic.len() == 1 && traffic[0]["revisionName"] == "hello-00001" && traffic[0]["percent"] == 100
        })
    })
    .await;
    let (answered, errors) = load.end().await;
    // It was seen within a second or two of a fifth of the traffic: never the whole.
    assert!(errors >= 2 && errors * 2 < answered, "{errors} of {answered} failed");
    for _ in 0..100 {
        assert_eq!(ask(&platform, "default", "hello").await.1, "good");
    }

    let load = Load::on(&platform);
    deploy("better").await;
    until(&platform, "it is through", |view| {
        view["rollout"].is_null() && view["traffic"][0]["revisionName"] == "hello-00003"
    })
    .await;
    let (answered, errors) = load.end().await;
    assert!(errors == 0 && answered > 0, "{errors} of {answered} failed");
    for _ in 0..100 {
        assert_eq!(ask(&platform, "default", "hello").await.1, "better");
    }
    let platform = Arc::into_inner(platform).expect("no task holds it");
    platform.shutdown(Duration::from_secs(10)).await;
}

fn ping(namespace: &str, sink: &str, more: &str) -> String {
    format!(
        "apiVersion: sources.knative.dev/v1\nkind: PingSource\nmetadata:\n  name: tick\n  namespace: {namespace}\n{more}spec:\n  schedule: '* * * * * *'\n  sink: {sink}\n"
    )
}

#[tokio::test]
async fn a_trigger_stays_in_its_namespace_unless_the_other_grants_it_and_pays_for_what_it_wakes() {
    let go_on = Arc::new(Notify::new());
    let platform = Platform::builder()
        .runtime(functions(&go_on))
        .tenant_quota("poor", Quota::rate(0.0001, 2))
        .build()
        .await
        .expect("a platform");
    platform.apply(&manifest("rich", "victim", "good", &[]), None).await.expect("deployed");
    platform.apply(&manifest("poor", "own", "good", &[]), None).await.expect("deployed");
    let to_victim = "{ref: {kind: Service, name: victim, namespace: rich}}";
    for (sink, more, field) in [
        (to_victim, "", "spec.sink"),
        ("{uri: 'http://victim.rich.svc.cluster.local/'}", "", "spec.sink"),
        ("{ref: {kind: Service, name: nobody, namespace: rich}}", "", "spec.sink"),
        (
            "{ref: {kind: Service, name: own}}",
            "  annotations: {sas.dev/dead-letter: rich/victim}\n",
            "metadata.annotations[sas.dev/dead-letter]",
        ),
    ] {
        let error = platform.apply(&ping("poor", sink, more), None).await.expect_err(sink);
        let fields = error.fields().expect("fields");
        assert_eq!(fields.0[0].field, field, "{error}");
        assert!(fields.0[0].problem.contains("sas.dev/events-from"), "the remedy: {error}");
    }
    assert!(platform.triggers().status().is_empty());

    let granting =
        |to: &str| manifest("rich", "victim", "good", &[&format!("sas.dev/events-from: \"{to}\"")]);
    platform.apply(&granting("other, poor"), None).await.expect("deployed");
    platform.apply(&ping("poor", to_victim, ""), None).await.expect("granted");
    let status = platform.triggers().status();
    assert_eq!(status.len(), 1);
    assert!(status[0].fires.next.is_some(), "it says when it fires next");

    // What poor's calls wake, poor's quota pays: a third of them is too many.
    let tenant = platform.control().record("poor", "own").expect("there").tenant;
    let call = async |payer: Payer| {
        let cx = Cx::new(payer, RequestId(1), Instant::now() + Duration::from_secs(10));
        let request = http::Request::get("/").body(Body::empty()).expect("a request");
        platform.gateway().invoke(Target::Service("rich/victim".into()), request, &cx).await
    };
    let mut refused = 0;
    for _ in 0..6 {
        if let Err(error) = call(tenant.into()).await {
            assert_eq!(error.error.kind, ErrorKind::Exhausted, "{error}");
            refused += 1;
        }
    }
    assert!(refused >= 4, "{refused} of 6 were refused, with a quota of 2");
    assert_eq!(call(Payer::Owner).await.expect("an answer").status(), 200, "its own calls are its own");

    platform.apply(&granting("other"), None).await.expect("deployed");
    assert!(platform.triggers().status().is_empty(), "a grant that is taken back stops the trigger");
    platform.apply(&granting("*"), None).await.expect("deployed");
    assert_eq!(platform.triggers().status().len(), 1, "and one that is given again starts it");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_schedule_that_never_fires_is_refused() {
    let go_on = Arc::new(Notify::new());
    let platform = Platform::builder().runtime(functions(&go_on)).build().await.expect("a platform");
    platform.apply(&manifest("default", "hello", "good", &[]), None).await.expect("deployed");
    for schedule in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 1 1 ? 2001", "0 0 0 29 2 ? 2027"] {
        let source = ping("default", "{ref: {kind: Service, name: hello}}", "");
        let source = source.replace("'* * * * * *'", &format!("'{schedule}'"));
        let error = platform.apply(&source, None).await.expect_err(schedule);
        let fields = error.fields().expect("fields");
        assert_eq!(
            (fields.0[0].field.as_str(), fields.0[0].value.as_str()),
            ("spec.schedule", schedule),
            "{error}"
        );
        assert!(fields.0[0].problem.contains("never"), "{error}");
    }
    assert!(platform.triggers().status().is_empty());
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_stored_trigger_of_a_kind_of_one_s_own_comes_back() {
    use sas::trigger::{EventTemplate, SchedulePolicy, TimerTrigger};
    let go_on = Arc::new(Notify::new());
    let store: Arc<dyn sas::core::Store> = Arc::new(sas::core::MemoryStore::default());
    let build = async |known: bool| {
        let mut builder = Platform::builder().runtime(functions(&go_on)).store(Arc::clone(&store));
        if known {
            builder = builder.trigger_kind("heartbeat", |spec| {
                let mut errors = sas::core::SpecErrors::default();
                let given = spec.options.get("seconds").map_or("", String::as_str);
                let Ok(seconds) = given.parse::<u64>() else {
                    errors.push("options.seconds", given, "must be whole seconds");
                    return Err(errors);
                };
                let template = EventTemplate::new("/heart", "beat");
                let timer =
                    TimerTrigger::new(Duration::from_secs(seconds), SchedulePolicy::default(), template);
                Ok(Arc::new(timer.expect("a period")) as _)
            });
        }
        builder.build().await.expect("a platform")
    };
    let platform = build(true).await;
    platform.apply(&manifest("default", "hello", "good", &[]), None).await.expect("deployed");
    let spec = |seconds| {
        sas::core::TriggerSpec::new("default/heart", "heartbeat", "default/hello")
            .with_option("seconds", seconds)
    };
    let refused = platform.control().apply_trigger(spec("soon")).await.expect_err("no number");
    assert!(refused.to_string().contains("must be whole seconds"), "{refused}");
    platform.control().apply_trigger(spec("5")).await.expect("declared");
    platform.shutdown(Duration::from_secs(5)).await;

    let platform = build(true).await;
    assert!(platform.control().recovery().failed.is_empty(), "{:?}", platform.control().recovery());
    assert_eq!(platform.triggers().status()[0].name, "default/heart");
    platform.shutdown(Duration::from_secs(5)).await;

    let platform = build(false).await;
    let missing = platform.control().recovery().failed;
    assert_eq!(missing.len(), 1);
    assert_eq!(missing[0].0, "Trigger default/heart");
    assert!(missing[0].1.to_string().contains("heartbeat"), "{}", missing[0].1);
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_build_error_is_told_apart_by_its_type() {
    use sas::{BuildError, BuildPart};
    fn is_error<T: std::error::Error + Send + Sync + 'static>() {}
    is_error::<BuildError>();
    is_error::<sas::core::CallError>();
    is_error::<sas::core::Denied>();
    is_error::<Error>();
    is_error::<sas::core::SpecErrors>();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("its address");
    let token = Platform::builder().admin_token("two words").build().await.expect_err("no token");
    let quota =
        Platform::builder().tenant_quota("a", Quota::rate(-1.0, 1)).build().await.expect_err("no quota");
    let listen = Platform::builder().listen(address).build().await.expect_err("it is taken");
    let admin = Platform::builder().admin(address).build().await.expect_err("it is taken");
    assert!(matches!(token, BuildError::Part { part: BuildPart::AdminToken, .. }), "{token}");
    assert!(matches!(quota, BuildError::Config { part: BuildPart::TenantQuota, .. }), "{quota}");
    assert!(matches!(listen, BuildError::Part { part: BuildPart::Ingress, .. }), "{listen}");
    assert!(matches!(admin, BuildError::Part { part: BuildPart::Admin, .. }), "{admin}");
}
