//! The pool's metrics. None carries a revision's name: a million sleepers make no series.

use metrics::{Counter, Gauge, Histogram, Unit};
use sas_core::{PoolTotals, Recorder, StartTimings, StemView};

use crate::sync::{AtomicU64, Ordering};

/// Instances that became ready, by `from` (`cold`, `stem`).
pub const STARTS: &str = "sas_pool_starts_total";
/// Counts starts of instances that failed.
pub const START_FAILURES: &str = "sas_pool_start_failures_total";
/// From the decision to start an instance until it was ready, in seconds.
pub const START_SECONDS: &str = "sas_pool_start_seconds";
/// How long a start waited for the gate and the budgets, in seconds.
pub const GATE_SECONDS: &str = "sas_pool_gate_seconds";
/// How long claims waited in the activation queue, in seconds.
pub const QUEUE_SECONDS: &str = "sas_pool_queue_seconds";
/// Claims whose deadline passed while they waited.
pub const DEADLINES: &str = "sas_pool_deadlines_total";
/// Claims refused, by `reason` (`queue_full`, `exhausted`, `quota`, `start`).
pub const REFUSALS: &str = "sas_pool_refusals_total";
/// Instances that ended without being asked to.
pub const DEATHS: &str = "sas_pool_deaths_total";
/// Instances left out for their failures.
pub const EJECTIONS: &str = "sas_pool_ejections_total";
/// Stems taken by a start, by `result` (`hit`, `miss`, `failed`).
pub const STEMS: &str = "sas_pool_stems_total";

/// Stems by what became of them, by `result` (`booted`, `failed`, `wasted`). Those that were used are hits of
/// [`STEMS`].
pub const STEM_BOOTS: &str = "sas_pool_stem_boots_total";
/// Instances that were started ahead of a call that was expected, by `result` (`begun`, `used`, `wasted`).
pub const WAKE_AHEADS: &str = "sas_pool_wake_aheads_total";
/// Stems, by `state` (`ready`, `booting`, `wanted`).
pub const STEMS_HELD: &str = "sas_pool_stems";
/// Instances that hold a place in the budgets.
pub const INSTANCES: &str = "sas_pool_instances";
/// Bytes that instances and stems count with.
pub const MEMORY_BYTES: &str = "sas_pool_memory_bytes";

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
        (STEM_BOOTS, "Stems by what became of them"),
        (WAKE_AHEADS, "Instances started ahead of an expected call"),
    ] {
        recorder.describe_counter(name, help);
    }
    for (name, unit, help) in [
        (STEMS_HELD, Unit::Count, "Stems that are ready, that boot, and that are to be held"),
        (INSTANCES, Unit::Count, "Instances that hold a place in the budgets"),
        (MEMORY_BYTES, Unit::Bytes, "Bytes that instances and stems count with"),
    ] {
        recorder.describe_gauge(name, unit, help);
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
    pub(crate) quota: Counter,
    pub(crate) shut: Counter,
    pub(crate) stem_hits: Counter,
    pub(crate) stem_misses: Counter,
    pub(crate) stem_failures: Counter,
    pub(crate) stems_booted: Counter,
    pub(crate) stems_failed: Counter,
    pub(crate) stems_wasted: Counter,
    pub(crate) wakes: Wakes,
    ready: Gauge,
    booting: Gauge,
    wanted: Gauge,
    instances: Gauge,
    memory: Gauge,
}

/// What became of wake-aheads, counted for the recorder and for whoever asks the pool.
pub(crate) struct Wakes {
    begun: AtomicU64,
    used: AtomicU64,
    wasted: AtomicU64,
    told: [Counter; 3],
}

impl Wakes {
    /// Puts the counts in.
    pub(crate) fn totals(&self, totals: &mut PoolTotals) {
        totals.wake_aheads = self.begun.load(Ordering::Relaxed);
        totals.wake_aheads_used = self.used.load(Ordering::Relaxed);
        totals.wake_aheads_wasted = self.wasted.load(Ordering::Relaxed);
    }

    pub(crate) fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.told[0].increment(1);
    }

    pub(crate) fn pay(&self) {
        self.used.fetch_add(1, Ordering::Relaxed);
        self.told[1].increment(1);
    }

    pub(crate) fn waste(&self) {
        self.wasted.fetch_add(1, Ordering::Relaxed);
        self.told[2].increment(1);
    }
}

impl Metrics {
    /// Sets the gauges to what is held now.
    pub(crate) fn held(&self, stems: &[StemView], totals: &PoolTotals) {
        let sum = |of: fn(&StemView) -> u32| stems.iter().map(|view| f64::from(of(view))).sum::<f64>();
        self.ready.set(sum(|view| view.ready));
        self.booting.set(sum(|view| view.booting));
        self.wanted.set(sum(|view| view.size));
        self.instances.set(totals.instances as f64);
        self.memory.set(totals.memory_bytes as f64);
    }

    pub(crate) fn new(recorder: &Recorder) -> Self {
        describe(recorder);
        let refused = |reason| recorder.counter(REFUSALS, &[("reason", reason)]);
        let stems = |result| recorder.counter(STEMS, &[("result", result)]);
        let boots = |result| recorder.counter(STEM_BOOTS, &[("result", result)]);
        let held = |state| recorder.gauge(STEMS_HELD, &[("state", state)]);
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
            quota: refused("quota"),
            shut: refused("start"),
            stem_hits: stems("hit"),
            stem_misses: stems("miss"),
            stem_failures: stems("failed"),
            stems_booted: boots("booted"),
            stems_failed: boots("failed"),
            stems_wasted: boots("wasted"),
            wakes: Wakes {
                begun: AtomicU64::new(0),
                used: AtomicU64::new(0),
                wasted: AtomicU64::new(0),
                told: ["begun", "used", "wasted"]
                    .map(|result| recorder.counter(WAKE_AHEADS, &[("result", result)])),
            },
            ready: held("ready"),
            booting: held("booting"),
            wanted: held("wanted"),
            instances: recorder.gauge(INSTANCES, &[]),
            memory: recorder.gauge(MEMORY_BYTES, &[]),
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
