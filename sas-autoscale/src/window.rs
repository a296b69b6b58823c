//! Metrics over time: the mean of a window of seconds, weighted or not, and the maximum of a window.

use sas_core::Aggregation;
use serde::{Deserialize, Serialize};

/// Nanoseconds; as a point in time since the Unix epoch.
pub(crate) type Nanos = i64;

pub(crate) const SECOND: Nanos = 1_000_000_000;

/// Seconds from the year 1, from which Go counts when it truncates, to 1970.
const YEAR_ONE: i128 = 62_135_596_800;

/// `at` rounded down to a multiple of `granularity` counted from the year 1.
fn truncate(at: Nanos, granularity: Nanos) -> Nanos {
    let since = i128::from(at) + YEAR_ONE * i128::from(SECOND);
    let rest = since.rem_euclid(i128::from(granularity));
    at.saturating_sub(i64::try_from(rest).unwrap_or(0))
}

/// `value` rounded to six decimals, as averages are.
fn round6(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Knative's metric window: a ring of buckets, one per second (or other granularity). Samples of one bucket add up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Window {
    buckets: Vec<f64>,
    window: Nanos,
    granularity: Nanos,
    first_write: Option<Nanos>,
    last_write: Option<Nanos>,
    total: f64,
    aggregation: Aggregation,
}

impl Window {
    /// An empty window. Both lengths are taken as at least one nanosecond, the window as at least one bucket and at
    /// most a day of them.
    pub(crate) fn new(window: Nanos, granularity: Nanos, aggregation: Aggregation) -> Self {
        let granularity = granularity.max(1);
        let window = window.clamp(1, granularity.saturating_mul(86_400));
        Self {
            buckets: vec![0.0; bucket_count(window, granularity)],
            window,
            granularity,
            first_write: None,
            last_write: None,
            total: 0.0,
            aggregation,
        }
    }

    /// A window over seconds that was filled without a gap from the second 1 to `newest`, whose value is
    /// given by `value_at`.
    pub(crate) fn filled(
        window: Nanos,
        aggregation: Aggregation,
        newest: i64,
        total: f64,
        value_at: impl Fn(i64) -> f64,
    ) -> Self {
        let mut filled = Self::new(window, SECOND, aggregation);
        let count = filled.buckets.len() as i64;
        for second in (newest - count + 1).max(1)..=newest {
            let slot = filled.slot(second);
            filled.buckets[slot] = value_at(second);
        }
        filled.first_write = Some(SECOND);
        filled.last_write = Some(newest * SECOND);
        filled.total = total;
        filled
    }

    /// Whether it was filled without a gap from the second 1, or for its whole length, to `newest`.
    pub(crate) fn is_filled_to(&self, newest: i64, aggregation: Aggregation) -> bool {
        let oldest = newest - self.buckets.len() as i64 + 1;
        self.first_write.is_some_and(|first| first == SECOND || first <= oldest.saturating_mul(SECOND))
            && self.last_write == Some(newest.saturating_mul(SECOND))
            && self.aggregation == aggregation
            && self.granularity == SECOND
    }

    /// The value of a second that is in the ring.
    pub(crate) fn value_at(&self, second: i64) -> f64 {
        self.buckets[self.slot(second)]
    }

    /// The running sum.
    pub(crate) const fn total(&self) -> f64 {
        self.total
    }

    /// The length in nanoseconds.
    pub(crate) const fn length(&self) -> Nanos {
        self.window
    }

    /// The slot of the ring for the bucket `index`.
    fn slot(&self, index: i64) -> usize {
        usize::try_from(index.rem_euclid(self.buckets.len() as i64)).unwrap_or(0)
    }

    /// The number of the bucket of `at`.
    fn index(&self, at: Nanos) -> i64 {
        at.div_euclid(SECOND) / (self.granularity / SECOND).max(1)
    }

    /// Adds `value` to the bucket of `at`. A sample older than the window is dropped.
    pub(crate) fn record(&mut self, at: Nanos, value: f64) {
        let bucket_time = truncate(at, self.granularity);
        if self.last_write != Some(bucket_time) {
            if self.last_write.is_some_and(|last| bucket_time.saturating_add(self.window) <= last) {
                return;
            }
            if self.first_write.is_none_or(|first| first > bucket_time) {
                self.first_write = Some(bucket_time);
            }
            match self.last_write {
                Some(last) if bucket_time <= last => {}
                Some(last) if bucket_time.saturating_sub(last) < self.window => {
                    for index in self.index(last) + 1..=self.index(at) {
                        let slot = self.slot(index);
                        self.total -= self.buckets[slot];
                        self.buckets[slot] = 0.0;
                    }
                    self.last_write = Some(bucket_time);
                }
                _ => {
                    self.first_write = Some(bucket_time);
                    self.buckets.fill(0.0);
                    self.total = 0.0;
                    self.last_write = Some(bucket_time);
                }
            }
        }
        let slot = self.slot(self.index(at));
        self.buckets[slot] += value;
        self.total += value;
    }

    /// Whether nothing was recorded for longer than the window.
    pub(crate) fn is_empty(&self, now: Nanos) -> bool {
        self.last_write.is_none_or(|last| truncate(now, self.granularity).saturating_sub(last) > self.window)
    }

    /// The average at `now`; 0 without data.
    pub(crate) fn average(&self, now: Nanos) -> f64 {
        match self.aggregation {
            Aggregation::WeightedExponential => self.weighted(now),
            _ => self.linear(now),
        }
    }

    fn linear(&self, now: Nanos) -> f64 {
        let Some(last) = self.last_write else { return 0.0 };
        let now = truncate(now, self.granularity);
        let age = now.saturating_sub(last);
        if age >= self.window {
            return 0.0;
        }
        let count = self.buckets.len() as i64;
        // After a resize at rest the first write is unknown, and the window counts as full.
        let span =
            self.first_write.map_or(i64::MAX, |first| last.saturating_sub(first) / self.granularity + 1);
        if age <= 0 {
            return round6(self.total / span.min(count) as f64);
        }
        let (from, to) = (self.index(last), self.index(now));
        let mut total = self.total;
        // One by one and in this order: sums of floats depend on it.
        for index in from + 1..=to {
            total -= self.buckets[self.slot(index)];
        }
        round6(total / span.min(count - (to - from)) as f64)
    }

    fn weighted(&self, now: Nanos) -> f64 {
        let (false, Some(last)) = (self.is_empty(now), self.last_write) else { return 0.0 };
        let now = truncate(now, self.granularity);
        let smoothing = smoothing(self.buckets.len());
        let mut multiplier = smoothing;
        let mut count = self.buckets.len() as i64;
        if now > last {
            let missing = (now - last) / self.granularity;
            multiplier *= (1.0 - smoothing).powf(missing as f64);
            count -= missing;
        }
        let newest = self.index(last);
        let mut result = 0.0;
        for age in 0..count {
            result += self.buckets[self.slot(newest - age)] * multiplier;
            multiplier *= 1.0 - smoothing;
        }
        result
    }

    /// Changes the length at `now`. What is known of a partly filled window is lost: it counts as full from then on.
    pub(crate) fn resize(&mut self, now: Nanos, window: Nanos) {
        let window = window.clamp(1, self.granularity.saturating_mul(86_400));
        if window == self.window {
            return;
        }
        let old_count = self.buckets.len();
        let count = bucket_count(window, self.granularity);
        let mut buckets = vec![0.0; count];
        let mut total = 0.0;
        let recent = self
            .last_write
            .filter(|last| truncate(now, self.granularity).saturating_sub(*last) <= self.window);
        match recent {
            Some(last) => {
                let newest = self.index(last);
                for age in 0..old_count.min(count) as i64 {
                    let value = self.buckets[self.slot(newest - age)];
                    buckets[usize::try_from((newest - age).rem_euclid(count as i64)).unwrap_or(0)] = value;
                    total += value;
                }
                self.first_write = Some(last - (old_count as i64 - 1) * self.granularity);
            }
            None => self.first_write = None,
        }
        self.buckets = buckets;
        self.total = total;
        self.window = window;
    }
}

fn bucket_count(window: Nanos, granularity: Nanos) -> usize {
    usize::try_from(window.div_euclid(granularity) + i64::from(window.rem_euclid(granularity) != 0))
        .unwrap_or(1)
        .max(1)
}

/// How much the newest of `count` buckets weighs, so that a whole window holds 99.99 % of all weight.
fn smoothing(count: usize) -> f64 {
    (1.0 - (1.0_f64 - 0.9999).powf(1.0 / count as f64)).max(0.2)
}

/// The weights of `count` buckets, newest first, as [`Window::average`] makes them when the newest is the present.
pub(crate) fn weights(count: usize) -> Vec<f64> {
    let smoothing = smoothing(count);
    let mut multiplier = smoothing;
    let weight = |_| {
        let weight = multiplier;
        multiplier *= 1.0 - smoothing;
        weight
    };
    (0..count).map(weight).collect()
}

/// The maximum over the last buckets, counted from the newest that was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MaxWindow {
    maxima: Vec<i32>,
    granularity_seconds: i64,
    newest: Option<i64>,
}

impl MaxWindow {
    /// A window over `duration` in buckets of `granularity`, at most a day of seconds.
    pub(crate) fn new(duration: Nanos, granularity: Nanos) -> Self {
        let granularity = granularity.max(SECOND);
        let duration = duration.clamp(1, granularity.saturating_mul(86_400));
        Self {
            maxima: vec![0; bucket_count(duration, granularity)],
            granularity_seconds: granularity / SECOND,
            newest: None,
        }
    }

    /// A window whose newest bucket is `newest`, with what `value_at` says of each bucket from 0 on.
    pub(crate) fn filled(
        duration: Nanos,
        granularity: Nanos,
        newest: i64,
        value_at: impl Fn(i64) -> i32,
    ) -> Self {
        let mut filled = Self::new(duration, granularity);
        filled.maxima.fill(i32::MIN);
        filled.newest = Some(newest);
        for index in (newest - filled.slots() + 1).max(0)..=newest {
            let slot = usize::try_from(index.rem_euclid(filled.slots())).unwrap_or(0);
            filled.maxima[slot] = value_at(index);
        }
        filled
    }

    /// Whether the newest bucket is `newest`.
    pub(crate) fn is_recorded_to(&self, newest: i64) -> bool {
        self.newest == Some(newest)
    }

    /// How many buckets there are.
    pub(crate) const fn slots(&self) -> i64 {
        self.maxima.len() as i64
    }

    /// The maximum of a bucket that is in the window; `i32::MIN` when nothing was recorded in it.
    pub(crate) fn value_at(&self, index: i64) -> i32 {
        self.maxima[usize::try_from(index.rem_euclid(self.slots())).unwrap_or(0)]
    }

    /// Records `value` at `now`. A record older than the newest counts for the newest.
    pub(crate) fn record(&mut self, now: Nanos, value: i32) {
        let index = now.div_euclid(SECOND) / self.granularity_seconds;
        let count = self.maxima.len() as i64;
        let newest = match self.newest {
            Some(newest) if index <= newest => newest,
            Some(newest) => {
                let from = index - (index - newest).min(count) + 1;
                for fresh in from..=index {
                    self.maxima[usize::try_from(fresh.rem_euclid(count)).unwrap_or(0)] = i32::MIN;
                }
                index
            }
            None => {
                self.maxima.fill(i32::MIN);
                index
            }
        };
        self.newest = Some(newest);
        let slot = usize::try_from(newest.rem_euclid(count)).unwrap_or(0);
        self.maxima[slot] = self.maxima[slot].max(value);
    }

    /// The maximum; 0 before any record.
    pub(crate) fn current(&self) -> i32 {
        if self.newest.is_none() {
            return 0;
        }
        self.maxima.iter().copied().max().unwrap_or(0)
    }
}
