//! The pool's time: nanoseconds of its life, which fit a word and need no time zone.

use std::time::Duration;

use tokio::time::Instant;

/// Turns instants into nanoseconds of the pool's life and back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolClock {
    epoch: Instant,
}

impl PoolClock {
    pub(crate) fn start() -> Self {
        Self { epoch: Instant::now() }
    }

    /// Nanoseconds of the pool's life, from 1: 0 is "never".
    pub(crate) fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    pub(crate) fn at(&self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.epoch)) + 1
    }

    pub(crate) fn instant(&self, at: u64) -> Instant {
        // A century is as good as never, and within what every platform's clock can say.
        self.epoch + Duration::from_nanos(at.saturating_sub(1)).min(Duration::from_secs(100 * 365 * 86_400))
    }
}

/// A duration in the pool's nanoseconds.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX >> 1).min(u64::MAX >> 1)
}
