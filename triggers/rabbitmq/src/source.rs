//! The source: a consumer of a queue.

use std::{
    collections::VecDeque,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use lapin::{
    Acker, Channel, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, EventSink, Result, Slot, SpecErrors, TriggerCx, TriggerOptions,
    TriggerSource, TriggerSpec,
};
use tokio::time::timeout;

use crate::{
    access::{Access, Line, RabbitServers, answer, failed},
    message::event,
};

/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);
impl RabbitServers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<RabbitQueue, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.hosts);
        let queue = options.required("queue");
        if queue.len() > 255 {
            options.wrong("queue", queue, "must be at most 255 bytes long");
        }
        let prefetch = options.number("prefetch", 1..=u64::from(u16::MAX), 100);
        options.finish()?;
        Ok(RabbitQueue {
            access,
            queue: queue.to_owned(),
            prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX),
            connected: Connected::default(),
        })
    }
}

/// The messages of one queue as events.
pub struct RabbitQueue {
    access: Access,
    queue: String,
    prefetch: u16,
    connected: Connected<Link>,
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitQueue")
            .field("server", &self.access.server)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// A connection, and how many messages the broker has given to it that are not acknowledged.
struct Link {
    line: Line,
    unacknowledged: Arc<AtomicU64>,
}

/// A message that the broker has given to this host. Counted until it is dropped.
struct Taken {
    delivery: Delivery,
    counter: Counted,
}

struct Counted(Arc<AtomicU64>);

impl Counted {
    fn new(counter: &Arc<AtomicU64>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Delivers a message and acknowledges it, or gives it back.
async fn deliver(
    sink: Arc<dyn EventSink>,
    slot: Slot,
    event: sas_core::Event,
    acker: Acker,
    counter: Counted,
) -> Result<()> {
    let delivered = sink.deliver(slot, event).await;
    let settled = match &delivered {
        Ok(_) => acker.ack(BasicAckOptions::default()).await.map_err(failed("acknowledging")),
        // It may come again at once, here or at another host; the platform makes this one wait.
        Err(_) => acker
            .nack(BasicNackOptions { requeue: true, multiple: false })
            .await
            .map_err(failed("giving back")),
    };
    drop(counter);
    delivered?;
    settled.map(drop)
}

impl RabbitQueue {
    fn queue(&self) -> ShortString {
        // The declaration bounds its length.
        ShortString::try_new(self.queue.as_str()).unwrap_or_default()
    }

    /// The queue as it is: it must exist, and is not made.
    async fn ready_messages(&self, channel: &Channel) -> Result<u64> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(self.queue(), passive, FieldTable::default());
        let queue = answer(&format!("queue {}", self.queue), declared).await?;
        Ok(queue.message_count().into())
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let setup = async {
            let line = self.access.connect("sas", &cx.secrets).await?;
            let channel = answer("a channel", line.connection().create_channel()).await?;
            self.ready_messages(&channel).await?;
            let qos = channel.basic_qos(self.prefetch, BasicQosOptions::default());
            answer("prefetch", qos).await?;
            let consuming = channel.basic_consume(
                self.queue(),
                ShortString::default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consumer = answer(&format!("consuming from {}", self.queue), consuming).await?;
            Ok::<_, Error>((line, channel, consumer))
        };
        let (line, _channel, consumer) = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => return Ok(()),
            ready = setup => ready?,
        };
        let unacknowledged = Arc::default();
        let link = Link { line, unacknowledged: Arc::clone(&unacknowledged) };
        let _connected = self.connected.begin(Arc::new(link));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            pulled = self.pull(cx, consumer, &unacknowledged, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        mut consumer: Consumer,
        unacknowledged: &Arc<AtomicU64>,
        deliveries: &mut Deliveries,
    ) -> Result<()> {
        let gone = || {
            let message = format!("{} has ended the consumer of queue {}", self.access.server, self.queue);
            Error::new(ErrorKind::Unavailable, "rabbitmq", message)
        };
        // Messages without a name get one that no other run gives.
        let mut run = [0_u8; 8];
        getrandom::fill(&mut run)
            .map_err(|error| Error::new(ErrorKind::Unavailable, "rabbitmq", error.to_string()))?;
        let run = u64::from_le_bytes(run);
        // What the broker gave, of which there are `prefetch` at most, and no room was for yet.
        let mut waiting: VecDeque<Taken> = VecDeque::new();
        loop {
            // The broker gives without being asked: what it gave is taken in and counted, whether there is room or not.
            let next = async {
                let room = async {
                    match waiting.is_empty() {
                        true => std::future::pending().await,
                        false => cx.sink.ready().await,
                    }
                };
                match select(consumer.next(), pin!(room)).await {
                    Either::Left((delivery, _)) => {
                        Ok::<_, Error>((None, Some(delivery.ok_or_else(gone)?.map_err(failed("consuming"))?)))
                    }
                    Either::Right((slot, _)) => Ok((Some(slot?), None)),
                }
            };
            let (slot, delivery) = deliveries.meanwhile(next).await??;
            if let Some(delivery) = delivery {
                waiting.push_back(Taken { delivery, counter: Counted::new(unacknowledged) });
            }
            if let Some(slot) = slot
                && let Some(Taken { delivery, counter }) = waiting.pop_front()
            {
                let event = event(&delivery, &self.queue, &format!("{run:016x}-{}", delivery.delivery_tag))?;
                deliveries.begin(deliver(Arc::clone(&cx.sink), slot, event, delivery.acker, counter));
            }
        }
    }
}

#[async_trait]
impl TriggerSource for RabbitQueue {
    fn kind(&self) -> &'static str {
        "rabbitmq-queue"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// The messages that are ready in the queue, as the broker counts them, and those that it has given to this host.
    async fn backlog(&self) -> Result<Option<u64>> {
        let Some(link) = self.connected.get(&self.access.server)? else { return Ok(None) };
        let channel = answer("a channel", link.line.connection().create_channel()).await?;
        let ready = self.ready_messages(&channel).await?;
        Ok(Some(ready.saturating_add(link.unacknowledged.load(Ordering::Relaxed))))
    }
}
