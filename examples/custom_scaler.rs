//! A scaling policy of one's own: one instance for every five requests at once, and a spare while there is any load.
//!
//! A policy is pure: state and input give the decision. The driver applies the spec's bounds and the rules of scaling
//! to zero, and records every decision.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{sync::Arc, time::Duration};

use sas::prelude::*;

/// The policy, of the crate in which the suite of `sas-testkit` proves it.
#[path = "../tests/adopter/src/scaler.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a library's code, which this program takes in whole")]
mod scaler;

use scaler::OneSpare;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let runtime = InlineRuntime::new().with("slow", |_request: Request, _cx| async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Response::new(Body::from("done"))
    });
    let platform = Platform::builder().runtime(runtime).scaler(OneSpare).build().await?;
    let mut spec = RevisionSpec::new("inline", Source::Function("slow".to_owned()));
    spec.concurrency = 5;
    spec.scaling.scaler = "one-spare".to_owned();
    platform.deploy("default", "slow", spec).await?;

    let platform = Arc::new(platform);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let platform = Arc::clone(&platform);
        calls.spawn(async move {
            for _ in 0..60 {
                let request = http::Request::get("/").body(Body::empty()).expect("a valid request");
                platform.call("default", "slow", request).await.expect("an answer");
            }
        });
    }
    calls.join_all().await;
    let revision =
        platform.control().revision_key("default", "slow", "slow-00001").ok_or("the revision is there")?;
    for record in platform.driver().history(revision) {
        println!(
            "load {:6.2} -> {:?} ({:?})",
            record.load.concurrency, record.decision.verdict, record.decision.reason
        );
    }
    Arc::into_inner(platform).ok_or("all calls have ended")?.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
