//! What revisions and tenants used, added up.

use std::collections::BTreeMap;

use dashmap::DashMap;
use sas_core::{InstanceId, MeterPhase, MeterSink, RevisionKey, TenantKey};
use serde::Serialize;

/// Use of instances, in nanoseconds per phase, and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MeterTotals {
    /// On their way up.
    pub starting_ns: u128,
    /// As stems.
    pub pooled_ns: u128,
    /// Ready, without a request.
    pub idle_ns: u128,
    /// With at least one request.
    pub busy_ns: u128,
    /// On their way out.
    pub draining_ns: u128,
    /// Requests answered.
    pub requests: u64,
}

impl MeterTotals {
    /// All phases together: the lives of the instances.
    pub fn life_ns(&self) -> u128 {
        self.starting_ns + self.pooled_ns + self.idle_ns + self.busy_ns + self.draining_ns
    }

    fn add(&mut self, phase: MeterPhase, ns: u64) {
        let total = match phase {
            MeterPhase::Starting => &mut self.starting_ns,
            MeterPhase::Pooled => &mut self.pooled_ns,
            MeterPhase::Idle => &mut self.idle_ns,
            MeterPhase::Busy => &mut self.busy_ns,
            _ => &mut self.draining_ns,
        };
        *total += u128::from(ns);
    }
}

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

    /// Forgets a revision.
    pub fn forget(&self, revision: RevisionKey) {
        self.revisions.remove(&revision);
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
}
