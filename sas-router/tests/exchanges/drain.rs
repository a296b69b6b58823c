//! What lives long when an instance drains, or a listener: told in order, at the deadline ended by force, and counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, Protocol, Response};
use sas_router::{GatewayConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::support::*;

/// A platform that counts.
async fn counting() -> (Platform, Arc<Counts>) {
    let (counts, recorder) = Counts::recorder();
    let (mut gateway, mut server) = (GatewayConfig::default(), ServerConfig::default());
    gateway.recorder = recorder.clone();
    server.recorder = recorder;
    (Platform::with(spec(), gateway, server).await, counts)
}

async fn counted(counts: &Counts, kind: &str, expected: u64) {
    let by = deadline();
    while counts.drained(kind) < expected {
        assert!(Instant::now() < by, "{kind}: {} of {expected}", counts.drained(kind));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(counts.drained(kind), expected, "{kind}");
}

/// An instance that agrees to switch protocols, says `first`, and then nothing.
async fn switches(protocol: &'static str, first: &'static [u8]) -> std::net::SocketAddr {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _count = stream.read(&mut head).await.unwrap();
                let answer = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
                stream.write_all(first).await.unwrap();
                let mut rest = Vec::new();
                let _ended = stream.read_to_end(&mut rest).await;
            });
        }
    });
    address
}

/// A client that asked to switch and has read `first`.
async fn switched(platform: &Platform, protocol: &str, first: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let ask = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nupgrade: {protocol}\r\nconnection: upgrade\r\n\r\n");
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(first) || !seen.starts_with(b"HTTP/1.1 101") {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    stream
}

async fn ends(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let _reset = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.expect("it is cut");
}

#[tokio::test]
async fn a_draining_instance_closes_its_websockets_and_leaves_those_of_others() {
    let (platform, counts) = counting().await;
    let ((leaving_at, mut left), (staying_at, _stays)) = (echo("leaving: ").await, echo("staying: ").await);
    let leaving = platform.pool.add_at(platform.revision, leaving_at);
    platform.pool.add_at(platform.revision, staying_at);
    let (mut closing, mut sockets) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let stream = TcpStream::connect(platform.address()).await.unwrap();
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("ws://{HOST}/chat"), stream).await.unwrap();
        socket.send(Message::text("who")).await.unwrap();
        match socket.next().await.unwrap().unwrap().into_text().unwrap().as_str() {
            "leaving: who" => closing.push(socket),
            _ => sockets.push(socket),
        }
    }
    assert_eq!((closing.len(), sockets.len()), (2, 2));
    platform.pool.drain_instance(platform.revision, leaving, Instant::now() + Duration::from_secs(60));
    for socket in &mut closing {
        let told = timeout(Duration::from_secs(20), socket.next()).await.expect("long before the deadline");
        let Some(Ok(Message::Close(Some(close)))) = told else { panic!("{told:?}") };
        assert_eq!(close.code, CloseCode::Away);
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    }
    for _ in 0..2 {
        assert_eq!(left.recv().await.unwrap(), Some(1001), "the client's answer reached the instance");
    }
    counted(&counts, "websocket", 2).await;
    for socket in &mut sockets {
        socket.send(Message::text("still here")).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text("staying: still here"));
    }
    assert_eq!(platform.pool.leases(), 2, "the slots of the others are held on");
    drop(sockets);
    platform.pool.until_idle().await;
    assert_eq!(counts.drained("forced"), 0);
}

#[tokio::test]
async fn at_the_deadline_of_its_instance_a_websocket_is_cut_within_its_frame() {
    let (platform, counts) = counting().await;
    // A frame of four bytes of which two never come.
    let address = switches("websocket", &[0x81, 4, b'h', b'a']).await;
    let instance = platform.pool.add_at(platform.revision, address);
    let mut stream = switched(&platform, "websocket", b"ha").await;
    platform.pool.drain_instance(platform.revision, instance, Instant::now() + Duration::from_millis(1_500));
    ends(&mut stream).await;
    counted(&counts, "forced", 1).await;
    assert_eq!(counts.drained("websocket"), 0);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn other_protocols_go_on_until_the_deadline_of_their_instance() {
    let (platform, counts) = counting().await;
    let instance = platform.pool.add_at(platform.revision, switches("shout", b"hey").await);
    let mut stream = switched(&platform, "shout", b"hey").await;
    let until = Instant::now() + Duration::from_millis(1_500);
    platform.pool.drain_instance(platform.revision, instance, until);
    ends(&mut stream).await;
    assert!(Instant::now() >= until, "it had its time");
    counted(&counts, "forced", 1).await;
    platform.pool.until_idle().await;
}

/// Events, one every 20 ms; or half of one, and then nothing.
fn events(whole: bool) -> Arc<dyn sas_core::Handler> {
    handler(move |_| async move {
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        tokio::spawn(async move {
            if !whole {
                let _gone = sender.send_data("data: ha".into()).await;
                std::future::pending::<()>().await;
            }
            while sender.send_data("data: tick\n\n".into()).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut response = Response::new(Body::new(body));
        response.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
        response
    })
}

#[tokio::test]
async fn a_draining_instance_ends_its_event_streams_after_an_event() {
    let (platform, counts) = counting().await;
    let (first, second) = (instance(events(true)).await, instance(events(true)).await);
    let leaving = platform.pool.add_at(platform.revision, first.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let mut response = client.send(get("/events")).await;
    platform.pool.add_at(platform.revision, second.local_addr());
    platform.pool.drain_instance(platform.revision, leaving, Instant::now() + Duration::from_secs(60));
    let mut other = Client::connect(platform.address()).await;
    let mut staying = other.send(get("/events")).await;
    let mut seen = Vec::new();
    let reading = async {
        while let Some(frame) = response.frame().await {
            seen.extend_from_slice(&frame.expect("a clean end").into_data().unwrap());
        }
    };
    timeout(Duration::from_secs(20), reading).await.expect("it ends long before the deadline");
    assert!(seen.ends_with(b"tick\n\n"), "{}", String::from_utf8_lossy(&seen));
    counted(&counts, "event_stream", 1).await;
    for _ in 0..20 {
        staying.frame().await.unwrap().expect("the stream of another instance goes on");
    }
    drop(staying);
    drop(other);
    platform.pool.until_idle().await;
    assert_eq!(counts.drained("forced"), 0);
}

#[tokio::test]
async fn an_event_that_never_ends_is_cut_at_the_deadline_of_its_instance() {
    let (platform, counts) = counting().await;
    let source = instance(events(false)).await;
    let leaving = platform.pool.add_at(platform.revision, source.local_addr());
    let mut response = Client::connect(platform.address()).await.send(get("/events")).await;
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "data: ha");
    platform.pool.drain_instance(platform.revision, leaving, Instant::now() + Duration::from_millis(1_500));
    let cut = timeout(Duration::from_secs(20), response.frame()).await.expect("it is cut");
    assert!(matches!(cut, Some(Err(_))), "never as if it were complete: {cut:?}");
    counted(&counts, "forced", 1).await;
    assert_eq!(counts.drained("event_stream"), 0);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_draining_http2_instance_finishes_its_streams_and_gets_no_more() {
    let mut spec = spec();
    spec.protocol = Protocol::H2c;
    let platform = Platform::with(spec, GatewayConfig::default(), ServerConfig::default()).await;
    let release = Arc::new(tokio::sync::Notify::new());
    let released = Arc::clone(&release);
    let first = instance(handler(move |_| {
        let released = Arc::clone(&released);
        async move {
            released.notified().await;
            text(200, "first")
        }
    }))
    .await;
    let second = instance(handler(|_| async { text(200, "second") })).await;
    let leaving = platform.pool.add_at(platform.revision, first.local_addr());
    let address = platform.address();
    let asking: Vec<_> = (0..3)
        .map(|_| tokio::spawn(async move { read(Client::connect(address).await.send(get("/")).await).await }))
        .collect();
    while platform.pool.leases() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.pool.drain_instance(platform.revision, leaving, Instant::now() + Duration::from_secs(60));
    platform.pool.add_at(platform.revision, second.local_addr());
    let mut client = Client::connect(address).await;
    for _ in 0..5 {
        assert_eq!(read(client.send(get("/")).await).await, "second");
    }
    assert_eq!(platform.pool.leases(), 3, "its streams are still there");
    for _ in 0..3 {
        release.notify_one();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for one in asking {
        assert_eq!(one.await.unwrap(), "first");
    }
    platform.pool.until_idle().await;
    // The connection to it is given back in order: the instance can end without cutting anything.
    timeout(Duration::from_secs(20), first.shutdown(deadline())).await.expect("nothing holds it");
}

#[tokio::test]
async fn a_listener_counts_what_it_tells_to_go_and_what_it_has_to_cut() {
    let (platform, counts) = counting().await;
    platform.pool.add_inside(platform.revision, handler(|_| std::future::pending()));
    let stream = TcpStream::connect(platform.address()).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut http2, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let ask = http::Request::get(format!("http://{HOST}/")).body(Body::empty()).unwrap();
    let asking = tokio::spawn(async move { http2.send_request(ask).await.map(|_| ()) });
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.server.shutdown(Instant::now() + Duration::from_millis(200)).await;
    assert!(asking.await.unwrap().is_err(), "its stream was cut");
    counted(&counts, "http2", 1).await;
    counted(&counts, "forced", 1).await;
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn an_idle_server_shuts_down_at_once_every_time() {
    let mut slowest = Duration::ZERO;
    for round in 0..20_u64 {
        let platform = Platform::start().await;
        platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
        if round % 2 == 0 {
            let mut client = Client::connect(platform.address()).await;
            assert_eq!(client.send(get("/")).await.status(), 200);
        }
        // Anywhere within the period of the look at connections.
        tokio::time::sleep(Duration::from_millis(3 * round)).await;
        let began = Instant::now();
        platform.server.shutdown(deadline()).await;
        slowest = slowest.max(began.elapsed());
    }
    assert!(slowest < Duration::from_millis(100), "{slowest:?}");
}

/// What the kernel took for a server is answered by nobody else: a close before its bytes are read would be a reset.
#[tokio::test]
async fn a_connection_that_was_just_taken_gets_its_first_answer_although_the_server_drains() {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    while platform.server.connections() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut silent = TcpStream::connect(platform.address()).await.unwrap();
    while platform.server.connections() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ask = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    };
    let began = Instant::now();
    let (answer, ()) = tokio::join!(ask, platform.server.shutdown(deadline()));
    let answer = answer.expect("an answer, and no reset");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("connection: close"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(3), "who says nothing is waited for briefly");
    ends(&mut silent).await;
}

/// The kernel takes connections before the server does. When it closes its listener, those that it has not taken are reset.
#[tokio::test]
async fn connections_that_the_kernel_took_are_answered_although_the_server_never_came_to_take_them() {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
    // Nothing else runs on this thread meanwhile.
    let mut asking = Vec::new();
    for _ in 0..20 {
        let mut stream = std::net::TcpStream::connect(platform.address()).unwrap();
        std::io::Write::write_all(&mut stream, format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
            .unwrap();
        stream.set_nonblocking(true).unwrap();
        asking.push(TcpStream::from_std(stream).unwrap());
    }
    let answers = async {
        for mut stream in asking {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("no reset");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    };
    tokio::join!(answers, platform.server.shutdown(deadline()));
    assert!(TcpStream::connect(platform.address()).await.is_err(), "nobody listens any more");
}

/// A client of HTTP/2 that goes on asking while a server goes away learns of each request whether it was begun with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_http2_learn_which_streams_a_server_that_went_away_has_not_begun_with() {
    let (mut answered, mut unprocessed) = (0, 0);
    for _ in 0..30 {
        let platform = Platform::start().await;
        platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
        let mut clients = tokio::task::JoinSet::new();
        let stream = TcpStream::connect(platform.address()).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        let driving = tokio::spawn(connection);
        for _ in 0..8 {
            let sender = sender.clone();
            clients.spawn(async move {
                let mut counts = (0, 0);
                while let Ok(mut sender) = sender.clone().ready().await {
                    let ask = http::Request::get(format!("http://{HOST}/")).body(()).unwrap();
                    let Ok((response, _)) = sender.send_request(ask, true) else { break };
                    match response.await {
                        Ok(response) => {
                            assert_eq!(response.status(), 200);
                            counts.0 += 1;
                        }
                        Err(error) => {
                            assert!(error.is_go_away() && error.is_remote(), "{error:?}");
                            counts.1 += 1;
                        }
                    }
                }
                counts
            });
        }
        drop(sender);
        tokio::time::sleep(Duration::from_millis(10)).await;
        platform.server.shutdown(deadline()).await;
        for (ok, left) in clients.join_all().await {
            answered += ok;
            unprocessed += left;
        }
        driving.await.unwrap().ok();
    }
    assert!(answered > 0, "{answered} answered, {unprocessed} not begun with");
}
