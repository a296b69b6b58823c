//! `platform --demo`: services of this repository and made load, so that there is something to see. The load is bounded and
//! ends with the platform.

use std::{error::Error, f64::consts::TAU, path::Path, sync::Arc, time::Duration};

use sas::{
    Platform,
    core::{Body, Event, Request},
};
use tokio::{
    sync::Semaphore,
    time::{Instant, MissedTickBehavior, interval},
};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo/services.yaml");
#[cfg(feature = "workflow")]
const WORKFLOW: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/demo/workflow.yaml");
const NAMESPACE: &str = "demo";
/// Requests that are under way at once, of all services together.
const AT_ONCE: usize = 48;
/// After so long the storefront gets another revision, to which traffic moves.
const NEXT_EDITION: Duration = Duration::from_secs(25);

/// Deploys the services, and the workflow where there are any.
pub(crate) async fn deploy(platform: &Platform) -> Result<(), Box<dyn Error>> {
    apply(platform, &read(MANIFESTS)?).await?;
    #[cfg(feature = "workflow")]
    apply(platform, &read(WORKFLOW)?).await?;
    Ok(())
}

fn read(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("--demo: {path}: {error}"))
}

async fn apply(platform: &Platform, text: &str) -> Result<(), Box<dyn Error>> {
    platform.apply(text, Path::new(MANIFESTS).parent()).await?;
    Ok(())
}

/// Calls the services for as long as it is polled: at most about 60 requests per second.
pub(crate) async fn load(platform: Arc<Platform>) {
    let (began, room) = (Instant::now(), Arc::new(Semaphore::new(AT_ONCE)));
    let mut every = interval(Duration::from_millis(50));
    every.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (mut due, mut edition, mut orders) = (0.0, 1, 0_u64);
    for tick in 0_u64.. {
        every.tick().await;
        let seconds = began.elapsed().as_secs_f64();
        // Waves of forty seconds, from a few requests per second to thirty.
        due += (16.0 + 14.0 * (seconds / 40.0 * TAU).sin()) * 0.05;
        while due >= 1.0 {
            due -= 1.0;
            call(&platform, &room, "storefront", "/products/42");
        }
        // Sixteen pictures at once, every twenty seconds.
        if tick % 400 == 40 {
            for picture in 0..16 {
                call(&platform, &room, "thumbnails", &format!("/pictures/{picture}"));
            }
        }
        // Three orders per second.
        if tick % 7 == 0 {
            orders += 1;
            if let Err(error) = order(&platform, orders).await {
                tracing::warn!(%error, "the demonstration's order was not accepted");
            }
        }
        // A run of the workflow every ten seconds; the first one waits until somebody says that its parcel was sent.
        #[cfg(feature = "workflow")]
        if tick % 200 == 60
            && let Err(error) = fulfil(&platform, tick / 200).await
        {
            tracing::warn!(%error, "the demonstration's run was not started");
        }
        if edition == 1 && began.elapsed() > NEXT_EDITION {
            edition = 2;
            let text = std::fs::read_to_string(MANIFESTS).unwrap_or_default();
            let storefront = text.split("\n---\n").next().unwrap_or_default();
            let next = storefront.replace(r#"EDITION, value: "1""#, r#"EDITION, value: "2""#);
            if let Err(error) = apply(&platform, &next).await {
                tracing::warn!(%error, "the demonstration's second edition was not deployed");
            }
        }
    }
}

async fn order(platform: &Platform, number: u64) -> Result<(), Box<dyn Error + Send + Sync>> {
    let data = serde_json::json!({"order": number, "amount": 100 + number % 900}).to_string();
    let event = Event::new(format!("order-{number}"), "/shop", "order.paid")?;
    let event = event.with_data("application/json", data)?;
    Ok(platform.control().accept_events(NAMESPACE, "shop", vec![event]).await?)
}

#[cfg(feature = "workflow")]
async fn fulfil(platform: &Platform, number: u64) -> sas::core::Result<()> {
    let input = serde_json::json!({"order": number, "amount": 100 + number % 900, "by_parcel": number == 0});
    let mut start = sas::core::RunStart::new(NAMESPACE, "fulfil", input);
    start.labels.insert("customer".to_owned(), format!("c{}", number % 5));
    platform.control().start_run(start).await.map(|_| ())
}

/// Sends one request, unless there are too many under way already.
fn call(platform: &Arc<Platform>, room: &Arc<Semaphore>, service: &'static str, path: &str) {
    let Ok(permit) = Arc::clone(room).try_acquire_owned() else { return };
    let (platform, path) = (Arc::clone(platform), path.to_owned());
    tokio::spawn(async move {
        let request = http_request(&path);
        // What fails is to be seen in the console.
        if let Ok(answer) = platform.call(NAMESPACE, service, request).await {
            let _ = answer.into_body().collect(1 << 20).await;
        }
        drop(permit);
    });
}

fn http_request(path: &str) -> Request {
    let mut request = Request::new(Body::empty());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}
