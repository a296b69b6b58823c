//! Who has instances, what keeps them, and until when.

use std::cmp::Reverse;

use sas_core::{Deployed, RevisionStatus, ScalingSpec};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{control::Control, stamp::rfc3339};

/// Revisions that are told.
const MOST: usize = 200;

/// What keeps a revision's instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum KeptBy {
    /// Requests that it has, or that wait.
    Requests,
    /// The least instances that it asks for itself.
    Minimum,
    /// Its scaler's last decision, or that the next one has not come yet.
    Decision,
    /// The plan of the keep-alive policy.
    Plan,
    /// Nothing: it has no instances.
    Nothing,
}

/// A revision that has instances, or that is woken ahead of a call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct WarmView {
    namespace: String,
    service: String,
    revision: String,
    ready: u32,
    starting: u32,
    in_flight: u32,
    queued: u32,
    kept_by: KeptBy,
    /// Until when, in RFC 3339, if nobody calls it before; `null`: that is decided as it goes.
    until: Option<String>,
    /// How long nothing has to be asked of it before its scaler lets it sleep, in seconds; `null`: it never sleeps, or
    /// something else decides, or nothing was decided yet.
    quiet_seconds: Option<f64>,
    /// When one is started ahead of a call that is expected, in RFC 3339; `null`: none is.
    wakes_at: Option<String>,
}

impl KeptBy {
    fn of(scaling: &ScalingSpec, status: &RevisionStatus) -> Self {
        match status {
            _ if status.in_flight + status.queued > 0 => Self::Requests,
            _ if status.ready + status.starting == 0 => Self::Nothing,
            _ if status.desired > 0 && (scaling.min > 0 || !scaling.scale_to_zero) => Self::Minimum,
            _ if status.desired == 0 && status.sleeps_at.is_some() => Self::Plan,
            _ => Self::Decision,
        }
    }
}

impl WarmView {
    fn of(deployed: &Deployed, status: &RevisionStatus) -> Self {
        let scaling = &deployed.spec.scaling;
        let kept_by = KeptBy::of(scaling, status);
        let quiet = scaling.stable_window.max(scaling.retention) + scaling.scale_to_zero_grace;
        Self {
            namespace: deployed.name.namespace().to_owned(),
            service: deployed.name.service().to_owned(),
            revision: deployed.name.revision().to_owned(),
            ready: status.ready,
            starting: status.starting,
            in_flight: status.in_flight,
            queued: status.queued,
            kept_by,
            until: status.sleeps_at.filter(|_| kept_by == KeptBy::Plan).map(rfc3339),
            quiet_seconds: (kept_by == KeptBy::Decision && status.desired > 0).then_some(quiet.as_secs_f64()),
            wakes_at: status.wakes_at.map(rfc3339),
        }
    }
}

/// Those that are warm or will be, those with most instances first, and how many there are.
pub(super) fn warm(control: &Control) -> (Vec<WarmView>, usize) {
    let mut found = Vec::new();
    for live in control.lives() {
        // As the overview does: the pool is asked under this lock, and never asks back.
        let state = live.state.lock();
        for key in state.observed.registrations.iter().map(|registration| registration.key) {
            let Some(status) = control.pool.status(key) else { continue };
            if status.ready + status.starting > 0 || status.wakes_at.is_some() {
                found.push((key, status));
            }
        }
    }
    let total = found.len();
    found.sort_unstable_by_key(|(key, status)| (Reverse(status.ready + status.starting), *key));
    let told = found.iter().take(MOST);
    let told = told.filter_map(|(key, status)| {
        let deployed = control.pool.deployed(*key)?;
        Some(WarmView::of(&deployed, status))
    });
    (told.collect(), total)
}

#[cfg(test)]
mod tests {
    use sas_core::Timestamp;

    use super::*;

    #[test]
    fn what_keeps_a_revision_is_what_would_have_to_end() {
        let (mut sleeps, mut never) = (ScalingSpec::default(), ScalingSpec::default());
        (sleeps.min, never.min) = (0, 1);
        let status = |desired, ready, in_flight, plan: bool| {
            let mut status = RevisionStatus::default();
            (status.desired, status.ready, status.in_flight) = (desired, ready, in_flight);
            status.sleeps_at = plan.then_some(Timestamp::from_secs(9));
            status
        };
        let mut gone = status(0, 0, 0, false);
        gone.wakes_at = Some(Timestamp::from_secs(99));
        for (scaling, status, kept_by) in [
            (&sleeps, status(1, 1, 1, true), KeptBy::Requests),
            (&never, status(1, 1, 0, false), KeptBy::Minimum),
            (&sleeps, status(1, 1, 0, true), KeptBy::Decision),
            (&sleeps, status(0, 1, 0, true), KeptBy::Plan),
            (&sleeps, status(0, 1, 0, false), KeptBy::Decision),
            (&sleeps, gone, KeptBy::Nothing),
        ] {
            assert_eq!(KeptBy::of(scaling, &status), kept_by, "{status:?}");
        }
    }
}
