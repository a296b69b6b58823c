//! The store for tests and for platforms whose services need not outlive them.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{Change, Entry, Result, Store, Version};

use super::{HISTORY_BYTES, HISTORY_CHANGES, check_key, check_value, conflict, history_gone};

/// A [`Store`] in memory. What it holds ends with the process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// use sas_control::MemoryStore;
/// use sas_core::Store;
///
/// let store = MemoryStore::default();
/// let version = store.put("greeting", None, "hello".into()).await?;
/// assert!(store.put("greeting", None, "again".into()).await.is_err());
/// store.put("greeting", Some(version), "bye".into()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, (Version, Bytes)>,
    history: VecDeque<Change>,
    history_bytes: usize,
    /// Every change after this version is in `history`.
    complete_after: u64,
    last: u64,
}

impl State {
    fn record(&mut self, key: &str, value: Option<Bytes>) -> Version {
        self.last += 1;
        let version = Version(self.last);
        self.history_bytes += value.as_ref().map_or(0, Bytes::len);
        self.history.push_back(Change { key: key.to_owned(), version, value });
        while self.history.len() > HISTORY_CHANGES || self.history_bytes > HISTORY_BYTES {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= old.value.as_ref().map_or(0, Bytes::len);
            self.complete_after = old.version.0;
        }
        version
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let state = self.state.lock();
        Ok(state.entries.get(key).map(|(version, value)| Entry {
            key: key.to_owned(),
            version: *version,
            value: value.clone(),
        }))
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        check_key(key)?;
        check_value(key, &value)?;
        let mut state = self.state.lock();
        let found = state.entries.get(key).map(|(version, _)| *version);
        if found != expected {
            return Err(conflict(key, expected, found));
        }
        let version = state.record(key, Some(value.clone()));
        state.entries.insert(key.to_owned(), (version, value));
        Ok(version)
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        check_key(key)?;
        let mut state = self.state.lock();
        let found = state.entries.get(key).map(|(version, _)| *version);
        if found != Some(expected) {
            return Err(conflict(key, Some(expected), found));
        }
        state.record(key, None);
        state.entries.remove(key);
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        let state = self.state.lock();
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        Ok(state
            .entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .take(limit)
            .map(|(key, (version, value))| Entry {
                key: key.clone(),
                version: *version,
                value: value.clone(),
            })
            .collect())
    }

    async fn changes(&self, prefix: &str, since: Version) -> Result<Vec<Change>> {
        let state = self.state.lock();
        if since.0 < state.complete_after {
            return Err(history_gone(since, state.complete_after));
        }
        let from = state.history.partition_point(|change| change.version <= since);
        Ok(state.history.range(from..).filter(|change| change.key.starts_with(prefix)).cloned().collect())
    }
}
