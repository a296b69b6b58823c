//! What the pool holds, in all and ahead of demand, and why.

use maud::html;
use serde::Deserialize;

use crate::{
    api::{Api, Result},
    chart,
    page::{Page, nothing, tile, wide},
    text::{bytes, count, moment},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Pool {
    totals: Totals,
    stems: Vec<Stem>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Totals {
    instances: u64,
    memory_bytes: u64,
    memory_limit_bytes: Option<u64>,
    waiting_starts: u64,
    wake_aheads: u64,
    wake_aheads_used: u64,
    wake_aheads_wasted: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Stem {
    class: String,
    ready: u32,
    booting: u32,
    size: u32,
    wanted: u32,
    reason: String,
    decided_at: String,
    memory_bytes: u64,
    booted: u64,
    used: u64,
    missed: u64,
    wasted: u64,
    failed: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Overview {
    services: Vec<Row>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Row {
    namespace: String,
    name: String,
    instances: super::overview::Instances,
}

fn words(reason: &str) -> &str {
    match reason {
        "new" => "the class is new: its minimum",
        "law" => "what the capacity law says",
        "minimum" => "the law says less than the minimum",
        "maximum" => "the law says more than the maximum",
        "memory" => "the memory of stems does not hold what the law says",
        "unused" => "no service can come from it",
        other => other,
    }
}

pub(super) async fn show(api: &Api) -> Result<Page> {
    let pool: Pool = api.get("/v1/pool").await?;
    let warm: Overview = api.get("/v1/overview?sort=requests&limit=200").await?;
    let mut warm: Vec<Row> =
        warm.services.into_iter().filter(|row| row.instances.ready + row.instances.starting > 0).collect();
    warm.sort_by_key(|row| std::cmp::Reverse(row.instances.ready));
    let totals = &pool.totals;
    let share =
        totals.memory_limit_bytes.map(|limit| totals.memory_bytes as f64 / limit.max(1) as f64 * 100.0);
    Ok(Page::new("Pool").with("totals", html! {
        dl.tiles {
            (tile("Instances", html! { (count(totals.instances)) }, ""))
            (tile("Starts that wait", html! { (count(totals.waiting_starts)) }, if totals.waiting_starts > 0 { "warn" } else { "" }))
            (tile("Memory", html! {
                (bytes(totals.memory_bytes as f64))
                @if let (Some(limit), Some(share)) = (totals.memory_limit_bytes, share) { " " small { "of " (bytes(limit as f64)) } (chart::share(share, if share > 90.0 { "c-failed" } else { "traffic" })) }
            }, ""))
            (tile("Woken ahead", html! { (count(totals.wake_aheads)) }, ""))
            (tile("of which used", html! { (count(totals.wake_aheads_used)) }, ""))
            (tile("of which wasted", html! { (count(totals.wake_aheads_wasted)) }, ""))
        }
        p.muted { "Starts wait at the gate, so that what starts does not starve itself of CPU, or for the memory budget. Counts are since the platform runs." }
    }).with("stems", html! {
        h2 { "Stems" }
        p.muted { "Half-started instances that belong to nobody yet: a service that wakes takes one and is there at once." }
        @if pool.stems.is_empty() { (nothing("None is held: no runtime here makes stems, or no service can come from one.")) }
        @else {
            (wide("Stems", html! {
                table {
                    thead { tr {
                        th scope="col" { "Class" } th.wide-column scope="col" { "Held against wanted" } th.n scope="col" { "Ready" } th.n scope="col" { "Booting" } th.n scope="col" { "To hold" }
                        th.n scope="col" { "Wanted" } th scope="col" { "Why" } th.n scope="col" { "Used" } th.n scope="col" { "Missed" } th.n scope="col" { "Wasted" } th.n scope="col" { "Failed" } th.n scope="col" { "Booted" } th.n scope="col" { "Memory" } th scope="col" { "Decided (UTC)" }
                    } }
                    tbody {
                        @for stem in &pool.stems {
                            @let most = f64::from(stem.wanted.max(stem.size).max(stem.ready + stem.booting).max(1));
                            tr {
                                th scope="row" { (stem.class) }
                                td { (chart::Phases { parts: vec![
                                    ("ready", "c-ready", f64::from(stem.ready)),
                                    ("booting", "c-starting", f64::from(stem.booting)),
                                    ("missing", "c-missing", f64::from(stem.size.saturating_sub(stem.ready + stem.booting))),
                                ] }.counts(most)) }
                                td.n { (stem.ready) } td.n { (stem.booting) } td.n { (stem.size) } td.n { (stem.wanted) }
                                td { (words(&stem.reason)) }
                                td.n { (count(stem.used)) } td.n { (count(stem.missed)) } td.n { (count(stem.wasted)) } td.n { (count(stem.failed)) } td.n { (count(stem.booted)) }
                                td.n { (bytes(stem.memory_bytes as f64)) } td { (moment(&stem.decided_at)) }
                            }
                        }
                    }
                }
            }))
        }
    }).with("warm", html! {
        h2 { "Who is warm" }
        @if warm.is_empty() { (nothing("Nobody: all services sleep.")) }
        @else {
            (wide("Who is warm", html! {
                table {
                    thead { tr { th scope="col" { "Service" } th.n scope="col" { "Instances" } th.n scope="col" { "Held" } } }
                    tbody { @for row in &warm {
                        @let service = super::Service { namespace: row.namespace.clone(), name: row.name.clone() };
                        tr { th scope="row" { a href=(service.page("")) { (row.namespace) "/" (row.name) } } td.n { (super::overview::actual(&row.instances)) } td.n { (row.instances.queued) } }
                    } }
                }
            }))
        }
    }))
}
