//! Calls of guests to other hosts: grants, the guard of addresses, TLS.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sas_core::RevisionSpec;
use sas_runtime_wasm::{Ceilings, WasmConfig, WasmRuntime, options};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

use crate::support::{Stage, ask, bytes_spec, get};

const PROBE: &[u8] = include_bytes!("../../guests/wasi-http/probe.wasm");

// Numbers of `error-code`, in the order of its cases.
const PROHIBITED: &str = "error 4";
const REFUSED: &str = "error 6";
const TLS_PROTOCOL: &str = "error 12";
const TLS_CERTIFICATE: &str = "error 13";
const DENIED: &str = "error 15";
const INCOMPLETE: &str = "error 25";

fn calling(hosts: &str, networks: Option<&str>) -> RevisionSpec {
    let mut spec = bytes_spec("probe.wasm", PROBE.to_vec());
    spec.options.insert(options::ALLOW_HOSTS.into(), hosts.into());
    if let Some(networks) = networks {
        spec.options.insert(options::ALLOW_NETWORKS.into(), networks.into());
    }
    spec
}

/// Lets revisions ask for every host and for loopback.
fn config() -> WasmConfig {
    let private_networks = vec!["127.0.0.0/8".parse().unwrap(), "::1".parse().unwrap()];
    let grants = Ceilings { private_networks, ..Ceilings::public_hosts() };
    WasmConfig { slots: 8, grants, ..WasmConfig::default() }
}

async fn answers(mut stream: impl AsyncRead + AsyncWrite + Unpin, with: String) {
    let _ = stream.read(&mut [0; 2_048]).await;
    let _ = stream.write_all(with.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A server that answers everything `with` this, its address, and how often it was asked.
async fn server(with: impl Into<String>) -> (SocketAddr, Arc<AtomicUsize>) {
    let (with, listener) = (with.into(), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let (address, asked) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(answers(stream, with.clone()));
        }
    });
    (address, asked)
}

const EMPTY: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_guest_calls_granted_hosts_only_and_private_addresses_only_if_granted_too() {
    let port = server(EMPTY).await.0.port();
    let stage = Stage::new(config());
    let fetch = |host: &str| get(&format!("/fetch?{host}:{port}"));

    let nothing = stage.instance(&bytes_spec("probe.wasm", PROBE.to_vec())).await;
    assert_eq!(ask(&*nothing, fetch("127.0.0.1")).await.1, DENIED);

    let host_only = stage.instance(&calling("127.0.0.1, localhost", None)).await;
    assert_eq!(ask(&*host_only, fetch("127.0.0.1")).await.1, PROHIBITED, "an address that is not public");
    assert_eq!(ask(&*host_only, fetch("localhost")).await.1, PROHIBITED, "a name for one");

    let both = stage.instance(&calling("127.0.0.1, localhost", Some("127.0.0.0/8"))).await;
    assert_eq!(ask(&*both, fetch("127.0.0.1")).await.1, "status 204");
    assert_eq!(ask(&*both, fetch("localhost")).await.1, "status 204");
    assert_eq!(ask(&*both, fetch("127.1")).await.1, DENIED, "another spelling is another host");
    assert_eq!(ask(&*both, fetch("[::ffff:127.0.0.1]")).await.1, DENIED);
    assert_eq!(ask(&*both, fetch("169.254.169.254")).await.1, DENIED);
}

#[tokio::test]
async fn every_host_does_not_mean_private_addresses() {
    let (address, asked) = server(EMPTY).await;
    let stage = Stage::new(config());
    let every = stage.instance(&calling("*", None)).await;
    let port = address.port();
    for host in [
        "127.0.0.1",
        "localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "[fe80::1]",
        "[fd00::1]",
        "0.0.0.0",
        "[::]",
        "[64:ff9b::7f00:1]",
        "2130706433",
    ] {
        assert_eq!(ask(&*every, get(&format!("/fetch?{host}:{port}"))).await.1, PROHIBITED, "{host}");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_redirection_is_the_guests_to_follow_and_is_guarded_like_any_call() {
    let (secret, asked) = server(EMPTY).await;
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: http://{secret}/\r\nconnection: close\r\n\r\n");
    let (open, _) = server(moved).await;
    let stage = Stage::new(config());
    let rule = format!("127.0.0.1:{}", open.port());
    let probe = stage.instance(&calling(&rule, Some("127.0.0.0/8"))).await;
    assert_eq!(ask(&*probe, get(&format!("/fetch?{open}"))).await.1, "status 302");
    assert_eq!(ask(&*probe, get(&format!("/fetch?{secret}"))).await.1, DENIED, "where it points");
    assert_eq!(asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn failures_of_the_other_side_are_told_by_their_codes() {
    let stage = Stage::new(config());
    let probe = stage.instance(&calling("*", Some("127.0.0.0/8"))).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(ask(&*probe, get(&format!("/fetch?{free}"))).await.1, REFUSED);
    let (silent, _) = server("").await;
    assert_eq!(ask(&*probe, get(&format!("/fetch?{silent}"))).await.1, INCOMPLETE);
    let (plain, _) = server(EMPTY).await;
    assert_eq!(ask(&*probe, get(&format!("/secure?localhost:{}", plain.port()))).await.1, TLS_PROTOCOL);
}

/// A server with a certificate for `name`, and the authority that signed it.
async fn tls_server(name: &str) -> (SocketAddr, Vec<u8>) {
    let authority_key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(stream) = acceptor.accept(stream).await {
                    answers(stream, EMPTY.to_owned()).await;
                }
            });
        }
    });
    (address, root.der().to_vec())
}

#[tokio::test]
async fn a_call_over_tls_trusts_only_certificates_of_known_authorities_for_that_name() {
    let (known, root) = tls_server("localhost").await;
    let (other, other_root) = tls_server("other.test").await;
    let trusting = WasmConfig { trusted_roots: vec![root, other_root], ..config() };
    for (config, port, expected) in [
        (trusting.clone(), known.port(), "status 204"),
        (trusting, other.port(), TLS_CERTIFICATE),
        (config(), known.port(), TLS_CERTIFICATE),
    ] {
        let stage = Stage::new(config);
        let probe = stage.instance(&calling("localhost", Some("127.0.0.0/8"))).await;
        assert_eq!(ask(&*probe, get(&format!("/secure?localhost:{port}"))).await.1, expected);
    }
}

#[test]
fn a_root_that_is_no_certificate_is_named() {
    let config = WasmConfig { trusted_roots: vec![b"-----BEGIN".to_vec()], ..WasmConfig::default() };
    let error = WasmRuntime::new(config).unwrap_err();
    assert!(error.to_string().contains("trusted_roots[0]"), "{error}");
}
