//! Packages on storage that hosts share, each brought to a host once.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Blob, BlobStore, Error, ErrorKind, ObjectStore, Result, Source,
    package::{MOST_BYTES, MOST_ENTRIES},
};

use crate::{
    control::blocking,
    package::{DEPTH_LIMIT, PackageDir},
    private::private_dir,
};

/// Packages as objects, `packages/sha256-DIGITS.tar`.
const PACKAGES: &str = "packages/";
const OWNER: &str = "owner";

/// Packages on storage that several hosts share. Each host keeps a copy of what it runs in a directory of its own: a package is
/// fetched once per host, and taken only if what came has the digest that it is kept under.
///
/// ```no_run
/// # fn shared(objects: impl sas_core::ObjectStore) {
/// use sas_control::{PackageDir, SharedPackages};
///
/// let packages = SharedPackages::new(objects, PackageDir::new("/var/lib/platform/packages"));
/// # }
/// ```
#[derive(Debug)]
pub struct SharedPackages {
    objects: Arc<dyn ObjectStore>,
    local: PackageDir,
    /// Packages that are brought or put at this moment: one at a time for each digest.
    under_way: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    /// Whether what a process before this one left half done is gone.
    cleared: tokio::sync::OnceCell<()>,
}

impl SharedPackages {
    /// Packages on `objects`, with copies in `local`, which is this host's alone.
    pub fn new(objects: impl ObjectStore, local: PackageDir) -> Self {
        let (objects, cleared) = (Arc::new(objects), tokio::sync::OnceCell::new());
        Self { objects, local, under_way: Mutex::default(), cleared }
    }

    /// One at a time for a digest.
    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut under_way = self.under_way.lock();
        under_way.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(under_way.entry(digest.to_owned()).or_default())
    }

    async fn has(&self, digest: &str) -> Result<bool> {
        let name = object(digest);
        Ok(self.objects.list(&name).await?.contains(&name))
    }

    /// Takes what is kept under a digest to this host.
    async fn fetch(&self, digest: &str) -> Result<Option<Source>> {
        let scratch = self.scratch().await?;
        let archive = scratch.0.join("package.tar");
        if !self.objects.get(&object(digest), &archive).await? {
            return Ok(None);
        }
        // Beside the others until it is known to be the right one.
        let staged = PackageDir::new(scratch.0.join("staged"));
        let to = scratch.0.join("package");
        let problem = match blocking(move || unpack(&archive, &to)).await? {
            Ok(source) => match staged.put(&source).await {
                Ok(blob) if blob.digest == digest => return self.adopt(staged, digest).await.map(Some),
                Ok(blob) => format!("its content is {}", blob.digest),
                Err(error) if error.kind == ErrorKind::InvalidSpec => error.message,
                Err(error) => return Err(error),
            },
            Err(problem) => problem,
        };
        // It is nobody's package, and a deploy would find its name taken and not put the right one.
        let removed = self.objects.delete(&object(digest)).await;
        Err(damaged(digest, &problem, removed))
    }

    /// Takes a package that was staged to the copies of this host.
    async fn adopt(&self, staged: PackageDir, digest: &str) -> Result<Source> {
        let (local, digest) = (self.local.clone(), digest.to_owned());
        blocking(move || local.adopt(&staged, &digest)).await
    }

    async fn scratch(&self) -> Result<Scratch> {
        // Also where several hosts share a store, and nobody is alone to tidy: this directory is one host's.
        self.cleared.get_or_try_init(|| self.local.tidy()).await?;
        let dir = self.local.incoming();
        let root = self.local.root().to_path_buf();
        blocking(move || {
            private_dir(&root)?;
            fs::create_dir(&dir).map_err(|error| failed(&dir, error))?;
            Ok(Scratch(dir))
        })
        .await
    }
}

/// A directory that goes away with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is removed when the place is tidied.
        let dir = std::mem::take(&mut self.0);
        let remove = move || drop(fs::remove_dir_all(dir));
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

fn object(digest: &str) -> String {
    format!("{PACKAGES}{}.tar", digest.replace(':', "-"))
}

fn failed(path: &Path, error: io::Error) -> Error {
    let message = format!("{}: {error}; is the disk full or read-only?", path.display());
    Error::new(ErrorKind::Unavailable, "package", message).with_source(error)
}

fn damaged(digest: &str, problem: &str, removed: Result<()>) -> Error {
    let first = match removed {
        Ok(()) => String::new(),
        Err(error) => format!("remove {} from the storage ({}), and ", object(digest), error.message),
    };
    let message = format!(
        "what the shared storage had as {digest} is not that package: {problem}; {first}deploy it again"
    );
    Error::new(ErrorKind::Unavailable, "package", message)
}

fn pack(source: &Source, archive: &Path) -> Result<()> {
    let Source::Path(path) = source else { return Err(Error::unsupported("put")) };
    let packed = || -> io::Result<()> {
        let mut builder = tar::Builder::new(io::BufWriter::new(fs::File::create(archive)?));
        // The same content is the same archive, and has no names of users of this host.
        builder.mode(tar::HeaderMode::Deterministic);
        builder.follow_symlinks(false);
        let name = path.file_name().unwrap_or_default();
        if path.is_dir() {
            builder.append_dir_all(name, path)?;
        } else {
            builder.append_path_with_name(path, name)?;
        }
        builder.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    packed().map_err(|error| failed(archive, error))
}

/// Whether an archive unpacks to no more than a package may have.
fn bounded(archive: &Path) -> io::Result<()> {
    let mut opened = tar::Archive::new(io::BufReader::new(fs::File::open(archive)?));
    let (mut entries, mut bytes) = (0, 0_u64);
    for entry in opened.entries_with_seek()? {
        let entry = entry?;
        entries += 1;
        bytes = bytes.saturating_add(entry.size());
        if entries > MOST_ENTRIES
            || bytes > MOST_BYTES
            || entry.path()?.components().count() > DEPTH_LIMIT + 1
        {
            let problem = format!(
                "it has more than {MOST_ENTRIES} files, {MOST_BYTES} bytes, or {DEPTH_LIMIT} levels of directories"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
    }
    Ok(())
}

/// Whether what failed is the archive, rather than this host's disk or its limits.
fn is_of_archive(kind: io::ErrorKind) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        kind,
        Kind::InvalidData
            | Kind::InvalidInput
            | Kind::InvalidFilename
            | Kind::UnexpectedEof
            | Kind::Other
            | Kind::AlreadyExists
            | Kind::NotADirectory
            | Kind::IsADirectory
    )
}

/// Unpacks below `to`, never outside of it, and gives the one entry that is there, or what is wrong with the archive.
fn unpack(archive: &Path, to: &Path) -> Result<std::result::Result<Source, String>> {
    let unpacked = || -> io::Result<Option<PathBuf>> {
        bounded(archive)?;
        fs::create_dir(to)?;
        let mut opened = tar::Archive::new(io::BufReader::new(fs::File::open(archive)?));
        opened.set_overwrite(false);
        opened.unpack(to)?;
        let entry = fs::read_dir(to)?.next().transpose()?;
        Ok(entry.map(|entry| entry.path()))
    };
    match unpacked() {
        Ok(Some(path)) => Ok(Ok(Source::Path(path))),
        Ok(None) => Ok(Err("it is empty".to_owned())),
        Err(error) if is_of_archive(error.kind()) => Ok(Err(error.to_string())),
        Err(error) => Err(failed(to, error)),
    }
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits.bytes().all(|digit| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit))
    })
}

#[async_trait]
impl BlobStore for SharedPackages {
    async fn put(&self, source: &Source) -> Result<Blob> {
        // This host has a copy when the storage has one: given up before, nothing of it is there.
        let scratch = self.scratch().await?;
        let staged = PackageDir::new(scratch.0.join("staged"));
        let mut blob = staged.put(source).await?;
        let turn = self.turn(&blob.digest);
        let _turn = turn.lock().await;
        if !self.has(&blob.digest).await? {
            let (archive, packed) = (scratch.0.join("package.tar"), blob.source.clone());
            let written = archive.clone();
            blocking(move || pack(&packed, &written)).await?;
            self.objects.put(&object(&blob.digest), &archive).await?;
        }
        blob.source = self.adopt(staged, &blob.digest).await?;
        Ok(blob)
    }

    async fn get(&self, digest: &str) -> Result<Option<Source>> {
        if !is_digest(digest) {
            return Ok(None);
        }
        if let Some(source) = self.local.get(digest).await? {
            return Ok(Some(source));
        }
        let turn = self.turn(digest);
        let _turn = turn.lock().await;
        match self.local.get(digest).await? {
            Some(source) => Ok(Some(source)),
            None => self.fetch(digest).await,
        }
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        if !is_digest(digest) {
            return Ok(());
        }
        let turn = self.turn(digest);
        let _turn = turn.lock().await;
        // Given up in between, it is there, and is brought again.
        self.local.delete(digest).await?;
        self.objects.delete(&object(digest)).await
    }

    async fn list(&self) -> Result<Vec<String>> {
        let names = self.objects.list(PACKAGES).await?.into_iter();
        let digests = names.filter_map(|name| {
            let name = name.strip_prefix(PACKAGES)?.strip_suffix(".tar")?;
            Some(name.replacen('-', ":", 1)).filter(|digest| is_digest(digest))
        });
        Ok(digests.collect())
    }

    async fn exists(&self, digest: &str) -> Result<bool> {
        Ok(is_digest(digest) && self.has(digest).await?)
    }

    async fn owner(&self) -> Result<Option<String>> {
        let scratch = self.scratch().await?;
        let file = scratch.0.join(OWNER);
        if !self.objects.get(OWNER, &file).await? {
            return Ok(None);
        }
        blocking(move || fs::read_to_string(&file).map(Some).map_err(|error| failed(&file, error))).await
    }

    async fn set_owner(&self, owner: &str) -> Result<()> {
        let scratch = self.scratch().await?;
        let (file, owner) = (scratch.0.join(OWNER), owner.to_owned());
        let written = file.clone();
        blocking(move || fs::write(&written, owner).map_err(|error| failed(&written, error))).await?;
        self.objects.put(OWNER, &file).await
    }

    /// Removes from this host what another has deleted meanwhile.
    async fn tidy(&self) -> Result<()> {
        self.local.tidy().await?;
        let kept = self.list().await?;
        for digest in self.local.list().await? {
            if !kept.contains(&digest) {
                self.local.delete(&digest).await?;
            }
        }
        Ok(())
    }
}
