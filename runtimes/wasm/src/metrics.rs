//! What the runtime counts.

use metrics::{Counter, Histogram, Unit};
use sas_core::Recorder;

use crate::usage::CallUsage;

/// Requests that a guest served to the end.
pub const SERVED: &str = "sas_wasm_requests_total";
/// Requests that were ended, by `reason`: `cpu`, `memory`, `table`, `stack`, `response`, `stopped`, `deadline`,
/// `trap`, `exit`, `answer`, `slots` or `other`.
pub const ENDED: &str = "sas_wasm_ended_total";
/// Requests that found all sandboxes taken.
pub const WAITED: &str = "sas_wasm_waited_total";
/// CPU time of guests, in seconds per request.
pub const CPU: &str = "sas_wasm_cpu_seconds";
/// The most linear memory that a request had at once, in bytes.
pub const MEMORY: &str = "sas_wasm_memory_bytes";
/// Time to compile a function, in seconds.
pub const COMPILE: &str = "sas_wasm_compile_seconds";
/// Functions prepared, by `from`: `memory`, `disk` or `compiler`.
pub const PREPARED: &str = "sas_wasm_prepared_total";

const REASONS: [&str; 12] = [
    "cpu", "memory", "table", "stack", "response", "stopped", "deadline", "trap", "exit", "answer", "slots",
    "other",
];

/// Tells exporters what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(SERVED, "Requests that a WebAssembly guest served to the end");
    recorder.describe_counter(ENDED, "Requests whose WebAssembly guest was ended, by reason");
    recorder.describe_counter(WAITED, "Requests that found all WebAssembly sandboxes taken");
    recorder.describe_histogram(CPU, Unit::Seconds, "CPU time of a WebAssembly guest per request");
    recorder.describe_histogram(
        MEMORY,
        Unit::Bytes,
        "The most linear memory of a WebAssembly guest per request",
    );
    recorder.describe_histogram(COMPILE, Unit::Seconds, "Time to compile a WebAssembly function");
    recorder.describe_counter(PREPARED, "WebAssembly functions prepared, by where their code came from");
}

/// Handles, registered once.
#[derive(Debug)]
pub(crate) struct Metrics {
    served: Counter,
    ended: [Counter; REASONS.len()],
    waited: Counter,
    cpu: Histogram,
    memory: Histogram,
    pub(crate) compile: Histogram,
    pub(crate) from_memory: Counter,
    pub(crate) from_disk: Counter,
    pub(crate) from_compiler: Counter,
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        Self {
            served: recorder.counter(SERVED, &[]),
            ended: REASONS.map(|reason| recorder.counter(ENDED, &[("reason", reason)])),
            waited: recorder.counter(WAITED, &[]),
            cpu: recorder.histogram(CPU, &[]),
            memory: recorder.histogram(MEMORY, &[]),
            compile: recorder.histogram(COMPILE, &[]),
            from_memory: recorder.counter(PREPARED, &[("from", "memory")]),
            from_disk: recorder.counter(PREPARED, &[("from", "disk")]),
            from_compiler: recorder.counter(PREPARED, &[("from", "compiler")]),
        }
    }

    pub(crate) fn served(&self, usage: &CallUsage) {
        self.served.increment(1);
        self.used(usage);
    }

    pub(crate) fn ended(&self, reason: &str, usage: &CallUsage) {
        let at = REASONS.iter().position(|known| *known == reason).unwrap_or(REASONS.len() - 1);
        self.ended[at].increment(1);
        self.used(usage);
    }

    pub(crate) fn waited(&self) {
        self.waited.increment(1);
    }

    #[allow(clippy::cast_precision_loss, reason = "a histogram's buckets are coarser than a float")]
    fn used(&self, usage: &CallUsage) {
        self.cpu.record(usage.cpu().as_secs_f64());
        self.memory.record(usage.memory_high_water() as f64);
    }
}
