//! TLS on the ingress: both protocols by ALPN, and certificates replaced without a drop.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use sas_router::{GatewayConfig, Server, ServerConfig, Tls};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use crate::support::*;

struct Certificate {
    chain: String,
    key: String,
}

fn certificate() -> Certificate {
    let made = rcgen::generate_simple_self_signed(vec![HOST.to_owned()]).unwrap();
    Certificate { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

async fn encrypted(tls: &Tls) -> Platform {
    let mut config = ServerConfig::default();
    config.tls = Some(tls.clone());
    let platform = Platform::with(spec(), GatewayConfig::default(), config).await;
    platform.pool.add_inside(
        platform.revision,
        handler(|request| async move {
            let proto = request.headers()["x-forwarded-proto"].to_str().unwrap().to_owned();
            text(200, format!("{proto} {:?}", request.version()))
        }),
    );
    platform
}

type Encrypted = tokio_rustls::client::TlsStream<TcpStream>;

async fn connect(platform: &Platform, trusted: &Certificate, protocol: &str) -> std::io::Result<Encrypted> {
    let stream = TcpStream::connect(platform.address()).await.unwrap();
    connect_over(stream, trusted, protocol).await
}

async fn connect_over(
    stream: TcpStream,
    trusted: &Certificate,
    protocol: &str,
) -> std::io::Result<Encrypted> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.chain.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let name = ServerName::try_from(HOST).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn http1(stream: Encrypted) -> hyper::client::conn::http1::SendRequest<sas_core::Body> {
    let (sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn both_protocols_are_offered_by_alpn() {
    let certificate = certificate();
    let tls = Tls::from_pem(certificate.chain.as_bytes(), certificate.key.as_bytes()).unwrap();
    let platform = encrypted(&tls).await;
    let mut client = http1(connect(&platform, &certificate, "http/1.1").await.unwrap()).await;
    assert!(read(client.send_request(get("/")).await.unwrap()).await.starts_with("https"));

    let stream = connect(&platform, &certificate, "h2").await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut client, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(format!("https://{HOST}/")).body(sas_core::Body::empty()).unwrap();
    assert!(read(client.send_request(request).await.unwrap()).await.starts_with("https"));
}

#[tokio::test]
async fn a_new_certificate_is_for_new_connections_and_ends_none() {
    let (old, new) = (certificate(), certificate());
    let tls = Tls::from_pem(old.chain.as_bytes(), old.key.as_bytes()).unwrap();
    let platform = encrypted(&tls).await;
    let mut before = http1(connect(&platform, &old, "http/1.1").await.unwrap()).await;
    assert_eq!(before.send_request(get("/")).await.unwrap().status(), 200);
    tls.reload(new.chain.as_bytes(), new.key.as_bytes()).unwrap();
    before.ready().await.unwrap();
    assert_eq!(before.send_request(get("/")).await.unwrap().status(), 200, "the open connection goes on");
    assert!(connect(&platform, &old, "http/1.1").await.is_err(), "the old certificate is not shown any more");
    let mut after = http1(connect(&platform, &new, "http/1.1").await.unwrap()).await;
    assert_eq!(after.send_request(get("/")).await.unwrap().status(), 200);
}

#[tokio::test]
async fn what_is_no_certificate_is_refused_and_the_old_one_stays() {
    let (certificate, other) = (certificate(), certificate());
    let tls = Tls::from_pem(certificate.chain.as_bytes(), certificate.key.as_bytes()).unwrap();
    for (chain, key, field) in [
        ("nonsense", certificate.key.as_str(), "certificates"),
        (certificate.chain.as_str(), "nonsense", "key"),
        (certificate.chain.as_str(), other.key.as_str(), "key"),
    ] {
        let error = tls.reload(chain.as_bytes(), key.as_bytes()).unwrap_err();
        assert!(error.message.starts_with(field), "{error}");
    }
    assert_eq!(format!("{tls:?}"), "Tls(..)");
    let platform = encrypted(&tls).await;
    assert!(connect(&platform, &certificate, "http/1.1").await.is_ok());
}

const LONG: Duration = Duration::from_secs(600);
/// What a loaded machine may take longer.
const SLACK: Duration = Duration::from_secs(5);

/// A server of small answers, whose sockets hold little, and how many of them it gave.
fn tight(certificate: &Certificate, stall: Duration) -> (Server, Arc<AtomicUsize>) {
    let mut config = ServerConfig::default();
    config.tls = Some(Tls::from_pem(certificate.chain.as_bytes(), certificate.key.as_bytes()).unwrap());
    config.write_timeout = stall;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_send_buffer_size(8 * 1024).unwrap();
    socket.bind(loopback()).unwrap();
    let answers = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&answers);
    let handler = handler(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { text(200, "hello") }
    });
    (Server::serve(socket.listen(64).unwrap(), handler, config).unwrap(), answers)
}

/// Sends requests, of which the last one is the last of the connection, and reads nothing as long as the task runs.
async fn asks(server: &Server, certificate: &Certificate, requests: usize) -> tokio::task::JoinHandle<()> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let stream = socket.connect(server.local_addr()).await.unwrap();
    let mut stream = connect_over(stream, certificate, "http/1.1").await.unwrap();
    let mut all = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").repeat(requests - 1);
    all.push_str(&format!("GET / HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"));
    tokio::spawn(async move {
        // What is left of them when the server takes no more waits for it.
        let _ended = async {
            stream.write_all(all.as_bytes()).await?;
            stream.flush().await
        }
        .await;
        sleep(LONG).await;
    })
}

/// Waits until the server gives no more answers, and says how many it gave.
async fn settled(answers: &AtomicUsize) -> usize {
    let mut before = 0;
    loop {
        sleep(Duration::from_millis(150)).await;
        let now = answers.load(Ordering::SeqCst);
        if now > 0 && now == before {
            return now;
        }
        before = now;
    }
}

#[tokio::test]
async fn a_client_that_takes_no_answer_is_ended_though_the_encryption_takes_it() {
    let certificate = certificate();
    let (server, answers) = tight(&certificate, Duration::from_millis(600));
    let client = asks(&server, &certificate, 2_000).await;
    let since = Instant::now();
    while server.connections() > 0 {
        assert!(since.elapsed() < SLACK, "the connection is still there");
        sleep(Duration::from_millis(10)).await;
    }
    let given = answers.load(Ordering::SeqCst);
    assert!((10..2_000).contains(&given), "{given}");
    client.abort();
}

#[tokio::test]
async fn a_last_word_that_nobody_takes_holds_up_no_shutdown() {
    let certificate = certificate();
    // How many answers a connection holds that nobody reads.
    let (server, answers) = tight(&certificate, LONG);
    let client = asks(&server, &certificate, 2_000).await;
    let most = settled(&answers).await;
    client.abort();
    // With about as many, one has its answers written and no room for what says that it ends.
    let (server, answers) = tight(&certificate, LONG);
    let mut clients = Vec::new();
    for requests in most.saturating_sub(6).max(1)..=most + 1 {
        clients.push(asks(&server, &certificate, requests).await);
    }
    settled(&answers).await;
    let ending = server.shutdown(Instant::now() + Duration::from_millis(100));
    timeout(SLACK, ending).await.expect("an end");
    assert_eq!(server.connections(), 0);
    clients.iter().for_each(tokio::task::JoinHandle::abort);
}
