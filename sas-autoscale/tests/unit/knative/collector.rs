//! From samples to decisions as Knative wires them: four windows, a decider, and who is told about what.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use crate::{
    kpa::{Averages, Decider, DeciderSpec, Ready, Scaled},
    window::Nanos,
    window::SECOND as SECOND_NS,
    window::Window,
};
use sas_core::Aggregation;

/// What an instance or an activator reports of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stat {
    /// Mean requests at once.
    pub concurrency: f64,
    /// Of these, requests that came through an activator, which counts them itself.
    pub proxied_concurrency: f64,
    /// Requests per second that came.
    pub requests: f64,
    /// Of these, requests that came through an activator.
    pub proxied_requests: f64,
}

/// Why there are no averages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoAverages {
    /// Nobody collects this metric.
    #[error("nobody collects the metric")]
    NotCollecting,
    /// Nothing was recorded for a stable window.
    #[error("no data for a stable window")]
    NoData,
}

/// The windows of one revision: concurrency and requests, each over the stable and the panic window.
#[derive(Clone, Debug)]
pub struct Collector {
    concurrency: [Window; 2],
    requests: [Window; 2],
    rps: bool,
    scraped: bool,
}

impl Collector {
    /// Empty windows. `scraped` is false where no instance is asked (a target burst capacity of -1), so that no data
    /// means no load.
    pub fn new(stable: Nanos, panic: Nanos, aggregation: Aggregation, rps: bool, scraped: bool) -> Self {
        let pair =
            || [Window::new(stable, SECOND_NS, aggregation), Window::new(panic, SECOND_NS, aggregation)];
        Self { concurrency: pair(), requests: pair(), rps, scraped }
    }

    /// Records a report at `at`.
    pub fn record(&mut self, at: Nanos, stat: &Stat) {
        for window in &mut self.concurrency {
            window.record(at, stat.concurrency - stat.proxied_concurrency);
        }
        for window in &mut self.requests {
            window.record(at, stat.requests - stat.proxied_requests);
        }
    }

    /// The averages at `now`.
    ///
    /// # Errors
    /// [`NoAverages::NoData`] when nothing was recorded for a stable window although instances are asked.
    pub fn averages(&self, now: Nanos) -> Result<Averages, NoAverages> {
        let [stable, panic] = if self.rps { &self.requests } else { &self.concurrency };
        if stable.is_empty(now) && self.scraped {
            return Err(NoAverages::NoData);
        }
        Ok(Averages { stable: stable.average(now), panic: panic.average(now) })
    }

    /// Changes the lengths of the windows at `now`.
    pub fn resize(&mut self, now: Nanos, stable: Nanos, panic: Nanos) {
        for windows in [&mut self.concurrency, &mut self.requests] {
            windows[0].resize(now, stable);
            windows[1].resize(now, panic);
        }
    }
}

/// As Go converts it: towards zero; what does not fit saturates.
fn int(value: f64) -> i32 {
    value as i32
}

/// The decider of one revision with the decision that is in force.
#[derive(Clone, Debug)]
pub struct MultiScaler {
    decider: Decider,
    desired: i32,
    excess_burst: i32,
}

impl MultiScaler {
    /// A decider without a decision: -1.
    pub fn new(spec: &DeciderSpec, now: Nanos, ready: Ready) -> Self {
        let burst = spec.target_burst_capacity;
        let excess_burst = if burst == -1.0 || burst == 0.0 {
            int(burst)
        } else {
            int(f64::from(spec.initial_scale) * spec.total_value - burst)
        };
        Self { decider: Decider::new(spec, now, ready), desired: -1, excess_burst }
    }

    /// The decision in force; -1 before any.
    pub const fn desired(&self) -> i32 {
        self.desired
    }

    /// The excess burst capacity in force.
    pub const fn excess_burst(&self) -> i32 {
        self.excess_burst
    }

    /// The decider.
    pub const fn decider(&self) -> &Decider {
        &self.decider
    }

    /// Decides, and says whether the reconciler is to be told: the number or the sign of the excess changed.
    pub fn tick(
        &mut self,
        spec: &DeciderSpec,
        now: Nanos,
        ready: Ready,
        averages: Option<Averages>,
    ) -> (Option<Scaled>, bool) {
        let Some(scaled) = self.decider.scale(spec, now, ready, averages) else { return (None, false) };
        let told = self.desired != scaled.desired || (self.excess_burst < 0) != (scaled.excess_burst < 0);
        self.desired = scaled.desired;
        self.excess_burst = scaled.excess_burst;
        (Some(scaled), told)
    }

    /// Whether a report of an activator asks for a tick at once: there is load, and none is wanted.
    pub fn is_poked_by(&self, concurrency: f64) -> bool {
        concurrency != 0.0 && self.desired == 0
    }
}
