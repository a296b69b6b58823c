//! Events by HTTP to somebody else.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Result, Retry, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};
use sha2::Sha256;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// The bytes of an answer that are read; what it says is not used.
const ANSWER: usize = 64 << 10;
/// The longest wait that an answer's `Retry-After` can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// The hosts that events may be posted to: the kind of sink `webhook`. What is not named is refused, so that no tenant
/// reaches services of the operator's network through the platform.
#[derive(Clone)]
pub struct Webhooks {
    hosts: Arc<[String]>,
    pub(crate) tls: Arc<ClientConfig>,
}

impl fmt::Debug for Webhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhooks").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Webhooks {
    /// To these hosts only: names or addresses as they stand in URLs, with a port where only that one is meant;
    /// `*.example.org` stands for every name below. HTTPS trusts Mozilla's authorities.
    pub fn to_hosts<H: Into<String>>(hosts: impl IntoIterator<Item = H>) -> Self {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        Self::with_roots(hosts, roots)
    }

    /// The same, trusting these authorities.
    pub fn with_roots<H: Into<String>>(hosts: impl IntoIterator<Item = H>, roots: RootCertStore) -> Self {
        let hosts = hosts.into_iter().map(|host| host.into().to_ascii_lowercase()).collect();
        Self { hosts, tls: Arc::new(sas_tls::client_config(roots)) }
    }

    /// Whether events may go to this URL; where that is.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn allows(&self, url: &str) -> Result<Uri, String> {
        let uri: Uri = url.parse().map_err(|error| format!("is no URL: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err("must begin with https:// or http://".to_owned());
        }
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        if authority.contains('@') {
            return Err("must hold no credentials; sign by signing-secret, or send a token by token-secret"
                .to_owned());
        }
        let host = uri.host().unwrap_or_default().to_ascii_lowercase();
        let with_port = format!("{host}:{}", port(&uri));
        let allowed = self.hosts.iter().any(|allowed| match allowed.strip_prefix("*.") {
            Some(domain) => host.strip_suffix(domain).is_some_and(|below| below.ends_with('.')),
            None => *allowed == host || *allowed == with_port,
        });
        if host.is_empty() || !allowed {
            let known = if self.hosts.is_empty() { "none".to_owned() } else { self.hosts.join(", ") };
            return Err(format!("hosts that the operator allows (webhook_hosts of the builder): {known}"));
        }
        Ok(uri)
    }

    /// The sink that a trigger declares: `url`; `signing-secret`, a reference to a secret that signs the body as GitHub does
    /// (`X-Hub-Signature-256`); `token-secret`, a reference to a bearer token; `mode`: `binary` (default) or `structured`;
    /// `timeout`, 30 s by default.
    ///
    /// # Errors
    /// All mistakes in the options.
    pub fn sink(
        &self,
        spec: &SinkSpec,
        secrets: TriggerSecrets,
    ) -> Result<Arc<dyn EventPublisher>, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, spec.place);
        let url = options.required("url");
        let uri = match self.allows(url) {
            _ if url.is_empty() => None,
            Ok(uri) => Some(uri),
            Err(problem) => {
                options.wrong("url", url, problem);
                None
            }
        };
        let webhook = Webhook {
            uri: uri.unwrap_or_default(),
            tls: Arc::clone(&self.tls),
            signing: options.take("signing-secret").map(str::to_owned),
            token: options.take("token-secret").map(str::to_owned),
            structured: options.word("mode", &[("binary", false), ("structured", true)], false),
            timeout: options.span("timeout", Duration::from_secs(3600), Duration::from_secs(30)),
            secrets,
        };
        options.finish()?;
        Ok(Arc::new(webhook))
    }
}

/// Posts events to one URL. A redirect is not followed: it is a failure.
pub struct Webhook {
    uri: Uri,
    tls: Arc<ClientConfig>,
    signing: Option<String>,
    token: Option<String>,
    structured: bool,
    timeout: Duration,
    secrets: TriggerSecrets,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook").field("uri", &self.uri).finish_non_exhaustive()
    }
}

pub(crate) fn port(uri: &Uri) -> u16 {
    uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 })
}

impl Webhook {
    fn unavailable(&self, problem: impl fmt::Display) -> Error {
        Error::new(ErrorKind::Unavailable, "publish", format!("{}: {problem}", self.uri))
    }

    async fn request(&self, event: &Event) -> Result<Request<Full<Bytes>>> {
        let message = if self.structured {
            sas_cloudevents::structured(event)
        } else {
            sas_cloudevents::binary(event)?
        };
        let mut headers = message.headers;
        let wrong =
            |name: &str| Error::new(ErrorKind::InvalidSpec, "publish", format!("{name} fits into no header"));
        let authority = self.uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(|_| wrong("host"))?);
        for name in ["traceparent", "tracestate"] {
            if let Some(value) = event.extensions().get(name) {
                headers.insert(name, HeaderValue::try_from(&*value.to_text()).map_err(|_| wrong(name))?);
            }
        }
        if let Some(reference) = &self.signing {
            let secret = self.secrets.get(reference).await?;
            let mut mac = Hmac::<Sha256>::new_from_slice(secret.trim_ascii())
                .map_err(|error| Error::new(ErrorKind::InvalidSpec, "publish", error.to_string()))?;
            mac.update(&message.body);
            let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
            let value = HeaderValue::try_from(format!("sha256={hex}")).map_err(|_| wrong("signature"))?;
            headers.insert("x-hub-signature-256", value);
        }
        if let Some(reference) = &self.token {
            let token = self.secrets.get(reference).await?;
            let text = [b"Bearer ", token.trim_ascii()].concat();
            let mut value = HeaderValue::from_bytes(&text).map_err(|_| wrong("token"))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let path = self.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let mut request = Request::post(path)
            .body(Full::new(message.body))
            .map_err(|error| Error::new(ErrorKind::InvalidSpec, "publish", error.to_string()))?;
        *request.headers_mut() = headers;
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<()> {
        let host = self.uri.host().unwrap_or_default();
        let address = (host.trim_start_matches('[').trim_end_matches(']'), port(&self.uri));
        let stream = TcpStream::connect(address).await.map_err(|error| self.unavailable(error))?;
        if self.uri.scheme_str() == Some("https") {
            let name = ServerName::try_from(address.0.to_owned()).map_err(|error| {
                Error::new(ErrorKind::InvalidSpec, "publish", format!("{}: {error}", self.uri))
            })?;
            let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await;
            return self
                .exchange(TokioIo::new(stream.map_err(|error| self.unavailable(error))?), request)
                .await;
        }
        self.exchange(TokioIo::new(stream), request).await
    }

    async fn exchange<I>(&self, io: I, request: Request<Full<Bytes>>) -> Result<()>
    where
        I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(io).await.map_err(|error| self.unavailable(error))?;
        let connection = tokio::spawn(connection);
        let exchange = async {
            let response = sender.send_request(request).await.map_err(|error| self.unavailable(error))?;
            let (head, body) = response.into_parts();
            // To its end, so that the receiver is not cut off; more than that nobody needs.
            let _ = Limited::new(body, ANSWER).collect().await;
            self.judge(head.status, &head.headers)
        };
        let judged = exchange.await;
        connection.abort();
        judged
    }

    fn judge(&self, status: StatusCode, headers: &http::HeaderMap) -> Result<()> {
        if status.is_success() {
            return Ok(());
        }
        let passes = status.is_server_error() || matches!(status.as_u16(), 404 | 408 | 409 | 425 | 429);
        let kind = if passes { ErrorKind::Unavailable } else { ErrorKind::InvalidSpec };
        let error = Error::new(kind, "publish", format!("{} answered {status}", self.uri));
        let asked = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Err(match asked {
            Some(seconds) if passes => {
                error.with_retry(Retry::After(Duration::from_secs(seconds).min(LONGEST_WAIT)))
            }
            _ => error,
        })
    }
}

#[async_trait]
impl EventPublisher for Webhook {
    async fn publish(&self, event: Event) -> Result<()> {
        let sent = async { self.send(self.request(&event).await?).await };
        timeout(self.timeout, sent)
            .await
            .map_err(|_| self.unavailable(format!("no answer within {:?}", self.timeout)))?
    }
}
