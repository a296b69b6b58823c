//! The last requests of a service: those that waited for a start, with its phases, those that failed, and all.

use maud::{Markup, html};
use serde::Deserialize;

use super::{Service, tabs};
use crate::{
    api::{Api, Result, Who},
    chart::Phases,
    page::{Page, nothing, wide},
    text::{foreign, millis, moment},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Requests {
    requests: Vec<Request>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Request {
    pub(super) id: String,
    pub(super) trace: String,
    pub(super) namespace: String,
    pub(super) service: String,
    pub(super) revision: String,
    pub(super) began_at: String,
    pub(super) duration_ms: f64,
    pub(super) purpose: String,
    pub(super) trigger: String,
    pub(super) method: String,
    pub(super) host: Option<String>,
    pub(super) path: String,
    pub(super) status: Option<u16>,
    pub(super) error: Option<String>,
    pub(super) message: Option<String>,
    pub(super) aborted: bool,
    pub(super) cold: bool,
    pub(super) failed: bool,
    pub(super) waited_from_ms: Option<f64>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) bytes_in: u64,
    pub(super) bytes_out: u64,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Exchange {
    pub(super) instance: Option<String>,
    pub(super) asked_ms: f64,
    pub(super) began_ms: f64,
    pub(super) answered_ms: Option<f64>,
    pub(super) status: Option<u16>,
    pub(super) error: Option<String>,
    pub(super) start: Option<Start>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Start {
    pub(super) gated_ms: f64,
    pub(super) spawned_ms: Option<f64>,
    pub(super) listening_ms: Option<f64>,
    pub(super) ready_ms: f64,
    pub(super) from_stem: bool,
}

impl Start {
    /// The phases, each by itself.
    pub(super) fn phases(&self) -> Vec<(&'static str, &'static str, f64)> {
        let spawned = self.spawned_ms.unwrap_or(self.gated_ms).max(self.gated_ms);
        let listening = self.listening_ms.unwrap_or(spawned).max(spawned);
        vec![
            ("waiting for the gate", "c-gate", self.gated_ms),
            ("spawning", "c-spawn", spawned - self.gated_ms),
            ("until it listens", "c-listen", listening - spawned),
            ("until it is ready", "c-ready", self.ready_ms - listening),
        ]
    }
}

impl Request {
    /// The phases of the whole of it.
    pub(super) fn phases(&self) -> Phases {
        let mut parts = Vec::new();
        if let Some(exchange) = self.exchanges.iter().find(|exchange| exchange.start.is_some()) {
            let start = exchange.start.as_ref().expect("it was looked for");
            let held = exchange.began_ms - exchange.asked_ms;
            // A start that had begun before the request came is only in part the request's.
            let before = (start.ready_ms - held).max(0.0);
            let mut skip = before;
            for (name, class, ms) in start.phases() {
                let own = (ms - skip).max(0.0);
                skip = (skip - ms).max(0.0);
                parts.push((name, class, own));
            }
            parts.push(("held until a slot was free", "c-held", (held - start.ready_ms).max(0.0)));
            let answered = exchange.answered_ms.unwrap_or(self.duration_ms);
            parts.push(("the service", "c-running", (answered - exchange.began_ms).max(0.0)));
            parts.push(("until the last byte", "c-answered", (self.duration_ms - answered).max(0.0)));
        } else {
            let began = self.exchanges.last().map_or(0.0, |exchange| exchange.began_ms);
            let answered =
                self.exchanges.last().and_then(|exchange| exchange.answered_ms).unwrap_or(self.duration_ms);
            parts.push(("held until a slot was free", "c-held", began));
            parts.push(("the service", "c-running", (answered - began).max(0.0)));
            parts.push(("until the last byte", "c-answered", (self.duration_ms - answered).max(0.0)));
        }
        Phases { parts }
    }

    fn start(&self) -> Option<&Start> {
        self.exchanges.iter().find_map(|exchange| exchange.start.as_ref())
    }

    pub(super) fn page(&self) -> String {
        format!("/console/requests/{}", self.id)
    }

    pub(super) fn answer(&self) -> Markup {
        html! {
            @match self.status {
                Some(status) => { span.bad-text[self.failed] { (status) } }
                None => { span.bad-text { "none" } }
            }
            @if self.aborted { " " span.tag { "client left" } }
        }
    }
}

pub(super) async fn show(api: &Api, who: &Who, service: &Service) -> Result<Page> {
    let page = Page::new(service.title()).above(tabs(service, who, "/requests"));
    let Some(notable): Option<Requests> = api.find(&service.api("/requests?notable=true&limit=100")).await?
    else {
        return Ok(page.with("starts", nothing("This platform keeps no requests.")));
    };
    let recent: Requests = api.get(&service.api("/requests?limit=50")).await?;
    Ok(page
        .with("starts", starts(&notable.requests))
        .with("failures", failures(&notable.requests))
        .with("recent", last(&recent.requests)))
}

/// The colours of the phases.
pub(super) fn legend() -> Markup {
    let parts = [
        ("gate", "c-gate"),
        ("spawn", "c-spawn"),
        ("listen", "c-listen"),
        ("ready", "c-ready"),
        ("held", "c-held"),
        ("the service", "c-running"),
        ("body", "c-answered"),
    ];
    html! { p.legend { @for (name, class) in parts { span { i class=(format!("key {class}")) {} (name) } } } }
}

fn starts(requests: &[Request]) -> Markup {
    let cold: Vec<&Request> = requests.iter().filter(|request| request.cold).collect();
    let most = cold.iter().map(|request| request.duration_ms).fold(0.0, f64::max);
    html! {
        h2 { "Cold starts of the last hour" }
        @if cold.is_empty() { (nothing("No request waited for a start.")) }
        @else {
            (legend())
            (wide("Cold starts", html! {
                table {
                    thead { tr {
                        th scope="col" { "Began (UTC)" } th.wide-column scope="col" { "Phases" } th.n scope="col" { "Gate" } th.n scope="col" { "Spawned" }
                        th.n scope="col" { "Listens" } th.n scope="col" { "Ready" } th.n scope="col" { "All" } th scope="col" { "From" } th scope="col" { "Answer" } th scope="col" { "Request" }
                    } }
                    tbody {
                        @for request in cold {
                            @let start = request.start().cloned().unwrap_or_default();
                            tr {
                                td { (moment(&request.began_at)) }
                                td { (request.phases().draw(most)) }
                                td.n { (millis(start.gated_ms)) }
                                td.n { (maybe(start.spawned_ms)) }
                                td.n { (maybe(start.listening_ms)) }
                                td.n { (millis(start.ready_ms)) }
                                td.n { strong { (millis(request.duration_ms)) } }
                                td { @if start.from_stem { span.tag { "a stem" } } @else { "nothing" } }
                                td { (request.answer()) }
                                td { a href=(request.page()) { (&request.id[..request.id.len().min(8)]) "…" } }
                            }
                        }
                    }
                }
            }))
        }
    }
}

pub(super) fn maybe(ms: Option<f64>) -> String {
    ms.map_or_else(|| "–".to_owned(), millis)
}

fn failures(requests: &[Request]) -> Markup {
    let failed: Vec<&Request> = requests.iter().filter(|request| request.failed).collect();
    html! {
        h2 { "Failures of the last hour" }
        @if failed.is_empty() { (nothing("No request failed.")) }
        @else { (table("Failures", failed)) }
    }
}

fn last(requests: &[Request]) -> Markup {
    html! {
        h2 { "The last requests" }
        @if requests.is_empty() { (nothing("None of the last requests of this platform was for this service.")) }
        @else { (table("The last requests", requests.iter().collect())) }
    }
}

fn table(label: &str, requests: Vec<&Request>) -> Markup {
    wide(
        label,
        html! {
            table {
                thead { tr { th scope="col" { "Began (UTC)" } th scope="col" { "Request" } th scope="col" { "Answer" } th.n scope="col" { "Took" } th scope="col" { "Why" } th scope="col" { "Id" } } }
                tbody {
                    @for request in requests {
                        tr {
                            td { (moment(&request.began_at)) }
                            td { (request.method) " " (foreign(&request.path)) @if request.purpose != "traffic" { " " span.tag { (request.purpose) } } @if request.cold { " " span.tag { "cold" } } }
                            td { (request.answer()) }
                            td.n { (millis(request.duration_ms)) }
                            td { @if let Some(error) = &request.error { (error.replace('_', " ")) @if let Some(message) = &request.message { ": " (foreign(message)) } } }
                            td { a href=(request.page()) { (&request.id[..request.id.len().min(8)]) "…" } }
                        }
                    }
                }
            }
        },
    )
}
