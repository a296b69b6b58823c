//! Read views at the paths and in the shapes of Knative's API, mapped hosts, and the schema of manifests.

use axum::{Json, extract::State, response::IntoResponse as _, response::Response};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, MOST, PAGE, PageQuery, Path, Query, Seen, page_size},
    problem::Failure,
    services::{Changed, Conditions, Deleted, Fresh},
};
use crate::{
    control::expecting,
    knative::{V1, V1BETA1},
    stamp::rfc3339,
};

type Answer<T> = Result<T, Failure>;

/// A kind of object in a namespace, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct KindPath {
    namespace: String,
    /// `services`, `configurations`, `routes` or `revisions`.
    #[param(pattern = "^(services|configurations|routes|revisions)$")]
    kind: String,
}

/// An object, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ObjectPath {
    namespace: String,
    /// `services`, `configurations`, `routes` or `revisions`.
    #[param(pattern = "^(services|configurations|routes|revisions)$")]
    kind: String,
    name: String,
}

/// A namespace, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct NamespacePath {
    namespace: String,
}

/// A mapped host, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DomainPath {
    namespace: String,
    /// The host.
    name: String,
}

/// A page of objects, as Kubernetes writes it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct ObjectList {
    api_version: &'static str,
    kind: String,
    metadata: Value,
    items: Vec<Value>,
}

/// Mapped hosts.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DomainList {
    domains: Vec<DomainEntry>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A mapped host.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct DomainEntry {
    /// The host.
    name: String,
    namespace: String,
    /// The name of the service that answers there.
    service: String,
    /// Whether there is such a service now.
    ready: bool,
    /// In RFC 3339.
    created_at: String,
    /// Who asked for the last change, where that is known.
    changed_by: Option<String>,
}

/// Gives the JSON schema of manifests, for editors and other tools.
#[utoipa::path(get, path = "/v1/schema", operation_id = "manifest_schema", tag = "services", security(("token" = ["read"])),
    responses((status = 200, body = Value, content_type = "application/schema+json", description = "JSON Schema, draft 2020-12")))]
pub(super) async fn schema() -> Response {
    ([(header::CONTENT_TYPE, "application/schema+json")], sas_knative::manifest::SCHEMA).into_response()
}

impl DomainEntry {
    fn of(api: &Api, domain: &crate::control::DomainRecord) -> Self {
        Self {
            name: domain.mapping.host.clone(),
            namespace: domain.mapping.namespace.clone(),
            service: domain.mapping.service.clone(),
            ready: api.control.record(&domain.mapping.namespace, &domain.mapping.service).is_ok(),
            created_at: rfc3339(domain.created_at),
            changed_by: domain.changed_by.as_ref().map(ToString::to_string),
        }
    }
}

/// Lists mapped hosts.
#[utoipa::path(get, path = "/v1/domains", operation_id = "list_domains", tag = "services", params(PageQuery), security(("token" = ["read"])),
    responses((status = 200, body = DomainList, description = "A page of hosts, in their order")))]
pub(super) async fn domains(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PageQuery>,
) -> Answer<Json<DomainList>> {
    let all = api.control.domains().into_iter();
    let seen = all.filter(|domain| caller.reaches(&domain.mapping.namespace));
    let (page, next) = query.of(seen, |domain| domain.mapping.host.clone())?;
    Ok(Json(DomainList { domains: page.iter().map(|domain| DomainEntry::of(&api, domain)).collect(), next }))
}

/// Shows a mapped host.
#[utoipa::path(get, path = "/v1/domains/{namespace}/{name}", operation_id = "get_domain", tag = "services", params(DomainPath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = DomainEntry, description = "The host", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn domain(
    State(api): State<Api>,
    Path(at): Path<DomainPath>,
    headers: HeaderMap,
) -> Answer<Response> {
    let found = api.control.domain(&at.name).filter(|(record, _)| record.mapping.namespace == at.namespace);
    let (record, version) = found
        .ok_or_else(|| Failure::not_found(format!("{} has not mapped the host {}", at.namespace, at.name)))?;
    Ok(api.tagged_as(Some(version), &DomainEntry::of(&api, &record), Some(&headers)))
}

/// Takes a mapped host back.
#[utoipa::path(delete, path = "/v1/domains/{namespace}/{name}", operation_id = "delete_domain", tag = "services", params(DomainPath, Conditions),
    security(("token" = ["deploy"])), responses((status = 200, body = Deleted, description = "It is free"), Changed))]
pub(super) async fn delete_domain(
    State(api): State<Api>,
    Path(at): Path<DomainPath>,
    seen: Seen,
) -> Answer<Json<Deleted>> {
    expecting(seen.0, api.control.delete_domain(&at.namespace, &at.name)).await?;
    Ok(Json(Deleted { deleted: format!("{}/{}", at.namespace, at.name) }))
}

/// Lists objects of a namespace as Knative's API does.
#[utoipa::path(get, path = "/apis/serving.knative.dev/v1/namespaces/{namespace}/{kind}", operation_id = "list_knative_objects", tag = "services",
    params(KindPath, PageQuery), security(("token" = ["read"])),
    responses((status = 200, body = ObjectList, description = "The objects, by name")))]
pub(super) async fn list(
    State(api): State<Api>,
    Path(at): Path<KindPath>,
    Query(query): Query<PageQuery>,
) -> Answer<Json<ObjectList>> {
    let kind = Kind::parse(&at.kind)?;
    let limit = page_size(query.limit, PAGE, MOST)?;
    let records = api.control.records_of(&at.namespace);
    let mut names: Vec<_> = records
        .iter()
        .flat_map(|record| match kind {
            Kind::Revision => record.revisions.iter().map(|r| (r.name.clone(), record)).collect(),
            _ => vec![(record.name.clone(), record)],
        })
        .collect();
    names.sort_by(|a, b| a.0.cmp(&b.0));
    names.retain(|(name, _)| query.next.as_ref().is_none_or(|after| name > after));
    let more = names.len() > limit;
    names.truncate(limit);
    let next = names.last().filter(|_| more).map(|(name, _)| name.clone());
    let items = names.iter().filter_map(|(name, record)| kind.view(&api, record, name)).collect();
    Ok(Json(page(V1, format!("{}List", kind.name()), next, items)))
}

fn page(api_version: &'static str, kind: String, next: Option<String>, items: Vec<Value>) -> ObjectList {
    let metadata = next.map_or_else(|| json!({}), |next| json!({"continue": next}));
    ObjectList { api_version, kind, metadata, items }
}

/// Shows an object as Knative's API does, with its status.
#[utoipa::path(get, path = "/apis/serving.knative.dev/v1/namespaces/{namespace}/{kind}/{name}", operation_id = "get_knative_object", tag = "services",
    params(ObjectPath), security(("token" = ["read"])),
    responses((status = 200, body = Value, description = "The object")))]
pub(super) async fn get(State(api): State<Api>, Path(at): Path<ObjectPath>) -> Answer<Json<Value>> {
    let kind = Kind::parse(&at.kind)?;
    let missing = || Failure::not_found(format!("{} has no {} {}", at.namespace, kind.name(), at.name));
    let record = match kind {
        Kind::Revision => {
            let mut own = api.control.records_of(&at.namespace).into_iter();
            own.find(|record| record.revision(&at.name).is_some()).ok_or_else(missing)?
        }
        _ => api.control.record(&at.namespace, &at.name).map_err(|_| missing())?,
    };
    kind.view(&api, &record, &at.name).map(Json).ok_or_else(missing)
}

/// Lists the mapped hosts of a namespace as Knative's API does.
#[utoipa::path(get, path = "/apis/serving.knative.dev/v1beta1/namespaces/{namespace}/domainmappings",
    operation_id = "list_domain_mappings", tag = "services", params(NamespacePath), security(("token" = ["read"])),
    responses((status = 200, body = ObjectList, description = "The mappings, by host")))]
pub(super) async fn list_domain_mappings(
    State(api): State<Api>,
    Path(at): Path<NamespacePath>,
) -> Json<ObjectList> {
    let all = api.control.domains();
    let own = all.iter().filter(|domain| domain.mapping.namespace == at.namespace);
    let items = own.map(|domain| api.control.knative_domain(domain)).collect();
    Json(page(V1BETA1, "DomainMappingList".to_owned(), None, items))
}

/// Shows a mapped host as Knative's API does, with its status.
#[utoipa::path(get, path = "/apis/serving.knative.dev/v1beta1/namespaces/{namespace}/domainmappings/{name}",
    operation_id = "get_domain_mapping", tag = "services", params(DomainPath), security(("token" = ["read"])),
    responses((status = 200, body = Value, description = "The mapping")))]
pub(super) async fn get_domain_mapping(
    State(api): State<Api>,
    Path(at): Path<DomainPath>,
) -> Answer<Json<Value>> {
    let all = api.control.domains();
    let found = all.iter().find(|d| d.mapping.namespace == at.namespace && d.mapping.host == at.name);
    let found = found
        .ok_or_else(|| Failure::not_found(format!("{} has no DomainMapping {}", at.namespace, at.name)))?;
    Ok(Json(api.control.knative_domain(found)))
}

/// The kinds that a service stands for.
#[derive(Clone, Copy)]
enum Kind {
    Service,
    Configuration,
    Route,
    Revision,
}

impl Kind {
    fn parse(plural: &str) -> Answer<Self> {
        Ok(match plural {
            "services" => Self::Service,
            "configurations" => Self::Configuration,
            "routes" => Self::Route,
            "revisions" => Self::Revision,
            other => {
                let text =
                    format!("there are no {other} here; services, configurations, routes and revisions are");
                return Err(Failure::not_found(text));
            }
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::Configuration => "Configuration",
            Self::Route => "Route",
            Self::Revision => "Revision",
        }
    }

    fn view(self, api: &Api, record: &crate::record::ServiceRecord, name: &str) -> Option<Value> {
        let control = &api.control;
        Some(match self {
            Self::Service => control.knative_service(record),
            Self::Configuration => control.knative_configuration(record),
            Self::Route => control.knative_route(record),
            Self::Revision => control.knative_revision(record, record.revision(name)?),
        })
    }
}
