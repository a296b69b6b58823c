//! Durable state of the control plane, of triggers and of workflows.

use std::{collections::HashSet, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result};

/// A store-wide change number: every commit that writes gets a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

/// A value as the store holds it, with its key and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key that the value stands under.
    pub key: String,
    /// The version of its last write.
    pub version: Version,
    /// The bytes of the value.
    pub value: Bytes,
}

/// A write or a deletion, as the history tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key that it is about.
    pub key: String,
    /// The version of the commit that made the change. All changes of one commit share it.
    pub version: Version,
    /// The new value; `None` when it was deleted.
    pub value: Option<Bytes>,
}

/// What a commit expects of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// The key that it is about.
    pub key: String,
    /// The version that the key must have; `None`: it must be absent.
    pub expected: Option<Version>,
}

/// What a commit does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key that it is about.
    pub key: String,
    /// The new value; `None` deletes. Deleting a key that is absent does nothing.
    pub value: Option<Bytes>,
}

/// Writes that are done together or not at all, if every guard holds.
///
/// ```
/// use sas_core::Commit;
///
/// // The order is taken, and leaves the list of open ones, unless somebody else was first.
/// let commit = Commit::new().guard("order/7/owner", None).put("order/7/owner", "me").delete("open/7");
/// assert_eq!(commit.writes.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// What must be true, at most one for each key.
    pub guards: Vec<Guard>,
    /// What is done then, at most one for each key. A key that is written need not be guarded: it is then written over.
    pub writes: Vec<Write>,
}

impl Commit {
    /// A commit that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only if `key` has this version; `None`: only if it is absent.
    #[must_use]
    pub fn guard(mut self, key: impl Into<String>, expected: Option<Version>) -> Self {
        self.guards.push(Guard { key: key.into(), expected });
        self
    }

    /// Only if `guard` holds.
    #[must_use]
    pub fn guarded_by(mut self, guard: Guard) -> Self {
        self.guards.push(guard);
        self
    }

    /// Adds a write of `value` under `key`.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.writes.push(Write { key: key.into(), value: Some(value.into()) });
        self
    }

    /// Deletes a key, if it is there.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.writes.push(Write { key: key.into(), value: None });
        self
    }

    /// What a store with these limits refuses before it does anything.
    ///
    /// # Errors
    /// `InvalidSpec` for a key, a value or a number of guards or writes out of bounds, and for a key that is guarded
    /// twice or written twice.
    pub fn check(&self, limits: &StoreLimits) -> Result<()> {
        for (what, count) in [("guards", self.guards.len()), ("writes", self.writes.len())] {
            if count > limits.commit_writes {
                let most = limits.commit_writes;
                return Err(out_of_bounds(format!("commit of {count} {what}: at most {most} fit; split it")));
            }
        }
        let mut seen = HashSet::new();
        for guard in &self.guards {
            limits.check_key(&guard.key)?;
            if !seen.insert(guard.key.as_str()) {
                return Err(out_of_bounds(format!("{:?} is guarded twice in one commit", guard.key)));
            }
        }
        seen.clear();
        let mut bytes = 0_usize;
        for write in &self.writes {
            limits.check_key(&write.key)?;
            if !seen.insert(write.key.as_str()) {
                return Err(out_of_bounds(format!("{:?} is written twice in one commit", write.key)));
            }
            let length = write.value.as_ref().map_or(0, Bytes::len);
            if length > limits.value_bytes {
                let (key, most) = (&write.key, limits.value_bytes);
                return Err(out_of_bounds(format!(
                    "value of {key:?} has {length} bytes: at most {most} fit"
                )));
            }
            bytes = bytes.saturating_add(length);
        }
        if bytes > limits.commit_bytes {
            let most = limits.commit_bytes;
            return Err(out_of_bounds(format!("commit of {bytes} bytes: at most {most} fit; split it")));
        }
        Ok(())
    }
}

fn out_of_bounds(message: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, "store", message)
}

/// How much a store takes. Who writes more than [`StoreLimits::SMALLEST`] asks first, and spills or splits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreLimits {
    /// Most bytes of a key.
    pub key_bytes: usize,
    /// Most bytes of a value.
    pub value_bytes: usize,
    /// Most writes of a commit, and most guards of it.
    pub commit_writes: usize,
    /// Most bytes of all values of a commit.
    pub commit_bytes: usize,
}

impl StoreLimits {
    /// What every store takes.
    pub const SMALLEST: Self =
        Self { key_bytes: 1024, value_bytes: 1 << 20, commit_writes: 64, commit_bytes: 1 << 20 };

    /// What stores on this machine take: the one in memory, and the one in a file.
    pub const LOCAL: Self =
        Self { key_bytes: 1024, value_bytes: 16 << 20, commit_writes: 1024, commit_bytes: 64 << 20 };

    /// Refuses a key out of bounds.
    ///
    /// # Errors
    /// `InvalidSpec`.
    pub fn check_key(&self, key: &str) -> Result<()> {
        if key.is_empty() || key.len() > self.key_bytes {
            let most = self.key_bytes;
            return Err(out_of_bounds(format!("key of {} bytes: use 1 to {most} bytes", key.len())));
        }
        Ok(())
    }
}

/// What [`Store::watch`] saw: changes, or that the caller has to list again.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a watch either goes on or begins again")]
pub enum Watched {
    /// What changed, oldest first, at least one, and never a part of a commit. Go on with the version of the last.
    Changes(Vec<Change>),
    /// The history does not reach back to where the watch began, or has not come that far (the store was brought back
    /// from a copy). Take [`Store::version`], list again, and watch from that version.
    ListAgain,
}

/// A linearisable map with atomic, guarded commits and a bounded history of changes.
///
/// Keys are non-empty UTF-8, ordered by bytes; [`Store::limits`] says how long keys and values may be. Every method may
/// be dropped at any point: a commit is then either wholly done or not at all.
///
/// To follow a part of the store: take [`Store::version`], list, then [`Store::watch`] from that version on. A change
/// that was made while the list was read may be seen twice; its version tells.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// use sas_core::{Commit, MemoryStore, Store, Watched};
///
/// let store = MemoryStore::default();
/// let from = store.version().await?;
/// let first = store.put("a", None, "1".into()).await?;
/// let second = store.commit(Commit::new().guard("a", Some(first)).put("a", "2").put("b", "2")).await?;
/// let Watched::Changes(changes) = store.watch("b", from).await? else { panic!("the history is short") };
/// assert_eq!((changes[0].key.as_str(), changes[0].version), ("b", second));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Each method: [`ErrorKind::InvalidSpec`] for what is out of bounds, `Unavailable` when the medium fails, after which a
/// commit may be done or not; `Conflict` where said.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// What it takes; constant while it lives, and nothing below [`StoreLimits::SMALLEST`].
    fn limits(&self) -> StoreLimits;

    /// The version of the last commit that wrote; `Version(0)` in a store that was never written.
    async fn version(&self) -> Result<Version>;

    /// The value of `key`, or `None`.
    async fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// Up to `limit` entries whose key starts with `prefix` and is greater than `after`, in key order. A list is of one
    /// moment; the next page may be of a later one.
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>>;

    /// Does all writes if every guard holds, else none. Durable when it returns.
    ///
    /// All writes of a commit get one version, which is higher than every earlier one. A commit that changes nothing
    /// (no writes, or only deletions of what is absent) checks its guards and gives the version of the last commit.
    ///
    /// `Conflict` when a guard does not hold.
    async fn commit(&self, commit: Commit) -> Result<Version>;

    /// Waits until keys that start with `prefix` have changes after `since`, and gives them, oldest first: as many as it
    /// likes, at least one, whole commits. Resumes wherever the caller was: nothing is lost between two calls, and
    /// nothing is kept for a caller who does not come back.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    ///
    /// Never a gap: [`Watched::ListAgain`] when the history does not reach that far. `Unavailable` also when the store
    /// is closed meanwhile.
    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched>;

    /// Writes one key iff its version is `expected` (`None`: the key is absent). Durable when it returns.
    ///
    /// `Conflict` when it is not.
    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        self.commit(Commit::new().guard(key, expected).put(key, value)).await
    }

    /// Deletes one key iff its version is `expected`. Durable when it returns.
    ///
    /// `Conflict` when it is not, also when the key is absent.
    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        self.commit(Commit::new().guard(key, Some(expected)).delete(key)).await.map(drop)
    }
}

/// The error of a guard that does not hold, for those who write a store.
pub fn guard_failed(guard: &Guard, found: Option<Version>) -> Error {
    let said = |version: Option<Version>| version.map_or("absent".to_owned(), |v| format!("version {}", v.0));
    let message = format!(
        "{:?} is {}, not {}: somebody else changed it; read it again",
        guard.key,
        said(found),
        said(guard.expected)
    );
    Error::new(ErrorKind::Conflict, "store", message)
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: Store + ?Sized> Store for Arc<T> {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        (**self).get(key).await
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        (**self).put(key, expected, value).await
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        (**self).delete(key, expected).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        (**self).list(prefix, after, limit).await
    }

    fn limits(&self) -> StoreLimits {
        (**self).limits()
    }

    async fn version(&self) -> Result<Version> {
        (**self).version().await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        (**self).commit(commit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        (**self).watch(prefix, since).await
    }
}
