//! Which servers may be spoken to, and as whom.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use async_nats::{Client, ConnectOptions};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;
use tokio_util::sync::CancellationToken;

/// After how long an answer is missed.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// The servers that triggers may read from and write to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct NatsServers {
    pub(crate) hosts: Arc<BTreeSet<String>>,
}

impl NatsServers {
    /// These servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a trigger reaches no other
    /// address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: Arc::new(hosts.into_iter().map(Into::into).collect()) }
    }
}

/// How a host says who it is, by references to secrets.
#[derive(Clone, Debug)]
enum Login {
    None,
    Password {
        username: String,
        password: String,
    },
    Token(String),
    /// The text of a `.creds` file: a JWT and a seed.
    Credentials(String),
}

/// The server of a declaration, and references to what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    pub(crate) server: String,
    login: Login,
    tls: bool,
    authorities: Authorities,
}

pub(crate) fn failed<E: fmt::Display>(what: &str) -> impl Fn(E) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "nats", format!("{what}: {error}"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let by = "`PlatformBuilder::nats_hosts`";
        let server = options.server("url", &["nats", "tls"], allowed, by);
        if !server.path.is_empty() {
            options.wrong("url", server.path, "must have nothing after the port");
        }
        let tls = server.scheme == "tls";
        let (username, password) = (options.reference("username"), options.reference("password-secret"));
        let (token, credentials) =
            (options.reference("token-secret"), options.reference("credentials-secret"));
        if username.is_some() != password.is_some() {
            let missing = if username.is_some() { "password-secret" } else { "username" };
            options.wrong(missing, "", "missing: `username` and `password-secret` belong together");
        }
        let login = match (username.zip(password), token, credentials) {
            (None, None, None) => Login::None,
            (Some((username, password)), None, None) => Login::Password { username, password },
            (None, Some(token), None) => Login::Token(token),
            (None, None, Some(credentials)) => Login::Credentials(credentials),
            _ => {
                let problem = "only one of `username` with `password-secret`, `token-secret` and \
                               `credentials-secret` may be given";
                options.wrong("credentials-secret", "", problem);
                Login::None
            }
        };
        let authorities = Authorities::read(options, "tls://", tls);
        Self { server: format!("{}://{}", server.scheme, server.address), login, tls, authorities }
    }

    /// A connection with the credentials as they are now. `lost` is cancelled when it breaks.
    pub(crate) async fn connect(
        &self,
        name: &str,
        secrets: &TriggerSecrets,
        lost: &CancellationToken,
    ) -> Result<Client> {
        let mut options = match &self.login {
            Login::None => ConnectOptions::new(),
            Login::Password { username, password } => {
                ConnectOptions::with_user_and_password(username.clone(), secrets.text(password).await?)
            }
            Login::Token(token) => ConnectOptions::with_token(secrets.text(token).await?),
            Login::Credentials(reference) => {
                let credentials = secrets.text(reference).await?;
                ConnectOptions::with_credentials(&credentials).map_err(|_| {
                    let message = format!("the secret {reference} is no text of a .creds file");
                    Error::new(ErrorKind::InvalidSpec, "nats", message)
                })?
            }
        };
        let lost = lost.clone();
        options = options
            .name(name)
            .connection_timeout(ANSWER)
            .request_timeout(Some(ANSWER))
            // A connection that broke is made anew by whoever uses it, with the secrets as they are then.
            .max_reconnects(1)
            .event_callback(move |event| {
                let lost = lost.clone();
                async move {
                    if matches!(event, async_nats::Event::Disconnected | async_nats::Event::Closed) {
                        lost.cancel();
                    }
                }
            });
        if self.tls {
            let config = self.authorities.client_config(secrets).await?;
            options = options.require_tls(true).tls_client_config(config);
        }
        options.connect(self.server.as_str()).await.map_err(failed(&format!("connecting to {}", self.server)))
    }
}
