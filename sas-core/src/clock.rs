//! Wall time. Pure code takes `now`; everything that sleeps uses `tokio::time`.

use std::{
    fmt,
    ops::{Add, Sub},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// Wall-clock nanoseconds since the Unix epoch (1677 to 2262).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The timestamp of `seconds` since the epoch, saturating.
    pub const fn from_secs(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000_000))
    }

    /// The timestamp of `millis` since the epoch, saturating.
    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    /// Whole seconds since the epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000_000)
    }

    /// Whole milliseconds since the epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// Time since `earlier`, zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        let ns = self.0.saturating_sub(earlier.0);
        if ns <= 0 { Duration::ZERO } else { Duration::from_nanos(ns as u64) }
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(rhs.as_nanos()).unwrap_or(i64::MAX)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(rhs.as_nanos()).unwrap_or(i64::MAX)))
    }
}

/// A source of wall time, for stamps and schedules; never for measuring or sleeping.
///
/// All parts of a platform ask it. It is given to the builder's `clock`; `examples/custom_parts.rs` wraps the system's.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The wall time now. May jump in either direction.
    fn now(&self) -> Timestamp;
}

#[deny(clippy::missing_trait_methods)]
impl<T: Clock + ?Sized> Clock for Arc<T> {
    fn now(&self) -> Timestamp {
        (**self).now()
    }
}

/// The system's wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "the one place that reads the system's wall clock")]
    fn now(&self) -> Timestamp {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)),
            Err(before) => {
                Timestamp(i64::try_from(before.duration().as_nanos()).map_or(i64::MIN, i64::wrapping_neg))
            }
        }
    }
}

/// A wall clock that starts at a given time and moves with tokio's clock, paused or not.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use sas_core::{Clock, Timestamp, TokioClock};
/// use std::time::Duration;
///
/// let clock = TokioClock::starting_at(Timestamp::from_secs(1_000));
/// tokio::time::advance(Duration::from_secs(5)).await;
/// assert_eq!(clock.now(), Timestamp::from_secs(1_005));
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TokioClock {
    origin: tokio::time::Instant,
    at_origin: Timestamp,
}

impl TokioClock {
    /// A clock that says `start` now.
    pub fn starting_at(start: Timestamp) -> Self {
        Self { origin: tokio::time::Instant::now(), at_origin: start }
    }

    /// The wall time of a tokio instant on this clock.
    pub fn at(&self, instant: tokio::time::Instant) -> Timestamp {
        match instant.checked_duration_since(self.origin) {
            Some(after) => self.at_origin + after,
            None => self.at_origin - self.origin.duration_since(instant),
        }
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        self.at(tokio::time::Instant::now())
    }
}
