//! A whole platform in one process, part by part. One program, since each more is built and linked for seconds.

mod builder;
mod cluster;
#[cfg(feature = "console")]
mod console;
mod diagnosis;
mod engines;
mod errors;
#[cfg(feature = "wasm")]
mod functions;
mod lifecycle;
mod lists;
mod metering;
mod rollouts;
mod scaling;
#[path = "../shared/mod.rs"]
mod shared;
mod start_gate;
mod state;
mod tenants;
mod traffic;
#[cfg(feature = "workflow")]
mod workflow_hosts;
#[cfg(all(feature = "workflow", feature = "cron"))]
mod workflows;

use sas::prelude::*;

/// The admin API's token of all platforms here that have one.
const TOKEN: &str = "a-token-of-the-tests";

/// Asks the admin API of a platform: status and body.
async fn admin(platform: &Platform, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Body::from(body.to_owned()));
    let response = platform.admin().handle(request.expect("a request")).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(1 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).expect("JSON"))
}
