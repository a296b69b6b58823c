//! What was used and what it costs, and which lines of a service's log are meant.

use clap::Args;
use sas::core::{Clock as _, SystemClock};
use serde_json::Value;

use crate::{
    Failed,
    client::Client,
    deploy::percent,
    words::{cell, table},
};

/// Which lines of a log: all that is said must hold.
#[derive(Debug, Args)]
pub(crate) struct Lines {
    /// Of this revision.
    #[arg(long)]
    revision: Option<String>,
    /// Of this instance, by its id.
    #[arg(long)]
    instance: Option<String>,
    /// About this request: the id of its answer's x-request-id.
    #[arg(long)]
    request: Option<String>,
    /// Of this level or a graver one; lines that say none are left out.
    #[arg(long, value_parser = ["trace", "debug", "info", "warn", "error", "fatal"])]
    level: Option<String>,
    /// With this text in them, in any case.
    #[arg(long)]
    text: Option<String>,
    /// Of the last so many minutes.
    #[arg(long)]
    minutes: Option<u32>,
}

impl Lines {
    /// The rest of a query, each part with its `&`.
    pub(crate) fn query(&self) -> String {
        let named = [
            ("revision", &self.revision),
            ("instance", &self.instance),
            ("request", &self.request),
            ("level", &self.level),
            ("text", &self.text),
        ];
        let said = named.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?)));
        let mut query: String = said.map(|(name, value)| format!("&{name}={}", percent(value))).collect();
        if let Some(minutes) = self.minutes {
            query.push_str(&format!("&from={}", ago(u64::from(minutes) * 60)));
        }
        query
    }
}

/// So many seconds ago, in seconds since 1970.
fn ago(seconds: u64) -> i64 {
    SystemClock.now().as_secs().saturating_sub_unsigned(seconds)
}

fn seconds(ns: &Value) -> String {
    ns.as_f64().map_or("-".to_owned(), |ns| format!("{:.1}", ns / 1e9))
}

const PHASES: [&str; 4] = ["startingNs", "idleNs", "busyNs", "drainingNs"];

/// A row of what was used: whose it is, requests, then the phases.
fn used(mut row: Vec<String>, totals: &Value) -> Vec<String> {
    row.push(cell(&totals["requests"]));
    row.extend(PHASES.map(|phase| seconds(&totals[phase])));
    row
}

/// All that was used since the platform keeps books.
pub(crate) async fn sums(client: &Client, service: Option<String>) -> Result<(Value, String), Failed> {
    let (answer, whose, list, head) = match service {
        Some(path) => (client.get(&format!("{path}/usage")).await?, "revision", "usage", "REVISION"),
        None => (client.get("/v1/usage").await?, "namespace", "tenants", "NAMESPACE"),
    };
    let entries = answer[list].as_array().into_iter().flatten();
    let rows: Vec<_> = entries.map(|entry| used(vec![cell(&entry[whose])], &entry["totals"])).collect();
    let text = table(&[head, "REQUESTS", "STARTING s", "IDLE s", "BUSY s", "DRAINING s"], &rows);
    Ok((answer, text))
}

fn query(namespace: &str, name: Option<&str>, hours: Option<u32>) -> String {
    let mut query = format!("namespace={}", percent(namespace));
    if let Some(name) = name {
        query.push_str(&format!("&service={}", percent(name)));
    }
    if let Some(hours) = hours {
        query.push_str(&format!("&from={}", ago(u64::from(hours - 1) * 3600)));
    }
    query
}

/// What was used by the hour, this one and those before it, all pages.
pub(crate) async fn hours(
    client: &Client,
    namespace: &str,
    name: Option<&str>,
    hours: u32,
) -> Result<(Value, String), Failed> {
    let query = query(namespace, name, Some(hours));
    let mut all = client.get(&format!("/v1/usage/hours?limit=1000&{query}")).await?;
    while let Some(next) = all["next"].as_str().map(percent) {
        let page = client.get(&format!("/v1/usage/hours?limit=1000&{query}&after={next}")).await?;
        let entries = page["hours"].as_array().cloned().unwrap_or_default();
        if let Some(known) = all["hours"].as_array_mut() {
            known.extend(entries);
        }
        all["next"] = page["next"].clone();
    }
    let entries = all["hours"].as_array().into_iter().flatten();
    let whose = ["hour", "service", "revision"];
    let rows: Vec<_> =
        entries.map(|entry| used(whose.map(|part| cell(&entry[part])).to_vec(), &entry["totals"])).collect();
    let head = ["HOUR", "SERVICE", "REVISION", "REQUESTS", "STARTING s", "IDLE s", "BUSY s", "DRAINING s"];
    let mut text = table(&head, &rows);
    for gap in all["gaps"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "\nreadings are missing from {} until {}",
            cell(&gap["from"]),
            cell(&gap["until"])
        ));
    }
    Ok((all, text))
}

/// What it costs, idle time apart from busy time.
pub(crate) async fn cost(
    client: &Client,
    namespace: &str,
    name: Option<&str>,
    hours: Option<u32>,
) -> Result<(Value, String), Failed> {
    let answer = client.get(&format!("/v1/usage/cost?{}", query(namespace, name, hours))).await?;
    let currency = cell(&answer["currency"]);
    // Billionths of the smallest unit, of which most currencies have a hundred.
    let amount = |of: &Value| of.as_f64().map_or("-".to_owned(), |nanos| format!("{:.4}", nanos / 1e9));
    let amounts = |of: &Value| ["busy", "idle", "other", "total"].map(|part| amount(&of[part]));
    let lines = answer["lines"].as_array().into_iter().flatten();
    let mut rows: Vec<Vec<String>> = lines
        .map(|line| [vec![cell(&line["service"]), cell(&line["revision"])], amounts(line).to_vec()].concat())
        .collect();
    rows.push([vec!["all".to_owned(), String::new()], amounts(&answer).to_vec()].concat());
    let text = table(&["SERVICE", "REVISION", "BUSY", "IDLE", "OTHER", "TOTAL"], &rows);
    Ok((answer, format!("{text}\nin hundredths of {currency}, or what else is its smallest unit")))
}
