//! A runtime of one's own: filters, functions from bytes to bytes that are known by name.
//!
//! A runtime needs `prepare`, `start` and `quiesce`; its instances need `stop`, and a target: an endpoint or a call.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::time::Duration;

use sas::prelude::*;

/// The runtime, of the crate in which the suite of `sas-testkit` proves it.
#[path = "../tests/adopter/src/runtime.rs"]
#[allow(unreachable_pub, missing_docs, reason = "a library's code, which this program takes in whole")]
mod runtime;

use runtime::FilterRuntime;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let filters = FilterRuntime::default().with("reverse", |body| body.iter().rev().copied().collect());
    let platform = Platform::builder().runtime(filters).build().await?;
    let spec = RevisionSpec::new("filter", Source::Function("reverse".to_owned()));
    platform.deploy("default", "reverse", spec).await?;
    let request = http::Request::post("/").body(Body::from("!dlrow ,olleh"))?;
    let answer = platform.call("default", "reverse", request).await?;
    let text = answer.into_body().collect(1 << 20).await.map_err(|error| error.to_string())?;
    println!("{}", String::from_utf8_lossy(&text));
    if text != "hello, world!" {
        return Err(format!("the answer is {text:?} and not the request reversed").into());
    }
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
