//! Against a real `redis-server`, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{HashMap, HashSet},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Value, aio::MultiplexedConnection, cmd};
use sas_core::{
    Ack, Event, EventSink, SecretSource, Slot, Store, SystemClock, TenantKey, TriggerCx, TriggerSource,
    TriggerSpec,
};
use sas_redis::{RedisStream, RedisStreams};
use sas_testkit::{
    broker::{Running, until},
    fake::{FakeEventSink, FakeStore},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A server with its data in a directory. What it answered is on disk: it is killed, and comes back.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(dir: &std::path::Path, port: u16) -> std::io::Result<Child> {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .args(["--appendfsync", "always", "--dir"])
        .arg(dir)
        .stdout(Stdio::null())
        .spawn()
}

impl Server {
    /// `None`, and a line about it, where there is no server; in CI that is a failure.
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        match spawn(dir.path(), port) {
            Ok(child) => {
                let server = Self { child, dir, port };
                server.client().await;
                Some(server)
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "redis-server: {error}");
                eprintln!("SKIPPED: redis-server: {error} (Debian has it as redis-server)");
                None
            }
        }
    }

    async fn client(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
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

    async fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = spawn(self.dir.path(), self.port).unwrap();
        self.client().await;
    }

    fn spec(&self, consumer: &str) -> TriggerSpec {
        TriggerSpec::new("orders", "redis-stream", "default/orders")
            .with_option("url", format!("redis://127.0.0.1:{}", self.port))
            .with_option("stream", "orders")
            .with_option("start", "earliest")
            .with_option("claim-after", "1s")
            .with_option("consumer", consumer)
    }

    fn source(&self, consumer: &str) -> Arc<RedisStream> {
        let streams = RedisStreams::new([format!("127.0.0.1:{}", self.port)]);
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

fn run(
    source: &Arc<RedisStream>,
    sink: &Arc<impl EventSink>,
) -> (tokio::task::JoinHandle<sas_core::Result<()>>, CancellationToken) {
    let shutdown = CancellationToken::new();
    let store: Arc<dyn Store> = Arc::new(FakeStore::default());
    let cx = TriggerCx::new("orders", Arc::clone(sink) as _, store, Arc::new(SystemClock), shutdown.clone());
    let source = Arc::clone(source);
    (tokio::spawn(async move { source.run(cx).await }), shutdown)
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

/// Notes in which order events are offered, and takes as long for each as their number says.
#[derive(Debug, Default)]
struct Order {
    offered: Mutex<Vec<usize>>,
    done: Mutex<usize>,
}

#[async_trait]
impl EventSink for Order {
    async fn ready(&self) -> sas_core::Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, _slot: Slot, event: Event) -> sas_core::Result<Ack> {
        let number = number(&event);
        self.offered.lock().unwrap().push(number);
        tokio::time::sleep(Duration::from_millis((number as u64 * 7) % 11)).await;
        *self.done.lock().unwrap() += 1;
        Ok(Ack::Completed)
    }
}

#[tokio::test]
async fn in_order_acknowledged_after_delivery_and_counted() {
    let Some(server) = Server::start().await else { return };
    let mut client = server.client().await;
    add(&mut client, 0, 500).await;
    let (sink, source) = (Arc::new(Order::default()), server.source("a"));
    let (task, shutdown) = run(&source, &sink);
    until("some come", async || *sink.done.lock().unwrap() > 20).await;
    // Never ahead: what the server thinks done was delivered.
    let open = unacknowledged(&mut client).await;
    assert!(500 - open <= *sink.done.lock().unwrap() as u64, "acknowledged ahead of delivery");
    until("all are acknowledged", async || unacknowledged(&mut client).await == 0).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    shutdown.cancel();
    task.await.unwrap().unwrap();
    assert_eq!(*sink.offered.lock().unwrap(), (0..500).collect::<Vec<_>>());

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
    sink.fail_next(sas_core::ErrorKind::Unavailable);
    let (task, _shutdown) = run(&source, &sink);
    task.await.unwrap().expect_err("a delivery failed");
    assert!(unacknowledged(&mut client).await > 0);

    // The other host takes what the first, which does not come back, left unacknowledged.
    let other = server.source("b");
    let (task, shutdown) = run(&other, &sink);
    add(&mut client, 10, 10).await;
    until("all come", async || sink.delivered().iter().map(number).collect::<HashSet<_>>().len() == 20).await;
    until("all are acknowledged", async || unacknowledged(&mut client).await == 0).await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
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
    let (task, shutdown) = run(&source, &sink);
    until("both come", async || sink.delivered().len() == 2).await;
    shutdown.cancel();
    task.await.unwrap().unwrap();
    let events = sink.delivered();
    assert_eq!((events[0].id(), events[0].source(), events[0].kind()), ("7", "/shop", "order.paid"));
    assert!(events[0].extensions()["sasposition"].to_text().starts_with("orders@"));
    assert_eq!(events[1].kind(), "dev.sas.redis.malformed");
}

/// Secrets that a test changes.
#[derive(Debug)]
struct Secrets(Mutex<String>);

#[async_trait]
impl SecretSource for Secrets {
    async fn resolve(&self, reference: &str, _tenant: TenantKey) -> sas_core::Result<Bytes> {
        assert_eq!(reference, "secret/redis/password");
        Ok(Bytes::from(self.0.lock().unwrap().clone()))
    }
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
    let streams = RedisStreams::new([format!("127.0.0.1:{}", server.port)]);
    let spec = server.spec("a").with_option("password-secret", "secret/redis/password");
    let source = Arc::new(streams.source(&spec).unwrap());
    let (sink, secrets) = (FakeEventSink::new(4), Arc::new(Secrets(Mutex::new("wrong-pass".to_owned()))));
    let run = || Running::with(source.clone(), &sink, Arc::new(FakeStore::default()), Some(secrets.clone()));
    let refused = run().ended().await.expect_err("a wrong password").chain();
    assert!(refused.contains("AUTH") && !refused.contains("wrong-pass"), "{refused}");

    "first-pass".clone_into(&mut secrets.0.lock().unwrap());
    let running = run();
    until("they come", async || sink.delivered().len() == 5).await;
    // The server asks for another password and hangs up; no source is made anew.
    set("second-pass").await;
    running.ended().await.expect_err("its connection was ended");
    run().ended().await.expect_err("the password is an old one");
    "second-pass".clone_into(&mut secrets.0.lock().unwrap());
    let running = run();
    add(&mut client, 5, 3).await;
    until("the rest comes", async || sink.delivered().len() == 8).await;
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

#[test]
fn options_are_refused_by_name() {
    let streams = RedisStreams::new(["127.0.0.1:6379"]);
    let spec = |url: &str| {
        TriggerSpec::new("t", "redis-stream", "default/x").with_option("url", url).with_option("stream", "s")
    };
    streams.source(&spec("redis://127.0.0.1:6379/2")).unwrap();
    for (url, says) in [
        ("", "must be redis://"),
        ("rediss://127.0.0.1:6379", "TLS is not offered"),
        ("redis://10.0.0.1:6379", "none of the servers"),
        ("redis://:pw@127.0.0.1:6379", "no credentials"),
    ] {
        let errors = streams.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("pw"), "{url}: {errors}");
    }
    let bad = spec("redis://127.0.0.1:6379").with_option("start", "middle").with_option("claim-after", "0s");
    let errors = streams.source(&bad).unwrap_err().to_string();
    assert!(errors.contains("options.start") && errors.contains("options.claim-after"), "{errors}");
}

/// Server and host are killed at random while events come: none is lost. 20,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(mut server) = Server::start().await else { return };
    let count = if std::env::var_os("SAS_LONG").is_some() { 100_000 } else { 20_000 };
    let mut client = server.client().await;
    for chunk in 0..count / 1000 {
        add(&mut client, chunk * 1000, 1000).await;
    }
    let sink = FakeEventSink::new(16);
    let (mut seed, mut kills, mut crashes) = (0x5a5_u64, 0, 0);
    let (mut source, mut ended) = (server.source("a"), false);
    let began = Instant::now();
    while !ended {
        assert!(began.elapsed() < Duration::from_secs(240), "{} offered", sink.offered());
        let (task, _shutdown) = run(&source, &sink);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        tokio::time::sleep(Duration::from_millis(100 + (seed >> 40) % 300)).await;
        // Three crashes of the host for one of the server.
        if (seed >> 33) % 4 == 0 && kills < 5 {
            server.kill_and_restart().await;
            client = server.client().await;
            kills += 1;
        } else if crashes < 20 {
            task.abort();
            crashes += 1;
        } else {
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        task.abort();
        let _ = task.await;
        let open = unacknowledged(&mut client).await;
        let unique: HashSet<_> = sink.delivered().iter().map(number).collect();
        assert!(count as u64 - open <= unique.len() as u64, "acknowledged ahead of delivery");
        ended = open == 0;
        source = server.source("a");
    }
    let delivered = sink.delivered();
    let unique: HashSet<_> = delivered.iter().map(number).collect();
    assert_eq!(unique.len(), count, "lost events");
    println!(
        "{count} events, {kills} kills of the server, {crashes} of the host: lost 0, {} twice, {:?}",
        delivered.len() - count,
        began.elapsed()
    );
    assert!(kills + crashes > 3, "it was over before anything was killed");
}
