//! What may be done to a service.

use maud::{Markup, html};
use serde_json::Value;

use super::{Service, service::View, tabs};
use crate::{
    api::{Api, Result, Who},
    page::{Page, form_token, nothing},
};

/// Revisions without traffic that it is offered to.
const OTHERS: usize = 8;

pub(super) async fn show(api: &Api, who: &Who, service: &Service, mark: &str) -> Result<Page> {
    let (view, seen): (View, String) = api.get_tagged(&service.api("")).await?;
    let mut page = Page::new(service.title()).above(tabs(service, who, "/steer"));
    page.live = false;
    if !who.may_deploy() && !who.may_invoke() {
        return Ok(page.with("steer", nothing("This token may only look.")));
    }
    let form = |action: &str, content: Markup| {
        html! {
            form method="post" action=(format!("/console/do/{action}")) {
                (form_token(mark))
                input type="hidden" name="back" value=(service.page("/steer"));
                input type="hidden" name="namespace" value=(service.namespace);
                input type="hidden" name="service" value=(service.name);
                input type="hidden" name="seen" value=(seen);
                (content)
            }
        }
    };
    if who.may_invoke() {
        page = page.with("test", html! {
            h2 { "Test run" }
            p.muted { "One request to one revision, whatever its traffic. It is not metered and does not count for scaling. It wakes the service." }
            (form("test", html! {
                div.filters {
                    label { span { "Method" } select name="method" { @for method in ["GET", "POST", "PUT", "DELETE", "HEAD"] { option { (method) } } } }
                    label { span { "Path" } input name="path" value="/" required; }
                    label { span { "Revision" } select name="revision" { option value="" { "the latest that is ready" } @for revision in &view.revisions { option { (revision.name) } } } }
                    label.grow { span { "Body" } input name="body"; }
                    button type="submit" { "Send" }
                }
            }))
        });
    }
    if who.may_deploy() {
        page = page.with("traffic", traffic(&view, &form)).with("harm", html! {
            h2 { "On and off" }
            @if view.disabled.is_some() {
                (form("enable", html! { button type="submit" { "Switch on again" } }))
            } @else {
                details.harm #disable {
                    summary { "Switch off…" }
                    p { "Nothing of it starts any more: requests are answered with 503, and its triggers wait." }
                    (form("disable", html! {
                        label { span { "Why" } input name="reason" maxlength="1024"; }
                        button.danger type="submit" { "Switch " (service.name) " off" }
                    }))
                }
            }
            details.harm #delete {
                summary { "Delete…" }
                p { "The service goes with all its revisions. What it used stays in the books." }
                (form("delete", html! {
                    label { span { "Write its name" } input name="confirm" required autocomplete="off"; }
                    button.danger type="submit" { "Delete " (service.name) }
                }))
            }
        });
    }
    Ok(page)
}

fn traffic(view: &View, form: &dyn Fn(&str, Markup) -> Markup) -> Markup {
    // All that have a share, for shares that are not shown could not add up, and the youngest of the others.
    let mut others = 0;
    let candidates: Vec<_> = view
        .revisions
        .iter()
        .filter(|revision| {
            let mut conditions = revision.conditions.iter();
            let fit = conditions.any(|condition| condition.kind == "Ready" && condition.status != "False");
            revision.percent > 0
                || !revision.tags.is_empty()
                || fit && {
                    others += 1;
                    others <= OTHERS
                }
        })
        .collect();
    let taking: Vec<&str> = view
        .revisions
        .iter()
        .filter(|revision| revision.percent > 0)
        .map(|revision| revision.name.as_str())
        .collect();
    html! {
        h2 { "Traffic" }
        (form("traffic", html! {
            fieldset {
                legend { "Shares in percent; together 100" }
                @for revision in &candidates {
                    label { span { (revision.name) }
                        input type="number" min="0" max="100" name=(format!("percent.{}", revision.name)) value=(revision.percent); }
                }
                button type="submit" { "Move the traffic" }
            }
        }))
        @if let Some(rollout) = view.rollout.as_ref().filter(|rollout| rollout.state != "done") {
            h3 { "Roll-out " (rollout.from) " → " (rollout.to) ": " (rollout.state) " at " (rollout.percent) " %" }
            div.actions {
                (form("rollout", html! { input type="hidden" name="action" value="promote"; button type="submit" { "Promote now" } }))
                (form("rollout", html! { input type="hidden" name="action" value="restart"; button type="submit" { "Begin again" } }))
                details.harm #stop {
                    summary { "Stop…" }
                    p { "All traffic goes back to " (rollout.from) "." }
                    (form("rollout", html! { input type="hidden" name="action" value="stop"; button.danger type="submit" { "Stop the roll-out" } }))
                }
            }
        }
        details.harm #rollback {
            summary { "Roll back…" }
            p { "All traffic goes to one earlier revision at once. Now it goes to " (taking.join(", ")) "." }
            (form("rollback", html! {
                label { span { "To" } select name="revision" {
                    option value="" { "the ready one before" }
                    @for revision in view.revisions.iter().filter(|revision| revision.percent < 100).take(20) { option { (revision.name) } }
                } }
                button.danger type="submit" { "Roll back" }
            }))
        }
    }
}

/// What a test run told, in a sentence.
pub(crate) fn told(report: &Value) -> String {
    let phase = |name: &str| report["phases"][name].as_f64();
    let mut text = format!("{} from {}", report["status"], report["revision"].as_str().unwrap_or_default());
    if report["cold"].as_bool() == Some(true) {
        text.push_str(", cold");
    }
    let phases = [
        ("held", "queuedMs"),
        ("gate", "gatedMs"),
        ("spawned", "spawnedMs"),
        ("listens", "listeningMs"),
        ("ready", "readyMs"),
        ("first byte", "firstByteMs"),
        ("all", "totalMs"),
    ];
    for (name, field) in phases {
        if let Some(ms) = phase(field).filter(|ms| *ms > 0.0) {
            text.push_str(&format!(", {name} {}", crate::text::millis(ms)));
        }
    }
    let body = report["body"].as_str().unwrap_or_default();
    if !body.is_empty() {
        text.push_str(": ");
        text.push_str(&crate::text::tame(body, 300).0);
    }
    text
}
