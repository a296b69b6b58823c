//! Roll-outs that size the new revision, and look at its errors and latencies.

use std::{sync::Arc, time::Duration};

use sas_core::{
    AnswerCounts, Error, ErrorKind, Principal, Result, RevisionKey, RolloutKind, RolloutPlan, SizeBounds,
    Timestamp,
};
use serde::Deserialize;

use super::{Control, Live, LiveState, no_service};
use crate::{
    record::{RevisionState, Rolling, ServiceRecord},
    rollout::{RolloutProgress, RolloutStep, Seen, Sized, Sizing},
    stamp::rfc3339,
    view::{RolloutAnswers, RolloutInstances, RolloutLatency, RolloutStage, RolloutView},
};

/// How long a revision that is asked for nothing keeps its size after a roll-out: its first requests are on their way.
const UNASKED: Duration = Duration::from_secs(5);

/// What is in force for a revision beside its spec, because of a roll-out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounded {
    key: RevisionKey,
    bounds: SizeBounds,
    /// When the roll-out ended; `None`: it moves.
    ended: Option<Timestamp>,
}

/// What people may do to a roll-out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum RolloutAction {
    /// Begins again at the first step: after a stop, or to move slower than by time alone.
    Restart,
    /// The new revision gets everything now.
    Promote,
    /// The old revision gets everything back.
    Stop,
}

impl Control {
    /// Makes the gateway count the answers of the two revisions of a roll-out, and of nothing else of the service.
    pub(super) fn count_answers(&self, live: &Live) {
        let Some(answers) = &self.answers else { return };
        let mut state = live.state.lock();
        let wanted: Vec<RevisionKey> = match &state.record {
            Some(record) => match record.rolling.as_ref().filter(|rolling| rolling.is_watched()) {
                Some(rolling) => keys(&state.observed, rolling).map_or(Vec::new(), |keys| keys.to_vec()),
                None => Vec::new(),
            },
            None => Vec::new(),
        };
        if state.counted == wanted {
            return;
        }
        for key in std::mem::take(&mut state.counted) {
            answers.unwatch_answers(key);
        }
        for key in &wanted {
            answers.watch_answers(*key);
        }
        state.counted = wanted;
    }

    /// What the two revisions of a watched roll-out answered in its step, the old one's first.
    fn counts(&self, live: &Live) -> Option<[AnswerCounts; 2]> {
        let state = live.state.lock();
        let (Some(answers), &[old, new]) = (&self.answers, state.counted.as_slice()) else { return None };
        Some([answers.answers(old)?, answers.answers(new)?])
    }

    /// Holds the two revisions of a roll-out that moves to what they may have together; and afterwards those that it left
    /// to their own scalers again, after a while.
    pub(super) fn size(&self, path: &str) {
        let Some(live) = self.live(path) else { return };
        let _one = live.sizing.lock();
        let now = self.clock.now();
        let (before, mut after) = {
            let state = live.state.lock();
            // What is held back stays so until it is known what it has beside the other one.
            let held = state.bounded.iter().filter(|was| comes(&state, was.key)).copied();
            (state.bounded.clone(), held.collect::<Vec<_>>())
        };
        match self.sizing(&live) {
            Some((keys, sizing)) => {
                after.retain(|held| !keys.contains(&held.key));
                let pairs = keys.into_iter().zip(sizing.bounds());
                after.extend(pairs.map(|(key, bounds)| Bounded { key, bounds, ended: None }));
            }
            None => {
                for was in before.iter().filter(|was| was.bounds.floor > 0) {
                    let ended = was.ended.unwrap_or(now);
                    if self.settles(was.key, now.since(ended)) {
                        let bounds = SizeBounds::new(was.bounds.floor, u32::MAX, u32::MAX);
                        after.push(Bounded { key: was.key, bounds, ended: Some(ended) });
                    }
                }
            }
        }
        let standing = self.standing(path);
        let mut bounds: Vec<(RevisionKey, SizeBounds)> = after.iter().map(|is| (is.key, is.bounds)).collect();
        for (key, part) in self.part_bounds(path, &live, &standing) {
            match bounds.iter_mut().find(|(bounded, _)| *bounded == key) {
                Some((_, bounds)) => *bounds = bounds.and(part),
                None => bounds.push((key, part)),
            }
        }
        let told = live.state.lock().told.clone();
        for (key, _) in told.iter().filter(|(was, _)| bounds.iter().all(|(is, _)| is != was)) {
            self.pool.set_bounds(*key, None);
        }
        // What shrinks first, so that all together never have more than they may.
        let had = |key: RevisionKey| {
            let was = told.iter().find(|(was, _)| *was == key);
            was.map_or(u32::MAX, |(_, bounds)| bounds.ceiling)
        };
        bounds.sort_by_key(|(key, bounds)| bounds.ceiling > had(*key));
        for (key, bounds) in &bounds {
            self.pool.set_bounds(*key, Some(*bounds));
        }
        let mut state = live.state.lock();
        (state.bounded, state.told) = (after, bounds);
    }

    /// A revision that was just registered and whose roll-out sizes it has no minimum of its own until then, and one instance
    /// at most: another roll-out that still moves shares out everything that the service may have. The caller holds the
    /// lock of the sizes until the registration is noted, so that this is not lifted as what nobody knows.
    pub(super) fn hold_back(&self, live: &Live, record: &ServiceRecord, revision: &str, key: RevisionKey) {
        let comes = record.plan.is_some()
            && record.revision(revision).is_some_and(|comes| comes.state == RevisionState::Pending)
            && record.latest_ready().is_some();
        let moves =
            record.rolling.as_ref().is_some_and(|rolling| rolling.is_watched() && rolling.to == revision);
        if comes || moves {
            let bounds = SizeBounds::new(0, 1, 1);
            self.pool.set_bounds(key, Some(bounds));
            let mut state = live.state.lock();
            state.bounded.push(Bounded { key, bounds, ended: None });
            state.told.push((key, bounds));
        }
    }

    /// Whether a revision keeps the size that a roll-out gave it, so long after: the windows of its scaler begin to fill with
    /// the traffic that it has just got, and it wants little at first.
    fn settles(&self, key: RevisionKey, after: Duration) -> bool {
        let (Some(deployed), Some(status)) = (self.pool.deployed(key), self.pool.status(key)) else {
            return false;
        };
        let asked = status.asked > 0 || after < UNASKED;
        asked && after < deployed.spec.scaling.stable_window
    }

    /// What there is to decide about the sizes of the two revisions of a roll-out that moves by steps; `None` also where they
    /// get traffic that the roll-out knows nothing of.
    fn sizing(&self, live: &Live) -> Option<([RevisionKey; 2], Sizing)> {
        let (record, keys) = {
            let state = live.state.lock();
            let record = Arc::clone(state.record.as_ref()?);
            let rolling = record.rolling.as_ref().filter(|rolling| rolling.is_watched())?;
            let keys = keys(&state.observed, rolling)?;
            (record, keys)
        };
        let rolling = record.rolling.as_ref().filter(|rolling| record.moves_everything(rolling))?;
        let progress = rolling.progress.as_ref()?;
        let [old, new] = [(&rolling.from, keys[0]), (&rolling.to, keys[1])].map(|(name, key)| {
            let status = self.pool.status(key).unwrap_or_default();
            let (min, max) = record.revision(name).map_or((0, 0), |revision| {
                let scaling = &revision.spec.scaling;
                (scaling.min, scaling.max)
            });
            Sized { asked: status.asked, min, max, ready: status.ready }
        });
        let sizing = Sizing {
            old,
            new,
            moved: progress.percent(),
            goal: progress.goal(),
            keeps_old: progress.keeps_old(),
            surge: progress.plan().surge,
        };
        Some((keys, sizing))
    }

    /// What is known of the two revisions of a roll-out that moves by steps; `None`: not all of it yet.
    fn seen(&self, live: &Live) -> Option<Seen> {
        let [old, new] = self.counts(live)?;
        let mut seen = Seen::new(old, new);
        if let (Some(answers), &[old, new]) = (&self.answers, live.state.lock().counted.as_slice()) {
            seen.latencies = answers.latencies(old).zip(answers.latencies(new)).map(<[_; 2]>::from);
        }
        if let Some(([_, new], sizing)) = self.sizing(live) {
            seen.covered = sizing.covered();
            let status = self.pool.status(new).unwrap_or_default();
            seen.failed_starts = status.failed_starts;
            let error = status.last_start_error.map(|error| error.message.clone());
            seen.hindrance = error.or(status.gated);
        }
        Some(seen)
    }

    /// Looks at the roll-out of a service, and moves its traffic on or back.
    pub(super) async fn roll(self: &Arc<Self>, path: &str) -> Result<()> {
        if self.live(path).is_none_or(|live| self.decide(&live).is_none()) {
            return Ok(());
        }
        let _changing = self.change(path).await;
        self.settle(path).await
    }

    /// Takes the next step of a roll-out, if one is due: whether there is something to settle then. The caller has the turn.
    pub(super) async fn advance(&self, path: &str, live: &Live) -> Result<bool> {
        let Some((progress, step)) = self.decide(live) else { return Ok(false) };
        let reason = match &step {
            RolloutStep::Stop { reason } => Some(reason.clone()),
            _ => None,
        };
        match &reason {
            Some(reason) => tracing::warn!(service = %path, reason, "roll-out stopped"),
            None => tracing::info!(service = %path, percent = progress.percent(), "roll-out goes on"),
        }
        // Each step counts for itself; but once the old revision gets nothing it has no more than it answered before.
        let shifted = match step {
            RolloutStep::Shift(percent) if progress.plan().kind == RolloutKind::Canary => Some(percent),
            _ => None,
        };
        self.amend_as_owner(path, live, |record| {
            if let Some(rolling) = &mut record.rolling {
                rolling.progress = Some(progress);
                rolling.reason = reason;
            }
        })
        .await?;
        match shifted {
            Some(100) => {
                let new = live.state.lock().counted.get(1).copied();
                if let (Some(answers), Some(new)) = (&self.answers, new) {
                    answers.watch_answers(new);
                }
            }
            Some(_) => self.count_anew(live),
            None => {}
        }
        Ok(true)
    }

    fn count_anew(&self, live: &Live) {
        if let Some(answers) = &self.answers {
            for key in live.state.lock().counted.drain(..) {
                answers.unwatch_answers(key);
            }
        }
        self.count_answers(live);
    }

    /// What is to be done now; `None`: nothing.
    fn decide(&self, live: &Live) -> Option<(RolloutProgress, RolloutStep)> {
        let record = live.record()?;
        let mut progress =
            record.rolling.as_ref().filter(|rolling| rolling.is_watched())?.progress.clone()?;
        let seen = self.seen(live)?;
        match progress.observe(&seen, self.clock.now()) {
            RolloutStep::Hold => None,
            step => Some((progress, step)),
        }
    }

    /// Does what people want of a roll-out.
    ///
    /// # Errors
    /// `NotFound` when there is no such service, or it has no roll-out under way or stopped.
    pub async fn steer_rollout(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        action: RolloutAction,
    ) -> Result<Arc<ServiceRecord>> {
        self.steer_rollout_as(None, namespace, name, action).await
    }

    /// The same for somebody, who is kept with the change.
    ///
    /// # Errors
    /// As [`Control::steer_rollout`].
    pub async fn steer_rollout_for(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &str,
        name: &str,
        action: RolloutAction,
    ) -> Result<Arc<ServiceRecord>> {
        self.steer_rollout_as(Some(principal), namespace, name, action).await
    }

    async fn steer_rollout_as(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        namespace: &str,
        name: &str,
        action: RolloutAction,
    ) -> Result<Arc<ServiceRecord>> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let live = self.live(&path).ok_or_else(|| no_service(&path))?;
        let record = live.record().ok_or_else(|| no_service(&path))?;
        if record.rolling.is_none() {
            let message = format!("{path} has no roll-out under way; one begins with the next revision");
            return Err(Error::new(ErrorKind::NotFound, "roll-out", message));
        }
        if action == RolloutAction::Restart {
            self.check_data_plane(false, true)?;
        }
        let now = self.clock.now();
        let plan = record.plan.clone().unwrap_or_else(|| match record.rollout.is_zero() {
            true => RolloutPlan::default(),
            false => RolloutPlan::over(record.rollout),
        });
        let begun = RolloutProgress::new(plan, now).map_err(|errors| super::refused("roll-out", errors))?;
        self.amend(&path, &live, |record| {
            record.changed_by = principal.cloned();
            match (action, &mut record.rolling) {
                (RolloutAction::Promote, _) => record.rolling = None,
                (RolloutAction::Restart, Some(rolling)) => {
                    rolling.progress = Some(begun);
                    rolling.reason = None;
                }
                (RolloutAction::Stop, Some(rolling)) => {
                    let progress = rolling.progress.get_or_insert(begun);
                    progress.stop(now);
                    rolling.reason = Some("stopped by hand".to_owned());
                }
                (_, None) => {}
            }
        })
        .await?;
        self.count_anew(&live);
        self.settle(&path).await?;
        Ok(live.record().unwrap_or(record))
    }

    /// The roll-out of a service as operators see it; `Null`: there is none.
    pub(crate) fn rollout_view(&self, record: &ServiceRecord) -> Option<RolloutView> {
        let rolling = record.rolling.as_ref()?;
        let now = self.clock.now();
        let counts = self.live(&record.path()).and_then(|live| self.counts(&live));
        let state = match rolling {
            rolling if rolling.is_stopped() => RolloutStage::Stopped,
            rolling if rolling.is_over(now) => RolloutStage::Done,
            _ => RolloutStage::Moving,
        };
        let plan = rolling.progress.as_ref().map(RolloutProgress::plan);
        let live = self.live(&record.path());
        let sizing = live.as_ref().and_then(|live| self.sizing(live)).map(|(_, sizing)| sizing);
        let latencies = live.and_then(|live| self.seen(&live)).and_then(|seen| seen.latencies).zip(plan);
        Some(RolloutView {
            kind: plan.map(|plan| plan.kind),
            max_slower: plan.map(|plan| plan.max_slower.unwrap_or(RolloutPlan::MAX_SLOWER)),
            surge: plan.map(|plan| plan.surge.to_string()),
            ready_within_seconds: plan.map(|plan| plan.ready_within.as_secs_f64()),
            keep_old_seconds: plan.map(|plan| plan.keep_old.as_secs_f64()),
            latency: latencies.map(|([from, to], plan)| {
                let millis = |counts: &sas_core::LatencyCounts| {
                    counts.quantile(plan.quantile).map(|time| time.as_secs_f64() * 1e3)
                };
                RolloutLatency { quantile: plan.quantile, from_millis: millis(&from), to_millis: millis(&to) }
            }),
            instances: sizing.map(|sizing| RolloutInstances {
                needed: sizing.needed(),
                most: sizing.total(),
                from_ready: sizing.old.ready,
                to_ready: sizing.new.ready,
                to_wanted: sizing.wanted(),
                to_percent: sizing.goal,
            }),
            from: rolling.from.clone(),
            to: rolling.to.clone(),
            percent: rolling.moved(100, now),
            state,
            reason: rolling.reason.clone().or_else(|| {
                let (progress, [old, new]) =
                    (rolling.progress.as_ref().filter(|_| rolling.is_watched())?, counts?);
                let unjudged = new.requests > 0 && progress.compared_with(old).is_none();
                unjudged
                    .then(|| format!("{} is not judged: {} has answered nothing", rolling.to, rolling.from))
            }),
            since: rfc3339(rolling.progress.as_ref().map_or(rolling.since, RolloutProgress::since)),
            steps: plan.map(|plan| plan.steps.clone()),
            hold_seconds: plan.map(|plan| plan.hold.as_secs_f64()),
            min_requests: plan.map(|plan| plan.min_requests),
            max_more_errors: plan.map(|plan| plan.max_more_errors),
            over_seconds: plan.is_none().then_some(rolling.over.as_secs_f64()),
            answers: counts.map(|[from, to]| RolloutAnswers { from, to }),
        })
    }
}

/// Whether the revision under this key is not ready yet, and so none that a roll-out moves traffic to.
fn comes(state: &LiveState, key: RevisionKey) -> bool {
    let Some(record) = &state.record else { return false };
    let registered = state.observed.registrations.iter().find(|registration| registration.key == key);
    let revision = registered.and_then(|registration| record.revision(&registration.revision));
    revision.is_some_and(|revision| revision.state == RevisionState::Pending)
}

/// Under which keys the two revisions take traffic, once both do.
fn keys(observed: &crate::reconcile::Observed, rolling: &Rolling) -> Option<[RevisionKey; 2]> {
    let key = |revision: &str| observed.running(revision).map(|registration| registration.key);
    Some([key(&rolling.from)?, key(&rolling.to)?])
}
