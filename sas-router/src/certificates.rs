//! Certificates of several names, and which of them a client is shown.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sas_core::SpecErrors;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// The most pairs that a directory may have.
const MOST: usize = 10_000;
/// Bytes that one file may have.
const LONGEST: u64 = 1 << 20;
/// The pair of this name is shown to whoever asks for no name, or for one that no other pair has.
const DEFAULT: &str = "default";

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CertificateView {
    /// The name of its files.
    pub name: String,
    /// The names of hosts that it is for, in lower case; `*.example.org` is for one label below.
    pub domains: Vec<String>,
    /// When it ends.
    pub expires: SystemTime,
    /// Whether it is shown where no other fits.
    pub is_default: bool,
}

#[derive(Debug)]
struct Pair {
    key: Arc<CertifiedKey>,
    view: CertificateView,
}

/// Certificates with their keys, found by the name that a client asks for (SNI, RFC 6066).
///
/// A directory holds pairs: `NAME.crt` and `NAME.key`, or a directory `NAME` with `tls.crt` and `tls.key` (as Kubernetes
/// mounts secrets) or with `fullchain.pem` and `privkey.pem` (as certbot writes them). Which hosts a pair is for stands in the
/// certificate itself; of two for one host, the one that ends later is shown. A name of a host goes before a wildcard. The
/// pair named `default`, or the only one that there is, is shown to those who ask for no name or for another one; without
/// one, they are refused.
#[derive(Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Arc<Pair>>,
    /// By what comes after `*.`.
    wildcards: HashMap<String, Arc<Pair>>,
    default: Option<Arc<Pair>>,
    all: Vec<Arc<Pair>>,
}

impl Certificates {
    /// Reads a directory. Blocking.
    ///
    /// # Errors
    /// Every pair that is none, by the name of its file: then none of the others is to be used either.
    pub fn read(dir: &Path) -> Result<Self, SpecErrors> {
        let mut errors = SpecErrors::default();
        let mut pairs = Vec::new();
        match found(dir) {
            Ok(files) => {
                for (name, chain, key) in files {
                    match pair(&name, &chain, &key) {
                        Ok(pair) => pairs.push(pair),
                        Err((file, problem)) => errors.push(&name, file.display(), problem),
                    }
                }
            }
            Err((at, problem)) => errors.push("certificates", at.display(), problem),
        }
        errors.into_result()?;
        Ok(Self::of(pairs))
    }

    fn of(mut pairs: Vec<Pair>) -> Self {
        pairs.sort_by(|one, two| one.view.name.cmp(&two.view.name));
        let only = pairs.len() == 1;
        let mut certificates = Self::default();
        for mut pair in pairs {
            pair.view.is_default = only || pair.view.name == DEFAULT;
            let pair = Arc::new(pair);
            if pair.view.is_default {
                certificates.default = Some(Arc::clone(&pair));
            }
            for domain in &pair.view.domains {
                let (map, name) = match domain.strip_prefix("*.") {
                    Some(below) => (&mut certificates.wildcards, below),
                    None => (&mut certificates.exact, domain.as_str()),
                };
                let later = map.get(name).is_none_or(|other| other.view.expires < pair.view.expires);
                if later {
                    map.insert(name.to_owned(), Arc::clone(&pair));
                }
            }
            certificates.all.push(pair);
        }
        certificates
    }

    /// What each says of itself, by the names of their files.
    pub fn views(&self) -> impl Iterator<Item = &CertificateView> {
        self.all.iter().map(|pair| &pair.view)
    }

    /// Which one is shown to whoever asks for this host.
    fn find(&self, host: &str) -> Option<&Arc<Pair>> {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let below = || self.wildcards.get(host.split_once('.')?.1);
        self.exact.get(&host).or_else(below).or(self.default.as_ref())
    }

    /// Whether a request for `host` came over a connection for `asked`, which another certificate is for: then it is no
    /// answer of the host that the client believes to be talking to (RFC 9110, section 15.5.20).
    fn misdirected(&self, asked: &str, host: &str) -> bool {
        match (self.find(asked), self.find(host)) {
            (Some(shown), Some(right)) => !Arc::ptr_eq(shown, right),
            _ => !asked.eq_ignore_ascii_case(host),
        }
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pair = match hello.server_name() {
            Some(name) => self.find(name),
            None => self.default.as_ref(),
        };
        pair.map(|pair| Arc::clone(&pair.key))
    }
}

/// What a connection was asked for, where that chooses a certificate.
#[derive(Debug)]
pub(crate) struct Asked {
    name: String,
    certificates: Arc<Certificates>,
}

impl Asked {
    pub(crate) fn new(name: &str, certificates: Arc<Certificates>) -> Self {
        Self { name: name.to_owned(), certificates }
    }

    /// Whether this host is another one's than the connection was asked for.
    pub(crate) fn excludes(&self, host: &str) -> bool {
        self.certificates.misdirected(&self.name, host)
    }
}

type Files = (String, PathBuf, PathBuf);

/// The pairs of a directory by name, in no order.
fn found(dir: &Path) -> Result<Vec<Files>, (PathBuf, String)> {
    let unreadable = |error: io::Error| (dir.to_owned(), format!("can't be read: {error}"));
    let mut pairs: Vec<Files> = Vec::new();
    for entry in fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(file) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if file.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            let inside = [("tls.crt", "tls.key"), ("fullchain.pem", "privkey.pem")];
            let inside = inside.map(|(chain, key)| (path.join(chain), path.join(key)));
            if let Some((chain, key)) = inside.into_iter().find(|(chain, key)| chain.exists() || key.exists())
            {
                pairs.push((file.to_owned(), chain, key));
            }
        } else if let Some(name) = file.strip_suffix(".crt") {
            pairs.push((name.to_owned(), path.clone(), path.with_extension("key")));
        } else if file.ends_with(".key") && !path.with_extension("crt").exists() {
            return Err((path, "there is no certificate of the same name (.crt) beside it".to_owned()));
        }
        if pairs.len() > MOST {
            return Err((dir.to_owned(), format!("has more than {MOST} certificates")));
        }
    }
    if pairs.is_empty() {
        let problem = "has no pair: put NAME.crt and NAME.key there, or NAME/tls.crt and NAME/tls.key";
        return Err((dir.to_owned(), problem.to_owned()));
    }
    Ok(pairs)
}

fn pair(name: &str, chain: &Path, key: &Path) -> Result<Pair, (PathBuf, String)> {
    let read = |path: &Path| {
        let size =
            fs::metadata(path).map_err(|error| (path.to_owned(), format!("can't be read: {error}")))?.len();
        if size > LONGEST {
            return Err((path.to_owned(), format!("has {size} bytes, and such a file at most {LONGEST}")));
        }
        fs::read(path).map_err(|error| (path.to_owned(), format!("can't be read: {error}")))
    };
    let (chain_text, key_text) = (read(chain)?, read(key)?);
    parse(name, &chain_text, &key_text).map_err(|(field, problem)| {
        let file = if field == "key" { key } else { chain };
        (file.to_owned(), problem)
    })
}

/// A pair of texts in PEM, or which of them is wrong and why. The error of a key is not passed on: it might hold a part of it.
fn parse(name: &str, chain: &[u8], key: &[u8]) -> Result<Pair, (&'static str, String)> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .map_err(|error| ("certificates", format!("no certificates in PEM: {error}")))?;
    let own = chain.first().ok_or_else(|| ("certificates", "there is none in the PEM text".to_owned()))?;
    let (_, certificate) = X509Certificate::from_der(own)
        .map_err(|error| ("certificates", format!("the first one is no X.509 certificate: {error}")))?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let mut domains: Vec<String> = names
        .into_iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        })
        .collect();
    domains.dedup();
    let seconds = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or_default();
    let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| ("key", "no private key in PEM (PKCS#8, PKCS#1 or SEC1)".to_owned()))?;
    let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|error| ("key", format!("it does not belong to the certificate: {error}")))?;
    let view = CertificateView { name: name.to_owned(), domains, expires, is_default: false };
    Ok(Pair { key: Arc::new(key), view })
}
