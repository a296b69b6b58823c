//! The source: a member of a consumer group.

use std::{
    sync::{Arc, Mutex, PoisonError, Weak},
    task::Poll,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use krafka::{
    CloseOptions, Kafka,
    consumer::{
        AutoOffsetReset, Consumer, ConsumerRecord, GroupProtocol, IsolationLevel, PartitionAssignmentStrategy,
    },
    error::KrafkaError,
};
use sas_core::{
    Error, Result, Slot, SpecErrors, Timestamp, TriggerCx, TriggerOptions, TriggerSecrets, TriggerSource,
    TriggerSpec,
};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::{
    access::{ANSWER, Access, KafkaBrokers, failed, missed},
    group::{Group, Start},
    ledger::{Ledger, Ordering, Receipt, Work},
    members::{Members, Shared, commit},
    record::Record,
};

/// Records that wait here at most, and their bytes: what comes beyond is left with the broker.
const WAITING: (usize, usize) = (512, 16 << 20);
/// Records of one poll.
const POLLED: i32 = 256;
/// Bytes of one answer of a broker.
const FETCHED: i32 = 8 << 20;
/// How long a broker holds a request for records while there are none.
const IDLE: Duration = Duration::from_secs(2);
/// How long the client waits before it looks again whether there is something to ask for, while all partitions are held or
/// none is this host's. What goes on again wakes it.
const LOOKS: Duration = Duration::from_millis(100);
/// How far polls that bring nothing are apart at least, whatever the client answers them at once for.
const PAUSE: Duration = Duration::from_millis(20);
/// How long after a delivery the group's offset follows: so much comes again after a crash.
const COMMIT: Duration = Duration::from_millis(100);
/// Between two signs of life to the group, in the classic protocol.
const HEARTBEAT: Duration = Duration::from_secs(3);
/// How long deliveries under way are waited for at the end, and then the broker.
const GRACE: Duration = Duration::from_secs(5);
/// The same, when the run failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

impl KafkaBrokers {
    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<KafkaSource, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let access = Access::read(&mut options, &self.allowed);
        let mut topics: Vec<String> = options.list("topics").into_iter().map(str::to_owned).collect();
        topics.sort_unstable();
        topics.dedup();
        if topics.is_empty() {
            options.wrong("topics", "", "must name a topic, or several with commas between them");
        }
        for topic in &topics {
            let plain = topic.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
            if !plain || topic.len() > 249 || topic == "." || topic == ".." {
                options.wrong(
                    "topics",
                    topic,
                    "a topic's name has 1 to 249 letters, digits, dots, dashes and underscores",
                );
            }
        }
        let group = options.take("group").filter(|group| !group.is_empty()).unwrap_or(&spec.name).to_owned();
        let member = options.take("consumer").filter(|name| !name.is_empty()).map(str::to_owned);
        let start =
            options.word("start", &[("latest", Start::Latest), ("earliest", Start::Earliest)], Start::Latest);
        let orderings =
            [("key", Ordering::Key), ("partition", Ordering::Partition), ("none", Ordering::None)];
        let ordering = options.word("ordering", &orderings, Ordering::Key);
        let protocols = [("consumer", GroupProtocol::Consumer), ("classic", GroupProtocol::Classic)];
        let protocol = options.word("group-protocol", &protocols, GroupProtocol::Consumer);
        let given = options.has("session-timeout");
        let session = options.span("session-timeout", Duration::from_secs(1800), Duration::from_secs(45));
        if given && protocol == GroupProtocol::Consumer {
            options.wrong(
                "session-timeout",
                &format!("{session:?}"),
                "is the broker's to say (group.consumer.session.timeout.ms), unless `group-protocol` is classic",
            );
        } else if session < Duration::from_secs(6) {
            options.wrong(
                "session-timeout",
                &format!("{session:?}"),
                "must be at least 6s, the least that brokers take",
            );
        }
        options.finish()?;
        let group = Group { name: group, topics, start };
        Ok(KafkaSource { access, group, member, ordering, protocol, session, asking: Mutex::default() })
    }
}

/// What questions for the backlog are asked with.
#[derive(Debug, Default)]
struct Asking {
    /// Those of the run that began last.
    secrets: Option<TriggerSecrets>,
    client: Option<Kafka>,
    shared: Weak<Shared>,
}

/// The records of topics as events, read as a member of a consumer group.
#[derive(Debug)]
pub struct KafkaSource {
    access: Access,
    group: Group,
    member: Option<String>,
    ordering: Ordering,
    protocol: GroupProtocol,
    /// Of the classic protocol.
    session: Duration,
    asking: Mutex<Asking>,
}

/// What became of work: an answer for each of its records; `None`: it was broken off.
type Delivered = (Receipt, Option<Vec<Result<()>>>);
type Polled = BoxFuture<'static, std::result::Result<Vec<ConsumerRecord>, KrafkaError>>;

impl KafkaSource {
    fn asking(&self) -> std::sync::MutexGuard<'_, Asking> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Connects, and makes what reads as a member of the group. It is none before it has read.
    async fn join<'a>(&self, cx: &'a TriggerCx) -> Result<Run<'a>> {
        let client = self.access.connect(&cx.secrets).await?;
        let shared = Arc::new(Shared::new(Ledger::new(self.ordering, cx.sink.batch_limit())));
        *self.asking() = Asking {
            secrets: Some(cx.secrets.clone()),
            client: Some(client.clone()),
            shared: Arc::downgrade(&shared),
        };
        self.group.begin(&client.admin()).await?;
        let members = Arc::new(Members::new(Arc::clone(&shared)));
        let mut building = client
            .consumer(&self.group.name)
            // Only where the log no longer has what the group stands at, and in partitions that are younger than the group.
            .auto_offset_reset(AutoOffsetReset::Earliest)
            .enable_auto_commit(false)
            .isolation_level(IsolationLevel::ReadCommitted)
            .group_protocol(self.protocol)
            .max_poll_records(POLLED)
            .fetch_max_bytes(FETCHED)
            .fetch_max_wait(IDLE)
            // At its own bound of records that it has ahead, the client answers a poll at once while the partitions are held,
            // and again each time. What it has ahead is what one poll takes and as much again, without that bound too.
            .max_buffered_records(0)
            .idle_poll_backoff(LOOKS)
            .metrics_push(false)
            .rebalance_listener(Arc::clone(&members));
        if self.protocol == GroupProtocol::Classic {
            building = building
                .partition_assignment_strategy(PartitionAssignmentStrategy::CooperativeSticky)
                .session_timeout(self.session)
                .heartbeat_interval((self.session / 4).min(HEARTBEAT));
        }
        if let Some(member) = &self.member {
            building = building.group_instance_id(member);
        }
        let consumer = Arc::new(building.build().await.map_err(failed("a consumer"))?);
        members.serve(&consumer);
        consumer.subscribe(&self.group.topics).await.map_err(failed("subscribing"))?;
        Ok(Run {
            cx,
            client,
            consumer,
            shared,
            polling: None,
            under_way: FuturesUnordered::new(),
            failure: None,
            left: false,
        })
    }
}

/// One run of the source.
struct Run<'a> {
    cx: &'a TriggerCx,
    client: Kafka,
    consumer: Arc<Consumer>,
    shared: Arc<Shared>,
    /// Never dropped before its end: a change of the group's members is within.
    polling: Option<Polled>,
    under_way: FuturesUnordered<BoxFuture<'static, Delivered>>,
    /// Why the run ends: of a delivery that failed.
    failure: Option<Error>,
    /// Whether it left the group.
    left: bool,
}

/// A run that is dropped leaves the group, as fast as messages go: the client would keep it a member for minutes. It commits
/// nothing, as if its host had crashed.
impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.left {
            return;
        }
        let places = self.shared.ledger().places();
        self.shared.ledger().remove(&places);
        let (consumer, polling) = (Arc::clone(&self.consumer), self.polling.take());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { leave(&consumer, polling, GRACE).await });
        }
    }
}

/// Leaves the group. A poll that is under way goes to its end before: the client forgets that it asked to be a member when it
/// is not let to hear the answer, and the broker would keep that member, and partitions for it, until its session is over.
async fn leave(consumer: &Consumer, polling: Option<Polled>, within: Duration) {
    if let Some(mut polling) = polling {
        let ending = async {
            loop {
                // It ends what waits for records, now or after the poll has become a member.
                consumer.wakeup();
                tokio::select! {
                    biased;
                    _ = &mut polling => return,
                    () = sleep(PAUSE) => {}
                }
            }
        };
        let _ = timeout(within, ending).await;
    }
    if let Err(error) = consumer.close_with(CloseOptions::new().timeout(within)).await {
        tracing::debug!(%error, "leaving the group");
    }
}

/// Waits for records, once.
fn poll(consumer: &Arc<Consumer>) -> Polled {
    let consumer = Arc::clone(consumer);
    Box::pin(async move {
        let soonest = Instant::now() + PAUSE;
        let polled = consumer.poll(IDLE).await;
        if !matches!(&polled, Ok(records) if !records.is_empty()) {
            sleep_until(soonest).await;
        }
        polled
    })
}

impl Run<'_> {
    async fn pull(&mut self) -> Result<()> {
        let sink = Arc::clone(&self.cx.sink);
        let shutdown = self.cx.shutdown.clone();
        let mut room: Option<BoxFuture<'static, Result<Slot>>> = None;
        let mut committing: Option<BoxFuture<'static, Result<()>>> = None;
        let mut commit_at: Option<Instant> = None;
        let mut paused = false;
        loop {
            if let Some(failure) = self.failure.take() {
                return Err(failure);
            }
            let (count, bytes) = self.shared.ledger().waiting();
            let full = count >= WAITING.0 || bytes >= WAITING.1;
            if full && !paused {
                self.hold(true).await;
            } else if paused && !full {
                self.hold(false).await;
                self.consumer.wakeup();
            }
            paused = full;
            let polling = self.polling.get_or_insert_with(|| poll(&self.consumer));
            if room.is_none() && self.shared.ledger().has_work() {
                let sink = Arc::clone(&sink);
                room = Some(Box::pin(async move { sink.ready().await }));
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                Some(delivered) = self.under_way.next() => {
                    self.over(delivered);
                    commit_at.get_or_insert_with(|| Instant::now() + COMMIT);
                }
                () = some(committing.as_mut()) => {
                    committing = None;
                }
                () = until(commit_at), if committing.is_none() => {
                    commit_at = None;
                    committing = Some(self.commit());
                }
                slot = answer(room.as_mut()) => {
                    room = None;
                    let work = self.shared.ledger().next();
                    if let Some(work) = work {
                        self.begin(slot?, work)?;
                        commit_at.get_or_insert_with(|| Instant::now() + COMMIT);
                    }
                }
                polled = polling => {
                    self.polling = None;
                    match polled {
                        Ok(records) if records.is_empty() => {
                            // The client would try for ever, with the credentials of then.
                            if self.client.metrics().connections.active_connections == 0 {
                                return Err(away());
                            }
                            self.stand().await;
                            commit_at.get_or_insert_with(|| Instant::now() + COMMIT);
                        }
                        Ok(records) => self.read(records),
                        Err(KrafkaError::Wakeup) => {}
                        Err(error) => return Err(failed("reading")(error)),
                    }
                }
            }
        }
    }

    /// Pauses what is this host's, or goes on. Records of a partition that comes meanwhile are held from the next turn on.
    async fn hold(&mut self, hold: bool) {
        for (topic, partitions) in self.consumer.assignment().await {
            if hold {
                self.consumer.pause(&topic, &partitions).await;
            } else {
                self.consumer.resume(&topic, &partitions).await;
            }
        }
    }

    fn read(&self, records: Vec<ConsumerRecord>) {
        let mut ledger = self.shared.ledger();
        for record in records {
            let leader_epoch = record.leader_epoch;
            let record = Record {
                topic: record.topic.to_string(),
                partition: record.partition,
                offset: record.offset,
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: record.headers,
            };
            ledger.read(record, leader_epoch);
        }
    }

    /// Notes where the consumer stands in partitions of which nothing is left: a transaction's marker is no record, and
    /// would be counted as one that waits.
    async fn stand(&mut self) {
        let idle = self.shared.ledger().idle();
        for place in idle {
            if let Some(position) = self.consumer.position(&place.0, place.1).await {
                self.shared.ledger().stands_at(&place, position);
            }
        }
    }

    fn begin(&mut self, slot: Slot, work: Work) -> Result<()> {
        let receipt = work.receipt();
        let mut events = Vec::with_capacity(work.records.len());
        for record in &work.records {
            events.push(record.event()?);
        }
        let (sink, abandoned) = (Arc::clone(&self.cx.sink), work.abandoned);
        let mut delivery: BoxFuture<'static, Delivered> = Box::pin(async move {
            let answers = async {
                if events.len() == 1
                    && let Some(event) = events.pop()
                {
                    return vec![sink.deliver(slot, event).await.map(drop)];
                }
                sink.deliver_batch(slot, events).await.into_iter().map(|answer| answer.map(drop)).collect()
            };
            tokio::select! {
                biased;
                () = abandoned.cancelled() => (receipt, None),
                answers = answers => (receipt, Some(answers)),
            }
        });
        // Begun at once, so that the sink gets events in the partition's order.
        match now(&mut delivery) {
            Some(delivered) => self.over(delivered),
            None => self.under_way.push(delivery),
        }
        Ok(())
    }

    fn over(&mut self, (receipt, answers): Delivered) {
        let answers = answers.unwrap_or_default();
        self.shared.over(&receipt, |at| matches!(answers.get(at), Some(Ok(()))));
        for answer in answers {
            if let Err(error) = answer {
                self.failure.get_or_insert(error);
            }
        }
    }

    fn commit(&self) -> BoxFuture<'static, Result<()>> {
        let (consumer, shared) = (Arc::clone(&self.consumer), Arc::clone(&self.shared));
        Box::pin(async move { commit(&consumer, &shared, None).await })
    }

    /// What is under way is waited for, for a while, and what was delivered is committed, so that it does not come twice for
    /// the sake of another.
    async fn end(&mut self, grace: Duration) {
        let all = async {
            while let Some(delivered) = self.under_way.next().await {
                self.shared.over(&delivered.0, |at| {
                    matches!(delivered.1.as_ref().and_then(|answers| answers.get(at)), Some(Ok(())))
                });
            }
        };
        let _ = timeout(grace, all).await;
        self.under_way.clear();
        if let Ok(Err(error)) = timeout(grace, commit(&self.consumer, &self.shared, None)).await {
            tracing::debug!(%error, "offsets are not committed at the end: records come again");
        }
        let places = self.shared.ledger().places();
        self.shared.ledger().remove(&places);
        leave(&self.consumer, self.polling.take(), grace).await;
        self.left = true;
    }
}

fn away() -> Error {
    Error::new(sas_core::ErrorKind::Unavailable, "kafka", "no broker answers, or none takes the credentials")
}

/// The end of what may be there; never, if it is not. A commit that failed is made again with the next.
async fn some(committing: Option<&mut BoxFuture<'static, Result<()>>>) {
    match committing {
        Some(committing) => {
            if let Err(error) = committing.await {
                tracing::warn!(%error, "offsets are not committed");
            }
        }
        None => std::future::pending().await,
    }
}

async fn answer(room: Option<&mut BoxFuture<'static, Result<Slot>>>) -> Result<Slot> {
    match room {
        Some(room) => room.await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// What a future gives when it is asked once; `None`: it goes on.
fn now<T>(future: &mut BoxFuture<'static, T>) -> Option<T> {
    use std::task::{Context, Waker};
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => Some(value),
        Poll::Pending => None,
    }
}

#[async_trait]
impl TriggerSource for KafkaSource {
    fn kind(&self) -> &'static str {
        "kafka"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let mut run = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => return Ok(()),
            joined = self.join(&cx) => joined?,
        };
        let ended = run.pull().await;
        run.end(if ended.is_ok() { GRACE } else { AFTER_FAILURE }).await;
        ended
    }

    /// What the group has not taken: unread, and read and not delivered.
    async fn backlog(&self) -> Result<Option<u64>> {
        let (secrets, client) = {
            let asking = self.asking();
            (asking.secrets.clone(), asking.client.clone())
        };
        let Some(secrets) = secrets else { return Ok(None) };
        let asked = async {
            let client = match client {
                Some(client) => client,
                None => self.access.connect(&secrets).await?,
            };
            Ok((self.group.backlog(&client.admin()).await?, client))
        };
        // The client tries far longer than whoever scales by the answer should wait for it.
        let answer = timeout(ANSWER, asked).await.unwrap_or_else(|_| Err(missed("the backlog")));
        // After a failure the next question is asked by a new connection, with the credentials as they are then.
        let (backlog, client) = answer
            .map_or_else(|error| (Err(error), None), |(backlog, client)| (Ok(Some(backlog)), Some(client)));
        self.asking().client = client;
        backlog
    }

    fn oldest(&self) -> Option<Timestamp> {
        let shared = self.asking().shared.upgrade()?;
        let oldest = shared.ledger().oldest()?;
        Some(Timestamp::from_millis(oldest))
    }
}
