//! Writing a copy, as a stream.

use std::{
    collections::BTreeSet,
    io::{self, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use sas_core::{BlobStore, ErrorKind, Result, Source, Store, Version, Watched};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{END, End, Entry, FORMAT, HEAD, Head, KIND, PackageDigest, failed};
use crate::{control::Control, record::hex, stamp::rfc3339};

/// Bytes of one piece of the stream, and how many pieces wait at most for whoever reads.
const PIECE: usize = 64 << 10;
const PIECES: usize = 8;
/// Bytes of entries in one file of the archive.
const CHUNK: usize = 1 << 20;
/// How often changes are taken while whoever reads is slow.
const FOLLOWED: Duration = Duration::from_millis(250);
const GONE: &str = "nobody reads the backup any more";
/// Entries that are listed at once.
const PAGE: usize = 256;
/// The name of a package by its digest, wherever a record has it.
const DIGEST: &[u8] = b"sha256:";

/// A copy on its way: pieces of a tar archive, or the error that ended it. One that was dropped or ended by an error is no
/// copy, and restoring it is refused.
#[derive(Debug)]
pub struct BackupStream {
    pieces: mpsc::Receiver<Result<Bytes>>,
}

impl Stream for BackupStream {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.pieces.poll_recv(cx)
    }
}

/// What goes into the archive next.
enum Part {
    /// Entries of the store.
    Chunk(Vec<u8>),
    Package {
        digest: String,
        source: Source,
    },
    /// All of it was given: the version that it is of, the writes, and whose packages they are.
    End {
        version: Version,
        writes: u64,
        owner: Option<String>,
    },
}

impl Control {
    /// A copy of the whole state at one version of the store, while it is used: services, revisions, quotas, tokens' digests,
    /// usage, the log of events where that is in the store, and the packages of revisions. It holds no secrets, only the
    /// references to them; neither the admin token nor what services keep in directories of their own (`sas.dev/data`).
    /// Nothing waits for it, and it takes a few megabytes of memory however large the state is. One at a time.
    ///
    /// # Errors
    /// `Conflict` while there is another one; `Unavailable` once the shutdown began.
    pub fn backup(self: &Arc<Self>) -> Result<BackupStream> {
        self.open()?;
        let turn = Arc::clone(&self.backups).try_acquire_owned().map_err(|_| {
            failed(ErrorKind::Conflict, "another backup is under way: wait until it has ended")
        })?;
        let (sender, pieces) = mpsc::channel(PIECES);
        let (parts, given) = mpsc::channel(2);
        let made = rfc3339(self.clock.now());
        let archive = tokio::task::spawn_blocking({
            let sender = sender.clone();
            move || write(given, sender, made)
        });
        let (store, packages) = (Arc::clone(&self.store), self.package_copies());
        let control = Arc::clone(self);
        let source = Reader { control: Arc::clone(self), store, packages, parts };
        tokio::spawn(async move {
            let _turn: OwnedSemaphorePermit = turn;
            let read = tokio::select! {
                () = control.stopping() => Err(failed(ErrorKind::Unavailable, "the platform is shutting down")),
                read = source.read() => read,
            };
            let written = archive.await.unwrap_or_else(|error| {
                Err(failed(ErrorKind::Unexpected, format!("the archive was not written: {error}")))
            });
            // What was not read ended the archive too; its own error says more.
            if let Err(error) = read.and(written) {
                tracing::warn!(error = %error.chain(), "a backup was not finished");
                let _gone = sender.send(Err(error)).await;
            }
        });
        Ok(BackupStream { pieces })
    }
}

struct Reader {
    control: Arc<Control>,
    store: Arc<dyn Store>,
    packages: Option<Arc<dyn BlobStore>>,
    parts: mpsc::Sender<Part>,
}

/// What was read of the store so far.
#[derive(Default)]
struct Reading {
    chunk: Vec<u8>,
    writes: u64,
    /// Changes up to this version are in it.
    reached: Version,
    /// Digests that values name.
    named: BTreeSet<String>,
}

impl Reader {
    /// Lists all entries, each page as it is then, and follows the changes beside: at the end of the list every change that was
    /// made meanwhile is in it too, in order, so that all of it together is the store at the version of the last one.
    async fn read(self) -> Result<()> {
        let mut reading = Reading { reached: self.store.version().await?, ..Reading::default() };
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list("", after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            // The whole page before any change: what changed since it was listed stands behind it.
            for entry in page {
                reading.take(Entry { key: entry.key, value: Some(entry.value) });
            }
            // The history is bounded: what changed is taken before it is forgotten.
            self.follow(&mut reading).await?;
            self.give_chunk(&mut reading).await?;
        }
        // From here on none is removed: each that a record names at the next version is there until the end.
        let _kept = self.control.pin_packages().await;
        let mut copied = BTreeSet::new();
        let mut owner = None;
        loop {
            self.follow(&mut reading).await?;
            let Some(packages) = &self.packages else { break };
            owner = packages.owner().await?;
            let kept = packages.list().await?.into_iter();
            let missing: Vec<String> =
                kept.filter(|digest| reading.named.contains(digest) && !copied.contains(digest)).collect();
            let before = copied.len();
            for digest in missing {
                // One that another host removed meanwhile is named by no record any more, which the next changes say.
                if let Some(source) = packages.get(&digest).await? {
                    copied.insert(digest.clone());
                    self.give(&mut reading, Part::Package { digest, source }).await?;
                    self.follow(&mut reading).await?;
                    self.give_chunk(&mut reading).await?;
                }
            }
            if copied.len() == before {
                break;
            }
        }
        let (version, writes) = (reading.reached, reading.writes);
        let gone = |_| failed(ErrorKind::Unavailable, GONE);
        self.parts.send(Part::Chunk(reading.chunk)).await.map_err(gone)?;
        self.parts.send(Part::End { version, writes, owner }).await.map_err(gone)
    }

    async fn follow(&self, reading: &mut Reading) -> Result<()> {
        let until = self.store.version().await?;
        while reading.reached < until {
            let changes = match self.store.watch("", reading.reached).await? {
                Watched::Changes(changes) => changes,
                Watched::ListAgain => {
                    let message = "the state changed faster than it could be copied: try again when there is less to do";
                    return Err(failed(ErrorKind::Unavailable, message));
                }
            };
            for change in changes {
                reading.reached = change.version;
                reading.take(Entry { key: change.key, value: change.value });
            }
        }
        Ok(())
    }

    /// Gives what was read so far, if that is enough for a file of the archive.
    async fn give_chunk(&self, reading: &mut Reading) -> Result<()> {
        if reading.chunk.len() < CHUNK {
            return Ok(());
        }
        let chunk = std::mem::take(&mut reading.chunk);
        self.give(reading, Part::Chunk(chunk)).await
    }

    /// Gives a part. While whoever reads takes its time over the ones before, changes are taken before the store forgets them.
    async fn give(&self, reading: &mut Reading, part: Part) -> Result<()> {
        let place = loop {
            tokio::select! {
                biased;
                place = self.parts.reserve() => break place,
                () = tokio::time::sleep(FOLLOWED) => self.follow(reading).await?,
            }
        };
        place.map_err(|_| failed(ErrorKind::Unavailable, GONE))?.send(part);
        Ok(())
    }
}

impl Reading {
    fn take(&mut self, entry: Entry) {
        if let Some(value) = &entry.value {
            self.named.extend(digests(value));
        }
        entry.encode(&mut self.chunk);
        self.writes += 1;
    }
}

/// The digests that a value names.
fn digests(value: &[u8]) -> impl Iterator<Item = String> {
    value.windows(DIGEST.len() + 64).filter(|window| window.starts_with(DIGEST)).filter_map(|window| {
        let digits = &window[DIGEST.len()..];
        digits.iter().all(u8::is_ascii_hexdigit).then(|| String::from_utf8_lossy(window).into_owned())
    })
}

/// Gives pieces to whoever reads, and waits for them.
struct Pieces {
    sender: mpsc::Sender<Result<Bytes>>,
    piece: Vec<u8>,
    digest: Sha256,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(PIECE)];
        self.digest.update(taken);
        self.piece.extend_from_slice(taken);
        if self.piece.len() >= PIECE {
            self.flush()?;
        }
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.piece));
        self.sender.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Writes the archive. Blocking.
fn write(mut given: mpsc::Receiver<Part>, sender: mpsc::Sender<Result<Bytes>>, made: String) -> Result<()> {
    let unwritten = |error: io::Error| {
        failed(ErrorKind::Unavailable, format!("the archive can't be written: {error}")).with_source(error)
    };
    let pieces = Pieces { sender, piece: Vec::with_capacity(PIECE), digest: Sha256::new() };
    let mut archive = tar::Builder::new(pieces);
    archive.follow_symlinks(false);
    let platform = env!("CARGO_PKG_VERSION").to_owned();
    let head = Head { kind: KIND.to_owned(), format: FORMAT, platform, made };
    file(&mut archive, HEAD, &json(&head)).map_err(unwritten)?;
    let (mut chunks, mut packages) = (0_u64, Vec::new());
    while let Some(part) = given.blocking_recv() {
        match part {
            Part::Chunk(chunk) if chunk.is_empty() => {}
            Part::Chunk(chunk) => {
                file(&mut archive, &format!("store/{chunks:06}"), &chunk).map_err(unwritten)?;
                chunks += 1;
            }
            Part::Package { digest, source } => {
                let number = packages.len() as u64;
                package(&mut archive, number, &source).map_err(|error| {
                    failed(ErrorKind::Unavailable, format!("the package {digest} can't be copied: {error}"))
                })?;
                packages.push(PackageDigest { number, digest });
            }
            Part::End { version, writes, owner } => {
                let sha256 = hex(&archive.get_mut().digest.clone().finalize());
                let end = End { sha256, version: version.0, writes, packages, owner };
                file(&mut archive, END, &json(&end)).map_err(unwritten)?;
                let mut pieces = archive.into_inner().map_err(unwritten)?;
                return pieces.flush().map_err(unwritten);
            }
        }
    }
    Err(failed(ErrorKind::Unavailable, "the state could not be read to its end"))
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("a structure of text and numbers is JSON")
}

fn file(archive: &mut tar::Builder<Pieces>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o600);
    header.set_size(content.len() as u64);
    archive.append_data(&mut header, name, content)
}

fn package(archive: &mut tar::Builder<Pieces>, number: u64, source: &Source) -> io::Result<()> {
    match source {
        Source::Path(path) => {
            let name = path.file_name().ok_or_else(|| io::Error::other("it has no name"))?;
            let place = std::path::Path::new("packages").join(format!("{number:06}")).join(name);
            if path.is_dir() {
                archive.append_dir_all(place, path)
            } else {
                archive.append_path_with_name(path, place)
            }
        }
        Source::Bytes { name, bytes } => file(archive, &format!("packages/{number:06}/{name}"), bytes),
        _ => Err(io::Error::other("it is no file")),
    }
}
