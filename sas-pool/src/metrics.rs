//! The pool's metrics. None carries a revision's name: a million sleepers make no series.

use metrics::{Counter, Histogram, Unit};
use sas_core::{Recorder, StartTimings};

/// Instances that became ready, by `from` (`cold`, `stem`).
pub const STARTS: &str = "sas_pool_starts_total";
/// Starts that failed.
pub const START_FAILURES: &str = "sas_pool_start_failures_total";
/// From the decision to start an instance until it was ready, in seconds.
pub const START_SECONDS: &str = "sas_pool_start_seconds";
/// How long a start waited for the gate and the budgets, in seconds.
pub const GATE_SECONDS: &str = "sas_pool_gate_seconds";
/// How long claims waited in the activation queue, in seconds.
pub const QUEUE_SECONDS: &str = "sas_pool_queue_seconds";
/// Claims whose deadline passed while they waited.
pub const DEADLINES: &str = "sas_pool_deadlines_total";
/// Claims refused, by `reason` (`queue_full`, `exhausted`, `start`).
pub const REFUSALS: &str = "sas_pool_refusals_total";
/// Instances that ended without being asked to.
pub const DEATHS: &str = "sas_pool_deaths_total";
/// Instances left out for their failures.
pub const EJECTIONS: &str = "sas_pool_ejections_total";
/// Stems taken by a start, by `result` (`hit`, `miss`, `failed`).
pub const STEMS: &str = "sas_pool_stems_total";

/// Describes all of them, for exporters.
pub fn describe(recorder: &Recorder) {
    for (name, help) in [
        (STARTS, "Instances that became ready"),
        (START_FAILURES, "Starts that failed"),
        (DEADLINES, "Claims whose deadline passed while they waited"),
        (REFUSALS, "Claims refused"),
        (DEATHS, "Instances that ended without being asked to"),
        (EJECTIONS, "Instances left out for their failures"),
        (STEMS, "Starts that asked for a stem"),
    ] {
        recorder.describe_counter(name, help);
    }
    for (name, help) in [
        (START_SECONDS, "From the decision to start an instance until it was ready"),
        (GATE_SECONDS, "How long a start waited for the gate and the budgets"),
        (QUEUE_SECONDS, "How long claims waited in the activation queue"),
    ] {
        recorder.describe_histogram(name, Unit::Seconds, help);
    }
}

/// The registered handles.
pub(crate) struct Metrics {
    cold: Counter,
    stem: Counter,
    failures: Counter,
    start_seconds: Histogram,
    gate_seconds: Histogram,
    queue_seconds: Histogram,
    pub(crate) deadlines: Counter,
    pub(crate) deaths: Counter,
    pub(crate) ejections: Counter,
    pub(crate) queue_full: Counter,
    pub(crate) exhausted: Counter,
    pub(crate) shut: Counter,
    pub(crate) stem_hits: Counter,
    pub(crate) stem_misses: Counter,
    pub(crate) stem_failures: Counter,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        let refused = |reason| recorder.counter(REFUSALS, &[("reason", reason)]);
        let stems = |result| recorder.counter(STEMS, &[("result", result)]);
        Self {
            cold: recorder.counter(STARTS, &[("from", "cold")]),
            stem: recorder.counter(STARTS, &[("from", "stem")]),
            failures: recorder.counter(START_FAILURES, &[]),
            start_seconds: recorder.histogram(START_SECONDS, &[]),
            gate_seconds: recorder.histogram(GATE_SECONDS, &[]),
            queue_seconds: recorder.histogram(QUEUE_SECONDS, &[]),
            deadlines: recorder.counter(DEADLINES, &[]),
            deaths: recorder.counter(DEATHS, &[]),
            ejections: recorder.counter(EJECTIONS, &[]),
            queue_full: refused("queue_full"),
            exhausted: refused("exhausted"),
            shut: refused("start"),
            stem_hits: stems("hit"),
            stem_misses: stems("miss"),
            stem_failures: stems("failed"),
        }
    }

    pub(crate) fn started(&self, timings: &StartTimings) {
        if timings.from_stem { &self.stem } else { &self.cold }.increment(1);
        self.start_seconds.record(timings.ready);
        self.gate_seconds.record(timings.gated);
    }

    pub(crate) fn start_failed(&self) {
        self.failures.increment(1);
    }

    pub(crate) fn waited(&self, ns: u64) {
        self.queue_seconds.record(ns as f64 / 1e9);
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
