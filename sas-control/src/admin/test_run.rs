//! `POST /v1/services/{namespace}/{name}/invoke`.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use sas_core::{Response, SpecErrors};
use serde::Deserialize;
use serde_json::{Value, json};

use super::answer::{Failure, json_response};
use crate::{
    control::Control,
    invoke::{TestReport, TestRun},
};

/// The longest test run: ten minutes.
const LONGEST: u64 = 600_000;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
struct Asked {
    revision: Option<String>,
    method: Option<String>,
    path: Option<String>,
    headers: BTreeMap<String, String>,
    body: Option<String>,
    body_base64: Option<String>,
    timeout_ms: Option<u64>,
}

pub(super) async fn answer(
    control: &Arc<Control>,
    namespace: &str,
    name: &str,
    body: &[u8],
) -> Result<Response, Failure> {
    let run = read(body)?;
    let report = control.invoke(namespace, name, run).await?;
    Ok(json_response(StatusCode::OK, &describe(&report)))
}

fn read(body: &[u8]) -> Result<TestRun, SpecErrors> {
    let mut errors = SpecErrors::default();
    let mut run = TestRun::default();
    let asked: Asked = super::object(body).unwrap_or_else(|problem| {
        errors.push("$", "", format!("not a test run: {problem}"));
        Asked::default()
    });
    run.revision = asked.revision;
    if let Some(method) = asked.method {
        match Method::from_bytes(method.as_bytes()) {
            Ok(method) => run.method = method,
            Err(_) => errors.push("method", method, "must be an HTTP method"),
        }
    }
    if let Some(path) = asked.path {
        if path.starts_with('/') {
            run.path = path;
        } else {
            errors.push("path", path, "must begin with /");
        }
    }
    for (name, value) in asked.headers {
        match (HeaderName::try_from(name.as_str()), HeaderValue::try_from(value.as_str())) {
            (Ok(name), Ok(value)) => {
                run.headers.append(name, value);
            }
            _ => errors.push(format!("headers[{name}]"), value, "is not an HTTP header"),
        }
    }
    match (asked.body, asked.body_base64) {
        (Some(text), None) => run.body = text.into(),
        (None, Some(encoded)) => match BASE64.decode(encoded.trim()) {
            Ok(bytes) => run.body = bytes.into(),
            Err(error) => errors.push("bodyBase64", encoded, format!("is not base64: {error}")),
        },
        (Some(text), Some(_)) => errors.push("body", text, "contradicts bodyBase64: give one of the two"),
        (None, None) => {}
    }
    if let Some(timeout) = asked.timeout_ms {
        if (1..=LONGEST).contains(&timeout) {
            run.timeout = Duration::from_millis(timeout);
        } else {
            errors.push("timeoutMs", timeout, format!("must be 1 to {LONGEST}"));
        }
    }
    errors.into_result()?;
    Ok(run)
}

/// Milliseconds with three decimals.
pub(super) fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn describe(report: &TestReport) -> Value {
    let phases = &report.phases;
    let headers: Vec<(String, String)> = report
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let mut value = json!({
        "revision": report.revision,
        "requestId": report.request,
        "instance": report.instance.map(|instance| instance.to_string()),
        "status": report.status.as_u16(),
        "headers": headers,
        "truncated": report.truncated,
        "cold": phases.cold,
        "phases": {
            "preparedMs": millis(phases.prepared),
            "queuedMs": millis(phases.queued),
            "gatedMs": phases.gated.map(millis),
            "spawnedMs": phases.spawned.map(millis),
            "listeningMs": phases.listening.map(millis),
            "readyMs": phases.ready.map(millis),
            "firstByteMs": millis(phases.first_byte),
            "totalMs": millis(phases.total),
        },
    });
    match std::str::from_utf8(&report.body) {
        Ok(text) => value["body"] = json!(text),
        Err(_) => value["bodyBase64"] = json!(BASE64.encode(&report.body)),
    }
    value
}
