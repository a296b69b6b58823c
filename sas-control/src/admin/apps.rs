//! Apps: groups of services, and the environment that they have in common.

use std::collections::BTreeMap;

use axum::{Json, extract::State, response::Response};
use http::HeaderMap;
use sas_core::{EnvValue, Principal};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Path, Query, Seen, Sent, after, cursor, page_size},
    problem::Failure,
    services::{Changed, Conditions, Fresh},
};
use crate::{
    control::{EnvVersion, Purged, expecting},
    labels::LabelSelector,
    stamp::rfc3339,
};

type Answer<T> = Result<Json<T>, Failure>;

/// An app, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AppPath {
    /// The namespace, which is the tenant.
    namespace: String,
    /// The app: the label `sas.dev/app` of its services.
    app: String,
}

/// Which apps.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct AppQuery {
    /// Of this namespace only.
    namespace: Option<String>,
    /// At most so many; 500 without it.
    #[param(minimum = 1, maximum = 5000)]
    limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    next: Option<String>,
}

/// An app in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppSummary {
    namespace: String,
    app: String,
}

/// A page of apps, by namespace and name.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppList {
    apps: Vec<AppSummary>,
    /// For the next page; absent on the last.
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A variable: its value, or the name of a secret that is read at every start.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub(super) enum Variable {
    /// The value itself.
    Value(String),
    /// A reference to a secret.
    Secret(SecretReference),
}

/// A reference to a secret.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SecretReference {
    /// As the platform's source of secrets knows it, such as `database/password`.
    secret: String,
}

/// A version of an environment.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnvironmentView {
    version: u64,
    /// When it was made, in RFC 3339.
    created_at: String,
    /// Who made it, where that is known.
    #[schema(value_type = Option<String>)]
    author: Option<Principal>,
    /// Why, where that was said.
    reason: Option<String>,
    /// The earlier version that it goes back to.
    reverts_to: Option<u64>,
    variables: BTreeMap<String, Variable>,
}

/// A service of an app.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Member {
    name: String,
    /// Its youngest revision.
    revision: Option<String>,
    /// The version of the environment that this has.
    environment_version: Option<u64>,
    /// Its youngest revision that is ready.
    ready_revision: Option<String>,
}

/// An app.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct AppView {
    namespace: String,
    app: String,
    services: Vec<Member>,
    /// Versions of its environment, youngest first: the first is in force.
    environments: Vec<EnvironmentView>,
}

/// An environment.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvironmentChange {
    /// All variables that it is to have, by name.
    #[schema(required)]
    variables: Option<BTreeMap<String, Variable>>,
    /// Why it is changed; at most 1024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

/// Which version to go back to.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EnvironmentRevert {
    /// The version.
    #[schema(required)]
    version: Option<u64>,
    /// Why; at most 1024 bytes.
    #[schema(max_length = 1024)]
    reason: Option<String>,
}

impl From<&EnvVersion> for EnvironmentView {
    fn from(version: &EnvVersion) -> Self {
        let variables = version.env.iter().filter_map(|(name, value)| {
            let value = match value {
                EnvValue::Literal(text) => Variable::Value(text.clone()),
                EnvValue::Secret(secret) => Variable::Secret(SecretReference { secret: secret.clone() }),
                // Nothing else comes in here.
                _ => return None,
            };
            Some((name.clone(), value))
        });
        Self {
            version: version.version,
            created_at: rfc3339(version.at),
            author: version.by.clone(),
            reason: version.reason.clone(),
            reverts_to: version.reverts_to,
            variables: variables.collect(),
        }
    }
}

/// Lists apps.
#[utoipa::path(get, path = "/v1/apps", operation_id = "list_apps", tag = "apps", params(AppQuery),
    security(("token" = ["read"])), responses((status = 200, body = AppList, description = "A page of apps")))]
pub(super) async fn list(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<AppQuery>,
) -> Answer<AppList> {
    let (limit, after) = (page_size(query.limit, 500, 5000)?, after(query.next.as_deref())?);
    let after = after.as_deref().and_then(|after| after.split_once('/'));
    let mut found = api.control.apps().into_iter().filter(|(namespace, app)| {
        caller.reaches(namespace)
            && query.namespace.as_ref().is_none_or(|asked| asked == namespace)
            && after.is_none_or(|(last, seen)| (namespace.as_str(), app.as_str()) > (last, seen))
    });
    let page: Vec<_> = found.by_ref().take(limit).collect();
    let next = found.next().and(page.last()).map(|(namespace, app)| cursor(&format!("{namespace}/{app}")));
    let apps = page.into_iter().map(|(namespace, app)| AppSummary { namespace, app }).collect();
    Ok(Json(AppList { apps, next }))
}

/// Shows an app: its services, and the versions of its environment.
#[utoipa::path(get, path = "/v1/apps/{namespace}/{app}", operation_id = "get_app", tag = "apps", params(AppPath, Fresh),
    security(("token" = ["read"])),
    responses(
        (status = 200, body = AppView, description = "The app; with an `ETag` if it has an environment", headers(("ETag" = String))),
        (status = 304, description = "It is as the client has it"),
    ))]
pub(super) async fn show(
    State(api): State<Api>,
    Path(at): Path<AppPath>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    // The version first: what is shown may be younger, and is never older.
    let version = api.control.app_version(&at.namespace, &at.app);
    let view = api.app_view(&at)?;
    Ok(api.tagged_as(version, &view, Some(&headers)))
}

/// Gives an app an environment. Each of its services gets a revision with it, and takes it up as its roll-out says.
#[utoipa::path(put, path = "/v1/apps/{namespace}/{app}/environment", operation_id = "set_environment", tag = "apps",
    params(AppPath, Conditions), security(("token" = ["deploy"])), request_body = EnvironmentChange,
    responses((status = 200, body = AppView, description = "The app"), Changed))]
pub(super) async fn set_environment(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<AppPath>,
    seen: Seen,
    body: Sent,
) -> Answer<AppView> {
    let change: EnvironmentChange =
        body.object().map_err(|problem| Failure::field("$", "", format!("not an environment: {problem}")))?;
    let variables = change.variables.ok_or_else(|| {
        Failure::field("variables", "", "missing: an object with the variables, {} for none")
    })?;
    let env = variables.into_iter().map(|(name, value)| {
        let value = match value {
            Variable::Value(text) => EnvValue::Literal(text),
            Variable::Secret(reference) => EnvValue::Secret(reference.secret),
        };
        (name, value)
    });
    let reason = change.reason.as_deref();
    let change = api.control.set_app_env(Some(&caller), &at.namespace, &at.app, env.collect(), reason);
    expecting(seen.0, change).await?;
    api.app_view(&at).map(Json)
}

/// Goes back to an earlier version of the environment, as a new version.
#[utoipa::path(post, path = "/v1/apps/{namespace}/{app}/environment/revert", operation_id = "revert_environment",
    tag = "apps", params(AppPath, Conditions), security(("token" = ["deploy"])), request_body = EnvironmentRevert,
    responses((status = 200, body = AppView, description = "The app"), Changed))]
pub(super) async fn revert(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<AppPath>,
    seen: Seen,
    body: Sent,
) -> Answer<AppView> {
    let change: EnvironmentRevert =
        body.object().map_err(|problem| Failure::field("$", "", format!("not a version: {problem}")))?;
    let version =
        change.version.ok_or_else(|| Failure::field("version", "", "missing: the version to go back to"))?;
    let reason = change.reason.as_deref();
    let change = api.control.revert_app_env(Some(&caller), &at.namespace, &at.app, version, reason);
    expecting(seen.0, change).await?;
    api.app_view(&at).map(Json)
}

/// Deletes an app: its services, the triggers that send to them, and its environment.
#[utoipa::path(delete, path = "/v1/apps/{namespace}/{app}", operation_id = "delete_app", tag = "apps", params(AppPath),
    security(("token" = ["deploy"])), responses((status = 200, body = Purged, description = "What was deleted")))]
pub(super) async fn delete(State(api): State<Api>, Path(at): Path<AppPath>) -> Answer<Purged> {
    Ok(Json(api.control.delete_app(&at.namespace, &at.app).await?))
}

impl Api {
    fn app_view(&self, at: &AppPath) -> Result<AppView, Failure> {
        let services = self.control.select(Some(&at.namespace), &LabelSelector::app(&at.app));
        let record = self.control.app(&at.namespace, &at.app);
        if services.is_empty() && record.is_none() {
            return Err(Failure::not_found(format!("there is no app {}/{}", at.namespace, at.app)));
        }
        let services = services.iter().map(|service| Member {
            name: service.name.clone(),
            revision: service.latest_created().map(|latest| latest.name.clone()),
            environment_version: service.latest_created().and_then(|r| Some(r.app_env.as_ref()?.version)),
            ready_revision: service.latest_ready().map(|latest| latest.name.clone()),
        });
        let versions = record.iter().flat_map(|record| record.versions.iter().rev());
        Ok(AppView {
            namespace: at.namespace.clone(),
            app: at.app.clone(),
            services: services.collect(),
            environments: versions.map(EnvironmentView::from).collect(),
        })
    }
}
