//! Gradual roll-out: how a new revision's share is to grow, and who counts what revisions answer.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{RevisionKey, SpecErrors};

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
}

impl Default for RolloutPlan {
    fn default() -> Self {
        Self {
            steps: vec![1, 10, 25, 50, 100],
            hold: Duration::from_secs(60),
            min_requests: 20,
            max_more_errors: 0.01,
        }
    }
}

impl RolloutPlan {
    /// Even steps over `duration`, 1 % first, then equal parts.
    pub fn over(duration: Duration) -> Self {
        Self { hold: duration / 5, steps: vec![1, 20, 40, 60, 80, 100], min_requests: 0, ..Self::default() }
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

/// Counts the answers of revisions where somebody wants to know: the gateway.
pub trait AnswerCounter: fmt::Debug + Send + Sync + 'static {
    /// Counts the answers of a revision from now on, beginning at zero also when it was counted before.
    fn watch_answers(&self, revision: RevisionKey);

    /// Stops counting.
    fn unwatch_answers(&self, revision: RevisionKey);

    /// What was counted; `None`: nobody watches this revision.
    fn answers(&self, revision: RevisionKey) -> Option<AnswerCounts>;
}
