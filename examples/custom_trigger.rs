//! A source of events of one's own: every line of a file becomes an event for a service, which wakes for it.
//!
//! A source takes room before it pulls, and acknowledges upstream (here: remembers how far it has read) only after the
//! event was delivered.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sas::{prelude::*, trigger::DeliveryConfig};

/// The source, of the crate in which the suite of `sas-testkit` proves it.
#[path = "../tests/adopter/src/trigger.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a library's code, which this program takes in whole")]
mod lines;

use lines::Lines;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let events = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&events);
    let runtime = InlineRuntime::new().with("print", move |request: Request, _cx| {
        let count = Arc::clone(&count);
        async move {
            let id = request.headers().get("ce-id").and_then(|id| id.to_str().ok()).unwrap_or("?").to_owned();
            let line = request.into_body().collect(64 * 1024).await?;
            println!("event {id}: {}", String::from_utf8_lossy(&line));
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, sas::core::BoxError>(Response::new(Body::empty()))
        }
    });
    let platform = Platform::builder().runtime(runtime).build().await?;
    platform
        .deploy("default", "print", RevisionSpec::new("inline", Source::Function("print".to_owned())))
        .await?;

    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/manifests/hello-python.yaml");
    let sink = platform.triggers().delivery(DeliveryConfig::new("demo", "default/print"));
    platform.triggers().run("demo", Arc::new(Lines { path: path.clone() }), Arc::new(sink)).await?;
    let lines = std::fs::read_to_string(&path)?.lines().count();
    let all = async {
        while events.load(Ordering::Relaxed) < lines {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), all).await.is_ok();
    platform.shutdown(Duration::from_secs(5)).await;
    let came = events.load(Ordering::Relaxed);
    if !in_time || came != lines {
        return Err(format!("{came} events came of {lines} lines").into());
    }
    Ok(())
}
