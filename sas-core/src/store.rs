//! Durable state of the control plane and of triggers.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::Result;

/// A store-wide change number: every write gets a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its key.
    pub key: String,
    /// The version of its last write.
    pub version: Version,
    /// The value.
    pub value: Bytes,
}

/// A write or a deletion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: String,
    /// The version that the change made.
    pub version: Version,
    /// The new value; `None` when it was deleted.
    pub value: Option<Bytes>,
}

/// A linearisable map with compare-and-swap and a bounded history of changes.
///
/// Keys are non-empty UTF-8 of at most 1 KiB, ordered by bytes; values are at most 16 MiB. Every method may be
/// dropped at any point: a write is then either wholly done or not at all.
///
/// # Errors
/// Each method: [`crate::ErrorKind::InvalidSpec`] for a key or value out of bounds, `Unavailable` when the medium
/// fails; `Conflict` where said.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// The value of `key`, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Writes iff the stored version is `expected` (`None`: the key is absent). Durable when it returns.
    ///
    /// `Conflict` when it is not.
    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version>;

    /// Deletes iff the stored version is `expected`. Durable when it returns.
    ///
    /// `Conflict` when it is not, also when the key is absent.
    async fn delete(&self, key: &str, expected: Version) -> Result<()>;

    /// Up to `limit` entries whose key starts with `prefix` and is greater than `after`, in key order.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>>;

    /// The changes after `since` to keys that start with `prefix`, oldest first.
    ///
    /// `Conflict` when the history no longer reaches back to `since`: list again.
    async fn changes(&self, prefix: &str, since: Version) -> Result<Vec<Change>>;
}
