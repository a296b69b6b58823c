//! Apache Kafka in KRaft mode, from Maven Central.

use std::{
    io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Program, Server, quiet};

/// Kafka's programs, which Maven brings once: below `cache`, as `artifact` of Maven Central.
fn jars(cache: &Path, artifact: &str) -> io::Result<PathBuf> {
    let jars = cache.join(place(artifact));
    if jars.exists() {
        return Ok(jars);
    }
    std::fs::create_dir_all(cache)?;
    let fresh = tempfile::tempdir_in(cache)?;
    let pom = fresh.path().join("pom.xml");
    std::fs::write(&pom, include_str!("kafka.pom.xml").replace("kafka_2.13", artifact))?;
    let mut maven = Command::new("mvn");
    maven
        .args(["-q", "-B", "-f"])
        .arg(&pom)
        .arg("org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies")
        .arg(format!("-DoutputDirectory={}", fresh.path().join("jars").display()));
    let copied = quiet(&mut maven).status()?;
    if !copied.success() {
        return Err(io::Error::other(format!("mvn copied no Kafka: {copied}")));
    }
    // Another test may have been first.
    if std::fs::rename(fresh.path().join("jars"), &jars).is_err() && !jars.exists() {
        return Err(io::Error::other("Kafka's programs can't be put where tests find them"));
    }
    Ok(jars)
}

/// The broker.
const BROKER: &str = "kafka_2.13";

fn place(artifact: &str) -> &str {
    if artifact == BROKER { "kafka-4.4.0" } else { "kafka-tools-4.4.0" }
}

/// A program of Kafka's tools by its class, such as `org.apache.kafka.tools.TopicCommand`, whose arguments are the caller's to
/// add. They are kept below `cache`, as the broker; `None` where Maven does not bring them.
pub fn kafka_tool(cache: impl AsRef<Path>, class: &str) -> Option<Command> {
    match jars(cache.as_ref(), "kafka-tools") {
        Ok(jars) => {
            let mut tool = java(&jars);
            tool.arg(class);
            Some(tool)
        }
        Err(error) => super::missing("Kafka's tools", &error.to_string(), FROM),
    }
}

const FROM: &str = "it takes java and mvn, and Maven Central at first";

/// A program of Kafka's, which Java runs.
fn java(jars: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(["-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp"])
        .arg(format!("{}/*", jars.display()));
    java
}

const SETTINGS: &str = "process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$INNER0
controller.listener.names=CONTROLLER
log.dirs=$DIR/data
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
listeners=PLAINTEXT://127.0.0.1:$PORT,CONTROLLER://127.0.0.1:$INNER0
advertised.listeners=PLAINTEXT://127.0.0.1:$PORT
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
";

/// Apache Kafka, with these lines after its settings, in which `$PORT` is its port and `$INNER0` that of its controller. Its
/// programs are kept below `cache`, the target directory of the tests. `scram` is a user as its storage tool takes one.
pub async fn kafka(cache: impl AsRef<Path>, settings: &str, scram: Option<&str>) -> Option<Server> {
    let (cache, scram) = (cache.as_ref().to_owned(), scram.map(str::to_owned));
    let programs = cache.join(place(BROKER));
    let program = Program {
        name: "Apache Kafka",
        from: FROM,
        group: false,
        prepare: Box::new(move |site| {
            let mut format = java(&jars(&cache, BROKER)?);
            format.args(["kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qg", "-c"]);
            format.arg(site.settings());
            if let Some(scram) = &scram {
                format.args(["--add-scram", scram]);
            }
            let formatted = quiet(&mut format).status()?;
            match formatted.success() {
                true => Ok(None),
                false => Err(io::Error::other(format!("no storage for it: {formatted}"))),
            }
        }),
        command: Box::new(move |site| {
            let mut command = java(&programs);
            command.arg("kafka.Kafka").arg(site.settings());
            command
        }),
    };
    Server::start(program, &format!("{SETTINGS}{settings}\n")).await
}
