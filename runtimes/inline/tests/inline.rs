//! What the inline runtime promises beyond the conformance suite.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::channel::Channel;
use parking_lot::Mutex;
use sas_core::{
    Answer, Body, BoxError, Cx, Deployed, EnvValue, ErrorKind, ExitReport, Instance, InstanceEvents,
    InstanceId, LogRecord, LogSink, Request, RequestId, Response, RevisionKey, RevisionName, RevisionSpec,
    Runtime, Source, StartPhase, StartRequest, TenantKey,
};
use sas_runtime_inline::{Env, InlineRuntime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

#[derive(Debug, Default)]
struct Recorded {
    exits: AtomicU32,
    lines: Mutex<Vec<String>>,
}

impl InstanceEvents for Recorded {
    fn phase(&self, _: InstanceId, _: StartPhase) {}
    fn exited(&self, _: InstanceId, _: ExitReport) {
        self.exits.fetch_add(1, SeqCst);
    }
}

impl LogSink for Recorded {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { line, .. } = *record;
        self.lines.lock().push(String::from_utf8_lossy(line).into_owned());
    }
}

fn spec(function: &str) -> RevisionSpec {
    RevisionSpec::new("inline", Source::Function(function.to_owned()))
}

async fn start(runtime: &Arc<InlineRuntime>, spec: RevisionSpec) -> (Arc<dyn Instance>, Arc<Recorded>) {
    let artifact = runtime.prepare(&spec).await.expect("prepared");
    let deployed = Arc::new(Deployed::new(
        Arc::clone(runtime) as Arc<dyn Runtime>,
        artifact,
        Arc::new(spec),
        RevisionName::new("default", "f", "f-00001"),
        TenantKey(1),
    ));
    let told = Arc::new(Recorded::default());
    let request = StartRequest::new(
        InstanceId(1),
        RevisionKey::new(0, 0),
        deployed,
        Arc::clone(&told) as Arc<dyn LogSink>,
        Arc::clone(&told) as Arc<dyn InstanceEvents>,
        Instant::now() + Duration::from_secs(5),
    );
    let instance = runtime.try_start(&request).expect("starts at once").expect("started");
    (instance, told)
}

fn cx() -> Cx {
    Cx::new(TenantKey(1), RequestId(7), Instant::now() + Duration::from_secs(5))
}

async fn answered(instance: &dyn Instance, request: Request) -> Response {
    match instance.call(request, &cx()).await {
        Ok(Answer::Http(response)) => response,
        other => panic!("expected an answer, got {other:?}"),
    }
}

#[tokio::test]
async fn a_panic_ends_its_call_and_nothing_else() {
    let runtime = Arc::new(InlineRuntime::new().with("moody", |request: Request, _cx| async move {
        assert!(request.uri().path() != "/panic", "asked to");
        Response::new(Body::from("fine"))
    }));
    let (instance, told) = start(&runtime, spec("moody")).await;
    let bad = http::Request::get("/panic").body(Body::empty()).unwrap();
    let error = instance.call(bad, &cx()).await.expect_err("panicked");
    assert_eq!(error.error.kind, ErrorKind::Crashed);
    assert!(error.unsent.is_none(), "the function had the request");
    assert!(told.lines.lock()[0].contains("asked to"));
    let body = answered(&*instance, Request::default()).await.into_body().collect(100).await.unwrap();
    assert_eq!(body, "fine");
    assert_eq!(told.exits.load(SeqCst), 0);
}

#[tokio::test]
async fn a_panic_before_the_first_await_is_caught_too() {
    let runtime = Arc::new(InlineRuntime::new().with("eager", |request: Request, _cx| {
        assert!(request.uri().path() == "never", "at once");
        async { Response::default() }
    }));
    let (instance, _) = start(&runtime, spec("eager")).await;
    let error = instance.call(Request::default(), &cx()).await.expect_err("panicked");
    assert_eq!(error.error.kind, ErrorKind::Crashed);
}

#[tokio::test]
async fn a_panic_in_the_body_is_an_error_of_the_body() {
    struct Bomb;
    impl http_body::Body for Bomb {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
            panic!("in the middle")
        }
    }
    let runtime =
        Arc::new(InlineRuntime::new().with("bomb", |_, _| async { Response::new(Body::new(Bomb)) }));
    let (instance, told) = start(&runtime, spec("bomb")).await;
    let body = answered(&*instance, Request::default()).await.into_body();
    assert!(body.collect(100).await.unwrap_err().to_string().contains("panicked"));
    assert!(told.lines.lock()[0].contains("in the middle"));
}

#[tokio::test]
async fn an_error_is_a_500_whose_text_only_the_log_has() {
    let runtime = Arc::new(
        InlineRuntime::new()
            .with("fails", |_, _| async { Err::<Response, BoxError>("password is hunter2".into()) }),
    );
    let (instance, told) = start(&runtime, spec("fails")).await;
    let response = answered(&*instance, Request::default()).await;
    assert_eq!(response.status(), 500);
    let body = response.into_body().collect(1000).await.unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("\"request_id\":\"00000000000000000000000000000007\""), "{text}");
    assert!(!text.contains("hunter2"));
    assert!(told.lines.lock()[0].contains("hunter2"));
}

#[tokio::test(start_paused = true)]
async fn a_call_ends_at_its_deadline() {
    let runtime = Arc::new(InlineRuntime::new().with("stuck", |_, _| async {
        std::future::pending::<()>().await;
        Response::default()
    }));
    let (instance, _) = start(&runtime, spec("stuck")).await;
    let before = Instant::now();
    let error = instance.call(Request::default(), &cx()).await.expect_err("late");
    assert_eq!(error.error.kind, ErrorKind::Timeout);
    assert_eq!(before.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_calls_finish_and_refuses_new_ones() {
    let runtime = Arc::new(InlineRuntime::new().with("slow", |_, _| async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Response::new(Body::from("done"))
    }));
    let (instance, told) = start(&runtime, spec("slow")).await;
    let running = tokio::spawn({
        let instance = Arc::clone(&instance);
        async move { answered(&*instance, Request::default()).await.into_body().collect(10).await.unwrap() }
    });
    tokio::task::yield_now().await;
    let stopping = tokio::spawn({
        let instance = Arc::clone(&instance);
        async move { instance.stop(Duration::from_secs(10)).await }
    });
    tokio::task::yield_now().await;
    let refused = instance.call(Request::default(), &cx()).await.expect_err("stopping");
    assert!(refused.unsent.is_some(), "another instance can have it");
    assert_eq!(told.exits.load(SeqCst), 0);
    assert_eq!(running.await.unwrap(), "done");
    stopping.await.unwrap().expect("stopped");
    assert_eq!(told.exits.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_cuts_calls_and_streams_after_the_grace_also_when_it_is_dropped() {
    let runtime = Arc::new(
        InlineRuntime::new()
            .with("stuck", |_, _| async {
                std::future::pending::<()>().await;
                Response::default()
            })
            .with("drip", |_, _| async {
                let (sender, body) = Channel::<Bytes, BoxError>::new(1);
                std::mem::forget(sender);
                Response::new(Body::new(body))
            }),
    );
    for function in ["stuck", "drip"] {
        let (instance, told) = start(&runtime, spec(function)).await;
        let running = tokio::spawn({
            let instance = Arc::clone(&instance);
            async move {
                match instance.call(Request::default(), &cx()).await {
                    Ok(Answer::Http(response)) => {
                        response.into_body().collect(10).await.map_err(|error| error.to_string())
                    }
                    other => Err(format!("{other:?}")),
                }
            }
        });
        tokio::task::yield_now().await;
        let dropped = tokio::time::timeout(Duration::from_millis(1), instance.stop(Duration::from_secs(2)));
        assert!(dropped.await.is_err(), "a call is running");
        let before = Instant::now();
        let text = running.await.unwrap().expect_err("cut");
        assert!(text.contains("stopped"), "{text}");
        assert!(before.elapsed() >= Duration::from_millis(1900));
        runtime.quiesce().await;
        assert_eq!(told.exits.load(SeqCst), 1, "{function}");
    }
}

#[tokio::test]
async fn an_instance_that_is_only_dropped_tells_its_exit() {
    let runtime = Arc::new(InlineRuntime::new().with("f", |_, _| async { Response::default() }));
    let (instance, told) = start(&runtime, spec("f")).await;
    drop(instance);
    assert_eq!(told.exits.load(SeqCst), 1);
}

#[tokio::test]
async fn a_function_can_switch_protocols() {
    let runtime = Arc::new(InlineRuntime::new().with("echo", |_, _| async {
        let (ours, theirs) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(theirs);
            tokio::io::copy(&mut read, &mut write).await.unwrap();
        });
        let head = http::Response::builder().status(101).body(()).unwrap();
        Answer::Upgrade { head, io: Box::new(ours) }
    }));
    let (instance, told) = start(&runtime, spec("echo")).await;
    let Ok(Answer::Upgrade { mut io, .. }) = instance.call(Request::default(), &cx()).await else {
        panic!("expected an upgrade");
    };
    io.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    io.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"ping");
    instance.stop(Duration::ZERO).await.expect("stopped");
    assert_eq!(told.exits.load(SeqCst), 1);
    assert!(io.write_all(b"late").await.is_err());
}

#[tokio::test]
async fn the_declared_environment_is_an_extension_that_does_not_show_its_values() {
    let runtime = Arc::new(InlineRuntime::new().with("env", |request: Request, _cx| async move {
        let env = request.extensions().get::<Env>().expect("declared").clone();
        Response::new(Body::from(format!("{} {env:?}", env.get("GREETING").unwrap())))
    }));
    let mut spec = spec("env");
    spec.env.insert("GREETING".into(), EnvValue::Literal("hi".into()));
    let (instance, _) = start(&runtime, spec).await;
    let body = answered(&*instance, Request::default()).await.into_body().collect(100).await.unwrap();
    assert_eq!(body, r#"hi {"GREETING"}"#);
}

#[tokio::test]
async fn a_new_registration_leaves_prepared_revisions_alone() {
    let runtime = Arc::new(InlineRuntime::new().with("f", |_, _| async { Response::new(Body::from("old")) }));
    let (old, _) = start(&runtime, spec("f")).await;
    runtime.register("f", |_, _| async { Response::new(Body::from("new")) });
    let (new, _) = start(&runtime, spec("f")).await;
    for (instance, expected) in [(old, "old"), (new, "new")] {
        let body = answered(&*instance, Request::default()).await.into_body();
        assert_eq!(body.collect(10).await.unwrap(), expected);
    }
}

#[tokio::test]
async fn a_spec_that_can_never_run_is_refused_with_every_mistake() {
    let runtime = InlineRuntime::new().with("known", |_, _| async { Response::default() });
    let mut wrong = spec("unknown");
    wrong.port = Some(8080);
    wrong.command = vec!["run".into()];
    wrong.options.insert("sas.dev/wasm-reuse".into(), "1".into());
    let error = runtime.prepare(&wrong).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    for part in
        ["source.function", "unknown", "known functions: known", "port", "command", "sas.dev/wasm-reuse"]
    {
        assert!(error.message.contains(part), "{part} is not in {}", error.message);
    }
    let path = RevisionSpec::new("inline", Source::Path("x".into()));
    assert!(runtime.prepare(&path).await.expect_err("refused").message.contains("source"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_and_a_stop_that_race_tell_one_exit() {
    for _ in 0..200 {
        let runtime = Arc::new(InlineRuntime::new().with("f", |_, _| async {
            tokio::task::yield_now().await;
            Response::default()
        }));
        let (instance, told) = start(&runtime, spec("f")).await;
        let calls: Vec<_> = (0..8)
            .map(|_| {
                let instance = Arc::clone(&instance);
                tokio::spawn(async move { instance.call(Request::default(), &cx()).await.is_ok() })
            })
            .collect();
        let stops: Vec<_> = (0..2)
            .map(|_| {
                let instance = Arc::clone(&instance);
                tokio::spawn(async move { instance.stop(Duration::from_secs(5)).await })
            })
            .collect();
        for stop in stops {
            stop.await.unwrap().expect("stopped");
        }
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(told.exits.load(SeqCst), 1);
    }
}
