//! Answers of the admin API: JSON, and errors that say what, where and what to do.

use http::{HeaderValue, StatusCode, header};
use sas_core::{Body, Denied, Error, ErrorKind, RequestId, Response, Retry, SpecErrors};
use serde::Serialize;
use serde_json::{Value, json};

/// A failure that is an answer. Boxed, so that what succeeds does not carry its size.
#[derive(Debug)]
pub(super) struct Failure(Box<Facts>);

#[derive(Debug)]
struct Facts {
    status: StatusCode,
    component: &'static str,
    reason: String,
    message: String,
    fields: Option<SpecErrors>,
    /// Methods that would do, for 405.
    allow: Option<&'static str>,
    retry_after: Option<u64>,
    /// How to say who asks, for 401.
    challenge: Option<String>,
    /// Further facts.
    more: Option<(&'static str, Value)>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        Self(Box::new(Facts {
            status,
            component: "control",
            reason: reason.to_owned(),
            message: message.into(),
            fields: None,
            allow: None,
            retry_after: None,
            challenge: None,
            more: None,
        }))
    }

    pub(super) fn not_allowed(method: &http::Method, allow: &'static str) -> Self {
        let message = format!("{method} is not possible here; {allow} is");
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        failure.0.allow = Some(allow);
        failure
    }

    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    /// With a further fact.
    pub(super) fn with(mut self, name: &'static str, value: Value) -> Self {
        self.0.more = Some((name, value));
        self
    }

    pub(super) fn field(field: &str, value: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        let mut errors = SpecErrors::default();
        errors.push(field, value, problem);
        SpecErrors::into(errors)
    }

    /// In the shape that every error of the platform has, at the ingress as here: flat, with the id under which logs
    /// know the request.
    pub(super) fn response(self, request: RequestId) -> Response {
        let facts = *self.0;
        let mut body = json!({
            "component": facts.component,
            "reason": facts.reason,
            "message": facts.message,
            "request_id": request.to_string(),
        });
        if let Some(fields) = &facts.fields {
            body["fields"] = json!(fields);
        }
        if let Some((name, value)) = facts.more {
            body[name] = value;
        }
        let mut response = json_response(facts.status, &body);
        if let Ok(id) = HeaderValue::from_str(&request.to_string()) {
            response.headers_mut().insert("x-request-id", id);
        }
        if let Some(allow) = facts.allow {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(challenge) = facts.challenge.and_then(|text| HeaderValue::try_from(text).ok()) {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = facts.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Denied> for Failure {
    fn from(denied: Denied) -> Self {
        match denied {
            Denied::Unauthenticated { message, challenge } => {
                let mut failure = Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", message);
                failure.0.challenge = Some(challenge);
                failure
            }
            Denied::Forbidden(message) => Self::new(StatusCode::FORBIDDEN, "forbidden", message),
            denied => Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", denied.to_string()),
        }
    }
}

impl From<SpecErrors> for Failure {
    fn from(errors: SpecErrors) -> Self {
        let mut failure = Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_spec", errors.to_string());
        failure.0.fields = Some(errors);
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind {
            ErrorKind::InvalidSpec | ErrorKind::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Exhausted if error.operation == "deploy" => StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::Exhausted => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::Crashed => StatusCode::BAD_GATEWAY,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let component = match error.operation {
            "prepare" | "start" | "call" | "stop" => "runtime",
            "claim" => "pool",
            "invoke"
                if matches!(
                    error.kind,
                    ErrorKind::Unavailable | ErrorKind::Crashed | ErrorKind::Exhausted
                ) =>
            {
                "gateway"
            }
            "store" | "put" | "get" | "list" | "open" => "store",
            _ => "control",
        };
        let retry_after = match error.retry {
            Retry::After(after) => Some(after.as_secs().max(1)),
            _ => None,
        };
        let fields = error.fields().cloned();
        // The fields repeat what their sum says; every other cause is part of the story.
        let message = if fields.is_some() { error.message.clone() } else { error.chain() };
        let mut failure = Self::new(status, error.kind.as_str(), message);
        failure.0.component = component;
        failure.0.fields = fields;
        failure.0.retry_after = retry_after;
        failure
    }
}

pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        Err(error) => {
            let text = json!({
                "component": "control",
                "reason": "unexpected",
                "message": format!("the answer can't be written: {error}"),
            });
            (StatusCode::INTERNAL_SERVER_ERROR, text.to_string().into_bytes())
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
