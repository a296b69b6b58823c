//! A wall clock that tests set.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_core::{Clock, Timestamp, TokioClock};

/// Moves with tokio's clock, paused or not, and jumps when it is told to.
#[derive(Clone, Debug)]
pub struct FakeClock {
    base: TokioClock,
    offset: Arc<Mutex<i64>>,
}

impl FakeClock {
    /// A clock that says `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self { base: TokioClock::starting_at(start), offset: Arc::default() }
    }

    /// Jumps forward, as after a suspended laptop.
    pub fn jump_forward(&self, by: Duration) {
        *self.offset.lock() += i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    }

    /// Jumps back, as after a correction.
    pub fn jump_back(&self, by: Duration) {
        *self.offset.lock() -= i64::try_from(by.as_nanos()).unwrap_or(i64::MAX);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.base.now().0.saturating_add(*self.offset.lock()))
    }
}
