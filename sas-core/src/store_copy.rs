//! Moving state from one store to another.

use crate::{Commit, Error, ErrorKind, Result, Store};

/// Entries that are read at once.
const PAGE: usize = 256;

/// What [`copy_store`] copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCopy {
    /// How many entries.
    pub entries: u64,
    /// Bytes of their values.
    pub bytes: u64,
}

/// Copies every key with its value to a store that is empty. Versions are the other store's own, so whoever watched lists
/// again.
///
/// Nobody may write to either meanwhile: where somebody does, it ends with `Conflict`. What it had copied by then, also when it
/// is dropped, stays, so begin again with an empty store.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// use sas_core::{MemoryStore, Store, copy_store};
///
/// let (from, to) = (MemoryStore::default(), MemoryStore::default());
/// from.put("greeting", None, "hello".into()).await?;
/// assert_eq!(copy_store(&from, &to).await?.entries, 1);
/// assert_eq!(to.get("greeting").await?.map(|entry| entry.value), Some("hello".into()));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `Conflict` for a store that is not empty, and where somebody writes meanwhile; `InvalidSpec` for a value that the other
/// store does not take, with its key; those of the stores.
pub async fn copy_store(from: &dyn Store, to: &dyn Store) -> Result<StoreCopy> {
    const COPY: &str = "copy store";
    if let Some(there) = to.list("", None, 1).await?.first() {
        let message = format!("the store to copy to is not empty: it has {:?}; name an empty one", there.key);
        return Err(Error::new(ErrorKind::Conflict, COPY, message));
    }
    let (limits, before) = (to.limits(), from.version().await?);
    let mut copied = StoreCopy::default();
    let (mut after, mut commit, mut bytes) = (None::<String>, Commit::new(), 0);
    loop {
        let page = from.list("", after.as_deref(), PAGE).await?;
        after = page.last().map(|entry| entry.key.clone());
        let ended = page.is_empty();
        for entry in page {
            let full = commit.writes.len() >= limits.commit_writes
                || bytes + entry.value.len() > limits.commit_bytes && !commit.writes.is_empty();
            if full {
                to.commit(std::mem::take(&mut commit)).await?;
                bytes = 0;
            }
            bytes += entry.value.len();
            copied.entries += 1;
            copied.bytes += entry.value.len() as u64;
            commit = commit.guard(entry.key.as_str(), None).put(entry.key, entry.value);
        }
        if ended {
            break;
        }
    }
    if !commit.writes.is_empty() {
        to.commit(commit).await?;
    }
    if from.version().await? != before {
        let message = "somebody wrote to the store while it was copied: end every platform that uses it, and copy \
                       again to an empty store";
        return Err(Error::new(ErrorKind::Conflict, COPY, message));
    }
    Ok(copied)
}
