//! Many apps that are asked for at one instant, in real time.

use std::{sync::Arc, time::Duration};

use sas::Platform;
use sas_core::{Body, Error, ErrorKind, Request, Result, RevisionSpec, Source};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};

use crate::timed::Timed;

/// Asks for `apps` sleeping apps at one instant, each of which takes `start` to start and then answers at once, and
/// tells how long each answer took. In real time, on one thread, through a platform as the facade builds it by default.
///
/// # Errors
/// When a request is not answered with 200, or the pool or the router refuse an app.
///
/// # Panics
/// When no runtime can be built.
pub fn storm(apps: usize, start: Duration) -> Result<Vec<Duration>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    runtime.block_on(run(apps, start))
}

async fn run(apps: usize, start: Duration) -> Result<Vec<Duration>> {
    let built = Platform::builder().seed(1).runtime(Timed::exactly(start)).build().await;
    let platform = built.map_err(|error| Error::new(ErrorKind::InvalidSpec, "storm", error.to_string()))?;
    let platform = Arc::new(platform);
    let mut clients = JoinSet::new();
    let at_once = Arc::new(Barrier::new(apps));
    for app in 0..apps {
        let name = format!("app-{app}");
        let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
        spec.scaling.initial = 0;
        platform.deploy("default", &name, spec).await?;
        let (platform, at_once) = (Arc::clone(&platform), Arc::clone(&at_once));
        clients.spawn(async move {
            at_once.wait().await;
            let sent = Instant::now();
            let answer = platform.call("default", &name, Request::new(Body::empty())).await;
            (answer.map(|response| response.status()), sent.elapsed())
        });
    }
    let mut took = Vec::with_capacity(apps);
    while let Some(joined) = clients.join_next().await {
        let (status, time) = joined
            .map_err(|error| Error::new(ErrorKind::Unexpected, "storm", "a client").with_source(error))?;
        let status = status.map_err(|failed| failed.error)?;
        if status != http::StatusCode::OK {
            return Err(Error::new(ErrorKind::Unexpected, "storm", format!("an app answers {status}")));
        }
        took.push(time);
    }
    platform.shutdown(Duration::from_secs(1)).await;
    Ok(took)
}
