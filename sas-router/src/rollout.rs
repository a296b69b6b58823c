//! Gradual roll-out between two revisions of a route table.
//!
//! [`Rollout`] is [`RolloutProgress`] with the two revisions, pure as that is; [`roll_out`] drives one against a
//! [`Router`] and the counts of a [`crate::Gateway`].

use std::time::Duration;

use sas_core::{
    AnswerCounts, Clock, Result, RevisionKey, RolloutPlan, RolloutProgress, RolloutState, RolloutStep,
    RouteChange, Router, SpecErrors, Split, Timestamp,
};
use serde::{Deserialize, Serialize};

use crate::Gateway;

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
/// use sas_core::{AnswerCounts, RolloutPlan};
/// use sas_router::{Move, Rollout};
/// let mut rollout = Rollout::new(RolloutPlan::default(), RevisionKey(1), RevisionKey(2), Timestamp(0))?;
/// assert_eq!(rollout.splits()[1].weight, 1);
/// let bad = AnswerCounts { requests: 100, errors: 50 };
/// let stop = rollout.observe(AnswerCounts::default(), bad, Timestamp::from_secs(1));
/// assert!(matches!(stop, Move::Stop { .. }));
/// assert_eq!(rollout.splits()[0].weight, 100);
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    from: RevisionKey,
    to: RevisionKey,
    progress: RolloutProgress,
    /// The counts when the step began.
    old: AnswerCounts,
    new: AnswerCounts,
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
        let (old, new) = Default::default();
        Ok(Self { from, to, progress: RolloutProgress::new(plan, now)?, old, new })
    }

    /// How far it is.
    pub fn state(&self) -> RolloutState {
        self.progress.state()
    }

    /// The weights as they should be now: the old revision's first. They add up to 100.
    pub fn splits(&self) -> Vec<Split> {
        let new = self.progress.percent();
        vec![Split::new(self.from, 100 - new), Split::new(self.to, new)]
    }

    /// Looks at the counts since the roll-out began and decides.
    pub fn observe(&mut self, old: AnswerCounts, new: AnswerCounts, now: Timestamp) -> Move {
        match self.progress.observe(old.since(self.old), new.since(self.new), now) {
            RolloutStep::Shift(_) => {
                (self.old, self.new) = (old, new);
                Move::Shift(self.splits())
            }
            RolloutStep::Stop { reason } => Move::Stop { splits: self.splits(), reason },
            _ => Move::Hold,
        }
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
        match rollout.observe(old.read(), new.read(), clock.now()) {
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
        let (mut old, mut new) = (AnswerCounts::default(), AnswerCounts::default());
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
        let old = AnswerCounts { requests: 1_000, errors: 0 };
        assert_eq!(
            rollout.observe(old, AnswerCounts { requests: 1, errors: 1 }, Timestamp::from_secs(1)),
            Move::Hold
        );
        match rollout.observe(old, AnswerCounts { requests: 10, errors: 3 }, Timestamp::from_secs(2)) {
            Move::Stop { splits, reason } => {
                assert_eq!(weights(&splits), (100, 0));
                assert!(reason.contains("3 of 10"), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        let later =
            rollout.observe(old, AnswerCounts { requests: 10_000, errors: 3 }, Timestamp::from_secs(999));
        assert_eq!((later, rollout.state()), (Move::Hold, RolloutState::Stopped), "stopped is stopped");
    }

    #[test]
    fn errors_that_both_have_stop_nothing() {
        let mut rollout = rollout(RolloutPlan::default());
        let (old, new) =
            (AnswerCounts { requests: 10_000, errors: 2_000 }, AnswerCounts { requests: 100, errors: 22 });
        assert!(matches!(rollout.observe(old, new, Timestamp::from_secs(60)), Move::Shift(_)));
    }

    #[test]
    fn a_step_waits_for_traffic_but_not_for_ever() {
        let mut rollout = rollout(RolloutPlan::default());
        let none = AnswerCounts::default();
        assert_eq!(rollout.observe(none, none, Timestamp::from_secs(599)), Move::Hold);
        assert!(matches!(rollout.observe(none, none, Timestamp::from_secs(600)), Move::Shift(_)));
    }

    proptest! {
        #[test]
        fn weights_add_up_and_never_fall_but_to_nothing(
            ticks in prop::collection::vec((0_i64..200, 0_u64..50, 0_u64..50, 0_u64..3), 0..100),
        ) {
            let mut rollout = rollout(RolloutPlan::default());
            let (mut old, mut new, mut now, mut last) = (AnswerCounts::default(), AnswerCounts::default(), 0, 1);
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
