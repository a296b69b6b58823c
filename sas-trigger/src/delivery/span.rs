//! What a trace will say of a delivery, gathered on its way and told when it is over.

use std::sync::Arc;

use http::HeaderMap;
use sas_core::{
    AttemptSpan, CallTimings, DeliverySpan, Event, FaasTrigger, ParentSpan, RequestId, Response,
    TraceContext, TraceSink,
};
use tokio::time::Instant;

use super::{Attempt, letters::Failure};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The delivery of an event, or of a batch, until it is told.
#[derive(Debug)]
pub(super) struct SpanDraft {
    sink: Arc<dyn TraceSink>,
    trigger: FaasTrigger,
    context: TraceContext,
    parent: Option<ParentSpan>,
    state: Option<String>,
    began: Instant,
    attempts: Vec<AttemptSpan>,
    cold: bool,
}

/// The context that an event carries by CloudEvents' extension for distributed tracing.
pub(super) fn context_of(event: &Event) -> Option<TraceContext> {
    TraceContext::parse(event.extensions().get(TRACEPARENT)?.to_text().as_bytes())
}

impl SpanDraft {
    /// A delivery that begins now: in the trace of a single event, in one of its own for several. `id` names it.
    pub(super) fn begin(
        sink: &Arc<dyn TraceSink>,
        trigger: FaasTrigger,
        events: &[Event],
        id: RequestId,
    ) -> Self {
        let single = if let [event] = events { Some(event) } else { None };
        let came = single.and_then(context_of);
        // Ids of deliveries are clocks and counters: mixed, they are spread as those of traces have to be.
        let (high, low) = (mix((id.0 >> 64) as u64), mix(id.0 as u64));
        let own =
            TraceContext { trace: (u128::from(high) << 64 | u128::from(low)).max(1), span: 1, flags: 0 };
        let context = came.unwrap_or(own).with_span(mix(high ^ low).max(1));
        // A source is no part of this platform's traces: what it says of sampling is as good as a client's word.
        let parent = came.map(|context| ParentSpan::new(context, true));
        let sampled = sink.samples(context.trace, parent);
        let state = single.filter(|_| came.is_some()).and_then(|event| event.extensions().get(TRACESTATE));
        Self {
            sink: Arc::clone(sink),
            trigger,
            context: context.with_sampled(sampled),
            parent,
            state: state.map(|state| state.to_text().into_owned()),
            began: Instant::now(),
            attempts: Vec::new(),
            cold: false,
        }
    }

    /// An attempt begins: the context of its span.
    pub(super) fn attempts(&mut self) -> TraceContext {
        let span = mix(self.context.span.wrapping_add(1 + self.attempts.len() as u64)).max(1);
        let now = self.began.elapsed();
        self.attempts.push(AttemptSpan::new(span, now, now));
        self.context.with_span(span)
    }

    /// A service has answered: whether it was woken for it.
    pub(super) fn answered(&mut self, response: &Response) {
        let timings = response.extensions().get::<CallTimings>();
        self.cold |= timings.is_some_and(|timings| timings.cold);
        if let Some(last) = self.attempts.last_mut() {
            last.status = Some(response.status().as_u16());
        }
    }

    /// The attempt is over.
    pub(super) fn attempted(&mut self, attempt: &Attempt) {
        match attempt {
            Attempt::Done(_) => self.ended(None),
            Attempt::Again(failure, _) | Attempt::Refused(failure) => self.ended(Some(failure)),
        }
    }

    pub(super) fn ended(&mut self, failure: Option<&Failure>) {
        let after = self.began.elapsed();
        let Some(last) = self.attempts.last_mut() else { return };
        last.ended = after;
        if let Some(failure) = failure {
            last.status = failure.status.or(last.status);
            last.error = Some(failure.reason.clone());
        }
    }

    /// The delivery is over: done, or given up for a reason.
    pub(super) fn tell(self, events: &[Event], trigger: &str, target: &str, error: Option<&str>) {
        let Some(first) = events.first() else { return };
        let mut span = DeliverySpan::new(self.context, trigger, target);
        span.parent = self.parent;
        span.trace_state = self.state.as_deref();
        span.trigger = self.trigger;
        (span.id, span.source, span.kind) = (first.id(), first.source(), first.kind());
        span.events = events.len();
        span.attempts = &self.attempts;
        span.error = error;
        span.cold = self.cold;
        span.duration = self.began.elapsed();
        self.sink.delivery(&span);
    }
}

/// An event as part of the trace of whoever passes it on.
pub(super) fn carried(event: Event, context: Option<TraceContext>) -> Event {
    match context {
        // The name is a valid one.
        Some(context) => event.clone().with_extension(TRACEPARENT, context.to_string()).unwrap_or(event),
        None => event,
    }
}

/// Puts the trace that an event belongs to into a request, and the span of the attempt if there is one.
pub(super) fn put(headers: &mut HeaderMap, event: &Event, context: Option<TraceContext>) {
    for name in [TRACEPARENT, TRACESTATE] {
        let value = event.extensions().get(name);
        if let Some(value) = value.and_then(|value| http::HeaderValue::try_from(&*value.to_text()).ok()) {
            headers.insert(name, value);
        }
    }
    if let Some(context) = context {
        context.put(headers);
    }
}

/// The last step of SplitMix64: neighbouring numbers become such that have nothing in common.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
