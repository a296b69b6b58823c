//! Which servers may be spoken to, and as whom.

use std::{collections::BTreeSet, sync::Arc};

use http::Uri;
use object_store::aws::AwsCredential;
use sas_core::{Error, ErrorKind, Result, TriggerOptions, TriggerSecrets};
use sas_tls::Authorities;
use url::Url;

/// The servers that triggers may read from and write to: what the option `url` may name.
#[derive(Clone, Debug)]
pub struct SqsServers {
    pub(crate) hosts: Arc<BTreeSet<String>>,
}

impl SqsServers {
    /// These servers only, each as it stands in a queue's URL: `sqs.eu-central-1.amazonaws.com`, or `host:port` of an emulator.
    /// Whoever declares a trigger reaches no other address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: Arc::new(hosts.into_iter().map(Into::into).collect()) }
    }
}

/// The queue of a declaration, and references to what it asks for.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// As the service names it.
    pub(crate) url: String,
    /// `account/name`.
    pub(crate) path: String,
    pub(crate) endpoint: Uri,
    pub(crate) region: String,
    credentials: String,
    pub(crate) authorities: Authorities,
}

/// The region that a host of AWS stands for.
fn region_of(host: &str) -> Option<&str> {
    let rest = host.strip_prefix("sqs.").or_else(|| host.strip_prefix("sqs-fips."))?;
    rest.strip_suffix(".amazonaws.com").or_else(|| rest.strip_suffix(".amazonaws.com.cn"))
}

impl Access {
    /// Reads the options that say where and as whom, which sources and sinks have in common.
    pub(crate) fn read(options: &mut TriggerOptions<'_>, allowed: &BTreeSet<String>) -> Self {
        let server = options.server("url", &["https", "http"], allowed, "`PlatformBuilder::sqs_hosts`");
        let parts: Vec<&str> = server.path.split('/').collect();
        let is_name = |text: &str| {
            !text.is_empty()
                && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        if !server.address.is_empty() && (parts.len() != 2 || !parts.iter().all(|part| is_name(part))) {
            options.wrong(
                "url",
                server.path,
                "must be the queue's URL, such as https://sqs.eu-central-1.amazonaws.com/123456789012/orders",
            );
        }
        let base = format!("{}://{}/", server.scheme, server.address);
        let endpoint = base.parse::<Uri>().ok().filter(|_| Url::parse(&base).is_ok());
        if endpoint.is_none() && !server.address.is_empty() {
            options.wrong("url", server.address, "must be a host, with a port where it is not the scheme's");
        }
        let region = match (options.reference("region"), region_of(server.address)) {
            (Some(region), _) => region,
            (None, Some(region)) => region.to_owned(),
            (None, None) => {
                if !server.address.is_empty() {
                    let problem =
                        "missing: the host does not say which region it is of; emulators take us-east-1";
                    options.wrong("region", "", problem);
                }
                String::new()
            }
        };
        if !region.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-') {
            options.wrong("region", &region, "must be a region such as eu-central-1");
        }
        let credentials = options.required("credentials-secret").to_owned();
        let authorities = Authorities::read(options, "https://", server.scheme == "https");
        Self {
            url: format!("{base}{}", server.path),
            path: server.path.to_owned(),
            endpoint: endpoint.unwrap_or_default(),
            region,
            credentials,
            authorities,
        }
    }

    /// The queue's own name.
    pub(crate) fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// Whether the queue keeps the order of each group of messages.
    pub(crate) fn is_fifo(&self) -> bool {
        self.path.ends_with(".fifo")
    }

    /// The credentials as they are now.
    pub(crate) async fn credential(&self, secrets: &TriggerSecrets) -> Result<AwsCredential> {
        let text = secrets.text(&self.credentials).await?;
        credential_of(&text).map_err(|problem| {
            Error::new(ErrorKind::InvalidSpec, "sqs", format!("the secret {} {problem}", self.credentials))
        })
    }
}

/// Reads the text of a file of credentials of AWS with one profile.
fn credential_of(text: &str) -> Result<AwsCredential, &'static str> {
    const FORM: &str = "must be lines as in ~/.aws/credentials: aws_access_key_id = ..., aws_secret_access_key = ..., \
                        and aws_session_token = ... where there is one";
    let (mut key, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with(['#', ';', '[']) {
            continue;
        }
        let (name, value) = line.split_once('=').ok_or(FORM)?;
        let value = value.trim();
        if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(FORM);
        }
        let place = match name.trim().to_ascii_lowercase().as_str() {
            "aws_access_key_id" => &mut key,
            "aws_secret_access_key" => &mut secret,
            "aws_session_token" => &mut token,
            // Of other programs, such as a region.
            _ => continue,
        };
        if place.replace(value.to_owned()).is_some() {
            return Err("has more than one profile");
        }
    }
    match (key, secret) {
        (Some(key_id), Some(secret_key)) => Ok(AwsCredential { key_id, secret_key, token }),
        _ => Err(FORM),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_credentials_has_one_profile() {
        let text = "# of shop\n[default]\naws_access_key_id = AKIA1\nAWS_SECRET_ACCESS_KEY=a+b/c=\nregion = eu-central-1\n";
        let read = credential_of(text).unwrap();
        let expected =
            AwsCredential { key_id: "AKIA1".to_owned(), secret_key: "a+b/c=".to_owned(), token: None };
        assert_eq!(read, expected);
        let with_token = format!("{text}aws_session_token = t==\n");
        assert_eq!(credential_of(&with_token).unwrap().token.as_deref(), Some("t=="));
        for (wrong, says) in [
            ("", "must be lines"),
            ("AKIA1:secret", "must be lines"),
            ("aws_access_key_id = AKIA1", "must be lines"),
            ("aws_access_key_id = AKIA1\naws_secret_access_key = ä", "must be lines"),
            ("aws_access_key_id = AKIA1\naws_secret_access_key = a b", "must be lines"),
            (&format!("{text}[other]\naws_access_key_id = AKIA2\n"), "more than one profile"),
        ] {
            assert!(credential_of(wrong).unwrap_err().contains(says), "{wrong}");
        }
    }

    #[test]
    fn hosts_of_aws_say_their_region() {
        assert_eq!(region_of("sqs.eu-central-1.amazonaws.com"), Some("eu-central-1"));
        assert_eq!(region_of("sqs.cn-north-1.amazonaws.com.cn"), Some("cn-north-1"));
        assert_eq!(region_of("127.0.0.1:5000"), None);
    }
}
