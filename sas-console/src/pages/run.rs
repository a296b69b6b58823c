//! A run of a workflow: the path that it took, what it waits for, and what may be done with it.

use std::collections::BTreeMap;

use http::StatusCode;
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::workflow::{Workflow, drawn};
use crate::{
    api::{Api, Problem, Result, Who, escaped, query},
    page::{Page, form_token, nothing, wide},
    text::{data, foreign, moment, tame},
};

/// Steps that are listed, the last ones.
const STEPS: usize = 200;

/// A run, by its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunId {
    pub(crate) namespace: String,
    pub(crate) id: String,
}

impl RunId {
    /// Its path in the admin API.
    pub(crate) fn api(&self, rest: &str) -> String {
        format!("/v1/runs/{}/{}{rest}", escaped(&self.namespace), escaped(&self.id))
    }

    /// Its path in the console.
    pub(crate) fn page(&self) -> String {
        format!("/console/runs/{}/{}", escaped(&self.namespace), escaped(&self.id))
    }
}

/// How a run stands.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Run {
    pub(super) namespace: String,
    pub(super) id: String,
    pub(super) workflow: String,
    pub(super) version: String,
    pub(super) status: String,
    pub(super) started_at: String,
    pub(super) updated_at: String,
    pub(super) next_timer: Option<String>,
    records: u64,
    pub(super) labels: BTreeMap<String, String>,
    output: Value,
    error: Value,
    parent: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    #[serde(flatten)]
    run: Run,
    input: Value,
    steps: Vec<Step>,
    earlier_steps: usize,
    unreadable: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Step {
    step: String,
    task: String,
    at: String,
    done_at: Option<String>,
    state: String,
    waits_for: Option<String>,
    retries: u64,
    outcome: Value,
}

impl Run {
    fn named(&self) -> RunId {
        RunId { namespace: self.namespace.clone(), id: self.id.clone() }
    }

    pub(super) fn page(&self) -> String {
        self.named().page()
    }

    pub(super) fn workflow(&self) -> Workflow {
        Workflow {
            namespace: self.namespace.clone(),
            name: self.workflow.clone(),
            version: self.version.clone(),
        }
    }

    /// The class of a row.
    pub(super) fn trouble(&self) -> &'static str {
        match self.status.as_str() {
            "faulted" => "failing",
            "suspended" => "warning",
            "cancelled" => "off",
            _ => "",
        }
    }

    pub(super) fn light(&self) -> Markup {
        let class = match self.status.as_str() {
            "completed" => "ready",
            "running" => "running",
            "suspended" => "warning",
            "faulted" => "failing",
            _ => "off",
        };
        html! { span class=(format!("light {class}")) { i aria-hidden="true" {} (self.status) } }
    }

    /// The error that it ended with: its title and what it says.
    pub(super) fn error_sentence(&self) -> Option<String> {
        let text = |field: &str| self.error[field].as_str().unwrap_or_default();
        match (&self.error, text("title"), text("detail")) {
            (Value::Null, ..) => None,
            (_, "", "") => Some(self.error.to_string()),
            (_, "", one) | (_, one, "") => Some(one.to_owned()),
            (_, title, detail) => Some(format!("{title}: {detail}")),
        }
    }

    /// Whether it goes on, or may.
    fn goes_on(&self) -> bool {
        matches!(self.status.as_str(), "running" | "suspended")
    }
}

/// What a step waits for, in words.
fn waits(what: &str) -> &str {
    match what {
        "call" => "the answer of a URL",
        "invoke" => "the answer of a service",
        "timer" => "a time",
        "emit" => "the broker to take its event",
        "event" => "an event",
        "workflow" => "the end of another run",
        other => other,
    }
}

pub(super) async fn show(api: &Api, who: &Who, run: &RunId, mark: &str) -> Result<Page> {
    let found: Option<Detail> = api.find(&run.api("")).await?;
    let missing = || {
        let detail = format!(
            "there is no run {} in {}; those that ended are forgotten after a while",
            run.id, run.namespace
        );
        Problem::new(StatusCode::NOT_FOUND, detail)
    };
    let detail = found.ok_or_else(missing)?;
    let seen = &detail.run;
    // Another picture has another address: it is loaded again when the run went on, and not before.
    let of = query(&[("records", &seen.records.to_string()), ("status", &seen.status)]);
    let address = format!("/console/pictures/runs/{}/{}{of}", escaped(&run.namespace), escaped(&run.id));
    let told = format!(
        "The steps of {}, with the path that the run took; the table below says the same.",
        seen.workflow
    );
    Ok(Page::new(format!("{}/{}", run.namespace, run.id))
        .with("state", state(&detail))
        .with("actions", actions(&detail, who, run, mark))
        .with(
            "graph",
            html! {
                h2 { "Its path" }
                @match &detail.unreadable {
                    Some(why) => { p.said.wrong { "Its path cannot be told now: " (foreign(why)) } }
                    None => { (drawn(&address, &told)) }
                }
            },
        )
        .with("steps", steps(&detail))
        .with(
            "data",
            html! {
                h2 { "Input" }
                pre.code tabindex="0" aria-label="The input" { (data(&detail.input)) }
                @if !seen.output.is_null() {
                    h2 { "Output" }
                    pre.code tabindex="0" aria-label="The output" { (data(&seen.output)) }
                }
                @if !seen.error.is_null() {
                    h2 { "Error" }
                    pre.code tabindex="0" aria-label="The error" { (data(&seen.error)) }
                }
            },
        ))
}

fn state(detail: &Detail) -> Markup {
    let run = &detail.run;
    let waiting: Vec<&Step> = detail.steps.iter().filter(|step| step.waits_for.is_some()).collect();
    html! {
        @if let Some(error) = run.error_sentence() { p.said.wrong { strong { "It faulted. " } (foreign(&error)) } }
        dl.facts {
            dt { "State" } dd { (run.light()) }
            dt { "Workflow" } dd { a href=(run.workflow().page()) { (run.namespace) "/" (run.workflow) " " (run.version) } }
            dt { "Started (UTC)" } dd { (run.started_at) }
            dt { "Went on (UTC)" } dd { (run.updated_at) ", " (run.records) " records" }
            @if !waiting.is_empty() {
                dt { "Waits for" } dd {
                    @for step in waiting.iter().take(8) { span.part { (waits(step.waits_for.as_deref().unwrap_or_default())) ", at " code { (step.step) } } }
                    @if waiting.len() > 8 { span.part { (waiting.len() - 8) " more" } }
                }
            }
            @if let Some(timer) = &run.next_timer { dt { "Next timer (UTC)" } dd { (timer) } }
            @if let Some(parent) = &run.parent {
                dt { "Asked for by" } dd { a href=(RunId { namespace: run.namespace.clone(), id: parent.clone() }.page()) { (foreign(parent)) } }
            }
            @if !run.labels.is_empty() {
                dt { "Labels" } dd { @for (name, value) in &run.labels { span.tag { (foreign(name)) "=" (foreign(value)) } " " } }
            }
        }
    }
}

fn actions(detail: &Detail, who: &Who, run: &RunId, mark: &str) -> Markup {
    let form = |action: &str, content: Markup| {
        html! {
            form method="post" action=(format!("/console/do/run-{action}")) {
                (form_token(mark))
                input type="hidden" name="back" value=(run.page());
                input type="hidden" name="namespace" value=(run.namespace);
                input type="hidden" name="run" value=(run.id);
                (content)
            }
        }
    };
    let button = |text: &str| html! { button type="submit" { (text) } };
    let seen = &detail.run;
    let faulted = seen.status == "faulted";
    // A time or an event that it waits for has no answer that somebody could give instead.
    let answers = |step: &&Step| match step.waits_for.as_deref() {
        Some(what) => !matches!(what, "timer" | "event"),
        None => faulted && step.state == "failed",
    };
    let skippable: Vec<&Step> = detail.steps.iter().filter(answers).collect();
    html! {
        div.actions {
            @if who.may_deploy() {
                @if seen.status == "running" { (form("suspend", button("Suspend"))) }
                @if seen.status == "suspended" { (form("resume", button("Let it go on"))) }
                @if faulted { (form("retry", button("Retry the step that failed"))) }
                @if !skippable.is_empty() {
                    details.harm #skip {
                        summary { "Skip a step…" }
                        p { "The step counts as done with what you give here, and the run goes on from there." }
                        (form("skip", html! {
                            label { span { "Step" } select name="step" { @for step in &skippable { option { (step.step) } } } }
                            label { span { "What it gave, in JSON" } input name="output" placeholder="null"; }
                            button.danger type="submit" { "Skip it" }
                        }))
                    }
                }
            }
            @if who.may_invoke() && seen.goes_on() {
                details.harm #tell {
                    summary { "Send an event…" }
                    p { "A step that listens for this type gets it; else it is kept, and changes nothing." }
                    (form("event", html! {
                        label { span { "Type" } input name="type" required maxlength="256"; }
                        label { span { "Data, in JSON" } input name="data" placeholder="none"; }
                        (button("Send it"))
                    }))
                }
            }
            @if who.may_deploy() && seen.goes_on() {
                details.harm #cancel {
                    summary { "Cancel…" }
                    p { "It ends where it is, and never goes on. What its steps have done stays done." }
                    (form("cancel", html! { button.danger type="submit" { "Cancel the run" } }))
                }
            }
        }
    }
}

fn steps(detail: &Detail) -> Markup {
    let hidden = detail.steps.len().saturating_sub(STEPS);
    let earlier = detail.earlier_steps + hidden;
    html! {
        h2 { "Steps" }
        @if detail.steps.is_empty() { (nothing("It came to none yet.")) }
        @else {
            (wide("Steps", html! {
                table {
                    thead { tr { th scope="col" { "Step" } th scope="col" { "Task" } th scope="col" { "State" } th scope="col" { "Came to it (UTC)" } th scope="col" { "Done (UTC)" } th scope="col" { "What came of it" } } }
                    tbody {
                        @for step in &detail.steps[hidden..] {
                            tr class=(match step.state.as_str() { "failed" => "failing", _ => "" }) {
                                th scope="row" { code { (foreign(&step.step)) } }
                                td { (foreign(&step.task)) }
                                td {
                                    (doing(step))
                                    @if step.retries > 0 { " " span.tag { "begun anew ×" (step.retries) } }
                                }
                                td { (moment(&step.at)) }
                                td { @match &step.done_at { Some(at) => { (moment(at)) } None => { "–" } } }
                                td.reason { (outcome(&step.outcome)) }
                            }
                        }
                    }
                }
            }))
            @if earlier > 0 { p.muted { (earlier) " steps came before these." } }
        }
    }
}

fn doing(step: &Step) -> Markup {
    let what = step.waits_for.as_deref().map(waits);
    html! {
        @match (step.state.as_str(), what) {
            (_, Some(what)) => { span.starting-text { "waits for " (what) } }
            ("failed", None) => { span.bad-text { "failed" } }
            ("answered", None) => { "done" }
            ("passed", None) => { span.muted { "passed" } }
            (other, None) => { (other) }
        }
    }
}

/// What a step gave: short as a line, long behind a click.
fn outcome(value: &Value) -> Markup {
    const SHORT: usize = 120;
    if value.is_null() {
        return html! { "–" };
    }
    let text = value.to_string();
    let (line, cut) = tame(&text, SHORT);
    html! {
        @if cut == 0 { code { bdi { (line) } } }
        @else { details { summary { code { bdi { (line) "…" } } } pre.code { (data(value)) } } }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_error_is_told_by_its_title_and_detail() {
        let told = |error: Value| Run { error, ..Run::default() }.error_sentence();
        assert_eq!(told(Value::Null), None);
        let whole = json!({"title": "Conflict", "detail": "409 from billing", "status": 409});
        assert_eq!(told(whole).as_deref(), Some("Conflict: 409 from billing"));
        assert_eq!(told(json!({"title": "Timeout"})).as_deref(), Some("Timeout"));
        assert_eq!(told(json!({"truncatedBytes": 9})).as_deref(), Some(r#"{"truncatedBytes":9}"#));
    }

    #[test]
    fn a_reader_has_no_form_and_each_state_its_own() {
        let run = RunId { namespace: "shop".into(), id: "o-1".into() };
        let steps = || {
            let step = |step: &str, state: &str, waits_for: Option<&str>| Step {
                step: step.into(),
                state: state.into(),
                waits_for: waits_for.map(str::to_owned),
                ..Step::default()
            };
            vec![
                step("/pay", "failed", None),
                step("/ask", "active", Some("invoke")),
                step("/nap", "active", Some("timer")),
            ]
        };
        let of = |status: &str, scopes: &[&str]| {
            let detail = Detail {
                run: Run { status: status.into(), ..Run::default() },
                steps: steps(),
                ..Detail::default()
            };
            let who =
                Who { scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(), ..Who::default() };
            let drawn = actions(&detail, &who, &run, "mark").into_string();
            let mut found: Vec<String> = drawn
                .split("/console/do/run-")
                .skip(1)
                .map(|rest| rest.split('"').next().unwrap().to_owned())
                .collect();
            if drawn.contains("<option>/pay</option>") {
                found.push("skip of /pay".to_owned());
            }
            assert!(!drawn.contains("<option>/nap</option>"), "nobody answers for a time");
            found
        };
        assert_eq!(of("running", &["read"]), [""; 0]);
        assert_eq!(of("running", &["read", "invoke"]), ["event"]);
        assert_eq!(of("running", &["read", "deploy", "invoke"]), ["suspend", "skip", "event", "cancel"]);
        assert_eq!(of("suspended", &["deploy"]), ["resume", "skip", "cancel"]);
        assert_eq!(of("faulted", &["deploy"]), ["retry", "skip", "skip of /pay"]);
        assert_eq!(of("completed", &["invoke"]), [""; 0]);
    }
}
