//! Certificates of several names: which one a client is shown, how they are exchanged, and requests that came to the wrong one.

use std::{fs, path::Path, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use sas_core::{Body, Recorder};
use sas_router::{CertificateDir, Certificates, GatewayConfig, ServerConfig, Tls};
use tokio::net::TcpStream;

use crate::support::*;

/// Writes a pair for these hosts, and gives its certificate.
fn put(dir: &Path, name: &str, hosts: &[&str], days: i64) -> CertificateDer<'static> {
    let mut params =
        rcgen::CertificateParams::new(hosts.iter().map(|host| (*host).to_owned()).collect::<Vec<_>>())
            .unwrap();
    params.not_after =
        rcgen::date_time_ymd(2030, 1, 1) + Duration::from_secs(24 * 3600) * u32::try_from(days).unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    CertificateDer::from_pem_slice(certificate.pem().as_bytes()).unwrap()
}

async fn platform(tls: &Tls) -> Platform {
    let mut config = ServerConfig::default();
    config.tls = Some(tls.clone());
    let platform = Platform::with(spec(), GatewayConfig::default(), config).await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "hello") }));
    platform
}

/// Connects for a name, trusts `trusted` alone, and gives what it was shown.
async fn connect(
    platform: &Platform,
    name: &str,
    trusted: &CertificateDer<'static>,
    protocol: &str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(platform.address()).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test]
async fn each_name_is_shown_its_own_certificate_and_others_the_default_one() {
    let dir = tempfile::tempdir().unwrap();
    let shop = put(dir.path(), "shop", &["shop.example", "*.shop.example"], 10);
    let one = put(dir.path(), "one", &["one.shop.example"], 20);
    let default = put(dir.path(), "default", &["other.example"], 30);
    let tls = Tls::from_certificates(Certificates::read(dir.path()).unwrap());
    let platform = platform(&tls).await;
    for (name, shown) in [
        ("shop.example", &shop),
        ("SHOP.example", &shop),
        ("two.shop.example", &shop),
        ("one.shop.example", &one),
        ("other.example", &default),
    ] {
        assert!(connect(&platform, name, shown, "h2").await.is_ok(), "{name}");
    }
    // A name that no certificate has is shown the default one, which the client refuses.
    assert!(connect(&platform, "nobody.example", &default, "h2").await.is_err());
    assert!(connect(&platform, "a.two.shop.example", &shop, "h2").await.is_err(), "one label, and no more");
    let certificates = tls.certificates().unwrap();
    let views: Vec<_> = certificates.views().map(|view| (view.name.as_str(), view.is_default)).collect();
    assert_eq!(views, [("default", true), ("one", false), ("shop", false)]);
    let first = certificates.views().map(|view| view.expires).min().unwrap();
    assert_eq!(
        first.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs(),
        1_893_456_000 + 10 * 24 * 3600
    );
}

#[tokio::test]
async fn a_request_for_a_host_of_another_certificate_is_misdirected() {
    let dir = tempfile::tempdir().unwrap();
    let ours = put(dir.path(), "ours", &[HOST, "also.example"], 10);
    put(dir.path(), "theirs", &["theirs.example"], 10);
    let platform = platform(&Tls::from_certificates(Certificates::read(dir.path()).unwrap())).await;

    let stream = connect(&platform, HOST, &ours, "h2").await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut h2, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    let stream = connect(&platform, HOST, &ours, "http/1.1").await.unwrap();
    let (mut h1, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    // A host of the same certificate may be asked over the same connection: there is only no route to it here.
    for (host, status) in [
        (HOST, 200),
        ("theirs.example", 421),
        ("theirs.example:8443", 421),
        ("also.example", 404),
        (HOST, 200),
    ] {
        let request = http::Request::get(format!("https://{host}/")).body(Body::empty()).unwrap();
        assert_eq!(h2.send_request(request).await.unwrap().status(), status, "HTTP/2, {host}");
        h1.ready().await.unwrap();
        let request = http::Request::get("/").header("host", host).body(Body::empty()).unwrap();
        let response = h1.send_request(request).await.unwrap();
        assert_eq!(response.status(), status, "HTTP/1.1, {host}");
        let body = read(response).await;
        assert_eq!(body.contains("misdirected"), status == 421, "{body}");
    }
}

#[test]
fn every_pair_that_is_none_is_told_by_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |part: &str| {
        let errors = Certificates::read(dir.path()).unwrap_err().to_string();
        assert!(errors.contains(part), "{part}: {errors}");
    };
    refused("has no pair");
    put(dir.path(), "good", &["good.example"], 1);
    put(dir.path(), "bad", &["bad.example"], 1);
    fs::write(dir.path().join("notes.txt"), "not a certificate").unwrap();
    assert!(Certificates::read(dir.path()).is_ok());
    fs::write(dir.path().join("bad.key"), "nonsense").unwrap();
    refused("bad.key");
    fs::copy(dir.path().join("good.key"), dir.path().join("bad.key")).unwrap();
    refused("does not belong to the certificate");
    fs::remove_file(dir.path().join("bad.key")).unwrap();
    fs::write(dir.path().join("good.crt"), "nonsense").unwrap();
    refused("bad.key");
    refused("good.crt");
    fs::remove_file(dir.path().join("good.crt")).unwrap();
    refused("no certificate of the same name");
}

#[tokio::test(start_paused = true)]
async fn files_that_change_are_read_again_and_wrong_ones_leave_those_before() {
    let dir = tempfile::tempdir().unwrap();
    // As Kubernetes and certbot have them.
    let inside = dir.path().join("web");
    fs::create_dir(&inside).unwrap();
    put(&inside, "tls", &["web.example"], 10);
    let opened = Arc::new(CertificateDir::open(dir.path(), Recorder::default()).unwrap());
    let stop = tokio_util::sync::CancellationToken::new();
    let running = tokio::spawn(Arc::clone(&opened).run(stop.clone()));
    let domains = || -> Vec<String> {
        let certificates = opened.tls().certificates().unwrap();
        certificates.views().flat_map(|view| view.domains.clone()).collect()
    };
    // The clock stands still while files are read, which is work of another thread.
    let waits = async |done: &dyn Fn() -> bool| {
        for _ in 0..1000 {
            if done() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        panic!("nothing was read again: {domains:?}", domains = domains());
    };
    put(&inside, "tls", &["new.example"], 10);
    waits(&|| domains() == ["new.example"]).await;
    fs::write(inside.join("tls.key"), "nonsense, and of another length").unwrap();
    waits(&|| opened.problem().is_some()).await;
    assert!(opened.problem().unwrap().to_string().contains("tls.key"));
    assert_eq!(domains(), ["new.example"]);
    put(dir.path(), "second", &["second.example"], 10);
    assert!(opened.reload().is_err(), "the other one is wrong still");
    put(&inside, "tls", &["newest.example"], 10);
    opened.reload().unwrap();
    assert_eq!(
        (domains(), opened.problem()),
        (vec!["second.example".to_owned(), "newest.example".to_owned()], None)
    );
    stop.cancel();
    running.await.unwrap();
}
