//! How often one principal may ask: a virtual schedule for each (GCRA), which is one moment of time.

use std::{collections::HashMap, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

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
