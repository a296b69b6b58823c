//! One host that is asked for an image: the registry itself or a mirror, as one tenant.
//!
//! The questions are asked here, those for tokens too, since `oci-client` reads a manifest or a token of any size into
//! memory and keeps nothing of an answer's head, where a registry says when to come again.

use std::{sync::Arc, time::Duration};

use oci_client::{
    Client, Reference,
    client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::OciEnvelope,
    secrets::RegistryAuth,
};
use reqwest::{
    Response, StatusCode,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE, RETRY_AFTER, WWW_AUTHENTICATE},
};
use sas_core::{Error, ErrorKind, Result, Retry, Timestamp};

use crate::config::{ContainerConfig, Registries};

const USER_AGENT: &str = concat!("sas-runtime-container/", env!("CARGO_PKG_VERSION"));
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// Redirects of one question.
const MOST_HOPS: usize = 5;
/// Bytes of what a registry says of an error that are read.
const MOST_WORDS: usize = 16 << 10;
/// Bytes of the answer that has a token.
const MOST_TOKEN: usize = 64 << 10;
/// A registry that says nothing of when it can be asked again.
const AGAIN: Duration = Duration::from_secs(5);
/// Nobody is told to come back later than that.
const LATEST: Duration = Duration::from_secs(3600);

/// Why a question was answered with nothing.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) error: Error,
    /// How long the registry wants to be left alone, where it says so.
    pub(crate) pause: Option<Duration>,
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self { error, pause: None }
    }
}

/// What asks all registries, as nobody in particular: who asks stands in each request.
pub(crate) fn client(registries: &Registries) -> Result<reqwest::Client> {
    let failed = |error: reqwest::Error| {
        Error::new(ErrorKind::Unavailable, "pull", format!("a client for registries: {error}"))
    };
    let policy = reqwest::redirect::Policy::custom(|hop| {
        let open = hop.url().scheme() != "https" && hop.previous().iter().any(|one| one.scheme() == "https");
        match (open, hop.previous().len() > MOST_HOPS) {
            (true, _) => hop.error("it redirects from https to http, where anybody may change what comes"),
            (_, true) => hop.error("it redirects without end"),
            _ => hop.follow(),
        }
    });
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(CONNECT_WITHIN)
        .read_timeout(registries.patience)
        .redirect(policy);
    for pem in &registries.certificates {
        builder = builder.add_root_certificate(reqwest::Certificate::from_pem(pem).map_err(failed)?);
    }
    builder.build().map_err(failed)
}

/// A host to ask, and who asks.
pub(crate) struct Place {
    config: Arc<ContainerConfig>,
    http: reqwest::Client,
    pub(crate) reference: Reference,
    auth: RegistryAuth,
    /// What has let us in before.
    ticket: tokio::sync::Mutex<Option<HeaderValue>>,
}

impl Place {
    pub(crate) fn new(
        config: &Arc<ContainerConfig>,
        http: &reqwest::Client,
        reference: Reference,
        auth: RegistryAuth,
    ) -> Self {
        Self {
            config: Arc::clone(config),
            http: http.clone(),
            reference,
            auth,
            ticket: tokio::sync::Mutex::default(),
        }
    }

    /// The answer to a question for `manifests/…` or `blobs/…`, from the byte `from` on, as far as its head: 200, or 206
    /// with the rest of it.
    pub(crate) async fn ask(
        &self,
        what: &str,
        accept: &str,
        from: u64,
    ) -> std::result::Result<Response, Refusal> {
        let known = self.ticket.lock().await.clone();
        let ticket = match known.clone() {
            Some(known) => Some(known),
            None => self.token().await?,
        };
        let response = self.send(what, accept, from, ticket.as_ref()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            *self.ticket.lock().await = ticket;
            return self.accept(response).await;
        }
        // A token that has grown old, or a registry that wants a name and a password with each question.
        let again = match (basic(&self.auth), known.is_some()) {
            (Some(basic), _) if wants_basic(response.headers()) => Some(basic),
            (_, true) => self.token().await?,
            _ => None,
        };
        let Some(again) = again else { return self.accept(response).await };
        drop(response);
        let response = self.send(what, accept, from, Some(&again)).await?;
        *self.ticket.lock().await = response.status().is_success().then_some(again);
        self.accept(response).await
    }

    async fn send(
        &self,
        what: &str,
        accept: &str,
        from: u64,
        ticket: Option<&HeaderValue>,
    ) -> std::result::Result<Response, Refusal> {
        let space = self.reference.namespace().map(|space| format!("?ns={space}")).unwrap_or_default();
        let url = format!("{}/v2/{}/{what}{space}", self.origin(), self.reference.repository());
        let mut request = self.http.get(url).header(ACCEPT, accept);
        if let Some(ticket) = ticket {
            // The client takes it off where a redirect leads to another host, port or scheme.
            request = request.header(AUTHORIZATION, ticket.clone());
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        // Up to the head: a whole takes as long as it takes.
        let sent = tokio::time::timeout(self.config.registries.patience, request.send()).await;
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(error).into()),
            Err(_) => {
                let patience = self.config.registries.patience;
                Err(unavailable(&self.reference, format!("no answer within {patience:?}")).into())
            }
        }
    }

    async fn token(&self) -> std::result::Result<Option<HeaderValue>, Refusal> {
        if let RegistryAuth::Bearer(token) = &self.auth {
            return Ok(secret(&format!("Bearer {token}")));
        }
        let patience = self.config.registries.patience;
        match tokio::time::timeout(patience, self.ask_token()).await {
            Ok(token) => Ok(token?.and_then(|token| secret(&format!("Bearer {token}")))),
            Err(_) => Err(unavailable(&self.reference, format!("no token within {patience:?}")).into()),
        }
    }

    async fn ask_token(&self) -> Result<Option<String>> {
        let failed = |error| self.unreachable(error);
        let wrong =
            |what: String| refuse(&self.reference, ErrorKind::InvalidSpec, format!("its token: {what}"));
        let door = self.http.get(format!("{}/v2/", self.origin())).send().await.map_err(failed)?;
        let Some((realm, service)) = bearer(door.headers()) else { return Ok(None) };
        drop(door);
        let mut url =
            reqwest::Url::parse(&realm).map_err(|error| wrong(format!("realm {realm:?}: {error}")))?;
        url.query_pairs_mut()
            .append_pair("scope", &format!("repository:{}:pull", self.reference.repository()))
            .extend_pairs(service.map(|service| ("service", service)));
        let mut request = self.http.get(url);
        if let Some(basic) = basic(&self.auth) {
            request = request.header(AUTHORIZATION, basic);
        }
        let mut response = request.send().await.map_err(failed)?;
        if response.status() != StatusCode::OK {
            // What gives tokens does not say why, and the registry does: it is asked without one.
            return Ok(None);
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MOST_TOKEN {
                return Err(wrong(format!("its answer is larger than {MOST_TOKEN} bytes")));
            }
            bytes.extend_from_slice(&chunk);
        }
        // The error of a parser may quote what it read.
        let given: Given = serde_json::from_slice(&bytes)
            .map_err(|_| wrong("its answer is no JSON of a token".to_owned()))?;
        match given.token.or(given.access_token) {
            Some(token) => Ok(Some(token)),
            None => Err(wrong("its answer has neither token nor access_token".to_owned())),
        }
    }

    /// Scheme and host.
    fn origin(&self) -> String {
        let host = self.reference.resolve_registry();
        let plain = self.config.registries.plain_http.iter().any(|one| one == host);
        let scheme = if plain { "http" } else { "https" };
        format!("{scheme}://{host}")
    }

    async fn accept(&self, mut response: Response) -> std::result::Result<Response, Refusal> {
        let status = response.status();
        if status == StatusCode::OK || status == StatusCode::PARTIAL_CONTENT {
            return Ok(response);
        }
        let pause = pause(response.headers(), &self.config);
        let mut words = Vec::new();
        let read = async {
            while let Ok(Some(chunk)) = response.chunk().await {
                words.extend_from_slice(&chunk[..chunk.len().min(MOST_WORDS - words.len())]);
                if words.len() >= MOST_WORDS {
                    break;
                }
            }
        };
        // Its status is enough where the words do not come.
        let _ = tokio::time::timeout(self.config.registries.patience, read).await;
        let said = serde_json::from_slice::<OciEnvelope>(&words).ok();
        let said = said.and_then(|said| said.errors.into_iter().next().map(|error| error.message));
        Err(Refusal { error: told(&self.reference, status, pause, said.as_deref()), pause })
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        unreachable(&self.reference, error)
    }
}

/// What a realm answers.
#[derive(serde::Deserialize)]
struct Given {
    token: Option<String>,
    access_token: Option<String>,
}

/// Where a registry wants its tokens to be asked for: the realm, and the service.
fn bearer(headers: &HeaderMap) -> Option<(String, Option<String>)> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(http_auth::parser::ChallengeParser::new).flatten().find_map(|challenge| {
        let of = |wanted: &str| {
            let mut all = challenge.params.iter();
            all.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_unescaped())
        };
        let bearer = challenge.scheme.eq_ignore_ascii_case("bearer");
        bearer.then(|| Some((of("realm")?, of("service")))).flatten()
    })
}

/// What gets tokens for a push, and sends.
pub(crate) fn tokens(registries: &Registries) -> Result<Client> {
    let extra_root_certificates = registries
        .certificates
        .iter()
        .map(|pem| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() })
        .collect();
    let config = ClientConfig {
        protocol: ClientProtocol::HttpsExcept(registries.plain_http.clone()),
        read_timeout: Some(registries.patience),
        connect_timeout: Some(CONNECT_WITHIN),
        platform_resolver: None,
        use_monolithic_push: true,
        user_agent: USER_AGENT,
        extra_root_certificates,
        ..ClientConfig::default()
    };
    Client::try_from(config).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "pull", format!("a client for registries: {error}"))
    })
}

/// A header that no log shows; `None` for what can't stand in one.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn basic(auth: &RegistryAuth) -> Option<HeaderValue> {
    use base64::Engine as _;
    let RegistryAuth::Basic(user, password) = auth else { return None };
    secret(&format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    ))
}

fn wants_basic(headers: &HeaderMap) -> bool {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .any(|value| value.as_bytes().get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"basic")))
}

/// `Retry-After`: seconds, or a time.
fn pause(headers: &HeaderMap, config: &ContainerConfig) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(Timestamp::from_secs(i64::try_from(at.as_secs()).ok()?).since(config.clock.now()))
}

pub(crate) fn refuse(image: &Reference, kind: ErrorKind, what: impl std::fmt::Display) -> Error {
    Error::new(kind, "pull", format!("image {image}: {what}"))
}

pub(crate) fn unavailable(image: &Reference, why: impl std::fmt::Display) -> Error {
    refuse(image, ErrorKind::Unavailable, why).with_retry(Retry::After(AGAIN))
}

/// A question that had no answer.
pub(crate) fn unreachable(image: &Reference, error: reqwest::Error) -> Error {
    let registry = image.resolve_registry();
    let (redirect, builder) = (error.is_redirect(), error.is_builder());
    // The address may hold what gives access for a while.
    let error = error.without_url();
    let mut why = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        why = format!("{why}: {inner}");
        source = inner.source();
    }
    match redirect || builder {
        true => refuse(image, ErrorKind::InvalidSpec, format!("{registry}: {why}")),
        false => unavailable(image, format!("{registry} can't be reached: {why}")),
    }
}

/// What an answer says, in our terms.
fn told(image: &Reference, status: StatusCode, pause: Option<Duration>, said: Option<&str>) -> Error {
    let registry = image.resolve_registry();
    let refuse = |kind, what: String| refuse(image, kind, what);
    match status.as_u16() {
        401 => refuse(
            ErrorKind::InvalidSpec,
            format!(
                "{registry} asks who pulls it (401): give credentials, in a manifest by imagePullSecrets, or correct the name"
            ),
        ),
        403 => refuse(
            ErrorKind::InvalidSpec,
            format!("{registry} refuses it to these credentials (403): ask for the right to pull it"),
        ),
        404 => refuse(
            ErrorKind::NotFound,
            format!("{registry} has none of that name (404): correct it, or push the image"),
        ),
        code @ (408 | 425 | 429 | 500..=599) => {
            let when = match pause {
                Some(pause) => format!("in {} s, as it says", pause.as_secs().max(1)),
                None => "later".to_owned(),
            };
            unavailable(image, format!("{registry} answers {code}; try again {when}"))
                .with_retry(Retry::After(pause.unwrap_or(AGAIN).min(LATEST)))
        }
        code => {
            let said: String = said.unwrap_or_default().chars().take(200).collect();
            let said = if said.is_empty() { said } else { format!(": {said:?}") };
            refuse(ErrorKind::InvalidSpec, format!("{registry} answers {code}{said}"))
        }
    }
}
