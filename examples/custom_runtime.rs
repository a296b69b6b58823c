//! A runtime of one's own: here, "functions" that are files served from memory, one per revision.
//!
//! A runtime needs `prepare` and `start`; its instances need `stop` and one of `endpoint` and `call`. Prove yours with
//! `sas_testkit::runtime::suite`.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{sync::Arc, time::Duration};

use sas::{
    core::{
        Answer, Artifact, ArtifactInfo, Call, CallError, Capabilities, Clock, ExitReport, Instance,
        InstanceEvents, InstanceId, InstanceTarget, Isolation, Result, Runtime, StartRequest, SystemClock,
    },
    prelude::*,
};

/// Serves the file that a revision names.
#[derive(Debug)]
struct FileRuntime;

#[async_trait::async_trait]
impl Runtime for FileRuntime {
    fn name(&self) -> &'static str {
        "file"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let Source::Path(path) = &spec.source else {
            return Err(Error::new(ErrorKind::InvalidSpec, "prepare", "source: name a file by its path"));
        };
        let content = tokio::fs::read_to_string(path).await.map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "prepare", format!("source: {}: {error}", path.display()))
        })?;
        Ok(Artifact::new(content, ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let Some(content) = request.deployed.artifact.downcast::<String>() else {
            return Err(Error::new(ErrorKind::InvalidSpec, "start", "the artifact is of another runtime"));
        };
        Ok(Arc::new(FileInstance {
            id: request.id,
            content: content.clone(),
            events: std::sync::Mutex::new(Some(request.events)),
        }))
    }

    async fn quiesce(&self) {}
}

#[derive(Debug)]
struct FileInstance {
    id: InstanceId,
    content: String,
    /// Taken by the first stop, so that the exit is told once.
    events: std::sync::Mutex<Option<Arc<dyn InstanceEvents>>>,
}

#[async_trait::async_trait]
impl Call for FileInstance {
    async fn call(&self, _request: Request, _cx: &Cx) -> Result<Answer, CallError> {
        Ok(Answer::Http(Response::new(Body::from(self.content.clone()))))
    }
}

#[async_trait::async_trait]
impl Instance for FileInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, _grace: Duration) -> Result<()> {
        let events = self.events.lock().expect("nothing panics under this lock").take();
        if let Some(events) = events {
            events.exited(self.id, ExitReport::at(SystemClock.now()));
        }
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let platform = Platform::builder().runtime(FileRuntime).build().await?;
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/README.md");
    platform.deploy("default", "readme", RevisionSpec::new("file", Source::Path(here))).await?;
    let answer = platform.call("default", "readme", http::Request::get("/").body(Body::empty())?).await?;
    let text = answer.into_body().collect(1 << 20).await.map_err(|error| error.to_string())?;
    println!("{}", String::from_utf8_lossy(&text).lines().next().unwrap_or_default());
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
