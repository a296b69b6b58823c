#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]
//!
//! ```
//! use std::collections::BTreeMap;
//! use sas_core::{TriggerOptions, TriggerSecrets};
//! use sas_tls::Authorities;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let given = BTreeMap::new();
//! let mut options = TriggerOptions::new(&given, "options.");
//! let authorities = Authorities::read(&mut options, "tls://", true);
//! options.finish()?;
//! let config = authorities.client_config(&TriggerSecrets::default()).await?;
//! # drop(config);
//! # Ok(())
//! # }
//! ```

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};

/// Whom a client trusts: the authorities whose certificates a secret holds, in PEM, and no other; without one, Mozilla's.
#[derive(Clone, Debug, Default)]
pub struct Authorities {
    secret: Option<String>,
}

impl Authorities {
    /// Reads the option `ca-secret`, which is wrong where the connection is not `encrypted`; `scheme` is what would make it so.
    pub fn read(options: &mut TriggerOptions<'_>, scheme: &str, encrypted: bool) -> Self {
        let secret = options.reference("ca-secret");
        if let (Some(reference), false) = (&secret, encrypted) {
            options.wrong("ca-secret", reference, format!("is for {scheme}"));
        }
        Self { secret }
    }

    /// What the secret holds now, of which it is known that it is certificates in PEM; `None`: Mozilla's authorities.
    ///
    /// # Errors
    /// `InvalidSpec` naming the secret when it holds none; that of the source of secrets.
    pub async fn pem(&self, secrets: &TriggerSecrets) -> Result<Option<String>> {
        let Some(reference) = &self.secret else { return Ok(None) };
        let pem = secrets.text(reference).await?;
        roots_of(reference, &pem)?;
        Ok(Some(pem))
    }

    /// The authorities as they are now.
    ///
    /// # Errors
    /// As [`Authorities::pem`].
    pub async fn roots(&self, secrets: &TriggerSecrets) -> Result<RootCertStore> {
        match &self.secret {
            None => Ok(RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() }),
            Some(reference) => roots_of(reference, &secrets.text(reference).await?),
        }
    }

    /// A client of TLS 1.2 and 1.3 that trusts the authorities as they are now, and has no certificate of its own.
    ///
    /// # Errors
    /// As [`Authorities::pem`].
    pub async fn client_config(&self, secrets: &TriggerSecrets) -> Result<ClientConfig> {
        Ok(client_config(self.roots(secrets).await?))
    }
}

/// A client of TLS 1.2 and 1.3 that trusts `roots`, and has no certificate of its own.
pub fn client_config(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

fn roots_of(reference: &str, pem: &str) -> Result<RootCertStore> {
    let wrong = || {
        let message = format!("the secret {reference} holds no certificates in PEM");
        Error::new(ErrorKind::InvalidSpec, "tls", message)
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|_| wrong())?).map_err(|_| wrong())?;
    }
    if roots.is_empty() { Err(wrong()) } else { Ok(roots) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_certificates_is_named() {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        assert_eq!(roots_of("secret/a/ca", &made.cert.pem()).unwrap().len(), 1);
        for wrong in ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = roots_of("secret/a/ca", wrong).unwrap_err().to_string();
            assert!(error.contains("secret/a/ca holds no certificates"), "{error}");
        }
    }
}
