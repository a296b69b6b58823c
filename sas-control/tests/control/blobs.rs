//! The directory of packages keeps the contract of `BlobStore`, and the suite refuses directories with one bug each.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use futures_util::future::join_all;
use sas_control::{PackageDir, SharedPackages};
use sas_core::{Blob, BlobStore, Error, ErrorKind, ObjectStore, Result, Source};
use sas_testkit::{
    Report,
    blobs::{self, Subject},
};

/// In memory, where there is one: each package is written out else, with a wait for the disk.
fn place() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir()).expect("a directory")
}

#[tokio::test]
async fn the_directory_of_packages_passes_the_blob_store_suite() {
    let report = blobs::suite(async || {
        let dir = place();
        let root = dir.path().join("packages");
        let subject = Subject::new(Arc::new(PackageDir::new(&root))).reopen(move || {
            let root = root.clone();
            async move { Arc::new(PackageDir::new(root)) as Arc<dyn BlobStore> }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

/// Storage that hosts share: files, which stand whole under their names.
#[derive(Debug)]
struct Shelf {
    root: std::path::PathBuf,
    gets: AtomicU64,
}

impl Shelf {
    fn new(root: &Path) -> Arc<Self> {
        fs::create_dir_all(root.join("packages")).expect("made");
        Arc::new(Self { root: root.to_path_buf(), gets: AtomicU64::new(0) })
    }
}

fn told(error: std::io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "object", error.to_string())
}

#[async_trait]
impl ObjectStore for Shelf {
    async fn put(&self, name: &str, file: &Path) -> Result<()> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let new = self.root.join(format!("new-{}", SERIAL.fetch_add(1, SeqCst)));
        fs::copy(file, &new).and_then(|_| fs::rename(&new, self.root.join(name))).map_err(told)
    }

    async fn get(&self, name: &str, file: &Path) -> Result<bool> {
        self.gets.fetch_add(1, SeqCst);
        match fs::copy(self.root.join(name), file) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(told(error)),
        }
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let _ = fs::remove_file(self.root.join(name));
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let names = fs::read_dir(self.root.join("packages")).map_err(told)?.flatten();
        let names = names.map(|entry| format!("packages/{}", entry.file_name().to_string_lossy()));
        Ok(names.filter(|name| name.starts_with(prefix)).collect())
    }
}

/// A host: what is shared, and a directory of its own.
fn host(shelf: &Arc<Shelf>, dir: &Path) -> SharedPackages {
    SharedPackages::new(Arc::clone(shelf), PackageDir::new(dir))
}

#[tokio::test]
async fn shared_packages_pass_the_blob_store_suite_also_on_another_host() {
    let report = blobs::suite(async || {
        let dir = place();
        let root = dir.path().to_path_buf();
        let shelf = Shelf::new(&root.join("shelf"));
        let subject = Subject::new(Arc::new(host(&shelf, &root.join("one")))).reopen(move || {
            let other = host(&shelf, &root.join("other"));
            async move { Arc::new(other) as Arc<dyn BlobStore> }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test]
async fn a_package_is_fetched_once_per_host_and_one_that_is_damaged_is_refused() {
    let dir = place();
    let root = dir.path();
    let shelf = Shelf::new(&root.join("shelf"));
    let (one, other) = (host(&shelf, &root.join("one")), host(&shelf, &root.join("other")));
    let app = root.join("app");
    fs::create_dir_all(app.join("bin")).expect("made");
    fs::write(app.join("bin/run"), "#!/bin/sh\n").expect("written");
    set(&app.join("bin/run"), 0o755);
    std::os::unix::fs::symlink("bin/run", app.join("start")).expect("linked");
    let blob = one.put(&Source::Path(app.clone())).await.expect("put");
    assert_eq!(shelf.gets.load(SeqCst), 0, "who put it has it");
    let fetched = join_all((0..8).map(|_| other.get(&blob.digest))).await;
    for source in &fetched {
        let source = source.as_ref().expect("got").as_ref().expect("there");
        let there = path(source);
        assert!(there.starts_with(root.join("other")), "{there:?}");
        assert_eq!(fs::metadata(there.join("bin/run")).expect("there").permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_link(there.join("start")).expect("a link"), Path::new("bin/run"));
    }
    assert_eq!(shelf.gets.load(SeqCst), 1, "fetched once for all who asked");

    // Another package in its place, a torn one, and one that leads out of where it is unpacked.
    let place = shelf.root.join(format!("packages/{}.tar", blob.digest.replace(':', "-")));
    let whole = fs::read(&place).expect("read");
    let mut evil = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1);
    header.as_gnu_mut().expect("gnu").name[..10].copy_from_slice(b"../escaped");
    header.set_cksum();
    evil.append(&header, &b"x"[..]).expect("appended");
    let changed = whole.iter().map(|byte| if *byte == b'#' { b'%' } else { *byte }).collect::<Vec<u8>>();
    let evil = evil.into_inner().expect("whole");
    // It would unpack to more than a package may have, and is a few bytes itself.
    let mut header = tar::Header::new_gnu();
    header.set_path("app/zeros").expect("a path");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(0);
    let sparse = header.as_gnu_mut().expect("gnu");
    sparse.set_real_size(1 << 40);
    sparse.sparse[0].set_offset(1 << 40);
    sparse.sparse[0].set_length(0);
    header.set_cksum();
    let mut bomb = tar::Builder::new(Vec::new());
    bomb.append(&header, &b""[..]).expect("appended");
    let bomb = bomb.into_inner().expect("whole");
    for (what, bytes) in [
        ("changed", changed),
        ("torn", whole[..700].to_vec()),
        ("escaping", evil),
        ("bomb", bomb),
        ("empty", Vec::new()),
    ] {
        fs::write(&place, bytes).expect("written");
        let third = host(&shelf, &root.join(format!("third-{what}")));
        let error = third.get(&blob.digest).await.expect_err(what);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{what}: {error}");
        assert!(error.message.contains("deploy it again"), "{what}: {error}");
        third.tidy().await.expect("tidied");
        let left: Vec<_> = fs::read_dir(root.join(format!("third-{what}"))).expect("there").collect();
        assert!(left.is_empty(), "{what}: {left:?}");
        // A deploy mends it, also on the host that has a copy.
        assert!(!one.exists(&blob.digest).await.expect("asked"), "{what}: it is in nobody's way");
        one.put(&Source::Path(app.clone())).await.expect("put again");
        assert!(third.get(&blob.digest).await.expect("got").is_some(), "{what}: it is mended");
    }
    assert!(!root.join("escaped").exists() && !root.join("third-escaping/escaped").exists());

    // What another host has deleted goes when a host tidies.
    one.delete(&blob.digest).await.expect("deleted");
    assert!(!other.exists(&blob.digest).await.expect("asked"));
    other.tidy().await.expect("tidied");
    assert_eq!(other.get(&blob.digest).await.expect("asked").map(|_| ()), None);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    Nothing,
    FindsWhatIsNoDigest,
    EmptiesFiles,
    LosesExecutableBits,
    DigestsWithoutTheirKind,
    DigestsByPlace,
    DigestsByCountOfFiles,
    RunsTheOriginal,
    WritesAgain,
    KeepsSetUserId,
    TellsContent,
    RefusesWithoutField,
    TakesEverything,
    ListsTwice,
    DeletesEverything,
    NeverDeletes,
    KeepsTheFirstOwner,
    ListsTheOwner,
    TidiesPackages,
    PutsInParts,
    HalfDeletesWhenDropped,
    ForgetsItsOwnerWhenOpenedAgain,
}

#[derive(Debug)]
struct Broken {
    inner: PackageDir,
    bug: Bug,
    puts: AtomicU64,
    owner: Mutex<Option<String>>,
    originals: Mutex<Vec<(String, Source)>>,
}

fn path(source: &Source) -> &Path {
    let Source::Path(path) = source else { panic!("{source:?}") };
    path
}

/// All files of a package. What somebody else removes meanwhile is not there.
fn files(path: &Path, visit: &mut dyn FnMut(&Path)) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            files(&entry.path(), visit);
        }
    } else if metadata.is_file() {
        visit(path);
    }
}

fn set(path: &Path, mode: u32) {
    let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
}

impl Broken {
    fn new(bug: Bug, root: &Path) -> Self {
        let inner = PackageDir::new(root);
        Self { inner, bug, puts: AtomicU64::default(), owner: Mutex::default(), originals: Mutex::default() }
    }

    /// What is in the store's place of a digest that has a form of its own.
    fn inner_digest(&self, digest: &str) -> String {
        match self.bug {
            Bug::DigestsWithoutTheirKind => format!("sha256:{digest}"),
            Bug::DigestsByPlace => digest.split('#').next().unwrap_or(digest).to_owned(),
            _ => digest.to_owned(),
        }
    }
}

#[async_trait]
impl BlobStore for Broken {
    async fn put(&self, source: &Source) -> Result<Blob> {
        let put = self.puts.fetch_add(1, SeqCst);
        let known = self.inner.list().await?;
        let mut blob = match self.inner.put(source).await {
            Err(error) if error.kind == ErrorKind::InvalidSpec => {
                return match self.bug {
                    Bug::TakesEverything => {
                        self.inner.put(&Source::Bytes { name: "x".into(), bytes: "".into() }).await
                    }
                    Bug::RefusesWithoutField => Err(Error::new(error.kind, "package", error.message)),
                    Bug::TellsContent => {
                        let content = fs::read_to_string(path(source).join("link")).unwrap_or_default();
                        let mut told = error;
                        told.message = format!("{}: {content}", told.message);
                        Err(told)
                    }
                    _ => Err(error),
                };
            }
            Err(error) if self.bug == Bug::TakesEverything => {
                let Source::Function(name) = source else { return Err(error) };
                self.inner.put(&Source::Bytes { name: name.clone(), bytes: "".into() }).await?
            }
            given => given?,
        };
        let copy = path(&blob.source).to_owned();
        match self.bug {
            Bug::EmptiesFiles => files(&copy, &mut |file| drop(fs::write(file, ""))),
            Bug::LosesExecutableBits => files(&copy, &mut |file| set(file, 0o644)),
            Bug::KeepsSetUserId => files(&copy, &mut |file| set(file, 0o4755)),
            Bug::WritesAgain if known.contains(&blob.digest) => files(&copy, &mut |file| {
                let content = fs::read(file).unwrap_or_default();
                let _ = fs::remove_file(file);
                let _ = fs::write(file, content);
                set(file, 0o755);
            }),
            Bug::DigestsWithoutTheirKind => blob.digest = blob.digest.replace("sha256:", ""),
            Bug::DigestsByPlace => blob.digest = format!("{}#{put}", blob.digest),
            Bug::DigestsByCountOfFiles => {
                let mut count = 0;
                files(&copy, &mut |_| count += 1);
                let mut known = self.originals.lock().expect("held by nobody");
                let same = known.iter().find(|(_, other)| {
                    let mut others = 0;
                    files(path(other), &mut |_| others += 1);
                    others == count
                });
                if let Some((digest, _)) = same {
                    blob.digest.clone_from(digest);
                }
                known.push((blob.digest.clone(), blob.source.clone()));
            }
            Bug::RunsTheOriginal => {
                self.originals.lock().expect("held by nobody").push((blob.digest.clone(), source.clone()));
            }
            Bug::PutsInParts if !known.contains(&blob.digest) => {
                let mut kept = Vec::new();
                files(&copy, &mut |file| {
                    kept.push((file.to_owned(), fs::read(file).unwrap_or_default()));
                    drop(fs::write(file, ""));
                });
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                for (file, content) in kept {
                    let _ = fs::write(file, content);
                }
            }
            _ => {}
        }
        Ok(blob)
    }

    async fn get(&self, digest: &str) -> Result<Option<Source>> {
        if self.bug == Bug::FindsWhatIsNoDigest && digest == ".." {
            return Ok(Some(Source::Path("..".into())));
        }
        let original =
            self.originals.lock().expect("held by nobody").iter().rfind(|known| known.0 == digest).cloned();
        match original {
            Some((_, source)) => Ok(Some(source)),
            None => self.inner.get(&self.inner_digest(digest)).await,
        }
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        match self.bug {
            Bug::NeverDeletes => return Ok(()),
            Bug::DeletesEverything => {
                for other in self.inner.list().await? {
                    self.inner.delete(&other).await?;
                }
            }
            Bug::HalfDeletesWhenDropped => {
                if let Some(found) = self.inner.get(digest).await? {
                    files(path(&found), &mut |file| drop(fs::remove_file(file)));
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            }
            _ => {}
        }
        self.inner.delete(&self.inner_digest(digest)).await
    }

    async fn list(&self) -> Result<Vec<String>> {
        let mut all = self.inner.list().await?;
        match self.bug {
            Bug::ListsTwice => all.extend(all.clone()),
            Bug::ListsTheOwner if self.inner.owner().await?.is_some() => all.push("owner".to_owned()),
            Bug::DigestsWithoutTheirKind => {
                all.iter_mut().for_each(|digest| *digest = digest.replace("sha256:", ""));
            }
            _ => {}
        }
        Ok(all)
    }

    async fn owner(&self) -> Result<Option<String>> {
        if self.bug == Bug::ForgetsItsOwnerWhenOpenedAgain {
            return Ok(self.owner.lock().expect("held by nobody").clone());
        }
        self.inner.owner().await
    }

    async fn set_owner(&self, owner: &str) -> Result<()> {
        if self.bug == Bug::KeepsTheFirstOwner && self.inner.owner().await?.is_some() {
            return Ok(());
        }
        *self.owner.lock().expect("held by nobody") = Some(owner.to_owned());
        self.inner.set_owner(owner).await
    }

    async fn tidy(&self) -> Result<()> {
        if self.bug == Bug::TidiesPackages {
            for digest in self.inner.list().await? {
                self.inner.delete(&digest).await?;
            }
        }
        self.inner.tidy().await
    }
}

const MUTANTS: [(Bug, &str); 21] = [
    (Bug::FindsWhatIsNoDigest, "what is no digest"),
    (Bug::EmptiesFiles, "bytes are kept"),
    (Bug::LosesExecutableBits, "a directory is kept"),
    (Bug::DigestsWithoutTheirKind, "64 hexadecimal digits"),
    (Bug::DigestsByPlace, "wherever it came from"),
    (Bug::DigestsByCountOfFiles, "is another digest"),
    (Bug::RunsTheOriginal, "does not change with its original"),
    (Bug::WritesAgain, "not written again"),
    (Bug::KeepsSetUserId, "no set-user-id"),
    (Bug::TellsContent, "without its content"),
    (Bug::RefusesWithoutField, "refused by its field"),
    (Bug::TakesEverything, "neither files nor bytes"),
    (Bug::ListsTwice, "each once"),
    (Bug::DeletesEverything, "others stay"),
    (Bug::NeverDeletes, "deleted is gone"),
    (Bug::KeepsTheFirstOwner, "who was last told"),
    (Bug::ListsTheOwner, "and no package"),
    (Bug::TidiesPackages, "tidying takes"),
    (Bug::PutsInParts, "nobody sees a half"),
    (Bug::HalfDeletesWhenDropped, "a dropped put or deletion"),
    (Bug::ForgetsItsOwnerWhenOpenedAgain, "after it was opened again"),
];

async fn report(bug: Bug) -> Report {
    blobs::suite(async || {
        let dir = place();
        let root = dir.path().join("packages");
        let subject = Subject::new(Arc::new(Broken::new(bug, &root))).reopen(move || {
            let again = Arc::new(Broken::new(bug, &root)) as Arc<dyn BlobStore>;
            async move { again }
        });
        (dir, subject)
    })
    .await
}

#[tokio::test]
async fn a_wrapper_without_a_bug_passes() {
    report(Bug::Nothing).await.assert_passed_skipping(&[]);
}

#[tokio::test]
async fn every_broken_directory_is_refused_by_the_check_that_is_there_for_it() {
    let reports = join_all(MUTANTS.map(|(bug, _)| report(bug))).await;
    for ((bug, by), report) in MUTANTS.into_iter().zip(reports) {
        let failed: Vec<&str> = report.failed().map(|(name, _)| name).collect();
        println!("| BlobStore | {bug:?} | {} |", failed.join("; "));
        assert!(failed.iter().any(|name| name.contains(by)), "{bug:?} was not caught by {by:?}\n{report}");
    }
}
