//! Which servers may be spoken to, and as whom.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lapin::{
    Connection, ConnectionProperties,
    tcp::OwnedTLSConfig,
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;
use tokio::{runtime::Handle, time::timeout};

/// After how long an answer is missed.
const ANSWER: Duration = Duration::from_secs(10);
/// Seconds after which a connection without a sign of the other side is broken.
const HEARTBEAT: u16 = 10;
/// AMQP's code for a connection that is closed in order.
const REPLY_SUCCESS: u16 = 200;

/// The servers that triggers may read from and write to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct RabbitServers {
    pub(crate) hosts: Arc<BTreeSet<String>>,
}

impl RabbitServers {
    /// These servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a trigger reaches no other
    /// address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: Arc::new(hosts.into_iter().map(Into::into).collect()) }
    }
}

/// The server of a declaration, and references to what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) server: String,
    host: String,
    port: u16,
    vhost: String,
    username: String,
    password: String,
    tls: bool,
    authorities: Authorities,
}

/// A connection, which is closed in words when it is dropped: the client keeps one that is dropped while something is asked on
/// it, with its consumer and the messages that the broker gave to that.
pub(crate) struct Line(Option<Connection>);

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Line")
    }
}

impl Line {
    pub(crate) fn connection(&self) -> &Connection {
        self.0.as_ref().expect("it is taken out by `drop` alone")
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let (Some(connection), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ =
                    timeout(ANSWER, connection.close(REPLY_SUCCESS, "it is not used any more".into())).await;
            });
        }
    }
}

pub(crate) fn failed(what: &str) -> impl Fn(lapin::Error) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: {error}")).with_source(error)
}

/// The certificates of Mozilla's authorities, in PEM.
fn mozilla() -> String {
    let pem = |certificate: &[u8]| {
        let text = STANDARD.encode(certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().map(|certificate| pem(certificate)).collect()
}

/// What the broker answers, or an error when it does not.
pub(crate) async fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(failed(what)),
        Err(_) => Err(missed(what)),
    }
}

fn missed(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: no answer within {ANSWER:?}"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let by = "`PlatformBuilder::rabbitmq_hosts`";
        let server = options.server("url", &["amqp", "amqps"], allowed, by);
        if server.path.contains(['/', '?', '#', '%']) {
            options.wrong(
                "url",
                server.path,
                "must be amqp://host:port or amqp://host:port/vhost, without parameters",
            );
        }
        let (host, port) = server.host_and_port().unwrap_or_default();
        if !server.address.is_empty() && port == 0 {
            options.wrong("url", server.address, "must name a port, such as 5672");
        }
        let username = options.required("username").to_owned();
        let password = options.required("password-secret").to_owned();
        let tls = server.scheme == "amqps";
        let authorities = Authorities::read(options, "amqps://", tls);
        let vhost = if server.path.is_empty() { "/" } else { server.path };
        Self {
            server: format!("{}://{}", server.scheme, server.address),
            host: host.to_owned(),
            port,
            vhost: vhost.to_owned(),
            username,
            password,
            tls,
            authorities,
        }
    }

    /// A connection with the credentials as they are now, which the server knows by `name`.
    pub(crate) async fn connect(&self, name: &str, secrets: &TriggerSecrets) -> Result<Line> {
        let mut uri = AMQPUri {
            scheme: if self.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.username.clone(),
                    password: secrets.text(&self.password).await?,
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: AMQPQueryString::default(),
        };
        uri.query.heartbeat = Some(HEARTBEAT);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        // The client is built without authorities of its own: it trusts those only that it is given.
        let trusted = match self.tls {
            true => Some(self.authorities.pem(secrets).await?.unwrap_or_else(mozilla)),
            false => None,
        };
        let trusted = OwnedTLSConfig { identity: None, cert_chain: trusted };
        let what = format!("connecting to {}", self.server);
        let runtime = lapin::runtime::default_runtime()
            .map_err(|error| Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: {error}")))?;
        // In a task of its own: when this run is dropped meanwhile, what comes of it is closed all the same.
        let connecting = tokio::spawn(async move {
            let connecting = Connection::connect_uri_with_config(uri, properties, trusted, runtime);
            timeout(ANSWER, connecting)
                .await
                .map(|connected| connected.map(|connection| Line(Some(connection))))
        });
        match connecting.await {
            Ok(Ok(connected)) => connected.map_err(failed(&what)),
            Ok(Err(_)) => Err(missed(&what)),
            Err(error) => Err(Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mozillas_authorities_are_certificates_in_pem() {
        let pem = mozilla();
        assert!(pem.matches("BEGIN CERTIFICATE").count() > 50);
        assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), pem.matches("END CERTIFICATE").count());
    }
}
