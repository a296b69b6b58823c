//! What a change of a service's record means to who follows its life.

use sas_core::{LifecycleEvent, LifecycleKind, RevisionName, Timestamp};

use crate::record::{RevisionState, Rolling, ServiceRecord};

/// What happened to a service between two of its records, in the order in which it is told.
pub(crate) fn between(
    before: Option<&ServiceRecord>,
    after: &ServiceRecord,
    now: Timestamp,
) -> Vec<LifecycleEvent> {
    let mut events = Vec::new();
    let of_service = |kind| LifecycleEvent::of_service(kind, &after.namespace, &after.name, now);
    let of_revision = |kind, revision: &str| {
        let name = RevisionName::new(&after.namespace, &after.name, revision);
        LifecycleEvent::of_revision(kind, &name, now)
    };
    if let Some(latest) = after.latest_created()
        && before.is_none_or(|before| before.next_number < after.next_number)
    {
        let event = of_revision(LifecycleKind::ServiceDeployed, &latest.name);
        events.push(event.with("generation", after.generation).with("created", before.is_none()));
    }
    match (before.and_then(|before| before.disabled.as_ref()), &after.disabled) {
        (None, Some(disabled)) => {
            let event = of_service(LifecycleKind::ServiceDisabled);
            events.push(match &disabled.reason {
                Some(reason) => event.with("reason", reason.as_str()),
                None => event,
            });
        }
        (Some(_), None) => events.push(of_service(LifecycleKind::ServiceEnabled)),
        _ => {}
    }
    for revision in &after.revisions {
        let known = before.and_then(|before| before.revision(&revision.name));
        if known.is_some_and(|known| known.state == revision.state) {
            continue;
        }
        match &revision.state {
            RevisionState::Pending => {}
            RevisionState::Ready => events.push(of_revision(LifecycleKind::RevisionReady, &revision.name)),
            RevisionState::Failed { reason, message, .. } => {
                let event = of_revision(LifecycleKind::RevisionFailed, &revision.name);
                events.push(event.with("reason", reason.as_str()).with("message", message.as_str()));
            }
        }
    }
    let rollout = |kind, rolling: &Rolling| {
        let event = of_service(kind).with("from", rolling.from.as_str()).with("to", rolling.to.as_str());
        match &rolling.progress {
            Some(progress) => event.with("percent", progress.percent()),
            None => event,
        }
    };
    let before = before.and_then(|before| before.rolling.as_ref());
    let same = |one: &Rolling, other: &Rolling| one.from == other.from && one.to == other.to;
    match (before, &after.rolling) {
        (Some(before), Some(after)) if same(before, after) => {
            let percent = |rolling: &Rolling| rolling.progress.as_ref().map(|progress| progress.percent());
            if after.is_stopped() && !before.is_stopped() {
                let reason = after.reason.as_deref().unwrap_or_default();
                events.push(rollout(LifecycleKind::RolloutStopped, after).with("reason", reason));
            } else if before.is_stopped() && !after.is_stopped() {
                events.push(rollout(LifecycleKind::RolloutStarted, after));
            } else if percent(before) != percent(after) {
                events.push(rollout(LifecycleKind::RolloutMoved, after));
            }
        }
        (before, after) => {
            events.extend(before.map(|before| rollout(LifecycleKind::RolloutFinished, before)));
            events.extend(after.as_ref().map(|after| rollout(LifecycleKind::RolloutStarted, after)));
        }
    }
    events
}
