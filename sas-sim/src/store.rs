//! A store on a medium that breaks in the middle.

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_control::MemoryStore;
use sas_core::{Change, Entry, Error, ErrorKind, Result, Store, Version};

/// The production store in memory over a medium that fails at a chosen write: before the write was applied, or after
/// it was applied but before that was said (a torn write, as the caller sees it). From then on nothing works until
/// it is mended, as after a crash of the host.
#[derive(Debug, Default)]
pub struct SimStore {
    inner: MemoryStore,
    fault: Mutex<Fault>,
    /// Planted: writes on a broken medium are acknowledged.
    lies: bool,
}

#[derive(Debug, Default)]
struct Fault {
    writes: u64,
    /// Fails at this many writes from now; `true`: after it was applied.
    planned: Option<(u64, bool)>,
    broken: bool,
    failures: u64,
}

/// What becomes of a write.
enum Write {
    Told,
    Torn,
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
            fault.planned = Some((fault.writes + after, applied));
        }
    }

    /// Works again, with everything that was applied.
    pub fn mend(&self) {
        let mut fault = self.fault.lock();
        fault.planned = None;
        fault.broken = false;
    }

    /// Whether it fails now.
    pub fn is_broken(&self) -> bool {
        self.fault.lock().broken
    }

    /// Writes that failed so far.
    pub fn failures(&self) -> u64 {
        self.fault.lock().failures
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
            return match (self.lies, applied) {
                (true, _) => Ok(Write::Lost),
                (false, true) => Ok(Write::Torn),
                (false, false) => Err(broken(operation)),
            };
        }
        Ok(Write::Told)
    }
}

fn broken(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "simulated: the medium is gone")
}

#[async_trait]
impl Store for SimStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.works("get")?;
        self.inner.get(key).await
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        match self.write("put")? {
            Write::Told => self.inner.put(key, expected, value).await,
            Write::Torn => {
                self.inner.put(key, expected, value).await?;
                Err(broken("put"))
            }
            Write::Lost => Ok(Version(u64::MAX / 2)),
        }
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        match self.write("delete")? {
            Write::Told => self.inner.delete(key, expected).await,
            Write::Torn => {
                self.inner.delete(key, expected).await?;
                Err(broken("delete"))
            }
            Write::Lost => Ok(()),
        }
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.works("list")?;
        self.inner.list(prefix, after, limit).await
    }

    async fn changes(&self, prefix: &str, since: Version) -> Result<Vec<Change>> {
        self.works("changes")?;
        self.inner.changes(prefix, since).await
    }
}
