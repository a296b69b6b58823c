//! Against a real PostgreSQL, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Ack, ErrorKind, Event, EventPublisher, EventSink, SecretSource, SinkSpec, Slot, TenantKey,
    TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_postgres::{PostgresOutbox, PostgresServers};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, outage, publish_through_kills, until},
    fake::{FakeEventSink, FakeSecrets, FakeStore},
    server::{Authority, PostgresServer},
};
use tokio_postgres::{Client, NoTls};

/// The table as docs/sources.md has it, for a role that may do with it what the source does, and no more.
const TABLE: &str = include_str!("../outbox.sql");

struct Server(PostgresServer);

impl Server {
    async fn start() -> Option<Self> {
        let server = Self(PostgresServer::start().await?);
        server.admin().await.batch_execute(TABLE).await.unwrap();
        Some(server)
    }

    async fn try_admin(&self) -> Option<Client> {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.0.port())
            .user("postgres")
            .password("admin-pass")
            .dbname("postgres");
        let (client, connection) = config.connect(NoTls).await.ok()?;
        tokio::spawn(connection);
        Some(client)
    }

    async fn admin(&self) -> Client {
        for _ in 0..400 {
            if let Some(client) = self.try_admin().await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not answer");
    }

    fn spec(&self) -> TriggerSpec {
        TriggerSpec::new("shop/orders", "postgres-outbox", "shop/billing")
            .with_option("url", format!("postgres://{}/postgres", self.0.address()))
            .with_option("table", "outbox")
            .with_option("username", "sas")
            .with_option("password-secret", "secret/outbox/password")
            .with_option("lease", "1s")
            .with_option("poll", "500ms")
    }

    fn source_of(&self, spec: &TriggerSpec) -> Arc<PostgresOutbox> {
        let servers = PostgresServers::new([self.0.address()]);
        Arc::new(servers.source(spec).unwrap())
    }

    async fn open(&self) -> u64 {
        let row =
            self.admin().await.query_one("SELECT count(*) FROM outbox WHERE delivered_at IS NULL", &[]).await;
        u64::try_from(row.unwrap().get::<_, i64>(0)).unwrap()
    }
}

fn secrets(password: &str) -> Arc<FakeSecrets> {
    FakeSecrets::of(&[("secret/outbox/password", password)])
}

fn run(source: &Arc<PostgresOutbox>, sink: &Arc<impl EventSink>) -> Running {
    let store = Arc::new(FakeStore::default());
    Running::with(Arc::clone(source) as _, sink, store, Some(secrets("sas-pass")))
}

/// Rows with the numbers of a range, each with the key that `key` (an expression of SQL over `n`) gives it.
async fn insert(client: &Client, numbers: std::ops::Range<usize>, key: &str) {
    let statement = format!(
        "INSERT INTO outbox (key, event) SELECT {key}, jsonb_build_object('n', n) FROM generate_series({}, {}) n",
        numbers.start,
        numbers.end - 1
    );
    client.batch_execute(&statement).await.unwrap();
}

fn number(event: &Event) -> usize {
    let data: serde_json::Value = serde_json::from_slice(event.data()).unwrap();
    usize::try_from(data["n"].as_u64().unwrap()).unwrap()
}

fn numbers(sink: &FakeEventSink) -> HashSet<usize> {
    sink.delivered().iter().map(number).collect()
}

/// Notes what of each key begins and ends, and takes as long for each as its number says.
#[derive(Debug, Default)]
struct ByKey {
    ended: Mutex<HashMap<String, Vec<usize>>>,
    under_way: Mutex<HashSet<String>>,
    together: Mutex<usize>,
}

#[async_trait]
impl EventSink for ByKey {
    async fn ready(&self) -> sas_core::Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, _slot: Slot, event: Event) -> sas_core::Result<Ack> {
        let key = event.extensions()["partitionkey"].to_text().into_owned();
        let number = number(&event);
        {
            let mut under_way = self.under_way.lock().unwrap();
            assert!(under_way.insert(key.clone()), "two of {key} at once");
            let mut together = self.together.lock().unwrap();
            *together = under_way.len().max(*together);
        }
        tokio::time::sleep(Duration::from_millis((number as u64 * 7) % 11)).await;
        self.under_way.lock().unwrap().remove(&key);
        self.ended.lock().unwrap().entry(key).or_default().push(number);
        Ok(Ack::Completed)
    }
}

#[tokio::test]
async fn rows_are_deleted_after_delivery_and_counted_until_then() {
    let Some(server) = Server::start().await else { return };
    let client = server.admin().await;
    insert(&client, 0..300, "NULL").await;
    let (sink, source) = (FakeEventSink::new(4), server.source_of(&server.spec()));
    sink.set_delivery_time(Duration::from_millis(5));
    assert_eq!(source.backlog().await.unwrap(), None, "nothing is known before it has connected");
    let running = run(&source, &sink);
    until("some come", async || sink.delivered().len() > 20).await;
    let open = server.open().await;
    assert!(300 - open <= sink.delivered().len() as u64, "acknowledged ahead of delivery");
    until("all are gone", async || server.open().await == 0).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    assert_eq!(sink.delivered().iter().map(number).take(4).collect::<HashSet<_>>(), (0..4).collect());
    assert_eq!(numbers(&sink).len(), 300);
    running.stop().await.unwrap();
    source.backlog().await.expect_err("it is not connected any more");

    // With no room for any, the backlog is what the table has.
    insert(&client, 300..370, "NULL").await;
    let full = FakeEventSink::new(1);
    let _room = full.ready().await.unwrap();
    let running = run(&source, &full);
    until("it is connected", async || source.backlog().await.is_ok()).await;
    assert_eq!((source.backlog().await.unwrap(), server.open().await), (Some(70), 70));
    running.stop().await.unwrap();
}

#[tokio::test]
async fn a_notice_wakes_and_rows_may_be_marked() {
    let Some(server) = Server::start().await else { return };
    let client = server.admin().await;
    let spec = server.spec().with_option("done", "mark").with_option("poll", "1h");
    let (sink, source) = (FakeEventSink::new(4), server.source_of(&spec));
    let running = run(&source, &sink);
    until("it is connected", async || source.backlog().await.unwrap_or(None) == Some(0)).await;
    for batch in 0..3 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        insert(&client, batch * 5..batch * 5 + 5, "NULL").await;
        until("they come without a poll", async || sink.delivered().len() == batch * 5 + 5).await;
    }
    until("all are marked", async || server.open().await == 0).await;
    running.stop().await.unwrap();
    let kept = client.query_one("SELECT count(*) FROM outbox WHERE leased_until IS NULL", &[]).await.unwrap();
    assert_eq!(kept.get::<_, i64>(0), 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_share_the_rows_and_keep_the_order_of_each_key() {
    let Some(server) = Server::start().await else { return };
    insert(&server.admin().await, 0..400, "'k' || n % 7").await;
    // One sink for both, so that it sees what goes on at once.
    let sink = Arc::new(ByKey::default());
    let hosts = [server.source_of(&server.spec()), server.source_of(&server.spec())];
    let running: Vec<Running> = hosts.iter().map(|source| run(source, &sink)).collect();
    until("all are gone", async || server.open().await == 0).await;
    for host in running {
        host.stop().await.unwrap();
    }
    let ended = sink.ended.lock().unwrap();
    assert_eq!(ended.values().map(Vec::len).sum::<usize>(), 400, "each once");
    assert!(ended.values().all(|numbers| numbers.is_sorted()), "{ended:?}");
    assert!(*sink.together.lock().unwrap() > 1, "keys pass each other");
}

#[tokio::test]
async fn what_failed_comes_again_and_a_long_delivery_is_made_once() {
    let Some(server) = Server::start().await else { return };
    insert(&server.admin().await, 0..3, "NULL").await;
    let (sink, source) = (FakeEventSink::new(4), server.source_of(&server.spec()));
    sink.fail_next(ErrorKind::Unavailable);
    run(&source, &sink).ended().await.expect_err("a delivery failed");
    // Longer than the lease, at two hosts.
    sink.set_delivery_time(Duration::from_millis(2500));
    let before = sink.offered();
    let other = server.source_of(&server.spec());
    let running = [run(&source, &sink), run(&other, &sink)];
    until("all are gone", async || server.open().await == 0).await;
    for host in running {
        host.stop().await.unwrap();
    }
    assert_eq!(numbers(&sink).len(), 3);
    assert!(sink.offered() - before <= 3, "a lease ended while its delivery went on");
    let again = sink.delivered().iter().any(|event| event.extensions().get("sasdeliveries").is_some());
    assert!(again, "the count of deliveries is there");
}

#[tokio::test]
async fn events_in_a_row_other_rows_and_poison() {
    let Some(server) = Server::start().await else { return };
    let client = server.admin().await;
    client
        .batch_execute(
            r#"INSERT INTO outbox (key, event) VALUES
            ('k1', '{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","data":{"a":1}}'),
            (NULL, '{"specversion":"1.0"}'), ('k2', '[1, 2]'), (NULL, 'null')"#,
        )
        .await
        .unwrap();
    let (sink, source) = (FakeEventSink::new(1), server.source_of(&server.spec()));
    let running = run(&source, &sink);
    until("all come", async || sink.delivered().len() == 4).await;
    running.stop().await.unwrap();
    let events = sink.delivered();
    assert_eq!((events[0].id(), events[0].source(), events[0].kind()), ("7", "/shop", "order.paid"));
    assert_eq!(events[0].extensions()["partitionkey"], "k1");
    assert_eq!(events[0].extensions()["sasposition"], "outbox@1");
    assert_eq!(events[1].kind(), "dev.sas.postgres.malformed");
    assert_eq!((events[2].kind(), &events[2].data()[..]), ("dev.sas.postgres.row", &b"[1, 2]"[..]));
    assert_eq!((events[2].source(), events[2].id()), ("/postgres/postgres/outbox", "3"));
    assert!(events[2].time().is_some());
    assert_eq!(&events[3].data()[..], b"null");
}

#[tokio::test]
async fn a_password_that_was_replaced_counts_at_the_next_connection() {
    let Some(server) = Server::start().await else { return };
    let client = server.admin().await;
    insert(&client, 0..3, "NULL").await;
    let (sink, source) = (FakeEventSink::new(4), server.source_of(&server.spec()));
    let secrets = secrets("wrong-pass");
    let run = || Running::with(source.clone(), &sink, Arc::new(FakeStore::default()), Some(secrets.clone()));
    let refused = run().ended().await.expect_err("a wrong password").chain();
    assert!(
        refused.contains("password authentication failed") && !refused.contains("wrong-pass"),
        "{refused}"
    );

    secrets.set("secret/outbox/password", "sas-pass\n");
    let running = run();
    until("they come", async || sink.delivered().len() == 3).await;
    client.batch_execute("ALTER ROLE sas PASSWORD 'second-pass'").await.unwrap();
    client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sas'")
        .await
        .unwrap();
    let gone = running.ended().await.expect_err("its connection was ended").chain();
    assert!(gone.contains("gone away") || gone.contains("closed") || gone.contains("terminating"), "{gone}");
    secrets.set("secret/outbox/password", "second-pass");
    insert(&client, 3..5, "NULL").await;
    let running = run();
    until("the rest comes", async || numbers(&sink).len() == 5).await;
    running.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let Some(server) = Server::start().await else { return };
    let error = async |spec: TriggerSpec| {
        run(&server.source_of(&spec), &FakeEventSink::new(1)).ended().await.unwrap_err().chain()
    };
    let told = error(server.spec().with_option("table", "nothing")).await;
    assert!(told.contains("table nothing") && told.contains("does not exist"), "{told}");
    server
        .admin()
        .await
        .batch_execute("CREATE TABLE other (id int); GRANT SELECT ON other TO sas")
        .await
        .unwrap();
    let told = error(server.spec().with_option("table", "public.other")).await;
    assert!(told.contains("table public.other") && told.contains("column"), "{told}");
    server.admin().await.batch_execute("REVOKE DELETE ON outbox FROM sas").await.unwrap();
    insert(&server.admin().await, 0..1, "NULL").await;
    let told = error(server.spec()).await;
    assert!(told.contains("permission denied"), "{told}");
}

fn sink(server: &Server, more: &[(&str, &str)]) -> Arc<dyn EventPublisher> {
    let url = format!("postgres://{}/postgres", server.0.address());
    let mut options: BTreeMap<String, String> = [
        ("url", url.as_str()),
        ("table", "outbox"),
        ("username", "sas"),
        ("password-secret", "secret/outbox/password"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let spec = SinkSpec::new("default/t", "postgres-outbox", options);
    let secrets = TriggerSecrets::new(Some(secrets("sas-pass")), Some(TenantKey(1)));
    PostgresServers::new([server.0.address()]).sink(&spec, secrets).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_are_written_and_none_is_lost_when_the_server_is_killed() {
    let Some(mut server) = Server::start().await else { return };
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_extension("partitionkey", "anna"))
        .and_then(|event| event.with_data("application/json", "{\"a\": 1}"))
        .unwrap();
    let denied = sink(&server, &[]).publish(event.clone()).await.unwrap_err();
    assert!(denied.to_string().contains("permission denied"), "{denied}");
    server.admin().await.batch_execute("GRANT INSERT ON outbox TO sas").await.unwrap();
    let sink = sink(&server, &[]);
    sink.publish(event.clone()).await.unwrap();
    let poison = Event::new("8", "/shop", "order.paid")
        .and_then(|event| event.with_data("application/json", "\"\\u0000\""))
        .unwrap();
    let refused = sink.publish(poison).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidSpec, "{refused}");
    let key = server.admin().await.query_one("SELECT key, event->>'id' FROM outbox", &[]).await.unwrap();
    assert_eq!((key.get::<_, &str>(0), key.get::<_, &str>(1)), ("anna", "7"));
    let (came, source) = (FakeEventSink::new(1), server.source_of(&server.spec()));
    let running = run(&source, &came);
    until("it comes", async || came.delivered().len() == 1).await;
    running.stop().await.unwrap();
    assert_eq!(came.delivered(), [event.with_extension("sasposition", "outbox@1").unwrap()]);
    let published = publish_through_kills(&mut server, &sink, 2_000, 3).await;
    println!("sink: {published}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_by_reference() {
    let Some(mut server) = Server::start().await else { return };
    insert(&server.admin().await, 0..3, "NULL").await;
    let authority = Authority::new();
    let certificate = authority.certify("localhost");
    let (cert, key) =
        (server.0.write("cert.pem", &certificate.pem), server.0.write("key.pem", &certificate.key));
    server.0.kill();
    server.0.configure(&format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'",
        cert.display(),
        key.display()
    ));
    let only_tls =
        "hostssl all sas 127.0.0.1/32 scram-sha-256\nhost all postgres 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(server.0.dir().join("data/pg_hba.conf"), only_tls).unwrap();
    server.0.restart().await;
    server.admin().await;
    let plain = run(&server.source_of(&server.spec()), &FakeEventSink::new(1)).ended().await.unwrap_err();
    assert!(plain.chain().contains("no encryption"), "{}", plain.chain());
    let address = format!("localhost:{}", server.0.port());
    let spec = server
        .spec()
        .with_option("url", format!("postgres://{address}/postgres"))
        .with_option("tls", "true")
        .with_option("ca-secret", "secret/outbox/ca");
    let (came, source) =
        (FakeEventSink::new(4), Arc::new(PostgresServers::new([address]).source(&spec).unwrap()));
    let secrets = secrets("sas-pass");
    let run = || Running::with(source.clone(), &came, Arc::new(FakeStore::default()), Some(secrets.clone()));
    secrets.set("secret/outbox/ca", &Authority::new().pem);
    run().ended().await.expect_err("another authority");
    secrets.set("secret/outbox/ca", &authority.pem);
    let running = run();
    until("they come", async || came.delivered().len() == 3).await;
    running.stop().await.unwrap();
}

#[test]
fn options_are_refused_by_name() {
    let servers = PostgresServers::new(["127.0.0.1:5432"]);
    let spec = |url: &str| {
        TriggerSpec::new("t/t", "postgres-outbox", "t/x")
            .with_option("url", url)
            .with_option("table", "outbox")
            .with_option("username", "sas")
    };
    servers.source(&spec("postgres://127.0.0.1:5432/shop")).unwrap();
    for (url, says) in [
        ("postgres://127.0.0.1:5432", "/database"),
        ("postgres://127.0.0.1:5432/shop?sslmode=require", "TLS is the option"),
        ("postgres://10.0.0.1:5432/shop", "none of the servers"),
        ("postgres://me:pw@127.0.0.1:5432/shop", "no credentials"),
        ("mysql://127.0.0.1:5432/shop", "must be postgres://"),
    ] {
        let errors = servers.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("pw"), "{url}: {errors}");
    }
    for (option, value) in [
        ("table", "a\"b"),
        ("channel", ""),
        ("lease", "10ms"),
        ("poll", "1ms"),
        ("done", "keep"),
        ("username", ""),
        ("colour", "red"),
    ] {
        let spec = spec("postgres://127.0.0.1:5432/shop").with_option(option, value);
        let errors = servers.source(&spec).unwrap_err().to_string();
        assert!(errors.contains(&format!("options.{option}")), "{option}: {errors}");
    }
}

#[async_trait]
impl Broker for Server {
    fn source(&self) -> Arc<dyn TriggerSource> {
        self.source_of(&self.spec())
    }

    fn secrets(&self) -> Option<Arc<dyn SecretSource>> {
        Some(secrets("sas-pass"))
    }

    fn kill(&mut self) {
        self.0.kill();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
        self.admin().await;
    }

    async fn unacknowledged(&mut self) -> Option<u64> {
        Some(self.open().await)
    }
}

/// Server and host are killed at random while events come: none is lost. 5,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(mut server) = Server::start().await else { return };
    let count = events_of_a_test(5_000);
    insert(&server.admin().await, 0..count, "'k' || n % 100").await;
    let kills = kill_at_random(&mut server, count, (4, 8), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}

/// The server is away when the host starts, and for ten seconds later; ten minutes with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_away_for_a_while_is_waited_for() {
    let Some(mut server) = Server::start().await else { return };
    let publish =
        async |server: &mut Server, numbers| insert(&server.admin().await, numbers, "'k' || n % 100").await;
    println!("{}", outage(&mut server, publish, |event| number(event).to_string()).await);
}
