//! HTTP/2 as no sane client speaks it (RFC 9113): each case ends the stream or the connection, as the specification
//! says, and nobody else notices.

use std::{net::SocketAddr, time::Duration};

use sas_router::{GatewayConfig, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{frames::*, support::*};

/// How the server took it.
#[derive(Debug, PartialEq)]
enum Taken {
    /// GOAWAY, or closed.
    ConnectionEnded,
    /// RST_STREAM.
    StreamReset,
    /// An answer.
    Answered,
    /// Nothing for two seconds.
    Silence,
}

async fn speak(address: SocketAddr, bytes: &[u8]) -> Taken {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let _refused = stream.write_all(&[&hello, bytes].concat()).await;
    listen(&mut stream).await
}

async fn listen(stream: &mut TcpStream) -> Taken {
    loop {
        let mut head = [0; 9];
        match tokio::time::timeout(Duration::from_secs(2), stream.read_exact(&mut head)).await {
            Err(_) => return Taken::Silence,
            Ok(Err(_)) => return Taken::ConnectionEnded,
            Ok(Ok(_)) => {}
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if stream.read_exact(&mut payload).await.is_err() {
            return Taken::ConnectionEnded;
        }
        match head[3] {
            GOAWAY => return Taken::ConnectionEnded,
            RST_STREAM => return Taken::StreamReset,
            HEADERS => return Taken::Answered,
            _ => {}
        }
    }
}

async fn served() -> Platform {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "ok") }));
    platform
}

#[tokio::test]
async fn what_is_malformed_ends_its_stream_or_the_connection() {
    use Taken::{Answered, ConnectionEnded, StreamReset};
    let platform = served().await;
    let long = vec![0; 20_000];
    let cases: Vec<(&str, Vec<u8>, &[Taken])> = vec![
        ("a sound request", ask(1), &[Answered]),
        ("a frame that is too large", frame(DATA, 0, 1, &long), &[ConnectionEnded]),
        ("data on stream 0", frame(DATA, 0, 0, b"x"), &[ConnectionEnded]),
        ("data on an idle stream", frame(DATA, 0, 5, b"x"), &[ConnectionEnded]),
        (
            "headers on stream 0",
            frame(HEADERS, END_STREAM | END_HEADERS, 0, &block(&GET)),
            &[ConnectionEnded],
        ),
        ("a stream of the server's", ask(2), &[ConnectionEnded]),
        ("a stream number that falls", [ask(5), ask(3)].concat(), &[ConnectionEnded, Answered]),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[]), &[ConnectionEnded]),
        (
            "another frame between headers and continuation",
            [frame(HEADERS, END_STREAM, 1, &block(&GET)), frame(PING, 0, 0, &[0; 8])].concat(),
            &[ConnectionEnded],
        ),
        (
            "a header block that is no HPACK",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0xff; 20]),
            &[ConnectionEnded],
        ),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), &[ConnectionEnded]),
        ("settings of no whole number", frame(SETTINGS, 0, 0, &[0; 5]), &[ConnectionEnded]),
        ("an acknowledgement with a payload", frame(SETTINGS, 1, 0, &[0; 6]), &[ConnectionEnded]),
        (
            "a window that is too large",
            frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]),
            &[ConnectionEnded],
        ),
        ("a frame size that is not allowed", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), &[ConnectionEnded]),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8]), &[ConnectionEnded]),
        ("a ping of seven bytes", frame(PING, 0, 0, &[0; 7]), &[ConnectionEnded]),
        ("a window update by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), &[ConnectionEnded]),
        (
            "a window beyond 2^31",
            [frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), ask(1)].concat(),
            &[ConnectionEnded],
        ),
        ("a reset of an idle stream", frame(RST_STREAM, 0, 1, &[0; 4]), &[ConnectionEnded]),
        (
            "a reset of three bytes",
            [ask(1), frame(RST_STREAM, 0, 1, &[0; 3])].concat(),
            &[ConnectionEnded, Answered],
        ),
        ("a priority on stream 0", frame(PRIORITY, 0, 0, &[0; 5]), &[ConnectionEnded]),
        ("a promise of the client's", frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 4]), &[ConnectionEnded]),
        ("a header in upper case", ask_with(&[("X-A", "b")]), &[StreamReset, ConnectionEnded]),
        ("an unknown pseudo header", ask_with(&[(":colour", "red")]), &[StreamReset, ConnectionEnded]),
        (
            "a pseudo header after others",
            ask_with(&[("x-a", "b"), (":method", "GET")]),
            &[StreamReset, ConnectionEnded],
        ),
        ("a connection header", ask_with(&[("connection", "close")]), &[StreamReset, ConnectionEnded]),
        ("a transfer coding", ask_with(&[("transfer-encoding", "chunked")]), &[StreamReset, ConnectionEnded]),
        ("te of gzip", ask_with(&[("te", "gzip")]), &[StreamReset, ConnectionEnded]),
        (
            "no path",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[GET[0], GET[1], GET[3]])),
            &[StreamReset, ConnectionEnded, Answered],
        ),
        (
            "two methods",
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(&[GET[0], GET[0], GET[1], GET[2], GET[3]])),
            &[StreamReset, ConnectionEnded],
        ),
        (
            "a length without a body",
            ask_with(&[("content-length", "5")]),
            &[StreamReset, ConnectionEnded, Answered],
        ),
    ];
    for (what, bytes, allowed) in cases {
        let taken = speak(platform.address(), &bytes).await;
        assert!(allowed.contains(&taken), "{what}: {taken:?}, not one of {allowed:?}");
    }
    let mut client = Client::connect(platform.address()).await;
    assert_eq!(read(client.send(get("/")).await).await, "ok", "others are served");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn resets_in_a_loop_end_the_connection() {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| std::future::pending()));
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let mut ended = false;
    for round in 0..2_000_u32 {
        let id = 2 * round + 1;
        let pair = [ask(id), frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())].concat();
        if stream.write_all(&pair).await.is_err() {
            ended = true;
            break;
        }
    }
    ended |= matches!(listen(&mut stream).await, Taken::ConnectionEnded);
    assert!(ended, "2,000 requests were begun and reset on one connection");
    drop(stream);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn more_streams_than_are_allowed_are_refused() {
    let mut config = ServerConfig::default();
    config.max_streams = 10;
    let platform = Platform::with(spec(), GatewayConfig::default(), config).await;
    platform.pool.add_inside(platform.revision, handler(|_| std::future::pending()));
    let many: Vec<u8> = (0..20).flat_map(|n| ask(2 * n + 1)).collect();
    let taken = speak(platform.address(), &many).await;
    assert!(matches!(taken, Taken::StreamReset | Taken::ConnectionEnded), "{taken:?}");
    platform.pool.until_idle().await;
    assert!(platform.pool.outcomes().len() <= 10, "{} reached an instance", platform.pool.outcomes().len());
}

#[tokio::test]
async fn headers_without_end_are_not_collected_for_ever() {
    let platform = served().await;
    let mut stream = TcpStream::connect(platform.address()).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    let value = "a".repeat(100);
    let filler = block(&[("x-filler", value.as_str()); 100]);
    let mut ended = stream.write_all(&frame(HEADERS, END_STREAM, 1, &block(&GET))).await.is_err();
    // Ten megabytes of continuation.
    for _ in 0..1_000 {
        if ended {
            break;
        }
        ended = stream.write_all(&frame(CONTINUATION, 0, 1, &filler)).await.is_err();
    }
    ended |= matches!(listen(&mut stream).await, Taken::ConnectionEnded);
    assert!(ended, "the flood was taken");
}
