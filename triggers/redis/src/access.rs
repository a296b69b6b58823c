//! Which servers may be spoken to, and as whom.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use redis::{AsyncConnectionConfig, Client, RedisError, TlsCertificates, aio::MultiplexedConnection, cmd};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;

/// After how long an answer is missed.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// The servers that triggers may read from and write to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct RedisServers {
    pub(crate) hosts: Arc<BTreeSet<String>>,
}

impl RedisServers {
    /// These servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a trigger reaches no other
    /// address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: Arc::new(hosts.into_iter().map(Into::into).collect()) }
    }
}

/// The server of a declaration, and references to what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    url: String,
    username: Option<String>,
    password: Option<String>,
    authorities: Authorities,
}

pub(crate) fn failed(what: &str) -> impl Fn(RedisError) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "redis", format!("{what}: {error}"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let by = "`PlatformBuilder::redis_hosts`";
        let server = options.server("url", &["redis", "rediss"], allowed, by);
        if !server.path.is_empty() && server.path.parse::<u16>().is_err() {
            let problem =
                "must be redis://host:port/database or redis://host:port, or the same with rediss:// for TLS";
            options.wrong("url", server.path, problem);
        }
        if !server.address.is_empty() && server.host_and_port().is_none() {
            options.wrong("url", server.address, "must name a port, such as 6379");
        }
        let (username, password) = (options.reference("username"), options.reference("password-secret"));
        if username.is_some() && password.is_none() {
            options.wrong("password-secret", "", "must refer to the password of `username`");
        }
        let authorities = Authorities::read(options, "rediss://", server.scheme == "rediss");
        let url = format!("{}://{}/{}", server.scheme, server.address, server.path);
        Self { url, username, password, authorities }
    }

    async fn client(&self, secrets: &TriggerSecrets) -> Result<Client> {
        let client = match self.authorities.pem(secrets).await? {
            Some(pem) => {
                let certificates = TlsCertificates { client_tls: None, root_cert: Some(pem.into_bytes()) };
                Client::build_with_tls(self.url.as_str(), certificates)
            }
            None => Client::open(self.url.as_str()),
        };
        client.map_err(failed(&self.url))
    }

    /// A connection with the credentials as they are now.
    pub(crate) async fn connect(&self, secrets: &TriggerSecrets) -> Result<MultiplexedConnection> {
        let client = self.client(secrets).await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connected = client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(failed(&format!("connecting to {}", self.url)))?;
        if let Some(reference) = &self.password {
            let password = secrets.text(reference).await?;
            let mut auth = cmd("AUTH");
            if let Some(username) = &self.username {
                auth.arg(username);
            }
            auth.arg(password);
            auth.query_async::<()>(&mut connection).await.map_err(failed("AUTH"))?;
        }
        Ok(connection)
    }
}
