//! Metrics of the exporter itself: what left, and what was lost.

use metrics::Counter;
use sas_core::Recorder;

/// Spans, data points and log records that the collector took, by `signal` (`traces`, `metrics`, `logs`).
pub const EXPORTED: &str = "sas_otel_exported_total";
/// The same that were lost, by `signal` and `reason`: `queue` (no room while the collector was slow or down), `failed` (not
/// taken however often it was tried), `rejected` (refused by the collector), `shutdown` (no time left to send them).
pub const DROPPED: &str = "sas_otel_dropped_total";
/// Requests to the collector that failed, by `signal`. One batch may fail several times.
pub const FAILURES: &str = "sas_otel_export_failures_total";
/// Series that were counted together with others, since there were too many.
pub const OVERFLOWS: &str = "sas_otel_series_overflows_total";

/// Tells exporters what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(EXPORTED, "Telemetry that the collector took, by signal.");
    recorder.describe_counter(DROPPED, "Telemetry that was lost, by signal and reason.");
    recorder.describe_counter(FAILURES, "Requests to the collector that failed, by signal.");
    recorder.describe_counter(OVERFLOWS, "Series beyond the bound, counted together.");
}

/// Handles of one signal.
#[derive(Clone)]
pub(crate) struct ExportMetrics {
    pub(crate) exported: Counter,
    pub(crate) queue: Counter,
    pub(crate) failed: Counter,
    pub(crate) rejected: Counter,
    pub(crate) shutdown: Counter,
    pub(crate) failures: Counter,
}

impl std::fmt::Debug for ExportMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExportMetrics")
    }
}

impl ExportMetrics {
    pub(crate) fn new(recorder: &Recorder, signal: &'static str) -> Self {
        let dropped = |reason| recorder.counter(DROPPED, &[("signal", signal), ("reason", reason)]);
        Self {
            exported: recorder.counter(EXPORTED, &[("signal", signal)]),
            queue: dropped("queue"),
            failed: dropped("failed"),
            rejected: dropped("rejected"),
            shutdown: dropped("shutdown"),
            failures: recorder.counter(FAILURES, &[("signal", signal)]),
        }
    }
}
