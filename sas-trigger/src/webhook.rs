//! The kind `webhook`: requests that others sign become events, kept until they are delivered.

use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::HeaderMap;
use sas_core::{Event, SpecErrors, Timestamp, TriggerOptions, TriggerSecrets, TriggerSpec};
use serde_json::Value;
use sha2::Sha256;

/// How requests are signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Signature {
    /// `X-Hub-Signature-256`, over the body. GitHub's requests carry no time: a repetition is known by its delivery id.
    Github,
    /// `Stripe-Signature`, over the time and the body.
    Stripe,
    /// `X-Slack-Signature`, over the time and the body.
    Slack,
    /// Not at all: whoever reaches the ingress may send.
    None,
}

/// What a webhook takes.
#[derive(Clone, Debug)]
pub(crate) struct Hook {
    signature: Signature,
    secret: Option<String>,
    tolerance: Duration,
    kind: Option<String>,
    pub(crate) max_bytes: usize,
    source: String,
    secrets: TriggerSecrets,
}

/// What becomes of a request.
#[derive(Debug)]
pub(crate) enum Taken {
    Event(Box<Event>),
    /// Slack asks whether somebody is there: the answer is what it sent.
    Challenge(String),
}

/// Why a request is not taken.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// 401: not signed as it must be.
    Unsigned(String),
    /// 400: no event can be made of it.
    Malformed(String),
    /// 503: the secret can't be had now.
    NoSecret(String),
}

/// Reads what the kind `webhook` is told.
pub(crate) fn hook(spec: &TriggerSpec, secrets: TriggerSecrets) -> Result<Hook, SpecErrors> {
    let mut options = TriggerOptions::new(&spec.options, "options.");
    if !options.has("signature") {
        options.required("signature");
    }
    let signature = options.word(
        "signature",
        &[
            ("github", Signature::Github),
            ("stripe", Signature::Stripe),
            ("slack", Signature::Slack),
            ("none", Signature::None),
        ],
        Signature::Github,
    );
    let secret = options.take("signing-secret").map(str::to_owned);
    match (&secret, signature) {
        (None, Signature::None) | (Some(_), Signature::Github | Signature::Stripe | Signature::Slack) => {}
        (Some(given), Signature::None) => {
            let given = given.clone();
            options.wrong("signing-secret", &given, "contradicts signature: none; leave it out");
        }
        (None, _) => options.wrong(
            "signing-secret",
            "",
            "missing: a reference to the secret that requests are signed with",
        ),
    }
    let tolerance = options.span("tolerance", Duration::from_secs(86_400), Duration::from_secs(300));
    let kind = options.take("type").map(str::to_owned);
    let max_bytes = usize::try_from(options.number("max-bytes", 1..=(8 << 20), 1 << 20)).unwrap_or(1 << 20);
    let source = format!("/hooks/{}", spec.name);
    if let Some(kind) = &kind
        && let Err(error) = Event::new("1", source.as_str(), kind.as_str())
    {
        options.wrong("type", kind, error.to_string());
    }
    options.finish()?;
    Ok(Hook { signature, secret, tolerance, kind, max_bytes, source, secrets })
}

impl Hook {
    /// The event of a request, if it is signed as it must be.
    pub(crate) async fn take(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        now: Timestamp,
    ) -> Result<Taken, Refusal> {
        if let Some(reference) = &self.secret {
            // At each request: a secret that was replaced counts at once.
            let secret =
                self.secrets.get(reference).await.map_err(|error| Refusal::NoSecret(error.chain()))?;
            self.verify(headers, body, &secret, now)?;
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let document = || serde_json::from_slice::<Value>(body).unwrap_or(Value::Null);
        let (id, kind) = match self.signature {
            Signature::Github => {
                let kind = text("x-github-event").map(|event| format!("com.github.{event}"));
                (text("x-github-delivery"), kind)
            }
            Signature::Stripe => {
                let document = document();
                let kind = document["type"].as_str().map(|kind| format!("com.stripe.{kind}"));
                (document["id"].as_str().map(str::to_owned), kind)
            }
            Signature::Slack => {
                let document = document();
                if document["type"] == "url_verification" {
                    let challenge = document["challenge"].as_str().unwrap_or_default();
                    return Ok(Taken::Challenge(challenge.chars().take(1024).collect()));
                }
                let kind = document["event"]["type"].as_str().or(document["type"].as_str());
                let kind = kind.map(|kind| format!("com.slack.{kind}"));
                (document["event_id"].as_str().map(str::to_owned), kind)
            }
            Signature::None => (text("x-request-id"), None),
        };
        // The same request gives the same id, so that a repetition is known for what it is.
        let id = id.filter(|id| !id.is_empty()).unwrap_or_else(|| {
            use sha2::Digest as _;
            let mut hash = Sha256::new();
            hash.update(now.0.to_le_bytes());
            hash.update(body);
            hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
        });
        let kind = self.kind.clone().or(kind).unwrap_or_else(|| "dev.sas.webhook".to_owned());
        let malformed = |error: sas_core::EventError| Refusal::Malformed(error.to_string());
        let event = Event::new(id, self.source.as_str(), kind).map_err(malformed)?.with_time(now);
        let event = match text("content-type") {
            Some(kind) => event.with_data(kind, body.clone()).map_err(malformed)?,
            None => event.with_untyped_data(body.clone()),
        };
        Ok(Taken::Event(Box::new(event)))
    }

    fn verify(
        &self,
        headers: &HeaderMap,
        body: &Bytes,
        secret: &[u8],
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let header = |name: &'static str| {
            let value = headers.get(name).and_then(|value| value.to_str().ok());
            value.ok_or_else(|| Refusal::Unsigned(format!("{name} is missing")))
        };
        let (name, signed, given): (_, Vec<u8>, Vec<&str>) = match self.signature {
            Signature::None => return Ok(()),
            Signature::Github => {
                let given = header("x-hub-signature-256")?.strip_prefix("sha256=");
                ("x-hub-signature-256", body.to_vec(), given.into_iter().collect())
            }
            Signature::Stripe => {
                let text = header("stripe-signature")?;
                let mut time = None;
                let mut given = Vec::new();
                for part in text.split(',').take(32) {
                    match part.trim().split_once('=') {
                        Some(("t", value)) => time = Some(value),
                        Some(("v1", value)) => given.push(value),
                        _ => {}
                    }
                }
                let time =
                    time.ok_or_else(|| Refusal::Unsigned("stripe-signature names no time t".to_owned()))?;
                self.in_time("stripe-signature", time, now)?;
                ("stripe-signature", [time.as_bytes(), b".", body].concat(), given)
            }
            Signature::Slack => {
                let time = header("x-slack-request-timestamp")?;
                self.in_time("x-slack-request-timestamp", time, now)?;
                let given = header("x-slack-signature")?.strip_prefix("v0=");
                let signed = [b"v0:", time.as_bytes(), b":", body].concat();
                ("x-slack-signature", signed, given.into_iter().collect())
            }
        };
        // Several secrets, each on a line of its own, are all good: so they are replaced without a gap.
        let secrets = secret.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        for secret in secrets.filter(|secret| !secret.is_empty()) {
            let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { continue };
            mac.update(&signed);
            // `verify_slice` takes the same time whatever differs.
            if given.iter().filter_map(|hex| unhex(hex)).any(|given| mac.clone().verify_slice(&given).is_ok())
            {
                return Ok(());
            }
        }
        Err(Refusal::Unsigned(format!("{name} does not fit the body and the secret")))
    }

    fn in_time(&self, name: &str, time: &str, now: Timestamp) -> Result<(), Refusal> {
        let signed = time
            .parse::<i64>()
            .map_err(|_| Refusal::Unsigned(format!("{name} holds no time in seconds: {time:.32}")))?;
        let (seconds, most) = (now.0.div_euclid(1_000_000_000), self.tolerance.as_secs());
        if signed.abs_diff(seconds) > most {
            return Err(Refusal::Unsigned(format!(
                "signed at {signed}, and it is {seconds} now: more than {most}s apart; a replay, or a clock that is wrong"
            )));
        }
        Ok(())
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if digits.len() != 64 {
        return None;
    }
    digits
        .chunks(2)
        .map(|pair| {
            let digit = |byte: u8| (byte as char).to_digit(16);
            u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()
        })
        .collect()
}
