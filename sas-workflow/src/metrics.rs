//! Names of the metrics, and their handles.

use std::{collections::BTreeSet, fmt, time::Duration};

use metrics::{Gauge, Histogram, Unit};
use parking_lot::Mutex;
use sas_core::Recorder;

/// Runs that were started, by `namespace`: the first hundred namespaces by name, the others together as `other`.
pub const STARTED: &str = "sas_workflow_runs_started_total";
/// Runs that have ended, by `namespace` as for those that were started, and by `status`: `completed`, `faulted` or `cancelled`.
pub const ENDED: &str = "sas_workflow_runs_ended_total";
/// Runs of the namespaces that this host drives that have not ended, as its last search has found them.
pub const UNENDED: &str = "sas_workflow_runs_unended";
/// Runs that do something now; the others of those that have not ended wait.
pub const DRIVEN: &str = "sas_workflow_runs_driven";
/// Runs that do not go on although they should; the diagnosis names them.
pub const STUCK: &str = "sas_workflow_runs_stuck";
/// Steps that were answered, by `kind` (`call`, `invoke`, `emit`, `workflow`) and `outcome` (`answered` or `failed`).
pub const STEPS: &str = "sas_workflow_steps_total";
/// How long steps took from being asked for to their answer, in seconds, by `kind`.
pub const STEP_SECONDS: &str = "sas_workflow_step_seconds";
/// How late runs were told that their time had come, in seconds.
pub const LATENESS: &str = "sas_workflow_timer_lateness_seconds";
/// How long it took to append a record to the store, in seconds.
pub const APPEND: &str = "sas_workflow_append_seconds";
/// Events of the life of runs that wait to be published, as far as this host has looked.
pub const OUTBOX: &str = "sas_workflow_lifecycle_waiting";

/// Describes all metrics of this crate.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(STARTED, "Runs of workflows that were started, by namespace");
    recorder.describe_counter(ENDED, "Runs of workflows that have ended, by namespace and status");
    recorder.describe_gauge(UNENDED, Unit::Count, "Runs of workflows that have not ended");
    recorder.describe_gauge(DRIVEN, Unit::Count, "Runs of workflows that do something now");
    recorder.describe_gauge(STUCK, Unit::Count, "Runs of workflows that do not go on although they should");
    recorder.describe_counter(STEPS, "Steps of workflows, by kind and outcome");
    recorder.describe_histogram(STEP_SECONDS, Unit::Seconds, "How long steps of workflows took, by kind");
    recorder.describe_histogram(LATENESS, Unit::Seconds, "How late timers of workflows were told");
    recorder.describe_histogram(APPEND, Unit::Seconds, "How long it took to append a record of a run");
    recorder.describe_gauge(OUTBOX, Unit::Count, "Events of the life of runs that wait to be published");
}

/// Namespaces that have a label of their own at most.
const MOST_LABELS: usize = 100;

pub(crate) struct Metrics {
    recorder: Recorder,
    named: Mutex<BTreeSet<String>>,
    pub(crate) unended: Gauge,
    pub(crate) driven: Gauge,
    pub(crate) stuck: Gauge,
    pub(crate) outbox: Gauge,
    pub(crate) lateness: Histogram,
    pub(crate) append: Histogram,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        Self {
            named: Mutex::default(),
            unended: recorder.gauge(UNENDED, &[]),
            driven: recorder.gauge(DRIVEN, &[]),
            stuck: recorder.gauge(STUCK, &[]),
            outbox: recorder.gauge(OUTBOX, &[]),
            lateness: recorder.histogram(LATENESS, &[]),
            append: recorder.histogram(APPEND, &[]),
            recorder: recorder.clone(),
        }
    }

    /// A namespace as a label.
    fn label(&self, namespace: &str) -> String {
        let mut named = self.named.lock();
        if named.contains(namespace) {
            return namespace.to_owned();
        }
        if named.len() >= MOST_LABELS {
            return "other".to_owned();
        }
        named.insert(namespace.to_owned());
        namespace.to_owned()
    }

    pub(crate) fn started(&self, namespace: &str) {
        self.recorder.counter(STARTED, &[("namespace", &self.label(namespace))]).increment(1);
    }

    pub(crate) fn ended(&self, namespace: &str, status: &str) {
        let labels = [("namespace", &*self.label(namespace)), ("status", status)];
        self.recorder.counter(ENDED, &labels).increment(1);
    }

    pub(crate) fn step(&self, kind: &str, failed: bool, took: Duration) {
        let outcome = if failed { "failed" } else { "answered" };
        self.recorder.counter(STEPS, &[("kind", kind), ("outcome", outcome)]).increment(1);
        self.recorder.histogram(STEP_SECONDS, &[("kind", kind)]).record(took.as_secs_f64());
    }
}
