//! Gradual roll-out: traffic moves from one revision to another in steps, and back when the new one fails.
//!
//! [`Rollout`] is a pure state machine: plan, counts and `now` decide; it serialises, so a restarted platform goes on
//! where it was. [`roll_out`] drives one against a [`Router`] and the counts of a [`crate::Gateway`].

use std::time::Duration;

use sas_core::{Clock, Result, RevisionKey, RouteChange, Router, SpecErrors, Split, Timestamp};
use serde::{Deserialize, Serialize};

use crate::{Gateway, Tally};

/// How traffic moves.
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
    /// Even steps over `duration`, as Knative's `rollout-duration` has it: 1 %, then equal parts.
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

/// Requests and errors of a revision since the roll-out began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests.
    pub requests: u64,
    /// Of these, failed.
    pub errors: u64,
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    fn share(self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.errors as f64 / self.requests as f64 }
    }
}

impl From<&Tally> for Counts {
    fn from(tally: &Tally) -> Self {
        let (requests, errors) = tally.read();
        Self { requests, errors }
    }
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

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Move {
    /// Nothing.
    Hold,
    /// Set these weights.
    Shift(Vec<Split>),
    /// Set these weights, and tell somebody why.
    Stop {
        /// Everything to the old revision.
        splits: Vec<Split>,
        /// What was seen.
        reason: String,
    },
}

/// A roll-out, wherever it is.
///
/// ```
/// use sas_core::{RevisionKey, Timestamp};
/// use sas_router::{Counts, Move, Rollout, RolloutPlan};
/// let mut rollout = Rollout::new(RolloutPlan::default(), RevisionKey(1), RevisionKey(2), Timestamp(0))?;
/// assert_eq!(rollout.splits()[1].weight, 1);
/// let bad = Counts { requests: 100, errors: 50 };
/// let stop = rollout.observe(Counts::default(), bad, Timestamp::from_secs(1));
/// assert!(matches!(stop, Move::Stop { .. }));
/// assert_eq!(rollout.splits()[0].weight, 100);
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    plan: RolloutPlan,
    from: RevisionKey,
    to: RevisionKey,
    step: usize,
    since: Timestamp,
    /// The counts when the step began.
    old: Counts,
    new: Counts,
    state: RolloutState,
}

impl Rollout {
    /// A roll-out at its first step.
    ///
    /// # Errors
    /// When the plan is not sound.
    pub fn new(
        plan: RolloutPlan,
        from: RevisionKey,
        to: RevisionKey,
        now: Timestamp,
    ) -> Result<Self, SpecErrors> {
        plan.validate()?;
        let state = if plan.steps[0] == 100 { RolloutState::Done } else { RolloutState::Moving };
        let (old, new) = Default::default();
        Ok(Self { plan, from, to, step: 0, since: now, old, new, state })
    }

    /// How far it is.
    pub fn state(&self) -> RolloutState {
        self.state
    }

    /// The weights as they should be now: the old revision's first. They add up to 100.
    pub fn splits(&self) -> Vec<Split> {
        let new = match self.state {
            RolloutState::Stopped => 0,
            _ => self.plan.steps[self.step],
        };
        vec![Split::new(self.from, 100 - new), Split::new(self.to, new)]
    }

    /// Looks at the counts since the roll-out began and decides.
    pub fn observe(&mut self, old: Counts, new: Counts, now: Timestamp) -> Move {
        if self.state != RolloutState::Moving {
            return Move::Hold;
        }
        let (old_step, new_step) = (old.since(self.old), new.since(self.new));
        // The errors that chance alone would bring, at about two standard deviations of what is borne: one error
        // in ten requests stops nothing that may have one in a hundred, ten in a hundred do.
        let borne = old_step.share() + self.plan.max_more_errors;
        let requests = new_step.requests as f64;
        let limit = borne * requests + 2.0 * (borne * (1.0 - borne).max(0.0) * requests).sqrt();
        if new_step.errors >= 2 && new_step.errors as f64 > limit {
            self.state = RolloutState::Stopped;
            let reason = format!(
                "{} of {} requests failed at {} %, {} of {} on the revision before",
                new_step.errors,
                new_step.requests,
                self.plan.steps[self.step],
                old_step.errors,
                old_step.requests,
            );
            return Move::Stop { splits: self.splits(), reason };
        }
        let held = now.since(self.since);
        let seen = new_step.requests >= self.plan.min_requests || held >= self.plan.hold.saturating_mul(10);
        if held < self.plan.hold || !seen {
            return Move::Hold;
        }
        self.step += 1;
        (self.since, self.old, self.new) = (now, old, new);
        if self.plan.steps[self.step] == 100 {
            self.state = RolloutState::Done;
        }
        Move::Shift(self.splits())
    }
}

/// Drives `rollout` to its end: looks at the gateway's counts every `period` and applies what `changes` makes of new
/// weights. Gives back how it ended, with the reason if it was stopped.
///
/// **Cancel safety:** dropping the future leaves the weights where they are, and stops counting.
///
/// # Errors
/// When the router refuses a change; the roll-out can be gone on with.
pub async fn roll_out(
    rollout: &mut Rollout,
    gateway: &Gateway,
    router: &dyn Router,
    clock: &dyn Clock,
    period: Duration,
    changes: impl Fn(Vec<Split>) -> Vec<RouteChange>,
) -> Result<(RolloutState, Option<String>)> {
    struct Watching<'a>(&'a Gateway, [RevisionKey; 2]);
    impl Drop for Watching<'_> {
        fn drop(&mut self) {
            for revision in self.1 {
                self.0.unwatch(revision);
            }
        }
    }
    let (old, new) = (gateway.watch(rollout.from), gateway.watch(rollout.to));
    let _watching = Watching(gateway, [rollout.from, rollout.to]);
    // The counts start at zero with this call, also when a roll-out is gone on with.
    (rollout.old, rollout.new) = Default::default();
    router.apply(changes(rollout.splits()))?;
    loop {
        if rollout.state() == RolloutState::Done {
            return Ok((RolloutState::Done, None));
        }
        tokio::time::sleep(period).await;
        match rollout.observe(Counts::from(&*old), Counts::from(&*new), clock.now()) {
            Move::Hold => {}
            Move::Shift(splits) => router.apply(changes(splits))?,
            Move::Stop { splits, reason } => {
                router.apply(changes(splits))?;
                return Ok((RolloutState::Stopped, Some(reason)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: RevisionKey = RevisionKey(1);
    const NEW: RevisionKey = RevisionKey(2);

    fn rollout(plan: RolloutPlan) -> Rollout {
        Rollout::new(plan, OLD, NEW, Timestamp(0)).unwrap()
    }

    fn weights(splits: &[Split]) -> (u32, u32) {
        (splits[0].weight, splits[1].weight)
    }

    #[test]
    fn a_healthy_revision_gets_everything_step_by_step() {
        let mut rollout = rollout(RolloutPlan::default());
        let mut seen = vec![weights(&rollout.splits())];
        let (mut old, mut new) = (Counts::default(), Counts::default());
        for second in 1..=300 {
            old.requests += 10;
            new.requests += 1;
            if let Move::Shift(splits) = rollout.observe(old, new, Timestamp::from_secs(second)) {
                assert_eq!(second % 60, 0, "each step is held");
                seen.push(weights(&splits));
            }
        }
        assert_eq!(seen, [(99, 1), (90, 10), (75, 25), (50, 50), (0, 100)]);
        assert_eq!(rollout.state(), RolloutState::Done);
    }

    #[test]
    fn a_failing_revision_is_stopped_within_its_step() {
        let mut rollout = rollout(RolloutPlan::default());
        let old = Counts { requests: 1_000, errors: 0 };
        assert_eq!(
            rollout.observe(old, Counts { requests: 1, errors: 1 }, Timestamp::from_secs(1)),
            Move::Hold
        );
        match rollout.observe(old, Counts { requests: 10, errors: 3 }, Timestamp::from_secs(2)) {
            Move::Stop { splits, reason } => {
                assert_eq!(weights(&splits), (100, 0));
                assert!(reason.contains("3 of 10"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        let later = rollout.observe(old, Counts { requests: 10_000, errors: 3 }, Timestamp::from_secs(999));
        assert_eq!((later, rollout.state()), (Move::Hold, RolloutState::Stopped), "stopped is stopped");
    }

    #[test]
    fn errors_that_both_have_stop_nothing() {
        let mut rollout = rollout(RolloutPlan::default());
        let (old, new) = (Counts { requests: 10_000, errors: 2_000 }, Counts { requests: 100, errors: 22 });
        assert!(matches!(rollout.observe(old, new, Timestamp::from_secs(60)), Move::Shift(_)));
    }

    #[test]
    fn a_step_waits_for_traffic_but_not_for_ever() {
        let mut rollout = rollout(RolloutPlan::default());
        let none = Counts::default();
        assert_eq!(rollout.observe(none, none, Timestamp::from_secs(599)), Move::Hold);
        assert!(matches!(rollout.observe(none, none, Timestamp::from_secs(600)), Move::Shift(_)));
    }

    #[test]
    fn a_plan_that_leads_nowhere_is_refused_with_every_reason() {
        let plan =
            RolloutPlan { steps: vec![0, 50, 50], max_more_errors: f64::NAN, ..RolloutPlan::default() };
        let errors = Rollout::new(plan, OLD, NEW, Timestamp(0)).unwrap_err();
        assert_eq!(errors.0.len(), 3, "{errors}");
    }

    proptest! {
        #[test]
        fn weights_add_up_and_never_fall_but_to_nothing(
            ticks in prop::collection::vec((0_i64..200, 0_u64..50, 0_u64..50, 0_u64..3), 0..100),
        ) {
            let mut rollout = rollout(RolloutPlan::default());
            let (mut old, mut new, mut now, mut last) = (Counts::default(), Counts::default(), 0, 1);
            for (seconds, old_requests, new_requests, errors) in ticks {
                now += seconds;
                old.requests += old_requests;
                new.requests += new_requests;
                new.errors += errors.min(new_requests);
                rollout.observe(old, new, Timestamp::from_secs(now));
                let (from, to) = weights(&rollout.splits());
                prop_assert_eq!(from + to, 100);
                prop_assert!(to >= last || rollout.state() == RolloutState::Stopped);
                last = to;
                let text = serde_json::to_string(&rollout).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Rollout>(&text).unwrap(), &rollout);
            }
        }
    }
}
