//! How often one principal may ask: a virtual schedule for each (GCRA), which is one moment of time. And how much of all that is
//! asked for is under way at once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::extract::BODY_LIMIT;

/// Principals that are remembered before those that are quiet are forgotten.
const FORGET_ABOVE: usize = 4096;

#[derive(Debug)]
pub(super) struct RateLimit {
    /// One request's share of the time.
    step: Duration,
    /// How far a schedule may run ahead.
    ahead: Duration,
    schedules: Mutex<HashMap<String, Instant>>,
}

impl RateLimit {
    /// `rate` requests per second, `burst` at once after quiet.
    pub(super) fn new(rate: f64, burst: u32) -> Self {
        let step = Duration::from_secs_f64(1.0 / rate.clamp(0.001, 1e9));
        Self { step, ahead: step * burst.max(1), schedules: Mutex::default() }
    }

    /// Counts a request, or says after how long one would be let in.
    pub(super) fn take(&self, principal: &str, now: Instant) -> Result<(), Duration> {
        let mut schedules = self.schedules.lock();
        if schedules.len() >= FORGET_ABOVE && !schedules.contains_key(principal) {
            schedules.retain(|_, due| *due > now);
            // All of them are busy: a newcomer waits for one of them.
            if schedules.len() >= FORGET_ABOVE {
                return Err(self.step);
            }
        }
        let due = schedules.get(principal).map_or(now, |due| (*due).max(now)) + self.step;
        if due > now + self.ahead {
            return Err(due - now - self.ahead);
        }
        schedules.insert(principal.to_owned(), due);
        Ok(())
    }
}

/// What bodies of changes under way may take together.
const BODIES: usize = 256 << 20;
/// What a change counts at the least, since it is more than its body: 1,024 are under way at once.
const LEAST: usize = 256 << 10;

/// Room for changes that are under way, in KiB.
#[derive(Clone, Debug)]
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BODIES >> 10)))
    }
}

impl Room {
    /// Room for a change with a body of at most so many bytes, as long as what is given lives; `None` while there is too much
    /// under way. A body that nobody has said the length of counts as the longest.
    pub(super) fn take(&self, body: Option<u64>) -> Option<OwnedSemaphorePermit> {
        let bytes = body.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(BODY_LIMIT);
        let kib = u32::try_from(bytes.clamp(LEAST, BODY_LIMIT) >> 10).unwrap_or(u32::MAX);
        Arc::clone(&self.0).try_acquire_many_owned(kib).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_then_the_rate_each_for_itself() {
        let (limit, began) = (RateLimit::new(10.0, 3), Instant::now());
        for _ in 0..3 {
            assert_eq!(limit.take("a", began), Ok(()));
        }
        assert_eq!(limit.take("a", began), Err(Duration::from_millis(100)));
        assert_eq!(limit.take("b", began), Ok(()), "another one is not held to it");
        assert_eq!(limit.take("a", began + Duration::from_millis(100)), Ok(()));
        assert!(limit.take("a", began + Duration::from_millis(150)).is_err());
        let late = began + Duration::from_secs(60);
        assert_eq!((0..5).filter(|_| limit.take("a", late).is_ok()).count(), 3, "quiet is not saved up");
    }

    #[test]
    fn changes_under_way_are_bounded_in_number_and_bytes() {
        for (body, most) in
            [(Some(0), 1024), (Some(2000), 1024), (Some(1 << 20), 256), (Some(64 << 20), 51), (None, 51)]
        {
            let room = Room::default();
            let taken: Vec<_> = std::iter::from_fn(|| room.take(body)).take(2000).collect();
            assert_eq!(taken.len(), most, "{body:?}");
            drop(taken);
            assert!(room.take(body).is_some(), "what is over gives its room back");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let (limit, began) = (RateLimit::new(1.0, 1), Instant::now());
        for at in 0..2 * FORGET_ABOVE {
            let _ = limit.take(&at.to_string(), began);
        }
        assert_eq!(limit.schedules.lock().len(), FORGET_ABOVE);
        assert!(limit.take("late", began).is_err());
        assert_eq!(limit.take("later", began + Duration::from_secs(2)), Ok(()));
    }
}
