//! What comes in over HTTP beside calls: events for brokers, webhooks, and calls that want no answer now.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http::{HeaderMap, Method, StatusCode, header};
use sas_core::{
    Body, BrokerIngress, Error, ErrorKind, Event, Handler, Hosts, Place, QuotaExceeded, Request, Response,
    Retry, TraceContext, TriggerSecrets, Triggers as _,
};
use serde_json::json;
use subtle::ConstantTimeEq as _;

use crate::{
    answers::{answer, collect, host_of, refused, unavailable},
    async_calls::{AsyncCalls, RESULTS},
    cloudevents::{self, Limits},
    host::TriggerHost,
    metrics::HOOKS,
    webhook::{Refusal, Taken},
};

/// Stands before a gateway and takes what is not a call to be answered now. All else goes to the gateway unchanged.
///
/// At the host `events.<domain>`:
/// - `POST /<namespace>/<broker>`: a CloudEvent in binary, structured or batched mode; 202 when it is durable. Brokers
///   take none unless they are declared to ([`BrokerIngress`]).
/// - `POST /hooks/<namespace>/<trigger>`: a request to a trigger of the kind `webhook`; 202 when its event is durable.
///
/// At every host, with [`EventIngress::with_async_calls`]: a call with `Prefer: respond-async` is answered with 202 and
/// the place of its result, and made later ([`AsyncCalls`]).
pub struct EventIngress {
    gateway: Arc<dyn Handler>,
    host: Arc<TriggerHost>,
    /// Where events are taken.
    name: String,
    calls: Option<Arc<AsyncCalls>>,
    hosts: Option<Arc<dyn Hosts>>,
    limits: Limits,
}

impl fmt::Debug for EventIngress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventIngress").field("name", &self.name).finish_non_exhaustive()
    }
}

impl EventIngress {
    /// Before `gateway`, whose services answer below `domain`.
    pub fn new(gateway: Arc<dyn Handler>, host: Arc<TriggerHost>, domain: &str) -> Self {
        let name = format!("events.{domain}");
        Self { gateway, host, name, calls: None, hosts: None, limits: Limits::default() }
    }

    /// As one of several hosts: events for namespaces whose triggers and brokers are on another one go to the gateway, whose
    /// routes lead there.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Arc<dyn Hosts>) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// With calls that want no answer now.
    #[must_use]
    pub fn with_async_calls(mut self, calls: Arc<AsyncCalls>) -> Self {
        self.calls = Some(calls);
        self
    }

    async fn event(&self, request: Request) -> Response {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        if request.method() != Method::POST {
            return refused(StatusCode::METHOD_NOT_ALLOWED, "events are sent by POST");
        }
        if let (Some(hosts), ["hooks", namespace, _] | [namespace, _]) = (&self.hosts, &parts[..]) {
            match hosts.place(namespace) {
                Place::Here(_) => {}
                Place::There(_) => return self.gateway.handle(request).await,
                Place::Undecided => return unavailable("no host runs the triggers of this namespace now", 1),
            }
        }
        match parts[..] {
            ["hooks", namespace, name] => self.hook(&format!("{namespace}/{name}"), request).await,
            [namespace, broker] => self.accept(&format!("{namespace}/{broker}"), request).await,
            _ => refused(
                StatusCode::NOT_FOUND,
                "there is /<namespace>/<broker> and /hooks/<namespace>/<trigger>",
            ),
        }
    }

    async fn accept(&self, broker: &str, request: Request) -> Response {
        let nowhere = || refused(StatusCode::NOT_FOUND, "no broker of this name takes events here");
        let Some(spec) = self.host.broker_spec(broker) else { return nowhere() };
        let (head, body) = request.into_parts();
        match &spec.ingress {
            BrokerIngress::Open => {}
            BrokerIngress::Token(reference) => {
                let secrets = TriggerSecrets::new(self.host.secret_source(), spec.tenant);
                match secrets.get(reference).await {
                    Ok(token) if carries_token(&head.headers, &token) => {}
                    Ok(_) => {
                        let mut response = refused(
                            StatusCode::UNAUTHORIZED,
                            "the bearer token of this broker is missing or wrong",
                        );
                        let scheme = http::HeaderValue::from_static("Bearer");
                        response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                        return response;
                    }
                    Err(error) => {
                        tracing::warn!(broker, error = %error.chain(), "its token can't be had: no event is taken");
                        return unavailable("the token of this broker can't be had now", 5);
                    }
                }
            }
            _ => return nowhere(),
        }
        let body = match collect(body, self.limits.bytes).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let events = match cloudevents::from_message(&head.headers, body, &self.limits) {
            Ok(events) => events,
            Err(error) => {
                let body = json!({
                    "reason": "malformed",
                    "message": error.to_string(),
                    "errors": [{"field": error.field, "value": error.value, "problem": error.problem}],
                });
                return answer(StatusCode::BAD_REQUEST, &body);
            }
        };
        let events = match events.into_iter().map(|event| traced(event, &head.headers)).collect() {
            Ok(events) => events,
            Err(error) => return refused(StatusCode::BAD_REQUEST, error),
        };
        match self.host.accept(broker, events).await {
            Ok(()) => answer(StatusCode::ACCEPTED, &json!({"status": "accepted"})),
            Err(error) => failed(&error),
        }
    }

    async fn hook(&self, trigger: &str, request: Request) -> Response {
        let Some(hook) = self.host.hook(trigger) else {
            return refused(StatusCode::NOT_FOUND, "no webhook of this name takes requests here");
        };
        let counted = |outcome| self.host.recorder().counter(HOOKS, &[("outcome", outcome)]).increment(1);
        let (head, body) = request.into_parts();
        let body = match collect(body, hook.max_bytes).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let event = match hook.take(&head.headers, &body, self.host.now()).await {
            Ok(Taken::Event(event)) => *event,
            Ok(Taken::Challenge(challenge)) => {
                let mut response = Response::new(Body::from(challenge));
                let kind = http::HeaderValue::from_static("text/plain");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                return response;
            }
            Err(Refusal::Unsigned(problem)) => {
                counted("refused");
                tracing::debug!(trigger, problem, "a request to a webhook was refused");
                return refused(StatusCode::UNAUTHORIZED, problem);
            }
            Err(Refusal::Malformed(problem)) => {
                counted("malformed");
                return refused(StatusCode::BAD_REQUEST, problem);
            }
            Err(Refusal::NoSecret(problem)) => {
                tracing::warn!(trigger, problem, "the secret of a webhook can't be had: no request is taken");
                return unavailable("the secret of this webhook can't be had now", 5);
            }
        };
        match self.host.accept(&crate::broker::hook_broker(trigger), vec![event]).await {
            Ok(()) => {
                counted("accepted");
                answer(StatusCode::ACCEPTED, &json!({"status": "accepted"}))
            }
            Err(error) => failed(&error),
        }
    }
}

#[async_trait]
impl Handler for EventIngress {
    async fn handle(&self, request: Request) -> Response {
        if host_of(&request).is_some_and(|host| host == self.name) {
            return self.event(request).await;
        }
        if let Some(calls) = &self.calls {
            if request.uri().path().starts_with(RESULTS) {
                return calls.result(&request).await;
            }
            if AsyncCalls::is_wanted(request.headers()) {
                return calls.accept(request).await;
            }
        }
        self.gateway.handle(request).await
    }
}

fn carries_token(headers: &HeaderMap, token: &[u8]) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let given = given.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let token = token.trim_ascii();
    !token.is_empty() && given.is_some_and(|(_, given)| bool::from(given.trim().as_bytes().ct_eq(token)))
}

/// The event in the trace of the request, unless it brings one of its own.
fn traced(event: Event, headers: &HeaderMap) -> Result<Event, String> {
    match TraceContext::of(headers) {
        Some(context) if !event.extensions().contains_key("traceparent") => {
            event.with_extension("traceparent", context.to_string()).map_err(|error| error.to_string())
        }
        _ => Ok(event),
    }
}

fn failed(error: &Error) -> Response {
    if let Some(over) = QuotaExceeded::of(error) {
        let seconds = over.retry_after.as_secs_f64().ceil().max(1.0) as u64;
        let body = json!({"reason": over.resource.reason(), "message": error.message});
        let mut response = answer(StatusCode::TOO_MANY_REQUESTS, &body);
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        return response;
    }
    match error.kind {
        ErrorKind::InvalidSpec => refused(StatusCode::PAYLOAD_TOO_LARGE, error.message.as_str()),
        ErrorKind::NotFound => refused(StatusCode::NOT_FOUND, error.message.as_str()),
        _ => {
            let seconds = match error.retry {
                Retry::After(after) => after.as_secs().max(1),
                _ => 1,
            };
            unavailable(&error.message, seconds)
        }
    }
}
