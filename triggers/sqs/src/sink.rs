//! The sink: events as messages of a queue.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use sas_core::{
    Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions, TriggerSecrets,
};

use crate::{
    access::{Access, SqsServers},
    message::sent,
    queue::Queue,
};

impl SqsServers {
    /// The sink that a trigger declares: `url`, `region`, `credentials-secret` and `ca-secret` as for the source.
    ///
    /// # Errors
    /// All mistakes in the options.
    pub fn sink(
        &self,
        spec: &SinkSpec,
        secrets: TriggerSecrets,
    ) -> Result<Arc<dyn EventPublisher>, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, spec.place);
        let access = Access::read(&mut options, &self.hosts);
        options.finish()?;
        Ok(Arc::new(SqsSink { access, secrets, connection: Reconnecting::default() }))
    }
}

/// Sends events to one queue, each a CloudEvent in JSON: the service has stored one that is taken. Of a FIFO queue the attribute
/// `partitionkey`, or else the source, is the group, and one that is sent again within five minutes is kept once.
pub struct SqsSink {
    access: Access,
    secrets: TriggerSecrets,
    connection: Reconnecting<Queue>,
}

impl fmt::Debug for SqsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsSink").field("url", &self.access.url).finish_non_exhaustive()
    }
}

#[async_trait]
impl EventPublisher for SqsSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let queue = self.connection.get(async || Queue::connect(&self.access, &self.secrets).await).await?;
        let taken = queue.send(sent(&event, self.access.is_fifo())).await;
        if taken.is_err() {
            // The next has the credentials as they are then.
            self.connection.failed(&queue).await;
        }
        taken
    }
}
