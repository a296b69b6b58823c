//! Which servers may be spoken to, and as whom.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::timeout,
};
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::sync::CancellationToken;

/// After how long an answer is missed.
const ANSWER: Duration = Duration::from_secs(10);

/// The servers that triggers may read from and write to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct PostgresServers {
    pub(crate) hosts: Arc<BTreeSet<String>>,
}

impl PostgresServers {
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
    pub(crate) database: String,
    username: String,
    password: Option<String>,
    tls: bool,
    authorities: Authorities,
}

pub(crate) fn failed(what: &str) -> impl Fn(tokio_postgres::Error) -> Error + '_ {
    move |error| {
        let told = match error.as_db_error() {
            Some(error) => format!("{what}: {} ({})", error.message(), error.code().code()),
            None => format!("{what}: {error}"),
        };
        Error::new(ErrorKind::Unavailable, "postgres", told).with_source(error)
    }
}

/// What the server answers, or an error when it does not.
pub(crate) async fn answer<T>(
    what: &str,
    asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(failed(what)),
        Err(_) => {
            let message = format!("{what}: no answer within {ANSWER:?}");
            Err(Error::new(ErrorKind::Unavailable, "postgres", message))
        }
    }
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let by = "`PlatformBuilder::postgres_hosts`";
        let server = options.server("url", &["postgres", "postgresql"], allowed, by);
        let database = server.path;
        if !server.address.is_empty() && (database.is_empty() || database.contains(['/', '?', '#', '%'])) {
            let problem =
                "must be postgres://host:port/database, without parameters (TLS is the option `tls`)";
            options.wrong("url", database, problem);
        }
        let (host, port) = server.host_and_port().unwrap_or_default();
        if !server.address.is_empty() && port == 0 {
            options.wrong("url", server.address, "must name a port, such as 5432");
        }
        let username = options.required("username").to_owned();
        let password = options.reference("password-secret");
        let tls = options.flag("tls", false);
        let authorities = Authorities::read(options, "`tls: \"true\"`", tls);
        Self {
            server: format!("postgres://{}/{database}", server.address),
            host: host.to_owned(),
            port,
            database: database.to_owned(),
            username,
            password,
            tls,
            authorities,
        }
    }

    /// A connection with the credentials as they are now, and what drives it until it is dropped. `lost` is cancelled when
    /// it breaks, and `notified` called when somebody notifies.
    pub(crate) async fn connect(
        &self,
        secrets: &TriggerSecrets,
        lost: &CancellationToken,
        notified: impl Fn() + Send + 'static,
    ) -> Result<(Client, JoinSet<()>)> {
        let mut config = Config::new();
        config
            .host(&self.host)
            .port(self.port)
            .dbname(&self.database)
            .user(&self.username)
            .application_name("sas")
            .connect_timeout(ANSWER);
        if let Some(reference) = &self.password {
            config.password(secrets.text(reference).await?);
        }
        let what = format!("connecting to {}", self.server);
        let mut driver = JoinSet::new();
        let client = if self.tls {
            config.ssl_mode(SslMode::Require);
            let tls = MakeRustlsConnect::new(self.authorities.client_config(secrets).await?);
            let (client, connection) = answer(&what, config.connect(tls)).await?;
            driver.spawn(drive(connection, lost.clone(), notified));
            client
        } else {
            config.ssl_mode(SslMode::Disable);
            let (client, connection) = answer(&what, config.connect(NoTls)).await?;
            driver.spawn(drive(connection, lost.clone(), notified));
            client
        };
        Ok((client, driver))
    }
}

async fn drive<S: AsyncRead + AsyncWrite + Unpin, T: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S, T>,
    lost: CancellationToken,
    notified: impl Fn(),
) {
    let mut messages = stream::poll_fn(move |cx| connection.poll_message(cx));
    while let Some(Ok(message)) = messages.next().await {
        if matches!(message, AsyncMessage::Notification(_)) {
            notified();
        }
    }
    lost.cancel();
}
