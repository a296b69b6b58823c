//! What is tried out on the traffic of services: copies of requests, and faults on purpose.

use axum::{Json, extract::State, response::Response};
use sas_core::MirrorCounts;
use sas_knative::manifest::{FaultRule, MirrorTo};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Api,
    extract::{Caller, Path, Seen, Sent, ServicePath},
    problem::Failure,
    services::{Changed, Conditions},
};
use crate::{control::expecting, view::ServiceView};

type Answer<T> = Result<T, Failure>;

/// Where copies of requests go, and what became of them.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MirrorPage {
    /// The tag and the share; `null`: no copies are made.
    mirror: Option<MirrorTo>,
    /// What became of them; `null` until there are any.
    counts: Option<MirrorCounts>,
}

/// Faults that requests are to meet, instead of those before.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FaultsChange {
    #[schema(required)]
    faults: Option<Vec<FaultRule>>,
}

/// A fault, and how often it was met.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FaultView {
    fault: FaultRule,
    /// Requests that met it since it was set.
    met: u64,
}

/// Faults that requests meet on purpose.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FaultPage {
    faults: Vec<FaultView>,
}

/// Shows where copies of a service's requests go.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/mirror", operation_id = "get_mirror", tag = "services",
    params(ServicePath), security(("token" = ["read"])),
    responses((status = 200, body = MirrorPage, description = "Its mirror")))]
pub(super) async fn mirror(State(api): State<Api>, Path(at): Path<ServicePath>) -> Answer<Json<MirrorPage>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let counts = api.control.mirrored(&at.namespace, &at.name);
    Ok(Json(MirrorPage { mirror: record.mirror.clone(), counts }))
}

/// Copies a share of a service's requests to the revision of a tag.
#[utoipa::path(put, path = "/v1/services/{namespace}/{name}/mirror", operation_id = "set_mirror", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])), request_body = MirrorTo,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn set_mirror(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let wants = "must be like {\"tag\": \"next\", \"percent\": 10}";
    let mirror: MirrorTo =
        body.object().map_err(|problem| Failure::field("tag", "", format!("{wants}: {problem}")))?;
    let change = api.control.set_mirror(Some(&caller), &at.namespace, &at.name, Some(mirror));
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Makes no copies of a service's requests any more.
#[utoipa::path(delete, path = "/v1/services/{namespace}/{name}/mirror", operation_id = "delete_mirror", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])),
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn delete_mirror(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    let change = api.control.set_mirror(Some(&caller), &at.namespace, &at.name, None);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Shows the faults that a service's requests meet on purpose.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/faults", operation_id = "get_faults", tag = "services",
    params(ServicePath), security(("token" = ["read"])),
    responses((status = 200, body = FaultPage, description = "Its faults")))]
pub(super) async fn faults(State(api): State<Api>, Path(at): Path<ServicePath>) -> Answer<Json<FaultPage>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let met = api.control.faulted(&record).into_iter().chain(std::iter::repeat(0));
    let faults = record.faults.iter().zip(met).map(|(fault, met)| FaultView { fault: fault.clone(), met });
    Ok(Json(FaultPage { faults: faults.collect() }))
}

/// Makes a service's requests meet faults on purpose, where the host allows it.
#[utoipa::path(put, path = "/v1/services/{namespace}/{name}/faults", operation_id = "set_faults", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])), request_body = FaultsChange,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn set_faults(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let wants =
        "must be a list like [{\"percent\": 10, \"delay\": \"250ms\"}, {\"path\": \"/api\", \"abort\": 503}]";
    let change: FaultsChange =
        body.object().map_err(|problem| Failure::field("faults", "", format!("{wants}: {problem}")))?;
    let faults = change.faults.ok_or_else(|| Failure::field("faults", "", format!("missing: {wants}")))?;
    let change = api.control.set_faults(Some(&caller), &at.namespace, &at.name, faults);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Ends the faults of a service.
#[utoipa::path(delete, path = "/v1/services/{namespace}/{name}/faults", operation_id = "delete_faults", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])),
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn delete_faults(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    let change = api.control.set_faults(Some(&caller), &at.namespace, &at.name, Vec::new());
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}
