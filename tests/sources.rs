//! A service that sleeps is woken and scaled by what waits in a broker: a real `nats-server`.

#![allow(clippy::print_stderr, reason = "what was skipped is said")]

use std::{
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sas::{core::RevisionKey, prelude::*};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Killed when the test ends.
struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// `None`, and a line about it, where there is no server; in CI that is a failure.
    async fn start() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("a port")
            .port();
        let started = Command::new("nats-server")
            .args(["-js", "-a", "127.0.0.1", "-p", &port.to_string(), "-sd"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match started {
            Ok(child) => Some(Self { child, port, _dir: dir }),
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "nats-server: {error}");
                eprintln!("SKIPPED: nats-server: {error} (Debian has it as nats-server)");
                None
            }
        }
    }

    /// Publishes, in the protocol's own words, and returns when the server has taken all.
    async fn publish(&self, messages: &[(String, String)]) {
        let mut connected = None;
        for _ in 0..400 {
            connected = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.ok();
            if connected.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut stream = connected.expect("the server listens");
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
    let Some(server) = Server::start().await else { return };
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
    let address = format!("127.0.0.1:{}", server.port);
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
