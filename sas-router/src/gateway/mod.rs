//! The gateway: a request's way from its route to an instance and back.

mod config;
mod deliver;
mod stream;
mod upgrade;
mod vet;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http::{HeaderValue, Response as HttpResponse, header};
use sas_core::{
    Body, CallError, CallTimings, Cx, Error, ErrorKind, Handler, Invoker, Pool, Purpose, Request, Response,
    Route, RouteQuery, RouteTarget, Router, Target, TenantKey,
};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

pub use self::config::{GatewayConfig, ServerTiming};
use self::deliver::Refused;
use crate::{
    connection::ClientConnection,
    failure::{Failure, REQUEST_ID, request_id_value},
    forward, host_of, identity,
    identity::IdSource,
    retry::RetryBudget,
    upstream::Upstream,
};

/// The header by which a client asks for `Server-Timing`.
const ASK_TIMING: http::HeaderName = http::HeaderName::from_static("x-sas-timing");
const SERVER_TIMING: http::HeaderName = http::HeaderName::from_static("server-timing");

/// Routes requests, claims instances for them, and passes them on.
///
/// As a [`Handler`] it takes requests from outside: what [`crate::Server`], axum or an embedding program hands it.
/// As an [`Invoker`] it takes calls of the platform's own parts. It opens no socket but those to instances, and
/// spawns no task but for upgraded connections, HTTP/2 connections to instances, and uploads that outlast the head
/// of their answer.
pub struct Gateway {
    router: Arc<dyn Router>,
    pool: Arc<dyn Pool>,
    config: GatewayConfig,
    ids: IdSource,
    budget: RetryBudget,
    upstream: Arc<Upstream>,
    /// The origin of requests that came through no connection of ours.
    embedded: Arc<ClientConnection>,
    tasks: TaskTracker,
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
        Arc::new(Self {
            router,
            pool,
            ids: IdSource::new(config.seed),
            budget: RetryBudget::new(config.retry),
            upstream: Upstream::new(config.upstream),
            embedded: Arc::new(ClientConnection::new(None, false)),
            tasks: TaskTracker::new(),
            config,
        })
    }

    /// Waits until no upgraded connection is left.
    pub async fn quiesce(&self) {
        self.tasks.close();
        self.tasks.wait().await;
        self.tasks.reopen();
    }

    fn route(&self, request: &Request, host: &str) -> Result<Route, Failure> {
        let query = RouteQuery {
            method: request.method(),
            host,
            path: request.uri().path(),
            query: request.uri().query(),
            headers: request.headers(),
        };
        self.router.route(&query).map_err(|error| Failure::from_route(error, host))
    }

    /// The way of a request from outside.
    async fn serve(
        &self,
        mut request: Request,
        id: sas_core::RequestId,
        arrived: Instant,
    ) -> Result<Response, Failure> {
        vet::vet(&mut request, self.config.max_uri_bytes)?;
        let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).and_then(host_of);
        let host = host.ok_or_else(|| Failure::malformed("missing_host", "a request has a Host header"))?;
        if self.is_internal(host) {
            return Err(Failure::from_route(sas_core::RouteError::NoRoute, host));
        }
        let target = match self.route(&request, host)? {
            Route::To(target) => target,
            Route::Redirect { status, location } => return redirect(status, &location),
            _ => return Err(Failure::from_route(sas_core::RouteError::NoRoute, host)),
        };
        let asked = request.headers().contains_key(&ASK_TIMING);
        self.prepare(&mut request, id);
        let cx = Cx::new(target.tenant, id, arrived + target.timeout);
        let mut response =
            self.deliver(request, &target, &cx, arrived).await.map_err(|refused| refused.failure)?;
        if self.config.server_timing == ServerTiming::Always
            || (asked && self.config.server_timing == ServerTiming::WhenAsked)
        {
            add_server_timing(&mut response);
        }
        Ok(response)
    }

    /// Makes the head of a request fit for an instance.
    fn prepare(&self, request: &mut Request, id: sas_core::RequestId) {
        let upgrade = forward::wants_upgrade(request.headers())
            && request.extensions().get::<hyper::upgrade::OnUpgrade>().is_some();
        let connection = request.extensions_mut().remove::<Arc<ClientConnection>>();
        let connection = connection.as_ref().unwrap_or(&self.embedded);
        let headers = request.headers_mut();
        forward::strip_hop_by_hop(headers, upgrade);
        // The ingress answers 100 itself, as soon as an instance takes the body.
        headers.remove(header::EXPECT);
        headers.remove(&ASK_TIMING);
        forward::stamp(headers, connection.origin(), self.config.trust_forwarded);
        identity::trace(headers, id);
        headers.insert(REQUEST_ID, request_id_value(id));
    }

    fn is_internal(&self, host: &str) -> bool {
        let suffix = self.config.internal_suffix.as_bytes();
        let host = host.strip_suffix('.').unwrap_or(host).as_bytes();
        let Some(split) = host.len().checked_sub(suffix.len()) else { return false };
        host[split..].eq_ignore_ascii_case(suffix) && (split == 0 || host[split - 1] == b'.')
    }

    fn arrival_id(&self, request: &Request) -> sas_core::RequestId {
        let given = self.config.trust_forwarded.then(|| request.headers().get(REQUEST_ID)).flatten();
        given.and_then(identity::parse_request_id).unwrap_or_else(|| self.ids.next())
    }
}

#[async_trait]
impl Handler for Gateway {
    async fn handle(&self, request: Request) -> Response {
        let arrived = Instant::now();
        let id = self.arrival_id(&request);
        match self.serve(request, id, arrived).await {
            Ok(mut response) => {
                response.headers_mut().insert(REQUEST_ID, request_id_value(id));
                response
            }
            Err(failure) => failure.into_response(id),
        }
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
                    Ok(_) => return not_found(format!("{path}: no route that this version knows"), request),
                    Err(failure) => return Err(CallError::unsent(failure.into_error(), request)),
                }
            }
            Target::Revision(key) => {
                let Some(deployed) = self.pool.deployed(*key) else {
                    return not_found(format!("no revision has the key {}", key.0), request);
                };
                RouteTarget::new(*key, deployed.tenant)
            }
            other => return not_found(format!("this version can't call {other:?}"), request),
        };
        if cx.tenant != TenantKey::default() {
            to.tenant = cx.tenant;
        }
        if cx.purpose == Purpose::Probe {
            to.wakes = false;
        }
        self.prepare(&mut request, cx.request);
        let answered = self.deliver(request, &to, cx, arrived).await;
        answered.map_err(|refused| {
            let Refused { failure, unsent } = *refused;
            CallError { error: failure.into_error(), unsent }
        })
    }
}

fn redirect(status: http::StatusCode, location: &str) -> Result<Response, Failure> {
    let value = HeaderValue::from_str(location)
        .map_err(|_| Failure::malformed("bad_path", "the path can't be part of a Location"))?;
    let response = HttpResponse::builder().status(status).header(header::LOCATION, value).body(Body::empty());
    Ok(response.expect("a valid status and a valid header"))
}

/// `queue`: until an instance was there; `start`: the start that was waited for; `upstream`: the instance's part.
fn add_server_timing(response: &mut Response) {
    let Some(timings) = response.extensions().get::<CallTimings>() else { return };
    let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
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
