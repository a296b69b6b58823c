//! A store in memory whose medium a test can break.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use async_trait::async_trait;
use sas_core::{Commit, Entry, Error, ErrorKind, MemoryStore, Result, Store, StoreLimits, Version, Watched};

/// The store in memory on a medium that breaks when it is told to.
#[derive(Debug)]
pub struct FakeStore {
    inner: MemoryStore,
    limits: StoreLimits,
    writes: AtomicU64,
    fail_in: AtomicU64,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self::with_history(10_000)
    }
}

impl FakeStore {
    /// A store that remembers this many changes.
    pub fn with_history(history: usize) -> Self {
        Self {
            inner: MemoryStore::with_history(history),
            limits: StoreLimits::LOCAL,
            writes: AtomicU64::new(0),
            fail_in: AtomicU64::new(u64::MAX),
        }
    }

    /// With other limits than those of a store on this machine.
    #[must_use]
    pub fn with_limits(mut self, limits: StoreLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Lets `writes` more commits through; the medium fails from then on, reads included, until [`FakeStore::mend`].
    pub fn break_after(&self, writes: u64) {
        self.fail_in.store(self.writes() + writes, SeqCst);
    }

    /// The medium works again.
    pub fn mend(&self) {
        self.fail_in.store(u64::MAX, SeqCst);
    }

    /// Commits done so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(SeqCst)
    }

    fn works(&self, operation: &'static str) -> Result<()> {
        if self.writes() >= self.fail_in.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, operation, "the medium is broken"));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for FakeStore {
    fn limits(&self) -> StoreLimits {
        self.limits
    }

    async fn version(&self) -> Result<Version> {
        self.works("version")?;
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.works("get")?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.works("list")?;
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits)?;
        self.works("commit")?;
        let version = self.inner.commit(commit).await?;
        self.writes.fetch_add(1, SeqCst);
        Ok(version)
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.works("watch")?;
        self.inner.watch(prefix, since).await
    }
}
