//! A store on a medium that breaks in the middle.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{Commit, Entry, Error, ErrorKind, MemoryStore, Result, Store, StoreLimits, Version, Watched};
use tokio::sync::Notify;

/// The production store in memory over a medium that fails at a chosen write: see [`Applied`]. From then on nothing
/// works until it is mended, as after a crash of the host.
#[derive(Debug, Default)]
pub struct SimStore {
    inner: MemoryStore,
    fault: Mutex<Fault>,
    /// Keys of which a part of a value was kept, with the version of that.
    torn: Mutex<BTreeMap<String, Version>>,
    crashed: Notify,
    /// Planted: writes on a broken medium are acknowledged.
    lies: bool,
}

/// What a write that fails leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a write can leave no more than this")]
pub enum Applied {
    /// The store keeps nothing of the write.
    Not,
    /// All of it, and only the acknowledgement is lost.
    Whole,
    /// The first so many percent of the value, against the contract of [`Store`]: what a medium does that has
    /// neither a journal nor checksums. A deletion leaves nothing.
    Part(u32),
}

#[derive(Debug, Default)]
struct Fault {
    writes: u64,
    /// Fails after so many writes in all.
    planned: Option<(u64, Applied)>,
    /// The host dies at the write that fails.
    crashes: bool,
    broken: bool,
    failures: u64,
    /// What each operation takes longer.
    delay: Duration,
}

/// What becomes of a write.
enum Write {
    Told,
    Untold,
    Part(u32),
    Lost,
}

impl SimStore {
    /// A store that acknowledges writes on a broken medium, to see that this is found.
    pub fn lying() -> Self {
        Self { lies: true, ..Self::default() }
    }

    /// Lets `after` more writes through; the next one fails, applied or not.
    pub fn break_after(&self, after: u64, applied: bool) {
        let mut fault = self.fault.lock();
        if !fault.broken {
            let applied = if applied { Applied::Whole } else { Applied::Not };
            fault.planned = Some((fault.writes + after, applied));
        }
    }

    /// Lets `before` writes through, counted from the first of all; the host dies at the next one.
    pub fn crash_at(&self, before: u64, applied: Applied) {
        let mut fault = self.fault.lock();
        (fault.planned, fault.crashes) = (Some((before, applied)), true);
    }

    /// Resolves when the host has to die.
    pub async fn crashed(&self) {
        self.crashed.notified().await;
    }

    /// Each operation takes this much longer from now on, as on a disk that is busy.
    pub fn slow(&self, delay: Duration) {
        self.fault.lock().delay = delay;
    }

    /// Works again, with everything that was applied.
    pub fn mend(&self) {
        let mut fault = self.fault.lock();
        (fault.planned, fault.crashes, fault.broken) = (None, false, false);
        fault.delay = Duration::ZERO;
    }

    /// Works again after a crash; what is planned for later stays.
    pub fn reopen(&self) {
        let mut fault = self.fault.lock();
        if fault.broken {
            (fault.planned, fault.crashes, fault.broken) = (None, false, false);
        }
    }

    /// Keys of which only a part of a value is there.
    pub async fn damaged(&self) -> Vec<String> {
        let torn: Vec<_> = self.torn.lock().iter().map(|(key, version)| (key.clone(), *version)).collect();
        let mut damaged = Vec::new();
        for (key, version) in torn {
            let found = self.inner.get(&key).await.ok().flatten();
            if found.is_some_and(|entry| entry.version == version) {
                damaged.push(key);
            }
        }
        damaged
    }

    /// Writes that were asked for and not refused, so far.
    pub fn writes(&self) -> u64 {
        self.fault.lock().writes
    }

    /// Whether it fails now.
    pub fn is_broken(&self) -> bool {
        self.fault.lock().broken
    }

    /// Writes that failed so far.
    pub fn failures(&self) -> u64 {
        self.fault.lock().failures
    }

    /// What is below a prefix, whatever state the medium is in.
    pub(crate) async fn peek(&self, prefix: &str) -> Vec<(String, bytes::Bytes)> {
        let mut all: Vec<(String, bytes::Bytes)> = Vec::new();
        loop {
            let after = all.last().map(|(key, _)| key.clone());
            let page = self.inner.list(prefix, after.as_deref(), 500).await.unwrap_or_default();
            if page.is_empty() {
                return all;
            }
            all.extend(page.into_iter().map(|entry| (entry.key, entry.value)));
        }
    }

    async fn wait(&self) {
        let delay = self.fault.lock().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    fn works(&self, operation: &'static str) -> Result<()> {
        if self.fault.lock().broken && !self.lies { Err(broken(operation)) } else { Ok(()) }
    }

    fn write(&self, operation: &'static str) -> Result<Write> {
        let mut fault = self.fault.lock();
        if fault.broken {
            return if self.lies { Ok(Write::Lost) } else { Err(broken(operation)) };
        }
        fault.writes += 1;
        if let Some((at, applied)) = fault.planned
            && fault.writes > at
        {
            fault.broken = true;
            fault.failures += 1;
            if fault.crashes {
                self.crashed.notify_one();
            }
            return match (self.lies, applied) {
                (true, _) => Ok(Write::Lost),
                (false, Applied::Whole) => Ok(Write::Untold),
                (false, Applied::Part(percent)) => Ok(Write::Part(percent)),
                (false, Applied::Not) => Err(broken(operation)),
            };
        }
        Ok(Write::Told)
    }
}

fn broken(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "simulated: the medium is gone")
}

/// What is left of a commit that was torn: a first part of each value, and no deletion.
fn torn(mut commit: Commit, percent: u32) -> Commit {
    commit.writes.retain_mut(|write| {
        let Some(value) = &mut write.value else { return false };
        let kept = value.len() * percent.min(100) as usize / 100;
        value.truncate(kept.min(value.len().saturating_sub(1)));
        true
    });
    commit
}

#[async_trait]
impl Store for SimStore {
    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.wait().await;
        self.works("version")?;
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.wait().await;
        self.works("get")?;
        self.inner.get(key).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        self.wait().await;
        match self.write("commit")? {
            Write::Told => self.inner.commit(commit).await,
            Write::Untold => {
                self.inner.commit(commit).await?;
                Err(broken("commit"))
            }
            // On books that cannot be read a platform does not start, so that nobody pays what is a guess.
            Write::Part(_) if commit.writes.iter().any(|write| write.key.starts_with("usage/")) => {
                Err(broken("commit"))
            }
            Write::Part(percent) => {
                let part = torn(commit, percent);
                let keys: Vec<String> = part.writes.iter().map(|write| write.key.clone()).collect();
                if !keys.is_empty() {
                    let version = self.inner.commit(part).await?;
                    self.torn.lock().extend(keys.into_iter().map(|key| (key, version)));
                }
                Err(broken("commit"))
            }
            Write::Lost => Ok(Version(u64::MAX / 2)),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.wait().await;
        self.works("list")?;
        self.inner.list(prefix, after, limit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.wait().await;
        self.works("watch")?;
        self.inner.watch(prefix, since).await
    }
}
