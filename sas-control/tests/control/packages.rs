//! Copies of packages: what is in them, whose they are, and that none is removed that somebody needs.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sas_control::{PackageDir, PackageRoots, SharedPackages};
use sas_core::{
    BlobStore as _, ErrorKind, Guard, HostStatus, Hosts, MemoryStore, ObjectStore, Place, Principal, Result,
    RevisionSpec, Source, Store, Version,
};
use sas_knative::manifest::ServiceManifest;

use crate::support::World;

async fn world(store: &Arc<dyn Store>, packages: &Path) -> World {
    World::with(Arc::clone(store), |config| {
        config.packages = Some(Arc::new(PackageDir::new(packages)));
    })
    .await
}

/// Storage that hosts share, in memory.
#[derive(Debug, Default)]
struct Objects(std::sync::Mutex<std::collections::BTreeMap<String, Vec<u8>>>);

#[async_trait::async_trait]
impl ObjectStore for Objects {
    async fn put(&self, name: &str, file: &Path) -> Result<()> {
        let bytes = std::fs::read(file).expect("readable");
        self.0.lock().expect("held by nobody").insert(name.to_owned(), bytes);
        Ok(())
    }

    async fn get(&self, name: &str, file: &Path) -> Result<bool> {
        let found = self.0.lock().expect("held by nobody").get(name).cloned();
        Ok(found.map(|bytes| std::fs::write(file, bytes).expect("writable")).is_some())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.0.lock().expect("held by nobody").remove(name);
        Ok(())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let objects = self.0.lock().expect("held by nobody");
        Ok(objects.keys().filter(|name| name.starts_with(prefix)).cloned().collect())
    }
}

/// One of several hosts, that acts for nothing yet.
#[derive(Debug)]
struct Starting;

#[async_trait::async_trait]
impl Hosts for Starting {
    fn name(&self) -> &str {
        "starting"
    }

    fn place(&self, _path: &str) -> Place {
        Place::Undecided
    }

    fn seen(&self) -> Version {
        Version(0)
    }

    fn list(&self) -> Vec<HostStatus> {
        Vec::new()
    }

    fn round(&self) -> u64 {
        0
    }

    async fn changed(&self, _round: u64) -> u64 {
        std::future::pending().await
    }

    fn refused(&self, _guard: &Guard) {}
}

/// A directory in memory, where there is one: a thousand packages are written out else, with a wait for the disk each.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir()).expect("a directory")
}

fn copies(packages: &Path) -> usize {
    let entries = std::fs::read_dir(packages).expect("the packages");
    entries.filter(|entry| entry.as_ref().expect("an entry").path().is_dir()).count()
}

fn manifest(name: &str, package: &Path) -> ServiceManifest {
    ServiceManifest::new("default", name, RevisionSpec::new("process", Source::Path(package.to_owned())))
}

#[cfg(unix)]
#[tokio::test]
async fn a_copy_has_no_bits_that_harm_and_nobody_else_can_look_into_it() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let (app, packages) = (dir.path().join("app"), dir.path().join("packages"));
    std::fs::create_dir_all(app.join("bin")).expect("made");
    std::fs::create_dir_all(&packages).expect("made");
    let set = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set");
    };
    let mode = |path: PathBuf| std::fs::metadata(path).expect("there").permissions().mode() & 0o7777;
    for (name, mode) in [("bin/run", 0o6777), ("data", 0o666)] {
        std::fs::write(app.join(name), "x").expect("written");
        set(&app.join(name), mode);
    }
    set(&app.join("bin"), 0o3777);
    set(&packages, 0o777);
    let store = PackageDir::new(&packages);
    let blob = store.put(&Source::Path(app.clone())).await.expect("copied");
    let Source::Path(copy) = &blob.source else { panic!("{blob:?}") };
    let modes =
        [mode(copy.join("bin/run")), mode(copy.join("data")), mode(copy.join("bin")), mode(packages.clone())];
    assert_eq!(modes, [0o755, 0o644, 0o755, 0o700]);
    assert!(
        store.get(&blob.digest).await.expect("asked").is_some() && store.exists(&blob.digest).await.unwrap()
    );

    let made = std::process::Command::new("mkfifo").arg(app.join("pipe")).status();
    assert!(made.expect("mkfifo runs").success());
    let error = store.put(&Source::Path(app.clone())).await.expect_err("a pipe");
    assert!(error.kind == ErrorKind::InvalidSpec && error.message.contains("pipe"), "{error}");
    assert_eq!(copies(&packages), 1, "what is refused leaves nothing");

    store.delete(&blob.digest).await.expect("removed");
    store.delete(&blob.digest).await.expect("fine when there is none");
    assert!(store.get(&blob.digest).await.expect("asked").is_none() && copies(&packages) == 0);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_removed_while_a_record_cannot_be_read() {
    let packages = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let first = world(&store, packages.path()).await;
    first.deploy("one").await.expect("deployed");
    let other = first.dir_file("other", "two");
    first.control.deploy(manifest("other", &other)).await.expect("deployed");
    assert_eq!(copies(packages.path()), 2);
    drop(first);

    // Another version wrote the record, and this one cannot read it.
    let key = "service/default/hello";
    let entry = store.get(key).await.expect("read").expect("there");
    let newer = store.put(key, Some(entry.version), r#"{"format":999}"#.into()).await.expect("written");
    let second = world(&store, packages.path()).await;
    assert_eq!(copies(packages.path()), 2, "the code of the record that can't be read is there");
    let failed = second.control.recovery().failed;
    assert!(failed.iter().any(|(what, _)| what == "Service default/hello"), "{failed:?}");
    // What is deleted meanwhile may be what the other record needs.
    second.control.delete("default", "other").await.expect("deleted");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(copies(packages.path()), 2);
    drop(second);

    // Back again: it runs, and now it is certain what nobody needs.
    store.put(key, Some(newer), entry.value).await.expect("written");
    let third = world(&store, packages.path()).await;
    assert!(third.control.recovery().failed.is_empty(), "{:?}", third.control.recovery());
    assert_eq!(copies(packages.path()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_database_beside_old_packages_removes_none_of_them() {
    let packages = tempfile::tempdir().expect("a directory");
    let old: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let first = world(&old, packages.path()).await;
    first.deploy("one").await.expect("deployed");
    drop(first);
    let new: Arc<dyn Store> = Arc::new(MemoryStore::default());
    for _ in 0..2 {
        let second = world(&new, packages.path()).await;
        assert!(copies(packages.path()) >= 1, "the database was lost, and the code with it");
        let failed = second.control.recovery().failed;
        assert!(failed.iter().any(|(what, error)| what == "Packages" && error.kind == ErrorKind::Conflict));
        // It serves all the same, and what it deploys and deletes does not matter to what is another's.
        second.deploy("two").await.expect("deployed");
    }
    let third = world(&old, packages.path()).await;
    assert!(third.control.recovery().failed.is_empty(), "the old database finds its code");
}

#[tokio::test]
async fn packages_of_a_directory_go_to_shared_storage_that_is_new_and_none_is_lost() {
    let packages = tempfile::tempdir().expect("a directory");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let first = world(&store, packages.path()).await;
    first.deploy("one").await.expect("deployed");
    drop(first);
    assert_eq!(copies(packages.path()), 1);
    let unnamed = tempfile::tempdir().expect("a directory");
    std::fs::write(unnamed.path().join("file"), "named by no record").expect("written");
    let objects = Arc::new(Objects::default());
    for _ in 0..2 {
        let shared = SharedPackages::new(Arc::clone(&objects), PackageDir::new(packages.path()));
        let second = World::with(Arc::clone(&store), |config| config.packages = Some(Arc::new(shared))).await;
        assert!(second.control.recovery().failed.is_empty(), "{:?}", second.control.recovery());
        assert_eq!(copies(packages.path()), 1, "the copy that a record names stays");
        assert_eq!(objects.list("packages/").await.expect("listed").len(), 1, "other hosts find it");
    }
    // One of several hosts gives what records name, and removes nothing: another one may be about to name it.
    let several = Arc::new(Objects::default());
    let shared = SharedPackages::new(Arc::clone(&several), PackageDir::new(packages.path()));
    shared.put(&Source::Path(unnamed.path().to_owned())).await.expect("put");
    let fourth = World::with(Arc::clone(&store), |config| {
        config.packages = Some(Arc::new(shared));
        config.hosts = Some(Arc::new(Starting));
    })
    .await;
    assert!(fourth.control.recovery().failed.is_empty(), "{:?}", fourth.control.recovery());
    assert_eq!(several.list("packages/").await.expect("listed").len(), 2, "other hosts find it");
    drop(fourth);
    // Storage of somebody else: nothing is removed there, nor here.
    let foreign = Arc::new(Objects::default());
    foreign.0.lock().expect("held by nobody").insert("owner".to_owned(), b"another".to_vec());
    let shared = SharedPackages::new(foreign, PackageDir::new(packages.path()));
    let third = World::with(store, |config| config.packages = Some(Arc::new(shared))).await;
    assert!(third.control.recovery().failed.iter().any(|(what, _)| what == "Packages"));
    assert_eq!(copies(packages.path()), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_deleted_while_another_of_the_same_content_is_deployed() {
    let rounds = 1_000;
    let packages = in_memory();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let world = world(&store, packages.path()).await;
    let package = world.dir_file("package", "the same");
    let control = &world.control;
    control.deploy(manifest("s0", &package)).await.expect("deployed");
    let (mut refused, mut lost) = (0, 0);
    for round in 0..rounds {
        let (old, new) = (format!("s{}", round % 2), format!("s{}", (round + 1) % 2));
        let (deleted, deployed) =
            tokio::join!(control.delete("default", &old), control.deploy(manifest(&new, &package)));
        deleted.expect("deleted");
        match deployed {
            Ok(outcome) => {
                let revision = outcome.record.revision(&outcome.revision).expect("its revision");
                let Source::Path(path) = &revision.spec.source else { panic!("{revision:?}") };
                lost += usize::from(!path.exists());
            }
            Err(error) => {
                refused += 1;
                println!("round {round}: {error}");
                control.deploy(manifest(&new, &package)).await.expect("deployed at last");
            }
        }
    }
    assert_eq!((refused, lost), (0, 0), "of {rounds} rounds: wrongly refused, acknowledged without its code");
    control.delete("default", &format!("s{}", rounds % 2)).await.expect("deleted");
    for _ in 0..100 {
        if copies(packages.path()) == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("what nobody needs is still there");
}

#[tokio::test(start_paused = true)]
async fn a_manifest_that_comes_over_the_network_takes_packages_from_allowed_directories_only() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let packages = tempfile::tempdir().expect("a directory");
    let world = world(&store, packages.path()).await;
    let allowed = tempfile::tempdir().expect("a directory");
    let inside = allowed.path().join("app.sh");
    std::fs::write(&inside, "#!/bin/sh").expect("written");
    let outside = world.dir_file("secret", "of the host");
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, allowed.path().join("link")).expect("linked");
    let who = Principal::new("somebody");
    let apply = async |path: &Path, roots: PackageRoots| {
        let text = format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: net, annotations: {{sas.dev/package: \
             \"{}\"}}}}\nspec: {{template: {{spec: {{}}}}}}\n",
            path.display()
        );
        world.control.apply_for(&who, &text, &roots, &mut Vec::new()).await
    };
    let roots = || PackageRoots::none().with(allowed.path());
    let missing = outside.with_file_name("missing");
    let mut said = Vec::new();
    for (path, roots) in [
        (inside.clone(), PackageRoots::none()),
        (outside.clone(), roots()),
        (allowed.path().join("link"), roots()),
        (allowed.path().join("../../etc/passwd"), roots()),
        (missing.clone(), roots()),
    ] {
        let error = apply(&path, roots).await.expect_err("it is elsewhere");
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        assert!(error.message.contains("package root"), "{error}");
        said.push(error.message.replace(&path.display().to_string(), "PATH"));
    }
    assert_eq!(said[1], said[4], "nobody learns which files there are");
    apply(&inside, roots()).await.expect("allowed");
    apply(&outside, PackageRoots::any()).await.expect("the operator may");
}
