//! Against a real `redis-server`, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use redis::{Value, aio::MultiplexedConnection, cmd};
use sas_core::{
    ErrorKind, Event, EventPublisher, SinkSpec, TenantKey, TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_redis::{RedisList, RedisServers, RedisStream};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, outage, publish_through_kills, until},
    fake::{FakeEventSink, FakeSecrets, FakeStore, OrderedEventSink},
    server::{Authority, free_port, redis},
};

struct Server(sas_testkit::server::Server);

impl Server {
    async fn start() -> Option<Self> {
        Some(Self(redis("").await?))
    }

    async fn client(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("redis://{}", self.0.address())).unwrap();
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(20)));
        for _ in 0..200 {
            if let Ok(mut connection) = client.get_multiplexed_async_connection_with_config(&config).await
                && cmd("PING").query_async::<String>(&mut connection).await.is_ok()
            {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not answer");
    }

    fn spec(&self, consumer: &str) -> TriggerSpec {
        TriggerSpec::new("orders", "redis-stream", "default/orders")
            .with_option("url", format!("redis://{}", self.0.address()))
            .with_option("stream", "orders")
            .with_option("start", "earliest")
            .with_option("claim-after", "1s")
            .with_option("consumer", consumer)
    }

    fn source(&self, consumer: &str) -> Arc<RedisStream> {
        let streams = RedisServers::new([self.0.address()]);
        Arc::new(streams.source(&self.spec(consumer)).unwrap())
    }
}

async fn add(connection: &mut MultiplexedConnection, from: usize, count: usize) {
    let mut pipe = redis::pipe();
    for n in from..from + count {
        pipe.cmd("XADD").arg("orders").arg("*").arg("n").arg(n).ignore();
    }
    pipe.query_async::<()>(connection).await.unwrap();
}

fn number(event: &Event) -> usize {
    let data: serde_json::Value = serde_json::from_slice(event.data()).unwrap();
    data["n"].as_str().unwrap().parse().unwrap()
}

/// Entries that the group has not acknowledged, as the server has it: pending, or after the last that it gave out.
async fn unacknowledged(connection: &mut MultiplexedConnection) -> u64 {
    let groups: Vec<HashMap<String, Value>> =
        cmd("XINFO").arg("GROUPS").arg("orders").query_async(connection).await.unwrap();
    let Some(group) = groups.first() else {
        return cmd("XLEN").arg("orders").query_async(connection).await.unwrap();
    };
    let int = |name: &str| match group[name] {
        Value::Int(number) => Some(u64::try_from(number).unwrap()),
        _ => None,
    };
    let pending = int("pending").unwrap();
    if let Some(lag) = int("lag") {
        return pending + lag;
    }
    let Value::BulkString(last) = &group["last-delivered-id"] else { panic!("no id") };
    let mut range = cmd("XRANGE");
    range.arg("orders").arg([b"(".as_slice(), last].concat()).arg("+");
    let Value::Array(unread) = range.query_async(connection).await.unwrap() else { panic!("no entries") };
    pending + unread.len() as u64
}

#[tokio::test]
async fn in_order_acknowledged_after_delivery_and_counted() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    add(&mut client, 0, 500).await;
    let (sink, source) = (OrderedEventSink::new(number), server.source("a"));
    let running = Running::start(source.clone(), &sink);
    until("some come", async || sink.done() > 20).await;
    // Never ahead: what the server thinks done was delivered.
    let open = unacknowledged(&mut client).await;
    assert!(500 - open <= sink.done() as u64, "acknowledged ahead of delivery");
    until("all are acknowledged", async || unacknowledged(&mut client).await == 0).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    running.stop().await.unwrap();
    assert_eq!(sink.offered(), (0..500).collect::<Vec<_>>());

    // With nobody who reads, the backlog is the server's own number.
    add(&mut client, 500, 70).await;
    assert_eq!(source.backlog().await.unwrap(), Some(70));
    assert_eq!(unacknowledged(&mut client).await, 70);
}

#[tokio::test]
async fn what_failed_comes_again_and_what_was_left_is_taken_over() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    let (sink, source) = (FakeEventSink::new(4), server.source("a"));
    add(&mut client, 0, 10).await;
    sink.fail_next(ErrorKind::Unavailable);
    Running::start(source.clone(), &sink).ended().await.expect_err("a delivery failed");
    assert!(unacknowledged(&mut client).await > 0);

    // The other host takes what the first, which does not come back, left unacknowledged.
    let other = server.source("b");
    let running = Running::start(other, &sink);
    add(&mut client, 10, 10).await;
    until("all come", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 20).await;
    until("all are acknowledged", async || unacknowledged(&mut client).await == 0).await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn events_in_a_field_and_malformed_ones() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    let whole = r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","data":{"a":1}}"#;
    for document in [whole, r#"{"specversion":"1.0"}"#] {
        let mut add = cmd("XADD");
        add.arg("orders").arg("*").arg("cloudevent").arg(document);
        add.query_async::<String>(&mut client).await.unwrap();
    }
    let (sink, source) = (FakeEventSink::new(4), server.source("a"));
    let running = Running::start(source.clone(), &sink);
    until("both come", async || sink.delivered().len() == 2).await;
    running.stop().await.unwrap();
    let events = sink.delivered();
    assert_eq!((events[0].id(), events[0].source(), events[0].kind()), ("7", "/shop", "order.paid"));
    assert!(events[0].extensions()["sasposition"].to_text().starts_with("orders@"));
    assert_eq!(events[1].kind(), "dev.sas.redis.malformed");
}

#[tokio::test]
async fn a_password_that_was_replaced_counts_at_the_next_connection() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    add(&mut client, 0, 5).await;
    let mut set = async |password: &str| {
        let mut set = cmd("CONFIG");
        set.arg("SET").arg("requirepass").arg(password).query_async::<()>(&mut client).await.unwrap();
        let mut kill = cmd("CLIENT");
        kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
        kill.query_async::<u64>(&mut client).await.unwrap();
    };
    set("first-pass").await;
    let streams = RedisServers::new([format!("127.0.0.1:{}", server.0.port())]);
    let spec = server.spec("a").with_option("password-secret", "secret/redis/password");
    let source = Arc::new(streams.source(&spec).unwrap());
    let (sink, secrets) =
        (FakeEventSink::new(4), FakeSecrets::of(&[("secret/redis/password", "wrong-pass")]));
    let run = || Running::with(source.clone(), &sink, Arc::new(FakeStore::default()), Some(secrets.clone()));
    let refused = run().ended().await.expect_err("a wrong password").chain();
    assert!(refused.contains("AUTH") && !refused.contains("wrong-pass"), "{refused}");

    secrets.set("secret/redis/password", "first-pass");
    let running = run();
    until("they come", async || sink.delivered().len() == 5).await;
    // The server asks for another password and hangs up; no source is made anew.
    set("second-pass").await;
    running.ended().await.expect_err("its connection was ended");
    run().ended().await.expect_err("the password is an old one");
    secrets.set("secret/redis/password", "second-pass");
    let running = run();
    add(&mut client, 5, 3).await;
    // One whose acknowledgement was under way when the server hung up comes again.
    until("the rest comes", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 8)
        .await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn two_hosts_share_a_group() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    add(&mut client, 0, 2000).await;
    let (one, two) = (FakeEventSink::new(4), FakeEventSink::new(4));
    for sink in [&one, &two] {
        sink.set_delivery_time(Duration::from_millis(2));
    }
    let first = Running::start(server.source("a"), &one);
    let second = Running::start(server.source("b"), &two);
    until("both work", async || one.delivered().len() > 20 && two.delivered().len() > 20).await;
    // One of them dies and does not come back: the other takes over what it held.
    first.crash().await;
    until("all are acknowledged", async || unacknowledged(&mut client).await == 0).await;
    second.stop().await.unwrap();
    let numbers = |sink: &FakeEventSink| sink.delivered().iter().map(number).collect::<HashSet<_>>();
    assert_eq!(numbers(&one).union(&numbers(&two)).count(), 2000);
}

fn sink(
    server: &Server,
    secrets: Option<Arc<FakeSecrets>>,
    more: &[(&str, &str)],
) -> Arc<dyn EventPublisher> {
    let url = format!("redis://{}", server.0.address());
    let mut options = BTreeMap::from([("url".to_owned(), url), ("stream".to_owned(), "orders".to_owned())]);
    options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let secrets = TriggerSecrets::new(secrets.map(|secrets| secrets as _), Some(TenantKey(1)));
    let spec = SinkSpec::new("default/t", "redis-stream", options);
    RedisServers::new([server.0.address()]).sink(&spec, secrets).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_written_and_none_is_lost_when_the_server_is_killed() {
    let Some(mut server) = Server::start().await else { return };
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .unwrap();
    sink(&server, None, &[]).publish(event.clone()).await.unwrap();
    let came = FakeEventSink::new(1);
    let running = Running::start(server.source("a"), &came);
    until("it comes", async || came.delivered().len() == 1).await;
    running.stop().await.unwrap();
    let position = came.delivered()[0].extensions()["sasposition"].clone();
    assert_eq!(came.delivered(), [event.clone().with_extension("sasposition", position).unwrap()]);

    let mut client = server.client().await;
    cmd("SET").arg("text").arg("x").query_async::<()>(&mut client).await.unwrap();
    let refused = sink(&server, None, &[("stream", "text")]).publish(event.clone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidSpec, "{refused}");
    let bounded = sink(&server, None, &[("stream", "bounded"), ("max-length", "1")]);
    for _ in 0..300 {
        bounded.publish(event.clone()).await.unwrap();
    }
    let kept: usize = cmd("XLEN").arg("bounded").query_async(&mut client).await.unwrap();
    assert!(kept < 300, "{kept} are kept");

    let sink = sink(&server, None, &[]);
    let published = publish_through_kills(&mut server, &sink, 3_000, 3).await;
    println!("sink: {published}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_by_reference() {
    let authority = Authority::new();
    let certificate = authority.certify("localhost");
    let tls = free_port();
    let settings = format!(
        "tls-port {tls}\ntls-cert-file $DIR/cert.pem\ntls-key-file $DIR/key.pem\ntls-ca-cert-file $DIR/ca.pem\ntls-auth-clients no"
    );
    let Some(mut server) = redis("").await.map(Server) else { return };
    server.0.kill();
    for (name, text) in
        [("cert.pem", &certificate.pem), ("key.pem", &certificate.key), ("ca.pem", &authority.pem)]
    {
        server.0.write(name, text);
    }
    server.0.configure(&settings.replace("$DIR", &server.0.dir().display().to_string()));
    server.0.restart().await;
    add(&mut server.client().await, 0, 3).await;

    let address = format!("localhost:{tls}");
    let servers = RedisServers::new([address.as_str()]);
    let spec = server.spec("a").with_option("url", format!("rediss://{address}"));
    let came = FakeEventSink::new(4);
    let untrusted = Arc::new(servers.source(&spec).unwrap());
    let refused = Running::start(untrusted, &came).ended().await.expect_err("nobody vouches for it").chain();
    assert!(refused.contains("certificate") || refused.contains("UnknownIssuer"), "{refused}");
    let spec = spec.with_option("ca-secret", "secret/redis/ca");
    let source = Arc::new(servers.source(&spec).unwrap());
    let secrets = FakeSecrets::of(&[("secret/redis/ca", &authority.pem)]);
    let running = Running::with(source, &came, Arc::new(FakeStore::default()), Some(secrets.clone()));
    until("they come", async || came.delivered().len() == 3).await;
    running.stop().await.unwrap();
    // Another authority's word counts for nothing.
    secrets.set("secret/redis/ca", &Authority::new().pem);
    let source = Arc::new(servers.source(&spec).unwrap());
    Running::with(source, &came, Arc::new(FakeStore::default()), Some(secrets))
        .ended()
        .await
        .expect_err("another authority");
}

#[test]
fn options_are_refused_by_name() {
    let servers = RedisServers::new(["127.0.0.1:6379"]);
    let spec = |url: &str| {
        TriggerSpec::new("t", "redis-stream", "default/x").with_option("url", url).with_option("stream", "s")
    };
    servers.source(&spec("redis://127.0.0.1:6379/2")).unwrap();
    servers.source(&spec("rediss://127.0.0.1:6379").with_option("ca-secret", "secret/a/b")).unwrap();
    for (url, says) in [
        ("", "missing"),
        ("http://127.0.0.1:6379", "must be redis://"),
        ("redis://127.0.0.1:6379/first", "must be redis://host:port/database"),
        ("redis://10.0.0.1:6379", "none of the servers"),
        ("redis://:pw@127.0.0.1:6379", "no credentials"),
    ] {
        let errors = servers.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("pw"), "{url}: {errors}");
    }
    for (option, value) in [
        ("start", "middle"),
        ("claim-after", "0s"),
        ("stream", ""),
        ("ca-secret", "secret/a/b"),
        ("colour", "red"),
    ] {
        let errors = servers.source(&spec("redis://127.0.0.1:6379").with_option(option, value)).unwrap_err();
        assert!(errors.to_string().contains(&format!("options.{option}")), "{option}: {errors}");
    }
    let named = spec("redis://127.0.0.1:6379").with_option("username", "me");
    assert!(servers.source(&named).unwrap_err().to_string().contains("options.password-secret"));
}

#[async_trait]
impl Broker for Server {
    fn source(&self) -> Arc<dyn TriggerSource> {
        Server::source(self, "a")
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
        self.client().await;
    }

    async fn unacknowledged(&mut self) -> Option<u64> {
        Some(unacknowledged(&mut self.client().await).await)
    }
}

/// Server and host are killed at random while events come: none is lost. 20,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(mut server) = Server::start().await else { return };
    let count = events_of_a_test(20_000);
    let mut client = server.client().await;
    for chunk in 0..count / 1000 {
        add(&mut client, chunk * 1000, 1000).await;
    }
    let kills = kill_at_random(&mut server, count, (5, 20), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}

/// A server with a list `jobs`.
struct Lists(Server);

impl Lists {
    fn spec(&self) -> TriggerSpec {
        TriggerSpec::new("shop/jobs", "redis-list", "shop/worker")
            .with_option("url", format!("redis://{}", self.0.0.address()))
            .with_option("list", "jobs")
            .with_option("consumer", "a")
    }

    fn of_list(&self) -> Arc<RedisList> {
        Arc::new(RedisServers::new([self.0.0.address()]).list(&self.spec()).unwrap())
    }

    async fn push(&self, numbers: std::ops::Range<usize>) {
        let mut client = self.0.client().await;
        let numbers: Vec<usize> = numbers.collect();
        for some in numbers.chunks(1000) {
            cmd("RPUSH").arg("jobs").arg(some).query_async::<()>(&mut client).await.unwrap();
        }
    }
}

fn number_of_item(event: &Event) -> usize {
    std::str::from_utf8(event.data()).unwrap().parse().unwrap()
}

#[async_trait]
impl Broker for Lists {
    fn source(&self) -> Arc<dyn TriggerSource> {
        self.of_list()
    }

    fn kill(&mut self) {
        Broker::kill(&mut self.0);
    }

    async fn restart(&mut self) {
        Broker::restart(&mut self.0).await;
    }

    /// Those of the list, and those that the host has under way.
    async fn unacknowledged(&mut self) -> Option<u64> {
        let mut lengths = redis::pipe();
        lengths.cmd("LLEN").arg("jobs").cmd("LLEN").arg("{jobs}:shop/jobs:a");
        let lengths: (u64, u64) = lengths.query_async(&mut self.0.client().await).await.unwrap();
        Some(lengths.0 + lengths.1)
    }
}

#[tokio::test]
async fn items_of_a_list_are_removed_after_delivery_and_counted_until_then() {
    let Some(server) = Server::start().await else { return };
    let mut lists = Lists(server);
    lists.push(0..300).await;
    let (sink, source) = (OrderedEventSink::new(number_of_item), lists.of_list());
    assert_eq!(source.backlog().await.unwrap(), None, "nothing is known before it has connected");
    let running = Running::start(source.clone(), &sink);
    until("some come", async || sink.done() > 20).await;
    let open = lists.unacknowledged().await.unwrap();
    assert!(300 - open <= sink.done() as u64, "removed ahead of delivery");
    until("all are removed", async || lists.unacknowledged().await == Some(0)).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    running.stop().await.unwrap();
    assert_eq!(sink.offered(), (0..300).collect::<Vec<_>>());

    // What failed comes first with the next run; a CloudEvent is itself, and what says to be one and is none is seen.
    let mut client = lists.0.client().await;
    let whole = r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","data":{"a":1}}"#;
    let items = [whole, r#"{"specversion":"1.0"}"#, "plain"];
    cmd("RPUSH").arg("jobs").arg(&items).query_async::<()>(&mut client).await.unwrap();
    let sink = FakeEventSink::new(1);
    sink.fail_next(ErrorKind::Unavailable);
    Running::start(source.clone(), &sink).ended().await.expect_err("a delivery failed");
    assert_eq!(lists.unacknowledged().await, Some(3));
    let running = Running::start(source, &sink);
    until("all come", async || sink.delivered().len() == 3).await;
    running.stop().await.unwrap();
    let events = sink.delivered();
    let kinds: Vec<&str> = events.iter().map(Event::kind).collect();
    assert_eq!(kinds, ["order.paid", "dev.sas.redis.malformed", "dev.sas.redis.item"]);
    assert_eq!(
        (events[0].id(), events[2].source(), &events[2].data()[..]),
        ("7", "/redis/jobs", &b"plain"[..])
    );
    assert_eq!(events[2].extensions()["sasposition"], "jobs");

    let servers = RedisServers::new([lists.0.0.address()]);
    let errors = servers.list(&lists.spec().with_option("list", "").with_option("stream", "x")).unwrap_err();
    let errors = errors.to_string();
    assert!(errors.contains("options.list") && errors.contains("options.stream"), "{errors}");
}

/// Server and host are killed at random while items are taken from a list: none is lost. 10,000 items; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_is_killed_at_random_loses_nothing() {
    let Some(server) = Server::start().await else { return };
    let count = events_of_a_test(10_000);
    let mut lists = Lists(server);
    lists.push(0..count).await;
    let identity = |event: &Event| number_of_item(event).to_string();
    let kills = kill_at_random(&mut lists, count, (3, 8), 0x5a6, identity).await;
    println!("{kills}");
}

/// The server is away when the host starts, and for ten seconds later; ten minutes with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_for_a_while_is_waited_for() {
    let Some(mut server) = Server::start().await else { return };
    let publish = async |server: &mut Server, numbers: std::ops::Range<usize>| {
        add(&mut server.client().await, numbers.start, numbers.len()).await;
    };
    println!("{}", outage(&mut server, publish, |event| number(event).to_string()).await);
}
