//! The platform as a whole: health, metrics, runtimes, pool, quotas, and what the last start brought back.

use axum::{Json, extract::State, response::IntoResponse as _, response::Response};
use http::{HeaderMap, StatusCode, header};
use sas_core::{CapacityReason, Isolation, PoolTotals, QuotaPressure, Runtime, StemView, TenantQuota};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Named,
    extract::{Caller, PageQuery, Path, Query, Seen, Sent},
    problem::Failure,
    services::{Changed, Conditions, Fresh},
    warm::{WarmView, warm},
};
use crate::{control::expecting, registry::RuntimeRegistry, stamp::rfc3339, view::MissingView};

/// Reasons that `/readyz` gives at most.
const MISSING: usize = 20;

type Answer<T> = Result<Json<T>, Failure>;

/// That it answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`.
    status: &'static str,
}

/// Whether it serves.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready`, or `degraded`: ready but for what did not come back.
    status: &'static str,
    /// How much did not come back.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<usize>,
    /// Some of it, for those who ask this host by its own name; all of it is at `/v1/recovery`.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<Vec<MissingReason>>,
}

/// Something that did not come back.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MissingReason {
    what: String,
    reason: String,
}

/// What the last start brought back.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RecoveryPage {
    services: usize,
    triggers: usize,
    missing: Vec<MissingView>,
}

/// What the pool holds.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct PoolPage {
    totals: TotalsEntry,
    stems: Vec<StemEntry>,
    /// Revisions that have instances, or that an instance is started for ahead of a call; those with most instances first,
    /// at most 200.
    warm: Vec<WarmView>,
    /// How many there are in all.
    warm_total: usize,
}

/// What the pool holds in all, and what it did ahead of demand. Counts are since the platform runs.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TotalsEntry {
    /// Starting, ready and draining.
    instances: u64,
    memory_bytes: u64,
    /// `null`: no bound.
    memory_limit_bytes: Option<u64>,
    /// Starts that wait for the start gate or for a budget.
    waiting_starts: u64,
    /// Instances that were started ahead of a call that was expected.
    wake_aheads: u64,
    wake_aheads_used: u64,
    wake_aheads_wasted: u64,
}

impl From<PoolTotals> for TotalsEntry {
    fn from(totals: PoolTotals) -> Self {
        Self {
            instances: totals.instances,
            memory_bytes: totals.memory_bytes,
            memory_limit_bytes: totals.memory_limit_bytes,
            waiting_starts: totals.waiting_starts,
            wake_aheads: totals.wake_aheads,
            wake_aheads_used: totals.wake_aheads_used,
            wake_aheads_wasted: totals.wake_aheads_wasted,
        }
    }
}

/// The stems of one class, and why there are so many.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct StemEntry {
    class: String,
    ready: u32,
    booting: u32,
    /// How many are to be held.
    size: u32,
    /// What the capacity law asked for, before its bounds and the budget of memory.
    wanted: u32,
    reason: CapacityReason,
    /// In RFC 3339.
    decided_at: String,
    memory_bytes: u64,
    booted: u64,
    used: u64,
    missed: u64,
    wasted: u64,
    failed: u64,
}

impl From<&StemView> for StemEntry {
    fn from(view: &StemView) -> Self {
        Self {
            class: view.class.0.to_string(),
            ready: view.ready,
            booting: view.booting,
            size: view.size,
            wanted: view.wanted,
            reason: view.reason,
            decided_at: rfc3339(view.decided_at),
            memory_bytes: view.memory_bytes,
            booted: view.booted,
            used: view.used,
            missed: view.missed,
            wasted: view.wasted,
            failed: view.failed,
        }
    }
}

/// What tenants may use, where they have a quota of their own.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct QuotaList {
    quotas: Vec<OwnQuota>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// What a tenant may use; `null`: what all may.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OwnQuota {
    namespace: String,
    quota: Option<TenantQuota>,
}

/// A tenant: what it may use, and what it uses.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct TenantView {
    namespace: String,
    /// The engine that its services are on.
    engine: String,
    services: usize,
    /// The quota of its own; `null`: it may use what all may.
    quota: Option<TenantQuota>,
    /// What is used of each limit that holds for it.
    usage: Vec<LimitView>,
}

/// A limit, and what is used of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LimitView {
    /// The field of the quota.
    field: &'static str,
    limit: f64,
    /// What is used now. Of a rate: those of its burst that time has not made up for.
    used: f64,
    /// What there is to use up at once: the limit, or the burst of a rate.
    most: f64,
    /// How often something was refused for it.
    refused: u64,
}

impl From<QuotaPressure> for LimitView {
    fn from(one: QuotaPressure) -> Self {
        let QuotaPressure { resource, limit, used, most, refused, .. } = one;
        Self { field: resource.field(), limit, used: (used * 1000.0).round() / 1000.0, most, refused }
    }
}

/// A namespace, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct NamespacePath {
    /// The namespace, which is the tenant.
    pub(super) namespace: String,
}

/// `GET /v1/runtimes`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RuntimesPage {
    /// For whom the platform is.
    edition: &'static str,
    runtimes: Vec<RuntimeEntry>,
}

/// A runtime and what it can do.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct RuntimeEntry {
    name: &'static str,
    isolation: Isolation,
    suspend: bool,
    stems: bool,
    exec: bool,
    usage: bool,
    limits: bool,
    max_concurrency: Option<u32>,
}

impl From<&RuntimeRegistry> for RuntimesPage {
    fn from(registry: &RuntimeRegistry) -> Self {
        let entry = |runtime: &dyn Runtime| {
            let can = runtime.capabilities();
            RuntimeEntry {
                name: runtime.name(),
                isolation: can.isolation,
                suspend: can.suspend,
                stems: can.stems,
                exec: can.exec,
                usage: can.usage,
                limits: can.limits,
                max_concurrency: can.max_concurrency,
            }
        };
        let runtimes = registry.runtimes().map(|runtime| entry(runtime.as_ref())).collect();
        Self { edition: registry.kind().as_str(), runtimes }
    }
}

/// Answers while the process runs.
#[utoipa::path(get, path = "/healthz", tag = "platform", security(()),
    responses((status = 200, body = Health, description = "It runs")))]
pub(super) async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Answers 200 once everything that is stored was brought back, and until the shutdown.
#[utoipa::path(get, path = "/readyz", tag = "platform", security(()),
    responses(
        (status = 200, body = Readiness, description = "It serves"),
        (status = 503, body = super::problem::Problem, content_type = "application/problem+json",
            description = "It starts or shuts down"),
    ))]
pub(super) async fn readyz(
    State(api): State<Api>,
    named: Option<axum::Extension<Named>>,
) -> Answer<Readiness> {
    if !api.control.is_ready() {
        let text = "the platform starts or shuts down";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text));
    }
    let missing = api.control.missing_view();
    if missing.is_empty() {
        return Ok(Json(Readiness { status: "ready", missing: None, reasons: None }));
    }
    let some = missing.iter().take(MISSING);
    let reasons =
        some.map(|missing| MissingReason { what: missing.what.clone(), reason: missing.reason.clone() });
    let reasons = named.is_some().then(|| reasons.collect());
    Ok(Json(Readiness { status: "degraded", missing: Some(missing.len()), reasons }))
}

/// Gives the metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "platform", security(("token" = ["read", "platform"])),
    responses(
        (status = 200, body = String, content_type = "text/plain", description = "The metrics"),
        (status = 404, body = super::problem::Problem, content_type = "application/problem+json",
            description = "This platform exports no metrics here"),
    ))]
pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Failure> {
    let Some(render) = &api.metrics else {
        return Err(Failure::not_found("this platform exports no metrics here"));
    };
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], render()).into_response())
}

/// Gives this description.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "platform", security(("token" = ["read"])),
    responses((status = 200, body = serde_json::Value, description = "OpenAPI 3.1")))]
pub(super) async fn openapi() -> Result<Response, Failure> {
    let text = super::openapi();
    Ok(([(header::CONTENT_TYPE, "application/json")], text).into_response())
}

/// Lists the runtimes and what they can do.
#[utoipa::path(get, path = "/v1/runtimes", tag = "platform", security(("token" = ["read"])),
    responses((status = 200, body = RuntimesPage, description = "The runtimes")))]
pub(super) async fn runtimes(State(api): State<Api>) -> Json<RuntimesPage> {
    Json(RuntimesPage::from(&*api.control.runtimes()))
}

/// Tells what the last start brought back, and what it did not.
#[utoipa::path(get, path = "/v1/recovery", tag = "platform", security(("token" = ["read", "platform"])),
    responses((status = 200, body = RecoveryPage, description = "What came back")))]
pub(super) async fn recovery(State(api): State<Api>) -> Json<RecoveryPage> {
    let recovery = api.control.recovery();
    let missing = api.control.missing_view();
    Json(RecoveryPage { services: recovery.services, triggers: recovery.triggers, missing })
}

/// Tells what the pool holds in all, and what it holds ahead of demand, with the reasons.
#[utoipa::path(get, path = "/v1/pool", tag = "platform", security(("token" = ["read", "platform"])),
    responses((status = 200, body = PoolPage, description = "The pool")))]
pub(super) async fn pool(State(api): State<Api>) -> Json<PoolPage> {
    let stems = api.control.pool.stems().iter().map(StemEntry::from).collect();
    let (warm, warm_total) = warm(&api.control);
    Json(PoolPage { totals: api.control.pool.totals().into(), stems, warm, warm_total })
}

/// Lists the quotas of tenants.
#[utoipa::path(get, path = "/v1/quotas", tag = "platform", params(PageQuery), security(("token" = ["read"])),
    responses((status = 200, body = QuotaList, description = "A page of those that have one of their own")))]
pub(super) async fn quotas(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<QuotaList> {
    let all = api.control.tenant_quotas().into_iter();
    let seen = all.filter(|(namespace, _)| caller.reaches(namespace));
    let (page, next) = query.of(seen, |(namespace, _)| namespace.clone())?;
    let quotas = page.into_iter().map(|(namespace, quota)| OwnQuota { namespace, quota: Some(quota) });
    Ok(Json(QuotaList { quotas: quotas.collect(), next }))
}

/// Shows what a tenant may use.
#[utoipa::path(get, path = "/v1/quotas/{namespace}", tag = "platform", params(NamespacePath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = OwnQuota, description = "Its quota; with an `ETag` if it was set here", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn quota(
    State(api): State<Api>,
    Path(at): Path<NamespacePath>,
    headers: HeaderMap,
) -> Response {
    // The version first: what is shown may be younger, and is never older.
    let version = api.control.tenant_quota_version(&at.namespace);
    let quota = api.control.tenant_quota(&at.namespace);
    api.tagged_as(version, &OwnQuota { namespace: at.namespace, quota }, Some(&headers))
}

/// Shows a tenant: what it may use, and what it uses of each limit.
#[utoipa::path(get, path = "/v1/tenants/{namespace}", operation_id = "get_tenant", tag = "platform",
    params(NamespacePath), security(("token" = ["read"])),
    responses((status = 200, body = TenantView, description = "The tenant")))]
pub(super) async fn tenant(State(api): State<Api>, Path(at): Path<NamespacePath>) -> Answer<TenantView> {
    let control = &api.control;
    if !control.knows_tenant(&at.namespace) {
        return Err(Failure::not_found(format!("there is no tenant {}", at.namespace)));
    }
    let services = control.records_of(&at.namespace).len();
    Ok(Json(TenantView {
        engine: control.engines().engine_of(&at.namespace),
        services,
        quota: control.tenant_quota(&at.namespace),
        usage: control.tenant_pressure(&at.namespace).into_iter().map(LimitView::from).collect(),
        namespace: at.namespace,
    }))
}

/// Says what a tenant may use.
#[utoipa::path(put, path = "/v1/quotas/{namespace}", tag = "platform", params(NamespacePath, Conditions),
    security(("token" = ["admin", "platform"])), request_body = TenantQuota,
    responses((status = 200, body = OwnQuota, description = "Its quota"), Changed))]
pub(super) async fn set_quota(
    State(api): State<Api>,
    Path(at): Path<NamespacePath>,
    seen: Seen,
    body: Sent,
) -> Answer<OwnQuota> {
    let quota: TenantQuota =
        body.object().map_err(|problem| Failure::field("$", "", format!("not a quota: {problem}")))?;
    expecting(seen.0, api.control.set_tenant_quota(&at.namespace, Some(quota))).await?;
    let quota = api.control.tenant_quota(&at.namespace);
    Ok(Json(OwnQuota { namespace: at.namespace, quota }))
}

/// Takes a tenant's own quota back.
#[utoipa::path(delete, path = "/v1/quotas/{namespace}", tag = "platform", params(NamespacePath, Conditions),
    security(("token" = ["admin", "platform"])),
    responses((status = 200, body = OwnQuota, description = "What it may use now"), Changed))]
pub(super) async fn delete_quota(
    State(api): State<Api>,
    Path(at): Path<NamespacePath>,
    seen: Seen,
) -> Answer<OwnQuota> {
    expecting(seen.0, api.control.set_tenant_quota(&at.namespace, None)).await?;
    let quota = api.control.tenant_quota(&at.namespace);
    Ok(Json(OwnQuota { namespace: at.namespace, quota }))
}
