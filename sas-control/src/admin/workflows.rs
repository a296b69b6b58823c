//! Workflows: definitions, which come by manifests, and their runs.

use std::{collections::BTreeMap, time::Duration};

use axum::{
    Json,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::{StatusCode, header};
use sas_core::{GraphOf, RunAction, RunDetail, RunQuery, RunStart, RunStatus, RunView, WorkflowInfo};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Path, Query, Sent, ServicePath, after, cursor, page_size},
    problem::Failure,
    services::Deleted,
};

type Answer<T> = Result<Json<T>, Failure>;

/// The longest that a start waits for the end of its run.
const LONGEST_WAIT: u64 = 300;

/// Which definitions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this namespace only.
    namespace: Option<String>,
    /// At most so many; 100 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// Which version.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct VersionQuery {
    /// The greatest one without it.
    version: Option<String>,
}

/// A version of a definition, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct VersionPath {
    /// The namespace, which is the tenant.
    namespace: String,
    /// The definition's name.
    name: String,
    /// Its version.
    version: String,
}

/// A namespace, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct NamespacePath {
    /// The namespace, which is the tenant.
    namespace: String,
}

/// A run, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct RunPath {
    /// The namespace, which is the tenant.
    namespace: String,
    /// The run's id.
    id: String,
}

/// Which runs.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(super) struct RunsQuery {
    /// Of this definition only.
    workflow: Option<String>,
    /// Of this version only.
    version: Option<String>,
    /// That stand so only.
    #[param(inline)]
    status: Option<RunStatus>,
    /// With this label only: `NAME=VALUE`.
    label: Option<String>,
    /// With this text in their error only.
    error: Option<String>,
    /// Started at this time or later, in seconds since 1970.
    #[param(minimum = 0)]
    from: Option<u32>,
    /// Started before this time, in seconds since 1970.
    #[param(minimum = 0)]
    until: Option<u32>,
    /// At most so many; 100 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// Definitions, by namespace, name and version.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WorkflowList {
    workflows: Vec<WorkflowInfo>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Runs, by their ids.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RunList {
    runs: Vec<RunView>,
    /// For the next page; absent on the last. A search looks at 10,000 runs at a time: a page may hold fewer than were asked
    /// for, and have a next one.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A run that is to be started.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub(super) struct StartRequest {
    /// The run's id, 1 to 100 letters, digits and `-._~`: a second start with it starts nothing. One is made up without it.
    id: Option<String>,
    /// The definition's version; the greatest one without it.
    version: Option<String>,
    /// What the run gets; `{}` without it.
    #[schema(value_type = Option<Object>)]
    input: Option<serde_json::Value>,
    /// What the run can be found by: at most 16, of 63 bytes each.
    #[schema(nullable = false)]
    labels: BTreeMap<String, String>,
    /// How long to wait for its end; the answer comes at once without it.
    #[schema(minimum = 0, maximum = 300)]
    wait_seconds: Option<u64>,
}

/// A step that counts as done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SkipRequest {
    /// The step's id, as the run shows it.
    #[schema(required)]
    step: Option<String>,
    /// What it is taken to have given; `null` without it.
    #[schema(value_type = Object, nullable = true)]
    output: serde_json::Value,
}

/// Lists definitions of workflows.
#[utoipa::path(get, path = "/v1/workflows", operation_id = "list_workflows", tag = "workflows", params(ListQuery),
    security(("token" = ["read"])), responses((status = 200, body = WorkflowList, description = "A page of definitions")))]
pub(super) async fn list(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<ListQuery>,
) -> Answer<WorkflowList> {
    let (limit, after) = (page_size(query.limit, 100, 1000)?, after(query.next.as_deref())?);
    let namespace = match (query.namespace.as_deref(), caller.tenant()) {
        (Some(asked), Some(own)) if asked != own => {
            return Ok(Json(WorkflowList { workflows: Vec::new(), next: None }));
        }
        (asked, own) => asked.or(own),
    };
    let (workflows, next) = api.control.workflows(namespace, after.as_deref(), limit).await?;
    Ok(Json(WorkflowList { workflows, next: next.as_deref().map(cursor) }))
}

/// Shows the document of a definition.
#[utoipa::path(get, path = "/v1/workflows/{namespace}/{name}", operation_id = "get_workflow", tag = "workflows",
    params(ServicePath, VersionQuery), security(("token" = ["read"])),
    responses((status = 200, body = Object, description = "The document, in the Open Workflow DSL")))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<VersionQuery>,
) -> Answer<serde_json::Value> {
    let version = query.version.as_deref();
    Ok(Json(api.control.workflow_document(&at.namespace, &at.name, version).await?))
}

/// Draws a definition.
#[utoipa::path(get, path = "/v1/workflows/{namespace}/{name}/graph", operation_id = "draw_workflow", tag = "workflows",
    params(ServicePath, VersionQuery), security(("token" = ["read"])),
    responses((status = 200, body = String, content_type = "image/svg+xml", description = "A picture")))]
pub(super) async fn graph(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<VersionQuery>,
) -> Result<Response, Failure> {
    let of = GraphOf::Definition { name: &at.name, version: query.version.as_deref() };
    Ok(svg(api.control.workflow_graph(&at.namespace, of).await?))
}

/// Deletes a version of a definition: not while runs of it have not ended.
#[utoipa::path(delete, path = "/v1/workflows/{namespace}/{name}/versions/{version}", operation_id = "delete_workflow", tag = "workflows",
    params(VersionPath), security(("token" = ["deploy"])), responses((status = 200, body = Deleted, description = "It is deleted")))]
pub(super) async fn delete(State(api): State<Api>, Path(at): Path<VersionPath>) -> Answer<Deleted> {
    api.control.delete_workflow(&at.namespace, &at.name, &at.version).await?;
    Ok(Json(Deleted { deleted: format!("{}/{} {}", at.namespace, at.name, at.version) }))
}

/// Starts a run.
#[utoipa::path(post, path = "/v1/workflows/{namespace}/{name}/runs", operation_id = "start_run", tag = "workflows", params(ServicePath),
    security(("token" = ["invoke"])), request_body = Option<StartRequest>,
    responses(
        (status = 200, body = RunView, description = "It has ended"),
        (status = 202, body = RunView, description = "It is stored, and comes to its end"),
    ))]
pub(super) async fn start(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    sent: Sent,
) -> Result<(StatusCode, Json<RunView>), Failure> {
    let asked: StartRequest = sent.object().map_err(|problem| Failure::field("$", "", problem))?;
    let wait = asked.wait_seconds.unwrap_or(0);
    if wait > LONGEST_WAIT {
        return Err(Failure::field("waitSeconds", wait, format!("must be 0 to {LONGEST_WAIT}")));
    }
    let input = asked.input.unwrap_or_else(|| serde_json::json!({}));
    let mut start = RunStart::new(at.namespace, at.name, input);
    (start.id, start.version, start.labels) = (asked.id, asked.version, asked.labels);
    let (mut run, _) = api.control.start_run(start).await?;
    if wait > 0 && !run.status.has_ended() {
        let ended = api.control.run_ended(&run.namespace, &run.id);
        if let Ok(ended) = tokio::time::timeout(Duration::from_secs(wait), ended).await {
            run = ended?;
        }
    }
    let status = if run.status.has_ended() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(run)))
}

/// Lists runs, or searches them.
#[utoipa::path(get, path = "/v1/runs/{namespace}", operation_id = "list_runs", tag = "workflows", params(NamespacePath, RunsQuery),
    security(("token" = ["read"])), responses((status = 200, body = RunList, description = "A page of runs")))]
pub(super) async fn runs(
    State(api): State<Api>,
    Path(at): Path<NamespacePath>,
    Query(asked): Query<RunsQuery>,
) -> Answer<RunList> {
    let mut query = RunQuery::new(at.namespace);
    (query.limit, query.after) = (page_size(asked.limit, 100, 1000)?, after(asked.next.as_deref())?);
    (query.workflow, query.version, query.status) = (asked.workflow, asked.version, asked.status);
    query.error = asked.error;
    query.label = match &asked.label {
        None => None,
        Some(label) => match label.split_once('=') {
            Some((name, value)) => Some((name.to_owned(), value.to_owned())),
            None => return Err(Failure::field("label", label, "must be NAME=VALUE")),
        },
    };
    query.started_after = asked.from.map(|seconds| u64::from(seconds) * 1_000);
    query.started_before = asked.until.map(|seconds| u64::from(seconds) * 1_000);
    let page = api.control.runs(&query).await?;
    Ok(Json(RunList { runs: page.runs, next: page.next.as_deref().map(cursor) }))
}

/// Shows a run with its path.
#[utoipa::path(get, path = "/v1/runs/{namespace}/{id}", operation_id = "get_run", tag = "workflows", params(RunPath),
    security(("token" = ["read"])), responses((status = 200, body = RunDetail, description = "The run")))]
pub(super) async fn run(State(api): State<Api>, Path(at): Path<RunPath>) -> Answer<RunDetail> {
    Ok(Json(api.control.run(&at.namespace, &at.id).await?))
}

/// Draws a run: its definition, with the path that it took.
#[utoipa::path(get, path = "/v1/runs/{namespace}/{id}/graph", operation_id = "draw_run", tag = "workflows", params(RunPath),
    security(("token" = ["read"])),
    responses((status = 200, body = String, content_type = "image/svg+xml", description = "A picture")))]
pub(super) async fn run_graph(State(api): State<Api>, Path(at): Path<RunPath>) -> Result<Response, Failure> {
    Ok(svg(api.control.workflow_graph(&at.namespace, GraphOf::Run(&at.id)).await?))
}

/// A picture that runs nothing, wherever it is opened.
fn svg(picture: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "image/svg+xml"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; style-src 'unsafe-inline'; sandbox"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, picture).into_response()
}

async fn steer(api: &Api, at: &RunPath, action: RunAction) -> Answer<RunView> {
    Ok(Json(api.control.steer_run(&at.namespace, &at.id, action).await?))
}

/// Lets a run begin no step until it is resumed.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/suspend", operation_id = "suspend_run", tag = "workflows", params(RunPath),
    security(("token" = ["deploy"])), responses((status = 200, body = RunView, description = "It is suspended")))]
pub(super) async fn suspend(State(api): State<Api>, Path(at): Path<RunPath>) -> Answer<RunView> {
    steer(&api, &at, RunAction::Suspend).await
}

/// Lets a run go on that was suspended.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/resume", operation_id = "resume_run", tag = "workflows", params(RunPath),
    security(("token" = ["deploy"])), responses((status = 200, body = RunView, description = "It goes on")))]
pub(super) async fn resume(State(api): State<Api>, Path(at): Path<RunPath>) -> Answer<RunView> {
    steer(&api, &at, RunAction::Resume).await
}

/// Ends a run where it is.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/cancel", operation_id = "cancel_run", tag = "workflows", params(RunPath),
    security(("token" = ["deploy"])), responses((status = 200, body = RunView, description = "It is cancelled")))]
pub(super) async fn cancel(State(api): State<Api>, Path(at): Path<RunPath>) -> Answer<RunView> {
    steer(&api, &at, RunAction::Cancel).await
}

/// Lets a run that ended with an error go on from the step that was answered last, which is done again.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/retry", operation_id = "retry_run", tag = "workflows", params(RunPath),
    security(("token" = ["deploy"])), responses((status = 200, body = RunView, description = "It goes on")))]
pub(super) async fn retry(State(api): State<Api>, Path(at): Path<RunPath>) -> Answer<RunView> {
    steer(&api, &at, RunAction::Retry).await
}

/// Lets a step count as done, with this output: one that a run waits for, or that it faulted at.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/skip", operation_id = "skip_step", tag = "workflows", params(RunPath),
    security(("token" = ["deploy"])), request_body = SkipRequest,
    responses((status = 200, body = RunView, description = "It goes on")))]
pub(super) async fn skip(State(api): State<Api>, Path(at): Path<RunPath>, sent: Sent) -> Answer<RunView> {
    let asked: SkipRequest = sent.object().map_err(|problem| Failure::field("$", "", problem))?;
    let Some(step) = asked.step else {
        return Err(Failure::field("step", "", "missing: the id of a step, as the run shows it"));
    };
    steer(&api, &at, RunAction::Skip { step, output: asked.output }).await
}

/// Tells a run of an event, in the JSON format of CloudEvents. It has it for good when this answers.
#[utoipa::path(post, path = "/v1/runs/{namespace}/{id}/events", operation_id = "send_run_event", tag = "workflows", params(RunPath),
    security(("token" = ["invoke"])), request_body(content((serde_json::Value = "application/json"))),
    responses((status = 200, body = RunView, description = "The run has it")))]
pub(super) async fn event(State(api): State<Api>, Path(at): Path<RunPath>, sent: Sent) -> Answer<RunView> {
    let event: serde_json::Map<String, serde_json::Value> =
        sent.object().map_err(|problem| Failure::field("$", "", problem))?;
    steer(&api, &at, RunAction::Event(event.into())).await
}
