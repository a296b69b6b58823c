//! From where telemetry arises to the collector: a bounded queue, batches, attempts, and what is lost on the way.

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    select,
    sync::{Notify, watch},
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{config::Batching, metrics::ExportMetrics, transport::Transport};

/// The first wait before a batch is tried again; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// No wait is longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One kind of telemetry on its way out.
pub(crate) trait Signal: Send + Sync + 'static {
    /// What waits in the queue.
    type Item: Send + 'static;
    /// Its word in metrics.
    const NAME: &'static str;
    /// Where the collector takes it.
    const PATH: &'static str;

    /// How many spans or records an item is.
    fn count(item: &Self::Item) -> u64;

    /// The message of a batch.
    fn encode(&self, items: Vec<Self::Item>) -> Bytes;

    /// How many the collector refused of a batch that it took otherwise, and why.
    fn rejected(answer: &[u8]) -> (u64, String);
}

/// When exporting ends: `None` for as long as it goes on, then the time by which it is over.
pub(crate) type Stop = watch::Receiver<Option<Instant>>;

/// What waits for export, bounded by bytes. Whoever has something never waits: there is room, or it is lost and counted.
pub(crate) struct Queue<T> {
    items: Mutex<VecDeque<(usize, T)>>,
    bytes: AtomicUsize,
    most_bytes: usize,
    /// Items of a batch: the one who waits for it is told.
    batch: usize,
    closed: AtomicBool,
    some: Notify,
    enough: Notify,
    pub(crate) metrics: ExportMetrics,
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<T> Queue<T> {
    pub(crate) fn new(batching: &Batching, metrics: ExportMetrics) -> Arc<Self> {
        Arc::new(Self {
            items: Mutex::default(),
            bytes: AtomicUsize::new(0),
            most_bytes: batching.queue_bytes,
            batch: batching.most,
            closed: AtomicBool::new(false),
            some: Notify::new(),
            enough: Notify::new(),
            metrics,
        })
    }

    /// Puts something in, of about `bytes` and `count` records. It is made only if there is room.
    pub(crate) fn offer(&self, bytes: usize, count: u64, make: impl FnOnce() -> T) {
        if self.closed.load(Ordering::Acquire) {
            self.metrics.shutdown.increment(count);
            return;
        }
        let room = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.most_bytes);
        if self.bytes.fetch_update(Ordering::AcqRel, Ordering::Relaxed, room).is_err() {
            self.metrics.queue.increment(count);
            return;
        }
        let item = make();
        let mut items = self.items.lock();
        items.push_back((bytes, item));
        let waiting = items.len();
        drop(items);
        if waiting == 1 {
            self.some.notify_one();
        }
        if waiting == self.batch {
            self.enough.notify_one();
        }
    }

    fn take_now(&self) -> Vec<T> {
        let mut items = self.items.lock();
        let count = items.len().min(self.batch);
        let mut freed = 0;
        let taken = items.drain(..count).map(|(bytes, item)| {
            freed += bytes;
            item
        });
        let taken: Vec<T> = taken.collect();
        drop(items);
        self.bytes.fetch_sub(freed, Ordering::AcqRel);
        taken
    }

    /// A batch: at once when there is a whole one, else `delay` after its first item.
    async fn take(&self, delay: Duration) -> Vec<T> {
        while self.items.lock().is_empty() {
            self.some.notified().await;
        }
        let enough = async {
            while self.items.lock().len() < self.batch {
                self.enough.notified().await;
            }
        };
        let _ = timeout(delay, enough).await;
        self.take_now()
    }
}

/// Sends one signal.
pub(crate) struct Exporter<S: Signal> {
    pub(crate) signal: S,
    pub(crate) transport: Transport,
    pub(crate) batching: Batching,
    pub(crate) metrics: ExportMetrics,
    /// Whether the last request failed: an outage is told once, and its end.
    down: bool,
}

impl<S: Signal> Exporter<S> {
    pub(crate) fn new(signal: S, transport: Transport, batching: Batching, metrics: ExportMetrics) -> Self {
        Self { signal, transport, batching, metrics, down: false }
    }

    /// Exports what comes into the queue until it is told to stop, and then what is left until its deadline.
    pub(crate) async fn run(mut self, queue: Arc<Queue<S::Item>>, mut stop: Stop) {
        loop {
            let batch = select! {
                biased;
                _ = stop.wait_for(Option::is_some) => break,
                batch = queue.take(self.batching.delay) => batch,
            };
            self.export(batch, &mut stop).await;
        }
        queue.closed.store(true, Ordering::Release);
        loop {
            let batch = queue.take_now();
            if batch.is_empty() {
                return;
            }
            self.export(batch, &mut stop).await;
        }
    }

    async fn export(&mut self, batch: Vec<S::Item>, stop: &mut Stop) {
        let count = batch.iter().map(S::count).sum();
        let message = self.signal.encode(batch);
        self.send(message, count, stop).await;
    }

    /// Sends a message, again where that may help, and counts what became of it.
    pub(crate) async fn send(&mut self, message: Bytes, count: u64, stop: &mut Stop) {
        let until = Instant::now() + self.batching.retry_for;
        let mut wait = FIRST_WAIT;
        loop {
            let answer = select! {
                biased;
                answer = self.transport.post(S::PATH, message.clone()) => answer,
                () = deadline(stop.clone()) => {
                    self.metrics.shutdown.increment(count);
                    return;
                }
            };
            let failed = match answer {
                Ok(answer) => {
                    self.took(&answer, count);
                    return;
                }
                Err(failed) => failed,
            };
            self.metrics.failures.increment(1);
            if !self.down {
                self.down = true;
                tracing::warn!(signal = S::NAME, why = failed.why, "the collector does not take telemetry");
            }
            let wait_for = failed.after.unwrap_or(wait);
            if !failed.again || Instant::now() + wait_for > until || stop.borrow().is_some() {
                let lost = if failed.again && stop.borrow().is_some() {
                    &self.metrics.shutdown
                } else {
                    &self.metrics.failed
                };
                lost.increment(count);
                return;
            }
            // One last attempt when the end comes while it waits.
            select! {
                biased;
                _ = stop.wait_for(Option::is_some) => {}
                () = sleep(wait_for) => {}
            }
            wait = (wait * 2).min(LONGEST_WAIT);
        }
    }

    fn took(&mut self, answer: &[u8], count: u64) {
        if self.down {
            self.down = false;
            tracing::info!(signal = S::NAME, "the collector takes telemetry again");
        }
        let (rejected, why) = S::rejected(answer);
        let rejected = rejected.min(count);
        if rejected > 0 {
            tracing::warn!(signal = S::NAME, rejected, why, "the collector refused a part");
            self.metrics.rejected.increment(rejected);
        }
        self.metrics.exported.increment(count - rejected);
    }
}

/// Resolves at the deadline of the end, or at once when nobody is left who could tell one.
async fn deadline(mut stop: Stop) {
    let told = stop.wait_for(Option::is_some).await.map(|at| *at);
    if let Ok(Some(at)) = told {
        sleep_until(at).await;
    }
}
