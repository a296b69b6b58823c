//! Tokens of the admin API with scopes, a tenant and an expiry: kept as digests, shown once.

use std::{fmt, sync::Arc, time::Duration};

use sas_core::{
    Clock, Denied, Error, ErrorKind, Principal, Result, Scope, SpecErrors, Store, Timestamp, Version,
};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use utoipa::ToSchema;

use crate::{record::hex, stamp::rfc3339};

/// Bytes of a random token.
const RANDOM: usize = 32;

/// A random token: 32 bytes of the system's randomness, in base64 for URLs.
pub(crate) fn random_token() -> std::io::Result<String> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0; RANDOM];
    getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Where tokens are in the store.
const TOKENS: &str = "token/";
/// What every token begins with, so that scanners of secrets find one that was written down.
const PREFIX: &str = "sas_";
/// The form of what is stored.
const FORMAT: u16 = 1;
/// Tokens that a store keeps at most.
const MOST: usize = 10_000;
/// How long a token lives unless it is said.
const LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long a token may live.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Names of principals that are no tokens.
const RESERVED: [&str; 4] = ["admin", "host", "socket", "anybody"];

/// A token that is to be made.
///
/// ```
/// use sas_control::NewToken;
/// use sas_core::Scope;
/// let ci = NewToken::new("ci", [Scope::Deploy]).for_tenant("shop");
/// assert_eq!(ci.namespace.as_deref(), Some("shop"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NewToken {
    /// Who will use it: 1 to 63 letters, digits, `.`, `_`, `@` or `-`. It stands in the audit log and in records.
    pub name: String,
    /// What it is for; at least one.
    pub scopes: Vec<Scope>,
    /// The namespace that it is held to; `None`: none.
    pub namespace: Option<String>,
    /// How long it lives: 90 days unless it is said, at most 3,650.
    pub life: Duration,
}

impl NewToken {
    /// A token for 90 days, held to no namespace.
    pub fn new(name: impl Into<String>, scopes: impl IntoIterator<Item = Scope>) -> Self {
        Self { name: name.into(), scopes: scopes.into_iter().collect(), namespace: None, life: LIFE }
    }

    /// Held to this namespace.
    #[must_use]
    pub fn for_tenant(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// With this life.
    #[must_use]
    pub fn with_life(mut self, life: Duration) -> Self {
        self.life = life;
        self
    }

    fn check(&self) -> std::result::Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        if self.name.is_empty() || self.name.len() > 63 || !self.name.bytes().all(letters) {
            errors.push("name", &self.name, "must be 1 to 63 letters, digits, `.`, `_`, `@` or `-`");
        }
        if RESERVED.contains(&self.name.as_str()) {
            errors.push("name", &self.name, "is the platform's own; take another");
        }
        if self.scopes.is_empty() {
            errors.push("scopes", "[]", "must have one of read, deploy, invoke, admin");
        }
        if let Some(namespace) = &self.namespace
            && !sas_knative::manifest::is_label(namespace)
        {
            errors.push("namespace", namespace, sas_knative::manifest::LABEL);
        }
        if self.life.is_zero() || self.life > LONGEST {
            let most = LONGEST.as_secs();
            errors.push("expiresInSeconds", self.life.as_secs(), format!("must be 1 to {most}"));
        }
        errors.into_result()
    }
}

/// A token as it is stored.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u16,
    id: String,
    name: String,
    /// SHA-256 of the whole token, in hexadecimal digits.
    digest: String,
    scopes: Vec<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
    created_at: Timestamp,
    created_by: Principal,
    expires_at: Timestamp,
}

/// A token as operators see it: never what opens anything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct TokenView {
    /// By which it is revoked; also the middle part of the token.
    pub id: String,
    /// Who uses it.
    pub name: String,
    /// What it is for.
    pub scopes: Vec<Scope>,
    /// The namespace that it is held to; `null`: none.
    pub namespace: Option<String>,
    /// When it was made, in RFC 3339.
    pub created_at: String,
    /// Who made it.
    pub created_by: String,
    /// From when on it opens nothing, in RFC 3339.
    pub expires_at: String,
    /// Whether that is now.
    pub expired: bool,
}

/// A token that was made. This is the only time that it is shown.
#[derive(Clone, Serialize, ToSchema)]
#[non_exhaustive]
pub struct MadeToken {
    /// What to send as `Authorization: Bearer`.
    pub token: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: TokenView,
}

impl fmt::Debug for MadeToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MadeToken").field("view", &self.view).finish_non_exhaustive()
    }
}

/// The tokens of a platform, in its store. Of each only a digest is kept, and it is looked up at each request, so that
/// one that is revoked opens nothing from then on.
#[derive(Clone, Debug)]
pub struct Tokens {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    /// One is made at a time, so that names stay apart.
    making: Arc<tokio::sync::Mutex<()>>,
}

impl Tokens {
    /// The tokens in this store.
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, making: Arc::default() }
    }

    /// Makes a token for `by`. Tokens that have expired make room.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields; `Conflict` when the name is taken; `Exhausted` when there are 10,000; `Unavailable`
    /// when the store fails, or the system has no randomness.
    pub async fn create(&self, by: &Principal, new: NewToken) -> Result<MadeToken> {
        new.check().map_err(|errors| {
            Error::new(ErrorKind::InvalidSpec, "token", errors.to_string()).with_source(errors)
        })?;
        let _making = self.making.lock().await;
        let now = self.clock.now();
        let mut living = 0_usize;
        for (record, version) in self.all().await? {
            if record.expires_at <= now {
                // Somebody else may have done so.
                match self.store.delete(&format!("{TOKENS}{}", record.id), version).await {
                    Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                    _ => continue,
                }
            }
            if record.name == new.name && record.namespace == new.namespace {
                let message =
                    format!("there is a token {} already; revoke it, or take another name", new.name);
                return Err(Error::new(ErrorKind::Conflict, "token", message));
            }
            living += 1;
        }
        if living >= MOST {
            let message = format!("there are {MOST} tokens; revoke some");
            return Err(Error::new(ErrorKind::Exhausted, "token", message));
        }
        let random = || {
            random_token().map_err(|error| {
                Error::new(ErrorKind::Unavailable, "token", "the system gives no randomness")
                    .with_source(error)
            })
        };
        let id = crate::record::sha256(&[random()?.as_bytes()])["sha256:".len()..][..16].to_owned();
        let token = format!("{PREFIX}{id}_{}", random()?);
        let record = Record {
            format: FORMAT,
            digest: hex(&digest(&token)),
            id,
            name: new.name,
            scopes: new.scopes,
            namespace: new.namespace,
            created_at: now,
            created_by: by.clone(),
            expires_at: now + new.life,
        };
        let value = serde_json::to_vec(&record).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "token", format!("can't be written: {error}"))
        })?;
        self.store.put(&format!("{TOKENS}{}", record.id), None, value.into()).await?;
        Ok(MadeToken { token, view: record.view(now) })
    }

    /// The tokens that `by` reaches, also such as have expired, by name.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn list(&self, by: &Principal) -> Result<Vec<TokenView>> {
        let now = self.clock.now();
        let all = self.all().await?.into_iter().map(|(record, _)| record);
        let seen = all.filter(|record| record.is_reached(by));
        let mut views: Vec<TokenView> = seen.map(|record| record.view(now)).collect();
        views.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
        Ok(views)
    }

    /// Takes a token back: it opens nothing from now on.
    ///
    /// # Errors
    /// `NotFound` when `by` reaches none of this id; `Unavailable` when the store fails.
    pub async fn revoke(&self, by: &Principal, id: &str) -> Result<TokenView> {
        let none = || Error::new(ErrorKind::NotFound, "token", format!("there is no token {id}"));
        if !is_id(id) {
            return Err(none());
        }
        let entry = self.store.get(&format!("{TOKENS}{id}")).await?.ok_or_else(none)?;
        let record: Option<Record> = serde_json::from_slice(&entry.value).ok();
        match record {
            Some(record) if !record.is_reached(by) => Err(none()),
            // One that can't be read opens nothing, and goes.
            None if by.tenant().is_some() => Err(none()),
            record => {
                match self.store.delete(&entry.key, entry.version).await {
                    Err(error) if error.kind == ErrorKind::Conflict => return Err(none()),
                    done => done?,
                }
                record.map(|record| record.view(self.clock.now())).ok_or_else(none)
            }
        }
    }

    /// Who sent this token; `None` when it is none of these in form, or there is none of its id: an authenticator of
    /// another kind may know it.
    ///
    /// # Errors
    /// [`Denied::Unauthenticated`] for a wrong or expired one, [`Denied::Unavailable`] when the store can't be read.
    pub async fn authenticate(&self, token: &str) -> std::result::Result<Option<Principal>, Denied> {
        let Some((id, _)) = token.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')) else {
            return Ok(None);
        };
        if !is_id(id) {
            return Ok(None);
        }
        let entry = self.store.get(&format!("{TOKENS}{id}")).await.map_err(|error| {
            tracing::error!(error = %error.chain(), "a token can't be looked up");
            Denied::Unavailable("tokens can't be read now".to_owned())
        })?;
        let Some(entry) = entry else { return Ok(None) };
        let wrong = || Denied::bearer("this is not a token of this platform");
        let record: Record = serde_json::from_slice(&entry.value).map_err(|error| {
            tracing::error!(key = entry.key, %error, "what is stored is no token");
            wrong()
        })?;
        if record.format != FORMAT
            || !bool::from(hex(&digest(token)).as_bytes().ct_eq(record.digest.as_bytes()))
        {
            return Err(wrong());
        }
        if record.expires_at <= self.clock.now() {
            return Err(Denied::bearer(format!(
                "this token has expired on {}; make another",
                rfc3339(record.expires_at)
            )));
        }
        let principal = Principal::new(record.name).with_scopes(record.scopes);
        Ok(Some(match record.namespace {
            Some(namespace) => principal.with_tenant(namespace),
            None => principal,
        }))
    }

    async fn all(&self) -> Result<Vec<(Record, Version)>> {
        let mut found = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(TOKENS, after.as_deref(), 256).await?;
            for entry in &page {
                match serde_json::from_slice::<Record>(&entry.value) {
                    Ok(record) => found.push((record, entry.version)),
                    Err(error) => tracing::error!(key = entry.key, %error, "what is stored is no token"),
                }
            }
            match page.last() {
                Some(last) if page.len() == 256 => after = Some(last.key.clone()),
                _ => return Ok(found),
            }
        }
    }
}

impl Record {
    fn is_reached(&self, by: &Principal) -> bool {
        match &self.namespace {
            Some(namespace) => by.reaches(namespace),
            None => by.tenant().is_none(),
        }
    }

    fn view(&self, now: Timestamp) -> TokenView {
        TokenView {
            id: self.id.clone(),
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            namespace: self.namespace.clone(),
            created_at: rfc3339(self.created_at),
            created_by: self.created_by.to_string(),
            expires_at: rfc3339(self.expires_at),
            expired: self.expires_at <= now,
        }
    }
}

fn is_id(text: &str) -> bool {
    text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn digest(token: &str) -> [u8; 32] {
    use sha2::Digest as _;
    sha2::Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use sas_core::MemoryStore;
    use sas_testkit::fake::FakeClock;

    use super::*;

    fn tokens() -> (Tokens, Arc<MemoryStore>, FakeClock) {
        let store = Arc::new(MemoryStore::default());
        let clock = FakeClock::starting_at(Timestamp(1_000_000_000));
        (Tokens::new(Arc::clone(&store) as _, Arc::new(clock.clone())), store, clock)
    }

    #[tokio::test]
    async fn a_token_opens_what_it_is_for_until_it_expires_or_is_revoked() {
        let (tokens, store, clock) = tokens();
        let host = Principal::host();
        let new = NewToken::new("ci", [Scope::Deploy]).for_tenant("shop").with_life(Duration::from_secs(60));
        let made = tokens.create(&host, new.clone()).await.unwrap();
        let found = tokens.authenticate(&made.token).await.unwrap().unwrap();
        assert_eq!((found.name(), found.tenant()), ("ci", Some("shop")));
        assert!(found.may(Scope::Read) && found.may(Scope::Deploy));
        assert!(!found.may(Scope::Invoke) && !found.may(Scope::Admin));

        // What is stored, shown and printed opens nothing.
        let entries = store.list("", None, 10).await.unwrap();
        let secret = made.token.rsplit('_').next().unwrap();
        let stored = String::from_utf8_lossy(&entries[0].value).into_owned();
        assert!(!stored.contains(secret), "{stored}");
        let shown = format!("{made:?} {:?}", tokens.list(&host).await.unwrap());
        assert!(!shown.contains(secret), "{shown}");

        for wrong in [format!("{}x", made.token), made.token.replace(secret, "x"), made.token.to_uppercase()]
        {
            let answer = tokens.authenticate(&wrong).await;
            assert!(!matches!(answer, Ok(Some(_))), "{wrong}");
        }
        assert_eq!(tokens.authenticate("sas_0123456789abcdef_x").await, Ok(None), "none of this id");
        assert_eq!(tokens.authenticate("another-kind").await, Ok(None));

        let taken = tokens.create(&host, new.clone()).await.unwrap_err();
        assert_eq!(taken.kind, ErrorKind::Conflict);
        clock.jump_forward(Duration::from_secs(61));
        assert!(tokens.authenticate(&made.token).await.is_err(), "expired");
        assert!(tokens.list(&host).await.unwrap()[0].expired);
        let again = tokens.create(&host, new).await.expect("what has expired makes room");
        assert_eq!(tokens.list(&host).await.unwrap().len(), 1);
        tokens.revoke(&host, &again.view.id).await.unwrap();
        assert_eq!(tokens.authenticate(&again.token).await, Ok(None));
        assert_eq!(tokens.revoke(&host, &again.view.id).await.unwrap_err().kind, ErrorKind::NotFound);
        assert_eq!(tokens.revoke(&host, "../service").await.unwrap_err().kind, ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_tenant_sees_and_revokes_its_own_only() {
        let (tokens, _, _) = tokens();
        let host = Principal::host();
        let of = |namespace| NewToken::new("ci", [Scope::Read]).for_tenant(namespace);
        let shop = tokens.create(&host, of("shop")).await.unwrap();
        let bank = tokens.create(&host, of("bank")).await.unwrap();
        let whole = tokens.create(&host, NewToken::new("ops", [Scope::Admin])).await.unwrap();
        let tenant = Principal::new("boss").with_tenant("shop");
        let seen: Vec<_> = tokens.list(&tenant).await.unwrap().into_iter().map(|view| view.id).collect();
        assert_eq!(seen, [shop.view.id.as_str()]);
        for foreign in [&bank, &whole] {
            let error = tokens.revoke(&tenant, &foreign.view.id).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::NotFound);
            assert!(tokens.authenticate(&foreign.token).await.unwrap().is_some());
        }
        tokens.revoke(&tenant, &shop.view.id).await.unwrap();
    }

    #[tokio::test]
    async fn every_mistake_of_a_request_is_told() {
        let (tokens, _, _) = tokens();
        let new = NewToken::new("a b", []).for_tenant("No Label").with_life(Duration::ZERO);
        let error = tokens.create(&Principal::host(), new).await.unwrap_err();
        let fields: Vec<_> = error.fields().unwrap().0.iter().map(|field| field.field.as_str()).collect();
        assert_eq!(fields, ["name", "scopes", "namespace", "expiresInSeconds"]);
        let reserved = NewToken::new("admin", [Scope::Read]);
        assert!(tokens.create(&Principal::host(), reserved).await.is_err());
    }
}
