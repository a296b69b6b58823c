//! How the admin API is used, which may change while it is.

use super::{guard::Guard, limit::RateLimit};
use crate::roots::PackageRoots;

/// Who may use the admin API how. All of it may change while the API serves: [`super::Admin::change`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct AdminSettings {
    /// Hosts that it answers for beside loopback: names or addresses, for any port unless one is given.
    pub hosts: Vec<String>,
    /// Origins of pages that may use it, such as `https://console.example.org`.
    pub origins: Vec<String>,
    /// Whether `/metrics` is everybody's.
    pub open_metrics: bool,
    /// Whether changes of services want to be told what was seen.
    pub require_conditions: bool,
    /// From where manifests may take packages that they name by a path of the host.
    pub package_roots: PackageRoots,
    /// Requests per second of each principal.
    pub rate: f64,
    /// Requests at once of each principal, after quiet.
    pub burst: u32,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self {
            hosts: Vec::new(),
            origins: Vec::new(),
            open_metrics: false,
            require_conditions: false,
            package_roots: PackageRoots::none(),
            rate: 500.0,
            burst: 1000,
        }
    }
}

/// Settings, and what is kept by them.
#[derive(Debug)]
pub(super) struct InForce {
    pub(super) settings: AdminSettings,
    pub(super) guard: Guard,
    pub(super) rate: RateLimit,
}

impl From<AdminSettings> for InForce {
    fn from(settings: AdminSettings) -> Self {
        Self {
            guard: Guard { hosts: settings.hosts.clone(), origins: settings.origins.clone() },
            rate: RateLimit::new(settings.rate, settings.burst),
            settings,
        }
    }
}
