//! The sink: events as messages to a topic.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Result, SinkSpec, SpecErrors, TriggerOptions, TriggerSecrets,
};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::{
    message::Message,
    session::{Access, Client, Incoming, KEEP_ALIVE, Line, MqttBrokers, Version},
};

/// How long the broker may take to answer for an event.
const ANSWER: Duration = Duration::from_secs(10);

impl MqttBrokers {
    /// The sink that a trigger declares: `url`, `topic`, `mode` (`binary`, in MQTT 5 alone and its default, or `structured`),
    /// `version`, and what says as whom, as for the source.
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
        if !topic.is_empty() && !rumqttc::valid_topic(&topic) {
            options.wrong("topic", &topic, "must be a topic, without + and #");
        }
        let five = access.version == Version::Five;
        let structured = options.word("mode", &[("binary", false), ("structured", true)], !five);
        if !structured && !five {
            options.wrong("mode", "binary", "needs `version` 5: MQTT 3.1.1 has no properties");
        }
        options.finish()?;
        let trigger = spec.trigger.clone();
        Ok(Arc::new(MqttSink { access, topic, structured, trigger, secrets, line: Mutex::default() }))
    }
}

/// Sends events to one topic, by CloudEvents' MQTT binding: the broker has an event when it is taken.
pub struct MqttSink {
    access: Access,
    topic: String,
    structured: bool,
    trigger: String,
    secrets: TriggerSecrets,
    /// Connected with the first event, anew after a failure, and when it was not used for so long that the broker ends it.
    line: Mutex<Option<(Client, Line, Instant)>>,
}

impl fmt::Debug for MqttSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MqttSink").field("topic", &self.topic).finish_non_exhaustive()
    }
}

async fn taken(line: &mut Line) -> Result<()> {
    loop {
        if matches!(line.next().await?, Incoming::Taken) {
            return Ok(());
        }
    }
}

#[async_trait]
impl EventPublisher for MqttSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let message = Message::of(&event, &self.topic, self.structured);
        let mut kept = self.line.lock().await;
        let (client, mut line) = match kept.take() {
            Some((client, line, used)) if used.elapsed() < KEEP_ALIVE => (client, line),
            _ => {
                // A name of its own for each connection: the broker ends one when another comes with its name.
                let name = format!("sas-{}-{:p}-{}", self.trigger, self, std::process::id());
                self.access.open(&name, Duration::ZERO, &self.secrets).await?
            }
        };
        client.send(message)?;
        match timeout(ANSWER, taken(&mut line)).await {
            Ok(taken) => taken?,
            Err(_) => {
                let problem = format!("topic {}: no answer within {ANSWER:?}", self.topic);
                return Err(Error::new(ErrorKind::Unavailable, "publish", problem));
            }
        }
        *kept = Some((client, line, Instant::now()));
        Ok(())
    }
}
