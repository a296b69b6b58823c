//! Where logs, decisions, meter readings and secrets go or come from.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Decision, InstanceId, Load, NamedValues, RequestId, RevisionKey, TenantKey, Timestamp};

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The platform's own word about the instance.
    Platform,
}

/// One line that an instance wrote, or that the platform wrote about it.
///
/// Runtimes make one by [`LogRecord::new`] and hand it to [`LogSink::line`], which copies what it keeps: the text
/// belongs to a buffer of the runtime's.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LogRecord<'a> {
    /// The instance that wrote it.
    pub instance: InstanceId,
    /// The revision of that instance.
    pub revision: RevisionKey,
    /// The request that it is about, where the runtime can tell.
    pub request: Option<RequestId>,
    /// When the runtime read it.
    pub at: Timestamp,
    /// The stream that it came from.
    pub stream: LogStream,
    /// The bytes of the line without its end; not always UTF-8.
    pub line: &'a [u8],
}

impl<'a> LogRecord<'a> {
    /// A line that is about no request in particular.
    pub const fn new(
        instance: InstanceId,
        revision: RevisionKey,
        at: Timestamp,
        stream: LogStream,
        line: &'a [u8],
    ) -> Self {
        Self { instance, revision, request: None, at, stream, line }
    }

    /// The same line, about `request`.
    #[must_use]
    pub fn with_request(mut self, request: impl Into<Option<RequestId>>) -> Self {
        self.request = request.into();
        self
    }
}

/// A line as it was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogLine {
    /// Counts the lines of the platform, so that a reader can go on where it was.
    pub sequence: u64,
    /// When it was written.
    pub at: Timestamp,
    /// The instance that wrote the line.
    #[serde(serialize_with = "as_text")]
    pub instance: InstanceId,
    /// For which request, where that is known.
    pub request: Option<RequestId>,
    /// Where it was written to.
    pub stream: LogStream,
    /// The line; bytes that are not UTF-8 are replaced.
    pub line: String,
}

impl LogLine {
    /// The `sequence`-th line of the platform, written to `stream` by `instance`, for no known request.
    pub fn new(sequence: u64, at: Timestamp, instance: InstanceId, stream: LogStream, line: String) -> Self {
        Self { sequence, at, instance, request: None, stream, line }
    }

    /// The same, written for a request.
    #[must_use]
    pub fn for_request(mut self, request: Option<RequestId>) -> Self {
        self.request = request;
        self
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks for this signature")]
fn as_text<S: serde::Serializer>(instance: &InstanceId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(instance)
}

/// Lines that were read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogPage {
    /// The lines, the oldest first.
    pub lines: Vec<LogLine>,
    /// Lines of the revisions asked for that are no longer kept.
    pub dropped: u64,
}

impl LogPage {
    /// These lines, after `dropped` that are gone.
    pub fn new(lines: Vec<LogLine>, dropped: u64) -> Self {
        Self { lines, dropped }
    }
}

/// Reads back what a [`LogSink`] took. The admin API shows logs through it.
#[async_trait]
pub trait LogQuery: fmt::Debug + Send + Sync + 'static {
    /// The last `most` lines of these revisions together that have a sequence above `after`, oldest first.
    ///
    /// # Errors
    /// `Unavailable` when the place where lines are kept can't be reached.
    async fn lines(&self, revisions: &[RevisionKey], most: usize, after: u64) -> crate::Result<LogPage>;
}

/// Takes the lines that instances write.
pub trait LogSink: fmt::Debug + Send + Sync + 'static {
    /// One line, without its end; longer ones were cut by the runtime. Returns at once: a sink that can't keep up
    /// drops and counts.
    fn line(&self, record: &LogRecord<'_>);

    /// Reads back what was written; `None` (the default) for a sink that only passes lines on. The admin API then
    /// says so instead of showing no lines.
    fn log_query(&self) -> Option<&dyn LogQuery> {
        None
    }

    /// No instance of the revision will write again, and nobody will ask for its lines: what is kept of it may go.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

/// A decision and all that it was made from: enough to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// Counts the decisions of a revision from 1.
    pub sequence: u64,
    /// The time at which was decided.
    pub at: Timestamp,
    /// How long `load` was measured.
    #[serde(default = "one_second")]
    pub elapsed: Duration,
    /// The load that was measured and decided by.
    pub load: Load,
    /// What the host measured by name.
    #[serde(default, skip_serializing_if = "NamedValues::is_empty")]
    pub named: NamedValues,
    /// The decision before it.
    pub previous: Option<u32>,
    /// What was decided, and why.
    pub decision: Decision,
}

fn one_second() -> Duration {
    Duration::from_secs(1)
}

impl DecisionRecord {
    /// A record of a load that was measured over one second.
    pub fn new(sequence: u64, at: Timestamp, load: Load, previous: Option<u32>, decision: Decision) -> Self {
        Self { sequence, at, elapsed: one_second(), load, named: NamedValues::NONE, previous, decision }
    }
}

/// Takes every decision that changes a revision's instances; the driver and the pool call it, hosts may implement it.
pub trait DecisionSink: fmt::Debug + Send + Sync + 'static {
    /// One decision. Returns at once.
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord);

    /// Reads back what was decided; `None` (the default) for a sink that only passes decisions on. The admin API then
    /// says so instead of showing none.
    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        None
    }

    /// Nobody will ask for the decisions of the revision any more: what is kept of it may go.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

/// Reads back what a [`DecisionSink`] took. The admin API shows decisions through it.
#[async_trait]
pub trait DecisionQuery: fmt::Debug + Send + Sync + 'static {
    /// The last `most` decisions of a revision, oldest first.
    ///
    /// # Errors
    /// `Unavailable` when the place where decisions are kept can't be reached.
    async fn last_decisions(&self, revision: RevisionKey, most: usize) -> crate::Result<Vec<DecisionRecord>>;
}

/// What an instance's second was spent on.
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

/// Use of instances, in nanoseconds per phase, and requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MeterTotals {
    /// On their way up.
    pub starting_ns: u128,
    /// Nanoseconds that instances existed as stems.
    pub pooled_ns: u128,
    /// Ready, without a request.
    pub idle_ns: u128,
    /// With at least one request.
    pub busy_ns: u128,
    /// On their way out.
    pub draining_ns: u128,
    /// How many requests were answered.
    pub requests: u64,
}

impl MeterTotals {
    /// All phases together: the lives of the instances, in nanoseconds.
    pub fn life_ns(&self) -> u128 {
        self.starting_ns + self.pooled_ns + self.idle_ns + self.busy_ns + self.draining_ns
    }

    /// Adds the figures of another total to these.
    pub fn add_all(&mut self, other: &Self) {
        self.starting_ns += other.starting_ns;
        self.pooled_ns += other.pooled_ns;
        self.idle_ns += other.idle_ns;
        self.busy_ns += other.busy_ns;
        self.draining_ns += other.draining_ns;
        self.requests = self.requests.saturating_add(other.requests);
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
}

/// Reads back what a [`MeterSink`] added up. The admin API shows usage through it.
#[async_trait]
pub trait UsageQuery: fmt::Debug + Send + Sync + 'static {
    /// What a revision used since it was registered; zero for one that used nothing.
    ///
    /// # Errors
    /// `Unavailable` when the place where readings are kept can't be reached.
    async fn revision_usage(&self, revision: RevisionKey) -> crate::Result<MeterTotals>;

    /// What each tenant used that used anything.
    ///
    /// # Errors
    /// As [`UsageQuery::revision_usage`].
    async fn tenant_usage(&self) -> crate::Result<BTreeMap<TenantKey, MeterTotals>>;
}

/// Takes meter readings. The phases of an instance add up to its life exactly, in nanoseconds.
pub trait MeterSink: fmt::Debug + Send + Sync + 'static {
    /// `ns` nanoseconds of an instance in `phase`.
    fn phase(
        &self,
        instance: InstanceId,
        revision: RevisionKey,
        tenant: TenantKey,
        phase: MeterPhase,
        ns: u64,
    );
    /// `count` requests answered by the revision.
    fn requests(&self, revision: RevisionKey, tenant: TenantKey, count: u64) {
        let _ = (revision, tenant, count);
    }

    /// Reads back what was used; `None` (the default) for a sink that only passes readings on. The admin API then
    /// says so instead of showing nothing used.
    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        None
    }

    /// Nobody will ask for the revision's usage any more: what is kept of it may go. Its tenant's stays.
    fn forget(&self, revision: RevisionKey) {
        let _ = revision;
    }
}

/// Resolves the references that specs hold instead of secrets.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The value behind `reference` for `tenant`.
    ///
    /// # Errors
    /// `NotFound` when there is none that this tenant may have. The error never holds a secret.
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> crate::Result<Bytes>;

    /// All keys of a secret or a configuration map with their values: `secret/name` or `configmap/name`. Asked for by
    /// what wants all of one, such as a volume of a container. By default there is no way to know the keys.
    ///
    /// # Errors
    /// As [`SecretSource::resolve`]; `Unsupported` for a source that knows single values only.
    async fn entries(&self, reference: &str, tenant: TenantKey) -> crate::Result<BTreeMap<String, Bytes>> {
        let _ = tenant;
        let what = format!(
            "{reference}: the platform's SecretSource lists no keys; name each key in `items`, or implement \
             SecretSource::entries"
        );
        Err(crate::Error::new(crate::ErrorKind::Unsupported, "resolve", what))
    }
}

/// A sink that drops everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoSink;

impl NoSink {
    /// As a shared log sink.
    pub fn logs() -> Arc<dyn LogSink> {
        Arc::new(Self)
    }
}

impl LogSink for NoSink {
    fn line(&self, _: &LogRecord<'_>) {}
}

impl DecisionSink for NoSink {
    fn decided(&self, _: RevisionKey, _: &DecisionRecord) {}
}

impl MeterSink for NoSink {
    fn phase(&self, _: InstanceId, _: RevisionKey, _: TenantKey, _: MeterPhase, _: u64) {}
}

#[deny(clippy::missing_trait_methods)]
impl<T: LogSink + ?Sized> LogSink for Arc<T> {
    fn line(&self, record: &LogRecord<'_>) {
        (**self).line(record);
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        (**self).log_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}

#[deny(clippy::missing_trait_methods)]
impl<T: DecisionSink + ?Sized> DecisionSink for Arc<T> {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        (**self).decided(revision, record);
    }

    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        (**self).decision_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}

#[deny(clippy::missing_trait_methods)]
impl<T: MeterSink + ?Sized> MeterSink for Arc<T> {
    fn phase(
        &self,
        instance: InstanceId,
        revision: RevisionKey,
        tenant: TenantKey,
        phase: MeterPhase,
        ns: u64,
    ) {
        (**self).phase(instance, revision, tenant, phase, ns);
    }

    fn requests(&self, revision: RevisionKey, tenant: TenantKey, count: u64) {
        (**self).requests(revision, tenant, count);
    }

    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        (**self).usage_query()
    }

    fn forget(&self, revision: RevisionKey) {
        (**self).forget(revision);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: SecretSource + ?Sized> SecretSource for Arc<T> {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> crate::Result<Bytes> {
        (**self).resolve(reference, tenant).await
    }

    async fn entries(&self, reference: &str, tenant: TenantKey) -> crate::Result<BTreeMap<String, Bytes>> {
        (**self).entries(reference, tenant).await
    }
}
