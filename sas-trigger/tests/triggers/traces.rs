//! What is told of deliveries for traces, and what services are told of the trace that they are part of.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use http::StatusCode;
use sas_core::{
    Ack, Body, Event, EventSink as _, FaasTrigger, Invoker, Response, Store, TraceContext, TraceSink,
};
use sas_testkit::fake::{FakeInvoker, FakeStore, RecordingTraces};
use sas_trigger::{Delivery, DeliveryConfig};
use tokio::sync::Semaphore;

const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn answering(statuses: &'static [u16]) -> Arc<FakeInvoker> {
    let at = AtomicU32::new(0);
    FakeInvoker::new(move |_| {
        let at = at.fetch_add(1, Ordering::Relaxed) as usize;
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::from_u16(statuses.get(at).copied().unwrap_or(200)).unwrap();
        Ok(response)
    })
}

fn delivery(invoker: &Arc<FakeInvoker>, traces: &Arc<RecordingTraces>) -> Delivery {
    let mut config = DeliveryConfig::new("default/t", "default/hello");
    config.cause = FaasTrigger::Timer;
    config.batch = 10;
    Delivery::new(
        config,
        Arc::clone(invoker) as Arc<dyn Invoker>,
        Arc::new(FakeStore::default()) as Arc<dyn Store>,
        Arc::new(Semaphore::new(4)),
    )
    .with_traces(Arc::clone(traces) as Arc<dyn TraceSink>)
}

fn event(id: &str) -> Event {
    Event::new(id, "/clock", "tick").unwrap()
}

/// The contexts that the service was told of, call by call.
fn at_service(invoker: &FakeInvoker) -> Vec<TraceContext> {
    invoker.seen().iter().map(|call| TraceContext::of(call.head.headers()).unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_a_span_that_the_service_is_below() {
    let (invoker, traces) = (answering(&[503]), Arc::<RecordingTraces>::default());
    traces.sample(true);
    let delivery = delivery(&invoker, &traces);
    let slot = delivery.ready().await.unwrap();
    assert_eq!(delivery.deliver(slot, event("7")).await.unwrap(), Ack::Completed);
    let told = traces.deliveries().pop().unwrap();
    assert_eq!((told.parent, told.trigger, told.error.as_deref()), (None, FaasTrigger::Timer, None));
    assert_eq!(told.names, ("default/t".to_owned(), "default/hello".to_owned()));
    assert_eq!((told.event, told.attempts.len()), (("7".to_owned(), 1), 2));
    assert_eq!((told.attempts[0].status, told.attempts[1].status), (Some(503), Some(200)));
    assert!(told.attempts[0].error.as_deref().unwrap().contains("503") && told.attempts[1].error.is_none());
    assert_eq!((told.attempts[1].began - told.attempts[0].ended).as_millis(), 500, "the wait between them");
    for (attempt, context) in told.attempts.iter().zip(at_service(&invoker)) {
        assert_eq!((context.trace, context.span), (told.context.trace, attempt.span));
        assert!(context.sampled());
    }
    assert_ne!(told.attempts[0].span, told.attempts[1].span);
}

#[tokio::test(start_paused = true)]
async fn an_event_goes_on_in_its_trace() {
    let (invoker, traces) = (answering(&[400]), Arc::<RecordingTraces>::default());
    let delivery = delivery(&invoker, &traces);
    let slot = delivery.ready().await.unwrap();
    let event = event("7").with_extension("traceparent", SENT).unwrap();
    let event = event.with_extension("tracestate", "vendor=1").unwrap();
    assert_eq!(delivery.deliver(slot, event).await.unwrap(), Ack::Stored);
    let told = traces.deliveries().pop().unwrap();
    assert_eq!(told.parent.unwrap().context.to_string(), SENT);
    assert!(told.error.unwrap().contains("400"));
    let service = at_service(&invoker)[0];
    assert_eq!(
        service,
        TraceContext::parse(SENT.as_bytes()).unwrap().with_span(told.attempts[0].span).with_sampled(false)
    );
    assert_eq!(invoker.seen()[0].head.headers()["tracestate"], "vendor=1");
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_one_delivery_in_a_trace_of_its_own() {
    let (invoker, traces) = (answering(&[]), Arc::<RecordingTraces>::default());
    let delivery = delivery(&invoker, &traces);
    let slot = delivery.ready().await.unwrap();
    let first = event("1").with_extension("traceparent", SENT).unwrap();
    let acks = delivery.deliver_batch(slot, vec![first, event("2")]).await;
    assert!(acks.iter().all(Result::is_ok));
    let told = traces.deliveries().pop().unwrap();
    assert_eq!((told.parent, told.event, told.attempts.len()), (None, ("1".to_owned(), 2), 1));
    assert_eq!(at_service(&invoker)[0].span, told.attempts[0].span);
}

#[tokio::test(start_paused = true)]
async fn ids_of_traces_are_spread() {
    let (invoker, traces) = (answering(&[]), Arc::<RecordingTraces>::default());
    let delivery = delivery(&invoker, &traces);
    for number in 0..400 {
        let slot = delivery.ready().await.unwrap();
        delivery.deliver(slot, event(&number.to_string())).await.unwrap();
    }
    // By the low 56 bits ratios are decided.
    let low = |trace: u128| trace as u64 & ((1 << 56) - 1);
    let upper = traces.deliveries().iter().filter(|told| low(told.context.trace) >= 1 << 55).count();
    assert!((120..280).contains(&upper), "{upper} of 400 in the upper half");
}
