//! Events to a real HTTP server and to real files.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use sas_core::{Error, ErrorKind, Event, Result, Retry, SecretSource, SinkSpec, TenantKey, TriggerSecrets};
use sas_sinks::{FileSinks, Webhooks};
use sha2::Sha256;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// `key` and `token`.
#[derive(Debug)]
struct Secrets;

#[async_trait]
impl SecretSource for Secrets {
    async fn resolve(&self, reference: &str, _: TenantKey) -> Result<Bytes> {
        match reference {
            "key" => Ok("k3y\n".into()),
            "token" => Ok("t0ken".into()),
            _ => Err(Error::new(ErrorKind::NotFound, "secret", "there is none")),
        }
    }
}

fn secrets() -> TriggerSecrets {
    TriggerSecrets::new(Some(Arc::new(Secrets)), Some(TenantKey(1)))
}

fn spec(options: &[(&str, &str)]) -> SinkSpec {
    let options: BTreeMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    SinkSpec::new("default/t", "webhook", options)
}

fn event() -> Event {
    Event::new("1", "/s", "t")
        .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
        .expect("valid")
}

/// A server that gives these answers in turn, each on a connection of its own, and tells what it got.
async fn server(answers: &'static [&'static str]) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let task = tokio::spawn(async move {
        let mut seen = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut text = String::new();
            while !text.contains("{\"a\":1}") && !text.contains("\"specversion\"") {
                let mut part = [0; 4096];
                let read = stream.read(&mut part).await.expect("readable");
                assert!(read > 0, "it broke off: {text}");
                text.push_str(&String::from_utf8_lossy(&part[..read]));
            }
            stream.write_all(answer.as_bytes()).await.expect("writable");
            seen.push(text);
        }
        seen
    });
    (port, task)
}

#[tokio::test]
async fn a_webhook_gets_the_event_signed_and_its_answer_counts() {
    let (port, server) = server(&[
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ])
    .await;
    let webhooks = Webhooks::to_hosts([format!("127.0.0.1:{port}")]);
    let url = format!("http://127.0.0.1:{port}/in?x=1");
    let signed = spec(&[("url", &url), ("signing-secret", "key"), ("token-secret", "token")]);
    let webhook = webhooks.sink(&signed, secrets()).expect("allowed");
    webhook.publish(event()).await.expect("taken");
    let down = webhook.publish(event()).await.expect_err("503");
    assert_eq!((down.kind, down.retry), (ErrorKind::Unavailable, Retry::After(Duration::from_secs(7))));
    let moved = webhook.publish(event()).await.expect_err("a redirect is not followed");
    assert_eq!(moved.kind, ErrorKind::InvalidSpec);
    let structured = spec(&[("url", &url), ("mode", "structured")]);
    webhooks.sink(&structured, secrets()).expect("allowed").publish(event()).await.expect("taken");
    let seen = server.await.expect("no panic");
    let mut mac = Hmac::<Sha256>::new_from_slice(b"k3y").expect("any length");
    mac.update(b"{\"a\":1}");
    let hex: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let first = seen[0].to_ascii_lowercase();
    for part in [
        "post /in?x=1 http/1.1",
        &format!("host: 127.0.0.1:{port}"),
        "ce-id: 1",
        "authorization: bearer t0ken",
        &format!("x-hub-signature-256: sha256={hex}"),
    ] {
        assert!(first.contains(part), "{part}: {first}");
    }
    assert!(seen[3].contains("application/cloudevents+json") && seen[3].contains("\"specversion\":\"1.0\""));
}

#[tokio::test]
async fn only_hosts_that_are_allowed_are_called() {
    let webhooks = Webhooks::to_hosts(["hooks.example.org", "*.in.example.org", "127.0.0.1:9000"]);
    for url in [
        "https://hooks.example.org/x",
        "http://HOOKS.example.org:8080/",
        "https://a.b.in.example.org",
        "http://127.0.0.1:9000/",
    ] {
        assert!(webhooks.allows(url).is_ok(), "{url}");
    }
    for url in [
        "https://example.org/",
        "https://in.example.org/",
        "https://xin.example.org/",
        "https://hooks.example.org.evil.test/",
        "https://user:pw@hooks.example.org/",
        "ftp://hooks.example.org/",
        "http://127.0.0.1/",
        "/x",
        "",
    ] {
        assert!(webhooks.allows(url).is_err(), "{url}");
    }
    let errors =
        webhooks.sink(&spec(&[("url", "http://evil.test/"), ("mod", "x")]), secrets()).expect_err("refused");
    let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["options.sink.url", "options.sink.mod"]);
    let gone =
        webhooks.sink(&spec(&[("url", "http://127.0.0.1:9000/"), ("signing-secret", "none")]), secrets());
    assert_eq!(
        gone.expect("allowed").publish(event()).await.expect_err("no secret").kind,
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn files_get_a_line_for_each_event_and_stand_apart_by_namespace() {
    let dir = tempfile::tempdir().expect("a directory");
    let files = FileSinks::new(dir.path().join("events"));
    let sink = files.sink(&spec(&[("name", "letters")])).expect("a name");
    for _ in 0..3 {
        sink.publish(event()).await.expect("written");
    }
    let path = dir.path().join("events/default.letters.jsonl");
    let text = std::fs::read_to_string(&path).expect("made");
    assert_eq!(text.lines().count(), 3);
    let read = sas_cloudevents::from_json(text.lines().next().expect("a line").as_bytes()).expect("an event");
    assert_eq!(read, event());
    for name in ["../up", "", "a/b", "a.b"] {
        assert!(files.sink(&spec(&[("name", name)])).is_err(), "{name}");
    }
    std::fs::remove_file(&path).expect("removed");
    std::fs::create_dir(&path).expect("in its way");
    assert_eq!(sink.publish(event()).await.expect_err("a directory").kind, ErrorKind::Unavailable);
}
