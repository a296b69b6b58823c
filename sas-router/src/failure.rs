//! What a client is told when the platform, not the instance, answers.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use sas_core::{Body, ClaimError, Error, ErrorKind, RequestId, Response, Retry, RouteError};

use crate::upstream::{UPLOAD_BROKEN, UPLOAD_LATE};

/// The header that every answer carries: the id under which logs know the request.
pub const REQUEST_ID: http::HeaderName = http::HeaderName::from_static("x-request-id");

/// A request that the platform itself answers, with the reason.
///
/// To the client it is JSON: `{"component":"pool","reason":"queue_full","message":"…","request_id":"…"}`, with
/// `Retry-After` where it is known when to come back. Components and reasons are stable words; messages are not.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The status that the client gets.
    pub status: StatusCode,
    /// Which part of the platform says so: `ingress`, `router`, `admission`, `pool`, `runtime`, `instance`,
    /// `peer` or `hook`.
    pub component: &'static str,
    /// Why, as one stable word in snake case.
    pub reason: &'static str,
    /// Why, for a human; never holds a secret.
    pub message: String,
    /// When the client may come back.
    pub retry_after: Option<Duration>,
    /// Whether the connection can't be used any further.
    pub close: bool,
}

impl Failure {
    /// A failure of `component` for `reason`, with a text for people.
    pub fn new(
        status: StatusCode,
        component: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { status, component, reason, message: message.into(), retry_after: None, close: false }
    }

    /// With the time after which the client may come back.
    #[must_use]
    pub fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// A malformed request, after which nothing on the connection can be trusted.
    pub fn malformed(reason: &'static str, message: impl Into<String>) -> Self {
        let mut failure = Self::new(StatusCode::BAD_REQUEST, "ingress", reason, message);
        failure.close = true;
        failure
    }

    /// The deadline of the whole request passed.
    pub(crate) fn deadline(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "instance", "timeout", message)
    }

    pub(crate) fn from_route(error: RouteError, host: &str) -> Self {
        match error {
            RouteError::Disabled => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "router", "disabled", error.to_string())
            }
            _ => Self::new(
                StatusCode::NOT_FOUND,
                "router",
                "no_route",
                format!("{error}: host {host:?}; deploy a service under this host, or check the spelling"),
            ),
        }
    }

    pub(crate) fn from_claim(error: &ClaimError) -> Self {
        let unavailable = |reason| {
            let mut failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, "pool", reason, error.to_string());
            failure.retry_after = error.retry_after();
            failure
        };
        match error {
            ClaimError::QueueFull { .. } => unavailable("queue_full"),
            ClaimError::Exhausted { .. } => unavailable("exhausted"),
            ClaimError::Quota(exceeded) => {
                Self { status: StatusCode::TOO_MANY_REQUESTS, ..unavailable(exceeded.resource.reason()) }
            }
            ClaimError::Deadline => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "pool", "queue_timeout", error.to_string())
            }
            // A start that has not begun is the pool's: it waits for its turn or for room.
            ClaimError::StartPending { error: waits } if waits.kind == ErrorKind::Exhausted => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "pool", "queue_timeout", error.to_string())
            }
            ClaimError::StartPending { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "runtime", "start_timeout", error.to_string())
            }
            ClaimError::Start { .. } => Self { component: "runtime", ..unavailable("start_failed") },
            ClaimError::Asleep => unavailable("asleep"),
            ClaimError::Closed => unavailable("shutting_down"),
            ClaimError::Unknown => unavailable("no_such_revision").after(Duration::from_secs(1)),
            _ => unavailable("unavailable"),
        }
    }

    pub(crate) fn from_call(error: &Error) -> Self {
        let (status, component, reason) = match error.kind {
            ErrorKind::Crashed => (StatusCode::BAD_GATEWAY, "instance", "instance_lost"),
            ErrorKind::Timeout => (StatusCode::GATEWAY_TIMEOUT, "instance", "timeout"),
            ErrorKind::Exhausted => (StatusCode::SERVICE_UNAVAILABLE, "instance", "exhausted"),
            ErrorKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "instance", "unavailable"),
            ErrorKind::InvalidSpec => (StatusCode::BAD_GATEWAY, "instance", "bad_response"),
            ErrorKind::NotFound => (StatusCode::NOT_FOUND, "router", "no_route"),
            _ => (StatusCode::BAD_GATEWAY, "instance", "failed"),
        };
        let (status, component, reason) = match error.operation {
            UPLOAD_LATE => (StatusCode::REQUEST_TIMEOUT, "ingress", "body_timeout"),
            UPLOAD_BROKEN => (StatusCode::BAD_REQUEST, "ingress", "body_incomplete"),
            _ => (status, component, reason),
        };
        let mut failure = Self::new(status, component, reason, error.chain());
        failure.close = component == "ingress";
        if let Retry::After(after) = error.retry {
            failure.retry_after = Some(after);
        }
        failure
    }

    /// Another host did not answer.
    pub(crate) fn from_peer(error: &Error, unsent: bool) -> Self {
        let mut failure = Self::from_call(error);
        if failure.component == "instance" {
            failure.component = "peer";
            match (unsent, error.kind) {
                (true, _) => {
                    failure.status = StatusCode::SERVICE_UNAVAILABLE;
                    failure.reason = "unreachable";
                    failure.retry_after = Some(Duration::from_secs(1));
                }
                (false, ErrorKind::Crashed) => failure.reason = "lost",
                _ => {}
            }
        }
        failure
    }

    /// As the error of an [`sas_core::Invoker`].
    pub(crate) fn into_error(self) -> Error {
        let kind = match self.status {
            StatusCode::NOT_FOUND => ErrorKind::NotFound,
            StatusCode::GATEWAY_TIMEOUT => ErrorKind::Timeout,
            StatusCode::TOO_MANY_REQUESTS => ErrorKind::Exhausted,
            StatusCode::BAD_REQUEST => ErrorKind::InvalidSpec,
            StatusCode::BAD_GATEWAY => ErrorKind::Crashed,
            _ if matches!(self.reason, "queue_full" | "exhausted" | "shed") => ErrorKind::Exhausted,
            _ => ErrorKind::Unavailable,
        };
        let mut error =
            Error::new(kind, "invoke", format!("{}: {}: {}", self.component, self.reason, self.message));
        if let Some(after) = self.retry_after {
            error = error.with_retry(Retry::After(after));
        }
        error
    }

    /// What a client reads.
    pub(crate) fn json(&self, request: RequestId) -> String {
        let body = serde_json::json!({
            "component": self.component,
            "reason": self.reason,
            "message": self.message,
            "request_id": request.to_string(),
        });
        body.to_string()
    }

    /// As the answer to `request`.
    pub fn into_response(self, request: RequestId) -> Response {
        let mut response = Response::new(Body::from(self.json(request)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(REQUEST_ID, request_id_value(request));
        if let Some(after) = self.retry_after {
            // Whole seconds, rounded up: coming back too early helps nobody.
            let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Writes the lower digits of a number in hexadecimal, as many as there is room for.
fn write_hex(into: &mut [u8], number: u128) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (pair, byte) in into.rchunks_mut(2).zip(number.to_le_bytes()) {
        if let [.., last] = pair {
            *last = DIGITS[usize::from(byte & 15)];
        }
        if let [first, _] = pair {
            *first = DIGITS[usize::from(byte >> 4)];
        }
    }
}

/// A request id as a header value.
pub(crate) fn request_id_value(request: RequestId) -> HeaderValue {
    let mut digits = [0_u8; 32];
    write_hex(&mut digits, request.0);
    HeaderValue::from_bytes(&digits).expect("hexadecimal digits are visible ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_written_like_everywhere_else() {
        for id in [0, 1, 0xdead_beef, u128::MAX, 1 << 127] {
            assert_eq!(request_id_value(RequestId(id)), RequestId(id).to_string().as_str());
        }
    }

    #[tokio::test]
    async fn a_failure_names_component_reason_and_request() {
        let failure = Failure::new(StatusCode::SERVICE_UNAVAILABLE, "pool", "queue_full", "10 wait")
            .after(Duration::from_millis(1_200));
        let response = failure.into_response(RequestId(255));
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let body = response.into_body().collect(4096).await.unwrap();
        let json: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["component"], "pool");
        assert_eq!(json["reason"], "queue_full");
        assert_eq!(json["message"], "10 wait");
        assert_eq!(json["request_id"], "000000000000000000000000000000ff");
    }
}
