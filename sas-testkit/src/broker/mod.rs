//! Runs a source against a real broker, kills both, and takes the broker away.

#[cfg(target_os = "linux")]
mod outage;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    ErrorKind, Event, EventPublisher, EventSink, Result, SecretSource, Store, SystemClock, TenantKey,
    TriggerCx, TriggerSecrets, TriggerSource,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::fake::{FakeEventSink, FakeStore};

#[cfg(target_os = "linux")]
pub use outage::{Host, Outage, outage};

/// A source that runs. Dropping it is a crash of its host.
#[derive(Debug)]
pub struct Running {
    task: Option<JoinHandle<Result<()>>>,
    shutdown: CancellationToken,
}

impl Running {
    /// Runs `source` into `sink`, with a store that is empty and no secrets.
    pub fn start(source: Arc<dyn TriggerSource>, sink: &Arc<impl EventSink>) -> Self {
        Self::with(source, sink, Arc::new(FakeStore::default()), None)
    }

    /// The same with a store that other runs may have written to, and a source of secrets.
    pub fn with(
        source: Arc<dyn TriggerSource>,
        sink: &Arc<impl EventSink>,
        store: Arc<dyn Store>,
        secrets: Option<Arc<dyn SecretSource>>,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let cx = TriggerCx::new(
            "testkit/source",
            Arc::clone(sink) as Arc<dyn EventSink>,
            store,
            Arc::new(SystemClock),
            shutdown.clone(),
        )
        .with_secrets(TriggerSecrets::new(secrets, Some(TenantKey(1))));
        Self { task: Some(tokio::spawn(async move { source.run(cx).await })), shutdown }
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&self) -> bool {
        self.task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// What it ended with.
    pub async fn ended(mut self) -> Result<()> {
        match self.task.take() {
            Some(task) => task.await.expect("a source does not panic"),
            None => Ok(()),
        }
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// What it ended with.
    pub async fn stop(self) -> Result<()> {
        self.shutdown.cancel();
        self.ended().await
    }

    /// Drops it as a crash of its host would, and waits until nothing of it runs.
    pub async fn crash(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Waits until `holds`, a minute at most.
///
/// # Panics
/// With `what`, when it does not hold by then.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How many events a test of kills has: `short`, or 100,000 where the environment has `SAS_LONG`.
pub fn events_of_a_test(short: usize) -> usize {
    if std::env::var_os("SAS_LONG").is_some() { 100_000 } else { short }
}

/// A broker that a test has started.
#[async_trait]
pub trait Broker: Send {
    /// A source that reads all of its events, as a host that starts makes one.
    fn source(&self) -> Arc<dyn TriggerSource>;

    /// What the source finds the secrets of its declaration in.
    fn secrets(&self) -> Option<Arc<dyn SecretSource>> {
        None
    }

    /// Where the source keeps how far it is: empty at each start, for brokers that keep that themselves.
    fn store(&self) -> Arc<dyn Store> {
        Arc::new(FakeStore::default())
    }

    /// How long the target takes for an event: not nothing where the source reads faster than a test can kill it.
    fn delivery_time(&self) -> Duration {
        Duration::ZERO
    }

    /// Kills it with SIGKILL, or ends it in order where a kill loses what it has by its own word.
    fn kill(&mut self);

    /// Starts it again, after [`Broker::kill`], with what is on its disk, and returns when it answers.
    async fn restart(&mut self);

    /// How many events it takes to be unacknowledged: its own number. `None` where it has no way to say it.
    async fn unacknowledged(&mut self) -> Option<u64>;
}

/// What [`kill_at_random`] counted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Kills {
    /// Events that were in the broker.
    pub events: usize,
    /// Kills of the broker.
    pub of_broker: u32,
    /// Crashes of the host.
    pub of_host: u32,
    /// Deliveries beyond one of each event, after kills of the broker.
    pub again_after_broker: usize,
    /// The same, after crashes of the host.
    pub again_after_host: usize,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (broker, host) = (self.again_after_broker, self.again_after_host);
        write!(f, "{} events, lost 0 in {:.1?}; ", self.events, self.took)?;
        write!(
            f,
            "{} kills of the broker: {broker} twice; {} of the host: {host} twice",
            self.of_broker, self.of_host
        )
    }
}

/// Lets a source deliver `events` events that the broker holds while the broker is killed `of_broker` times and the host
/// crashes `of_host` times, at points between the first event and the last that `seed` decides. `identity` tells one event from
/// another.
///
/// # Panics
/// When an event is lost, when the broker takes more to be acknowledged than was delivered, or when it takes more than four
/// minutes and 20 ms for each event.
pub async fn kill_at_random(
    broker: &mut impl Broker,
    events: usize,
    (of_broker, of_host): (u32, u32),
    mut seed: u64,
    identity: impl Fn(&Event) -> String,
) -> Kills {
    let sink = FakeEventSink::new(16);
    sink.set_delivery_time(broker.delivery_time());
    let mut done = Kills {
        events,
        of_broker: 0,
        of_host: 0,
        again_after_broker: 0,
        again_after_host: 0,
        took: Duration::ZERO,
    };
    let (began, most) =
        (Instant::now(), Duration::from_secs(240) + Duration::from_millis(20 * events as u64));
    // How many had been delivered at each kill of the broker.
    let (mut kills, mut settles) = (Vec::new(), Duration::from_millis(300));
    loop {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let left = of_broker + of_host - done.of_broker - done.of_host;
        // One in four ends while it connects, the others after a share of what is left that is random too.
        let by_time = left > 0 && (seed >> 50).is_multiple_of(4);
        let share = (events - unique(&sink, &identity)) / (left as usize + 1);
        let goal = sink.offered() + share as u64 * ((seed >> 40) % 1000) / 500;
        let soon = Instant::now() + Duration::from_millis(10 + (seed >> 30) % 300);
        let mut running = run(&*broker, &sink);
        loop {
            let over = match (by_time, left) {
                (true, _) => Instant::now() >= soon,
                (false, 0) => unique(&sink, &identity) == events,
                (false, _) => sink.offered() >= goal,
            };
            if over {
                break;
            }
            assert!(began.elapsed() < most, "{} offered, {done:?}", sink.offered());
            // The last is begun again only when it failed: looking at all events that came costs time.
            tokio::time::sleep(Duration::from_millis(if left == 0 { 200 } else { 2 })).await;
            if running.has_ended() {
                // As the platform would.
                tokio::time::sleep(Duration::from_millis(100)).await;
                running = run(&*broker, &sink);
            }
        }
        if left == 0 {
            // The last acknowledgements are on their way; where all came and they did not, joining takes longer than this.
            tokio::time::sleep(settles).await;
            settles *= 2;
        }
        let kills_broker = left > 0
            && done.of_broker < of_broker
            && (done.of_host == of_host
                || (seed >> 33) % u64::from(left) < u64::from(of_broker - done.of_broker));
        if kills_broker {
            broker.kill();
            kills.push(sink.delivered().len());
            broker.restart().await;
            done.of_broker += 1;
        } else if left > 0 {
            done.of_host += 1;
        }
        running.crash().await;
        let unacknowledged = broker.unacknowledged().await;
        let unique = unique(&sink, &identity);
        if let Some(unacknowledged) = unacknowledged {
            assert!(
                (events as u64).saturating_sub(unacknowledged) <= unique as u64,
                "acknowledged ahead of delivery: {unacknowledged} are not, {unique} were delivered"
            );
        }
        if left == 0 && unique == events && unacknowledged.unwrap_or(0) == 0 {
            break;
        }
    }
    done.took = began.elapsed();
    // An event that comes again comes for the kill of the broker that lies between, if one does, however late that is.
    let mut last = HashMap::new();
    for (at, event) in sink.delivered().iter().enumerate() {
        if let Some(before) = last.insert(identity(event), at) {
            match kills.iter().any(|kill| before < *kill && *kill <= at) {
                true => done.again_after_broker += 1,
                false => done.again_after_host += 1,
            }
        }
    }
    done
}

fn run(broker: &dyn Broker, sink: &Arc<FakeEventSink>) -> Running {
    Running::with(broker.source(), sink, broker.store(), broker.secrets())
}

/// What [`publish_through_kills`] counted.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Published {
    /// Events that were taken.
    pub events: usize,
    /// Kills of the broker meanwhile.
    pub kills: u32,
    /// Attempts that failed and were made again.
    pub failed: usize,
    /// Events that the broker has beyond one of each.
    pub again: usize,
}

impl fmt::Display for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { events, kills, failed, again } = self;
        write!(
            f,
            "{events} events published, {kills} kills of the broker, {failed} attempts failed: lost 0, {again} twice"
        )
    }
}

/// Publishes `events` events through `sink`, 16 at once and each again until it is taken, as a trigger does, while the broker
/// is killed `kills` times; then has the broker's source deliver what there is.
///
/// # Panics
/// When an event is lost, or it takes more than four minutes.
pub async fn publish_through_kills(
    broker: &mut impl Broker,
    sink: &Arc<dyn EventPublisher>,
    events: usize,
    kills: u32,
) -> Published {
    let (began, most) = (Instant::now(), Duration::from_secs(240));
    let (taken, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let problem = Arc::new(Mutex::new(String::new()));
    let publishing: Vec<JoinHandle<()>> = (0..16)
        .map(|first| {
            let (sink, taken, failed) = (Arc::clone(sink), Arc::clone(&taken), Arc::clone(&failed));
            let problem = Arc::clone(&problem);
            tokio::spawn(async move {
                for number in (first..events).step_by(16) {
                    let event = Event::new(number.to_string(), "/kit", "kit.event")
                        .and_then(|event| event.with_data("text/plain", number.to_string()))
                        .expect("an event");
                    while let Err(error) = sink.publish(event.clone()).await {
                        assert_ne!(error.kind, ErrorKind::InvalidSpec, "{error:?}");
                        failed.fetch_add(1, Ordering::Relaxed);
                        *problem.lock() = error.chain();
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    // Killed when parts of them are taken, however fast that goes.
    for kill in 1..=kills as usize {
        while taken.load(Ordering::Relaxed) < events * kill / (kills as usize + 1) {
            assert!(began.elapsed() < most, "{taken:?} were taken, {failed:?} failed");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        broker.kill();
        broker.restart().await;
    }
    for publisher in publishing {
        let left = most.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, publisher).await {
            Ok(ended) => ended.expect("a publisher does not panic"),
            Err(_) => panic!("{taken:?} of {events} were taken, {failed:?} failed: {}", problem.lock()),
        }
    }
    let came = FakeEventSink::new(16);
    let ids = |event: &Event| event.id().to_owned();
    let running = run(&*broker, &came);
    until("all that were taken come", async || unique(&came, ids) == events).await;
    running.stop().await.expect("the source ends in order");
    let again = came.delivered().len() - events;
    Published { events, kills, failed: failed.load(Ordering::Relaxed), again }
}

fn unique(sink: &FakeEventSink, identity: impl Fn(&Event) -> String) -> usize {
    sink.delivered().iter().map(identity).collect::<HashSet<_>>().len()
}
