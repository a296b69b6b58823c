//! The plain way of HTTP/1.1 beside hyper's: whatever is sent and answered, nobody can tell the two apart.

mod support;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{Endpoint, InstanceId, Pool as _};
use sas_router::{Failure, Gateway, GatewayConfig, Hook, HookCx, RouteTable, Server, ServerConfig, Step};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use support::*;

type Noted = Arc<Mutex<Vec<u8>>>;

/// A platform on one of the two ways, in front of an instance that notes what it is sent, and answers each head (and each
/// body of which it knows the length) with these pieces, a moment apart.
async fn platform(plain: bool, answer: &'static [&'static str], closes: bool) -> (Platform, Noted) {
    let mut server = ServerConfig::default();
    server.plain_http1 = plain;
    let mut gateway = GatewayConfig::default();
    gateway.seed = 7;
    gateway.upstream.plain_http1 = plain;
    let platform = Platform::with(spec(), gateway, server).await;
    let listener = TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let noted = Noted::default();
    let notes = Arc::clone(&noted);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut bytes).await {
                    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
                    let length = head.split("content-length: ").nth(1);
                    let length = length.map_or(0, |text| text.split("\r\n").next().unwrap().parse().unwrap());
                    let chunked = head.contains("transfer-encoding: chunked");
                    if bytes.len() < end + 4 + length || (chunked && !bytes.ends_with(b"0\r\n\r\n")) {
                        continue;
                    }
                    notes.lock().unwrap().append(&mut bytes);
                    for piece in answer {
                        if stream.write_all(piece.as_bytes()).await.is_err() {
                            return;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    if closes {
                        return;
                    }
                }
            });
        }
    });
    (platform, noted)
}

/// What a client reads that sends these pieces, until it is closed or nothing more came for a while, and whether it was
/// closed. What comes first may take its time: a hundred of these run at once.
async fn exchange(address: SocketAddr, pieces: &[Vec<u8>]) -> (String, bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for piece in pieces {
        let _refused = stream.write_all(piece).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut answer = Vec::new();
    let closed = loop {
        let patience = Duration::from_millis(if answer.is_empty() { 30_000 } else { 700 });
        match tokio::time::timeout(patience, stream.read_buf(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => break true,
            Ok(Ok(_)) => {}
            Err(_) => break false,
        }
    };
    (String::from_utf8_lossy(&answer).into_owned(), closed)
}

/// Messages without what differs from one to the next (dates, ids, spans), their header lines in order of names:
/// which of several stands first means nothing.
fn normal(text: &str) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in text.split("\r\n\r\n") {
        let mut lines: Vec<&str> = part
            .split("\r\n")
            .filter(|line| {
                !["date: ", "x-request-id: ", "traceparent: "].iter().any(|name| line.starts_with(name))
            })
            .collect();
        if let Some(first) = lines.iter().position(|line| line.contains("HTTP/1.1")) {
            lines[first + 1..].sort_unstable();
        }
        parts.push(lines.join("\n"));
    }
    let text = parts.join("\n\n");
    // The platform's own answers name the cause in the words of whoever met it.
    let (Some(from), Some(to)) = (text.find("\"message\":"), text.rfind("\"reason\":")) else { return text };
    let length = text[..from].find("content-length: ").map_or(from, |at| at + 16);
    format!("{}{}", &text[..length], text[to..].split(',').next().unwrap())
}

/// Holds the two ways against each other.
async fn alike(what: &str, pieces: &[Vec<u8>], answer: &'static [&'static str], closes: bool) {
    let mut seen = Vec::new();
    for plain in [true, false] {
        let (platform, noted) = platform(plain, answer, closes).await;
        let (answer, closed) = exchange(platform.address(), pieces).await;
        let noted = String::from_utf8_lossy(&noted.lock().unwrap()).into_owned();
        assert!(!answer.is_empty() || closed, "{what}: nothing came");
        seen.push((normal(&answer), closed, normal(&noted)));
    }
    assert_eq!(seen[0], seen[1], "{what}");
}

const OK: &[&str] = &["HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: b\r\n\r\nok"];

fn get(line: &str, headers: &str) -> Vec<u8> {
    format!("{line}\r\nhost: {HOST}\r\n{headers}\r\n").into_bytes()
}

fn plain_get() -> Vec<u8> {
    get("GET /path?q=1 HTTP/1.1", "")
}

#[tokio::test]
async fn requests_are_taken_alike() {
    let many = |count: usize| (0..count).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    let table: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("plain", vec![plain_get()]),
        ("in bytes", plain_get().into_iter().map(|byte| vec![byte]).collect()),
        ("a cut after the first line", vec![plain_get()[..22].to_vec(), plain_get()[22..].to_vec()]),
        ("three at once", vec![[plain_get(), plain_get(), plain_get()].concat()]),
        (
            "one and a half at once",
            vec![[&plain_get()[..], &plain_get()[..30]].concat(), plain_get()[30..].to_vec()],
        ),
        (
            "plain, then an upload in chunks, then plain",
            vec![
                plain_get(),
                get("POST / HTTP/1.1", "transfer-encoding: chunked\r\n"),
                b"3\r\nabc\r\n0\r\n\r\n".to_vec(),
                plain_get(),
            ],
        ),
        (
            "a body that is there",
            vec![[get("POST / HTTP/1.1", "content-length: 5\r\n"), b"12345".to_vec()].concat()],
        ),
        ("a body that comes later", vec![get("POST / HTTP/1.1", "content-length: 5\r\n"), b"12345".to_vec()]),
        (
            "a body of a GET",
            vec![[get("GET / HTTP/1.1", "content-length: 005\r\n"), b"12345".to_vec()].concat()],
        ),
        ("no body, said", vec![get("POST / HTTP/1.1", "content-length: 0\r\n")]),
        ("no body, unsaid", vec![get("POST / HTTP/1.1", "")]),
        (
            "expects",
            vec![get("POST / HTTP/1.1", "content-length: 2\r\nexpect: 100-continue\r\n"), b"ab".to_vec()],
        ),
        ("close", vec![get("GET / HTTP/1.1", "connection: close\r\n"), plain_get()]),
        ("keep-alive", vec![get("GET / HTTP/1.1", "Connection: Keep-Alive\r\n"), plain_get()]),
        ("a list in Connection", vec![get("GET / HTTP/1.1", "connection: keep-alive, x-a\r\nx-a: 1\r\n")]),
        ("HTTP/1.0", vec![get("GET / HTTP/1.0", "")]),
        ("HEAD", vec![get("HEAD / HTTP/1.1", ""), plain_get()]),
        ("OPTIONS *", vec![get("OPTIONS * HTTP/1.1", "")]),
        ("absolute form", vec![get(&format!("GET http://{HOST}/x HTTP/1.1"), "")]),
        ("a target to be encoded", vec![get("GET /\"a\"?q={\"<\":1} HTTP/1.1", ""), plain_get()]),
        ("a method of its own", vec![get("PURGE /x HTTP/1.1", "")]),
        ("a method in lower case", vec![get("get /x HTTP/1.1", "")]),
        ("empty lines in front", vec![[b"\r\n\r\n".to_vec(), plain_get()].concat()]),
        ("bare line feeds", vec![format!("GET / HTTP/1.1\nhost: {HOST}\nx-a: b\n\n").into_bytes()]),
        ("a folded line", vec![get("GET / HTTP/1.1", "x-a: b\r\n c\r\n")]),
        ("a space before the colon", vec![get("GET / HTTP/1.1", "x-a : b\r\n")]),
        ("bytes over 0x7f in a value", vec![[&get("GET / HTTP/1.1", "x-a: ")[..], b"\xe9\r\n\r\n"].concat()]),
        ("an empty value", vec![get("GET / HTTP/1.1", "x-a:\r\nx-b: \r\n")]),
        ("64 lines", vec![get("GET / HTTP/1.1", &many(63))]),
        ("65 lines", vec![get("GET / HTTP/1.1", &many(64))]),
        ("101 lines", vec![get("GET / HTTP/1.1", &many(100))]),
        ("a line of 20 KB", vec![get("GET / HTTP/1.1", &format!("x-a: {}\r\n", "y".repeat(20_000)))]),
        ("a line of 70 KB", vec![get("GET / HTTP/1.1", &format!("x-a: {}\r\n", "y".repeat(70_000)))]),
        (
            "a name that nobody has",
            vec![b"GET / HTTP/1.1\r\nhost: nobody.example.com\r\n\r\n".to_vec(), plain_get()],
        ),
        ("no host", vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), plain_get()]),
        ("TRACE", vec![get("TRACE / HTTP/1.1", ""), plain_get()]),
        ("an offer to switch", vec![get("GET / HTTP/1.1", "connection: upgrade\r\nupgrade: h2c\r\n")]),
        (
            "hop by hop and lies",
            vec![get(
                "GET / HTTP/1.1",
                "te: trailers, x\r\nkeep-alive: 1\r\nproxy-connection: x\r\nx-forwarded-for: 1.2.3.4\r\nx_forwarded_host: a\r\nforwarded: for=x\r\n",
            )],
        ),
        ("nonsense", vec![b"\x16\x03\x01\x02\x00\x01\x00".to_vec()]),
        ("nonsense after a request", vec![[plain_get(), b"\0\0\0\0\r\n\r\n".to_vec()].concat()]),
    ];
    let table = table.iter().map(|(what, pieces)| alike(what, pieces, OK, false));
    futures_util::future::join_all(table).await;
}

#[tokio::test]
async fn answers_are_passed_on_alike() {
    type Line = (&'static [&'static str], bool);
    let table: &[Line] = &[
        (OK, false),
        (OK, true),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n", "ok", "ok"], false),
        (&["HTTP/1.1 200 OK\r\ncontent-le", "ngth: 4\r\n\r\nokok"], false),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"], false),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"], false),
        (&["HTTP/1.1 200 Fine\r\ncontent-length: 2\r\n\r\nok"], false),
        (&["HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok"], false),
        (&["HTTP/1.1 299 \r\ncontent-length: 2\r\n\r\nok"], false),
        (&["HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\ndate: yesterday\r\n\r\nno"], false),
        (&["HTTP/1.1 500 Internal Server Error\r\ncontent-length: 2\r\n\r\nno"], false),
        (&["HTTP/1.1 204 No Content\r\n\r\n"], false),
        (&["HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 99\r\n\r\n"], false),
        (
            &[
                "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n",
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            ],
            false,
        ),
        (
            &["HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"],
            false,
        ),
        (&["HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", "0\r\n\r\n"], false),
        (
            &[
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-t\r\n\r\n2\r\nok\r\n0\r\nx-t: 1\r\n\r\n",
            ],
            false,
        ),
        (
            &[
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 9\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ],
            false,
        ),
        (&["HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n"], true),
        (&["HTTP/1.1 200 OK\r\n\r\nto the end"], true),
        (&["HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\nconnection: close, x-a\r\nx-a: 1\r\ncontent-length: 2\r\n\r\nok"], false),
        (
            &[
                "HTTP/1.1 200 OK\r\nkeep-alive: timeout=5\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
            ],
            false,
        ),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok"], false),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok"], false),
        (&["HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\ncontent-length: 5000000000\r\n\r\nok"], true),
        (&["HTTP/1.1 200 OK\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 2\r\n\r\nok"], false),
        (
            &["HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 9\r\n\r\ndata: 1\n\n"],
            false,
        ),
        (&["HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"], true),
        (&["HTTP/1.1 200 OK\r\nx a: b\r\ncontent-length: 2\r\n\r\nok"], true),
        (&["HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\nok"], false),
        (&["HTTP/2 200 OK\r\ncontent-length: 2\r\n\r\nok"], true),
        (&["nonsense\r\n\r\n"], true),
        (&["HTTP/1.1 200 OK\r\nconte"], true),
        (&[], true),
    ];
    let twice = vec![plain_get(), plain_get()];
    let head = vec![get("HEAD /path HTTP/1.1", ""), plain_get()];
    let once = vec![get("POST /path HTTP/1.1", "content-length: 0\r\n")];
    let all = table.iter().flat_map(|(answer, closes)| {
        let what = answer.concat();
        let requests = [(twice.clone(), "twice"), (head.clone(), "head"), (once.clone(), "post")];
        requests.map(|(pieces, kind)| {
            let what = format!("{kind}: {what:?}");
            async move { alike(&what, &pieces, answer, *closes).await }
        })
    });
    futures_util::future::join_all(all).await;
}

#[tokio::test]
async fn workers_take_connections_share_what_lies_unused_and_end_with_the_server() {
    const TURNS: usize = 40;
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
    let counted = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while let Ok(1..) = stream.read(&mut head).await {
                    stream.write_all(OK[0].as_bytes()).await.unwrap();
                }
            });
        }
    });
    let table = Arc::new(RouteTable::new(1));
    let pool = FixedPool::new();
    let revision = pool.revision("hello", spec());
    route(&table, HOST, revision);
    pool.add(revision, Arc::new(Remote { id: InstanceId(1), endpoint }));
    let gateway = Gateway::new(table, pool, GatewayConfig::default());
    let threads = Arc::new(Mutex::new(std::collections::BTreeSet::new()));
    let noted = Arc::clone(&threads);
    let handler = handler(move |request| {
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        noted.lock().unwrap().insert(name);
        let gateway = Arc::clone(&gateway);
        async move { sas_core::Handler::handle(&*gateway, request).await }
    });
    let mut config = ServerConfig::default();
    config.workers = 3;
    let server = Server::bind(loopback(), handler, config).await.unwrap();
    let address = server.local_addr();
    let mut clients = Vec::new();
    for _ in 0..TURNS {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(&plain_get()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok") {
            assert_ne!(client.read_buf(&mut answer).await.unwrap(), 0);
        }
        clients.push(client);
    }
    let threads = threads.lock().unwrap().clone();
    assert!(threads.iter().all(|name| name.starts_with("sas-worker-")), "{threads:?}");
    // One after another they need one connection, whichever worker asks: an instance may serve one at a time.
    assert_eq!(connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(server.connections(), TURNS);
    server.shutdown(deadline()).await;
    assert_eq!(server.connections(), 0);
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    for mut client in clients {
        assert_eq!(client.read(&mut [0; 16]).await.unwrap(), 0);
    }
}

/// A gateway in front of one instance at `endpoint`, without a server.
fn gateway_to(endpoint: Endpoint, config: GatewayConfig) -> (Arc<Gateway>, Arc<FixedPool>) {
    let table = Arc::new(RouteTable::new(1));
    let pool = FixedPool::new();
    let revision = pool.revision("hello", spec());
    route(&table, HOST, revision);
    pool.add(revision, Arc::new(Remote { id: InstanceId(1), endpoint }));
    (Gateway::new(table, Arc::clone(&pool) as _, config), pool)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_connection_that_another_runtime_kept_is_looked_at_before_it_is_used() {
    use std::io::{Read as _, Write as _};
    for last_word in ["", "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"] {
        for method in ["GET", "POST"] {
            let listener = std::net::TcpListener::bind(loopback()).unwrap();
            let endpoint = Endpoint::Tcp(listener.local_addr().unwrap());
            let (tell, told) = std::sync::mpsc::channel::<()>();
            let (end, ended) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let (mut first, _) = listener.accept().unwrap();
                assert_ne!(first.read(&mut [0; 4096]).unwrap(), 0);
                first.write_all(OK[0].as_bytes()).unwrap();
                told.recv().unwrap();
                first.write_all(last_word.as_bytes()).unwrap();
                drop(first);
                end.send(()).unwrap();
                let (mut second, _) = listener.accept().unwrap();
                assert_ne!(second.read(&mut [0; 4096]).unwrap(), 0);
                second.write_all(OK[0].as_bytes()).unwrap();
            });
            // Both drive their connections only while they are asked to.
            let (one, other) = (runtime(), runtime());
            let guard = one.enter();
            let (gateway, pool) = gateway_to(endpoint, GatewayConfig::default());
            drop(guard);
            let ask = async |method| {
                let response = sas_core::Handler::handle(&*gateway, request(method, "/", "")).await;
                (response.status().as_u16(), read(response).await)
            };
            assert_eq!(one.block_on(ask("GET")), (200, "ok".to_owned()));
            tell.send(()).unwrap();
            ended.recv().unwrap();
            assert_eq!(other.block_on(ask(method)), (200, "ok".to_owned()), "{method} {last_word}");
            let outcomes: Vec<_> = pool.outcomes().into_iter().map(|(_, outcome)| outcome).collect();
            assert!(!outcomes.contains(&sas_core::Outcome::Lost), "{method} {last_word}: {outcomes:?}");
        }
    }
}

/// Adds header lines to every request, as a hook of a host may.
#[derive(Debug)]
struct Adding(&'static [(&'static str, &'static str)]);

#[async_trait]
impl Hook for Adding {
    async fn on_request(&self, request: &mut sas_core::Request, _: &HookCx<'_>) -> Result<Step, Failure> {
        for (name, value) in self.0 {
            request.headers_mut().append(*name, http::HeaderValue::from_static(value));
        }
        Ok(Step::Continue)
    }
}

#[tokio::test]
async fn a_request_tells_an_instance_one_length() {
    for plain in [true, false] {
        let (platform, noted) = platform(plain, OK, false).await;
        for (body, lines) in [
            ("", &[("content-length", "0"), ("content-length", "40")][..]),
            ("", &[("content-length", "40")]),
            ("abc", &[("content-length", "3"), ("content-length", "4")]),
            ("abc", &[("content-length", "3"), ("transfer-encoding", "chunked")]),
            ("abc", &[("content-length", "7")]),
            ("abc", &[]),
        ] {
            // As a hook or a direct call may leave it: behind what is refused from outside.
            let mut config = GatewayConfig::default();
            config.upstream.plain_http1 = plain;
            config.hooks.push(Arc::new(Adding(lines)));
            let instance = platform.pool.instances(platform.revision)[0].endpoint.clone().unwrap();
            let (gateway, _) = gateway_to(instance, config);
            let response = sas_core::Handler::handle(&*gateway, request("POST", "/", body)).await;
            assert_eq!(response.status(), 200, "{body:?} {lines:?}");
            let sent = String::from_utf8(std::mem::take(&mut *noted.lock().unwrap())).unwrap();
            let (head, rest) = sent.split_once("\r\n\r\n").unwrap();
            let said: Vec<_> = head.split("\r\n").filter(|line| line.starts_with("content-length")).collect();
            assert_eq!(said, [format!("content-length: {}", body.len())], "{body:?} {lines:?}");
            assert!(!head.contains("transfer-encoding") && rest == body, "{sent:?}");
        }
    }
}

#[tokio::test]
async fn a_request_that_is_answered_early_is_sent_to_its_end() {
    for (at, (early, late)) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nok", "ok"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", "2\r\nok\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nokok", ""),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nokok\r\n0\r\n\r\n", ""),
    ]
    .into_iter()
    .enumerate()
    {
        let path = std::env::temp_dir().join(format!("sas-early-{}-{at}", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let (gateway, _) = gateway_to(Endpoint::Unix(path.clone().into()), GatewayConfig::default());
        // More than a socket takes at once.
        let mut asked = request("POST", "/", "the end");
        asked.headers_mut().insert("x-long", "y".repeat(2_000_000).parse().unwrap());
        let taking = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 100]).await.unwrap(), 0);
            stream.write_all(early.as_bytes()).await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"the end") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0, "after {}", request.len());
            }
            stream.write_all(late.as_bytes()).await.unwrap();
        });
        let response = sas_core::Handler::handle(&*gateway, asked).await;
        assert_eq!(response.status(), 200, "{early}");
        assert_eq!(read(response).await, "okok", "{early}");
        tokio::time::timeout(Duration::from_secs(5), taking).await.expect("the whole request").unwrap();
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test]
async fn the_limits_of_an_answers_head_hold_on_both_ways() {
    let lines = |count: usize| (1..count).map(|at| format!("x-{at}: y\r\n")).collect::<String>();
    let long = |bytes: usize| format!("x-long: {}\r\n", "y".repeat(bytes));
    let table = [(lines(10), 200), (lines(11), 502), (long(900), 200), (long(4_000), 502)];
    for plain in [true, false] {
        for (headers, status) in &table {
            let answer: &'static str =
                format!("HTTP/1.1 200 OK\r\n{headers}content-length: 2\r\n\r\nok").leak();
            let pieces: &'static [&'static str] = vec![answer].leak();
            let (platform, _) = platform(plain, pieces, false).await;
            let instance = platform.pool.instances(platform.revision)[0].endpoint.clone().unwrap();
            let mut config = GatewayConfig::default();
            config.upstream.plain_http1 = plain;
            config.upstream.max_header_bytes = 1_024;
            config.upstream.max_headers = 10;
            let (gateway, _) = gateway_to(instance, config);
            let response = sas_core::Handler::handle(&*gateway, request("GET", "/", "")).await;
            assert_eq!(response.status().as_u16(), *status, "plain: {plain}, {} bytes", answer.len());
        }
    }
}

#[tokio::test]
async fn interim_answers_are_to_be_taken_in_time_and_who_takes_them_late_waits_on() {
    const STALL: Duration = Duration::from_millis(800);
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let instance = Endpoint::Tcp(listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
                let hints = format!("HTTP/1.1 103 Early Hints\r\nlink: </{}>\r\n\r\n", "y".repeat(1_000));
                stream.write_all(hints.repeat(60).as_bytes()).await.unwrap();
                tokio::time::sleep(3 * STALL).await;
                let _left = stream.write_all(OK[0].as_bytes()).await;
            });
        }
    });
    let (gateway, _) = gateway_to(instance, GatewayConfig::default());
    let mut config = ServerConfig::default();
    config.write_timeout = STALL;
    // Sockets that hold less than the interim answers.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.bind(loopback()).unwrap();
    let server = Server::serve(socket.listen(16).unwrap(), gateway, config).unwrap();
    let asking = async || {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4 * 1024).unwrap();
        let mut stream = socket.connect(server.local_addr()).await.unwrap();
        stream.write_all(&plain_get()).await.unwrap();
        stream
    };
    let (silent, mut late) = (asking().await, asking().await);
    tokio::time::sleep(STALL / 2).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\nok") {
        assert_ne!(late.read_buf(&mut answer).await.unwrap(), 0, "after {} bytes", answer.len());
    }
    assert_eq!(server.connections(), 1, "who takes nothing does not get as far as the instance's own answer");
    assert_eq!(String::from_utf8(answer).unwrap().matches("HTTP/1.1 103 ").count(), 60);
    drop(silent);
}
