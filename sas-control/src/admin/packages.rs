//! Packages that are sent, to be named by a manifest.

use std::pin::pin;

use axum::{
    Json,
    extract::{Request, State},
};
use bytes::Bytes;
use http::StatusCode;
use http_body::Body as _;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Query, too_large},
    problem::Failure,
};

/// Most bytes of a package that is sent.
const MOST: u64 = 1 << 30;

/// What a package is called.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PackageQuery {
    /// Its file name, by whose end runtimes know what it is: `app.jar`, `app.zip`, `app.tar.gz`, `app.wasm`. A directory
    /// is sent as an archive.
    #[param(max_length = 200)]
    name: String,
}

/// A package that is here.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Package {
    /// By which a manifest names it: `sas.dev/package: sha256:…`.
    digest: String,
    /// Its bytes.
    size: u64,
}

/// Takes a package: a file as it is, at most 1 GiB. It waits for an hour to be named by a manifest of the same namespace
/// as the token's; what a revision runs stays with the revision.
#[utoipa::path(post, path = "/v1/packages", tag = "services", operation_id = "upload_package", params(PackageQuery),
    security(("token" = ["deploy"])), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = Package, description = "It is here")))]
pub(super) async fn upload(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<PackageQuery>,
    request: Request,
) -> Result<(StatusCode, Json<Package>), Failure> {
    let name = query.name;
    let letters = |letter: char| letter.is_alphanumeric() || "._-+@ ".contains(letter);
    if name.is_empty() || name.len() > 200 || name.starts_with(['.', ' ']) || !name.chars().all(letters) {
        let problem =
            "must be a file name of at most 200 letters, digits, `.`, `_`, `-`, `+`, `@`, such as app.jar";
        return Err(Failure::field("name", name, problem));
    }
    let unwritable = |error: std::io::Error| {
        let message = format!("the package can't be written: {error}; is the disk full?");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message)
    };
    let incoming = Incoming::new().map_err(unwritable)?;
    let path = incoming.0.join(&name);
    let mut file = tokio::fs::File::create(&path).await.map_err(unwritable)?;
    let (mut size, mut body) = (0_u64, pin!(request.into_body()));
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| {
            Failure::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
        })?;
        let Ok(data): Result<Bytes, _> = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > MOST {
            return Err(too_large(MOST));
        }
        file.write_all(&data).await.map_err(unwritable)?;
    }
    if size == 0 {
        return Err(Failure::field("body", "", "is empty; send the package's bytes"));
    }
    file.flush().await.map_err(unwritable)?;
    drop(file);
    let digest = api.control.upload_package(&caller, path).await?;
    drop(incoming);
    Ok((StatusCode::CREATED, Json(Package { digest, size })))
}

/// A directory of its own, gone with the request whatever becomes of it.
struct Incoming(std::path::PathBuf);

impl Incoming {
    fn new() -> std::io::Result<Self> {
        let name = crate::TokenAuthenticator::random()?;
        let path = std::env::temp_dir().join(format!("sas-upload-{name}"));
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // What can't be removed is in the system's directory for temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
