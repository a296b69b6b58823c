//! Traces: W3C's trace context, and what the platform tells of a request or an event when it is over.
//!
//! Router and triggers tell a [`TraceSink`] what they know at the end anyway. They know nothing of spans beyond their ids,
//! and nothing of who exports them.

use std::{fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::{
    FaasTrigger, InstanceId, Purpose, RequestId, RevisionKey, RevisionName, StartTimings, TenantKey,
};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;
/// Members that a `tracestate` may have.
const MOST_MEMBERS: usize = 32;

/// A place in a trace, as the header `traceparent` carries it (W3C Trace Context, level 1): which trace, which span of it,
/// and whether that is recorded.
///
/// ```
/// use sas_core::TraceContext;
/// let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
/// let context = TraceContext::parse(text.as_bytes()).unwrap();
/// assert!(context.sampled());
/// assert_eq!(context.to_string(), text);
/// assert_eq!(TraceContext::parse(b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"), None, "lower case only");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The id of the trace; never zero.
    pub trace: u128,
    /// The id of the span; never zero.
    pub span: u64,
    /// The flags of `traceparent`.
    pub flags: u8,
}

impl TraceContext {
    /// The flag of a trace that is recorded.
    pub const SAMPLED: u8 = 1;

    /// Reads a `traceparent`, strictly: lower-case digits, ids that are not zero, the length of its version. Of versions
    /// after 00 what is known is read. `None` for anything else.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let number = |range: std::ops::Range<usize>| {
            text.get(range)?.iter().try_fold(0_u128, |number, byte| {
                let digit = char::from(*byte).to_digit(16)?;
                (!byte.is_ascii_uppercase()).then_some(number << 4 | u128::from(digit))
            })
        };
        let dashes = [2, 35, 52].iter().all(|at| text.get(*at) == Some(&b'-'));
        let version = number(0..2)?;
        // Version 00 has exactly this length; later ones may go on after a dash.
        let length = text.len() == LENGTH || (version > 0 && text.get(LENGTH) == Some(&b'-'));
        if !dashes || !length || version == 0xff {
            return None;
        }
        let (trace, span, flags) = (number(3..35)?, number(36..52)?, number(53..55)?);
        let flags = if version == 0 { flags as u8 } else { flags as u8 & Self::SAMPLED };
        (trace != 0 && span != 0).then_some(Self { trace, span: span as u64, flags })
    }

    /// The context that a request came with; `None` without one, with one that is malformed, and with several.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let context = Self::parse(all.next()?.as_bytes())?;
        all.next().is_none().then_some(context)
    }

    /// Whether the trace is recorded.
    pub const fn sampled(self) -> bool {
        self.flags & Self::SAMPLED != 0
    }

    /// Another span of the same trace.
    #[must_use]
    pub const fn with_span(self, span: u64) -> Self {
        Self { span, ..self }
    }

    /// The same, recorded or not.
    #[must_use]
    pub const fn with_sampled(self, sampled: bool) -> Self {
        let rest = self.flags & !Self::SAMPLED;
        Self { flags: if sampled { rest | Self::SAMPLED } else { rest }, ..self }
    }

    /// As a `traceparent` of version 00.
    fn to_bytes(self) -> [u8; LENGTH] {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        write_hex(&mut text[3..35], self.trace);
        write_hex(&mut text[36..52], u128::from(self.span));
        write_hex(&mut text[53..55], u128::from(self.flags));
        text
    }

    /// Puts it into the head of a request, as the parent of whatever the receiver does. A `tracestate` stays only if it is
    /// well-formed and belongs to the trace that the request came with.
    pub fn put(self, headers: &mut HeaderMap) {
        if headers.contains_key(TRACESTATE) {
            let same = Self::of(headers).is_some_and(|came| came.trace == self.trace);
            if !same || !headers.get_all(TRACESTATE).iter().all(|state| is_trace_state(state.as_bytes())) {
                headers.remove(TRACESTATE);
            }
        }
        let value = HeaderValue::from_bytes(&self.to_bytes());
        headers.insert(TRACEPARENT, value.expect("hexadecimal digits and dashes"));
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

fn write_hex(into: &mut [u8], number: u128) {
    for (at, digit) in into.iter_mut().rev().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * at)) as usize & 0xf];
    }
}

/// Whether it is a list of members as `tracestate` has them: keys of small letters, digits and `_-*/@`, values of printable
/// characters without comma and equals sign.
fn is_trace_state(state: &[u8]) -> bool {
    let mut members = 0;
    state.split(|byte| *byte == b',').all(|member| {
        let member = member.trim_ascii();
        if member.is_empty() {
            return true;
        }
        members += 1;
        let Some(equals) = member.iter().position(|byte| *byte == b'=') else { return false };
        let (key, value) = (&member[..equals], &member[equals + 1..]);
        let key_byte = |byte: &u8| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || matches!(byte, b'_' | b'-' | b'*' | b'/' | b'@')
        };
        let begins = key.first().is_some_and(|first| first.is_ascii_lowercase() || first.is_ascii_digit());
        members <= MOST_MEMBERS
            && begins
            && key.len() <= 256
            && key.iter().all(key_byte)
            && (1..=256).contains(&value.len())
            && value.iter().all(|byte| matches!(byte, 0x20..=0x2b | 0x2d..=0x3c | 0x3e..=0x7e))
    })
}

/// Where a span hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParentSpan {
    /// The parent.
    pub context: TraceContext,
    /// Whether another process told of it; false: it is a span of this platform.
    pub remote: bool,
}

impl ParentSpan {
    /// A parent in another process, or in this platform.
    pub const fn new(context: TraceContext, remote: bool) -> Self {
        Self { context, remote }
    }
}

/// One exchange with an instance, or with the host that has one. Times count from the arrival of the request.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UpstreamSpan {
    /// Its span, which the instance got as the parent of its own.
    pub span: u64,
    /// The instance; `None`: another host got the request.
    pub instance: Option<InstanceId>,
    /// When a slot was asked for.
    pub asked: Duration,
    /// When there was one, and the exchange began.
    pub began: Duration,
    /// The phases of the start that the request waited for.
    pub start: Option<Arc<StartTimings>>,
    /// When the head of the answer was there, or the exchange had failed; `None`: the request ended before.
    pub answered: Option<Duration>,
    /// The status that was answered.
    pub status: Option<StatusCode>,
    /// Why it failed, as one word.
    pub error: Option<&'static str>,
}

impl UpstreamSpan {
    /// An exchange that begins now.
    pub const fn new(span: u64, instance: Option<InstanceId>, asked: Duration, began: Duration) -> Self {
        Self { span, instance, asked, began, start: None, answered: None, status: None, error: None }
    }
}

/// A request that is over, as the data plane tells it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RequestSpan<'a> {
    /// The span of the whole of it. Sampled: as [`TraceSink::samples`] said when it began.
    pub context: TraceContext,
    /// What it is part of.
    pub parent: Option<ParentSpan>,
    /// The `tracestate` that came with the parent.
    pub trace_state: Option<&'a str>,
    /// The id of the request in logs.
    pub request: RequestId,
    /// Why it was made.
    pub purpose: Purpose,
    /// What caused it.
    pub trigger: FaasTrigger,
    /// The method of the request.
    pub method: &'a Method,
    /// `http` or `https`, as the client spoke.
    pub scheme: &'static str,
    /// The host that was asked for.
    pub host: Option<&'a str>,
    /// The path, without its query: queries hold secrets too often.
    pub path: &'a str,
    /// Whose the service is; `None`: it was refused before that was known.
    pub tenant: Option<TenantKey>,
    /// The revision that was to answer.
    pub revision: Option<RevisionKey>,
    /// Its name.
    pub name: Option<&'a RevisionName>,
    /// The status that was answered; `None`: the caller got an error instead, or went away.
    pub status: Option<StatusCode>,
    /// Why it failed, as one word: the platform's own reason, or that the answer broke off. An answer of 500 or more of an
    /// instance's is no failure of the platform's: see `status`.
    pub error: Option<&'static str>,
    /// The same for a person.
    pub message: Option<&'a str>,
    /// Whether it ended before its last byte.
    pub aborted: bool,
    /// When a slot was asked for in vain, from arrival; `None`: there was one, or none was asked for.
    pub waited_from: Option<Duration>,
    /// The exchanges with instances, in their order: more than one where it was tried again.
    pub upstream: &'a [UpstreamSpan],
    /// Bytes of the request's body that were passed on.
    pub bytes_in: u64,
    /// Bytes of the response's body that were passed on.
    pub bytes_out: u64,
    /// From arrival to the last byte: it ends now.
    pub duration: Duration,
}

impl<'a> RequestSpan<'a> {
    /// A request of an ordinary purpose that has just ended, with nothing known of it but this.
    pub const fn new(context: TraceContext, request: RequestId, method: &'a Method, path: &'a str) -> Self {
        Self {
            context,
            parent: None,
            trace_state: None,
            request,
            purpose: Purpose::Traffic,
            trigger: FaasTrigger::Http,
            method,
            scheme: "http",
            host: None,
            path,
            tenant: None,
            revision: None,
            name: None,
            status: None,
            error: None,
            message: None,
            aborted: false,
            waited_from: None,
            upstream: &[],
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
        }
    }

    /// Whether an instance was started for it.
    pub fn is_cold(&self) -> bool {
        self.upstream.iter().any(|exchange| exchange.start.is_some())
    }

    /// Whether it failed: the platform could not answer, or the answer says that the service could not.
    pub fn failed(&self) -> bool {
        self.error.is_some() || self.status.is_some_and(|status| status.is_server_error())
    }
}

/// One attempt to deliver an event. Times count from the beginning of the delivery.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AttemptSpan {
    /// Its span, which is the parent of the request that it makes.
    pub span: u64,
    /// When it began.
    pub began: Duration,
    /// When it ended.
    pub ended: Duration,
    /// The status that the target answered.
    pub status: Option<u16>,
    /// Why it failed; `None`: it did not.
    pub error: Option<String>,
}

impl AttemptSpan {
    /// An attempt that succeeded.
    pub const fn new(span: u64, began: Duration, ended: Duration) -> Self {
        Self { span, began, ended, status: None, error: None }
    }
}

/// The delivery of an event that is over, as triggers tell it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliverySpan<'a> {
    /// The span of the whole of it.
    pub context: TraceContext,
    /// What the event is part of: its extension attribute `traceparent`.
    pub parent: Option<ParentSpan>,
    /// The `tracestate` of the event.
    pub trace_state: Option<&'a str>,
    /// The name of the trigger.
    pub name: &'a str,
    /// Of which sort it is.
    pub trigger: FaasTrigger,
    /// Where the event was to go.
    pub target: &'a str,
    /// The `id` of the event, or of the first of several.
    pub id: &'a str,
    /// Its `source`.
    pub source: &'a str,
    /// Its `type`.
    pub kind: &'a str,
    /// How many events it was.
    pub events: usize,
    /// What was tried, in its order.
    pub attempts: &'a [AttemptSpan],
    /// Why it was given up, for a person; `None`: it was delivered.
    pub error: Option<&'a str>,
    /// Whether an attempt waited for an instance to start.
    pub cold: bool,
    /// How long it took: it ends now.
    pub duration: Duration,
}

impl<'a> DeliverySpan<'a> {
    /// The delivery of one event that needed no attempt.
    pub const fn new(context: TraceContext, name: &'a str, target: &'a str) -> Self {
        Self {
            context,
            parent: None,
            trace_state: None,
            name,
            trigger: FaasTrigger::PubSub,
            target,
            id: "",
            source: "",
            kind: "",
            events: 1,
            attempts: &[],
            error: None,
            cold: false,
            duration: Duration::ZERO,
        }
    }

    /// Whether it, or an attempt of it, failed.
    pub fn failed(&self) -> bool {
        self.error.is_some() || self.attempts.iter().any(|attempt| attempt.error.is_some())
    }
}

/// A step of a workflow that is over, or a whole run, as workflows tell it. All of a run are in one trace.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepSpan<'a> {
    /// Its span. Sampled: as [`TraceSink::samples`] said of the run's trace.
    pub context: TraceContext,
    /// The span of the run; `None`: it is the run.
    pub parent: Option<ParentSpan>,
    /// The namespace of the run.
    pub namespace: &'a str,
    /// The name of the definition.
    pub workflow: &'a str,
    /// Its version.
    pub version: &'a str,
    /// The run's id.
    pub run: &'a str,
    /// The step's id; empty: it is the run.
    pub step: &'a str,
    /// What was asked for: `call`, `invoke`, `emit` or `workflow`; `run` for the run.
    pub kind: &'static str,
    /// Why it failed, for a person; `None`: it did not.
    pub error: Option<&'a str>,
    /// How long it took: it ends now.
    pub duration: Duration,
}

impl<'a> StepSpan<'a> {
    /// A run that has ended.
    pub const fn run(context: TraceContext, namespace: &'a str, workflow: &'a str, run: &'a str) -> Self {
        Self {
            context,
            parent: None,
            namespace,
            workflow,
            version: "",
            run,
            step: "",
            kind: "run",
            error: None,
            duration: Duration::ZERO,
        }
    }
}

/// Takes what is told of requests, events and steps of workflows when they are over; data plane, triggers and workflows call it, an
/// exporter of traces implements it. Every method returns at once: one that can't keep up drops and counts.
///
/// It is given to the builder's `trace_sink`; `sas-otel` exports by one.
pub trait TraceSink: fmt::Debug + Send + Sync + 'static {
    /// Whether a trace is recorded, asked when a span without a span of this platform above it begins: the answer goes to
    /// the instance with the trace's context. `parent` is the context that came from outside.
    fn samples(&self, trace: u128, parent: Option<ParentSpan>) -> bool;

    /// A request is over. Told of every request, sampled or not, so that the sink may keep those that matter.
    fn request(&self, span: &RequestSpan<'_>);

    /// The delivery of an event is over, as [`TraceSink::request`].
    fn delivery(&self, span: &DeliverySpan<'_>);

    /// A step of a workflow, or a run, is over, as [`TraceSink::request`].
    fn step(&self, span: &StepSpan<'_>);
}

/// Forwards, so that the host keeps a handle to what it gave away.
#[deny(clippy::missing_trait_methods)]
impl<T: TraceSink + ?Sized> TraceSink for Arc<T> {
    fn samples(&self, trace: u128, parent: Option<ParentSpan>) -> bool {
        (**self).samples(trace, parent)
    }
    fn request(&self, span: &RequestSpan<'_>) {
        (**self).request(span);
    }
    fn delivery(&self, span: &DeliverySpan<'_>) {
        (**self).delivery(span);
    }
    fn step(&self, span: &StepSpan<'_>) {
        (**self).step(span);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn what_is_no_trace_context_is_none() {
        for bad in [
            "",
            "nonsense",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(TraceContext::parse(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        let later = b"01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03-more";
        let read = TraceContext::parse(later).unwrap();
        assert_eq!(read.to_string(), SENT);
    }

    #[test]
    fn two_contexts_are_none() {
        let mut headers = HeaderMap::new();
        headers.append(TRACEPARENT, HeaderValue::from_static(SENT));
        assert!(TraceContext::of(&headers).is_some());
        headers.append(TRACEPARENT, HeaderValue::from_static(SENT));
        assert_eq!(TraceContext::of(&headers), None);
    }

    #[test]
    fn the_state_of_a_trace_goes_on_with_it_alone() {
        let came = TraceContext::parse(SENT.as_bytes()).unwrap();
        let put = |state: &str, context: TraceContext| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACEPARENT, HeaderValue::from_static(SENT));
            headers.insert(TRACESTATE, HeaderValue::from_str(state).unwrap());
            context.put(&mut headers);
            assert_eq!(headers[TRACEPARENT], context.to_string());
            headers.contains_key(TRACESTATE)
        };
        let own = came.with_span(7);
        for good in ["vendor=1", "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE", "a@b=c d", "", "a=1,,b=2"] {
            assert!(put(good, own), "{good:?}");
        }
        for bad in ["vendor", "Vendor=1", "=1", "a=", "a=b=c", "-a=1"] {
            assert!(!put(bad, own), "{bad:?}");
        }
        let many: Vec<String> = (0..33).map(|n| format!("k{n}=v")).collect();
        assert!(!put(&many.join(","), own));
        assert!(!put("vendor=1", TraceContext { trace: 9, ..own }), "another trace has another state");
    }

    #[test]
    fn sampling_changes_one_flag() {
        let context = TraceContext { trace: 1, span: 2, flags: 0b10 };
        assert_eq!(context.with_sampled(true).flags, 0b11);
        assert_eq!(context.with_sampled(true).with_sampled(false), context);
    }
}
