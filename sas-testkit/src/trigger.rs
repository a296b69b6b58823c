//! The suite for [`sas_core::TriggerSource`].

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use sas_core::{
    ErrorKind, Event, Result, SecretSource, Store, TenantKey, Timestamp, TriggerCx, TriggerSecrets,
    TriggerSource,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, ensure, eventually, within},
    fake::{FakeClock, FakeEventSink, FakeStore},
};

/// A source that has an event for the sink at least once each `period`.
pub struct Subject {
    source: Arc<dyn TriggerSource>,
    period: Duration,
    feed: Option<Box<dyn Fn()>>,
    secrets: Option<Arc<dyn SecretSource>>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("source", &self.source)
            .field("period", &self.period)
            .finish_non_exhaustive()
    }
}

impl Subject {
    /// A source that has an event at least once each `period` by itself, as timers do.
    pub fn new(source: Arc<dyn TriggerSource>, period: Duration) -> Self {
        Self { source, period, feed: None, secrets: None }
    }

    /// For sources that wait for somebody: `feed` puts one event upstream. It is called once each period.
    #[must_use]
    pub fn feed(mut self, feed: impl Fn() + 'static) -> Self {
        self.feed = Some(Box::new(feed));
        self
    }

    /// What the source finds the secrets of its declaration in.
    #[must_use]
    pub fn secrets(mut self, secrets: Arc<dyn SecretSource>) -> Self {
        self.secrets = Some(secrets);
        self
    }
}

/// Runs every check on a source of its own, made by `builder`. Meant for paused time; one that speaks to a server takes its real
/// time, half a minute and some hundred periods. The source's wall clock begins on 2026-01-05, a Monday, at midnight UTC.
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Subject)) -> Report {
    check::run(
        "TriggerSource",
        check::PAUSED_LIMIT,
        builder,
        Kit::new,
        checks![
            "the kind is constant" => kind,
            "events come, each valid and with an id of its own" => events_come,
            "it ends soon after shutdown" => ends,
            "it ends soon after shutdown while it waits for room" => ends_without_room,
            "it ends soon after shutdown while an event is delivered" => ends_in_delivery,
            "it delivers nothing after its end" => silent_after,
            "it takes a slot before it takes from upstream, and gives every slot back" => slots,
            "an event that was not taken is offered again" => again,
            "it ends when the sink is closed" => closed_sink,
            "a run that was dropped does not keep the next from its events" => crashed,
            "a clock that jumps back does not silence it" => clock_back,
            "a clock that jumps forward brings no flood" => clock_forward,
            "a store that fails is an error or is borne, never a panic" => broken_store,
            "backlog answers" => backlog,
        ],
    )
    .await
}

struct Kit {
    subject: Subject,
    sink: Arc<FakeEventSink>,
    store: Arc<FakeStore>,
    clock: FakeClock,
}

/// A running source. Dropping it is a crash.
struct Running {
    task: JoinHandle<Result<()>>,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Kit {
    fn new(subject: Subject) -> Self {
        Self {
            subject,
            sink: FakeEventSink::new(4),
            store: Arc::default(),
            clock: FakeClock::starting_at(Timestamp::from_secs(1_767_571_200)),
        }
    }

    fn cx(&self, sink: &Arc<FakeEventSink>, shutdown: &CancellationToken) -> TriggerCx {
        let (sink, store) = (Arc::clone(sink), Arc::clone(&self.store) as Arc<dyn Store>);
        let secrets = TriggerSecrets::new(self.subject.secrets.clone(), Some(TenantKey(1)));
        TriggerCx::new("conformance/source", sink, store, Arc::new(self.clock.clone()), shutdown.clone())
            .with_secrets(secrets)
    }

    fn run_with(&self, sink: &Arc<FakeEventSink>) -> Running {
        let shutdown = CancellationToken::new();
        let cx = self.cx(sink, &shutdown);
        let source = Arc::clone(&self.subject.source);
        Running { task: tokio::spawn(async move { source.run(cx).await }), shutdown }
    }

    fn run(&self) -> Running {
        self.run_with(&self.sink)
    }

    /// Lets one period pass, with an event upstream.
    async fn period(&self) {
        if let Some(feed) = &self.subject.feed {
            feed();
        }
        tokio::time::sleep(self.subject.period).await;
    }

    /// As [`Kit::delivers`], starting the source again when it ends with an error, as the platform does; the run that
    /// goes on. A source that ends without one ended by itself.
    async fn delivers_over_runs(&self, mut running: Running, count: usize) -> Verdict<Running> {
        for _ in 0..8 * count + 16 {
            if self.sink.delivered().len() >= count {
                return Ok(running);
            }
            if running.task.is_finished() {
                let ended = (&mut running.task).await;
                let ended = ended.map_err(|join| Stop::fail(format!("the source panicked: {join}")))?;
                ensure!(ended.is_err(), "the source ended by itself, without an error");
                running = self.run();
            }
            self.period().await;
        }
        Err(Stop::fail(format!("{} of {count} events came over several runs", self.sink.delivered().len())))
    }

    async fn delivers(&self, running: &Running, count: usize) -> Verdict {
        for _ in 0..4 * count + 8 {
            if self.sink.delivered().len() >= count {
                return Ok(());
            }
            ensure!(!running.task.is_finished(), "the source ended by itself");
            self.period().await;
        }
        Err(Stop::fail(format!(
            "{} of {count} events came in {} periods of {:?}",
            self.sink.delivered().len(),
            4 * count + 8,
            self.subject.period
        )))
    }

    async fn ended(&self, mut running: Running) -> Verdict<Result<()>> {
        running.shutdown.cancel();
        within(Duration::from_secs(10), "the end after shutdown", &mut running.task)
            .await?
            .map_err(|join| Stop::fail(format!("the source panicked: {join}")))
    }

    async fn ended_well(&self, running: Running) -> Verdict {
        self.ended(running).await?.map_err(|error| Stop::fail(format!("run: {}", error.chain())))
    }
}

async fn kind(kit: &Kit) -> Verdict {
    let kind = kit.subject.source.kind();
    ensure!(!kind.is_empty() && !kind.contains(char::is_whitespace), "the kind is {kind:?}");
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    kit.ended_well(running).await?;
    ensure!(kit.subject.source.kind() == kind, "the kind changed");
    Ok(())
}

async fn events_come(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 5).await?;
    kit.ended_well(running).await?;
    let events = kit.sink.delivered();
    let ids: BTreeSet<(&str, &str)> = events.iter().map(|event| (event.source(), event.id())).collect();
    ensure!(ids.len() == events.len(), "{} events have {} ids", events.len(), ids.len());
    ensure!(events.iter().all(|event| !event.kind().is_empty()), "an event has no type");
    Ok(())
}

async fn ends(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.ended_well(running).await?;
    let running = kit.run();
    tokio::time::sleep(Duration::from_millis(10)).await;
    kit.ended_well(running).await?;
    let running = kit.run();
    kit.delivers(&running, 2).await?;
    kit.ended_well(running).await?;
    ensure!(kit.sink.free_slots() == 4, "{} of 4 slots came back", kit.sink.free_slots());
    Ok(())
}

async fn ends_without_room(kit: &Kit) -> Verdict {
    let full = FakeEventSink::new(0);
    let running = kit.run_with(&full);
    for _ in 0..3 {
        kit.period().await;
    }
    ensure!(full.offered() == 0, "{} events were delivered without a slot", full.offered());
    kit.ended_well(running).await
}

async fn ends_in_delivery(kit: &Kit) -> Verdict {
    // Longer than the suite waits for the end: what is under way may finish or be left for the next run.
    kit.sink.set_delivery_time(Duration::from_secs(5));
    let running = kit.run();
    for _ in 0..40 {
        if kit.sink.offered() > 0 {
            break;
        }
        kit.period().await;
    }
    ensure!(kit.sink.offered() > 0, "no event came");
    // Whether it could deliver or left the event for the next run is its own matter.
    kit.ended(running).await?.or(Ok(()))
}

async fn silent_after(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 2).await?;
    kit.ended_well(running).await?;
    let before = kit.sink.offered();
    for _ in 0..5 {
        kit.period().await;
    }
    ensure!(kit.sink.offered() == before, "{} events came after its end", kit.sink.offered() - before);
    Ok(())
}

async fn slots(kit: &Kit) -> Verdict {
    let one = FakeEventSink::new(1);
    one.set_delivery_time(kit.subject.period / 4);
    let running = kit.run_with(&one);
    for _ in 0..40 {
        if one.delivered().len() >= 4 {
            break;
        }
        kit.period().await;
    }
    ensure!(one.delivered().len() >= 4, "with one slot {} events came in 40 periods", one.delivered().len());
    kit.ended_well(running).await?;
    ensure!(one.free_slots() == 1, "the one slot did not come back");
    Ok(())
}

async fn again(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    let before = kit.sink.offered();
    for _ in 0..3 {
        kit.sink.fail_next(ErrorKind::Unavailable);
    }
    // A source may end on an error: the platform starts it again.
    let mut running = kit.delivers_over_runs(running, 2).await?;
    for _ in 0..60 {
        if kit.sink.offered() >= before + 6 {
            break;
        }
        let taken = kit.sink.delivered().len();
        running = kit.delivers_over_runs(running, taken + 1).await?;
    }
    let running = kit.delivers_over_runs(running, 4).await?;
    kit.ended_well(running).await?;
    let refused = kit.sink.refused();
    ensure!(!refused.is_empty(), "no delivery was made to fail");
    let delivered = kit.sink.delivered();
    let taken = |event: &Event| {
        delivered.iter().any(|other| (other.source(), other.id()) == (event.source(), event.id()))
    };
    let lost: Vec<&str> = refused.iter().filter(|event| !taken(event)).map(Event::id).collect();
    ensure!(lost.is_empty(), "refused once and never offered again: {lost:?}");
    Ok(())
}

async fn closed_sink(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    kit.sink.close();
    for _ in 0..8 {
        kit.period().await;
    }
    // It may notice by itself or wait to be told; a busy loop would not get here.
    kit.ended(running).await?.or(Ok(()))
}

async fn crashed(kit: &Kit) -> Verdict {
    for round in 1..=3 {
        let running = kit.run();
        kit.delivers(&running, round * 2).await?;
        drop(running);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    eventually(Duration::from_secs(5), "the return of all slots", || kit.sink.free_slots() == 4).await?;
    let running = kit.run();
    kit.delivers(&running, 8).await?;
    kit.ended_well(running).await
}

async fn clock_back(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    kit.clock.jump_back(Duration::from_secs(10));
    // After the ten seconds that come twice it must be back at the latest.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let before = kit.sink.delivered().len();
    kit.delivers(&running, before + 2).await?;
    kit.ended_well(running).await
}

async fn clock_forward(kit: &Kit) -> Verdict {
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    let before = kit.sink.offered();
    kit.clock.jump_forward(Duration::from_secs(86_400));
    for _ in 0..3 {
        kit.period().await;
    }
    let burst = kit.sink.offered() - before;
    ensure!(burst <= 200, "a day's jump brought {burst} events in three periods");
    kit.delivers(&running, usize::try_from(before).unwrap_or(usize::MAX) + 2).await?;
    kit.ended_well(running).await
}

async fn broken_store(kit: &Kit) -> Verdict {
    kit.store.break_after(1);
    let mut running = kit.run();
    for _ in 0..6 {
        kit.period().await;
    }
    kit.store.mend();
    if running.task.is_finished() {
        let ended = (&mut running.task).await.map_err(|join| Stop::fail(format!("it panicked: {join}")))?;
        ensure!(ended.is_err(), "it ended as if it had been told to");
        drop(running);
        running = kit.run();
    }
    let before = kit.sink.delivered().len();
    kit.delivers(&running, before + 2).await?;
    kit.ended_well(running).await
}

async fn backlog(kit: &Kit) -> Verdict {
    let before = within(Duration::from_secs(10), "backlog", kit.subject.source.backlog()).await?;
    before.map_err(|error| Stop::fail(format!("backlog: {}", error.chain())))?;
    let running = kit.run();
    kit.delivers(&running, 1).await?;
    let during = within(Duration::from_secs(10), "backlog", kit.subject.source.backlog()).await?;
    during.map_err(|error| Stop::fail(format!("backlog while it runs: {}", error.chain())))?;
    kit.ended_well(running).await
}
