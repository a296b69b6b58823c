//! How far a roll-out is, and what it does next: its new revision's share grows in steps, and falls to nothing when it fails.

use sas_core::{AnswerCounts, RolloutPlan, SpecErrors, Timestamp};
use serde::{Deserialize, Serialize};

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
/// use sas_control::{RolloutProgress, RolloutStep};
/// use sas_core::{AnswerCounts, RolloutPlan, Timestamp};
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
        let mut plan = RolloutPlan::default();
        (plan.steps, plan.max_more_errors) = (vec![0, 50, 50], f64::NAN);
        assert_eq!(RolloutProgress::new(plan, Timestamp(0)).unwrap_err().0.len(), 3);
        let mut empty = RolloutPlan::default();
        empty.steps.clear();
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
