//! Signed records of hours.

use std::{collections::BTreeMap, fmt};

use hmac::{Hmac, Mac as _};
use sas_core::{Error, ErrorKind, HourUsage, MeterTotals, Result, Secret, UsageGap};
use serde_json::Value;
use sha2::Sha256;

use crate::stamp::rfc3339;

/// The key that usage records are signed with, and the name that verifiers know it by.
#[derive(Clone)]
pub struct UsageKey {
    id: String,
    secret: Secret,
}

impl fmt::Debug for UsageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UsageKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl UsageKey {
    /// A key of at least 32 bytes under the name `id`, which goes into every record.
    ///
    /// # Errors
    /// `InvalidSpec` for a shorter key, which could be guessed, and for an empty name.
    pub fn new(id: impl Into<String>, secret: Secret) -> Result<Self> {
        let id = id.into();
        let refused = |message: String| Err(Error::new(ErrorKind::InvalidSpec, "usage key", message));
        if id.is_empty() {
            return refused("id: \"\": must name the key, so that verifiers find it".to_owned());
        }
        let length = secret.expose().len();
        if length < 32 {
            return refused(format!("{id}: has {length} bytes: use at least 32 random bytes"));
        }
        Ok(Self { id, secret })
    }

    fn mac(&self) -> Hmac<Sha256> {
        Hmac::new_from_slice(self.secret.expose().as_bytes()).expect("HMAC takes keys of any length")
    }
}

/// What one revision used within one hour, or a gap in the readings, signed.
///
/// A record is a JSON object of strings. Its canonical bytes are that object without `signature`, its members in the order
/// of their names, without white space, as RFC 8785 has it; the signature is their HMAC-SHA-256 in lower-case
/// hexadecimal digits.
///
/// ```
/// use sas_control::{UsageKey, UsageRecord};
/// use sas_core::{Hour, HourUsage, MeterTotals, RevisionUsage, Secret};
///
/// # fn main() -> sas_core::Result<()> {
/// let key = UsageKey::new("2026-11", Secret::new("an example, 32 bytes or longer..."))?;
/// let mut used = MeterTotals::default();
/// used.busy_ns = 1_500;
/// let hour = HourUsage::new(Hour(490_000), RevisionUsage::new("shop", "cart", "cart-00001", used));
/// let record = UsageRecord::sign_usage(&hour, &key);
/// assert_eq!(record.get("busy_ns"), Some("1500"));
/// UsageRecord::from_json(&record.to_json())?.verify(&key)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    members: BTreeMap<String, String>,
    signature: String,
}

impl UsageRecord {
    /// The record of what a revision used.
    pub fn sign_usage(hour: &HourUsage, key: &UsageKey) -> Self {
        let id = format!("{}/{}/{}/{}", hour.hour.0, hour.namespace, hour.service, hour.revision);
        let mut members: BTreeMap<String, String> = [
            ("kind", "usage".to_owned()),
            ("hour", rfc3339(hour.hour.start())),
            ("namespace", hour.namespace.clone()),
            ("service", hour.service.clone()),
            ("revision", hour.revision.clone()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        members.extend(amounts(&hour.totals).map(|(name, amount)| (name.to_owned(), amount.to_string())));
        Self::sign(id, members, key)
    }

    /// The record of a time of which readings are missing.
    pub fn sign_gap(gap: &UsageGap, key: &UsageKey) -> Self {
        let members =
            [("kind", "gap".to_owned()), ("from", rfc3339(gap.from)), ("until", rfc3339(gap.until))]
                .map(|(name, value)| (name.to_owned(), value));
        Self::sign(format!("gap/{}", gap.from.0), members.into(), key)
    }

    fn sign(id: String, mut members: BTreeMap<String, String>, key: &UsageKey) -> Self {
        members.insert("id".to_owned(), id);
        members.insert("key".to_owned(), key.id.clone());
        let mut mac = key.mac();
        mac.update(&canonical(&members));
        let signature = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Self { members, signature }
    }

    /// What names the record: the same for the same hour and revision, so that a receiver knows a repetition.
    pub fn id(&self) -> &str {
        self.get("id").unwrap_or_default()
    }

    /// A member: `kind` (`usage` or `gap`), `hour`, `namespace`, `service`, `revision`, `key`, or an amount by its name in
    /// [`MeterTotals`].
    pub fn get(&self, name: &str) -> Option<&str> {
        self.members.get(name).map(String::as_str)
    }

    /// The bytes that are signed.
    pub fn canonical(&self) -> Vec<u8> {
        canonical(&self.members)
    }

    /// HMAC-SHA-256 of the canonical bytes, in lower-case hexadecimal digits.
    pub fn signature(&self) -> &str {
        &self.signature
    }

    /// The record as a JSON object, with its signature.
    pub fn to_json(&self) -> String {
        let mut members = self.members.clone();
        members.insert("signature".to_owned(), self.signature.clone());
        serde_json::to_string(&members).expect("strings")
    }

    /// Reads what [`UsageRecord::to_json`] wrote, without verifying it.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no such object.
    pub fn from_json(text: &str) -> Result<Self> {
        let refused = |problem: String| Error::new(ErrorKind::InvalidSpec, "usage record", problem);
        let mut members: BTreeMap<String, String> =
            serde_json::from_str(text).map_err(|error| refused(error.to_string()))?;
        let signature =
            members.remove("signature").ok_or_else(|| refused("signature: missing".to_owned()))?;
        Ok(Self { members, signature })
    }

    /// Whether the record is as it was signed, in constant time.
    ///
    /// # Errors
    /// `InvalidSpec` when it is not, or was signed with a key of another name.
    pub fn verify(&self, key: &UsageKey) -> Result<()> {
        let denied = |problem: String| Err(Error::new(ErrorKind::InvalidSpec, "usage record", problem));
        if self.get("key") != Some(&key.id) {
            let found = self.get("key").unwrap_or_default();
            return denied(format!("{}: signed with the key {found:?}, not {:?}", self.id(), key.id));
        }
        let signature: Option<Vec<u8>> = (self.signature.len() == 64 && self.signature.is_ascii())
            .then(|| {
                (0..64)
                    .step_by(2)
                    .map(|at| u8::from_str_radix(&self.signature[at..at + 2], 16).ok())
                    .collect()
            })
            .flatten();
        let mut mac = key.mac();
        mac.update(&self.canonical());
        match signature {
            Some(signature) if mac.verify_slice(&signature).is_ok() => Ok(()),
            _ => denied(format!("{}: the signature is not that of its content", self.id())),
        }
    }
}

/// The amounts by name.
pub(super) fn amounts(totals: &MeterTotals) -> impl Iterator<Item = (&'static str, u128)> {
    [
        ("starting_ns", totals.starting_ns),
        ("pooled_ns", totals.pooled_ns),
        ("idle_ns", totals.idle_ns),
        ("busy_ns", totals.busy_ns),
        ("draining_ns", totals.draining_ns),
        ("cpu_ns", totals.cpu_ns),
        ("memory_byte_ns", totals.memory_byte_ns),
        ("requests", totals.requests.into()),
        ("cold_starts", totals.cold_starts.into()),
        ("events", totals.events.into()),
        ("mirrored", totals.mirrored.into()),
        ("bytes_in", totals.bytes_in.into()),
        ("bytes_out", totals.bytes_out.into()),
    ]
    .into_iter()
    // What was signed before there were copies of requests is still what is signed without any.
    .filter(|(name, amount)| *name != "mirrored" || *amount > 0)
}

/// serde_json escapes what RFC 8785 escapes and nothing else, and the map is in the order of its keys, which are ASCII.
fn canonical(members: &BTreeMap<String, String>) -> Vec<u8> {
    serde_json::to_vec(members).expect("strings")
}

/// As JSON, for events.
pub(super) fn to_value(record: &UsageRecord) -> Value {
    let mut members: serde_json::Map<String, Value> =
        record.members.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    members.insert("signature".to_owned(), record.signature.as_str().into());
    members.into()
}
