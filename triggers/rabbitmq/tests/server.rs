//! Against a real `rabbitmq-server`, which the test starts on free ports of loopback. It takes seconds to start, so that one
//! server is there for all parts, each with a queue of its own.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties,
    options::{BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use sas_core::{
    AttributeValue, ErrorKind, Event, EventPublisher, EventSink, SecretSource, SinkSpec, TenantKey,
    TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_rabbitmq::{RabbitQueue, RabbitServers};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, outage, publish_through_kills, until},
    fake::{FakeEventSink, FakeSecrets, FakeStore},
    server::{Authority, free_port, rabbitmq},
};
use tokio::time::{Instant, timeout};

struct Server(sas_testkit::server::Server);

impl Server {
    async fn start() -> Option<Self> {
        let server = Self(rabbitmq("").await?);
        server.channel().await;
        Some(server)
    }

    async fn try_channel(&self) -> Result<(Connection, Channel), String> {
        let url = format!("amqp://guest:guest@{}/%2f", self.0.address());
        let attempt = async {
            let connection = Connection::connect(&url, ConnectionProperties::default()).await?;
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>((connection, channel))
        };
        // A client that is cut off while it greets the server waits for ever.
        let attempt = timeout(Duration::from_secs(5), attempt).await.map_err(|error| error.to_string())?;
        attempt.map_err(|error| error.to_string())
    }

    /// A channel that confirms what is published, and the connection that it lives in.
    async fn channel(&self) -> (Connection, Channel) {
        let mut last = String::new();
        for _ in 0..200 {
            match self.try_channel().await {
                Ok(connected) => return connected,
                Err(error) => last = error,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the server does not answer: {last}");
    }

    fn spec(&self, queue: &str) -> TriggerSpec {
        TriggerSpec::new("shop/orders", "rabbitmq-queue", "shop/billing")
            .with_option("url", format!("amqp://{}", self.0.address()))
            .with_option("queue", queue)
            .with_option("username", "guest")
            .with_option("password-secret", "secret/rabbit/password")
            .with_option("prefetch", "32")
    }

    fn source(&self, queue: &str) -> Arc<RabbitQueue> {
        let servers = RabbitServers::new([self.0.address()]);
        Arc::new(servers.source(&self.spec(queue)).unwrap())
    }

    /// Messages that are ready in a queue, and how many consume from it, as the broker says.
    async fn ready(&self, queue: &str) -> (u64, u32) {
        for _ in 0..20 {
            let (_connection, channel) = self.channel().await;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            let declared = channel.queue_declare(queue.into(), passive, FieldTable::default());
            if let Ok(Ok(queue)) = timeout(Duration::from_secs(5), declared).await {
                return (queue.message_count().into(), queue.consumer_count());
            }
        }
        panic!("the server says nothing of {queue}");
    }
}

fn secrets(password: &str) -> Arc<FakeSecrets> {
    FakeSecrets::of(&[("secret/rabbit/password", password)])
}

fn run(source: &Arc<RabbitQueue>, sink: &Arc<impl EventSink>) -> Running {
    let store = Arc::new(FakeStore::default());
    Running::with(Arc::clone(source) as _, sink, store, Some(secrets("guest")))
}

fn table(named: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in named {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A queue that outlives a kill.
async fn declare(channel: &Channel, queue: &str, arguments: &[(&str, AMQPValue)]) {
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), table(arguments)).await.unwrap();
}

async fn publish(
    channel: &Channel,
    queue: &str,
    properties: BasicProperties,
    bodies: impl Iterator<Item = String>,
) {
    let mut confirms = Vec::new();
    for body in bodies {
        let options = BasicPublishOptions::default();
        let properties = properties.clone().with_delivery_mode(2);
        let sent = channel.basic_publish("".into(), queue.into(), options, body.as_bytes(), properties).await;
        confirms.push(sent.unwrap());
    }
    for confirm in confirms {
        assert!(matches!(confirm.await.unwrap(), Confirmation::Ack(_)));
    }
}

async fn numbered(channel: &Channel, queue: &str, numbers: std::ops::Range<usize>) {
    publish(channel, queue, BasicProperties::default(), numbers.map(|number| number.to_string())).await;
}

fn number(event: &Event) -> usize {
    std::str::from_utf8(event.data()).unwrap().parse().unwrap()
}

fn numbers(sink: &FakeEventSink) -> HashSet<usize> {
    sink.delivered().iter().map(number).collect()
}

async fn acknowledged_after_delivery_and_counted(server: &Server, channel: &Channel) {
    declare(channel, "counted", &[]).await;
    numbered(channel, "counted", 0..300).await;
    let (sink, source) = (FakeEventSink::new(1), server.source("counted"));
    sink.set_delivery_time(Duration::from_millis(5));
    assert_eq!(source.backlog().await.unwrap(), None, "nothing is known before it has connected");
    let running = run(&source, &sink);
    until("some come", async || sink.delivered().len() > 20).await;
    running.crash().await;
    // Dropped, the source is gone with its connection: what it had been given is ready again.
    drop(source);
    until("the broker sees that it is gone", async || server.ready("counted").await.1 == 0).await;
    let open = server.ready("counted").await.0;
    assert!(300 - open <= sink.delivered().len() as u64, "acknowledged ahead of delivery");

    // With no room, the backlog is what the queue has and what this host was given.
    let (full, source) = (FakeEventSink::new(1), server.source("counted"));
    let room = full.ready().await.unwrap();
    let running = run(&source, &full);
    until("it is connected", async || source.backlog().await.unwrap_or(None).is_some()).await;
    until("all are counted", async || source.backlog().await.unwrap() == Some(open)).await;
    drop(room);
    until("nothing is left", async || source.backlog().await.unwrap() == Some(0)).await;
    let order: Vec<usize> = full.delivered().iter().map(number).collect();
    assert!(order.is_sorted(), "in the queue's order: {order:?}");
    running.stop().await.unwrap();
    source.backlog().await.expect_err("it is not connected any more");
    assert_eq!(numbers(&sink).union(&numbers(&full)).count(), 300);
}

async fn what_failed_comes_again_with_its_count(server: &Server, channel: &Channel) {
    declare(channel, "quorum", &[("x-queue-type", text("quorum"))]).await;
    numbered(channel, "quorum", 0..3).await;
    let (sink, source) = (FakeEventSink::new(1), server.source("quorum"));
    for _ in 0..2 {
        sink.fail_next(ErrorKind::Unavailable);
        run(&source, &sink).ended().await.expect_err("a delivery failed");
    }
    let running = run(&source, &sink);
    until("all come", async || numbers(&sink).len() == 3).await;
    running.stop().await.unwrap();
    let delivered = sink.delivered();
    let counts: Vec<_> =
        delivered.iter().filter_map(|event| event.extensions().get("sasdeliveries")).collect();
    // Given out and not delivered counts too.
    let counted = |count: &AttributeValue| count.to_text().parse::<u32>().is_ok_and(|count| count >= 3);
    assert!(counts.iter().any(|count| counted(count)), "{counts:?}");
}

async fn two_hosts_share_a_queue(server: &Server, channel: &Channel) {
    declare(channel, "shared", &[]).await;
    numbered(channel, "shared", 0..400).await;
    let (one, two) = (FakeEventSink::new(4), FakeEventSink::new(4));
    for sink in [&one, &two] {
        sink.set_delivery_time(Duration::from_millis(5));
    }
    let first = run(&server.source("shared"), &one);
    let second = run(&server.source("shared"), &two);
    until("both work", async || one.delivered().len() > 20 && two.delivered().len() > 20).await;
    // One of them dies: the other gets what it held.
    first.crash().await;
    until("all come", async || numbers(&one).union(&numbers(&two)).count() == 400).await;
    second.stop().await.unwrap();
}

async fn events_in_both_modes_plain_messages_and_malformed_ones(server: &Server, channel: &Channel) {
    let expiring = [
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text("events")),
        ("x-message-ttl", AMQPValue::LongInt(1)),
    ];
    declare(channel, "events", &[]).await;
    declare(channel, "expiring", &expiring).await;
    let whole = r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","data":{"a":1}}"#;
    let structured = BasicProperties::default().with_content_type("application/cloudevents+json".into());
    let mut sent = vec![(structured.clone(), whole)];
    for prefix in ["cloudEvents_", "cloudEvents:", "ce-"] {
        let mut headers = FieldTable::default();
        for (name, value) in [
            ("specversion", text("1.0")),
            ("id", text("8")),
            ("source", text("/shop")),
            ("type", text("order.paid")),
            ("note", text("Euro €")),
            ("count", AMQPValue::LongInt(5)),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
        ] {
            headers.insert(format!("{prefix}{name}").into(), value);
        }
        let properties = BasicProperties::default().with_headers(headers);
        sent.push((properties.with_content_type("text/plain".into()), "21.5"));
    }
    sent.push((BasicProperties::default().with_headers(table(&[("cloudEvents_id", text("9"))])), "lost?"));
    sent.push((
        BasicProperties::default().with_message_id("m1".into()).with_content_type("text/csv".into()),
        "a,b",
    ));
    sent.push((structured, "{"));
    for (properties, body) in sent {
        publish(channel, "events", properties, std::iter::once(body.to_owned())).await;
    }
    publish(channel, "expiring", BasicProperties::default(), std::iter::once("late".to_owned())).await;
    let sink = FakeEventSink::new(1);
    let running = run(&server.source("events"), &sink);
    until("all come", async || sink.delivered().len() == 8).await;
    running.stop().await.unwrap();
    let events = sink.delivered();
    assert_eq!(
        (events[0].id(), events[0].source(), &events[0].data()[..]),
        ("7", "/shop", &br#"{"a":1}"#[..])
    );
    for event in &events[1..4] {
        assert_eq!(
            (event.id(), event.kind(), event.data_content_type()),
            ("8", "order.paid", Some("text/plain"))
        );
        assert_eq!(event.extensions()["note"], "Euro €");
        assert_eq!(event.extensions()["count"], AttributeValue::Integer(5));
        assert_eq!(event.time().unwrap().0, 1_700_000_000_000_000_000);
    }
    assert_eq!((events[4].kind(), &events[4].data()[..]), ("dev.sas.rabbitmq.malformed", &b"lost?"[..]));
    assert_eq!((events[5].kind(), events[5].id()), ("dev.sas.rabbitmq.message", "m1"));
    assert_eq!((events[5].source(), events[5].data_content_type()), ("/rabbitmq/events", Some("text/csv")));
    assert_eq!(events[5].extensions()["sasposition"], "events@/events");
    assert_eq!(events[6].kind(), "dev.sas.rabbitmq.malformed");
    assert_eq!((&events[7].data()[..], events[7].subject()), (&b"late"[..], Some("events")));
    assert_eq!(events[7].extensions()["sasdeathqueue"], "expiring");
    assert_eq!(events[7].extensions()["sasdeathreason"], "expired");
}

async fn credentials_and_queues_are_named_when_they_are_wrong(server: &Server) {
    let source = server.source("counted");
    let (secrets, sink) = (secrets("wrong-pass"), FakeEventSink::new(1));
    let run = |source: &Arc<RabbitQueue>| {
        Running::with(source.clone() as _, &sink, Arc::new(FakeStore::default()), Some(secrets.clone()))
    };
    let refused = run(&source).ended().await.expect_err("a wrong password").chain();
    assert!(
        refused.contains("connecting to amqp://127.0.0.1") && !refused.contains("wrong-pass"),
        "{refused}"
    );
    // The same source, with the secret as it is now.
    secrets.set("secret/rabbit/password", "guest\n");
    let running = run(&source);
    until("it is connected", async || source.backlog().await.unwrap_or(None).is_some()).await;
    running.stop().await.unwrap();
    let missing = run(&server.source("nothing")).ended().await.unwrap_err().chain();
    assert!(missing.contains("queue nothing") && missing.contains("NOT_FOUND"), "{missing}");
}

fn sink(server: &Server, more: &[(&str, &str)]) -> Arc<dyn EventPublisher> {
    let url = format!("amqp://{}", server.0.address());
    let mut options: BTreeMap<String, String> =
        [("url", url.as_str()), ("username", "guest"), ("password-secret", "secret/rabbit/password")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let spec = SinkSpec::new("default/t", "rabbitmq-queue", options);
    let secrets = TriggerSecrets::new(Some(secrets("guest")), Some(TenantKey(1)));
    RabbitServers::new([server.0.address()]).sink(&spec, secrets).unwrap()
}

async fn events_are_written_and_none_is_lost_when_the_server_is_killed(server: &mut Server) {
    {
        let (_connection, channel) = server.channel().await;
        // A classic queue: a quorum queue of one server that is killed may confirm nothing for minutes on a slow disk.
        declare(&channel, "written", &[]).await;
    }
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_subject("grüße"))
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .unwrap();
    sink(server, &[("queue", "written")]).publish(event.clone()).await.unwrap();
    let by_exchange = [("exchange", "amq.direct"), ("routing-key", "written"), ("mode", "structured")];
    let unbound = sink(server, &by_exchange).publish(event.clone()).await.unwrap_err().to_string();
    assert!(unbound.contains("exchange amq.direct: it goes to no queue"), "{unbound}");
    {
        let (_connection, channel) = server.channel().await;
        let (queue, exchange) = ("written".into(), "amq.direct".into());
        let bound = channel.queue_bind(
            queue,
            exchange,
            "written".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        );
        bound.await.unwrap();
    }
    sink(server, &by_exchange).publish(event.clone()).await.unwrap();
    let came = FakeEventSink::new(1);
    let running = run(&server.source("written"), &came);
    until("both come", async || came.delivered().len() == 2).await;
    running.stop().await.unwrap();
    let expected = ["written@/written", "written@amq.direct/written"]
        .map(|position| event.clone().with_extension("sasposition", position).unwrap());
    assert_eq!(came.delivered(), expected);

    let sink = sink(server, &[("queue", "written")]);
    let published = publish_through_kills(&mut Killed { server, queue: "written" }, &sink, 2_000, 1).await;
    println!("sink: {published}");
}

/// The server is another after it: it listens to TLS only.
async fn tls_with_an_authority_by_reference(server: &mut Server) {
    {
        let (_connection, channel) = server.channel().await;
        declare(&channel, "guarded", &[]).await;
        numbered(&channel, "guarded", 0..3).await;
    }
    let authority = Authority::new();
    let certificate = authority.certify("localhost");
    let (cert, key, ca) = (
        server.0.write("cert.pem", &certificate.pem),
        server.0.write("key.pem", &certificate.key),
        server.0.write("ca.pem", &authority.pem),
    );
    let tls = free_port();
    server.0.end();
    server.0.configure(&format!(
        "listeners.ssl.default = 127.0.0.1:{tls}\nssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.cacertfile = {}",
        cert.display(),
        key.display(),
        ca.display()
    ));
    server.0.restart().await;
    let address = format!("localhost:{tls}");
    until("it listens", async || tokio::net::TcpStream::connect(&address).await.is_ok()).await;
    let spec = server
        .spec("guarded")
        .with_option("url", format!("amqps://{address}"))
        .with_option("ca-secret", "secret/rabbit/ca");
    let (came, source) =
        (FakeEventSink::new(4), Arc::new(RabbitServers::new([address]).source(&spec).unwrap()));
    let secrets = secrets("guest");
    let run = || Running::with(source.clone(), &came, Arc::new(FakeStore::default()), Some(secrets.clone()));
    secrets.set("secret/rabbit/ca", &Authority::new().pem);
    run().ended().await.expect_err("another authority");
    secrets.set("secret/rabbit/ca", &authority.pem);
    let running = run();
    until("they come", async || came.delivered().len() == 3).await;
    running.stop().await.unwrap();
}

/// A server, one of whose queues is read while both are killed.
struct Killed<'a> {
    server: &'a mut Server,
    queue: &'static str,
}

#[async_trait]
impl Broker for Killed<'_> {
    fn source(&self) -> Arc<dyn TriggerSource> {
        self.server.source(self.queue)
    }

    fn secrets(&self) -> Option<Arc<dyn SecretSource>> {
        Some(secrets("guest"))
    }

    fn kill(&mut self) {
        self.server.0.kill();
    }

    async fn restart(&mut self) {
        self.server.0.restart().await;
        self.server.channel().await;
    }

    /// Exact while nobody consumes; what a host that consumes was given is not told by the broker's protocol.
    async fn unacknowledged(&mut self) -> Option<u64> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let (ready, consumers) = self.server.ready(self.queue).await;
            if consumers == 0 {
                return Some(ready);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(u64::MAX)
    }
}

/// At the end server and host are killed at random, over 5,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_of_a_server() {
    let Some(mut server) = Server::start().await else { return };
    let count = events_of_a_test(5_000);
    {
        let (_connection, channel) = server.channel().await;
        acknowledged_after_delivery_and_counted(&server, &channel).await;
        what_failed_comes_again_with_its_count(&server, &channel).await;
        two_hosts_share_a_queue(&server, &channel).await;
        events_in_both_modes_plain_messages_and_malformed_ones(&server, &channel).await;
        credentials_and_queues_are_named_when_they_are_wrong(&server).await;
    }
    // A classic queue: how many a quorum queue has, it says seconds later only.
    {
        let (_connection, channel) = server.channel().await;
        declare(&channel, "killed", &[]).await;
        for chunk in 0..count / 1000 {
            numbered(&channel, "killed", chunk * 1000..(chunk + 1) * 1000).await;
        }
    }
    let mut killed = Killed { server: &mut server, queue: "killed" };
    let kills = kill_at_random(&mut killed, count, (1, 4), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
    // A crash of the host brings back what the broker had given and was not told of: no more than the prefetch.
    assert!(kills.again_after_host <= 32 * kills.of_host as usize, "{kills}");
    {
        let (_connection, channel) = server.channel().await;
        declare(&channel, "away", &[]).await;
    }
    let mut killed = Killed { server: &mut server, queue: "away" };
    let publish = async |killed: &mut Killed<'_>, numbers| {
        let (_connection, channel) = killed.server.channel().await;
        numbered(&channel, "away", numbers).await;
    };
    let outage = outage(&mut killed, publish, |event| number(event).to_string()).await;
    println!("{outage}");
    // The client has a thread for each connection; nothing else runs here meanwhile.
    assert!(outage.used_by_process < outage.away / 20, "it spins: {outage}");
    events_are_written_and_none_is_lost_when_the_server_is_killed(&mut server).await;
    tls_with_an_authority_by_reference(&mut server).await;
}

#[test]
fn options_are_refused_by_name() {
    let servers = RabbitServers::new(["127.0.0.1:5672"]);
    let spec = |url: &str| {
        TriggerSpec::new("t/t", "rabbitmq-queue", "t/x")
            .with_option("url", url)
            .with_option("queue", "q")
            .with_option("username", "sas")
            .with_option("password-secret", "secret/a/b")
    };
    servers.source(&spec("amqp://127.0.0.1:5672/shop")).unwrap();
    for (url, says) in [
        ("http://127.0.0.1:5672", "must be amqp://"),
        ("amqp://10.0.0.1:5672", "none of the servers"),
        ("amqp://me:hidden@127.0.0.1:5672", "no credentials"),
        ("amqps://me:hidden@127.0.0.1:5672", "no credentials"),
        ("amqp://127.0.0.1:5672/a/b", "without parameters"),
    ] {
        let errors = servers.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("hidden"), "{url}: {errors}");
    }
    for (option, value) in [
        ("queue", ""),
        ("prefetch", "0"),
        ("username", ""),
        ("password-secret", ""),
        ("ca-secret", "secret/a/b"),
        ("colour", "red"),
    ] {
        let spec = spec("amqp://127.0.0.1:5672").with_option(option, value);
        let errors = servers.source(&spec).unwrap_err().to_string();
        assert!(errors.contains(&format!("options.{option}")), "{option}: {errors}");
    }
}
