//! Events and asynchronous calls over kills of the host: what was accepted is delivered.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use sas::{
    core::{Event, Handler as _},
    prelude::*,
};

const DIR: &str = "SAS_TEST_EVENTS_DIR";
const ROUND: &str = "SAS_TEST_EVENTS_ROUND";

const MANIFESTS: &str = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: orders, annotations: {sas.dev/ingress: open}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: to-sink}
spec:
  source: {kind: broker, options: {broker: orders, start: earliest}}
  target: {service: sink}
  delivery: {retry: 1000, backoffDelay: 10ms, orderBy: partitionkey}
";

/// A platform whose service `sink` writes down what it gets.
async fn platform(dir: &Path) -> Platform {
    let log =
        std::fs::OpenOptions::new().create(true).append(true).open(dir.join("delivered")).expect("a file");
    let log = Arc::new(Mutex::new((log, 0_u64)));
    let runtime = InlineRuntime::new().with("sink", move |request: Request, _cx| {
        let log = Arc::clone(&log);
        async move {
            let header = |name: &str| {
                let value = request.headers().get(name).and_then(|value| value.to_str().ok());
                value.unwrap_or_default().to_owned()
            };
            let line = format!("{} {}\n", header("ce-partitionkey"), header("ce-id") + &header("x-call"));
            let mut log = log.lock().expect("no panic before");
            log.1 += 1;
            let mut response = Response::new(Body::empty());
            if log.1.is_multiple_of(7) {
                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                return response;
            }
            log.0.write_all(line.as_bytes()).expect("written");
            response
        }
    });
    let platform =
        Platform::builder().state_dir(dir.join("state")).runtime(runtime).build().await.expect("it builds");
    if platform.control().record("default", "sink").is_err() {
        let spec = RevisionSpec::new("inline", Source::Function("sink".to_owned()));
        platform.deploy("default", "sink", spec).await.expect("deployed");
        platform.apply(MANIFESTS, None).await.expect("applied");
    }
    platform
}

/// A declared trigger's event goes out of the platform to a program that listens, and to no other host.
#[tokio::test]
async fn a_trigger_with_a_webhook_sink_sends_to_a_listener() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let platform = Platform::builder().webhook_hosts([address.to_string()]).build().await.expect("it builds");
    let manifest = |host: &str| {
        format!(
            "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {{name: orders, annotations: {{sas.dev/ingress: open}}}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {{name: out}}
spec:
  source: {{kind: broker, options: {{broker: orders, start: earliest}}}}
  target: {{sink: webhook, options: {{url: 'http://{host}/in?from=orders'}}}}
"
        )
    };
    let refused = platform.apply(&manifest("elsewhere.example"), None).await.expect_err("not allowed");
    assert!(format!("{refused:?}").contains("webhook_hosts"), "{refused:?}");
    platform.apply(&manifest(&address.to_string()), None).await.expect("applied");
    let event = Event::new("7", "/shop", "order").expect("valid");
    let event = event.with_data("application/json", r#"{"total":3}"#).expect("valid");
    platform.control().accept_events("default", "orders", vec![event]).await.expect("accepted");

    let receive = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(br#"{"total":3}"#) {
            assert_ne!(stream.read_buf(&mut request).await.expect("read"), 0, "it ended early");
        }
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
        String::from_utf8(request).expect("text")
    };
    let request = tokio::time::timeout(Duration::from_secs(20), receive).await.expect("it comes");
    assert!(request.starts_with("POST /in?from=orders HTTP/1.1\r\n"), "{request}");
    let head = request.to_ascii_lowercase();
    for line in ["ce-id: 7", "ce-source: /shop", "ce-type: order", "content-type: application/json"] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line}: {request}");
    }
    platform.shutdown(Duration::from_secs(5)).await;
}

/// What runs in the process that is killed: takes events and calls as fast as it can, and says which were accepted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test below, which kills it"]
async fn the_host_that_is_killed() {
    let (Some(dir), Ok(round)) = (std::env::var_os(DIR).map(PathBuf::from), std::env::var(ROUND)) else {
        return;
    };
    let platform = platform(&dir).await;
    let mut stdout = std::io::stdout();
    for number in 0_u32.. {
        let events = (0..5).map(|at| {
            let id = format!("{round}-{:06}", number * 5 + at);
            let event = Event::new(id, "/test", "order").expect("valid");
            event.with_extension("partitionkey", format!("k{at}")).expect("valid")
        });
        let events: Vec<Event> = events.collect();
        let ids: Vec<String> = events.iter().map(|event| event.id().to_owned()).collect();
        platform.control().accept_events("default", "orders", events).await.expect("accepted");
        for id in ids {
            writeln!(stdout, "accepted {id}").expect("a parent");
        }
        if number % 10 == 0 {
            let request = http::Request::post("http://sink.default.localhost/")
                .header("host", "sink.default.localhost")
                .header("prefer", "respond-async")
                .header("x-call", format!("call-{round}-{number}"))
                .body(Body::empty())
                .expect("a request");
            let response = platform.entrance().handle(request).await;
            assert_eq!(response.status(), 202);
            writeln!(stdout, "accepted call-{round}-{number}").expect("a parent");
        }
        stdout.flush().expect("a parent");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_is_delivered_over_kills() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut accepted = BTreeSet::new();
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["events::the_host_that_is_killed", "--exact", "--ignored", "--nocapture"])
            .env(DIR, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (mut count, mut killed) = (0, false);
        for line in lines {
            let Ok(line) = line else { break };
            if let Some((_, id)) = line.split_once("accepted ") {
                accepted.insert(id.to_owned());
                count += 1;
            }
            if count == 300 && !killed {
                // SIGKILL; what it had said by then is still read.
                child.kill().expect("killed");
                killed = true;
            }
        }
        child.wait().expect("gone");
        assert!(killed, "round {round}: only {count} were accepted");
    }
    assert!(accepted.len() >= 900, "{}", accepted.len());
    let platform = platform(dir.path()).await;
    let mut left = u64::MAX;
    for _ in 0..600 {
        left = platform
            .triggers()
            .backlogs(Duration::from_secs(5))
            .await
            .get("default/sink")
            .copied()
            .unwrap_or(1);
        if left == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(left, 0);
    // Asynchronous calls wait a second before they are made again.
    let delivered = async || {
        for _ in 0..100 {
            let text = std::fs::read_to_string(dir.path().join("delivered")).expect("written");
            if accepted.iter().all(|id| text.contains(id.as_str())) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::fs::read_to_string(dir.path().join("delivered")).expect("written")
    };
    let text = delivered().await;
    platform.shutdown(Duration::from_secs(10)).await;
    let mut times: BTreeMap<&str, u32> = BTreeMap::new();
    let mut first: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (key, id) in text.lines().filter_map(|line| line.split_once(' ')) {
        let count = times.entry(id).or_default();
        *count += 1;
        if *count == 1 && !key.is_empty() {
            first.entry(key).or_default().push(id);
        }
    }
    let lost: Vec<&String> = accepted.iter().filter(|id| !times.contains_key(id.as_str())).collect();
    assert_eq!(lost, Vec::<&String>::new());
    let again: u32 = times.values().map(|count| count - 1).sum();
    println!("{} accepted, 0 lost, {again} delivered more than once", accepted.len());
    for (key, ids) in first {
        assert!(ids.is_sorted(), "first deliveries of {key} are in order");
    }
}
