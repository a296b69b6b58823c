//! From a route's target to the head of an answer: claim, call, and once more where that is safe.

use std::{pin::pin, sync::Arc, time::Duration};

use http::{HeaderMap, StatusCode, Uri, Version, header};
use sas_core::{
    Answer, Body, BoxError, CallError, CallTimings, Claim, ClaimError, Cx, Deployed, Endpoint, Error,
    ErrorKind, InstanceId, InstanceTarget, Lease, Outcome, Protocol, Purpose, Request, RequestUsage,
    Response, RevisionKey, RouteTarget,
};
use tokio::time::{Instant, timeout_at};

use super::{
    Gateway,
    tailed::{Events, Tailed},
    upgrade,
};
use crate::{
    access::End,
    connection::ClientConnection,
    failure::Failure,
    forward,
    framing::{self, Measured},
    interim::Interim,
    peer::{self, Peer},
    retry::{again, may_repeat},
    shares::Passed,
    stall::WriteBy,
    tail::{MeterDraft, Tail},
    timed::{Limits, Timed},
    upstream::{Failed, InstanceBody, Left, Progress, To},
};

/// How long after the deadline the pool's own answer is waited for, since it says more than ours.
const POOL_GRACE: Duration = Duration::from_millis(100);

/// What a request needs on its way besides itself.
pub(super) struct Delivery<'a> {
    pub(super) target: &'a RouteTarget,
    /// How whoever gets it is spoken to.
    pub(super) manner: Manner,
    /// The host that gets it instead of an instance of this one.
    pub(super) peer: Option<&'a Arc<Peer>>,
    /// Who counts it among what that host was given.
    pub(super) passed: Option<&'a Arc<Passed>>,
    /// The revision that runs on this host; `None`: another host gets the request, and meters it.
    pub(super) deployed: Option<&'a Arc<Deployed>>,
    pub(super) cx: &'a Cx,
    pub(super) arrived: Instant,
    pub(super) connection: &'a Arc<ClientConnection>,
    /// Whether it asks for a head only.
    pub(super) head_only: bool,
    /// Where interim answers go, if the client takes any.
    pub(super) interim: Option<&'a Arc<Interim>>,
    /// Bytes of the body as far as they are known beforehand; for an instance behind a socket those that it took count.
    pub(super) bytes_in: u64,
    /// Whether somebody looks at the answer's [`CallTimings`].
    pub(super) timed: bool,
    /// How long a fault on purpose held it up: its answer counts as that much slower.
    pub(super) delayed: Duration,
    /// Taken along by the answer of an instance.
    pub(super) tail: &'a mut Tail,
}

/// How whoever answers a request is spoken to, and how long it may be quiet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manner {
    protocol: Protocol,
    response_start: Duration,
    idle: Duration,
}

impl Manner {
    pub(super) fn of(deployed: &Deployed) -> Self {
        let timeouts = &deployed.spec.timeouts;
        Self {
            protocol: deployed.spec.protocol,
            response_start: timeouts.response_start,
            idle: timeouts.idle,
        }
    }

    /// Of another host, which holds its instances to their own limits.
    pub(super) const fn of_peer(protocol: Protocol) -> Self {
        const LONG: Duration = Duration::from_secs(30 * 24 * 3600);
        Self { protocol, response_start: LONG, idle: LONG }
    }
}

/// Why a request got no answer from an instance. `unsent`: no byte of it reached one, and it stands where it was.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) failure: Failure,
    pub(super) unsent: bool,
}

impl Refused {
    pub(super) fn new(failure: Failure, unsent: bool) -> Box<Self> {
        Box::new(Self { failure, unsent })
    }

    /// For a caller within the platform, whose request is over with it; it has the request if nothing of it was sent.
    pub(super) fn into_error(self, request: Request, tail: &mut Tail) -> CallError {
        let Self { failure, unsent } = self;
        if let Some(span) = &mut tail.span {
            span.failed(&failure);
        }
        tail.ended(End::Complete);
        CallError { error: failure.into_error(), unsent: unsent.then(|| Box::new(request)) }
    }
}

/// What an instance answered, before it is made fit for the client.
enum Answered {
    Socket(http::Response<InstanceBody>),
    Inside(Answer),
}

/// When and how a request got its lease.
struct Claimed {
    lease: Lease,
    at: Instant,
    cold: bool,
}

/// The claim of a request for `target`.
pub(super) fn claim(target: &RouteTarget, cx: &Cx) -> Claim {
    let mut claim = Claim::new(target.revision, target.tenant);
    claim.affinity = target.affinity;
    claim.priority = cx.priority;
    claim.metered = cx.purpose.metered();
    claim.wakes = target.wakes && cx.purpose.wakes();
    claim
}

impl Gateway {
    /// Brings `request` to an instance and answers with the head of the response. What is sent is taken out of it.
    ///
    /// **Cancel safety:** dropping the future gives up the place in the queue, or aborts the call.
    pub(super) async fn deliver(
        &self,
        request: &mut Request,
        delivery: &mut Delivery<'_>,
    ) -> Result<Response, Box<Refused>> {
        let (cx, manner, arrived) = (delivery.cx, delivery.manner, delivery.arrived);
        let mut claim = claim(delivery.target, cx);
        claim.bytes = http_body::Body::size_hint(request.body())
            .upper()
            .and_then(|bytes| u32::try_from(bytes.min(super::BUFFERED_BYTES)).ok())
            .unwrap_or(0);
        delivery.bytes_in = http_body::Body::size_hint(request.body()).exact().unwrap_or(0);
        let upgrading = forward::wants_upgrade(request.headers());
        let mut on_upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        let mut attempt = 1;
        loop {
            if let Some(span) = &mut delivery.tail.span {
                span.asks(if attempt == 1 { arrived } else { Instant::now() });
            }
            let claimed = match delivery.peer {
                Some(peer) => {
                    Ok(Claimed { lease: peer::lease(peer, delivery.passed), at: Instant::now(), cold: false })
                }
                None => self.claim(&claim, cx).await,
            };
            let Claimed { mut lease, at, cold } = match claimed {
                Ok(claimed) => claimed,
                Err(failure) => return Err(Refused::new(failure, true)),
            };
            let instance = lease.instance.id();
            let last = attempt >= self.config.retry.attempts || delivery.peer.is_some();
            let repeats = !last && !upgrading && may_repeat(request);
            if let Some(span) = &mut delivery.tail.span {
                let to = delivery.peer.is_none().then_some(instance);
                span.exchanges(self.ids.next_span(), to, &lease, at, request.headers_mut());
            }
            let by = cx.deadline.min(at + manner.response_start);
            // Pinned here, so that the limit does not move a future of kilobytes.
            let called = {
                let call = pin!(self.call(&lease, request, delivery, repeats, upgrading));
                timeout_at(by, call).await
            };
            let failed = match called {
                Ok(Ok((answered, progress))) => {
                    let timings = timings(&lease, instance, cold, arrived, at);
                    return self
                        .answer(answered, lease, on_upgrade.take(), progress, timings, delivery)
                        .map_err(|failure| {
                            self.failed(claim.revision, cx);
                            Refused::new(failure, false)
                        });
                }
                Ok(Err(failed)) => failed,
                Err(_) => {
                    if let Some(span) = &mut delivery.tail.span {
                        span.broke(ErrorKind::Timeout.as_str());
                    }
                    lease.outcome = Outcome::Failed;
                    self.failed(claim.revision, cx);
                    let text =
                        format!("instance {instance} had not answered {:?} after arrival", arrived.elapsed());
                    return Err(Refused::new(Failure::deadline(text), false));
                }
            };
            let Failed { error, left } = *failed;
            if let Some(span) = &mut delivery.tail.span {
                span.broke(error.kind.as_str());
            }
            lease.outcome = match error.kind {
                ErrorKind::Crashed | ErrorKind::Timeout => Outcome::Lost,
                // The client's fault, or nobody's.
                ErrorKind::Unavailable => Outcome::Unused,
                _ if left == Left::Unsent => Outcome::Unused,
                _ => Outcome::Failed,
            };
            drop(lease);
            let again = match left {
                Left::Unsent => true,
                Left::Sent => error.kind == ErrorKind::Crashed,
                Left::Nothing => false,
            };
            if !again || last || !self.may_retry(&error) {
                self.failed(claim.revision, cx);
                let failure = match delivery.peer {
                    Some(_) => Failure::from_peer(&error, again),
                    None => Failure::from_call(&error),
                };
                return Err(Refused::new(failure, again));
            }
            tracing::debug!(request = %cx.request, %instance, %error, "trying another instance");
            self.metrics.retries.increment(1);
            claim.exclude = Some(instance);
            attempt += 1;
        }
    }

    fn may_retry(&self, error: &Error) -> bool {
        let transient =
            matches!(error.kind, ErrorKind::Crashed | ErrorKind::Timeout | ErrorKind::Unavailable);
        transient && self.budget.take(Instant::now(), self.ids.given())
    }

    /// For a roll-out: a request failed. Copies show nothing of how users fare.
    fn failed(&self, revision: RevisionKey, cx: &Cx) {
        if cx.purpose != Purpose::Mirrored {
            self.tallies.failed(revision);
        }
    }

    /// For a roll-out: an instance began its answer after so long.
    fn answered(&self, delivery: &Delivery<'_>, took: Duration) {
        if delivery.cx.purpose != Purpose::Mirrored {
            self.tallies.answered(delivery.target.revision, took + delivery.delayed);
        }
    }

    /// A slot: the warm way if there is one, else the queue.
    async fn claim(&self, claim: &Claim, cx: &Cx) -> Result<Claimed, Failure> {
        if let Some(lease) = self.pool.try_claim(claim) {
            return Ok(Claimed { lease, at: Instant::now(), cold: false });
        }
        // In a box, so that requests that need not wait are spared its bytes.
        Box::pin(self.wait(claim, cx)).await
    }

    /// A place in the queue.
    async fn wait(&self, claim: &Claim, cx: &Cx) -> Result<Claimed, Failure> {
        // Pools hold to the deadline themselves. One that does not must not hold a client for ever.
        let claimed = timeout_at(cx.deadline + POOL_GRACE, self.pool.claim(claim, cx)).await;
        match claimed.unwrap_or(Err(ClaimError::Deadline)) {
            Ok(lease) => {
                let cold = lease.start.is_some();
                Ok(Claimed { lease, at: Instant::now(), cold })
            }
            Err(error) => {
                // Who asks for a revision that may sleep learns nothing of how it is.
                if !matches!(error, ClaimError::Asleep | ClaimError::Closed | ClaimError::Unknown) {
                    self.failed(claim.revision, cx);
                }
                Err(Failure::from_claim(&error))
            }
        }
    }

    /// One attempt on one instance. `repeats`: the request stands where it was after an error if it may be sent again.
    async fn call(
        &self,
        lease: &Lease,
        request: &mut Request,
        delivery: &Delivery<'_>,
        repeats: bool,
        upgrading: bool,
    ) -> Result<(Answered, Option<Arc<Progress>>), Box<Failed>> {
        let (cx, protocol) = (delivery.cx, delivery.manner.protocol);
        let protocol = if delivery.peer.is_some() && upgrading { Protocol::Http1 } else { protocol };
        let endpoint = match lease.instance.target() {
            InstanceTarget::Endpoint(endpoint) => endpoint,
            InstanceTarget::Call(callee) => {
                let copy = if repeats { again(request) } else { None };
                return match callee.call(std::mem::take(request), cx).await {
                    Ok(answer) => Ok((Answered::Inside(answer), None)),
                    Err(CallError { error, unsent }) => Err(Failed::put_back(error, unsent, copy, request)),
                };
            }
        };
        if let Err(error) = address(request, endpoint, protocol) {
            return Err(Failed::unsent(error));
        }
        if upgrading && protocol == Protocol::Http1 {
            let sending = Box::pin(self.upstream.send_upgrade(endpoint, std::mem::take(request)));
            return match sending.await {
                Ok(response) => Ok((Answered::Socket(response), None)),
                Err(CallError { error, unsent }) => Err(Failed::put_back(error, unsent, None, request)),
            };
        }
        let empty = http_body::Body::is_end_stream(request.body());
        let progress = (!empty).then(|| Progress::until(cx.deadline));
        let to = To {
            instance: lease.instance.id(),
            endpoint,
            interim: delivery.interim,
            repeats,
            elsewhere: delivery.peer.is_some(),
        };
        let sent = match protocol {
            Protocol::H2c => Box::pin(self.upstream.send_http2(to, request, progress.clone())).await,
            _ => self.upstream.send_http1(to, request, progress.as_ref()).await,
        };
        Ok((Answered::Socket(sent?), progress))
    }

    /// Makes an instance's answer fit for the client; the lease goes where the bytes are.
    fn answer(
        &self,
        answered: Answered,
        mut lease: Lease,
        on_upgrade: Option<hyper::upgrade::OnUpgrade>,
        progress: Option<Arc<Progress>>,
        timings: CallTimings,
        delivery: &mut Delivery<'_>,
    ) -> Result<Response, Failure> {
        let status = match &answered {
            Answered::Socket(response) => response.status(),
            Answered::Inside(Answer::Http(response)) => response.status(),
            Answered::Inside(Answer::Upgrade { head, .. }) => head.status(),
        };
        delivery.tail.meter = self.meter(timings.cold, progress.clone(), delivery);
        if delivery.cx.purpose != Purpose::Mirrored {
            self.metrics.answered(status, timings.cold, timings.total.as_secs_f64());
        }
        if let Some(span) = &mut delivery.tail.span {
            span.answered(status);
            span.bytes_in = delivery.bytes_in;
            span.sent.clone_from(&progress);
        }
        if let Some(draft) = &mut delivery.tail.draft {
            draft.record.status = status;
            draft.record.timings = Some(timings.clone());
            draft.sent = progress;
        }
        let connection = delivery.connection;
        let bodiless = framing::is_bodiless(delivery.head_only, status);
        let settle = |head: &mut http::response::Parts, lease: &mut Lease| {
            framing::settle(head.status, &mut head.headers).map_err(|problem| {
                lease.outcome = Outcome::Failed;
                bad_answer(&problem)
            })
        };
        let (mut head, body) = match answered {
            Answered::Socket(response) if status == StatusCode::SWITCHING_PROTOCOLS => {
                let (mut head, body) = response.into_parts();
                drop(body);
                let Some(instance) = head.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
                    lease.outcome = Outcome::Failed;
                    return Err(bad_answer("it switched protocols without being asked to"));
                };
                let instance = upgrade::InstanceEnd::Socket(instance);
                self.answered(delivery, timings.first_byte);
                let tail = &mut *delivery.tail;
                return upgrade::splice(head, instance, on_upgrade, connection, &self.metrics, lease, tail);
            }
            Answered::Inside(Answer::Upgrade { head, io }) => {
                let (head, ()) = head.into_parts();
                let instance = upgrade::InstanceEnd::Inside(io);
                self.answered(delivery, timings.first_byte);
                let tail = &mut *delivery.tail;
                return upgrade::splice(head, instance, on_upgrade, connection, &self.metrics, lease, tail);
            }
            _ if status.is_informational() => {
                lease.outcome = Outcome::Failed;
                return Err(bad_answer("it ended with an interim status"));
            }
            Answered::Inside(Answer::Http(response)) => {
                let (mut head, body) = response.into_parts();
                let length = settle(&mut head, &mut lease)?;
                let hint = http_body::Body::size_hint(&body).exact();
                if let (Some(said), Some(is), false) = (length, hint, bodiless)
                    && said != is
                {
                    lease.outcome = Outcome::Failed;
                    return Err(bad_answer(&format!(
                        "its Content-Length is {said}, and its body has {is} bytes"
                    )));
                }
                let body = if bodiless {
                    // What hyper's HTTP/2 server would send all the same.
                    if delivery.head_only
                        && let Some(is) = hint.filter(|is| *is > 0)
                    {
                        head.headers.entry(header::CONTENT_LENGTH).or_insert_with(|| is.into());
                    }
                    Body::empty()
                } else {
                    body
                };
                let mut tail = std::mem::take(delivery.tail);
                let body = if body.try_clone().is_some() {
                    // In memory, so the function is done.
                    lease.outcome = outcome(status);
                    drop(lease);
                    tail.passed(http_body::Body::size_hint(&body).exact().unwrap_or(0) as usize);
                    tail.ended(End::Complete);
                    body
                } else {
                    self.stream(&mut head, Measured::new(body, length), lease, tail, delivery)
                };
                (head, body)
            }
            Answered::Socket(response) => {
                let (mut head, mut body) = response.into_parts();
                settle(&mut head, &mut lease)?;
                let mut tail = std::mem::take(delivery.tail);
                let body = match body.complete() {
                    // The instance is done: its slot need not wait for a slow client.
                    Some(bytes) => {
                        lease.outcome = outcome(status);
                        drop(lease);
                        tail.passed(bytes.len());
                        tail.ended(End::Complete);
                        Body::from(bytes)
                    }
                    None => self.stream(&mut head, body, lease, tail, delivery),
                };
                (head, body)
            }
        };
        match status.is_server_error() {
            true => self.failed(delivery.target.revision, delivery.cx),
            false => self.answered(delivery, timings.first_byte),
        }
        forward::strip_hop_by_hop(&mut head.headers, false);
        head.version = Version::HTTP_11;
        if delivery.timed {
            head.extensions.insert(timings);
        }
        Ok(Response::from_parts(head, body))
    }

    /// What is told to the meter once the answer is over, from the moment on at which the metrics count it.
    fn meter(&self, cold: bool, sent: Option<Arc<Progress>>, delivery: &Delivery<'_>) -> Option<MeterDraft> {
        let sink = self.config.meter.as_ref().filter(|_| delivery.cx.purpose.metered())?;
        let deployed = delivery.deployed?;
        let mut used = RequestUsage::of(1);
        used.cold_starts = u64::from(cold);
        used.events = u64::from(delivery.cx.purpose == Purpose::Event);
        used.mirrored = u64::from(delivery.cx.purpose == Purpose::Mirrored);
        used.bytes_in = delivery.bytes_in;
        let revision = delivery.target.revision;
        Some(MeterDraft { sink: Arc::clone(sink), revision, deployed: Arc::clone(deployed), used, sent })
    }

    /// A body that is still on its way, with its limits, its lease and what comes at its end.
    fn stream<B>(
        &self,
        head: &mut http::response::Parts,
        body: B,
        mut lease: Lease,
        mut tail: Tail,
        delivery: &Delivery<'_>,
    ) -> Body
    where
        B: http_body::Body<Data = bytes::Bytes, Error = BoxError> + Send + Unpin + 'static,
    {
        lease.outcome = outcome(head.status);
        let mut limits =
            Limits { deadline: Some(delivery.cx.deadline), idle: delivery.manner.idle, sender: "instance" };
        tail.lease = Some(lease);
        if !is_event_stream(&head.headers) {
            head.extensions.insert(WriteBy(delivery.cx.deadline));
            return Body::new(Tailed::new(Timed::new(body, limits), tail, None));
        }
        // An event stream has no end of its own, and may be ended between two events.
        limits.deadline = None;
        let events = Events::new(delivery.connection.ending(), Arc::clone(&self.metrics));
        Body::new(Tailed::new(Timed::new(body, limits), tail, Some(events)))
    }
}

fn outcome(status: StatusCode) -> Outcome {
    if status.is_server_error() { Outcome::Failed } else { Outcome::Ok }
}

fn bad_answer(what: &str) -> Failure {
    let text = format!("the instance's answer can't be passed on: {what}");
    Failure::new(StatusCode::BAD_GATEWAY, "instance", "bad_response", text)
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

fn timings(
    lease: &Lease,
    instance: InstanceId,
    cold: bool,
    arrived: Instant,
    claimed: Instant,
) -> CallTimings {
    let now = Instant::now();
    let mut timings = CallTimings::default();
    timings.instance = Some(instance);
    timings.cold = cold;
    timings.queued = claimed.saturating_duration_since(arrived);
    timings.start = lease.start.as_deref().copied();
    timings.first_byte = now.saturating_duration_since(claimed);
    timings.total = now.saturating_duration_since(arrived);
    timings
}

/// Writes the request's target as the protocol wants it: the path alone, or scheme, authority and path.
fn address(request: &mut Request, endpoint: &Endpoint, protocol: Protocol) -> Result<(), Error> {
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    if protocol == Protocol::H2c {
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        // Of a second attempt the first one took Host out.
        let named = host.and_then(|host| host.parse().ok()).or(parts.authority.take());
        parts.authority = match (named, endpoint) {
            (Some(authority), _) => Some(authority),
            (None, Endpoint::Tcp(_) | Endpoint::Host { .. }) => endpoint.to_string().parse().ok(),
            (None, Endpoint::Within(address, _)) => address.to_string().parse().ok(),
            (None, _) => Some(http::uri::Authority::from_static("localhost")),
        };
        parts.scheme = Some(http::uri::Scheme::HTTP);
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().remove(header::HOST);
    } else {
        parts.scheme = None;
        parts.authority = None;
        *request.version_mut() = Version::HTTP_11;
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    *request.uri_mut() = Uri::from_parts(parts).map_err(|error| {
        Error::new(ErrorKind::InvalidSpec, "send", "the request's target can't be sent to an instance")
            .with_source(error)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_attempt_names_the_same_host() {
        let endpoint = Endpoint::Tcp(([127, 0, 0, 1], 9).into());
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/path?q".parse().unwrap();
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("hello.example.com"));
        for _ in 0..2 {
            address(&mut request, &endpoint, Protocol::H2c).unwrap();
            assert_eq!(request.uri(), "http://hello.example.com/path?q");
            assert!(!request.headers().contains_key(header::HOST));
        }
        address(&mut request, &endpoint, Protocol::Http1).unwrap();
        assert_eq!(request.uri(), "/path?q");
    }
}
