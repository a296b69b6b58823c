//! A hook that checks bearer tokens (JSON Web Tokens, HS256) and hands the verified subject on.
//!
//! `cargo run -p sas-router --example jwt_hook` shows a request without a token, with a forged one, with an expired
//! one and with a good one. A real platform checks RS256 or ES256 with the keys of its identity provider; only
//! `DecodingKey` and `Validation` differ.
#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use http::{HeaderName, HeaderValue, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use sas_core::{
    Body, Clock as _, Handler as _, HostPattern, Pool, Request, RouteAction, RouteChange, RouteRule,
    Router as _, SystemClock, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{Failure, Gateway, GatewayConfig, Hook, HookCx, RouteTable, Step};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
}

/// The header in which services read who asks. What a client sends under this name is dropped.
const SUBJECT: HeaderName = HeaderName::from_static("x-auth-subject");

struct Tokens {
    key: DecodingKey,
    validation: Validation,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl Tokens {
    fn new(secret: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 5;
        Self { key: DecodingKey::from_secret(secret), validation }
    }
}

#[async_trait]
impl Hook for Tokens {
    async fn on_request(&self, request: &mut Request, _: &HookCx<'_>) -> Result<Step, Failure> {
        let refuse = |text: &str| Failure::new(StatusCode::UNAUTHORIZED, "hook", "unauthenticated", text);
        request.headers_mut().remove(SUBJECT);
        let token = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "))
            .ok_or_else(|| refuse("send a token as Authorization: Bearer"))?;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|error| refuse(&format!("the token is not valid: {error}")))?
            .claims;
        let subject =
            HeaderValue::from_str(&claims.sub).map_err(|_| refuse("the subject is no header value"))?;
        request.headers_mut().insert(SUBJECT, subject);
        // The token was for us; services have no use for it.
        request.headers_mut().remove(header::AUTHORIZATION);
        Ok(Step::Continue)
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let secret = b"a secret that a real host reads from its SecretSource";
    let table = Arc::new(RouteTable::new(1));
    let location = "https://example.com{path}".to_owned();
    let rule = RouteRule::new(TenantKey(1), RouteAction::Redirect { status: 307, location });
    table.apply(vec![RouteChange::Set { host: HostPattern::Any, rules: vec![rule] }])?;
    let mut config = GatewayConfig::default();
    config.hooks = vec![Arc::new(Tokens::new(secret))];
    let pool: Arc<dyn Pool> = InstancePool::new(PoolConfig::default());
    let gateway = Gateway::new(table, pool, config);

    let now = SystemClock.now();
    let token = |secret: &[u8], lives: i64| {
        let exp = u64::try_from(now.as_secs() + lives).unwrap_or(0);
        let claims = Claims { sub: "ada".into(), exp };
        jsonwebtoken::encode(&Header::default(), &claims, &EncodingKey::from_secret(secret))
    };
    let hour = i64::try_from(Duration::from_secs(3_600).as_secs())?;
    for (what, token) in [
        ("no token", None),
        ("a forged token", Some(token(b"guessed", hour)?)),
        ("an expired token", Some(token(secret, -hour)?)),
        ("a good token", Some(token(secret, hour)?)),
    ] {
        let mut request = http::Request::get("/page").header(header::HOST, "shop.example.com");
        if let Some(token) = token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let response = gateway.handle(request.body(Body::empty())?).await;
        println!("{what}: {}", response.status());
    }
    Ok(())
}
