//! Certificates, which can be replaced while connections are open.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ConfigBuilder, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WantsServerCert,
};
use sas_core::{Error, ErrorKind, Result};

use crate::certificates::Certificates;

/// The certificate of a server, or certificates of several names, and the protocols that it offers by ALPN: `h2` and `http/1.1`.
///
/// Cheap to clone; [`Tls::reload`] on any clone is for all connections that come after it, and ends none.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<Shown>>);

/// What is in force.
struct Shown {
    config: Arc<ServerConfig>,
    /// Several, by name; `None`: one, or what a configuration of the host's own says.
    certificates: Option<Arc<Certificates>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn invalid(field: &str, problem: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, "tls", format!("{field}: {problem}"))
}

fn versions() -> ConfigBuilder<ServerConfig, WantsServerCert> {
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for both versions")
        .with_no_client_auth()
}

fn offering(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn named(certificates: Certificates) -> Shown {
    let certificates = Arc::new(certificates);
    let config = versions().with_cert_resolver(Arc::clone(&certificates) as _);
    Shown { config: offering(config), certificates: Some(certificates) }
}

fn configured(chain: &[u8], key: &[u8]) -> Result<Shown> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid("certificates", format!("no certificates in PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid("certificates", "there is none in the PEM text".to_owned()));
    }
    // The error of a key is not passed on: it might hold a part of it.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| invalid("key", "no private key in PEM (PKCS#8, PKCS#1 or SEC1)".to_owned()))?;
    let config = versions()
        .with_single_cert(chain, key)
        .map_err(|error| invalid("key", format!("it does not belong to the certificate: {error}")))?;
    Ok(Shown { config: offering(config), certificates: None })
}

impl Tls {
    /// TLS 1.2 and 1.3 with this chain of certificates (the server's own first) and its private key, both PEM.
    ///
    /// # Errors
    /// `InvalidSpec` when one of them is not what it should be, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        Ok(Self(Arc::new(ArcSwap::from_pointee(configured(chain, key)?))))
    }

    /// With a configuration of one's own: client certificates, names, other providers. Its `alpn_protocols` are
    /// taken as they are.
    pub fn from_config(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Shown { config, certificates: None })))
    }

    /// TLS 1.2 and 1.3 with the certificate for the name that a client asks for. A request for a host whose certificate is
    /// another one than its connection was shown is answered 421, and the client asks again over a connection of its own.
    pub fn from_certificates(certificates: Certificates) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(named(certificates))))
    }

    /// Replaces all certificates for connections to come.
    pub fn replace(&self, certificates: Certificates) {
        self.0.store(Arc::new(named(certificates)));
    }

    /// The certificates of several names that are shown, if that is what it was given.
    pub fn certificates(&self) -> Option<Arc<Certificates>> {
        self.0.load().certificates.clone()
    }

    /// Replaces certificate and key for connections to come.
    ///
    /// # Errors
    /// As [`Tls::from_pem`]; the old ones stay then.
    pub fn reload(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        self.0.store(Arc::new(configured(chain, key)?));
        Ok(())
    }

    /// What takes a connection, and the certificates that it shows.
    pub(super) fn acceptor(&self) -> (tokio_rustls::TlsAcceptor, Option<Arc<Certificates>>) {
        let shown = self.0.load();
        (tokio_rustls::TlsAcceptor::from(Arc::clone(&shown.config)), shown.certificates.clone())
    }
}
