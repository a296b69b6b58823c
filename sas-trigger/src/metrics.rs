//! Names of the metrics, and their handles.

use std::{fmt, time::Duration};

use metrics::{Counter, Histogram, Unit};
use sas_core::Recorder;

/// Fires that were made.
pub const FIRES: &str = "sas_trigger_fires_total";
/// How late fires were made, in seconds.
pub const LATENESS: &str = "sas_trigger_lateness_seconds";
/// Times that fires were left out, by `reason` (`late` or `overlap`).
pub const LEFT_OUT: &str = "sas_trigger_left_out_total";
/// Fires whose delivery failed for good and that come again.
pub const FAILED: &str = "sas_trigger_failed_total";
/// Events by how they ended: `completed`, `filtered`, `repeated`, `dead_letter` or `failed`.
pub const EVENTS: &str = "sas_trigger_events_total";
/// Attempts to deliver an event that were made again.
pub const RETRIES: &str = "sas_trigger_retries_total";
/// Attempts to deliver an event, by `trigger`: the first hundred triggers by name, the others together as `other`.
pub const ATTEMPTS: &str = "sas_trigger_attempts_total";
/// What waits upstream of triggers whose sources know, by `trigger` as for attempts.
pub const LAG: &str = "sas_trigger_lag_events";
/// How long the oldest event has waited upstream, in seconds, by `trigger` as for attempts.
pub const OLDEST: &str = "sas_trigger_oldest_seconds";
/// Events that services answered with and that were passed on.
pub const REPLIES: &str = "sas_trigger_replies_total";
/// Events that brokers took, or refused since they were full, by `outcome` (`accepted` or `refused`).
pub const BROKER_EVENTS: &str = "sas_broker_events_total";
/// Records of brokers that hold no event that can be read, and were left out.
pub const DAMAGED: &str = "sas_broker_damaged_total";
/// Asynchronous calls by `outcome`: `accepted`, `refused`, `done`, `failed` or `expired`.
pub const ASYNC_CALLS: &str = "sas_async_calls_total";
/// Requests to webhooks by `outcome`: `accepted`, `refused` (not signed as they must be) or `malformed`.
pub const HOOKS: &str = "sas_webhook_requests_total";
/// Sources that failed and were started again.
pub const RESTARTS: &str = "sas_trigger_restarts_total";

/// Describes all metrics of this crate.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(FIRES, "Fires that were made");
    recorder.describe_histogram(LATENESS, Unit::Seconds, "How late fires were made");
    recorder.describe_counter(LEFT_OUT, "Times that fires were left out, by reason");
    recorder.describe_counter(FAILED, "Fires whose delivery failed and that come again");
    recorder.describe_counter(EVENTS, "Events by how they ended");
    recorder.describe_counter(RETRIES, "Attempts to deliver that were made again");
    recorder.describe_counter(ATTEMPTS, "Attempts to deliver an event, by trigger");
    recorder.describe_gauge(LAG, Unit::Count, "What waits upstream, by trigger");
    recorder.describe_gauge(
        OLDEST,
        Unit::Seconds,
        "How long the oldest event has waited upstream, by trigger",
    );
    recorder.describe_counter(REPLIES, "Events that services answered with");
    recorder.describe_counter(BROKER_EVENTS, "Events that brokers took or refused");
    recorder.describe_counter(DAMAGED, "Records of brokers that hold no event");
    recorder.describe_counter(ASYNC_CALLS, "Asynchronous calls by how they went");
    recorder.describe_counter(HOOKS, "Requests to webhooks by how they went");
    recorder.describe_counter(RESTARTS, "Sources that failed and were started again");
}

/// The label of triggers that have none of their own.
pub(crate) const OTHER: &str = "other";
/// Triggers that have a label of their own at most.
const MOST_LABELS: usize = 100;

/// Names that metrics have as labels: the first hundred, whatever comes and goes later.
#[derive(Debug, Default)]
pub(crate) struct Labels(parking_lot::Mutex<std::collections::BTreeSet<String>>);

impl Labels {
    pub(crate) fn of(&self, name: &str) -> String {
        let mut known = self.0.lock();
        if known.contains(name) {
            return name.to_owned();
        }
        if known.len() >= MOST_LABELS {
            return OTHER.to_owned();
        }
        known.insert(name.to_owned());
        name.to_owned()
    }
}

#[derive(Clone)]
pub(crate) struct Metrics {
    fires: Counter,
    lateness: Histogram,
    late: Counter,
    overlap: Counter,
    failed: Counter,
    pub(crate) completed: Counter,
    pub(crate) filtered: Counter,
    pub(crate) repeated: Counter,
    pub(crate) dead_letter: Counter,
    pub(crate) undelivered: Counter,
    pub(crate) retries: Counter,
    pub(crate) restarts: Counter,
    pub(crate) attempts: Counter,
    pub(crate) replies: Counter,
    pub(crate) accepted: Counter,
    pub(crate) refused: Counter,
    pub(crate) damaged: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Recorder::default())
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        let event = |outcome| recorder.counter(EVENTS, &[("outcome", outcome)]);
        Self {
            fires: recorder.counter(FIRES, &[]),
            lateness: recorder.histogram(LATENESS, &[]),
            late: recorder.counter(LEFT_OUT, &[("reason", "late")]),
            overlap: recorder.counter(LEFT_OUT, &[("reason", "overlap")]),
            failed: recorder.counter(FAILED, &[]),
            completed: event("completed"),
            filtered: event("filtered"),
            repeated: event("repeated"),
            dead_letter: event("dead_letter"),
            undelivered: event("failed"),
            retries: recorder.counter(RETRIES, &[]),
            restarts: recorder.counter(RESTARTS, &[]),
            attempts: recorder.counter(ATTEMPTS, &[("trigger", OTHER)]),
            replies: recorder.counter(REPLIES, &[]),
            accepted: recorder.counter(BROKER_EVENTS, &[("outcome", "accepted")]),
            refused: recorder.counter(BROKER_EVENTS, &[("outcome", "refused")]),
            damaged: recorder.counter(DAMAGED, &[]),
        }
    }

    /// The same, with attempts counted under this label.
    pub(crate) fn labelled(&self, recorder: &Recorder, label: &str) -> Self {
        Self { attempts: recorder.counter(ATTEMPTS, &[("trigger", label)]), ..self.clone() }
    }

    pub(crate) fn fired(&self, late: Duration) {
        self.fires.increment(1);
        self.lateness.record(late.as_secs_f64());
    }

    pub(crate) fn missed(&self) {
        self.late.increment(1);
    }

    pub(crate) fn overlapped(&self) {
        self.overlap.increment(1);
    }

    pub(crate) fn failed(&self) {
        self.failed.increment(1);
    }
}
