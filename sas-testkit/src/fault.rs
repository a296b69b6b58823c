//! Faults for real processes, disks and ports.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use sas_core::{Commit, Entry, Error, ErrorKind, Result, Store, StoreLimits, Version, Watched};

/// A process of a test's own, to be killed, stopped and continued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Victim(Pid);

impl Victim {
    /// The process `pid`. `None` for pid 0 and numbers that can be no pid.
    pub fn new(pid: u32) -> Option<Self> {
        i32::try_from(pid).ok().and_then(Pid::from_raw).map(Self)
    }

    /// Kills it, as the kernel does when memory runs out.
    ///
    /// # Errors
    /// When there is no such process (any more), or it is another user's.
    pub fn kill(self) -> io::Result<()> {
        Ok(kill_process(self.0, Signal::KILL)?)
    }

    /// Stops it for `time`: it answers nobody and does not know. It is continued also when the future is dropped.
    ///
    /// # Errors
    /// As [`Victim::kill`].
    pub async fn pause(self, time: Duration) -> io::Result<()> {
        struct Continue(Pid);
        impl Drop for Continue {
            fn drop(&mut self) {
                // It may have ended meanwhile; then there is nothing to continue.
                let _ = kill_process(self.0, Signal::CONT);
            }
        }
        kill_process(self.0, Signal::STOP)?;
        let _continue = Continue(self.0);
        tokio::time::sleep(time).await;
        Ok(())
    }
}

/// An address at which nobody listens: connecting is refused at once.
///
/// # Errors
/// When no port can be had.
pub async fn closed_port() -> io::Result<SocketAddr> {
    // Bound and let go: the kernel hands out other ports before it comes back to this one.
    tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()
}

/// A store on a disk that is slow or full, around any other.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> sas_core::Result<()> {
/// use sas_core::Store;
/// use sas_testkit::{fake::FakeStore, fault::SlowDisk};
/// use std::{sync::Arc, time::Duration};
///
/// let disk = SlowDisk::new(Arc::new(FakeStore::default()));
/// disk.delay(Duration::from_secs(2));
/// let before = tokio::time::Instant::now();
/// disk.put("a", None, "1".into()).await?;
/// assert!(before.elapsed() >= Duration::from_secs(2));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct SlowDisk {
    inner: Arc<dyn Store>,
    delay: Mutex<Duration>,
    refused: AtomicU64,
}

impl SlowDisk {
    /// As quick as `inner`, until it is told otherwise.
    pub fn new(inner: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self { inner, delay: Mutex::default(), refused: AtomicU64::new(0) })
    }

    /// From now on each operation takes this much longer.
    pub fn delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    /// The next writes are refused and not applied, as on a full disk.
    pub fn refuse_writes(&self, count: u64) {
        self.refused.store(count, SeqCst);
    }

    async fn wait(&self) {
        let delay = *self.delay.lock();
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
    }

    async fn write(&self, operation: &'static str) -> Result<()> {
        self.wait().await;
        let taken = self.refused.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1));
        match taken {
            Ok(_) => Err(Error::new(ErrorKind::Exhausted, operation, "injected: the disk is full")),
            Err(_) => Ok(()),
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl Store for SlowDisk {
    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.wait().await;
        self.inner.version().await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        self.write("commit").await?;
        self.inner.commit(commit).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.wait().await;
        self.inner.get(key).await
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        self.write("put").await?;
        self.inner.put(key, expected, value).await
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        self.write("delete").await?;
        self.inner.delete(key, expected).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.wait().await;
        self.inner.list(prefix, after, limit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.wait().await;
        self.inner.watch(prefix, since).await
    }
}
