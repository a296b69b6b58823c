//! From a route's target to the head of an answer: claim, call, and once more where that is safe.

use std::sync::Arc;

use http::{HeaderMap, Method, StatusCode, Uri, Version, header};
use sas_core::{
    Answer, Body, CallError, CallTimings, Claim, Cx, Deployed, Endpoint, Error, ErrorKind, InstanceId, Lease,
    Outcome, Protocol, Request, Response, RouteTarget,
};
use tokio::time::{Instant, timeout_at};

use super::{
    Gateway,
    stream::{Limits, Timed},
    upgrade,
};
use crate::{
    failure::Failure,
    forward,
    retry::is_idempotent,
    upstream::{InstanceBody, Progress},
};

/// Why a request got no answer from an instance, with the request when no byte of it reached one.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) failure: Failure,
    pub(super) unsent: Option<Box<Request>>,
}

impl Refused {
    fn new(failure: Failure, unsent: Option<Box<Request>>) -> Box<Self> {
        Box::new(Self { failure, unsent })
    }
}

/// What a second attempt needs, kept while the first one runs.
struct Copy {
    method: Method,
    uri: Uri,
    version: Version,
    headers: HeaderMap,
    body: Body,
}

impl Copy {
    /// `None` when the request may not be sent twice.
    fn of(request: &Request) -> Option<Self> {
        if !is_idempotent(request.method()) {
            return None;
        }
        Some(Self {
            body: request.body().try_clone()?,
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
        })
    }

    fn into_request(self) -> Request {
        let mut request = Request::new(self.body);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = self.version;
        *request.headers_mut() = self.headers;
        request
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

impl Gateway {
    /// Brings `request` to an instance of `target` and answers with the head of the response.
    ///
    /// **Cancel safety:** dropping the future gives up the place in the queue, or aborts the call.
    pub(super) async fn deliver(
        &self,
        mut request: Request,
        target: &RouteTarget,
        cx: &Cx,
        arrived: Instant,
    ) -> Result<Response, Box<Refused>> {
        let Some(deployed) = self.pool.deployed(target.revision) else {
            let failure = Failure::from_claim(&sas_core::ClaimError::Unknown);
            return Err(Refused::new(failure, Some(Box::new(request))));
        };
        let mut claim = Claim::new(target.revision, target.tenant);
        claim.affinity = target.affinity;
        claim.priority = cx.priority;
        claim.metered = cx.purpose.metered();
        claim.wakes = target.wakes && cx.purpose.wakes();
        let upgrading = forward::wants_upgrade(request.headers());
        let mut on_upgrade = request.extensions_mut().remove::<hyper::upgrade::OnUpgrade>();
        let mut attempt = 1;
        loop {
            let Claimed { mut lease, at, cold } = match self.claim(&claim, cx).await {
                Ok(claimed) => claimed,
                Err(failure) => return Err(Refused::new(failure, Some(Box::new(request)))),
            };
            let instance = lease.instance.id();
            let last = attempt >= self.config.retry.attempts;
            let copy = if last || upgrading { None } else { Copy::of(&request) };
            let careful = copy.is_none();
            let by = cx.deadline.min(at + deployed.spec.timeouts.response_start);
            let call = self.call(&lease, &deployed, request, cx, careful, upgrading);
            let error = match timeout_at(by, call).await {
                Ok(Ok((answered, progress))) => {
                    let timings = timings(&lease, instance, cold, arrived, at);
                    let limits = Limits { deadline: Some(cx.deadline), idle: deployed.spec.timeouts.idle };
                    let response = self.answer(answered, lease, limits, on_upgrade.take(), progress);
                    return response
                        .map(|mut response| {
                            response.extensions_mut().insert(timings);
                            response
                        })
                        .map_err(|failure| Refused::new(failure, None));
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    lease.outcome = Outcome::Failed;
                    let text =
                        format!("instance {instance} had not answered {:?} after arrival", arrived.elapsed());
                    return Err(Refused::new(Failure::deadline(text), None));
                }
            };
            lease.outcome = match error.error.kind {
                ErrorKind::Crashed | ErrorKind::Timeout => Outcome::Lost,
                _ if error.unsent.is_some() => Outcome::Unused,
                _ => Outcome::Failed,
            };
            drop(lease);
            let again = match (error.unsent, copy) {
                (Some(unsent), _) => Ok(*unsent),
                (None, Some(copy)) if error.error.kind == ErrorKind::Crashed => Ok(copy.into_request()),
                (None, _) => Err(None),
            };
            let again = match again {
                Ok(request) if last || !self.may_retry(&error.error) => Err(Some(Box::new(request))),
                other => other,
            };
            match again {
                Ok(next) => {
                    tracing::debug!(request = %cx.request, %instance, error = %error.error, "trying another instance");
                    request = next;
                    claim.exclude = Some(instance);
                    attempt += 1;
                }
                Err(unsent) => return Err(Refused::new(Failure::from_call(&error.error), unsent)),
            }
        }
    }

    fn may_retry(&self, error: &Error) -> bool {
        let transient =
            matches!(error.kind, ErrorKind::Crashed | ErrorKind::Timeout | ErrorKind::Unavailable);
        transient && self.budget.take(Instant::now(), self.ids.given())
    }

    /// A slot: the warm way if there is one, else the queue.
    async fn claim(&self, claim: &Claim, cx: &Cx) -> Result<Claimed, Failure> {
        if let Some(lease) = self.pool.try_claim(claim) {
            return Ok(Claimed { lease, at: Instant::now(), cold: false });
        }
        match self.pool.claim(claim, cx).await {
            Ok(lease) => {
                let cold = lease.start.is_some();
                Ok(Claimed { lease, at: Instant::now(), cold })
            }
            Err(error) => Err(Failure::from_claim(&error)),
        }
    }

    /// One attempt on one instance.
    async fn call(
        &self,
        lease: &Lease,
        deployed: &Deployed,
        mut request: Request,
        cx: &Cx,
        careful: bool,
        upgrading: bool,
    ) -> Result<(Answered, Option<Arc<Progress>>), CallError> {
        let Some(endpoint) = lease.instance.endpoint() else {
            return lease.instance.call(request, cx).await.map(|answer| (Answered::Inside(answer), None));
        };
        let protocol = deployed.spec.protocol;
        if let Err(error) = address(&mut request, endpoint, protocol) {
            return Err(CallError::unsent(error, request));
        }
        if upgrading && protocol == Protocol::Http1 {
            let response = self.upstream.send_upgrade(endpoint, request).await?;
            return Ok((Answered::Socket(response), None));
        }
        let empty = http_body::Body::is_end_stream(request.body());
        let progress = (!empty).then(Arc::<Progress>::default);
        let instance = lease.instance.id();
        let sending = self.upstream.send(instance, endpoint, protocol, request, progress.clone(), careful);
        Ok((Answered::Socket(sending.await?), progress))
    }

    /// Makes an instance's answer fit for the client; the lease goes where the bytes are.
    fn answer(
        &self,
        answered: Answered,
        mut lease: Lease,
        mut limits: Limits,
        on_upgrade: Option<hyper::upgrade::OnUpgrade>,
        _progress: Option<Arc<Progress>>,
    ) -> Result<Response, Failure> {
        let outcome =
            |status: StatusCode| if status.is_server_error() { Outcome::Failed } else { Outcome::Ok };
        let (mut head, body) = match answered {
            Answered::Socket(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let (mut head, body) = response.into_parts();
                drop(body);
                let Some(instance) = head.extensions.remove::<hyper::upgrade::OnUpgrade>() else {
                    lease.outcome = Outcome::Failed;
                    return Err(bad_answer("it switched protocols without being asked to"));
                };
                return upgrade::splice(
                    self,
                    head,
                    upgrade::InstanceEnd::Socket(instance),
                    on_upgrade,
                    lease,
                );
            }
            Answered::Inside(Answer::Upgrade { head, io }) => {
                let (head, ()) = head.into_parts();
                return upgrade::splice(self, head, upgrade::InstanceEnd::Inside(io), on_upgrade, lease);
            }
            Answered::Inside(Answer::Http(response)) => {
                let (head, body) = response.into_parts();
                lease.outcome = outcome(head.status);
                if is_event_stream(&head.headers) {
                    limits.deadline = None;
                }
                // What is in memory needs no limits.
                let body =
                    if body.try_clone().is_some() { body } else { Body::new(Timed::new(body, limits)) };
                (head, body.with_lease(lease))
            }
            Answered::Socket(response) => {
                let (head, mut body) = response.into_parts();
                lease.outcome = outcome(head.status);
                if is_event_stream(&head.headers) {
                    limits.deadline = None;
                }
                let body = match body.complete() {
                    // The instance is done: its slot need not wait for a slow client.
                    Some(bytes) => {
                        drop(lease);
                        Body::from(bytes)
                    }
                    None => Body::new(Timed::new(body, limits)).with_lease(lease),
                };
                (head, body)
            }
        };
        if head.status.is_informational() {
            return Err(bad_answer("it ended with an interim status"));
        }
        forward::strip_hop_by_hop(&mut head.headers, false);
        head.version = Version::HTTP_11;
        Ok(Response::from_parts(head, body))
    }
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
        let named = host.and_then(|host| host.parse().ok());
        parts.authority = match (named, endpoint) {
            (Some(authority), _) => Some(authority),
            (None, Endpoint::Tcp(address)) => address.to_string().parse().ok(),
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
