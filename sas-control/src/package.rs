//! Packages as they were when they were deployed: their digest, and a copy that later changes do not reach.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use bytes::Bytes;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use sas_core::{
    Blob, BlobStore, Error, ErrorKind, Result, Source, SpecErrors,
    package::{MOST_BYTES, MOST_ENTRIES, is_interpreter_link, without_mark},
};
use sha2::{Digest as _, Sha256};

use crate::{control::blocking, private::private_dir, record::hex};

/// Deepest directory.
pub(crate) const DEPTH_LIMIT: usize = 64;

/// Says, as a `.gitignore` does, what of a directory is no part of its package.
const IGNORE_FILE: &str = ".sasignore";

/// Tells copies of one process apart, so that two deploys never write to one place.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// Packages in a directory of this host: `<root>/sha256-<digest>/<name>`. The directory is its owner's alone.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// # let dir = tempfile::tempdir().expect("a directory");
/// use sas_control::PackageDir;
/// use sas_core::{BlobStore, Source};
///
/// let packages = PackageDir::new(dir.path().join("packages"));
/// let blob = packages.put(&Source::Bytes { name: "run.sh".to_owned(), bytes: "#!/bin/sh".into() }).await?;
/// assert!(packages.exists(&blob.digest).await?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct PackageDir {
    root: PathBuf,
}

/// Says whose packages these are.
const OWNER: &str = "owner";

#[async_trait]
impl BlobStore for PackageDir {
    async fn put(&self, source: &Source) -> Result<Blob> {
        let (dir, source) = (self.clone(), source.clone());
        blocking(move || dir.pin(&source)).await
    }

    async fn get(&self, digest: &str) -> Result<Option<Source>> {
        let Some(home) = self.found(digest) else { return Ok(None) };
        blocking(move || {
            let entry = match fs::read_dir(&home) {
                Ok(mut entries) => entries.next(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(storage(&home, error)),
            };
            let entry = entry.transpose().map_err(|error| storage(&home, error))?;
            Ok(entry.map(|entry| Source::Path(entry.path())))
        })
        .await
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        let Some(home) = self.found(digest) else { return Ok(()) };
        let dir = self.clone();
        blocking(move || {
            // It goes at once, or not at all: a crash leaves no half of it under its name.
            let gone = dir.incoming();
            match fs::rename(&home, &gone) {
                Ok(()) => remove(&gone),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(storage(&home, error)),
            }
        })
        .await
    }

    async fn list(&self) -> Result<Vec<String>> {
        let dir = self.clone();
        blocking(move || {
            let names = dir.names()?.into_iter();
            Ok(names
                .filter(|name| name.starts_with("sha256-"))
                .map(|name| name.replacen('-', ":", 1))
                .collect())
        })
        .await
    }

    async fn owner(&self) -> Result<Option<String>> {
        let path = self.root.join(OWNER);
        blocking(move || match fs::read_to_string(&path) {
            Ok(owner) => Ok(Some(owner.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(storage(&path, error)),
        })
        .await
    }

    async fn set_owner(&self, owner: &str) -> Result<()> {
        let (dir, owner) = (self.clone(), owner.to_owned());
        blocking(move || {
            private_dir(&dir.root)?;
            let (new, path) = (dir.incoming(), dir.root.join(OWNER));
            let written = fs::File::create(&new).and_then(|mut file| {
                file.write_all(owner.as_bytes())?;
                file.sync_all()
            });
            written.and_then(|()| fs::rename(&new, &path)).map_err(|error| storage(&path, error))?;
            sync_dir(&dir.root)
        })
        .await
    }

    async fn tidy(&self) -> Result<()> {
        let dir = self.clone();
        blocking(move || {
            private_dir(&dir.root)?;
            let names = dir.names()?.into_iter().filter(|name| name.starts_with("incoming-"));
            for name in names {
                remove(&dir.root.join(name))?;
            }
            Ok(())
        })
        .await
    }
}

impl PackageDir {
    /// Packages below `root`, which is made when it is needed.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A place in the system's directory for temporary files.
    pub(crate) fn scratch() -> Self {
        let serial = COPIES.fetch_add(1, Ordering::Relaxed);
        Self::new(std::env::temp_dir().join(format!("sas-packages-{}-{serial}", std::process::id())))
    }

    /// Removes everything. Blocking.
    pub(crate) fn remove_all(&self) -> Result<()> {
        remove(&self.root)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A name that nobody has.
    pub(crate) fn incoming(&self) -> PathBuf {
        let serial = COPIES.fetch_add(1, Ordering::Relaxed);
        self.root.join(format!("incoming-{}-{serial}", std::process::id()))
    }

    fn names(&self) -> Result<Vec<String>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(storage(&self.root, error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            names.extend(entry.map_err(|error| storage(&self.root, error))?.file_name().into_string());
        }
        Ok(names)
    }

    /// Copies what `source` names, or finds the copy that is there. Blocking.
    fn pin(&self, source: &Source) -> Result<Blob> {
        private_dir(&self.root)?;
        let incoming = self.incoming();
        remove(&incoming)?;
        let pinned = self.pin_into(source, &incoming);
        if pinned.is_err() {
            // The first error says more than one about clearing up.
            let _ = remove(&incoming);
        }
        pinned
    }

    fn pin_into(&self, source: &Source, incoming: &Path) -> Result<Blob> {
        plain_dir(incoming).map_err(|error| storage(incoming, error))?;
        let name = match source {
            Source::Path(path) => file_name(path)?,
            Source::Bytes { name, .. } => file_name(Path::new(name))?,
            _ => return Err(Error::unsupported("pin")),
        };
        let target = incoming.join(&name);
        let mut walk = Walk::default();
        match source {
            Source::Path(path) => walk.entry(path, &name, Some(&target), 0)?,
            Source::Bytes { bytes, .. } => walk.bytes(&name, bytes, &target)?,
            _ => {}
        }
        let bytes = walk.bytes;
        let digest = walk.digest();
        let home = self.home(&digest);
        sync_tree(incoming)?;
        match fs::rename(incoming, &home) {
            Ok(()) => sync_dir(&self.root)?,
            // Another deploy of the same content was first: its copy is as good.
            Err(_) if home.join(&name).exists() => {
                fs::remove_dir_all(incoming).map_err(|error| storage(incoming, error))?;
            }
            Err(error) => return Err(storage(&home, error)),
        }
        Ok(Blob::new(digest, Source::Path(home.join(name))).with_bytes(bytes))
    }

    /// Takes a package of another directory of this file system, or keeps the one that is here. Blocking.
    pub(crate) fn adopt(&self, staged: &Self, digest: &str) -> Result<Source> {
        private_dir(&self.root)?;
        let home = self.home(digest);
        match fs::rename(staged.home(digest), &home) {
            Ok(()) => sync_dir(&self.root)?,
            Err(_) if home.is_dir() => {}
            Err(error) => return Err(storage(&home, error)),
        }
        let entry = fs::read_dir(&home).and_then(|mut entries| entries.next().transpose());
        match entry.map_err(|error| storage(&home, error))? {
            Some(entry) => Ok(Source::Path(entry.path())),
            None => Err(storage(&home, io::ErrorKind::NotFound.into())),
        }
    }

    /// Where a package would be; none for what is no digest, and might be a path out of here.
    fn found(&self, digest: &str) -> Option<PathBuf> {
        let digits = digest.strip_prefix("sha256:")?;
        let right = digits.len() == 64 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        right.then(|| self.home(digest))
    }

    fn home(&self, digest: &str) -> PathBuf {
        self.root.join(digest.replace(':', "-"))
    }
}

/// The digest of what `source` names, without a copy. Blocking.
pub(crate) fn digest(source: &Source) -> Result<Option<String>> {
    let mut walk = Walk::default();
    match source {
        Source::Path(path) => walk.entry(path, &file_name(path)?, None, 0)?,
        Source::Bytes { name, bytes } => walk.file_bytes(name, false, bytes),
        _ => return Ok(None),
    }
    Ok(Some(walk.digest()))
}

/// A directory of a package: nobody but the owner writes, whatever the umask says.
fn plain_dir(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    #[cfg(unix)]
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Opens what was seen to be a file; what came into its place since, a link or a pipe, is not followed and not waited
/// for.
fn open_file(path: &Path, follow: bool) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = if follow { OFlags::NONBLOCK } else { OFlags::NONBLOCK | OFlags::NOFOLLOW };
        options.custom_flags(flags.bits().cast_signed());
    }
    #[cfg(not(unix))]
    let _ = follow;
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no file any more"));
    }
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(storage(path, error)),
        _ => Ok(()),
    }
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().and_then(|name| name.to_str());
    let path_of_dir = || fs::canonicalize(path).ok()?.file_name()?.to_str().map(str::to_owned);
    match name.map(str::to_owned).or_else(path_of_dir) {
        Some(name) => Ok(name),
        None => Err(refused(path, "has no name in UTF-8")),
    }
}

fn refused(path: &Path, problem: impl Into<String>) -> Error {
    let mut errors = SpecErrors::default();
    errors.push("source", path.display(), problem);
    Error::new(ErrorKind::InvalidSpec, "package", errors.to_string()).with_source(errors)
}

fn read_failed(path: &Path, error: &io::Error) -> Error {
    let problem = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file or directory".to_owned(),
        _ => format!("can't be read: {error}"),
    };
    refused(path, problem)
}

fn storage(path: &Path, error: io::Error) -> Error {
    let message = format!("{}: {error}; is the disk full or read-only?", path.display());
    Error::new(ErrorKind::Unavailable, "package", message).with_source(error)
}

/// Whether a link out of the package is a virtual environment's to its interpreter.
fn is_interpreter(link: &Path, target: &Path) -> bool {
    let environment = link.parent().and_then(Path::parent);
    is_interpreter_link(link, target) && environment.is_some_and(|dir| dir.join("pyvenv.cfg").is_file())
}

#[cfg(unix)]
fn executable(metadata: &fs::Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    metadata.permissions().mode() & 0o111 != 0
}

/// Gives a copy the mode of its original without what could harm: see [`sas_core::package::file_mode`].
#[cfg(unix)]
fn harmless(copy: &fs::File, original: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = sas_core::package::file_mode(original.permissions().mode());
    copy.set_permissions(fs::Permissions::from_mode(mode))
}

#[cfg(not(unix))]
fn harmless(_: &fs::File, _: &fs::Metadata) -> io::Result<()> {
    Ok(())
}

#[cfg(not(unix))]
fn executable(_: &fs::Metadata) -> bool {
    false
}

/// Has everything below `path` on the disk. One call for all files: with one each, a package of thousands takes half a
/// minute.
#[cfg(target_os = "linux")]
fn sync_tree(path: &Path) -> Result<()> {
    let synced = fs::File::open(path).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
    synced.map_err(|error| storage(path, error))
}

#[cfg(not(target_os = "linux"))]
fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(|error| storage(path, error))? {
        let entry = entry.map_err(|error| storage(path, error))?;
        let kind = entry.file_type().map_err(|error| storage(path, error))?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            sync_dir(&entry.path())?;
        }
    }
    sync_dir(path)
}

fn sync_dir(path: &Path) -> Result<()> {
    fs::File::open(path).and_then(|dir| dir.sync_all()).map_err(|error| storage(path, error))
}

/// What a directory leaves out of its package.
struct Ignored {
    matcher: Gitignore,
}

impl Ignored {
    /// What no program is made of: histories, and what desktops leave. Lines of the file can ask for it back.
    const ALWAYS: [&str; 6] = [".git", ".hg", ".svn", "__MACOSX", ".DS_Store", "Thumbs.db"];
    /// The longest file that is read.
    const MAX_BYTES: u64 = 1 << 20;

    fn of(root: &Path) -> Result<Self> {
        let file = root.join(IGNORE_FILE);
        let mut builder = GitignoreBuilder::new(root);
        // Never the line itself: the name may lead to a file that is not meant for who deploys.
        let wrong =
            |line: usize| refused(&file, format!("line {line} is no line of a .gitignore; write it as one"));
        for pattern in Self::ALWAYS {
            builder.add_line(None, pattern).map_err(|_| wrong(0))?;
        }
        // It came with the package, and may be anything: a pipe whose writer never comes, a link to a file of the host's.
        if fs::symlink_metadata(&file).is_ok_and(|facts| !facts.is_file()) {
            return Err(refused(&file, "is no file: write its lines into a file in its place, or remove it"));
        }
        let mut text = String::new();
        match open_file(&file, false) {
            Ok(opened) => {
                let mut opened = opened.take(Self::MAX_BYTES + 1);
                opened.read_to_string(&mut text).map_err(|error| read_failed(&file, &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(read_failed(&file, &error)),
        }
        if text.len() as u64 > Self::MAX_BYTES {
            return Err(refused(&file, format!("is longer than {} bytes; shorten it", Self::MAX_BYTES)));
        }
        for (at, line) in without_mark(&text).lines().enumerate() {
            builder.add_line(None, line).map_err(|_| wrong(at + 1))?;
        }
        let matcher = builder.build().map_err(|_| wrong(0))?;
        Ok(Self { matcher })
    }

    fn holds(&self, path: &Path, is_dir: bool) -> bool {
        self.matcher.matched(path, is_dir).is_ignore()
    }
}

/// Hashes a tree in the order of its names, and copies it if asked.
#[derive(Default)]
struct Walk {
    ignored: Option<Ignored>,
    hash: Sha256,
    entries: u64,
    bytes: u64,
}

impl Walk {
    fn digest(self) -> String {
        format!("sha256:{}", hex(&self.hash.finalize()))
    }

    fn head(&mut self, kind: u8, name: &str, length: u64) {
        self.hash.update([kind]);
        self.hash.update((name.len() as u64).to_le_bytes());
        self.hash.update(name);
        self.hash.update(length.to_le_bytes());
    }

    fn file_bytes(&mut self, name: &str, executable: bool, bytes: &[u8]) {
        self.head(if executable { b'x' } else { b'f' }, name, bytes.len() as u64);
        self.hash.update(bytes);
    }

    fn bytes(&mut self, name: &str, bytes: &Bytes, target: &Path) -> Result<()> {
        self.file_bytes(name, false, bytes);
        self.bytes = bytes.len() as u64;
        let mut file = fs::File::create(target).map_err(|error| storage(target, error))?;
        file.write_all(bytes).map_err(|error| storage(target, error))
    }

    fn entry(&mut self, path: &Path, name: &str, target: Option<&Path>, depth: usize) -> Result<()> {
        self.entries += 1;
        if self.entries > MOST_ENTRIES {
            return Err(refused(path, format!("the package has more than {MOST_ENTRIES} files")));
        }
        if depth > DEPTH_LIMIT {
            return Err(refused(
                path,
                format!("the package is nested more than {DEPTH_LIMIT} directories deep"),
            ));
        }
        // What the user names may itself be a link; inside of a package links stay links.
        let metadata = if depth == 0 { fs::metadata(path) } else { fs::symlink_metadata(path) };
        let metadata = metadata.map_err(|error| read_failed(path, &error))?;
        if metadata.is_file() {
            self.file(path, name, &metadata, target, depth)
        } else if metadata.is_dir() {
            self.directory(path, name, target, depth)
        } else if metadata.is_symlink() {
            self.link(path, name, target, depth)
        } else {
            Err(refused(
                path,
                "is neither a file nor a directory nor a link: a package has no devices, pipes or sockets",
            ))
        }
    }

    fn file(
        &mut self,
        path: &Path,
        name: &str,
        metadata: &fs::Metadata,
        target: Option<&Path>,
        depth: usize,
    ) -> Result<()> {
        self.bytes = self.bytes.saturating_add(metadata.len());
        if self.bytes > MOST_BYTES {
            return Err(refused(path, format!("the package has more than {MOST_BYTES} bytes")));
        }
        self.head(if executable(metadata) { b'x' } else { b'f' }, name, metadata.len());
        let mut source = open_file(path, depth == 0).map_err(|error| read_failed(path, &error))?;
        let mut copy = match target {
            Some(target) => Some((fs::File::create(target).map_err(|error| storage(target, error))?, target)),
            None => None,
        };
        let mut buffer = vec![0; 128 << 10];
        let mut length: u64 = 0;
        loop {
            let read = source.read(&mut buffer).map_err(|error| read_failed(path, &error))?;
            if read == 0 {
                break;
            }
            length += read as u64;
            self.hash.update(&buffer[..read]);
            if let Some((copy, target)) = &mut copy {
                copy.write_all(&buffer[..read]).map_err(|error| storage(target, error))?;
            }
        }
        if length != metadata.len() {
            return Err(refused(path, "changed while it was read; deploy again when it is complete"));
        }
        if let Some((copy, target)) = copy {
            harmless(&copy, metadata).map_err(|error| storage(target, error))?;
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path, name: &str, target: Option<&Path>, depth: usize) -> Result<()> {
        if depth == 0 {
            self.ignored = Some(Ignored::of(path)?);
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(|error| read_failed(path, &error))? {
            let entry = entry.map_err(|error| read_failed(path, &error))?;
            let is_dir = || entry.file_type().is_ok_and(|kind| kind.is_dir());
            if self.ignored.as_ref().is_some_and(|ignored| ignored.holds(&entry.path(), is_dir())) {
                continue;
            }
            let Ok(name) = entry.file_name().into_string() else {
                return Err(refused(&entry.path(), "file names in a package must be UTF-8"));
            };
            names.push(name);
            if names.len() as u64 > MOST_ENTRIES {
                return Err(refused(path, format!("the package has more than {MOST_ENTRIES} files")));
            }
        }
        names.sort_unstable();
        self.head(b'd', name, names.len() as u64);
        if let Some(target) = target {
            plain_dir(target).map_err(|error| storage(target, error))?;
        }
        for name in names {
            self.entry(
                &path.join(&name),
                &name,
                target.map(|target| target.join(&name)).as_deref(),
                depth + 1,
            )?;
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, name: &str, target: Option<&Path>, depth: usize) -> Result<()> {
        let to = fs::read_link(path).map_err(|error| read_failed(path, &error))?;
        let Some(text) = to.to_str() else { return Err(refused(path, "a link in a package must be UTF-8")) };
        // A link may climb as far as the package's root: `depth` counts the root itself as one.
        let mut height = depth.saturating_sub(1);
        for part in to.components() {
            match part {
                Component::Normal(_) => height += 1,
                Component::CurDir => {}
                Component::ParentDir if height > 0 => height -= 1,
                // Who runs the package puts an interpreter of its own host there.
                _ if is_interpreter(path, &to) => break,
                _ => {
                    let problem = format!(
                        "is a link to {text:?}, out of the package: pack what it points to in its place (cp -L), or \
                         remove it"
                    );
                    return Err(refused(path, problem));
                }
            }
        }
        self.head(b'l', name, text.len() as u64);
        self.hash.update(text);
        if let Some(target) = target {
            #[cfg(unix)]
            std::os::unix::fs::symlink(&to, target).map_err(|error| storage(target, error))?;
            #[cfg(not(unix))]
            return Err(refused(target, "links in packages need a Unix system"));
        }
        Ok(())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn pinned(root: &Path, store: &Path) -> Result<PathBuf> {
        match PackageDir::new(store.to_path_buf()).pin(&Source::Path(root.to_path_buf()))?.source {
            Source::Path(path) => Ok(path),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_a_directory_ignores_is_neither_copied_nor_part_of_its_digest() {
        let dir = tempfile::tempdir().unwrap();
        let (root, store) = (dir.path().join("app"), dir.path().join("store"));
        for name in
            ["main.py", "node_modules/a/x.js", "logs/a.log", "keep/b.log", ".git/HEAD", "sub/.DS_Store"]
        {
            write(&root, name, "x");
        }
        write(&root, IGNORE_FILE, "\u{feff}# not these\r\n*.log\r\n!keep/*.log\r\n/node_modules/\r\n");
        let digest_of = |root: &Path| digest(&Source::Path(root.to_path_buf())).unwrap();
        let before = digest_of(&root);
        let copy = pinned(&root, &store).unwrap();
        for (name, there) in [
            ("main.py", true),
            ("keep/b.log", true),
            ("node_modules", false),
            ("logs/a.log", false),
            (".git", false),
            ("sub/.DS_Store", false),
        ] {
            assert_eq!(copy.join(name).exists(), there, "{name}");
        }
        write(&root, ".git/HEAD", "another commit");
        write(&root, "logs/b.log", "more");
        assert_eq!(digest_of(&root), before);
        write(&root, "main.py", "changed");
        assert_ne!(digest_of(&root), before);
        write(&root, IGNORE_FILE, "!.git\n");
        assert!(pinned(&root, &store).unwrap().join(".git/HEAD").exists(), "it was asked for");
        write(&root, IGNORE_FILE, "a{b\n");
        assert!(pinned(&root, &store).unwrap_err().to_string().contains("line 1"), "the line is named");
    }

    #[test]
    fn what_says_what_to_ignore_is_a_file_and_nothing_else_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (root, store) = (dir.path().join("app"), dir.path().join("store"));
        write(&root, "main.py", "x");
        write(dir.path(), "secret", "a{b\n");
        let file = root.join(IGNORE_FILE);
        // Whoever opened the pipe would wait for a writer, and whoever followed the link would find its line wrong.
        let makes: [&dyn Fn(); 3] =
            [&|| mkfifo(&file), &|| symlink(dir.path().join("secret"), &file).unwrap(), &|| {
                fs::create_dir(&file).unwrap()
            }];
        for make in makes {
            make();
            let refused = pinned(&root, &store).unwrap_err().to_string();
            assert!(refused.contains(IGNORE_FILE) && refused.contains("is no file"), "{refused}");
            remove(&file).unwrap();
        }
        assert!(pinned(&root, &store).is_ok());
    }

    fn mkfifo(path: &Path) {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

    #[test]
    fn a_virtual_environments_link_stays_and_other_links_out_name_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let (root, store) = (dir.path().join("app"), dir.path().join("store"));
        write(&root, "main.py", "x");
        write(&root, "env/bin/tool", "x");
        symlink("/usr/bin/python3.11", root.join("env/bin/python3")).unwrap();
        let refused = pinned(&root, &store).unwrap_err().to_string();
        assert!(refused.contains("python3") && refused.contains("pack what it points to"), "{refused}");
        write(&root, "env/pyvenv.cfg", "home = /usr/bin");
        let copy = pinned(&root, &store).unwrap();
        assert!(copy.join("env/bin/python3").is_symlink());
        symlink("/etc/passwd", root.join("env/bin/python")).unwrap();
        assert!(pinned(&root, &store).unwrap_err().to_string().contains("/etc/passwd"));
    }

    #[test]
    fn a_copy_keeps_its_executable_bits_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let (root, store) = (dir.path().join("app"), dir.path().join("store"));
        write(&root, "run", "x");
        fs::set_permissions(root.join("run"), fs::Permissions::from_mode(0o6777)).unwrap();
        let mode = fs::metadata(pinned(&root, &store).unwrap().join("run")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
}
