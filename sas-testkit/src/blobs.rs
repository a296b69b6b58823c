//! The suite for [`sas_core::BlobStore`].

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use sas_core::{Blob, BlobStore, ErrorKind, Source};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, drop_after_polls, ensure, ok, refused, within},
    medium::Medium,
};

/// A store without any package, and how to open it again if it outlives its process.
#[derive(Debug)]
pub struct Subject(Medium<dyn BlobStore>);

impl Subject {
    /// A store that is empty and nobody's.
    pub fn new(store: Arc<dyn BlobStore>) -> Self {
        Self(Medium::new(store))
    }

    /// Opens the same place again. The suite has dropped its handle by then.
    #[must_use]
    pub fn reopen<F>(mut self, reopen: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Arc<dyn BlobStore>> + 'static,
    {
        self.0.reopen(reopen);
        self
    }

    fn store(&self) -> Arc<dyn BlobStore> {
        self.0.part()
    }
}

impl From<Arc<dyn BlobStore>> for Subject {
    fn from(store: Arc<dyn BlobStore>) -> Self {
        Self::new(store)
    }
}

/// Runs every check on an empty store of its own, made by `builder`. Each writes what it puts to the system's directory
/// for temporary files.
pub async fn suite<G, T: Into<Subject>>(builder: impl AsyncFn() -> (G, T)) -> Report {
    check::run(
        "BlobStore",
        check::LIMIT,
        builder,
        Into::into,
        checks![
            "a digest that nobody put is none, and so is what is no digest" => absent,
            "bytes are kept under their name, and found by their digest" => bytes_kept,
            "a directory is kept with its names, its content, its executable bits and the links inside" => tree_kept,
            "a digest is sha256: and 64 hexadecimal digits" => digest_form,
            "the same content has the same digest wherever it came from" => same_content,
            "another name, content or executable bit is another digest" => other_content,
            "what is stored does not change with its original" => copied,
            "what is there already is not written again" => not_again,
            "a package has no set-user-id of the user's machine" => harmless,
            "what is no package is refused by its field and without its content, and leaves nothing" => no_package,
            "sources that are neither files nor bytes are unsupported" => other_sources,
            "all packages are listed, each once" => listed,
            "a package that was deleted is gone, others stay, and it can be put again" => deleted,
            "an owner is who was last told, and no package" => owner,
            "tidying takes neither packages nor owner" => tidied,
            "of puts and deletions at once nobody sees a half" => at_once,
            "a dropped put or deletion is done or not done at all" => dropped,
            "what was put, and the owner, are there after it was opened again" => durable,
        ],
    )
    .await
}

/// A place for what is put.
fn scratch() -> Verdict<TempDir> {
    io("a directory for what is put", tempfile::tempdir())
}

fn io<T>(what: impl std::fmt::Display, result: io::Result<T>) -> Verdict<T> {
    result.map_err(|error| Stop::fail(format!("{what}: {error}")))
}

fn write(path: &Path, content: &str) -> Verdict {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(path, content));
    io(path.display(), made)
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> Verdict {
    use std::os::unix::fs::PermissionsExt as _;
    io(path.display(), fs::set_permissions(path, fs::Permissions::from_mode(mode)))
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions())
}

/// What there is at a path, without where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Directory,
    File { content: Vec<u8>, executable: bool },
    Link(PathBuf),
}

type Tree = BTreeMap<PathBuf, Node>;

fn walk(path: &Path, name: PathBuf, tree: &mut Tree) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    let node = if metadata.is_symlink() {
        Node::Link(fs::read_link(path)?)
    } else if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            walk(&entry.path(), name.join(entry.file_name()), tree)?;
        }
        Node::Directory
    } else {
        #[cfg(unix)]
        let executable = mode(&metadata) & 0o111 != 0;
        #[cfg(not(unix))]
        let executable = false;
        Node::File { content: fs::read(path)?, executable }
    };
    tree.insert(name, node);
    Ok(())
}

/// All that a source has, with the name of its root.
fn tree(source: &Source) -> Verdict<Tree> {
    let mut tree = Tree::new();
    match source {
        Source::Path(path) => {
            let name = path.file_name().map(PathBuf::from).unwrap_or_default();
            io(format_args!("what is at {}", path.display()), walk(path, name, &mut tree))?;
        }
        Source::Bytes { name, bytes } => {
            tree.insert(name.into(), Node::File { content: bytes.to_vec(), executable: false });
        }
        other => return Err(Stop::fail(format!("a package is said to be at {other:?}, which is no place"))),
    }
    Ok(tree)
}

fn in_memory(name: &str, content: &str) -> Source {
    Source::Bytes { name: name.to_owned(), bytes: content.to_owned().into() }
}

async fn put(store: &dyn BlobStore, source: &Source) -> Verdict<Blob> {
    ok("put", store.put(source).await)
}

/// Fails unless `blob` is found by its digest in every way, and has just what `expected` has.
async fn holds(store: &dyn BlobStore, digest: &str, expected: &Tree) -> Verdict {
    let Some(found) = ok("get", store.get(digest).await)? else {
        return Err(Stop::fail(format!("there is no package {digest}, which was put")));
    };
    let found = tree(&found)?;
    ensure!(found == *expected, "the package {digest} has {found:?}, not {expected:?}");
    ensure!(
        ok("exists", store.exists(digest).await)?,
        "the package {digest} does not exist, and get gives it"
    );
    let listed = ok("list", store.list().await)?;
    ensure!(listed.iter().any(|known| known == digest), "the package {digest} is not in the list {listed:?}");
    Ok(())
}

async fn is_gone(store: &dyn BlobStore, digest: &str) -> Verdict {
    let found = ok("get", store.get(digest).await)?;
    ensure!(found.is_none(), "for {digest:?}, which is not there, get gives {found:?}");
    ensure!(!ok("exists", store.exists(digest).await)?, "{digest:?} exists, and get gives none");
    let listed = ok("list", store.list().await)?;
    ensure!(!listed.iter().any(|known| known == digest), "{digest:?} is listed, and get gives none");
    Ok(())
}

async fn absent(subject: &Subject) -> Verdict {
    let store = subject.store();
    let known = in_memory("run.sh", "#!/bin/sh");
    ensure!(ok("list", store.list().await)?.is_empty(), "an empty store lists packages");
    let nobody = format!("sha256:{}", "0".repeat(64));
    is_gone(&*store, &nobody).await?;
    let there = put(&*store, &known).await?.digest;
    ok("set_owner", store.set_owner("somebody").await)?;
    let shortened = &there[..there.len() - 1];
    for digest in
        [&*nobody, "", ".", "..", "/", "owner", "sha256:", "sha256:..", shortened, &format!("{there}/run.sh")]
    {
        is_gone(&*store, digest).await?;
        ok("delete of what is not there", store.delete(digest).await)?;
    }
    ensure!(
        ok("owner", store.owner().await)?.as_deref() == Some("somebody"),
        "the owner was deleted by what is no digest"
    );
    holds(&*store, &there, &tree(&known)?).await
}

async fn bytes_kept(subject: &Subject) -> Verdict {
    let store = subject.store();
    for (name, content) in [("run.sh", "#!/bin/sh"), ("empty", ""), ("grüße.txt", "x\0y")] {
        let source = in_memory(name, content);
        let blob = put(&*store, &source).await?;
        ensure!(tree(&blob.source)? == tree(&source)?, "put says that {name} is at {:?}", blob.source);
        holds(&*store, &blob.digest, &tree(&source)?).await?;
    }
    Ok(())
}

/// A directory with all that a package may have.
fn package(root: &Path) -> Verdict<Source> {
    write(&root.join("bin/run"), "#!/bin/sh")?;
    write(&root.join("data/deep/er/a.txt"), "a")?;
    write(&root.join("data/empty"), "")?;
    io("a directory", fs::create_dir(root.join("nothing")))?;
    #[cfg(unix)]
    {
        set_mode(&root.join("bin/run"), 0o755)?;
        io("a link", std::os::unix::fs::symlink("../data/deep", root.join("bin/link")))?;
    }
    Ok(Source::Path(root.to_owned()))
}

async fn tree_kept(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let source = package(&dir.path().join("app"))?;
    let blob = put(&*store, &source).await?;
    let Source::Path(copy) = &blob.source else {
        return Err(Stop::fail(format!("a directory is said to be at {:?}", blob.source)));
    };
    ensure!(!copy.starts_with(dir.path()), "the copy is the original: {}", copy.display());
    ensure!(tree(&blob.source)? == tree(&source)?, "put says where something else is");
    holds(&*store, &blob.digest, &tree(&source)?).await
}

async fn digest_form(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    for source in [in_memory("a", "a"), package(&dir.path().join("app"))?] {
        let digest = put(&*store, &source).await?.digest;
        let digits = digest.strip_prefix("sha256:").unwrap_or_default();
        let right =
            digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        ensure!(right, "the digest is {digest:?}");
    }
    Ok(())
}

async fn same_content(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let (here, there) = (dir.path().join("here/app"), dir.path().join("elsewhere/further/app"));
    let one = put(&*store, &package(&here)?).await?.digest;
    let two = put(&*store, &package(&there)?).await?.digest;
    ensure!(one == two, "from two places, the same directory is {one} and {two}");
    let file = dir.path().join("run.sh");
    write(&file, "#!/bin/sh")?;
    let one = put(&*store, &Source::Path(file)).await?.digest;
    let two = put(&*store, &in_memory("run.sh", "#!/bin/sh")).await?.digest;
    ensure!(one == two, "as a file it is {one}, as bytes of the same name {two}");
    Ok(())
}

async fn other_content(subject: &Subject) -> Verdict {
    type Change = fn(&Path) -> Verdict;
    let store = subject.store();
    let dir = scratch()?;
    let mut seen: BTreeMap<String, &str> = BTreeMap::new();
    let changes: [(&str, Change); 5] = [
        ("the package as it is", |_| Ok(())),
        ("another content", |root| write(&root.join("data/deep/er/a.txt"), "b")),
        ("another name", |root| io("a name", fs::rename(root.join("data/empty"), root.join("data/full")))),
        ("one file more", |root| write(&root.join("data/more"), "")),
        #[cfg(unix)]
        ("another executable bit", |root| set_mode(&root.join("bin/run"), 0o644)),
        #[cfg(not(unix))]
        ("one directory more", |root| write(&root.join("other/more"), "")),
    ];
    for (at, (what, change)) in changes.into_iter().enumerate() {
        let root = dir.path().join(at.to_string()).join("app");
        let source = package(&root)?;
        change(&root)?;
        let digest = put(&*store, &source).await?.digest;
        holds(&*store, &digest, &tree(&source)?).await?;
        if let Some(same) = seen.insert(digest.clone(), what) {
            return Err(Stop::fail(format!("{same} and {what} have one digest, {digest}")));
        }
    }
    Ok(())
}

async fn copied(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let root = dir.path().join("app");
    let source = package(&root)?;
    let before = tree(&source)?;
    let old = put(&*store, &source).await?.digest;
    // In its place, as an editor that keeps the file does.
    write(&root.join("data/deep/er/a.txt"), "changed")?;
    holds(&*store, &old, &before).await?;
    let new = put(&*store, &source).await?.digest;
    ensure!(new != old, "what was changed has the digest from before");
    holds(&*store, &new, &tree(&source)?).await?;
    io("the original", fs::remove_dir_all(&root))?;
    holds(&*store, &old, &before).await
}

/// What changes when a file is written again, also with the same content.
fn written(tree: &Path) -> Verdict<(PathBuf, std::time::SystemTime, u64)> {
    let metadata = io(tree.display(), fs::symlink_metadata(tree))?;
    #[cfg(unix)]
    let number = std::os::unix::fs::MetadataExt::ino(&metadata);
    #[cfg(not(unix))]
    let number = 0;
    Ok((tree.to_owned(), io("its time", metadata.modified())?, number))
}

async fn not_again(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let first = put(&*store, &package(&dir.path().join("one/app"))?).await?;
    let Source::Path(copy) = &first.source else {
        return Err(Stop::fail(format!("a directory is said to be at {:?}", first.source)));
    };
    let before = written(&copy.join("bin/run"))?;
    // So that a file that is written now has another time.
    tokio::time::sleep(Duration::from_millis(20)).await;
    let second = put(&*store, &package(&dir.path().join("two/app"))?).await?;
    let Source::Path(copy) = &second.source else {
        return Err(Stop::fail(format!("a directory is said to be at {:?}", second.source)));
    };
    let after = written(&copy.join("bin/run"))?;
    ensure!(before == after, "put again, it was written again: {before:?}, then {after:?}");
    let all = ok("list", store.list().await)?;
    ensure!(all == [first.digest], "put twice, the packages are {all:?}");
    Ok(())
}

#[cfg(unix)]
async fn harmless(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let root = dir.path().join("app");
    let source = package(&root)?;
    set_mode(&root.join("bin/run"), 0o6755)?;
    let blob = put(&*store, &source).await?;
    let Source::Path(copy) = &blob.source else {
        return Err(Stop::fail(format!("a directory is said to be at {:?}", blob.source)));
    };
    let kept = mode(&io("the copy", fs::metadata(copy.join("bin/run")))?) & 0o7777;
    ensure!(kept & 0o7000 == 0, "a file with the mode 6755 was kept with {kept:o}");
    ensure!(kept & 0o111 != 0, "a program was kept with the mode {kept:o}");
    Ok(())
}

#[cfg(not(unix))]
async fn harmless(_: &Subject) -> Verdict {
    Err(Stop::skip("files have no such bits here"))
}

async fn no_package(subject: &Subject) -> Verdict {
    const SECRET: &str = "of-the-host-alone";
    let store = subject.store();
    let dir = scratch()?;
    let secret = dir.path().join("host.txt");
    write(&secret, SECRET)?;
    let missing = dir.path().join("missing");
    let mut sources = vec![("a file that is missing", missing)];
    #[cfg(unix)]
    {
        use std::os::unix::fs::symlink;
        for (at, (what, to)) in [
            ("a link to a file of the host", secret.as_path()),
            ("a link out of it", Path::new("../host.txt")),
            ("a link far out of it", Path::new("bin/../../../host.txt")),
        ]
        .into_iter()
        .enumerate()
        {
            let root = dir.path().join(at.to_string());
            package(&root)?;
            io("a link", symlink(to, root.join("link")))?;
            sources.push((what, root));
        }
        sources.push(("a device", PathBuf::from("/dev/null")));
    }
    for (what, path) in sources {
        let Err(error) = store.put(&Source::Path(path)).await else {
            return Err(Stop::fail(format!("{what} was taken as a package")));
        };
        let said = error.chain();
        ensure!(error.kind == ErrorKind::InvalidSpec, "{what} is refused with {:?}: {said}", error.kind);
        let named = error.fields().is_some_and(|fields| fields.0.iter().any(|one| one.field == "source"));
        ensure!(named, "{what} is refused without the field source: {said}");
        ensure!(!said.contains(SECRET), "{what} is refused with content of a file: {said}");
        let left = ok("list", store.list().await)?;
        ensure!(left.is_empty(), "{what} was refused and left {left:?}");
    }
    Ok(())
}

async fn other_sources(subject: &Subject) -> Verdict {
    let store = subject.store();
    for source in [Source::Function("hello".to_owned()), Source::Image("example.com/hello:1".to_owned())] {
        refused(&format!("put of {source:?}"), ErrorKind::Unsupported, store.put(&source).await)?;
    }
    let left = ok("list", store.list().await)?;
    ensure!(left.is_empty(), "what is unsupported left {left:?}");
    Ok(())
}

async fn listed(subject: &Subject) -> Verdict {
    let store = subject.store();
    let mut put_so_far = Vec::new();
    for at in [0, 1, 2, 3, 1, 4, 0] {
        let digest = put(&*store, &in_memory("file", &at.to_string())).await?.digest;
        if !put_so_far.contains(&digest) {
            put_so_far.push(digest);
        }
        let (mut all, mut expected) = (ok("list", store.list().await)?, put_so_far.clone());
        all.sort();
        expected.sort();
        ensure!(all == expected, "the packages are {all:?}, not {expected:?}");
    }
    Ok(())
}

async fn deleted(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let source = package(&dir.path().join("app"))?;
    let other = in_memory("other", "x");
    let digest = put(&*store, &source).await?.digest;
    let stays = put(&*store, &other).await?.digest;
    for _ in 0..2 {
        ok("delete", store.delete(&digest).await)?;
        is_gone(&*store, &digest).await?;
    }
    holds(&*store, &stays, &tree(&other)?).await?;
    let again = put(&*store, &source).await?.digest;
    ensure!(again == digest, "put again after a deletion, {digest} is {again}");
    holds(&*store, &digest, &tree(&source)?).await
}

async fn owner(subject: &Subject) -> Verdict {
    let store = subject.store();
    let nobody = ok("owner", store.owner().await)?;
    ensure!(nobody.is_none(), "told nobody, its owner is {nobody:?}");
    for name in ["first", "2f0c9c52-7a49-4d25-a11c-4f4f46a9e6b1", "grüße", "first"] {
        ok("set_owner", store.set_owner(name).await)?;
        let said = ok("owner", store.owner().await)?;
        ensure!(said.as_deref() == Some(name), "told {name:?}, its owner is {said:?}");
    }
    let all = ok("list", store.list().await)?;
    ensure!(all.is_empty(), "with an owner, it has the packages {all:?}");
    Ok(())
}

async fn tidied(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    ok("tidy of an empty store", store.tidy().await)?;
    let source = package(&dir.path().join("app"))?;
    let digest = put(&*store, &source).await?.digest;
    ok("set_owner", store.set_owner("somebody").await)?;
    ok("tidy", store.tidy().await)?;
    holds(&*store, &digest, &tree(&source)?).await?;
    let said = ok("owner", store.owner().await)?;
    ensure!(said.as_deref() == Some("somebody"), "after it was tidied, its owner is {said:?}");
    Ok(())
}

async fn at_once(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let source = package(&dir.path().join("app"))?;
    let whole = tree(&source)?;
    let digest = put(&*store, &source).await?.digest;
    for _ in 0..3 {
        ok("delete", store.delete(&digest).await)?;
        // Whoever's put returned finds all of it, also while others put the same.
        let puts = (0..4).map(async |_| {
            let given = put(&*store, &source).await?.digest;
            ensure!(given == digest, "{digest} was put and came back as {given}");
            holds(&*store, &digest, &whole).await
        });
        for found in join_all(puts).await {
            found?;
        }
    }
    // Then deletions among them: whatever was last, it is all there or gone.
    let work = (0..6).map(async |at| {
        for _ in 0..5 {
            if at == 0 {
                ok("delete", store.delete(&digest).await)?;
            } else {
                put(&*store, &source).await?;
            }
        }
        Verdict::Ok(())
    });
    for done in join_all(work).await {
        done?;
    }
    match ok("get", store.get(&digest).await)? {
        None => is_gone(&*store, &digest).await?,
        Some(_) => holds(&*store, &digest, &whole).await?,
    }
    put(&*store, &source).await?;
    holds(&*store, &digest, &whole).await
}

/// Fails unless the package is wholly there and the only one, or gone.
async fn all_or_nothing(store: &dyn BlobStore, digest: &str, whole: &Tree) -> Verdict {
    match ok("list", store.list().await)?.as_slice() {
        [] => is_gone(store, digest).await,
        [one] if one == digest => holds(store, digest, whole).await,
        other => Err(Stop::fail(format!("dropped puts of one package left {other:?}"))),
    }
}

async fn dropped(subject: &Subject) -> Verdict {
    let store = subject.store();
    let dir = scratch()?;
    let source = package(&dir.path().join("app"))?;
    let whole = tree(&source)?;
    let digest = put(&*store, &source).await?.digest;
    ok("delete", store.delete(&digest).await)?;
    for round in 0..12_u32 {
        let ended = if round % 2 == 1 {
            drop_after_polls(round / 2 % 3, store.delete(&digest)).await
        } else {
            drop_after_polls(round / 2 % 3, async { store.put(&source).await.map(drop) }).await
        };
        if let Some(ended) = ended {
            ok("put or delete", ended)?;
        }
        // What goes on without its future is done soon, or not at all.
        let end = Instant::now() + Duration::from_secs(2);
        loop {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match all_or_nothing(&*store, &digest, &whole).await {
                Err(_) if Instant::now() < end => {}
                found => break found?,
            }
        }
    }
    // Whatever they left, all is well with the next.
    ok("tidy", store.tidy().await)?;
    put(&*store, &source).await?;
    holds(&*store, &digest, &whole).await
}

async fn durable(subject: &Subject) -> Verdict {
    let dir = scratch()?;
    let source = package(&dir.path().join("app"))?;
    let whole = tree(&source)?;
    let (kept, gone) = {
        let store = subject.store();
        let kept = put(&*store, &source).await?.digest;
        let gone = put(&*store, &in_memory("gone", "x")).await?.digest;
        ok("delete", store.delete(&gone).await)?;
        ok("set_owner", store.set_owner("somebody").await)?;
        (kept, gone)
    };
    let opened = subject.0.opened_again("the place");
    let store = within(Duration::from_secs(30), "opening again", opened).await??;
    ok("tidy", store.tidy().await)?;
    holds(&*store, &kept, &whole).await?;
    is_gone(&*store, &gone).await?;
    let said = ok("owner", store.owner().await)?;
    ensure!(said.as_deref() == Some("somebody"), "opened again, its owner is {said:?}");
    Ok(())
}
