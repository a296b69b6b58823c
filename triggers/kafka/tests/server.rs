//! Against a real Apache Kafka, which the tests start on free ports of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

mod broker;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use broker::{Server, produce};
use krafka::{
    Record,
    admin::{AdminClient, ListConsumerGroupOffsetsOptions},
};
use sas_core::{Ack, Event, EventSink, SinkSpec, Slot, TriggerSecrets, TriggerSource, TriggerSpec};
use sas_kafka::{KafkaBrokers, KafkaSource};
use sas_testkit::{
    broker::{Broker, Host, Running, events_of_a_test, kill_at_random, outage, publish_through_kills, until},
    fake::{BatchEventSink, FakeEventSink, FakeSecrets, FakeStore},
    server::{Authority, free_port},
};
use tokio::time::Instant;

fn spec(broker: &Server, topic: &str) -> TriggerSpec {
    TriggerSpec::new(topic, "kafka", "default/orders")
        .with_option("brokers", broker.address())
        .with_option("topics", topic)
        .with_option("start", "earliest")
}

fn source(broker: &Server, spec: &TriggerSpec) -> Arc<KafkaSource> {
    Arc::new(KafkaBrokers::new([broker.address()]).source(spec).unwrap())
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

    /// How many came again.
    fn kept_order(&self) -> usize {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.violations, Vec::<String>::new());
        seen.repeated
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
    logged();
    // A host that crashes is taken out of its group after three seconds.
    let Some(broker) = Server::start("group.consumer.session.timeout.ms=3000", None).await else { return };
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
    a_target_that_takes_nothing_keeps_no_core_busy(&broker).await;
    passed("a target that takes nothing keeps no core busy");
    let broker = a_broker_that_is_away_for_a_while_is_waited_for(broker).await;
    passed("a broker that is away for a while is waited for");
    killed_at_random_loses_nothing(broker).await;
    passed("killed at random loses nothing");
}

async fn ordered_by_key_committed_after_delivery_and_counted(broker: &Server) {
    broker.topic("ordered", 4).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "ordered", 0..2000, 37).await;
    let source = source(broker, &spec(broker, "ordered"));
    assert_eq!(source.backlog().await.unwrap(), None, "not known before it has connected");
    let sink = Arc::new(Order::default());
    let running = Running::start(source.clone(), &sink);
    until("some come", async || sink.delivered() > 100).await;
    // Asked before it is looked what was delivered meanwhile: never ahead.
    let asked = offsets(&admin, "ordered").await;
    sink.holds(&asked);
    let most = source.backlog().await.unwrap().unwrap();
    assert!(most <= 2000 - asked.values().sum::<i64>() as u64, "{most}");
    assert!(most > 0 || sink.delivered() == 2000, "none waits, and not all have come");
    until("all come", async || sink.delivered() == 2000).await;
    until("all are committed", async || offsets(&admin, "ordered").await.values().sum::<i64>() == 2000).await;
    assert_eq!((source.backlog().await.unwrap(), source.oldest()), (Some(0), None));
    running.stop().await.unwrap();
    assert_eq!(sink.kept_order(), 0, "came twice without a reason");

    // With nobody who reads, the backlog is the broker's own number.
    produce(&producer, "ordered", 2000..2070, 37).await;
    assert_eq!(source.backlog().await.unwrap(), Some(70));
    producer.close().await.unwrap();
}

async fn two_hosts_share_the_partitions(broker: &Server) {
    broker.topic("shared", 4).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "shared", 0..500, 31).await;
    // One sink for both hosts: what is under way on one counts for the other.
    let sink = Arc::new(Order::default());
    let (first, second) = (source(broker, &spec(broker, "shared")), source(broker, &spec(broker, "shared")));
    let one = Running::start(first.clone(), &sink);
    until("some come", async || sink.delivered() > 150).await;
    let other = Running::start(second.clone(), &sink);
    for round in 1..6 {
        produce(&producer, "shared", round * 500..(round + 1) * 500, 31).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        sink.holds(&offsets(&admin, "shared").await);
    }
    until("all come", async || sink.delivered() == 3000).await;
    one.stop().await.unwrap();
    produce(&producer, "shared", 3000..3500, 31).await;
    until("the other goes on alone", async || sink.delivered() == 3500).await;
    until("all are committed", async || offsets(&admin, "shared").await.values().sum::<i64>() == 3500).await;
    other.stop().await.unwrap();
    // Order holds whatever the machine does. An offset that a busy broker did not take in time at a hand-over means that
    // some come again, which is counted.
    let repeated = sink.kept_order();
    println!("two hosts, 3500 events: lost 0, {repeated} twice");
    assert!(repeated < 350, "{repeated} came twice");
    producer.close().await.unwrap();
}

async fn a_failed_delivery_comes_again(broker: &Server) {
    broker.topic("failed", 1).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "failed", 0..20, 3).await;
    let (source, sink) = (source(broker, &spec(broker, "failed")), FakeEventSink::new(4));
    sink.fail_next(sas_core::ErrorKind::Unavailable);
    Running::start(source.clone(), &sink).ended().await.expect_err("a delivery failed");
    assert_eq!(offsets(&admin, "failed").await[&0], 0, "the first was not delivered");
    assert_eq!(source.backlog().await.unwrap(), Some(20));
    let running = Running::start(source.clone(), &sink);
    until("all come", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 20).await;
    until("all are committed", async || offsets(&admin, "failed").await[&0] == 20).await;
    running.stop().await.unwrap();
    producer.close().await.unwrap();
}

async fn a_group_begins_where_it_is_told(broker: &Server) {
    broker.topic("begin", 2).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "begin", 0..100, 10).await;
    let spec = spec(broker, "begin").with_option("start", "latest");
    let (source, sink) = (source(broker, &spec), FakeEventSink::new(4));
    let running = Running::start(source.clone(), &sink);
    until("the group has begun", async || offsets(&admin, "begin").await.values().sum::<i64>() == 100).await;
    running.stop().await.unwrap();
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
    let running = Running::start(source.clone(), &sink);
    until("all since then come", async || sink.delivered().len() == 11).await;
    let came: BTreeSet<usize> = sink.delivered().iter().map(number).collect();
    assert_eq!(came, (100..111).collect());
    running.stop().await.unwrap();
    producer.close().await.unwrap();
}

async fn events_of_each_form_come_and_go(broker: &Server) {
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
    let running = Running::start(source.clone(), &sink);
    until("all come", async || sink.delivered().len() == 4).await;
    running.stop().await.unwrap();
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

async fn batches_succeed_in_part(broker: &Server) {
    broker.topic("batches", 1).await;
    let (producer, admin) = (broker.producer().await, broker.client().await.admin());
    produce(&producer, "batches", 0..100, 5).await;
    let (source, sink) = (source(broker, &spec(broker, "batches")), BatchEventSink::new(10, 2, number));
    Running::start(source.clone(), &sink).ended().await.expect_err("one of the batch failed");
    let refused = i64::try_from(sink.refused().unwrap()).unwrap();
    assert_eq!(offsets(&admin, "batches").await[&0], refused, "up to the one that failed");
    let running = Running::start(source.clone(), &sink);
    until("all are committed", async || offsets(&admin, "batches").await[&0] == 100).await;
    running.stop().await.unwrap();
    assert_eq!(sink.taken().into_iter().collect::<BTreeSet<_>>(), (0..100).collect());
    let sizes = sink.sizes();
    assert!(sizes.iter().all(|size| *size <= 10) && sizes.len() < 30, "{sizes:?}");
    producer.close().await.unwrap();
}

async fn markers_of_transactions_do_not_wait(broker: &Server) {
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
    let running = Running::start(source.clone(), &sink);
    until("nothing waits", async || source.backlog().await.unwrap() == Some(0)).await;
    running.stop().await.unwrap();
    assert_eq!(sink.delivered().iter().map(number).collect::<Vec<_>>(), [0, 2], "1 was taken back");
    producer.close().await.unwrap();
}

fn logged() {
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    let _ = tracing_subscriber::fmt().with_env_filter(filter).try_init();
}

const JAAS: &str = "org.apache.kafka.common.security";

/// A broker that wants users (SASL: PLAIN, SCRAM) at one port, and certificates of both sides at another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_certificates_and_new_passwords() {
    logged();
    let (sasl, tls) = (free_port(), free_port());
    let files = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (server, client) = (authority.certify("127.0.0.1"), authority.certify("sas"));
    let (keystore, truststore) = (files.path().join("server.pem"), files.path().join("ca.pem"));
    std::fs::write(&keystore, format!("{}{}", server.key, server.pem)).unwrap();
    std::fs::write(&truststore, &authority.pem).unwrap();
    let settings = format!(
        "listeners=PLAINTEXT://127.0.0.1:$PORT,USERS://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},CONTROLLER://127.0.0.1:$INNER0
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT,USERS://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT,TLS:SSL
inter.broker.listener.name=PLAINTEXT
listener.name.users.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256
listener.name.users.plain.sasl.jaas.config={JAAS}.plain.PlainLoginModule required user_anna=\"first\";
listener.name.users.scram-sha-256.sasl.jaas.config={JAAS}.scram.ScramLoginModule required;
listener.name.tls.ssl.keystore.type=PEM
listener.name.tls.ssl.keystore.location={}
listener.name.tls.ssl.truststore.type=PEM
listener.name.tls.ssl.truststore.location={}
listener.name.tls.ssl.client.auth=required
",
        keystore.display(),
        truststore.display()
    );
    let scram = "SCRAM-SHA-256=[name=berta,password=second]";
    let Some(mut broker) = Server::start(&settings, Some(scram)).await else { return };
    hosts_that_crash_while_they_join_leave_the_group(&broker).await;
    broker.topic("guarded", 1).await;
    let producer = broker.producer().await;
    produce(&producer, "guarded", 0..10, 3).await;
    let secrets = FakeSecrets::of(&[]);
    secrets.set("secret/kafka/password", "first\n");
    secrets.set("secret/kafka/berta", "second");
    secrets.set("secret/kafka/type", "SCRAM-SHA-256");
    secrets.set("secret/kafka/ca", &authority.pem);
    secrets.set("secret/kafka/cert", &client.pem);
    secrets.set("secret/kafka/key", &client.key);
    let brokers = KafkaBrokers::new([format!("127.0.0.1:{sasl}"), format!("127.0.0.1:{tls}")]);
    let of = |group: &str, port: u16, options: &[(&str, &str)]| {
        let mut spec = spec(&broker, "guarded")
            .with_option("brokers", format!("127.0.0.1:{port}"))
            .with_option("group", group);
        for (name, value) in options {
            spec = spec.with_option(*name, *value);
        }
        Arc::new(brokers.source(&spec).unwrap())
    };
    let started = |source: &Arc<KafkaSource>, sink: &Arc<FakeEventSink>| {
        let (store, secrets) = (Arc::new(FakeStore::default()), Arc::clone(&secrets));
        Running::with(Arc::clone(source) as _, sink, store, Some(secrets as _))
    };
    let scram = of(
        "scram",
        sasl,
        &[
            ("username", "berta"),
            ("password-secret", "secret/kafka/berta"),
            ("sasl-mechanism-secret", "secret/kafka/type"),
        ],
    );
    let certified = of(
        "tls",
        tls,
        &[
            ("tls", "true"),
            ("ca-secret", "secret/kafka/ca"),
            ("cert-secret", "secret/kafka/cert"),
            ("key-secret", "secret/kafka/key"),
        ],
    );
    for (what, source) in [("SCRAM", scram), ("TLS", certified)] {
        let sink = FakeEventSink::new(4);
        let running = started(&source, &sink);
        until(what, async || sink.delivered().len() == 10).await;
        running.stop().await.unwrap();
    }
    let stranger = of("tls", tls, &[("tls", "true"), ("ca-secret", "secret/kafka/ca")]);
    started(&stranger, &FakeEventSink::new(1)).ended().await.expect_err("it shows no certificate");

    let plain = of("plain", sasl, &[("username", "anna"), ("password-secret", "secret/kafka/password")]);
    let sink = FakeEventSink::new(4);
    let running = started(&plain, &sink);
    until("PLAIN", async || sink.delivered().len() == 10).await;
    // The password is another after the broker was restarted: the old one is refused, the new one taken, by the same source.
    broker.0.kill();
    broker.0.reconfigure("user_anna=\"first\"", "user_anna=\"third\"");
    broker.restart().await;
    produce(&broker.producer().await, "guarded", 10..20, 3).await;
    let refused = running.ended().await.expect_err("the password is not good any more");
    assert!(!format!("{refused:?} {plain:?}").contains("first"), "{refused:?}");
    started(&plain, &sink).ended().await.expect_err("nor is it in the next run");
    secrets.set("secret/kafka/password", "third");
    let running = started(&plain, &sink);
    until("with the new password", async || {
        sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 20
    })
    .await;
    assert!(plain.backlog().await.unwrap().is_some(), "it is asked with the new password too");
    running.stop().await.unwrap();
    producer.close().await.unwrap();
}

#[test]
fn options_are_refused_by_name() {
    let brokers = KafkaBrokers::new(["127.0.0.1:9092"]);
    let spec = |options: &[(&str, &str)]| {
        let mut spec = TriggerSpec::new("t", "kafka", "default/x")
            .with_option("brokers", "127.0.0.1:9092")
            .with_option("topics", "a, b");
        for (name, value) in options {
            spec = spec.with_option(*name, *value);
        }
        brokers.source(&spec).map(|_| ()).map_err(|errors| errors.to_string())
    };
    spec(&[("ordering", "none"), ("group-protocol", "classic"), ("session-timeout", "10s")]).unwrap();
    for (options, says) in [
        (&[("brokers", "10.0.0.1:9092")][..], "options.brokers: \"10.0.0.1:9092\""),
        (&[("topics", " ")], "options.topics"),
        (&[("topics", "a b")], "options.topics: \"a b\""),
        (&[("start", "middle")], "options.start"),
        (&[("ordering", "most")], "options.ordering"),
        (&[("session-timeout", "10s")], "options.session-timeout"),
        (&[("group-protocol", "classic"), ("session-timeout", "1s")], "at least 6s"),
        (&[("username", "anna")], "options.password-secret"),
        (&[("sasl-mechanism", "gssapi")], "options.sasl-mechanism"),
        (&[("sasl-mechanism", "plain")], "options.sasl-mechanism"),
        (&[("ca-secret", "secret/a/b")], "options.ca-secret"),
        (&[("tls", "true"), ("key-secret", "secret/a/b")], "options.cert-secret"),
        (&[("partition", "3")], "options.partition"),
    ] {
        let errors = spec(options).unwrap_err();
        assert!(errors.contains(says), "{options:?}: {errors}");
    }
    let sink = SinkSpec::new("default/t", "kafka", BTreeMap::from([("mode".to_owned(), "both".to_owned())]));
    let errors = brokers.sink(&sink, TriggerSecrets::default()).unwrap_err().to_string();
    for field in ["options.sink.brokers", "options.sink.topic", "options.sink.mode"] {
        assert!(errors.contains(field), "{errors}");
    }
}

struct Killed {
    server: Server,
    topic: &'static str,
    events: u64,
}

#[async_trait]
impl Broker for Killed {
    fn source(&self) -> Arc<dyn TriggerSource> {
        source(&self.server, &spec(&self.server, self.topic))
    }

    fn kill(&mut self) {
        self.server.0.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
    }

    async fn unacknowledged(&mut self) -> Option<u64> {
        let committed = offsets(&self.server.client().await.admin(), self.topic).await;
        Some(self.events - u64::try_from(committed.values().sum::<i64>()).unwrap())
    }
}

/// All that a host may have ahead is there, and its partitions are held.
async fn a_target_that_takes_nothing_keeps_no_core_busy(broker: &Server) {
    broker.topic("held", 2).await;
    let producer = broker.producer().await;
    produce(&producer, "held", 0..3000, 37).await;
    let sink = FakeEventSink::new(1);
    sink.set_delivery_time(Duration::from_secs(3600));
    let host = Host::start(source(broker, &spec(broker, "held")), &sink, None);
    until("one is under way", async || sink.offered() == 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = host.processor_time();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let used = host.processor_time() - before;
    println!("a target that takes nothing: {used:?} of processor time in 3 s");
    assert!(used < Duration::from_millis(150), "{used:?} of processor time in 3 s: it spins");
    host.stop().await;
    producer.close().await.unwrap();
}

/// Of each of these, the group hears that it joins and that it goes: else the broker has members that nobody is, and gives them
/// partitions until their session is over, after 45 s.
async fn hosts_that_crash_while_they_join_leave_the_group(broker: &Server) {
    broker.topic("joined", 8).await;
    let producer = broker.producer().await;
    let sink = FakeEventSink::new(4);
    let started = || Running::start(source(broker, &spec(broker, "joined")), &sink);
    for moment in 0..30 {
        let running = started();
        tokio::time::sleep(Duration::from_millis(4 * moment)).await;
        running.crash().await;
    }
    produce(&producer, "joined", 0..200, 37).await;
    let (began, running) = (Instant::now(), started());
    until("all come", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 200)
        .await;
    running.stop().await.unwrap();
    println!("30 hosts crashed while they joined; the next had all after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    producer.close().await.unwrap();
}

/// Away at the host's start, and for ten seconds later; ten minutes with `SAS_LONG=1`.
async fn a_broker_that_is_away_for_a_while_is_waited_for(server: Server) -> Server {
    server.topic("away", 4).await;
    let mut killed = Killed { server, topic: "away", events: 0 };
    let publish = async |killed: &mut Killed, numbers| {
        let producer = killed.server.producer().await;
        produce(&producer, "away", numbers, 37).await;
        producer.close().await.unwrap();
    };
    println!("{}", outage(&mut killed, publish, |event| number(event).to_string()).await);
    killed.server
}

/// Broker and host are killed at random while events come, and the broker while they are written: none is lost. 6,000
/// events; 100,000 with `SAS_LONG=1`.
async fn killed_at_random_loses_nothing(server: Server) {
    let events = events_of_a_test(6_000);
    server.topic("killed", 4).await;
    let producer = server.producer().await;
    for chunk in 0..events / 1000 {
        produce(&producer, "killed", chunk * 1000..(chunk + 1) * 1000, 101).await;
    }
    producer.close().await.unwrap();
    let mut killed = Killed { server, topic: "killed", events: events as u64 };
    let done = kill_at_random(&mut killed, events, (2, 6), 0x5a5, |event| number(event).to_string()).await;
    println!("{done}");

    killed.server.topic("written", 2).await;
    killed.topic = "written";
    let address = killed.server.address();
    let options =
        BTreeMap::from([("brokers".to_owned(), address.clone()), ("topic".to_owned(), "written".to_owned())]);
    let spec = SinkSpec::new("default/t", "kafka", options);
    let sink = KafkaBrokers::new([address]).sink(&spec, TriggerSecrets::default()).unwrap();
    println!("sink: {}", publish_through_kills(&mut killed, &sink, 1_000, 1).await);
}

/// A broker that is away at the start and later: the run ends with an error that says so, at once, and the platform's
/// back-off decides when the next one begins.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_ends_the_run() {
    let port = free_port();
    let brokers = KafkaBrokers::new([format!("127.0.0.1:{port}")]);
    let spec = TriggerSpec::new("t", "kafka", "default/x")
        .with_option("brokers", format!("127.0.0.1:{port}"))
        .with_option("topics", "orders");
    let source = Arc::new(brokers.source(&spec).unwrap());
    let began = Instant::now();
    let error = Running::start(source, &FakeEventSink::new(1)).ended().await.expect_err("nobody listens");
    assert!(error.to_string().contains("connecting") && began.elapsed() < Duration::from_secs(10), "{error}");
}
