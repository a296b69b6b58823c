//! The package store: each package unpacked once, under the SHA-256 of its bytes.
//!
//! ```text
//! <root>/packages/<sha256>.<kind>/   a whole package; it appears by one rename
//! <root>/runs/<run>/lock             held (flock) by the host while it lives
//! <root>/runs/<run>/stdin            the empty standard input of all its instances, by which they are found
//! <root>/runs/<run>/cgroups          the control groups of this run
//! <root>/runs/<run>/tmp/             what is being unpacked or thrown away
//! ```
//!
//! Several hosts may share a root: a package in use carries a shared `flock` on its directory, and only who gets
//! the exclusive one may remove it. A host that died left a run whose lock is free; the next host to open the
//! store ends what still runs of it and removes its directory.

use std::{
    collections::HashMap,
    fs,
    io::{self, Cursor, Read, Seek as _, SeekFrom},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use sas_core::{Error, ErrorKind, Result, Source};
use sas_runtime_os::cgroup::Run;
use sha2::{Digest as _, Sha256};
use tokio::{sync::Notify, time::Instant};

use super::{
    PackageLimits,
    archive::{Unpacker, untar, unzip},
    error::{disk, refused},
    tree,
};

/// What a package was handed in as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Tree,
    TarGz,
    Tar,
    Zip,
    Jar,
    Python,
    Node,
    Program,
}

impl Kind {
    const fn tag(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::TarGz => "tgz",
            Self::Tar => "tar",
            Self::Zip => "zip",
            Self::Jar => "jar",
            Self::Python => "py",
            Self::Node => "js",
            Self::Program => "program",
        }
    }

    /// Under which name a single file stands in its package.
    const fn file_name(self) -> &'static str {
        match self {
            Self::Jar => "app.jar",
            Self::Python => "main.py",
            Self::Node => "main.js",
            _ => "program",
        }
    }

    /// By the first bytes, and by the name where the bytes leave it open.
    fn of_file(name: &str, head: &[u8]) -> Result<Self> {
        let lower = name.to_ascii_lowercase();
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| lower.ends_with(suffix));
        // Spring Boot's fully executable jars begin with a script, and are jars all the same.
        if head.starts_with(b"#!") && ends(&[".jar", ".war"]) {
            return Ok(Self::Jar);
        }
        if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
            return Ok(if ends(&[".jar", ".war"]) { Self::Jar } else { Self::Zip });
        }
        if head.starts_with(b"\x1f\x8b") {
            return Ok(Self::TarGz);
        }
        if head.get(257..262) == Some(b"ustar") {
            return Ok(Self::Tar);
        }
        if ends(&[".jar", ".war", ".zip", ".tar", ".tar.gz", ".tgz"]) {
            return Err(refused(format!(
                "source {name:?}: its content is not what the name says (no such archive begins like this); build or \
                 upload it again"
            )));
        }
        if head.starts_with(b"\x7fELF") || head.starts_with(b"#!") {
            return Ok(Self::Program);
        }
        if ends(&[".py"]) {
            return Ok(Self::Python);
        }
        if ends(&[".js", ".mjs", ".cjs"]) {
            return Ok(Self::Node);
        }
        if head.is_empty() {
            return Err(refused(format!("source {name:?}: the file is empty; hand in the program itself")));
        }
        Err(refused(format!(
            "source {name:?}: neither an archive (.tar.gz, .zip, .jar) nor a program (ELF, or a script with #! in its \
             first line, or .py or .js); pack the program, or hand in its directory"
        )))
    }
}

/// A package on disk. The last clone to go hands the directory to the sweeper.
#[derive(Debug)]
pub(crate) struct Package {
    dir: PathBuf,
    key: String,
    digest: String,
    kind: Kind,
    bytes: u64,
    /// The directory itself, with a shared lock on it.
    lock: Option<fs::File>,
    store: Arc<Shared>,
}

impl Package {
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
    /// Where class archives of this package are kept; they go with it.
    pub(crate) fn archive_dir(&self) -> PathBuf {
        self.store.root.join("archives").join(&self.key)
    }
}

impl Drop for Package {
    fn drop(&mut self) {
        let unused = Unused {
            key: std::mem::take(&mut self.key),
            dir: self.dir.clone(),
            lock: self.lock.take(),
            since: Instant::now(),
        };
        self.store.unused.lock().push(unused);
        self.store.has_unused.notify_one();
    }
}

#[derive(Debug)]
struct Unused {
    key: String,
    dir: PathBuf,
    lock: Option<fs::File>,
    since: Instant,
}

/// A directory of this run that the sweeper removes when this is dropped.
#[derive(Debug)]
pub(crate) struct Discard {
    path: PathBuf,
    store: Arc<Shared>,
}

impl Discard {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Discard {
    fn drop(&mut self) {
        self.store.discarded.lock().push(std::mem::take(&mut self.path));
        self.store.has_unused.notify_one();
    }
}

type Gate = Arc<Mutex<Weak<Package>>>;

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    run: PathBuf,
    limits: PackageLimits,
    /// How long a package stays that nothing uses.
    keep: Duration,
    /// The `PATH` with this host's programs.
    search: String,
    /// One unpacking per package at a time; others wait for its result.
    gates: Mutex<HashMap<String, Gate>>,
    unused: Mutex<Vec<Unused>>,
    discarded: Mutex<Vec<PathBuf>>,
    has_unused: Notify,
    next_name: AtomicU64,
    /// Something of this run is left for the next host to clear.
    leave_run: AtomicBool,
    /// Held until the host is gone.
    _lock: fs::File,
}

/// Handle to the store of one host.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Shared>);

static NEXT_RUN: AtomicU64 = AtomicU64::new(1);

impl Store {
    /// Opens the store, clears what dead hosts left in it, and begins a run.
    pub(crate) fn open(root: &Path, limits: PackageLimits, keep: Duration, search: &str) -> Result<Self> {
        let make = |path: &Path| {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| disk("create the package store", path, error))
        };
        make(root)?;
        let root = fs::canonicalize(root).map_err(|error| disk("open the package store", root, error))?;
        let owner = fs::metadata(&root).map_err(|error| disk("open the package store", &root, error))?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "open",
                format!(
                    "package store {}: it belongs to user {owner}, who could change the code in it; choose a directory \
                     of your own",
                    root.display()
                ),
            ));
        }
        let runs = root.join("runs");
        make(&runs)?;
        make(&root.join("packages"))?;

        // One host at a time comes or sweeps, so that a run that is just being made is not taken for a dead one.
        let door = open_lock(&root.join("door"))?;
        rustix::fs::flock(&door, FlockOperation::LockExclusive)
            .map_err(|error| disk("lock", &root, error.into()))?;
        sweep_dead_runs(&runs);
        let number = NEXT_RUN.fetch_add(1, Ordering::Relaxed);
        let run = runs.join(format!("{}-{number}", std::process::id()));
        make(&run.join("tmp"))?;
        let lock = open_lock(&run.join("lock"))?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| disk("lock", &run, error.into()))?;
        let stdin = run.join("stdin");
        fs::File::create(&stdin).map_err(|error| disk("create", &stdin, error))?;
        drop(door);
        let packages = root.join("packages");
        let store = Self(Arc::new(Shared {
            root,
            run,
            limits,
            keep,
            search: search.to_owned(),
            gates: Mutex::default(),
            unused: Mutex::default(),
            discarded: Mutex::default(),
            has_unused: Notify::new(),
            next_name: AtomicU64::new(0),
            leave_run: AtomicBool::new(false),
            _lock: lock,
        }));
        store.take_over(&packages);
        Ok(store)
    }

    /// What earlier runs have left counts as unused from now on. Nothing is known of it, so it goes when it is not used
    /// for as long as a package stays; one that nobody keeps for a while was left by a host that died.
    fn take_over(&self, packages: &Path) {
        for entry in fs::read_dir(packages).into_iter().flatten().flatten() {
            let (dir, Ok(key)) = (entry.path(), entry.file_name().into_string()) else { continue };
            if let Ok(lock @ Some(_)) = lock_shared(&dir) {
                self.0.gates.lock().entry(key.clone()).or_default();
                self.0.unused.lock().push(Unused { key, dir, lock, since: Instant::now() });
            }
        }
    }

    /// The directory of this host's run.
    pub(crate) fn run_dir(&self) -> &Path {
        &self.0.run
    }

    /// A fresh path for something temporary; nothing is created.
    pub(crate) fn temporary(&self, what: &str) -> PathBuf {
        let number = self.0.next_name.fetch_add(1, Ordering::Relaxed);
        self.0.run.join("tmp").join(format!("{what}-{number}"))
    }

    /// Has `path` removed when the result is dropped.
    pub(crate) fn discard(&self, path: PathBuf) -> Discard {
        Discard { path, store: Arc::clone(&self.0) }
    }

    /// The directory of the store.
    pub(crate) fn root(&self) -> &Path {
        &self.0.root
    }

    /// Where packages are.
    pub(crate) fn packages_dir(&self) -> PathBuf {
        self.0.root.join("packages")
    }

    /// Where the Java side of stems and its archives are kept.
    pub(crate) fn stems_dir(&self) -> PathBuf {
        self.0.root.join("stems")
    }

    /// Puts a package in, or finds it there. Blocks on disk.
    pub(crate) fn add(&self, source: &Source) -> Result<Arc<Package>> {
        let (kind, digest) = self.identify(source)?;
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = format!("{hex}.{}", kind.tag());
        let gate = Arc::clone(self.0.gates.lock().entry(key.clone()).or_default());
        let mut known = gate.lock();
        if let Some(package) = known.upgrade() {
            return Ok(package);
        }
        let dir = self.0.root.join("packages").join(&key);
        for _ in 0..8 {
            if let Some(lock) = lock_shared(&dir)? {
                let bytes = size_of_tree(&dir);
                let package = Arc::new(Package {
                    dir,
                    key,
                    digest: format!("sha256:{hex}"),
                    kind,
                    bytes,
                    lock: Some(lock),
                    store: Arc::clone(&self.0),
                });
                *known = Arc::downgrade(&package);
                return Ok(package);
            }
            self.unpack(source, kind, &digest, &dir)?;
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "prepare",
            format!(
                "package {key}: another host keeps removing it from the store; give each host a store of its own"
            ),
        ))
    }

    fn identify(&self, source: &Source) -> Result<(Kind, [u8; 32])> {
        match source {
            Source::Bytes { name, bytes } => {
                self.check_packed(name, bytes.len() as u64)?;
                Ok((Kind::of_file(name, bytes)?, Sha256::digest(bytes).into()))
            }
            Source::Path(path) => {
                let metadata = fs::metadata(path).map_err(|error| {
                    Error::new(
                        ErrorKind::InvalidSpec,
                        "prepare",
                        format!(
                            "source {}: {error}; name a directory, archive or program that this host can read",
                            path.display()
                        ),
                    )
                    .with_source(error)
                })?;
                if metadata.is_dir() {
                    return Ok((Kind::Tree, tree::digest(path, &self.0.limits)?));
                }
                if !metadata.is_file() {
                    return Err(refused(format!(
                        "source {}: neither a file nor a directory; name a directory, archive or program",
                        path.display()
                    )));
                }
                let shown = path.display().to_string();
                self.check_packed(&shown, metadata.len())?;
                let mut file = fs::File::open(path).map_err(|error| disk("read", path, error))?;
                let mut digest = Sha256::new();
                let mut buffer = vec![0u8; 128 * 1024];
                let mut kind = None;
                loop {
                    let n = file.read(&mut buffer).map_err(|error| disk("read", path, error))?;
                    if kind.is_none() {
                        kind = Some(Kind::of_file(&shown, &buffer[..n])?);
                    }
                    if n == 0 {
                        break;
                    }
                    digest.update(&buffer[..n]);
                }
                Ok((kind.unwrap_or(Kind::Program), digest.finalize().into()))
            }
            Source::Image(image) => Err(refused(format!(
                "source.image {image:?}: the process runtime runs code packages (a directory, .tar.gz, .zip, .jar or \
                 program); give it one, or deploy the image with a container runtime"
            ))),
            Source::Function(name) => Err(refused(format!(
                "source.function {name:?}: functions of the host belong to the inline runtime; set runtime: inline"
            ))),
            other => Err(refused(format!("source {other:?}: the process runtime runs code packages"))),
        }
    }

    fn check_packed(&self, name: &str, bytes: u64) -> Result<()> {
        if bytes > self.0.limits.packed_bytes {
            return Err(refused(format!(
                "source {name:?}: {bytes} bytes, more than the {} that a package may have; leave out what the program \
                 does not need, or raise PackageLimits::packed_bytes",
                self.0.limits.packed_bytes
            )));
        }
        Ok(())
    }

    fn unpack(&self, source: &Source, kind: Kind, digest: &[u8; 32], dir: &Path) -> Result<()> {
        let scratch = Scratch(self.temporary("unpack"));
        fs::create_dir(&scratch.0).map_err(|error| disk("create", &scratch.0, error))?;
        let limits = &self.0.limits;
        let copied = match (source, kind) {
            (Source::Path(path), Kind::Tree) => {
                let mut unpacker = Unpacker::new(&scratch.0, limits, None, &self.0.search);
                let copied = tree::copy(path, limits, &mut unpacker)?;
                unpacker.finish()?;
                copied
            }
            (Source::Path(path), _) => {
                let mut file = fs::File::open(path).map_err(|error| disk("read", path, error))?;
                let size = file.metadata().map_err(|error| disk("read", path, error))?.len();
                // Hash what was unpacked, not what was there a moment ago; zip reads in no order, so by a second pass.
                unpack_file(&mut file, kind, size, &scratch.0, limits, &self.0.search, |file| {
                    file.seek(SeekFrom::Start(0)).map_err(|error| disk("read", path, error))?;
                    let mut digest = Sha256::new();
                    io::copy(file, &mut HashSink(&mut digest)).map_err(|error| disk("read", path, error))?;
                    Ok(digest.finalize().into())
                })?
            }
            (Source::Bytes { bytes, .. }, _) => {
                let mut cursor = Cursor::new(bytes.as_ref());
                unpack_file(
                    &mut cursor,
                    kind,
                    bytes.len() as u64,
                    &scratch.0,
                    limits,
                    &self.0.search,
                    |_| Ok(*digest),
                )?
            }
            _ => return Err(Error::unsupported("prepare")),
        };
        if &copied != digest {
            return Err(Error::new(
                ErrorKind::Conflict,
                "prepare",
                "source: it changed while it was read; deploy it again when it is complete",
            )
            .with_retry(sas_core::Retry::After(Duration::from_secs(1))));
        }
        match fs::rename(&scratch.0, dir) {
            // Another host was first; its copy is the same.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(disk("move the package into the store as", dir, error)),
            Ok(()) => Ok(()),
        }
    }

    /// Resolves when a package has become unused.
    pub(crate) async fn has_unused(&self) {
        self.0.has_unused.notified().await;
    }

    /// Whether unused packages are to be removed now.
    pub(crate) fn any_unused(&self) -> bool {
        let now = Instant::now();
        !self.0.discarded.lock().is_empty()
            || self.0.unused.lock().iter().any(|unused| now.duration_since(unused.since) >= self.0.keep)
    }

    /// When the next unused package is to be removed.
    pub(crate) fn next_unused(&self) -> Option<Instant> {
        if self.0.keep.is_zero() {
            return None;
        }
        self.0.unused.lock().iter().map(|unused| unused.since + self.0.keep).min()
    }

    /// Removes the packages that nobody uses any more. Blocks on disk.
    pub(crate) fn remove_unused(&self) {
        let discarded = std::mem::take(&mut *self.0.discarded.lock());
        for path in discarded {
            remove(&path);
        }
        let now = Instant::now();
        let unused: Vec<Unused> = {
            let mut unused = self.0.unused.lock();
            unused.extract_if(.., |unused| now.duration_since(unused.since) >= self.0.keep).collect()
        };
        for Unused { key, dir, lock, .. } in unused {
            let trash = {
                let Some(gate) = self.0.gates.lock().get(&key).map(Arc::clone) else { continue };
                let known = gate.lock();
                if known.strong_count() > 0 {
                    continue;
                }
                let Some(lock) = lock else { continue };
                // Other hosts that use it hold a shared lock.
                if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                    continue;
                }
                let trash = self.temporary("trash");
                let moved = fs::rename(&dir, &trash).is_ok();
                remove(&self.0.root.join("archives").join(&key));
                let mut gates = self.0.gates.lock();
                // Only the map and this function hold the gate: nobody is about to use it.
                if Arc::strong_count(&gate) == 2 {
                    gates.remove(&key);
                }
                if !moved {
                    continue;
                }
                trash
            };
            remove(&trash);
        }
    }
}

impl Run for Store {
    fn dir(&self) -> &Path {
        &self.0.run
    }

    fn wake_sweeper(&self) {
        self.0.has_unused.notify_one();
    }

    fn leave(&self) {
        self.0.leave_run.store(true, Ordering::Release);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The run's directory holds some small files and what a removal left. Packages stay where they are kept.
        for unused in self.unused.get_mut().drain(..).filter(|_| self.keep.is_zero()) {
            if let Some(lock) = unused.lock
                && rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()
            {
                let trash = self.run.join("tmp").join(format!("trash-last-{}", unused.key));
                let _ = fs::rename(&unused.dir, trash);
            }
        }
        if !self.leave_run.load(Ordering::Acquire) {
            remove(&self.run);
        }
    }
}

fn open_lock(path: &Path) -> Result<fs::File> {
    fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(false)
        .open(path)
        .map_err(|error| disk("open", path, error))
}

/// Opens a package's directory and locks it against removal; `None` when it is not there (any more).
fn lock_shared(dir: &Path) -> Result<Option<fs::File>> {
    for _ in 0..64 {
        let file = match fs::File::open(dir) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk("open the package", dir, error)),
        };
        rustix::fs::flock(&file, FlockOperation::LockShared)
            .map_err(|error| disk("lock", dir, error.into()))?;
        // Somebody may have removed it between opening and locking.
        let (held, there) = (file.metadata(), fs::metadata(dir));
        if let (Ok(held), Ok(there)) = (held, there)
            && (held.dev(), held.ino()) == (there.dev(), there.ino())
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn sweep_dead_runs(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else { return };
    for entry in entries.flatten() {
        let run = entry.path();
        let free = match fs::File::open(run.join("lock")) {
            Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // Its host died before it had made the lock.
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        if free {
            let killed =
                sas_runtime_os::strays::kill(&run.join("stdin")) + sas_runtime_os::strays::kill_run(&run);
            if killed > 0 {
                tracing::warn!(run = %run.display(), killed, "ended processes that a dead host had left");
            }
            // What does not go now is tried again by the next host.
            if sas_runtime_os::cgroup::clear(&run.join(sas_runtime_os::cgroup::LIST)) {
                remove(&run);
            } else {
                tracing::warn!(run = %run.display(), "control groups of a dead host could not be removed yet");
            }
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_dir_all(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "could not remove; the next start tries again");
    }
}

/// A directory that goes unless it was renamed away.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.exists() {
            remove(&self.0);
        }
    }
}

struct HashSink<'a>(&'a mut Sha256);

impl io::Write for HashSink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn unpack_file<F: Read + io::Seek>(
    file: &mut F,
    kind: Kind,
    size: u64,
    into: &Path,
    limits: &PackageLimits,
    search: &str,
    digest: impl FnOnce(&mut F) -> Result<[u8; 32]>,
) -> Result<[u8; 32]> {
    let mut unpacker = Unpacker::new(into, limits, Some(size), search);
    match kind {
        Kind::TarGz => untar(io::BufReader::new(&mut *file), true, size, &mut unpacker)?,
        Kind::Tar => untar(io::BufReader::new(&mut *file), false, size, &mut unpacker)?,
        Kind::Zip => unzip(io::BufReader::new(&mut *file), &mut unpacker)?,
        _ => {
            let mode = if kind == Kind::Program { 0o755 } else { 0o644 };
            unpacker.file(kind.file_name().as_bytes(), Some(mode), Some(size), file, &mut |_| {})?;
        }
    }
    unpacker.finish()?;
    digest(file)
}

fn size_of_tree(dir: &Path) -> u64 {
    let mut total = 0;
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    total
}
