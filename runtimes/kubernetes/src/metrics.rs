//! Names of this crate's metrics.

use metrics::{Counter, Gauge, Histogram, Unit};
use sas_core::Recorder;

/// Instances that became ready.
pub const STARTED: &str = "sas_kubernetes_started_total";
/// Seconds from the request to start until an instance was ready.
pub const READY_SECONDS: &str = "sas_kubernetes_ready_seconds";
/// Pods of this host, on their way up and down included.
pub const PODS: &str = "sas_kubernetes_pods";
/// Pods that a host which is gone has left, and that this one has taken away.
pub const REAPED: &str = "sas_kubernetes_reaped_total";
/// How often the watch of Pods broke off and was taken up again.
pub const WATCH_FAILURES: &str = "sas_kubernetes_watch_failures_total";

/// Tells an exporter what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(STARTED, "Instances in Pods that became ready");
    recorder.describe_histogram(READY_SECONDS, Unit::Seconds, "Time from the request to start to ready");
    recorder.describe_gauge(PODS, Unit::Count, "Pods of this host, on their way up and down included");
    recorder.describe_counter(REAPED, "Pods of hosts that are gone, taken away by this one");
    recorder.describe_counter(WATCH_FAILURES, "How often the watch of Pods broke off");
}

#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) started: Counter,
    pub(crate) ready: Histogram,
    pub(crate) pods: Gauge,
    pub(crate) reaped: Counter,
    pub(crate) watch_failures: Counter,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        Self {
            started: recorder.counter(STARTED, &[]),
            ready: recorder.histogram(READY_SECONDS, &[]),
            pods: recorder.gauge(PODS, &[]),
            reaped: recorder.counter(REAPED, &[]),
            watch_failures: recorder.counter(WATCH_FAILURES, &[]),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
