//! Brokers, and what an operator does with triggers: pause, replay, deliver dead letters again.

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::Response};
use http::HeaderMap;
use sas_core::{BrokerStatus, Redrive, Redriven, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Caller, PageQuery, Path, Query, Seen, Sent, ServicePath},
    problem::Failure,
    services::{Changed, Conditions, Deleted, Fresh},
};
use crate::control::{Declaration, expecting};

type Answer<T> = Result<Json<T>, Failure>;

/// A broker, and how it is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BrokerView {
    /// Its name, as `namespace/name`.
    name: String,
    /// Events that it holds, those among them that every trigger has taken.
    held: u64,
    /// Events that were ever accepted.
    accepted: u64,
    /// Triggers that read from it.
    readers: usize,
}

impl From<BrokerStatus> for BrokerView {
    fn from(status: BrokerStatus) -> Self {
        Self { name: status.name, held: status.held, accepted: status.accepted, readers: status.readers }
    }
}

/// Brokers, and how they are doing.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BrokerList {
    brokers: Vec<BrokerView>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// How many events were accepted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Accepted {
    accepted: usize,
}

/// Whether a trigger is paused.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Paused {
    paused: bool,
}

/// From when on a trigger reads its broker again.
#[derive(Debug, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Replay {
    /// In seconds since 1970, with fractions.
    from_seconds: Option<f64>,
}

/// Which dead letters are delivered again, and where to.
#[derive(Debug, Deserialize, Default, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RedriveBody {
    /// Only these, by `letter` as they are listed; empty: all that the rest lets through.
    letters: Vec<String>,
    /// Only those whose class of reason is this, such as `status-503`.
    reason: Option<String>,
    /// Only those that this filter wants.
    #[schema(value_type = Option<Object>)]
    filter: Option<serde_json::Value>,
    /// `namespace/service`, `broker:namespace/name` or `sink:kind`; without it, the trigger's own target.
    target: Option<String>,
    /// At most so many; 1,000 without it.
    most: Option<usize>,
    /// Only those after this letter: `next` of the answer before.
    after: Option<String>,
}

/// What became of them.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RedrivenView {
    /// Delivered, and forgotten as letters.
    delivered: usize,
    /// Failed again, and kept.
    failed: usize,
    /// The reason of the last failure.
    last_error: Option<String>,
    /// The last letter that was looked at, when there may be more: give it as `after`. One request goes on for ten seconds
    /// at most.
    next: Option<String>,
}

impl From<Redriven> for RedrivenView {
    fn from(redriven: Redriven) -> Self {
        let Redriven { delivered, failed, last_error, next, .. } = redriven;
        Self { delivered, failed, last_error, next }
    }
}

/// Dead letters by the class of their reason.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LetterCounts {
    reasons: BTreeMap<String, usize>,
}

/// Lists brokers, and how they are doing.
#[utoipa::path(get, path = "/v1/brokers", operation_id = "list_brokers", tag = "triggers", params(PageQuery), security(("token" = ["read"])),
    responses((status = 200, body = BrokerList, description = "A page of brokers, by name")))]
pub(super) async fn brokers(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<BrokerList> {
    let mut all = api.control.broker_status();
    all.retain(|status| caller.reaches(status.name.split_once('/').map_or("", |(at, _)| at)));
    all.sort_by(|one, other| one.name.cmp(&other.name));
    let (page, next) = query.of(all, |status| status.name.clone())?;
    Ok(Json(BrokerList { brokers: page.into_iter().map(BrokerView::from).collect(), next }))
}

/// Shows a broker that is here, and how it is doing.
#[utoipa::path(get, path = "/v1/brokers/{namespace}/{name}", operation_id = "get_broker", tag = "triggers", params(ServicePath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = BrokerView, description = "The broker", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn broker(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let name = format!("{}/{}", at.namespace, at.name);
    let version = api.control.declared_version(Declaration::Broker, &name).await?;
    let found = api.control.broker_status().into_iter().find(|status| status.name == name);
    let found = found.ok_or_else(|| Failure::not_found(format!("there is no broker {name}")))?;
    Ok(api.tagged_as(version, &BrokerView::from(found), Some(&headers)))
}

/// Deletes a broker with the events that it holds; not while triggers read from it.
#[utoipa::path(delete, path = "/v1/brokers/{namespace}/{name}", operation_id = "delete_broker", tag = "triggers", params(ServicePath, Conditions),
    security(("token" = ["deploy"])), responses((status = 200, body = Deleted, description = "It is deleted"), Changed))]
pub(super) async fn delete_broker(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Deleted> {
    expecting(seen.0, api.control.delete_broker(&at.namespace, &at.name)).await?;
    Ok(Json(Deleted { deleted: format!("{}/{}", at.namespace, at.name) }))
}

/// Gives CloudEvents to a broker, in binary, structured or batched mode. They are durable when it answers.
#[utoipa::path(post, path = "/v1/brokers/{namespace}/{name}/events", operation_id = "send_events", tag = "triggers", params(ServicePath),
    security(("token" = ["deploy"])), responses((status = 200, body = Accepted, description = "They are accepted")))]
pub(super) async fn send(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    headers: HeaderMap,
    sent: Sent,
) -> Answer<Accepted> {
    let events = sas_cloudevents::from_message(&headers, sent.0, &sas_cloudevents::Limits::default())
        .map_err(|error| Failure::field(&error.field, &error.value, error.problem.clone()))?;
    let accepted = events.len();
    api.control.accept_events(&at.namespace, &at.name, events).await?;
    Ok(Json(Accepted { accepted }))
}

/// Pauses a trigger: it stays declared, and what waits upstream goes on waiting.
#[utoipa::path(post, path = "/v1/triggers/{namespace}/{name}/pause", operation_id = "pause_trigger", tag = "triggers", params(ServicePath, Conditions),
    security(("token" = ["deploy"])), responses((status = 200, body = Paused, description = "It is paused"), Changed))]
pub(super) async fn pause(State(api): State<Api>, Path(at): Path<ServicePath>, seen: Seen) -> Answer<Paused> {
    expecting(seen.0, api.control.pause_trigger(&at.namespace, &at.name, true)).await?;
    Ok(Json(Paused { paused: true }))
}

/// Lets a trigger go on that was paused.
#[utoipa::path(post, path = "/v1/triggers/{namespace}/{name}/resume", operation_id = "resume_trigger", tag = "triggers", params(ServicePath, Conditions),
    security(("token" = ["deploy"])), responses((status = 200, body = Paused, description = "It goes on"), Changed))]
pub(super) async fn resume(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Paused> {
    expecting(seen.0, api.control.pause_trigger(&at.namespace, &at.name, false)).await?;
    Ok(Json(Paused { paused: false }))
}

/// Starts a trigger that reads from a broker again from a time.
#[utoipa::path(post, path = "/v1/triggers/{namespace}/{name}/replay", operation_id = "replay_trigger", tag = "triggers", params(ServicePath),
    request_body = Replay, security(("token" = ["deploy"])), responses((status = 200, body = Paused, description = "It reads again")))]
pub(super) async fn replay(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    sent: Sent,
) -> Answer<Paused> {
    let body: Replay = sent.object().map_err(|problem| Failure::field("$", "", problem))?;
    let seconds = body.from_seconds.filter(|seconds| (0.0..9e9).contains(seconds));
    let Some(seconds) = seconds else {
        return Err(Failure::field("from_seconds", "", "missing: seconds since 1970"));
    };
    let from = Timestamp(0) + std::time::Duration::from_secs_f64(seconds);
    api.control.replay_trigger(&at.namespace, &at.name, from).await?;
    Ok(Json(Paused { paused: false }))
}

/// Delivers dead letters of a trigger again.
#[utoipa::path(post, path = "/v1/triggers/{namespace}/{name}/redrive", operation_id = "redrive", tag = "triggers", params(ServicePath),
    request_body = RedriveBody, security(("token" = ["deploy"])), responses((status = 200, body = RedrivenView, description = "What became of them")))]
pub(super) async fn redrive(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    sent: Sent,
) -> Answer<RedrivenView> {
    let body: RedriveBody = sent.object().map_err(|problem| Failure::field("$", "", problem))?;
    let mut redrive = Redrive::default();
    redrive.letters = body.letters;
    redrive.reason = body.reason;
    redrive.filter = body.filter;
    redrive.target = body.target;
    redrive.most = body.most;
    redrive.after = body.after;
    Ok(Json(api.control.redrive(&at.namespace, &at.name, &redrive).await?.into()))
}

/// Counts dead letters of a trigger by the class of their reason.
#[utoipa::path(get, path = "/v1/triggers/{namespace}/{name}/deadletters/counts", operation_id = "count_dead_letters", tag = "triggers",
    params(ServicePath), security(("token" = ["read"])), responses((status = 200, body = LetterCounts, description = "How many of each")))]
pub(super) async fn count_letters(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
) -> Answer<LetterCounts> {
    let reasons = api.control.count_dead_letters(&at.namespace, &at.name).await?;
    Ok(Json(LetterCounts { reasons }))
}
