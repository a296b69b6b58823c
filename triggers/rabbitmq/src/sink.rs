//! The sink: events as messages of an exchange.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::ShortString,
};
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};

use crate::{
    access::{Access, Line, RabbitServers, answer},
    message::{body, properties},
};

/// AMQP's mark of a message that outlives the broker.
const PERSISTENT: u8 = 2;

impl RabbitServers {
    /// The sink that a trigger declares: `queue`, or `exchange` and `routing-key`; `mode` (`binary` by default, or
    /// `structured`); and `url` with what says as whom, as for the source.
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
        let (queue, exchange) = (options.reference("queue"), options.reference("exchange"));
        let key = options.reference("routing-key");
        let (exchange, key) = match (queue, exchange, key) {
            // The default exchange routes by the name of the queue.
            (Some(queue), None, None) => (String::new(), queue),
            (None, Some(exchange), key) => (exchange, key.unwrap_or_default()),
            _ => {
                let problem = "a `queue`, or an `exchange` with a `routing-key` where it has one: one of the two is needed";
                options.wrong("queue", "", problem);
                Default::default()
            }
        };
        let mut name = |option: &str, text: &str| {
            ShortString::try_new(text).unwrap_or_else(|_| {
                options.wrong(option, text, "must be at most 255 bytes long");
                ShortString::default()
            })
        };
        let place = (name("exchange", &exchange), name("routing-key", &key));
        let structured = options.word("mode", &[("binary", false), ("structured", true)], false);
        options.finish()?;
        let name = format!("sas {}", spec.trigger);
        let shown = if exchange.is_empty() { format!("queue {key}") } else { format!("exchange {exchange}") };
        Ok(Arc::new(RabbitSink {
            access,
            name,
            place,
            shown,
            structured,
            secrets,
            connection: Reconnecting::default(),
        }))
    }
}

/// A connection, and the channel that confirms.
struct Link {
    channel: Channel,
    _line: Line,
}

/// Sends events to one exchange, persistent and with the broker's confirmation: all queues that it goes to have an event when
/// it is taken, and one that goes to none is an error.
pub struct RabbitSink {
    access: Access,
    name: String,
    /// The exchange and the routing key.
    place: (ShortString, ShortString),
    shown: String,
    structured: bool,
    secrets: TriggerSecrets,
    connection: Reconnecting<Link>,
}

impl fmt::Debug for RabbitSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitSink").field("to", &self.shown).finish_non_exhaustive()
    }
}

impl RabbitSink {
    async fn connect(&self) -> Result<Link> {
        let line = self.access.connect(&self.name, &self.secrets).await?;
        let channel = answer("a channel", line.connection().create_channel()).await?;
        answer("confirmations", channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Link { channel, _line: line })
    }
}

#[async_trait]
impl EventPublisher for RabbitSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let link = self.connection.get(async || self.connect().await).await?;
        let properties: BasicProperties = properties(&event, self.structured).with_delivery_mode(PERSISTENT);
        let body = body(&event, self.structured);
        let sent = async {
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let (exchange, key) = self.place.clone();
            link.channel.basic_publish(exchange, key, options, &body, properties).await?.await
        };
        let problem = match answer(&self.shown, sent).await {
            Ok(Confirmation::Ack(None)) => return Ok(()),
            Ok(Confirmation::Ack(Some(returned))) => {
                format!("it goes to no queue: {} ({})", returned.reply_text, returned.reply_code)
            }
            Ok(Confirmation::Nack(_)) => "the broker refuses the event".to_owned(),
            Ok(Confirmation::NotRequested) => "the channel confirms nothing".to_owned(),
            Err(error) => {
                self.connection.failed(&link).await;
                return Err(error);
            }
        };
        Err(Error::new(ErrorKind::Unavailable, "publish", format!("{}: {problem}", self.shown)))
    }
}
