//! What the instances of a service write, filtered and followed.

use maud::{Markup, html};
use serde::Deserialize;

use super::{Service, tabs};
use crate::{
    api::{Api, Result, Who, query},
    form::Form,
    page::{Page, nothing},
    text::{LINE, bytes, foreign, moment, tame},
};

/// Lines on a page when it is loaded; it keeps a thousand.
const TAIL: &str = "300";
/// Lines that are sent in one go.
const BURST: &str = "1000";

/// Which lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    revision: String,
    instance: String,
    request: String,
    level: String,
    text: String,
    minutes: String,
}

impl Filter {
    pub(crate) fn of(form: &Form) -> Self {
        let of = |name: &str| form.get(name).to_owned();
        Self {
            revision: of("revision"),
            instance: of("instance"),
            request: of("request"),
            level: of("level"),
            text: of("text"),
            minutes: of("minutes"),
        }
    }

    fn query(&self, now: i64, after: &str, tail: &str) -> String {
        let minutes = self.minutes.parse::<i64>().unwrap_or(0).clamp(0, 525_600);
        let from = if minutes > 0 { (now - minutes * 60).to_string() } else { String::new() };
        query(&[
            ("revision", &self.revision),
            ("instance", &self.instance),
            ("request", &self.request),
            ("level", &self.level),
            ("text", &self.text),
            ("from", &from),
            ("after", after),
            ("tail", tail),
        ])
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Lines {
    pub(crate) lines: Vec<Line>,
    dropped: u64,
    gap: bool,
    last: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Line {
    sequence: u64,
    at: String,
    instance: String,
    request: Option<String>,
    stream: String,
    level: Option<String>,
    fields: Option<serde_json::Map<String, serde_json::Value>>,
    line: String,
}

impl Line {
    /// What it says, and what else it has: of a JSON object its message and its other members, else all of it.
    fn parts(&self) -> (&str, Vec<(&str, String)>) {
        let plain = (self.line.as_str(), Vec::new());
        let Some(fields) = &self.fields else { return plain };
        let Some((key, message)) =
            ["message", "msg"].iter().find_map(|key| Some((*key, fields.get(*key)?.as_str()?)))
        else {
            return plain;
        };
        // Told by the line's own columns.
        let told =
            |name: &str| name == key || matches!(name, "level" | "severity" | "requestId" | "request_id");
        let others = fields.iter().filter(|(name, _)| !told(name));
        let text =
            |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (message, others.map(|(name, value)| (name.as_str(), text(value))).collect())
    }
}

/// Lines as items of a list.
pub(crate) fn written(lines: &[Line]) -> Markup {
    html! {
        @for line in lines {
            @let (message, others) = line.parts();
            @let (text, cut) = tame(message, LINE);
            li class=(format!("{} {}", line.stream, line.level.as_deref().unwrap_or_default())) {
                (moment(&line.at)) " "
                span.instance title=(line.instance) { (line.instance.get(line.instance.len().saturating_sub(4)..).unwrap_or_default()) } " "
                @if let Some(level) = &line.level { span.level { (level) } " " }
                bdi.text { (text) }
                @if cut > 0 { span.muted { " … " (bytes(cut as f64)) " more" } }
                @for (name, value) in others.iter().take(16) { " " span.member { (foreign(name)) "=" (foreign(value)) } }
                @if let Some(request) = &line.request { " " a href=(format!("/console/requests/{request}")) { "request" } }
            }
        }
    }
}

/// The lines of a page that were written after this one, and the last one's number.
pub(crate) async fn since(
    service: &Service,
    filter: &Filter,
    api: &Api,
    after: u64,
) -> Result<(Markup, u64)> {
    let asked = filter.query(api.now(), &after.to_string(), BURST);
    let found: Lines = api.get(&service.api(&format!("/logs{asked}"))).await?;
    let last = found.last.max(after);
    let lines = html! {
        // Before the first line there is nothing to miss, and where none is shown the next ones say it.
        @if found.gap && after > 0 && !found.lines.is_empty() {
            li.gap { "Lines are missing here: more were written at once than are kept or shown." }
        }
        (written(&found.lines))
    };
    Ok((lines, last))
}

pub(super) async fn show(api: &Api, who: &Who, service: &Service, filter: &Filter) -> Result<Page> {
    let found: Option<Lines> =
        api.find(&service.api(&format!("/logs{}", filter.query(api.now(), "", TAIL)))).await?;
    let field = |name: &'static str, label: &'static str, value: &str, holder: &'static str| {
        html! { label { span { (label) } input name=(name) value=(value) placeholder=(holder) size="14"; } }
    };
    let filters = html! {
        form.filters method="get" action=(service.page("/logs")) role="search" {
            (field("text", "With", &filter.text, "any text"))
            label {
                span { "Level" }
                select name="level" {
                    option value="" { "all" }
                    @for level in ["debug", "info", "warn", "error", "fatal"] {
                        option value=(level) selected[level == filter.level] { (level) " or graver" }
                    }
                }
            }
            label {
                span { "Since" }
                select name="minutes" {
                    @for (value, text) in [("", "the beginning"), ("1", "1 minute"), ("5", "5 minutes"), ("15", "15 minutes"), ("60", "1 hour")] {
                        option value=(value) selected[value == filter.minutes] { (text) }
                    }
                }
            }
            (field("revision", "Revision", &filter.revision, "all"))
            (field("instance", "Instance", &filter.instance, "all"))
            (field("request", "Request", &filter.request, "x-request-id"))
            button type="submit" { "Show" }
        }
    };
    let mut page = Page::new(service.title()).above(html! { (tabs(service, who, "/logs")) (filters) });
    let Some(found) = found else {
        page.live = false;
        return Ok(page.with(
            "none",
            nothing("This platform only passes lines on: ask the system that it passes them to."),
        ));
    };
    page.follows = Some(found.last);
    page.above = html! {
        (page.above)
        @if found.dropped > 0 { p.muted { (found.dropped) " older lines are gone: the last thousand of each revision are kept." } }
        p.quiet-caption { "Times are UTC. New lines come at the end." }
        ol.log #log tabindex="0" aria-label="Lines" { (written(&found.lines)) }
        @if found.lines.is_empty() { p.muted #no-lines { "No line yet." } }
    };
    Ok(page)
}
