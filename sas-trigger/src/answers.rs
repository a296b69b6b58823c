//! Requests and answers over HTTP, as what stands before the gateway reads and writes them.

use bytes::Bytes;
use http::{StatusCode, header};
use sas_core::{Body, Request, Response};
use serde_json::{Value, json};

/// The host that a request is for, without its port.
pub(crate) fn host_of(request: &Request) -> Option<String> {
    let authority = match request.uri().authority() {
        Some(authority) => authority.as_str().to_owned(),
        None => request.headers().get(header::HOST)?.to_str().ok()?.to_owned(),
    };
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority.as_str(),
    };
    Some(host.trim_end_matches('.').to_ascii_lowercase())
}

pub(crate) async fn collect(body: Body, most: usize) -> Result<Bytes, Response> {
    body.collect(most).await.map_err(|error| match error.to_string().contains("length limit") {
        true => refused(StatusCode::PAYLOAD_TOO_LARGE, format!("at most {most} bytes are taken")),
        false => refused(StatusCode::BAD_REQUEST, "the request broke off"),
    })
}

pub(crate) fn answer(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

pub(crate) fn refused(status: StatusCode, message: impl Into<String>) -> Response {
    let reason = status.canonical_reason().unwrap_or("refused").to_ascii_lowercase().replace(' ', "_");
    answer(status, &json!({"reason": reason, "message": message.into()}))
}

pub(crate) fn unavailable(message: &str, seconds: u64) -> Response {
    let mut response = refused(StatusCode::SERVICE_UNAVAILABLE, message);
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}
