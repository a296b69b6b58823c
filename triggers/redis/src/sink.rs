//! The sink: events as entries of a stream.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use redis::{aio::MultiplexedConnection, cmd};
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};

use crate::access::{Access, RedisServers, failed};

impl RedisServers {
    /// The sink that a trigger declares: `stream`; `max-length`, about how many entries the stream keeps, all by default;
    /// and `url` with what says as whom, as for the source.
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
        let stream = options.required("stream").to_owned();
        let most = options.has("max-length").then(|| options.number("max-length", 1..=u64::MAX, 1));
        options.finish()?;
        Ok(Arc::new(RedisSink { access, stream, most, secrets, connection: Reconnecting::default() }))
    }
}

/// Appends events to one stream, each as a CloudEvent in JSON in the field `cloudevent`: the server has answered for an event
/// when it is taken. How durable that is says its `appendfsync`.
pub struct RedisSink {
    access: Access,
    stream: String,
    most: Option<u64>,
    secrets: TriggerSecrets,
    connection: Reconnecting<MultiplexedConnection>,
}

impl fmt::Debug for RedisSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSink").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[async_trait]
impl EventPublisher for RedisSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let connection = self.connection.get(async || self.access.connect(&self.secrets).await).await?;
        let mut add = cmd("XADD");
        add.arg(&self.stream);
        if let Some(most) = self.most {
            add.arg("MAXLEN").arg("~").arg(most);
        }
        add.arg("*").arg("cloudevent").arg(sas_cloudevents::to_json(&event));
        match add.query_async::<()>(&mut MultiplexedConnection::clone(&connection)).await {
            Ok(()) => Ok(()),
            // Something else stands at that name: that does not mend by itself.
            Err(error) if error.code() == Some("WRONGTYPE") => {
                let message = format!("stream {}: {error}", self.stream);
                Err(Error::new(ErrorKind::InvalidSpec, "publish", message))
            }
            Err(error) => {
                self.connection.failed(&connection).await;
                Err(failed(&format!("stream {}", self.stream))(error))
            }
        }
    }
}
