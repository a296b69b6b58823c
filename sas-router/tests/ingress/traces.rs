//! What is told of requests for traces, and what instances are told of the trace that they are part of.

use std::{sync::Arc, time::Duration};

use http::HeaderValue;
use sas_core::{
    Body, Cx, FaasTrigger, Invoker as _, Payer, Purpose, RequestId, Target, TraceContext, TraceSink,
};
use sas_router::{GatewayConfig, ServerConfig};
use sas_testkit::fake::{RecordingTraces, ToldRequest};
use tokio::io::AsyncWriteExt as _;

use crate::support::*;

const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

async fn platform(change: impl FnOnce(&mut GatewayConfig)) -> (Platform, Arc<RecordingTraces>) {
    let traces = Arc::<RecordingTraces>::default();
    let mut config = GatewayConfig::default();
    config.traces = Some(Arc::clone(&traces) as Arc<dyn TraceSink>);
    change(&mut config);
    (Platform::with(spec(), config, ServerConfig::default()).await, traces)
}

/// The one request that was told: told, that is, after its last byte is gone.
async fn told(traces: &RecordingTraces) -> ToldRequest {
    for _ in 0..500 {
        if let Some(told) = traces.requests().pop() {
            return told;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no request was told");
}

/// Answers with the trace that it was told of.
async fn echo_trace() -> sas_router::Server {
    instance(handler(|request| async move {
        let header = |name: &str| {
            request.headers().get(name).map_or("none", |value| value.to_str().unwrap()).to_owned()
        };
        text(200, format!("{} {}", header("traceparent"), header("tracestate")))
    }))
    .await
}

fn parse(answer: &str) -> (TraceContext, String) {
    let (parent, state) = answer.split_once(' ').unwrap();
    (TraceContext::parse(parent.as_bytes()).unwrap(), state.to_owned())
}

fn with_trace(state: &'static str) -> sas_core::Request {
    let mut request = get("/");
    request.headers_mut().insert("traceparent", HeaderValue::from_static(SENT));
    request.headers_mut().insert("tracestate", HeaderValue::from_static(state));
    request
}

#[tokio::test]
async fn an_instance_is_told_the_span_of_its_exchange() {
    let (platform, traces) = platform(|_| {}).await;
    let instance = echo_trace().await;
    let id = platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let (at_instance, state) = parse(&read(client.send(get("/a?secret=1")).await).await);
    let told = told(&traces).await;
    assert_eq!((told.line.as_str(), told.status, told.error), ("GET /a", Some(200), None));
    assert_eq!(told.name.as_deref(), Some("default/hello/hello-00001"));
    assert_eq!((told.parent, told.trigger), (None, FaasTrigger::Http));
    assert_eq!(told.upstream.len(), 1);
    assert_eq!((told.upstream[0].span, told.upstream[0].instance), (at_instance.span, Some(id)));
    assert_ne!(told.upstream[0].span, told.context.span);
    assert_eq!((at_instance.trace, at_instance.flags, state.as_str()), (told.context.trace, 0, "none"));
    assert!(told.upstream[0].answered >= Some(told.upstream[0].began) && !told.waited && !told.aborted);
}

#[tokio::test]
async fn a_trace_that_comes_in_goes_on() {
    let (platform, traces) = platform(|_| {}).await;
    let instance = echo_trace().await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let sent = TraceContext::parse(SENT.as_bytes()).unwrap();

    let (at_instance, state) = parse(&read(client.send(with_trace("vendor=1")).await).await);
    let parent = told(&traces).await.parent.unwrap();
    assert_eq!((parent.context, parent.remote), (sent, true));
    assert_eq!((at_instance.trace, state.as_str()), (sent.trace, "vendor=1"));
    assert!(!at_instance.sampled(), "the sink says what is sampled, not the client");

    traces.sample(true);
    let (at_instance, state) = parse(&read(client.send(with_trace("VENDOR=1")).await).await);
    assert!(at_instance.sampled() && told(&traces).await.context.sampled());
    assert_eq!(state, "none", "a state that is malformed goes no further");
}

#[tokio::test]
async fn each_attempt_has_a_span_of_its_own() {
    let (platform, traces) = platform(|config| config.retry.attempts = 2).await;
    let dead = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let lost = platform.pool.add_at(platform.revision, dead);
    let instance = echo_trace().await;
    let good = platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..2 {
        let (at_instance, _) = parse(&read(client.send(get("/")).await).await);
        let told = told(&traces).await;
        let last = told.upstream.last().unwrap();
        assert_eq!((last.instance, last.span, last.error), (Some(good), at_instance.span, None));
        if told.upstream.len() == 2 {
            assert_eq!(told.upstream[0].instance, Some(lost));
            assert!(told.upstream[0].error.is_some() && told.upstream[0].span != at_instance.span);
            assert!(told.error.is_none(), "the request itself did not fail");
            return;
        }
    }
    panic!("no request went to the instance that is gone first");
}

#[tokio::test]
async fn a_request_that_the_platform_refuses_is_told_with_its_reason() {
    let (platform, traces) = platform(|_| {}).await;
    let mut client = Client::connect(platform.address()).await;
    read(client.send(get("/")).await).await;
    let refused = told(&traces).await;
    assert_eq!((refused.status, refused.error), (Some(503), Some("queue_full")));
    assert!(refused.waited && refused.upstream.is_empty());

    let mut elsewhere = get("/");
    elsewhere.headers_mut().insert("host", HeaderValue::from_static("nobody.example.com"));
    read(client.send(elsewhere).await).await;
    let lost = told(&traces).await;
    assert_eq!((lost.status, lost.error, lost.name, lost.waited), (Some(404), Some("no_route"), None, false));
}

#[tokio::test]
async fn an_answer_is_told_after_its_last_byte_and_a_broken_one_as_such() {
    let (platform, traces) = platform(|_| {}).await;
    let instance = instance(handler(|request| async move {
        let broken = request.uri().path() == "/broken";
        let _read = request.into_body().collect(100).await;
        let (mut sender, body) = http_body_util::channel::Channel::<bytes::Bytes, sas_core::BoxError>::new(1);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = sender.send_data(bytes::Bytes::from_static(b"12345")).await;
            if broken {
                sender.abort("gone".into());
            }
        });
        sas_core::Response::new(Body::new(body))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(request("POST", "/", "four")).await;
    assert!(traces.requests().is_empty(), "its body is on its way");
    read(response).await;
    let whole = told(&traces).await;
    assert_eq!((whole.bytes, whole.error, whole.aborted), ((4, 5), None, false));

    let response = client.send(get("/broken")).await;
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await;
    assert!(body.is_err());
    assert_eq!(told(&traces).await.error, Some("response_broken"));
}

#[tokio::test]
async fn a_client_that_leaves_is_no_error() {
    let (platform, traces) = platform(|_| {}).await;
    let instance = instance(handler(|_| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        text(200, "late")
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = tokio::net::TcpStream::connect(platform.address()).await.unwrap();
    client.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(client);
    let told = told(&traces).await;
    assert_eq!((told.aborted, told.error, told.status), (true, None, None));
    assert!(told.upstream[0].answered.is_none());
}

#[tokio::test]
async fn a_call_of_the_platform_is_told_with_its_cause_in_the_trace_that_it_carries() {
    let (platform, traces) = platform(|_| {}).await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "hello") }));
    let cx = Cx::new(Payer::Owner, RequestId(0x77), deadline())
        .for_purpose(Purpose::Event)
        .caused_by(FaasTrigger::Timer);
    let target = Target::Service("default/hello".into());
    let response = platform.gateway.invoke(target.clone(), with_trace(""), &cx).await.unwrap();
    read(response).await;
    let one = told(&traces).await;
    let parent = one.parent.unwrap();
    assert_eq!(
        (one.trigger, parent.remote, parent.context.to_string().as_str()),
        (FaasTrigger::Timer, false, SENT)
    );
    assert!(one.context.sampled(), "what a span of the platform decided holds for what is below it");

    read(platform.gateway.invoke(target, get("/"), &cx).await.unwrap()).await;
    let own = told(&traces).await;
    assert_eq!((own.parent, own.context.trace, own.context.sampled()), (None, 0x77, false));

    platform.pool.remove(platform.revision, own.upstream[0].instance.unwrap());
    let target = Target::Service("default/hello".into());
    platform.gateway.invoke(target, get("/"), &cx).await.unwrap_err();
    let failed = told(&traces).await;
    assert_eq!((failed.status, failed.error, failed.aborted), (None, Some("queue_full"), false));
}

#[tokio::test]
async fn without_a_sink_instances_get_a_trace_all_the_same() {
    let platform = Platform::start().await;
    let instance = echo_trace().await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let sent = TraceContext::parse(SENT.as_bytes()).unwrap();
    let (first, state) = parse(&read(client.send(with_trace("vendor=1")).await).await);
    assert_eq!((first.trace, first.flags, state.as_str()), (sent.trace, 1, "vendor=1"));
    let response = client.send(get("/")).await;
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let (second, _) = parse(&read(response).await);
    assert_eq!(format!("{:032x}", second.trace), id, "a trace that begins here has the request's id");
    assert!(second.span != first.span && !second.sampled());
}
