//! Tenants' quotas on all engines: each engine's pool holds a tenant to the whole of its quota, and a tenant's services are
//! on one engine but for the time of a move.

use std::collections::BTreeMap;

use sas_core::{Pool, QuotaPressure, QuotaResource, Quotas, TenantKey, TenantQuota};

use super::Engines;

impl Engines {
    /// Whether the pools of all engines hold tenants to quotas.
    pub(super) fn hold_quotas(&self) -> bool {
        self.all().all(|running| running.engine.pool.quotas().is_some())
    }

    /// Tells a pool that is new what all tenants may use.
    pub(super) fn hold_tenants(&self, pool: &dyn Pool) {
        if let Some(quotas) = pool.quotas() {
            let tenants = self.tenants.lock().clone();
            tenants.into_iter().for_each(|(tenant, quota)| quotas.set_tenant(tenant, Some(quota)));
        }
    }
}

impl Quotas for Engines {
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        match quota {
            Some(quota) => drop(self.tenants.lock().insert(tenant, quota)),
            None => drop(self.tenants.lock().remove(&tenant)),
        }
        for running in self.all() {
            if let Some(quotas) = running.engine.pool.quotas() {
                quotas.set_tenant(tenant, quota);
            }
        }
    }

    fn pressure(&self) -> Vec<QuotaPressure> {
        let mut all: BTreeMap<(Option<TenantKey>, QuotaResource), QuotaPressure> = BTreeMap::new();
        for running in self.all() {
            let told = running.engine.pool.quotas().map(Quotas::pressure).unwrap_or_default();
            for one in told {
                match all.get_mut(&(one.tenant, one.resource)) {
                    Some(sum) => {
                        sum.used += one.used;
                        sum.refused += one.refused;
                    }
                    None => drop(all.insert((one.tenant, one.resource), one)),
                }
            }
        }
        all.into_values().collect()
    }
}
