//! Triggers, and the events that they could not deliver.

use axum::{Json, extract::State, response::Response};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, PageQuery, Path, Query, Seen, ServicePath, after, cursor, page_size},
    observe::{MOST, TAIL},
    problem::Failure,
    services::{Changed, Conditions, Deleted, Fresh},
};
use crate::{
    control::{DeadLetter, Declaration, expecting},
    view::TriggerView,
};

type Answer<T> = Result<Json<T>, Failure>;

/// Triggers, and how they are doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TriggerList {
    triggers: Vec<TriggerView>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Which dead letters.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LettersQuery {
    /// At most so many, the oldest ones; 100 without it.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// Events that could not be delivered.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DeadLetters {
    /// The oldest first.
    dead_letters: Vec<DeadLetter>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// How many were forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Discarded {
    discarded: usize,
}

/// Lists triggers, and how they are doing.
#[utoipa::path(get, path = "/v1/triggers", operation_id = "list_triggers", tag = "triggers", params(PageQuery), security(("token" = ["read"])),
    responses((status = 200, body = TriggerList, description = "A page of triggers, by name")))]
pub(super) async fn list(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<TriggerList> {
    let mut all = api.control.trigger_status();
    all.retain(|status| caller.reaches(status.name.split_once('/').map_or("", |(at, _)| at)));
    all.sort_by(|one, other| one.name.cmp(&other.name));
    let (page, next) = query.of(all, |status| status.name.clone())?;
    Ok(Json(TriggerList { triggers: page.into_iter().map(TriggerView::from).collect(), next }))
}

/// Shows a trigger that runs here, and how it is doing.
#[utoipa::path(get, path = "/v1/triggers/{namespace}/{name}", operation_id = "get_trigger", tag = "triggers", params(ServicePath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = TriggerView, description = "The trigger", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let name = format!("{}/{}", at.namespace, at.name);
    let version = api.control.declared_version(Declaration::Trigger, &name).await?;
    let found = api.control.trigger_status().into_iter().find(|status| status.name == name);
    let found = found.ok_or_else(|| Failure::not_found(format!("there is no trigger {name}")))?;
    Ok(api.tagged_as(version, &TriggerView::from(found), Some(&headers)))
}

/// Deletes a trigger.
#[utoipa::path(delete, path = "/v1/triggers/{namespace}/{name}", operation_id = "delete_trigger", tag = "triggers", params(ServicePath, Conditions),
    security(("token" = ["deploy"])), responses((status = 200, body = Deleted, description = "It is deleted"), Changed))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Deleted> {
    expecting(seen.0, api.control.delete_trigger(&at.namespace, &at.name)).await?;
    Ok(Json(Deleted { deleted: format!("{}/{}", at.namespace, at.name) }))
}

/// Lists events of a trigger that could not be delivered.
#[utoipa::path(get, path = "/v1/triggers/{namespace}/{name}/deadletters", operation_id = "list_dead_letters", tag = "triggers",
    params(ServicePath, LettersQuery), security(("token" = ["read"])),
    responses((status = 200, body = DeadLetters, description = "The oldest ones")))]
pub(super) async fn dead_letters(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<LettersQuery>,
) -> Answer<DeadLetters> {
    let (most, after) = (page_size(query.limit, TAIL, MOST)?, after(query.next.as_deref())?);
    // One more tells whether there is a next page.
    let mut dead_letters =
        api.control.dead_letters(&at.namespace, &at.name, after.as_deref(), most + 1).await?;
    let more = dead_letters.len() > most;
    dead_letters.truncate(most);
    let next = dead_letters.last().filter(|_| more).map(|last| cursor(&last.letter));
    Ok(Json(DeadLetters { dead_letters, next }))
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
