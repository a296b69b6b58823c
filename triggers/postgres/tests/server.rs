//! Against a real PostgreSQL, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{Ack, ErrorKind, Event, EventSink, SecretSource, Slot, TenantKey, TriggerSource, TriggerSpec};
use sas_postgres::{PostgresOutbox, PostgresServers};
use sas_testkit::{
    broker::{Broker, Running, kill_at_random, until},
    fake::{FakeEventSink, FakeStore},
};
use tokio_postgres::{Client, NoTls};

/// The table as docs/sources.md has it, for a role that may do with it what the source does, and no more.
const TABLE: &str = include_str!("../outbox.sql");

/// A server with its data in a directory: it is killed, and comes back with what it had.
struct Server {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

fn kill(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

/// A command as an ordinary user, since the server refuses to run as root.
fn as_ordinary_user(name: &str) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program(name));
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program(name));
    command
}

fn spawn(dir: &Path, port: u16) -> std::io::Result<Child> {
    as_ordinary_user("postgres")
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-p", &port.to_string(), "-h", "127.0.0.1", "-c", "unix_socket_directories="])
        // What is killed is the process, not the machine: the kernel keeps what was written.
        .args(["-c", "fsync=off"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

impl Server {
    /// `None`, and a line about it, where there is no server; in CI that is a failure.
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(dir.path(), Some(65534), Some(65534)).unwrap();
        }
        let made = as_ordinary_user("initdb")
            .arg("-D")
            .arg(dir.path().join("data"))
            .args([
                "-U",
                "postgres",
                "--auth-host=scram-sha-256",
                "--auth-local=trust",
                "--no-sync",
                "--pwfile",
            ])
            .arg({
                let file = dir.path().join("password");
                std::fs::write(&file, "admin-pass").unwrap();
                file
            })
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .status();
        let failed = match made {
            Ok(status) if status.success() => match spawn(dir.path(), port) {
                Ok(child) => {
                    let server = Self { child, dir, port };
                    server.admin().await.batch_execute(TABLE).await.unwrap();
                    return Some(server);
                }
                Err(error) => error.to_string(),
            },
            Ok(status) => format!("initdb: {status}"),
            Err(error) => format!("initdb: {error}"),
        };
        assert!(std::env::var_os("CI").is_none(), "PostgreSQL: {failed}");
        eprintln!("SKIPPED: PostgreSQL: {failed} (Debian has it as postgresql)");
        None
    }

    async fn try_admin(&self) -> Option<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user("postgres").password("admin-pass").dbname("postgres");
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
            .with_option("url", format!("postgres://127.0.0.1:{}/postgres", self.port))
            .with_option("table", "outbox")
            .with_option("username", "sas")
            .with_option("password-secret", "secret/outbox/password")
            .with_option("lease", "1s")
            .with_option("poll", "500ms")
    }

    fn source_of(&self, spec: &TriggerSpec) -> Arc<PostgresOutbox> {
        let servers = PostgresServers::new([format!("127.0.0.1:{}", self.port)]);
        Arc::new(servers.source(spec).unwrap())
    }

    async fn open(&self) -> u64 {
        let row =
            self.admin().await.query_one("SELECT count(*) FROM outbox WHERE delivered_at IS NULL", &[]).await;
        u64::try_from(row.unwrap().get::<_, i64>(0)).unwrap()
    }
}

/// Secrets that a test changes.
#[derive(Debug)]
struct Secrets(Mutex<BTreeMap<String, String>>);

#[async_trait]
impl SecretSource for Secrets {
    async fn resolve(&self, reference: &str, _tenant: TenantKey) -> sas_core::Result<Bytes> {
        let found = self.0.lock().unwrap().get(reference).cloned();
        found.map(Bytes::from).ok_or_else(|| sas_core::Error::new(ErrorKind::NotFound, "secret", reference))
    }
}

fn secrets(password: &str) -> Arc<Secrets> {
    let password = ("secret/outbox/password".to_owned(), password.to_owned());
    Arc::new(Secrets(Mutex::new(BTreeMap::from([password]))))
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

    secrets.0.lock().unwrap().insert("secret/outbox/password".to_owned(), "sas-pass\n".to_owned());
    let running = run();
    until("they come", async || sink.delivered().len() == 3).await;
    client.batch_execute("ALTER ROLE sas PASSWORD 'second-pass'").await.unwrap();
    client
        .batch_execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sas'")
        .await
        .unwrap();
    let gone = running.ended().await.expect_err("its connection was ended").chain();
    assert!(gone.contains("gone away") || gone.contains("closed") || gone.contains("terminating"), "{gone}");
    secrets.0.lock().unwrap().insert("secret/outbox/password".to_owned(), "second-pass".to_owned());
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
        ("postgres://127.0.0.1:5432/shop?sslmode=require", "TLS is not offered"),
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

/// [`kill_at_random`] runs sources without secrets, so this one is let in without a password.
struct Open(Server);

#[async_trait]
impl Broker for Open {
    fn source(&self) -> Arc<dyn TriggerSource> {
        let mut spec = self.0.spec();
        spec.options.remove("password-secret");
        self.0.source_of(&spec)
    }

    async fn kill_and_restart(&mut self) {
        kill(&mut self.0.child);
        // Its children end when they see that it is gone; until then a new one refuses to begin.
        self.0.child = spawn(self.0.dir.path(), self.0.port).unwrap();
        for _ in 0..600 {
            if self.0.child.try_wait().unwrap().is_some() {
                self.0.child = spawn(self.0.dir.path(), self.0.port).unwrap();
            }
            if self.0.try_admin().await.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the server does not come back");
    }

    async fn unacknowledged(&mut self) -> u64 {
        self.0.open().await
    }
}

/// Server and host are killed at random while events come: none is lost. 5,000 events; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(server) = Server::start().await else { return };
    let count = if std::env::var_os("SAS_LONG").is_some() { 100_000 } else { 5_000 };
    let trusting = "host all sas 127.0.0.1/32 trust\nhost all postgres 127.0.0.1/32 scram-sha-256\n";
    std::fs::write(server.dir.path().join("data/pg_hba.conf"), trusting).unwrap();
    let client = server.admin().await;
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    insert(&client, 0..count, "'k' || n % 100").await;
    let mut server = Open(server);
    let kills = kill_at_random(&mut server, count, (4, 8), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}
