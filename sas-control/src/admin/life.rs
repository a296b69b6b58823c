//! Services switched off and on, aliases, and what is deleted as a whole.

use axum::{Json, extract::State, response::Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Path, Query, Seen, Sent, ServicePath, after, cursor, page_size},
    problem::{Failure, Problem},
    services::{Changed, Conditions, RevisionPath},
};
use crate::{
    control::{Purged, expecting},
    labels::LabelSelector,
    view::{RevisionView, ServiceView},
};

type Answer<T> = Result<T, Failure>;

/// Revisions on a page unless more or less are asked for.
const PAGE: usize = 500;
/// Revisions on a page at most.
const MOST: usize = 5000;

/// Why something is done.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Why {
    /// For those who look at it later; at most 1024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Which revision an alias is to name.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AliasChange {
    /// Its name, another alias, or `latest`: the revision that it means now.
    #[schema(required)]
    revision: Option<String>,
}

/// An alias, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AliasPath {
    /// The namespace, which is the tenant.
    namespace: String,
    /// The service.
    name: String,
    /// The alias.
    alias: String,
}

/// A tenant, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct TenantPath {
    /// The namespace, which is the tenant.
    namespace: String,
}

/// Which revisions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RevisionQuery {
    /// Of this namespace only.
    namespace: Option<String>,
    /// With these labels of their templates: `track in (stable,canary),!old`.
    labels: Option<String>,
    /// At most so many; 500 without it.
    #[param(minimum = 1, maximum = 5000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// A revision, and whose it is.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevisionOf {
    namespace: String,
    service: String,
    #[serde(flatten)]
    revision: RevisionView,
}

/// A page of revisions, by namespace, service and age.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevisionPage {
    revisions: Vec<RevisionOf>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Lists revisions of all services.
#[utoipa::path(get, path = "/v1/revisions", operation_id = "find_revisions", tag = "services", params(RevisionQuery),
    security(("token" = ["read"])),
    responses((status = 200, body = RevisionPage, description = "A page of revisions")))]
pub(super) async fn revisions(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<RevisionQuery>,
) -> Answer<Json<RevisionPage>> {
    let (limit, after) = (page_size(query.limit, PAGE, MOST)?, after(query.next.as_deref())?);
    let labels = LabelSelector::parse(query.labels.as_deref().unwrap_or_default())?;
    let records = api.control.records();
    let mut found = records
        .iter()
        .filter(|record| {
            caller.reaches(&record.namespace)
                && query.namespace.as_ref().is_none_or(|namespace| record.namespace == *namespace)
        })
        .flat_map(|record| record.revisions.iter().map(move |revision| (record, revision)))
        .filter(|(_, revision)| labels.matches(&revision.labels))
        // Names sort as their paths do: the mark is before all that a name can have.
        .map(|(record, revision)| {
            (format!("{}!{:010}", record.path(), revision.generation), record, revision)
        })
        .filter(|(at, ..)| after.as_ref().is_none_or(|after| *at > *after));
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|(at, ..)| cursor(at));
    let revisions = page.iter().map(|(_, record, revision)| RevisionOf {
        namespace: record.namespace.clone(),
        service: record.name.clone(),
        revision: api.control.revision_view(record, revision),
    });
    Ok(Json(RevisionPage { revisions: revisions.collect(), next }))
}

/// Deletes a revision: not one that gets traffic, holds a tag or an alias, or is part of a roll-out.
#[utoipa::path(delete, path = "/v1/services/{namespace}/{name}/revisions/{revision}", operation_id = "delete_revision",
    tag = "services", params(RevisionPath, Conditions), security(("token" = ["deploy"])),
    responses((status = 200, body = ServiceView, description = "The service without it", headers(("ETag" = String))), Changed))]
pub(super) async fn delete_revision(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<RevisionPath>,
    seen: Seen,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    let change = api.control.delete_revision(Some(&caller), &at.namespace, &at.name, &at.revision);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Switches a service off: nothing of it starts, its triggers wait, requests are answered with 503.
#[utoipa::path(post, path = "/v1/services/{namespace}/{name}/disable", operation_id = "disable_service", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])), request_body = Option<Why>,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn disable(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let why: Why =
        body.object().map_err(|problem| Failure::field("$", "", format!("not a reason: {problem}")))?;
    let change = api.control.disable(Some(&caller), &at.namespace, &at.name, why.reason.as_deref());
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Switches a service on again.
#[utoipa::path(post, path = "/v1/services/{namespace}/{name}/enable", operation_id = "enable_service", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])),
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn enable(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    let record = expecting(seen.0, api.control.enable(Some(&caller), &at.namespace, &at.name)).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Names a revision. The alias stands wherever a revision's name may, and keeps the revision.
#[utoipa::path(put, path = "/v1/services/{namespace}/{name}/aliases/{alias}", operation_id = "set_alias", tag = "services",
    params(AliasPath, Conditions), security(("token" = ["deploy"])), request_body = AliasChange,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed,
        (status = 429, body = Problem, content_type = "application/problem+json", description = "It has 64 aliases")))]
pub(super) async fn set_alias(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<AliasPath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let change: AliasChange = body.object().map_err(|problem| Failure::field("revision", "", problem))?;
    let revision =
        change.revision.ok_or_else(|| Failure::field("revision", "", "missing: the name of a revision"))?;
    let change = api.control.set_alias(Some(&caller), &at.namespace, &at.name, &at.alias, Some(&revision));
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Takes an alias away. The revision stays.
#[utoipa::path(delete, path = "/v1/services/{namespace}/{name}/aliases/{alias}", operation_id = "remove_alias",
    tag = "services", params(AliasPath, Conditions), security(("token" = ["deploy"])),
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn remove_alias(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<AliasPath>,
    seen: Seen,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    let change = api.control.set_alias(Some(&caller), &at.namespace, &at.name, &at.alias, None);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Deletes all that a tenant has: services, triggers, dead letters, brokers, environments, its quota and its tokens. What
/// it used and what was asked for is kept.
#[utoipa::path(delete, path = "/v1/tenants/{namespace}", operation_id = "delete_tenant", tag = "services",
    params(TenantPath), security(("token" = ["admin"])),
    responses((status = 200, body = Purged, description = "What was deleted")))]
pub(super) async fn delete_tenant(
    State(api): State<Api>,
    Path(at): Path<TenantPath>,
) -> Answer<Json<Purged>> {
    Ok(Json(api.control.delete_tenant(&at.namespace).await?))
}
