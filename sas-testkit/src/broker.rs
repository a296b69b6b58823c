//! Runs a source against a real broker, and kills both.

use std::{collections::HashSet, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Event, EventSink, Result, SecretSource, Store, SystemClock, TenantKey, TriggerCx, TriggerSecrets,
    TriggerSource,
};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::fake::{FakeEventSink, FakeStore};

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

/// A broker that a test has started, with events in it, for [`kill_at_random`].
#[async_trait]
pub trait Broker: Send {
    /// A source that reads all of its events, as a host that starts makes one.
    fn source(&self) -> Arc<dyn TriggerSource>;

    /// Kills it with SIGKILL, starts it again with what is on its disk, and returns when it answers.
    async fn kill_and_restart(&mut self);

    /// How many events it takes to be unacknowledged: its own number.
    async fn unacknowledged(&mut self) -> u64;
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
    /// Deliveries beyond one of each event.
    pub again: usize,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} events, {} kills of the broker, {} of the host: lost 0, {} twice, {:?}",
            self.events, self.of_broker, self.of_host, self.again, self.took
        )
    }
}

/// Lets a source deliver `events` events that the broker holds while the broker is killed `of_broker` times and the host
/// crashes `of_host` times, at times that `seed` decides. `identity` tells one event from another.
///
/// # Panics
/// When an event is lost, when the broker takes more to be acknowledged than was delivered, when it takes more than four
/// minutes, or when all was over before anything was killed.
pub async fn kill_at_random(
    broker: &mut impl Broker,
    events: usize,
    kills: (u32, u32),
    seed: u64,
    identity: impl Fn(&Event) -> String,
) -> Kills {
    kill_at_random_with(broker, None, events, kills, seed, identity).await
}

/// [`kill_at_random`] for sources that ask for secrets.
///
/// # Panics
/// As [`kill_at_random`].
pub async fn kill_at_random_with(
    broker: &mut impl Broker,
    secrets: Option<Arc<dyn SecretSource>>,
    events: usize,
    (of_broker, of_host): (u32, u32),
    mut seed: u64,
    identity: impl Fn(&Event) -> String,
) -> Kills {
    let run = |broker: &dyn Broker, sink: &Arc<FakeEventSink>| {
        Running::with(broker.source(), sink, Arc::new(FakeStore::default()), secrets.clone())
    };
    let sink = FakeEventSink::new(16);
    let mut done = Kills { events, of_broker: 0, of_host: 0, again: 0, took: Duration::ZERO };
    let began = Instant::now();
    let mut unacknowledged = u64::MAX;
    while unacknowledged > 0 {
        assert!(began.elapsed() < Duration::from_secs(240), "{} offered, {done:?}", sink.offered());
        let mut running = run(&*broker, &sink);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(100 + (seed >> 40) % 300)).await;
        // Three crashes of the host for one of the broker.
        if (seed >> 33).is_multiple_of(4) && done.of_broker < of_broker {
            broker.kill_and_restart().await;
            done.of_broker += 1;
        } else if done.of_host < of_host {
            done.of_host += 1;
        } else {
            // Nothing is killed any more: it runs to the end, started again as the platform would.
            for _ in 0..20 {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if running.has_ended() {
                    running = run(&*broker, &sink);
                }
                if unique(&sink, &identity) == events {
                    // The last acknowledgements are on their way.
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    break;
                }
            }
        }
        running.crash().await;
        unacknowledged = broker.unacknowledged().await;
        let unique = unique(&sink, &identity);
        assert!(
            (events as u64).saturating_sub(unacknowledged) <= unique as u64,
            "acknowledged ahead of delivery: {unacknowledged} are not, {unique} were delivered"
        );
    }
    assert_eq!(unique(&sink, &identity), events, "events were lost");
    assert!(done.of_broker + done.of_host > 3, "it was over before anything was killed");
    done.again = sink.delivered().len() - events;
    done.took = began.elapsed();
    done
}

fn unique(sink: &FakeEventSink, identity: impl Fn(&Event) -> String) -> usize {
    sink.delivered().iter().map(identity).collect::<HashSet<_>>().len()
}
