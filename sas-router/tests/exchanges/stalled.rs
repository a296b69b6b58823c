//! Peers that take nothing: whatever they leave undone, the slot is free when the time is over.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use sas_core::{Body, BoxError, Handler, Protocol, Response, RouteAction, RouteRule, Split, TenantKey};
use sas_router::{GatewayConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{frames, support::*};

/// As much as anybody takes, piece by piece; counts those that are alive.
struct Endless(Arc<AtomicUsize>);

impl Endless {
    fn body(alive: &Arc<AtomicUsize>) -> Body {
        alive.fetch_add(1, Ordering::SeqCst);
        Body::new(Self(Arc::clone(alive)))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BoxError;
    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 16 * 1024])))))
    }
}

fn endless(kind: &'static str) -> (Arc<dyn Handler>, Arc<AtomicUsize>) {
    let alive = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&alive);
    let handler = handler(move |_| {
        let mut response = Response::new(Endless::body(&counted));
        response.headers_mut().insert("content-type", http::HeaderValue::from_static(kind));
        async { response }
    });
    (handler, alive)
}

/// A platform whose requests have `time`, and whose clients may take nothing for `stall`.
async fn limited(time: Duration, stall: Duration, spec: sas_core::RevisionSpec) -> Platform {
    let mut server = ServerConfig::default();
    server.write_timeout = stall;
    let platform = Platform::with(spec, GatewayConfig::default(), server).await;
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.timeout = time;
    set(&platform.table, HOST, vec![rule]);
    platform
}

/// Waits until no slot is taken, and says how long that took.
async fn freed(platform: &Platform, since: Instant) -> Duration {
    while platform.pool.leases() > 0 {
        assert!(since.elapsed() < Duration::from_secs(20), "{} slots are held", platform.pool.leases());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    since.elapsed()
}

async fn taken(platform: &Platform, slots: usize) {
    let since = Instant::now();
    while platform.pool.leases() < slots {
        assert!(since.elapsed() < Duration::from_secs(10), "{} slots are taken", platform.pool.leases());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A connection of a client that gives each stream a window of `window` bytes.
async fn h2_client(address: SocketAddr, window: u32) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        h2::client::Builder::new().initial_window_size(window).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn asking() -> http::Request<()> {
    http::Request::get(format!("http://{HOST}/")).body(()).unwrap()
}

const SOON: Duration = Duration::from_millis(600);
const LONG: Duration = Duration::from_secs(600);
/// What a loaded machine may take longer.
const SLACK: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_window_of_zero_holds_no_slot_beyond_the_deadline() {
    // Twenty heads must be answered in that time, also beside other work.
    const SOON: Duration = Duration::from_secs(2);
    for socket in [false, true] {
        let platform = limited(SOON, LONG, spec()).await;
        let (endless, alive) = endless("application/octet-stream");
        let instance = instance(Arc::clone(&endless)).await;
        match socket {
            true => drop(platform.pool.add_at(platform.revision, instance.local_addr())),
            false => drop(platform.pool.add_inside(platform.revision, endless)),
        }
        let began = Instant::now();
        let mut client = h2_client(platform.address(), 0).await;
        let mut streams = Vec::new();
        for _ in 0..20 {
            client = client.ready().await.unwrap();
            streams.push(client.send_request(asking(), true).unwrap().0);
        }
        let mut bodies = Vec::new();
        for stream in streams {
            let answer = stream.await.unwrap();
            assert_eq!(answer.status(), 200);
            bodies.push(answer.into_body());
        }
        let took = freed(&platform, began).await;
        assert!(took >= SOON && took < SOON + SLACK, "{took:?}");
        for mut body in bodies {
            let reset = body.data().await.expect("a reset").unwrap_err();
            assert!(reset.is_reset(), "{reset}");
        }
        // The connection itself is sound.
        let mut window = client.ready().await.unwrap();
        assert_eq!(window.send_request(asking(), true).unwrap().0.await.unwrap().status(), 200);
        drop(window);
        let since = Instant::now();
        while alive.load(Ordering::SeqCst) > 0 {
            assert!(since.elapsed() < SLACK, "the instance still writes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn an_event_stream_that_nobody_takes_is_ended_and_a_quiet_one_is_not() {
    let platform = limited(LONG, SOON, spec()).await;
    let (endless, _) = endless("text/event-stream");
    platform.pool.add_inside(platform.revision, endless);
    let began = Instant::now();
    let mut client = h2_client(platform.address(), 0).await;
    let stalled = client.send_request(asking(), true).unwrap().0.await.unwrap();
    assert!(freed(&platform, began).await < SOON + SLACK);
    drop(stalled);

    let platform = limited(LONG, SOON, spec()).await;
    platform.pool.add_inside(
        platform.revision,
        handler(|_| async {
            let (mut sender, body) = http_body_util::channel::Channel::<Bytes, BoxError>::new(1);
            tokio::spawn(async move {
                sender.send_data(Bytes::from_static(b"data: 1\n\n")).await.unwrap();
                tokio::time::sleep(3 * SOON).await;
                let _gone = sender.send_data(Bytes::from_static(b"data: 2\n\n")).await;
            });
            let mut response = Response::new(Body::new(body));
            response
                .headers_mut()
                .insert("content-type", http::HeaderValue::from_static("text/event-stream"));
            response
        }),
    );
    let mut client = h2_client(platform.address(), 65_535).await;
    let mut body = client.send_request(asking(), true).unwrap().0.await.unwrap().into_body();
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        all.extend_from_slice(&data.unwrap());
    }
    assert_eq!(all, b"data: 1\n\ndata: 2\n\n");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_ended_at_the_deadline_of_its_request() {
    let platform = limited(SOON, LONG, spec()).await;
    let (endless, _) = endless("application/octet-stream");
    platform.pool.add_inside(platform.revision, endless);
    let began = Instant::now();
    let mut silent = TcpStream::connect(platform.address()).await.unwrap();
    silent.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    // Another one takes a little now and then, which is no stall.
    let mut dripping = TcpStream::connect(platform.address()).await.unwrap();
    dripping.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    let drip = tokio::spawn(async move {
        let mut some = [0; 4096];
        while let Ok(1..) = dripping.read(&mut some).await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    taken(&platform, 2).await;
    let took = freed(&platform, began).await;
    assert!(took >= SOON && took < SOON + SLACK, "{took:?}");
    drip.abort();
    // It was cut, not kept: what is in the kernel's buffers is all that there is.
    let mut rest = Vec::new();
    let _reset = tokio::time::timeout(SLACK, silent.read_to_end(&mut rest)).await.expect("the end");
}

#[tokio::test]
async fn a_connection_that_takes_no_byte_is_ended_with_all_its_streams() {
    let platform = limited(LONG, SOON, spec()).await;
    let (endless, alive) = endless("text/event-stream");
    platform.pool.add_inside(platform.revision, endless);
    let began = Instant::now();
    // Endless windows, and nobody who reads the socket.
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    let mut hello = frames::PREFACE.to_vec();
    let window = 0x7fff_0000_u32.to_be_bytes();
    hello.extend(frames::frame(frames::SETTINGS, 0, 0, &[&[0, 4], &window[..]].concat()));
    hello.extend(frames::frame(frames::WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes()));
    for id in 0..10 {
        hello.extend(frames::ask(2 * id + 1));
    }
    stream.write_all(&hello).await.unwrap();
    taken(&platform, 10).await;
    assert!(freed(&platform, began).await < SOON + SLACK);
    let since = Instant::now();
    while alive.load(Ordering::SeqCst) + platform.server.connections() > 0 {
        assert!(since.elapsed() < SLACK, "the connection is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// An upload of which nobody takes more than a bit.
async fn stuck_upload(protocol: Protocol, instance: SocketAddr) {
    let mut spec = spec();
    spec.protocol = protocol;
    let platform = limited(SOON, LONG, spec).await;
    platform.pool.add_at(platform.revision, instance);
    let alive = Arc::<AtomicUsize>::default();
    let request = http::Request::post("/").header("host", HOST).body(Endless::body(&alive)).unwrap();
    let began = Instant::now();
    let response = platform.gateway.handle(request).await;
    let status = response.status();
    drop(response.into_body().collect(1 << 20).await);
    assert!(status == 504 || status == 200, "{status}");
    assert!(freed(&platform, began).await < SOON + SLACK);
    while alive.load(Ordering::SeqCst) > 0 {
        assert!(began.elapsed() < SOON + SLACK, "the upload is still held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_instance_that_takes_no_upload_holds_neither_slot_nor_client() {
    // HTTP/2, without a window; one that answers, and one that does not.
    for answers in [false, true] {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::Builder::new()
                .initial_window_size(0)
                .handshake::<_, Bytes>(stream)
                .await
                .unwrap();
            let mut kept = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if answers {
                    let response = http::Response::new(());
                    kept.push(respond.send_response(response, false).unwrap());
                }
                std::mem::forget((request, respond));
            }
        });
        stuck_upload(Protocol::H2c, address).await;
    }
    // HTTP/1.1: it reads the head and no more, and answers without an end.
    for answer in [
        "",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    ] {
        let listener = TcpListener::bind(loopback()).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 200]).await.unwrap(), 0);
            stream.write_all(answer.as_bytes()).await.unwrap();
            tokio::time::sleep(LONG).await;
        });
        stuck_upload(Protocol::Http1, address).await;
    }
}
