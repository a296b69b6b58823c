//! Who asks: the principal of an admin request, and what finds it out.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Who asks for a change or for a view: a person, a program or the host platform itself.
///
/// An [`Authenticator`] makes it from a request of the admin API; it travels with the request into the control plane,
/// which keeps it as the author of what it stores. It is a name, never a credential. Scopes and a tenant will stand
/// beside the name; until then whoever is authenticated may do everything.
///
/// ```
/// use sas_core::Principal;
/// assert_eq!(Principal::new("ci@example.org").to_string(), "ci@example.org");
/// assert_eq!(Principal::host().name(), "host");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Principal {
    name: Arc<str>,
}

impl Principal {
    /// Somebody of that name, which is shown in views and logs.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into() }
    }

    /// The program that embeds the platform: who calls the library itself, without a request.
    pub fn host() -> Self {
        Self::new("host")
    }

    /// The name under which the principal is known, for records and logs.
    pub fn name(&self) -> &str {
        &self.name
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
