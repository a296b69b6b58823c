//! How many events tenants may send in, and have delivered.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use sas_core::{
    QuotaExceeded, QuotaPressure, QuotaResource, Quotas, Rate, Result, TenantKey, TenantQuota, TokenBucket,
};
use tokio::time::{Instant, sleep};

/// A wait is looked at again after this time: the quota may be another by then.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Limited {
    per_second: f64,
    /// Of events that come in from outside.
    taken: TokenBucket,
    /// Of events that are delivered.
    delivered: TokenBucket,
    refused: u64,
}

/// Holds tenants to their quotas of events. Tenants without one cost nothing.
#[derive(Debug)]
pub(crate) struct EventQuotas {
    began: Instant,
    tenants: Mutex<BTreeMap<TenantKey, Limited>>,
}

impl EventQuotas {
    pub(crate) fn new() -> Self {
        Self { began: Instant::now(), tenants: Mutex::default() }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes events in that came together.
    ///
    /// # Errors
    /// `Exhausted` when the tenant has sent as many as it may.
    pub(crate) fn take(&self, tenant: TenantKey, events: usize) -> Result<()> {
        let now = self.now();
        let mut tenants = self.tenants.lock();
        let Some(limited) = tenants.get_mut(&tenant) else { return Ok(()) };
        let (rate, count) = (Rate::per_second(limited.per_second), u32::try_from(events).unwrap_or(u32::MAX));
        let wait = limited.taken.wait(rate, now);
        if wait.is_zero() {
            limited.taken.debit(rate, count, now);
            return Ok(());
        }
        limited.refused += u64::from(count);
        let used = limited.taken.used(rate, now);
        let over = QuotaExceeded::new(QuotaResource::Events, limited.per_second, used, f64::from(count));
        Err(over.after(wait).into_error("events"))
    }

    /// Waits until an event of the tenant may be delivered.
    pub(crate) async fn room(&self, tenant: TenantKey) {
        loop {
            let wait = {
                let tenants = self.tenants.lock();
                let Some(limited) = tenants.get(&tenant) else { return };
                limited.delivered.wait(Rate::per_second(limited.per_second), self.now())
            };
            if wait.is_zero() {
                return;
            }
            sleep(wait.min(LOOK_AGAIN)).await;
        }
    }

    /// So many events of the tenant are delivered now: those that come next wait for it.
    pub(crate) fn deliver(&self, tenant: TenantKey, events: usize) {
        let now = self.now();
        if let Some(limited) = self.tenants.lock().get_mut(&tenant) {
            let count = u32::try_from(events).unwrap_or(u32::MAX);
            limited.delivered.debit(Rate::per_second(limited.per_second), count, now);
        }
    }
}

impl Quotas for EventQuotas {
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        let now = self.now();
        let mut tenants = self.tenants.lock();
        let Some(per_second) = quota.and_then(|quota| quota.events_per_second) else {
            tenants.remove(&tenant);
            return;
        };
        if tenants.get(&tenant).is_some_and(|limited| limited.per_second == per_second) {
            return;
        }
        let full = TokenBucket::full(Rate::per_second(per_second), now);
        let refused = tenants.get(&tenant).map_or(0, |limited| limited.refused);
        tenants.insert(tenant, Limited { per_second, taken: full, delivered: full, refused });
    }

    fn pressure(&self) -> Vec<QuotaPressure> {
        let now = self.now();
        let tenants = self.tenants.lock();
        let told = tenants.iter().map(|(&tenant, limited)| {
            let rate = Rate::per_second(limited.per_second);
            let used = limited
                .taken
                .used(rate, now)
                .max(limited.delivered.used(rate, now))
                .min(f64::from(rate.burst));
            QuotaPressure::of_tenant(tenant, QuotaResource::Events, limited.per_second, used, limited.refused)
                .with_burst(rate.burst)
        });
        told.collect()
    }
}
