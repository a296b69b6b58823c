//! Names of this crate's metrics.

use metrics::{Counter, Histogram, Unit};
use sas_core::Recorder;

/// Instances that became ready.
pub const STARTED: &str = "sas_container_started_total";
/// Seconds from the request to start until an instance was ready.
pub const READY_SECONDS: &str = "sas_container_ready_seconds";
/// Containers that the kernel has ended for want of memory.
pub const OUT_OF_MEMORY: &str = "sas_container_out_of_memory_total";
/// Seconds that it took to bring an image here, or to find it.
pub const PREPARE_SECONDS: &str = "sas_container_prepare_seconds";

/// Tells an exporter what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(STARTED, "Instances of images that became ready");
    recorder.describe_histogram(READY_SECONDS, Unit::Seconds, "Time from the request to start to ready");
    recorder.describe_counter(OUT_OF_MEMORY, "Containers that the kernel has ended for want of memory");
    recorder.describe_histogram(PREPARE_SECONDS, Unit::Seconds, "Time to bring an image to this host");
}

#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) started: Counter,
    pub(crate) ready: Histogram,
    pub(crate) out_of_memory: Counter,
    pub(crate) prepare: Histogram,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        Self {
            started: recorder.counter(STARTED, &[]),
            ready: recorder.histogram(READY_SECONDS, &[]),
            out_of_memory: recorder.counter(OUT_OF_MEMORY, &[]),
            prepare: recorder.histogram(PREPARE_SECONDS, &[]),
        }
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
