//! Where logs, decisions, meter readings and secrets go or come from.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Decision, InstanceId, Load, RequestId, Result, RevisionKey, TenantKey, Timestamp};

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// Takes the lines that instances write.
pub trait LogSink: fmt::Debug + Send + Sync + 'static {
    /// One line, without its end; longer ones were cut by the runtime. Returns at once: a sink that can't keep up
    /// drops and counts.
    fn line(&self, record: &LogRecord<'_>);
}

/// A decision and all that it was made from: enough to make it again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DecisionRecord {
    /// Counts the decisions of a revision from 1.
    pub sequence: u64,
    /// When.
    pub at: Timestamp,
    /// How long `load` was measured.
    #[serde(default = "one_second")]
    pub elapsed: Duration,
    /// What was measured.
    pub load: Load,
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
        Self { sequence, at, elapsed: one_second(), load, previous, decision }
    }
}

/// Takes every decision.
pub trait DecisionSink: fmt::Debug + Send + Sync + 'static {
    /// One decision. Returns at once.
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord);
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
}

/// Resolves the references that specs hold instead of secrets.
#[async_trait]
pub trait SecretSource: fmt::Debug + Send + Sync + 'static {
    /// The value behind `reference` for `tenant`.
    ///
    /// # Errors
    /// `NotFound` when there is none that this tenant may have. The error never holds a secret.
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> Result<Bytes>;
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
