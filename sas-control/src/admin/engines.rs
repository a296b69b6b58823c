//! Engines, and what is wrong with the platform.

use axum::{Json, extract::State, response::Response};
use http::HeaderMap;
use sas_core::EngineSpec;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{PageQuery, Path, Query, Seen, Sent},
    problem::Failure,
    services::{Changed, Conditions, Fresh},
};
use crate::{
    control::{Declaration, expecting},
    diagnosis::{Evidence, Finding, Severity},
    engine::{EngineView, UpgradeReport},
    stamp::rfc3339,
};

type Answer<T> = Result<Json<T>, Failure>;

/// An engine in the path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EnginePath {
    /// The engine's name.
    engine: String,
}

/// All engines.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EngineList {
    /// Each as it was declared, with its phase, what it holds, and the last time that it was replaced.
    #[schema(value_type = Vec<Object>)]
    engines: Vec<EngineView>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What came of a change of engines.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct MoveReport {
    /// How long it took until the last route was moved.
    took_millis: u64,
    /// Services whose routes lead elsewhere now.
    moved: usize,
    /// Services that stay where they were, each as `{"service", "reason"}`.
    #[schema(value_type = Vec<Object>)]
    left_behind: Vec<crate::engine::LeftBehind>,
    /// Whether what was replaced has finished everything and is gone.
    drained: bool,
}

impl From<UpgradeReport> for MoveReport {
    fn from(report: UpgradeReport) -> Self {
        Self {
            took_millis: report.took_millis,
            moved: report.moved,
            left_behind: report.left_behind,
            drained: report.drained,
        }
    }
}

/// What is wrong, the worst first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DiagnosisPage {
    /// When it was looked.
    at: String,
    /// The checks that were made.
    checks: Vec<&'static str>,
    findings: Vec<FindingEntry>,
}

/// Something that is wrong.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FindingEntry {
    /// The check that found it.
    name: &'static str,
    /// `info`, `warning` or `critical`.
    #[schema(value_type = String)]
    severity: Severity,
    /// What it is about.
    subject: String,
    /// What is wrong.
    finding: String,
    /// What it was seen by.
    evidence: std::collections::BTreeMap<&'static str, Evidence>,
    /// What to do about it.
    remedy: String,
}

impl From<Finding> for FindingEntry {
    fn from(found: Finding) -> Self {
        let Finding { name, severity, subject, finding, evidence, remedy } = found;
        Self { name, severity, subject, finding, evidence, remedy }
    }
}

/// Lists the engines, with their phases and what they hold.
#[utoipa::path(get, path = "/v1/engines", operation_id = "list_engines", tag = "platform", params(PageQuery),
    security(("token" = ["read", "platform"])),
    responses((status = 200, body = EngineList, description = "A page of engines, by name")))]
pub(super) async fn list(State(api): State<Api>, Query(query): Query<PageQuery>) -> Answer<EngineList> {
    let (engines, next) = query.of(api.control.engine_views(), |engine| engine.spec.name.clone())?;
    Ok(Json(EngineList { engines, next }))
}

/// Shows an engine; with an `ETag` if it was declared here, and not by the host's configuration.
#[utoipa::path(get, path = "/v1/engines/{engine}", operation_id = "get_engine", tag = "platform", params(EnginePath, Fresh),
    security(("token" = ["read", "platform"])),
    responses(
        (status = 200, body = Object, description = "The engine", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(at): Path<EnginePath>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let version = api.control.declared_version(Declaration::Engine, &at.engine).await?;
    let view = api.control.engine_views().into_iter().find(|view| view.spec.name == at.engine);
    let view = view.ok_or_else(|| Failure::not_found(format!("there is no engine {}", at.engine)))?;
    Ok(api.tagged_as(version, &view, Some(&headers)))
}

/// Declares an engine, or declares it anew; answers when the services of its namespaces have moved.
#[utoipa::path(put, path = "/v1/engines/{engine}", operation_id = "declare_engine", tag = "platform", params(EnginePath, Conditions),
    security(("token" = ["admin", "platform"])), request_body = Object,
    responses((status = 200, body = MoveReport, description = "It is there"), Changed))]
pub(super) async fn declare(
    State(api): State<Api>,
    Path(at): Path<EnginePath>,
    seen: Seen,
    body: Sent,
) -> Answer<MoveReport> {
    let problem = |problem: String| Failure::field("$", "", format!("not an engine: {problem}"));
    let mut spec: serde_json::Value = body.object().map_err(problem)?;
    let Some(fields) = spec.as_object_mut() else { return Err(problem("it has to be an object".to_owned())) };
    fields.insert("name".to_owned(), at.engine.into());
    let spec: EngineSpec = serde_json::from_value(spec).map_err(|error| problem(error.to_string()))?;
    Ok(Json(expecting(seen.0, api.control.declare_engine(spec)).await?.into()))
}

/// Moves the services of an engine to the default one, and takes it away.
#[utoipa::path(delete, path = "/v1/engines/{engine}", operation_id = "remove_engine", tag = "platform", params(EnginePath, Conditions),
    security(("token" = ["admin", "platform"])),
    responses((status = 200, body = MoveReport, description = "It is gone, or finishes what it has"), Changed))]
pub(super) async fn remove(
    State(api): State<Api>,
    Path(at): Path<EnginePath>,
    seen: Seen,
) -> Answer<MoveReport> {
    Ok(Json(expecting(seen.0, api.control.remove_engine(&at.engine)).await?.into()))
}

/// Replaces an engine by a new one; answers when its services have moved and the old one is gone.
#[utoipa::path(post, path = "/v1/engines/{engine}/upgrade", operation_id = "upgrade_engine", tag = "platform", params(EnginePath),
    security(("token" = ["admin", "platform"])),
    responses((status = 200, body = MoveReport, description = "What came of it")))]
pub(super) async fn upgrade(State(api): State<Api>, Path(at): Path<EnginePath>) -> Answer<MoveReport> {
    Ok(Json(api.control.upgrade_engine(&at.engine).await?.into()))
}

/// Says what is wrong with the platform, and what to do about it.
#[utoipa::path(get, path = "/v1/diagnosis", operation_id = "diagnose", tag = "platform", security(("token" = ["read", "platform"])),
    responses((status = 200, body = DiagnosisPage, description = "What was found")))]
pub(super) async fn diagnosis(State(api): State<Api>) -> Json<DiagnosisPage> {
    let diagnosis = api.control.diagnose().await;
    let findings = diagnosis.findings.into_iter().map(FindingEntry::from).collect();
    Json(DiagnosisPage { at: rfc3339(diagnosis.at), checks: diagnosis.checks, findings })
}
