//! OTLP over HTTP: one request, and what its answer means.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, RETRY_AFTER, USER_AGENT},
};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use rustls::{ClientConfig, RootCertStore};
use tokio::time::timeout;

use crate::config::{OtelConfig, base, header};

/// How much of an answer is read.
const ANSWER: usize = 64 << 10;
/// The longest wait that a collector can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why a request to the collector failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) why: String,
    /// Whether it may succeed later.
    pub(crate) again: bool,
    /// When, if the collector said so.
    pub(crate) after: Option<Duration>,
}

/// The way to a collector: connections are made when they are needed, and kept.
#[derive(Clone)]
pub(crate) struct Transport {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Uri,
    headers: HeaderMap,
    timeout: Duration,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Transport {
    pub(crate) fn new(config: &OtelConfig) -> Result<Self, String> {
        let base = base(&config.endpoint)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &config.headers {
            let (name, value) = header(name, value)?;
            headers.insert(name, value);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        let agent = concat!("sas-otel/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        let roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { client, base, headers, timeout: config.batching.timeout })
    }

    /// Posts a message to the signal's path. The answer of a collector that took it, wholly or in part.
    pub(crate) async fn post(&self, path: &str, message: Bytes) -> Result<Bytes, Failed> {
        let uri = format!("{}{path}", self.base.to_string().trim_end_matches('/'));
        let again = |why: String| Failed { why, again: true, after: None };
        let mut request = Request::post(uri).body(Full::new(message)).map_err(|error| Failed {
            why: error.to_string(),
            again: false,
            after: None,
        })?;
        *request.headers_mut() = self.headers.clone();
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
                again(format!("{error}{}", cause.unwrap_or_default()))
            })?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER).collect().await;
            if !head.status.is_success() {
                return Err(refused(head.status, &head.headers));
            }
            body.map(|body| body.to_bytes()).map_err(|error| again(format!("its answer broke off: {error}")))
        };
        match timeout(self.timeout, exchange).await {
            Ok(answered) => answered,
            Err(_) => Err(again(format!("no answer within {:?}", self.timeout))),
        }
    }
}

/// The rules of OTLP: 429, 502, 503 and 504 may pass, and say when.
fn refused(status: StatusCode, headers: &HeaderMap) -> Failed {
    let again = matches!(status.as_u16(), 429 | 502 | 503 | 504);
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = asked.map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT)).filter(|_| again);
    Failed { why: format!("it answered {status}"), again, after }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_collector_says_when_to_come_back() {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("7"));
        let busy = refused(StatusCode::SERVICE_UNAVAILABLE, &headers);
        assert!(busy.again && busy.after == Some(Duration::from_secs(7)));
        let wrong = refused(StatusCode::BAD_REQUEST, &headers);
        assert!(!wrong.again && wrong.after.is_none());
    }
}
