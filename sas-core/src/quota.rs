//! What a tenant or a service may use, and who holds them to it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Retry, SpecErrors, TenantKey};

/// How many requests a tenant or a service may make.
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

    /// Its rate and burst.
    pub const fn bucket(&self) -> Rate {
        Rate { per_second: self.rate, burst: self.burst }
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

/// What a tenant may use: of the data plane, of instances, of the control plane's storage, of events. `None`: no limit.
///
/// Written as JSON with the names of the fields in camel case, such as `{"instances":10,"coldStartsPerSecond":2}`; a
/// field that is left out, or `null`, is no limit.
///
/// ```
/// use sas_core::{Quota, TenantQuota};
/// let quota = TenantQuota::from(Quota::rate(100.0, 200)).with_instances(10).with_memory_bytes(2 << 30);
/// assert_eq!(quota.requests(), Quota::rate(100.0, 200));
/// quota.validate()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[non_exhaustive]
pub struct TenantQuota {
    /// Requests per second to all of its services, in the long run.
    #[cfg_attr(feature = "schema", schema(minimum = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// Requests that may come at once when it was quiet before; at least 1. Means nothing without `rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
    /// Requests at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Instances at once: starting, ready and draining.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
    /// Bytes of memory that its instances count with, as in the pool's budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core that its instances count with: their CPU request, else their limit, else what the pool
    /// takes an instance for that says neither.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Starts of instances per second. A second's worth, and one at least, may come at once.
    #[cfg_attr(feature = "schema", schema(minimum = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_starts_per_second: Option<f64>,
    /// Bytes that its requests hold while they wait for an instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_bytes: Option<u64>,
    /// Bytes of the packages of its revisions, each package counted once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    /// Events per second that its brokers and webhooks take in, and as many that its triggers deliver. A second's worth,
    /// and one at least, may come at once.
    #[cfg_attr(feature = "schema", schema(minimum = 0.0))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<f64>,
}

impl From<Quota> for TenantQuota {
    fn from(quota: Quota) -> Self {
        Self {
            rate: quota.limits_rate().then_some(quota.rate),
            burst: (quota.burst != u32::MAX).then_some(quota.burst),
            concurrency: (quota.concurrency != u32::MAX).then_some(quota.concurrency),
            ..Self::default()
        }
    }
}

impl TenantQuota {
    /// What it says of requests.
    pub fn requests(&self) -> Quota {
        Quota {
            rate: self.rate.unwrap_or(f64::INFINITY),
            burst: self.burst.unwrap_or(u32::MAX),
            concurrency: self.concurrency.unwrap_or(u32::MAX),
        }
    }

    /// With at most so many instances at once.
    #[must_use]
    pub const fn with_instances(mut self, instances: u32) -> Self {
        self.instances = Some(instances);
        self
    }

    /// With at most so many bytes of memory for all instances.
    #[must_use]
    pub const fn with_memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// With at most so many thousandths of a core for all instances.
    #[must_use]
    pub const fn with_cpu_millis(mut self, millis: u64) -> Self {
        self.cpu_millis = Some(millis);
        self
    }

    /// With at most so many starts of instances per second.
    #[must_use]
    pub const fn with_cold_starts_per_second(mut self, starts: f64) -> Self {
        self.cold_starts_per_second = Some(starts);
        self
    }

    /// With at most so many bytes of requests that wait for an instance.
    #[must_use]
    pub const fn with_queue_bytes(mut self, bytes: u64) -> Self {
        self.queue_bytes = Some(bytes);
        self
    }

    /// With at most so many bytes of packages.
    #[must_use]
    pub const fn with_storage_bytes(mut self, bytes: u64) -> Self {
        self.storage_bytes = Some(bytes);
        self
    }

    /// With at most so many events per second.
    #[must_use]
    pub const fn with_events_per_second(mut self, events: f64) -> Self {
        self.events_per_second = Some(events);
        self
    }

    /// Every limit that it sets: what of, and how much.
    pub fn limits(&self) -> impl Iterator<Item = (QuotaResource, f64)> + use<> {
        let this = *self;
        QuotaResource::ALL.into_iter().filter_map(move |resource| Some((resource, this.limit(resource)?)))
    }

    /// The limit of a resource; `None`: none.
    pub fn limit(&self, resource: QuotaResource) -> Option<f64> {
        match resource {
            QuotaResource::Rate => self.rate,
            QuotaResource::Concurrency => self.concurrency.map(f64::from),
            QuotaResource::Instances => self.instances.map(f64::from),
            QuotaResource::Memory => self.memory_bytes.map(|bytes| bytes as f64),
            QuotaResource::Cpu => self.cpu_millis.map(|millis| millis as f64),
            QuotaResource::ColdStarts => self.cold_starts_per_second,
            QuotaResource::QueueBytes => self.queue_bytes.map(|bytes| bytes as f64),
            QuotaResource::Storage => self.storage_bytes.map(|bytes| bytes as f64),
            QuotaResource::Events => self.events_per_second,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        for (field, rate, of) in [
            ("rate", self.rate, "requests"),
            ("coldStartsPerSecond", self.cold_starts_per_second, "starts"),
            ("eventsPerSecond", self.events_per_second, "events"),
        ] {
            if let Some(rate) = rate.filter(|rate| rate.is_nan() || *rate < 0.0) {
                errors.push(
                    field,
                    rate,
                    format!("must be {of} per second, 0 or more; leave it out for no limit"),
                );
            }
        }
        match (self.burst, self.rate) {
            (Some(0), _) => errors.push("burst", 0, "must be at least 1; a rate of 0 lets nothing in"),
            (Some(burst), None) => errors.push("burst", burst, "means nothing without rate: give that too"),
            _ => {}
        }
        errors.into_result()
    }
}

/// What a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum QuotaResource {
    /// Requests per second.
    Rate,
    /// Requests at once.
    Concurrency,
    /// Instances at once.
    Instances,
    /// Bytes of memory that instances count with.
    Memory,
    /// Thousandths of a core that instances count with.
    Cpu,
    /// Starts of instances per second.
    ColdStarts,
    /// Bytes of requests that wait for an instance.
    QueueBytes,
    /// Bytes of packages.
    Storage,
    /// Events per second.
    Events,
}

impl QuotaResource {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Rate,
        Self::Concurrency,
        Self::Instances,
        Self::Memory,
        Self::Cpu,
        Self::ColdStarts,
        Self::QueueBytes,
        Self::Storage,
        Self::Events,
    ];

    /// Its name, in snake case: the label of metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Instances => "instances",
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::ColdStarts => "cold_starts",
            Self::QueueBytes => "queue_bytes",
            Self::Storage => "storage",
            Self::Events => "events",
        }
    }

    /// The reason that a refused client is told: `tenant_` and its name.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Rate => "tenant_rate",
            Self::Concurrency => "tenant_concurrency",
            Self::Instances => "tenant_instances",
            Self::Memory => "tenant_memory",
            Self::Cpu => "tenant_cpu",
            Self::ColdStarts => "tenant_cold_starts",
            Self::QueueBytes => "tenant_queue_bytes",
            Self::Storage => "tenant_storage",
            Self::Events => "tenant_events",
        }
    }

    /// Its field in [`TenantQuota`], as it is written.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Rate => "rate",
            Self::Concurrency => "concurrency",
            Self::Instances => "instances",
            Self::Memory => "memoryBytes",
            Self::Cpu => "cpuMillis",
            Self::ColdStarts => "coldStartsPerSecond",
            Self::QueueBytes => "queueBytes",
            Self::Storage => "storageBytes",
            Self::Events => "eventsPerSecond",
        }
    }

    /// Whether it is held and given back; what is not is a rate.
    pub const fn is_held(self) -> bool {
        !matches!(self, Self::Rate | Self::ColdStarts | Self::Events)
    }

    /// What of it is counted, in words.
    pub const fn counted(self) -> &'static str {
        match self {
            Self::Rate => "requests per second",
            Self::Concurrency => "requests at once",
            Self::Instances => "instances",
            Self::Memory => "bytes of memory of instances",
            Self::Cpu => "thousandths of a core of instances",
            Self::ColdStarts => "starts of instances per second",
            Self::QueueBytes => "bytes of waiting requests",
            Self::Storage => "bytes of packages",
            Self::Events => "events per second",
        }
    }
}

/// A quota of a tenant would be exceeded: which, how much it allows, how much of it is used, and how much more was asked
/// for.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuotaExceeded {
    /// What is used up.
    pub resource: QuotaResource,
    /// What may be used, in the unit of the field of [`TenantQuota`].
    pub limit: f64,
    /// What is used. Of a rate: those of the last burst that time has not made up for.
    pub used: f64,
    /// What was asked for beyond that.
    pub asked: f64,
    /// When to come back.
    pub retry_after: Duration,
}

impl QuotaExceeded {
    /// An excess that is told to come back in a second.
    pub const fn new(resource: QuotaResource, limit: f64, used: f64, asked: f64) -> Self {
        Self { resource, limit, used, asked, retry_after: Duration::from_secs(1) }
    }

    /// With another time to come back.
    #[must_use]
    pub const fn after(mut self, retry_after: Duration) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// The quota that is used up, where an error is about one.
    pub fn of(error: &Error) -> Option<&Self> {
        error.source.as_deref()?.downcast_ref()
    }

    /// As the error of an operation: `Exhausted`, to be tried again after a while.
    pub fn into_error(self, operation: &'static str) -> Error {
        Error::new(ErrorKind::Exhausted, operation, self.to_string())
            .with_retry(Retry::After(self.retry_after))
            .with_source(self)
    }
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { resource, limit, used, asked, .. } = self;
        let (field, counted) = (resource.field(), resource.counted());
        write!(
            f,
            "the tenant's quota {field} is used up: {used:.0} of {limit} {counted} are used, and {asked} more were \
             asked for"
        )
    }
}

impl std::error::Error for QuotaExceeded {}

/// A rate with a burst.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// How many come per second in the long run; `f64::INFINITY`: no limit.
    pub per_second: f64,
    /// How many may come at once; 0 counts as 1.
    pub burst: u32,
}

impl Rate {
    /// So many per second, of which a second's worth may come at once, and one at least.
    pub fn per_second(per_second: f64) -> Self {
        Self { per_second, burst: per_second.ceil().max(1.0) as u32 }
    }

    fn most(self) -> f64 {
        f64::from(self.burst.max(1))
    }

    fn is_limited(self) -> bool {
        self.per_second < f64::INFINITY
    }
}

/// What is still to be had of a [`Rate`]. Pure: what was taken, the rate and `now` decide, where `now` is in nanoseconds
/// since any beginning that its owner keeps to.
///
/// Public because three crates hold limits by it, and must agree on when a wait is over: the data plane requests, the pool
/// cold starts, triggers events. A host that limits something of its own may, too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenBucket {
    tokens: f64,
    at: u64,
}

impl TokenBucket {
    /// No wait is told that is longer.
    const LONGEST: f64 = 86_400.0;

    /// A bucket of somebody who was quiet before.
    pub fn full(rate: Rate, now: u64) -> Self {
        Self { tokens: rate.most(), at: now }
    }

    /// What is there at `now`.
    fn tokens(&self, rate: Rate, now: u64) -> f64 {
        let passed = now.saturating_sub(self.at) as f64 / 1e9;
        (self.tokens + passed * rate.per_second.max(0.0)).min(rate.most())
    }

    /// How long to wait until there is one; nothing when there is.
    pub fn wait(&self, rate: Rate, now: u64) -> Duration {
        let tokens = self.tokens(rate, now);
        // What rounding took off a whole token is given back.
        if !rate.is_limited() || tokens >= 1.0 - 1e-9 {
            return Duration::ZERO;
        }
        let wait = (1.0 - tokens) / rate.per_second.max(0.0);
        Duration::from_secs_f64(if wait.is_finite() { wait.min(Self::LONGEST) } else { Self::LONGEST })
    }

    /// Takes so many, whether they are there or not: what is missing has to come in before the next.
    pub fn debit(&mut self, rate: Rate, count: u32, now: u64) {
        if rate.is_limited() {
            self.tokens = self.tokens(rate, now) - f64::from(count);
            // Time that goes backwards earns nothing, and is not earned twice.
            self.at = self.at.max(now);
        }
    }

    /// Takes one.
    ///
    /// # Errors
    /// How long to wait until there is one.
    pub fn take(&mut self, rate: Rate, now: u64) -> Result<(), Duration> {
        let wait = self.wait(rate, now);
        if !wait.is_zero() {
            return Err(wait);
        }
        self.debit(rate, 1, now);
        self.tokens = self.tokens.max(0.0);
        Ok(())
    }

    /// How many of the burst are taken at `now`.
    pub fn used(&self, rate: Rate, now: u64) -> f64 {
        rate.most() - self.tokens(rate, now)
    }

    /// Whether it says nothing any more.
    pub fn is_full(&self, rate: Rate, now: u64) -> bool {
        !rate.is_limited() || self.tokens(rate, now) >= rate.most()
    }
}

/// Holds tenants and services to quotas, each part of the platform to what it can: the data plane's admission to requests,
/// a pool to instances, memory, CPU, starts and queues, the triggers to events. The control plane tells them what the
/// quotas are.
///
/// # Contract
/// A quota holds from the next request, start or event on. Requests that are in are not sent away, instances that run are
/// not stopped. Setting one twice is setting it once: what was used counts on.
pub trait Quotas: fmt::Debug + Send + Sync + 'static {
    /// Gives a tenant a quota; `None`: back to the one that all have, or to none.
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>);

    /// Gives a service (`namespace/service`) a quota of its own; `None`: back to the one that all have. Only a data plane
    /// knows services.
    fn set_service(&self, service: &str, quota: Option<Quota>) {
        let _ = (service, quota);
    }

    /// What is used of each quota that somebody uses now or used up of late; empty where it is not told.
    fn pressure(&self) -> Vec<QuotaPressure> {
        Vec::new()
    }
}

/// One limit of a quota, and what is used of it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct QuotaPressure {
    /// The tenant whose it is; `None`: a service's.
    pub tenant: Option<TenantKey>,
    /// The service (`namespace/service`) whose it is; `None`: a tenant's.
    pub service: Option<String>,
    /// What is limited.
    pub resource: QuotaResource,
    /// What may be used, in the unit of the resource.
    pub limit: f64,
    /// What is used now. Of a rate: those of the burst that time has not made up for.
    pub used: f64,
    /// What there is to use up at once: the limit, or the burst of a rate.
    pub most: f64,
    /// How often something was refused for it, since somebody began to use it.
    pub refused: u64,
}

impl QuotaPressure {
    /// A limit of a tenant.
    pub const fn of_tenant(
        tenant: TenantKey,
        resource: QuotaResource,
        limit: f64,
        used: f64,
        refused: u64,
    ) -> Self {
        Self { tenant: Some(tenant), service: None, resource, limit, used, most: limit, refused }
    }

    /// A limit of a service.
    pub fn of_service(
        service: impl Into<String>,
        resource: QuotaResource,
        limit: f64,
        used: f64,
        refused: u64,
    ) -> Self {
        Self { tenant: None, service: Some(service.into()), resource, limit, used, most: limit, refused }
    }

    /// With the burst of a rate.
    #[must_use]
    pub fn with_burst(mut self, burst: u32) -> Self {
        self.most = f64::from(burst.max(1));
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    #[test]
    fn a_tenants_quota_reads_what_was_stored_before_it_knew_more_than_requests() {
        for quota in [Quota::UNLIMITED, Quota::rate(2.5, 4), Quota::UNLIMITED.with_concurrency(3)] {
            let text = serde_json::to_string(&quota).unwrap();
            let read: TenantQuota = serde_json::from_str(&text).unwrap();
            assert_eq!((read, read.requests()), (TenantQuota::from(quota), quota));
            assert_eq!(serde_json::to_string(&read).unwrap(), text);
        }
        let all = r#"{"rate":1.0,"burst":2,"concurrency":3,"instances":4,"memoryBytes":5,"cpuMillis":6,"coldStartsPerSecond":7.0,"queueBytes":8,"storageBytes":9,"eventsPerSecond":10.0}"#;
        let read: TenantQuota = serde_json::from_str(all).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), all);
        let named: serde_json::Value = serde_json::from_str(all).unwrap();
        for (resource, limit) in read.limits() {
            assert_eq!(named[resource.field()].as_f64(), Some(limit), "{resource:?}");
        }
        assert_eq!(read.limits().count(), QuotaResource::ALL.len());
        assert!(serde_json::from_str::<TenantQuota>(r#"{"instance":1}"#).is_err());
    }

    #[test]
    fn what_a_tenants_quota_can_not_mean_is_named_with_its_field() {
        let bad = r#"{"rate":-1,"burst":0,"coldStartsPerSecond":-2,"eventsPerSecond":-3}"#;
        let read: TenantQuota = serde_json::from_str(bad).unwrap();
        let fields: Vec<String> = read.validate().unwrap_err().0.into_iter().map(|e| e.field).collect();
        assert_eq!(fields, ["rate", "coldStartsPerSecond", "eventsPerSecond", "burst"]);
        let alone: TenantQuota = serde_json::from_str(r#"{"burst":3}"#).unwrap();
        assert!(alone.validate().is_err());
        assert!(TenantQuota::default().with_instances(0).validate().is_ok(), "nothing may start");
    }

    #[test]
    fn an_excess_says_what_how_much_and_when() {
        let excess = QuotaExceeded::new(QuotaResource::Instances, 3.0, 3.0, 1.0);
        let text = excess.to_string();
        assert_eq!(
            text,
            "the tenant's quota instances is used up: 3 of 3 instances are used, and 1 more were asked for"
        );
        let error = excess.after(Duration::from_secs(7)).into_error("start");
        assert_eq!((error.kind, error.retry), (ErrorKind::Exhausted, Retry::After(Duration::from_secs(7))));
    }

    #[test]
    fn a_bucket_tells_exactly_when_the_next_token_is_there() {
        let rate = Rate { per_second: 10.0, burst: 1 };
        let mut bucket = TokenBucket::full(rate, 0);
        assert_eq!(bucket.take(rate, 0), Ok(()));
        let half = 50_000_000;
        let wait = bucket.take(rate, half).unwrap_err();
        assert!((wait.as_secs_f64() - 0.05).abs() < 1e-9, "{wait:?}");
        assert!(!bucket.is_full(rate, half) && bucket.is_full(rate, half + 51_000_000));
        bucket.debit(rate, 3, half);
        assert!(bucket.wait(rate, half) > Duration::from_millis(340), "what was owed comes first");
        assert_eq!(Rate::per_second(0.2), Rate { per_second: 0.2, burst: 1 });
        assert_eq!(Rate::per_second(2.5).burst, 3);
    }

    proptest! {
        /// In any stretch no more come in than the burst and what the rate brings.
        #[test]
        fn no_stretch_of_time_holds_more_than_the_quota(
            rate in 0.5_f64..500.0, burst in 1_u32..20, gaps in prop::collection::vec(0_u64..200, 1..200),
        ) {
            let rate = Rate { per_second: rate, burst };
            let start = 5_000_000_000;
            let mut bucket = TokenBucket::full(rate, start);
            let (mut now, mut admitted) = (start, Vec::new());
            for gap in gaps {
                now += gap * 1_000_000;
                match bucket.take(rate, now) {
                    Ok(()) => admitted.push(now),
                    Err(wait) => {
                        let mut later = bucket;
                        prop_assert!(later.take(rate, now + wait.as_nanos() as u64 + 1).is_ok());
                    }
                }
            }
            for (at, from) in admitted.iter().enumerate() {
                for (count, to) in admitted[at..].iter().enumerate() {
                    let stretch = (to - from) as f64 / 1e9;
                    let most = f64::from(burst) + stretch * rate.per_second + 1e-6;
                    prop_assert!((count + 1) as f64 <= most, "{} in {stretch} s", count + 1);
                }
            }
        }
    }
}
