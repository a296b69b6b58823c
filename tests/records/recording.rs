//! A store that remembers all that was ever written to it, also what was deleted soon after.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use parking_lot::Mutex;
use sas::core::{Commit, Entry, Error, ErrorKind, MemoryStore, Result, Store, StoreLimits, Version, Watched};

/// Every value that a key ever had, in their order.
pub(crate) type Written = BTreeMap<String, Vec<Vec<u8>>>;

#[derive(Debug, Default)]
pub(crate) struct Recording {
    inner: MemoryStore,
    written: Mutex<Written>,
    /// The next commit that opens the books is the last one before the kill.
    ends: AtomicBool,
    ended: AtomicBool,
}

impl Recording {
    /// Takes nothing more once the books say that more usage follows, as if the host were killed then.
    pub(crate) fn end_with_open_books(&self) {
        self.ends.store(true, SeqCst);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(SeqCst)
    }

    /// Another host goes on with it.
    pub(crate) fn go_on(&self) {
        self.ends.store(false, SeqCst);
        self.ended.store(false, SeqCst);
    }

    pub(crate) fn written(&self) -> Written {
        self.written.lock().clone()
    }

    /// What is in the store now.
    pub(crate) async fn present(&self) -> BTreeMap<String, Vec<u8>> {
        let mut all = BTreeMap::new();
        loop {
            let after = all.last_key_value().map(|(key, _): (&String, _)| key.clone());
            let page = self.inner.list("", after.as_deref(), 1000).await.expect("memory");
            if page.is_empty() {
                return all;
            }
            all.extend(page.into_iter().map(|entry| (entry.key, entry.value.to_vec())));
        }
    }

    /// A store that holds these.
    pub(crate) async fn of(entries: impl IntoIterator<Item = (String, Vec<u8>)>) -> Arc<Self> {
        let store = Self::default();
        for (key, value) in entries {
            store.inner.commit(Commit::new().put(key, value)).await.expect("memory");
        }
        Arc::new(store)
    }
}

#[async_trait::async_trait]
impl Store for Recording {
    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        let puts: Vec<(String, Vec<u8>)> = commit
            .writes
            .iter()
            .filter_map(|write| Some((write.key.clone(), write.value.as_ref()?.to_vec())))
            .collect();
        if self.has_ended() {
            return Err(Error::new(ErrorKind::Unavailable, "commit", "the host is dead"));
        }
        let version = self.inner.commit(commit).await?;
        let opens = |value: &[u8]| value.windows(11).any(|part| part == b"\"open\":true");
        if self.ends.load(SeqCst)
            && puts.iter().any(|(key, value)| key.starts_with("usage/checkpoint/") && opens(value))
        {
            self.ended.store(true, SeqCst);
        }
        let mut written = self.written.lock();
        for (key, value) in puts {
            written.entry(key).or_default().push(value);
        }
        Ok(version)
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.inner.watch(prefix, since).await
    }
}
