//! The driver's own clock: it never goes back, and measures between ticks.

use std::sync::{
    OnceLock,
    atomic::{AtomicI64, Ordering},
};

use tokio::time::Instant;

use crate::window::Nanos;

/// No step was made: the ticks are the driver's own.
const NOT_STEPPED: i64 = i64::MIN;

/// Time since the driver was made; or, once a caller steps the driver, what that caller said last.
#[derive(Debug)]
pub(super) struct Time {
    origin: Instant,
    stepped: AtomicI64,
    born: OnceLock<Nanos>,
}

impl Time {
    pub(super) fn new() -> Self {
        Self { origin: Instant::now(), stepped: AtomicI64::new(NOT_STEPPED), born: OnceLock::new() }
    }

    /// A caller steps the driver, to `now`.
    pub(super) fn step(&self, now: Nanos) {
        self.stepped.store(now, Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> Nanos {
        match self.stepped.load(Ordering::Relaxed) {
            NOT_STEPPED => i64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(i64::MAX),
            stepped => stepped,
        }
    }

    /// When the first visit was, which is now if there was none.
    pub(super) fn born(&self, now: Nanos) -> Nanos {
        *self.born.get_or_init(|| now)
    }
}
