//! Roll-outs that look at the errors of the new revision.

use std::sync::Arc;

use sas_core::{AnswerCounts, Error, ErrorKind, Principal, Result, RevisionKey, RolloutPlan};
use serde::Deserialize;

use super::{Control, Live, no_service};
use crate::{
    record::{Rolling, ServiceRecord},
    rollout::{RolloutProgress, RolloutStep},
    stamp::rfc3339,
    view::{RolloutAnswers, RolloutStage, RolloutView},
};

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

    /// What the two revisions of a watched roll-out answered in its step: the old one's first.
    fn counts(&self, live: &Live) -> Option<[AnswerCounts; 2]> {
        let state = live.state.lock();
        let (Some(answers), &[old, new]) = (&self.answers, state.counted.as_slice()) else { return None };
        Some([answers.answers(old)?, answers.answers(new)?])
    }

    /// Looks at the roll-out of a service, and moves its traffic on or back.
    pub(super) async fn roll(self: &Arc<Self>, path: &str) -> Result<()> {
        if self.live(path).is_none_or(|live| self.decide(&live).is_none()) {
            return Ok(());
        }
        let _changing = self.change(path).await;
        let Some(live) = self.live(path) else { return Ok(()) };
        // Asked again: it may have been changed while this waited for its turn.
        let Some((progress, step)) = self.decide(&live) else { return Ok(()) };
        let reason = match step {
            RolloutStep::Stop { reason } => Some(reason),
            _ => None,
        };
        match &reason {
            Some(reason) => tracing::warn!(service = %path, reason, "roll-out stopped"),
            None => tracing::info!(service = %path, percent = progress.percent(), "roll-out goes on"),
        }
        self.amend_as_owner(path, &live, |record| {
            if let Some(rolling) = &mut record.rolling {
                rolling.progress = Some(progress);
                rolling.reason = reason;
            }
        })
        .await?;
        // Each step counts for itself.
        self.count_anew(&live);
        self.settle(path).await
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
        let [old, new] = self.counts(live)?;
        match progress.observe(old, new, self.clock.now()) {
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
        Some(RolloutView {
            from: rolling.from.clone(),
            to: rolling.to.clone(),
            percent: rolling.moved(100, now),
            state,
            reason: rolling.reason.clone(),
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

/// Under which keys the two revisions take traffic, once both do.
fn keys(observed: &crate::reconcile::Observed, rolling: &Rolling) -> Option<[RevisionKey; 2]> {
    let key = |revision: &str| {
        let mut found = observed.registrations.iter().filter(|r| r.routable && !r.retiring);
        found.find(|registration| registration.revision == revision).map(|registration| registration.key)
    };
    Some([key(&rolling.from)?, key(&rolling.to)?])
}
