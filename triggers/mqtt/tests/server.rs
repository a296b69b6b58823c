//! Against a real `mosquitto`, which the tests start on a free port of loopback.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Event, EventPublisher, SecretSource, SinkSpec, TenantKey, TriggerSecrets, TriggerSource, TriggerSpec,
};
use sas_mqtt::{MqttBrokers, MqttSource};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, outage, until},
    fake::{FakeEventSink, FakeSecrets, FakeStore, OrderedEventSink},
    server::{Authority, Server, free_port, mosquitto},
};
use tokio::time::Instant;

struct Mosquitto(Server);

impl Mosquitto {
    async fn start(settings: &str) -> Option<Self> {
        Some(Self(mosquitto(settings).await?))
    }

    /// Told to end, so that it writes down its sessions, and started again.
    async fn restart(&mut self) {
        self.0.end();
        self.0.restart().await;
    }

    fn address(&self) -> String {
        self.0.address()
    }

    fn spec(&self, topics: &str, client: &str) -> TriggerSpec {
        TriggerSpec::new("default/orders", "mqtt", "default/orders")
            .with_option("url", format!("mqtt://{}", self.address()))
            .with_option("topics", topics)
            .with_option("client-id", client)
    }

    fn source(&self, spec: &TriggerSpec) -> Arc<MqttSource> {
        Arc::new(MqttBrokers::new([self.address()]).source(spec).unwrap())
    }

    fn sink(&self, topic: &str, more: &[(&str, &str)]) -> Arc<dyn EventPublisher> {
        let url = format!("mqtt://{}", self.address());
        let mut options = BTreeMap::from([("url".to_owned(), url), ("topic".to_owned(), topic.to_owned())]);
        options.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let spec = SinkSpec::new("default/t", "mqtt", options);
        MqttBrokers::new([self.address()]).sink(&spec, TriggerSecrets::default()).unwrap()
    }
}

fn event(number: usize) -> Event {
    Event::new(number.to_string(), "/shop", "order.paid")
        .and_then(|event| event.with_data("text/plain", number.to_string()))
        .unwrap()
}

async fn send(sink: &Arc<dyn EventPublisher>, numbers: std::ops::Range<usize>) {
    for number in numbers {
        sink.publish(event(number)).await.unwrap();
    }
}

fn number(event: &Event) -> usize {
    event.id().parse().unwrap()
}

fn ids(sink: &FakeEventSink) -> BTreeSet<usize> {
    sink.delivered().iter().map(number).collect()
}

/// A session exists when what is sent is kept for it.
async fn subscribed(source: &Arc<MqttSource>, sink: &Arc<FakeEventSink>, probe: &Arc<dyn EventPublisher>) {
    let running = Running::start(Arc::clone(source) as _, sink);
    until("the subscription is there", async || {
        probe.publish(event(0)).await.unwrap();
        !sink.delivered().is_empty()
    })
    .await;
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_both_versions_come_and_go() {
    let Some(broker) = Mosquitto::start("allow_anonymous true").await else { return };
    for (version, modes) in [("5", &["binary", "structured"][..]), ("3.1.1", &["structured"])] {
        let topic = format!("orders/{}", version.len());
        let spec = broker.spec(&topic, &format!("forms{version}")).with_option("version", version);
        let (source, sink) = (broker.source(&spec), FakeEventSink::new(4));
        let probe = broker.sink(&topic, &[("version", version)]);
        subscribed(&source, &sink, &probe).await;
        let before = sink.delivered().len();
        // While no host is there, the session keeps what comes.
        for mode in modes {
            let way = broker.sink(&topic, &[("version", version), ("mode", mode)]);
            way.publish(event(7)).await.unwrap();
        }
        let running = Running::start(source as _, &sink);
        until("they come", async || ids(&sink).contains(&7)).await;
        until("all come", async || {
            sink.delivered().iter().filter(|event| event.id() == "7").count() == modes.len()
        })
        .await;
        running.stop().await.unwrap();
        let expected = event(7).with_extension("sasposition", topic.as_str()).unwrap();
        let came: Vec<Event> =
            sink.delivered()[before..].iter().filter(|event| event.id() == "7").cloned().collect();
        assert!(came.iter().all(|came| *came == expected), "{came:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_comes_again_and_what_was_acknowledged_does_not() {
    let Some(broker) = Mosquitto::start("allow_anonymous true").await else { return };
    let spec = broker.spec("orders/#", "failed");
    let (sink, probe) = (FakeEventSink::new(8), broker.sink("orders/new", &[]));
    subscribed(&broker.source(&spec), &sink, &probe).await;
    send(&probe, 1..301).await;
    sink.fail_next(sas_core::ErrorKind::Unavailable);
    Running::start(broker.source(&spec) as _, &sink).ended().await.expect_err("a delivery failed");
    let running = Running::start(broker.source(&spec) as _, &sink);
    until("all come", async || ids(&sink).len() == 301).await;
    running.stop().await.unwrap();

    // What comes is in its order.
    let (order, source) = (OrderedEventSink::new(number), broker.source(&spec));
    send(&broker.sink("orders/new", &[]), 4000..4200).await;
    let running = Running::start(source as _, &order);
    until("the rest comes", async || order.done() == 200).await;
    running.stop().await.unwrap();
    assert_eq!(order.offered(), (4000..4200).collect::<Vec<_>>());
}

#[async_trait]
impl Broker for Mosquitto {
    fn source(&self) -> Arc<dyn TriggerSource> {
        Mosquitto::source(self, &self.spec("orders/#", "killed"))
    }

    /// In order, so that it writes down its sessions: a kill loses them.
    fn kill(&mut self) {
        self.0.end();
    }

    async fn restart(&mut self) {
        self.0.restart().await;
    }

    /// The protocol has no way to ask.
    async fn unacknowledged(&mut self) -> Option<u64> {
        None
    }
}

/// The host crashes at random while messages come, and the broker is restarted: none is lost. 2,000 messages; 100,000 with
/// `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ended_at_random_loses_nothing() {
    let Some(mut broker) = Mosquitto::start("allow_anonymous true").await else { return };
    let (sink, probe) = (FakeEventSink::new(8), broker.sink("orders/new", &[]));
    subscribed(&broker.source(&broker.spec("orders/#", "killed")), &sink, &probe).await;
    let count = events_of_a_test(2_000);
    send(&probe, 1..count + 1).await;
    // Of those that asked whether the subscription is there, some may come yet: they count as one more.
    probe.publish(event(0)).await.unwrap();
    drop(probe);
    let kills =
        kill_at_random(&mut broker, count + 1, (2, 8), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}

/// The broker is away when the host starts, and for ten seconds later; ten minutes with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_away_for_a_while_is_waited_for() {
    let Some(mut broker) = Mosquitto::start("allow_anonymous true").await else { return };
    let (sink, probe) = (FakeEventSink::new(8), broker.sink("orders/new", &[]));
    subscribed(&broker.source(&broker.spec("orders/#", "killed")), &sink, &probe).await;
    drop(probe);
    let publish = async |broker: &mut Mosquitto, numbers: std::ops::Range<usize>| {
        send(&broker.sink("orders/new", &[]), numbers.start + 1..numbers.end + 1).await;
    };
    // What asked whether the subscription is there may come yet.
    let identity = |event: &Event| if event.id() == "0" { "1".to_owned() } else { event.id().to_owned() };
    println!("{}", outage(&mut broker, publish, identity).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_share_a_subscription() {
    let Some(broker) = Mosquitto::start("allow_anonymous true").await else { return };
    let of = |client: &str| broker.source(&broker.spec("shared", client).with_option("share", "group"));
    let (one, other) = (FakeEventSink::new(4), FakeEventSink::new(4));
    let probe = broker.sink("shared", &[]);
    let first = Running::start(of("a") as _, &one);
    until("the first is there", async || {
        probe.publish(event(0)).await.unwrap();
        !one.delivered().is_empty()
    })
    .await;
    let second = Running::start(of("b") as _, &other);
    until("the second is there", async || {
        probe.publish(event(0)).await.unwrap();
        !other.delivered().is_empty()
    })
    .await;
    send(&probe, 1..301).await;
    let each = |sink: &FakeEventSink| sink.delivered().iter().filter(|event| event.id() != "0").count();
    until("all come", async || each(&one) + each(&other) == 300).await;
    assert!(each(&one) > 0 && each(&other) > 0, "{} and {}", each(&one), each(&other));
    assert_eq!(ids(&one).union(&ids(&other)).count(), 301);
    first.stop().await.unwrap();
    second.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_have_passwords_which_change() {
    let files = tempfile::tempdir().unwrap();
    let users = files.path().join("users");
    let set = |password: &str| {
        let made =
            Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&users).args(["anna", password]).status();
        made.is_ok_and(|made| made.success())
    };
    if !set("first") {
        assert!(std::env::var_os("CI").is_none(), "mosquitto_passwd makes no file");
        eprintln!("SKIPPED: mosquitto_passwd makes no file (Debian has it in mosquitto)");
        return;
    }
    let more = format!("allow_anonymous false\npassword_file {}", users.display());
    let Some(mut broker) = Mosquitto::start(&more).await else { return };
    let password = FakeSecrets::of(&[("secret/m/p", "first\n")]);
    let spec =
        broker.spec("t", "anna").with_option("username", "anna").with_option("password-secret", "secret/m/p");
    let (source, sink) = (broker.source(&spec), FakeEventSink::new(1));
    let started = || {
        let secrets = Arc::clone(&password) as Arc<dyn SecretSource>;
        Running::with(Arc::clone(&source) as _, &sink, Arc::new(FakeStore::default()), Some(secrets))
    };
    let running = started();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.has_ended(), "the password is good");
    assert!(set("second"));
    broker.restart().await;
    running.ended().await.expect_err("the broker went away");
    let refused = started().ended().await.expect_err("the password is not good any more");
    assert!(!format!("{refused:?}").contains("first"), "{refused:?}");
    password.set("secret/m/p", "second");
    let running = started();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(!running.has_ended(), "the new password is good");
    running.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_with_an_authority_by_reference() {
    let Some(mut broker) = Mosquitto::start("allow_anonymous true").await else { return };
    let authority = Authority::new();
    let certificate = authority.certify("localhost");
    let (cert, key) =
        (broker.0.write("cert.pem", &certificate.pem), broker.0.write("key.pem", &certificate.key));
    let tls = free_port();
    broker.0.configure(&format!(
        "listener {tls} 127.0.0.1\nallow_anonymous true\ncertfile {}\nkeyfile {}",
        cert.display(),
        key.display()
    ));
    broker.restart().await;
    let address = format!("localhost:{tls}");
    let brokers = MqttBrokers::new([address.as_str()]);
    let options = [("url", format!("mqtts://{address}")), ("ca-secret", "secret/m/ca".to_owned())];
    for version in ["5", "3.1.1"] {
        let secrets = FakeSecrets::of(&[("secret/m/ca", &authority.pem)]);
        let mut spec = broker.spec("guarded", "guarded").with_option("version", version);
        let mut to = BTreeMap::from([("topic".to_owned(), "guarded".to_owned())]);
        for (name, value) in &options {
            spec = spec.with_option(*name, value.clone());
            to.insert((*name).to_owned(), value.clone());
        }
        to.insert("version".to_owned(), version.to_owned());
        let of_sink = TriggerSecrets::new(Some(secrets.clone()), Some(TenantKey(1)));
        let probe = brokers.sink(&SinkSpec::new("default/t", "mqtt", to), of_sink).unwrap();
        let (source, sink) = (Arc::new(brokers.source(&spec).unwrap()), FakeEventSink::new(1));
        let started = || {
            let secrets = Arc::clone(&secrets) as Arc<dyn SecretSource>;
            Running::with(Arc::clone(&source) as _, &sink, Arc::new(FakeStore::default()), Some(secrets))
        };
        let running = started();
        until("events come", async || {
            probe.publish(event(1)).await.unwrap();
            !sink.delivered().is_empty()
        })
        .await;
        running.stop().await.unwrap();
        secrets.set("secret/m/ca", &Authority::new().pem);
        started().ended().await.expect_err("another authority");
    }
}

#[tokio::test]
async fn a_broker_that_is_away_ends_the_run() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let spec = TriggerSpec::new("t", "mqtt", "default/x")
        .with_option("url", format!("mqtt://{address}"))
        .with_option("topics", "t");
    let source = MqttBrokers::new([address]).source(&spec).unwrap();
    let began = Instant::now();
    let error =
        Running::start(Arc::new(source), &FakeEventSink::new(1)).ended().await.expect_err("nobody listens");
    assert!(
        error.to_string().contains("the connection") && began.elapsed() < Duration::from_secs(6),
        "{error}"
    );
}

#[test]
fn options_are_refused_by_name() {
    let brokers = MqttBrokers::new(["127.0.0.1:1883"]);
    let spec = |options: &[(&str, &str)]| {
        let mut spec = TriggerSpec::new("t", "mqtt", "default/x")
            .with_option("url", "mqtt://127.0.0.1:1883")
            .with_option("topics", "a/+, b/#");
        for (name, value) in options {
            spec = spec.with_option(*name, *value);
        }
        brokers.source(&spec).map(|_| ()).map_err(|errors| errors.to_string())
    };
    spec(&[("share", "g"), ("version", "3.1.1")]).unwrap();
    for (options, says) in [
        (&[("url", "http://127.0.0.1:1883")][..], "options.url"),
        (&[("url", "mqtt://10.0.0.1:1883")], "none of the servers"),
        (&[("url", "mqtt://a:pw@127.0.0.1:1883")], "no credentials"),
        (&[("topics", "a/#/b")], "options.topics"),
        (&[("topics", "$share/g/a")], "options.topics"),
        (&[("share", "a/b")], "options.share"),
        (&[("version", "4")], "options.version"),
        (&[("session-expiry", "0")], "options.session-expiry"),
        (&[("username", "a")], "options.password-secret"),
        (&[("qos", "2")], "options.qos"),
    ] {
        let errors = spec(options).unwrap_err();
        assert!(errors.contains(says) && !errors.contains("pw"), "{options:?}: {errors}");
    }
    let options =
        [("url", "mqtt://127.0.0.1:1883"), ("topic", "a/+"), ("version", "3.1.1"), ("mode", "binary")];
    let options = options.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let sink = SinkSpec::new("default/t", "mqtt", BTreeMap::from(options));
    let errors = brokers.sink(&sink, TriggerSecrets::default()).unwrap_err().to_string();
    assert!(errors.contains("options.sink.topic") && errors.contains("options.sink.mode"), "{errors}");
}
