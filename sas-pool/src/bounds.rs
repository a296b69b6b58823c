//! How much waits, by tenant and in all. Pure.

use std::collections::BTreeMap;

use sas_core::{Claim, ClaimError, QuotaExceeded, QuotaPressure, QuotaResource, TenantKey};

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
    /// Bytes that a tenant's waiting requests may hold by its quota, and how many were refused for it.
    quotas: BTreeMap<TenantKey, (u64, u64)>,
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
        match self.quotas.get_mut(&claim.tenant) {
            Some((limit, refused)) if tenant.bytes + bytes > *limit => {
                *refused += 1;
                let (limit, used) = (*limit as f64, tenant.bytes as f64);
                let over = QuotaExceeded::new(QuotaResource::QueueBytes, limit, used, bytes as f64);
                return Err(ClaimError::Quota(over.after(config.retry_after)));
            }
            None if tenant.bytes + bytes > config.tenant_bytes => return full("tenant bytes"),
            _ => {}
        }
        let tenant = self.tenants.entry(claim.tenant).or_default();
        for held in [tenant, &mut self.host] {
            held.requests += 1;
            held.bytes += bytes;
        }
        Ok(())
    }

    /// Changes what the waiting requests of a tenant may hold; `None`: as much as those of any other.
    pub(crate) fn limit(&mut self, tenant: TenantKey, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => self.quotas.entry(tenant).or_default().0 = bytes,
            None => drop(self.quotas.remove(&tenant)),
        }
    }

    /// What tenants use of their quotas.
    pub(crate) fn pressure(&self) -> impl Iterator<Item = QuotaPressure> {
        self.quotas.iter().map(|(&tenant, &(limit, refused))| {
            let held = self.tenants.get(&tenant).map_or(0, |held| held.bytes);
            QuotaPressure::of_tenant(tenant, QuotaResource::QueueBytes, limit as f64, held as f64, refused)
        })
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

    #[test]
    fn a_tenants_quota_goes_before_what_all_have_and_others_are_not_held_to_it() {
        let config = QueueConfig { tenant_bytes: 100, ..QueueConfig::default() };
        let mut bounds = Bounds::default();
        bounds.limit(TenantKey(1), Some(40));
        bounds.limit(TenantKey(2), Some(400));
        bounds.enter(&config, &claim(1, 30)).unwrap();
        let Err(ClaimError::Quota(over)) = bounds.enter(&config, &claim(1, 20)) else { panic!("it is full") };
        assert_eq!(
            (over.resource, over.limit, over.used, over.asked),
            (QuotaResource::QueueBytes, 40.0, 30.0, 20.0)
        );
        bounds.enter(&config, &claim(2, 300)).expect("it has more than all have");
        bounds.enter(&config, &claim(3, 100)).expect("another");
        let told: Vec<_> = bounds.pressure().map(|told| (told.used, told.refused)).collect();
        assert_eq!(told, [(30.0, 1), (300.0, 0)]);
        bounds.limit(TenantKey(1), None);
        bounds.enter(&config, &claim(1, 70)).expect("as all");
    }
}
