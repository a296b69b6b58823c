//! The platform: what is wrong with it and what to do, its engines, runtimes, quotas.

use std::collections::BTreeMap;

use maud::{Markup, html};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    api::{Api, Result},
    page::{Page, nothing, wide},
    text::{bytes, foreign, moment},
};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Diagnosis {
    at: String,
    checks: Vec<String>,
    findings: Vec<Finding>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Finding {
    name: String,
    severity: String,
    subject: String,
    finding: String,
    evidence: BTreeMap<String, Value>,
    remedy: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Engines {
    engines: Vec<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Hosts {
    hosts: Vec<BTreeMap<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Recovery {
    services: usize,
    triggers: usize,
    missing: Vec<Missing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Missing {
    what: String,
    reason: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runtimes {
    edition: String,
    runtimes: Vec<BTreeMap<String, Value>>,
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        other => other.to_string(),
    }
}

pub(super) async fn show(api: &Api) -> Result<Page> {
    let diagnosis: Diagnosis = api.get("/v1/diagnosis").await?;
    let mut engines: Engines = api.get("/v1/engines").await?;
    for engine in &mut engines.engines {
        if let Some(Value::Object(totals)) = engine.remove("totals") {
            engine.extend(totals);
        }
    }
    let hosts: Hosts = api.find("/v1/hosts").await?.unwrap_or_default();
    let recovery: Recovery = api.get("/v1/recovery").await?;
    let runtimes: Runtimes = api.get("/v1/runtimes").await?;
    Ok(Page::new("Platform")
        .with("diagnosis", found(&diagnosis))
        .with("recovery", html! {
            @if !recovery.missing.is_empty() {
                h2 { "What did not come back" }
                p { (recovery.services) " services and " (recovery.triggers) " triggers came back at the last start. These did not:" }
                (wide("What did not come back", html! { table {
                    thead { tr { th scope="col" { "What" } th scope="col" { "Why" } th scope="col" { "Error" } } }
                    tbody { @for missing in &recovery.missing { tr { th scope="row" { (missing.what) } td { (missing.reason) } td { (foreign(&missing.message)) } } } }
                } }))
            }
        })
        .with("hosts", html! {
            @if !hosts.hosts.is_empty() {
                h2 { "Hosts" }
                p.muted { "Platforms that share this one's state, and for how many shards of services each acts." }
                (listed("Hosts", &hosts.hosts, &["name", "address", "here", "draining", "shards"]))
            }
        })
        .with("engines", html! {
            h2 { "Engines" }
            (listed("Engines", &engines.engines, &["name", "kind", "phase", "instances", "memory_bytes", "waiting_starts", "draining", "number", "namespaces"]))
        })
        .with("runtimes", html! {
            h2 { "Runtimes" }
            p.muted { "Edition: " (runtimes.edition) "." }
            (listed("Runtimes", &runtimes.runtimes, &["name", "isolation", "suspend", "stems", "usage", "limits", "maxConcurrency"]))
        }))
}

/// Objects as a table of these fields, as far as any of them has one.
fn listed(label: &str, objects: &[BTreeMap<String, Value>], fields: &[&str]) -> Markup {
    let fields: Vec<&&str> =
        fields.iter().filter(|field| objects.iter().any(|object| object.contains_key(**field))).collect();
    wide(
        label,
        html! {
            table {
                thead { tr { @for field in &fields { th scope="col" { (words(field)) } } } }
                tbody { @for object in objects { tr {
                    @for (at, field) in fields.iter().enumerate() {
                        @let value = object.get(**field);
                    @let text = match value.and_then(Value::as_f64) {
                        Some(size) if field.ends_with("_bytes") => bytes(size),
                        _ => value.map(plain).unwrap_or_default(),
                    };
                        @if at == 0 { th scope="row" { (text) } } @else { td { (foreign(&text)) } }
                    }
                } } }
            }
        },
    )
}

/// `maxConcurrency` as `Max concurrency`.
fn words(field: &str) -> String {
    let mut text = String::new();
    for (at, letter) in field.chars().enumerate() {
        match letter {
            letter if at == 0 => text.extend(letter.to_uppercase()),
            '_' => text.push(' '),
            letter if letter.is_uppercase() => {
                text.push(' ');
                text.extend(letter.to_lowercase());
            }
            letter => text.push(letter),
        }
    }
    text
}

fn found(diagnosis: &Diagnosis) -> Markup {
    html! {
        h2 { "What is wrong" }
        @if diagnosis.findings.is_empty() {
            p.said.fine { "Nothing: " (diagnosis.checks.len()) " checks found no trouble at " (moment(&diagnosis.at)) " UTC." }
        }
        @for finding in &diagnosis.findings {
            article class=(format!("finding {}", finding.severity)) {
                h3 { span.tag { (finding.severity) } " " (finding.name.replace(['_', '-'], " ")) ": " (foreign(&finding.subject)) }
                p { (foreign(&finding.finding)) }
                p { strong { "What to do: " } (foreign(&finding.remedy)) }
                @if !finding.evidence.is_empty() {
                    p.muted { @for (name, value) in &finding.evidence { span.tag { (name) ": " (foreign(&plain(value))) } " " } }
                }
            }
        }
        @if !diagnosis.findings.is_empty() && diagnosis.checks.is_empty() { (nothing("No check was made.")) }
    }
}
