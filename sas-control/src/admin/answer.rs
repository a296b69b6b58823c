//! Answers of the admin API: JSON, and errors that say what, where and what to do.

use http::{HeaderValue, StatusCode, header};
use sas_core::{Body, Error, ErrorKind, Response, Retry, SpecErrors};
use serde::Serialize;
use serde_json::{Value, json};

/// A failure that is an answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) status: StatusCode,
    component: String,
    reason: String,
    message: String,
    fields: Option<SpecErrors>,
    /// Methods that would do, for 405.
    allow: Option<&'static str>,
    retry_after: Option<u64>,
    /// Further facts.
    pub(super) more: Option<(&'static str, Value)>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, reason: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            component: "control".to_owned(),
            reason: reason.to_owned(),
            message: message.into(),
            fields: None,
            allow: None,
            retry_after: None,
            more: None,
        }
    }

    pub(super) fn not_allowed(method: &http::Method, allow: &'static str) -> Self {
        let message = format!("{method} is not possible here; {allow} is");
        Self {
            allow: Some(allow),
            ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        }
    }

    pub(super) fn field(field: &str, value: impl std::fmt::Display, problem: impl Into<String>) -> Self {
        let mut errors = SpecErrors::default();
        errors.push(field, value, problem);
        SpecErrors::into(errors)
    }

    pub(super) fn response(self) -> Response {
        let mut body = json!({
            "component": self.component,
            "reason": self.reason,
            "message": self.message,
        });
        if let Some(fields) = &self.fields {
            body["fields"] = json!(fields);
        }
        if let Some((name, value)) = self.more {
            body[name] = value;
        }
        let mut response = json_response(self.status, &json!({ "error": body }));
        if let Some(allow) = self.allow {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allow));
        }
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<SpecErrors> for Failure {
    fn from(errors: SpecErrors) -> Self {
        let message = errors.to_string();
        Self { fields: Some(errors), ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_spec", message) }
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
            "store" | "put" | "get" | "list" | "open" => "store",
            _ => "control",
        };
        let retry_after = match error.retry {
            Retry::After(after) => Some(after.as_secs().max(1)),
            _ => None,
        };
        let fields =
            std::error::Error::source(&error).and_then(|source| source.downcast_ref::<SpecErrors>()).cloned();
        // The fields repeat what their sum says; every other cause is part of the story.
        let message = if fields.is_some() { error.message.clone() } else { error.chain() };
        Self {
            component: component.to_owned(),
            fields,
            retry_after,
            ..Self::new(status, error.kind.as_str(), message)
        }
    }
}

pub(super) fn json_response(status: StatusCode, value: &impl Serialize) -> Response {
    let (status, text) = match serde_json::to_vec(value) {
        Ok(text) => (status, text),
        Err(error) => {
            let text = json!({"error": {
                "component": "control",
                "reason": "unexpected",
                "message": format!("the answer can't be written: {error}"),
            }});
            (StatusCode::INTERNAL_SERVER_ERROR, text.to_string().into_bytes())
        }
    };
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
