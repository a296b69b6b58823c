//! Certificates, which can be replaced while connections are open.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use sas_core::{Error, ErrorKind, Result};

/// The certificate of a server, and the protocols that it offers by ALPN: `h2` and `http/1.1`.
///
/// Cheap to clone; [`Tls::reload`] on any clone is for all connections that come after it, and ends none.
#[derive(Clone)]
pub struct Tls(Arc<ArcSwap<ServerConfig>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(..)")
    }
}

fn configured(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let invalid = |field: &str, problem: String| {
        Error::new(ErrorKind::InvalidSpec, "tls", format!("{field}: {problem}"))
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| invalid("certificates", format!("no certificates in PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid("certificates", "there is none in the PEM text".to_owned()));
    }
    // The error of a key is not passed on: it might hold a part of it.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| invalid("key", "no private key in PEM (PKCS#8, PKCS#1 or SEC1)".to_owned()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| invalid("versions", error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| invalid("key", format!("it does not belong to the certificate: {error}")))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl Tls {
    /// TLS 1.2 and 1.3 with this chain of certificates (the server's own first) and its private key, both PEM.
    ///
    /// # Errors
    /// `InvalidSpec` when one of them is not what it should be, or they do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        Ok(Self(Arc::new(ArcSwap::new(configured(chain, key)?))))
    }

    /// With a configuration of one's own: client certificates, names, other providers. Its `alpn_protocols` are
    /// taken as they are.
    pub fn from_config(config: Arc<ServerConfig>) -> Self {
        Self(Arc::new(ArcSwap::new(config)))
    }

    /// Replaces certificate and key for connections to come.
    ///
    /// # Errors
    /// As [`Tls::from_pem`]; the old ones stay then.
    pub fn reload(&self, chain: &[u8], key: &[u8]) -> Result<()> {
        self.0.store(configured(chain, key)?);
        Ok(())
    }

    pub(super) fn acceptor(&self) -> tokio_rustls::TlsAcceptor {
        tokio_rustls::TlsAcceptor::from(self.0.load_full())
    }
}
