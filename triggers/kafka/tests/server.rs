//! Against a real Apache Kafka, which the tests start on free ports of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

mod broker;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use broker::{Broker, produce};
use krafka::{
    Record,
    admin::{AdminClient, ListConsumerGroupOffsetsOptions},
};
use sas_core::{
    Ack, Event, EventSink, SinkSpec, Slot, Store, SystemClock, TriggerCx, TriggerSecrets, TriggerSource,
    TriggerSpec,
};
use sas_kafka::{KafkaBrokers, KafkaSource};
use sas_testkit::fake::{FakeEventSink, FakeStore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn spec(broker: &Broker, topic: &str) -> TriggerSpec {
    TriggerSpec::new(topic, "kafka", "default/orders")
        .with_option("brokers", broker.address())
        .with_option("topics", topic)
        .with_option("start", "earliest")
        .with_option("session-timeout", "6s")
}

fn source(broker: &Broker, spec: &TriggerSpec) -> Arc<KafkaSource> {
    Arc::new(KafkaBrokers::new([broker.address()]).source(spec).unwrap())
}

type Running = (tokio::task::JoinHandle<sas_core::Result<()>>, CancellationToken);

fn run(source: &Arc<KafkaSource>, sink: &Arc<impl EventSink>) -> Running {
    run_with(source, sink, TriggerSecrets::default())
}

fn run_with(source: &Arc<KafkaSource>, sink: &Arc<impl EventSink>, secrets: TriggerSecrets) -> Running {
    let shutdown = CancellationToken::new();
    let store: Arc<dyn Store> = Arc::new(FakeStore::default());
    let cx = TriggerCx::new("orders", Arc::clone(sink) as _, store, Arc::new(SystemClock), shutdown.clone())
        .with_secrets(secrets);
    let source = Arc::clone(source);
    (tokio::spawn(async move { source.run(cx).await }), shutdown)
}

async fn stop((task, shutdown): Running) {
    shutdown.cancel();
    task.await.unwrap().unwrap();
}

fn number(event: &Event) -> usize {
    std::str::from_utf8(event.data()).unwrap().parse().unwrap()
}

/// The group's offsets by partition, as the broker has them.
async fn offsets(admin: &AdminClient, group: &str) -> BTreeMap<i32, i64> {
    let known = admin.list_consumer_group_offsets(group, ListConsumerGroupOffsetsOptions::default()).await;
    let known = known.unwrap().into_iter();
    known.filter_map(|(part, offset)| Some((part.partition(), offset.unwrap().offset?))).collect()
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Notes what is under way and what was delivered, and takes as long for each as its number says. Two of a key at once, or
/// out of order, are noted as violations.
#[derive(Debug, Default)]
struct Order {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    running: HashSet<String>,
    /// The last of each key.
    last: HashMap<String, usize>,
    delivered: BTreeSet<usize>,
    /// Offsets that were delivered, by partition.
    offsets: BTreeMap<i32, BTreeSet<i64>>,
    repeated: usize,
    violations: Vec<String>,
}

fn position(event: &Event) -> (i32, i64) {
    let text = event.extensions()["sasposition"].to_text().into_owned();
    let (partition, offset) = text.split_once('/').unwrap().1.split_once('@').unwrap();
    (partition.parse().unwrap(), offset.parse().unwrap())
}

#[async_trait]
impl EventSink for Order {
    async fn ready(&self) -> sas_core::Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, _slot: Slot, event: Event) -> sas_core::Result<Ack> {
        let (number, key) = (number(&event), event.extensions()["partitionkey"].to_text().into_owned());
        if !self.seen.lock().unwrap().running.insert(key.clone()) {
            self.seen.lock().unwrap().violations.push(format!("{key}: two at once, {number}"));
        }
        tokio::time::sleep(Duration::from_millis((number as u64 * 7) % 5)).await;
        let mut seen = self.seen.lock().unwrap();
        seen.running.remove(&key);
        if seen.delivered.insert(number) {
            if let Some(last) = seen.last.insert(key.clone(), number)
                && last > number
            {
                seen.violations.push(format!("{key}: {number} after {last}"));
            }
        } else {
            seen.repeated += 1;
        }
        let (partition, offset) = position(&event);
        seen.offsets.entry(partition).or_default().insert(offset);
        Ok(Ack::Completed)
    }
}

impl Order {
    fn delivered(&self) -> usize {
        self.seen.lock().unwrap().delivered.len()
    }

    /// The broker's offsets are not ahead: all before them was delivered.
    fn holds(&self, offsets: &BTreeMap<i32, i64>) {
        let seen = self.seen.lock().unwrap();
        for (partition, offset) in offsets {
            let delivered = seen.offsets.get(partition);
            for before in 0..*offset {
                assert!(
                    delivered.is_some_and(|delivered| delivered.contains(&before)),
                    "partition {partition}: {before} was not delivered, and the group is at {offset}"
                );
            }
        }
    }
}

/// What a running broker is for: one is started for all that follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_as_a_group_and_written() {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let Some(broker) = Broker::start().await else { return };
    let began = Instant::now();
    let passed = |what: &str| println!("{what}: {:?}", began.elapsed());
    ordered_by_key_committed_after_delivery_and_counted(&broker).await;
    passed("ordered by key, committed after delivery, counted");
    two_hosts_share_the_partitions(&broker).await;
    passed("two hosts share the partitions");
    a_failed_delivery_comes_again(&broker).await;
    passed("a failed delivery comes again");
    a_group_begins_where_it_is_told(&broker).await;
    passed("a group begins where it is told");
    events_of_each_form_come_and_go(&broker).await;
    passed("events of each form come and go");
    batches_succeed_in_part(&broker).await;
    passed("batches succeed in part");
    markers_of_transactions_do_not_wait(&broker).await;
    passed("markers of transactions do not wait");
}

async fn ordered_by_key_committed_after_delivery_and_counted(broker: &Broker) {
    broker.topic("ordered", 4).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "ordered", 0..2000, 37).await;
    let source = source(broker, &spec(broker, "ordered"));
    assert_eq!(source.backlog().await.unwrap(), None, "not known before it has connected");
    let sink = Arc::new(Order::default());
    let running = run(&source, &sink);
    until("some come", async || sink.delivered() > 100).await;
    // Asked before it is looked what was delivered meanwhile: never ahead.
    let asked = offsets(&admin, "ordered").await;
    sink.holds(&asked);
    let most = source.backlog().await.unwrap().unwrap();
    assert!(most > 0 && most <= 2000 - asked.values().sum::<i64>() as u64, "{most}");
    until("all come", async || sink.delivered() == 2000).await;
    until("all are committed", async || offsets(&admin, "ordered").await.values().sum::<i64>() == 2000).await;
    assert_eq!((source.backlog().await.unwrap(), source.oldest()), (Some(0), None));
    stop(running).await;
    let seen = sink.seen.lock().unwrap();
    assert_eq!((seen.violations.as_slice(), seen.repeated), ([].as_slice(), 0));
    drop(seen);

    // With nobody who reads, the backlog is the broker's own number.
    produce(&producer, "ordered", 2000..2070, 37).await;
    assert_eq!(source.backlog().await.unwrap(), Some(70));
    producer.close().await.unwrap();
}

async fn two_hosts_share_the_partitions(broker: &Broker) {
    broker.topic("shared", 4).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "shared", 0..1000, 31).await;
    // One sink for both hosts: what is under way on one counts for the other.
    let sink = Arc::new(Order::default());
    let (first, second) = (source(broker, &spec(broker, "shared")), source(broker, &spec(broker, "shared")));
    let one = run(&first, &sink);
    until("some come", async || sink.delivered() > 300).await;
    let other = run(&second, &sink);
    for round in 1..6 {
        produce(&producer, "shared", round * 1000..(round + 1) * 1000, 31).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        sink.holds(&offsets(&admin, "shared").await);
    }
    until("all come", async || sink.delivered() == 6000).await;
    stop(one).await;
    produce(&producer, "shared", 6000..7000, 31).await;
    until("the other goes on alone", async || sink.delivered() == 7000).await;
    until("all are committed", async || offsets(&admin, "shared").await.values().sum::<i64>() == 7000).await;
    stop(other).await;
    let seen = sink.seen.lock().unwrap();
    println!("two hosts: 7000 events, {} twice", seen.repeated);
    assert_eq!((seen.violations.as_slice(), seen.repeated), ([].as_slice(), 0));
    drop(seen);
    producer.close().await.unwrap();
}

async fn a_failed_delivery_comes_again(broker: &Broker) {
    broker.topic("failed", 1).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "failed", 0..20, 3).await;
    let (source, sink) = (source(broker, &spec(broker, "failed")), FakeEventSink::new(4));
    sink.fail_next(sas_core::ErrorKind::Unavailable);
    let (task, _shutdown) = run(&source, &sink);
    task.await.unwrap().expect_err("a delivery failed");
    assert_eq!(offsets(&admin, "failed").await[&0], 0, "the first was not delivered");
    assert_eq!(source.backlog().await.unwrap(), Some(20));
    let running = run(&source, &sink);
    until("all come", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 20).await;
    until("all are committed", async || offsets(&admin, "failed").await[&0] == 20).await;
    stop(running).await;
    producer.close().await.unwrap();
}

async fn a_group_begins_where_it_is_told(broker: &Broker) {
    broker.topic("begin", 2).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "begin", 0..100, 10).await;
    let spec = spec(broker, "begin").with_option("start", "latest");
    let (source, sink) = (source(broker, &spec), FakeEventSink::new(4));
    let running = run(&source, &sink);
    until("the group has begun", async || offsets(&admin, "begin").await.values().sum::<i64>() == 100).await;
    stop(running).await;
    // It was its own from then on, though no host read: also in a partition that is younger.
    produce(&producer, "begin", 100..110, 10).await;
    let grown =
        admin.create_partitions([("begin", 3)], krafka::admin::CreatePartitionsOptions::default()).await;
    grown.unwrap().remove("begin").unwrap().unwrap();
    // Another producer, since the first knows two partitions for a while.
    until("the partition is there", async || {
        let producer = broker.producer().await;
        let sent = producer.send(Record::new("begin", "110").key("k").partition(2)).await.is_ok();
        producer.close().await.unwrap();
        sent
    })
    .await;
    assert_eq!(source.backlog().await.unwrap(), Some(11));
    let running = run(&source, &sink);
    until("all since then come", async || sink.delivered().len() == 11).await;
    let came: BTreeSet<usize> = sink.delivered().iter().map(number).collect();
    assert_eq!(came, (100..111).collect());
    stop(running).await;
    producer.close().await.unwrap();
}

async fn events_of_each_form_come_and_go(broker: &Broker) {
    broker.topic("forms", 1).await;
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_subject("grüße"))
        .and_then(|event| event.with_extension("partitionkey", "anna"))
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .unwrap();
    let brokers = KafkaBrokers::new([broker.address()]);
    for mode in ["binary", "structured"] {
        let options = BTreeMap::from(
            [("brokers", broker.address().as_str()), ("topic", "forms"), ("mode", mode)]
                .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let sink = brokers.sink(&SinkSpec::new("default/t", "kafka", options), TriggerSecrets::default());
        sink.unwrap().publish(event.clone()).await.unwrap();
    }
    let producer = broker.producer().await;
    let _ = producer.send(Record::new("forms", "plain").key("k").header("Trace-Id", "t")).await.unwrap();
    let _ = producer.send(Record::new("forms", "{}").header("ce_specversion", "1.0")).await.unwrap();
    let (source, sink) = (source(broker, &spec(broker, "forms")), FakeEventSink::new(4));
    let running = run(&source, &sink);
    until("all come", async || sink.delivered().len() == 4).await;
    stop(running).await;
    let mut came = sink.delivered();
    came.sort_by_key(position);
    for (offset, came) in came[..2].iter().enumerate() {
        let expected = event.clone().with_extension("sasposition", format!("forms/0@{offset}")).unwrap();
        assert_eq!(*came, expected);
    }
    assert_eq!(
        (came[2].kind(), came[2].source(), came[2].id()),
        ("dev.sas.kafka.record", "/kafka/forms", "0@2")
    );
    assert_eq!(came[2].extensions()["kafkaheadertraceid"], "t");
    assert_eq!(came[3].kind(), "dev.sas.kafka.malformed");
    producer.close().await.unwrap();
}

/// Takes batches of ten, and refuses the third of the first.
#[derive(Debug, Default)]
struct Batches {
    sizes: Mutex<Vec<usize>>,
    taken: Mutex<Vec<usize>>,
}

#[async_trait]
impl EventSink for Batches {
    async fn ready(&self) -> sas_core::Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, slot: Slot, event: Event) -> sas_core::Result<Ack> {
        self.deliver_batch(slot, vec![event]).await.remove(0)
    }

    fn batch_limit(&self) -> usize {
        10
    }

    async fn deliver_batch(&self, _slot: Slot, events: Vec<Event>) -> Vec<sas_core::Result<Ack>> {
        let first = {
            let mut sizes = self.sizes.lock().unwrap();
            sizes.push(events.len());
            sizes.len() == 1
        };
        let mut taken = self.taken.lock().unwrap();
        let answers = events.iter().map(number).enumerate().map(|(at, number)| {
            if first && at == 2 {
                return Err(sas_core::Error::new(sas_core::ErrorKind::Unavailable, "deliver", "refused"));
            }
            taken.push(number);
            Ok(Ack::Completed)
        });
        answers.collect()
    }
}

async fn batches_succeed_in_part(broker: &Broker) {
    broker.topic("batches", 1).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "batches", 0..100, 5).await;
    let (source, sink) = (source(broker, &spec(broker, "batches")), Arc::new(Batches::default()));
    let (task, _shutdown) = run(&source, &sink);
    task.await.unwrap().expect_err("one of the batch failed");
    assert_eq!(offsets(&admin, "batches").await[&0], 2, "up to the one that failed");
    let running = run(&source, &sink);
    until("all are committed", async || offsets(&admin, "batches").await[&0] == 100).await;
    stop(running).await;
    let taken: BTreeSet<usize> = sink.taken.lock().unwrap().iter().copied().collect();
    assert_eq!(taken, (0..100).collect());
    let sizes = sink.sizes.lock().unwrap();
    assert!(sizes.iter().all(|size| *size <= 10) && sizes.len() < 30, "{sizes:?}");
    drop(sizes);
    producer.close().await.unwrap();
}

async fn markers_of_transactions_do_not_wait(broker: &Broker) {
    broker.topic("transactions", 1).await;
    let client = broker.client().await;
    let producer = client.producer().metrics_push(false).build_transactional("t").await.unwrap();
    for (number, commit) in [(0, true), (1, false), (2, true)] {
        producer.begin().unwrap();
        let _ = producer.send(Record::new("transactions", number.to_string())).await.unwrap();
        if commit {
            producer.commit().await.unwrap();
        } else {
            producer.abort().await.unwrap();
        }
    }
    let (source, sink) = (source(broker, &spec(broker, "transactions")), FakeEventSink::new(4));
    let running = run(&source, &sink);
    until("nothing waits", async || source.backlog().await.unwrap() == Some(0)).await;
    stop(running).await;
    assert_eq!(sink.delivered().iter().map(number).collect::<Vec<_>>(), [0, 2], "1 was taken back");
    producer.close().await.unwrap();
}
