//! The source: messages of a queue, hidden from others while they are delivered.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Ack, Connected, Deliveries, Event, EventSink, Result, Slot, SpecErrors, TriggerCx, TriggerOptions,
    TriggerSource, TriggerSpec, with_renewal,
};
use tokio::time::timeout;

use crate::{
    access::{Access, SqsServers},
    queue::{Message, Queue},
};

/// Messages that one request gets at most: the service's bound.
const TAKEN: usize = 10;
/// How long a request for many, or beside deliveries, waits at the server.
const EAGER: Duration = Duration::from_secs(1);
/// How long a request waits at the server for a message: the service's bound.
const WAIT: Duration = Duration::from_secs(20);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);
/// How long the service hides a message at most.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

impl SqsServers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<SqsQueue, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.hosts);
        let hidden = options.span("visibility-timeout", LONGEST, Duration::from_secs(30));
        if hidden < Duration::from_secs(2) || hidden.subsec_nanos() != 0 {
            let problem = "must be whole seconds from 2s to 12h";
            options.wrong("visibility-timeout", &format!("{hidden:?}"), problem);
        }
        options.finish()?;
        Ok(SqsQueue { access, hidden, connected: Connected::default() })
    }
}

/// The messages of one queue as events.
pub struct SqsQueue {
    access: Access,
    hidden: Duration,
    connected: Connected<Queue>,
}

impl fmt::Debug for SqsQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqsQueue").field("url", &self.access.url).finish_non_exhaustive()
    }
}

/// A message that there is room for.
struct Taken {
    slot: Slot,
    receipt: String,
    events: Vec<Event>,
}

impl SqsQueue {
    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let queue = Arc::new(Queue::connect(&self.access, &cx.secrets).await?);
        let _connected = self.connected.begin(Arc::clone(&queue));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            pulled = self.pull(cx, &queue, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(&self, cx: &TriggerCx, queue: &Arc<Queue>, deliveries: &mut Deliveries) -> Result<()> {
        let mut more = false;
        loop {
            let mut slots = deliveries.slots(&*cx.sink, more, TAKEN).await?;
            deliveries.meanwhile(queue.refresh(&cx.secrets)).await??;
            // A request that is dropped may be given messages that nobody sees until they are shown again: one beside deliveries,
            // which may fail, is short and waited for.
            let wait = if more || !deliveries.is_empty() { EAGER } else { WAIT };
            let mut receiving = pin!(queue.receive(slots.len(), wait, self.hidden));
            let messages = match deliveries.meanwhile(receiving.as_mut()).await {
                Ok(messages) => messages?,
                Err(failed) => {
                    if let Ok(messages) = receiving.await {
                        let receipts: Vec<String> =
                            messages.into_iter().map(|message| message.receipt_handle).collect();
                        let _ = queue.hide(&receipts, Duration::ZERO).await;
                    }
                    return Err(failed);
                }
            };
            more = !messages.is_empty();
            let mut taken = Vec::with_capacity(messages.len());
            for message in messages {
                let Some(slot) = slots.pop() else { break };
                let events = message.events(&self.access.path)?;
                taken.push((self.turn(&message), Taken { slot, receipt: message.receipt_handle, events }));
            }
            if !self.access.is_fifo() && cx.sink.batch_limit() > 1 {
                let mut taken = taken.into_iter().map(|(_, taken)| taken).peekable();
                while taken.peek().is_some() {
                    let batch: Vec<Taken> = taken.by_ref().take(cx.sink.batch_limit()).collect();
                    deliveries.begin(together(Arc::clone(queue), Arc::clone(&cx.sink), batch, self.hidden));
                }
                continue;
            }
            let mut turns: Vec<(Option<String>, Vec<Taken>)> = Vec::new();
            let mut places: HashMap<String, usize> = HashMap::new();
            for (turn, one) in taken {
                let place = turn.as_ref().and_then(|turn| places.get(turn).copied());
                match place {
                    Some(place) => turns[place].1.push(one),
                    None => {
                        if let Some(turn) = &turn {
                            places.insert(turn.clone(), turns.len());
                        }
                        turns.push((turn, vec![one]));
                    }
                }
            }
            for (_, turn) in turns {
                deliveries.begin(in_turn(Arc::clone(queue), Arc::clone(&cx.sink), turn, self.hidden));
            }
        }
    }

    /// The group whose messages are delivered one after the other; `None`: it waits for no other.
    fn turn(&self, message: &Message) -> Option<String> {
        message.group().filter(|_| self.access.is_fifo()).map(str::to_owned)
    }
}

/// Delivers messages one after the other and deletes each after its delivery. When one fails, it and those behind it may come
/// again at once; the queue gives no other of their group meanwhile.
async fn in_turn(
    queue: Arc<Queue>,
    sink: Arc<dyn EventSink>,
    turn: Vec<Taken>,
    hidden: Duration,
) -> Result<()> {
    let receipts: Vec<String> = turn.iter().map(|taken| taken.receipt.clone()).collect();
    let done = AtomicUsize::new(0);
    let delivering = async {
        for (at, taken) in turn.into_iter().enumerate() {
            if let Err(error) = deliver(&*sink, taken.slot, taken.events).await {
                // The platform makes this host wait, and the service tells what can't be reached next time.
                let _ = queue.hide(&receipts[at..], Duration::ZERO).await;
                return Err(error);
            }
            queue.delete(&receipts[at]).await?;
            done.store(at + 1, Ordering::Relaxed);
        }
        Ok(())
    };
    with_renewal(delivering, hidden / 3, || {
        let left = &receipts[done.load(Ordering::Relaxed)..];
        queue.hide(left, hidden)
    })
    .await?
}

async fn deliver(sink: &dyn EventSink, slot: Slot, mut events: Vec<Event>) -> Result<()> {
    if events.len() == 1 {
        return sink.deliver(slot, events.remove(0)).await.map(drop);
    }
    sink.deliver_batch(slot, events).await.into_iter().collect::<Result<Vec<Ack>>>().map(drop)
}

/// Delivers messages as one batch and deletes those whose events were all taken; the others come again.
async fn together(
    queue: Arc<Queue>,
    sink: Arc<dyn EventSink>,
    batch: Vec<Taken>,
    hidden: Duration,
) -> Result<()> {
    let (mut slots, mut receipts, mut sizes, mut events) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for taken in batch {
        slots.push(taken.slot);
        receipts.push(taken.receipt);
        sizes.push(taken.events.len());
        events.extend(taken.events);
    }
    // A batch takes one turn; the room of the others is given back.
    let Some(slot) = slots.pop() else { return Ok(()) };
    drop(slots);
    let delivered =
        with_renewal(sink.deliver_batch(slot, events), hidden / 3, || queue.hide(&receipts, hidden)).await?;
    let mut answers = delivered.into_iter();
    let mut failed = None;
    for (receipt, size) in receipts.iter().zip(sizes) {
        let of_message: Vec<Result<Ack>> = answers.by_ref().take(size).collect();
        match of_message.into_iter().collect::<Result<Vec<Ack>>>() {
            Ok(_) => queue.delete(receipt).await?,
            Err(error) => {
                let _ = queue.hide(std::slice::from_ref(receipt), Duration::ZERO).await;
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

#[async_trait]
impl TriggerSource for SqsQueue {
    fn kind(&self) -> &'static str {
        "sqs"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// Messages that wait, and those that were given out and are not deleted, as the service counts them.
    async fn backlog(&self) -> Result<Option<u64>> {
        match self.connected.get(self.access.name())? {
            Some(queue) => queue.backlog().await.map(Some),
            None => Ok(None),
        }
    }
}
