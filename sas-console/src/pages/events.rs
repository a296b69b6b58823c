//! Triggers, brokers and the events that could not be delivered.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    api::{Api, Result, Who, escaped},
    page::{Page, form_token, nothing, wide},
    text::{age, count, foreign, moment},
};

/// Dead letters that are listed.
const LETTERS: usize = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Triggers {
    triggers: Vec<Trigger>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Trigger {
    name: String,
    kind: String,
    running: bool,
    paused: bool,
    attempts: u64,
    circuit_open: bool,
    oldest: Option<String>,
    restarts: u64,
    last_error: Option<String>,
    last_fire: Option<String>,
    next_fire: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Brokers {
    brokers: Vec<Broker>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Broker {
    name: String,
    held: u64,
    accepted: u64,
    readers: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Counts {
    reasons: std::collections::BTreeMap<String, u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Letters {
    dead_letters: Vec<Value>,
}

impl Trigger {
    fn state(&self) -> Markup {
        let (health, word) = if self.paused {
            ("off", "paused")
        } else if self.circuit_open {
            ("failing", "its target is down")
        } else if !self.running {
            ("warning", "starts again")
        } else {
            ("ready", "runs")
        };
        html! { span class=(format!("light {health}")) { i aria-hidden="true" {} (word) } }
    }

    fn page(&self) -> String {
        let (namespace, name) = self.name.split_once('/').unwrap_or(("", &self.name));
        format!("/console/events/{}/{}", escaped(namespace), escaped(name))
    }

    /// Trouble first.
    fn rank(&self) -> (u8, String) {
        let rank = match self {
            Self { circuit_open: true, .. } => 0,
            Self { running: false, paused: false, .. } => 1,
            Self { last_error: Some(_), .. } => 2,
            Self { paused: true, .. } => 4,
            _ => 3,
        };
        (rank, self.name.clone())
    }

    fn times(&self, now: i64) -> Markup {
        html! {
            @if let Some(oldest) = &self.oldest { "oldest waits " (age(oldest, now)) }
            @if let Some(next) = &self.next_fire { "next " (moment(next)) }
            @if let Some(last) = &self.last_fire { " last " (moment(last)) }
        }
    }
}

pub(super) async fn show(api: &Api) -> Result<Page> {
    let mut triggers: Triggers = api.get("/v1/triggers?limit=5000").await?;
    let brokers: Brokers = api.get("/v1/brokers?limit=5000").await?;
    triggers.triggers.sort_by_cached_key(Trigger::rank);
    let now = api.now();
    let mut rows = Vec::new();
    for trigger in &triggers.triggers {
        let path = format!("/v1/triggers{}/deadletters/counts", &trigger.page()["/console/events".len()..]);
        // Those beyond are told by their own page.
        let letters: Option<Counts> = if rows.len() < 100 { api.find(&path).await? } else { None };
        rows.push((trigger, letters.map(|counts| counts.reasons.values().sum::<u64>())));
    }
    Ok(Page::new("Events").with("triggers", html! {
        h2 { "Triggers" }
        @if rows.is_empty() { (nothing("There is no trigger. A manifest of one brings events to a service.")) }
        @else {
            (wide("Triggers", html! {
                table {
                    thead { tr { th scope="col" { "Trigger" } th scope="col" { "Kind" } th scope="col" { "State" } th.n scope="col" { "Attempts" } th.n scope="col" { "Dead letters" } th.n scope="col" { "Restarts" } th scope="col" { "When (UTC)" } } }
                    tbody {
                        @for (trigger, letters) in &rows {
                            tr {
                                th scope="row" { a href=(trigger.page()) { (trigger.name) } }
                                td { (trigger.kind) }
                                td.state { (trigger.state()) @if let Some(error) = &trigger.last_error { span.why { (foreign(error)) } } }
                                td.n { (count(trigger.attempts)) }
                                td.n { @match letters { Some(0) | None => { "–" } Some(letters) => { span.bad-text { (count(*letters)) } } } }
                                td.n { (count(trigger.restarts)) }
                                td { (trigger.times(now)) }
                            }
                        }
                    }
                }
            }))
        }
    }).with("brokers", html! {
        h2 { "Brokers" }
        @if brokers.brokers.is_empty() { (nothing("There is no broker.")) }
        @else {
            (wide("Brokers", html! {
                table {
                    thead { tr { th scope="col" { "Broker" } th.n scope="col" { "Holds" } th.n scope="col" { "Accepted" } th.n scope="col" { "Readers" } } }
                    tbody { @for broker in &brokers.brokers {
                        tr { th scope="row" { (broker.name) } td.n { (count(broker.held)) } td.n { (count(broker.accepted)) } td.n { (count(broker.readers)) } }
                    } }
                }
            }))
        }
    }))
}

pub(super) async fn trigger(api: &Api, who: &Who, namespace: &str, name: &str, mark: &str) -> Result<Page> {
    let full = format!("{namespace}/{name}");
    let path = format!("/v1/triggers/{}/{}", escaped(namespace), escaped(name));
    let trigger: Trigger = api.get(&path).await?;
    let counts: Counts = api.find(&format!("{path}/deadletters/counts")).await?.unwrap_or_default();
    let letters: Letters =
        api.find(&format!("{path}/deadletters?limit={LETTERS}")).await?.unwrap_or_default();
    let all: u64 = counts.reasons.values().sum();
    let button = |action: &str, text: &str, more: Markup| {
        html! {
            form method="post" action=(format!("/console/do/trigger-{action}")) {
                (form_token(mark))
                input type="hidden" name="back" value=(trigger.page());
                input type="hidden" name="trigger" value=(full);
                (more)
                button type="submit" { (text) }
            }
        }
    };
    Ok(Page::new(full.clone()).with("state", html! {
        dl.facts {
            dt { "State" } dd { (trigger.state()) @if let Some(error) = &trigger.last_error { " " (foreign(error)) } }
            dt { "Kind" } dd { (trigger.kind) }
            dt { "Attempts" } dd { (count(trigger.attempts)) ", " (count(trigger.restarts)) " restarts of its source" }
            @if trigger.oldest.is_some() || trigger.next_fire.is_some() || trigger.last_fire.is_some() { dt { "When" } dd { (trigger.times(api.now())) } }
        }
    }).with("actions", html! {
        @if who.may_deploy() {
            div.actions {
                @if trigger.paused { (button("resume", "Let it go on", Markup::default())) }
                @else { (button("pause", "Pause", Markup::default())) }
                @if all > 0 {
                    (button("redrive", "Deliver dead letters again", html! {
                        label { span { "Reason" } select name="reason" {
                            option value="" { "all" }
                            @for (reason, count) in &counts.reasons { option value=(reason) { (reason) " (" (count) ")" } }
                        } }
                    }))
                    details.harm #discard {
                        summary { "Forget them…" }
                        p { "All " (all) " events are deleted, and can't be delivered any more." }
                        (button("discard", "Forget all of them", Markup::default()))
                    }
                }
            }
        }
    }).with("letters", html! {
        h2 { "Dead letters" }
        @if all == 0 { (nothing("None: every event was delivered.")) }
        @else {
            p { @for (reason, number) in &counts.reasons { span.tag { (reason) ": " (count(*number)) } " " } }
            (wide("Dead letters", html! {
                table {
                    thead { tr { th scope="col" { "At (UTC)" } th scope="col" { "Event" } th.n scope="col" { "Attempts" } th scope="col" { "Why" } th scope="col" { "Letter" } } }
                    tbody { @for letter in &letters.dead_letters { (row(letter)) } }
                }
            }))
            @if all > LETTERS as u64 { p.muted { "The oldest " (LETTERS) " of " (count(all)) " are listed." } }
        }
    }))
}

fn row(letter: &Value) -> Markup {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let event = &letter["event"];
    html! {
        tr {
            td { (moment(&text(&letter["at"]))) }
            td { (foreign(&text(&event["type"]))) " " span.muted { (foreign(&text(&event["id"]))) }
                @if !event["data"].is_null() { span.why { (foreign(&text(&event["data"]))) } } }
            td.n { (text(&letter["attempts"])) }
            td { (foreign(&text(&letter["reason"]))) }
            td.muted { (foreign(&text(&letter["letter"]))) }
        }
    }
}
