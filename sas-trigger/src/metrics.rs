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
    recorder.describe_counter(RESTARTS, "Sources that failed and were started again");
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
        }
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
