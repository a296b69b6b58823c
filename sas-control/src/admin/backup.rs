//! The route that gives a copy of the state.

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse as _, Response},
};
use http::header;

use super::{
    Api,
    problem::{Failure, Problem},
};

/// Gives a copy of the whole state, as it is at one moment while it is used, as a tar archive that ends with its own digest.
/// Without secrets; with the digests of tokens. `platform --restore` puts it into a new state directory.
#[utoipa::path(post, path = "/v1/backup", operation_id = "backup", tag = "platform",
    security(("token" = ["admin", "platform"])),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/x-tar", description = "The copy"),
        (status = 409, body = Problem, content_type = "application/problem+json",
            description = "Another one is under way"),
    ))]
pub(super) async fn backup(State(api): State<Api>) -> Result<Response, Failure> {
    let copy = api.control.backup()?;
    let name = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"sas-backup.tar\""),
    ];
    Ok((name, Body::from_stream(copy)).into_response())
}
