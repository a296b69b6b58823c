//! The sink: events as records of a topic.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use krafka::{
    CloseOptions, Record,
    error::{ErrorCode, KrafkaError},
    producer::{Acks, Producer},
};
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};

use crate::{
    access::{Access, KafkaBrokers, failed},
    record::encoded,
};

/// How long a record is tried before the delivery tries it again by itself.
const TRIED: Duration = Duration::from_secs(15);
/// How long a connection that failed is given to end.
const CLOSING: Duration = Duration::from_secs(1);

impl KafkaBrokers {
    /// The sink that a trigger declares: `brokers`, `topic`, `mode` (`binary` by default, or `structured`), and what says as
    /// whom, as for the source.
    ///
    /// # Errors
    /// All mistakes in the options.
    pub fn sink(
        &self,
        spec: &SinkSpec,
        secrets: TriggerSecrets,
    ) -> Result<Arc<dyn EventPublisher>, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, spec.place);
        let access = Access::read(&mut options, &self.allowed);
        let topic = options.required("topic").to_owned();
        let structured = options.word("mode", &[("binary", false), ("structured", true)], false);
        options.finish()?;
        Ok(Arc::new(KafkaSink { access, topic, structured, secrets, producer: Reconnecting::default() }))
    }
}

/// Writes events to one topic, by CloudEvents' Kafka binding: all replicas in sync have an event when it is taken. An
/// event's `partitionkey` is the record's key, so that events of a key stand in one partition in their order.
pub struct KafkaSink {
    access: Access,
    topic: String,
    structured: bool,
    secrets: TriggerSecrets,
    producer: Reconnecting<Producer>,
}

impl fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KafkaSink").field("topic", &self.topic).finish_non_exhaustive()
    }
}

impl KafkaSink {
    async fn connect(&self) -> Result<Producer> {
        let client = self.access.connect(&self.secrets).await?;
        let building = client
            .producer()
            .acks(Acks::All)
            .idempotent(true)
            .delivery_timeout(TRIED)
            .max_block(TRIED)
            .metrics_push(false);
        building.build().await.map_err(failed("a producer"))
    }

    /// The next event is sent by another connection.
    async fn give_up(&self, producer: &Arc<Producer>) {
        if !self.producer.failed(producer).await {
            return;
        }
        if let Err(error) = producer.close_with(CloseOptions::new().timeout(CLOSING)).await {
            tracing::debug!(%error, topic = self.topic, "a connection that failed is left");
        }
    }
}

/// Whether the broker said that it never takes this record.
fn never(error: &KrafkaError) -> bool {
    matches!(
        error,
        KrafkaError::Serialization { .. }
            | KrafkaError::Broker {
                code: ErrorCode::MessageTooLarge | ErrorCode::RecordListTooLarge | ErrorCode::InvalidRecord,
                ..
            }
    )
}

#[async_trait]
impl EventPublisher for KafkaSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let producer = self.producer.get(async || self.connect().await).await?;
        let encoded = encoded(&event, self.structured);
        let mut record = Record::new(&self.topic, encoded.value);
        if let Some(key) = encoded.key {
            record = record.key(key);
        }
        for (name, value) in encoded.headers {
            record = record.header(name, value);
        }
        match producer.send(record).await {
            Ok(_) => Ok(()),
            Err(error) if never(&error) => {
                let message = format!("topic {}: {error}", self.topic);
                Err(Error::new(ErrorKind::InvalidSpec, "publish", message))
            }
            Err(error) => {
                self.give_up(&producer).await;
                Err(failed(&format!("topic {}", self.topic))(error))
            }
        }
    }
}
