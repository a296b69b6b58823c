//! Brokers: durable logs of events that triggers read, each at its own pace.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{
    BrokerSpec, BrokerStatus, Clock, Error, ErrorKind, Event, EventLog, EventPublisher, EventSink, LogEntry,
    Result, Retry, Slot, SpecErrors, Store, Timestamp, TriggerCx, TriggerOptions, TriggerSource, TriggerSpec,
    Version,
};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, sleep, sleep_until},
};

use crate::{metrics::Metrics, under_way::UnderWay};

/// Events that are read from the log in one go.
const PAGE: usize = 256;
/// Events of one trigger that are under way or done out of order at most.
const WINDOW: usize = 4096;
/// Events done after which a trigger's place is stored.
const STORED_EVERY: u64 = 256;
/// How long a trigger's place may go unstored while events keep coming.
const STORED_AFTER: Duration = Duration::from_millis(200);
/// How often a broker looks for events that are past their time, while events come.
const TIDIED_AFTER: Duration = Duration::from_secs(10);
/// How long an event waits that the sink did not take; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The attribute that says where in which broker an event stood.
const POSITION: &str = "sasposition";

/// All brokers of a host, by name.
pub(crate) struct Brokers {
    log: Arc<dyn EventLog>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    by_name: Mutex<BTreeMap<String, Arc<Broker>>>,
    /// Changes whenever a broker is made.
    made: watch::Sender<u64>,
}

impl fmt::Debug for Brokers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Brokers").field("brokers", &self.by_name.lock().len()).finish_non_exhaustive()
    }
}

/// One broker.
pub(crate) struct Broker {
    name: String,
    stream: String,
    spec: Mutex<BrokerSpec>,
    queue: Mutex<Queue>,
    /// The position of the last event.
    last: watch::Sender<u64>,
    /// Events up to here are gone.
    trimmed: AtomicU64,
    tidied: Mutex<Option<Instant>>,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What waits to be written: all that came while one write was under way goes with the next.
#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    events: u64,
    writing: bool,
}

#[derive(Debug)]
struct Waiting {
    records: Vec<Bytes>,
    done: oneshot::Sender<Result<()>>,
}

fn stream_of(name: &str) -> String {
    name.replace('/', ".")
}

fn cursor_prefix(broker: &str) -> String {
    format!("broker/{broker}/cursor/")
}

fn cursor_key(broker: &str, trigger: &str) -> String {
    format!("{}{trigger}", cursor_prefix(broker))
}

/// A record: the time of its acceptance, then the event as structured JSON.
fn encode(event: &Event, at: Timestamp) -> Bytes {
    let text = sas_cloudevents::to_json(event);
    let mut record = Vec::with_capacity(8 + text.len());
    record.extend(at.0.to_be_bytes());
    record.extend(text.as_bytes());
    record.into()
}

fn accepted_at(record: &Bytes) -> Option<Timestamp> {
    let bytes = record.get(..8)?.try_into().ok()?;
    Some(Timestamp(i64::from_be_bytes(bytes)))
}

fn decode(record: &Bytes) -> Result<(Timestamp, Event), String> {
    let at = accepted_at(record).ok_or("is too short")?;
    let event = sas_cloudevents::from_json(&record[8..]).map_err(|error| error.to_string())?;
    Ok((at, event))
}

fn no_broker(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, "broker", format!("there is no broker {name}"))
}

pub(crate) fn check(spec: &BrokerSpec) -> std::result::Result<(), SpecErrors> {
    let mut errors = SpecErrors::default();
    let label = |part: &str| {
        !part.is_empty()
            && part.len() <= 63
            && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    if spec.name.split('/').count() != 2 || !spec.name.split('/').all(label) {
        errors.push(
            "name",
            &spec.name,
            "must be namespace/name, each of lower-case letters, digits and dashes",
        );
    }
    if spec.retention < Duration::from_secs(1) || spec.retention > Duration::from_secs(366 * 86_400) {
        errors.push("retention", format!("{:?}", spec.retention), "must be from 1s to 366 days");
    }
    if !(1..=1_000_000_000).contains(&spec.most_events) {
        errors.push("most_events", spec.most_events, "must be from 1 to 1000000000");
    }
    let mut probe = TriggerSpec::new("a/b", "broker", "a/b");
    probe.options.clone_from(&spec.delivery);
    let mut found = SpecErrors::default();
    let declared = crate::declared::split(&probe, &BTreeMap::new(), &mut found);
    for (name, value) in &declared.own.options {
        found.push(format!("options.{name}"), value, "is no option of the delivery");
    }
    for error in found.0 {
        let field = error.field.strip_prefix("options.").unwrap_or(&error.field).to_owned();
        errors.push(format!("delivery.{field}"), error.value, error.problem);
    }
    errors.into_result()
}

impl Brokers {
    pub(crate) fn new(
        log: Arc<dyn EventLog>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> Arc<Self> {
        let (made, _) = watch::channel(0);
        Arc::new(Self { log, store, clock, metrics, by_name: Mutex::default(), made })
    }

    pub(crate) async fn apply(&self, spec: BrokerSpec) -> Result<()> {
        let known = self.by_name.lock().get(&spec.name).cloned();
        if let Some(broker) = known {
            *broker.spec.lock() = spec;
            // Another host may have taken events for it meanwhile.
            let last = self.log.last(&broker.stream).await?;
            broker.last.send_if_modified(|known| last > std::mem::replace(known, last.max(*known)));
            return Ok(());
        }
        let stream = stream_of(&spec.name);
        let last = self.log.last(&stream).await?;
        let first = self.log.read(&stream, 0, 1).await?.first().map_or(last + 1, |entry| entry.position);
        let (last, _) = watch::channel(last);
        let broker = Broker {
            name: spec.name.clone(),
            stream,
            queue: Mutex::default(),
            last,
            trimmed: AtomicU64::new(first - 1),
            tidied: Mutex::default(),
            spec: Mutex::new(spec),
        };
        self.by_name.lock().insert(broker.name.clone(), Arc::new(broker));
        self.made.send_modify(|count| *count += 1);
        Ok(())
    }

    pub(crate) async fn remove(&self, name: &str) -> Result<()> {
        let broker = self.by_name.lock().remove(name);
        let stream = stream_of(name);
        let last = match &broker {
            Some(broker) => *broker.last.borrow(),
            None => self.log.last(&stream).await?,
        };
        self.log.trim(&stream, last).await?;
        loop {
            let entries = self.store.list(&cursor_prefix(name), None, PAGE).await?;
            if entries.is_empty() {
                return Ok(());
            }
            for entry in entries {
                self.store.delete(&entry.key, entry.version).await?;
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<Arc<Broker>> {
        self.by_name.lock().get(name).cloned().ok_or_else(|| no_broker(name))
    }

    pub(crate) fn spec(&self, name: &str) -> Option<BrokerSpec> {
        self.by_name.lock().get(name).map(|broker| broker.spec.lock().clone())
    }

    /// All brokers; how many triggers read from each is the host's to say.
    pub(crate) fn status(&self) -> Vec<BrokerStatus> {
        let brokers: Vec<Arc<Broker>> = self.by_name.lock().values().cloned().collect();
        let status = brokers.iter().map(|broker| {
            let mut status = BrokerStatus::new(&broker.name);
            status.accepted = *broker.last.borrow();
            status.held = broker.held();
            status
        });
        status.collect()
    }

    /// Gives events to a broker; durable when it returns.
    pub(crate) async fn accept(self: &Arc<Self>, name: &str, events: &[Event]) -> Result<()> {
        let broker = self.get(name)?;
        let limits = self.log.limits();
        let now = self.clock.now();
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            let record = encode(event, now);
            if record.len() > limits.record_bytes {
                let (id, most) = (event.id(), limits.record_bytes);
                let message = format!("event {id} has {} bytes as JSON: at most {most} fit", record.len());
                return Err(Error::new(ErrorKind::InvalidSpec, "accept", message));
            }
            records.push(record);
        }
        if records.is_empty() {
            return Ok(());
        }
        let (count, most) = (records.len() as u64, broker.spec.lock().most_events);
        if broker.held() + count > most {
            self.tidy(&broker).await?;
        }
        let (done, written) = oneshot::channel();
        let begin = {
            let mut queue = broker.queue.lock();
            if broker.held() + queue.events + count > most {
                self.metrics.refused.increment(count);
                let message = format!(
                    "broker {name} holds {} events, and takes {most} at most: a trigger that reads from it is behind",
                    broker.held()
                );
                return Err(Error::new(ErrorKind::Exhausted, "accept", message)
                    .with_retry(Retry::After(Duration::from_secs(1))));
            }
            queue.events += count;
            queue.waiting.push_back(Waiting { records, done });
            !std::mem::replace(&mut queue.writing, true)
        };
        if begin {
            // A task of its own: whoever began it may go away while others wait for it.
            let (brokers, broker) = (Arc::clone(self), Arc::clone(&broker));
            tokio::spawn(async move { brokers.write(&broker).await });
        }
        let lost =
            || Error::new(ErrorKind::Unavailable, "accept", "the platform ended before it was written");
        written.await.map_err(|_| lost())??;
        self.metrics.accepted.increment(count);
        Ok(())
    }

    /// Writes what waits, until nothing does.
    async fn write(&self, broker: &Arc<Broker>) {
        let limits = self.log.limits();
        loop {
            let mut group: Vec<Waiting> = Vec::new();
            {
                let mut queue = broker.queue.lock();
                let (mut events, mut bytes) = (0, 0);
                while let Some(next) = queue.waiting.front() {
                    let size: usize = next.records.iter().map(Bytes::len).sum();
                    let fits = events + next.records.len() <= limits.append_records
                        && bytes + size <= limits.append_bytes;
                    if !group.is_empty() && !fits {
                        break;
                    }
                    (events, bytes) = (events + next.records.len(), bytes + size);
                    group.extend(queue.waiting.pop_front());
                }
                if group.is_empty() {
                    queue.writing = false;
                    return;
                }
            }
            let count: u64 = group.iter().map(|waiting| waiting.records.len() as u64).sum();
            let records: Vec<Bytes> =
                group.iter_mut().flat_map(|waiting| std::mem::take(&mut waiting.records)).collect();
            let written = self.append(broker, records).await;
            broker.queue.lock().events -= count;
            for waiting in group {
                let answer = match &written {
                    Ok(()) => Ok(()),
                    Err(error) => Err(Error::new(error.kind, "accept", error.message.clone())),
                };
                // Whoever does not wait any more does not need the answer.
                let _ = waiting.done.send(answer);
            }
            if broker.tidied.lock().is_none_or(|at| at.elapsed() >= TIDIED_AFTER)
                && let Err(error) = self.tidy(broker).await
            {
                tracing::warn!(broker = broker.name, error = %error.chain(), "old events could not be removed");
            }
        }
    }

    /// Appends one group; a batch that is larger than a commit takes several.
    async fn append(&self, broker: &Broker, records: Vec<Bytes>) -> Result<()> {
        let limits = self.store.limits();
        let mut records = records.into_iter().peekable();
        while records.peek().is_some() {
            let (mut part, mut bytes) = (Vec::new(), 0);
            while let Some(next) = records.peek()
                && (part.is_empty()
                    || (part.len() + 1 < limits.commit_writes && bytes + next.len() <= limits.commit_bytes))
            {
                bytes += next.len();
                part.extend(records.next());
            }
            let last = self.log.append(&broker.stream, None, part).await?;
            broker.last.send_replace(last);
        }
        Ok(())
    }

    /// Removes events that are past their time and that every trigger has taken.
    pub(crate) async fn tidy(&self, broker: &Broker) -> Result<()> {
        *broker.tidied.lock() = Some(Instant::now());
        let (last, trimmed) = (*broker.last.borrow(), broker.trimmed.load(Ordering::Relaxed));
        if last == trimmed {
            return Ok(());
        }
        let retention = broker.spec.lock().retention;
        let old = self.position_of(&broker.stream, trimmed, last, self.clock.now() - retention).await?;
        let mut until = old;
        let prefix = cursor_prefix(&broker.name);
        let mut after: Option<String> = None;
        loop {
            let entries = self.store.list(&prefix, after.as_deref(), PAGE).await?;
            for entry in &entries {
                until = until.min(position(&entry.value, &entry.key)?);
            }
            match entries.last() {
                Some(entry) if entries.len() == PAGE => after = Some(entry.key.clone()),
                _ => break,
            }
        }
        if until > trimmed {
            self.log.trim(&broker.stream, until).await?;
            broker.trimmed.fetch_max(until, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Looks after brokers to which nothing comes any more.
    pub(crate) async fn tidy_all(&self) {
        let brokers: Vec<Arc<Broker>> = self.by_name.lock().values().cloned().collect();
        for broker in brokers {
            if broker.held() > 0
                && let Err(error) = self.tidy(&broker).await
            {
                tracing::warn!(broker = broker.name, error = %error.chain(), "old events could not be removed");
            }
        }
    }

    /// The last position whose event was accepted before `time`, between `first` (which may be gone) and `last`: found by
    /// halving, since times only grow but for small steps of the clock.
    async fn position_of(&self, stream: &str, first: u64, last: u64, time: Timestamp) -> Result<u64> {
        let (mut before, mut after) = (first, last + 1);
        while before + 1 < after {
            let middle = before + (after - before) / 2;
            let found = self.log.read(stream, middle - 1, 1).await?;
            match found.first() {
                Some(entry) if accepted_at(&entry.value).is_some_and(|at| at >= time) => after = middle,
                _ => before = middle,
            }
        }
        Ok(before)
    }

    /// Gives a trigger its place in a broker, if it has none: events that are accepted from now on are its.
    pub(crate) async fn enrol(&self, trigger: &str, broker: &str, start: Start) -> Result<()> {
        let key = cursor_key(broker, trigger);
        if self.store.get(&key).await?.is_some() {
            return Ok(());
        }
        let at = self.start(broker, start).await?;
        match self.store.put(&key, None, at.to_string().into()).await {
            Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
            other => other.map(drop),
        }
    }

    /// Puts a trigger to another place. It must not be running.
    pub(crate) async fn seek(&self, trigger: &str, broker: &str, start: Start) -> Result<()> {
        let key = cursor_key(broker, trigger);
        let at = self.start(broker, start).await?;
        let version = self.store.get(&key).await?.map(|entry| entry.version);
        self.store.put(&key, version, at.to_string().into()).await.map(drop)
    }

    async fn start(&self, broker: &str, start: Start) -> Result<u64> {
        let stream = stream_of(broker);
        let last = self.log.last(&stream).await?;
        match start {
            Start::Latest => Ok(last),
            Start::Earliest => Ok(0),
            Start::At(time) => {
                let first =
                    self.log.read(&stream, 0, 1).await?.first().map_or(last + 1, |entry| entry.position);
                self.position_of(&stream, first - 1, last, time).await
            }
        }
    }

    /// Forgets a trigger that is no more, so that it holds nothing back.
    pub(crate) async fn forget(&self, trigger: &str) -> Result<()> {
        // As the store has them, since another host may run the broker; they are of the trigger's own namespace.
        let namespace = trigger.split('/').next().unwrap_or_default();
        let (prefix, place) = (format!("broker/{namespace}/"), format!("/cursor/{trigger}"));
        let mut after: Option<String> = None;
        loop {
            let entries = self.store.list(&prefix, after.as_deref(), PAGE).await?;
            let last = entries.len() < PAGE;
            for entry in entries {
                if entry.key.ends_with(&place) {
                    self.store.delete(&entry.key, entry.version).await?;
                }
                after = Some(entry.key);
            }
            if last {
                return Ok(());
            }
        }
    }
}

/// How the broker behind a webhook is called beyond its trigger's name.
pub(crate) const HOOK: &str = "~hook";

/// The broker that a webhook's events are kept in until they are delivered.
pub(crate) fn hook_broker(trigger: &str) -> String {
    format!("{trigger}{HOOK}")
}

fn position(value: &Bytes, key: &str) -> Result<u64> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        let message = format!("{key} holds no position; delete the trigger and declare it again");
        Error::new(ErrorKind::InvalidSpec, "broker", message)
    })
}

impl Broker {
    fn held(&self) -> u64 {
        self.last.borrow().saturating_sub(self.trimmed.load(Ordering::Relaxed))
    }
}

/// Takes events for one broker.
#[derive(Debug)]
pub(crate) struct BrokerPublisher {
    pub(crate) brokers: Arc<Brokers>,
    pub(crate) name: String,
}

#[async_trait]
impl EventPublisher for BrokerPublisher {
    async fn publish(&self, event: Event) -> Result<()> {
        self.brokers.accept(&self.name, &[event]).await
    }
}

/// Where a trigger begins that has no place yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Latest,
    Earliest,
    At(Timestamp),
}

/// Reads what the kind `broker` is told.
pub(crate) fn options(spec: &TriggerSpec) -> std::result::Result<(String, Start), SpecErrors> {
    let mut options = TriggerOptions::new(&spec.options, "options.");
    let namespace = spec.name.split('/').next().unwrap_or_default();
    let mut broker = options.required("broker").to_owned();
    if !broker.is_empty() && !broker.contains('/') {
        broker = format!("{namespace}/{broker}");
    }
    if broker.split('/').next() != Some(namespace) && !broker.is_empty() {
        options.wrong(
            "broker",
            &broker,
            format!("must be a broker of the trigger's own namespace, {namespace}"),
        );
    }
    let start = match options.take("start") {
        None | Some("latest") => Start::Latest,
        Some("earliest") => Start::Earliest,
        Some(text) => match text.parse::<jiff::Timestamp>().map(|at| i64::try_from(at.as_nanosecond())) {
            Ok(Ok(at)) => Start::At(Timestamp(at)),
            _ => {
                let problem = "must be latest, earliest, or a time as RFC 3339 has it";
                options.wrong("start", text, problem);
                Start::Latest
            }
        },
    };
    options.finish()?;
    Ok((broker, start))
}

/// Reads a broker for one trigger.
#[derive(Debug)]
pub(crate) struct BrokerSource {
    kind: &'static str,
    brokers: Arc<Brokers>,
    broker: String,
    /// Every event up to here is settled.
    settled: AtomicU64,
    /// Events after that which are settled too.
    ahead: AtomicU64,
    oldest: Mutex<Option<Timestamp>>,
}

impl BrokerSource {
    pub(crate) fn new(kind: &'static str, brokers: Arc<Brokers>, broker: String) -> Self {
        Self {
            kind,
            brokers,
            broker,
            settled: AtomicU64::new(u64::MAX),
            ahead: AtomicU64::new(0),
            oldest: Mutex::default(),
        }
    }
}

type Ready = Pin<Box<dyn Future<Output = Result<Slot>> + Send>>;

/// One run of the loop.
struct Run<'a> {
    source: &'a BrokerSource,
    cx: &'a TriggerCx,
    broker: Arc<Broker>,
    key: String,
    version: Option<Version>,
    /// Every event up to here is settled.
    settled: u64,
    /// What of `settled` is stored.
    stored: u64,
    stored_at: Instant,
    /// Events that were read and are not settled, with the time of their acceptance; settled ones stay until all before
    /// them are.
    window: BTreeMap<u64, (Timestamp, bool)>,
    /// Settled ones among them.
    ahead: u64,
    /// Up to where the log was read.
    read: u64,
    buffer: VecDeque<(u64, Event)>,
    sending: UnderWay<Vec<u64>>,
}

#[async_trait]
impl TriggerSource for BrokerSource {
    fn kind(&self) -> &'static str {
        self.kind
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let mut made = self.brokers.made.subscribe();
        let broker = loop {
            made.borrow_and_update();
            if let Ok(broker) = self.brokers.get(&self.broker) {
                break broker;
            }
            // Declared before its broker: nothing is lost meanwhile, and nothing spins.
            tokio::select! {
                biased;
                () = cx.shutdown.cancelled() => return Ok(()),
                changed = made.changed() => if changed.is_err() { return Ok(()) },
            }
        };
        let key = cursor_key(&self.broker, &cx.name);
        let entry = self.brokers.store.get(&key).await?;
        let version = entry.as_ref().map(|entry| entry.version);
        let settled = match entry {
            Some(entry) => position(&entry.value, &key)?,
            None => *broker.last.borrow(),
        };
        let mut run = Run {
            source: self,
            cx: &cx,
            broker,
            key,
            version,
            settled,
            stored: settled,
            stored_at: Instant::now(),
            window: BTreeMap::new(),
            ahead: 0,
            read: settled,
            buffer: VecDeque::new(),
            sending: UnderWay::new(),
        };
        run.tell();
        run.drive().await
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        let settled = self.settled.load(Ordering::Relaxed);
        let Ok(broker) = self.brokers.get(&self.broker) else { return Ok(None) };
        if settled == u64::MAX {
            return Ok(None);
        }
        let last = *broker.last.borrow();
        Ok(Some(last.saturating_sub(settled).saturating_sub(self.ahead.load(Ordering::Relaxed))))
    }

    fn oldest(&self) -> Option<Timestamp> {
        *self.oldest.lock()
    }
}

impl Run<'_> {
    async fn drive(&mut self) -> Result<()> {
        let mut appended = self.broker.last.subscribe();
        let mut room: Option<Ready> = None;
        loop {
            let last = *appended.borrow_and_update();
            if self.buffer.is_empty() && self.read < last && self.window.len() < WINDOW {
                self.read_more().await?;
            }
            if room.is_none() && !self.buffer.is_empty() {
                let sink = Arc::clone(&self.cx.sink);
                room = Some(Box::pin(async move { sink.ready().await }));
            }
            let waits = self.buffer.is_empty() && self.read >= last;
            let unstored = self.settled > self.stored;
            // At once when there is nothing else to do. Between two events it is not: with one under way at a time, or a target that
            // answers at once, each would cost a flush of the disk.
            if unstored
                && ((waits && self.sending.is_empty())
                    || self.settled - self.stored >= STORED_EVERY
                    || self.stored_at.elapsed() >= STORED_AFTER)
            {
                self.store().await?;
                continue;
            }
            tokio::select! {
                biased;
                () = self.cx.shutdown.cancelled() => return self.finish().await,
                Some(done) = self.sending.next() => self.settle(&done),
                slot = async { room.as_mut().expect("guarded by the condition").await }, if room.is_some() => {
                    room = None;
                    self.send(slot?);
                }
                changed = appended.changed(), if waits => if changed.is_err() { return self.finish().await },
                () = sleep_until(self.stored_at + STORED_AFTER), if unstored => {}
            }
        }
    }

    async fn read_more(&mut self) -> Result<()> {
        let read = self.source.brokers.log.read(&self.broker.stream, self.read, PAGE);
        let entries = self.sending.meanwhile(read).await?;
        if entries.is_empty() {
            // What was there is gone: removed with its broker.
            self.read = *self.broker.last.borrow();
        }
        for LogEntry { position, value } in entries {
            self.read = position;
            match decode(&value) {
                Ok((at, event)) => {
                    let place = format!("{}@{position}", self.broker.name);
                    let marked = event
                        .with_extension(POSITION, place)
                        .map_err(|error| Error::new(ErrorKind::Unexpected, "broker", error.to_string()))?;
                    self.window.insert(position, (at, false));
                    self.buffer.push_back((position, marked));
                }
                Err(problem) => {
                    tracing::error!(
                        broker = self.broker.name,
                        position,
                        problem,
                        "is no event; it is left out"
                    );
                    self.source.brokers.metrics.damaged.increment(1);
                    self.window.insert(position, (Timestamp(0), true));
                    self.ahead += 1;
                }
            }
        }
        self.advance();
        Ok(())
    }

    /// Sends the next events with this slot.
    fn send(&mut self, slot: Slot) {
        let most = self.cx.sink.batch_limit().max(1).min(self.buffer.len());
        let (positions, events): (Vec<u64>, Vec<Event>) = self.buffer.drain(..most).unzip();
        let sink = Arc::clone(&self.cx.sink);
        self.sending.push(deliver(sink, slot, positions, events));
    }

    fn settle(&mut self, positions: &[u64]) {
        for position in positions {
            if let Some((_, done)) = self.window.get_mut(position) {
                *done = true;
                self.ahead += 1;
            }
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(entry) = self.window.first_entry()
            && entry.get().1
        {
            self.settled = *entry.key();
            self.ahead -= 1;
            entry.remove();
        }
        if self.window.is_empty() {
            self.settled = self.settled.max(self.read);
        }
        self.tell();
    }

    /// What others may know of it.
    fn tell(&self) {
        self.source.settled.store(self.settled, Ordering::Relaxed);
        self.source.ahead.store(self.ahead, Ordering::Relaxed);
        // The first one is never settled: it would have left the window.
        *self.source.oldest.lock() = self.window.values().next().map(|(at, _)| *at);
    }

    async fn store(&mut self) -> Result<()> {
        let value = self.settled.to_string();
        let put = self.source.brokers.store.put(&self.key, self.version, value.into());
        self.version = Some(self.sending.meanwhile(put).await?);
        self.stored = self.settled;
        self.stored_at = Instant::now();
        Ok(())
    }

    /// After the shutdown: what is under way is given a moment; the rest comes again with the next run.
    async fn finish(&mut self) -> Result<()> {
        let moment = Instant::now() + Duration::from_millis(500);
        while let Ok(Some(done)) = tokio::time::timeout_at(moment, self.sending.next()).await {
            self.settle(&done);
        }
        if self.settled > self.stored {
            self.store().await?;
        }
        Ok(())
    }
}

/// Offers events until the sink has taken all of them.
async fn deliver(
    sink: Arc<dyn EventSink>,
    slot: Slot,
    positions: Vec<u64>,
    mut events: Vec<Event>,
) -> Vec<u64> {
    let mut slot = Some(slot);
    let mut wait = FIRST_WAIT;
    loop {
        let room = match slot.take() {
            Some(slot) => Ok(slot),
            None => sink.ready().await,
        };
        if let Ok(room) = room {
            let answers = match &events[..] {
                [event] => vec![sink.deliver(room, event.clone()).await],
                _ => sink.deliver_batch(room, events.clone()).await,
            };
            let mut kept = Vec::new();
            for (event, answer) in events.into_iter().zip(answers) {
                if let Err(error) = answer {
                    tracing::debug!(event = event.id(), error = %error.chain(), ?wait, "offered again later");
                    kept.push(event);
                }
            }
            events = kept;
        }
        if events.is_empty() {
            return positions;
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}
