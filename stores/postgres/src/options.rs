//! Where the server is, and how it is talked to.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    sync::Arc,
    time::Duration,
};

use percent_encoding::percent_decode_str;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use sas_core::{Error, ErrorKind, Result, Secret};
use tokio_postgres::{
    Config,
    config::{Host, SslMode, TargetSessionAttrs},
};

/// The schema unless the URL names another.
const SCHEMA: &str = "sas";
/// Connections for reads and commits unless the URL says otherwise.
const CONNECTIONS: usize = 8;
/// How long a connection may take to be made.
pub(crate) const CONNECT: Duration = Duration::from_secs(5);

/// Where the URL comes from.
#[derive(Clone, Debug)]
enum Origin {
    Given(Secret),
    File(PathBuf),
}

/// Where a [`PostgresStore`](crate::PostgresStore) keeps its state.
///
/// The URL is PostgreSQL's own: `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, with several `HOST:PORT` separated by commas
/// where replicas may take over (the one that takes writes is used), and with parameters after a `?`:
///
/// | Parameter | Meaning | Without it |
/// |---|---|---|
/// | `schema` | where the tables are; platforms with schemas of their own share a database | `sas` |
/// | `connections` | how many are open at most for reads and commits, 2 to 100; one more listens | 8 |
/// | `sslmode` | `disable`, or `verify-full`: TLS, with a certificate of that host (`require` is the same) | `verify-full`; `disable` where all hosts are this machine |
/// | `sslrootcert` | a file with the certificates of authorities to trust, in PEM | those of the web |
///
/// Others, such as `connect_timeout` and `application_name`, mean what they mean to `tokio-postgres`.
///
/// ```
/// use sas_core::Secret;
/// use sas_store_postgres::PostgresOptions;
///
/// PostgresOptions::new(Secret::new("postgres://sas:pw@db.example.com:5432/platform?schema=prod"))?;
/// let error = PostgresOptions::new(Secret::new("mysql://sas:pw@db.example.com/platform")).unwrap_err();
/// assert!(error.message.contains("postgres://") && !error.message.contains("pw"));
/// # Ok::<_, sas_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PostgresOptions {
    origin: Origin,
    pub(crate) schema: String,
    pub(crate) connections: usize,
}

/// What a URL says.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) config: Config,
    /// Used as the configuration's `ssl_mode` says.
    pub(crate) tls: Arc<ClientConfig>,
    schema: String,
    connections: usize,
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "store", message)
}

impl PostgresOptions {
    /// The store at this URL.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no such URL. What it says never has a part of the URL in it that could be a password.
    pub fn new(url: Secret) -> Result<Self> {
        let target = Target::parse(url.expose())?;
        Ok(Self { origin: Origin::Given(url), schema: target.schema, connections: target.connections })
    }

    /// The store at the URL that a file holds. The file is read for each new connection, so that a password that was
    /// changed in it counts from then on; schema and number of connections stay as they are.
    ///
    /// # Errors
    /// `InvalidSpec` for a file that can't be read or holds no such URL.
    pub fn from_file(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let target = Target::parse(read(&path)?.expose())?;
        Ok(Self { origin: Origin::File(path), schema: target.schema, connections: target.connections })
    }

    /// What the URL says now. Blocking.
    pub(crate) fn target(&self) -> Result<Target> {
        match &self.origin {
            Origin::Given(url) => Target::parse(url.expose()),
            Origin::File(path) => Target::parse(read(path)?.expose()),
        }
    }
}

fn read(path: &Path) -> Result<Secret> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("{}: the file with the store's URL can't be read: {error}", path.display());
        invalid(message).with_source(error)
    })?;
    Ok(Secret::new(text.trim()))
}

/// A word that stands between quotation marks in statements, and is part of the name of a channel.
fn is_schema(name: &str) -> bool {
    let right = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    !name.is_empty()
        && name.len() <= 48
        && name.bytes().all(right)
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && !name.starts_with("pg_")
}

impl Target {
    fn parse(url: &str) -> Result<Self> {
        let form = "write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with special characters of user and password as \
                    %XX";
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err(invalid(format!("the store's URL does not begin with postgres://: {form}")));
        }
        let (place, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut schema, mut connections) = (SCHEMA.to_owned(), CONNECTIONS);
        let (mut mode, mut roots) = (None, None);
        let mut rest: Vec<&str> = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            match &*percent_decode_str(name).decode_utf8_lossy() {
                "password" => {
                    return Err(invalid(format!(
                        "password=… in the store's URL, where it would be shown: {form}, in a file, and give the file"
                    )));
                }
                "schema" => {
                    if !is_schema(&value) {
                        return Err(invalid(format!(
                            "schema={value:?} in the store's URL: use 1 to 48 lower-case letters, digits and _"
                        )));
                    }
                    schema = value.into_owned();
                }
                "connections" => {
                    connections =
                        value.parse().ok().filter(|count| (2..=100).contains(count)).ok_or_else(|| {
                            invalid(format!("connections={value:?} in the store's URL: use 2 to 100"))
                        })?;
                }
                "sslmode" => mode = Some(value.into_owned()),
                "sslrootcert" => roots = Some(value.into_owned()),
                _ => rest.push(parameter),
            }
        }
        let plain = if rest.is_empty() { place.to_owned() } else { format!("{place}?{}", rest.join("&")) };
        // What it says may hold a part of a password with a `?` in it.
        let mut config = Config::from_str(&plain)
            .map_err(|_| invalid(format!("the store's URL can't be read: {form}")))?;
        for (what, found) in [
            ("host", config.get_hosts().iter().any(|host| *host != Host::Tcp(String::new()))),
            ("database", config.get_dbname().is_some_and(|name| !name.is_empty())),
            ("user", config.get_user().is_some_and(|name| !name.is_empty())),
        ] {
            if !found {
                return Err(invalid(format!("the store's URL names no {what}: {form}")));
            }
        }
        let local = config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => {
                name == "localhost" || name.parse().is_ok_and(|it: std::net::IpAddr| it.is_loopback())
            }
            #[cfg(unix)]
            Host::Unix(_) => true,
        }) && config.get_hostaddrs().iter().all(std::net::IpAddr::is_loopback);
        let encrypted = match mode.as_deref() {
            None => !local,
            Some("disable") => false,
            Some("require" | "verify-full") => true,
            Some(other) => {
                return Err(invalid(format!(
                    "sslmode={other:?} in the store's URL: use verify-full, or disable on networks that are yours alone"
                )));
            }
        };
        let tls = tls(roots.as_deref())?;
        config.ssl_mode(if encrypted { SslMode::Require } else { SslMode::Disable });
        if config.get_application_name().is_none() {
            config.application_name("sas");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT);
        }
        // A server that vanished is missed within seconds, not hours.
        config
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .tcp_user_timeout(Duration::from_secs(10))
            .keepalives_idle(Duration::from_secs(10))
            .keepalives_interval(Duration::from_secs(5))
            .keepalives_retries(3);
        Ok(Self { config, tls, schema, connections })
    }
}

fn tls(roots: Option<&str>) -> Result<Arc<ClientConfig>> {
    let trusted = match roots {
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        Some(path) => {
            let wrong = || {
                let problem =
                    format!("sslrootcert={path:?} in the store's URL: no file of certificates in PEM");
                invalid(problem)
            };
            let mut trusted = RootCertStore::empty();
            for certificate in CertificateDer::pem_file_iter(path).map_err(|_| wrong())? {
                trusted.add(certificate.map_err(|_| wrong())?).map_err(|_| wrong())?;
            }
            if trusted.is_empty() {
                return Err(wrong());
            }
            trusted
        }
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows TLS 1.2 and 1.3");
    Ok(Arc::new(config.with_root_certificates(trusted).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Target> {
        Target::parse(url)
    }

    #[test]
    fn machines_beyond_this_one_are_talked_to_by_tls_unless_the_url_says_otherwise() {
        for (url, encrypted) in [
            ("postgres://sas@127.0.0.1:5432/sas", false),
            ("postgres://sas@localhost/sas", false),
            ("postgres://sas@[::1]/sas", false),
            ("postgres://sas@%2Frun%2Fpostgresql/sas", false),
            ("postgres://sas@127.0.0.1/sas?sslmode=require", true),
            ("postgres://sas@10.0.0.7/sas", true),
            ("postgres://sas@localhost/sas?hostaddr=10.0.0.7", true),
            ("postgres://sas@localhost/sas?hostaddr=127.0.0.1", false),
            ("postgres://sas@127.0.0.1,db.example.com/sas", true),
            ("postgresql://sas@db.example.com/sas?sslmode=disable", false),
        ] {
            let target = parsed(url).unwrap();
            let mode = if encrypted { SslMode::Require } else { SslMode::Disable };
            assert_eq!(target.config.get_ssl_mode(), mode, "{url}");
        }
    }

    #[test]
    fn parameters_are_taken_and_wrong_ones_are_named_without_the_password() {
        let target = parsed(
            "postgres://sas:hunter2@h1:5433,h2/sas?schema=a_1&connections=3&sslmode=disable&application_name=x",
        )
        .unwrap();
        assert_eq!((target.schema.as_str(), target.connections), ("a_1", 3));
        assert_eq!(target.config.get_hosts().len(), 2);
        assert_eq!(target.config.get_application_name(), Some("x"));
        for (url, says) in [
            ("postgres://sas:hunter2@h/sas?schema=a\"b", "schema"),
            ("postgres://sas:hunter2@h/sas?schema=Upper", "schema"),
            ("postgres://sas:hunter2@h/sas?schema=pg_x", "schema"),
            ("postgres://sas:hunter2@h/sas?connections=1", "2 to 100"),
            ("postgres://sas:hunter2@h/sas?sslmode=prefer", "sslmode"),
            ("postgres://sas:hunter2@h/sas?sslrootcert=%2Fnowhere", "sslrootcert"),
            ("postgres://sas:hunter2@h/sas?colour=hunter2", "can't be read"),
            ("postgres://sas@h/sas?password=hunter2", "in a file"),
            ("postgres://sas@h/sas?%70assword=hunter2", "in a file"),
            ("postgres://:hunter2@h/sas", "names no"),
            ("postgres://sas:hunter2@h", "no database"),
            ("postgres:///sas", "names no"),
            ("http://sas:hunter2@h/sas", "does not begin"),
        ] {
            let Err(error) = parsed(url) else { panic!("{url} is taken") };
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{url}");
            assert!(error.message.contains(says), "{url}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunt"), "{url}: {error:?}");
        }
        let missing = PostgresOptions::from_file("/nowhere/url").unwrap_err();
        assert!(missing.message.contains("/nowhere/url"), "{missing}");
    }
}
