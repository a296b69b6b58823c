//! A real Apache Kafka in KRaft mode, from Maven Central, on free ports of loopback.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use krafka::{
    Kafka, Record,
    admin::{CreateTopicsOptions, NewTopic},
    producer::Producer,
};

/// Where the list of Kafka's programs stands, from the crate whose tests these are.
const POM: &str = if matches!(env!("CARGO_PKG_NAME").as_bytes(), b"sas-kafka") {
    "tests/broker/pom.xml"
} else {
    "triggers/kafka/tests/broker/pom.xml"
};

/// A broker with its data in a directory: it is killed, and comes back.
pub(crate) struct Server {
    child: Child,
    dir: tempfile::TempDir,
    pub(crate) port: u16,
    jars: PathBuf,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a listener is, beside the plain one.
#[derive(Default)]
pub(crate) struct Extra {
    /// Lines of the broker's configuration that say its listeners; `PORT0` and `CONTROLLER_PORT` stand for its ports.
    pub(crate) properties: String,
    /// A user, as the option `--add-scram` of the storage tool has it.
    pub(crate) scram: Option<String>,
    /// After how long a host that gives no sign is taken out of its groups.
    pub(crate) session_millis: Option<u32>,
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Kafka's programs, which Maven brings once.
fn jars() -> std::io::Result<PathBuf> {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let jars = root.join("kafka-4.4.0");
    if jars.exists() {
        return Ok(jars);
    }
    let pom = Path::new(env!("CARGO_MANIFEST_DIR")).join(POM);
    let fresh = tempfile::tempdir_in(root)?;
    let copied = Command::new("mvn")
        .args(["-q", "-B", "-f"])
        .arg(pom)
        .arg("org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", fresh.path().display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !copied.success() {
        return Err(std::io::Error::other(format!("mvn copied no Kafka: {copied}")));
    }
    // Another test may have been first.
    if std::fs::rename(fresh.path(), &jars).is_err() && !jars.exists() {
        return Err(std::io::Error::other("Kafka's programs can't be put where tests find them"));
    }
    Ok(jars)
}

fn java(jars: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(format!("{}/*", jars.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    java
}

fn properties(dir: &Path, port: u16, controller: u16, extra: &Extra) -> String {
    format!(
        "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
log.dirs={}
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
group.consumer.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=200
group.consumer.heartbeat.interval.ms=1000
group.consumer.session.timeout.ms={}
{}",
        dir.join("data").display(),
        extra.session_millis.unwrap_or(45_000),
        if extra.properties.is_empty() {
            format!(
                "listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
"
            )
        } else {
            extra
                .properties
                .replace("PORT0", &port.to_string())
                .replace("CONTROLLER_PORT", &controller.to_string())
        }
    )
}

impl Server {
    /// `None`, and a line about it, where there is no Java or no Maven; in CI that is a failure.
    pub(crate) async fn start() -> Option<Self> {
        Self::start_with(&Extra::default()).await
    }

    pub(crate) async fn start_with(extra: &Extra) -> Option<Self> {
        match Self::try_start(extra) {
            Ok(broker) => {
                broker.client().await;
                Some(broker)
            }
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "Kafka: {error}");
                eprintln!(
                    "SKIPPED: Apache Kafka: {error} (it takes java and mvn, and Maven Central at first)"
                );
                None
            }
        }
    }

    fn try_start(extra: &Extra) -> std::io::Result<Self> {
        let jars = jars()?;
        let dir = tempfile::tempdir()?;
        let (port, controller) = (free_port(), free_port());
        let file = dir.path().join("server.properties");
        std::fs::write(&file, properties(dir.path(), port, controller, extra))?;
        let mut format = java(&jars);
        format.args(["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]).arg(&file);
        if let Some(scram) = &extra.scram {
            format.args(["--add-scram", scram]);
        }
        let formatted = format.status()?;
        if !formatted.success() {
            return Err(std::io::Error::other(format!("no storage for it: {formatted}")));
        }
        let child = java(&jars).arg("kafka.Kafka").arg(&file).spawn()?;
        Ok(Self { child, dir, port, jars })
    }

    /// Changes a word of its configuration, for the next start.
    pub(crate) fn reconfigure(&self, from: &str, to: &str) {
        let file = self.dir.path().join("server.properties");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(from), "{from} is not in the configuration");
        std::fs::write(&file, text.replace(from, to)).unwrap();
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A client, when the broker answers.
    pub(crate) async fn client(&self) -> Kafka {
        for _ in 0..300 {
            if let Ok(client) = Kafka::builder(self.address()).client_id("test").connect().await {
                return client;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        panic!("the broker does not answer");
    }

    pub(crate) async fn topic(&self, name: &str, partitions: i32) {
        let topic = NewTopic::new(name, partitions, 1).unwrap();
        let made = self.client().await.admin().create_topics([topic], CreateTopicsOptions::default()).await;
        made.unwrap().remove(name).unwrap().unwrap();
    }

    pub(crate) async fn producer(&self) -> Producer {
        self.client().await.producer().metrics_push(false).build().await.unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) async fn restart(&mut self) {
        self.child = java(&self.jars)
            .arg("kafka.Kafka")
            .arg(self.dir.path().join("server.properties"))
            .spawn()
            .unwrap();
        self.client().await;
    }
}

/// Records `from..to` of `keys` keys: their number is the value, its remainder the key.
pub(crate) async fn produce(producer: &Producer, topic: &str, numbers: std::ops::Range<usize>, keys: usize) {
    let mut handles = Vec::new();
    for number in numbers {
        let record = Record::new(topic, number.to_string()).key(format!("k{}", number % keys));
        handles.push(producer.enqueue(record).await.unwrap());
    }
    for handle in handles {
        let _ = handle.await.unwrap();
    }
}
