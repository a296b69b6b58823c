//! The state from a copy.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, BufReader, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use sas_core::{BlobStore, Commit, Error, ErrorKind, Result, Source, Store};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::{END, End, Entry, FORMAT, HEAD, Head, KIND, failed};
use crate::{
    control::{SERVICES, blocking},
    record::{ServiceRecord, hex},
};

/// The longest text at the head or end of a copy.
const TEXT: u64 = 64 << 20;
/// Writes of one commit, which every store takes.
const WRITES: usize = 64;

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Restored {
    /// When the copy was made.
    pub made: String,
    /// How many keys were put into the store.
    pub entries: u64,
    /// How many packages were unpacked and taken by their digest anew.
    pub packages: u64,
    /// Digests of packages that services name and the copy has not: the platform that it was made of had lost them, or kept none.
    /// Those revisions are to be deployed again.
    pub missing: Vec<String>,
}

/// Puts the state of a copy into a store and a place for packages that are both empty. The whole copy is read and its digest
/// compared first; packages are unpacked below `scratch`, which is the caller's to remove. What can't be done leaves the two half filled: give it new ones, and use them only when it was done, as the
/// facade's `restore` does with a directory.
///
/// # Errors
/// `InvalidSpec` for what is no copy, a torn one, or one of a younger format; `Conflict` when the store is not empty;
/// `Unavailable` when files or the store fail.
pub async fn restore(
    file: &Path,
    store: &dyn Store,
    packages: &dyn BlobStore,
    scratch: &Path,
) -> Result<Restored> {
    if !store.list("", None, 1).await?.is_empty() {
        return Err(failed(ErrorKind::Conflict, "the state is not empty: restore into a new one"));
    }
    let path = file.to_owned();
    let (head, end) = blocking(move || verify(&path)).await?;
    let (sender, mut entries) = mpsc::channel::<Entry>(WRITES);
    let reading = tokio::task::spawn_blocking({
        let (path, scratch) = (file.to_owned(), scratch.to_owned());
        move || extract(&path, &scratch, &sender)
    });
    let mut commit = Commit::new();
    let (mut bytes, mut writes) = (0, 0);
    while let Some(Entry { key, value }) = entries.recv().await {
        let length = value.as_ref().map_or(0, bytes::Bytes::len);
        let twice = commit.writes.iter().any(|write| write.key == key);
        if twice || commit.writes.len() >= WRITES || bytes + length > CHUNK_BYTES {
            store.commit(std::mem::take(&mut commit)).await?;
            bytes = 0;
        }
        bytes += length;
        writes += 1;
        commit = match value {
            Some(value) => commit.put(key, value),
            None => commit.delete(key),
        };
    }
    if !commit.writes.is_empty() {
        store.commit(commit).await?;
    }
    reading.await.map_err(|error| failed(ErrorKind::Unexpected, error.to_string()))??;
    if writes != end.writes {
        return Err(torn(&format!("it has {writes} writes, and says that it has {}", end.writes)));
    }
    for package in &end.packages {
        let source = only_one_in(&scratch.join(format!("packages/{:06}", package.number)))?;
        let kept = packages.put(&Source::Path(source)).await?;
        if kept.digest != package.digest {
            return Err(torn(&format!("the package {} has the digest {}", package.digest, kept.digest)));
        }
    }
    if let Some(owner) = &end.owner {
        packages.set_owner(owner).await?;
    }
    let (mut keys, mut needed) = (0, BTreeSet::new());
    let mut after: Option<String> = None;
    loop {
        let page = store.list("", after.as_deref(), 1024).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        keys += page.len() as u64;
        let services = page.iter().filter(|entry| entry.key.starts_with(SERVICES));
        // What can't be read is told by the start of the platform.
        for record in services.filter_map(|entry| ServiceRecord::decode(&entry.key, &entry.value).ok()) {
            needed.extend(record.revisions.iter().filter_map(|revision| revision.package.clone()));
        }
    }
    for package in &end.packages {
        needed.remove(&package.digest);
    }
    Ok(Restored {
        made: head.made,
        entries: keys,
        packages: end.packages.len() as u64,
        missing: needed.into_iter().collect(),
    })
}

/// Bytes of the values of one commit, unless one value has more.
const CHUNK_BYTES: usize = 1 << 20;

fn torn(what: &str) -> Error {
    let message = format!("this is no whole copy: {what}; take another backup, or fetch this one again");
    failed(ErrorKind::InvalidSpec, message)
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> Error {
    move |error| {
        let message = format!("{} can't be read: {error}", path.display());
        failed(ErrorKind::Unavailable, message).with_source(error)
    }
}

/// Reads the whole file: whether it is a copy, of a format that is known, and ends with its own digest. Blocking.
fn verify(path: &Path) -> Result<(Head, End)> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    let foreign =
        || failed(ErrorKind::InvalidSpec, format!("{} is no backup of a sas platform", path.display()));
    let (mut head, mut end) = (None, None);
    let mut archive = tar::Archive::new(BufReader::new(&file));
    for (at, entry) in archive.entries().map_err(|_| foreign())?.enumerate() {
        let mut entry = match entry {
            Ok(entry) => entry,
            Err(_) if at == 0 => return Err(foreign()),
            Err(error) => return Err(torn(&error.to_string())),
        };
        let name = entry.path().map_err(|error| torn(&error.to_string()))?.into_owned();
        let start = entry.raw_header_position();
        if at == 0 {
            if name != Path::new(HEAD) || entry.size() > TEXT {
                return Err(foreign());
            }
            let read: Head = serde_json::from_reader(&mut entry).map_err(|_| foreign())?;
            if read.kind != KIND {
                return Err(foreign());
            }
            if read.format > FORMAT {
                let message = format!(
                    "this backup is of the format {}, made by version {} of the platform; this version reads formats up to \
                     {FORMAT}: restore it with that version, or a later one",
                    read.format, read.platform
                );
                return Err(failed(ErrorKind::InvalidSpec, message));
            }
            head = Some(read);
        } else if name == Path::new(END) && entry.size() <= TEXT {
            let read: End = serde_json::from_reader(&mut entry).map_err(|error| torn(&error.to_string()))?;
            end = Some((start, read));
        } else if end.is_some() {
            return Err(torn("something stands behind its end"));
        }
    }
    let (Some(head), Some((until, end))) = (head, end) else {
        return Err(torn("its end is missing"));
    };
    file.seek(SeekFrom::Start(0)).map_err(unreadable(path))?;
    let (mut digest, mut rest) = (Sha256::new(), BufReader::new(file).take(until));
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rest.read(&mut buffer).map_err(unreadable(path))? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    let found = hex(&digest.finalize());
    if found != end.sha256 {
        return Err(torn(&format!("its SHA-256 is {found}, and should be {}", end.sha256)));
    }
    Ok((head, end))
}

/// Gives the entries of the store, and unpacks the packages below `scratch`. Blocking.
fn extract(path: &Path, scratch: &Path, entries: &mpsc::Sender<Entry>) -> Result<()> {
    let file = File::open(path).map_err(unreadable(path))?;
    let mut archive = tar::Archive::new(BufReader::new(file));
    let torn_at = |error: io::Error| torn(&error.to_string());
    for entry in archive.entries().map_err(torn_at)? {
        let mut entry = entry.map_err(torn_at)?;
        let name = entry.path().map_err(torn_at)?.into_owned();
        if name.starts_with("store") {
            let mut from = BufReader::new(&mut entry);
            while let Some(entry) = Entry::decode(&mut from).map_err(torn_at)? {
                let gone = |_| failed(ErrorKind::Unavailable, "the store took no more");
                entries.blocking_send(entry).map_err(gone)?;
            }
        } else if name.starts_with("packages") {
            entry.set_preserve_permissions(true);
            // Refuses to leave the directory, by `..` and by links that the archive brings.
            let unpacked = entry.unpack_in(scratch).map_err(unreadable(&name))?;
            if !unpacked {
                return Err(torn(&format!("{} leads out of it", name.display())));
            }
        }
    }
    Ok(())
}

/// The one file or directory of a package.
fn only_one_in(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).map_err(unreadable(dir))?;
    let one = entries.next().transpose().map_err(unreadable(dir))?;
    match (one, entries.next()) {
        (Some(one), None) => Ok(one.path()),
        _ => Err(torn(&format!("{} should hold one package", dir.display()))),
    }
}
