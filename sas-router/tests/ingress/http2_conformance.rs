//! RFC 9113 and RFC 7541 in raw frames, as far as h2spec (`h2spec.rs`) does not ask: what must be taken, what must be
//! ignored, what ends its stream, and what ends the connection, with the error codes that the specification names.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{frames::*, support::*};

const PROTOCOL_ERROR: u32 = 1;
const FRAME_SIZE_ERROR: u32 = 6;
const COMPRESSION_ERROR: u32 = 9;
const ACK: u8 = 1;
const PADDED: u8 = 8;
const PRIORITIZED: u8 = 0x20;

/// What the peer sent.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Settings {
        ack: bool,
    },
    Headers {
        stream: u32,
        block: Vec<u8>,
    },
    Data {
        stream: u32,
        length: usize,
        end: bool,
    },
    Reset {
        stream: u32,
        code: u32,
    },
    Pong(Vec<u8>),
    Ping,
    GoAway {
        code: u32,
    },
    Window,
    Closed,
    /// Bytes that are no HTTP/2: the server took the client for one of HTTP/1.
    Http1,
    Other(u8),
}

struct Peer(TcpStream);

impl Peer {
    async fn connect(address: SocketAddr) -> Self {
        Self(TcpStream::connect(address).await.unwrap())
    }

    async fn greet(address: SocketAddr) -> Self {
        Self::greet_with(address, &frame(SETTINGS, 0, 0, &[])).await
    }

    async fn greet_with(address: SocketAddr, settings: &[u8]) -> Self {
        let mut peer = Self::connect(address).await;
        peer.say(&[PREFACE, settings].concat()).await;
        peer
    }

    async fn say(&mut self, bytes: &[u8]) {
        // A server that has hung up is seen when it is listened to.
        let _gone = self.0.write_all(bytes).await;
    }

    async fn next(&mut self) -> Said {
        timeout(Duration::from_secs(20), self.read()).await.expect("something within 20 s")
    }

    async fn read(&mut self) -> Said {
        let mut head = [0; 9];
        if self.0.read_exact(&mut head).await.is_err() {
            return Said::Closed;
        }
        if head.starts_with(b"HTTP/1.1") {
            return Said::Http1;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        if self.0.read_exact(&mut payload).await.is_err() {
            return Said::Closed;
        }
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        match head[3] {
            DATA => Said::Data { stream, length, end: head[4] & END_STREAM != 0 },
            HEADERS => Said::Headers { stream, block: payload },
            RST_STREAM => Said::Reset { stream, code: word(0) },
            SETTINGS => Said::Settings { ack: head[4] & ACK != 0 },
            PING if head[4] & ACK != 0 => Said::Pong(payload),
            PING => Said::Ping,
            GOAWAY => Said::GoAway { code: word(4) },
            WINDOW_UPDATE => Said::Window,
            other => Said::Other(other),
        }
    }

    /// The next thing said that is no housekeeping.
    async fn verdict(&mut self) -> Said {
        loop {
            match self.next().await {
                Said::Settings { .. } | Said::Window | Said::Ping => {}
                said => return said,
            }
        }
    }
}

/// What has to come of it.
#[derive(Clone, Copy, Debug)]
enum Must {
    /// The request on this stream is answered with 200.
    Answer(u32),
    /// The stream, or the connection, ends with one of these codes; or the connection is closed.
    EndStream(&'static [u32]),
    /// The connection ends with one of these codes, or is closed.
    EndConnection(&'static [u32]),
    /// A ping that comes afterwards is answered, and nothing else happens.
    Ignore,
    /// The request is refused with another status than 200, or its stream ends.
    Refuse,
}

/// Whether a header block begins with `:status: 200` of the static table, perhaps after a new size of the dynamic one.
fn is_ok(block: &[u8]) -> bool {
    matches!(block, [0x88, ..] | [0x20, 0x88, ..])
}

async fn judge(address: SocketAddr, what: &str, bytes: &[u8], must: Must) {
    let mut peer = Peer::greet(address).await;
    peer.say(bytes).await;
    if matches!(must, Must::Ignore) {
        peer.say(&frame(PING, 0, 0, b"sentinel")).await;
    }
    let said = peer.verdict().await;
    let right = match (must, &said) {
        (Must::Answer(on), Said::Headers { stream, block }) => *stream == on && is_ok(block),
        (Must::EndStream(codes), Said::Reset { code, .. } | Said::GoAway { code })
        | (Must::EndConnection(codes), Said::GoAway { code }) => codes.contains(code),
        (Must::EndStream(_) | Must::EndConnection(_), Said::Closed) => true,
        (Must::Ignore, Said::Pong(payload)) => payload == b"sentinel",
        (Must::Refuse, Said::Headers { block, .. }) => !is_ok(block),
        (Must::Refuse, Said::Reset { .. } | Said::GoAway { .. } | Said::Closed) => true,
        _ => false,
    };
    assert!(right, "{what}: {said:?} instead of {must:?}");
    if matches!(said, Said::GoAway { .. }) && matches!(must, Must::EndConnection(_)) {
        // RFC 9113, section 5.4.1: after the GOAWAY the connection is closed.
        while peer.next().await != Said::Closed {}
    }
}

/// A header block of a GET with more fields, and its frame.
fn asks(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let all: Vec<_> = GET.iter().chain(fields).copied().collect();
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(&all))
}

/// A POST whose body is to come.
fn begins(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    let post = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", HOST)];
    let all: Vec<_> = post.iter().chain(fields).copied().collect();
    frame(HEADERS, END_HEADERS, stream, &block(&all))
}

fn raw(stream: u32, block: &[u8]) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, block)
}

fn setting(id: u16, value: u32) -> Vec<u8> {
    let payload = [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &payload)
}

async fn served() -> Platform {
    let platform = Platform::start().await;
    let handler = handler(|request: sas_core::Request| async move {
        match request.into_body().collect(1 << 20).await {
            Ok(body) => text(200, format!("{} bytes", body.len())),
            Err(_) => text(400, "broken"),
        }
    });
    platform.pool.add_inside(platform.revision, handler);
    platform
}

type Case = (&'static str, Vec<u8>, Must);

async fn all(cases: Vec<Case>) {
    let platform = served().await;
    for (what, bytes, must) in cases {
        judge(platform.address(), what, &bytes, must).await;
    }
    let mut client = Client::connect(platform.address()).await;
    assert_eq!(read(client.send(get("/")).await).await, "0 bytes", "others are served");
    platform.pool.until_idle().await;
}

const ENDS: &[u32] = &[PROTOCOL_ERROR];
const SIZE: &[u32] = &[FRAME_SIZE_ERROR, PROTOCOL_ERROR];
const HPACK: &[u32] = &[COMPRESSION_ERROR, PROTOCOL_ERROR];

#[tokio::test]
async fn section_3_4_the_preface() {
    let platform = served().await;
    // The server's preface is a SETTINGS frame, before anything else.
    let mut peer = Peer::greet(platform.address()).await;
    assert_eq!(peer.next().await, Said::Settings { ack: false });
    while peer.next().await != (Said::Settings { ack: true }) {}
    // What is no preface is no HTTP/2.
    let mut peer = Peer::connect(platform.address()).await;
    peer.say(b"PRI * HTTP/2.0\r\n\r\nSX\r\n\r\n").await;
    let said = peer.verdict().await;
    assert!(matches!(said, Said::Http1 | Said::Closed | Said::GoAway { .. }), "{said:?}");
    // In pieces it is one all the same.
    let mut peer = Peer::connect(platform.address()).await;
    for piece in PREFACE.chunks(5) {
        peer.say(piece).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    peer.say(&[frame(SETTINGS, 0, 0, &[]), ask(1)].concat()).await;
    assert!(matches!(peer.verdict().await, Said::Headers { stream: 1, .. }));
}

#[tokio::test]
async fn section_4_frames() {
    let padded = |bytes: usize| {
        let value = "v".repeat(100);
        let fields: Vec<(&str, &str)> = vec![("x-filler", value.as_str()); bytes / 111];
        block(&GET.iter().chain(&fields).copied().collect::<Vec<_>>())
    };
    let big = padded(16_000);
    assert!(big.len() < 16_384);
    all(vec![
        ("4.1 an unknown type on a stream", frame(0xfa, 0xff, 7, b"anything"), Must::Ignore),
        ("4.2 a large header block in one frame", raw(1, &big), Must::Answer(1)),
        ("4.2 a SETTINGS frame beyond it", frame(SETTINGS, 0, 0, &[0; 16_386]), Must::EndConnection(SIZE)),
    ])
    .await;
}

#[tokio::test]
async fn section_5_1_states_of_streams() {
    let cancel = 8_u32.to_be_bytes();
    all(vec![
        ("idle: PRIORITY", frame(PRIORITY, 0, 9, &[0, 0, 0, 0, 1]), Must::Ignore),
        (
            "closed by a reset: another request is served",
            [begins(1, &[]), frame(RST_STREAM, 0, 1, &cancel), ask(3)].concat(),
            Must::Answer(3),
        ),
        (
            "closed by a reset: PRIORITY and WINDOW_UPDATE",
            [
                begins(1, &[]),
                frame(RST_STREAM, 0, 1, &cancel),
                frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]),
                frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 9]),
            ]
            .concat(),
            Must::Ignore,
        ),
        ("5.1.1 numbers with gaps", ask(101), Must::Answer(101)),
    ])
    .await;
}

#[tokio::test]
async fn section_6_1_to_6_4_data_headers_priority_reset() {
    let padded_headers = [&[4][..], &block(&GET), &[0; 4]].concat();
    let prioritized = [&[0, 0, 0, 0, 16][..], &block(&GET)].concat();
    all(vec![
        (
            "6.1 padded DATA",
            [begins(1, &[("content-length", "2")]), frame(DATA, END_STREAM | PADDED, 1, b"\x03ab\0\0\0")]
                .concat(),
            Must::Answer(1),
        ),
        (
            "6.2 padded HEADERS",
            frame(HEADERS, END_STREAM | END_HEADERS | PADDED, 1, &padded_headers),
            Must::Answer(1),
        ),
        (
            "6.2 HEADERS with a priority",
            frame(HEADERS, END_STREAM | END_HEADERS | PRIORITIZED, 1, &prioritized),
            Must::Answer(1),
        ),
        (
            "7 RST_STREAM with an unknown code",
            [begins(1, &[]), frame(RST_STREAM, 0, 1, &[0xff; 4])].concat(),
            Must::Ignore,
        ),
    ])
    .await;
}

#[tokio::test]
async fn section_6_5_settings() {
    all(vec![("6.5.2 no table for header compression", [setting(1, 0), ask(1)].concat(), Must::Answer(1))])
        .await;
}

#[tokio::test]
async fn section_6_8_goaway() {
    all(vec![(
        "6.8 a client that goes away still gets its answers",
        [ask(1), frame(GOAWAY, 0, 0, &[0; 8])].concat(),
        Must::Answer(1),
    )])
    .await;
}

#[tokio::test]
async fn section_6_9_flow_control() {
    let update = |stream: u32, by: u32| frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes());
    let platform = served().await;
    // A window of one byte: one byte comes, and after an update the next ones.
    let mut peer = Peer::greet_with(platform.address(), &setting(4, 1)).await;
    peer.say(&ask(1)).await;
    assert!(matches!(peer.verdict().await, Said::Headers { stream: 1, .. }));
    assert_eq!(peer.verdict().await, Said::Data { stream: 1, length: 1, end: false });
    peer.say(&[update(1, 2), frame(PING, 0, 0, b"sentinel")].concat()).await;
    let mut length = 0;
    loop {
        match peer.verdict().await {
            Said::Data { length: more, end: false, .. } => length += more,
            Said::Pong(_) if length == 2 => break,
            Said::Pong(_) => peer.say(&frame(PING, 0, 0, b"sentinel")).await,
            other => panic!("{other:?}"),
        }
    }
    // 6.9.2: a new initial window changes that of streams that are open, by the difference.
    peer.say(&setting(4, 100)).await;
    let mut rest = 0;
    loop {
        match peer.verdict().await {
            Said::Data { length: more, end, .. } => {
                rest += more;
                if end {
                    break;
                }
            }
            Said::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(1 + length + rest, "0 bytes".len());
    // A window of nothing holds everything back, and a negative one as well.
    let mut peer = Peer::greet_with(platform.address(), &setting(4, 3)).await;
    peer.say(&ask(1)).await;
    assert!(matches!(peer.verdict().await, Said::Headers { .. }));
    assert_eq!(peer.verdict().await, Said::Data { stream: 1, length: 3, end: false });
    peer.say(&[setting(4, 0), update(1, 3), frame(PING, 0, 0, b"sentinel")].concat()).await;
    assert_eq!(peer.verdict().await, Said::Pong(b"sentinel".to_vec()), "-3 and 3 is nothing");
    peer.say(&update(1, 4)).await;
    assert_eq!(peer.verdict().await, Said::Data { stream: 1, length: 4, end: true });
}

#[tokio::test]
async fn section_8_1_messages() {
    let length = |said: &'static str| begins(1, &[("content-length", said)]);
    let trailers = |fields: &[(&str, &str)]| frame(HEADERS, END_STREAM | END_HEADERS, 1, &block(fields));
    all(vec![
        (
            "8.1 trailers",
            [begins(1, &[]), frame(DATA, 0, 1, b"x"), trailers(&[("x-a", "b")])].concat(),
            Must::Answer(1),
        ),
        (
            // The stream should end; the h2 crate drops the field instead, so the instance never sees it.
            "8.1 a pseudo-header in trailers",
            [begins(1, &[]), trailers(&[(":method", "GET")])].concat(),
            Must::Answer(1),
        ),
        (
            "8.1.1 more than the length",
            [length("1"), frame(DATA, END_STREAM, 1, b"xyz")].concat(),
            Must::EndStream(ENDS),
        ),
        (
            "8.1.1 the length in two frames",
            [length("4"), frame(DATA, 0, 1, b"xy"), frame(DATA, END_STREAM, 1, b"xy")].concat(),
            Must::Answer(1),
        ),
        (
            "8.1.1 a length that is no number",
            [length("x"), frame(DATA, END_STREAM, 1, b"x")].concat(),
            Must::Refuse,
        ),
        (
            "8.1.1 two lengths",
            [
                begins(1, &[("content-length", "1"), ("content-length", "2")]),
                frame(DATA, END_STREAM, 1, b"x"),
            ]
            .concat(),
            Must::Refuse,
        ),
    ])
    .await;
}

#[tokio::test]
async fn section_8_2_and_8_3_fields() {
    let without = |at: usize| {
        let left: Vec<_> =
            GET.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, field)| *field).collect();
        raw(1, &block(&left))
    };
    let with_path = |path: &'static str| raw(1, &block(&[GET[0], GET[1], (":path", path), GET[3]]));
    all(vec![
        ("8.2 a name with a space", asks(1, &[("x test", "ok")]), Must::EndStream(ENDS)),
        ("8.2 a name of nothing", asks(1, &[("", "ok")]), Must::EndStream(ENDS)),
        ("8.2 a line break in a value", asks(1, &[("x-test", "a\r\nb: c")]), Must::EndStream(ENDS)),
        ("8.2 a NUL in a value", asks(1, &[("x-test", "a\0b")]), Must::EndStream(ENDS)),
        ("8.2.2 proxy-connection", asks(1, &[("proxy-connection", "keep-alive")]), Must::EndStream(ENDS)),
        ("8.2.2 keep-alive", asks(1, &[("keep-alive", "timeout=5")]), Must::EndStream(ENDS)),
        ("8.2.2 transfer-encoding", asks(1, &[("transfer-encoding", "chunked")]), Must::EndStream(ENDS)),
        ("8.2.2 upgrade", asks(1, &[("upgrade", "websocket")]), Must::EndStream(ENDS)),
        ("8.2.2 te of trailers", asks(1, &[("te", "trailers")]), Must::Answer(1)),
        ("8.2.3 a cookie in pieces", asks(1, &[("cookie", "a=b"), ("cookie", "c=d")]), Must::Answer(1)),
        ("8.3.1 no :path", without(2), Must::Refuse),
        ("8.3.1 no authority and no host", without(3), Must::Refuse),
        ("8.3.1 a :path without a slash", with_path("index.html"), Must::Refuse),
        ("8.3.1 a line break in :path", with_path("/ HTTP/1.1\r\nx: y"), Must::Refuse),
        (
            "8.3.1 a host that differs from the authority goes by the authority",
            asks(1, &[("host", "other.example.com")]),
            Must::Answer(1),
        ),
        ("8.5 CONNECT", raw(1, &block(&[(":method", "CONNECT"), (":authority", HOST)])), Must::Refuse),
    ])
    .await;
}

#[tokio::test]
async fn hpack_as_rfc_7541_has_it() {
    let literal = |bytes: &[u8]| raw(1, &[&block(&GET)[..], bytes].concat());
    // :method GET, :scheme http and :path / from the static table, :authority as a literal that is indexed.
    let indexed = [&[0x82, 0x86, 0x84, 0x41, HOST.len() as u8][..], HOST.as_bytes()].concat();
    let from_table = frame(HEADERS, END_STREAM | END_HEADERS, 3, &[0x82, 0x86, 0x84, 0xbe]);
    all(vec![
        ("2.3 both tables are used", raw(1, &indexed), Must::Answer(1)),
        ("2.3.3 an index that nobody made", literal(&[0xbe]), Must::EndConnection(HPACK)),
        (
            "4.2 a table size that is within the limit",
            raw(1, &[&[0x20][..], &block(&GET)].concat()),
            Must::Answer(1),
        ),
        ("5.1 an integer without end", literal(&[0xff; 12]), Must::EndConnection(HPACK)),
        // The name 'x' in Huffman code is 7 bits; then padding that is wrong in each way.
        ("5.2 a Huffman-coded value", literal(&[0x00, 0x01, b'x', 0x81, 0xf3]), Must::Answer(1)),
        (
            "5.2 a string that is longer than its block",
            literal(&[0x00, 0x7f, b'x']),
            Must::EndConnection(HPACK),
        ),
    ])
    .await;
    // What one request put into the dynamic table, the next one finds there.
    let platform = served().await;
    let mut peer = Peer::greet(platform.address()).await;
    peer.say(&raw(1, &indexed)).await;
    while !matches!(peer.verdict().await, Said::Data { end: true, .. }) {}
    peer.say(&from_table).await;
    let said = peer.verdict().await;
    assert!(matches!(said, Said::Headers { stream: 3, .. }), "{said:?}");
}
