//! Requests that two parsers could read in two ways (RFC 9112, sections 2 to 7 and 11.2, and the tricks that are known).
//!
//! The instance is a strict parser of its own, written here: it reads what the platform sends it and answers each
//! request that it finds. Whatever a client sends, the instance sees as many requests as the client gets answers from it,
//! and never the one that is hidden.

use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::{raw::exchange, support::*};

/// A request as the strict parser read it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Seen {
    fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// Reads one request off `bytes`: CRLF only, one framing, tokens as names. `Ok(None)`: more is needed.
fn strict(bytes: &[u8]) -> Result<Option<(Seen, usize)>, String> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(None) };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|error| error.to_string())?;
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
    let [_, target, "HTTP/1.1"] = first[..] else { return Err(format!("request line {first:?}")) };
    let mut headers = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("line {line:?}"))?;
        let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(token) || value.contains(['\r', '\n', '\0']) {
            return Err(format!("line {line:?}"));
        }
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut seen = Seen { target: target.to_owned(), headers, body: Vec::new() };
    let (lengths, codings) = (seen.all("content-length"), seen.all("transfer-encoding"));
    let mut at = end + 4;
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) => {
            let length: usize = length.parse().map_err(|_| format!("length {length:?}"))?;
            if bytes.len() < at + length {
                return Ok(None);
            }
            seen.body = bytes[at..at + length].to_vec();
            at += length;
        }
        ([], ["chunked"]) => loop {
            let Some(line) = bytes[at..].windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
            let size = String::from_utf8_lossy(&bytes[at..at + line]).into_owned();
            let size = usize::from_str_radix(&size, 16).map_err(|_| format!("chunk of {size:?}"))?;
            at += line + 2;
            if size == 0 {
                let Some(end) = bytes[at..].windows(2).position(|two| two == b"\r\n") else {
                    return Ok(None);
                };
                if end == 0 {
                    at += 2;
                    break;
                }
                // Trailers: up to the empty line.
                let Some(end) = bytes[at..].windows(4).position(|four| four == b"\r\n\r\n") else {
                    return Ok(None);
                };
                at += end + 4;
                break;
            }
            if bytes.len() < at + size + 2 {
                return Ok(None);
            }
            seen.body.extend_from_slice(&bytes[at..at + size]);
            at += size + 2;
        },
        other => return Err(format!("framing {other:?}")),
    }
    Ok(Some((seen, at)))
}

type Found = Arc<Mutex<Vec<Result<Seen, String>>>>;

async fn guarded() -> (Platform, Found) {
    let platform = Platform::start().await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let found = Found::default();
    let notes = Arc::clone(&found);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut bytes).await {
                    loop {
                        match strict(&bytes) {
                            Ok(None) => break,
                            Ok(Some((seen, length))) => {
                                bytes.drain(..length);
                                notes.lock().unwrap().push(Ok(seen));
                                let answer =
                                    b"HTTP/1.1 200 OK\r\nx-instance: yes\r\ncontent-length: 2\r\n\r\nok";
                                if stream.write_all(answer).await.is_err() {
                                    return;
                                }
                            }
                            Err(problem) => {
                                notes.lock().unwrap().push(Err(problem));
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    (platform, found)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Must {
    /// 400 (or 408, 413, 414, 431, 501), nothing reaches the instance, and the connection is closed.
    Refuse,
    /// One request reaches the instance, and the connection is closed after it or nothing more comes of it.
    One,
    /// As many requests as there are: what follows is plainly a request of its own.
    Two,
}

/// Sends `bytes`, and holds the instance's view against the client's.
async fn hold(platform: &Platform, found: &Found, what: &str, bytes: &[u8], must: Must) -> Vec<Seen> {
    found.lock().unwrap().clear();
    let (answer, closed) = exchange(platform.address(), bytes).await;
    let found: Result<Vec<Seen>, String> = found.lock().unwrap().iter().cloned().collect();
    let seen = found.unwrap_or_else(|problem| panic!("{what}: the instance can't read it: {problem}"));
    let answers = answer.matches("x-instance: yes").count();
    assert_eq!(seen.len(), answers, "{what}: {seen:?} for {answer:?}");
    let hidden = seen.iter().any(|request| request.target.contains("smuggled"));
    assert_eq!(hidden, must == Must::Two, "{what}: {seen:?}");
    match must {
        Must::Refuse => {
            assert!(seen.is_empty(), "{what}: {seen:?}");
            let status = answer.get(9..12).unwrap_or_default();
            assert!(["400", "408", "413", "414", "431", "501"].contains(&status), "{what}: {answer:?}");
            assert!(closed, "{what}: the connection stays open: {answer:?}");
        }
        Must::One => assert_eq!(seen.len(), 1, "{what}: {answer:?}"),
        Must::Two => assert_eq!(seen.len(), 2, "{what}: {answer:?}"),
    }
    seen
}

/// Holds each of these (what it is, its bytes) at a platform of its own, side by side: one that keeps its connection is over
/// when a second long nothing more has come.
async fn hold_each(
    cases: impl IntoIterator<Item = (impl Into<String>, Vec<u8>)>,
    must: Must,
) -> Vec<(String, Vec<Seen>)> {
    let cases = cases.into_iter().map(|(what, bytes)| (what.into(), bytes));
    join_all(cases.map(|(what, bytes): (String, Vec<u8>)| async move {
        let (platform, found) = guarded().await;
        let seen = hold(&platform, &found, &what, &bytes, must).await;
        (what, seen)
    }))
    .await
}

const HIDDEN: &str = "GET /smuggled HTTP/1.1\r\nhost: hello.default.example.com\r\n\r\n";

fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST /first HTTP/1.1\r\nhost: {HOST}\r\n{headers}\r\n\r\n{body}").into_bytes()
}

/// A chunked end, and then what another parser would take for a request.
fn early_end() -> String {
    format!("0\r\n\r\n{HIDDEN}")
}

#[tokio::test]
async fn two_framings_are_read_in_one_way() {
    // RFC 9112, section 6.3: the coding counts, the length is removed, the connection is closed.
    let (platform, found) = guarded().await;
    let length = early_end().len();
    for headers in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
        format!("Transfer-Encoding: \tchunked \r\nContent-Length: {length}"),
        format!("TRANSFER-ENCODING: CHUNKED\r\ncontent-length: {length}"),
    ] {
        hold(&platform, &found, &headers, &post(&headers, &early_end()), Must::One).await;
    }
}

#[tokio::test]
async fn a_coding_that_some_do_not_see_is_refused() {
    let (platform, found) = guarded().await;
    let length = early_end().len();
    for coding in [
        "transfer-encoding : chunked",
        "transfer-encoding\t: chunked",
        " transfer-encoding: chunked",
        "x: y\r\n transfer-encoding: chunked",
        "transfer-encoding:\r\n chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunkedx",
        "transfer-encoding: chunked;q=1",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: 'chunked'",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: x\r\ntransfer-encoding: chunked",
        "transfer-encoding:",
        "transfer-encoding: ,",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding: \u{c}chunked",
        "transfer-encoding: chunked\u{b}",
        "transfer-encoding: chun\0ked",
        "transfer-encoding\0: chunked",
        "transfer\u{1}-encoding: chunked",
        "transfer encoding: chunked",
        "transfer-encoding: chunk\red",
    ] {
        for headers in [coding.to_owned(), format!("content-length: {length}\r\n{coding}")] {
            // A list in which `chunked` is last and doubled may also be met by the length's rule first.
            hold(&platform, &found, &headers, &post(&headers, &early_end()), Must::Refuse).await;
        }
    }
    // Names that only look like it are headers like any other.
    let alike = ["transfer_encoding: chunked", "x-transfer-encoding: chunked", "transfer-encoding-: chunked"];
    let alike = alike.map(|header| {
        let headers = format!("content-length: {length}\r\n{header}");
        (header, post(&headers, &early_end()))
    });
    for (header, seen) in hold_each(alike, Must::One).await {
        assert_eq!(seen[0].body, early_end().as_bytes(), "{header}");
    }
}

#[tokio::test]
async fn a_length_that_can_be_read_in_two_ways_is_refused() {
    let (platform, found) = guarded().await;
    for headers in [
        "content-length: 5\r\ncontent-length: 6",
        "content-length: 5, 5",
        "content-length: 5,",
        "content-length: 5 5",
        "content-length: 5;",
        "content-length: 5.0",
        "content-length: 5e0",
        "content-length: +5",
        "content-length: -5",
        "content-length: 0x5",
        "content-length: \u{b}5",
        "content-length: 5\u{c}",
        "content-length: 5\r\n 5",
        "content-length:",
        "content-length: ",
        "content-length : 5",
        "content-length\0: 5",
        "content length: 5",
        "content-length: \u{665}",
        "content-length: 18446744073709551616",
        "content-length: 36893488147419103237",
    ] {
        hold(&platform, &found, headers, &post(headers, &format!("12345{HIDDEN}")), Must::Refuse).await;
    }
    // Zeros in front are digits (RFC 9110, section 8.6); the same length twice is one (RFC 9112, section 6.3).
    let once = ["content-length: 005", "content-length: 5\r\ncontent-length: 5"];
    let once = once.map(|headers| (headers, post(headers, &format!("12345{HIDDEN}"))));
    for (headers, seen) in hold_each(once, Must::Two).await {
        assert_eq!((&seen[0].body[..], seen[0].all("content-length").len()), (&b"12345"[..], 1), "{headers}");
    }
    // A body of a method that has none usually is a body all the same.
    let length = HIDDEN.len();
    let with_body = ["GET", "HEAD", "DELETE", "OPTIONS"].map(|method| {
        let head = format!("{method} /first HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {length}\r\n\r\n");
        (method, format!("{head}{HIDDEN}").into_bytes())
    });
    hold_each(with_body, Must::One).await;
}

#[tokio::test]
async fn chunks_that_can_be_read_in_two_ways_are_refused() {
    let (platform, found) = guarded().await;
    let chunked = |body: &str| post("transfer-encoding: chunked", body);
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-3\r\nabc\r\n0\r\n\r\n",
        "3_\r\nabc\r\n0\r\n\r\n",
        " 3\r\nabc\r\n0\r\n\r\n",
        "\r\n3\r\nabc\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        "3\rabc\r\n0\r\n\r\n",
        "3\r\nabc0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabcX\r\n0\r\n\r\n",
        "2\r\nabc\r\n0\r\n\r\n",
        "3;a\nb\r\nabc\r\n0\r\n\r\n",
        "3;a=\"b\nc\"\r\nabc\r\n0\r\n\r\n",
        "3 \u{1}\r\nabc\r\n0\r\n\r\n",
        "10000000000000003\r\nabc\r\n0\r\n\r\n",
        "ffffffffffffffff0\r\nabc\r\n0\r\n\r\n",
        "0\r\nX",
        "0\r\nno colon\r\n\r\n",
        "0\r\n bad: fold\r\n\r\n",
    ] {
        found.lock().unwrap().clear();
        let (answer, closed) = exchange(platform.address(), &chunked(&format!("{body}{HIDDEN}"))).await;
        assert!(closed, "{body:?}: {answer:?}");
        assert!(!answer.starts_with("HTTP/1.1 2"), "{body:?}: {answer:?}");
        let found = found.lock().unwrap();
        assert!(found.iter().all(|seen| seen.is_err()), "{body:?}: {found:?}");
        drop(found);
    }
    // Extensions are read over and not passed on; sizes may have zeros in front; trailers do not become headers.
    let bodies = [
        "3;name=value\r\nabc\r\n0\r\n\r\n",
        "003\r\nabc\r\n000\r\n\r\n",
        "3\r\nabc\r\n0\r\ncontent-length: 99\r\nhost: other\r\ntransfer-encoding: x\r\n\r\n",
    ]
    .map(|body| (body, chunked(&format!("{body}{HIDDEN}"))));
    for (body, seen) in hold_each(bodies, Must::Two).await {
        assert_eq!((&seen[0].body[..], seen[0].all("host")), (&b"abc"[..], vec![HOST]), "{body:?}");
        assert!(seen[0].all("content-length").is_empty() || seen[0].all("transfer-encoding").is_empty());
    }
}

#[tokio::test]
async fn lines_and_targets_are_read_in_one_way_or_refused() {
    let (platform, found) = guarded().await;
    for (what, bytes) in [
        ("two spaces after the method", format!("GET  / HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("two spaces before the version", format!("GET /  HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("a space after the version", format!("GET / HTTP/1.1 \r\nhost: {HOST}\r\n\r\n")),
        ("a version in lower case", format!("GET / http/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("a version with more digits", format!("GET / HTTP/1.10\r\nhost: {HOST}\r\n\r\n")),
        ("HTTP/2 by word", format!("GET / HTTP/2.0\r\nhost: {HOST}\r\n\r\n")),
        ("HTTP/0.9", "GET /\r\n".to_owned()),
        ("two carriage returns", format!("GET / HTTP/1.1\r\r\nhost: {HOST}\r\n\r\n")),
        ("a space before the first header", format!("GET / HTTP/1.1\r\n host: {HOST}\r\n\r\n")),
        ("a carriage return in a value", format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nx: a\rb: c\r\n\r\n")),
        ("a NUL in the target", format!("GET /\0 HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("a line break in the target", format!("GET /a\nb HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        ("two hosts that differ in case", format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nhost: other\r\n\r\n")),
        ("a host with a space in front", format!("GET / HTTP/1.1\r\nhost: {HOST} other\r\n\r\n")),
        ("a host list", format!("GET / HTTP/1.1\r\nhost: {HOST}, other\r\n\r\n")),
        ("a host with a path", format!("GET / HTTP/1.1\r\nhost: {HOST}/x\r\n\r\n")),
        ("a host with a user", format!("GET / HTTP/1.1\r\nhost: other@{HOST}\r\n\r\n")),
        ("a port that is none", format!("GET / HTTP/1.1\r\nhost: {HOST}:port\r\n\r\n")),
        ("a header block that begins with a colon", format!("GET / HTTP/1.1\r\n: {HOST}\r\n\r\n")),
    ] {
        let bytes = format!("{bytes}{HIDDEN}");
        hold(&platform, &found, what, bytes.as_bytes(), Must::Refuse).await;
    }
    let bytes = format!("GET http://evil.example.com/ HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let (answer, _) = exchange(platform.address(), bytes.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    let read = [
        // The authority in the request line goes before Host, and the instance sees it in Host (section 3.2.2).
        ("absolute form", format!("GET http://{HOST}/path HTTP/1.1\r\nhost: evil.example.com\r\n\r\n")),
        // Empty lines before a request are read over (section 2.2).
        ("empty lines in front", format!("\r\n\r\nGET /path HTTP/1.1\r\nhost: {HOST}\r\n\r\n")),
        // A bare line feed may end a line (section 2.2): it does so for us, and the instance sees none.
        ("bare line feeds", format!("GET /path HTTP/1.1\nhost: {HOST}\nx-a: b\n\n")),
    ];
    for (what, seen) in hold_each(read.map(|(what, text)| (what, text.into_bytes())), Must::One).await {
        assert_eq!((seen[0].target.as_str(), seen[0].all("host")), ("/path", vec![HOST]), "{what}");
        assert_eq!(seen[0].all("x-a"), if what == "bare line feeds" { vec!["b"] } else { vec![] }, "{what}");
    }
}

#[tokio::test]
async fn connection_can_not_take_out_what_the_message_means() {
    let named =
        ["host", "content-length", "transfer-encoding", "x-request-id", "x-forwarded-for", "forwarded"];
    let cases = named.map(|named| {
        let headers =
            format!("connection: keep-alive, {named}\r\ncontent-length: 5\r\nx-forwarded-for: 1.2.3.4");
        (named, post(&headers, "12345"))
    });
    for (named, seen) in hold_each(cases, Must::One).await {
        assert_eq!((seen[0].all("host"), &seen[0].body[..]), (vec![HOST], &b"12345"[..]), "{named}");
        assert_eq!(seen[0].all("x-request-id").len(), 1, "{named}");
        assert_eq!(seen[0].all("x-forwarded-for"), ["127.0.0.1"], "{named}");
    }
}

#[tokio::test]
async fn nobody_switches_to_http_past_the_gateway() {
    let offers = ["h2c", "H2C", "websocket, h2c", "HTTP/2.0", "TLS/1.2, HTTP/1.1", "h2"];
    let cases = offers.map(|offer| {
        let bytes = format!(
            "GET /first HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade, http2-settings\r\nupgrade: {offer}\r\n\
             http2-settings: AAMAAABkAAQAAP__\r\n\r\n"
        );
        (offer, bytes.into_bytes())
    });
    for (offer, seen) in hold_each(cases, Must::One).await {
        for header in ["upgrade", "connection", "http2-settings"] {
            assert!(seen[0].all(header).is_empty(), "{offer}: {:?}", seen[0]);
        }
    }
}
