//! The gateway: a request's way from its route to an instance and back.

mod config;
mod deliver;
mod elsewhere;
mod tailed;
mod upgrade;
mod vet;

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderValue, Method, Response as HttpResponse, StatusCode, Version, header, header::Entry};
use sas_core::{
    AnswerCounter, AnswerCounts, Body, CallError, CallTimings, Cx, Deployed, Error, ErrorKind, Fault,
    Handler, HostShare, HostShares, Invoker, LatencyCounts, Mirror, MirrorCounts, Payer, Pool, Purpose,
    Rehearsals, RemoteTarget, Request, RequestId, Response, RevisionKey, Route, RouteError, RouteQuery,
    RouteTarget, Router, Target, TraceContext,
};
use tokio::time::Instant;

pub use self::config::{GatewayConfig, ServerTiming};
use self::{
    deliver::{Delivery, Manner, Refused},
    elsewhere::Onward,
};
use crate::{
    access::{AccessRecord, End},
    admission::Refusal,
    connection::ClientConnection,
    failure::{Failure, REQUEST_ID, request_id_value},
    fault::{FAULT, Met},
    forward,
    hook::{HookCx, Step},
    host_of, identity,
    identity::IdSource,
    metrics::GatewayMetrics,
    mirror::{MIRRORED, Mirroring},
    peer::{self, Marked},
    rehearsals::TriedOut,
    retry::RetryBudget,
    shares::{Passed, Shares},
    span::{self, SpanDraft},
    tail::{Draft, Tail},
    tally::{Tallies, Tally},
    upstream::Upstream,
};

/// The header by which a client asks for `Server-Timing`.
const ASK_TIMING: http::HeaderName = http::HeaderName::from_static("x-sas-timing");
const IDEMPOTENCY_KEY: http::HeaderName = http::HeaderName::from_static("idempotency-key");
const SERVER_TIMING: http::HeaderName = http::HeaderName::from_static("server-timing");

/// What a head takes in memory, for the budget of bytes; and the part of a body that is buffered on its way.
const HEAD_BYTES: u64 = 4 * 1024;
const BUFFERED_BYTES: u64 = 64 * 1024;

/// Routes requests, claims instances for them, and passes them on.
///
/// As a [`Handler`] it takes requests from outside: what [`crate::Server`], axum or an embedding program hands it.
/// As an [`Invoker`] it takes calls of the platform's own parts. It opens no socket but those to instances, and
/// spawns no task but for upgraded connections, HTTP/2 connections to instances, uploads that outlast the head of
/// their answer, and one that closes idle connections while there are any.
pub struct Gateway {
    me: Weak<Self>,
    router: Arc<dyn Router>,
    pool: Arc<dyn Pool>,
    config: GatewayConfig,
    metrics: Arc<GatewayMetrics>,
    ids: IdSource,
    budget: RetryBudget,
    tallies: Tallies,
    tried: TriedOut,
    shares: Shares,
    upstream: Arc<Upstream>,
    /// The origin of requests that came through no connection of ours.
    embedded: Arc<ClientConnection>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("router", &self.router)
            .field("pool", &self.pool)
            .finish_non_exhaustive()
    }
}

impl Gateway {
    /// A gateway over `router` and `pool`.
    pub fn new(router: Arc<dyn Router>, pool: Arc<dyn Pool>, config: GatewayConfig) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            router,
            pool,
            metrics: Arc::new(GatewayMetrics::new(&config.recorder)),
            ids: IdSource::configured(config.seed),
            budget: RetryBudget::new(config.retry),
            tallies: Tallies::default(),
            tried: TriedOut::default(),
            shares: Shares::default(),
            upstream: Upstream::new(config.upstream),
            embedded: Arc::new(ClientConnection::new(None, false)),
            config,
        })
    }

    /// A request id of this gateway's, for calls through [`Invoker`] that have none yet.
    pub fn next_request_id(&self) -> RequestId {
        self.ids.next()
    }

    /// Ends upgraded connections and event streams that came through no [`crate::Server`]: in order until
    /// `deadline`, then by force. Those of a server end with its own shutdown.
    pub async fn shutdown(&self, deadline: Instant) {
        self.embedded.ending().run(deadline).await;
    }

    /// Counts the answers of a revision from now on, for a roll-out. Counting again starts at zero.
    pub fn watch(&self, revision: RevisionKey) -> Arc<Tally> {
        self.tallies.watch(revision)
    }

    /// Stops counting the answers of a revision.
    pub fn unwatch(&self, revision: RevisionKey) {
        self.tallies.unwatch(revision);
    }

    /// Connections to instances that lie unused.
    pub fn idle_connections(&self) -> usize {
        self.upstream.kept()
    }

    fn route(&self, request: &Request, host: &str) -> Result<Route, Failure> {
        self.router.route(&query(request, host)).map_err(|error| Failure::from_route(error, host))
    }

    /// The way of a request from outside.
    async fn serve(
        &self,
        request: &mut Request,
        id: RequestId,
        arrived: Instant,
        connection: &Arc<ClientConnection>,
        tail: &mut Tail,
        marked: Option<&Marked>,
    ) -> Result<Response, Failure> {
        vet::vet(request, self.config.max_uri_bytes)?;
        for hook in &self.config.hooks {
            match hook.on_request(request, &HookCx::new(id, connection)).await? {
                Step::Continue => {}
                Step::Answer(response) => return Ok(*response),
            }
        }
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).and_then(host_of);
        let host = host.ok_or_else(|| Failure::malformed("missing_host", "a request has a Host header"))?;
        if marked.is_none() && self.is_internal(host) {
            return Err(Failure::from_route(RouteError::NoRoute, host));
        }
        let mut target = match self.route(request, host)? {
            Route::To(target) => target,
            Route::Redirect { status, location } => return redirect(status, &location),
            Route::Remote(remote) => {
                let host = host.to_owned();
                let mut cx = Cx::new(Payer::Owner, id, arrived + remote.timeout);
                if let Some(marked) = marked {
                    cx.payer = marked.payer;
                    cx = cx.for_purpose(marked.purpose);
                    cx.deadline = cx.deadline.min(arrived + marked.left);
                }
                let passing =
                    self.go_elsewhere(request, &host, remote, &cx, arrived, connection, marked, tail);
                match Box::pin(passing).await.map_err(|refused| refused.failure)? {
                    Onward::Answered(response) => return Ok(response),
                    Onward::Route(Route::To(target)) => target,
                    Onward::Route(Route::Redirect { status, location }) => {
                        return redirect(status, &location);
                    }
                    Onward::Route(_) => return Err(Failure::from_route(RouteError::NoRoute, &host)),
                }
            }
            _ => return Err(Failure::from_route(RouteError::NoRoute, host)),
        };
        let mut deployed = self.deployed(target.revision)?;
        if let Some(draft) = &mut tail.draft {
            draft.record.tenant = Some(target.tenant);
            draft.record.revision = Some(target.revision);
            draft.record.name = Some(deployed.name.clone());
        }
        if let Some(span) = &mut tail.span {
            span.goes_to(target.tenant, Some((target.revision, &deployed)));
        }
        let mut cx = Cx::new(target.tenant, id, arrived + target.timeout);
        if let Some(marked) = marked {
            target.tenant = marked.payer.tenant(target.tenant);
            cx.payer = Payer::Tenant(target.tenant);
            cx = cx.for_purpose(marked.purpose);
            cx.deadline = cx.deadline.min(arrived + marked.left.min(target.timeout));
            target.wakes &= marked.purpose.wakes();
            if let Some(span) = &mut tail.span {
                span.caused(&cx);
            }
        }
        if marked.is_none() {
            let passing = self.leave_to_others(request, &target, &deployed, &cx, arrived, connection, tail);
            if let Some(answered) = passing.await {
                return answered.map_err(|refused| refused.failure);
            }
        }
        if cx.purpose.held_to_quotas() {
            tail.permit = Some(self.admit(request, &target, &deployed, arrived)?);
        }
        // What the platform itself asks for is neither copied nor meets faults, at whichever host it comes in.
        let tried = match cx.purpose {
            Purpose::Traffic if !self.tried.is_empty() => self.tried.of(deployed.name.service_path()),
            _ => None,
        };
        // Faults are the service's, at whichever of its hosts.
        let fault = tried
            .as_ref()
            .and_then(|tried| tried.faults.as_ref()?.meet(&query(request, ""), target.revision));
        let mut delayed = Duration::ZERO;
        if let Some(fault) = fault {
            // In a box, so that requests without one are spared its bytes.
            if let Some(answer) = Box::pin(self.suffer(fault, &target, &cx, tail)).await {
                return Ok(answer);
            }
            delayed = fault.delay;
        }
        let head_only = *request.method() == Method::HEAD;
        let interim = connection.interim().filter(|_| request.version() == Version::HTTP_11);
        let asked = request.headers().contains_key(&ASK_TIMING);
        let browses = target.placeholder && wants_page(request);
        self.prepare(request, id, Some(connection), marked.is_some(), tail);
        if let Some(mirroring) = tried.and_then(|tried| tried.mirror)
            && !forward::wants_upgrade(request.headers())
            && mirroring.mirror.to != target.revision
        {
            mirroring.copy(request, id, target.tenant);
        }
        if browses && let Some(page) = self.placeholder(&target, &cx) {
            return Ok(page);
        }
        let tells = match self.config.server_timing {
            ServerTiming::Always => true,
            ServerTiming::WhenAsked => asked,
            ServerTiming::Never => false,
        };
        // Hooks may look at how an answer came about.
        let timed = tells || !self.config.hooks.is_empty();
        let mut response = loop {
            let mut delivery = Delivery {
                target: &target,
                manner: Manner::of(&deployed),
                peer: None,
                passed: None,
                deployed: Some(&deployed),
                cx: &cx,
                arrived,
                connection,
                head_only,
                interim,
                bytes_in: 0,
                timed,
                delayed,
                tail,
            };
            match self.deliver(request, &mut delivery).await {
                Ok(response) => break response,
                Err(refused) => {
                    let Refused { failure, unsent } = *refused;
                    let Some(fallback) = target.fallback.take().filter(|_| unsent) else {
                        break self.refused(failure, id, tail);
                    };
                    tracing::debug!(request = %id, reason = failure.reason, "going to the fallback");
                    deployed = match self.deployed(fallback) {
                        Ok(deployed) => deployed,
                        Err(failure) => break self.refused(failure, id, tail),
                    };
                    target.revision = fallback;
                    if let Some(draft) = &mut tail.draft {
                        draft.record.revision = Some(fallback);
                        draft.record.name = Some(deployed.name.clone());
                    }
                    if let Some(span) = &mut tail.span {
                        span.goes_to(target.tenant, Some((fallback, &deployed)));
                    }
                }
            }
        };
        if tells {
            add_server_timing(&mut response);
        }
        if let Some(fault) = fault {
            response.headers_mut().insert(FAULT, fault.header());
        }
        Ok(response)
    }

    /// Holds a request up, or answers it instead of an instance.
    async fn suffer(&self, fault: Met, target: &RouteTarget, cx: &Cx, tail: &mut Tail) -> Option<Response> {
        if !fault.delay.is_zero() {
            self.metrics.delayed.increment(1);
            tokio::time::sleep_until(cx.deadline.min(Instant::now() + fault.delay)).await;
        }
        let failure = if Instant::now() >= cx.deadline {
            // No instance is asked for what nobody waits for.
            let text = "the delay of a fault on purpose took all of the request's time";
            Failure::new(StatusCode::GATEWAY_TIMEOUT, "fault", "timeout", text)
        } else {
            let status = fault.abort?;
            self.metrics.aborted.increment(1);
            let text = "a fault on purpose: sas.dev/faults of the service says so";
            Failure::new(status, "fault", "injected", text)
        };
        self.tallies.failed(target.revision);
        let mut response = self.refused(failure, cx.request, tail);
        response.headers_mut().insert(FAULT, fault.header());
        Some(response)
    }

    /// The answer to a request that no instance answers.
    fn refused(&self, failure: Failure, id: RequestId, tail: &mut Tail) -> Response {
        self.metrics.refused(&failure);
        if let Some(draft) = &mut tail.draft {
            draft.record.reason = Some(failure.reason);
        }
        if let Some(span) = &mut tail.span {
            span.failed(&failure);
        }
        failure.into_response(id)
    }

    /// Passes a request on to another host, which admits, routes and meters it itself.
    #[allow(clippy::too_many_arguments, reason = "a request, where it goes, and who counts it")]
    async fn pass_on(
        &self,
        request: &mut Request,
        remote: &RemoteTarget,
        passed: Option<&Arc<Passed>>,
        cx: &Cx,
        arrived: Instant,
        connection: &Arc<ClientConnection>,
        hops: u8,
        tail: &mut Tail,
    ) -> Result<Response, Box<Refused>> {
        let unknown = |why: String| {
            Failure::new(StatusCode::SERVICE_UNAVAILABLE, "router", "no_such_peer", why)
                .after(Duration::from_secs(1))
        };
        let unsent = |failure| Refused::new(failure, true);
        let Some(peers) = &self.config.peers else {
            let why =
                format!("the route leads to the host {}, and this gateway knows no others", remote.peer);
            return Err(unsent(unknown(why)));
        };
        // Where marks are believed, they bound the hops.
        if hops == 1 && peers.has_passed(request.headers()) {
            return Err(unsent(passed_on_twice("it passed this host before")));
        }
        let Some(peer) = peers.get(&remote.peer) else {
            let why = format!("the route leads to the host {}, which is not there now", remote.peer);
            return Err(unsent(unknown(why)));
        };
        if hops > 1 {
            keep_body(request, cx).await?;
        }
        let interim = connection.interim().filter(|_| request.version() == Version::HTTP_11);
        // For another try, where one may follow.
        let before = (passed.is_some() || !peers.hold().is_zero()).then(|| request.headers().clone());
        self.prepare(request, cx.request, Some(connection), hops > 1, tail);
        peers.sign(request, &peer, cx, hops);
        // The key of no revision: nothing is counted for one here.
        let mut target = RouteTarget::new(RevisionKey(u64::MAX), remote.tenant);
        target.timeout = remote.timeout;
        let mut delivery = Delivery {
            target: &target,
            manner: Manner::of_peer(peer.protocol),
            peer: Some(&peer),
            passed,
            deployed: None,
            cx,
            arrived,
            connection,
            head_only: *request.method() == Method::HEAD,
            interim,
            bytes_in: 0,
            timed: true,
            delayed: Duration::ZERO,
            tail,
        };
        let delivered = self.deliver(request, &mut delivery).await;
        if let Some(before) = before
            && delivered.as_ref().is_err_and(|refused| refused.unsent)
        {
            *request.headers_mut() = before;
        }
        delivered
    }

    fn deployed(&self, revision: RevisionKey) -> Result<Arc<Deployed>, Failure> {
        self.pool.deployed(revision).ok_or_else(|| Failure::from_claim(&sas_core::ClaimError::Unknown))
    }

    fn admit(
        &self,
        request: &Request,
        target: &RouteTarget,
        deployed: &Deployed,
        now: Instant,
    ) -> Result<crate::Permit, Failure> {
        let body =
            http_body::Body::size_hint(request.body()).upper().unwrap_or(BUFFERED_BYTES).min(BUFFERED_BYTES);
        let service = deployed.name.service_path();
        self.config.admission.admit(target.tenant, service, HEAD_BYTES + body, now).map_err(
            |Refusal { resource, limit, used, retry_after }| {
                let (status, reason, text) = match resource {
                    "bytes" => (
                        StatusCode::SERVICE_UNAVAILABLE,
                        "shed",
                        format!("the host holds as many bytes of requests as it may: {used:.0} of {limit}"),
                    ),
                    _ => (
                        StatusCode::TOO_MANY_REQUESTS,
                        resource,
                        format!(
                            "the quota {resource} of {service} or its tenant is used up: {used:.0} of {limit}"
                        ),
                    ),
                };
                Failure::new(status, "admission", reason, text).after(retry_after)
            },
        )
    }

    /// A page for a browser when nothing is warm; its asking starts an instance.
    fn placeholder(&self, target: &RouteTarget, cx: &Cx) -> Option<Response> {
        let claim = deliver::claim(target, cx);
        if self.pool.try_claim(&claim).is_some() {
            return None;
        }
        // The first arrival starts instances at once, and a start belongs to the pool: leaving the queue stops none.
        let mut waiting = std::pin::pin!(self.pool.claim(&claim, cx));
        let nobody = &mut std::task::Context::from_waker(std::task::Waker::noop());
        if waiting.as_mut().poll(nobody).is_ready() {
            return None;
        }
        let response = HttpResponse::builder()
            .status(StatusCode::SERVICE_UNAVAILABLE)
            .header(header::CONTENT_TYPE, "text/html; charset=utf-8")
            .header(header::CACHE_CONTROL, "no-store")
            .header(header::RETRY_AFTER, "1")
            .body(Body::from(self.config.placeholder.clone()));
        Some(response.expect("valid headers"))
    }

    /// Makes the head of a request fit for an instance; without a connection it says already where it came from. Where a span is told, each exchange puts its own into the head.
    fn prepare(
        &self,
        request: &mut Request,
        id: RequestId,
        connection: Option<&ClientConnection>,
        marked: bool,
        tail: &Tail,
    ) {
        let upgrade = forward::wants_upgrade(request.headers())
            && request.extensions().get::<hyper::upgrade::OnUpgrade>().is_some();
        let headers = request.headers_mut();
        forward::strip_hop_by_hop(headers, upgrade);
        // The ingress answers 100 itself, as soon as an instance takes the body.
        let ours = [header::EXPECT, ASK_TIMING, peer::MARK, MIRRORED];
        if headers.keys().any(|name| ours.contains(name)) {
            for name in &ours {
                headers.remove(name);
            }
        }
        if let Some(connection) = connection {
            forward::stamp(headers, connection.origin(), self.config.trust_forwarded || marked);
        }
        if tail.span.is_none() {
            span::own_context(TraceContext::of(headers), id, self.ids.next_span()).put(headers);
        }
        headers.insert(REQUEST_ID, request_id_value(id));
    }

    /// Names what a call does to whoever is called.
    #[allow(clippy::unused_self, reason = "beside the other steps of a request")]
    fn give_key(&self, request: &mut Request, cx: &Cx) {
        if let Some(key) = cx.idempotency
            && let Entry::Vacant(header) = request.headers_mut().entry(IDEMPOTENCY_KEY)
            && let Ok(value) = HeaderValue::try_from(format!("\"{key}\""))
        {
            header.insert(value);
        }
    }

    fn is_internal(&self, host: &str) -> bool {
        let suffix = self.config.internal_suffix.as_bytes();
        let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
        let Some(split) = host.len().checked_sub(suffix.len()) else { return false };
        host[split..].eq_ignore_ascii_case(suffix) && (split == 0 || host[split - 1] == b'.')
    }

    fn arrival_id(&self, request: &Request, marked: bool) -> RequestId {
        let given =
            (self.config.trust_forwarded || marked).then(|| request.headers().get(REQUEST_ID)).flatten();
        given.and_then(identity::parse_request_id).unwrap_or_else(|| self.ids.next())
    }

    fn span(
        &self,
        request: &Request,
        id: RequestId,
        arrived: Instant,
        inside: bool,
        secure: bool,
    ) -> Option<SpanDraft> {
        let sink = self.config.traces.as_ref()?;
        Some(SpanDraft::begin(sink, request, id, self.ids.next_span(), arrived, inside, secure))
    }

    fn draft(&self, request: &Request, id: RequestId, arrived: Instant) -> Option<Box<Draft>> {
        let log = Arc::clone(self.config.access.as_ref()?);
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let host = host.or_else(|| request.headers().get(header::HOST)?.to_str().ok()).unwrap_or("");
        let record = AccessRecord {
            id,
            method: request.method().clone(),
            host: host.to_owned(),
            path: request.uri().path().to_owned(),
            status: StatusCode::OK,
            reason: None,
            tenant: None,
            revision: None,
            name: None,
            timings: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            end: End::Complete,
        };
        Some(Box::new(Draft { log, record, arrived, sent: None }))
    }
}

impl AnswerCounter for Gateway {
    fn watch_answers(&self, revision: RevisionKey) {
        self.tallies.watch(revision);
    }

    fn unwatch_answers(&self, revision: RevisionKey) {
        self.tallies.unwatch(revision);
    }

    fn answers(&self, revision: RevisionKey) -> Option<AnswerCounts> {
        self.tallies.read(revision)
    }

    fn latencies(&self, revision: RevisionKey) -> Option<LatencyCounts> {
        self.tallies.latencies(revision)
    }
}

impl Rehearsals for Gateway {
    fn set_mirror(&self, service: &str, mirror: Option<Mirror>) {
        let make = |mirror| {
            Mirroring::new(
                mirror,
                self.config.mirror,
                Weak::clone(&self.me) as Weak<dyn Invoker>,
                Arc::clone(&self.metrics),
            )
        };
        self.tried.set_mirror(service, mirror, make);
    }

    fn mirrored(&self, service: &str) -> Option<MirrorCounts> {
        self.tried.mirrored(service)
    }

    fn set_faults(&self, service: &str, faults: Vec<Fault>) -> Result<(), Error> {
        self.tried.set_faults(service, faults)
    }

    fn faulted(&self, service: &str) -> Vec<u64> {
        self.tried.faulted(service)
    }
}

impl HostShares for Gateway {
    fn set_hosts(&self, service: &str, hosts: Vec<HostShare>) {
        self.shares.set(service, hosts);
    }
}

#[async_trait]
impl Handler for Gateway {
    async fn handle(&self, mut request: Request) -> Response {
        let arrived = Instant::now();
        let marked = self.config.peers.as_ref().and_then(|peers| peers.take(&mut request));
        if let (Some(marked), Some(peers)) = (&marked, &self.config.peers) {
            peers.catch_up(marked.view).await;
        }
        let id = self.arrival_id(&request, marked.is_some());
        let connection = request.extensions_mut().remove::<Arc<ClientConnection>>();
        let connection = connection.unwrap_or_else(|| Arc::clone(&self.embedded));
        let mut tail = Tail::default();
        tail.draft = self.draft(&request, id, arrived);
        tail.span = self.span(&request, id, arrived, marked.is_some(), connection.is_secure());
        let mut response =
            match self.serve(&mut request, id, arrived, &connection, &mut tail, marked.as_ref()).await {
                Ok(response) => response,
                Err(failure) => self.refused(failure, id, &mut tail),
            };
        for hook in self.config.hooks.iter().rev() {
            hook.on_response(&mut response, &HookCx::new(id, &connection));
        }
        response.headers_mut().insert(REQUEST_ID, request_id_value(id));
        // Still here when no instance answered, or one that needs no further looking after.
        if let Some(draft) = &mut tail.draft {
            draft.record.status = response.status();
            draft.record.bytes_out = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        }
        if let Some(span) = &mut tail.span {
            span.status = Some(response.status());
            span.bytes_out = http_body::Body::size_hint(response.body()).exact().unwrap_or(0);
        }
        tail.ended(End::Complete);
        response
    }
}

#[async_trait]
impl Invoker for Gateway {
    async fn invoke(&self, target: Target, mut request: Request, cx: &Cx) -> Result<Response, CallError> {
        let arrived = Instant::now();
        let not_found = |text: String, request| {
            Err(CallError::unsent(Error::new(ErrorKind::NotFound, "invoke", text), request))
        };
        let mut to = match &target {
            Target::Service(path) => {
                let Some((namespace, service)) = path.split_once('/') else {
                    return not_found(format!("{path:?} is not of the form namespace/service"), request);
                };
                let host = format!("{service}.{namespace}.{}", self.config.internal_suffix);
                let routed = self.route(&request, &host);
                if !request.headers().contains_key(header::HOST)
                    && let Ok(value) = HeaderValue::from_str(&host)
                {
                    request.headers_mut().insert(header::HOST, value);
                }
                match routed {
                    Ok(Route::To(target)) => target,
                    Ok(Route::Redirect { status, location }) => {
                        let redirected = redirect(status, &location);
                        return redirected
                            .map_err(|failure| CallError::unsent(failure.into_error(), request));
                    }
                    Ok(Route::Remote(remote)) => {
                        let mut cx = *cx;
                        cx.deadline = cx.deadline.min(arrived + remote.timeout);
                        self.give_key(&mut request, &cx);
                        let connection = request.extensions_mut().remove::<Arc<ClientConnection>>();
                        let connection = connection.unwrap_or_else(|| Arc::clone(&self.embedded));
                        let mut tail = Tail::default();
                        tail.span = self.span(&request, cx.request, arrived, true, false);
                        if let Some(span) = &mut tail.span {
                            span.caused(&cx);
                        }
                        let passing = self.go_elsewhere(
                            &mut request,
                            &host,
                            remote,
                            &cx,
                            arrived,
                            &connection,
                            None,
                            &mut tail,
                        );
                        match Box::pin(passing).await {
                            Ok(Onward::Answered(response)) => return Ok(response),
                            // This host came to act for it while the request waited.
                            Ok(Onward::Route(Route::To(target))) => {
                                tail.span = None;
                                request.extensions_mut().insert(connection);
                                target
                            }
                            Ok(Onward::Route(_)) => {
                                return not_found(
                                    format!("{path}: no route that this version knows"),
                                    request,
                                );
                            }
                            Err(refused) => return Err(refused.into_error(request, &mut tail)),
                        }
                    }
                    Ok(_) => return not_found(format!("{path}: no route that this version knows"), request),
                    Err(failure) => return Err(CallError::unsent(failure.into_error(), request)),
                }
            }
            Target::Revision(key) => {
                let Some(deployed) = self.pool.deployed(*key) else {
                    return not_found(format!("no revision has the key {}", key.0), request);
                };
                let mut target = RouteTarget::new(*key, deployed.tenant);
                target.timeout = deployed.spec.timeouts.request;
                target
            }
            other => return not_found(format!("this version can't call {other:?}"), request),
        };
        to.tenant = cx.payer.tenant(to.tenant);
        if cx.purpose == Purpose::Probe {
            to.wakes = false;
        }
        let deployed = match self.deployed(to.revision) {
            Ok(deployed) => deployed,
            Err(failure) => return Err(CallError::unsent(failure.into_error(), request)),
        };
        let connection = request.extensions_mut().remove::<Arc<ClientConnection>>();
        let connection = connection.unwrap_or_else(|| Arc::clone(&self.embedded));
        // The service's own limit holds for every caller; who wants an answer earlier says so.
        let mut cx = *cx;
        cx.deadline = cx.deadline.min(arrived + to.timeout);
        let mut tail = Tail::default();
        tail.span = self.span(&request, cx.request, arrived, true, false);
        if let Some(span) = &mut tail.span {
            span.caused(&cx);
            span.goes_to(to.tenant, Some((to.revision, &deployed)));
        }
        if matches!(target, Target::Service(_)) {
            self.give_key(&mut request, &cx);
            let passing =
                self.leave_to_others(&mut request, &to, &deployed, &cx, arrived, &connection, &mut tail);
            if let Some(answered) = passing.await {
                return answered.map_err(|refused| refused.into_error(request, &mut tail));
            }
        }
        if cx.purpose.held_to_quotas() {
            match self.admit(&request, &to, &deployed, arrived) {
                Ok(permit) => tail.permit = Some(permit),
                Err(failure) => {
                    return Err(Refused::new(failure, true).into_error(request, &mut tail));
                }
            }
        }
        // A copy says already where its request came from.
        let origin = (cx.purpose != Purpose::Mirrored).then_some(&*connection);
        self.prepare(&mut request, cx.request, origin, false, &tail);
        if cx.purpose == Purpose::Mirrored {
            request.headers_mut().insert(MIRRORED, HeaderValue::from_static("true"));
        }
        self.give_key(&mut request, &cx);
        let mut delivery = Delivery {
            target: &to,
            manner: Manner::of(&deployed),
            peer: None,
            passed: None,
            deployed: Some(&deployed),
            cx: &cx,
            arrived,
            connection: &connection,
            head_only: *request.method() == Method::HEAD,
            interim: None,
            bytes_in: 0,
            timed: true,
            delayed: Duration::ZERO,
            tail: &mut tail,
        };
        let delivered = self.deliver(&mut request, &mut delivery).await;
        delivered.map_err(|refused| refused.into_error(request, &mut tail))
    }
}

fn query<'a>(request: &'a Request, host: &'a str) -> RouteQuery<'a> {
    RouteQuery {
        method: request.method(),
        host,
        path: request.uri().path(),
        query: request.uri().query(),
        headers: request.headers(),
    }
}

/// Reads a short body into memory: a request that has come from another host is on its way while services move, and one with a
/// body that streams could not be passed on again when the next host goes away before it has begun with it.
async fn keep_body(request: &mut Request, cx: &Cx) -> Result<(), Box<Refused>> {
    let length = http_body::Body::size_hint(request.body()).exact();
    if request.body().in_memory().is_some() || length.is_none_or(|length| length > BUFFERED_BYTES) {
        return Ok(());
    }
    let body = std::mem::take(request.body_mut());
    let failure = match tokio::time::timeout_at(cx.deadline, http_body_util::BodyExt::collect(body)).await {
        Ok(Ok(collected)) => {
            *request.body_mut() = match collected.trailers() {
                None => Body::from(collected.to_bytes()),
                Some(_) => Body::new(collected),
            };
            return Ok(());
        }
        Ok(Err(error)) => {
            let why = format!("the body of the request ended early: {error}");
            Failure::new(StatusCode::BAD_REQUEST, "router", "body", why)
        }
        Err(_) => Failure::deadline("the body of the request had not come in time".to_owned()),
    };
    Err(Refused::new(failure, false))
}

/// A request that went from host to host and would go on.
pub(super) fn passed_on_twice(why: &str) -> Failure {
    let text = format!(
        "the route of this host leads to another one, and {why}: two hosts take each other for the owner"
    );
    Failure::new(StatusCode::LOOP_DETECTED, "router", "loop", text)
}

/// Whether a person looks at the answer.
fn wants_page(request: &Request) -> bool {
    let accepts = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    *request.method() == Method::GET && accepts.is_some_and(|accept| accept.contains("text/html"))
}

fn redirect(status: StatusCode, location: &str) -> Result<Response, Failure> {
    let value = HeaderValue::from_str(location)
        .map_err(|_| Failure::malformed("bad_path", "the path can't be part of a Location"))?;
    let response = HttpResponse::builder().status(status).header(header::LOCATION, value).body(Body::empty());
    Ok(response.expect("a valid status and a valid header"))
}

/// `queue`: until an instance was there; `start`: the start that was waited for; `upstream`: the instance's part.
fn add_server_timing(response: &mut Response) {
    let Some(timings) = response.extensions().get::<CallTimings>() else { return };
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let mut text = format!("queue;dur={:.3}", ms(timings.queued));
    if let Some(start) = &timings.start {
        text.push_str(&format!(", start;dur={:.3}", ms(start.ready)));
    }
    text.push_str(&format!(
        ", upstream;dur={:.3}, total;dur={:.3}",
        ms(timings.first_byte),
        ms(timings.total)
    ));
    if timings.cold {
        text.push_str(", cold");
    }
    let value = HeaderValue::from_str(&text).expect("digits and names");
    response.headers_mut().append(SERVER_TIMING, value);
}
