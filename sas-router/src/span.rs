//! What a trace will say of a request, gathered on its way and told when it is over.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use sas_core::{
    Cx, Deployed, FaasTrigger, InstanceId, Lease, ParentSpan, Purpose, Request, RequestId, RequestSpan,
    RevisionKey, TenantKey, TraceContext, TraceSink, UpstreamSpan,
};
use smallvec::SmallVec;
use tokio::time::Instant;

use crate::{access::End, failure::Failure, upstream::Progress};

/// A request's span until it is told. It lies in the request's own state and takes nothing from the heap but where a request
/// is tried again: most are not sampled, and are dropped unused.
#[derive(Debug)]
pub(crate) struct SpanDraft {
    sink: Arc<dyn TraceSink>,
    context: TraceContext,
    parent: Option<ParentSpan>,
    state: Option<HeaderValue>,
    request: RequestId,
    purpose: Purpose,
    trigger: FaasTrigger,
    method: Method,
    host: Option<HeaderValue>,
    uri: Uri,
    secure: bool,
    arrived: Instant,
    tenant: Option<TenantKey>,
    revision: Option<(RevisionKey, Arc<Deployed>)>,
    pub(crate) status: Option<StatusCode>,
    error: Option<&'static str>,
    message: Option<String>,
    waited_from: Option<Instant>,
    upstream: SmallVec<[UpstreamSpan; 1]>,
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) sent: Option<Arc<Progress>>,
}

impl SpanDraft {
    /// The span of a request that has just arrived. `inside`: a part of this platform makes the call, and its context is
    /// that of a span of ours.
    pub(crate) fn begin(
        sink: &Arc<dyn TraceSink>,
        request: &Request,
        id: RequestId,
        span: u64,
        arrived: Instant,
        inside: bool,
        secure: bool,
    ) -> Self {
        let headers = request.headers();
        let came = TraceContext::of(headers);
        let parent = came.map(|context| ParentSpan::new(context, !inside));
        let mut context = own_context(came, id, span);
        context = context.with_sampled(match came {
            Some(came) if inside => came.sampled(),
            _ => sink.samples(context.trace, parent),
        });
        Self {
            sink: Arc::clone(sink),
            context,
            state: came.and_then(|_| trace_state(headers)),
            parent,
            request: id,
            purpose: Purpose::Traffic,
            trigger: FaasTrigger::Http,
            method: request.method().clone(),
            host: headers.get(header::HOST).cloned(),
            uri: request.uri().clone(),
            secure,
            arrived,
            tenant: None,
            revision: None,
            status: None,
            error: None,
            message: None,
            waited_from: None,
            upstream: SmallVec::new(),
            bytes_in: 0,
            bytes_out: 0,
            sent: None,
        }
    }

    /// Why the call is made, and by what.
    pub(crate) fn caused(&mut self, cx: &Cx) {
        self.purpose = cx.purpose;
        self.trigger = cx.trigger;
    }

    /// Whose service is to answer, and which revision of it where that runs here.
    pub(crate) fn goes_to(&mut self, tenant: TenantKey, to: Option<(RevisionKey, &Arc<Deployed>)>) {
        self.tenant = Some(tenant);
        self.revision = to.map(|(key, deployed)| (key, Arc::clone(deployed)));
    }

    /// A slot is asked for.
    pub(crate) fn asks(&mut self, at: Instant) {
        self.waited_from = Some(at);
    }

    /// An exchange begins with whoever `lease` is for: what it gets as the parent of its own span. A trace with a cold start
    /// is recorded from here on, whatever was said when it began.
    pub(crate) fn exchanges(
        &mut self,
        span: u64,
        instance: Option<InstanceId>,
        lease: &Lease,
        at: Instant,
        headers: &mut HeaderMap,
    ) {
        let asked = self.waited_from.take().unwrap_or(at);
        let since = |at: Instant| at.saturating_duration_since(self.arrived);
        let mut exchange = UpstreamSpan::new(span, instance, since(asked), since(at));
        exchange.start.clone_from(&lease.start);
        if exchange.start.is_some() {
            self.context = self.context.with_sampled(true);
        }
        self.upstream.push(exchange);
        self.context.with_span(span).put(headers);
    }

    /// The head of an answer is there.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        let after = self.arrived.elapsed();
        if let Some(last) = self.upstream.last_mut() {
            last.answered = Some(after);
            last.status = Some(status);
        }
        self.status = Some(status);
    }

    /// The exchange failed.
    pub(crate) fn broke(&mut self, why: &'static str) {
        let after = self.arrived.elapsed();
        if let Some(last) = self.upstream.last_mut() {
            last.answered = Some(last.answered.unwrap_or(after));
            last.error = Some(why);
        }
    }

    /// The platform answers instead of an instance.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.error = Some(failure.reason);
        self.message = Some(failure.message.clone());
    }

    pub(crate) fn tell(self, end: End) {
        let error = self.error.or((end == End::Broken).then_some("response_broken"));
        let mut span = RequestSpan::new(self.context, self.request, &self.method, self.uri.path());
        span.parent = self.parent;
        span.trace_state = self.state.as_ref().and_then(|state| state.to_str().ok());
        span.purpose = self.purpose;
        span.trigger = self.trigger;
        span.scheme = if self.secure { "https" } else { "http" };
        span.host = self.uri.authority().map(http::uri::Authority::as_str);
        if span.host.is_none() {
            span.host = self.host.as_ref().and_then(|host| host.to_str().ok());
        }
        span.tenant = self.tenant;
        if let Some((key, deployed)) = &self.revision {
            span.revision = Some(*key);
            span.name = Some(&deployed.name);
        }
        span.status = self.status;
        span.error = error;
        span.message = self.message.as_deref();
        span.aborted = end == End::Aborted;
        span.waited_from = self.waited_from.map(|at| at.saturating_duration_since(self.arrived));
        span.upstream = &self.upstream;
        span.bytes_in = self.sent.as_ref().map_or(self.bytes_in, |sent| sent.bytes());
        span.bytes_out = self.bytes_out;
        span.duration = self.arrived.elapsed();
        self.sink.request(&span);
    }
}

/// A span of the trace that a request came with, or of one that begins with it and has its id.
pub(crate) fn own_context(came: Option<TraceContext>, id: RequestId, span: u64) -> TraceContext {
    match came {
        Some(came) => came.with_span(span),
        None => TraceContext { trace: id.0.max(1), span, flags: 0 },
    }
}

/// The state of a trace, if it stands in one header: several are passed on, and not told.
fn trace_state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut all = headers.get_all("tracestate").iter();
    let state = all.next()?;
    all.next().is_none().then(|| state.clone())
}
