//! Requests that are malformed, that lie, or that never end: refused with the right status, in bounded time and
//! memory, and without harm to others.

use std::time::Duration;

use sas_router::{GatewayConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use crate::{
    raw::{exchange, noting},
    support::*,
};

#[tokio::test]
async fn malformed_requests_get_a_reason_and_their_connection_is_closed() {
    let (platform, noted) = noting().await;
    // (what it is, the bytes, the status)
    let corpus: Vec<(&str, String, u16)> = vec![
        ("no HTTP at all", "hello there\r\n\r\n".into(), 400),
        ("a TLS hello", "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\r\n\r\n".into(), 400),
        ("an unknown version", format!("GET / HTTP/3.7\r\nhost: {HOST}\r\n\r\n"), 400),
        ("no version", "GET /\r\n\r\n".into(), 400),
        ("a space in the target", format!("GET /a b HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 400),
        ("a tab after the method", format!("GET\t/ HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 400),
        ("a control character in the target", format!("GET /\u{1} HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 400),
        ("a space before the colon", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a : b\r\n\r\n"), 400),
        ("a folded header", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: b\r\n c\r\n\r\n"), 400),
        ("a header without a name", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n: b\r\n\r\n"), 400),
        ("a header without a colon", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nnonsense\r\n\r\n"), 400),
        ("a bare carriage return", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: b\rc: d\r\n\r\n"), 400),
        ("a NUL in a value", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: b\0c\r\n\r\n"), 400),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into(), 400),
        ("no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into(), 400),
        ("two hosts", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nhost: other\r\n\r\n"), 400),
        ("the same host twice", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nhost: {HOST}\r\n\r\n"), 400),
        ("a host that is none", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n".into(), 400),
        ("an empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n".into(), 400),
        ("a user in the target", format!("GET http://user@{HOST}/ HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 400),
        (
            "a length that is no number",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: x\r\n\r\n"),
            400,
        ),
        ("a negative length", format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: -1\r\n\r\n"), 400),
        (
            "a length with a sign",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: +1\r\n\r\nx"),
            400,
        ),
        (
            "a hexadecimal length",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0x1\r\n\r\nx"),
            400,
        ),
        (
            "two lengths",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx"),
            400,
        ),
        (
            "a list of lengths",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1, 1\r\n\r\nx"),
            400,
        ),
        (
            "a length beyond all bounds",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 99999999999999999999\r\n\r\n"),
            400,
        ),
        (
            "chunked in HTTP/1.0",
            format!("POST / HTTP/1.0\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "an unknown coding",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: cow\r\n\r\n"),
            400,
        ),
        (
            "chunked, but not last",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked, gzip\r\n\r\n"),
            400,
        ),
        (
            "an obfuscated coding",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            "a coding after a vertical tab",
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: \u{b}chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        ("a tunnel", format!("CONNECT {HOST}:443 HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 405),
        ("a trace", format!("TRACE / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"), 405),
        ("a long target", format!("GET /{} HTTP/1.1\r\nhost: {HOST}\r\n\r\n", "a".repeat(20_000)), 414),
        (
            "a target beyond all bounds",
            format!("GET /{} HTTP/1.1\r\nhost: {HOST}\r\n\r\n", "a".repeat(66_000)),
            414,
        ),
        (
            "a huge header",
            format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: {}\r\n\r\n", "a".repeat(80_000)),
            431,
        ),
        (
            "very many headers",
            format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{}\r\n", "a: b\r\n".repeat(200)),
            431,
        ),
    ];
    for (what, bytes, status) in corpus {
        let (answer, closed) = exchange(platform.address(), bytes.as_bytes()).await;
        let head = answer.split("\r\n\r\n").next().unwrap().to_ascii_lowercase();
        let got: Option<u16> = head.get(9..12).and_then(|code| code.parse().ok());
        // Where a limit is met before the message is understood, either limit's status is right.
        let too_large = [414, 431].contains(&status) && got.is_some_and(|got| [414, 431].contains(&got));
        assert!(got == Some(status) || too_large, "{what}: {answer:?}");
        assert!(head.contains("x-request-id: "), "{what}: {answer:?}");
        assert!(closed || status == 414, "{what}: the connection stays open");
        let body = answer.split("\r\n\r\n").nth(1).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(body).unwrap_or_else(|_| panic!("{what}: {answer:?}"));
        assert_eq!(json["component"], "ingress", "{what}");
    }
    assert_eq!(noted.lock().unwrap().len(), 0, "nothing of these reached the instance");
    let (answer, _) =
        exchange(platform.address(), format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "others are served: {answer}");
}

#[tokio::test]
async fn a_pipelined_second_request_is_one_of_its_own() {
    let (platform, _) = noting().await;
    let two = format!("GET /1 HTTP/1.1\r\nhost: {HOST}\r\n\r\nGET /2 HTTP/1.1\r\nhost: nobody\r\n\r\n");
    let (answer, _) = exchange(platform.address(), two.as_bytes()).await;
    let statuses: Vec<_> =
        answer.match_indices("HTTP/1.1 ").map(|(at, _)| &answer[at + 9..at + 12]).collect();
    assert_eq!(statuses, ["200", "404"], "{answer}");
}

#[tokio::test]
async fn broken_chunks_end_the_request() {
    let platform = Platform::start().await;
    let instance = instance(handler(|request| async move {
        match request.into_body().collect(1_000).await {
            Ok(body) => text(200, format!("{} bytes", body.len())),
            Err(_) => text(400, "broken"),
        }
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    for chunks in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcdef\r\n0\r\n\r\n",
        "ffffffffffffffffff\r\na",
        "-1\r\na\r\n0\r\n\r\n",
        "3 \u{1}\r\nabc\r\n0\r\n\r\n",
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let (answer, closed) = exchange(platform.address(), request.as_bytes()).await;
        assert!(closed, "{chunks:?}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 2"), "{chunks:?}: {answer}");
    }
    platform.pool.until_idle().await;
}

fn quick() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.header_timeout = Duration::from_millis(200);
    config.body_timeout = Duration::from_millis(200);
    config.idle_timeout = Duration::from_millis(400);
    config.write_timeout = Duration::from_millis(400);
    config
}

#[tokio::test]
async fn a_head_that_drips_in_is_cut_with_408() {
    let platform = Platform::with(spec(), GatewayConfig::default(), quick()).await;
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let started = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let dripping = async {
        for byte in format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx-a: ").bytes().chain(std::iter::repeat(b'a'))
        {
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = Vec::new();
    let reading = reader.read_to_end(&mut answer);
    tokio::select! {
        biased;
        _ = reading => {}
        () = dripping => {}
    }
    assert!(started.elapsed() < Duration::from_secs(10), "bounded");
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("head_timeout"), "{answer:?}");
}

#[tokio::test]
async fn whoever_says_nothing_is_let_go() {
    let platform = Platform::with(spec(), GatewayConfig::default(), quick()).await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
    let (answer, closed) = exchange(platform.address(), b"").await;
    assert!((answer.is_empty(), closed) == (true, true), "{answer}");
    let once = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let (answer, closed) = exchange(platform.address(), once.as_bytes()).await;
    assert!(answer.ends_with("ok") && closed, "an idle keep-alive connection ends: {answer}");
}

#[tokio::test]
async fn a_body_that_pauses_too_long_is_answered_with_408() {
    let platform = Platform::with(spec(), GatewayConfig::default(), quick()).await;
    let instance = instance(handler(|request| async move {
        let read = request.into_body().collect(1_000).await;
        text(if read.is_ok() { 200 } else { 500 }, "")
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let request = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 10\r\n\r\nabc");
    let (answer, closed) = exchange(platform.address(), request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout") && closed, "{answer}");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_client_that_takes_nothing_does_not_hold_its_slot_for_ever() {
    let platform = Platform::with(spec(), GatewayConfig::default(), quick()).await;
    let instance = instance(handler(|_| async { text(200, "x".repeat(64 << 20)) })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.pool.until_idle().await;
}

/// An instance that answers every request with these bytes, and then closes or waits.
async fn saying(bytes: &'static [u8], closes: bool) -> (Platform, tokio::task::JoinHandle<()>) {
    let mut limited = spec();
    limited.timeouts.idle = Duration::from_millis(300);
    let platform = Platform::with(limited, GatewayConfig::default(), ServerConfig::default()).await;
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            let _head = stream.read(&mut buffer).await;
            let _gone = stream.write_all(bytes).await;
            if !closes {
                kept.push(stream);
            }
        }
    });
    (platform, task)
}

#[tokio::test]
async fn an_instance_that_speaks_no_http_gives_502() {
    for bytes in [
        &b"no HTTP\r\n\r\n"[..],
        b"HTTP/1.1 banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nx y: 1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n",
    ] {
        let (platform, _task) = saying(bytes, true).await;
        let mut client = Client::connect(platform.address()).await;
        let response = client.send(request("POST", "/", "x")).await;
        assert_eq!(response.status(), 502, "{}", String::from_utf8_lossy(bytes));
        assert_eq!(json(response).await["component"], "instance");
        platform.pool.until_idle().await;
    }
}

#[tokio::test]
async fn a_body_shorter_than_it_said_is_cut_and_never_looks_whole() {
    let (platform, _task) = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort", true).await;
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/")).await;
    use http_body_util::BodyExt as _;
    assert!(response.into_body().collect().await.is_err());
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_target_with_other_characters_goes_on_encoded_and_nothing_else_is_touched() {
    let platform = Platform::start().await;
    let instance = instance(handler(|request| async move {
        let (head, body) = request.into_parts();
        let body = String::from_utf8(body.collect(100).await.unwrap().to_vec()).unwrap();
        text(200, format!("{} {} {body} end", head.uri, head.headers["x-a"].to_str().unwrap()))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    // One connection. Where the bytes are cut, the target as it is sent, the body, the target as it arrives.
    for (cut, target, body, expected) in [
        (5, "/x?q={\"a\":[1]}", "", "/x?q={%22a%22:[1]}"),
        (9, "/x?q=<b>|", "GET /?\"<>", "/x?q=%3Cb%3E|"),
        (3, "/<`>?`", "", "/%3C%60%3E?`"),
        (8, "/caf\u{e9}?\u{e9}", "", "/caf%C3%A9?%C3%A9"),
        (7, "/?%22+%zz", "<\"", "/?%22+%zz"),
    ] {
        let (method, length) = (if body.is_empty() { "GET" } else { "POST" }, body.len());
        let head =
            format!("{method} {target} HTTP/1.1\r\nhost: {HOST}\r\nx-a: /?\"<>\r\ncontent-length: {length}");
        let ask = format!("{head}\r\n\r\n{body}");
        for part in [&ask.as_bytes()[..cut], &ask.as_bytes()[cut..]] {
            stream.write_all(part).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut answer = Vec::new();
        while !answer.ends_with(b" end") {
            let read = tokio::time::timeout(Duration::from_secs(5), stream.read_buf(&mut answer)).await;
            assert_ne!(read.expect("an answer").unwrap(), 0, "{}", String::from_utf8_lossy(&answer));
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with(&format!("\r\n\r\n{expected} /?\"<> {body} end")), "{answer}");
    }
}

#[tokio::test]
async fn what_comes_after_the_end_is_given_to_nobody() {
    let lie =
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison";
    let (platform, _task) = saying(lie, false).await;
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..5 {
        assert_eq!(read(client.send(get("/")).await).await, "ok");
    }
}

#[tokio::test]
async fn a_body_that_never_ends_fails_when_nothing_comes_any_more() {
    let (platform, _task) =
        saying(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", false).await;
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/")).await;
    use http_body_util::BodyExt as _;
    assert!(response.into_body().collect().await.is_err());
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn random_bytes_never_bring_the_server_down() {
    let platform = Platform::start().await;
    let instance = instance(handler(|request| async move {
        let _read = request.into_body().collect(1_000).await;
        text(200, "ok")
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut state = 7_u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let valid =
        format!("POST /a?b HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 3\r\nx-a: b\r\n\r\nabc").into_bytes();
    let mut rounds = tokio::task::JoinSet::new();
    for round in 0..300 {
        let mut bytes = valid.clone();
        for _ in 0..=round % 7 {
            let at = usize::from(random()) % bytes.len();
            match random() % 3 {
                0 => bytes[at] = random(),
                1 => bytes.insert(at, random()),
                _ => drop(bytes.remove(at)),
            }
        }
        let address = platform.address();
        rounds.spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _refused = stream.write_all(&bytes).await;
            let _half = stream.shutdown().await;
            let mut answer = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "no end for {:?}", String::from_utf8_lossy(&bytes));
        });
    }
    while let Some(round) = rounds.join_next().await {
        round.unwrap();
    }
    let (answer, _) =
        exchange(platform.address(), format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    platform.pool.until_idle().await;
}
