//! What happens on the platform, published as CloudEvents.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use metrics::Counter;
use sas_core::{
    Clock, DecisionQuery, DecisionRecord, DecisionSink, ErrorKind, Event, EventError, EventPublisher,
    LifecycleEvent, LifecycleKind, LifecycleSink, Pool, Recorder, Result, RevisionKey, SpecErrors,
    Triggers as _, Verdict,
};
use sas_trigger::TriggerHost;
use serde_json::Value as Json;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::PlatformBuilder;

/// Events of the platform's life, by `outcome`: `published`, or lost since too many waited (`full`), since the namespace has
/// no such broker (`no_broker`), since nobody could take one (`refused`), or at the end of the platform (`unfinished`).
const EVENTS: &str = "sas_lifecycle_events_total";

/// Events that wait to be published.
const ROOM: usize = 1_024;
/// Events that are given to a broker at once.
const BATCH: usize = 64;
/// How much of a text is told.
const TEXT: usize = 4_096;
/// How long the last events of a platform that ends may take.
const LAST: Duration = Duration::from_secs(2);

/// Where events go.
#[derive(Debug)]
pub(crate) enum Wanted {
    Broker(String),
    Publisher(Arc<dyn EventPublisher>),
}

impl PlatformBuilder {
    /// Publishes what happens to services, revisions, instances and engines as CloudEvents to a broker of this platform, as
    /// `namespace/name` (`docs/lifecycle.md` has their types). Nothing that happens waits for it: at most 1,024 events wait to be
    /// published, and those beyond are lost and counted (`sas_lifecycle_events_total`), as are all while there is no such broker.
    /// On one of several hosts give a [`PlatformBuilder::lifecycle_publisher`]: a broker is on one of them.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().lifecycle_events_to("ops/default");
    /// ```
    #[must_use]
    pub fn lifecycle_events_to(mut self, broker: impl Into<String>) -> Self {
        self.lifecycle = Some(Wanted::Broker(broker.into()));
        self
    }

    /// Publishes what happens, as [`PlatformBuilder::lifecycle_events_to`] does, through a publisher of the host's own.
    #[must_use]
    pub fn lifecycle_publisher(mut self, publisher: impl EventPublisher) -> Self {
        self.lifecycle = Some(Wanted::Publisher(Arc::new(publisher)));
        self
    }
}

/// Checks where events are to go.
pub(crate) fn check(wanted: Option<&Wanted>, several_hosts: bool) -> std::result::Result<(), SpecErrors> {
    let mut errors = SpecErrors::default();
    if let Some(Wanted::Broker(broker)) = wanted {
        let label = |text: &str| !text.is_empty() && !text.contains('/');
        if !broker.split_once('/').is_some_and(|(namespace, name)| label(namespace) && label(name)) {
            errors.push(
                "lifecycle_events_to",
                broker,
                "name a broker with its namespace, such as ops/default",
            );
        }
        if several_hosts {
            let problem = "a broker is on one of several hosts: give a publisher of your own (lifecycle_publisher) that reaches \
                           what all of them reach";
            errors.push("lifecycle_events_to", broker, problem);
        }
    }
    errors.into_result()
}

/// Takes what happens.
struct Teller {
    events: mpsc::Sender<LifecycleEvent>,
    full: Counter,
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Teller")
    }
}

impl LifecycleSink for Teller {
    fn told(&self, event: LifecycleEvent) {
        if self.events.try_send(event).is_err() {
            self.full.increment(1);
        }
    }
}

/// The other end, which publishes.
pub(crate) struct Publishing {
    events: mpsc::Receiver<LifecycleEvent>,
    /// What the ids begin with: no other life of a platform has the same.
    life: String,
    published: u64,
    outcome: Outcomes,
}

struct Outcomes {
    published: Counter,
    no_broker: Counter,
    refused: Counter,
    unfinished: Counter,
}

/// Who takes events.
pub(crate) enum Recipient {
    Broker(Arc<TriggerHost>, String),
    Publisher(Arc<dyn EventPublisher>),
}

impl Recipient {
    pub(crate) fn of(wanted: Wanted, triggers: &Arc<TriggerHost>) -> Self {
        match wanted {
            Wanted::Broker(broker) => Self::Broker(Arc::clone(triggers), broker),
            Wanted::Publisher(publisher) => Self::Publisher(publisher),
        }
    }

    /// Hands events over; those that were taken are not among them any more.
    async fn give(&self, events: &mut Vec<Event>, taken: &Counter) -> Result<()> {
        match self {
            Self::Broker(triggers, broker) => {
                triggers.accept(broker, events.clone()).await?;
                taken.increment(events.len() as u64);
                events.clear();
            }
            Self::Publisher(publisher) => {
                while let Some(event) = events.first() {
                    publisher.publish(event.clone()).await?;
                    taken.increment(1);
                    events.remove(0);
                }
            }
        }
        Ok(())
    }
}

/// Both ends.
pub(crate) fn channel(
    recorder: &Recorder,
    clock: &dyn Clock,
    host: Option<&str>,
) -> (Arc<dyn LifecycleSink>, Publishing) {
    recorder.describe_counter(EVENTS, "Events of the platform's life, by what became of them");
    let outcome = |outcome: &'static str| recorder.counter(EVENTS, &[("outcome", outcome)]);
    let (sender, events) = mpsc::channel(ROOM);
    let publishing = Publishing {
        events,
        life: format!("{}-{:x}", host.unwrap_or("host"), clock.now().0),
        published: 0,
        outcome: Outcomes {
            published: outcome("published"),
            no_broker: outcome("no_broker"),
            refused: outcome("refused"),
            unfinished: outcome("unfinished"),
        },
    };
    (Arc::new(Teller { events: sender, full: outcome("full") }), publishing)
}

impl Publishing {
    /// Publishes until `stop`, and then what waits for another moment.
    pub(crate) async fn run(mut self, recipient: Recipient, stop: CancellationToken) {
        let mut told = Vec::with_capacity(BATCH);
        loop {
            let more = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                more = self.events.recv_many(&mut told, BATCH) => more,
            };
            if more == 0 {
                return;
            }
            let mut events = self.events_of(&mut told);
            self.publish(&recipient, &mut events, &stop).await;
            if !events.is_empty() {
                self.outcome.unfinished.increment(events.len() as u64);
            }
        }
        self.events.close();
        let deadline = Instant::now() + LAST;
        while self.events.recv_many(&mut told, BATCH).await > 0 {
            let mut events = self.events_of(&mut told);
            let given = recipient.give(&mut events, &self.outcome.published);
            let _ = tokio::time::timeout_at(deadline, given).await;
            self.outcome.unfinished.increment(events.len() as u64);
        }
    }

    /// Publishes some, again and again while whoever takes them is away; what is left when the platform ends stays.
    async fn publish(&self, recipient: &Recipient, events: &mut Vec<Event>, stop: &CancellationToken) {
        let mut wait = Duration::from_millis(200);
        loop {
            let given = stop.run_until_cancelled(recipient.give(events, &self.outcome.published)).await;
            let Some(Err(error)) = given else { return };
            let lost = match error.kind {
                ErrorKind::NotFound => &self.outcome.no_broker,
                ErrorKind::InvalidSpec | ErrorKind::Unsupported => &self.outcome.refused,
                _ => {
                    tracing::debug!(error = %error.chain(), "events of the platform's life wait");
                    if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                        return;
                    }
                    wait = (wait * 2).min(Duration::from_secs(10));
                    continue;
                }
            };
            // A broker takes all or none; of a publisher, the others may be taken.
            let gone = match recipient {
                Recipient::Broker(..) => events.len(),
                Recipient::Publisher(_) => 1,
            };
            tracing::warn!(events = gone, error = %error.chain(), "events of the platform's life are lost");
            lost.increment(gone as u64);
            events.drain(..gone);
            if events.is_empty() {
                return;
            }
        }
    }

    fn events_of(&mut self, told: &mut Vec<LifecycleEvent>) -> Vec<Event> {
        let mut events = Vec::with_capacity(told.len());
        for event in told.drain(..) {
            self.published += 1;
            match cloud_event(format!("{}-{}", self.life, self.published), event) {
                Ok(event) => events.push(event),
                Err(error) => {
                    tracing::warn!(%error, "an event of the platform's life can't be written");
                    self.outcome.refused.increment(1);
                }
            }
        }
        events
    }
}

/// As `docs/lifecycle.md` has it.
fn cloud_event(id: String, event: LifecycleEvent) -> std::result::Result<Event, EventError> {
    let LifecycleEvent { kind, subject, namespace, at, mut data, .. } = event;
    for value in data.values_mut() {
        if let Json::String(text) = value
            && text.len() > TEXT
        {
            text.truncate(text.floor_char_boundary(TEXT));
            text.push('…');
        }
    }
    let event = Event::new(id, "/sas/lifecycle", format!("dev.sas.{kind}"))?
        .with_subject(subject)?
        .with_time(at)
        .with_data("application/json", Json::Object(data).to_string())?;
    match namespace {
        Some(namespace) => event.with_extension("namespace", namespace),
        None => Ok(event),
    }
}

/// Passes decisions on, and tells those that change the number of instances.
#[derive(Debug)]
pub(crate) struct Scalings {
    inner: Arc<dyn DecisionSink>,
    told: Arc<dyn LifecycleSink>,
    /// Who knows the names of revisions; set once it is there.
    pool: OnceLock<Weak<dyn Pool>>,
}

impl Scalings {
    pub(crate) fn new(inner: Arc<dyn DecisionSink>, told: Arc<dyn LifecycleSink>) -> Self {
        Self { inner, told, pool: OnceLock::new() }
    }

    pub(crate) fn bind(&self, pool: &Arc<dyn Pool>) {
        let _ = self.pool.set(Arc::downgrade(pool));
    }
}

#[deny(clippy::missing_trait_methods)]
impl DecisionSink for Scalings {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        self.inner.decided(revision, record);
        let Verdict::Set(to) = record.decision.verdict else { return };
        let from = record.previous.unwrap_or(0);
        let pool = self.pool.get().and_then(Weak::upgrade);
        if from != to
            && let Some(deployed) = pool.and_then(|pool| pool.deployed(revision))
        {
            let event = LifecycleEvent::of_revision(LifecycleKind::Scaled, &deployed.name, record.at);
            let reason = serde_json::to_value(record.decision.reason).unwrap_or_default();
            self.told.told(event.with("from", from).with("to", to).with("reason", reason));
        }
    }

    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        self.inner.decision_query()
    }

    fn forget(&self, revision: RevisionKey) {
        self.inner.forget(revision);
    }
}
