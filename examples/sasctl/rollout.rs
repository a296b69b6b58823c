//! A roll-out in sentences.

use serde_json::Value;

use crate::words::cell;

/// Where it is, what was answered, what runs, and what is next.
pub(crate) fn rollout(view: &Value) -> String {
    if view.is_null() {
        return "no roll-out is under way; one begins with the next revision".to_owned();
    }
    let (from, to) = (cell(&view["from"]), cell(&view["to"]));
    let state = match view["state"].as_str().unwrap_or_default() {
        "moving" => format!(
            "{to} has {} % of the traffic of {from} since {}",
            cell(&view["percent"]),
            cell(&view["since"])
        ),
        "stopped" => format!(
            "stopped: {from} has all of the traffic back, and {to} none, since {}",
            cell(&view["since"])
        ),
        _ => format!("done: {to} has all of the traffic of {from}"),
    };
    let mut lines = vec![state];
    if let Some(reason) = view["reason"].as_str() {
        lines.push(format!("why: {reason}"));
    }
    let answers = &view["answers"];
    if answers.is_object() {
        let of = |side: &str| {
            let counts = &answers[side];
            format!("{} of {} failed", cell(&counts["errors"]), cell(&counts["requests"]))
        };
        lines.push(format!("answers in this step: {} on {to}, {} on {from}", of("to"), of("from")));
    }
    let latency = &view["latency"];
    if latency.is_object() {
        let of = |side: &str| match latency[side].as_f64() {
            Some(millis) => format!("{millis:.1} ms"),
            None => "nothing".to_owned(),
        };
        let percentile = latency["quantile"].as_f64().unwrap_or_default() * 100.0;
        let borne = match view["maxSlower"].as_f64() {
            Some(slower) => format!("; {:.0} % slower is borne", slower * 100.0),
            None => String::new(),
        };
        lines.push(format!(
            "p{percentile:.0}: {} on {to}, {} on {from}{borne}",
            of("toMillis"),
            of("fromMillis")
        ));
    }
    let instances = &view["instances"];
    if instances.is_object() {
        lines.push(format!(
            "instances: {} ready of {to}, {} of {from}; {} are needed with one revision, both may have {}",
            cell(&instances["toReady"]),
            cell(&instances["fromReady"]),
            cell(&instances["needed"]),
            cell(&instances["most"]),
        ));
        if view["percent"] != instances["toPercent"] {
            let (percent, wanted) = (cell(&instances["toPercent"]), cell(&instances["toWanted"]));
            lines.push(format!("next: {percent} %, as soon as {wanted} instances of {to} are ready"));
        }
    }
    lines.join("\n")
}
