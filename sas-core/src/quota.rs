//! What a tenant or a service may use, and who holds them to it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{SpecErrors, TenantKey};

/// What a tenant or a service may use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[non_exhaustive]
pub struct Quota {
    /// Requests per second in the long run; `f64::INFINITY`: no limit. Written as `null` then.
    #[cfg_attr(feature = "schema", schema(value_type = Option<f64>, minimum = 0.0))]
    #[serde(with = "unlimited_rate", skip_serializing_if = "is_infinite")]
    pub rate: f64,
    /// Requests that may come at once when it was quiet before; at least 1.
    #[serde(skip_serializing_if = "is_most")]
    pub burst: u32,
    /// Requests at once; `u32::MAX`: no limit.
    #[serde(skip_serializing_if = "is_most")]
    pub concurrency: u32,
}

impl Default for Quota {
    fn default() -> Self {
        Self::UNLIMITED
    }
}

impl Quota {
    /// A quota without any limit.
    pub const UNLIMITED: Self = Self { rate: f64::INFINITY, burst: u32::MAX, concurrency: u32::MAX };

    /// At most `rate` requests per second, of which `burst` may come at once.
    pub const fn rate(rate: f64, burst: u32) -> Self {
        Self { rate, burst, ..Self::UNLIMITED }
    }

    /// At most `concurrency` requests at once.
    #[must_use]
    pub const fn with_concurrency(mut self, concurrency: u32) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Whether the rate is limited at all.
    pub const fn limits_rate(&self) -> bool {
        self.rate < f64::INFINITY
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.rate.is_nan() || self.rate < 0.0 {
            errors.push("rate", self.rate, "must be requests per second, 0 or more");
        }
        if self.burst == 0 {
            errors.push("burst", self.burst, "must be at least 1; a rate of 0 lets nothing in");
        }
        errors.into_result()
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_infinite(rate: &f64) -> bool {
    *rate == f64::INFINITY
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_most(number: &u32) -> bool {
    *number == u32::MAX
}

/// JSON has no infinity.
mod unlimited_rate {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    pub(super) fn serialize<S: Serializer>(rate: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        (*rate < f64::INFINITY).then_some(*rate).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
    }
}

/// Holds tenants and services to quotas: the data plane's admission. The control plane tells it what they are.
///
/// # Contract
/// A quota holds from the next request on. Requests that are in are not sent away. Setting one twice is setting it once:
/// what was used counts on.
pub trait Quotas: fmt::Debug + Send + Sync + 'static {
    /// Gives a tenant a quota of its own; `None`: back to the one that all have.
    fn set_tenant(&self, tenant: TenantKey, quota: Option<Quota>);

    /// Gives a service (`namespace/service`) a quota of its own; `None`: back to the one that all have.
    fn set_service(&self, service: &str, quota: Option<Quota>);

    /// What is used of each quota that somebody uses now or used up of late; empty where it is not told.
    fn pressure(&self) -> Vec<QuotaPressure> {
        Vec::new()
    }
}

/// A quota, and what is used of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuotaPressure {
    /// The tenant whose it is; `None`: a service's.
    pub tenant: Option<TenantKey>,
    /// The service (`namespace/service`) whose it is; `None`: a tenant's.
    pub service: Option<String>,
    /// What may be used.
    pub quota: Quota,
    /// Requests that run now.
    pub running: u32,
    /// Requests that were refused, since somebody began to use it.
    pub refused: u64,
}

impl QuotaPressure {
    /// A quota of a tenant.
    pub const fn of_tenant(tenant: TenantKey, quota: Quota, running: u32, refused: u64) -> Self {
        Self { tenant: Some(tenant), service: None, quota, running, refused }
    }

    /// A quota of a service.
    pub fn of_service(service: impl Into<String>, quota: Quota, running: u32, refused: u64) -> Self {
        Self { tenant: None, service: Some(service.into()), quota, running, refused }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_written_without_what_they_do_not_limit() {
        for (quota, text) in [
            (Quota::UNLIMITED, "{}"),
            (Quota::rate(2.5, 4), r#"{"rate":2.5,"burst":4}"#),
            (Quota::UNLIMITED.with_concurrency(3), r#"{"concurrency":3}"#),
        ] {
            assert_eq!(serde_json::to_string(&quota).unwrap(), text);
            assert_eq!(serde_json::from_str::<Quota>(text).unwrap(), quota);
        }
        assert_eq!(serde_json::from_str::<Quota>(r#"{"rate":null}"#).unwrap(), Quota::UNLIMITED);
        assert!(serde_json::from_str::<Quota>(r#"{"rates":1}"#).is_err());
    }

    #[test]
    fn a_quota_that_means_nothing_is_refused() {
        assert_eq!(Quota::rate(f64::NAN, 0).validate().unwrap_err().0.len(), 2);
        assert!(Quota::rate(-1.0, 1).validate().is_err());
        assert!(Quota::rate(0.0, 1).validate().is_ok());
    }
}
