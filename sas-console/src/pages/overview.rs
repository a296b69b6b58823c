//! All services, those in trouble first.

use maud::{Markup, html};
use serde::Deserialize;

use super::Service;
use crate::{
    api::{Api, Result, Who, query},
    chart,
    page::{Page, nothing, tile, wide},
    text::{age, count, foreign, millis, rate},
};

/// Services on a page.
const PAGE: usize = 50;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Overview {
    totals: Totals,
    namespaces: Vec<String>,
    matching: usize,
    services: Vec<Row>,
    counted: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Totals {
    services: u64,
    failing: u64,
    warning: u64,
    ready: u64,
    starting: u64,
    queued: u64,
    in_flight: u64,
    requests_per_second: f64,
    errors_per_second: f64,
    cold_starts: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Row {
    namespace: String,
    name: String,
    created_at: String,
    health: String,
    reason: String,
    message: String,
    instances: Instances,
    rates: Rates,
    traffic: Vec<Traffic>,
    rolling_out: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Instances {
    pub(super) desired: u32,
    pub(super) ready: u32,
    pub(super) starting: u32,
    pub(super) draining: u32,
    pub(super) queued: u32,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Rates {
    pub(super) requests_per_second: f64,
    pub(super) errors_per_second: f64,
    pub(super) requests: u64,
    pub(super) cold_starts: u64,
    pub(super) p50_ms: Option<f64>,
    pub(super) p99_ms: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Traffic {
    pub(super) revision_name: String,
    pub(super) percent: u32,
    pub(super) tag: Option<String>,
}

/// A light, and the word that it stands for.
pub(super) fn light(health: &str) -> Markup {
    let word = match health {
        "failing" => "failing",
        "warning" => "attention",
        "ready" => "ready",
        "off" => "off",
        _ => "not started",
    };
    html! { span class=(format!("light {health}")) { i aria-hidden="true" {} (word) } }
}

/// How many there are of how many.
pub(super) fn actual(instances: &Instances) -> Markup {
    html! {
        (instances.ready) "/" (instances.desired)
        @if instances.starting > 0 { span.starting-text title="on their way up" { " +" (instances.starting) } }
        @if instances.draining > 0 { span.muted title="on their way out" { " −" (instances.draining) } }
    }
}

fn split(traffic: &[Traffic]) -> Markup {
    let shares: Vec<&Traffic> = traffic.iter().filter(|share| share.percent > 0).collect();
    html! {
        @match shares[..] {
            [] => { span.muted { "none" } }
            [one] if one.percent == 100 => { span.revision { (one.revision_name) } }
            _ => {
                @for share in shares { span.part { (chart::share(f64::from(share.percent), "traffic")) (share.percent) " % " span.revision { (share.revision_name) } } }
            }
        }
    }
}

pub(super) async fn show(
    api: &Api,
    who: &Who,
    search: &str,
    namespace: &str,
    sort: &str,
    page: usize,
) -> Result<Page> {
    let (offset, limit) = (((page - 1) * PAGE).to_string(), PAGE.to_string());
    let asked = [
        ("search", search),
        ("namespace", namespace),
        ("sort", sort),
        ("offset", &offset),
        ("limit", &limit),
    ];
    let seen: Overview = api.get(&format!("/v1/overview{}", query(&asked))).await?;
    let at = |page: usize| {
        let page = page.to_string();
        format!(
            "/console/{}",
            query(&[("search", search), ("namespace", namespace), ("sort", sort), ("page", &page)])
        )
    };
    let pages = seen.matching.div_ceil(PAGE).max(1);
    let filters = html! {
        form.filters method="get" action="/console/" role="search" {
            label { span { "Find" } input type="search" name="search" value=(search) placeholder="part of a name"; }
            @if who.namespace.is_none() {
                label {
                    span { "Namespace" }
                    select name="namespace" {
                        option value="" { "all" }
                        @for own in &seen.namespaces { option value=(own) selected[own == namespace] { (own) } }
                    }
                }
            }
            label {
                span { "First" }
                select name="sort" {
                    @for (value, text) in [("", "in trouble"), ("requests", "asked most"), ("age", "youngest"), ("name", "by name")] {
                        option value=(value) selected[value == sort] { (text) }
                    }
                }
            }
            button type="submit" { "Show" }
        }
        form.filters method="get" action="/console/requests" {
            label { span { "Request" } input name="id" placeholder="x-request-id" size="18" maxlength="40"; }
            button.quiet type="submit" { "Look up" }
        }
    };
    let totals = &seen.totals;
    let tiles = html! {
        dl.tiles {
            (tile("Services", html! { (count(totals.services)) }, ""))
            (tile("Failing", html! { (count(totals.failing)) }, if totals.failing > 0 { "bad" } else { "" }))
            (tile("Attention", html! { (count(totals.warning)) }, if totals.warning > 0 { "warn" } else { "" }))
            (tile("Instances", html! { (count(totals.ready)) @if totals.starting > 0 { span.starting-text { " +" (totals.starting) } } }, ""))
            (tile("Requests/s", html! { (rate(totals.requests_per_second)) }, ""))
            (tile("Errors/s", html! { (rate(totals.errors_per_second)) }, if totals.errors_per_second > 0.0 { "bad" } else { "" }))
            (tile("Running now", html! { (count(totals.in_flight)) }, ""))
            (tile("Held now", html! { (count(totals.queued)) }, if totals.queued > 0 { "warn" } else { "" }))
            (tile("Cold starts/min", html! { (count(totals.cold_starts)) }, ""))
        }
        @if !seen.counted { (nothing("This platform keeps no requests: rates and durations are not known.")) }
    };
    let table = html! {
        @if seen.services.is_empty() {
            @if totals.services == 0 { (nothing("There is no service yet. Deploy one, and it is here within a second.")) }
            @else { (nothing("No service has this in its name.")) }
        } @else {
            (wide("Services", html! {
                table.services {
                    caption.quiet-caption { (count(seen.matching as u64)) " services, page " (page) " of " (pages) }
                    thead { tr {
                        th scope="col" { "Service" } th scope="col" { "State" } th.n scope="col" { "Instances" }
                        th.n scope="col" { "Req/s" } th.n scope="col" { "Err/s" } th.n scope="col" { "p99" }
                        th.n scope="col" { "Cold/min" } th scope="col" { "Traffic" } th.n scope="col" { "Age" }
                    } }
                    tbody {
                        @for row in &seen.services { (line(row, api.now())) }
                    }
                }
            }))
            @if pages > 1 {
                nav.pages aria-label="Pages" {
                    @if page > 1 { a href=(at(page - 1)) rel="prev" { "Before" } }
                    span { "Page " (page) " of " (pages) }
                    @if page < pages { a href=(at(page + 1)) rel="next" { "Next" } }
                }
            }
        }
    };
    Ok(Page::new("Services").with("totals", tiles).with("filters", filters).with("services", table))
}

fn line(row: &Row, now: i64) -> Markup {
    let service = Service { namespace: row.namespace.clone(), name: row.name.clone() };
    let quiet = matches!(row.health.as_str(), "ready" | "unknown");
    html! {
        tr class=(row.health) {
            th scope="row" {
                a href=(service.page("")) { span.muted { (row.namespace) "/" } (row.name) }
                @if row.rolling_out { " " span.tag { "rolling out" } }
            }
            td.state {
                (light(&row.health))
                @if !quiet && !row.message.is_empty() { span.why title=(row.reason) { (foreign(&row.message)) } }
            }
            td.n { (actual(&row.instances)) @if row.instances.queued > 0 { br; span.warn-text { (row.instances.queued) " held" } } }
            td.n { (rate(row.rates.requests_per_second)) }
            td.n.bad-text[row.rates.errors_per_second > 0.0] { (rate(row.rates.errors_per_second)) }
            td.n { @if let Some(p99) = row.rates.p99_ms { (millis(p99)) } @else { "–" } }
            td.n { @if row.rates.cold_starts > 0 { (row.rates.cold_starts) } @else { "–" } }
            td { (split(&row.traffic)) }
            td.n { (age(&row.created_at, now)) }
        }
    }
}
