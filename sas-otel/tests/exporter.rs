//! What leaves, what is lost, and that nobody waits.

mod receiver;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use http::{Method, StatusCode};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::metric::Data,
    trace::v1::{Span, span::SpanKind},
};
use receiver::{Received, receiver, until};
use sas_core::{
    AttemptSpan, DeliverySpan, FaasTrigger, InstanceId, LogRecord, LogStream, NoSink, ParentSpan, Recorder,
    RequestId, RequestSpan, RevisionKey, RevisionName, Secret, StartTimings, TenantKey, Timestamp,
    TraceContext, UpstreamSpan,
};
use sas_otel::{Otel, OtelConfig};
use tokio::time::Instant;

const MS: Duration = Duration::from_millis(1);

/// A configuration that waits for nothing, and what its exporter counts.
fn config(endpoint: &str) -> (OtelConfig, PrometheusHandle) {
    let prometheus = PrometheusBuilder::new().build_recorder();
    let counted = prometheus.handle();
    let mut config = OtelConfig::new(endpoint);
    config.recorder = Recorder::new(Arc::new(prometheus));
    config.batching.delay = 10 * MS;
    config.sampling.ratio = 0.0;
    (config, counted)
}

fn count(counted: &PrometheusHandle, series: &str) -> u64 {
    let text = counted.render();
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.map_or(0, |value| value.parse().unwrap())
}

fn spans(received: &Received) -> Vec<Span> {
    let traces = received.traces.lock();
    let resources = traces.iter().flat_map(|request| &request.resource_spans);
    resources.flat_map(|resource| &resource.scope_spans).flat_map(|scope| scope.spans.clone()).collect()
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    Some(match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        Value::BoolValue(yes) => yes.to_string(),
        other => format!("{other:?}"),
    })
}

fn context(trace: u128) -> TraceContext {
    TraceContext { trace, span: 7, flags: 0 }
}

/// A request that was answered with `status` in ten milliseconds.
fn told(otel: &Otel, context: TraceContext, status: StatusCode) {
    let mut span = RequestSpan::new(context, RequestId(1), &Method::GET, "/");
    span.status = Some(status);
    span.duration = 10 * MS;
    otel.traces().unwrap().request(&span);
}

#[tokio::test]
async fn a_cold_request_is_a_trace_of_its_phases() {
    let (endpoint, received) = receiver().await;
    let (mut config, counted) = config(&endpoint);
    config.attributes.push(("deployment.environment.name".to_owned(), "test".to_owned()));
    config.headers.push(("authorization".to_owned(), Secret::new("Bearer x")));
    let otel = Otel::start(config).unwrap();

    let mut start = StartTimings::default();
    (start.gated, start.spawned, start.ready) = (5 * MS, Some(8 * MS), 90 * MS);
    start.listening = Some(60 * MS);
    let mut exchange = UpstreamSpan::new(0x70, Some(InstanceId(5)), MS, 100 * MS);
    exchange.start = Some(Arc::new(start));
    exchange.answered = Some(130 * MS);
    exchange.status = Some(StatusCode::OK);
    let upstream = [exchange];
    let name = RevisionName::new("shop", "cart", "cart-00001");
    let method = Method::from_bytes(b"BREW").unwrap();
    let mut span = RequestSpan::new(context(0xabc), RequestId(0xdef), &method, "/a");
    span.parent = Some(ParentSpan::new(context(0xabc).with_span(3), true));
    span.trace_state = Some("vendor=1");
    span.host = Some("cart.shop.localhost:8080");
    span.name = Some(&name);
    span.status = Some(StatusCode::OK);
    span.upstream = &upstream;
    span.duration = 150 * MS;
    otel.traces().unwrap().request(&span);

    until("the trace", || !spans(&received).is_empty()).await;
    let spans = spans(&received);
    let names: Vec<&str> = spans.iter().map(|span| span.name.as_str()).collect();
    let phases = ["sas.start.gate", "sas.start.spawn", "sas.start.listen", "sas.start.ready"];
    assert_eq!(names, [&["HTTP shop/cart", "sas.queue"][..], &phases, &["HTTP"]].concat());
    let trace = 0xabc_u128.to_be_bytes();
    assert!(spans.iter().all(|span| span.trace_id == trace));

    let (whole, queue, upstream) = (&spans[0], &spans[1], &spans[6]);
    assert_eq!(
        (whole.span_id.as_slice(), whole.parent_span_id.as_slice()),
        (&7_u64.to_be_bytes()[..], &3_u64.to_be_bytes()[..])
    );
    assert_eq!((whole.kind, whole.trace_state.as_str()), (SpanKind::Server as i32, "vendor=1"));
    assert_eq!(whole.flags & 0x300, 0x300, "its parent is known to be in another process");
    assert_eq!((&queue.parent_span_id, &upstream.parent_span_id), (&whole.span_id, &whole.span_id));
    assert!(spans[2..6].iter().all(|phase| phase.parent_span_id == queue.span_id));
    assert_eq!(
        (upstream.span_id.as_slice(), upstream.kind),
        (&0x70_u64.to_be_bytes()[..], SpanKind::Client as i32)
    );
    let ids: std::collections::HashSet<&[u8]> = spans.iter().map(|span| span.span_id.as_slice()).collect();
    assert_eq!(ids.len(), spans.len());

    // Times are nanoseconds: 150 ms in all, the start counted back from the slot at 100 ms.
    let lasted = |span: &Span| Duration::from_nanos(span.end_time_unix_nano - span.start_time_unix_nano);
    let after = |span: &Span| Duration::from_nanos(span.start_time_unix_nano - whole.start_time_unix_nano);
    assert_eq!((lasted(whole), lasted(queue), lasted(upstream)), (150 * MS, 99 * MS, 50 * MS));
    let starts: Vec<Duration> = spans[2..6].iter().map(after).collect();
    assert_eq!(starts, [10 * MS, 15 * MS, 18 * MS, 70 * MS]);
    assert_eq!(lasted(&spans[5]), 30 * MS);
    assert_eq!(upstream.events[0].time_unix_nano - whole.start_time_unix_nano, 130_000_000);

    for (key, value) in [
        ("http.request.method", "_OTHER"),
        ("http.request.method_original", "BREW"),
        ("url.path", "/a"),
        ("url.scheme", "http"),
        ("server.address", "cart.shop.localhost"),
        ("server.port", "8080"),
        ("http.response.status_code", "200"),
        ("faas.trigger", "http"),
        ("faas.invocation_id", "00000000000000000000000000000def"),
        ("faas.coldstart", "true"),
        ("faas.name", "shop/cart"),
        ("faas.version", "cart-00001"),
    ] {
        assert_eq!(text(&whole.attributes, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(text(&upstream.attributes, "faas.invoked_name").as_deref(), Some("shop/cart"));
    assert_eq!(text(&upstream.attributes, "faas.instance").as_deref(), Some("i-00000005"));

    let request = received.traces.lock()[0].clone();
    let resource = request.resource_spans[0].resource.clone().unwrap().attributes;
    assert_eq!(text(&resource, "service.name").as_deref(), Some("sas"));
    assert_eq!(text(&resource, "deployment.environment.name").as_deref(), Some("test"));
    assert_eq!(request.resource_spans[0].schema_url, sas_otel::SCHEMA_URL);
    assert_eq!(received.headers.lock()[0]["authorization"], "Bearer x");
    until("the count", || count(&counted, "sas_otel_exported_total{signal=\"traces\"}") == 7).await;
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[tokio::test]
async fn failures_and_cold_starts_are_kept_and_the_rest_by_ratio() {
    let (endpoint, received) = receiver().await;
    let (config, _) = config(&endpoint);
    let otel = Otel::start(config).unwrap();
    let sink = otel.traces().unwrap();
    assert!(!sink.samples(u128::MAX, None), "a ratio of zero");
    let parent = |flags, remote| Some(ParentSpan::new(TraceContext { trace: 1, span: 2, flags }, remote));
    assert!(sink.samples(1, parent(1, true)) && !sink.samples(1, parent(0, true)));
    told(&otel, context(1), StatusCode::OK);
    told(&otel, context(2), StatusCode::NOT_FOUND);
    told(&otel, context(3), StatusCode::BAD_GATEWAY);
    told(&otel, context(4).with_sampled(true), StatusCode::OK);
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let kept: Vec<u8> = spans(&received).iter().map(|span| span.trace_id[15]).collect();
    assert_eq!(kept, [3, 4]);
    let failed = &spans(&received)[0];
    assert_eq!(text(&failed.attributes, "error.type").as_deref(), Some("502"));
    assert_eq!(failed.status.as_ref().unwrap().code, 2);

    let mut config = OtelConfig::new(&endpoint);
    config.sampling.ratio = 0.25;
    config.sampling.parent = false;
    let otel = Otel::start(config).unwrap();
    let sink = otel.traces().unwrap();
    let spread = |n: u128| n.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let sampled = (1..=10_000_u128).filter(|n| sink.samples(spread(*n), None)).count();
    assert!((2_300..2_700).contains(&sampled), "{sampled} of 10,000");
    let strangers = (1..=1_000_u128).filter(|n| sink.samples(spread(*n), parent(1, true))).count();
    assert!((180..320).contains(&strangers), "a stranger's word counts for nothing: {strangers}");
    assert!(sink.samples(1, parent(1, false)), "that of a span of the platform does");
}

#[tokio::test]
async fn a_delivery_has_its_attempts() {
    let (endpoint, received) = receiver().await;
    let (config, _) = config(&endpoint);
    let otel = Otel::start(config).unwrap();
    let mut first = AttemptSpan::new(0x11, MS, 3 * MS);
    (first.status, first.error) = (Some(503), Some("the service answered 503".to_owned()));
    let attempts = [first, AttemptSpan::new(0x12, 10 * MS, 12 * MS)];
    let mut span = DeliverySpan::new(context(9), "shop/nightly", "shop/cart");
    (span.id, span.source, span.kind) = ("1", "/cron", "tick");
    span.trigger = FaasTrigger::Timer;
    span.attempts = &attempts;
    span.duration = 12 * MS;
    otel.traces().unwrap().delivery(&span);
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let spans = spans(&received);
    assert_eq!(
        spans.iter().map(|span| span.name.as_str()).collect::<Vec<_>>(),
        ["deliver shop/nightly", "sas.attempt", "sas.attempt"]
    );
    assert!(spans[0].parent_span_id.is_empty() && spans[0].status.is_none(), "it was delivered in the end");
    assert!(spans[1..].iter().all(|attempt| attempt.parent_span_id == spans[0].span_id));
    for (key, value) in [
        ("faas.trigger", "timer"),
        ("cloudevents.event_id", "1"),
        ("cloudevents.event_source", "/cron"),
        ("cloudevents.event_type", "tick"),
        ("sas.target", "shop/cart"),
    ] {
        assert_eq!(text(&spans[0].attributes, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!(text(&spans[1].attributes, "error.type").as_deref(), Some("503"));
    assert_eq!(text(&spans[2].attributes, "http.request.resend_count").as_deref(), Some("1"));
}

#[tokio::test]
async fn a_collector_that_is_busy_gets_it_later() {
    let (endpoint, received) = receiver().await;
    received.busy.store(2, Ordering::SeqCst);
    received.refused.store(1, Ordering::SeqCst);
    let (config, counted) = config(&endpoint);
    let otel = Otel::start(config).unwrap();
    for trace in 1..=5 {
        told(&otel, context(trace).with_sampled(true), StatusCode::OK);
    }
    until("the spans", || spans(&received).len() == 5).await;
    until("the counts", || count(&counted, "sas_otel_exported_total{signal=\"traces\"}") == 4).await;
    assert_eq!(count(&counted, "sas_otel_dropped_total{signal=\"traces\",reason=\"rejected\"}"), 1);
    assert_eq!(count(&counted, "sas_otel_export_failures_total{signal=\"traces\"}"), 2);
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[tokio::test]
async fn nobody_waits_for_a_collector_that_hangs_and_every_loss_is_counted() {
    let (endpoint, received) = receiver().await;
    received.hangs.store(true, Ordering::SeqCst);
    let (mut config, counted) = config(&endpoint);
    config.metrics = false;
    // Room for a hundred requests of one span.
    config.batching.queue_bytes = 100 << 10;
    let otel = Otel::start(config).unwrap();
    let began = Instant::now();
    for trace in 0..10_000 {
        told(&otel, context(trace).with_sampled(true), StatusCode::OK);
    }
    assert!(began.elapsed() < Duration::from_secs(2), "{:?} for 10,000 requests", began.elapsed());
    // A batch may be on its way already, which made room for another.
    let lost = count(&counted, "sas_otel_dropped_total{signal=\"traces\",reason=\"queue\"}");
    assert!((9_800..=9_900).contains(&lost), "{lost}");
    let began = Instant::now();
    otel.shutdown(Instant::now() + 300 * MS).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let late = || count(&counted, "sas_otel_dropped_total{signal=\"traces\",reason=\"shutdown\"}");
    until("the last counts", || lost + late() == 10_000).await;
    told(&otel, context(1).with_sampled(true), StatusCode::OK);
    assert_eq!(lost + late(), 10_001, "after the end, too");
    assert!(spans(&received).is_empty());
}

#[tokio::test]
async fn a_collector_that_is_not_there_costs_what_was_gathered() {
    let nowhere = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let (mut config, counted) = config(&nowhere);
    config.batching.retry_for = Duration::ZERO;
    let otel = Otel::start(config).unwrap();
    told(&otel, context(1).with_sampled(true), StatusCode::OK);
    let failed = || count(&counted, "sas_otel_dropped_total{signal=\"traces\",reason=\"failed\"}");
    until("the loss", || failed() == 1).await;
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_counted_is_told_at_the_end_with_its_units() {
    let (endpoint, received) = receiver().await;
    let (config, counted) = config(&endpoint);
    let otel = Otel::start(config).unwrap();
    let recorder = otel.recorder();
    recorder.describe_counter("shop_orders_total", "Orders.");
    recorder.counter("shop_orders_total", &[("country", "de")]).increment(3);
    recorder.gauge("shop_stock", &[]).set(2.5);
    let upstream = [UpstreamSpan::new(1, Some(InstanceId(1)), MS, 2 * MS)];
    let name = RevisionName::new("shop", "cart", "cart-00001");
    let mut span = RequestSpan::new(context(0x5).with_sampled(true), RequestId(1), &Method::GET, "/");
    (span.name, span.status, span.upstream) = (Some(&name), Some(StatusCode::OK), &upstream);
    span.duration = 42 * MS;
    otel.traces().unwrap().request(&span);
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;

    assert_eq!(count(&counted, "shop_orders_total{country=\"de\"}"), 3, "beside the other recorder");
    let requests = received.metrics.lock();
    let metrics = &requests.last().unwrap().resource_metrics[0].scope_metrics[0].metrics;
    let find = |name: &str| metrics.iter().find(|metric| metric.name == name).unwrap();
    let Some(Data::Sum(orders)) = &find("shop_orders_total").data else { panic!() };
    assert_eq!(text(&orders.data_points[0].attributes, "country").as_deref(), Some("de"));
    assert!(matches!(find("shop_stock").data, Some(Data::Gauge(_))));
    let invoke = find("faas.invoke_duration");
    assert_eq!(invoke.unit, "s");
    let Some(Data::Histogram(told)) = &invoke.data else { panic!() };
    let http = told
        .data_points
        .iter()
        .find(|point| text(&point.attributes, "faas.trigger").as_deref() == Some("http"));
    let http = http.unwrap();
    assert!((http.sum.unwrap() - 0.04).abs() < 1e-9, "seconds from the slot to the end");
    assert_eq!(http.exemplars[0].trace_id, 5_u128.to_be_bytes());
}

#[tokio::test]
async fn lines_are_records_of_their_instance() {
    let (endpoint, received) = receiver().await;
    let (mut config, _) = config(&endpoint);
    config.logs = true;
    let otel = Otel::start(config).unwrap();
    let logs = otel.logs(NoSink::logs());
    let revision = RevisionKey::new(1, 0);
    logs.starts(revision, &RevisionName::new("shop", "cart", "cart-00001"), TenantKey(1));
    let line = |instance, line: &'static [u8]| {
        let record =
            LogRecord::new(InstanceId(instance), revision, Timestamp(1_000), LogStream::Stdout, line);
        logs.line(&record.with_request(RequestId(7)));
    };
    line(1, b"ERROR no stock");
    line(2, b"hello");
    line(1, b"again");
    otel.shutdown(Instant::now() + Duration::from_secs(5)).await;
    let requests = received.logs.lock();
    let resources = &requests[0].resource_logs;
    assert_eq!(resources.len(), 2, "one for each instance");
    let of = |number: usize, key| text(&resources[number].resource.as_ref().unwrap().attributes, key);
    assert_eq!(of(0, "service.name").as_deref(), Some("cart"));
    assert_eq!(of(0, "service.namespace").as_deref(), Some("shop"));
    assert_eq!(of(0, "service.version").as_deref(), Some("cart-00001"));
    assert_eq!(of(1, "service.instance.id").as_deref(), Some("i-00000002"));
    let records = &resources[0].scope_logs[0].log_records;
    assert_eq!(records.len(), 2);
    assert_eq!((records[0].severity_text.as_str(), records[0].time_unix_nano), ("ERROR", 1_000));
    let request = text(&records[0].attributes, "faas.invocation_id");
    assert_eq!(request.as_deref(), Some("00000000000000000000000000000007"));
}

#[tokio::test]
async fn a_wrong_configuration_names_its_fields_and_no_secret() {
    let mut config = OtelConfig::new("localhost:4317");
    config.sampling.ratio = f64::NAN;
    config.batching.most = 0;
    config.headers.push(("bad name".to_owned(), Secret::new("hidden")));
    let errors = Otel::start(config).unwrap_err().to_string();
    for field in ["endpoint", "sampling.ratio", "batching.most", "headers.bad name"] {
        assert!(errors.contains(field), "{errors}");
    }
    assert!(!errors.contains("hidden"), "{errors}");
}
