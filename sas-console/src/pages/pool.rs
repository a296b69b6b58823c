//! What the pool holds, in all and ahead of demand, and why.

use maud::{Markup, html};
use serde::Deserialize;

use crate::{
    api::{Api, Result},
    chart,
    page::{Page, nothing, tile, wide},
    text::{ago, bytes, count, moment, seconds},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Pool {
    totals: Totals,
    stems: Vec<Stem>,
    warm: Vec<Warm>,
    warm_total: usize,
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
#[serde(default, rename_all = "camelCase")]
struct Warm {
    namespace: String,
    service: String,
    revision: String,
    ready: u32,
    starting: u32,
    in_flight: u32,
    queued: u32,
    kept_by: String,
    until: Option<String>,
    quiet_seconds: Option<f64>,
    wakes_at: Option<String>,
}

impl Warm {
    /// What keeps it, and until when.
    fn kept(&self, now: i64) -> Markup {
        html! {
            @match (self.kept_by.as_str(), &self.until, self.quiet_seconds) {
                ("requests", ..) => { "its requests: " (self.in_flight) " run" @if self.queued > 0 { ", " (self.queued) " are held" } }
                ("minimum", ..) => { "its minimum: it never sleeps" }
                ("decision", _, Some(quiet)) => { "its scaler, at least until nothing was asked of it for " (ago(quiet.round() as i64)) }
                ("decision", ..) => { "the pool, until its scaler decides" }
                ("plan", Some(until), _) => { "the keep-alive policy: until " (moment(until)) ", which is in " (left(until, now)) }
                ("plan", ..) => { "the keep-alive policy" }
                ("nothing", ..) => { span.muted { "nothing: it sleeps" } }
                (other, ..) => { (other) }
            }
        }
    }
}

fn left(rfc3339: &str, now: i64) -> String {
    seconds(rfc3339).map_or_else(String::new, |at| ago(at as i64 - now))
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
    let now = api.now();
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
        @if pool.warm.is_empty() { (nothing("Nobody: all services sleep.")) }
        @else {
            (wide("Who is warm", html! {
                table {
                    thead { tr { th scope="col" { "Service" } th scope="col" { "Revision" } th.n scope="col" { "Instances" } th.wide-column scope="col" { "Kept by, and until when (UTC)" } th scope="col" { "Woken ahead at (UTC)" } } }
                    tbody { @for warm in &pool.warm {
                        @let service = super::Service { namespace: warm.namespace.clone(), name: warm.service.clone() };
                        tr {
                            th scope="row" { a href=(service.page("")) { (warm.namespace) "/" (warm.service) } }
                            td.muted { (warm.revision) }
                            td.n { (warm.ready) @if warm.starting > 0 { span.starting-text title="on their way up" { " +" (warm.starting) } } }
                            td { (warm.kept(now)) }
                            td { @match &warm.wakes_at { Some(at) => { (moment(at)) } None => { "–" } } }
                        }
                    } }
                }
            }))
            @if pool.warm_total > pool.warm.len() { p.muted { "Of " (count(pool.warm_total as u64)) " those with most instances are listed." } }
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_kept_by_a_plan_is_told_until_when() {
        let warm = |kept_by: &str, until: Option<&str>, ready| Warm {
            kept_by: kept_by.to_owned(),
            until: until.map(str::to_owned),
            ready,
            ..Warm::default()
        };
        let now = seconds("2026-01-05T12:00:00.000Z").expect("a time") as i64;
        let plan = warm("plan", Some("2026-01-05T12:07:30.250Z"), 1).kept(now).into_string();
        assert!(plan.contains(">12:07:30</time>, which is in 7 min"), "{plan}");
        assert!(warm("nothing", None, 0).kept(now).into_string().contains("nothing: it sleeps"));
        assert_eq!(warm("something new", None, 1).kept(now).into_string(), "something new");
    }
}
