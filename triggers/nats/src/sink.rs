//! The sink: events as messages of a subject that a stream has.

use std::{fmt, sync::Arc};

use async_nats::{
    jetstream::{self, context::PublishErrorKind},
    subject::ToSubject as _,
};
use async_trait::async_trait;
use sas_core::{
    Error, ErrorKind, Event, EventPublisher, Reconnecting, Result, SinkSpec, SpecErrors, TriggerOptions,
    TriggerSecrets,
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{ANSWER, Access, NatsServers, failed},
    message::message,
};

impl NatsServers {
    /// The sink that a trigger declares: `subject`, which a stream must have; `mode` (`binary` by default, or `structured`);
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
        let subject = options.required("subject").to_owned();
        let tokens = || subject.split('.');
        if !subject.is_empty()
            && tokens().any(|token| {
                token.is_empty() || token.contains(['*', '>']) || token.contains(char::is_whitespace)
            })
        {
            options.wrong("subject", &subject, "must be a subject such as orders.paid, without * and >");
        }
        let structured = options.word("mode", &[("binary", false), ("structured", true)], false);
        options.finish()?;
        let name = format!("sas {}", spec.trigger);
        Ok(Arc::new(NatsSink {
            access,
            name,
            subject,
            structured,
            secrets,
            connection: Reconnecting::default(),
        }))
    }
}

/// A connection, and whether it broke.
struct Link {
    context: jetstream::Context,
    lost: CancellationToken,
}

/// Publishes events to one subject, by CloudEvents' NATS binding: the stream has stored an event when it is taken. An event
/// that is published again within the stream's `duplicate_window` is stored once, by `Nats-Msg-Id`.
pub struct NatsSink {
    access: Access,
    name: String,
    subject: String,
    structured: bool,
    secrets: TriggerSecrets,
    connection: Reconnecting<Link>,
}

impl fmt::Debug for NatsSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NatsSink").field("subject", &self.subject).finish_non_exhaustive()
    }
}

impl NatsSink {
    async fn connect(&self) -> Result<Link> {
        let lost = CancellationToken::new();
        let client = self.access.connect(&self.name, &self.secrets, &lost).await?;
        let mut context = jetstream::new(client);
        context.set_timeout(ANSWER);
        Ok(Link { context, lost })
    }
}

#[async_trait]
impl EventPublisher for NatsSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let link = self.connection.get(async || self.connect().await).await?;
        let (headers, body) = message(&event, self.structured)?;
        let stored = async {
            link.context.publish_with_headers(self.subject.to_subject(), headers, body).await?.await
        };
        let stored = tokio::select! {
            biased;
            stored = stored => stored,
            // Else the client would wait for the answer that the broken connection does not bring.
            () = link.lost.cancelled() => Err(PublishErrorKind::BrokenPipe.into()),
        };
        match stored {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == PublishErrorKind::StreamNotFound => {
                let message = format!("no stream has subject {}: {error}", self.subject);
                Err(Error::new(ErrorKind::Unavailable, "publish", message))
            }
            Err(error) => {
                self.connection.failed(&link).await;
                Err(failed(&format!("subject {}", self.subject))(error))
            }
        }
    }
}
