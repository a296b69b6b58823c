//! Secrets from a vault over HTTP: fetched when an instance starts, kept until the lease ends, and replaced without a deploy.
//!
//! The vault is a small server of this program, which answers as the KV engine of a vault does:
//! `GET /v1/secret/data/NAMESPACE/NAME` with a token gives all keys of a secret and how long they are good for.
//!
//! ```text
//! cargo run --example vault_secrets
//! ```

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::get,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use sas::{
    async_trait,
    control::Namespaces,
    core::{Retry, Secret, SecretSource, secret_bytes},
    inline::Env,
    prelude::*,
};
use tokio::{net::TcpListener, time::Instant};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Secrets that are kept at most; what is over goes first.
const KEPT: usize = 1_000;
/// A vault that takes longer does not answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of one answer of it.
const MOST: usize = 1 << 20;

/// A secret as the vault gave it.
#[derive(Clone)]
struct Leased {
    values: Arc<BTreeMap<String, Bytes>>,
    until: Instant,
}

/// A [`SecretSource`] that asks a vault.
struct Vault {
    address: SocketAddr,
    token: Secret,
    namespaces: Namespaces,
    kept: Mutex<HashMap<(String, String), Leased>>,
    /// One asks at a time: a thousand starts at once are one question.
    asking: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Vault {
    fn new(address: SocketAddr, token: Secret, namespaces: Namespaces) -> Self {
        Self { address, token, namespaces, kept: Mutex::default(), asking: tokio::sync::Mutex::default() }
    }

    fn kept(&self, key: &(String, String)) -> Option<Leased> {
        let kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        kept.get(key).filter(|leased| leased.until > Instant::now()).cloned()
    }

    fn keep(&self, key: (String, String), leased: Leased) {
        let mut kept = self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        kept.retain(|_, leased| leased.until > now);
        if kept.len() < KEPT {
            kept.insert(key, leased);
        }
    }

    /// All keys of `secret/NAME` of a tenant, from the vault unless their lease still holds.
    async fn secret(&self, reference: &str, name: &str, tenant: TenantKey) -> sas::core::Result<Leased> {
        // Letters, digits, - . and _ only: nothing of a reference leads to another path of the vault.
        let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '.' | '_');
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            let message = format!("{reference:?}: the name of a secret has letters, digits, - . and _");
            return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
        }
        let key = (self.namespaces.name_of(tenant, reference)?, name.to_owned());
        if let Some(leased) = self.kept(&key) {
            return Ok(leased);
        }
        let _turn = self.asking.lock().await;
        // Somebody may have asked while this waited for its turn.
        if let Some(leased) = self.kept(&key) {
            return Ok(leased);
        }
        // What the vault says is nobody's business but the instance's: errors name the reference alone.
        let failed = |problem: &str| {
            let message = format!("{reference}: the vault {problem}");
            Error::new(ErrorKind::Unavailable, "secret", message)
                .with_retry(Retry::After(Duration::from_secs(1)))
        };
        let asked = tokio::time::timeout(PATIENCE, self.ask(&key.0, &key.1)).await;
        let (status, body) =
            asked.map_err(|_| failed("does not answer"))?.map_err(|_| failed("can't be asked"))?;
        match status {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => {
                let message = format!("{reference}: this namespace has no such secret");
                return Err(Error::new(ErrorKind::NotFound, "secret", message));
            }
            StatusCode::FORBIDDEN => return Err(failed("refuses the platform's token")),
            _ => return Err(failed("has a problem")),
        }
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| failed("answers otherwise than it should"))?;
        let values = answer.data.data.into_iter().map(|(key, value)| (key, secret_bytes(value.into_bytes())));
        let until = Instant::now() + Duration::from_millis(answer.lease_ms);
        let leased = Leased { values: Arc::new(values.collect()), until };
        self.keep(key, leased.clone());
        Ok(leased)
    }

    async fn ask(&self, namespace: &str, name: &str) -> Outcome<(StatusCode, Bytes)> {
        let stream = tokio::net::TcpStream::connect(self.address).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = http::Request::get(format!("/v1/secret/data/{namespace}/{name}"))
            .header("host", "vault")
            .header("x-vault-token", self.token.expose())
            .body(Empty::<Bytes>::new())?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MOST).collect().await.map_err(|error| error.to_string())?.to_bytes();
        connection.abort();
        Ok((head.status, body))
    }
}

/// What the vault answers.
#[derive(serde::Deserialize, serde::Serialize)]
struct Answer {
    lease_ms: u64,
    data: Data,
}

#[derive(serde::Deserialize, serde::Serialize)]
struct Data {
    data: BTreeMap<String, String>,
}

#[async_trait]
impl SecretSource for Vault {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> sas::core::Result<Bytes> {
        let ["secret", name, key] = reference.split('/').collect::<Vec<_>>()[..] else {
            let message = format!("{reference:?} is no reference to a secret: write secret/NAME/KEY");
            return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
        };
        let leased = self.secret(reference, name, tenant).await?;
        leased.values.get(key).cloned().ok_or_else(|| {
            let message = format!("{reference}: this namespace has no such secret");
            Error::new(ErrorKind::NotFound, "secret", message)
        })
    }

    async fn entries(
        &self,
        reference: &str,
        tenant: TenantKey,
    ) -> sas::core::Result<BTreeMap<String, Bytes>> {
        let name = reference.strip_prefix("secret/").unwrap_or_default();
        Ok(self.secret(reference, name, tenant).await?.values.as_ref().clone())
    }
}

/// The vault: one secret of one namespace, and how often it was asked.
struct Server {
    password: Mutex<String>,
    asked: AtomicU32,
}

async fn answer(
    State(server): State<Arc<Server>>,
    Path((namespace, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Json<Answer>, StatusCode> {
    server.asked.fetch_add(1, Ordering::Relaxed);
    if headers.get("x-vault-token").is_none_or(|token| token != "a token of the vault") {
        return Err(StatusCode::FORBIDDEN);
    }
    if (namespace.as_str(), name.as_str()) != ("shop", "db") {
        return Err(StatusCode::NOT_FOUND);
    }
    let password = server.password.lock().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?.clone();
    let data = Data { data: BTreeMap::from([("password".to_owned(), password)]) };
    Ok(Json(Answer { lease_ms: 300, data }))
}

fn manifest(namespace: &str) -> String {
    format!(
        r"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: reports, namespace: {namespace}, annotations: {{sas.dev/function: reports}}}}
spec:
  template:
    spec:
      containers:
        - env:
            - name: PASSWORD
              valueFrom: {{secretKeyRef: {{name: db, key: password}}}}
"
    )
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let server =
        Arc::new(Server { password: Mutex::new("correct horse".to_owned()), asked: AtomicU32::new(0) });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let vault = Router::new()
        .route("/v1/secret/data/{namespace}/{name}", get(answer))
        .with_state(Arc::clone(&server));
    let serving = tokio::spawn(async move { axum::serve(listener, vault).await });

    // A function that has its secrets in its environment, and tells nobody what they are.
    let runtime = InlineRuntime::new().with("reports", |request: Request, _cx| async move {
        let password = request.extensions().get::<Env>().and_then(|env| env.get("PASSWORD")).map(str::len);
        Response::new(Body::from(format!("a password of {} letters", password.unwrap_or_default())))
    });
    let builder = Platform::builder().runtime(runtime);
    let source = Vault::new(address, Secret::new("a token of the vault"), builder.namespaces());
    let platform = builder.secrets(source).build().await?;
    platform.apply(&manifest("shop"), None).await?;
    let key =
        platform.control().revision_key("shop", "reports", "reports-00001").ok_or("it is registered")?;
    let call = async || -> Outcome<String> {
        let response = platform.call("shop", "reports", Request::new(Body::empty())).await?;
        let body = response.into_body().collect(1024).await.map_err(|error| error.to_string())?;
        Ok(String::from_utf8(body.to_vec())?)
    };

    println!("the first instance: {}", call().await?);
    platform.pool().drain(key, Duration::ZERO).await;
    println!(
        "another within the lease: {}, the vault was asked {} time",
        call().await?,
        server.asked.load(Ordering::Relaxed)
    );
    if server.asked.load(Ordering::Relaxed) != 1 {
        return Err("the lease was not kept".into());
    }

    // Replaced in the vault: whoever starts when the lease is over has the new one. Nothing is deployed.
    if let Ok(mut password) = server.password.lock() {
        "battery staple, and more".clone_into(&mut password);
    }
    tokio::time::sleep(Duration::from_millis(400)).await;
    platform.pool().drain(key, Duration::ZERO).await;
    let rotated = call().await?;
    println!("after it was replaced: {rotated}");
    if rotated != "a password of 24 letters" {
        return Err(format!("the old one is still in use: {rotated}").into());
    }

    // Another tenant has no such secret, whatever it calls it.
    platform.apply(&manifest("guest"), None).await?;
    let refused = platform.call("guest", "reports", Request::new(Body::empty())).await.err();
    println!("another tenant: {}", refused.ok_or("it got a secret")?);

    // A vault that is away costs new instances only; those that run have what they need.
    serving.abort();
    tokio::time::sleep(Duration::from_millis(400)).await;
    println!("without the vault, an instance that runs: {}", call().await?);
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
