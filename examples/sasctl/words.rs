//! Answers as people read them: tables, and decisions in words.

use std::fmt::Write as _;

use serde_json::Value;

/// Columns as wide as they need to be.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at)).map(|cell| cell.chars().count());
        cells.chain([head[at].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A member as text; `-` for none.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `True`, or why not.
pub(crate) fn ready(service: &Value) -> String {
    let conditions = service["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    match ready {
        Some(ready) if ready["reason"].as_str().unwrap_or_default().is_empty() => cell(&ready["status"]),
        Some(ready) => format!("{} ({})", cell(&ready["status"]), cell(&ready["reason"])),
        None => "Unknown".to_owned(),
    }
}

/// `hello-00001 20 %, hello-00002 80 %`.
pub(crate) fn traffic(service: &Value) -> String {
    let shares = service["traffic"].as_array().into_iter().flatten();
    let shares = shares.map(|share| {
        let tag = share["tag"].as_str().map_or_else(String::new, |tag| format!(" ({tag})"));
        format!("{} {} %{tag}", cell(&share["revisionName"]), cell(&share["percent"]))
    });
    shares.collect::<Vec<_>>().join(", ")
}

/// A scaling decision in a sentence.
pub(crate) fn decision(entry: &Value) -> String {
    let decided = &entry["decision"];
    let before = entry["previous"].as_u64();
    let verdict = match (decided["verdict"]["set"].as_u64(), before) {
        (None, _) => "left things as they were".to_owned(),
        (Some(to), Some(from)) if to > from => format!("grew from {from} to {to} instances"),
        (Some(to), Some(from)) if to < from => format!("shrank from {from} to {to} instances"),
        (Some(to), _) => format!("kept {to} instances"),
    };
    let reason = match decided["reason"].as_str().unwrap_or_default() {
        "no_data" => "nothing was measured",
        "stable" => "the stable window says so",
        "panic" => "the load rose at once, and the short window says so",
        "delayed" => "it waits before it shrinks",
        "idle" => "nothing was asked for",
        "waiting" => "requests wait for an instance",
        "bad_input" => "what was measured makes no sense",
        "scaler_failed" => "the scaler failed",
        "warming_up" => "it has not run long enough to judge",
        "fallback" => "a metric is missing, and this is the fallback",
        "scheduled" => "the schedule says so",
        "forecast" => "load is expected",
        "timed_out" => "no instance became ready in time",
        "between_ticks" => "the scaler decides on some of the ticks only",
        "activated" => "requests met no instance",
        "expected" => "a call is expected",
        "not_expected" => "no call is expected any more",
        "roll_out" => "a roll-out sizes the revision for its share of the traffic",
        "part" => "several hosts run the service, and this one's part of it changed",
        "reclaimed" => "others lacked room in a budget",
        _ => "the scaler has a reason of its own",
    };
    let mut text = format!("{} {} {verdict}: {reason}", cell(&entry["at"]), cell(&entry["revision"]));
    if let Some(host) = entry["host"].as_str() {
        let _ = write!(text, ", at the host {host}");
    }
    if let Some(waited) = entry["named"]["requests_waited"].as_f64() {
        let _ = write!(text, "; {waited} waited");
    }
    for vote in decided["votes"].as_array().into_iter().flatten() {
        let value = vote["value"].as_f64().map_or("not measured".to_owned(), |value| format!("{value:.2}"));
        let desired = vote["desired"].as_u64().map_or("no opinion".to_owned(), |n| format!("asks for {n}"));
        let metric = vote["metric"].as_str().map_or_else(|| vote["metric"].to_string(), str::to_owned);
        let _ = write!(text, "; {metric} {value} of {} for each instance {desired}", cell(&vote["target"]));
    }
    let clamps: Vec<String> = decided["clamps"].as_array().into_iter().flatten().map(cell).collect();
    if !clamps.is_empty() {
        let _ = write!(text, "; held by {}", clamps.join(", "));
    }
    text
}
