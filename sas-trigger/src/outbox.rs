//! Events for the program that embeds the platform.

use async_trait::async_trait;
use sas_core::{Error, ErrorKind, Event, EventPublisher, Result};
use tokio::sync::mpsc;

/// An [`EventPublisher`] into this process: whoever holds the [`Inbox`] takes the events and passes them on, to a broker or
/// a webhook of the host's. It holds a bounded number of events; publishing waits while it is full.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use sas_core::{Event, EventPublisher};
///
/// let (outbox, mut inbox) = sas_trigger::outbox(16);
/// outbox.publish(Event::new("1", "/orders", "order.paid")?).await?;
/// assert_eq!(inbox.next().await.map(|event| event.kind().to_owned()).as_deref(), Some("order.paid"));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Outbox(mpsc::Sender<Event>);

/// The other end of an [`Outbox`].
#[derive(Debug)]
pub struct Inbox(mpsc::Receiver<Event>);

/// Both ends, with room for so many events, at least one.
pub fn outbox(room: usize) -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(room.max(1));
    (Outbox(sender), Inbox(receiver))
}

impl Inbox {
    /// The next event, in the order in which they were published; `None` when no [`Outbox`] is left.
    ///
    /// **Cancel safety:** dropping the future takes none.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await
    }
}

#[async_trait]
impl EventPublisher for Outbox {
    async fn publish(&self, event: Event) -> Result<()> {
        self.0.send(event).await.map_err(|_| {
            Error::new(ErrorKind::Unavailable, "publish", "nobody takes events from this platform any more")
        })
    }
}
