//! What the pages of instances, decisions, logs and runtimes give, as JSON.

use sas_core::{
    Decision, DecisionRecord, InstanceState, InstanceView, Isolation, LogLine, LogPage, LogStream, RequestId,
    Runtime, StartTimings, Timestamp, Usage,
};
use serde::Serialize;

use super::test_run::millis;
use crate::{registry::RuntimeRegistry, stamp::rfc3339};

/// `GET /v1/services/<namespace>/<name>/instances`.
#[derive(Debug, Serialize)]
pub(super) struct InstancesPage {
    pub(super) instances: Vec<InstanceEntry>,
}

/// An instance.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceEntry {
    id: String,
    revision: String,
    state: InstanceState,
    in_flight: u32,
    /// `null`: unlimited.
    limit: Option<u32>,
    age_ms: u64,
    endpoint: Option<String>,
    usage: Option<Usage>,
    ejected: bool,
    /// `null` while it starts.
    start: Option<StartEntry>,
}

/// How an instance started.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StartEntry {
    gated_ms: f64,
    spawned_ms: Option<f64>,
    listening_ms: Option<f64>,
    ready_ms: f64,
    from_stem: bool,
}

impl InstanceEntry {
    pub(super) fn new(revision: &str, view: &InstanceView) -> Self {
        Self {
            id: view.id.to_string(),
            revision: revision.to_owned(),
            state: view.state,
            in_flight: view.in_flight,
            limit: (view.limit != u32::MAX).then_some(view.limit),
            age_ms: u64::try_from(view.age.as_millis()).unwrap_or(u64::MAX),
            endpoint: view.endpoint.as_ref().map(ToString::to_string),
            usage: view.usage,
            ejected: view.ejected,
            start: view.start.as_ref().map(StartEntry::from),
        }
    }
}

impl From<&StartTimings> for StartEntry {
    fn from(start: &StartTimings) -> Self {
        Self {
            gated_ms: millis(start.gated),
            spawned_ms: start.spawned.map(millis),
            listening_ms: start.listening.map(millis),
            ready_ms: millis(start.ready),
            from_stem: start.from_stem,
        }
    }
}

/// `GET /v1/services/<namespace>/<name>/logs`.
#[derive(Debug, Serialize)]
pub(super) struct LogsPage {
    lines: Vec<LogEntry>,
    dropped: u64,
}

/// A line.
#[derive(Debug, Serialize)]
struct LogEntry {
    sequence: u64,
    /// In RFC 3339.
    at: String,
    instance: String,
    request: Option<RequestId>,
    stream: LogStream,
    line: String,
}

impl From<LogPage> for LogsPage {
    fn from(page: LogPage) -> Self {
        Self { lines: page.lines.into_iter().map(LogEntry::from).collect(), dropped: page.dropped }
    }
}

impl From<LogLine> for LogEntry {
    fn from(line: LogLine) -> Self {
        Self {
            sequence: line.sequence,
            at: rfc3339(line.at),
            instance: line.instance.to_string(),
            request: line.request,
            stream: line.stream,
            line: line.line,
        }
    }
}

/// `GET /v1/runtimes`.
#[derive(Debug, Serialize)]
pub(super) struct RuntimesPage {
    edition: &'static str,
    runtimes: Vec<RuntimeEntry>,
}

/// A runtime and what it can do.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeEntry {
    name: &'static str,
    isolation: Isolation,
    suspend: bool,
    stems: bool,
    exec: bool,
    usage: bool,
    limits: bool,
    max_concurrency: Option<u32>,
}

impl From<&RuntimeRegistry> for RuntimesPage {
    fn from(registry: &RuntimeRegistry) -> Self {
        let entry = |runtime: &dyn Runtime| {
            let can = runtime.capabilities();
            RuntimeEntry {
                name: runtime.name(),
                isolation: can.isolation,
                suspend: can.suspend,
                stems: can.stems,
                exec: can.exec,
                usage: can.usage,
                limits: can.limits,
                max_concurrency: can.max_concurrency,
            }
        };
        let runtimes = registry.runtimes().map(|runtime| entry(runtime.as_ref())).collect();
        Self { edition: registry.kind().as_str(), runtimes }
    }
}

/// `GET /v1/services/<namespace>/<name>/decisions`.
#[derive(Debug, Serialize)]
pub(super) struct DecisionsPage {
    decisions: Vec<DecisionEntry>,
}

/// A decision with all that it was made from. The names of its record's fields, as replay reads them.
#[derive(Debug, Serialize)]
struct DecisionEntry {
    #[serde(skip)]
    made: Timestamp,
    revision: String,
    /// In RFC 3339.
    at: String,
    sequence: u64,
    elapsed: std::time::Duration,
    load: sas_core::Load,
    /// What the host reported by name.
    #[serde(skip_serializing_if = "sas_core::NamedValues::is_empty")]
    named: sas_core::NamedValues,
    previous: Option<u32>,
    decision: VerdictEntry,
}

/// What was decided, and why.
#[derive(Debug, Serialize)]
struct VerdictEntry {
    verdict: sas_core::Verdict,
    reason: sas_core::Reason,
    /// By name: the number of the set means nothing to a reader.
    clamps: Vec<&'static str>,
    excess_burst: i32,
    proposed: Option<u32>,
    version: u32,
    votes: sas_core::Votes,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Box<sas_core::Details>>,
}

impl From<Decision> for VerdictEntry {
    fn from(decision: Decision) -> Self {
        Self {
            verdict: decision.verdict,
            reason: decision.reason,
            clamps: decision.clamps.names().collect(),
            excess_burst: decision.excess_burst,
            proposed: decision.proposed,
            version: decision.version,
            votes: decision.votes,
            details: decision.details,
        }
    }
}

impl DecisionsPage {
    /// The last `most` of these, oldest first.
    pub(super) fn last(records: Vec<(String, DecisionRecord)>, most: usize) -> Self {
        let entry = |(revision, record): (String, DecisionRecord)| DecisionEntry {
            made: record.at,
            revision,
            at: rfc3339(record.at),
            sequence: record.sequence,
            elapsed: record.elapsed,
            load: record.load,
            named: record.named,
            previous: record.previous,
            decision: record.decision.into(),
        };
        let mut decisions: Vec<DecisionEntry> = records.into_iter().map(entry).collect();
        decisions.sort_by_key(|entry| entry.made);
        let skip = decisions.len().saturating_sub(most);
        decisions.drain(..skip);
        Self { decisions }
    }
}
