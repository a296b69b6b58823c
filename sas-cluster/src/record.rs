//! What stands in the store: who is a member, and who owns which shard.

use std::net::SocketAddr;

use sas_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Where all of it is.
pub(crate) const PREFIX: &str = "cluster/";
/// Where the one record is that all hosts must agree with.
pub(crate) const TERMS: &str = "cluster/terms";
const HOSTS: &str = "cluster/host/";
const RENEWALS: &str = "cluster/renewed/";
const SHARDS: &str = "cluster/shard/";

/// What all hosts of a platform have in common. Written by the first one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Terms {
    pub(crate) format: u16,
    pub(crate) shards: u16,
    pub(crate) term_ms: u64,
}

/// A member. Deleted when it leaves, or by another host after a whole term of silence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HostRecord {
    /// Of this membership: no other one of any host ever has it.
    pub(crate) life: String,
    /// Where it takes requests of the others.
    pub(crate) address: SocketAddr,
    #[serde(default)]
    pub(crate) draining: bool,
}

/// Who owns a shard. Written only when the owner changes; its version is what the owner's writes are guarded by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardRecord {
    pub(crate) holder: String,
    /// The membership of the holder: when that is over, so is this.
    pub(crate) life: String,
    /// How often the owner changed.
    pub(crate) epoch: u64,
}

pub(crate) fn host_key(name: &str) -> String {
    format!("{HOSTS}{name}")
}

pub(crate) fn renewal_key(name: &str) -> String {
    format!("{RENEWALS}{name}")
}

pub(crate) fn shard_key(shard: u16) -> String {
    format!("{SHARDS}{shard:04}")
}

/// What a key is about.
pub(crate) enum About<'k> {
    Host(&'k str),
    Renewal(&'k str),
    Shard(u16),
    Other,
}

pub(crate) fn about(key: &str) -> About<'_> {
    if let Some(name) = key.strip_prefix(HOSTS) {
        return About::Host(name);
    }
    if let Some(name) = key.strip_prefix(RENEWALS) {
        return About::Renewal(name);
    }
    let shard = key.strip_prefix(SHARDS).and_then(|number| number.parse().ok());
    shard.map_or(About::Other, About::Shard)
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|error| {
        Error::new(ErrorKind::Unexpected, "cluster", format!("can't be written: {error}")).with_source(error)
    })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        let message =
            format!("{key} is none of the cluster's records: {error}; stop all hosts and delete it");
        Error::new(ErrorKind::InvalidSpec, "cluster", message).with_source(error)
    })
}
