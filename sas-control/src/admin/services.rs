//! Services: deploy, list, show, delete; their revisions, traffic and roll-outs; test runs.

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::IntoResponse as _, response::Response};
use http::{HeaderMap, StatusCode, header};
use sas_core::{Principal, RevisionSpec};
use sas_knative::manifest::{Manifest, TrafficTarget, parse, parse_traffic};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api, Touched,
    applied::{AppliedBroker, AppliedDomain, AppliedService, AppliedTrigger, AppliedView, AppliedWorkflow},
    extract::{
        Caller, MOST, PAGE, Path, Query, Seen, Sent, ServicePath, after, cursor, entity_tag, page_size,
    },
    problem::Failure,
};
use crate::{
    control::{Applied, RolloutAction, expecting},
    labels::LabelSelector,
    record::ServiceRecord,
    view::{Condition, RevisionView, RolloutView, ServiceView, TrafficView},
};

/// Things that an audit record names of one request.
const OBJECTS: usize = 20;

type Answer<T> = Result<T, Failure>;

/// Which services.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub(super) struct ListQuery {
    /// Of this namespace only.
    namespace: Option<String>,
    /// With these labels, as Kubernetes selects: `sas.dev/app=shop,tier!=web,env in (test,live),canary,!old`.
    labels: Option<String>,
    /// At most so many; 500 without it.
    #[param(minimum = 1, maximum = 5000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// A page of services, by namespace and name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceList {
    services: Vec<ServiceSummary>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A service in a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ServiceSummary {
    namespace: String,
    name: String,
    host: String,
    generation: u64,
    labels: BTreeMap<String, String>,
    latest_created_revision: Option<String>,
    latest_ready_revision: Option<String>,
    traffic: Vec<TrafficView>,
    conditions: Vec<Condition>,
}

impl From<ServiceView> for ServiceSummary {
    fn from(view: ServiceView) -> Self {
        Self {
            namespace: view.namespace,
            name: view.name,
            host: view.host,
            generation: view.generation,
            labels: view.labels,
            latest_created_revision: view.latest_created_revision,
            latest_ready_revision: view.latest_ready_revision,
            traffic: view.traffic,
            conditions: view.conditions,
        }
    }
}

/// What became of the manifests of one request.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppliedList {
    applied: Vec<AppliedView>,
}

/// What was deleted.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Deleted {
    /// `namespace/name`.
    pub(super) deleted: String,
}

/// The revisions of a service, youngest first.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevisionList {
    revisions: Vec<RevisionView>,
}

/// A revision with all that it runs by.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevisionDetail {
    #[serde(flatten)]
    revision: RevisionView,
    /// How it runs, with the names that it is stored with.
    #[schema(value_type = Object)]
    spec: std::sync::Arc<RevisionSpec>,
}

/// A revision, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct RevisionPath {
    /// The namespace, which is the tenant.
    pub(super) namespace: String,
    /// The service.
    pub(super) name: String,
    /// The revision.
    pub(super) revision: String,
}

/// Where the traffic is to go, and where it goes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TrafficPage {
    spec: Vec<TrafficTarget>,
    traffic: Vec<TrafficView>,
}

/// Where the traffic is to go. The percents add up to 100. A target without `revisionName` is the latest ready revision.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "the schema of what parse_traffic reads, which also takes YAML and a bare list")]
pub(super) struct TrafficChange {
    traffic: Vec<TrafficTargetChange>,
}

/// A share of the traffic.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "camelCase")]
#[expect(dead_code, reason = "the schema of what parse_traffic reads")]
pub(super) struct TrafficTargetChange {
    /// The revision.
    revision_name: Option<String>,
    /// Whether it is the latest ready one.
    latest_revision: Option<bool>,
    /// In percent.
    #[schema(minimum = 0, maximum = 100)]
    percent: Option<u32>,
    /// A name under which it answers at a host of its own.
    tag: Option<String>,
}

/// A roll-out; `null`: none.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RolloutPage {
    rollout: Option<RolloutView>,
}

/// What is to become of a roll-out.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RolloutChange {
    #[schema(required)]
    action: Option<RolloutAction>,
}

/// Where all traffic is to go back to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Rollback {
    /// The revision; the ready one before the one that takes traffic unless it is given.
    revision: Option<String>,
}

/// What to do with what is there already.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the description of what `Seen` reads")]
pub(super) struct Conditions {
    /// Only if what is stored is as this `ETag` was shown with; `*`: only if it is there.
    #[param(rename = "If-Match")]
    if_match: Option<String>,
    /// `*`: only if it is not there.
    #[param(rename = "If-None-Match")]
    if_none_match: Option<String>,
}

/// What the client has already.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the description of a header that is read by hand")]
pub(super) struct Fresh {
    /// The `ETag` of an earlier answer: 304 if this one would be the same.
    #[param(rename = "If-None-Match")]
    if_none_match: Option<String>,
}

/// Lists services.
#[utoipa::path(get, path = "/v1/services", operation_id = "list_services", tag = "services", params(ListQuery), security(("token" = ["read"])),
    responses((status = 200, body = ServiceList, description = "A page of services")))]
pub(super) async fn list(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<ListQuery>,
) -> Answer<Json<ServiceList>> {
    let (limit, after) = (page_size(query.limit, PAGE, MOST)?, after(query.next.as_deref())?);
    let labels = LabelSelector::parse(query.labels.as_deref().unwrap_or_default())?;
    let wanted = |record: &ServiceRecord| caller.reaches(&record.namespace) && labels.matches(&record.labels);
    // One more, to see whether there is a next page.
    let namespace = query.namespace.as_deref();
    let mut page = api.control.page_of_records(namespace, after.as_deref(), limit + 1, wanted);
    let more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| more).map(|last| cursor(&last.path()));
    let services = page.iter().map(|record| api.control.view(record).into()).collect();
    Ok(Json(ServiceList { services, next }))
}

/// Applies manifests: Knative Services and PingSources, one or several YAML documents, or JSON. All of them are checked
/// before anything is done. With `If-Match` or `If-None-Match: *` there must be one Service only.
#[utoipa::path(post, path = "/v1/services", operation_id = "apply_manifests", tag = "services", params(Conditions), security(("token" = ["deploy"])),
    request_body(content((serde_json::Value = "application/json"), (String = "application/yaml"))),
    responses(
        (status = 200, body = AppliedList, description = "Applied; every service was there before"),
        (status = 201, body = AppliedList, description = "Applied; a service is new"),
        (status = 412, body = super::problem::Problem, content_type = "application/problem+json",
            description = "The service is not as the condition says"),
        (status = 428, body = super::problem::Problem, content_type = "application/problem+json",
            description = "This platform asks for If-Match or If-None-Match"),
        (status = 502, body = super::problem::Problem, content_type = "application/problem+json",
            description = "The runtime failed"),
        (status = 504, body = super::problem::Problem, content_type = "application/problem+json",
            description = "The package was not ready in time"),
    ))]
pub(super) async fn apply(
    State(api): State<Api>,
    Caller(caller): Caller,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.check_tenant(&caller, body.text()?)?;
    let mut applied = Vec::new();
    let roots = api.roots_for(&caller);
    let change = api.control.apply_for(&caller, body.text()?, &roots, &mut applied);
    let result = expecting(seen.0, change).await;
    let done: Vec<AppliedView> = applied.iter().map(|applied| api.applied(applied)).collect();
    match result {
        Ok(()) => {
            let created =
                applied.iter().any(|applied| matches!(applied, Applied::Service(outcome) if outcome.created));
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let touched = axum::Extension(touched(&applied));
            Ok((status, touched, Json(AppliedList { applied: done })).into_response())
        }
        Err(error) => Err(Failure::from(error).after(done)),
    }
}

/// Shows a service.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}", operation_id = "get_service", tag = "services", params(ServicePath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    headers: HeaderMap,
) -> Answer<Response> {
    let record = api.control.record(&at.namespace, &at.name)?;
    Ok(api.tagged(&record, &api.control.view(&record), Some(&headers)))
}

/// Gives a service's manifest as it was last deployed, with its traffic as it is wanted now: what it is applied again
/// from, here or elsewhere. 404 where it was deployed without one, by the library.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/manifest", operation_id = "export_manifest", tag = "services",
    params(ServicePath), security(("token" = ["read"])),
    responses((status = 200, body = serde_json::Value, description = "The manifest")))]
pub(super) async fn manifest(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
) -> Answer<Json<serde_json::Value>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let document = crate::knative::exported(&record).ok_or_else(|| {
        Failure::not_found(format!("{} was deployed without a manifest; deploy it with one", record.path()))
    })?;
    Ok(Json(document))
}

/// Deletes a service with all its revisions.
#[utoipa::path(delete, path = "/v1/services/{namespace}/{name}", operation_id = "delete_service", tag = "services", params(ServicePath, Conditions),
    security(("token" = ["deploy"])),
    responses((status = 200, body = Deleted, description = "It is deleted"), Changed))]
pub(super) async fn delete(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    seen: Seen,
) -> Answer<Json<Deleted>> {
    api.asks_for(&seen)?;
    expecting(seen.0, api.control.delete(&at.namespace, &at.name)).await?;
    Ok(Json(Deleted { deleted: format!("{}/{}", at.namespace, at.name) }))
}

/// The answers of a conditional write.
#[derive(utoipa::IntoResponses)]
#[expect(dead_code, reason = "for the description")]
pub(super) enum Changed {
    /// It is not as the condition says
    #[response(status = 412, content_type = "application/problem+json")]
    PreconditionFailed(#[to_schema] super::problem::Problem),
    /// This platform asks for If-Match
    #[response(status = 428, content_type = "application/problem+json")]
    PreconditionRequired(#[to_schema] super::problem::Problem),
}

/// Lists the revisions of a service.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/revisions", operation_id = "list_revisions", tag = "services", params(ServicePath),
    security(("token" = ["read"])),
    responses((status = 200, body = RevisionList, description = "Its revisions, youngest first")))]
pub(super) async fn revisions(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
) -> Answer<Json<RevisionList>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    Ok(Json(RevisionList { revisions: api.control.view(&record).revisions }))
}

/// Shows a revision.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/revisions/{revision}", operation_id = "get_revision", tag = "services",
    params(RevisionPath), security(("token" = ["read"])),
    responses((status = 200, body = RevisionDetail, description = "The revision")))]
pub(super) async fn revision(
    State(api): State<Api>,
    Path(at): Path<RevisionPath>,
) -> Answer<Json<RevisionDetail>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let found = record.revision(&at.revision).ok_or_else(|| no_revision(&record, &at.revision))?;
    let spec = std::sync::Arc::clone(&found.spec);
    Ok(Json(RevisionDetail { revision: api.control.revision_view(&record, found), spec }))
}

/// Shows where the traffic goes.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/traffic", operation_id = "get_traffic", tag = "services", params(ServicePath),
    security(("token" = ["read"])),
    responses((status = 200, body = TrafficPage, description = "Its traffic", headers(("ETag" = String)))))]
pub(super) async fn traffic(State(api): State<Api>, Path(at): Path<ServicePath>) -> Answer<Response> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let view = api.control.view(&record);
    Ok(api.tagged(&record, &TrafficPage { spec: view.spec, traffic: view.traffic }, None))
}

/// Says where the traffic goes.
#[utoipa::path(put, path = "/v1/services/{namespace}/{name}/traffic", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])),
    request_body(content((TrafficChange = "application/json"), (TrafficChange = "application/yaml"))),
    responses((status = 200, body = ServiceView, description = "The service, with its traffic moved",
        headers(("ETag" = String))), Changed))]
pub(super) async fn set_traffic(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let targets = parse_traffic(body.text()?, &at.name)?;
    let change = api.control.set_traffic_for(&caller, &at.namespace, &at.name, targets);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Shows the roll-out that is under way or was stopped.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/rollout", operation_id = "get_rollout", tag = "services", params(ServicePath),
    security(("token" = ["read"])),
    responses((status = 200, body = RolloutPage, description = "Its roll-out")))]
pub(super) async fn rollout(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
) -> Answer<Json<RolloutPage>> {
    let record = api.control.record(&at.namespace, &at.name)?;
    Ok(Json(RolloutPage { rollout: api.control.rollout_view(&record) }))
}

/// Promotes, restarts or stops a roll-out.
#[utoipa::path(post, path = "/v1/services/{namespace}/{name}/rollout", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])), request_body = RolloutChange,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn steer_rollout(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    const ACTIONS: &str = "must be restart, promote or stop";
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let change: RolloutChange =
        body.object().map_err(|problem| Failure::field("action", "", format!("{ACTIONS}: {problem}")))?;
    let action = change.action.ok_or_else(|| Failure::field("action", "", format!("missing: {ACTIONS}")))?;
    let change = api.control.steer_rollout_for(&caller, &at.namespace, &at.name, action);
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

/// Sends all traffic back to an earlier revision.
#[utoipa::path(post, path = "/v1/services/{namespace}/{name}/rollback", tag = "services",
    params(ServicePath, Conditions), security(("token" = ["deploy"])), request_body = Option<Rollback>,
    responses((status = 200, body = ServiceView, description = "The service", headers(("ETag" = String))), Changed))]
pub(super) async fn roll_back(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<ServicePath>,
    seen: Seen,
    body: Sent,
) -> Answer<Response> {
    api.asks_for(&seen)?;
    api.control.record(&at.namespace, &at.name)?;
    let rollback: Rollback =
        body.object().map_err(|problem| Failure::field("$", "", format!("not a roll-back: {problem}")))?;
    let change = api.control.roll_back_for(&caller, &at.namespace, &at.name, rollback.revision.as_deref());
    let record = expecting(seen.0, change).await?;
    Ok(api.tagged(&record, &api.control.view(&record), None))
}

pub(super) fn no_revision(record: &ServiceRecord, revision: &str) -> Failure {
    Failure::not_found(format!("{} has no revision {revision}", record.path()))
}

/// What was applied, for the audit log.
fn touched(applied: &[Applied]) -> Touched {
    let mut touched = Touched::default();
    let mut namespaces = std::collections::BTreeSet::new();
    for applied in applied.iter().take(OBJECTS) {
        let (kind, path) = match applied {
            Applied::Service(outcome) => ("Service", outcome.record.path()),
            Applied::Trigger(trigger) => ("Trigger", trigger.name.clone()),
            Applied::Broker(broker) => ("Broker", broker.name.clone()),
            Applied::Domain(domain) => ("DomainMapping", format!("{}/{}", domain.namespace, domain.host)),
            Applied::Workflow(workflow, _) => ("Workflow", workflow.shown()),
        };
        namespaces.extend(path.split_once('/').map(|(namespace, _)| namespace.to_owned()));
        touched.objects.push(format!("{kind} {path}"));
    }
    if namespaces.len() == 1 {
        touched.namespace = namespaces.pop_first();
    }
    touched
}

fn namespace_of(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}

impl Api {
    /// Refuses manifests of other namespaces than the one that `caller` is held to.
    fn check_tenant(&self, caller: &Principal, text: &str) -> Answer<()> {
        if caller.tenant().is_none() {
            return Ok(());
        }
        for manifest in parse(text, self.control.manifest_options())? {
            let namespace = match &manifest {
                Manifest::Service(service) => service.namespace.as_str(),
                Manifest::Trigger(trigger) => namespace_of(&trigger.name),
                Manifest::Broker(broker) => namespace_of(&broker.name),
                Manifest::Domain(domain) => domain.namespace.as_str(),
                Manifest::Workflow(workflow) => workflow.namespace.as_str(),
            };
            if !caller.reaches(namespace) {
                let message = format!("{caller} may not apply manifests of the namespace {namespace:?}");
                return Err(Failure::forbidden(message));
            }
        }
        Ok(())
    }

    fn applied(&self, applied: &Applied) -> AppliedView {
        match applied {
            Applied::Service(outcome) => AppliedView::Service(Box::new(AppliedService {
                kind: "Service",
                service: self.control.view(&outcome.record),
                revision: outcome.revision.clone(),
                created: outcome.created,
                new_revision: outcome.new_revision,
            })),
            Applied::Trigger(trigger) => AppliedView::Trigger(AppliedTrigger {
                kind: "Trigger".to_owned(),
                source: trigger.kind.clone(),
                name: trigger.name.clone(),
                target: trigger.target.clone(),
                options: trigger.options.clone().into_iter().collect(),
                paused: trigger.paused,
            }),
            Applied::Broker(broker) => AppliedView::Broker(AppliedBroker {
                kind: "Broker",
                name: broker.name.clone(),
                retention_seconds: broker.retention.as_secs(),
                most_events: broker.most_events,
                delivery: broker.delivery.clone(),
            }),
            Applied::Domain(domain) => AppliedView::Domain(AppliedDomain {
                kind: "DomainMapping",
                name: domain.host.clone(),
                namespace: domain.namespace.clone(),
                service: domain.service.clone(),
            }),
            Applied::Workflow(workflow, new) => AppliedView::Workflow(AppliedWorkflow {
                kind: "Workflow",
                name: format!("{}/{}", workflow.namespace, workflow.name),
                version: workflow.version.clone(),
                new_version: *new,
            }),
        }
    }

    /// An answer about a service with its tag, or 304 if the client has it.
    pub(super) fn tagged(
        &self,
        record: &ServiceRecord,
        view: &impl Serialize,
        headers: Option<&HeaderMap>,
    ) -> Response {
        self.tagged_as(self.control.version(&record.namespace, &record.name), view, headers)
    }

    /// The same of anything, by the version that is stored of it. `None`: nothing is, and so there is no tag.
    pub(super) fn tagged_as(
        &self,
        version: Option<sas_core::Version>,
        view: &impl Serialize,
        headers: Option<&HeaderMap>,
    ) -> Response {
        let Some(version) = version else { return Json(view).into_response() };
        let tag = entity_tag(version, &serde_json::to_vec(view).unwrap_or_default());
        let known = headers.into_iter().flat_map(|headers| headers.get_all(header::IF_NONE_MATCH));
        let known = known.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
        let fresh = known.map(str::trim).any(|known| known == "*" || known == tag);
        let answer =
            if fresh { StatusCode::NOT_MODIFIED.into_response() } else { Json(view).into_response() };
        ([(header::ETAG, tag)], answer).into_response()
    }
}
