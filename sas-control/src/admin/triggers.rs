//! Triggers, and the events that they could not deliver.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Path, Query, ServicePath, page_size},
    observe::{MOST, TAIL},
    problem::Failure,
    services::Deleted,
};
use crate::{control::DeadLetter, view::TriggerView};

type Answer<T> = Result<Json<T>, Failure>;

/// Triggers, and how they are doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TriggerList {
    triggers: Vec<TriggerView>,
}

/// How many.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Limit {
    /// At most so many, the oldest ones; 100 without it.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
}

/// Events that could not be delivered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeadLetters {
    /// The oldest first.
    dead_letters: Vec<DeadLetter>,
}

/// How many were forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Discarded {
    discarded: usize,
}

/// Lists triggers, and how they are doing.
#[utoipa::path(get, path = "/v1/triggers", operation_id = "list_triggers", tag = "triggers", security(("token" = ["read"])),
    responses((status = 200, body = TriggerList, description = "The triggers")))]
pub(super) async fn list(State(api): State<Api>, Caller(caller): Caller) -> Json<TriggerList> {
    let all = api.control.trigger_status().into_iter();
    let seen = all.filter(|status| caller.reaches(status.name.split_once('/').map_or("", |(at, _)| at)));
    Json(TriggerList { triggers: seen.map(TriggerView::from).collect() })
}

/// Deletes a trigger.
#[utoipa::path(delete, path = "/v1/triggers/{namespace}/{name}", operation_id = "delete_trigger", tag = "triggers", params(ServicePath),
    security(("token" = ["deploy"])), responses((status = 200, body = Deleted, description = "It is deleted")))]
pub(super) async fn delete(State(api): State<Api>, Path(at): Path<ServicePath>) -> Answer<Deleted> {
    api.control.delete_trigger(&at.namespace, &at.name).await?;
    Ok(Json(Deleted { deleted: format!("{}/{}", at.namespace, at.name) }))
}

/// Lists events of a trigger that could not be delivered.
#[utoipa::path(get, path = "/v1/triggers/{namespace}/{name}/deadletters", operation_id = "list_dead_letters", tag = "triggers",
    params(ServicePath, Limit), security(("token" = ["read"])),
    responses((status = 200, body = DeadLetters, description = "The oldest ones")))]
pub(super) async fn dead_letters(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<Limit>,
) -> Answer<DeadLetters> {
    let most = page_size(query.limit, TAIL, MOST)?;
    let dead_letters = api.control.dead_letters(&at.namespace, &at.name, most).await?;
    Ok(Json(DeadLetters { dead_letters }))
}

/// Forgets events of a trigger that could not be delivered.
#[utoipa::path(delete, path = "/v1/triggers/{namespace}/{name}/deadletters", tag = "triggers", params(ServicePath),
    security(("token" = ["deploy"])), responses((status = 200, body = Discarded, description = "How many")))]
pub(super) async fn discard_dead_letters(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
) -> Answer<Discarded> {
    let discarded = api.control.discard_dead_letters(&at.namespace, &at.name).await?;
    Ok(Json(Discarded { discarded }))
}
