//! What a service was deployed as, and what it used.

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use super::{Service, tabs};
use crate::{
    api::{Api, Result, Who, query},
    page::{Page, nothing, wide},
    text::{bytes, count, millis},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Used {
    usage: Vec<RevisionUsed>,
    total: Option<Totals>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RevisionUsed {
    revision: String,
    totals: Totals,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Totals {
    starting_ns: u64,
    idle_ns: u64,
    busy_ns: u64,
    draining_ns: u64,
    cpu_ns: u64,
    memory_byte_ns: String,
    requests: u64,
    cold_starts: u64,
    events: u64,
    bytes_in: u64,
    bytes_out: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cost {
    currency: String,
    busy: u64,
    idle: u64,
    other: u64,
    total: u64,
}

pub(super) async fn show(api: &Api, who: &Who, service: &Service) -> Result<Page> {
    let manifest: Option<Value> = api.find(&service.api("/manifest")).await?;
    let used: Option<Used> = api.find(&service.api("/usage")).await?;
    let of = query(&[("namespace", &service.namespace), ("service", &service.name)]);
    let cost: Option<Cost> = api.find(&format!("/v1/usage/cost{of}")).await?;
    Ok(Page::new(service.title())
        .above(tabs(service, who, "/manifest"))
        .with("used", usage(used.as_ref(), cost.as_ref()))
        .with("manifest", html! {
            h2 { "Manifest" }
            @match &manifest {
                Some(manifest) => {
                    p.muted { "As it was last deployed, with its traffic as it is wanted now. Deploy it again from here or elsewhere." }
                    pre.code tabindex="0" aria-label="The manifest" { code { (serde_json::to_string_pretty(manifest).unwrap_or_default()) } }
                }
                None => { (nothing("It was deployed without a manifest, by the library.")) }
            }
        }))
}

fn row(name: &Markup, totals: &Totals) -> Markup {
    let span = |ns: u64| millis(ns as f64 / 1e6);
    let memory = totals.memory_byte_ns.parse::<f64>().unwrap_or(0.0) / 1e9;
    html! {
        tr {
            th scope="row" { (name) }
            td.n { (count(totals.requests)) } td.n { (count(totals.cold_starts)) } td.n { (count(totals.events)) }
            td.n { (span(totals.busy_ns)) } td.n { (span(totals.idle_ns)) } td.n { (span(totals.starting_ns + totals.draining_ns)) }
            td.n { (span(totals.cpu_ns)) } td.n { (bytes(memory)) "·s" } td.n { (bytes(totals.bytes_in as f64)) } td.n { (bytes(totals.bytes_out as f64)) }
        }
    }
}

fn usage(used: Option<&Used>, cost: Option<&Cost>) -> Markup {
    html! {
        h2 { "What it used" }
        @match used {
            None => { (nothing("This platform only passes readings on: ask the system that it passes them to.")) }
            Some(used) => {
                (wide("What it used", html! {
                    table {
                        thead { tr {
                            th scope="col" { "Revision" } th.n scope="col" { "Requests" } th.n scope="col" { "Cold" } th.n scope="col" { "Events" }
                            th.n scope="col" { "Busy" } th.n scope="col" { "Idle" } th.n scope="col" { "Up and down" } th.n scope="col" { "CPU" }
                            th.n scope="col" { "Memory" } th.n scope="col" { "In" } th.n scope="col" { "Out" }
                        } }
                        tbody {
                            @for of in used.usage.iter().rev().take(20) { (row(&html! { (of.revision) }, &of.totals)) }
                            @if let Some(total) = &used.total { (row(&html! { "All" }, total)) }
                        }
                    }
                }))
            }
        }
        @if let Some(cost) = cost {
            // Billionths of the smallest unit.
            @let price = |value: u64| format!("{:.4}", value as f64 / 1e9);
            p { "Costs " strong { (price(cost.total)) } " of the smallest unit of " (cost.currency) ": busy " (price(cost.busy)) ", idle " (price(cost.idle)) ", else " (price(cost.other)) "." }
        }
    }
}
