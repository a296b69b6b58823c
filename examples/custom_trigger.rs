//! A source of events of one's own: every line of a file becomes an event for a service, which wakes for it.
//!
//! A source takes room before it pulls, and acknowledges upstream (here: remembers how far it has read) only after the
//! event was delivered.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{sync::Arc, time::Duration};

use sas::{prelude::*, trigger::DeliveryConfig};

/// The source, of the crate in which the suite of `sas-testkit` proves it.
#[path = "../tests/adopter/src/trigger.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a library's code, which this program takes in whole")]
mod lines;

use lines::Lines;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = InlineRuntime::new().with("print", |request: Request, _cx| async move {
        let id = request.headers().get("ce-id").and_then(|id| id.to_str().ok()).unwrap_or("?").to_owned();
        let line = request.into_body().collect(64 * 1024).await?;
        println!("event {id}: {}", String::from_utf8_lossy(&line));
        Ok::<_, sas::core::BoxError>(Response::new(Body::empty()))
    });
    let platform = Platform::builder().runtime(runtime).build().await?;
    platform
        .deploy("default", "print", RevisionSpec::new("inline", Source::Function("print".to_owned())))
        .await?;

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/manifests/hello-python.yaml");
    let sink = platform.triggers().delivery(DeliveryConfig::new("demo", "default/print"));
    platform.triggers().run("demo", Arc::new(Lines { path }), Arc::new(sink)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
