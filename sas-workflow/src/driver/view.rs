//! Runs as operators see them.

use std::collections::{HashMap, HashSet};

use sas_core::{RunDetail, RunStatus, RunView, StepView};
use serde_json::Value as Json;

use super::{
    drive::Loaded,
    past::End,
    records::{Phase, RunState},
    shown::{LISTED, SHOWN, cut, failure, shown},
};
use crate::Record;

pub(super) fn rfc3339(millis: u64) -> String {
    let at = i64::try_from(millis).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    at.unwrap_or(jiff::Timestamp::MAX).to_string()
}

pub(super) fn status(state: &RunState) -> RunStatus {
    match state.phase {
        Phase::Running if state.suspended => RunStatus::Suspended,
        Phase::Running => RunStatus::Running,
        Phase::Completed => RunStatus::Completed,
        Phase::Faulted => RunStatus::Faulted,
        Phase::Cancelled => RunStatus::Cancelled,
    }
}

pub(super) fn run(state: &RunState, most: usize) -> RunView {
    let mut view =
        RunView::new(&state.namespace, &state.id, &state.name, &state.version, rfc3339(state.started));
    view.status = status(state);
    view.updated_at = rfc3339(state.updated);
    view.next_timer = state.wakes.map(rfc3339);
    view.records = state.records;
    view.labels = state.labels.clone();
    view.output = cut(state.output.as_ref(), most);
    view.error = cut(state.error.as_ref(), most);
    view.parent = state.parent.as_ref().map(|parent| parent.run.clone());
    view
}

/// The run with its path. What steps were asked is in no record, so that no secret is; what they answered is.
pub(super) fn detail(loaded: &Loaded) -> RunDetail {
    let state = &loaded.state;
    let mut detail = RunDetail::new(run(state, SHOWN));
    detail.input = loaded.past.input.clone();
    let machine = match &loaded.machine {
        Ok(machine) => machine,
        Err(fault) => {
            detail.unreadable = fault.0.get("detail").and_then(Json::as_str).map(str::to_owned);
            return detail;
        }
    };
    let mut done: HashMap<&str, End> =
        loaded.past.ends.iter().map(|end| (end.step.as_str(), end.clone())).collect();
    // Of those that are kept, more can be shown.
    for record in Record::counting(&loaded.records) {
        if let Record::Done { step, outcome, at } = record {
            let (outcome, failed) = (shown(outcome, LISTED), failure(outcome));
            done.insert(step, End { step: step.clone(), at: *at, outcome, failed });
        }
    }
    let waits: HashMap<&str, &'static str> =
        machine.commands().iter().map(|command| (command.step(), command.kind())).collect();
    let entered: HashSet<&str> = machine.visits().iter().map(|visit| visit.step.as_str()).collect();
    let failed = state.error.as_ref().and_then(|error| error.get("instance")?.as_str());
    let last_failed = machine.visits().iter().rposition(|visit| failed == Some(visit.pointer.as_str()));
    let visits = machine.visits();
    detail.earlier_steps = usize::try_from(machine.earlier_visits()).unwrap_or(usize::MAX);
    for (at, visit) in visits.iter().enumerate() {
        let mut step = StepView::new(&visit.step, &visit.task, &visit.pointer, rfc3339(visit.at));
        step.retries = loaded.past.retries.get(&visit.step).copied().unwrap_or_default();
        step.waits_for = waits.get(visit.step.as_str()).copied();
        // A retry of a `try`, the document of a call: of the step, and of none below it.
        if step.waits_for.is_none() {
            let below = waits.iter().find(|(step, _)| {
                step.strip_prefix(&*visit.step).is_some_and(|rest| {
                    let name = rest.trim_start_matches('/').split(['@', '#']).next();
                    rest.starts_with('/') && matches!(name, Some("retry" | "document"))
                }) && !entered.contains(*step)
            });
            step.waits_for = below.map(|(_, waits)| *waits);
        }
        if let Some(end) = done.remove(visit.step.as_str()) {
            step.done_at = Some(rfc3339(end.at));
            step.outcome = end.outcome;
            step.state = if end.failed { "failed" } else { "answered" };
        }
        if step.waits_for.is_some() {
            step.state = "active";
        } else if last_failed == Some(at) {
            step.state = "failed";
        }
        detail.steps.push(step);
    }
    detail
}
