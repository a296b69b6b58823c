use sas::{http, prelude::*};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let functions = InlineRuntime::new()
        .with("hello", |_request: Request, _cx| async { Response::new(Body::from("hello")) });
    let platform = Platform::builder().runtime(functions).build().await?;

    let spec = RevisionSpec::new("inline", Source::Function("hello".to_owned()));
    platform.deploy("default", "hello", spec).await?;
    let answer = platform.call("default", "hello", http::Request::get("/").body(Body::empty())?).await?;
    assert_eq!(answer.status(), 200); // the service was asleep: the call woke it

    platform.shutdown(std::time::Duration::from_secs(5)).await;
    Ok(())
}
