//! What the driver tells the host's metrics.

use sas_core::Recorder;

/// Decisions made, by `verdict` (`set`, `hold`).
pub const DECISIONS: &str = "sas_autoscale_decisions_total";
/// Decisions that changed the number of instances, by `direction` (`up`, `down`).
pub const CHANGES: &str = "sas_autoscale_changes_total";
/// Counts panics of scalers, after each of which a revision keeps what it has.
pub const SCALER_FAILURES: &str = "sas_autoscale_scaler_failures_total";
/// Revisions that no scaler can serve: their spec names none that there is, or is not valid for it.
pub const UNSERVED: &str = "sas_autoscale_unserved_total";
/// Revisions that were visited in the last tick.
pub const ACTIVE: &str = "sas_autoscale_active_revisions";
/// Seconds that a tick's work took.
pub const TICK_SECONDS: &str = "sas_autoscale_tick_seconds";
/// Revisions without a history, since too many have one.
pub const WITHOUT_HISTORY: &str = "sas_autoscale_without_history_total";

/// The handles that a driver keeps.
#[derive(Debug)]
pub(crate) struct Handles {
    pub(crate) set: metrics::Counter,
    pub(crate) hold: metrics::Counter,
    pub(crate) up: metrics::Counter,
    pub(crate) down: metrics::Counter,
    pub(crate) failures: metrics::Counter,
    pub(crate) unserved: metrics::Counter,
    pub(crate) without_history: metrics::Counter,
    pub(crate) active: metrics::Gauge,
    pub(crate) tick: metrics::Histogram,
}

impl Handles {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        Self {
            set: recorder.counter(DECISIONS, &[("verdict", "set")]),
            hold: recorder.counter(DECISIONS, &[("verdict", "hold")]),
            up: recorder.counter(CHANGES, &[("direction", "up")]),
            down: recorder.counter(CHANGES, &[("direction", "down")]),
            failures: recorder.counter(SCALER_FAILURES, &[]),
            unserved: recorder.counter(UNSERVED, &[]),
            without_history: recorder.counter(WITHOUT_HISTORY, &[]),
            active: recorder.gauge(ACTIVE, &[]),
            tick: recorder.histogram(TICK_SECONDS, &[]),
        }
    }
}

/// Describes them, for exporters.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(DECISIONS, "Scaling decisions by verdict");
    recorder.describe_counter(CHANGES, "Scaling decisions that changed the number of instances");
    recorder.describe_counter(SCALER_FAILURES, "Panics of scalers; the revision kept its decision");
    recorder.describe_counter(UNSERVED, "Visits of revisions whose scaler is missing or refuses their spec");
    recorder.describe_counter(WITHOUT_HISTORY, "Revisions that got no history, since too many have one");
    recorder.describe_gauge(ACTIVE, metrics::Unit::Count, "Revisions visited in the last tick");
    recorder.describe_histogram(TICK_SECONDS, metrics::Unit::Seconds, "Time that the work of a tick took");
}
