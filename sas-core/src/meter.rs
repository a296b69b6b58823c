//! What instances and requests used: readings, where they go, and how they are read back.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{InstanceId, NoSink, Result, RevisionKey, RevisionName, TenantKey, Timestamp};

/// What an instance's time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MeterPhase {
    /// On its way up.
    Starting,
    /// As a stem, belonging to nobody yet.
    Pooled,
    /// Ready, without a request.
    Idle,
    /// With at least one request.
    Busy,
    /// On its way out.
    Draining,
}

/// Whose use a reading is of.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Metered<'a> {
    /// The revision, while it is registered.
    pub revision: RevisionKey,
    /// The tenant whose the revision is.
    pub tenant: TenantKey,
    /// The name of the revision, by which its use is known after it is gone; `None`: a stem, which belongs to no
    /// revision yet and is the host's own use.
    pub name: Option<&'a RevisionName>,
}

impl<'a> Metered<'a> {
    /// The use of a revision.
    pub const fn of(revision: RevisionKey, tenant: TenantKey, name: &'a RevisionName) -> Self {
        Self { revision, tenant, name: Some(name) }
    }

    /// The use of the host itself: stems that belong to nobody yet.
    pub const fn host(revision: RevisionKey) -> Self {
        Self { revision, tenant: TenantKey::HOST, name: None }
    }
}

/// Requests that instances answered, one or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RequestUsage {
    /// How many.
    pub requests: u64,
    /// Those that waited for the start of an instance.
    pub cold_starts: u64,
    /// Those that brought an event of a trigger.
    pub events: u64,
    /// Those that were copies, whose answers nobody got.
    pub mirrored: u64,
    /// Bytes of their bodies that were passed on to instances.
    pub bytes_in: u64,
    /// Bytes of the answers' bodies that were passed on to clients.
    pub bytes_out: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

impl RequestUsage {
    /// So many requests, of which nothing else is known.
    pub const fn of(requests: u64) -> Self {
        Self { requests, cold_starts: 0, events: 0, mirrored: 0, bytes_in: 0, bytes_out: 0 }
    }
}

/// Use of instances, in nanoseconds by phase, and what was done in it. All are whole numbers, so sums are exact.
///
/// As JSON, times are numbers, and decimal strings from 2^64 on; memory-time is always a decimal string. They may be beyond
/// 2^53: read them with a parser that keeps integers. Signed usage records write all of them as decimal strings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct MeterTotals {
    /// On their way up.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub starting_ns: u128,
    /// As stems.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub pooled_ns: u128,
    /// Ready, without a request.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub idle_ns: u128,
    /// With at least one request.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub busy_ns: u128,
    /// On their way out.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub draining_ns: u128,
    /// Time on a CPU, in nanoseconds, as far as runtimes measure it. Sampled once per tick of the autoscaler: what an
    /// instance used between its last sample and its end is not in it.
    #[serde(serialize_with = "whole", deserialize_with = "number_or_text")]
    pub cpu_ns: u128,
    /// Memory held times how long, in byte-nanoseconds, sampled like [`MeterTotals::cpu_ns`]. Divide by 1024^3 * 10^9 for
    /// GiB-seconds.
    #[serde(serialize_with = "text", deserialize_with = "number_or_text")]
    pub memory_byte_ns: u128,
    /// Requests that an instance answered. Those that the platform refused are not among them, nor are test runs.
    pub requests: u64,
    /// Those of the requests that waited for the start of an instance.
    pub cold_starts: u64,
    /// Those of the requests that brought an event of a trigger.
    pub events: u64,
    /// Those of the requests that were copies of others, whose answers nobody got. Left out where there were none, as in
    /// what was stored and signed before there were any.
    #[serde(skip_serializing_if = "is_none")]
    pub mirrored: u64,
    /// Bytes of the requests' bodies.
    pub bytes_in: u64,
    /// Bytes of the answers' bodies.
    pub bytes_out: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn text<S: Serializer>(amount: &u128, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(amount)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn whole<S: Serializer>(amount: &u128, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    match u64::try_from(*amount) {
        Ok(amount) => serializer.serialize_u64(amount),
        Err(_) => serializer.collect_str(amount),
    }
}

fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<u128, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Amount {
        Number(u64),
        Text(String),
    }
    match Amount::deserialize(deserializer)? {
        Amount::Number(amount) => Ok(amount.into()),
        Amount::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

impl MeterTotals {
    /// All phases together: the lives of the instances, in nanoseconds.
    pub fn life_ns(&self) -> u128 {
        self.starting_ns + self.pooled_ns + self.idle_ns + self.busy_ns + self.draining_ns
    }

    /// Whether nothing was used.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds another total.
    pub fn add_all(&mut self, other: &Self) {
        self.starting_ns += other.starting_ns;
        self.pooled_ns += other.pooled_ns;
        self.idle_ns += other.idle_ns;
        self.busy_ns += other.busy_ns;
        self.draining_ns += other.draining_ns;
        self.cpu_ns += other.cpu_ns;
        self.memory_byte_ns += other.memory_byte_ns;
        self.requests = self.requests.saturating_add(other.requests);
        self.cold_starts = self.cold_starts.saturating_add(other.cold_starts);
        self.events = self.events.saturating_add(other.events);
        self.mirrored = self.mirrored.saturating_add(other.mirrored);
        self.bytes_in = self.bytes_in.saturating_add(other.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(other.bytes_out);
    }

    /// Adds `ns` nanoseconds in `phase`.
    pub fn add(&mut self, phase: MeterPhase, ns: u64) {
        let total = match phase {
            MeterPhase::Starting => &mut self.starting_ns,
            MeterPhase::Pooled => &mut self.pooled_ns,
            MeterPhase::Idle => &mut self.idle_ns,
            MeterPhase::Busy => &mut self.busy_ns,
            MeterPhase::Draining => &mut self.draining_ns,
        };
        *total += u128::from(ns);
    }

    /// Adds requests.
    pub fn add_requests(&mut self, used: &RequestUsage) {
        self.requests = self.requests.saturating_add(used.requests);
        self.cold_starts = self.cold_starts.saturating_add(used.cold_starts);
        self.events = self.events.saturating_add(used.events);
        self.mirrored = self.mirrored.saturating_add(used.mirrored);
        self.bytes_in = self.bytes_in.saturating_add(used.bytes_in);
        self.bytes_out = self.bytes_out.saturating_add(used.bytes_out);
    }
}

/// A full hour of wall time: hours since 1970-01-01T00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hour(pub u64);

impl Hour {
    const SECONDS: i64 = 3_600;

    /// The hour that `at` is in; the first for times before 1970.
    pub const fn of(at: Timestamp) -> Self {
        let hour = at.as_secs().div_euclid(Self::SECONDS);
        Self(if hour < 0 { 0 } else { hour as u64 })
    }

    /// When it begins.
    pub const fn start(self) -> Timestamp {
        Timestamp::from_secs((self.0 as i64).saturating_mul(Self::SECONDS))
    }
}

/// Which use is asked for. Empty: all.
///
/// ```
/// use sas_core::UsageScope;
/// let scope = UsageScope::service("shop", "cart");
/// assert!(scope.contains("shop", "cart", "cart-00001") && !scope.contains("shop", "pay", "pay-00001"));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageScope {
    /// Of this namespace alone.
    pub namespace: Option<String>,
    /// Of this service alone.
    pub service: Option<String>,
    /// Of this revision alone.
    pub revision: Option<String>,
}

impl UsageScope {
    /// All use.
    pub fn all() -> Self {
        Self::default()
    }

    /// The use of a namespace.
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), ..Self::default() }
    }

    /// The use of a service.
    pub fn service(namespace: impl Into<String>, service: impl Into<String>) -> Self {
        Self { namespace: Some(namespace.into()), service: Some(service.into()), revision: None }
    }

    /// The use of a revision.
    pub fn revision(
        namespace: impl Into<String>,
        service: impl Into<String>,
        revision: impl Into<String>,
    ) -> Self {
        Self { revision: Some(revision.into()), ..Self::service(namespace, service) }
    }

    /// Whether the use of this revision is asked for.
    pub fn contains(&self, namespace: &str, service: &str, revision: &str) -> bool {
        let is = |asked: &Option<String>, found: &str| asked.as_deref().is_none_or(|asked| asked == found);
        is(&self.namespace, namespace) && is(&self.service, service) && is(&self.revision, revision)
    }
}

/// What one revision used since it was first deployed, over all restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RevisionUsage {
    /// Its namespace; empty for the host's own stems.
    pub namespace: String,
    /// Its service; empty for the host's own stems.
    pub service: String,
    /// The revision. [`RevisionUsage::RETIRED`] for what revisions used together that are long gone, [`RevisionUsage::STEMS`] for
    /// the host's own stems.
    pub revision: String,
    /// What it used.
    pub totals: MeterTotals,
}

impl RevisionUsage {
    /// In place of a revision: those whose last hour is no longer kept.
    pub const RETIRED: &'static str = "~retired";
    /// In place of a revision: stems, which belong to none yet.
    pub const STEMS: &'static str = "~stems";

    /// What a revision used.
    pub fn new(
        namespace: impl Into<String>,
        service: impl Into<String>,
        revision: impl Into<String>,
        totals: MeterTotals,
    ) -> Self {
        Self { namespace: namespace.into(), service: service.into(), revision: revision.into(), totals }
    }
}

/// What one revision used within one hour.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HourUsage {
    /// The hour. A reading counts for the hour in which it is taken, at most one tick of the autoscaler after the time
    /// that it is of.
    pub hour: Hour,
    /// As in [`RevisionUsage`].
    pub namespace: String,
    /// As in [`RevisionUsage`].
    pub service: String,
    /// As in [`RevisionUsage`].
    pub revision: String,
    /// What it used.
    pub totals: MeterTotals,
}

impl HourUsage {
    /// What a revision used within an hour.
    pub fn new(hour: Hour, usage: RevisionUsage) -> Self {
        let RevisionUsage { namespace, service, revision, totals } = usage;
        Self { hour, namespace, service, revision, totals }
    }
}

/// A time of which readings are missing, since the host died before they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UsageGap {
    /// The last checkpoint: up to here nothing is missing.
    pub from: Timestamp,
    /// When the platform was there again. The host died somewhere in between.
    pub until: Timestamp,
}

impl UsageGap {
    /// Readings between these two times are missing.
    pub const fn new(from: Timestamp, until: Timestamp) -> Self {
        Self { from, until }
    }
}

/// A part of the hourly use, in the order of hours and then of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsagePage {
    /// What was used.
    pub hours: Vec<HourUsage>,
    /// Where the next page begins: give it as `after`. `None`: this was the last.
    pub next: Option<String>,
}

impl UsagePage {
    /// A page.
    pub fn new(hours: Vec<HourUsage>, next: Option<String>) -> Self {
        Self { hours, next }
    }
}

/// Reads back what a [`MeterSink`] added up. The admin API shows usage through it.
#[async_trait]
pub trait UsageQuery: fmt::Debug + Send + Sync + 'static {
    /// What each revision of `scope` used in all, by name; those that used nothing are left out. What was read a moment
    /// ago is in it.
    ///
    /// # Errors
    /// `Unavailable` when the place where readings are kept can't be reached.
    async fn totals(&self, scope: &UsageScope) -> Result<Vec<RevisionUsage>>;

    /// What each revision of `scope` used by hour, from `from` to `until` (not in it), at most `limit` entries after
    /// `after`, which is the `next` of the page before.
    ///
    /// # Errors
    /// As [`UsageQuery::totals`]; `InvalidSpec` for an `after` that is not of this meter.
    async fn hours(
        &self,
        scope: &UsageScope,
        from: Hour,
        until: Hour,
        after: Option<&str>,
        limit: usize,
    ) -> Result<UsagePage>;

    /// The times of which readings are missing, oldest first.
    ///
    /// # Errors
    /// As [`UsageQuery::totals`].
    async fn gaps(&self) -> Result<Vec<UsageGap>>;
}

/// Takes meter readings. The phases of an instance add up to its life exactly, in nanoseconds.
///
/// The pool tells it of instances, the gateway of requests. It is given to the builder's `meter_sink`; `examples/custom_parts.rs`
/// wraps the default one.
///
/// Every method returns at once; what can't be kept up with is added up, never dropped.
pub trait MeterSink: fmt::Debug + Send + Sync + 'static {
    /// `ns` nanoseconds of an instance in `phase`.
    fn phase(&self, of: Metered<'_>, instance: InstanceId, phase: MeterPhase, ns: u64);

    /// An instance of the revision used `cpu_ns` nanoseconds on a CPU, and held memory for `memory_byte_ns`.
    fn resources(&self, of: Metered<'_>, instance: InstanceId, cpu_ns: u64, memory_byte_ns: u128) {
        let _ = (of, instance, cpu_ns, memory_byte_ns);
    }

    /// Instances of the revision answered requests, and the answers are over.
    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        let _ = (of, used);
    }

    /// Reads back what was used; `None` (the default) for a sink that only passes readings on. The admin API then
    /// says so instead of showing nothing used.
    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        None
    }

    /// The key will not be read of again, since the revision is not registered any more. Its use stays known by its name.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

impl MeterSink for NoSink {
    fn phase(&self, _: Metered<'_>, _: InstanceId, _: MeterPhase, _: u64) {}
}

#[deny(clippy::missing_trait_methods)]
impl<T: MeterSink + ?Sized> MeterSink for Arc<T> {
    fn phase(&self, of: Metered<'_>, instance: InstanceId, phase: MeterPhase, ns: u64) {
        (**self).phase(of, instance, phase, ns);
    }

    fn resources(&self, of: Metered<'_>, instance: InstanceId, cpu_ns: u64, memory_byte_ns: u128) {
        (**self).resources(of, instance, cpu_ns, memory_byte_ns);
    }

    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        (**self).requests(of, used);
    }

    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        (**self).usage_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}
