//! Errors of the admin API as problem details (RFC 9457): what, where and what to do.

use axum::response::IntoResponse;
use http::{HeaderValue, StatusCode, header};
use sas_core::{Body, Denied, Error, ErrorKind, RequestId, Response, Retry, SpecError, SpecErrors};
use serde::Serialize;
use utoipa::ToSchema;

use super::applied::AppliedView;
use crate::control::PRECONDITION;

/// The media type of problem details.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

/// Why a request was not done, as RFC 9457 has it, with members of this platform: `component`, `reason`, `message` and
/// `fields` have the names that errors at the ingress have.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Problem {
    /// `urn:sas:problem:` and the reason.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What happened, for a human, with the remedy where there is one.
    detail: String,
    /// `urn:sas:request:` and the id under which the log knows the request.
    instance: String,
    /// The part of the platform that refused: `control`, `runtime`, `pool`, `gateway` or `store`.
    component: String,
    /// One word, for programs.
    reason: String,
    /// The same as `detail`.
    message: String,
    /// The id under which the log knows the request.
    request_id: String,
    /// Every mistake of what was sent, with its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Vec<FieldProblem>>,
    /// Of several manifests: those that were applied before the one that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    applied: Option<Vec<AppliedView>>,
}

/// A mistake in what was sent.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct FieldProblem {
    /// Where, as a path such as `spec.template.spec.containerConcurrency`.
    field: String,
    /// What stands there.
    value: String,
    /// What is wrong with it, and what would do.
    problem: String,
}

impl From<&SpecError> for FieldProblem {
    fn from(error: &SpecError) -> Self {
        Self { field: error.field.clone(), value: error.value.clone(), problem: error.problem.clone() }
    }
}

/// A failure that is an answer. Boxed, so that what succeeds does not carry its size.
#[derive(Clone, Debug)]
pub(super) struct Failure(Box<Facts>);

#[derive(Clone, Debug)]
struct Facts {
    status: StatusCode,
    component: &'static str,
    reason: String,
    message: String,
    fields: Option<Vec<FieldProblem>>,
    /// Methods that would do, for 405.
    allow: Option<String>,
    retry_after: Option<u64>,
    /// How to say who asks, for 401.
    challenge: Option<String>,
    applied: Option<Vec<AppliedView>>,
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
            applied: None,
        }))
    }

    pub(super) fn not_allowed(method: &http::Method, allow: String) -> Self {
        let message = format!("{method} is not possible here; {allow} is");
        let mut failure = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message);
        failure.0.allow = Some(allow);
        failure
    }

    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(super) fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", message)
    }

    pub(super) fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The client is to come back after so many seconds.
    pub(super) fn later(mut self, seconds: u64) -> Self {
        self.0.retry_after = Some(seconds.max(1));
        self
    }

    /// With what was done before the failure.
    pub(super) fn after(mut self, applied: Vec<AppliedView>) -> Self {
        self.0.applied = (!applied.is_empty()).then_some(applied);
        self
    }

    pub(super) fn field(field: &str, value: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        let mut errors = SpecErrors::default();
        errors.push(field, value, problem);
        SpecErrors::into(errors)
    }

    /// The answer, with the id under which logs know the request.
    pub(super) fn response(self, request: RequestId) -> Response {
        let facts = *self.0;
        let problem = Problem {
            kind: format!("urn:sas:problem:{}", facts.reason),
            title: facts.status.canonical_reason().unwrap_or("Error").to_owned(),
            status: facts.status.as_u16(),
            detail: facts.message.clone(),
            instance: format!("urn:sas:request:{request}"),
            component: facts.component.to_owned(),
            reason: facts.reason,
            message: facts.message,
            request_id: request.to_string(),
            fields: facts.fields,
            applied: facts.applied,
        };
        let text = serde_json::to_vec(&problem).unwrap_or_default();
        let mut response = Response::new(Body::from(text));
        *response.status_mut() = facts.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(allow) = facts.allow.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if let Some(challenge) = facts.challenge.and_then(|text| HeaderValue::try_from(text).ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = facts.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// A handler's failure on its way to where the request's id is known.
impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.0.status.into_response();
        response.extensions_mut().insert(self);
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
        failure.0.fields = Some(errors.0.iter().map(FieldProblem::from).collect());
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let status = match error.kind {
            ErrorKind::InvalidSpec | ErrorKind::Unsupported => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Conflict if error.operation == PRECONDITION => StatusCode::PRECONDITION_FAILED,
            ErrorKind::Conflict => StatusCode::CONFLICT,
            ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::Exhausted
                if error.operation == "deploy" || sas_core::QuotaExceeded::of(&error).is_some() =>
            {
                StatusCode::TOO_MANY_REQUESTS
            }
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
        let fields: Option<Vec<FieldProblem>> =
            error.fields().map(|errors| errors.0.iter().map(FieldProblem::from).collect());
        // The fields repeat what their sum says; every other cause is part of the story.
        let message = if fields.is_some() { error.message.clone() } else { error.chain() };
        let reason = match status {
            StatusCode::PRECONDITION_FAILED => "precondition_failed",
            _ => error.kind.as_str(),
        };
        let mut failure = Self::new(status, reason, message);
        failure.0.component = component;
        failure.0.fields = fields;
        failure.0.retry_after = retry_after;
        failure
    }
}
