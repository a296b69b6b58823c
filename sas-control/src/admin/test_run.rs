//! `POST /v1/services/{namespace}/{name}/invoke`.

use std::{collections::BTreeMap, time::Duration};

use axum::{Json, extract::State};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::{HeaderName, HeaderValue, Method};
use sas_core::SpecErrors;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Path, Sent, ServicePath},
    problem::Failure,
};
use crate::invoke::{TestReport, TestRun};

/// The longest test run: ten minutes.
const LONGEST: u64 = 600_000;

/// What a test run sends, and to which revision.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct Asked {
    /// The revision; the latest one that is ready unless it is given.
    revision: Option<String>,
    /// `GET` unless it is given.
    method: Option<String>,
    /// Path and query; `/` unless it is given.
    path: Option<String>,
    #[schema(nullable = false)]
    headers: BTreeMap<String, String>,
    /// The body as text.
    body: Option<String>,
    /// The body in base64, instead of `body`.
    body_base64: Option<String>,
    /// How long it may take in all; a minute unless it is given.
    #[schema(minimum = 1, maximum = 600000)]
    timeout_ms: Option<u64>,
}

/// How a test run went.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    revision: String,
    request_id: String,
    instance: Option<String>,
    /// The status of the service's answer.
    status: u16,
    /// Names and values.
    headers: Vec<(String, String)>,
    /// The body, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    /// The body in base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// Whether the body went on after 1 MiB.
    truncated: bool,
    /// Whether an instance was started for it.
    cold: bool,
    phases: PhasesView,
}

/// The phases of a test run in milliseconds. Those of a cold start are `null` in a warm one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct PhasesView {
    prepared_ms: f64,
    queued_ms: f64,
    gated_ms: Option<f64>,
    spawned_ms: Option<f64>,
    listening_ms: Option<f64>,
    ready_ms: Option<f64>,
    first_byte_ms: f64,
    total_ms: f64,
}

/// Sends a request to a revision, whatever traffic it gets, and tells the phases of its cold start. It is neither
/// metered nor counted for scaling.
#[utoipa::path(post, path = "/v1/services/{namespace}/{name}/invoke", tag = "services", params(ServicePath),
    security(("token" = ["invoke"])), request_body = Option<Asked>,
    responses(
        (status = 200, body = Report, description = "The service answered, with any status"),
        (status = 502, body = super::problem::Problem, content_type = "application/problem+json",
            description = "The instance could not be started, or broke off"),
        (status = 504, body = super::problem::Problem, content_type = "application/problem+json",
            description = "There was no answer in time"),
    ))]
pub(super) async fn invoke(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    body: Sent,
) -> Result<Json<Report>, Failure> {
    api.control.record(&at.namespace, &at.name)?;
    let run = read(&body)?;
    let report = api.control.invoke(&at.namespace, &at.name, run).await?;
    Ok(Json(describe(&report)))
}

fn read(body: &Sent) -> Result<TestRun, SpecErrors> {
    let mut errors = SpecErrors::default();
    let mut run = TestRun::default();
    let asked: Asked = body.object().unwrap_or_else(|problem| {
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

fn describe(report: &TestReport) -> Report {
    let phases = &report.phases;
    let headers = report.headers.iter();
    let text = std::str::from_utf8(&report.body).ok();
    Report {
        revision: report.revision.clone(),
        request_id: report.request.to_string(),
        instance: report.instance.map(|instance| instance.to_string()),
        status: report.status.as_u16(),
        headers: headers
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: text.map(str::to_owned),
        body_base64: text.is_none().then(|| BASE64.encode(&report.body)),
        truncated: report.truncated,
        cold: phases.cold,
        phases: PhasesView {
            prepared_ms: millis(phases.prepared),
            queued_ms: millis(phases.queued),
            gated_ms: phases.gated.map(millis),
            spawned_ms: phases.spawned.map(millis),
            listening_ms: phases.listening.map(millis),
            ready_ms: phases.ready.map(millis),
            first_byte_ms: millis(phases.first_byte),
            total_ms: millis(phases.total),
        },
    }
}
