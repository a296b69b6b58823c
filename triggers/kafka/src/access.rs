//! Which brokers may be spoken to, and with which credentials.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use krafka::{
    Kafka,
    auth::{AuthConfig, TlsConfig},
    error::KrafkaError,
};
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);
/// After how long an answer is missed.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);

/// How a client proves who it is.
#[derive(Clone, Copy, Debug)]
enum Mechanism {
    Plain,
    Sha256,
    Sha512,
}

const MECHANISMS: [(&str, Mechanism); 3] =
    [("plain", Mechanism::Plain), ("scram-sha-256", Mechanism::Sha256), ("scram-sha-512", Mechanism::Sha512)];

/// The brokers of a declaration, and references to what they ask for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    brokers: String,
    tls: bool,
    authority: Option<String>,
    certificate: Option<(String, String)>,
    username: Option<String>,
    username_secret: Option<String>,
    password: Option<String>,
    mechanism: Mechanism,
    mechanism_secret: Option<String>,
}

pub(crate) fn failed(what: &str) -> impl Fn(KrafkaError) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "kafka", format!("{what}: {error}"))
}

pub(crate) fn missed(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "kafka", format!("{what}: no answer within {ANSWER:?}"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let brokers = options.required("brokers");
        let mut known = Vec::new();
        for broker in brokers.split(',').map(str::trim).filter(|broker| !broker.is_empty()) {
            known.push(broker.to_owned());
            if !allowed.contains(broker) {
                options.wrong(
                    "brokers",
                    broker,
                    "is none of the brokers that the platform allows (`PlatformBuilder::kafka_hosts`)",
                );
            }
        }
        let tls = options.flag("tls", false);
        let authority = options.reference("ca-secret");
        let certificate = options.reference("cert-secret");
        let key = options.reference("key-secret");
        if !tls {
            for (name, given) in
                [("ca-secret", &authority), ("cert-secret", &certificate), ("key-secret", &key)]
            {
                if let Some(given) = given {
                    options.wrong(name, given, "needs `tls: \"true\"`");
                }
            }
        }
        if certificate.is_some() != key.is_some() {
            options.wrong("cert-secret", "", "a certificate and its key (`key-secret`) go together");
        }
        let username = options.reference("username");
        let username_secret = options.reference("username-secret");
        let password = options.reference("password-secret");
        if username.is_some() && username_secret.is_some() {
            options.wrong("username-secret", "", "contradicts `username`: give one of the two");
        }
        if (username.is_some() || username_secret.is_some()) != password.is_some() {
            options.wrong(
                "password-secret",
                "",
                "a user (`username` or `username-secret`) and a reference to its password go together",
            );
        }
        let given = options.has("sasl-mechanism");
        let mechanism = options.word("sasl-mechanism", &MECHANISMS, Mechanism::Plain);
        let mechanism_secret = options.reference("sasl-mechanism-secret");
        if given && mechanism_secret.is_some() {
            options.wrong("sasl-mechanism-secret", "", "contradicts `sasl-mechanism`: give one of the two");
        }
        if (given || mechanism_secret.is_some()) && password.is_none() {
            options.wrong("sasl-mechanism", "", "needs a user and its password (`password-secret`)");
        }
        Self {
            brokers: known.join(","),
            tls,
            authority,
            certificate: certificate.zip(key),
            username,
            username_secret,
            password,
            mechanism,
            mechanism_secret,
        }
    }

    /// A client with the credentials as they are now.
    pub(crate) async fn connect(&self, secrets: &TriggerSecrets) -> Result<Kafka> {
        let security = self.security(secrets).await?;
        Kafka::builder(&self.brokers)
            .client_id("sas")
            .security(security)
            .connect_timeout(CONNECT)
            .request_timeout(ANSWER)
            .connect()
            .await
            .map_err(failed("connecting"))
    }

    async fn security(&self, secrets: &TriggerSecrets) -> Result<AuthConfig> {
        let mut security = match &self.password {
            None => AuthConfig::plaintext(),
            Some(reference) => {
                let password = secrets.text(reference).await?;
                let username = match (&self.username, &self.username_secret) {
                    (Some(username), _) => username.clone(),
                    (None, Some(reference)) => secrets.text(reference).await?,
                    (None, None) => String::new(),
                };
                match self.mechanism(secrets).await? {
                    Mechanism::Plain => AuthConfig::sasl_plain(username, password),
                    Mechanism::Sha256 => AuthConfig::sasl_scram_sha256(username, password),
                    Mechanism::Sha512 => AuthConfig::sasl_scram_sha512(username, password),
                }
            }
        };
        if self.tls {
            let mut tls = TlsConfig::new();
            if let Some(reference) = &self.authority {
                tls = tls.with_ca_cert_pem(secrets.get(reference).await?.to_vec());
            }
            if let Some((certificate, key)) = &self.certificate {
                let certificate = secrets.get(certificate).await?.to_vec();
                tls = tls.with_client_cert_pem(certificate, secrets.get(key).await?.to_vec());
            }
            security = if self.password.is_some() { security.with_tls(tls) } else { AuthConfig::ssl(tls) };
        }
        Ok(security)
    }

    async fn mechanism(&self, secrets: &TriggerSecrets) -> Result<Mechanism> {
        let Some(reference) = &self.mechanism_secret else { return Ok(self.mechanism) };
        let given = secrets.text(reference).await?;
        let known = MECHANISMS.iter().find(|(name, _)| name.eq_ignore_ascii_case(&given));
        known.map(|(_, mechanism)| *mechanism).ok_or_else(|| {
            let problem = "must hold PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512";
            Error::new(
                ErrorKind::InvalidSpec,
                "kafka",
                format!("options.sasl-mechanism-secret: {reference}: {problem}"),
            )
        })
    }
}

/// The brokers that triggers may read from and send to: what the options `brokers` may name.
#[derive(Clone, Debug)]
pub struct KafkaBrokers {
    pub(crate) allowed: Arc<BTreeSet<String>>,
}

impl KafkaBrokers {
    /// These brokers only, each `host:port` as it stands in a trigger's `brokers`. Whoever declares a trigger reaches no
    /// other address of the platform's network by it, but for the brokers of the same clusters, whose addresses the
    /// allowed ones say.
    pub fn new(brokers: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { allowed: Arc::new(brokers.into_iter().map(Into::into).collect()) }
    }
}
