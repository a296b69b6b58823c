//! The store for tests and for platforms whose services need not outlive them.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Change, Commit, Entry, Result, Store, StoreLimits, Version, Watched, guard_failed};

/// Changes that are kept unless told otherwise.
const HISTORY_CHANGES: usize = 4096;
/// Bytes of values that the history may hold.
const HISTORY_BYTES: usize = 64 << 20;
/// Changes that one watch gives at once, up to the end of their commit.
const WATCHED: usize = 1024;

/// A [`Store`] in memory. What it holds ends with the process.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// use sas_core::{MemoryStore, Store};
///
/// let store = MemoryStore::default();
/// let version = store.put("greeting", None, "hello".into()).await?;
/// assert!(store.put("greeting", None, "again".into()).await.is_err());
/// store.put("greeting", Some(version), "bye".into()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct MemoryStore {
    state: Mutex<State>,
    /// The last version, for those who watch.
    last: watch::Sender<u64>,
    history: usize,
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

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_history(HISTORY_CHANGES)
    }
}

impl State {
    fn forget(&mut self, most: usize) {
        while self.history.len() > most || self.history_bytes > HISTORY_BYTES {
            let Some(old) = self.history.pop_front() else { break };
            self.history_bytes -= old.value.as_ref().map_or(0, Bytes::len);
            self.complete_after = old.version.0;
        }
    }

    fn changes(&self, prefix: &str, since: Version) -> Vec<Change> {
        let from = self.history.partition_point(|change| change.version <= since);
        let mut found: Vec<Change> = Vec::new();
        for change in self.history.range(from..).filter(|change| change.key.starts_with(prefix)) {
            if found.len() >= WATCHED && found.last().is_some_and(|last| last.version != change.version) {
                break;
            }
            found.push(change.clone());
        }
        found
    }
}

impl MemoryStore {
    /// A store that remembers this many changes for those who watch.
    pub fn with_history(changes: usize) -> Self {
        Self { state: Mutex::default(), last: watch::Sender::new(0), history: changes }
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn limits(&self) -> StoreLimits {
        StoreLimits::LOCAL
    }

    async fn version(&self) -> Result<Version> {
        Ok(Version(self.state.lock().last))
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.limits().check_key(key)?;
        let state = self.state.lock();
        Ok(state.entries.get(key).map(|(version, value)| Entry {
            key: key.to_owned(),
            version: *version,
            value: value.clone(),
        }))
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

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits())?;
        let mut state = self.state.lock();
        for guard in &commit.guards {
            let found = state.entries.get(&guard.key).map(|(version, _)| *version);
            if found != guard.expected {
                return Err(guard_failed(guard, found));
            }
        }
        let version = Version(state.last + 1);
        for write in commit.writes {
            match &write.value {
                Some(value) => {
                    state.entries.insert(write.key.clone(), (version, value.clone()));
                }
                None if state.entries.remove(&write.key).is_none() => continue,
                None => {}
            }
            state.last = version.0;
            state.history_bytes += write.value.as_ref().map_or(0, Bytes::len);
            state.history.push_back(Change { key: write.key, version, value: write.value });
        }
        state.forget(self.history);
        let last = state.last;
        // Under the lock, so that what is told never goes back.
        self.last.send_replace(last);
        Ok(Version(last))
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let mut last = self.last.subscribe();
        loop {
            last.borrow_and_update();
            {
                let state = self.state.lock();
                if since.0 < state.complete_after || since.0 > state.last {
                    return Ok(Watched::ListAgain);
                }
                let changes = state.changes(prefix, since);
                if !changes.is_empty() {
                    return Ok(Watched::Changes(changes));
                }
            }
            if last.changed().await.is_err() {
                return Ok(Watched::ListAgain);
            }
        }
    }
}
