//! How far a roll-out is, and what it does next: its new revision's share grows in steps, each after the instances for
//! it are ready, and falls to nothing when it fails.

mod capacity;
mod failing;
mod slower;

use sas_core::{AnswerCounts, LatencyCounts, RolloutPlan, SpecErrors, Timestamp};
use serde::{Deserialize, Serialize};

pub(crate) use self::capacity::{Sized, Sizing};

/// Starts of the new revision that fail in a row until it is given up.
const FAILED_STARTS: u32 = 5;

/// Answers of the new revision before its latencies are judged where nobody asked for that.
const UNASKED: u64 = 200;

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
pub(crate) enum RolloutStep {
    /// The shares stay as they are.
    Hold,
    /// The shares stay as they are until the new revision has the instances for this many percent.
    Size(u32),
    /// The new revision's share is this many percent from now on. Counting begins anew.
    Shift(u32),
    /// The new revision has everything, and the old one is not kept any longer.
    Finish,
    /// The new revision has nothing any more.
    Stop {
        /// What was seen.
        reason: String,
    },
}

/// What is known of the two revisions in a step.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// What the old revision answered.
    pub old: AnswerCounts,
    /// What the new one answered.
    pub new: AnswerCounts,
    /// How long the two took for it, the old one first; `None`: nobody counts.
    pub latencies: Option<[LatencyCounts; 2]>,
    /// For how many percent of the traffic the new revision has ready instances; 100 where there is nothing to size.
    pub covered: u32,
    /// Starts of the new revision that failed in a row.
    pub failed_starts: u32,
    /// What hinders the new revision from having its instances, as far as somebody knows.
    pub hindrance: Option<String>,
}

impl Seen {
    /// These answers, of revisions that have nothing to size.
    pub(crate) const fn new(old: AnswerCounts, new: AnswerCounts) -> Self {
        Self { old, new, latencies: None, covered: 100, failed_starts: 0, hindrance: None }
    }
}

/// A roll-out, wherever it is. Pure: plan, what was seen and `now` decide; it serialises, so a restarted platform goes on
/// where it was.
///
/// Public because it stands in a service's record ([`crate::Rolling::progress`]): hosts read it there, and the control plane
/// alone moves it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutProgress {
    plan: RolloutPlan,
    step: usize,
    since: Timestamp,
    state: RolloutState,
    /// The share that it has while its instances for the step's share come; `None`: it has the step's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    coming: Option<u32>,
    /// What the old revision answered in the steps that are over: what the new one is compared with once the old one gets
    /// nothing any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    before: Option<AnswerCounts>,
}

impl RolloutProgress {
    /// A roll-out before its first step.
    ///
    /// # Errors
    /// When the plan is not sound.
    pub(crate) fn new(plan: RolloutPlan, now: Timestamp) -> Result<Self, SpecErrors> {
        plan.validate()?;
        Ok(Self { plan, step: 0, since: now, state: RolloutState::Moving, coming: Some(0), before: None })
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
        match (self.state, self.coming) {
            (RolloutState::Stopped, _) => 0,
            (RolloutState::Moving, Some(percent)) => percent.min(100),
            _ => self.goal(),
        }
    }

    /// The share that the new revision is sized for, in percent: its own, or the next one.
    pub(crate) fn goal(&self) -> u32 {
        // A plan is checked when it is made, but one that was stored may have been changed by hand.
        self.plan.steps.get(self.step).map_or(100, |percent| (*percent).min(100))
    }

    /// Whether the new revision has everything and the old one is kept for going back.
    pub fn keeps_old(&self) -> bool {
        self.state == RolloutState::Moving && self.percent() == 100
    }

    /// Looks at what is known of the two revisions in this step and decides.
    pub(crate) fn observe(&mut self, seen: &Seen, now: Timestamp) -> RolloutStep {
        if self.state != RolloutState::Moving {
            return RolloutStep::Hold;
        }
        if let Some(reason) = self.fails(seen) {
            self.stop(now);
            return RolloutStep::Stop { reason };
        }
        let held = now.since(self.since);
        if self.coming.is_none() && self.percent() == 100 {
            if held < self.plan.keep_old {
                return RolloutStep::Hold;
            }
            self.state = RolloutState::Done;
            return RolloutStep::Finish;
        }
        let mut sizes = false;
        if self.coming.is_none() {
            let enough =
                seen.new.requests >= self.plan.min_requests || held >= self.plan.hold.saturating_mul(10);
            if held < self.plan.hold || !enough {
                return RolloutStep::Hold;
            }
            self.coming = Some(self.percent());
            self.step += 1;
            self.since = now;
            sizes = true;
        }
        let step = self.shift(seen, sizes, now);
        if matches!(step, RolloutStep::Shift(_)) && seen.old.requests > 0 {
            let before = self.before.get_or_insert_default();
            before.requests += seen.old.requests;
            before.errors += seen.old.errors;
        }
        step
    }

    /// The answers of the old revision that the new one's are compared with: of this step, or of those before once it gets
    /// nothing any more. `None`: there are none.
    pub(crate) fn compared_with(&self, old: AnswerCounts) -> Option<AnswerCounts> {
        let answered = |counts: &AnswerCounts| counts.requests > 0;
        let before = self.before.filter(answered);
        match Some(old).filter(answered) {
            // What was still under way is not worth a comparison.
            Some(now) if self.percent() == 100 => {
                Some(before.filter(|before| before.requests > now.requests).unwrap_or(now))
            }
            now => now.or(before),
        }
    }

    /// Moves as much as the new revision has instances for.
    fn shift(&mut self, seen: &Seen, sizes: bool, now: Timestamp) -> RolloutStep {
        let (percent, goal) = (self.percent(), self.goal());
        if seen.covered >= goal {
            self.coming = None;
            self.since = now;
            if goal == 100 && self.plan.keep_old.is_zero() {
                self.state = RolloutState::Done;
            }
            return RolloutStep::Shift(goal);
        }
        // All at once is the point of the other kind.
        if self.plan.kind == sas_core::RolloutKind::Canary && seen.covered > percent {
            self.coming = Some(seen.covered);
            self.since = now;
            return RolloutStep::Shift(seen.covered);
        }
        let waited = now.since(self.since);
        let why = seen.hindrance.as_ref().map_or_else(String::new, |hindrance| format!(": {hindrance}"));
        let reason = if seen.failed_starts >= FAILED_STARTS {
            format!(
                "{} starts in a row failed before {goal} % of the traffic could go there{why}",
                seen.failed_starts
            )
        } else if waited >= self.plan.ready_within {
            format!(
                "after {} s its ready instances are enough for {} % of the traffic, and {goal} % are next{why}",
                waited.as_secs(),
                seen.covered,
            )
        } else {
            return if sizes { RolloutStep::Size(goal) } else { RolloutStep::Hold };
        };
        self.stop(now);
        RolloutStep::Stop { reason }
    }

    /// Why the new revision is no good, if its answers say so.
    fn fails(&self, seen: &Seen) -> Option<String> {
        let (new, percent) = (seen.new, self.percent());
        if let Some(old) = self.compared_with(seen.old)
            && failing::fails(old, new, self.plan.max_more_errors)
        {
            return Some(format!(
                "{} of {} requests failed at {percent} %, {} of {} on the revision before",
                new.errors, new.requests, old.errors, old.requests,
            ));
        }
        // Some of a revision's first answers are slow because they are its first: it has to show itself before it is judged.
        let (max_slower, answers) = match self.plan.max_slower {
            Some(max_slower) => (max_slower, self.plan.min_requests),
            None => (RolloutPlan::MAX_SLOWER, self.plan.min_requests.max(UNASKED)),
        };
        if new.requests < answers {
            return None;
        }
        let [old, new] = seen.latencies.as_ref()?;
        let slow = slower::slower(old, new, self.plan.quantile, max_slower)?;
        Some(format!("it is too slow at {percent} %: {slow}"))
    }

    /// Gives everything back to the old revision.
    pub(crate) fn stop(&mut self, now: Timestamp) {
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
    fn a_roll_out_begins_with_its_instances_and_falls_to_nothing_with_too_many_errors() {
        let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0)).unwrap();
        assert_eq!(rollout.percent(), 0, "its instances come first");
        assert_eq!(rollout.observe(&covering(100), Timestamp(0)), RolloutStep::Shift(1));
        let bad = Seen::new(
            AnswerCounts { requests: 1_000, errors: 3 },
            AnswerCounts { requests: 100, errors: 50 },
        );
        let stop = rollout.observe(&bad, Timestamp::from_secs(1));
        assert!(matches!(stop, RolloutStep::Stop { .. }));
        assert_eq!(rollout.percent(), 0);
    }

    #[test]
    fn a_roll_out_is_stopped_by_hand_too() {
        let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0)).unwrap();
        rollout.stop(Timestamp(5));
        assert_eq!((rollout.state(), rollout.percent()), (RolloutState::Stopped, 0));
        let good = AnswerCounts { requests: 1_000, errors: 0 };
        assert_eq!(rollout.observe(&Seen::new(good, good), Timestamp::from_secs(600)), RolloutStep::Hold);
    }

    /// No answers, and instances for so much of the traffic.
    fn covering(covered: u32) -> Seen {
        let mut seen = Seen::new(AnswerCounts::default(), AnswerCounts::default());
        seen.covered = covered;
        seen
    }

    #[test]
    fn a_share_moves_when_its_instances_are_ready_and_not_before() {
        let mut plan = RolloutPlan::default();
        (plan.steps, plan.min_requests) = (vec![10, 50, 100], 0);
        let mut rollout = RolloutProgress::new(plan, Timestamp(0)).unwrap();
        let at = |rollout: &mut RolloutProgress, covered, secs| {
            let step = rollout.observe(&covering(covered), Timestamp::from_secs(secs));
            (step, rollout.percent())
        };
        assert_eq!(at(&mut rollout, 0, 1), (RolloutStep::Hold, 0));
        assert_eq!(at(&mut rollout, 30, 2), (RolloutStep::Shift(10), 10));
        assert_eq!(at(&mut rollout, 30, 61), (RolloutStep::Hold, 10), "the step is held");
        assert_eq!(
            at(&mut rollout, 10, 62),
            (RolloutStep::Size(50), 10),
            "now instances for the next one come"
        );
        assert_eq!(rollout.goal(), 50);
        assert_eq!(at(&mut rollout, 30, 63), (RolloutStep::Shift(30), 30), "as much as they are enough for");
        assert_eq!(at(&mut rollout, 50, 64), (RolloutStep::Shift(50), 50));
        assert_eq!(at(&mut rollout, 100, 124), (RolloutStep::Shift(100), 100));
        assert_eq!(rollout.state(), RolloutState::Done);
    }

    #[test]
    fn a_revision_that_never_gets_ready_is_given_up_in_time_with_its_reason() {
        let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0)).unwrap();
        let mut seen = covering(0);
        seen.hindrance = Some("no room".to_owned());
        assert_eq!(rollout.observe(&seen, Timestamp::from_secs(599)), RolloutStep::Hold);
        let RolloutStep::Stop { reason } = rollout.observe(&seen, Timestamp::from_secs(600)) else {
            panic!()
        };
        assert!(reason.contains("600 s") && reason.ends_with(": no room"), "{reason}");

        let mut rollout = RolloutProgress::new(RolloutPlan::default(), Timestamp(0)).unwrap();
        (seen.failed_starts, seen.hindrance) = (5, Some("exit status 1".to_owned()));
        let RolloutStep::Stop { reason } = rollout.observe(&seen, Timestamp(1)) else { panic!() };
        assert!(reason.contains("5 starts") && reason.ends_with("exit status 1"), "{reason}");
    }

    #[test]
    fn blue_green_switches_once_watches_what_it_did_and_lets_the_old_one_go_later() {
        let begun = || RolloutProgress::new(RolloutPlan::blue_green(), Timestamp(0)).unwrap();
        let mut rollout = begun();
        assert_eq!(rollout.observe(&covering(99), Timestamp::from_secs(1)), RolloutStep::Hold);
        assert_eq!(rollout.observe(&covering(100), Timestamp::from_secs(2)), RolloutStep::Shift(100));
        assert!(rollout.keeps_old() && rollout.state() == RolloutState::Moving);
        assert_eq!(rollout.observe(&covering(100), Timestamp::from_secs(301)), RolloutStep::Hold);
        assert_eq!(rollout.observe(&covering(100), Timestamp::from_secs(302)), RolloutStep::Finish);
        assert_eq!((rollout.state(), rollout.percent()), (RolloutState::Done, 100));

        let mut failing = begun();
        failing.observe(&covering(100), Timestamp::from_secs(2));
        let bad =
            Seen::new(AnswerCounts { requests: 500, errors: 0 }, AnswerCounts { requests: 50, errors: 9 });
        assert!(matches!(failing.observe(&bad, Timestamp::from_secs(9)), RolloutStep::Stop { .. }));
        assert_eq!(failing.percent(), 0);
    }

    #[test]
    fn who_has_everything_is_compared_with_what_the_old_one_answered_before() {
        let answers = |requests, errors| AnswerCounts { requests, errors };
        let mut plan = RolloutPlan::default();
        (plan.steps, plan.keep_old) = (vec![100], std::time::Duration::from_secs(60));
        let mut steady = RolloutProgress::new(plan.clone(), Timestamp(0)).unwrap();
        let shift = steady.observe(&Seen::new(answers(2_000, 60), answers(0, 0)), Timestamp(0));
        assert_eq!((shift, steady.keeps_old()), (RolloutStep::Shift(100), true));
        // Also by a platform that was started again meanwhile, and with what was under way.
        let stored = serde_json::to_string(&steady).unwrap();
        let mut steady: RolloutProgress = serde_json::from_str(&stored).unwrap();
        for old in [answers(0, 0), answers(3, 0)] {
            let seen = Seen::new(old, answers(1_000, 30));
            assert_eq!(steady.observe(&seen, Timestamp::from_secs(1)), RolloutStep::Hold, "3 % as before");
        }
        let worse = steady.observe(&Seen::new(answers(0, 0), answers(500, 75)), Timestamp::from_secs(2));
        let RolloutStep::Stop { reason } = worse else { panic!("{worse:?}") };
        assert!(
            reason.ends_with("75 of 500 requests failed at 100 %, 60 of 2000 on the revision before"),
            "{reason}"
        );

        let mut unknown = RolloutProgress::new(plan, Timestamp(0)).unwrap();
        unknown.observe(&covering(100), Timestamp(0));
        let seen = Seen::new(answers(0, 0), answers(100, 50));
        assert_eq!(
            unknown.observe(&seen, Timestamp::from_secs(1)),
            RolloutStep::Hold,
            "nothing to compare with"
        );
        assert_eq!(unknown.compared_with(answers(0, 0)), None);
    }

    #[test]
    fn a_slow_revision_is_stopped_with_numbers_once_it_has_shown_itself() {
        let latencies = |answers, millis| {
            let mut counts = LatencyCounts::new();
            (0..answers).for_each(|_| counts.count(std::time::Duration::from_millis(millis)));
            counts
        };
        // Where nobody says, twice as slow is borne, and nothing is judged before 200 answers.
        for (max_slower, millis, judged) in [(Some(0.5), 35, 100), (None, 50, 200)] {
            let mut plan = RolloutPlan::default();
            plan.max_slower = max_slower;
            if max_slower.is_some() {
                plan.min_requests = 100;
            }
            let mut rollout = RolloutProgress::new(plan, Timestamp(0)).unwrap();
            rollout.observe(&covering(100), Timestamp(0));
            let mut seen = |new: u64, millis: u64| {
                let answers = |requests| AnswerCounts { requests, errors: 0 };
                let mut seen = Seen::new(answers(1_000), answers(new));
                seen.latencies = Some([latencies(1_000, 20), latencies(new, millis)]);
                rollout.observe(&seen, Timestamp::from_secs(1))
            };
            assert_eq!(seen(judged - 1, millis), RolloutStep::Hold);
            assert_eq!(seen(3_000, millis - 15), RolloutStep::Hold, "that is borne");
            let RolloutStep::Stop { reason } = seen(judged, millis) else { panic!("{max_slower:?}") };
            let says = format!("it is too slow at 1 %: {judged} of {judged} answers");
            assert!(reason.starts_with(&says), "{reason}");
        }
    }

    #[test]
    fn a_record_of_before_shares_waited_for_instances_goes_on_where_it_was() {
        let stored = r#"{"plan": {"steps": [10, 50, 100], "hold": {"secs": 60, "nanos": 0}, "min_requests": 20,
            "max_more_errors": 0.01}, "step": 1, "since": 0, "state": "moving"}"#;
        let rollout: RolloutProgress = serde_json::from_str(stored).unwrap();
        assert_eq!((rollout.percent(), rollout.goal()), (50, 50));
    }
}
