//! Events of the program that embeds the platform.

use async_trait::async_trait;
use sas_core::{Ack, Error, ErrorKind, Event, Result, TriggerCx, TriggerSource};
use tokio::sync::{Mutex, mpsc, oneshot};

type Sent = (Event, oneshot::Sender<Result<Ack>>);

/// Gives events to a [`ChannelSource`].
#[derive(Clone, Debug)]
pub struct ChannelSender(mpsc::Sender<Sent>);

/// A source of events that the program itself sends. In memory: what was not answered at a crash is lost, and whoever
/// sent it knows that it was not answered.
#[derive(Debug)]
pub struct ChannelSource {
    /// Held by the run, so that the next run goes on where it ended.
    events: Mutex<mpsc::Receiver<Sent>>,
    sender: mpsc::WeakSender<Sent>,
}

/// Both ends, with room for so many events that no slot is free for yet, at least one.
///
/// ```
/// # use std::sync::Arc;
/// # use sas_core::*;
/// # async fn example(host: Arc<sas_trigger::TriggerHost>) -> Result<(), Box<dyn std::error::Error>> {
/// let (events, source) = sas_trigger::channel(16);
/// let sink = Arc::new(host.delivery(sas_trigger::DeliveryConfig::new("default/orders", "default/billing")));
/// host.run("default/orders", Arc::new(source), sink).await?;
/// events.send(Event::new("1", "/orders", "order.paid")?).await?; // delivered when it returns
/// # Ok(())
/// # }
/// ```
pub fn channel(room: usize) -> (ChannelSender, ChannelSource) {
    let (sender, events) = mpsc::channel(room.max(1));
    let weak = sender.downgrade();
    (ChannelSender(sender), ChannelSource { events: Mutex::new(events), sender: weak })
}

impl ChannelSender {
    /// Sends an event, and returns when it was delivered, or kept as a dead letter.
    ///
    /// **Cancel safety:** the event may be delivered.
    ///
    /// # Errors
    /// `Unavailable` when nobody takes it any more, or when its delivery failed.
    pub async fn send(&self, event: Event) -> Result<Ack> {
        let gone =
            || Error::new(ErrorKind::Unavailable, "send", "the source of this channel does not run any more");
        let (answer, answered) = oneshot::channel();
        self.0.send((event, answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl TriggerSource for ChannelSource {
    fn kind(&self) -> &'static str {
        "channel"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let mut events = self.events.lock().await;
        let mut under_way = tokio::task::JoinSet::new();
        loop {
            while under_way.try_join_next().is_some() {}
            let slot = tokio::select! {
                biased;
                () = cx.shutdown.cancelled() => break,
                slot = cx.sink.ready() => slot?,
            };
            let next = tokio::select! {
                biased;
                () = cx.shutdown.cancelled() => break,
                next = events.recv() => next,
            };
            let Some((event, answer)) = next else {
                // All senders are gone: nothing will ever come.
                cx.shutdown.cancelled().await;
                break;
            };
            let sink = std::sync::Arc::clone(&cx.sink);
            under_way.spawn(async move {
                // Whoever sent it may have gone away.
                let _ = answer.send(sink.deliver(slot, event).await);
            });
        }
        let moment = tokio::time::Instant::now() + std::time::Duration::from_millis(500);
        while let Ok(Some(_)) = tokio::time::timeout_at(moment, under_way.join_next()).await {}
        Ok(())
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        let waiting = self.sender.upgrade().map(|sender| sender.max_capacity() - sender.capacity());
        Ok(waiting.map(|waiting| waiting as u64))
    }
}
