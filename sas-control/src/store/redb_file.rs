//! The store in one file, on redb. All writes go through one thread, which commits those that wait together: a
//! commit costs one flush of the disk, whoever shares it.

use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, TableError, WriteTransaction,
};
use sas_core::{BoxError, Change, Entry, Error, ErrorKind, Result, Store, Version};
use tokio::sync::{mpsc, oneshot};

use super::{HISTORY_CHANGES, check_key, check_value, conflict, history_gone};

const ENTRIES: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("entries");
const HISTORY: TableDefinition<'static, u64, (&str, Option<&[u8]>)> = TableDefinition::new("history");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Every change after this version is in the history.
const COMPLETE_AFTER: &str = "complete_after";
const LAST_VERSION: &str = "last_version";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;

/// Writes that may wait for the writer; more wait for room.
const QUEUE: usize = 1024;
/// Writes that share one commit at most.
const BATCH: usize = 256;

/// A [`Store`] in a file, durable when `put` returns, whole after a crash at any point.
///
/// One process at a time: a second one gets `Conflict`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let path = dir.path().join("state.redb");
/// use sas_control::RedbStore;
/// use sas_core::Store;
///
/// let store = RedbStore::open(&path).await?;
/// store.put("greeting", None, "hello".into()).await?;
/// store.close().await;
///
/// let again = RedbStore::open(&path).await?;
/// assert_eq!(again.get("greeting").await?.map(|entry| entry.value), Some("hello".into()));
/// # Ok(())
/// # }
/// ```
pub struct RedbStore {
    database: Mutex<Option<Arc<Database>>>,
    /// Held for writing while a commit is made. So a read that begins after a write was given up sees what became of it:
    /// either the commit was under way and the read waits for it, or the writer finds the caller gone and leaves it out.
    committing: Arc<RwLock<()>>,
    writer: mpsc::Sender<Op>,
    path: Box<Path>,
}

enum Op {
    Write {
        key: String,
        expected: Option<Version>,
        value: Option<Bytes>,
        done: oneshot::Sender<Result<Version>>,
    },
    Close(oneshot::Sender<()>),
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedbStore").field("path", &self.path).finish_non_exhaustive()
    }
}

fn medium(operation: &'static str, error: impl Into<BoxError>) -> Error {
    let error = error.into();
    Error::new(ErrorKind::Unavailable, operation, format!("the store's file failed: {error}"))
        .with_source(error)
}

impl RedbStore {
    /// Opens the file at `path`, or makes it. A file that a crash left behind is repaired.
    ///
    /// # Errors
    /// `Conflict` when another process has it open; `Unavailable` when it can't be read or made; `InvalidSpec` when
    /// it is not a store's file or one of a later version.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path: Box<Path> = path.as_ref().into();
        let opened = path.clone();
        let database = blocking("open", move || open_file(&opened)).await?;
        Self::on(database, path)
    }

    /// On an open database; `path` is for messages.
    pub(super) fn on(database: Database, path: Box<Path>) -> Result<Self> {
        let database = Arc::new(database);
        let (writer, ops) = mpsc::channel(QUEUE);
        let committing = Arc::new(RwLock::new(()));
        let (writes, held) = (Arc::clone(&database), Arc::clone(&committing));
        std::thread::Builder::new()
            .name("sas-store".to_owned())
            .spawn(move || write_loop(writes, &held, ops))
            .map_err(|error| medium("open", error))?;
        Ok(Self { database: Mutex::new(Some(database)), committing, writer, path })
    }

    /// Finishes what was asked for and gives the file back, so that it can be opened again. Later calls fail with
    /// `Unavailable`. A store that is dropped does the same in the background.
    pub async fn close(&self) {
        self.database.lock().take();
        let (done, closed) = oneshot::channel();
        if self.writer.send(Op::Close(done)).await.is_ok() {
            let _ = closed.await;
        }
    }

    async fn write(&self, key: &str, expected: Option<Version>, value: Option<Bytes>) -> Result<Version> {
        let closed = || Error::new(ErrorKind::Unavailable, "store", "the store was closed");
        let (done, written) = oneshot::channel();
        let op = Op::Write { key: key.to_owned(), expected, value, done };
        self.writer.send(op).await.map_err(|_| closed())?;
        written.await.map_err(|_| closed())?
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&ReadTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = self.database.lock().clone();
        let Some(database) = database else {
            return Err(Error::new(ErrorKind::Unavailable, operation, "the store was closed"));
        };
        let committing = Arc::clone(&self.committing);
        blocking(operation, move || {
            let transaction = {
                let _settled = committing.read();
                database.begin_read().map_err(|error| medium(operation, error))?
            };
            read(&transaction)
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    operation: &'static str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(Error::new(ErrorKind::Unexpected, operation, format!("the store's thread ended: {error}")))
        }
    }
}

fn open_file(path: &Path) -> Result<Database> {
    let shown = path.display();
    let database = Database::create(path).map_err(|error| match error {
        DatabaseError::DatabaseAlreadyOpen => Error::new(
            ErrorKind::Conflict,
            "open",
            format!("{shown} is open in another process; stop that one or use another state directory"),
        ),
        DatabaseError::UpgradeRequired(version) => Error::new(
            ErrorKind::InvalidSpec,
            "open",
            format!("{shown} has file format {version}, which this version does not read"),
        ),
        other => {
            let message = format!("{shown} can't be opened: {other}");
            Error::new(ErrorKind::Unavailable, "open", message).with_source(other)
        }
    })?;
    prepare(&database, path)?;
    Ok(database)
}

/// Makes the tables, or refuses those of a later version.
pub(super) fn prepare(database: &Database, path: &Path) -> Result<()> {
    let shown = path.display();
    let transaction = database.begin_write().map_err(|error| medium("open", error))?;
    {
        transaction.open_table(ENTRIES).map_err(|error| medium("open", error))?;
        transaction.open_table(HISTORY).map_err(|error| medium("open", error))?;
        let mut meta = transaction.open_table(META).map_err(|error| medium("open", error))?;
        let format = meta.get(FORMAT).map_err(|error| medium("open", error))?.map(|format| format.value());
        match format {
            None => {
                meta.insert(FORMAT, FORMAT_VERSION).map_err(|error| medium("open", error))?;
            }
            Some(FORMAT_VERSION) => {}
            Some(other) => {
                let message =
                    format!("{shown} was written in format {other}; this version reads {FORMAT_VERSION}");
                return Err(Error::new(ErrorKind::InvalidSpec, "open", message));
            }
        }
    }
    transaction.commit().map_err(|error| medium("open", error))
}

fn write_loop(database: Arc<Database>, committing: &RwLock<()>, mut ops: mpsc::Receiver<Op>) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = ops.blocking_recv() {
        batch.push(first);
        while batch.len() < BATCH
            && let Ok(next) = ops.try_recv()
        {
            batch.push(next);
        }
        let mut closing = None;
        let mut writes = Vec::with_capacity(batch.len());
        for op in batch.drain(..) {
            match op {
                Op::Write { key, expected, value, done } => writes.push((key, expected, value, done)),
                Op::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
        }
        {
            let _committing = committing.write();
            writes.retain(|(.., done)| !done.is_closed());
            commit(&database, writes);
        }
        if let Some(done) = closing {
            drop(ops);
            drop(database);
            let _ = done.send(());
            return;
        }
    }
}

type Write = (String, Option<Version>, Option<Bytes>, oneshot::Sender<Result<Version>>);

/// Applies each write whose expectation holds, and commits them as one. Nobody is told of success before the
/// commit is on disk.
fn commit(database: &Database, writes: Vec<Write>) {
    if writes.is_empty() {
        return;
    }
    let mut outcomes = Vec::with_capacity(writes.len());
    let committed = database.begin_write().map_err(|error| medium("put", error)).and_then(|transaction| {
        for (key, expected, value, _) in &writes {
            outcomes.push(apply(&transaction, key, *expected, value.as_ref())?);
        }
        trim(&transaction)?;
        transaction.commit().map_err(|error| medium("put", error))
    });
    match committed {
        Ok(()) => {
            for ((.., done), outcome) in writes.into_iter().zip(outcomes) {
                let _ = done.send(outcome);
            }
        }
        Err(error) => {
            for (.., done) in writes {
                let _ = done.send(Err(Error::new(error.kind, error.operation, error.message.clone())));
            }
        }
    }
}

/// The outer error is the medium's and ends the transaction; the inner one is this write's own.
fn apply(
    transaction: &WriteTransaction,
    key: &str,
    expected: Option<Version>,
    value: Option<&Bytes>,
) -> Result<Result<Version>> {
    let fail = |error: redb::Error| medium("put", error);
    let mut entries = transaction.open_table(ENTRIES).map_err(|error| fail(error.into()))?;
    let found = entries.get(key).map_err(|error| fail(error.into()))?.map(|entry| Version(entry.value().0));
    if found != expected {
        return Ok(Err(conflict(key, expected, found)));
    }
    let mut meta = transaction.open_table(META).map_err(|error| fail(error.into()))?;
    let last = meta.get(LAST_VERSION).map_err(|error| fail(error.into()))?.map_or(0, |last| last.value());
    let version = last + 1;
    meta.insert(LAST_VERSION, version).map_err(|error| fail(error.into()))?;
    match value {
        Some(value) => {
            entries.insert(key, (version, value.as_ref())).map_err(|error| fail(error.into()))?;
        }
        None => {
            entries.remove(key).map_err(|error| fail(error.into()))?;
        }
    }
    let mut history = transaction.open_table(HISTORY).map_err(|error| fail(error.into()))?;
    history.insert(version, (key, value.map(AsRef::as_ref))).map_err(|error| fail(error.into()))?;
    Ok(Ok(Version(version)))
}

fn trim(transaction: &WriteTransaction) -> Result<()> {
    let fail = |error: redb::Error| medium("put", error);
    let mut history = transaction.open_table(HISTORY).map_err(|error| fail(error.into()))?;
    let mut meta = transaction.open_table(META).map_err(|error| fail(error.into()))?;
    while history.len().map_err(|error| fail(error.into()))? > HISTORY_CHANGES as u64 {
        let oldest =
            history.pop_first().map_err(|error| fail(error.into()))?.map(|(version, _)| version.value());
        let Some(oldest) = oldest else { break };
        meta.insert(COMPLETE_AFTER, oldest).map_err(|error| fail(error.into()))?;
    }
    Ok(())
}

fn table<K: redb::Key, V: redb::Value>(
    transaction: &ReadTransaction,
    definition: TableDefinition<'static, K, V>,
    operation: &'static str,
) -> Result<redb::ReadOnlyTable<K, V>> {
    transaction.open_table(definition).map_err(|error: TableError| medium(operation, error))
}

#[async_trait]
impl Store for RedbStore {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        check_key(key)?;
        let key = key.to_owned();
        self.read("get", move |transaction| {
            let entries = table(transaction, ENTRIES, "get")?;
            let found = entries.get(key.as_str()).map_err(|error| medium("get", error))?;
            Ok(found.map(|entry| {
                let (version, value) = entry.value();
                Entry { key, version: Version(version), value: Bytes::copy_from_slice(value) }
            }))
        })
        .await
    }

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        check_key(key)?;
        check_value(key, &value)?;
        self.write(key, expected, Some(value)).await
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        check_key(key)?;
        self.write(key, Some(expected), None).await.map(|_| ())
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.read("list", move |transaction| {
            let entries = table(transaction, ENTRIES, "list")?;
            let start = after.as_deref().filter(|after| *after >= prefix.as_str()).unwrap_or(&prefix);
            let mut found = Vec::new();
            for entry in entries.range(start..).map_err(|error| medium("list", error))? {
                if found.len() >= limit {
                    break;
                }
                let (key, value) = entry.map_err(|error| medium("list", error))?;
                let key = key.value();
                if !key.starts_with(prefix.as_str()) {
                    break;
                }
                if after.as_deref() == Some(key) {
                    continue;
                }
                let (version, value) = value.value();
                found.push(Entry {
                    key: key.to_owned(),
                    version: Version(version),
                    value: Bytes::copy_from_slice(value),
                });
            }
            Ok(found)
        })
        .await
    }

    async fn changes(&self, prefix: &str, since: Version) -> Result<Vec<Change>> {
        let prefix = prefix.to_owned();
        self.read("changes", move |transaction| {
            let meta = table(transaction, META, "changes")?;
            let complete_after =
                meta.get(COMPLETE_AFTER).map_err(|error| medium("changes", error))?.map_or(0, |v| v.value());
            if since.0 < complete_after {
                return Err(history_gone(since, complete_after));
            }
            let history = table(transaction, HISTORY, "changes")?;
            let mut found = Vec::new();
            for change in
                history.range(since.0.saturating_add(1)..).map_err(|error| medium("changes", error))?
            {
                let (version, change) = change.map_err(|error| medium("changes", error))?;
                let (key, value) = change.value();
                if key.starts_with(prefix.as_str()) {
                    found.push(Change {
                        key: key.to_owned(),
                        version: Version(version.value()),
                        value: value.map(Bytes::copy_from_slice),
                    });
                }
            }
            Ok(found)
        })
        .await
    }
}
