//! All writes go through one thread, which commits those that wait together: a commit costs one flush of the disk,
//! whoever shares it.

use std::{
    fmt, fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, TableError, WriteTransaction,
};
use sas_core::{
    BoxError, Change, Commit, Entry, Error, ErrorKind, Result, Store, StoreLimits, Version, Watched,
    guard_failed,
};
use tokio::sync::{mpsc, oneshot, watch};

const ENTRIES: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("entries");
/// A key, and what it holds since then; none: it was removed.
type Changed = (&'static str, Option<&'static [u8]>);
/// By version, and by place in the commit.
const CHANGES: TableDefinition<'static, (u64, u32), Changed> = TableDefinition::new("changes");
const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Every change after this version is in the history.
const COMPLETE_AFTER: &str = "complete_after";
const LAST_VERSION: &str = "last_version";
/// Bytes of the values in the history.
const CHANGES_BYTES: &str = "changes_bytes";
const FORMAT: &str = "format";
/// 2: commits of several writes. 1 had a history, `history`, of one change for each version.
const FORMAT_VERSION: u64 = 2;
/// The history of format 1.
const HISTORY_1: TableDefinition<'static, u64, Changed> = TableDefinition::new("history");

/// Changes that are kept for those who watch.
const HISTORY_CHANGES: u64 = 4096;
/// Bytes of values that the history may hold.
const HISTORY_BYTES: u64 = 256 << 20;
/// Changes, and bytes, that one watch gives at once, up to the end of their commit.
const WATCHED: usize = 1024;
const WATCHED_BYTES: usize = 16 << 20;
/// Writes that may wait for the writer; more wait for room.
const QUEUE: usize = 1024;
/// Commits that share one flush at most.
const BATCH: usize = 256;

/// Room that a file system keeps free: what is stored needs more than its bytes, and once a write has failed for want of
/// room redb does nothing any more, not even read, until the file was opened again.
const RESERVE: u64 = 4 << 20;
/// The same for commits that only delete, by which room is made.
const LEAST: u64 = 1 << 20;
/// What a commit takes beside its values.
const OVERHEAD: u64 = 64 << 10;

#[derive(Debug)]
enum File {
    Open(Database),
    /// It failed, and could not be opened again yet.
    Failed(Error),
    Closed,
}

impl File {
    fn open(&self, operation: &'static str) -> Result<&Database> {
        match self {
            Self::Open(database) => Ok(database),
            Self::Failed(error) => Err(Error::new(error.kind, operation, error.message.clone())),
            Self::Closed => Err(closed(operation)),
        }
    }
}

type Held = Arc<tokio::sync::RwLock<File>>;

/// Opens the file again after it failed.
pub(crate) type Reopen = Box<dyn Fn() -> Result<Database> + Send>;

/// A [`Store`] in a file, durable when a commit returns, whole after a crash at any point.
///
/// One process at a time: a second one gets `Conflict`. The file is its owner's alone: mode 0600.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// # let dir = tempfile::tempdir().expect("a temporary directory");
/// # let path = dir.path().join("state.redb");
/// use sas_core::{Commit, Store};
/// use sas_store_redb::RedbStore;
///
/// let store = RedbStore::open(&path).await?;
/// store.commit(Commit::new().put("a", "1").put("b", "2")).await?;
/// store.close().await;
/// # Ok(())
/// # }
/// ```
pub struct RedbStore {
    /// Reads hold it for reading while they last, so that [`RedbStore::close`] can wait for them.
    database: Held,
    /// Held for writing while a commit is made. So a read that begins after a write was given up sees what became of it:
    /// either the commit was under way and the read waits for it, or the writer finds the caller gone and leaves it out.
    committing: Arc<RwLock<()>>,
    given_up: Arc<GivenUp>,
    writer: mpsc::Sender<Op>,
    /// Told after each commit.
    last: watch::Receiver<u64>,
    path: Box<Path>,
}

/// Writes whose callers went before they were told. Only after one of these does a read wait for a commit, which is a flush of the disk:
/// what nobody was told of, and nobody has given up, may as well not be there yet.
#[derive(Debug, Default)]
struct GivenUp {
    all: AtomicU64,
    /// So many of them are in the file, or will never be.
    settled: AtomicU64,
}

impl GivenUp {
    fn is_open(&self) -> bool {
        self.all.load(SeqCst) > self.settled.load(SeqCst)
    }

    /// After a commit: those that were given up until now were in it, or in one before, or are left out of the next.
    fn settle(&self) {
        self.settled.store(self.all.load(SeqCst), SeqCst);
    }
}

/// A caller that waits for its commit.
struct Waiting<'a> {
    written: oneshot::Receiver<Result<Version>>,
    is_told: bool,
    given_up: &'a GivenUp,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.is_told {
            return;
        }
        // In this order: what is counted, the writer leaves out of each commit that it has not begun.
        self.written.close();
        self.given_up.all.fetch_add(1, SeqCst);
    }
}

enum Op {
    Commit(Commit, oneshot::Sender<Result<Version>>),
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

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the store was closed")
}

impl RedbStore {
    /// Opens the file at `path`, or makes it. A file that a crash left behind is repaired; one that others could read
    /// is made its owner's alone.
    ///
    /// # Errors
    /// `Conflict` when another process has it open, or when another user owns it; `Unavailable` when it can't be read or
    /// made; `InvalidSpec` when it is not a store's file or one of a later version.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path: Box<Path> = path.as_ref().into();
        let opened = path.clone();
        let again = path.clone();
        let database = blocking("open", move || open_file(&opened)).await?;
        Self::on(database, path, Box::new(move || open_file(&again)))
    }

    /// On an open database; `path` is where room is looked for, and for messages.
    pub(crate) fn on(database: Database, path: Box<Path>, reopen: Reopen) -> Result<Self> {
        let begun = newest(&database)?;
        let database = Arc::new(tokio::sync::RwLock::new(File::Open(database)));
        let (writer, ops) = mpsc::channel(QUEUE);
        let committing = Arc::new(RwLock::new(()));
        let given_up = Arc::new(GivenUp::default());
        let (told, last) = watch::channel(begun);
        let writer_of = Writer {
            file: Arc::clone(&database),
            committing: Arc::clone(&committing),
            given_up: Arc::clone(&given_up),
            told,
            path: path.clone(),
            reopen,
        };
        std::thread::Builder::new()
            .name("sas-store".to_owned())
            .spawn(move || writer_of.run(ops))
            .map_err(|error| medium("open", error))?;
        Ok(Self { database, committing, given_up, writer, last, path })
    }

    /// Finishes what was asked for and gives the file back: when it returns, the file can be opened again. Later calls
    /// fail with `Unavailable`, and so do those who watch. Idempotent. A store that is dropped does the same in the
    /// background.
    pub async fn close(&self) {
        let (done, ended) = oneshot::channel();
        if self.writer.send(Op::Close(done)).await.is_ok() {
            let _ = ended.await;
        }
        let database = std::mem::replace(&mut *self.database.write().await, File::Closed);
        // It flushes and gives its lock back.
        let _ = tokio::task::spawn_blocking(move || drop(database)).await;
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: &'static str,
        read: impl FnOnce(&ReadTransaction) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let database = Arc::clone(&self.database).read_owned().await;
        let committing = Arc::clone(&self.committing);
        let given_up = Arc::clone(&self.given_up);
        blocking(operation, move || {
            let database = database.open(operation)?;
            let transaction = {
                let _settled = given_up.is_open().then(|| committing.read());
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

/// Makes the file for its owner alone, or mends the mode of the one that is there.
#[cfg(unix)]
fn keep_private(path: &Path) -> Result<()> {
    use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
    let shown = path.display();
    let failed = |error: io::Error| {
        Error::new(ErrorKind::Unavailable, "open", format!("{shown} can't be opened: {error}"))
            .with_source(error)
    };
    let made =
        fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let file = made.map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o777 != 0o600 {
        file.set_permissions(fs::Permissions::from_mode(0o600)).map_err(|error| {
            let message = format!(
                "{shown} can be read by others and its mode can't be mended ({error}): make it yours (chown), chmod 600"
            );
            Error::new(ErrorKind::Conflict, "open", message).with_source(error)
        })?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn keep_private(_: &Path) -> Result<()> {
    Ok(())
}

fn open_file(path: &Path) -> Result<Database> {
    let shown = path.display();
    keep_private(path)?;
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

/// Makes the tables, takes over those of an earlier version, or refuses those of a later one.
pub(crate) fn prepare(database: &Database, path: &Path) -> Result<()> {
    let shown = path.display();
    let transaction = database.begin_write().map_err(|error| medium("open", error))?;
    {
        transaction.open_table(ENTRIES).map_err(|error| medium("open", error))?;
        let mut meta = transaction.open_table(META).map_err(|error| medium("open", error))?;
        let format = meta.get(FORMAT).map_err(|error| medium("open", error))?.map(|format| format.value());
        match format {
            Some(FORMAT_VERSION) => {}
            None | Some(1) => {
                // Those who watched list again.
                let last = meta.get(LAST_VERSION).map_err(|error| medium("open", error))?;
                let last = last.map_or(0, |last| last.value());
                meta.insert(COMPLETE_AFTER, last).map_err(|error| medium("open", error))?;
                meta.insert(FORMAT, FORMAT_VERSION).map_err(|error| medium("open", error))?;
                transaction.delete_table(HISTORY_1).map_err(|error| medium("open", error))?;
            }
            Some(other) => {
                let message = format!(
                    "{shown} was written in format {other}; this version reads 1 and {FORMAT_VERSION}: use the version \
                     that wrote it, or another state directory"
                );
                return Err(Error::new(ErrorKind::InvalidSpec, "open", message));
            }
        }
        transaction.open_table(CHANGES).map_err(|error| medium("open", error))?;
    }
    transaction.commit().map_err(|error| medium("open", error))
}

type Asked = (Commit, oneshot::Sender<Result<Version>>);

/// What the thread works with that writes.
struct Writer {
    file: Held,
    committing: Arc<RwLock<()>>,
    given_up: Arc<GivenUp>,
    told: watch::Sender<u64>,
    path: Box<Path>,
    reopen: Reopen,
}

impl Writer {
    fn run(self, mut ops: mpsc::Receiver<Op>) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(first) = ops.blocking_recv() {
            batch.push(first);
            while batch.len() < BATCH
                && let Ok(next) = ops.try_recv()
            {
                batch.push(next);
            }
            let mut closing = None;
            let mut asked = Vec::with_capacity(batch.len());
            for op in batch.drain(..) {
                match op {
                    Op::Commit(commit, done) => asked.push((commit, done)),
                    Op::Close(done) => {
                        closing = Some(done);
                        break;
                    }
                }
            }
            self.write(asked);
            if let Some(done) = closing {
                drop(ops);
                let _ = done.send(());
                return;
            }
        }
    }

    fn write(&self, asked: Vec<Asked>) {
        let mut asked = self.with_room(asked);
        if asked.is_empty() {
            return;
        }
        if matches!(*self.file.blocking_read(), File::Failed(_)) {
            self.open_again();
        }
        let failed = {
            let file = self.file.blocking_read();
            let _committing = self.committing.write();
            asked.retain(|(_, done)| !done.is_closed());
            let committed = match file.open("commit") {
                Ok(database) => commit_together(database, asked, &self.told),
                Err(error) => {
                    refuse(asked, &error);
                    Ok(())
                }
            };
            self.given_up.settle();
            committed
        };
        if let Err(error) = failed {
            *self.file.blocking_write() = File::Failed(error);
            self.open_again();
        }
    }

    /// What was written before may be there without anybody having been told.
    fn open_again(&self) {
        let mut file = self.file.blocking_write();
        let opened = (self.reopen)().and_then(|database| Ok((newest(&database)?, database)));
        match opened {
            Ok((last, database)) => {
                *file = File::Open(database);
                self.told.send_if_modified(|seen| std::mem::replace(seen, last.max(*seen)) < last);
            }
            Err(error) => *file = File::Failed(error),
        }
    }

    /// Refuses what the file system has no room for, and gives back the others.
    fn with_room(&self, asked: Vec<Asked>) -> Vec<Asked> {
        let Some(free) = free(&self.path) else { return asked };
        let mut need = 0_u64;
        let mut fits = Vec::with_capacity(asked.len());
        for (commit, done) in asked {
            let values = commit.writes.iter().filter_map(|write| write.value.as_ref());
            // Once among the entries, and once in the history.
            let bytes: u64 = values.clone().map(|value| 2 * value.len() as u64).sum();
            let keep = if values.count() > 0 { RESERVE } else { LEAST };
            let needs = need + bytes + OVERHEAD + keep;
            if free >= needs {
                need += bytes + OVERHEAD;
                fits.push((commit, done));
                continue;
            }
            let path = self.path.display();
            let message =
                format!("no room: {free} bytes are free where {path} is, and {needs} are needed: free some");
            let _ = done.send(Err(Error::new(ErrorKind::Exhausted, "commit", message)));
        }
        fits
    }
}

fn refuse(asked: Vec<Asked>, error: &Error) {
    for (_, done) in asked {
        let _ = done.send(Err(Error::new(error.kind, error.operation, error.message.clone())));
    }
}

/// Bytes that are free where a file is; `None`: not known here.
#[cfg(unix)]
fn free(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free(_: &Path) -> Option<u64> {
    None
}

fn newest(database: &Database) -> Result<u64> {
    last_version(&database.begin_read().map_err(|error| medium("open", error))?, "open")
}

/// Does each commit whose guards hold, and flushes them as one. Nobody is told of success before it is on disk.
///
/// # Errors
/// The medium failed: all were told so, and the database can do nothing any more.
fn commit_together(database: &Database, asked: Vec<Asked>, told: &watch::Sender<u64>) -> Result<()> {
    if asked.is_empty() {
        return Ok(());
    }
    let mut outcomes = Vec::with_capacity(asked.len());
    let committed = database.begin_write().map_err(|error| medium("commit", error)).and_then(|transaction| {
        for (commit, _) in &asked {
            outcomes.push(apply(&transaction, commit)?);
        }
        trim(&transaction)?;
        transaction.commit().map_err(|error| medium("commit", error))
    });
    match committed {
        Ok(()) => {
            let last =
                outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).map(|version| version.0).max();
            if let Some(last) = last {
                told.send_if_modified(|seen| std::mem::replace(seen, last.max(*seen)) < last);
            }
            for ((_, done), outcome) in asked.into_iter().zip(outcomes) {
                let _ = done.send(outcome);
            }
            Ok(())
        }
        Err(error) => {
            refuse(asked, &error);
            Err(error)
        }
    }
}

/// The outer error is the medium's and ends the transaction; the inner one is this commit's own.
fn apply(transaction: &WriteTransaction, commit: &Commit) -> Result<Result<Version>> {
    let fail = |error: redb::Error| medium("commit", error);
    let mut entries = transaction.open_table(ENTRIES).map_err(|error| fail(error.into()))?;
    for guard in &commit.guards {
        let found = entries.get(guard.key.as_str()).map_err(|error| fail(error.into()))?;
        let found = found.map(|entry| Version(entry.value().0));
        if found != guard.expected {
            return Ok(Err(guard_failed(guard, found)));
        }
    }
    let mut meta = transaction.open_table(META).map_err(|error| fail(error.into()))?;
    let mut changes = transaction.open_table(CHANGES).map_err(|error| fail(error.into()))?;
    let number = |meta: &redb::Table<'_, &str, u64>, name| -> Result<u64> {
        Ok(meta.get(name).map_err(|error| fail(error.into()))?.map_or(0, |number| number.value()))
    };
    let last = number(&meta, LAST_VERSION)?;
    let version = last + 1;
    let (mut place, mut bytes) = (0_u32, 0_u64);
    for write in &commit.writes {
        let key = write.key.as_str();
        match &write.value {
            Some(value) => {
                entries.insert(key, (version, value.as_ref())).map_err(|error| fail(error.into()))?;
                bytes += value.len() as u64;
            }
            None => {
                if entries.remove(key).map_err(|error| fail(error.into()))?.is_none() {
                    continue;
                }
            }
        }
        let value = write.value.as_ref().map(AsRef::as_ref);
        changes.insert((version, place), (key, value)).map_err(|error| fail(error.into()))?;
        place += 1;
    }
    if place == 0 {
        return Ok(Ok(Version(last)));
    }
    meta.insert(LAST_VERSION, version).map_err(|error| fail(error.into()))?;
    if bytes > 0 {
        let bytes = number(&meta, CHANGES_BYTES)? + bytes;
        meta.insert(CHANGES_BYTES, bytes).map_err(|error| fail(error.into()))?;
    }
    Ok(Ok(Version(version)))
}

fn trim(transaction: &WriteTransaction) -> Result<()> {
    let fail = |error: redb::Error| medium("commit", error);
    let mut changes = transaction.open_table(CHANGES).map_err(|error| fail(error.into()))?;
    let mut meta = transaction.open_table(META).map_err(|error| fail(error.into()))?;
    let kept = meta.get(CHANGES_BYTES).map_err(|error| fail(error.into()))?.map_or(0, |bytes| bytes.value());
    let (mut bytes, mut oldest) = (kept, None);
    while changes.len().map_err(|error| fail(error.into()))? > HISTORY_CHANGES || bytes > HISTORY_BYTES {
        let Some((at, change)) = changes.pop_first().map_err(|error| fail(error.into()))? else { break };
        bytes = bytes.saturating_sub(change.value().1.map_or(0, |value| value.len() as u64));
        oldest = Some(at.value().0);
    }
    if let Some(oldest) = oldest {
        meta.insert(COMPLETE_AFTER, oldest).map_err(|error| fail(error.into()))?;
        meta.insert(CHANGES_BYTES, bytes).map_err(|error| fail(error.into()))?;
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

fn number(transaction: &ReadTransaction, name: &str, operation: &'static str) -> Result<u64> {
    let meta = table(transaction, META, operation)?;
    Ok(meta.get(name).map_err(|error| medium(operation, error))?.map_or(0, |number| number.value()))
}

fn last_version(transaction: &ReadTransaction, operation: &'static str) -> Result<u64> {
    number(transaction, LAST_VERSION, operation)
}

/// What there is for a watch; `None`: nothing yet.
fn changes(transaction: &ReadTransaction, prefix: &str, since: Version) -> Result<Option<Watched>> {
    const WATCH: &str = "watch";
    let complete_after = number(transaction, COMPLETE_AFTER, WATCH)?;
    if since.0 < complete_after || since.0 > last_version(transaction, WATCH)? {
        return Ok(Some(Watched::ListAgain));
    }
    let history = table(transaction, CHANGES, WATCH)?;
    let (mut found, mut bytes): (Vec<Change>, usize) = (Vec::new(), 0);
    for change in history.range((since.0.saturating_add(1), 0)..).map_err(|error| medium(WATCH, error))? {
        let (at, change) = change.map_err(|error| medium(WATCH, error))?;
        let (version, (key, value)) = (Version(at.value().0), change.value());
        if !key.starts_with(prefix) {
            continue;
        }
        let enough = found.len() >= WATCHED || bytes >= WATCHED_BYTES;
        if enough && found.last().is_some_and(|last| last.version != version) {
            break;
        }
        bytes += value.map_or(0, <[u8]>::len);
        found.push(Change { key: key.to_owned(), version, value: value.map(Bytes::copy_from_slice) });
    }
    Ok((!found.is_empty()).then_some(Watched::Changes(found)))
}

#[async_trait]
impl Store for RedbStore {
    fn limits(&self) -> StoreLimits {
        StoreLimits::LOCAL
    }

    async fn version(&self) -> Result<Version> {
        self.read("version", |transaction| last_version(transaction, "version").map(Version)).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.limits().check_key(key)?;
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

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits())?;
        let (done, written) = oneshot::channel();
        let mut waiting = Waiting { written, is_told: false, given_up: &self.given_up };
        self.writer.send(Op::Commit(commit, done)).await.map_err(|_| closed("commit"))?;
        let written = (&mut waiting.written).await;
        waiting.is_told = true;
        written.map_err(|_| closed("commit"))?
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let mut last = self.last.clone();
        loop {
            last.borrow_and_update();
            let prefix = prefix.to_owned();
            let seen = self.read("watch", move |transaction| changes(transaction, &prefix, since)).await?;
            if let Some(seen) = seen {
                return Ok(seen);
            }
            // The writer has gone: the store was closed.
            last.changed().await.map_err(|_| closed("watch"))?;
        }
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
}
