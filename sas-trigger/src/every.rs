//! A plain period.

use std::{sync::Arc, time::Duration};

use sas_core::{Schedule, Timestamp};

/// Fires at `anchor`, and every `period` before and after it: a wall-clock grid that is the same after a restart.
///
/// ```
/// use sas_core::{Schedule, Timestamp};
/// use sas_trigger::Every;
/// use std::{sync::Arc, time::Duration};
///
/// let schedule = Every::new(Duration::from_secs(10)).expect("longer than nothing");
/// assert_eq!(schedule.next_after(Timestamp::from_secs(25)), Some(Timestamp::from_secs(30)));
/// assert_eq!(schedule.next_after(Timestamp::from_secs(30)), Some(Timestamp::from_secs(40)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every {
    period_ns: i64,
    anchor: Timestamp,
}

impl Every {
    /// Every `period`, counted from the Unix epoch. `None` for periods of less than a millisecond or more than 200 years.
    pub fn new(period: Duration) -> Option<Self> {
        Self::anchored(period, Timestamp(0))
    }

    /// Every `period`, counted from `anchor`. `None` as [`Every::new`].
    pub fn anchored(period: Duration, anchor: Timestamp) -> Option<Self> {
        let period_ns = i64::try_from(period.as_nanos()).ok()?;
        (1_000_000..=6_300_000_000_000_000_000).contains(&period_ns).then_some(Self { period_ns, anchor })
    }
}

impl Schedule for Every {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let (after, anchor, period) =
            (i128::from(after.0), i128::from(self.anchor.0), i128::from(self.period_ns));
        let periods = (after - anchor).div_euclid(period) + 1;
        i64::try_from(anchor + periods * period).ok().map(Timestamp)
    }
}

/// Another schedule, from a time on, and until a time.
#[derive(Clone, Debug)]
pub struct Within {
    schedule: Arc<dyn Schedule>,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
}

impl Within {
    /// The fires of `schedule` from `start` on and before `end`; `None`: no such bound.
    pub fn new(schedule: Arc<dyn Schedule>, start: Option<Timestamp>, end: Option<Timestamp>) -> Self {
        Self { schedule, start, end }
    }
}

impl Schedule for Within {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        // The start itself may be a fire.
        let after = self.start.map_or(after, |start| after.max(Timestamp(start.0.saturating_sub(1))));
        let next = self.schedule.next_after(after)?;
        self.end.is_none_or(|end| next < end).then_some(next)
    }
}
