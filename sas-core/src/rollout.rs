//! Gradual roll-out: how a new revision's share is to grow, and who counts what revisions answer.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{RevisionKey, SpecErrors};

/// Which way traffic goes to a new revision: two settings of the same plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RolloutKind {
    /// A small share first, then larger ones.
    #[default]
    Canary,
    /// The new revision is sized for all of the load beside the old one, then gets all of it at once; the old one is kept
    /// for a while.
    BlueGreen,
}

/// Instances that old and new revision may have together beyond what the service needs with one revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Surge {
    /// So many.
    Instances(u32),
    /// So many percent of what the service needs, rounded up.
    Percent(u32),
}

impl Surge {
    /// How many instances that is where the service needs so many.
    pub fn of(self, needed: u32) -> u32 {
        match self {
            Self::Instances(instances) => instances,
            Self::Percent(percent) => {
                u32::try_from((u64::from(needed) * u64::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
            }
        }
    }
}

impl fmt::Display for Surge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instances(instances) => write!(f, "{instances}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// How traffic moves to a new revision, step by step: a deployer gives it, the control plane follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct RolloutPlan {
    /// Percentages that the new revision gets, one step after the other; ends with 100.
    pub steps: Vec<u32>,
    /// How long each step is held, at least.
    pub hold: Duration,
    /// Requests that the new revision must have answered within a step before the next one. Without traffic nothing
    /// can be learnt, so a step waits for it, but not longer than ten times `hold`.
    pub min_requests: u64,
    /// Errors of the new revision that are borne, as a share of its requests, beyond those of the old one.
    pub max_more_errors: f64,
    /// By which part the new revision may be slower than the old one at [`Self::quantile`], 0.5 for half as slow again;
    /// `None`: twice as slow ([`Self::MAX_SLOWER`]), judged after 200 answers whatever [`Self::min_requests`] says; 100 is as
    /// good as not looked at. Only a difference that chance does not explain counts.
    pub max_slower: Option<f64>,
    /// Where latencies are compared: 0.95 for the time within which 95 of 100 answers begin.
    pub quantile: f64,
    /// Which way the traffic goes.
    pub kind: RolloutKind,
    /// Instances of both revisions together beyond what the service needs.
    pub surge: Surge,
    /// How long the new revision may take until it has the instances that the next share needs; else the roll-out is
    /// stopped.
    pub ready_within: Duration,
    /// How long the old revision is kept at its size once the new one has everything, so that going back takes no start.
    /// The new one is watched meanwhile.
    pub keep_old: Duration,
}

impl Default for RolloutPlan {
    fn default() -> Self {
        Self {
            steps: vec![1, 10, 25, 50, 100],
            hold: Duration::from_secs(60),
            min_requests: 20,
            max_more_errors: 0.01,
            max_slower: None,
            quantile: 0.95,
            kind: RolloutKind::Canary,
            surge: Surge::Percent(25),
            ready_within: Duration::from_secs(600),
            keep_old: Duration::ZERO,
        }
    }
}

impl RolloutPlan {
    /// By which part a new revision may be slower where its plan does not say.
    pub const MAX_SLOWER: f64 = 1.0;

    /// Even steps over `duration`, 1 % first, then equal parts.
    pub fn over(duration: Duration) -> Self {
        Self { hold: duration / 5, steps: vec![1, 20, 40, 60, 80, 100], min_requests: 0, ..Self::default() }
    }

    /// Sized for everything first, then one switch; the old revision is kept for five minutes.
    pub fn blue_green() -> Self {
        Self {
            kind: RolloutKind::BlueGreen,
            steps: vec![100],
            surge: Surge::Percent(100),
            keep_old: Duration::from_secs(300),
            ..Self::default()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.steps.last() != Some(&100) {
            errors.push("steps", format!("{:?}", self.steps), "percentages that end with 100");
        }
        if self.steps.first() == Some(&0) || !self.steps.is_sorted_by(|one, next| one < next) {
            errors.push(
                "steps",
                format!("{:?}", self.steps),
                "percentages from 1 on, each above the one before",
            );
        }
        if !(0.0..=1.0).contains(&self.max_more_errors) {
            errors.push("max_more_errors", self.max_more_errors, "a share from 0 to 1");
        }
        if let Some(slower) = self.max_slower
            && !(0.0..=100.0).contains(&slower)
        {
            errors.push("max_slower", slower, "a part from 0 to 100, such as 0.5 for half as slow again");
        }
        if !(0.5..=0.99).contains(&self.quantile) {
            errors.push("quantile", self.quantile, "from 0.5 to 0.99");
        }
        if self.ready_within.is_zero() {
            errors.push("ready_within", "0s", "longer than nothing");
        }
        if let Surge::Percent(percent @ 101..) = self.surge {
            errors.push("surge", format!("{percent}%"), "a number of instances, or at most 100%");
        }
        if self.kind == RolloutKind::BlueGreen {
            if self.steps != [100] {
                errors.push("steps", format!("{:?}", self.steps), "100 alone where the kind is blue-green");
            }
            if self.surge != Surge::Percent(100) {
                errors.push("surge", self.surge, "100% where the kind is blue-green");
            }
        }
        errors.into_result()
    }
}

/// Answers of a revision, and how many of them were failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct AnswerCounts {
    /// How many requests were answered.
    pub requests: u64,
    /// Of these, failed: a status of 500 or more, or no answer of an instance at all.
    pub errors: u64,
}

impl AnswerCounts {
    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    /// The share of the answers that were failures, 0 to 1; 0 where nothing was answered.
    pub fn share(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

/// How long answers took, in 416 buckets from a microsecond to nine minutes, each a sixteenth of a power of two wide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatencyCounts {
    buckets: Box<[u64]>,
}

impl LatencyCounts {
    /// How many buckets there are.
    pub const BUCKETS: usize = 416;

    /// Nothing counted yet.
    pub fn new() -> Self {
        Self { buckets: vec![0; Self::BUCKETS].into() }
    }

    /// What somebody else counted, bucket by bucket as [`Self::bucket`] says; what is beyond the last is left out.
    pub fn from_buckets(counts: impl IntoIterator<Item = u64>) -> Self {
        let mut all = Self::new();
        for (bucket, count) in all.buckets.iter_mut().zip(counts) {
            *bucket = count;
        }
        all
    }

    /// The bucket of a time; what is longer than the last stands for is in the last.
    pub const fn bucket(took: Duration) -> usize {
        let micros = took.as_micros();
        if micros < 16 {
            return micros as usize;
        }
        let octave = 127 - micros.leading_zeros() as usize;
        let sixteenth = (micros >> (octave - 4)) as usize & 15;
        let bucket = (octave - 3) * 16 + sixteenth;
        if bucket < Self::BUCKETS { bucket } else { Self::BUCKETS - 1 }
    }

    /// The shortest time of a bucket.
    pub const fn at_least(bucket: usize) -> Duration {
        if bucket < 16 {
            return Duration::from_micros(bucket as u64);
        }
        Duration::from_micros((16 + bucket as u64 % 16) << (bucket / 16 - 1))
    }

    /// Counts an answer.
    pub fn count(&mut self, took: Duration) {
        self.buckets[Self::bucket(took)] += 1;
    }

    /// How many were counted.
    pub fn total(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How many surely took at least this long: those of buckets that begin there or later.
    pub fn over(&self, time: Duration) -> u64 {
        let first = (0..Self::BUCKETS).find(|bucket| Self::at_least(*bucket) >= time);
        first.map_or(0, |first| self.buckets[first..].iter().sum())
    }

    /// The time within which this share of the answers came, rounded up to the end of its bucket; `None`: nothing was
    /// counted, or the share is above 1.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.total() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Self::at_least(bucket + 1))
    }
}

impl Default for LatencyCounts {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts the answers of revisions where somebody wants to know: the gateway.
pub trait AnswerCounter: fmt::Debug + Send + Sync + 'static {
    /// Counts the answers of a revision from now on, beginning at zero also when it was counted before.
    fn watch_answers(&self, revision: RevisionKey);

    /// Stops counting.
    fn unwatch_answers(&self, revision: RevisionKey);

    /// What was counted; `None`: nobody watches this revision.
    fn answers(&self, revision: RevisionKey) -> Option<AnswerCounts>;

    /// How long the instances took to begin the answers that were no failures; `None`: nobody watches this revision, or
    /// latencies are not counted here.
    fn latencies(&self, revision: RevisionKey) -> Option<LatencyCounts> {
        let _ = revision;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_is_in_the_bucket_that_begins_before_it_and_ends_after_it() {
        for micros in (0..5_000).chain((5_000..600_000_000).step_by(99_991)) {
            let took = Duration::from_micros(micros);
            let bucket = LatencyCounts::bucket(took);
            assert!(LatencyCounts::at_least(bucket) <= took, "{took:?}");
            assert!(
                bucket == LatencyCounts::BUCKETS - 1 || took < LatencyCounts::at_least(bucket + 1),
                "{took:?}"
            );
        }
        assert_eq!(LatencyCounts::bucket(Duration::MAX), LatencyCounts::BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_right_to_a_sixteenth() {
        let mut counts = LatencyCounts::new();
        assert_eq!(counts.quantile(0.5), None);
        (1..=1_000).for_each(|millis| counts.count(Duration::from_millis(millis)));
        for share in [0.01, 0.5, 0.95, 1.0] {
            let is = counts.quantile(share).unwrap().as_secs_f64();
            assert!((share..share * 1.0635).contains(&is), "{share}: {is}");
        }
        assert_eq!(counts.quantile(1.1), None);
        assert!((400..=500).contains(&counts.over(Duration::from_millis(500))));
    }
}
