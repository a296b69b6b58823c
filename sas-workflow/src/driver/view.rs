//! Runs as operators see them.

use std::collections::{HashMap, HashSet};

use sas_core::{RunDetail, RunStatus, RunView, StepView};
use serde_json::{Value as Json, json};

use super::{
    drive::Loaded,
    records::{Phase, RunState},
};
use crate::{Body, Outcome, Record};

/// How many bytes of an input, an output or an error are shown of one run.
pub(super) const SHOWN: usize = 64 << 10;
/// How many of each are shown in a list, and of a step.
pub(super) const LISTED: usize = 4 << 10;
/// How many steps are shown: the last ones.
const STEPS: usize = 1_000;

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

/// What is too large stands as its size.
fn cut(value: Option<&Json>, most: usize) -> Json {
    let Some(value) = value else { return Json::Null };
    match value.to_string().len() {
        bytes if bytes > most => json!({ "truncatedBytes": bytes }),
        _ => value.clone(),
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
    if let Some(Record::Started { input, .. }) = loaded.records.first() {
        detail.input = cut(Some(input), SHOWN);
    }
    let machine = match &loaded.machine {
        Ok(machine) => machine,
        Err(fault) => {
            detail.unreadable = fault.0.get("detail").and_then(Json::as_str).map(str::to_owned);
            return detail;
        }
    };
    let retries = loaded.retries();
    let mut done: HashMap<&str, (&Outcome, u64)> = HashMap::new();
    for record in Record::counting(&loaded.records) {
        if let Record::Done { step, outcome, at } = record {
            done.insert(step, (outcome, *at));
        }
    }
    let waits: HashMap<&str, &'static str> =
        machine.commands().iter().map(|command| (command.step(), command.kind())).collect();
    let entered: HashSet<&str> = machine.visits().iter().map(|visit| visit.step.as_str()).collect();
    let failed = state.error.as_ref().and_then(|error| error.get("instance")?.as_str());
    let last_failed = machine.visits().iter().rposition(|visit| failed == Some(visit.pointer.as_str()));
    let visits = machine.visits();
    detail.earlier_steps = visits.len().saturating_sub(STEPS);
    for (at, visit) in visits.iter().enumerate().skip(detail.earlier_steps) {
        let mut step = StepView::new(&visit.step, &visit.task, &visit.pointer, rfc3339(visit.at));
        step.retries = retries.get(&visit.step).copied().unwrap_or_default();
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
        if let Some((outcome, at)) = done.get(visit.step.as_str()) {
            step.done_at = Some(rfc3339(*at));
            step.outcome = shown(outcome);
            step.state = if failure(outcome) { "failed" } else { "answered" };
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

pub(super) fn failure(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answer { status, .. } => *status >= 400,
        Outcome::Output(_) => false,
        Outcome::Failed { .. } | Outcome::Error(_) => true,
    }
}

fn shown(outcome: &Outcome) -> Json {
    match outcome {
        Outcome::Answer { status, body, .. } => {
            let body = match body {
                Body::Text(text) => json!(text),
                Body::Base64(text) => json!({ "base64": text }),
            };
            json!({"status": status, "body": cut(Some(&body), LISTED)})
        }
        Outcome::Output(output) => json!({"output": cut(Some(output), LISTED)}),
        Outcome::Failed { reason } => {
            json!({"failed": reason.chars().take(1_000).collect::<String>()})
        }
        Outcome::Error(error) => json!({"error": cut(Some(error), LISTED)}),
    }
}
