//! A running instance as the platform sees it.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use kube::api::AttachParams;
use sas_core::{
    Endpoint, Error, ErrorKind, ExecOutput, Instance, InstanceId, InstanceTarget, Result, StartRequest, Usage,
};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::{board::Slot, engine::Engine, failure::failure, pod};

/// How long after its grace a Pod may take to go: the cluster looks at its containers once a second, and takes their
/// network and volumes apart.
const AFTER_GRACE: Duration = Duration::from_secs(30);

/// An instance in a Pod of its own.
pub(crate) struct PodInstance {
    id: InstanceId,
    endpoint: Endpoint,
    engine: Arc<Engine>,
    slot: Arc<Slot>,
}

impl PodInstance {
    pub(crate) fn new(
        engine: &Arc<Engine>,
        request: &StartRequest,
        endpoint: Endpoint,
        slot: &Arc<Slot>,
    ) -> Arc<Self> {
        Arc::new(Self { id: request.id, endpoint, engine: Arc::clone(engine), slot: Arc::clone(slot) })
    }
}

impl fmt::Debug for PodInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodInstance")
            .field("id", &self.id)
            .field("endpoint", &self.endpoint)
            .field("pod", &self.slot.name)
            .finish_non_exhaustive()
    }
}

/// Reads a stream to its end. What it began with is kept.
async fn beginning(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else { return kept };
    let mut piece = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut piece).await {
        let room = ExecOutput::MOST.saturating_sub(kept.len());
        kept.extend_from_slice(&piece[..read.min(room)]);
    }
    kept
}

/// Runs a command in the container that takes the requests. The cluster ends no command whose caller goes away: one that is
/// dropped loses its streams, and runs on until it writes or the container ends.
pub(crate) async fn exec(engine: &Engine, slot: &Slot, command: &[String]) -> Result<ExecOutput> {
    if command.is_empty() {
        return Err(Error::new(ErrorKind::InvalidSpec, "exec", "command: name a program"));
    }
    if slot.has_ended() {
        return Err(Error::new(ErrorKind::Crashed, "exec", "the instance is gone"));
    }
    let params = AttachParams::default().container(pod::MAIN).stdout(true).stderr(true).stdin(false);
    let mut process = engine
        .cluster
        .pods()
        .exec(&slot.name, command.to_vec(), &params)
        .await
        .map_err(|error| failure("exec", error))?;
    let status = process.take_status();
    // Both at once: the command waits for a reader of either.
    let (mut output, errors) = tokio::join!(beginning(process.stdout()), beginning(process.stderr()));
    output.extend(errors);
    let status = match status {
        Some(status) => status.await,
        None => None,
    };
    let Some(status) = status else {
        return Err(Error::new(
            ErrorKind::Unavailable,
            "exec",
            "the cluster does not say how the command ended",
        ));
    };
    if status.status.as_deref() == Some("Success") {
        return Ok(ExecOutput::new(Some(0), output));
    }
    let causes = status.details.iter().filter_map(|details| details.causes.as_ref()).flatten();
    let code = causes
        .filter(|cause| cause.reason.as_deref() == Some("ExitCode"))
        .find_map(|cause| cause.message.as_ref()?.parse().ok());
    match code {
        Some(code) => Ok(ExecOutput::new(Some(code), output)),
        None if slot.has_ended() => Err(Error::new(ErrorKind::Crashed, "exec", "the instance is gone")),
        None => Err(Error::new(ErrorKind::NotFound, "exec", status.message.unwrap_or_default())),
    }
}

#[async_trait]
impl Instance for PodInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.endpoint)
    }

    async fn exec(&self, command: &[String]) -> Result<ExecOutput> {
        exec(&self.engine, &self.slot, command).await
    }

    fn usage(&self) -> Option<Usage> {
        self.engine.usages.as_ref()?.of(&self.slot.name)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let seconds = pod::grace_seconds(grace);
        // Goes on without this future.
        self.engine.remove(&self.slot, seconds);
        let most = Duration::from_secs(seconds.into()) + AFTER_GRACE;
        tokio::time::timeout(most, self.slot.ended()).await.map_err(|_| {
            let what = format!("pod {} has not ended {AFTER_GRACE:?} after its grace", self.slot.name);
            Error::new(ErrorKind::Unexpected, "stop", what)
        })
    }
}

impl Drop for PodInstance {
    fn drop(&mut self) {
        self.engine.remove(&self.slot, 1);
    }
}
