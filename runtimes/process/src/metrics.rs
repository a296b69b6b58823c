//! Names of this crate's metrics.

use metrics::{Counter, Gauge, Histogram, Unit};
use sas_core::Recorder;

/// Counts the processes that were spawned.
pub const SPAWNED: &str = "sas_process_spawned_total";
/// Counts the processes that have ended.
pub const EXITED: &str = "sas_process_exited_total";
/// Processes that had to be killed after their grace.
pub const FORCED: &str = "sas_process_forced_total";
/// The number of processes that live now.
pub const PROCESSES: &str = "sas_process_processes";
/// Times that an instance's output was not read because it wrote too fast.
pub const LOG_PAUSED: &str = "sas_process_log_paused_total";
/// Counts the JVM stems that were booted.
pub const STEMS: &str = "sas_process_stems_booted_total";
/// Seconds from the spawn until an instance was ready.
pub const READY_SECONDS: &str = "sas_process_ready_seconds";

/// Tells an exporter what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(SPAWNED, "Processes spawned");
    recorder.describe_counter(EXITED, "Processes that ended");
    recorder.describe_counter(FORCED, "Processes that were killed after their grace");
    recorder.describe_gauge(PROCESSES, Unit::Count, "Processes that live");
    recorder.describe_counter(LOG_PAUSED, "Pauses in reading output that is written too fast");
    recorder.describe_counter(STEMS, "JVM stems booted");
    recorder.describe_histogram(READY_SECONDS, Unit::Seconds, "Time from spawn to ready");
}

#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) spawned: Counter,
    pub(crate) exited: Counter,
    pub(crate) forced: Counter,
    pub(crate) processes: Gauge,
    pub(crate) paused: Counter,
    pub(crate) stems: Counter,
    pub(crate) ready: Histogram,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        Self {
            spawned: recorder.counter(SPAWNED, &[]),
            exited: recorder.counter(EXITED, &[]),
            forced: recorder.counter(FORCED, &[]),
            processes: recorder.gauge(PROCESSES, &[]),
            paused: recorder.counter(LOG_PAUSED, &[]),
            stems: recorder.counter(STEMS, &[]),
            ready: recorder.histogram(READY_SECONDS, &[]),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
