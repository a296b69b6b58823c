//! A wall clock that is wrong.

use std::time::Duration;

use parking_lot::Mutex;
use sas_core::{Clock, Timestamp, TokioClock};

/// Moves with virtual time, some parts in a million too fast or slow, and jumps.
#[derive(Debug)]
pub struct SimClock {
    base: TokioClock,
    start: Timestamp,
    drift_ppm: i64,
    offset: Mutex<i64>,
}

impl SimClock {
    /// A clock that says `start` now and drifts by `drift_ppm`.
    pub fn new(start: Timestamp, drift_ppm: i64) -> Self {
        Self { base: TokioClock::starting_at(start), start, drift_ppm, offset: Mutex::new(0) }
    }

    /// Jumps by so many milliseconds.
    pub fn jump(&self, millis: i64) {
        *self.offset.lock() += millis * 1_000_000;
    }

    /// How far it is off by its jumps.
    pub fn offset(&self) -> Duration {
        Duration::from_nanos(self.offset.lock().unsigned_abs())
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let now = self.base.now();
        let elapsed = now.0 - self.start.0;
        Timestamp(now.0 + elapsed / 1_000_000 * self.drift_ppm + *self.offset.lock())
    }
}
