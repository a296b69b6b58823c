//! What tenants may use of the pool, and what they use. Pure.

use std::{collections::BTreeMap, time::Duration};

use sas_core::{QuotaExceeded, QuotaPressure, QuotaResource, Rate, TenantKey, TenantQuota, TokenBucket};

/// For so long nobody looks again for idle instances of a tenant that had none to give up, in nanoseconds.
const LOOK_AGAIN: u64 = 50_000_000;

/// What instances of a tenant hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) instances: u32,
    pub(crate) memory: u64,
    pub(crate) cpu_millis: u64,
}

/// What an instance takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) memory: u64,
    pub(crate) cpu_millis: u64,
}

/// A tenant that may not use as much as there is.
#[derive(Debug)]
struct Limited {
    quota: TenantQuota,
    /// Of its starts.
    bucket: Option<TokenBucket>,
    /// What was refused, by what was used up.
    refused: BTreeMap<QuotaResource, u64>,
    /// When idle instances of it were last looked for in vain.
    looked_at: Option<u64>,
}

/// The tenants that may not use as much as there is.
#[derive(Debug, Default)]
pub(crate) struct Limits(BTreeMap<TenantKey, Limited>);

/// What the pool holds tenants to.
pub(crate) fn concerns(quota: &TenantQuota) -> bool {
    quota.instances.is_some()
        || quota.memory_bytes.is_some()
        || quota.cpu_millis.is_some()
        || quota.cold_starts_per_second.is_some()
}

impl Limits {
    /// Changes what a tenant may use; whether it is limited now and was not before.
    pub(crate) fn set(&mut self, tenant: TenantKey, quota: Option<TenantQuota>, now: u64) -> bool {
        let Some(quota) = quota.filter(concerns) else {
            self.0.remove(&tenant);
            return false;
        };
        let bucket = quota.cold_starts_per_second.map(|rate| TokenBucket::full(Rate::per_second(rate), now));
        match self.0.get_mut(&tenant) {
            Some(limited) => {
                if limited.quota.cold_starts_per_second != quota.cold_starts_per_second {
                    limited.bucket = bucket;
                }
                limited.quota = quota;
                limited.looked_at = None;
                false
            }
            None => {
                let limited = Limited { quota, bucket, refused: BTreeMap::new(), looked_at: None };
                self.0.insert(tenant, limited);
                true
            }
        }
    }

    pub(crate) fn contains(&self, tenant: TenantKey) -> bool {
        self.0.contains_key(&tenant)
    }

    /// What of a tenant's quota is in the way of a start that takes so much.
    pub(crate) fn exceeded(
        &self,
        tenant: TenantKey,
        held: Held,
        takes: Takes,
        now: u64,
    ) -> Option<QuotaExceeded> {
        let limited = self.0.get(&tenant)?;
        let quota = &limited.quota;
        let over = |resource, limit: Option<u64>, used: u64, asked: u64| {
            let limit = limit.filter(|limit| used.saturating_add(asked) > *limit)?;
            Some(QuotaExceeded::new(resource, limit as f64, used as f64, asked as f64))
        };
        let instances = u64::from(held.instances);
        over(QuotaResource::Instances, quota.instances.map(u64::from), instances, 1)
            .or_else(|| over(QuotaResource::Memory, quota.memory_bytes, held.memory, takes.memory))
            .or_else(|| over(QuotaResource::Cpu, quota.cpu_millis, held.cpu_millis, takes.cpu_millis))
            .or_else(|| {
                let per_second = quota.cold_starts_per_second?;
                let (rate, bucket) = (Rate::per_second(per_second), limited.bucket?);
                let wait = bucket.wait(rate, now);
                let used = bucket.used(rate, now);
                (!wait.is_zero())
                    .then(|| QuotaExceeded::new(QuotaResource::ColdStarts, per_second, used, 1.0).after(wait))
            })
    }

    /// A start begins.
    pub(crate) fn begin(&mut self, tenant: TenantKey, now: u64) {
        if let Some(limited) = self.0.get_mut(&tenant)
            && let Some(rate) = limited.quota.cold_starts_per_second.map(Rate::per_second)
            && let Some(bucket) = &mut limited.bucket
        {
            bucket.debit(rate, 1, now);
        }
    }

    /// Whether to look for idle instances of a tenant now: not as often as it is called, when there were none.
    pub(crate) fn may_look(&self, tenant: TenantKey, now: u64) -> bool {
        let looked_at = self.0.get(&tenant).and_then(|limited| limited.looked_at);
        looked_at.is_none_or(|at| now.saturating_sub(at) >= LOOK_AGAIN)
    }

    /// Idle instances of a tenant were looked for, in vain.
    pub(crate) fn looked(&mut self, tenant: TenantKey, now: u64) {
        if let Some(limited) = self.0.get_mut(&tenant) {
            limited.looked_at = Some(now);
        }
    }

    /// So many requests were refused.
    pub(crate) fn refused(&mut self, tenant: TenantKey, resource: QuotaResource, count: u64) {
        if let Some(limited) = self.0.get_mut(&tenant) {
            *limited.refused.entry(resource).or_default() += count;
        }
    }

    /// What is used of each limit; `held` tells what instances of a tenant hold.
    pub(crate) fn pressure(&self, held: impl Fn(TenantKey) -> Held, now: u64) -> Vec<QuotaPressure> {
        let mut all = Vec::new();
        for (&tenant, limited) in &self.0 {
            let held = held(tenant);
            for (resource, limit) in limited.quota.limits() {
                let refused = limited.refused.get(&resource).copied().unwrap_or_default();
                let rate = Rate::per_second(limit);
                let used = match resource {
                    QuotaResource::Instances => f64::from(held.instances),
                    QuotaResource::Memory => held.memory as f64,
                    QuotaResource::Cpu => held.cpu_millis as f64,
                    QuotaResource::ColdStarts => limited.bucket.map_or(0.0, |bucket| bucket.used(rate, now)),
                    _ => continue,
                };
                let told = QuotaPressure::of_tenant(tenant, resource, limit, used, refused);
                all.push(match resource {
                    QuotaResource::ColdStarts => told.with_burst(rate.burst),
                    _ => told,
                });
            }
        }
        all
    }
}

/// When to look again at a start that waits for a rate.
pub(crate) fn wait_of(exceeded: &QuotaExceeded, now: u64) -> Option<u64> {
    let wait = u64::try_from(exceeded.retry_after.max(Duration::from_millis(1)).as_nanos()).ok()?;
    (exceeded.resource == QuotaResource::ColdStarts).then(|| now.saturating_add(wait))
}
