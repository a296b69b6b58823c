//! A source of events of one's own: every line of a file becomes an event for a service, which wakes for it.
//!
//! A source takes room before it pulls, and acknowledges upstream (here: remembers how far it has read) only after the
//! event was delivered.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use sas::{
    core::{Event, Result, TriggerCx, TriggerSource},
    prelude::*,
    trigger::DeliveryConfig,
};

#[derive(Debug)]
struct Lines {
    path: PathBuf,
}

#[async_trait::async_trait]
impl TriggerSource for Lines {
    fn kind(&self) -> &'static str {
        "lines"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let key = format!("trigger/{}/line", cx.name);
        let read = tokio::fs::read_to_string(&self.path).await;
        let text = read.map_err(|e| {
            Error::new(ErrorKind::Unavailable, "run", format!("{}: {e}", self.path.display()))
        })?;
        let stored = cx.store.get(&key).await?;
        let done = stored
            .as_ref()
            .and_then(|s| std::str::from_utf8(&s.value).ok()?.parse::<usize>().ok())
            .unwrap_or(0);
        let mut version = stored.map(|entry| entry.version);
        for (at, line) in text.lines().enumerate().skip(done) {
            if cx.shutdown.is_cancelled() {
                break;
            }
            let room = cx.sink.ready().await?;
            let event = Event::new(at.to_string(), format!("/lines/{}", cx.name), "com.example.line")
                .and_then(|event| event.with_data("text/plain", line.to_owned()))
                .map_err(|e| Error::new(ErrorKind::InvalidSpec, "run", e.to_string()))?
                .with_time(cx.clock.now());
            cx.sink.deliver(room, event).await?;
            version = Some(cx.store.put(&key, version, Bytes::from((at + 1).to_string())).await?);
        }
        // A source whose run ends is started again; this one has read its file and only waits for the end.
        cx.shutdown.cancelled().await;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
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
