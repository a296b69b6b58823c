//! Which revision answers a request.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Result, RevisionKey, TenantKey};

/// What a route is looked up by. Borrowed from the request: routing allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery<'a> {
    /// The method of the request.
    pub method: &'a http::Method,
    /// The host without port, as sent; compared without case.
    pub host: &'a str,
    /// The path, as sent.
    pub path: &'a str,
    /// The query, without `?`.
    pub query: Option<&'a str>,
    /// The headers of the request.
    pub headers: &'a http::HeaderMap,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Route {
    /// To a revision.
    To(RouteTarget),
    /// The client is sent elsewhere.
    Redirect {
        /// 301, 302, 307 or 308.
        status: http::StatusCode,
        /// The `Location`.
        location: String,
    },
    /// To another host of the platform, which answers it.
    Remote(RemoteTarget),
}

/// The host that gets a request, and what the route says about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteTarget {
    /// The host, by the name that the data plane knows it by.
    pub peer: Arc<str>,
    /// The tenant whose the service is.
    pub tenant: TenantKey,
    /// For the whole request.
    pub timeout: Duration,
    /// The service, as `namespace/name`: other hosts that take its requests as well are known by it. `None`: only `peer` does.
    pub service: Option<Arc<str>>,
}

impl RemoteTarget {
    /// To `peer`, within `timeout`.
    pub const fn new(peer: Arc<str>, tenant: TenantKey, timeout: Duration) -> Self {
        Self { peer, tenant, timeout, service: None }
    }
}

/// The revision that gets a request, and what the route says about it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct RouteTarget {
    /// The revision that the request goes to.
    pub revision: RevisionKey,
    /// The tenant whose route it is.
    pub tenant: TenantKey,
    /// Requests with the same value want the same instance.
    pub affinity: Option<u64>,
    /// For the whole request.
    pub timeout: Duration,
    /// Whether the request may start an instance.
    pub wakes: bool,
    /// Where to go when this revision can't answer.
    pub fallback: Option<RevisionKey>,
    /// Whether a browser gets a page that reloads itself while the revision starts, instead of waiting.
    pub placeholder: bool,
}

impl RouteTarget {
    /// To `revision`, with the default time-out of 300 s.
    pub const fn new(revision: RevisionKey, tenant: TenantKey) -> Self {
        Self {
            revision,
            tenant,
            affinity: None,
            timeout: Duration::from_secs(300),
            wakes: true,
            fallback: None,
            placeholder: false,
        }
    }
}

/// Why a [`Router`] has no revision for a request; the gateway turns it into the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No host, path or rule matches.
    #[error("no service answers at this host and path")]
    NoRoute,
    /// The service is there, but none of its revisions gets traffic.
    #[error("the service has no revision that takes traffic")]
    Disabled,
}

/// A host as routes name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPattern {
    /// This host, in lower case.
    Exact(String),
    /// Any host one label below this one (`*.example.com` is written `example.com` here).
    Wildcard(String),
    /// Every host that nothing else matches.
    Any,
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => f.write_str(host),
            Self::Wildcard(host) => write!(f, "*.{host}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// How a header or query value is matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ValueMatch {
    /// It is there.
    Present,
    /// It is this.
    Exact(String),
    /// It starts with this.
    Prefix(String),
}

/// Which requests of a host a rule is for. All that is said must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouteMatch {
    /// A path prefix that ends at a segment's end; empty: every path.
    pub path_prefix: String,
    /// Methods; empty: every method.
    pub methods: Vec<String>,
    /// Headers, by lower-case name.
    pub headers: Vec<(String, ValueMatch)>,
    /// The query parameters that must be there, with their values.
    pub query: Vec<(String, ValueMatch)>,
    /// The cookies that must be there, with their values.
    #[serde(default)]
    pub cookies: Vec<(String, ValueMatch)>,
}

/// A share of the traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Split {
    /// The revision that gets this share.
    pub revision: RevisionKey,
    /// In percent. The weights of a rule add up to 100.
    pub weight: u32,
}

impl Split {
    /// `weight` percent to `revision`.
    pub const fn new(revision: RevisionKey, weight: u32) -> Self {
        Self { revision, weight }
    }
}

/// What a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RouteAction {
    /// Splits between revisions; empty: the service is disabled.
    Split(Vec<Split>),
    /// Redirects. `location` may hold `{path}` and `{query}`.
    Redirect {
        /// 301, 302, 307 or 308.
        status: u16,
        /// The location.
        location: String,
    },
    /// Passes requests on to another host of the platform, which routes them itself. One that was passed on already is
    /// refused with 508.
    Remote {
        /// The host, by the name that the data plane knows it by; not empty.
        peer: String,
    },
}

/// What makes requests belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Affinity {
    /// Requests are not changed.
    #[default]
    None,
    /// The value of a header.
    Header(String),
    /// The value of a cookie.
    Cookie(String),
}

/// A rule of a host. The most specific one wins: the longest path prefix, then the most conditions, then the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouteRule {
    /// The requests that the rule is for.
    pub matches: RouteMatch,
    /// What happens with the requests that match.
    pub action: RouteAction,
    /// The tenant who pays for what goes this way.
    pub tenant: TenantKey,
    /// For the whole request.
    pub timeout: Duration,
    /// What makes requests belong together.
    pub affinity: Affinity,
    /// Whether such requests may start an instance.
    pub wakes: bool,
    /// Who answers when the revision can't.
    pub fallback: Option<RevisionKey>,
    /// Whether browsers get a page that reloads itself while the revision starts, instead of waiting.
    #[serde(default)]
    pub placeholder: bool,
    /// With [`RouteAction::Remote`]: the service, as `namespace/name`, if other hosts may take its requests as well.
    #[serde(default)]
    pub service: Option<String>,
}

impl RouteRule {
    /// Every request of the host, by `action`.
    pub fn new(tenant: TenantKey, action: RouteAction) -> Self {
        Self {
            matches: RouteMatch::default(),
            action,
            tenant,
            timeout: Duration::from_secs(300),
            affinity: Affinity::None,
            wakes: true,
            fallback: None,
            placeholder: false,
            service: None,
        }
    }

    /// Only requests with this header, a lower-case name, of exactly this value. A rule with it is more specific than the
    /// same one without.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.matches.headers.push((name.into(), ValueMatch::Exact(value.into())));
        self
    }

    /// Only below a path.
    #[must_use]
    pub fn under(mut self, path_prefix: impl Into<String>) -> Self {
        self.matches.path_prefix = path_prefix.into();
        self
    }
}

/// A change of the table.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RouteChange {
    /// The rules of a host, all of them.
    Set {
        /// Which host.
        host: HostPattern,
        /// Its rules.
        rules: Vec<RouteRule>,
    },
    /// Nothing answers at this host any more.
    Remove {
        /// Which host.
        host: HostPattern,
    },
}

/// Decides which revision answers a request.
///
/// The gateway asks it for each request, the control plane changes it. It is given to the builder's `router`;
/// `examples/custom_parts.rs` wraps the default one.
///
/// # Contract
/// - `route` never blocks and never allocates for a split route.
/// - A weighted split is exact over each run of 100 requests of a rule, and reproducible from the router's seed.
/// - `apply` is all or nothing, and requests see either all of it or none.
pub trait Router: fmt::Debug + Send + Sync + 'static {
    /// Looks a request up in the current snapshot.
    ///
    /// # Errors
    /// See [`RouteError`].
    fn route(&self, query: &RouteQuery<'_>) -> Result<Route, RouteError>;

    /// Applies changes as one new snapshot; the cost is that of the change, not of the table.
    ///
    /// # Errors
    /// `InvalidSpec` with the host and the field; nothing was changed then.
    fn apply(&self, changes: Vec<RouteChange>) -> Result<()>;
}

#[deny(clippy::missing_trait_methods)]
impl<T: Router + ?Sized> Router for Arc<T> {
    fn route(&self, query: &RouteQuery<'_>) -> Result<Route, RouteError> {
        (**self).route(query)
    }

    fn apply(&self, changes: Vec<RouteChange>) -> Result<()> {
        (**self).apply(changes)
    }
}
