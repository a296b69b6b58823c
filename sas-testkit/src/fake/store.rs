//! A store in memory whose medium a test can break.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{Change, Entry, Error, ErrorKind, Result, Store, Version};

/// Keeps the contract of [`Store`] in memory, with a history of the last `history` changes.
#[derive(Debug)]
pub struct FakeStore {
    state: Mutex<State>,
    history: usize,
    fail_in: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<String, (Version, Bytes)>,
    log: Vec<Change>,
    forgotten: Version,
    last: Version,
    writes: u64,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self::with_history(10_000)
    }
}

impl FakeStore {
    /// A store that remembers this many changes.
    pub fn with_history(history: usize) -> Self {
        Self { state: Mutex::default(), history, fail_in: AtomicU64::new(u64::MAX) }
    }

    /// Lets `writes` more writes through; the medium fails from then on, reads included, until [`FakeStore::mend`].
    pub fn break_after(&self, writes: u64) {
        self.fail_in.store(self.state.lock().writes + writes, SeqCst);
    }

    /// The medium works again.
    pub fn mend(&self) {
        self.fail_in.store(u64::MAX, SeqCst);
    }

    /// Writes and deletions done so far.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    fn works(&self, state: &State, operation: &'static str) -> Result<()> {
        if state.writes >= self.fail_in.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, operation, "the medium is broken"));
        }
        Ok(())
    }
}

fn check_key(operation: &'static str, key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 1024 {
        let message = format!("key: {} bytes: must have 1 to 1024", key.len());
        return Err(Error::new(ErrorKind::InvalidSpec, operation, message));
    }
    Ok(())
}

fn conflict(operation: &'static str, expected: Option<Version>, found: Option<Version>) -> Error {
    let message = format!("version: expected {expected:?}, found {found:?}: read it again");
    Error::new(ErrorKind::Conflict, operation, message)
}

impl State {
    fn changed(&mut self, key: &str, value: Option<Bytes>, history: usize) -> Version {
        self.writes += 1;
        self.last.0 += 1;
        self.log.push(Change { key: key.to_owned(), version: self.last, value });
        if self.log.len() > history {
            self.forgotten = self.log.remove(0).version;
        }
        self.last
    }
}

#[async_trait]
impl Store for FakeStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key("get", key)?;
        let state = self.state.lock();
        self.works(&state, "get")?;
        let entry = |(version, value): &(Version, Bytes)| Entry {
            key: key.to_owned(),
            version: *version,
            value: value.clone(),
        };
        Ok(state.entries.get(key).map(entry))
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        check_key("put", key)?;
        if value.len() > 16 << 20 {
            let message = format!("value: {} bytes: at most 16 MiB", value.len());
            return Err(Error::new(ErrorKind::InvalidSpec, "put", message));
        }
        let mut state = self.state.lock();
        self.works(&state, "put")?;
        let found = state.entries.get(key).map(|(version, _)| *version);
        if found != expected {
            return Err(conflict("put", expected, found));
        }
        let version = state.changed(key, Some(value.clone()), self.history);
        state.entries.insert(key.to_owned(), (version, value));
        Ok(version)
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        check_key("delete", key)?;
        let mut state = self.state.lock();
        self.works(&state, "delete")?;
        let found = state.entries.get(key).map(|(version, _)| *version);
        if found != Some(expected) {
            return Err(conflict("delete", Some(expected), found));
        }
        state.entries.remove(key);
        state.changed(key, None, self.history);
        Ok(())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        let state = self.state.lock();
        self.works(&state, "list")?;
        let from = after.filter(|after| *after >= prefix).unwrap_or(prefix);
        Ok(state
            .entries
            .range(from.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_str() > after))
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
        self.works(&state, "changes")?;
        if since < state.forgotten {
            let message = format!("since: {}: the history begins after {}", since.0, state.forgotten.0);
            return Err(Error::new(ErrorKind::Conflict, "changes", message));
        }
        let wanted = |change: &&Change| change.version > since && change.key.starts_with(prefix);
        Ok(state.log.iter().filter(wanted).cloned().collect())
    }
}
