//! Who may come in: quotas per tenant and service, and one budget of bytes for the whole host.
//!
//! The arithmetic (`TokenBucket`) is pure and takes `now`; [`Admission`] holds the states and gives out permits.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Quota, QuotaPressure, QuotaResource, Quotas, TenantKey, TenantQuota, TokenBucket};
use tokio::time::Instant;

/// Why a request was not let in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Refusal {
    /// What is used up: `tenant_rate`, `tenant_concurrency`, `service_rate`, `service_concurrency` (429), or `bytes`
    /// (503).
    pub resource: &'static str,
    /// What may be used: requests per second, requests at once, or bytes.
    pub limit: f64,
    /// What is used: of a rate, those of its burst that time has not made up for.
    pub used: f64,
    /// When to come back.
    pub retry_after: Duration,
}

/// The quotas that [`Admission`] begins with, and its clock and metrics.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdmissionConfig {
    /// For each tenant that has no quota of its own.
    pub per_tenant: Quota,
    /// For each service that has no quota of its own.
    pub per_service: Quota,
    /// Bytes that all requests together may hold in this process: heads, and the part of a body that is buffered
    /// on its way. 1 GiB.
    pub bytes: u64,
}

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self { per_tenant: Quota::UNLIMITED, per_service: Quota::UNLIMITED, bytes: 1 << 30 }
    }
}

#[derive(Debug)]
struct State {
    bucket: TokenBucket,
    running: u32,
    /// By the rate, and by the number at once.
    refused: [u64; 2],
}

/// The states of one kind of keys. A key that uses nothing costs nothing.
#[derive(Debug)]
struct Ledger<K> {
    default: Quota,
    own: HashMap<K, Quota>,
    states: HashMap<K, State>,
    /// When to look for states that say nothing: doubled, so that looking is amortised.
    prune_at: usize,
}

impl<K: Clone + Eq + Hash> Ledger<K> {
    fn new(default: Quota) -> Self {
        Self { default, own: HashMap::new(), states: HashMap::new(), prune_at: 1024 }
    }

    /// Whether the key has a quota at all.
    fn quota<Q: ?Sized + Eq + Hash>(&self, key: &Q) -> Option<Quota>
    where
        K: std::borrow::Borrow<Q>,
    {
        let quota = self.own.get(key).copied().unwrap_or(self.default);
        (quota != Quota::UNLIMITED).then_some(quota)
    }

    /// `Ok(false)`: nothing is counted for this key.
    fn enter<Q: ?Sized + Eq + Hash>(
        &mut self,
        key: &Q,
        owned: impl FnOnce() -> K,
        now: u64,
        names: [&'static str; 2],
    ) -> Result<bool, Refusal>
    where
        K: std::borrow::Borrow<Q>,
    {
        let Some(quota) = self.quota(key) else { return Ok(false) };
        if !self.states.contains_key(key) {
            self.prune(now);
            self.states.insert(
                owned(),
                State { bucket: TokenBucket::full(quota.bucket(), now), running: 0, refused: [0; 2] },
            );
        }
        let state = self.states.get_mut(key).expect("was put in above");
        if state.running >= quota.concurrency {
            state.refused[1] += 1;
            let (limit, used) = (f64::from(quota.concurrency), f64::from(state.running));
            let retry_after = Duration::from_secs(1);
            return Err(Refusal { resource: names[1], limit, used, retry_after });
        }
        let rate = quota.bucket();
        if let Err(retry_after) = state.bucket.take(rate, now) {
            state.refused[0] += 1;
            let used = state.bucket.used(rate, now);
            return Err(Refusal { resource: names[0], limit: quota.rate, used, retry_after });
        }
        state.running += 1;
        Ok(true)
    }

    fn leave<Q: ?Sized + Eq + Hash>(&mut self, key: &Q)
    where
        K: std::borrow::Borrow<Q>,
    {
        if let Some(state) = self.states.get_mut(key) {
            state.running = state.running.saturating_sub(1);
        }
    }

    /// What is used of each limit: resource, limit, used, refused, burst.
    fn pressure(&self, now: u64) -> impl Iterator<Item = (&K, QuotaResource, [f64; 2], u64, u32)> {
        let quota = |key| self.own.get(key).copied().unwrap_or(self.default);
        self.states.iter().flat_map(move |(key, state)| {
            let quota = quota(key);
            let rate = quota.limits_rate().then(|| {
                let used = state.bucket.used(quota.bucket(), now);
                (key, QuotaResource::Rate, [quota.rate, used], state.refused[0], quota.burst)
            });
            let most = quota.concurrency;
            let at_once = (most != u32::MAX).then(|| {
                let limits = [f64::from(most), f64::from(state.running)];
                (key, QuotaResource::Concurrency, limits, state.refused[1], most)
            });
            rate.into_iter().chain(at_once)
        })
    }

    fn prune(&mut self, now: u64) {
        if self.states.len() < self.prune_at {
            return;
        }
        let (own, default) = (&self.own, self.default);
        self.states.retain(|key, state| {
            let quota = own.get(key).copied().unwrap_or(default);
            state.running > 0 || !state.bucket.is_full(quota.bucket(), now)
        });
        self.prune_at = (self.states.len() * 2).max(1024);
    }
}

/// Lets requests in, or says why not. Without any quota a request costs one addition.
#[derive(Debug)]
pub struct Admission {
    tenants: Mutex<Ledger<TenantKey>>,
    services: Mutex<Ledger<Arc<str>>>,
    /// Whether there is any quota to look for.
    limits: std::sync::atomic::AtomicBool,
    bytes: AtomicU64,
    most_bytes: u64,
    /// Buckets count from here.
    began: Instant,
}

impl Admission {
    /// An admission that begins with the quotas of `config`.
    pub fn new(config: AdmissionConfig) -> Arc<Self> {
        let limits = config.per_tenant != Quota::UNLIMITED || config.per_service != Quota::UNLIMITED;
        Arc::new(Self {
            tenants: Mutex::new(Ledger::new(config.per_tenant)),
            services: Mutex::new(Ledger::new(config.per_service)),
            limits: limits.into(),
            bytes: AtomicU64::new(0),
            most_bytes: config.bytes,
            began: Instant::now(),
        })
    }

    fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX)
    }

    /// Bytes that are held now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Lets a request of `bytes` in.
    ///
    /// # Errors
    /// What is used up, and when to come back.
    pub fn admit(
        self: &Arc<Self>,
        tenant: TenantKey,
        service: &str,
        bytes: u64,
        now: Instant,
    ) -> Result<Permit, Refusal> {
        let held = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut permit = Permit { of: Arc::clone(self), bytes, tenant: None, service: None };
        if held > self.most_bytes {
            let (limit, used) = (self.most_bytes as f64, (held - bytes) as f64);
            return Err(Refusal { resource: "bytes", limit, used, retry_after: Duration::from_secs(1) });
        }
        if !self.limits.load(Ordering::Relaxed) {
            return Ok(permit);
        }
        let now = self.nanos(now);
        let names = ["tenant_rate", "tenant_concurrency"];
        if self.tenants.lock().enter(&tenant, || tenant, now, names)? {
            permit.tenant = Some(tenant);
        }
        let names = ["service_rate", "service_concurrency"];
        let mut services = self.services.lock();
        if services.quota(service).is_some() {
            let key: Arc<str> = services
                .states
                .get_key_value(service)
                .map_or_else(|| service.into(), |(key, _)| Arc::clone(key));
            services.enter(service, || Arc::clone(&key), now, names)?;
            permit.service = Some(key);
        }
        drop(services);
        Ok(permit)
    }
}

impl Quotas for Admission {
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        let mut ledger = self.tenants.lock();
        let limited = match quota {
            Some(quota) => ledger.own.insert(tenant, quota.requests()).is_some() || limits(&quota),
            None => ledger.own.remove(&tenant).is_some(),
        };
        if limited {
            self.limits.store(true, Ordering::Relaxed);
        }
    }

    fn set_service(&self, service: &str, quota: Option<Quota>) {
        let mut ledger = self.services.lock();
        match quota {
            Some(quota) => ledger.own.insert(Arc::from(service), quota),
            None => ledger.own.remove(service),
        };
        self.limits.store(true, Ordering::Relaxed);
    }

    fn pressure(&self) -> Vec<QuotaPressure> {
        let now = self.nanos(Instant::now());
        let mut all: Vec<QuotaPressure> = {
            let tenants = self.tenants.lock();
            let of = tenants.pressure(now).map(|(tenant, resource, [limit, used], refused, burst)| {
                QuotaPressure::of_tenant(*tenant, resource, limit, used, refused).with_burst(burst)
            });
            of.collect()
        };
        let services = self.services.lock();
        all.extend(services.pressure(now).map(|(service, resource, [limit, used], refused, burst)| {
            QuotaPressure::of_service(&**service, resource, limit, used, refused).with_burst(burst)
        }));
        all
    }
}

/// Whether it says anything about requests.
fn limits(quota: &TenantQuota) -> bool {
    quota.requests() != Quota::UNLIMITED
}

/// A request that is let in; dropping it lets the next one in.
#[derive(Debug)]
pub struct Permit {
    of: Arc<Admission>,
    bytes: u64,
    tenant: Option<TenantKey>,
    service: Option<Arc<str>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.of.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        if let Some(tenant) = self.tenant {
            self.of.tenants.lock().leave(&tenant);
        }
        if let Some(service) = &self.service {
            self.of.services.lock().leave(&**service);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admission(per_tenant: Quota, per_service: Quota) -> Arc<Admission> {
        Admission::new(AdmissionConfig { per_tenant, per_service, bytes: 1_000 })
    }

    fn admit(admission: &Arc<Admission>, tenant: u32, now: Instant) -> Result<Permit, &'static str> {
        admission.admit(TenantKey(tenant), "default/hello", 10, now).map_err(|refusal| refusal.resource)
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_over_its_rate_waits_and_others_do_not() {
        let admission = admission(Quota::rate(10.0, 2), Quota::UNLIMITED);
        let now = Instant::now();
        assert!(admit(&admission, 1, now).is_ok() && admit(&admission, 1, now).is_ok());
        let refusal = admission.admit(TenantKey(1), "default/hello", 10, now).unwrap_err();
        assert_eq!((refusal.resource, refusal.retry_after), ("tenant_rate", Duration::from_millis(100)));
        assert_eq!((refusal.limit, refusal.used), (10.0, 2.0));
        let pressure = admission.pressure();
        let told = pressure.iter().find(|told| told.tenant == Some(TenantKey(1))).unwrap();
        assert_eq!((told.resource, told.most, told.used, told.refused), (QuotaResource::Rate, 2.0, 2.0, 1));
        assert!(admit(&admission, 2, now).is_ok());
        assert!(admit(&admission, 1, now + Duration::from_millis(100)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn concurrency_comes_back_with_the_permit() {
        let admission = admission(Quota::UNLIMITED, Quota::UNLIMITED.with_concurrency(1));
        let now = Instant::now();
        let permit = admit(&admission, 1, now).unwrap();
        assert_eq!(admit(&admission, 1, now).unwrap_err(), "service_concurrency");
        drop(permit);
        assert!(admit(&admission, 1, now).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_keeps_no_slot() {
        let admission = admission(Quota::UNLIMITED.with_concurrency(1), Quota::UNLIMITED);
        admission.set_service("default/hello", Some(Quota::rate(1.0, 1)));
        let now = Instant::now();
        drop(admit(&admission, 1, now).unwrap());
        // The service says no after the tenant has said yes.
        assert_eq!(admit(&admission, 1, now).unwrap_err(), "service_rate");
        assert_eq!(admission.bytes(), 0);
        assert!(admit(&admission, 1, now + Duration::from_secs(1)).is_ok(), "the tenant's slot came back");
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_one_budget_for_all() {
        let admission = admission(Quota::UNLIMITED, Quota::UNLIMITED);
        let now = Instant::now();
        let first = admission.admit(TenantKey(1), "a/a", 600, now).unwrap();
        assert_eq!(admission.bytes(), 600);
        drop(admission.admit(TenantKey(1), "a/a", 400, now).expect("it fits exactly"));
        assert_eq!(admission.admit(TenantKey(2), "b/b", 600, now).unwrap_err().resource, "bytes");
        drop(first);
        assert!(admission.admit(TenantKey(2), "b/b", 600, now).is_ok());
        assert_eq!(admission.bytes(), 0);
        assert_eq!(admission.admit(TenantKey(2), "b/b", 1_001, now).unwrap_err().resource, "bytes");
        assert_eq!(admission.bytes(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_quota_can_be_lifted() {
        let admission = admission(Quota::rate(0.0, 1), Quota::UNLIMITED);
        let now = Instant::now();
        drop(admit(&admission, 1, now));
        assert!(admit(&admission, 1, now).is_err());
        admission.set_tenant(TenantKey(1), Some(TenantQuota::default()));
        assert!(admit(&admission, 1, now).is_ok());
        admission.set_tenant(TenantKey(1), None);
        assert!(admit(&admission, 1, now + Duration::from_secs(3_600)).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_are_gone_are_forgotten() {
        let admission = admission(Quota::rate(100.0, 1), Quota::UNLIMITED);
        let mut now = Instant::now();
        for tenant in 0..20_000 {
            now += Duration::from_millis(1);
            drop(admit(&admission, tenant, now));
        }
        assert!(admission.tenants.lock().states.len() < 3_000);
    }
}
