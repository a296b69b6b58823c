//! Spans of what the platform tells of requests and deliveries.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, StatusCode};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::KeyValue,
    resource::v1::Resource,
    trace::v1::{
        ResourceSpans, ScopeSpans, Span, Status,
        span::{Event, SpanKind},
        status::StatusCode as SpanStatus,
    },
};
use prost::Message as _;
use sas_core::{
    Clock, DeliverySpan, FaasTrigger, ParentSpan, RequestSpan, StartTimings, StepSpan, Timestamp,
    TraceContext, TraceSink, UpstreamSpan,
};

use crate::{
    config::Sampling,
    export::{Queue, Signal},
    faas::FaasMetrics,
    semconv,
    value::{attribute, scope},
};

/// Bits of a trace id that are random.
const RANDOM_BITS: u32 = 56;
/// What a span counts with in the queue.
const SPAN_BYTES: usize = 1024;
/// Flags of a span beside those of its trace: whether its parent is in another process is known, and it is.
const HAS_IS_REMOTE: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

/// Makes spans of requests and deliveries: all of them where the trace is sampled, of the others those that failed or waited
/// for a start.
pub struct OtelTraces {
    sampling: Sampling,
    /// Trace ids from here on are sampled, of their low 56 bits, which are random wherever an id is made (Trace Context,
    /// level 2): OpenTelemetry's consistent probability sampling.
    from: u64,
    clock: Arc<dyn Clock>,
    queue: Option<Arc<Queue<Vec<Span>>>>,
    faas: Option<FaasMetrics>,
}

impl fmt::Debug for OtelTraces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtelTraces").field("sampling", &self.sampling).finish_non_exhaustive()
    }
}

impl OtelTraces {
    /// Spans go to `queue`, and the metrics of functions to `faas`.
    pub(crate) fn new(
        sampling: Sampling,
        clock: Arc<dyn Clock>,
        queue: Option<Arc<Queue<Vec<Span>>>>,
        faas: Option<FaasMetrics>,
    ) -> Self {
        let from = ((1.0 - sampling.ratio.clamp(0.0, 1.0)) * (1_u64 << RANDOM_BITS) as f64) as u64;
        Self { sampling, from, clock, queue, faas }
    }

    fn ratio(&self, trace: u128) -> bool {
        trace as u64 & ((1 << RANDOM_BITS) - 1) >= self.from
    }
}

impl TraceSink for OtelTraces {
    fn samples(&self, trace: u128, parent: Option<ParentSpan>) -> bool {
        if self.queue.is_none() {
            return false;
        }
        match parent {
            Some(parent) if self.sampling.parent || !parent.remote => parent.context.sampled(),
            _ => self.ratio(trace),
        }
    }

    fn request(&self, span: &RequestSpan<'_>) {
        let failed = span.failed();
        let recorded = span.context.sampled() || failed || span.is_cold();
        if let Some(faas) = &self.faas {
            faas.request(span, recorded.then_some(span.context));
        }
        let Some(queue) = self.queue.as_ref().filter(|_| recorded) else { return };
        let count = span.upstream.iter().map(|exchange| if exchange.start.is_some() { 6 } else { 2 });
        let count = 1 + count.sum::<usize>() + usize::from(span.waited_from.is_some());
        queue.offer(count * SPAN_BYTES, count as u64, || request_spans(span, failed, self.clock.now()));
    }

    fn delivery(&self, span: &DeliverySpan<'_>) {
        let recorded = span.context.sampled() || span.failed() || span.cold;
        let Some(queue) = self.queue.as_ref().filter(|_| recorded) else { return };
        let count = 1 + span.attempts.len();
        queue.offer(count * SPAN_BYTES, count as u64, || delivery_spans(span, self.clock.now()));
    }

    fn step(&self, span: &StepSpan<'_>) {
        let recorded = span.context.sampled() || span.error.is_some();
        let Some(queue) = self.queue.as_ref().filter(|_| recorded) else { return };
        queue.offer(SPAN_BYTES, 1, || vec![step_span(span, self.clock.now())]);
    }
}

/// Wall time of moments of one request, which were measured from its arrival.
#[derive(Clone, Copy)]
struct Times {
    arrived: Timestamp,
}

impl Times {
    fn at(self, after: Duration) -> u64 {
        u64::try_from((self.arrived + after).0).unwrap_or(0)
    }
}

fn begin(context: TraceContext, id: u64, parent: u64, name: impl Into<String>, kind: SpanKind) -> Span {
    Span {
        trace_id: context.trace.to_be_bytes().to_vec(),
        span_id: id.to_be_bytes().to_vec(),
        parent_span_id: parent.to_be_bytes().to_vec(),
        flags: u32::from(context.flags) | HAS_IS_REMOTE,
        name: name.into(),
        kind: kind as i32,
        ..Span::default()
    }
}

/// The span of the whole: its parent may be elsewhere, or none.
fn root(
    context: TraceContext,
    parent: Option<ParentSpan>,
    state: Option<&str>,
    name: impl Into<String>,
    kind: SpanKind,
) -> Span {
    let mut span = begin(context, context.span, 0, name, kind);
    match parent {
        Some(parent) => {
            span.parent_span_id = parent.context.span.to_be_bytes().to_vec();
            if parent.remote {
                span.flags |= IS_REMOTE;
            }
        }
        None => span.parent_span_id.clear(),
    }
    span.trace_state = state.unwrap_or_default().to_owned();
    span
}

fn lasts(mut span: Span, times: Times, from: Duration, to: Duration) -> Span {
    span.start_time_unix_nano = times.at(from);
    span.end_time_unix_nano = times.at(to.max(from));
    span
}

fn error(span: &mut Span, kind: &str, message: &str) {
    span.attributes.push(attribute(semconv::ERROR_TYPE, kind));
    span.status = Some(Status { message: message.to_owned(), code: SpanStatus::Error as i32 });
}

/// The id of the `n`-th span below another: a step of SplitMix64, so that it is unlike those that are counted up.
fn below(span: u64, n: u64) -> u64 {
    let mut z = span.wrapping_add(0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(n + 1));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).max(1)
}

/// The method as the conventions want it: an unknown one is not a value of its own.
fn method_attributes(method: &Method, into: &mut Vec<KeyValue>) -> &'static str {
    let known = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"];
    match known.into_iter().find(|known| *known == method.as_str()) {
        Some(known) => {
            into.push(attribute(semconv::HTTP_REQUEST_METHOD, known));
            known
        }
        None => {
            into.push(attribute(semconv::HTTP_REQUEST_METHOD, "_OTHER"));
            into.push(attribute(semconv::HTTP_REQUEST_METHOD_ORIGINAL, method.as_str()));
            "HTTP"
        }
    }
}

fn status_attribute(status: StatusCode) -> KeyValue {
    attribute(semconv::HTTP_RESPONSE_STATUS_CODE, u64::from(status.as_u16()))
}

fn request_spans(told: &RequestSpan<'_>, failed: bool, now: Timestamp) -> Vec<Span> {
    let times = Times { arrived: now - told.duration };
    let mut attributes = Vec::with_capacity(16);
    let method = method_attributes(told.method, &mut attributes);
    let name = match told.name {
        Some(revision) => format!("{method} {}", revision.service_path()),
        None => method.to_owned(),
    };
    let mut whole = root(told.context, told.parent, told.trace_state, name, SpanKind::Server);
    attributes.push(attribute(semconv::URL_PATH, told.path));
    attributes.push(attribute(semconv::URL_SCHEME, told.scheme));
    if let Some(host) = told.host {
        let (address, port) = split_host(host);
        attributes.push(attribute(semconv::SERVER_ADDRESS, address));
        if let Some(port) = port {
            attributes.push(attribute(semconv::SERVER_PORT, u64::from(port)));
        }
    }
    attributes.push(attribute(semconv::FAAS_TRIGGER, told.trigger.as_str()));
    attributes.push(attribute(semconv::FAAS_INVOCATION_ID, told.request.to_string()));
    attributes.push(attribute(semconv::FAAS_COLDSTART, told.is_cold()));
    attributes.push(attribute(semconv::SAS_PURPOSE, purpose(told)));
    if let Some(revision) = told.name {
        attributes.push(attribute(semconv::FAAS_NAME, revision.service_path()));
        attributes.push(attribute(semconv::FAAS_VERSION, revision.revision()));
    }
    attributes.push(attribute(semconv::HTTP_REQUEST_BODY_SIZE, told.bytes_in));
    attributes.push(attribute(semconv::HTTP_RESPONSE_BODY_SIZE, told.bytes_out));
    if let Some(status) = told.status {
        attributes.push(status_attribute(status));
    }
    if told.aborted {
        attributes.push(attribute(semconv::SAS_ABORTED, true));
    }
    whole.attributes = attributes;
    if failed {
        let status = told.status.map(|status| status.as_u16().to_string());
        let kind = told.error.or(status.as_deref()).unwrap_or("_OTHER");
        error(&mut whole, kind, told.message.unwrap_or_default());
    }
    let mut spans = vec![lasts(whole, times, Duration::ZERO, told.duration)];
    for (number, exchange) in told.upstream.iter().enumerate() {
        let last = number + 1 == told.upstream.len();
        exchange_spans(told, exchange, number, last, times, &mut spans);
    }
    if let Some(from) = told.waited_from {
        let id = below(told.context.span, 0);
        let mut queue = begin(told.context, id, told.context.span, "sas.queue", SpanKind::Internal);
        if let Some(kind) = told.error {
            error(&mut queue, kind, told.message.unwrap_or_default());
        }
        spans.push(lasts(queue, times, from, told.duration));
    }
    spans
}

/// The wait for a slot, with the start that it waited for, and the exchange itself.
fn exchange_spans(
    told: &RequestSpan<'_>,
    exchange: &UpstreamSpan,
    number: usize,
    last: bool,
    times: Times,
    spans: &mut Vec<Span>,
) {
    let (context, whole) = (told.context, told.context.span);
    if exchange.instance.is_some() {
        let queue = below(exchange.span, 0);
        let span = begin(context, queue, whole, "sas.queue", SpanKind::Internal);
        spans.push(lasts(span, times, exchange.asked, exchange.began));
        if let Some(start) = &exchange.start {
            start_spans(context, exchange, start, queue, times, spans);
        }
    }
    let mut attributes = Vec::with_capacity(8);
    let method = method_attributes(told.method, &mut attributes);
    let mut span = begin(context, exchange.span, whole, method, SpanKind::Client);
    if let Some(revision) = told.name {
        attributes.push(attribute(semconv::FAAS_INVOKED_NAME, revision.service_path()));
        attributes.push(attribute(semconv::FAAS_INVOKED_PROVIDER, "sas"));
    }
    if let Some(instance) = exchange.instance {
        attributes.push(attribute(semconv::FAAS_INSTANCE, instance.to_string()));
    }
    if number > 0 {
        attributes.push(attribute(semconv::HTTP_REQUEST_RESEND_COUNT, number as u64));
    }
    if let Some(status) = exchange.status {
        attributes.push(status_attribute(status));
    }
    span.attributes = attributes;
    match (exchange.error, exchange.status) {
        (Some(kind), _) => error(&mut span, kind, ""),
        (None, Some(status)) if status.is_client_error() || status.is_server_error() => {
            error(&mut span, status.as_str(), "");
        }
        (None, Some(_)) if last && told.error.is_some() => {
            error(&mut span, told.error.unwrap_or("_OTHER"), "");
        }
        _ => {}
    }
    if let Some(head) = exchange.answered.filter(|_| exchange.error.is_none()) {
        span.events.push(Event {
            time_unix_nano: times.at(head),
            name: "sas.first_byte".to_owned(),
            ..Event::default()
        });
    }
    // What the last one answers is over when the request is.
    let end = if last && exchange.error.is_none() {
        told.duration
    } else {
        exchange.answered.unwrap_or(told.duration)
    };
    spans.push(lasts(span, times, exchange.began, end));
}

/// The phases of a start. It may have begun before the request came: another one waited for it already.
fn start_spans(
    context: TraceContext,
    exchange: &UpstreamSpan,
    start: &StartTimings,
    queue: u64,
    times: Times,
    spans: &mut Vec<Span>,
) {
    // The request got its slot when the instance was ready, or after: times of the start are counted back from there.
    let ready = Times {
        arrived: Timestamp(i64::try_from(times.at(exchange.began)).unwrap_or(i64::MAX)) - start.ready,
    };
    let spawn = if start.from_stem { "sas.start.stem" } else { "sas.start.spawn" };
    let phases = [
        ("sas.start.gate", Some(start.gated)),
        (spawn, start.spawned),
        ("sas.start.listen", start.listening),
        ("sas.start.ready", Some(start.ready)),
    ];
    let mut from = Duration::ZERO;
    for (number, (name, until)) in phases.into_iter().enumerate() {
        let Some(until) = until else { continue };
        let id = below(exchange.span, 1 + number as u64);
        let mut span = begin(context, id, queue, name, SpanKind::Internal);
        if number == 1 {
            span.attributes.push(attribute(semconv::SAS_FROM_STEM, start.from_stem));
        }
        spans.push(lasts(span, ready, from, until));
        from = until.max(from);
    }
}

fn delivery_spans(told: &DeliverySpan<'_>, now: Timestamp) -> Vec<Span> {
    let times = Times { arrived: now - told.duration };
    let kind = if told.trigger == FaasTrigger::Timer { SpanKind::Internal } else { SpanKind::Consumer };
    let name = format!("deliver {}", told.name);
    let mut whole = root(told.context, told.parent, told.trace_state, name, kind);
    whole.attributes = vec![
        attribute(semconv::FAAS_TRIGGER, told.trigger.as_str()),
        attribute(semconv::SAS_TRIGGER, told.name),
        attribute(semconv::SAS_TARGET, told.target),
        attribute(semconv::CLOUDEVENTS_EVENT_ID, told.id),
        attribute(semconv::CLOUDEVENTS_EVENT_SOURCE, told.source),
        attribute(semconv::CLOUDEVENTS_EVENT_TYPE, told.kind),
    ];
    if told.events != 1 {
        whole.attributes.push(attribute(semconv::MESSAGING_BATCH_MESSAGE_COUNT, told.events as u64));
    }
    if let Some(why) = told.error {
        error(&mut whole, "undelivered", why);
    }
    let mut spans = vec![lasts(whole, times, Duration::ZERO, told.duration)];
    for (number, attempt) in told.attempts.iter().enumerate() {
        let mut span = begin(told.context, attempt.span, told.context.span, "sas.attempt", SpanKind::Client);
        if number > 0 {
            span.attributes.push(attribute(semconv::HTTP_REQUEST_RESEND_COUNT, number as u64));
        }
        if let Some(status) = attempt.status {
            span.attributes.push(attribute(semconv::HTTP_RESPONSE_STATUS_CODE, u64::from(status)));
        }
        if let Some(why) = &attempt.error {
            let kind = attempt.status.map_or_else(|| "_OTHER".to_owned(), |status| status.to_string());
            error(&mut span, &kind, why);
        }
        spans.push(lasts(span, times, attempt.began, attempt.ended));
    }
    spans
}

fn step_span(told: &StepSpan<'_>, now: Timestamp) -> Span {
    let times = Times { arrived: now - told.duration };
    let name = match told.step {
        "" => format!("workflow {}", told.workflow),
        step => format!("{} {step}", told.kind),
    };
    let mut span = root(told.context, told.parent, None, name, SpanKind::Internal);
    span.attributes = vec![
        attribute(semconv::SAS_WORKFLOW, format!("{}/{}", told.namespace, told.workflow)),
        attribute(semconv::SAS_WORKFLOW_VERSION, told.version),
        attribute(semconv::SAS_WORKFLOW_RUN, told.run),
    ];
    if !told.step.is_empty() {
        span.attributes.push(attribute(semconv::SAS_WORKFLOW_STEP, told.step));
    }
    if let Some(why) = told.error {
        error(&mut span, told.kind, why);
    }
    lasts(span, times, Duration::ZERO, told.duration)
}

fn purpose(told: &RequestSpan<'_>) -> &'static str {
    use sas_core::Purpose;
    match told.purpose {
        Purpose::Traffic => "traffic",
        Purpose::Event => "event",
        Purpose::Workflow => "workflow",
        Purpose::Test => "test",
        Purpose::Probe => "probe",
        _ => "other",
    }
}

/// A host and its port, without the brackets of an IPv6 address.
fn split_host(host: &str) -> (&str, Option<u16>) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()),
        _ => (host, None),
    };
    (name.trim_start_matches('[').trim_end_matches(']'), port)
}

/// Traces on their way out.
pub(crate) struct TraceSignal {
    pub(crate) resource: Resource,
}

impl Signal for TraceSignal {
    type Item = Vec<Span>;
    const NAME: &'static str = "traces";
    const PATH: &'static str = "/v1/traces";

    fn count(item: &Vec<Span>) -> u64 {
        item.len() as u64
    }

    fn encode(&self, items: Vec<Vec<Span>>) -> Bytes {
        let scope_spans = vec![ScopeSpans {
            scope: Some(scope()),
            spans: items.into_iter().flatten().collect(),
            schema_url: semconv::SCHEMA_URL.to_owned(),
        }];
        let resource_spans = vec![ResourceSpans {
            resource: Some(self.resource.clone()),
            scope_spans,
            schema_url: semconv::SCHEMA_URL.to_owned(),
        }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }

    fn rejected(answer: &[u8]) -> (u64, String) {
        let partial =
            ExportTraceServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
        partial.map_or((0, String::new()), |partial| {
            (u64::try_from(partial.rejected_spans).unwrap_or(0), partial.error_message)
        })
    }
}
