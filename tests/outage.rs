//! Brokers that are away at the start and later, all of them at once and for real: each source and each sink of a platform waits
//! with a back-off, says so once for each of its steps, and loses nothing. Ten seconds; `SAS_OUTAGE_SECONDS=600` makes it ten
//! minutes.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and measured is said")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use sas::{core::Event, prelude::*};
use sas_testkit::server::{PostgresServer, Server, kafka, mosquitto, nats, rabbitmq, redis};
use tokio::time::Instant;
use tracing_subscriber::fmt::MakeWriter;

/// What each source calls what it gives, and the trigger that goes there.
const KINDS: [&str; 6] = ["nats", "redis", "postgres", "kafka", "mqtt", "rabbitmq"];

/// The log of this process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic before").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// What was said since it was asked the last time.
    fn take(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.0.lock().expect("no panic before"));
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

/// Milliseconds of processor time of this process, without those that it has started.
fn processor_millis() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux has it");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // The fields 14 and 15, in hundredths of a second, of which the first two are cut off.
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10
}

struct Servers {
    nats: Server,
    redis: Server,
    postgres: PostgresServer,
    kafka: Server,
    mosquitto: Server,
    rabbitmq: Server,
}

/// Kafka's programs are kept with those of the tests of its own crate.
fn target() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn ran(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|ended| ended.success())
}

impl Servers {
    /// With a stream, a table, a topic and a queue; `None` where one of them is not installed.
    async fn start() -> Option<Self> {
        let mut servers = Self {
            nats: nats("").await?,
            redis: redis("").await?,
            postgres: PostgresServer::start().await?,
            kafka: kafka(target(), "", None).await?,
            mosquitto: mosquitto("allow_anonymous true").await?,
            rabbitmq: rabbitmq("").await?,
        };
        servers.stream().await;
        // Where the user that it runs as can read it.
        let table = servers.postgres.write("outbox.sql", include_str!("../triggers/postgres/outbox.sql"));
        let port = servers.postgres.port().to_string();
        let mut psql = PostgresServer::command("psql");
        psql.env("PGPASSWORD", "admin-pass").args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port]);
        psql.args(["-1", "-v", "ON_ERROR_STOP=1", "-f"]);
        psql.arg(table).args(["-c", "GRANT INSERT ON outbox TO sas"]);
        assert!(ran(&mut psql), "the table is there");
        servers.topic().await;
        servers.queue().await;
        Some(servers)
    }

    /// A topic of Kafka, in the protocol's own words (CreateTopics, version 4).
    async fn topic(&self) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let text = |text: &str| [&(text.len() as i16).to_be_bytes()[..], text.as_bytes()].concat();
        let (partitions, replicas, nothing, millis) =
            (2_i32.to_be_bytes(), 1_i16.to_be_bytes(), 0_i32.to_be_bytes(), 10_000_i32.to_be_bytes());
        let head = [19_i16.to_be_bytes(), 4_i16.to_be_bytes()].concat();
        let request = [
            &head[..],
            &7_i32.to_be_bytes(),
            &text("test"),
            &1_i32.to_be_bytes(),
            &text("kafka"),
            &partitions,
            &replicas,
            &nothing,
            &nothing,
            &millis,
            &[0],
        ]
        .concat();
        // The controller may take a moment until it has its broker.
        for _ in 0..600 {
            let mut line = tokio::net::TcpStream::connect(self.kafka.address()).await.expect("it listens");
            line.write_all(&[&(request.len() as i32).to_be_bytes()[..], &request].concat())
                .await
                .expect("written");
            let size = line.read_i32().await.expect("an answer");
            let mut answer = vec![0; usize::try_from(size).expect("a size")];
            line.read_exact(&mut answer).await.expect("an answer");
            // After the number of the request, the throttle, one topic and its name: made, or there already.
            let code = i16::from_be_bytes([answer[19], answer[20]]);
            if code == 0 || code == 36 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("the topic is not made");
    }

    /// A queue of RabbitMQ, which it makes when it starts again.
    async fn queue(&mut self) {
        let definitions = r#"{"vhosts":[{"name":"/"}],"users":[{"name":"guest","password":"guest","tags":"administrator"}],
            "permissions":[{"user":"guest","vhost":"/","configure":".*","write":".*","read":".*"}],
            "queues":[{"name":"rabbitmq","vhost":"/","durable":true,"auto_delete":false,"arguments":{"x-queue-type":"quorum"}}]}"#;
        let file = self.rabbitmq.write("definitions.json", definitions);
        self.rabbitmq.kill();
        self.rabbitmq.configure(&format!("load_definitions = {}", file.display()));
        self.rabbitmq.restart().await;
    }

    /// A stream of NATS, in the protocol's own words.
    async fn stream(&self) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut line = tokio::net::TcpStream::connect(self.nats.address()).await.expect("it listens");
        let stream = r#"{"name":"nats","subjects":["nats.>"]}"#;
        let subject = "$JS.API.STREAM.CREATE.nats";
        let words = format!(
            "CONNECT {{\"verbose\":false}}\r\nSUB answer 1\r\nPUB {subject} answer {}\r\n{stream}\r\n",
            stream.len()
        );
        line.write_all(words.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        while !String::from_utf8_lossy(&answer).contains("stream_create_response") {
            assert_ne!(line.read_buf(&mut answer).await.expect("read"), 0, "it hung up");
        }
    }

    fn others(&mut self) -> [&mut Server; 5] {
        let Self { nats, redis, kafka, mosquitto, rabbitmq, .. } = self;
        [nats, redis, kafka, mosquitto, rabbitmq]
    }

    fn go_away(&mut self) {
        // It writes its sessions when it is told to end.
        self.mosquitto.end();
        self.postgres.kill();
        for server in self.others() {
            server.kill();
        }
    }

    async fn come_back(&mut self) {
        self.postgres.restart().await;
        for server in self.others() {
            server.restart().await;
        }
    }

    /// For each server a trigger from a broker of the platform's to it, and one from it to a service.
    fn manifests(&self) -> String {
        let url = |scheme: &str, server: &Server| format!("url: '{scheme}://{}'", server.address());
        let options = [
            (
                "nats-jetstream",
                url("nats", &self.nats),
                "subject: nats.new",
                "stream: nats, start: earliest, subject: 'nats.>', ack-wait: 5s",
            ),
            ("redis-stream", url("redis", &self.redis), "stream: redis", "stream: redis, start: earliest"),
            (
                "postgres-outbox",
                format!(
                    "url: 'postgres://{}/postgres', table: outbox, username: sas, password-secret: secret/all/postgres",
                    self.postgres.address()
                ),
                "",
                "lease: 5s",
            ),
            (
                "kafka",
                format!("brokers: '{}'", self.kafka.address()),
                "topic: kafka",
                "topics: kafka, start: earliest",
            ),
            ("mqtt", url("mqtt", &self.mosquitto), "topic: mqtt", "topics: mqtt"),
            (
                "rabbitmq-queue",
                format!(
                    "{}, username: guest, password-secret: secret/all/rabbitmq",
                    url("amqp", &self.rabbitmq)
                ),
                "queue: rabbitmq",
                "queue: rabbitmq",
            ),
        ];
        let mut manifests = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: all, annotations: {sas.dev/ingress: open}}
"
        .to_owned();
        for (name, (kind, common, to, from)) in KINDS.iter().zip(options) {
            manifests.push_str(&format!(
                "---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {{name: to-{name}}}
spec:
  source: {{kind: broker, options: {{broker: all, start: earliest}}}}
  target: {{sink: {kind}, options: {{{}}}}}
  delivery: {{retry: 100000, backoffDelay: 100ms, backoffMax: 10s}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {{name: from-{name}}}
spec:
  source: {{kind: {kind}, options: {{{common}, {from}}}}}
  target: {{service: take}}
",
                [common.as_str(), to]
                    .iter()
                    .filter(|part| !part.is_empty())
                    .copied()
                    .collect::<Vec<_>>()
                    .join(", ")
            ));
        }
        manifests
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(180), "{what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many steps a back-off that doubles from 100 ms to 30 s has in this time.
fn steps(mut left: Duration) -> usize {
    let (mut steps, mut delay) = (1, Duration::from_millis(100));
    while left > delay {
        left -= delay;
        delay = (delay * 2).min(Duration::from_secs(30));
        steps += 1;
    }
    steps
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sources_and_sinks_wait_for_brokers_that_are_away_without_a_spin_and_lose_nothing() {
    let log = Log::default();
    let logged = tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_ansi(false);
    logged.with_writer(log.clone()).init();
    let Some(mut servers) = Servers::start().await else { return };
    servers.go_away();

    let taken: Arc<Mutex<BTreeMap<String, BTreeSet<usize>>>> = Arc::default();
    let counted = Arc::clone(&taken);
    let runtime = InlineRuntime::new().with("take", move |request: Request, _cx| {
        let header = |name: &str| {
            let value = request.headers().get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let kind = header("ce-sasposition").split(['/', '@']).next().unwrap_or_default().to_owned();
        let kind = if kind == "outbox" { "postgres".to_owned() } else { kind };
        let id = header("ce-id").parse().unwrap_or(usize::MAX);
        counted.lock().expect("no panic before").entry(kind).or_default().insert(id);
        async move { Response::new(Body::empty()) }
    });
    let dir = tempfile::tempdir().expect("a directory");
    let secrets = dir.path().join("secrets/default/secret/all");
    std::fs::create_dir_all(&secrets).expect("made");
    std::fs::write(secrets.join("postgres"), "sas-pass").expect("written");
    std::fs::write(secrets.join("rabbitmq"), "guest").expect("written");
    let platform = Platform::builder()
        .runtime(runtime)
        .secrets_dir(dir.path().join("secrets"))
        .nats_hosts([servers.nats.address()])
        .redis_hosts([servers.redis.address()])
        .postgres_hosts([servers.postgres.address()])
        .kafka_hosts([servers.kafka.address()])
        .mqtt_hosts([servers.mosquitto.address()])
        .rabbitmq_hosts([servers.rabbitmq.address()])
        .build()
        .await
        .expect("it builds");
    let function = RevisionSpec::new("inline", Source::Function("take".to_owned()));
    platform.deploy("default", "take", function).await.expect("deployed");
    // They are away when the triggers are declared.
    platform.apply(&servers.manifests(), None).await.expect("applied");
    tokio::time::sleep(Duration::from_secs(2)).await;
    servers.come_back().await;
    let came = |count: usize| {
        let taken = taken.lock().expect("no panic before");
        KINDS.iter().all(|kind| taken.get(*kind).is_some_and(|ids| ids.len() >= count))
    };
    let publish = async |numbers: std::ops::Range<usize>| {
        for number in numbers {
            let event = Event::new(number.to_string(), "/test", "order").expect("valid");
            platform.control().accept_events("default", "all", vec![event]).await.expect("accepted");
        }
    };
    // What is sent before its session exists, a broker of MQTT gives to nobody.
    until("all run again", || {
        let status = sas::core::Triggers::status(&**platform.triggers());
        status.iter().all(|trigger| trigger.running)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    publish(0..20).await;
    until("all come, from each", || came(20)).await;

    let seconds = std::env::var("SAS_OUTAGE_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let outage = Duration::from_secs(seconds);
    servers.go_away();
    log.take();
    let before = processor_millis();
    publish(20..40).await;
    tokio::time::sleep(outage).await;
    let (used, said) = (processor_millis() - before, log.take());
    for kind in KINDS {
        let of = |name: String| said.iter().filter(|line| line.contains(&name)).count();
        let (from, to) = (of(format!("from-{kind}")), of(format!("to-{kind}")));
        println!("{kind}: {from} lines of the source and {to} of the sink in {seconds} s");
        let most = steps(outage) + 2;
        assert!((3..=most).contains(&from), "{from} lines of from-{kind}, at most {most}: {said:#?}");
        assert!(to <= most, "{to} lines of to-{kind}: {said:#?}");
    }
    println!("{} lines in all, {used} ms of processor time", said.len());
    assert!(used < 1000 + seconds * 100, "{used} ms of processor time in {seconds} s: it spins");
    servers.come_back().await;
    publish(40..60).await;
    until("all come, of before, meanwhile and after", || came(60)).await;
    platform.shutdown(Duration::from_secs(10)).await;
}
