//! Against `moto_server`, an emulator of SQS and S3 (PyPI: `moto[server]`): the protocol is the real one, the queues are memory. So
//! the host is killed here, and the service is not.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was skipped and counted is said")]

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    ErrorKind, Event, EventPublisher, EventSink, SecretSource, SinkSpec, TenantKey, TriggerSecrets,
    TriggerSource, TriggerSpec,
};
use sas_sqs::{SqsQueue, SqsServers};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, until},
    fake::{BatchEventSink, FakeEventSink, FakeSecrets, FakeStore, OrderedEventSink},
    server::{Authority, moto},
    trigger::{Subject, suite},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

const KEY: &str = "aws_access_key_id = AKIAIOSFODNN7EXAMPLE\naws_secret_access_key = wJalrXUtnFEMI";

struct Service {
    server: sas_testkit::server::Server,
    secrets: Arc<FakeSecrets>,
}

impl Service {
    /// With a queue `orders` and a queue `turns.fifo`.
    async fn start() -> Option<Self> {
        let secrets = FakeSecrets::of(&[("secret/aws/credentials", KEY)]);
        let service = Self { server: moto("").await?, secrets };
        service.queue("orders", json!({})).await;
        service.queue("turns.fifo", json!({"FifoQueue": "true"})).await;
        Some(service)
    }

    async fn queue(&self, name: &str, attributes: Value) {
        self.sqs("CreateQueue", json!({"QueueName": name, "Attributes": attributes})).await;
    }

    /// A request whose signature says which service it is for, and else nothing.
    async fn raw(&self, service: &str, head: &str, body: &str) -> String {
        let scope = format!("Credential=x/20260101/us-east-1/{service}/aws4_request");
        let head = format!(
            "{head}\r\nHost: 127.0.0.1\r\nAuthorization: AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        for _ in 0..100 {
            let Ok(mut stream) = TcpStream::connect(self.server.address()).await else { continue };
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).await.is_ok() && !answer.is_empty() {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{head}: no answer");
    }

    async fn sqs(&self, action: &str, body: Value) -> Value {
        let head = format!(
            "POST / HTTP/1.0\r\nX-Amz-Target: AmazonSQS.{action}\r\nContent-Type: application/x-amz-json-1.0"
        );
        let answer = self.raw("sqs", &head, &body.to_string()).await;
        assert!(answer.split(' ').nth(1) == Some("200"), "{action}: {answer}");
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or_default()
    }

    fn url(&self, queue: &str) -> String {
        format!("http://{}/123456789012/{queue}", self.server.address())
    }

    async fn send(&self, queue: &str, numbers: std::ops::Range<usize>, groups: usize) {
        let numbers: Vec<usize> = numbers.collect();
        for ten in numbers.chunks(10) {
            let entries: Vec<Value> = ten
                .iter()
                .map(|number| {
                    let mut entry = json!({"Id": number.to_string(), "MessageBody": number.to_string()});
                    if groups > 0 {
                        entry["MessageGroupId"] = format!("g{}", number % groups).into();
                        entry["MessageDeduplicationId"] = number.to_string().into();
                    }
                    entry
                })
                .collect();
            self.sqs("SendMessageBatch", json!({"QueueUrl": self.url(queue), "Entries": entries})).await;
        }
    }

    /// Messages that the queue has: those that wait, and those that were given out and are not deleted.
    async fn counts(&self, queue: &str) -> (u64, u64) {
        let asked = json!({"QueueUrl": self.url(queue), "AttributeNames": ["All"]});
        let answer = self.sqs("GetQueueAttributes", asked).await;
        let count = |name: &str| answer["Attributes"][name].as_str().unwrap().parse().unwrap();
        (count("ApproximateNumberOfMessages"), count("ApproximateNumberOfMessagesNotVisible"))
    }

    /// Both together. The emulator counts one after the other, and may miss a message that is shown again in between.
    async fn open(&self, queue: &str) -> u64 {
        let mut most = 0;
        for _ in 0..3 {
            let (waiting, given) = self.counts(queue).await;
            most = most.max(waiting + given);
        }
        most
    }

    fn spec(&self, queue: &str) -> TriggerSpec {
        TriggerSpec::new("shop/orders", "sqs", "shop/billing")
            .with_option("url", self.url(queue))
            .with_option("region", "us-east-1")
            .with_option("credentials-secret", "secret/aws/credentials")
            .with_option("visibility-timeout", "20s")
    }

    fn source_of(&self, spec: &TriggerSpec) -> Arc<SqsQueue> {
        Arc::new(SqsServers::new([self.server.address()]).source(spec).unwrap())
    }

    fn source(&self, queue: &str) -> Arc<SqsQueue> {
        self.source_of(&self.spec(queue))
    }

    /// One whose messages are soon another's when its host is dead.
    fn soon(&self, queue: &str) -> Arc<SqsQueue> {
        self.source_of(&self.spec(queue).with_option("visibility-timeout", "3s"))
    }

    fn run(&self, source: &Arc<SqsQueue>, sink: &Arc<impl EventSink>) -> Running {
        let store = Arc::new(FakeStore::default());
        Running::with(source.clone(), sink, store, Some(self.secrets.clone()))
    }

    fn sink(&self, queue: &str) -> Arc<dyn EventPublisher> {
        let options = [("url", self.url(queue).as_str()), ("region", "us-east-1"), CREDENTIALS]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let spec = SinkSpec::new("shop/orders", "sqs", BTreeMap::from(options));
        let secrets = TriggerSecrets::new(Some(self.secrets.clone()), Some(TenantKey(1)));
        SqsServers::new([self.server.address()]).sink(&spec, secrets).unwrap()
    }
}

const CREDENTIALS: (&str, &str) = ("credentials-secret", "secret/aws/credentials");

fn number(event: &Event) -> usize {
    std::str::from_utf8(event.data()).unwrap().parse().unwrap()
}

fn numbers(sink: &FakeEventSink) -> HashSet<usize> {
    sink.delivered().iter().map(number).collect()
}

#[tokio::test]
async fn deleted_after_delivery_and_counted_until_then() {
    let Some(service) = Service::start().await else { return };
    service.send("orders", 0..100, 0).await;
    let (sink, source) = (FakeEventSink::new(8), service.source("orders"));
    sink.set_delivery_time(Duration::from_millis(5));
    assert_eq!(source.backlog().await.unwrap(), None, "nothing is known before it has connected");
    let running = service.run(&source, &sink);
    until("some come", async || sink.delivered().len() > 20).await;
    let open = service.open("orders").await;
    assert!(100 - open <= sink.delivered().len() as u64, "deleted ahead of delivery");
    until("all are deleted", async || service.open("orders").await == 0).await;
    assert_eq!(source.backlog().await.unwrap(), Some(0));
    assert_eq!((sink.offered(), numbers(&sink).len()), (100, 100));
    running.stop().await.unwrap();
    source.backlog().await.expect_err("it is not connected any more");

    // With room for one, the backlog is the service's own number, what was given out included.
    service.send("orders", 100..170, 0).await;
    let slow = FakeEventSink::new(1);
    slow.set_delivery_time(Duration::from_secs(30));
    let running = service.run(&source, &slow);
    until("one is under way", async || slow.offered() == 1).await;
    let (waiting, given) = service.counts("orders").await;
    assert!(given > 0, "{given} of {waiting} are given out");
    assert_eq!((waiting + given, source.backlog().await.unwrap()), (70, Some(70)));
    running.crash().await;
}

#[tokio::test]
async fn what_failed_comes_again_with_its_count_and_a_long_delivery_is_made_once() {
    let Some(service) = Service::start().await else { return };
    service.send("orders", 0..10, 0).await;
    let (sink, source) = (FakeEventSink::new(4), service.source("orders"));
    sink.fail_next(ErrorKind::Unavailable);
    service.run(&source, &sink).ended().await.expect_err("a delivery failed");
    let running = service.run(&source, &sink);
    until("all come", async || numbers(&sink).len() == 10).await;
    until("all are deleted", async || service.open("orders").await == 0).await;
    running.stop().await.unwrap();
    let refused = sink.refused().remove(0);
    let again: Vec<Event> = sink.delivered().into_iter().filter(|event| event.id() == refused.id()).collect();
    let count: i32 = again[0].extensions()["sasdeliveries"].to_text().parse().unwrap();
    assert!(count >= 2, "{count}");

    let source = service.soon("orders");
    service.send("orders", 10..13, 0).await;
    let slow = FakeEventSink::new(4);
    slow.set_delivery_time(Duration::from_secs(7));
    let running = service.run(&source, &slow);
    until("all are deleted", async || service.open("orders").await == 0).await;
    running.stop().await.unwrap();
    assert_eq!(slow.offered(), 3, "hidden for 3 s at a time, delivered in 7 s");
}

#[tokio::test]
async fn two_hosts_share_a_queue_and_one_gets_what_a_dead_one_held() {
    let Some(service) = Service::start().await else { return };
    service.send("orders", 0..100, 0).await;
    let (one, two) = (FakeEventSink::new(4), FakeEventSink::new(4));
    for sink in [&one, &two] {
        sink.set_delivery_time(Duration::from_millis(10));
    }
    let first = service.run(&service.soon("orders"), &one);
    let second = service.run(&service.soon("orders"), &two);
    // The emulator may answer one of them late.
    until("both work", async || one.delivered().len() > 2 && two.delivered().len() > 2).await;
    first.crash().await;
    until("all are deleted", async || service.open("orders").await == 0).await;
    second.stop().await.unwrap();
    let all: HashSet<usize> = numbers(&one).union(&numbers(&two)).copied().collect();
    assert_eq!(all.len(), 100);
}

#[tokio::test]
async fn messages_of_a_group_are_delivered_one_after_the_other_also_after_a_failure() {
    let Some(service) = Service::start().await else { return };
    service.send("turns.fifo", 0..60, 3).await;
    let (sink, source) = (OrderedEventSink::new(number), service.source("turns.fifo"));
    let running = service.run(&source, &sink);
    until("all are deleted", async || service.open("turns.fifo").await == 0).await;
    running.stop().await.unwrap();
    assert_eq!(sink.offered().len(), 60);
    for group in 0..3 {
        let of_group: Vec<usize> = sink.offered().into_iter().filter(|number| number % 3 == group).collect();
        assert!(of_group.is_sorted(), "{of_group:?}");
    }

    // Of one group: those of several that time out together, the emulator gives out of their order.
    service.send("turns.fifo", 60..80, 1).await;
    let failing = FakeEventSink::new(8);
    failing.set_delivery_time(Duration::from_millis(20));
    failing.fail_next(ErrorKind::Unavailable);
    service.run(&source, &failing).ended().await.expect_err("a delivery failed");
    let running = service.run(&source, &failing);
    until("all are deleted", async || service.open("turns.fifo").await == 0).await;
    running.stop().await.unwrap();
    assert_eq!(
        (failing.refused().len(), failing.delivered()[0].extensions()["partitionkey"].to_text().as_ref()),
        (1, "g0")
    );
    assert_eq!(failing.delivered().iter().map(number).collect::<Vec<_>>(), (60..80).collect::<Vec<_>>());
}

#[tokio::test]
async fn batches_succeed_in_part() {
    let Some(service) = Service::start().await else { return };
    service.send("orders", 0..40, 0).await;
    let (sink, source) = (BatchEventSink::new(4, 1, number), service.source("orders"));
    service.run(&source, &sink).ended().await.expect_err("one of a batch failed");
    let taken = sink.taken().len() as u64;
    assert_eq!(service.open("orders").await, 40 - taken, "those beside the one that failed are deleted");
    let running = service.run(&source, &sink);
    until("all are deleted", async || service.open("orders").await == 0).await;
    running.stop().await.unwrap();
    let taken = sink.taken();
    assert_eq!(
        (taken.len(), taken.into_iter().collect::<BTreeSet<_>>()),
        (40, (0..40).collect()),
        "each once"
    );
    assert!(sink.sizes().iter().all(|size| *size <= 4));
}

#[tokio::test]
async fn objects_that_are_put_into_a_bucket_are_events() {
    let Some(service) = Service::start().await else { return };
    let put = async |path: &str, body: &str| {
        let answer = service.raw("s3", &format!("PUT {path} HTTP/1.0"), body).await;
        assert!(answer.split(' ').nth(1) == Some("200"), "{path}: {answer}");
    };
    put("/uploads", "").await;
    let configuration = "<NotificationConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><QueueConfiguration><Id>a</Id>\
         <Queue>arn:aws:sqs:us-east-1:123456789012:orders</Queue><Event>s3:ObjectCreated:*</Event>\
         </QueueConfiguration></NotificationConfiguration>";
    put("/uploads?notification", configuration).await;
    put("/uploads/a.csv", "a,b").await;
    let (sink, source) = (FakeEventSink::new(4), service.source("orders"));
    let running = service.run(&source, &sink);
    let of_object = || sink.delivered().into_iter().find(|event| event.kind().contains("ObjectCreated"));
    until("it comes", async || of_object().is_some()).await;
    running.stop().await.unwrap();
    let event = of_object().unwrap();
    assert_eq!(event.kind(), "com.amazonaws.s3.ObjectCreated:Put");
    assert_eq!((event.source(), event.subject()), ("aws:s3.us-east-1.uploads", Some("a.csv")));
    let data: Value = serde_json::from_slice(event.data()).unwrap();
    assert_eq!(data["s3"]["object"]["size"], 3);
}

#[tokio::test]
async fn keys_that_were_replaced_count_at_the_next_request_and_wrong_ones_end_the_run() {
    let Some(service) = Service::start().await else { return };
    service.send("orders", 0..5, 0).await;
    let form = "POST / HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded";
    let iam = async |what: &str| {
        let answer = service.raw("iam", form, &format!("Version=2010-05-08&{what}")).await;
        assert!(answer.split(' ').nth(1) == Some("200"), "{what}: {answer}");
        answer
    };
    let between = |text: &str, tag: &str| {
        let rest = text.split_once(&format!("<{tag}>")).unwrap().1;
        rest.split_once("</").unwrap().0.to_owned()
    };
    let policy = "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow%22%2C%22Action\
                  %22%3A%22sqs%3A%2A%22%2C%22Resource%22%3A%22%2A%22%7D%5D%7D";
    let mut profiles = Vec::new();
    for user in ["first", "second"] {
        iam(&format!("Action=CreateUser&UserName={user}")).await;
        let name = format!("UserName={user}&PolicyName=p&PolicyDocument={policy}");
        iam(&format!("Action=PutUserPolicy&{name}")).await;
        let made = iam(&format!("Action=CreateAccessKey&UserName={user}")).await;
        let (key, secret) = (between(&made, "AccessKeyId"), between(&made, "SecretAccessKey"));
        profiles.push(format!("[{user}]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"));
    }
    // From now on it checks signatures, and what their keys may do.
    let checked = service.raw("sqs", "POST /moto-api/reset-auth HTTP/1.0", "0").await;
    assert!(checked.contains("200"), "{checked}");

    let (sink, source) = (FakeEventSink::new(4), service.source("orders"));
    let refused = service.run(&source, &sink).ended().await.expect_err("nobody knows this key").chain();
    assert!(refused.contains("ReceiveMessage: 403") && !refused.contains("wJalrXUtnFEMI"), "{refused}");
    let half = profiles[0].replace("aws_secret_access_key = ", "aws_secret_access_key = x");
    service.secrets.set("secret/aws/credentials", &half);
    let refused = service.run(&source, &sink).ended().await.expect_err("another secret key").chain();
    assert!(refused.contains("403") && refused.contains("ignature"), "{refused}");
    service.secrets.set("secret/aws/credentials", "no keys");
    let refused = service.run(&source, &sink).ended().await.expect_err("no keys").chain();
    assert!(refused.contains("secret/aws/credentials must be lines"), "{refused}");

    service.secrets.set("secret/aws/credentials", &profiles[0]);
    let running = service.run(&source, &sink);
    until("they come", async || sink.delivered().len() == 5).await;
    // The other key counts without another run: the sink sends by it too.
    service.secrets.set("secret/aws/credentials", &profiles[1]);
    let event = Event::new("7", "/shop", "paid").unwrap();
    service.sink("orders").publish(event).await.unwrap();
    until("it comes", async || sink.delivered().len() == 6).await;
    running.stop().await.unwrap();
    assert!(!format!("{source:?} {:?}", service.sink("orders")).contains("AKIA"));
}

#[tokio::test]
async fn tls_with_an_authority_by_reference() {
    let authority = Authority::new();
    let certificate = authority.certify("127.0.0.1");
    let files = tempfile::tempdir().unwrap();
    let (cert, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
    std::fs::write(&cert, &certificate.pem).unwrap();
    std::fs::write(&key, &certificate.key).unwrap();
    let arguments = format!("-s\n-c\n{}\n-k\n{}", cert.display(), key.display());
    let Some(server) = moto(&arguments).await else { return };
    let address = server.address();
    let spec = TriggerSpec::new("shop/orders", "sqs", "shop/billing")
        .with_option("url", format!("https://{address}/123456789012/orders"))
        .with_option("region", "us-east-1")
        .with_option(CREDENTIALS.0, CREDENTIALS.1);
    let servers = SqsServers::new([address]);
    let secrets = FakeSecrets::of(&[("secret/aws/credentials", KEY), ("secret/aws/ca", &authority.pem)]);
    let ended = async |spec: &TriggerSpec| {
        let source = Arc::new(servers.source(spec).unwrap());
        let store = Arc::new(FakeStore::default());
        let running = Running::with(source, &FakeEventSink::new(1), store, Some(secrets.clone()));
        running.ended().await.unwrap_err().chain()
    };
    let untrusted = ended(&spec).await;
    assert!(untrusted.contains("ReceiveMessage") && untrusted.contains("certificate"), "{untrusted}");
    // Its queue is not there: it was asked.
    let trusted = ended(&spec.with_option("ca-secret", "secret/aws/ca")).await;
    assert!(trusted.contains("QueueDoesNotExist") || trusted.contains("NonExistentQueue"), "{trusted}");
}

#[tokio::test]
async fn events_are_sent_and_read_back_and_what_is_never_taken_is_told() {
    let Some(mut service) = Service::start().await else { return };
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_subject("grüße \"5 %\""))
        .and_then(|event| event.with_extension("partitionkey", "anna"))
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .unwrap();
    service.sink("orders").publish(event.clone()).await.unwrap();
    // A FIFO queue knows a repetition.
    for _ in 0..2 {
        service.sink("turns.fifo").publish(event.clone()).await.unwrap();
    }
    for queue in ["orders", "turns.fifo"] {
        let (sink, source) = (FakeEventSink::new(1), service.source(queue));
        let running = service.run(&source, &sink);
        until("nothing waits", async || service.open(queue).await == 0).await;
        running.stop().await.unwrap();
        let mut came = sink.delivered();
        assert_eq!(came.len(), 1, "{queue}");
        let position = came[0].extensions()["sasposition"].to_text().into_owned();
        assert!(position.starts_with(&format!("{queue}@")), "{position}");
        let expected = event.clone().with_extension("sasposition", position).unwrap();
        assert_eq!(came.remove(0), expected);
    }
    let large = event.clone().with_data("text/plain", "x".repeat(2 << 20)).unwrap();
    let error = service.sink("orders").publish(large).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    let error = service.sink("nobodys").publish(event.clone()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");

    // A sink outlives a service that goes away and comes back.
    let sink = service.sink("orders");
    sink.publish(event.clone()).await.unwrap();
    service.server.kill();
    let error = sink.publish(event.clone()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    service.server.restart().await;
    service.queue("orders", json!({})).await;
    sink.publish(event).await.unwrap();
    assert_eq!(service.open("orders").await, 1);
}

#[tokio::test]
async fn a_service_that_is_away_ends_the_run_and_the_next_goes_on() {
    let Some(mut service) = Service::start().await else { return };
    let (sink, source) = (FakeEventSink::new(4), service.source("orders"));
    let running = service.run(&source, &sink);
    service.send("orders", 0..3, 0).await;
    until("they come", async || sink.delivered().len() == 3).await;
    service.server.kill();
    let gone = running.ended().await.expect_err("it is gone").chain();
    assert!(gone.contains("Message"), "{gone}");
    let refused = service.run(&source, &sink).ended().await.expect_err("it is still gone").chain();
    assert!(refused.contains("ReceiveMessage") && refused.contains("refused"), "{refused}");
    service.server.restart().await;
    service.queue("orders", json!({})).await;
    let running = service.run(&source, &sink);
    service.send("orders", 3..5, 0).await;
    until("the others come", async || numbers(&sink).len() == 5).await;
    running.stop().await.unwrap();
}

#[test]
fn options_are_refused_by_name() {
    let servers = SqsServers::new(["sqs.eu-central-1.amazonaws.com", "127.0.0.1:5000", "a b"]);
    let spec = |url: &str| {
        TriggerSpec::new("t/t", "sqs", "t/x")
            .with_option("url", url)
            .with_option(CREDENTIALS.0, CREDENTIALS.1)
    };
    let aws = "https://sqs.eu-central-1.amazonaws.com/123456789012/orders";
    servers.source(&spec(aws)).unwrap();
    servers.source(&spec(aws).with_option("ca-secret", "secret/a/b")).unwrap();
    for (url, says) in [
        ("", "missing"),
        ("amqp://127.0.0.1:5000/1/q", "must be https://"),
        ("http://10.0.0.1:5000/1/q", "none of the servers"),
        ("http://me:pw@127.0.0.1:5000/1/q", "no credentials"),
        ("http://127.0.0.1:5000/q", "must be the queue's URL"),
        ("http://127.0.0.1:5000/1/q?x=1", "must be the queue's URL"),
        ("http://a b/1/q", "must be a host"),
        ("http://127.0.0.1:5000/1/q", "options.region"),
    ] {
        let errors = servers.source(&spec(url)).unwrap_err().to_string();
        assert!(errors.contains(says) && !errors.contains("pw"), "{url}: {errors}");
    }
    for (option, value) in [
        ("credentials-secret", ""),
        ("region", "EU!"),
        ("visibility-timeout", "1s"),
        ("visibility-timeout", "2500ms"),
        ("visibility-timeout", "13h"),
        ("colour", "red"),
    ] {
        let errors = servers.source(&spec(aws).with_option(option, value)).unwrap_err();
        assert!(errors.to_string().contains(&format!("options.{option}")), "{option}: {errors}");
    }
    let plain = spec("http://127.0.0.1:5000/1/q").with_option("ca-secret", "secret/a/b");
    let errors = servers.source(&plain.with_option("region", "us-east-1")).unwrap_err().to_string();
    assert!(errors.contains("options.ca-secret"), "{errors}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_what_is_asked_of_each_source() {
    let Some(service) = Service::start().await else { return };
    let service = Arc::new(service);
    let (made, sent) = (std::cell::Cell::new(0), Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let report = suite(async || {
        made.set(made.get() + 1);
        let queue = format!("suite-{}", made.get());
        service.queue(&queue, json!({})).await;
        let source = service.soon(&queue);
        let (feeding, sent) = (Arc::clone(&service), Arc::clone(&sent));
        let subject = Subject::new(source, Duration::from_millis(300)).secrets(service.secrets.clone()).feed(
            move || {
                let (service, queue) = (Arc::clone(&feeding), queue.clone());
                let number = sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::spawn(async move { service.send(&queue, number..number + 1, 0).await });
            },
        );
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed();
}

#[async_trait]
impl Broker for Service {
    fn source(&self) -> Arc<dyn TriggerSource> {
        self.soon("orders")
    }

    fn secrets(&self) -> Option<Arc<dyn SecretSource>> {
        Some(self.secrets.clone())
    }

    fn kill(&mut self) {
        unreachable!("what the emulator has is lost with it")
    }

    async fn restart(&mut self) {
        unreachable!("it is never killed")
    }

    async fn unacknowledged(&mut self) -> Option<u64> {
        Some(self.open("orders").await)
    }
}

/// The host is killed at random while messages come: none is lost. 600 messages; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let Some(mut service) = Service::start().await else { return };
    let count = events_of_a_test(600);
    service.send("orders", 0..count, 0).await;
    let kills = kill_at_random(&mut service, count, (0, 6), 0x5a5, |event| number(event).to_string()).await;
    println!("{kills}");
}
