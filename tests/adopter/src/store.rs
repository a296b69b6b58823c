use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

use sas::core::{
    Commit, Entry, Error, ErrorKind, MemoryStore, Result, Store, StoreLimits, Version, Watched, guard_failed,
};
use tokio::sync::Mutex;

/// A store in a journal: a line for each commit, which is read back at the start. It grows for ever; a store for
/// production would write itself anew now and then.
#[derive(Clone, Debug)]
pub struct JournalStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the journal says. Versions count commits, so that they come out the same when it is read back.
    memory: MemoryStore,
    /// Held by the one commit that is being done. `None` after a write that failed: nobody knows what is in the file.
    journal: Mutex<Option<File>>,
}

/// A commit as it stands in the journal.
type Line = Vec<(String, Option<Vec<u8>>)>;

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, "store", error.to_string())
}

fn read_line(line: &[u8]) -> Result<Commit> {
    let line: Line = serde_json::from_slice(line).map_err(unavailable)?;
    Ok(line.into_iter().fold(Commit::new(), |commit, (key, value)| match value {
        Some(value) => commit.put(key, value),
        None => commit.delete(key),
    }))
}

impl JournalStore {
    /// Opens or makes it. One at a time may have it open.
    pub async fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(unavailable)?;
        file.try_lock().map_err(unavailable)?;
        let (mut file, mut text) = (file, Vec::new());
        file.read_to_end(&mut text).map_err(unavailable)?;
        let memory = MemoryStore::default();
        let mut whole = 0;
        for line in text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            memory.commit(read_line(line)?).await?;
            whole += line.len();
        }
        // A crash left the last line half written: it was acknowledged to nobody.
        file.set_len(whole as u64).map_err(unavailable)?;
        file.seek(SeekFrom::End(0)).map_err(unavailable)?;
        Ok(Self(Arc::new(Inner { memory, journal: Mutex::new(Some(file)) })))
    }
}

impl Inner {
    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.memory.limits())?;
        let mut journal = self.journal.lock().await;
        // Nothing else writes while the journal is held, so what the guards find stays true.
        for guard in &commit.guards {
            let found = self.memory.get(&guard.key).await?.map(|entry| entry.version);
            if found != guard.expected {
                return Err(guard_failed(guard, found));
            }
        }
        let line: Line =
            commit.writes.iter().map(|w| (w.key.clone(), w.value.as_ref().map(|v| v.to_vec()))).collect();
        if !line.is_empty() {
            let mut text = serde_json::to_vec(&line).map_err(unavailable)?;
            text.push(b'\n');
            let mut file = journal.take().ok_or_else(|| unavailable("a write failed: open it again"))?;
            let written = tokio::task::spawn_blocking(move || {
                file.write_all(&text)?;
                file.sync_data()?;
                Ok::<_, std::io::Error>(file)
            });
            *journal = Some(written.await.map_err(unavailable)?.map_err(unavailable)?);
        }
        // Only now does anybody see it.
        self.memory.commit(commit).await
    }
}

#[sas::async_trait]
impl Store for JournalStore {
    fn limits(&self) -> StoreLimits {
        self.0.memory.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.0.memory.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.0.memory.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.0.memory.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        // A task: a caller who gives up does not leave a commit half done.
        let inner = Arc::clone(&self.0);
        tokio::spawn(async move { inner.commit(commit).await }).await.map_err(unavailable)?
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.0.memory.watch(prefix, since).await
    }
}
