//! Names of the metrics, and their handles.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Unit};
use sas_core::{QuotaPressure, QuotaResource, Recorder};

/// Deploys, by `result` (`ok` or `error`).
pub const DEPLOYS: &str = "sas_control_deploys_total";
/// How long a deploy took, in seconds.
pub const DEPLOY_SECONDS: &str = "sas_control_deploy_seconds";
/// How long preparing a revision took, in seconds.
pub const PREPARE_SECONDS: &str = "sas_control_prepare_seconds";
/// Services that there are.
pub const SERVICES: &str = "sas_control_services";
/// Revisions that there are.
pub const REVISIONS: &str = "sas_control_revisions";
/// Things that a diagnosis found wrong at its last look, by `check`.
pub const FINDINGS: &str = "sas_control_findings";
/// The largest share of a quota that any tenant or service uses, by `resource`: 1 is all of it. Looked at every 15 s.
pub const QUOTA_USED: &str = "sas_control_quota_used_ratio";
/// Lines of instances that a sink of logs has not, or not whole, by `sink` and `reason`: of the `buffer` that is read back, those
/// that made `room` for younger ones, and those that were `cut`; of the `file`, those that found no `room` since the disk was
/// slow, and those that the `disk` did not take.
pub const LOG_LINES_DROPPED: &str = "sas_log_lines_dropped_total";
/// Test runs, by `result` (`ok` or `error`).
pub const TEST_RUNS: &str = "sas_control_test_runs_total";

/// The counter of [`LOG_LINES_DROPPED`] for a sink and a reason.
pub(crate) fn log_lines_dropped(recorder: &Recorder, sink: &'static str, reason: &'static str) -> Counter {
    recorder.counter(LOG_LINES_DROPPED, &[("sink", sink), ("reason", reason)])
}

/// Describes all metrics of this crate.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(DEPLOYS, "Deploys, by result");
    recorder.describe_histogram(DEPLOY_SECONDS, Unit::Seconds, "How long a deploy took");
    recorder.describe_histogram(PREPARE_SECONDS, Unit::Seconds, "How long preparing a revision took");
    recorder.describe_gauge(SERVICES, Unit::Count, "Services that there are");
    recorder.describe_gauge(REVISIONS, Unit::Count, "Revisions that there are");
    recorder.describe_gauge(FINDINGS, Unit::Count, "Things found wrong at the last look, by check");
    recorder.describe_gauge(
        QUOTA_USED,
        Unit::Count,
        "The largest share of a quota that is used, by resource",
    );
    recorder.describe_counter(LOG_LINES_DROPPED, "Lines of instances that a sink has not, or not whole");
    recorder.describe_counter(TEST_RUNS, "Test runs, by result");
}

pub(crate) struct Metrics {
    deploys: [Counter; 2],
    deploy_seconds: Histogram,
    prepare_seconds: Histogram,
    services: Gauge,
    revisions: Gauge,
    test_runs: [Counter; 2],
    recorder: Recorder,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

impl Metrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        let both = |name| ["error", "ok"].map(|result| recorder.counter(name, &[("result", result)]));
        Self {
            deploys: both(DEPLOYS),
            deploy_seconds: recorder.histogram(DEPLOY_SECONDS, &[]),
            prepare_seconds: recorder.histogram(PREPARE_SECONDS, &[]),
            services: recorder.gauge(SERVICES, &[]),
            revisions: recorder.gauge(REVISIONS, &[]),
            test_runs: both(TEST_RUNS),
            recorder: recorder.clone(),
        }
    }

    pub(crate) fn deployed(&self, ok: bool, took: Duration) {
        self.deploys[usize::from(ok)].increment(1);
        self.deploy_seconds.record(took.as_secs_f64());
    }

    pub(crate) fn prepared(&self, took: Duration) {
        self.prepare_seconds.record(took.as_secs_f64());
    }

    pub(crate) fn count(&self, services: usize, revisions: usize) {
        self.services.set(services as f64);
        self.revisions.set(revisions as f64);
    }

    /// What is used of quotas. Those that nobody has make no series.
    pub(crate) fn quotas(&self, pressure: &[QuotaPressure]) {
        for resource in QuotaResource::ALL {
            let of_it = pressure.iter().filter(|one| one.resource == resource && one.most > 0.0);
            if let Some(share) = of_it.map(|one| one.used / one.most).max_by(f64::total_cmp) {
                self.recorder.gauge(QUOTA_USED, &[("resource", resource.as_str())]).set(share);
            }
        }
    }

    pub(crate) fn services(&self, services: usize) {
        self.services.set(services as f64);
    }

    /// What a diagnosis found, of all the checks that it made.
    pub(crate) fn found<'a>(&self, found: impl Iterator<Item = &'a str>, checks: &[&'static str]) {
        let found: Vec<&str> = found.collect();
        for check in checks {
            let count = found.iter().filter(|name| *name == check).count();
            self.recorder.gauge(FINDINGS, &[("check", check)]).set(count as f64);
        }
    }

    pub(crate) fn tested(&self, ok: bool) {
        self.test_runs[usize::from(ok)].increment(1);
    }
}
