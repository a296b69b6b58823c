//! What is appended and read in order: the durable log of triggers and workflows.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Commit, Error, ErrorKind, Result, Store, StoreLimits, Version};

/// A record of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its place in the stream, from 1 on, without gaps.
    pub position: u64,
    /// The bytes that were appended.
    pub value: Bytes,
}

/// How much a log takes in one append. Who appends more splits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AppendLimits {
    /// Most bytes of a record.
    pub record_bytes: usize,
    /// Most records of an append.
    pub append_records: usize,
    /// Most bytes of all records of an append.
    pub append_bytes: usize,
}

impl AppendLimits {
    /// What every log takes.
    pub const SMALLEST: Self = Self::of_store(StoreLimits::SMALLEST);

    /// What a log takes that appends by one commit to a store, where its head is one more write.
    const fn of_store(store: StoreLimits) -> Self {
        Self {
            record_bytes: store.value_bytes,
            append_records: store.commit_writes.saturating_sub(1),
            append_bytes: store.commit_bytes.saturating_sub(HEAD_BYTES),
        }
    }
}

/// Most bytes of a head: the digits of a position.
const HEAD_BYTES: usize = 20;

/// Streams of records that are appended, read in order and trimmed at their start.
///
/// Brokers keep their events in it. It is given to the builder's `event_log`; `examples/custom_parts.rs` wraps the one on a store.
///
/// # Contract
/// - An append is durable when it returns, and its records stand together, in their order.
/// - Positions of a stream grow by one, from 1 on, and are never given twice, also after a trim.
/// - `expected` is a compare-and-swap on the last position: of two writers that expect the same one, one fails with
///   `Conflict` and has written nothing.
///
/// A stream's name has 1 to 200 bytes without `/`. A stream that was never written is empty.
///
/// # Errors
/// `InvalidSpec` for what is out of bounds, `Unavailable` when the medium fails, after which an append may be done or
/// not: read on from the last known position to find out.
#[async_trait]
pub trait EventLog: fmt::Debug + Send + Sync + 'static {
    /// What it takes in one append; constant while it lives, and nothing below [`AppendLimits::SMALLEST`], which is what it
    /// says unless it can more.
    fn limits(&self) -> AppendLimits {
        AppendLimits::SMALLEST
    }

    /// Appends all `records`, and gives the position of the last. With `expected`, only if that is the last position
    /// now (0: the stream is empty), else `Conflict`.
    async fn append(&self, stream: &str, expected: Option<u64>, records: Vec<Bytes>) -> Result<u64>;

    /// Up to `limit` records after position `after`, in order. Records that were trimmed are left out.
    async fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>>;

    /// The position of the last record; 0 when nothing was ever appended.
    async fn last(&self, stream: &str) -> Result<u64>;

    /// Forgets all records up to and including `position`. Idempotent.
    async fn trim(&self, stream: &str, position: u64) -> Result<()>;
}

/// An [`EventLog`] on any [`Store`], each record a key of its own.
///
/// ```
/// use std::sync::Arc;
/// use sas_core::{EventLog, MemoryStore, StoreLog};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// let log = StoreLog::new(Arc::new(MemoryStore::default()), "log");
/// assert_eq!(log.append("orders", Some(0), vec!["created".into(), "paid".into()]).await?, 2);
/// assert_eq!(log.read("orders", 1, 10).await?[0].value, "paid");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct StoreLog {
    store: Arc<dyn Store>,
    prefix: String,
}

/// How often an append without an expectation tries to be the next.
const ATTEMPTS: u32 = 32;

impl StoreLog {
    /// A log whose keys begin with `prefix`.
    pub fn new(store: Arc<dyn Store>, prefix: impl Into<String>) -> Self {
        Self { store, prefix: prefix.into() }
    }

    fn head(&self, stream: &str) -> String {
        format!("{}/last/{stream}", self.prefix)
    }

    fn records(&self, stream: &str) -> String {
        format!("{}/records/{stream}/", self.prefix)
    }

    fn key(&self, stream: &str, position: u64) -> String {
        format!("{}{position:020}", self.records(stream))
    }

    /// The last position, and the version of the key that holds it.
    async fn found(&self, stream: &str) -> Result<(u64, Option<Version>)> {
        if stream.is_empty() || stream.len() > 200 || stream.contains('/') {
            let message = format!("stream {stream:?}: a name of 1 to 200 bytes without /");
            return Err(Error::new(ErrorKind::InvalidSpec, "log", message));
        }
        let Some(entry) = self.store.get(&self.head(stream)).await? else { return Ok((0, None)) };
        let last = std::str::from_utf8(&entry.value).ok().and_then(|text| text.parse().ok());
        match last {
            Some(last) => Ok((last, Some(entry.version))),
            None => {
                let message = format!("{:?} holds no position", self.head(stream));
                Err(Error::new(ErrorKind::InvalidSpec, "log", message))
            }
        }
    }
}

#[async_trait]
impl EventLog for StoreLog {
    fn limits(&self) -> AppendLimits {
        AppendLimits::of_store(self.store.limits())
    }

    async fn append(&self, stream: &str, expected: Option<u64>, records: Vec<Bytes>) -> Result<u64> {
        for _ in 0..ATTEMPTS {
            let (last, version) = self.found(stream).await?;
            if expected.is_some_and(|expected| expected != last) {
                let message = format!("stream {stream:?} is at {last}, not at {}", expected.unwrap_or(last));
                return Err(Error::new(ErrorKind::Conflict, "log", message));
            }
            if records.is_empty() {
                return Ok(last);
            }
            let end = last + records.len() as u64;
            let mut commit =
                Commit::new().guard(self.head(stream), version).put(self.head(stream), end.to_string());
            for (position, record) in (last + 1..).zip(&records) {
                commit = commit.put(self.key(stream, position), record.clone());
            }
            match self.store.commit(commit).await {
                Ok(_) => return Ok(end),
                Err(error) if error.kind == ErrorKind::Conflict && expected.is_none() => {}
                Err(error) => return Err(error),
            }
        }
        let message = format!("stream {stream:?}: others were first {ATTEMPTS} times in a row; try again");
        Err(Error::new(ErrorKind::Conflict, "log", message))
    }

    async fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>> {
        self.found(stream).await?;
        let prefix = self.records(stream);
        let entries = self.store.list(&prefix, Some(&self.key(stream, after)), limit).await?;
        entries
            .into_iter()
            .map(|entry| match entry.key[prefix.len()..].parse() {
                Ok(position) => Ok(LogEntry { position, value: entry.value }),
                Err(_) => {
                    let message = format!("{:?} is no record of a log", entry.key);
                    Err(Error::new(ErrorKind::InvalidSpec, "log", message))
                }
            })
            .collect()
    }

    async fn last(&self, stream: &str) -> Result<u64> {
        self.found(stream).await.map(|(last, _)| last)
    }

    async fn trim(&self, stream: &str, position: u64) -> Result<()> {
        self.found(stream).await?;
        let prefix = self.records(stream);
        let end = self.key(stream, position);
        let most = self.store.limits().commit_writes;
        loop {
            let entries = self.store.list(&prefix, None, most).await?;
            let old: Vec<String> =
                entries.into_iter().map(|entry| entry.key).take_while(|key| *key <= end).collect();
            if old.is_empty() {
                return Ok(());
            }
            self.store.commit(old.into_iter().fold(Commit::new(), Commit::delete)).await?;
        }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: EventLog + ?Sized> EventLog for Arc<T> {
    fn limits(&self) -> AppendLimits {
        (**self).limits()
    }
    async fn append(&self, stream: &str, expected: Option<u64>, records: Vec<Bytes>) -> Result<u64> {
        (**self).append(stream, expected, records).await
    }
    async fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>> {
        (**self).read(stream, after, limit).await
    }
    async fn last(&self, stream: &str) -> Result<u64> {
        (**self).last(stream).await
    }
    async fn trim(&self, stream: &str, position: u64) -> Result<()> {
        (**self).trim(stream, position).await
    }
}
