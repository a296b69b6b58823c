//! Where the cluster is, and how it is talked to.

use std::{fmt, net::IpAddr, time::Duration};

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use percent_encoding::percent_decode_str;
use sas_core::{Error, ErrorKind, Result, Secret};

/// The prefix unless the URL names another.
const PREFIX: &str = "sas";
/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Where an [`EtcdStore`](crate::EtcdStore) keeps its state.
///
/// The URL is `etcd://USER:PASSWORD@HOST:PORT,HOST:PORT/PREFIX`, user and password only where etcd asks for them. All keys
/// begin with the prefix (`sas` where none is named) and a `/`; platforms with prefixes of their own share a cluster.
///
/// | Parameter | Meaning | Without it |
/// |---|---|---|
/// | `sslmode` | `disable`, or `verify-full`: TLS, with a certificate of that host | `verify-full`; `disable` where all hosts are this machine |
/// | `sslrootcert` | a file with the certificates of authorities to trust, in PEM | those of the web |
/// | `sslcert`, `sslkey` | files with a certificate and its key to show, in PEM | none is shown |
///
/// ```
/// use sas_core::Secret;
/// use sas_store_etcd::EtcdOptions;
///
/// EtcdOptions::new(Secret::new("etcd://127.0.0.1:2379/prod"))?;
/// let error = EtcdOptions::new(Secret::new("etcd://sas:pw@127.0.0.1/prod")).unwrap_err();
/// assert!(error.message.contains("HOST:PORT") && !error.message.contains("pw"));
/// # Ok::<_, sas_core::Error>(())
/// ```
#[derive(Clone)]
pub struct EtcdOptions {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) connect: ConnectOptions,
}

impl fmt::Debug for EtcdOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdOptions")
            .field("endpoints", &self.endpoints)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "store", message)
}

fn is_here(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

impl EtcdOptions {
    /// The store at this URL. Files that it names are read now.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no such URL. What it says never has a part of the URL in it that could be a password.
    pub fn new(url: Secret) -> Result<Self> {
        const FORM: &str = "write etcd://USER:PASSWORD@HOST:PORT,HOST:PORT/PREFIX, with special characters of user and \
                            password as %XX";
        let Some(rest) = url.expose().strip_prefix("etcd://") else {
            return Err(invalid(format!("the store's URL does not begin with etcd://: {FORM}")));
        };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (servers, prefix) = place.split_once('/').unwrap_or((place, ""));
        let (login, hosts) = match servers.rsplit_once('@') {
            Some((login, hosts)) => (Some(login), hosts),
            None => (None, servers),
        };
        let mut addresses = Vec::new();
        for address in hosts.split(',') {
            let parts = address.rsplit_once(':');
            let right = parts.is_some_and(|(host, port)| {
                !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
            });
            if !right {
                return Err(invalid(format!("a server in the store's URL is no HOST:PORT: {FORM}")));
            }
            addresses.extend(parts.map(|(host, _)| (host, address)));
        }
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { PREFIX } else { prefix };
        if prefix.len() > 100 || !prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid(format!(
                "prefix {prefix:?} in the store's URL: use up to 100 ASCII characters"
            )));
        }
        let (mut mode, mut roots, mut certificate, mut key) = (None, None, None, None);
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = percent_decode_str(value).decode_utf8_lossy().into_owned();
            let place = match name {
                "sslmode" => &mut mode,
                "sslrootcert" => &mut roots,
                "sslcert" => &mut certificate,
                "sslkey" => &mut key,
                _ => {
                    let message = "the store's URL has a parameter that is none of sslmode, sslrootcert, sslcert, sslkey";
                    return Err(invalid(message));
                }
            };
            *place = Some(value);
        }
        let encrypted = match mode.as_deref() {
            None => !addresses.iter().all(|(host, _)| is_here(host)),
            Some("disable") => false,
            Some("require" | "verify-full") => true,
            Some(other) => {
                return Err(invalid(format!(
                    "sslmode={other:?} in the store's URL: use verify-full, or disable on networks that are yours alone"
                )));
            }
        };
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT)
            .with_keep_alive(Duration::from_secs(10), Duration::from_secs(5))
            .with_keep_alive_while_idle(true)
            // A member that lost the others says so, and does not let who watches wait for ever.
            .with_require_leader(true);
        if let Some(login) = login {
            let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            connect = connect.with_user(decoded(user), decoded(password)).with_auto_token_refresh(true);
        }
        if encrypted {
            let mut tls = TlsOptions::new();
            tls = match &roots {
                Some(path) => tls.ca_certificate(Certificate::from_pem(pem("sslrootcert", path)?)),
                None => tls.with_enabled_roots(),
            };
            match (&certificate, &key) {
                (Some(certificate), Some(key)) => {
                    tls = tls.identity(Identity::from_pem(pem("sslcert", certificate)?, pem("sslkey", key)?));
                }
                (None, None) => {}
                _ => return Err(invalid("sslcert and sslkey in the store's URL: give both, or none")),
            }
            connect = connect.with_tls(tls);
        }
        let scheme = if encrypted { "https" } else { "http" };
        Ok(Self {
            endpoints: addresses.iter().map(|(_, address)| format!("{scheme}://{address}")).collect(),
            prefix: format!("{prefix}/"),
            connect,
        })
    }
}

fn pem(name: &str, path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|error| {
        invalid(format!("{name}={path:?} in the store's URL can't be read: {error}")).with_source(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_beyond_this_one_are_talked_to_by_tls_unless_the_url_says_otherwise() {
        for (url, endpoint) in [
            ("etcd://127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("etcd://[::1]:2379/a/b", "http://[::1]:2379"),
            ("etcd://localhost:2379?sslmode=verify-full", "https://localhost:2379"),
            ("etcd://sas:p%40w@10.0.0.7:2379/prod", "https://10.0.0.7:2379"),
            ("etcd://10.0.0.7:2379/prod?sslmode=disable", "http://10.0.0.7:2379"),
        ] {
            let options = EtcdOptions::new(Secret::new(url)).unwrap();
            assert_eq!(options.endpoints, [endpoint], "{url}");
        }
        let three = EtcdOptions::new(Secret::new("etcd://a:1,b:2,c:3/prod/")).unwrap();
        assert_eq!((three.endpoints.len(), three.prefix.as_str()), (3, "prod/"));
        assert_eq!(EtcdOptions::new(Secret::new("etcd://a:1")).unwrap().prefix, "sas/");
    }

    #[test]
    fn wrong_ones_are_named_without_the_password() {
        for (url, says) in [
            ("http://sas:hunter2@a:1", "does not begin"),
            ("etcd://sas:hunter2@a", "HOST:PORT"),
            ("etcd://sas:hunter2@a:0", "HOST:PORT"),
            ("etcd://sas:hunter2@a:1,", "HOST:PORT"),
            ("etcd://sas:hunter2@a:1/p?sslmode=prefer", "sslmode"),
            ("etcd://sas:hunter2@a:1/p?colour=hunter2", "parameter"),
            ("etcd://sas:hunter2@a:1/p?sslrootcert=/nowhere", "/nowhere"),
            ("etcd://sas:hunter2@a:1/p?sslcert=/nowhere", "give both"),
            ("etcd://sas:hunter2@a:1/p q", "prefix"),
        ] {
            let error = EtcdOptions::new(Secret::new(url)).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{url}");
            assert!(error.message.contains(says), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{url}: {error:?}");
        }
    }
}
