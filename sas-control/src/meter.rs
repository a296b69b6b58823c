//! What revisions and tenants used, added up.

use std::collections::BTreeMap;

use async_trait::async_trait;
use dashmap::DashMap;
use sas_core::{InstanceId, MeterPhase, MeterSink, MeterTotals, Result, RevisionKey, TenantKey, UsageQuery};

/// A [`MeterSink`] that adds up per revision and per tenant. A revision that is forgotten stays in its tenant's total.
#[derive(Debug, Default)]
pub struct Meter {
    revisions: DashMap<RevisionKey, MeterTotals>,
    tenants: DashMap<TenantKey, MeterTotals>,
}

impl Meter {
    /// What a revision used since it was registered.
    pub fn revision(&self, revision: RevisionKey) -> MeterTotals {
        self.revisions.get(&revision).map_or_else(MeterTotals::default, |totals| *totals)
    }

    /// What a tenant used since the platform started.
    pub fn tenant(&self, tenant: TenantKey) -> MeterTotals {
        self.tenants.get(&tenant).map_or_else(MeterTotals::default, |totals| *totals)
    }

    /// All tenants that used something.
    pub fn tenants(&self) -> BTreeMap<TenantKey, MeterTotals> {
        self.tenants.iter().map(|totals| (*totals.key(), *totals)).collect()
    }
}

impl MeterSink for Meter {
    fn phase(&self, _: InstanceId, revision: RevisionKey, tenant: TenantKey, phase: MeterPhase, ns: u64) {
        self.revisions.entry(revision).or_default().add(phase, ns);
        self.tenants.entry(tenant).or_default().add(phase, ns);
    }

    fn requests(&self, revision: RevisionKey, tenant: TenantKey, count: u64) {
        let mut totals = self.revisions.entry(revision).or_default();
        totals.requests = totals.requests.saturating_add(count);
        drop(totals);
        let mut totals = self.tenants.entry(tenant).or_default();
        totals.requests = totals.requests.saturating_add(count);
    }

    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        Some(self)
    }

    fn forget(&self, revision: RevisionKey) {
        self.revisions.remove(&revision);
    }
}

#[async_trait]
impl UsageQuery for Meter {
    async fn revision_usage(&self, revision: RevisionKey) -> Result<MeterTotals> {
        Ok(self.revision(revision))
    }

    async fn tenant_usage(&self) -> Result<BTreeMap<TenantKey, MeterTotals>> {
        Ok(self.tenants())
    }
}
