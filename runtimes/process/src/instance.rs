//! A running process as the platform sees it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rustix::process::Signal;
use sas_core::{Endpoint, Error, ErrorKind, ExecOutput, Instance, InstanceId, InstanceTarget, Result, Usage};

use crate::{beside::Beside, engine::Proc};

/// An instance of a code package.
#[derive(Debug)]
pub(crate) struct ProcessInstance {
    id: InstanceId,
    endpoint: Endpoint,
    proc: Arc<Proc>,
    beside: Beside,
}

impl ProcessInstance {
    pub(crate) fn new(id: InstanceId, endpoint: Endpoint, proc: Arc<Proc>, beside: Beside) -> Self {
        Self { id, endpoint, proc, beside }
    }
}

/// After SIGKILL a process is gone at once, unless the kernel holds it (a dead disk); nobody waits for that forever.
const AFTER_FORCE: Duration = Duration::from_secs(10);

#[async_trait]
impl Instance for ProcessInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.endpoint)
    }

    async fn exec(&self, command: &[String]) -> Result<ExecOutput> {
        if self.proc.exit().is_some() {
            return Err(Error::new(ErrorKind::Crashed, "exec", "the instance is gone"));
        }
        self.beside.run(command).await
    }

    fn usage(&self) -> Option<Usage> {
        self.proc.usage()
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        self.beside.engine.stop(&self.proc, grace);
        let limit = grace.saturating_add(AFTER_FORCE);
        match tokio::time::timeout(limit, self.proc.exited()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::Unexpected,
                "stop",
                format!("process {} is still there {limit:?} after it was killed", self.proc.pid()),
            )),
        }
    }

    async fn suspend(&self) -> Result<()> {
        self.proc.signal(Signal::STOP)
    }

    async fn resume(&self) -> Result<()> {
        self.proc.signal(Signal::CONT)
    }
}

impl Drop for ProcessInstance {
    fn drop(&mut self) {
        self.beside.engine.stop(&self.proc, Duration::ZERO);
    }
}
