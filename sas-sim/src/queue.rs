//! A queue outside of the platform, which outlives its hosts, and the trigger that reads it.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{Ack, Error, ErrorKind, Event, Result, TriggerCx, TriggerSource};
use tokio::sync::Notify;

use crate::history::{Fact, History};

/// The kind of its trigger.
pub(crate) const KIND: &str = "queue";
/// What the ids of its events begin with.
pub(crate) const PREFIX: &str = "message-";

/// Messages that wait, oldest first. One is taken off when its delivery was acknowledged.
#[derive(Debug)]
pub(crate) struct SimQueue {
    history: Arc<History>,
    waiting: Mutex<VecDeque<u64>>,
    next: Mutex<u64>,
    came: Notify,
}

impl SimQueue {
    pub(crate) fn new(history: Arc<History>) -> Self {
        Self { history, waiting: Mutex::default(), next: Mutex::new(0), came: Notify::new() }
    }

    pub(crate) fn push(&self, messages: u32) {
        for _ in 0..messages {
            let message = {
                let mut next = self.next.lock();
                *next += 1;
                *next
            };
            self.history.tell(Fact::Queued { message });
            self.waiting.lock().push_back(message);
        }
        self.came.notify_waiters();
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.lock().len()
    }

    async fn oldest(&self) -> u64 {
        loop {
            let came = self.came.notified();
            if let Some(message) = self.waiting.lock().front() {
                return *message;
            }
            came.await;
        }
    }

    fn acknowledge(&self, message: u64, ack: Ack) {
        self.waiting.lock().retain(|waiting| *waiting != message);
        self.history.tell(Fact::Acknowledged { message, executed: ack == Ack::Completed });
    }
}

/// Reads the queue, one message after the other.
#[derive(Debug)]
pub(crate) struct QueueSource(pub(crate) Arc<SimQueue>);

#[async_trait]
impl TriggerSource for QueueSource {
    fn kind(&self) -> &'static str {
        KIND
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        loop {
            let next = async {
                let room = cx.sink.ready().await?;
                Ok::<_, Error>((room, self.0.oldest().await))
            };
            let (room, message) = tokio::select! {
                biased;
                () = cx.shutdown.cancelled() => return Ok(()),
                next = next => next?,
            };
            let event = Event::new(format!("{PREFIX}{message}"), "/queue", "sim.message")
                .map_err(|error| Error::new(ErrorKind::Unexpected, "run", error.to_string()))?;
            match cx.sink.deliver(room, event).await {
                Ok(ack) => self.0.acknowledge(message, ack),
                Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            }
        }
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        Ok(Some(self.0.len() as u64))
    }
}
