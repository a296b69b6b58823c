//! The breaker in front of instances: so many at once, so many waiting, no more.

/// How a request was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// It runs.
    Running,
    /// It waits for a slot.
    Waiting,
    /// Too many are in flight: 503.
    QueueFull,
}

/// What is in a breaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BreakerCounts {
    /// Requests that run.
    pub running: u64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that were refused.
    pub rejected: u64,
}

impl BreakerCounts {
    /// Running and waiting.
    pub const fn in_flight(&self) -> u64 {
        self.running + self.waiting
    }
}

/// A breaker as a state machine without threads: who waits is not told apart.
///
/// Whether it is full hangs on its fixed slots, not on the capacity of the moment.
#[derive(Clone, Debug)]
pub struct Breaker {
    slots: Option<u64>,
    max_concurrency: u64,
    capacity: u64,
    counts: BreakerCounts,
}

impl Breaker {
    /// A breaker for `max_concurrency` at once and `queue_depth` waiting, with `capacity` now.
    pub fn new(queue_depth: u64, max_concurrency: u64, capacity: u64) -> Self {
        Self {
            slots: Some(queue_depth.saturating_add(max_concurrency)),
            max_concurrency,
            capacity: capacity.min(max_concurrency),
            counts: BreakerCounts::default(),
        }
    }

    /// The breaker of instances without a limit: it is open or shut, and never full.
    pub fn infinite(open: bool) -> Self {
        Self { slots: None, max_concurrency: 1, capacity: u64::from(open), counts: BreakerCounts::default() }
    }

    /// What is in it.
    pub const fn counts(&self) -> BreakerCounts {
        self.counts
    }

    /// The capacity now.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    fn has_slot(&self) -> bool {
        if self.slots.is_none() { self.capacity > 0 } else { self.counts.running < self.capacity }
    }

    /// A request comes.
    pub fn start(&mut self) -> Admission {
        if self.slots.is_some_and(|slots| self.counts.in_flight() >= slots) {
            self.counts.rejected += 1;
            return Admission::QueueFull;
        }
        if self.has_slot() {
            self.counts.running += 1;
            Admission::Running
        } else {
            self.counts.waiting += 1;
            Admission::Waiting
        }
    }

    /// Takes a slot now or not at all; what waits is not asked.
    pub fn reserve(&mut self) -> bool {
        let full = self.slots.is_some_and(|slots| self.counts.in_flight() >= slots);
        let free = !full && self.has_slot();
        self.counts.running += u64::from(free);
        free
    }

    /// A running request ends.
    pub fn finish(&mut self) {
        self.counts.running = self.counts.running.saturating_sub(1);
        self.admit();
    }

    /// A waiting request goes away.
    pub fn cancel_waiting(&mut self) {
        self.counts.waiting = self.counts.waiting.saturating_sub(1);
    }

    /// Changes the capacity. What runs is never cut: a lower one is reached as it ends.
    pub fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity.min(self.max_concurrency);
        self.admit();
    }

    fn admit(&mut self) {
        while self.counts.waiting > 0 && self.has_slot() {
            self.counts.waiting -= 1;
            self.counts.running += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_infinite_breaker_releases_all_that_wait_at_once() {
        let mut breaker = Breaker::infinite(false);
        for _ in 0..20_000 {
            assert_eq!(breaker.start(), Admission::Waiting);
        }
        breaker.set_capacity(1);
        assert_eq!(breaker.counts().running, 20_000);
        assert_eq!(breaker.start(), Admission::Running);
    }
}
