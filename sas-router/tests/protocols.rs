//! What clients and instances speak: both versions of HTTP, upgrades, streams, trailers, and how each ends when the
//! platform drains.

mod support;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, Protocol, Response};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

/// A client's connection over HTTP/2 with prior knowledge.
async fn http2(address: std::net::SocketAddr) -> hyper::client::conn::http2::SendRequest<Body> {
    let io = hyper_util::rt::TokioIo::new(TcpStream::connect(address).await.unwrap());
    let executor = hyper_util::rt::TokioExecutor::new();
    let (sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(async move {
        let _ended = connection.await;
    });
    sender
}

fn over_http2(method: &str, path: &str, body: impl Into<Body>) -> sas_core::Request {
    http::Request::builder().method(method).uri(format!("http://{HOST}{path}")).body(body.into()).unwrap()
}

#[tokio::test]
async fn many_streams_of_one_http2_connection_are_served_at_once() {
    let platform = Platform::start().await;
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let instance = instance(handler(move |request| {
        let barrier = Arc::clone(&barrier);
        async move {
            barrier.wait().await;
            text(200, request.uri().path().to_owned())
        }
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let client = http2(platform.address()).await;
    let asking: Vec<_> = (0..50)
        .map(|n| {
            let mut client = client.clone();
            tokio::spawn(async move {
                read(client.send_request(over_http2("GET", &format!("/{n}"), "")).await.unwrap()).await
            })
        })
        .collect();
    for (n, one) in asking.into_iter().enumerate() {
        assert_eq!(one.await.unwrap(), format!("/{n}"));
    }
}

#[tokio::test]
async fn an_instance_may_speak_http2() {
    let mut h2c = spec();
    h2c.protocol = Protocol::H2c;
    let platform = Platform::with(h2c, Default::default(), Default::default()).await;
    let instance = instance(handler(|request| async move {
        assert_eq!(request.version(), http::Version::HTTP_2);
        let authority = request.uri().authority().unwrap().to_string();
        let body = request.into_body().collect(1_000).await.unwrap();
        text(200, format!("{authority} {}", String::from_utf8_lossy(&body)))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    assert_eq!(read(client.send(request("POST", "/", "over 1.1")).await).await, format!("{HOST} over 1.1"));
    let mut client = http2(platform.address()).await;
    let response = client.send_request(over_http2("POST", "/", "over 2")).await.unwrap();
    assert_eq!(read(response).await, format!("{HOST} over 2"));
    instance.shutdown(Instant::now()).await;
}

#[tokio::test]
async fn trailers_pass_in_both_directions() {
    let mut h2c = spec();
    h2c.protocol = Protocol::H2c;
    let platform = Platform::with(h2c, Default::default(), Default::default()).await;
    let instance = instance(handler(|request| async move {
        let collected = request.into_body().collect_with_trailers().await;
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(4);
        sender.send_data(Bytes::from_static(b"body")).await.unwrap();
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-echo", collected["x-sum"].clone());
        sender.send_trailers(trailers).await.unwrap();
        Response::new(Body::new(body))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = http2(platform.address()).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(4);
    sender.send_data(Bytes::from_static(b"data")).await.unwrap();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    sender.send_trailers(trailers).await.unwrap();
    drop(sender);
    let response = client.send_request(over_http2("POST", "/", Body::new(body))).await.unwrap();
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-echo"], "42");
    assert_eq!(collected.to_bytes(), "body");
    platform.pool.until_idle().await;
}

trait WithTrailers {
    async fn collect_with_trailers(self) -> http::HeaderMap;
}

impl WithTrailers for Body {
    async fn collect_with_trailers(self) -> http::HeaderMap {
        http_body_util::BodyExt::collect(self).await.unwrap().trailers().unwrap().clone()
    }
}

#[tokio::test]
async fn head_answers_have_a_length_and_no_body() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| async { text(200, "twelve bytes") })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..3 {
        let response = client.send(request("HEAD", "/", "")).await;
        assert_eq!(response.headers()["content-length"], "12");
        assert_eq!(read(response).await, "");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_when_an_instance_takes_the_body() {
    let platform = Platform::start().await;
    let instance = instance(handler(|request| async move {
        assert!(!request.headers().contains_key("expect"));
        let body = request.into_body().collect(100).await.unwrap();
        text(200, format!("got {}", body.len()))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let head =
        format!("POST / HTTP/1.1\r\nhost: {HOST}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut buffer = [0; 1024];
    let count = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..count], b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"abc").await.unwrap();
    let count = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..count].ends_with(b"got 3"), "{}", String::from_utf8_lossy(&buffer[..count]));
}

#[tokio::test]
async fn a_large_body_streams_both_ways_without_being_held() {
    const PIECES: usize = 512;
    let platform = Platform::start().await;
    let instance =
        instance(handler(|request| async move { Response::new(Body::new(request.into_body())) })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    tokio::spawn(async move {
        for _ in 0..PIECES {
            sender.send_data(Bytes::from(vec![7; 128 * 1024])).await.unwrap();
            count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    });
    let mut response = client.send(request("POST", "/", Body::new(body))).await;
    // As long as nobody reads the echo, the upload stops when the buffers on the way are full.
    let mut before = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now == before {
            break;
        }
        before = now;
    }
    assert!(before < PIECES, "64 MiB went into buffers");
    let mut received = 0;
    while let Some(frame) = response.frame().await {
        received += frame.unwrap().into_data().unwrap().len();
    }
    assert_eq!(received, PIECES * 128 * 1024);
    platform.pool.until_idle().await;
}

fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/statm").ok()?;
    Some(status.split_whitespace().nth(1)?.parse::<u64>().ok()? * 4096)
}

/// A quarter of a gibibyte each way here; at length: `SAS_BODY_BYTES=10737418240 cargo test --release -p sas-router --test protocols
/// memory -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_stays_flat_however_large_a_body_is() {
    const PIECE: usize = 128 * 1024;
    let bytes =
        std::env::var("SAS_BODY_BYTES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64 << 28);
    let platform = Platform::start().await;
    let instance =
        instance(handler(|request| async move { Response::new(Body::new(request.into_body())) })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut rule = sas_core::RouteRule::new(
        sas_core::TenantKey(1),
        sas_core::RouteAction::Split(vec![sas_core::Split::new(platform.revision, 100)]),
    );
    rule.timeout = Duration::from_secs(3_600);
    set(&platform.table, HOST, vec![rule]);
    let mut client = Client::connect(platform.address()).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let pieces = bytes / PIECE as u64;
    tokio::spawn(async move {
        let piece = Bytes::from(vec![7; PIECE]);
        for _ in 0..pieces {
            sender.send_data(piece.clone()).await.unwrap();
        }
    });
    let began = Instant::now();
    let mut response = client.0.send_request(request("POST", "/", Body::new(body))).await.unwrap();
    let (mut received, mut first, mut most) = (0_u64, None, 0);
    while let Some(frame) = response.frame().await {
        received += frame.unwrap().into_data().unwrap().len() as u64;
        // The buffers of the way have filled by then.
        if received >= bytes / 8 {
            let now = resident().unwrap_or(0);
            first.get_or_insert(now);
            most = most.max(now);
        }
    }
    assert_eq!(received, pieces * PIECE as u64);
    let grown = most.saturating_sub(first.unwrap_or(0));
    println!(
        "{received} bytes each way in {:.1?}; resident memory {} KiB after an eighth, at most {} KiB more after that",
        began.elapsed(),
        first.unwrap_or(0) >> 10,
        grown >> 10,
    );
    assert!(grown < 64 << 20, "memory grew by {grown} bytes");
    platform.pool.until_idle().await;
}

async fn websocket(address: std::net::SocketAddr) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(format!("ws://{HOST}/chat"), stream).await.unwrap().0
}

#[tokio::test]
async fn a_websocket_holds_its_slot_until_it_is_closed() {
    let platform = Platform::start().await;
    let (address, mut endings) = echo("").await;
    platform.pool.add_at(platform.revision, address);
    let mut socket = websocket(platform.address()).await;
    for size in [1, 200, 70_000] {
        let message = Message::binary(vec![5; size]);
        socket.send(message.clone()).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), message);
        assert_eq!(platform.pool.leases(), 1);
    }
    socket.close(None).await.unwrap();
    while socket.next().await.is_some() {}
    endings.recv().await.unwrap();
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_drain_closes_websockets_between_two_frames_with_1001() {
    let platform = Platform::start().await;
    let (address, mut endings) = echo("").await;
    platform.pool.add_at(platform.revision, address);
    let mut sockets = Vec::new();
    for n in 0..20 {
        let mut socket = websocket(platform.address()).await;
        socket.send(Message::text(n.to_string())).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(n.to_string()));
        sockets.push(socket);
    }
    let reading: Vec<_> = sockets
        .into_iter()
        .map(|mut socket| {
            tokio::spawn(async move {
                let mut code = None;
                while let Some(message) = socket.next().await {
                    if let Message::Close(Some(close)) = message.unwrap() {
                        code = Some(close.code);
                    }
                }
                code
            })
        })
        .collect();
    platform.server.shutdown(deadline()).await;
    for one in reading {
        assert_eq!(one.await.unwrap(), Some(CloseCode::Away));
        assert_eq!(endings.recv().await.unwrap(), Some(1001), "the client's answer reached the instance");
    }
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_drain_waits_for_the_frame_that_is_under_way() {
    let platform = Platform::start().await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let (go_on, going_on) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _count = stream.read(&mut head).await.unwrap();
        let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.unwrap();
        // A text frame of four bytes, of which two come late.
        stream.write_all(&[0x81, 4, b'h', b'a']).await.unwrap();
        going_on.await.unwrap();
        stream.write_all(b"lf\x81\x04next").await.unwrap();
        let mut rest = Vec::new();
        let _ended = stream.read_to_end(&mut rest).await;
    });
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let ask = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"ha") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
    }
    let draining = tokio::spawn(async move { platform.server.shutdown(deadline()).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    go_on.send(()).unwrap();
    seen.clear();
    while !seen.ends_with(&[0x88, 2, 0x03, 0xe9]) {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{seen:?}");
    }
    assert_eq!(seen, *b"lf\x88\x02\x03\xe9", "the frame is whole, and none comes after it");
    drop(stream);
    draining.await.unwrap();
}

#[tokio::test]
async fn any_protocol_can_be_switched_to() {
    let platform = Platform::start().await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = [0; 4096];
        let _count = stream.read(&mut head).await.unwrap();
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: shout\r\nconnection: upgrade\r\n\r\n")
            .await
            .unwrap();
        let mut words = [0; 11];
        stream.read_exact(&mut words).await.unwrap();
        stream.write_all(&words.to_ascii_uppercase()).await.unwrap();
    });
    let mut client = Client::connect(platform.address()).await;
    let mut ask = get("/");
    ask.headers_mut().insert("upgrade", "shout".parse().unwrap());
    ask.headers_mut().insert("connection", "upgrade".parse().unwrap());
    let response = client.send(ask).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["upgrade"]),
        (101, &"shout".parse().unwrap())
    );
    assert!(response.headers().contains_key("x-request-id"));
    let mut io = hyper_util::rt::TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    // Whatever it looks like, it is no request.
    io.write_all(b"get /?\"<a>\xe9").await.unwrap();
    let mut heard = Vec::new();
    io.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"GET /?\"<A>\xe9");
    drop(io);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn an_instance_that_does_not_want_to_switch_just_answers() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| async { text(426, "no") })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let mut ask = get("/");
    ask.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    ask.headers_mut().insert("connection", "upgrade".parse().unwrap());
    let response = client.send(ask).await;
    assert_eq!(response.status(), 426);
    assert_eq!(read(response).await, "no");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn an_event_stream_ends_in_order_when_the_platform_drains() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| async {
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        tokio::spawn(async move {
            for n in 0.. {
                if sender.send_data(format!("data: {n}\n\n").into()).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
        response
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let mut response = client.send(get("/events")).await;
    let mut seen = response.frame().await.unwrap().unwrap().into_data().unwrap().to_vec();
    let reading = tokio::spawn(async move {
        while let Some(frame) = response.frame().await {
            seen.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
        seen
    });
    platform.server.shutdown(deadline()).await;
    let seen = reading.await.unwrap();
    assert!(seen.ends_with(b"\n\n"), "a clean end, after an event: {}", String::from_utf8_lossy(&seen));
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn http2_is_told_to_go_away_and_its_streams_finish() {
    let platform = Platform::start().await;
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let instance = instance(handler(move |_| {
        let released = Arc::clone(&released);
        async move {
            released.notified().await;
            text(200, "finished")
        }
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = http2(platform.address()).await;
    let asking = tokio::spawn({
        let mut client = client.clone();
        async move { read(client.send_request(over_http2("GET", "/", "")).await.unwrap()).await }
    });
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let draining = tokio::spawn(async move { platform.server.shutdown(deadline()).await });
    // The GOAWAY is there when new streams are refused.
    let by = deadline();
    while client.ready().await.is_ok() && !client.is_closed() {
        assert!(Instant::now() < by, "no GOAWAY came");
        let refused = client.send_request(over_http2("GET", "/", ""));
        if tokio::time::timeout(Duration::from_millis(50), refused).await.is_ok_and(|sent| sent.is_err()) {
            break;
        }
    }
    release.notify_waiters();
    release.notify_one();
    assert_eq!(asking.await.unwrap(), "finished");
    drop(client);
    draining.await.unwrap();
}
