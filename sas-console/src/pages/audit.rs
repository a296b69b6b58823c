//! Who changed what.

use maud::html;
use serde::Deserialize;

use crate::{
    api::{Api, Result},
    page::{Page, nothing, wide},
    text::{foreign, moment},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Audit {
    records: Vec<Record>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    at: String,
    principal: String,
    method: String,
    path: String,
    objects: Vec<String>,
    status: u16,
    reason: Option<String>,
}

pub(super) async fn show(api: &Api) -> Result<Page> {
    let audit: Audit = api.get("/v1/audit?limit=100").await?;
    Ok(Page::new("Changes").with("audit", html! {
        p.muted { "The last hundred changes that somebody asked for, done or refused, here and by other tools." }
        @if audit.records.is_empty() { (nothing("Nobody changed anything yet.")) }
        @else {
            (wide("Changes", html! { table {
                thead { tr { th scope="col" { "At (UTC)" } th scope="col" { "Who" } th scope="col" { "What" } th.n scope="col" { "Answer" } } }
                tbody { @for record in &audit.records { tr {
                    td { (moment(&record.at)) }
                    td { (foreign(&record.principal)) }
                    td { code { (record.method) " " (foreign(&record.path)) } @for object in &record.objects { " " span.tag { (foreign(object)) } } }
                    td.n.bad-text[record.status >= 400] { (record.status) @if let Some(reason) = &record.reason { " " (foreign(reason)) } }
                } } }
            } }))
        }
    }))
}
