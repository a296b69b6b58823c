//! What is kept on disk: layers by the digest of their content, and what is known of images.
//!
//! ```text
//! <root>/layers/<sha256>/fs/       a layer, unpacked; the directory appears by one rename
//! <root>/layers/<sha256>/used      its time is when it was last wanted
//! <root>/images/<sha256>.json      configuration and layers of an image, by the digest of its manifest
//! <root>/pulls/<sha256>            what one tenant pulled of a blob from one registry so far; a broken pull goes on from there
//! <root>/runs/<run>/lock           held (flock) by the host while it lives
//! <root>/runs/<run>/stdin          the empty standard input of all its containers, by which they are found
//! <root>/runs/<run>/cgroups        the control groups of this run
//! <root>/runs/<run>/pod/           where each instance's own mounts begin; empty as the host sees it
//! <root>/runs/<run>/tmp/           what is being unpacked
//! ```
//!
//! Several hosts may share a root: a layer in use carries a shared `flock`, and only who gets the exclusive one may
//! remove it. A host that died left a run whose lock is free; the next host to open the store ends what still runs of it.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use sas_core::{Error, ErrorKind, Result};
use sas_runtime_os::cgroup::Run;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::{
    digest::Digest,
    unpack::{self, ImageLimits},
};

/// A layer that is held: nobody removes it.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    /// The directory that goes into an overlay.
    pub(crate) dir: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) devices: u64,
    /// Shared while it is held.
    _lock: fs::File,
}

/// What is written beside an unpacked layer.
#[derive(Clone, Copy, Debug, serde::Serialize, serde::Deserialize)]
struct LayerInfo {
    bytes: u64,
    files: u64,
    devices: u64,
}

/// The store of one host.
#[derive(Debug)]
pub(crate) struct Store {
    root: PathBuf,
    run: Arc<RunDir>,
    limits: ImageLimits,
    /// The layers that this host holds.
    held: Mutex<HashMap<Digest, Weak<Layer>>>,
    /// One at a time unpacks a layer, and one of a tenant fetches it from a registry.
    gates: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    next_name: AtomicU64,
}

/// The directory of a run, removed at its end.
#[derive(Debug)]
pub(crate) struct RunDir {
    dir: PathBuf,
    left: AtomicBool,
    pub(crate) swept: Notify,
    _lock: fs::File,
}

static NEXT_RUN: AtomicU64 = AtomicU64::new(1);

pub(crate) fn disk(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "prepare", format!("{what} {}: {error}", path.display())).with_source(error)
}

impl Store {
    /// Opens the store, clears what dead hosts left in it, and begins a run. Returns how many processes of dead hosts
    /// were ended.
    pub(crate) fn open(root: &Path, limits: ImageLimits) -> Result<Self> {
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| disk("create the image store", path, error))
        };
        make(root)?;
        let root = fs::canonicalize(root).map_err(|error| disk("open the image store", root, error))?;
        let owner = fs::metadata(&root).map_err(|error| disk("open the image store", &root, error))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            let what = format!(
                "image store {}: it belongs to user {owner}, who could change the images in it; choose a directory of \
                 your own",
                root.display()
            );
            return Err(Error::new(ErrorKind::Conflict, "open", what));
        }
        for dir in ["layers", "images", "pulls", "runs"] {
            make(&root.join(dir))?;
        }
        // One host at a time comes or sweeps, so that a run that is just being made is not taken for a dead one.
        let door = lock_file(&root.join("door"))?;
        rustix::fs::flock(&door, FlockOperation::LockExclusive)
            .map_err(|error| disk("lock", &root, error.into()))?;
        sweep_dead_runs(&root.join("runs"));
        sweep_pulls(&root.join("pulls"));
        let number = NEXT_RUN.fetch_add(1, Ordering::Relaxed);
        let dir = root.join("runs").join(format!("{}-{number}", std::process::id()));
        for part in ["tmp", "pod"] {
            make(&dir.join(part))?;
        }
        let lock = lock_file(&dir.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| disk("lock", &dir, error.into()))?;
        let stdin = dir.join("stdin");
        fs::File::create(&stdin).map_err(|error| disk("create", &stdin, error))?;
        drop(door);
        let run = RunDir { dir, left: AtomicBool::new(false), swept: Notify::new(), _lock: lock };
        Ok(Self {
            root,
            run: Arc::new(run),
            limits,
            held: Mutex::default(),
            gates: Mutex::default(),
            next_name: AtomicU64::new(0),
        })
    }

    pub(crate) fn run(&self) -> &Arc<RunDir> {
        &self.run
    }

    fn image_file(&self, manifest: &Digest) -> PathBuf {
        self.root.join("images").join(format!("{}.json", manifest.hex()))
    }

    /// What was kept of an image.
    pub(crate) fn image(&self, manifest: &Digest) -> Option<Vec<u8>> {
        fs::read(self.image_file(manifest)).ok()
    }

    pub(crate) fn keep_image(&self, manifest: &Digest, text: &[u8]) -> Result<()> {
        let path = self.image_file(manifest);
        let new = self.temporary();
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| disk("write", &path, error))
    }

    fn temporary(&self) -> PathBuf {
        let number = self.next_name.fetch_add(1, Ordering::Relaxed);
        self.run.dir.join("tmp").join(number.to_string())
    }

    /// Where `what` is pulled to, so that it can go on from there. Where somebody is at it already, a file that goes with
    /// this pull: nobody waits for another's registry.
    pub(crate) fn pull(&self, what: &Digest) -> Result<Pull> {
        let path = self.root.join("pulls").join(what.hex());
        let file = lock_file(&path)?;
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            return Ok(Pull { path, file, passing: false });
        }
        let path = self.temporary();
        Ok(Pull { file: lock_file(&path)?, path, passing: true })
    }

    /// The turn of whoever is at something of this digest. It is held over nothing that another tenant can make last.
    pub(crate) async fn turn(&self, diff: &Digest) -> tokio::sync::OwnedMutexGuard<()> {
        let gate = {
            let mut gates = self.gates.lock();
            if gates.len() > 1024 {
                gates.retain(|_, gate| Arc::strong_count(gate) > 1);
            }
            Arc::clone(gates.entry(diff.clone()).or_default())
        };
        gate.lock_owned().await
    }

    /// A layer that is here, held from now on.
    pub(crate) fn layer(&self, diff: &Digest) -> Result<Option<Arc<Layer>>> {
        if let Some(layer) = self.held.lock().get(diff).and_then(Weak::upgrade) {
            return Ok(Some(layer));
        }
        let dir = self.root.join("layers").join(diff.hex());
        let lock = match fs::File::open(&dir) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("open the layer", &dir, error)),
        };
        rustix::fs::flock(&lock, FlockOperation::LockShared)
            .map_err(|error| disk("lock", &dir, error.into()))?;
        // It may have been removed between the two.
        let info = fs::read(dir.join("info.json")).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let Some(LayerInfo { bytes, devices, .. }) = info else { return Ok(None) };
        let _ = fs::write(dir.join("used"), "");
        let layer =
            Arc::new(Layer { digest: diff.clone(), dir: dir.join("fs"), bytes, devices, _lock: lock });
        let mut held = self.held.lock();
        if held.len() > 1024 {
            held.retain(|_, layer| layer.strong_count() > 0);
        }
        held.insert(diff.clone(), Arc::downgrade(&layer));
        Ok(Some(layer))
    }

    /// Unpacks a layer from the bytes of its blob, whose content must have the digest `diff`. Blocks.
    pub(crate) fn unpack(
        &self,
        diff: &Digest,
        blob: impl Read,
        packed: u64,
        before: u64,
    ) -> Result<Arc<Layer>> {
        let new = self.temporary();
        let fail = |error| disk("create", &new, error);
        fs::create_dir(&new).map_err(fail)?;
        let scrap = Scrap(new.clone());
        let tree = new.join("fs");
        fs::create_dir(&tree).map_err(fail)?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&tree, fs::Permissions::from_mode(0o755)).map_err(fail)?;
        let mut hashed = Hashed { inner: crate::compression::open(blob)?, hash: Sha256::new() };
        let done = unpack::unpack(&mut hashed, &tree, &self.limits, packed, before)?;
        // A tar archive may be followed by more, which belongs to what the digest is of.
        let mut rest = [0u8; 16 * 1024];
        let mut after = 0u64;
        loop {
            match hashed.read(&mut rest) {
                Ok(0) => break,
                Ok(read) => after += read as u64,
                Err(error) => return Err(invalid(format!("a layer is broken off: {error}"))),
            }
            if after > 64 << 20 {
                return Err(invalid("a layer goes on for more than 64 MiB after the end of its archive"));
            }
        }
        let found = Digest::of_hash(&hashed.hash.finalize());
        if found != *diff {
            return Err(invalid(format!(
                "a layer unpacks to {found}, and the image's configuration says {diff}: the image was changed or is broken; \
                 push it again"
            )));
        }
        let info = LayerInfo { bytes: done.bytes, files: done.files, devices: done.devices };
        let text = serde_json::to_vec(&info).unwrap_or_default();
        fs::write(new.join("info.json"), text).map_err(fail)?;
        fs::write(new.join("used"), "").map_err(fail)?;
        let dir = self.root.join("layers").join(diff.hex());
        match fs::rename(&new, &dir) {
            Ok(()) => std::mem::forget(scrap),
            // Another host was quicker.
            Err(_) if dir.join("info.json").is_file() => drop(scrap),
            Err(error) => return Err(disk("put the layer at", &dir, error)),
        }
        self.layer(diff)?.ok_or_else(|| {
            Error::new(
                ErrorKind::Unavailable,
                "prepare",
                format!("layer {diff} was removed as soon as it was there"),
            )
        })
    }

    /// Bytes of all layers on disk.
    fn layers(&self) -> Vec<(PathBuf, u64, SystemTime)> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.root.join("layers")).into_iter().flatten().flatten() {
            let dir = entry.path();
            let Some(info) = fs::read(dir.join("info.json"))
                .ok()
                .and_then(|text| serde_json::from_slice::<LayerInfo>(&text).ok())
            else {
                continue;
            };
            let used = fs::metadata(dir.join("used")).and_then(|used| used.modified());
            found.push((dir, info.bytes, used.unwrap_or(SystemTime::UNIX_EPOCH)));
        }
        found.sort_by_key(|(_, _, used)| *used);
        found
    }

    /// Removes layers that nobody holds, those first that were not wanted for longest, until they take at most
    /// `most` bytes and the disk has `free` bytes left. Returns how many bytes went. Blocks.
    pub(crate) fn collect(&self, most: u64, free: u64) -> u64 {
        let layers = self.layers();
        let mut total: u64 = layers.iter().map(|(_, bytes, _)| bytes).sum();
        let mut gone = 0;
        let room = || {
            rustix::fs::statvfs(&self.root)
                .map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
        };
        for (dir, bytes, _) in layers {
            if total <= most && room() >= free {
                break;
            }
            let Ok(lock) = fs::File::open(&dir) else { continue };
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            // Out of the way first, so that nobody finds half of it.
            let scrap = self.temporary();
            if fs::rename(&dir, &scrap).is_ok() {
                let _ = fs::remove_dir_all(&scrap);
                total = total.saturating_sub(bytes);
                gone += bytes;
            }
        }
        gone
    }
}

/// Removed when dropped.
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A blob that is being pulled.
#[derive(Debug)]
pub(crate) struct Pull {
    path: PathBuf,
    file: fs::File,
    /// Nobody goes on from here.
    passing: bool,
}

impl Drop for Pull {
    fn drop(&mut self) {
        if self.passing {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Pull {
    /// A blob that is brought to this file.
    pub(crate) fn at(path: PathBuf) -> Result<Self> {
        let file = lock_file(&path)?;
        Ok(Self { path, file, passing: false })
    }

    /// The bytes that are here, hashed.
    pub(crate) fn so_far(&mut self) -> io::Result<(u64, Sha256)> {
        use std::io::{Seek as _, SeekFrom};
        self.file.seek(SeekFrom::Start(0))?;
        let mut hash = Sha256::new();
        let bytes = io::copy(&mut self.file, &mut hash)?;
        Ok((bytes, hash))
    }

    /// A second handle to write by, at the end of what is here.
    pub(crate) fn writer(&mut self) -> io::Result<fs::File> {
        use std::io::{Seek as _, SeekFrom};
        self.file.seek(SeekFrom::End(0))?;
        self.file.try_clone()
    }

    /// Forgets what is here.
    pub(crate) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// All of it, from the start.
    pub(crate) fn reader(&mut self) -> io::Result<fs::File> {
        use std::io::{Seek as _, SeekFrom};
        self.file.seek(SeekFrom::Start(0))?;
        self.file.try_clone()
    }

    /// It was unpacked, or is no good.
    pub(crate) fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}

struct Hashed<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", what)
}

fn lock_file(path: &Path) -> Result<fs::File> {
    fs::File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|error| disk("open", path, error))
}

impl RunDir {
    pub(crate) fn stdin(&self) -> PathBuf {
        self.dir.join("stdin")
    }

    /// Where an instance's own mounts begin.
    pub(crate) fn pod(&self) -> PathBuf {
        self.dir.join("pod")
    }
}

impl Run for RunDir {
    fn dir(&self) -> &Path {
        &self.dir
    }

    fn wake_sweeper(&self) {
        self.swept.notify_one();
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if !self.left.load(Ordering::Acquire) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Ends what a dead host left running and removes its directory.
fn sweep_dead_runs(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let dir = entry.path();
        let Ok(lock) = lock_file(&dir.join("lock")) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let killed = sas_runtime_os::strays::kill(&dir.join("stdin"));
        let groups = fs::read_to_string(dir.join(sas_runtime_os::cgroup::LIST)).unwrap_or_default();
        let mut clean = true;
        for group in groups.lines() {
            clean &= sas_runtime_os::cgroup::remove(Path::new(group));
        }
        if clean {
            let _ = fs::remove_dir_all(&dir);
        }
        tracing::info!(run = %dir.display(), killed, clean, "cleared what a dead host left");
    }
}

/// How long what was pulled in part is kept for whoever goes on.
const KEEP_PULLS: Duration = Duration::from_secs(24 * 3600);

fn sweep_pulls(pulls: &Path) {
    for entry in fs::read_dir(pulls).into_iter().flatten().flatten() {
        let old = entry
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > KEEP_PULLS));
        if old
            && let Ok(lock) = lock_file(&entry.path())
            && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
