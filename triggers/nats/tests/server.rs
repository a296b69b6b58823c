//! Against a real `nats-server`, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_nats::jetstream::{self, consumer::PullConsumer};
use async_trait::async_trait;
use futures_util::StreamExt as _;
use sas_core::{
    ErrorKind, Event, EventPublisher, EventSink as _, SinkSpec, TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_nats::{NatsJetStream, NatsServers};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, outage, publish_through_kills, until},
    fake::{FakeEventSink, FakeSecrets, FakeStore, OrderedEventSink},
    server::{Authority, nats},
};

struct Server {
    server: sas_testkit::server::Server,
    login: Option<(&'static str, &'static str)>,
}

impl Server {
    async fn start() -> Option<Self> {
        Self::with("", None).await
    }

    async fn with(settings: &str, login: Option<(&'static str, &'static str)>) -> Option<Self> {
        let server = Self { server: nats(settings).await?, login };
        server.orders().await;
        Some(server)
    }

    async fn client(&self) -> jetstream::Context {
        for _ in 0..200 {
            let options = match self.login {
                Some((user, password)) => {
                    async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
                }
                None => async_nats::ConnectOptions::new(),
            };
            if let Ok(client) = options.connect(self.server.address()).await {
                let context = jetstream::new(client);
                if !matches!(context.stream_names().next().await, Some(Err(_))) {
                    return context;
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not answer");
    }

    /// The stream `ORDERS`, made where there is none.
    async fn orders(&self) -> jetstream::Context {
        let context = self.client().await;
        let config = jetstream::stream::Config {
            name: "ORDERS".to_owned(),
            subjects: vec!["orders.>".to_owned()],
            ..jetstream::stream::Config::default()
        };
        context.get_or_create_stream(config).await.unwrap();
        context
    }

    fn spec(&self) -> TriggerSpec {
        TriggerSpec::new("shop/orders", "nats-jetstream", "shop/billing")
            .with_option("url", format!("nats://{}", self.server.address()))
            .with_option("stream", "ORDERS")
            .with_option("start", "earliest")
            .with_option("ack-wait", "2s")
    }

    fn source_of(&self, spec: &TriggerSpec) -> Arc<NatsJetStream> {
        let servers = NatsServers::new([self.server.address()]);
        Arc::new(servers.source(spec).unwrap())
    }

    fn source(&self) -> Arc<NatsJetStream> {
        self.source_of(&self.spec())
    }

    /// Messages that the server takes to be unacknowledged by the consumer.
    async fn open(&self) -> u64 {
        let stream = self.client().await.get_stream("ORDERS").await.unwrap();
        let consumer: Result<PullConsumer, _> = stream.get_consumer("shop_orders").await;
        let Ok(consumer) = consumer else { return stream.get_info().await.unwrap().state.messages };
        let info = consumer.cached_info();
        info.num_pending + info.num_ack_pending as u64
    }
}

async fn publish(context: &jetstream::Context, numbers: std::ops::Range<usize>) {
    let mut stored = Vec::new();
    for number in numbers {
        let subject = format!("orders.{number}");
        stored.push(context.publish(subject, number.to_string().into()).await.unwrap());
        if stored.len() == 500 {
            for stored in stored.drain(..) {
                stored.await.unwrap();
            }
        }
    }
    for stored in stored {
        stored.await.unwrap();
    }
}

fn number(event: &Event) -> usize {
    std::str::from_utf8(event.data()).unwrap().parse().unwrap()
}

fn numbers(sink: &FakeEventSink) -> HashSet<usize> {
    sink.delivered().iter().map(number).collect()
}

#[tokio::test]
async fn in_order_acknowledged_after_delivery_and_counted() {
    let Some(server) = Server::start().await else { return };
    let context = server.orders().await;
    publish(&context, 0..500).await;
    let (sink, source) = (OrderedEventSink::new(number), server.source());
    assert_eq!(source.backlog().await.unwrap(), None, "nothing is known before it has connected");
    let running = Running::start(source.clone(), &sink);
    until("some come", async || sink.done() > 20).await;
    let open = server.open().await;
    assert!(500 - open <= sink.done() as u64, "acknowledged ahead of delivery");
    until("all are acknowledged", async || server.open().await == 0).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    assert_eq!(sink.offered(), (0..500).collect::<Vec<_>>());
    running.stop().await.unwrap();
    source.backlog().await.expect_err("it is not connected any more");

    // With no room for any, the backlog is the server's own number.
    publish(&context, 500..570).await;
    let full = FakeEventSink::new(1);
    let _room = full.ready().await.unwrap();
    let running = Running::start(source.clone(), &full);
    until("it is connected", async || source.backlog().await.is_ok()).await;
    assert_eq!((source.backlog().await.unwrap(), server.open().await), (Some(70), 70));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_failed_comes_again_with_its_count() {
    let Some(server) = Server::start().await else { return };
    publish(&server.orders().await, 0..10).await;
    let (sink, source) = (FakeEventSink::new(4), server.source());
    sink.fail_next(ErrorKind::Unavailable);
    Running::start(source.clone(), &sink).ended().await.expect_err("a delivery failed");
    let running = Running::start(source, &sink);
    until("all come", async || numbers(&sink).len() == 10).await;
    until("all are acknowledged", async || server.open().await == 0).await;
    running.stop().await.unwrap();
    let again: Vec<Event> = sink
        .delivered()
        .into_iter()
        .filter(|event| event.extensions().contains_key("sasdeliveries"))
        .collect();
    assert!(
        again.iter().any(|event| number(event) == 0 && event.extensions()["sasdeliveries"] == "2"),
        "{again:?}"
    );
}

#[tokio::test]
async fn a_delivery_longer_than_the_wait_for_acknowledgement_is_made_once() {
    let Some(server) = Server::start().await else { return };
    publish(&server.orders().await, 0..3).await;
    let spec = server.spec().with_option("ack-wait", "1s");
    let sink = FakeEventSink::new(4);
    sink.set_delivery_time(Duration::from_millis(3500));
    let running = Running::start(server.source_of(&spec), &sink);
    until("all are acknowledged", async || server.open().await == 0).await;
    running.stop().await.unwrap();
    assert_eq!(sink.offered(), 3);
}

#[tokio::test]
async fn two_hosts_share_a_consumer() {
    let Some(server) = Server::start().await else { return };
    publish(&server.orders().await, 0..400).await;
    let (one, two) = (FakeEventSink::new(4), FakeEventSink::new(4));
    for sink in [&one, &two] {
        sink.set_delivery_time(Duration::from_millis(5));
    }
    let first = Running::start(server.source(), &one);
    let second = Running::start(server.source(), &two);
    until("both work", async || one.delivered().len() > 20 && two.delivered().len() > 20).await;
    // One of them dies: the other gets what it held.
    first.crash().await;
    until("all are acknowledged", async || server.open().await == 0).await;
    second.stop().await.unwrap();
    let all: HashSet<usize> = numbers(&one).union(&numbers(&two)).copied().collect();
    assert_eq!(all.len(), 400);
}

#[tokio::test]
async fn it_begins_where_the_declaration_says() {
    let Some(server) = Server::start().await else { return };
    let context = server.orders().await;
    publish(&context, 0..5).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let between = jiff::Timestamp::now().to_string();
    tokio::time::sleep(Duration::from_millis(50)).await;
    publish(&context, 5..10).await;
    for (consumer, start, first) in [("all", "earliest", 0), ("third", "4", 3), ("time", between.as_str(), 5)]
    {
        let spec = server.spec().with_option("start", start).with_option("consumer", consumer);
        let sink = FakeEventSink::new(4);
        let running = Running::start(server.source_of(&spec), &sink);
        until(start, async || sink.delivered().len() == 10 - first).await;
        running.stop().await.unwrap();
        assert_eq!(numbers(&sink), (first..10).collect(), "{start}");
    }
    // Only new ones, and only of one subject.
    let spec = server.spec().with_option("start", "latest").with_option("consumer", "new");
    let source = server.source_of(&spec.with_option("subject", "orders.11"));
    let sink = FakeEventSink::new(4);
    let running = Running::start(source.clone(), &sink);
    until("it is connected", async || source.backlog().await.unwrap_or(None) == Some(0)).await;
    publish(&context, 10..13).await;
    until("one comes", async || sink.delivered().len() == 1).await;
    running.stop().await.unwrap();
    assert_eq!(numbers(&sink), HashSet::from([11]));
}

#[tokio::test]
async fn events_in_both_modes_plain_messages_and_malformed_ones() {
    let Some(server) = Server::start().await else { return };
    let context = server.orders().await;
    let whole = r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","data":{"a":1}}"#;
    let binary = [
        ("ce-specversion", "1.0"),
        ("ce-id", "8"),
        ("CE-Source", "/shop"),
        ("ce-type", "order.paid"),
        ("ce-note", "Euro%20%E2%82%AC"),
        ("ce-datacontenttype", "text/plain"),
    ];
    let broken = [("ce-specversion", "1.0"), ("ce-id", "9")];
    let messages: [(&[(&str, &str)], &str); 5] = [
        (&[("content-type", "application/cloudevents+json")], whole),
        (&binary, "21.5"),
        (&broken, "lost?"),
        (&[("Content-Type", "text/csv")], "a,b"),
        (&[("Content-Type", "application/cloudevents+json")], "{"),
    ];
    for (headers, body) in messages {
        let mut map = async_nats::HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        context.publish_with_headers("orders.x", map, body.into()).await.unwrap().await.unwrap();
    }
    let sink = FakeEventSink::new(1);
    let running = Running::start(server.source(), &sink);
    until("all come", async || sink.delivered().len() == 5).await;
    running.stop().await.unwrap();
    let events = sink.delivered();
    let kinds: Vec<&str> = events.iter().map(Event::kind).collect();
    assert_eq!(
        kinds,
        [
            "order.paid",
            "order.paid",
            "dev.sas.nats.malformed",
            "dev.sas.nats.message",
            "dev.sas.nats.malformed"
        ]
    );
    assert_eq!(
        (events[0].id(), events[0].source(), &events[0].data()[..]),
        ("7", "/shop", &br#"{"a":1}"#[..])
    );
    assert_eq!(events[1].extensions()["note"], "Euro €");
    assert_eq!((events[1].data_content_type(), &events[1].data()[..]), (Some("text/plain"), &b"21.5"[..]));
    assert_eq!((events[3].source(), events[3].subject()), ("/nats/ORDERS", Some("orders.x")));
    assert_eq!((events[3].id(), events[3].data_content_type()), ("4", Some("text/csv")));
    assert_eq!(events[3].extensions()["sasposition"], "ORDERS@4");
    assert_eq!(&events[2].data()[..], b"lost?");
}

#[tokio::test]
async fn a_password_that_was_replaced_counts_at_the_next_connection() {
    let users = "authorization { user: shop, password: \"first-pass\" }";
    let Some(mut server) = Server::with(users, Some(("shop", "first-pass"))).await else { return };
    let context = server.orders().await;
    publish(&context, 0..5).await;
    let spec =
        server.spec().with_option("username", "shop").with_option("password-secret", "secret/nats/password");
    let source = server.source_of(&spec);
    let secrets = FakeSecrets::of(&[]);
    let sink = FakeEventSink::new(4);
    let run = || Running::with(source.clone(), &sink, Arc::new(FakeStore::default()), Some(secrets.clone()));

    secrets.set("secret/nats/password", "wrong-pass");
    let refused = run().ended().await.expect_err("a wrong password").chain();
    assert!(
        refused.contains("connecting to nats://127.0.0.1") && !refused.contains("wrong-pass"),
        "{refused}"
    );

    secrets.set("secret/nats/password", "first-pass\n");
    let running = run();
    until("they come", async || sink.delivered().len() == 5).await;

    // The server comes back with another password, and the secret is replaced; no source is made anew.
    server.server.kill();
    server.server.reconfigure("first-pass", "second-pass");
    server.login = Some(("shop", "second-pass"));
    let gone = running.ended().await.expect_err("the server is gone").chain();
    // Whatever it was doing then: the last of them may not have been acknowledged yet.
    let said = ["has gone away", "pulling", "acknowledging"];
    assert!(said.iter().any(|what| gone.contains(what)), "{gone}");
    secrets.set("secret/nats/password", "second-pass");
    server.server.restart().await;
    publish(&server.orders().await, 5..8).await;
    let running = run();
    until("the rest comes", async || numbers(&sink).len() == 8).await;
    running.stop().await.unwrap();
    assert!(!format!("{source:?}").contains("pass"));
}

#[tokio::test]
async fn tls_with_an_authority_by_reference() {
    // Its stream is made before it asks for TLS.
    let Some(mut server) = Server::start().await else { return };
    publish(&server.orders().await, 0..3).await;
    server.server.kill();
    let authority = Authority::new();
    let certificate = authority.certify("localhost");
    let (cert, key) =
        (server.server.write("cert.pem", &certificate.pem), server.server.write("key.pem", &certificate.key));
    server.server.configure(&format!("tls {{ cert_file: {cert:?}, key_file: {key:?} }}"));
    server.server.restart().await;

    let port = server.server.port();
    let servers = NatsServers::new([format!("localhost:{port}")]);
    let spec = server.spec().with_option("url", format!("tls://localhost:{port}"));
    let sink = FakeEventSink::new(4);
    let untrusted = Arc::new(servers.source(&spec).unwrap());
    Running::start(untrusted, &sink).ended().await.expect_err("nobody vouches for it");
    let source = Arc::new(servers.source(&spec.with_option("ca-secret", "secret/nats/ca")).unwrap());
    let secrets = FakeSecrets::of(&[]);
    secrets.set("secret/nats/ca", &authority.pem);
    let running = Running::with(source, &sink, Arc::new(FakeStore::default()), Some(secrets));
    until("they come", async || sink.delivered().len() == 3).await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let Some(server) = Server::start().await else { return };
    let spec = server.spec().with_option("stream", "NONE");
    let error =
        Running::start(server.source_of(&spec), &FakeEventSink::new(1)).ended().await.unwrap_err().chain();
    assert!(error.contains("stream NONE"), "{error}");
    let spec = server.spec().with_option("url", "nats://127.0.0.1:1");
    let nowhere = Arc::new(NatsServers::new(["127.0.0.1:1"]).source(&spec).unwrap());
    let error = Running::start(nowhere, &FakeEventSink::new(1)).ended().await.unwrap_err().chain();
    assert!(error.contains("connecting to nats://127.0.0.1:1"), "{error}");
}

fn sink(server: &Server, more: &[(&str, &str)]) -> Arc<dyn EventPublisher> {
    let url = format!("nats://{}", server.server.address());
    let mut options =
        BTreeMap::from([("url".to_owned(), url), ("subject".to_owned(), "orders.new".to_owned())]);
    options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let spec = SinkSpec::new("default/t", "nats-jetstream", options);
    NatsServers::new([server.server.address()]).sink(&spec, TriggerSecrets::default()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_written_and_none_is_lost_when_the_server_is_killed() {
    let Some(mut server) = Server::start().await else { return };
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_subject("grüße \"5 %\""))
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .unwrap();
    sink(&server, &[]).publish(event.clone()).await.unwrap();
    let second = Event::new("8", "/shop", "order.paid")
        .and_then(|event| event.with_data("text/plain", "21.5"))
        .unwrap();
    // The stream knows a repetition by its name.
    for _ in 0..2 {
        sink(&server, &[("mode", "structured")]).publish(second.clone()).await.unwrap();
    }
    let came = FakeEventSink::new(1);
    let running = Running::start(server.source(), &came);
    until("both come", async || came.delivered().len() == 2).await;
    until("nothing else comes", async || server.open().await == 0).await;
    running.stop().await.unwrap();
    let expected = [(event.clone(), "ORDERS@1"), (second, "ORDERS@2")]
        .map(|(event, position)| event.with_extension("sasposition", position).unwrap());
    assert_eq!(came.delivered(), expected);

    let nowhere = sink(&server, &[("subject", "nowhere")]).publish(event).await.unwrap_err().to_string();
    assert!(nowhere.contains("no stream has subject nowhere"), "{nowhere}");
    let sink = sink(&server, &[]);
    let published = publish_through_kills(&mut server, &sink, 3_000, 3).await;
    println!("sink: {published}");
}

#[test]
fn options_are_refused_by_name() {
    let servers = NatsServers::new(["127.0.0.1:4222"]);
    let spec = |url: &str| {
        TriggerSpec::new("t/t", "nats-jetstream", "t/x").with_option("url", url).with_option("stream", "S")
    };
    servers.source(&spec("nats://127.0.0.1:4222")).unwrap();
    servers.source(&spec("tls://127.0.0.1:4222").with_option("ca-secret", "secret/a/b")).unwrap();
    for (url, says) in [
        ("", "missing"),
        ("http://127.0.0.1:4222", "must be nats://"),
        ("nats://10.0.0.1:4222", "none of the servers"),
        ("nats://me:pw@127.0.0.1:4222", "no credentials"),
        ("x://me:pw@127.0.0.1:4222", "must be nats://"),
    ] {
        let errors = servers.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("pw"), "{url}: {errors}");
    }
    for (option, value) in [
        ("stream", "a.b"),
        ("consumer", "a b"),
        ("subject", "a b"),
        ("start", "0"),
        ("start", "yesterday"),
        ("ack-wait", "10ms"),
        ("max-ack-pending", "0"),
        ("username", "me"),
        ("ca-secret", "secret/a/b"),
        ("colour", "red"),
    ] {
        let errors = servers.source(&spec("nats://127.0.0.1:4222").with_option(option, value)).unwrap_err();
        let named = if option == "username" { "password-secret" } else { option };
        assert!(errors.to_string().contains(&format!("options.{named}")), "{option}: {errors}");
    }
}

#[async_trait]
impl Broker for Server {
    fn source(&self) -> Arc<dyn TriggerSource> {
        Server::source(self)
    }

    fn kill(&mut self) {
        self.server.kill();
    }

    async fn restart(&mut self) {
        self.server.restart().await;
        self.client().await;
    }

    async fn unacknowledged(&mut self) -> Option<u64> {
        Some(self.open().await)
    }
}

/// Server and host are killed at random while events come: none is lost. 20,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(mut server) = Server::start().await else { return };
    let count = events_of_a_test(20_000);
    publish(&server.orders().await, 0..count).await;
    let kills = kill_at_random(&mut server, count, (5, 12), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}

/// The server is away when the host starts, and for ten seconds later; ten minutes with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_for_a_while_is_waited_for() {
    let Some(mut server) = Server::start().await else { return };
    let publish = async |server: &mut Server, numbers| publish(&server.client().await, numbers).await;
    println!("{}", outage(&mut server, publish, |event| number(event).to_string()).await);
}
