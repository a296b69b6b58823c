//! A service that sleeps is woken and scaled by what waits in a broker: a real `nats-server`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sas::{core::RevisionKey, prelude::*};
use sas_testkit::server::nats;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A server, spoken to in the protocol's own words.
struct Server(sas_testkit::server::Server);

impl Server {
    /// Publishes, in the protocol's own words, and returns when the server has taken all.
    async fn publish(&self, messages: &[(String, String)]) {
        let mut stream = tokio::net::TcpStream::connect(self.0.address()).await.expect("it listens");
        let mut text = "CONNECT {\"verbose\":false}\r\n".to_owned();
        for (subject, body) in messages {
            text.push_str(&format!("PUB {subject} {}\r\n{body}\r\n", body.len()));
        }
        text.push_str("PING\r\n");
        stream.write_all(text.as_bytes()).await.expect("written");
        let mut answer = Vec::new();
        while !answer.ends_with(b"PONG\r\n") {
            assert_ne!(stream.read_buf(&mut answer).await.expect("read"), 0, "it hung up");
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2400 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("not within a minute: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_in_a_stream_lets_a_service_sleep_and_what_waits_wakes_and_scales_it() {
    let Some(server) = nats("").await.map(Server) else { return };
    let stream = r#"{"name":"ORDERS","subjects":["orders.>"]}"#;
    server.publish(&[("$JS.API.STREAM.CREATE.ORDERS".to_owned(), stream.to_owned())]).await;

    let delivered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&delivered);
    let runtime = InlineRuntime::new().with("bill", move |_: Request, _cx| {
        let counted = Arc::clone(&counted);
        async move {
            tokio::time::sleep(Duration::from_millis(100)).await;
            counted.fetch_add(1, Ordering::Relaxed);
            Response::new(Body::empty())
        }
    });
    let address = server.0.address();
    let platform =
        Platform::builder().runtime(runtime).nats_hosts([&address]).build().await.expect("it builds");
    let manifests = |address: &str| {
        format!(
            "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {{name: bill, annotations: {{sas.dev/function: bill}}}}
spec:
  template:
    metadata:
      annotations:
        sas.dev/metrics: backlog=10
        autoscaling.knative.dev/max-scale: '20'
        autoscaling.knative.dev/window: 6s
    spec: {{}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {{name: bills}}
spec:
  source: {{kind: nats-jetstream, options: {{url: 'nats://{address}', stream: ORDERS, start: earliest}}}}
  target: {{service: bill}}
  delivery: {{concurrency: '2'}}
"
        )
    };
    let refused = platform.apply(&manifests("10.0.0.1:4222"), None).await.expect_err("not allowed");
    assert!(format!("{refused:?}").contains("nats_hosts"), "{refused:?}");
    platform.apply(&manifests(&address), None).await.expect("applied");
    let key: RevisionKey =
        platform.control().revision_key("default", "bill", "bill-00001").expect("a revision that runs");
    let ready = || platform.pool().status(key).expect("it is registered").ready;
    until("nothing waits, and it sleeps", || ready() == 0).await;

    // One message is enough to wake it: there is no threshold for the first.
    server.publish(&[("orders.first".to_owned(), "first".to_owned())]).await;
    until("the first is delivered", || delivered.load(Ordering::Relaxed) == 1).await;

    let messages: Vec<(String, String)> = (0..150).map(|n| (format!("orders.{n}"), n.to_string())).collect();
    server.publish(&messages).await;
    // Two deliveries at once would keep two instances at most: the others are there for what waits.
    until("the backlog has it scaled", || ready() > 4).await;
    until("all are delivered", || delivered.load(Ordering::Relaxed) == 151).await;
    platform.shutdown(Duration::from_secs(5)).await;
}

/// The broker is not there when the platform starts, and is killed later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_platform_serves_while_a_broker_is_away_says_why_and_goes_on_when_it_comes() {
    let Some(mut server) = nats("").await.map(Server) else { return };
    let stream = r#"{"name":"ORDERS","subjects":["orders.>"]}"#;
    server.publish(&[("$JS.API.STREAM.CREATE.ORDERS".to_owned(), stream.to_owned())]).await;
    server.0.kill();

    let delivered = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&delivered);
    let runtime = InlineRuntime::new()
        .with("bill", move |_: Request, _cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { Response::new(Body::empty()) }
        })
        .with("hello", |_: Request, _cx| async { Response::new(Body::from("hello")) });
    let address = server.0.address();
    let platform =
        Platform::builder().runtime(runtime).nats_hosts([&address]).build().await.expect("it builds");
    for function in ["bill", "hello"] {
        let spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
        platform.deploy("default", function, spec).await.expect("deployed");
    }
    let trigger = format!(
        "
apiVersion: sas.dev/v1
kind: Trigger
metadata: {{name: bills}}
spec:
  source: {{kind: nats-jetstream, options: {{url: 'nats://{address}', stream: ORDERS, start: earliest}}}}
  target: {{service: bill}}
"
    );
    platform.apply(&trigger, None).await.expect("a trigger may be declared before its broker is there");
    let status = || sas::core::Triggers::status(&**platform.triggers()).remove(0);
    let serves = async || {
        let answer =
            platform.call("default", "hello", Request::new(Body::empty())).await.expect("it answers");
        assert_eq!(answer.status(), 200);
    };
    let is_away = |restarts: u64| {
        let status = status();
        status.restarts > restarts && status.last_error.is_some_and(|error| error.contains("nats"))
    };
    until("the trigger says that the broker is not there", || is_away(0)).await;
    serves().await;
    server.0.restart().await;
    server.publish(&[("orders.1".to_owned(), "1".to_owned())]).await;
    until("the first is delivered", || delivered.load(Ordering::Relaxed) == 1).await;

    let restarts = status().restarts;
    server.0.kill();
    until("the trigger says that the broker is away", || is_away(restarts)).await;
    serves().await;
    server.0.restart().await;
    server.publish(&[("orders.2".to_owned(), "2".to_owned())]).await;
    until("the second is delivered", || delivered.load(Ordering::Relaxed) == 2).await;
    platform.shutdown(Duration::from_secs(5)).await;
}
