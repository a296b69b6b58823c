//! Faults for real processes, disks, ports and connections to a store.

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
use tokio::sync::watch;

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

/// What a [`StoreLink`] does with what is asked over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "tests go through all of them")]
pub enum LinkFault {
    /// It passes everything on.
    None,
    /// Every question fails at once, and watches end.
    Fails,
    /// No question arrives or is answered until the fault is over, as with a process that sleeps or a network that is cut.
    Hangs,
    /// Commits are done, and their answers are lost.
    Unanswered,
}

/// One host's connection to a store that several share.
///
/// ```
/// use std::sync::Arc;
/// use sas_core::{Commit, ErrorKind, MemoryStore, Store};
/// use sas_testkit::fault::{LinkFault, StoreLink};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// let store = Arc::new(MemoryStore::default());
/// let link = StoreLink::new(store.clone());
/// link.set(LinkFault::Unanswered);
/// let lost = link.commit(Commit::new().put("key", "value")).await.expect_err("the answer is lost");
/// assert_eq!(lost.kind, ErrorKind::Unavailable);
/// assert!(store.get("key").await?.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StoreLink {
    inner: Arc<dyn Store>,
    fault: watch::Sender<LinkFault>,
    writes: AtomicU64,
}

impl StoreLink {
    /// A connection without a fault.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self { inner, fault: watch::Sender::new(LinkFault::None), writes: AtomicU64::new(0) }
    }

    /// Has this fault from now on, for what is under way too.
    pub fn set(&self, fault: LinkFault) {
        self.fault.send_replace(fault);
    }

    /// The fault that it has.
    pub fn fault(&self) -> LinkFault {
        *self.fault.borrow()
    }

    /// Commits that arrived at the store, so far.
    pub fn writes(&self) -> u64 {
        self.writes.load(SeqCst)
    }

    async fn pass(&self) -> Result<LinkFault> {
        let mut faults = self.fault.subscribe();
        loop {
            let fault = *faults.borrow_and_update();
            match fault {
                LinkFault::Fails => return Err(cut_off()),
                LinkFault::Hangs => {
                    let _ = faults.changed().await;
                }
                LinkFault::None | LinkFault::Unanswered => return Ok(fault),
            }
        }
    }

    async fn cut(&self) {
        let _ = self.fault.subscribe().wait_for(|fault| *fault == LinkFault::Fails).await;
    }
}

fn cut_off() -> Error {
    Error::new(ErrorKind::Unavailable, "store", "cut off")
}

#[async_trait]
impl Store for StoreLink {
    /// Those of the store that allows least, so that nothing passes here that another store would refuse.
    fn limits(&self) -> StoreLimits {
        StoreLimits::SMALLEST
    }

    async fn version(&self) -> Result<Version> {
        self.pass().await?;
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.pass().await?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.pass().await?;
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        let fault = self.pass().await?;
        commit.check(&self.limits())?;
        self.writes.fetch_add(1, SeqCst);
        let done = self.inner.commit(commit).await;
        if fault == LinkFault::Unanswered {
            return Err(Error::new(ErrorKind::Unavailable, "store", "the answer was lost"));
        }
        done
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.pass().await?;
        tokio::select! {
            biased;
            () = self.cut() => Err(cut_off()),
            watched = self.inner.watch(prefix, since) => {
                self.pass().await?;
                watched
            }
        }
    }
}
