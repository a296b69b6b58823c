//! Who asks: the principal of an admin request, and what finds it out.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// What somebody may do at the admin API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Scope {
    /// See services, logs, decisions and usage.
    Read,
    /// Deploy, change and delete services and triggers; includes `read`.
    Deploy,
    /// Call services by test runs.
    Invoke,
    /// Everything: tokens, quotas, backup, and all that the others may.
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Read, Self::Deploy, Self::Invoke, Self::Admin];

    /// Its name, as in tokens and in the description of the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Invoke => "invoke",
            Self::Admin => "admin",
        }
    }

    /// Whether who has it may do what `other` is for.
    pub fn includes(self, other: Self) -> bool {
        self == other || self == Self::Admin || (self == Self::Deploy && other == Self::Read)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who asks for a change or for a view: a person, a program or the host platform itself, and what they may do.
///
/// An [`Authenticator`] makes it from a request of the admin API; it travels with the request into the control plane,
/// which keeps its name as the author of what it stores. It is never a credential. One that is made by
/// [`Principal::new`] may do everything, everywhere; [`Principal::with_scopes`] and [`Principal::with_tenant`] take
/// from that. Only the name is written down and read back, and two principals of one name are equal: who wrote a record
/// is known, what they could do then is not.
///
/// ```
/// use sas_core::{Principal, Scope};
/// assert_eq!(Principal::new("ci@example.org").to_string(), "ci@example.org");
/// assert_eq!(Principal::host().name(), "host");
///
/// let ci = Principal::new("ci").with_scopes([Scope::Deploy]).with_tenant("shop");
/// assert!(ci.may(Scope::Read) && !ci.may(Scope::Invoke));
/// assert!(ci.reaches("shop") && !ci.reaches("bank"));
/// ```
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Arc<str>", into = "Arc<str>")]
pub struct Principal {
    name: Arc<str>,
    /// `None`: all.
    scopes: Option<Arc<[Scope]>>,
    /// `None`: every tenant, and what belongs to none.
    tenant: Option<Arc<str>>,
}

impl Principal {
    /// Somebody of that name, which is shown in views and logs; they may do everything.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), scopes: None, tenant: None }
    }

    /// The program that embeds the platform: who calls the library itself, without a request.
    pub fn host() -> Self {
        Self::new("host")
    }

    /// They may do only this.
    #[must_use]
    pub fn with_scopes(mut self, scopes: impl IntoIterator<Item = Scope>) -> Self {
        self.scopes = Some(scopes.into_iter().collect());
        self
    }

    /// They see and change only what is in this namespace.
    #[must_use]
    pub fn with_tenant(mut self, namespace: impl Into<Arc<str>>) -> Self {
        self.tenant = Some(namespace.into());
        self
    }

    /// The name under which the principal is known, for records and logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The namespace that they are held to; `None`: none.
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// Whether they may do what needs this scope.
    pub fn may(&self, needed: Scope) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.iter().any(|scope| scope.includes(needed)))
    }

    /// Whether they may see and change what is in this namespace.
    pub fn reaches(&self, namespace: &str) -> bool {
        self.tenant().is_none_or(|tenant| tenant == namespace)
    }
}

impl PartialEq for Principal {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Principal {}

impl std::hash::Hash for Principal {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl From<Arc<str>> for Principal {
    fn from(name: Arc<str>) -> Self {
        Self::new(name)
    }
}

impl From<Principal> for Arc<str> {
    fn from(principal: Principal) -> Self {
        principal.name
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Why a request is not let in. The texts are shown to whoever asked: they must not say what would have been right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// It is not known who asks: no credential, several, or a wrong one. Answered with 401 and the challenge.
    #[error("{message}")]
    Unauthenticated {
        /// What is missing or wrong.
        message: String,
        /// The value of `WWW-Authenticate`, such as `Bearer realm="admin"`.
        challenge: String,
    },
    /// It is known who asks, and they may not. Answered with 403.
    #[error("{0}")]
    Forbidden(String),
    /// It can't be found out now, for a reason that is the platform's. Answered with 503.
    #[error("{0}")]
    Unavailable(String),
}

impl Denied {
    /// A credential is missing or wrong, and `Bearer` is the scheme that would do.
    pub fn bearer(message: impl Into<String>) -> Self {
        Self::Unauthenticated { message: message.into(), challenge: "Bearer realm=\"admin\"".to_owned() }
    }
}

/// Finds out who asks the admin API. The default compares a bearer token; a host platform that has sessions, signed
/// tokens or client certificates passes its own.
///
/// The admin API asks it for each request. It is given to the builder's `admin_authenticator`;
/// `sas_control::TokenAuthenticator` is one.
///
/// # Contract
/// It looks at the head of the request only, does not keep what it saw of credentials, compares secrets in constant
/// time, and denies when in doubt. The admin API has refused foreign hosts and origins before it asks, and refuses
/// bodies that a web page could send by itself after that (unless the request carries a bearer token), so that an
/// authenticator may also look at cookies.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Who sent the request with this head.
    ///
    /// **Cancel safety:** dropping the future means that the client has gone; nothing is left behind.
    ///
    /// # Errors
    /// [`Denied`], whose text is the answer.
    async fn authenticate(&self, head: &http::request::Parts) -> Result<Principal, Denied>;
}
