//! Answers of instances that are framed in odd ways, come early, in pieces, or with more than one head.
//!
//! The bytes of several answers are those of the project's collection of cases from users of other platforms.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use sas_core::{Body, BoxError, Outcome, Response};
use sas_router::{GatewayConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{raw::exchange, support::*};

/// An instance that answers each head with these bytes, and then hangs up if `closes`.
async fn raw_instance(answer: impl Into<Vec<u8>>, closes: bool) -> SocketAddr {
    let answer = answer.into();
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(1..) = stream.read(&mut head).await {
                    stream.write_all(&answer).await.unwrap();
                    if closes {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn answering(answer: impl Into<Vec<u8>>, closes: bool) -> Platform {
    let platform = Platform::start().await;
    platform.pool.add_at(platform.revision, raw_instance(answer, closes).await);
    platform
}

/// Status, lengths that were said, and the body, or how it broke off.
type Got = (u16, Vec<String>, Result<String, ()>);

async fn got<B>(response: http::Response<B>) -> Got
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let (head, body) = response.into_parts();
    assert!(!head.headers.contains_key("transfer-encoding") || head.version == http::Version::HTTP_11);
    let lengths = head.headers.get_all("content-length").iter();
    let lengths = lengths.map(|length| length.to_str().unwrap().to_owned()).collect();
    let body =
        body.collect().await.map_err(drop).map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
    (head.status.as_u16(), lengths, body)
}

async fn over_http2(address: SocketAddr, method: &str) -> Got {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(stream),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let request = http::Request::builder().method(method).uri(format!("http://{HOST}/"));
    got(client.send_request(request.body(Body::empty()).unwrap()).await.unwrap()).await
}

#[tokio::test]
async fn an_answer_is_delimited_in_one_way_or_refused() {
    // Method, answer, whether the instance hangs up after it, and what clients get: status, length, body. A chunked
    // body has no length over either protocol; an answer that the platform itself gives is known by its status.
    type Line = (&'static str, &'static str, bool, u16, Option<&'static str>, &'static str);
    let table: &[Line] = &[
        (
            "GET",
            "200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
            false,
            200,
            None,
            "hello world",
        ),
        (
            "GET",
            "200 OK\r\nContent-Length: 300\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
            false,
            200,
            None,
            "hello world",
        ),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: CHUNKED\r\nContent-Length: 11\r\n\r\nb\r\nhello world\r\n0\r\n\r\n",
            false,
            200,
            None,
            "hello world",
        ),
        ("GET", "200 OK\r\nContent-Length: 2, 2\r\n\r\nok", false, 200, Some("2"), "ok"),
        ("GET", "200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", false, 200, Some("2"), "ok"),
        ("GET", "200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!", false, 502, None, ""),
        ("GET", "200 OK\r\nContent-Length: 2, 3\r\n\r\nok!", false, 502, None, ""),
        ("GET", "200 OK\r\nContent-Length: -2\r\n\r\nok", false, 502, None, ""),
        ("GET", "200 OK\r\nContent-Length: 2x\r\n\r\nok", false, 502, None, ""),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            502,
            None,
            "",
        ),
        ("GET", "200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", false, 502, None, ""),
        (
            "GET",
            "200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            false,
            502,
            None,
            "",
        ),
        ("HEAD", "200 OK\r\nContent-Length: 4321\r\n\r\n", false, 200, Some("4321"), ""),
        ("HEAD", "200 OK\r\nContent-Length: 4321\r\nContent-Length: 1\r\n\r\n", false, 502, None, ""),
        ("HEAD", "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, 200, None, ""),
        ("GET", "204 No Content\r\nContent-Length: 0\r\n\r\n", false, 204, None, ""),
        ("GET", "204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", false, 204, None, ""),
        ("GET", "304 Not Modified\r\nContent-Length: 1234\r\n\r\n", false, 304, None, ""),
        ("GET", "200 OK\r\n\r\nuntil the end", true, 200, None, "until the end"),
    ];
    for (method, answer, closes, status, length, body) in table {
        let platform = answering(format!("HTTP/1.1 {answer}"), *closes).await;
        let mut client = Client::connect(platform.address()).await;
        let http1 = got(client.send(request(method, "/", "")).await).await;
        let http2 = over_http2(platform.address(), method).await;
        for (protocol, (got_status, lengths, got_body)) in [("HTTP/1.1", http1), ("HTTP/2", http2)] {
            assert_eq!(got_status, *status, "{protocol}: {answer}");
            if *status == 502 {
                assert!(
                    *method == "HEAD" || got_body.unwrap().contains("\"bad_response\""),
                    "{protocol}: {answer}"
                );
                continue;
            }
            assert_eq!(lengths, length.iter().copied().collect::<Vec<_>>(), "{protocol}: {answer}");
            assert_eq!(got_body.as_deref(), Ok(*body), "{protocol}: {answer}");
        }
        platform.pool.until_idle().await;
    }
    let platform =
        answering("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", true).await;
    assert_eq!(Client::connect(platform.address()).await.send(get("/")).await.status(), 502);
}

#[tokio::test]
async fn a_function_in_the_process_is_held_to_the_same() {
    let streamed = |pieces: &'static [&'static str]| {
        let pieces =
            pieces.iter().map(|piece| Ok::<_, BoxError>(http_body::Frame::data(Bytes::from(*piece))));
        Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)))
    };
    // Length that it says, body, and what a GET gets; `None`: an answer that breaks off.
    type Case = (&'static str, fn(&str) -> Body, Option<(u16, &'static str)>);
    let table: [Case; 3] = [
        ("5", |text| Body::from(text.to_owned()), Some((200, "hello"))),
        ("7", |text| Body::from(text.to_owned()), Some((502, "bad_response"))),
        ("5, 6", |text| Body::from(text.to_owned()), Some((502, "bad_response"))),
    ];
    for (length, body, expected) in table {
        let platform = Platform::start().await;
        platform.pool.add_inside(
            platform.revision,
            handler(move |_| async move {
                let mut response = Response::new(body("hello"));
                response.headers_mut().insert("content-length", length.parse().unwrap());
                response
            }),
        );
        let mut client = Client::connect(platform.address()).await;
        let (status, _, text) = got(client.send(get("/")).await).await;
        let (expected, holds) = expected.unwrap();
        assert_eq!(status, expected, "{length}");
        assert!(text.unwrap().contains(holds), "{length}");
        // A HEAD that is answered with a body, as frameworks do.
        if expected == 200 {
            let (status, lengths, body) = over_http2(platform.address(), "HEAD").await;
            assert_eq!((status, lengths, body), (200, vec!["5".to_owned()], Ok(String::new())));
        }
    }
    for (length, sound, http2) in [
        ("10", true, false),
        ("9", false, false),
        ("11", false, false),
        ("10", true, true),
        ("9", false, true),
        ("11", false, true),
    ] {
        let platform = Platform::start().await;
        platform.pool.add_inside(
            platform.revision,
            handler(move |_| async move {
                let mut response = Response::new(streamed(&["hello", "world"]));
                response.headers_mut().insert("content-length", length.parse().unwrap());
                response
            }),
        );
        let (status, _, body) = match http2 {
            true => over_http2(platform.address(), "GET").await,
            false => got(Client::connect(platform.address()).await.send(get("/")).await).await,
        };
        assert_eq!((status, body.is_ok()), (200, sound), "{length}, HTTP/2: {http2}");
    }
}

/// An instance that looks at the head, says no, and hangs up with the rest unread.
async fn refusing(close: bool) -> SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 1024];
            let _read = stream.read(&mut head).await;
            let answer = "HTTP/1.1 413 Content Too Large\r\nContent-Length: 18\r\nConnection: close\r\n\r\nat most 1 MB here\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            if !close {
                kept.push(stream);
            }
        }
    });
    address
}

#[tokio::test]
async fn an_answer_that_comes_before_the_upload_ends_is_passed_on() {
    for close in [true, false] {
        let platform = Platform::start().await;
        platform.pool.add_at(platform.revision, refusing(close).await);
        for round in 0..30 {
            // As curl does: it writes and looks for an answer at the same time, and stops at the answer.
            let stream = TcpStream::connect(platform.address()).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let head = format!("POST / HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5000000\r\n\r\n");
            let writing = tokio::spawn(async move {
                write.write_all(head.as_bytes()).await?;
                for _ in 0..50 {
                    write.write_all(&[0; 100_000]).await?;
                }
                std::io::Result::Ok(write)
            });
            let mut answer = Vec::new();
            let mut some = [0; 1024];
            while !answer.ends_with(b"at most 1 MB here\n") {
                let count = tokio::time::timeout(Duration::from_secs(10), read.read(&mut some)).await;
                let count = count.expect("an answer").unwrap();
                assert!(count > 0, "round {round}: {:?}", String::from_utf8_lossy(&answer));
                answer.extend_from_slice(&some[..count]);
            }
            assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
            writing.abort();
        }
        if close {
            platform.pool.until_idle().await;
            assert!(platform.pool.outcomes().iter().all(|(_, outcome)| *outcome == Outcome::Ok));
        }
    }
}

#[tokio::test]
async fn an_instance_that_hangs_up_without_a_word_is_still_lost() {
    let platform = Platform::start().await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _read = stream.read(&mut [0; 100]).await;
        }
    });
    let began = Instant::now();
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(request("POST", "/", vec![0; 3_000_000])).await;
    assert_eq!(response.status(), 502);
    assert_eq!(json(response).await["reason"], "instance_lost");
    assert!(began.elapsed() < Duration::from_secs(10));
    platform.pool.until_idle().await;
    assert_eq!(platform.pool.outcomes()[0].1, Outcome::Lost);
}

#[tokio::test]
async fn interim_answers_reach_clients_that_can_take_them() {
    let hints =
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </s.css>; rel=preload\r\n\r\n";
    let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let platform = answering(format!("{hints}{ok}"), false).await;
    let ask = |version: &str, more: &str| format!("GET / HTTP/1.{version}\r\nhost: {HOST}\r\n{more}\r\n");
    let (answer, _) = exchange(platform.address(), ask("1", "").as_bytes()).await;
    let (hint, rest) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(hint, "HTTP/1.1 103 Early Hints\r\nlink: </s.css>; rel=preload");
    assert!(rest.starts_with("HTTP/1.1 200 OK\r\n") && rest.ends_with("\r\n\r\nok"), "{rest}");
    // One after the other on one connection, and HTTP/1.0, which knows none.
    let twice = format!("{}{}", ask("1", ""), ask("1", "connection: close\r\n"));
    let (answer, _) = exchange(platform.address(), twice.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    for part in answer.split("HTTP/1.1 103 Early Hints\r\n").skip(1) {
        assert!(part.starts_with("link: </s.css>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\n"), "{answer}");
    }
    let (answer, _) = exchange(platform.address(), ask("0", "").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK") && !answer.contains("103 Early"), "{answer}");
    // Over HTTP/2 it is left out, and the answer comes.
    assert_eq!(over_http2(platform.address(), "GET").await.2.as_deref(), Ok("ok"));

    // At once, not with the answer.
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let platform = Platform::start().await;
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _head = stream.read(&mut [0; 1024]).await;
        stream.write_all(hints.as_bytes()).await.unwrap();
        let _go = gone.await;
        stream.write_all(ok.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(60)).await;
    });
    let mut client = TcpStream::connect(platform.address()).await.unwrap();
    client.write_all(ask("1", "").as_bytes()).await.unwrap();
    let mut some = [0; 1024];
    let count = tokio::time::timeout(Duration::from_secs(10), client.read(&mut some)).await.unwrap().unwrap();
    assert!(some[..count].starts_with(b"HTTP/1.1 103 Early Hints\r\n"));
    go.send(()).unwrap();
    let count = tokio::time::timeout(Duration::from_secs(10), client.read(&mut some)).await.unwrap().unwrap();
    assert!(some[..count].starts_with(b"HTTP/1.1 200 OK\r\n"));
}

#[tokio::test]
async fn many_header_lines_pass_and_the_limit_names_itself() {
    let cookies = |count: usize| {
        let lines: String = (0..count).map(|n| format!("Set-Cookie: c{n}={n}; Path=/\r\n")).collect();
        format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 2\r\n\r\nok")
    };
    for count in [90, 150, 900] {
        let platform = answering(cookies(count), false).await;
        let ask = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n");
        let (answer, _) = exchange(platform.address(), ask.as_bytes()).await;
        assert_eq!(answer.matches("\r\nset-cookie: ").count(), count, "{answer}");
    }
    let platform = answering(cookies(1_001), false).await;
    let refused = Client::connect(platform.address()).await.send(get("/")).await;
    assert_eq!(refused.status(), 502);
    let message = json(refused).await["message"].as_str().unwrap().to_owned();
    assert!(message.contains("1000 lines") && message.contains("max_headers"), "{message}");

    let mut gateway = GatewayConfig::default();
    gateway.upstream.max_header_bytes = 32 * 1024;
    let platform = Platform::with(spec(), gateway, ServerConfig::default()).await;
    let big = format!("HTTP/1.1 200 OK\r\nX-Big: {}\r\nContent-Length: 2\r\n\r\nok", "a".repeat(40_000));
    platform.pool.add_at(platform.revision, raw_instance(big, false).await);
    let refused = Client::connect(platform.address()).await.send(get("/")).await;
    assert_eq!(refused.status(), 502);
    let message = json(refused).await["message"].as_str().unwrap().to_owned();
    assert!(message.contains("32768 bytes") && message.contains("max_header_bytes"), "{message}");
}

#[tokio::test]
async fn a_connection_is_given_up_before_the_instance_does() {
    for (said, connections) in [("timeout=1", 2), ("timeout=30", 1), ("max=0", 2)] {
        let platform = Platform::start().await;
        let listener = TcpListener::bind(loopback()).await.unwrap();
        platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
        let count = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    while let Ok(1..) = stream.read(&mut [0; 4096]).await {
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nkeep-alive: {said}\r\ncontent-length: 2\r\n\r\nok");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        let mut client = Client::connect(platform.address()).await;
        assert_eq!(read(client.send(request("POST", "/", "x")).await).await, "ok");
        if said == "timeout=1" {
            // The instance would keep it for as long again.
            tokio::time::sleep(Duration::from_millis(600)).await;
        }
        let response = client.send(request("POST", "/", "x")).await;
        assert!(!response.headers().contains_key("keep-alive"), "it is for the next hop");
        assert_eq!(read(response).await, "ok");
        assert_eq!(count.load(Ordering::SeqCst), connections, "{said}");
    }
}

/// Sends `bytes`, closes the sending side, and reads to the end.
async fn half_closed(address: SocketAddr, bytes: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let _reset = tokio::time::timeout(Duration::from_secs(20), read).await.expect("an end");
    answer
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_gets_its_answer_for_a_while() {
    let mut server = ServerConfig::default();
    server.half_close = Duration::from_millis(800);
    let platform = Platform::with(spec(), GatewayConfig::default(), server).await;
    platform.pool.add_inside(
        platform.revision,
        handler(|request| async move {
            let millis = request.uri().path()[1..].parse().unwrap();
            if request.into_body().collect(1_000).await.is_err() {
                return text(400, "the body is not whole");
            }
            tokio::time::sleep(Duration::from_millis(millis)).await;
            text(200, "ok")
        }),
    );
    let (answer, at) = (half_closed, platform.address());
    let answered = answer(at, &format!("GET /100 HTTP/1.1\r\nhost: {HOST}\r\n\r\n")).await;
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n") && answered.ends_with("ok"), "{answered}");
    let whole = format!("POST /100 HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 4\r\n\r\nbody");
    let answered = answer(at, &whole).await;
    assert!(answered.starts_with("HTTP/1.1 200 OK\r\n") && answered.ends_with("ok"), "{answered}");
    // Whoever closes and is still not answered has left, and whoever closes within a request has too.
    let began = Instant::now();
    let slow = format!("GET /60000 HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    assert_eq!(answer(at, &slow).await, "");
    platform.pool.until_idle().await;
    let part = format!("POST /60000 HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 9\r\n\r\nbody");
    let answered = answer(at, &part).await;
    assert!(!answered.contains("200 OK"), "{answered}");
    platform.pool.until_idle().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
