//! Routes of the configuration of the program around the platform.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Api,
    problem::{Failure, Problem},
};
use crate::configuration::{ConfigField, ProgramConfig};

type Answer<T> = Result<Json<T>, Failure>;

/// `GET /v1/config`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConfigPage {
    fields: Vec<ConfigField>,
}

/// What a reload did.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reloaded {
    /// The fields that have another value now.
    changed: Vec<String>,
}

fn config(api: &Api) -> Result<&Arc<dyn ProgramConfig>, Failure> {
    let missing = "this program has no configuration of its own to show; it gives one by PlatformBuilder::program_config";
    api.config.as_ref().ok_or_else(|| Failure::not_found(missing))
}

/// Shows what the program was configured with, field by field, and when a change of each would hold. Without secrets.
#[utoipa::path(get, path = "/v1/config", operation_id = "get_config", tag = "platform",
    security(("token" = ["admin", "platform"])),
    responses(
        (status = 200, body = ConfigPage, description = "The fields"),
        (status = 404, body = Problem, content_type = "application/problem+json",
            description = "The program has no configuration to show"),
    ))]
pub(super) async fn show(State(api): State<Api>) -> Answer<ConfigPage> {
    Ok(Json(ConfigPage { fields: config(&api)?.fields() }))
}

/// Reads the configuration again, as a whole: one that is wrong, or that changes what only a restart does, leaves
/// everything as it was.
#[utoipa::path(post, path = "/v1/config/reload", operation_id = "reload_config", tag = "platform",
    security(("token" = ["admin", "platform"])),
    responses(
        (status = 200, body = Reloaded, description = "What changed"),
        (status = 404, body = Problem, content_type = "application/problem+json",
            description = "The program has no configuration to reload"),
        (status = 422, body = Problem, content_type = "application/problem+json",
            description = "It is wrong, and what was in force still is; `fields` says what and why"),
    ))]
pub(super) async fn reload(State(api): State<Api>) -> Answer<Reloaded> {
    Ok(Json(Reloaded { changed: config(&api)?.reload().await? }))
}
