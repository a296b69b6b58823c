//! One request: its way with times, its instance, its lines.

use http::StatusCode;
use maud::{Markup, html};

use super::{
    Service, logs,
    requests::{Request, legend, maybe},
};
use crate::{
    api::{Api, Problem, Result, escaped},
    page::{Page, nothing, wide},
    text::{bytes, foreign, millis, moment},
};

pub(super) async fn show(api: &Api, id: &str) -> Result<Page> {
    let id = id.trim();
    if id.is_empty() {
        return Err(Problem::new(
            StatusCode::BAD_REQUEST,
            "write the id that the answer's header x-request-id had",
        ));
    }
    let request: Request = api.get(&format!("/v1/requests/{}", escaped(id))).await?;
    let service = Service { namespace: request.namespace.clone(), name: request.service.clone() };
    let path = service.api(&format!("/logs?request={}&tail=500", escaped(&request.id)));
    let lines = api.find(&path).await?;
    let mut page = Page::new(format!("{} {}", request.method, crate::text::tame(&request.path, 120).0))
        .above(html! { p { a href=(service.page("")) { (service.namespace) "/" (service.name) } } })
        .with("way", way(&request, &service))
        .with("lines", written(lines));
    page.live = false;
    Ok(page)
}

fn way(request: &Request, service: &Service) -> Markup {
    html! {
        dl.facts {
            dt { "Answer" } dd { (request.answer()) @if let Some(error) = &request.error { " " (error.replace('_', " ")) } @if let Some(message) = &request.message { ": " (foreign(message)) } }
            dt { "Began" } dd { (moment(&request.began_at)) " UTC, took " strong { (millis(request.duration_ms)) } }
            dt { "Revision" } dd { (request.revision) }
            dt { "Caused by" } dd { (request.trigger) @if request.purpose != "traffic" { " (" (request.purpose) ")" } }
            @if let Some(host) = &request.host { dt { "Host" } dd { (foreign(host)) } }
            dt { "Bytes" } dd { (bytes(request.bytes_in as f64)) " in, " (bytes(request.bytes_out as f64)) " out" }
            dt { "Request id" } dd { code { (request.id) } }
            dt { "Trace id" } dd { code { (request.trace) } }
        }
        h2 { "Its way" }
        (legend())
        p { (request.phases().draw(request.duration_ms)) }
        (wide("Its way", html! {
            table {
                thead { tr { th.n scope="col" { "After" } th scope="col" { "What" } th scope="col" { "Where" } } }
                tbody {
                    tr { td.n { (millis(0.0)) } td { "it arrived" } td { "gateway" } }
                    @if let Some(waited) = request.waited_from_ms { tr { td.n { (millis(waited)) } td { "no instance had room: it was held" } td { "pool" } } }
                    @for exchange in &request.exchanges {
                        @if let Some(start) = &exchange.start {
                            tr {
                                td.n { (millis(exchange.began_ms)) }
                                td {
                                    "an instance was ready, " @if start.from_stem { "made of a stem" } @else { "started from nothing" } ": gate " (millis(start.gated_ms))
                                    ", spawned after " (maybe(start.spawned_ms)) ", listened after " (maybe(start.listening_ms)) ", ready after " (millis(start.ready_ms))
                                }
                                td { "pool" }
                            }
                        }
                        tr {
                            td.n { (millis(exchange.began_ms)) } td { "it was sent to the instance" }
                            td { @match &exchange.instance {
                                Some(instance) => { a href=(service.page(&format!("/logs?instance={}", escaped(instance)))) { (instance) } }
                                None => { "another host" }
                            } }
                        }
                        tr {
                            td.n { (maybe(exchange.answered_ms)) }
                            td { @match (exchange.status, &exchange.error) {
                                (_, Some(error)) => { span.bad-text { "it failed: " (error.replace('_', " ")) } }
                                (Some(status), None) => { "the head of the answer came: " (status) }
                                (None, None) => { "no answer came" }
                            } }
                            td { "instance" }
                        }
                    }
                    tr { td.n { (millis(request.duration_ms)) } td { @if request.aborted { "the client went away" } @else { "the last byte was sent" } } td { "gateway" } }
                }
            }
        }))
    }
}

fn written(lines: Option<logs::Lines>) -> Markup {
    html! {
        h2 { "What it wrote" }
        @match &lines {
            Some(lines) if !lines.lines.is_empty() => { ol.log { (logs::written(&lines.lines)) } }
            Some(_) => { (nothing("No line names this request. A service that writes JSON lines with its `requestId` has them here.")) }
            None => { (nothing("This platform keeps no lines.")) }
        }
    }
}
