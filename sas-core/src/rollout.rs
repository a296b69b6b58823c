//! Gradual roll-out: a new revision's share grows in steps, and falls to nothing when it fails.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{RevisionKey, SpecErrors, Timestamp};

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

    fn share(self) -> f64 {
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

/// How far a roll-out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RolloutState {
    /// Under way.
    Moving,
    /// The new revision has everything.
    Done,
    /// The new revision failed too often, and the old one has everything again.
    Stopped,
}

/// What a roll-out does next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RolloutStep {
    /// The shares stay as they are.
    Hold,
    /// The new revision's share is this many percent from now on. Counting begins anew.
    Shift(u32),
    /// The new revision has nothing any more.
    Stop {
        /// What was seen.
        reason: String,
    },
}

/// A roll-out, wherever it is. Pure: plan, counts and `now` decide; it serialises, so a restarted platform goes on where
/// it was.
///
/// ```
/// use sas_core::{AnswerCounts, RolloutPlan, RolloutProgress, RolloutStep, Timestamp};
/// let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0))?;
/// assert_eq!(rollout.percent(), 1);
/// let bad = AnswerCounts { requests: 100, errors: 50 };
/// let stop = rollout.observe(AnswerCounts::default(), bad, Timestamp::from_secs(1));
/// assert!(matches!(stop, RolloutStep::Stop { .. }));
/// assert_eq!(rollout.percent(), 0);
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutProgress {
    plan: RolloutPlan,
    step: usize,
    since: Timestamp,
    state: RolloutState,
}

impl RolloutProgress {
    /// A roll-out at its first step.
    ///
    /// # Errors
    /// When the plan is not sound.
    pub fn new(plan: RolloutPlan, now: Timestamp) -> Result<Self, SpecErrors> {
        plan.validate()?;
        let state = if plan.steps[0] == 100 { RolloutState::Done } else { RolloutState::Moving };
        Ok(Self { plan, step: 0, since: now, state })
    }

    /// How far it is.
    pub fn state(&self) -> RolloutState {
        self.state
    }

    /// The plan that the roll-out follows.
    pub fn plan(&self) -> &RolloutPlan {
        &self.plan
    }

    /// When the step that it is in began, or it was stopped.
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// The new revision's share now, in percent.
    pub fn percent(&self) -> u32 {
        match self.state {
            RolloutState::Stopped => 0,
            // A plan is checked when it is made, but one that was stored may have been changed by hand.
            _ => self.plan.steps.get(self.step).map_or(100, |percent| (*percent).min(100)),
        }
    }

    /// Looks at what the two revisions answered in this step and decides.
    pub fn observe(&mut self, old: AnswerCounts, new: AnswerCounts, now: Timestamp) -> RolloutStep {
        if self.state != RolloutState::Moving {
            return RolloutStep::Hold;
        }
        // The errors that chance alone would bring, at about two standard deviations of what is borne: one error
        // in ten requests stops nothing that may have one in a hundred, ten in a hundred do.
        let borne = old.share() + self.plan.max_more_errors;
        let requests = new.requests as f64;
        let limit = borne * requests + 2.0 * (borne * (1.0 - borne).max(0.0) * requests).sqrt();
        if new.errors >= 2 && new.errors as f64 > limit {
            let percent = self.percent();
            let reason = format!(
                "{} of {} requests failed at {percent} %, {} of {} on the revision before",
                new.errors, new.requests, old.errors, old.requests,
            );
            self.stop(now);
            return RolloutStep::Stop { reason };
        }
        let held = now.since(self.since);
        let seen = new.requests >= self.plan.min_requests || held >= self.plan.hold.saturating_mul(10);
        if held < self.plan.hold || !seen {
            return RolloutStep::Hold;
        }
        self.step += 1;
        self.since = now;
        if self.percent() == 100 {
            self.state = RolloutState::Done;
        }
        RolloutStep::Shift(self.percent())
    }

    /// Gives everything back to the old revision.
    pub fn stop(&mut self, now: Timestamp) {
        self.state = RolloutState::Stopped;
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_leads_nowhere_is_refused_with_every_reason() {
        let plan =
            RolloutPlan { steps: vec![0, 50, 50], max_more_errors: f64::NAN, ..RolloutPlan::default() };
        assert_eq!(RolloutProgress::new(plan, Timestamp(0)).unwrap_err().0.len(), 3);
        let empty = RolloutPlan { steps: Vec::new(), ..RolloutPlan::default() };
        assert_eq!(RolloutProgress::new(empty, Timestamp(0)).unwrap_err().0.len(), 1);
    }

    #[test]
    fn a_roll_out_is_stopped_by_hand_too() {
        let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0)).unwrap();
        rollout.stop(Timestamp(5));
        assert_eq!((rollout.state(), rollout.percent()), (RolloutState::Stopped, 0));
        let good = AnswerCounts { requests: 1_000, errors: 0 };
        assert_eq!(rollout.observe(good, good, Timestamp::from_secs(600)), RolloutStep::Hold);
    }
}
