//! TLS on the ingress: both protocols by ALPN, and certificates replaced without a drop.

mod support;

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use sas_router::{GatewayConfig, ServerConfig, Tls};
use support::*;
use tokio::net::TcpStream;

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
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(trusted.chain.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(platform.address()).await.unwrap();
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
