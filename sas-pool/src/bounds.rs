//! How much waits, by tenant and in all. Pure.

use std::collections::BTreeMap;

use sas_core::{Claim, ClaimError, TenantKey};

use crate::config::QueueConfig;

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    requests: u32,
    bytes: u64,
}

/// What waits now.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    host: Held,
    /// Only tenants of which something waits.
    tenants: BTreeMap<TenantKey, Held>,
}

impl Bounds {
    /// Counts a claim that is about to wait, if it may.
    pub(crate) fn enter(&mut self, config: &QueueConfig, claim: &Claim) -> Result<(), ClaimError> {
        let bytes = u64::from(claim.bytes);
        let full = |resource| Err(ClaimError::QueueFull { resource, retry_after: config.retry_after });
        if self.host.requests >= config.host_requests {
            return full("host");
        }
        if self.host.bytes + bytes > config.host_bytes {
            return full("host bytes");
        }
        let tenant = self.tenants.get(&claim.tenant).copied().unwrap_or_default();
        if tenant.requests >= config.tenant_requests {
            return full("tenant");
        }
        if tenant.bytes + bytes > config.tenant_bytes {
            return full("tenant bytes");
        }
        let tenant = self.tenants.entry(claim.tenant).or_default();
        for held in [tenant, &mut self.host] {
            held.requests += 1;
            held.bytes += bytes;
        }
        Ok(())
    }

    /// A claim waits no longer.
    pub(crate) fn leave(&mut self, claim: &Claim) {
        let bytes = u64::from(claim.bytes);
        self.host.requests -= 1;
        self.host.bytes -= bytes;
        if let Some(tenant) = self.tenants.get_mut(&claim.tenant) {
            tenant.requests -= 1;
            tenant.bytes -= bytes;
            if tenant.requests == 0 {
                self.tenants.remove(&claim.tenant);
            }
        }
    }

    #[cfg(test)]
    fn waiting(&self) -> u32 {
        self.host.requests
    }
}

#[cfg(test)]
mod tests {
    use sas_core::RevisionKey;

    use super::*;

    fn claim(tenant: u32, bytes: u32) -> Claim {
        let mut claim = Claim::new(RevisionKey(0), TenantKey(tenant));
        claim.bytes = bytes;
        claim
    }

    #[test]
    fn each_bound_is_named_and_nothing_is_counted_twice() {
        let config = QueueConfig {
            tenant_requests: 2,
            tenant_bytes: 100,
            host_requests: 3,
            host_bytes: 120,
            ..QueueConfig::default()
        };
        let mut bounds = Bounds::default();
        let refused = |bounds: &mut Bounds, claim: Claim| match bounds.enter(&config, &claim) {
            Err(ClaimError::QueueFull { resource, .. }) => resource,
            other => panic!("{other:?}"),
        };
        bounds.enter(&config, &claim(1, 60)).unwrap();
        assert_eq!(refused(&mut bounds, claim(1, 50)), "tenant bytes");
        bounds.enter(&config, &claim(1, 0)).unwrap();
        assert_eq!(refused(&mut bounds, claim(1, 0)), "tenant");
        assert_eq!(refused(&mut bounds, claim(2, 61)), "host bytes");
        bounds.enter(&config, &claim(2, 0)).unwrap();
        assert_eq!(refused(&mut bounds, claim(3, 0)), "host");
        bounds.leave(&claim(1, 60));
        bounds.leave(&claim(1, 0));
        bounds.leave(&claim(2, 0));
        assert_eq!(bounds.waiting(), 0);
        assert!(bounds.tenants.is_empty());
    }
}
