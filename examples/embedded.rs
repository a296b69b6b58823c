//! A platform without any listener: the host calls it as a library.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::time::Duration;

use sas::prelude::*;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let functions = InlineRuntime::new().with("shout", |request: Request, _cx| async move {
        let text = request.into_body().collect(64 * 1024).await?;
        Ok::<_, sas::core::BoxError>(Response::new(Body::from(String::from_utf8_lossy(&text).to_uppercase())))
    });
    let platform = Platform::builder().runtime(functions).build().await?;
    let spec = RevisionSpec::new("inline", Source::Function("shout".to_owned()));
    platform.deploy("default", "shout", spec).await?;

    let request = http::Request::post("/").body(Body::from("wake up"))?;
    let answer = platform.call("default", "shout", request).await?;
    println!(
        "{}: {}",
        answer.status(),
        String::from_utf8_lossy(&answer.into_body().collect(1024).await.map_err(|e| e.to_string())?)
    );

    let report = platform.shutdown(Duration::from_secs(5)).await;
    println!("drained: {}", report.drained);
    Ok(())
}
