//! Runs of workflows, found by what they are, and the definitions that there are.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde::Deserialize;

use super::{run, workflow::Workflow};
use crate::{
    api::{Api, Result, Who, escaped, query},
    form::Form,
    page::{Page, nothing, wide},
    text::{foreign, moment},
};

/// Runs on a page.
const PAGE: &str = "100";
/// Definitions that are listed.
const DEFINITIONS: &str = "1000";

/// Which runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    namespace: String,
    workflow: String,
    version: String,
    status: String,
    label: String,
    error: String,
    minutes: String,
    after: String,
}

impl Filter {
    pub(crate) fn of(form: &Form) -> Self {
        let of = |name: &str| form.get(name).to_owned();
        Self {
            namespace: of("namespace"),
            workflow: of("workflow"),
            version: of("version"),
            status: of("status"),
            label: of("label"),
            error: of("error"),
            minutes: of("minutes"),
            after: of("continue"),
        }
    }

    /// The runs of a definition.
    fn runs_of(definition: &Definition) -> Self {
        Self {
            namespace: definition.namespace.clone(),
            workflow: definition.name.clone(),
            version: definition.version.clone(),
            ..Self::default()
        }
    }

    /// The page of these runs, from this place on.
    fn page(&self, after: &str) -> String {
        let of = [
            ("namespace", self.namespace.as_str()),
            ("workflow", &self.workflow),
            ("version", &self.version),
            ("status", &self.status),
            ("label", &self.label),
            ("error", &self.error),
            ("minutes", &self.minutes),
            ("continue", after),
        ];
        format!("/console/workflows{}", query(&of))
    }

    fn api(&self, namespace: &str, now: i64) -> String {
        let minutes = self.minutes.parse::<i64>().unwrap_or(0).clamp(0, 525_600);
        let from = if minutes > 0 { (now - minutes * 60).to_string() } else { String::new() };
        let of = [
            ("workflow", self.workflow.as_str()),
            ("version", &self.version),
            ("status", &self.status),
            ("label", &self.label),
            ("error", &self.error),
            ("from", &from),
            ("continue", &self.after),
            ("limit", PAGE),
        ];
        format!("/v1/runs/{}{}", escaped(namespace), query(&of))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Definitions {
    workflows: Vec<Definition>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Definition {
    namespace: String,
    name: String,
    version: String,
    refused: Vec<String>,
    schedule: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runs {
    runs: Vec<run::Run>,
    #[serde(rename = "continue")]
    next: Option<String>,
}

pub(super) async fn show(api: &Api, who: &Who, filter: &Filter) -> Result<Page> {
    let page = Page::new("Workflows");
    let own = who.namespace.as_deref().unwrap_or_default();
    let asked = query(&[("namespace", own), ("limit", DEFINITIONS)]);
    let Some(definitions): Option<Definitions> = api.find(&format!("/v1/workflows{asked}")).await? else {
        return Ok(page.with("none", nothing("This platform runs no workflows.")));
    };
    let mut namespaces: BTreeMap<&str, ()> =
        definitions.workflows.iter().map(|definition| (definition.namespace.as_str(), ())).collect();
    // Definitions go, and their runs may still be looked at.
    for named in [own, &filter.namespace] {
        if !named.is_empty() {
            namespaces.insert(named, ());
        }
    }
    // Runs are of a namespace: where none was chosen, the first one's are shown.
    let chosen = if filter.namespace.is_empty() { own } else { &filter.namespace };
    let first = namespaces.keys().next().copied().unwrap_or_default();
    let chosen = if chosen.is_empty() { first } else { chosen };
    let mut runs: Option<Runs> =
        if chosen.is_empty() { None } else { api.find(&filter.api(chosen, api.now())).await? };
    // Where all are on one page, the youngest come first; else pages are by their ids, as the admin API has them.
    let whole = filter.after.is_empty() && runs.as_ref().is_some_and(|found| found.next.is_none());
    if let Some(found) = runs.as_mut().filter(|_| whole) {
        found.runs.sort_by(|one, other| other.started_at.cmp(&one.started_at));
    }
    let text = |name: &'static str, label: &'static str, value: &str, holder: &'static str| {
        html! { label { span { (label) } input name=(name) value=(value) placeholder=(holder) size="12"; } }
    };
    let filters = html! {
        form.filters method="get" action="/console/workflows" role="search" {
            @if namespaces.len() > 1 {
                label { span { "Namespace" } select name="namespace" {
                    @for name in namespaces.keys() { option value=(name) selected[*name == chosen] { (name) } }
                } }
            } @else if !chosen.is_empty() { input type="hidden" name="namespace" value=(chosen); }
            (text("workflow", "Workflow", &filter.workflow, "all"))
            (text("version", "Version", &filter.version, "all"))
            label { span { "State" } select name="status" {
                option value="" { "all" }
                @for status in ["running", "suspended", "completed", "faulted", "cancelled"] {
                    option value=(status) selected[status == filter.status] { (status) }
                }
            } }
            label { span { "Started within" } select name="minutes" {
                @for (value, text) in [("", "any time"), ("5", "5 minutes"), ("60", "1 hour"), ("1440", "1 day"), ("10080", "1 week")] {
                    option value=(value) selected[value == filter.minutes] { (text) }
                }
            } }
            (text("label", "Label", &filter.label, "name=value"))
            (text("error", "Error", &filter.error, "any text"))
            button type="submit" { "Show" }
        }
    };
    Ok(page
        .above(filters)
        .with("runs", listed(filter, chosen, runs.as_ref()))
        .with("definitions", defined(&definitions)))
}

fn listed(filter: &Filter, namespace: &str, found: Option<&Runs>) -> Markup {
    html! {
        h2 { "Runs" @if !namespace.is_empty() { span.muted { " of " (namespace) } } }
        @match found {
            None => { (nothing("There is no workflow yet. Deploy one, and start a run of it.")) }
            Some(found) if found.runs.is_empty() && found.next.is_none() => { (nothing("No run is so.")) }
            Some(found) => {
                (wide("Runs", html! {
                    table {
                        thead { tr {
                            th scope="col" { "Run" } th scope="col" { "State" } th scope="col" { "Workflow" } th scope="col" { "Labels" }
                            th scope="col" { "Started (UTC)" } th scope="col" { "Went on (UTC)" } th scope="col" { "Next timer (UTC)" }
                        } }
                        tbody { @for run in &found.runs { (row(run)) } }
                    }
                }))
                @if let Some(next) = &found.next {
                    nav.pages aria-label="Pages" {
                        @if !filter.after.is_empty() { a href=(filter.page("")) rel="first" { "From the first" } }
                        a href=(filter.page(next)) rel="next" { "Next" }
                    }
                } @else if !filter.after.is_empty() {
                    nav.pages aria-label="Pages" { a href=(filter.page("")) rel="first" { "From the first" } }
                }
                @if found.next.is_some() || !filter.after.is_empty() {
                    p.muted { "These are in the order of their ids. A search looks at 10,000 runs at a time, so that a page may be short and have a next one." }
                }
            }
        }
    }
}

fn row(run: &run::Run) -> Markup {
    html! {
        tr class=(run.trouble()) {
            th.long scope="row" { a href=(run.page()) { (foreign(&run.id)) } }
            td.state { (run.light()) @if let Some(error) = run.error_sentence() { span.why { (foreign(&error)) } } }
            td { a href=(run.workflow().page()) { (run.workflow) } " " span.muted { (run.version) } }
            td { @for (name, value) in run.labels.iter().take(4) { span.tag { (foreign(name)) "=" (foreign(value)) } " " } }
            td { (moment(&run.started_at)) }
            td { (moment(&run.updated_at)) }
            td { @match &run.next_timer { Some(at) => { (moment(at)) } None => { "–" } } }
        }
    }
}

fn defined(definitions: &Definitions) -> Markup {
    html! {
        h2 { "Definitions" }
        @if definitions.workflows.is_empty() { (nothing("There is none.")) }
        @else {
            (wide("Definitions", html! {
                table {
                    thead { tr { th scope="col" { "Workflow" } th scope="col" { "Version" } th scope="col" { "Starts by itself" } th scope="col" { "Cannot be run here" } th scope="col" { "Runs" } } }
                    tbody {
                        @for definition in &definitions.workflows {
                            @let workflow = Workflow { namespace: definition.namespace.clone(), name: definition.name.clone(), version: definition.version.clone() };
                            tr class=(if definition.refused.is_empty() { "" } else { "warning" }) {
                                th scope="row" { a href=(workflow.page()) { span.muted { (definition.namespace) "/" } (definition.name) } }
                                td { (definition.version) }
                                td { (definition.schedule.as_deref().unwrap_or("–")) }
                                td { @for why in definition.refused.iter().take(4) { span.why { (foreign(why)) } } @if definition.refused.is_empty() { "–" } }
                                td { a href=(Filter::runs_of(definition).page("")) { "its runs" } }
                            }
                        }
                    }
                }
            }))
            @if definitions.next.is_some() { p.muted { "The first " (DEFINITIONS) " are listed." } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_kept_from_page_to_page() {
        let filter =
            Filter::of(&Form::parse("namespace=shop&status=faulted&error=no+such&minutes=60&continue=a"));
        assert_eq!(
            filter.page("b"),
            "/console/workflows?namespace=shop&status=faulted&error=no%20such&minutes=60&continue=b"
        );
        assert_eq!(
            filter.api("shop", 10_000),
            "/v1/runs/shop?status=faulted&error=no%20such&from=6400&continue=a&limit=100"
        );
    }
}
