//! A service: what it does, how many instances that takes, and why.

use std::{cmp::Reverse, collections::HashMap};

use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Service,
    overview::{Instances, Rates, Traffic},
    tabs,
};
use crate::{
    api::{Api, Result, Who, escaped},
    chart::{self, Layer, Mark, Panel, SPAN},
    page::{Page, nothing, tile, wide},
    text::{age, ago, bytes, clock, count, foreign, millis, moment, rate, seconds},
    words::Decision,
};

/// Instances that are listed; all of them are drawn.
const LISTED: usize = 100;
/// Decisions that are listed.
const DECISIONS: usize = 25;
/// Revisions that are listed beside those with traffic.
const REVISIONS: usize = 10;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct View {
    pub(super) host: String,
    pub(super) created_at: String,
    pub(super) changed_by: Option<String>,
    pub(super) disabled: Option<Disabled>,
    pub(super) traffic: Vec<Traffic>,
    pub(super) rollout: Option<Rollout>,
    pub(super) conditions: Vec<Condition>,
    pub(super) revisions: Vec<Revision>,
    pub(super) latest_ready_revision: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Disabled {
    pub(super) since: String,
    pub(super) by: Option<String>,
    pub(super) reason: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Rollout {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) percent: u32,
    pub(super) state: String,
    pub(super) reason: Option<String>,
    pub(super) since: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) status: String,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Revision {
    pub(super) name: String,
    pub(super) created_at: String,
    pub(super) runtime: String,
    pub(super) percent: u32,
    pub(super) tags: Vec<String>,
    pub(super) instances: Option<Instances>,
    pub(super) notes: Vec<String>,
    pub(super) author: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) conditions: Vec<Condition>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Activity {
    now: i64,
    revisions: Vec<RevisionActivity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RevisionActivity {
    revision: String,
    rates: Rates,
    seconds: Vec<Second>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Second {
    at: i64,
    requests: u32,
    errors: u32,
    cold_starts: u32,
    desired: u32,
    ready: u32,
    starting: u32,
    draining: u32,
    queued: u32,
    in_flight: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Decisions {
    decisions: Vec<Decision>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct InstancesPage {
    instances: Vec<Instance>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Instance {
    id: String,
    revision: String,
    state: String,
    in_flight: u32,
    limit: Option<u32>,
    age_ms: u64,
    usage: Option<Usage>,
    ejected: bool,
    start: Option<Start>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Usage {
    cpu_ns: u64,
    memory_bytes: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Start {
    ready_ms: f64,
    from_stem: bool,
}

pub(super) async fn show(api: &Api, who: &Who, service: &Service) -> Result<Page> {
    let view: View = api.get(&service.api("")).await?;
    let activity: Option<Activity> = api.find(&service.api("/activity")).await?;
    let decisions: Option<Decisions> = api.find(&service.api("/decisions?limit=200")).await?;
    let instances: InstancesPage = api.get(&service.api("/instances")).await?;
    let decisions = decisions.map(|page| page.decisions).unwrap_or_default();
    let now = activity.as_ref().map_or_else(|| api.now(), |activity| activity.now);
    Ok(Page::new(service.title())
        .above(tabs(service, who, ""))
        .with("state", state(&view, activity.as_ref(), now))
        .with("charts", charts(activity.as_ref(), &decisions, now))
        .with("decisions", decided(&decisions))
        .with("revisions", revisions(service, &view, activity.as_ref(), now))
        .with("instances", running(service, instances.instances)))
}

/// Its health as the list of services has it.
fn health(view: &View, errors: f64) -> &'static str {
    let ready = view.conditions.iter().find(|condition| condition.kind == "Ready");
    match ready.map(|ready| (ready.status.as_str(), ready.reason.as_str())) {
        _ if view.disabled.is_some() => "off",
        Some(("False", _)) => "failing",
        _ if errors > 0.0 => "warning",
        Some(("True", _)) => "ready",
        Some((_, "NeverStarted")) | None => "unknown",
        _ => "warning",
    }
}

fn sum(view: &View) -> Instances {
    let mut sum = Instances::default();
    for instances in view.revisions.iter().filter_map(|revision| revision.instances.as_ref()) {
        sum.desired += instances.desired;
        sum.ready += instances.ready;
        sum.starting += instances.starting;
        sum.draining += instances.draining;
        sum.queued += instances.queued;
    }
    sum
}

fn state(view: &View, activity: Option<&Activity>, now: i64) -> Markup {
    let of = |value: fn(&Rates) -> f64| -> f64 {
        activity.iter().flat_map(|a| &a.revisions).map(|r| value(&r.rates)).sum()
    };
    let (requests, errors) = (of(|rates| rates.requests_per_second), of(|rates| rates.errors_per_second));
    // Quantiles can't be added: those of the revision that is asked most.
    let busiest =
        activity.iter().flat_map(|a| &a.revisions).max_by_key(|r| r.rates.requests).map(|r| &r.rates);
    let health = health(view, errors);
    let instances = sum(view);
    let troubles = view.conditions.iter().filter(|condition| {
        condition.status != "True" && !condition.message.is_empty() && condition.kind != "RolledOut"
    });
    let mut told: Vec<&str> = Vec::new();
    let troubles: Vec<&Condition> = troubles
        .filter(|condition| {
            let new = !told.contains(&condition.message.as_str());
            told.push(&condition.message);
            new
        })
        .collect();
    html! {
        p.where {
            (super::overview::light(health))
            " answers at " code { (view.host) } ", deployed " (age(&view.created_at, now)) " ago"
            @if let Some(by) = &view.changed_by { ", last changed by " (foreign(by)) }
        }
        @if let Some(disabled) = &view.disabled {
            p.said.wrong { "Switched off since " (moment(&disabled.since))
                @if let Some(by) = &disabled.by { " by " (foreign(by)) } ": " (disabled.reason.as_deref().unwrap_or("no reason was given")) }
        }
        @for condition in troubles {
            p class=(if condition.status == "False" { "said wrong" } else { "said" }) {
                strong { (condition.reason) } " " (foreign(plain(&condition.message)))
            }
        }
        @if let Some(rollout) = &view.rollout {
            p class=(if rollout.state == "stopped" { "said wrong" } else { "said" }) {
                strong { "Roll-out " (rollout.state) } " " (rollout.from) " → " (rollout.to) ", " (rollout.percent) " % moved, since " (moment(&rollout.since))
                @if let Some(reason) = &rollout.reason { ": " (foreign(reason)) }
            }
        }
        dl.tiles {
            (tile("Instances", super::overview::actual(&instances), ""))
            (tile("Requests/s", html! { (rate(requests)) }, ""))
            (tile("Errors/s", html! { (rate(errors)) }, if errors > 0.0 { "bad" } else { "" }))
            (tile("Median", html! { @match busiest.and_then(|r| r.p50_ms) { Some(ms) => { (millis(ms)) } None => { "–" } } }, ""))
            (tile("p99", html! { @match busiest.and_then(|r| r.p99_ms) { Some(ms) => { (millis(ms)) } None => { "–" } } }, ""))
            (tile("Held now", html! { (count(u64::from(instances.queued))) }, if instances.queued > 0 { "warn" } else { "" }))
            (tile("Cold starts/min", html! { (count(of(|rates| rates.cold_starts as f64) as u64)) }, ""))
        }
    }
}

/// Every second of the axis, of all revisions together.
fn fill(activity: &Activity, from: i64) -> Vec<Second> {
    let mut all = vec![Second::default(); SPAN as usize];
    for revision in &activity.revisions {
        let by_second: HashMap<i64, &Second> =
            revision.seconds.iter().map(|second| (second.at, second)).collect();
        let mut held = revision.seconds.iter().rfind(|second| second.at < from).copied().unwrap_or_default();
        for (second, at) in all.iter_mut().zip(from..) {
            if let Some(seen) = by_second.get(&at) {
                held = **seen;
                second.requests += seen.requests;
                second.errors += seen.errors;
                second.cold_starts += seen.cold_starts;
            }
            second.desired += held.desired;
            second.ready += held.ready;
            second.starting += held.starting;
            second.draining += held.draining;
            second.queued += held.queued;
            second.in_flight += held.in_flight;
        }
    }
    all
}

/// The seconds by tens of the clock, each with its first second, without those of a ten that has begun before the axis: what
/// is over does not change any more, so that a page on which nothing happens stays as it is.
fn tens(all: &[Second], from: i64) -> impl DoubleEndedIterator<Item = (i64, &[Second])> {
    let before = ((10 - from.rem_euclid(10)) % 10) as usize;
    let rest = all.get(before..).unwrap_or_default();
    let first = from + before as i64;
    rest.chunks(10).enumerate().map(move |(at, ten)| (first + 10 * at as i64, ten))
}

/// Columns of the table of seconds: of levels the highest counts, of counts the sum.
const LEVELS: [fn(&Second) -> u32; 6] =
    [|s| s.ready, |s| s.starting, |s| s.draining, |s| s.desired, |s| s.in_flight, |s| s.queued];
const COUNTS: [fn(&Second) -> u32; 3] = [|s| s.requests, |s| s.errors, |s| s.cold_starts];

fn charts(activity: Option<&Activity>, decisions: &[Decision], now: i64) -> Markup {
    let Some(activity) = activity else {
        return nothing(
            "This platform keeps no requests, so there is no history to draw. Decisions are below.",
        );
    };
    let from = now - SPAN;
    let all = fill(activity, from);
    let values =
        |value: fn(&Second) -> u32| all.iter().map(|second| f64::from(value(second))).collect::<Vec<_>>();
    let most = |value: fn(&Second) -> u32| all.iter().map(value).max().unwrap_or(0);
    let marks: Vec<Mark> = decisions
        .iter()
        .filter_map(|decision| {
            let at = seconds(&decision.at)? - from as f64;
            let moved = decision.previous != Some(decision.to());
            let text = format!("{} {}: {}", clock(at as i64 + from), decision.change(), decision.why());
            (moved && (0.0..=SPAN as f64).contains(&at)).then_some(Mark { at, text })
        })
        .collect();
    let (requests, errors): (u64, u64) = all.iter().fold((0, 0), |(requests, errors), second| {
        (requests + u64::from(second.requests), errors + u64::from(second.errors))
    });
    let instances = Panel {
        title: "Instances and decisions",
        told: format!(
            "Instances over the last five minutes: at most {} ready, {} starting, {} decisions. The table below says the same.",
            most(|s| s.ready),
            most(|s| s.starting),
            marks.len()
        ),
        layers: vec![
            Layer { name: "ready", class: "c-ready", values: values(|s| s.ready) },
            Layer { name: "starting", class: "c-starting", values: values(|s| s.starting) },
            Layer { name: "draining", class: "c-draining", values: values(|s| s.draining) },
        ],
        line: Some(Layer { name: "wanted", class: "c-wanted", values: values(|s| s.desired) }),
        marks,
    };
    let demand = Panel {
        title: "Requests at once",
        told: format!(
            "At most {} requests ran and {} were held at once.",
            most(|s| s.in_flight),
            most(|s| s.queued)
        ),
        layers: vec![
            Layer { name: "running", class: "c-running", values: values(|s| s.in_flight) },
            Layer { name: "held", class: "c-held", values: values(|s| s.queued) },
        ],
        ..Panel::default()
    };
    let answered = Panel {
        title: "Requests per second",
        told: format!("{requests} requests in five minutes, of which {errors} failed."),
        layers: vec![
            Layer { name: "failed", class: "c-failed", values: values(|s| s.errors) },
            Layer {
                name: "answered",
                class: "c-answered",
                values: values(|s| s.requests - s.errors.min(s.requests)),
            },
        ],
        ..Panel::default()
    };
    html! {
        h2 { "The last five minutes" }
        (instances.draw(now)) (demand.draw(now)) (answered.draw(now))
        details #seconds-table {
            summary { "As a table" }
            (wide("The last five minutes", html! {
                table {
                    thead { tr {
                        th scope="col" { "From (UTC)" } th.n scope="col" { "Ready" } th.n scope="col" { "Starting" } th.n scope="col" { "Draining" }
                        th.n scope="col" { "Wanted" } th.n scope="col" { "Running" } th.n scope="col" { "Held" } th.n scope="col" { "Requests" }
                        th.n scope="col" { "Failed" } th.n scope="col" { "Cold starts" }
                    } }
                    tbody {
                        @for (at, ten) in tens(&all, from).rev() {
                            tr {
                                th scope="row" { (clock(at)) }
                                @for value in LEVELS {
                                    td.n { (ten.iter().map(value).max().unwrap_or(0)) }
                                }
                                @for value in COUNTS {
                                    td.n { (ten.iter().map(value).sum::<u32>()) }
                                }
                            }
                        }
                    }
                }
            }))
        }
    }
}

/// Decisions, youngest first; of those in a row that changed nothing the youngest, with how many they are.
fn runs(decisions: &[Decision]) -> Vec<(&Decision, usize)> {
    let mut runs: Vec<(&Decision, usize)> = Vec::new();
    for decision in decisions.iter().rev() {
        let stays = |it: &Decision| it.previous == Some(it.to());
        // Those of several revisions stand between each other.
        let last = runs.iter_mut().rev().find(|(last, _)| last.revision == decision.revision);
        match last {
            Some((last, kept)) if stays(last) && stays(decision) => *kept += 1,
            _ => runs.push((decision, 1)),
        }
    }
    runs
}

fn decided(decisions: &[Decision]) -> Markup {
    html! {
        h2 { "Why it scaled" }
        @if decisions.is_empty() { (nothing("No decision yet: no request has come since the platform runs.")) }
        @else {
            (wide("Decisions", html! {
                table.decisions {
                    thead { tr { th scope="col" { "Time (UTC)" } th.n scope="col" { "Instances" } th scope="col" { "Reason" } th.n scope="col" { "Revision" } } }
                    tbody {
                        @for (decision, kept) in runs(decisions).iter().take(DECISIONS) {
                            tr {
                                td { (moment(&decision.at)) }
                                td.n.change { (decision.change()) @if *kept > 1 { span.muted title="decisions in a row that changed nothing" { " ×" (kept) } } }
                                td.reason { (foreign(&decision.why())) }
                                td.n.muted { "…" (decision.revision.rsplit('-').next().unwrap_or_default()) " #" (decision.sequence) }
                            }
                        }
                    }
                }
            }))
        }
    }
}

fn revisions(service: &Service, view: &View, activity: Option<&Activity>, now: i64) -> Markup {
    let rates: HashMap<&str, &Rates> =
        activity.iter().flat_map(|a| &a.revisions).map(|r| (r.revision.as_str(), &r.rates)).collect();
    let none = Rates::default();
    let matters = |revision: &Revision| revision.percent > 0 || !revision.tags.is_empty();
    let (mut shown, mut others) = (Vec::new(), 0);
    for revision in &view.revisions {
        if matters(revision) || shown.len() < REVISIONS { shown.push(revision) } else { others += 1 }
    }
    html! {
        h2 { "Revisions and their traffic" }
        (wide("Revisions", html! {
            table {
                thead { tr {
                    th scope="col" { "Revision" } th scope="col" { "Traffic" } th scope="col" { "State" } th.n scope="col" { "Instances" }
                    th.n scope="col" { "Req/s" } th.n scope="col" { "Err/s" } th.n scope="col" { "p99" } th scope="col" { "Made" }
                } }
                tbody {
                    @for revision in shown {
                        @let rates = rates.get(revision.name.as_str()).copied().unwrap_or(&none);
                        tr {
                            th scope="row" {
                                (revision.name)
                                @if view.latest_ready_revision.as_deref() == Some(&revision.name) { " " span.tag { "latest" } }
                                @for tag in &revision.tags { " " span.tag { (tag) } }
                            }
                            td { (chart::share(f64::from(revision.percent), "traffic")) (revision.percent) " %" }
                            td.state {
                                @if let Some(ready) = revision.conditions.iter().find(|c| c.kind == "Ready") {
                                    (super::overview::light(match (ready.status.as_str(), ready.reason.as_str()) {
                                        ("True", _) => "ready", ("False", _) => "failing", (_, "NeverStarted") => "unknown", _ => "warning",
                                    }))
                                    @if ready.status != "True" && !ready.message.is_empty() { span.why { (foreign(plain(&ready.message))) } }
                                }
                                @for note in revision.notes.iter().take(3) { span.why { (foreign(note)) } }
                            }
                            td.n { @match &revision.instances { Some(instances) => { (super::overview::actual(instances)) } None => { "–" } } }
                            td.n { (rate(rates.requests_per_second)) }
                            td.n { (rate(rates.errors_per_second)) }
                            td.n { @match rates.p99_ms { Some(ms) => { (millis(ms)) } None => { "–" } } }
                            td {
                                (age(&revision.created_at, now)) " ago by " (revision.runtime)
                                @if let Some(author) = &revision.author { ", " (foreign(author)) }
                                @if let Some(reason) = &revision.reason { ": " (foreign(reason)) }
                                " · " a href=(service.page(&format!("/logs?revision={}", escaped(&revision.name)))) { "logs" }
                            }
                        }
                    }
                }
            }
        }))
        @if others > 0 { p.muted { (others) " older revisions are not shown." } }
    }
}

fn running(service: &Service, mut instances: Vec<Instance>) -> Markup {
    instances.sort_by_key(|instance| {
        (instance.state == "ready" && !instance.ejected, Reverse(instance.in_flight), instance.id.clone())
    });
    let of = |state: &str| instances.iter().filter(|instance| instance.state == state).count();
    html! {
        h2 { "Instances" }
        @if instances.is_empty() { (nothing("None runs: it sleeps, and the next request wakes it. Looking here does not.")) }
        @else {
            p {
                (instances.len()) " in all: " (of("ready")) " ready, " (of("starting")) " starting, " (of("draining")) " draining."
            }
            div.map aria-hidden="true" {
                @for instance in &instances {
                    i class=(format!("{}{}", if instance.ejected { "ejected" } else { &instance.state }, if instance.in_flight > 0 { " busy" } else { "" })) {}
                }
            }
            (wide("Instances", html! {
                table {
                    thead { tr {
                        th scope="col" { "Instance" } th scope="col" { "State" } th.n scope="col" { "Requests" } th.n scope="col" title="cores in the mean of its life" { "CPU" }
                        th.n scope="col" { "Memory" } th.n scope="col" { "Started in" } th.n scope="col" { "Age" } th scope="col" { "Revision" }
                    } }
                    tbody {
                        @for instance in instances.iter().take(LISTED) {
                            tr {
                                th scope="row" { a href=(service.page(&format!("/logs?instance={}", escaped(&instance.id)))) { (instance.id) } }
                                td { (instance.state) @if instance.ejected { " " span.tag.bad { "left out for its failures" } } }
                                td.n { (instance.in_flight) @if let Some(limit) = instance.limit { span.muted { "/" (limit) } } }
                                td.n { @match &instance.usage { Some(usage) => { (cores(usage.cpu_ns, instance.age_ms)) } None => { "–" } } }
                                td.n { @match &instance.usage { Some(usage) => { (bytes(usage.memory_bytes as f64)) } None => { "–" } } }
                                td.n { @match &instance.start { Some(start) => { (millis(start.ready_ms)) @if start.from_stem { " " span.tag { "from a stem" } } } None => { "starts" } } }
                                td.n { (ago((instance.age_ms / 1000) as i64)) }
                                td.muted { (instance.revision) }
                            }
                        }
                    }
                }
            }))
            @if instances.len() > LISTED { p.muted { (instances.len() - LISTED) " more are drawn above, and not listed." } }
        }
    }
}

/// Cores in the mean of an instance's life.
fn cores(cpu_ns: u64, age_ms: u64) -> String {
    format!("{:.2}", cpu_ns as f64 / 1e6 / age_ms.max(1) as f64)
}

/// What a condition says, without a count of nothing.
fn plain(message: &str) -> &str {
    message.strip_prefix("0 starts failed in a row: ").unwrap_or(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_told_by_tens_of_the_clock() {
        let all: Vec<Second> = (0..30).map(|requests| Second { requests, ..Second::default() }).collect();
        let told =
            |from| tens(&all, from).map(|(at, ten)| (at, ten.len(), ten[0].requests)).collect::<Vec<_>>();
        assert_eq!(told(1000), [(1000, 10, 0), (1010, 10, 10), (1020, 10, 20)]);
        assert_eq!(told(1003), [(1010, 10, 7), (1020, 10, 17), (1030, 3, 27)]);
    }
}
