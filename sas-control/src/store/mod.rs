//! Stores: the platform's state in memory, and in one file on disk.

mod memory;
mod redb_file;
#[cfg(test)]
mod torn;

use bytes::Bytes;
use sas_core::{Error, ErrorKind, Result, Version};

pub use memory::MemoryStore;
pub use redb_file::RedbStore;

/// Most bytes of a key, as the contract of [`sas_core::Store`] says.
pub(crate) const KEY_LIMIT: usize = 1024;
/// Most bytes of a value, as the contract of [`sas_core::Store`] says.
pub(crate) const VALUE_LIMIT: usize = 16 << 20;
/// Changes that are kept for [`sas_core::Store::changes`].
pub(crate) const HISTORY_CHANGES: usize = 4096;
/// Bytes of values that the history of the store in memory may hold.
pub(crate) const HISTORY_BYTES: usize = 64 << 20;

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_LIMIT {
        let message = format!("key of {} bytes: use 1 to {KEY_LIMIT} bytes", key.len());
        return Err(Error::new(ErrorKind::InvalidSpec, "store", message));
    }
    Ok(())
}

fn check_value(key: &str, value: &Bytes) -> Result<()> {
    if value.len() > VALUE_LIMIT {
        let message = format!("value of {key:?} has {} bytes: at most {VALUE_LIMIT} fit", value.len());
        return Err(Error::new(ErrorKind::InvalidSpec, "store", message));
    }
    Ok(())
}

fn conflict(key: &str, expected: Option<Version>, found: Option<Version>) -> Error {
    let said = |version: Option<Version>| version.map_or("absent".to_owned(), |v| format!("version {}", v.0));
    let message = format!(
        "{key:?} is {}, not {}: somebody else changed it; read it again",
        said(found),
        said(expected)
    );
    Error::new(ErrorKind::Conflict, "store", message)
}

fn history_gone(since: Version, oldest: u64) -> Error {
    let message = format!("changes after {} are no longer kept (oldest kept: {oldest}); list again", since.0);
    Error::new(ErrorKind::Conflict, "changes", message)
}
