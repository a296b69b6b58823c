//! With real directories, and what the kernel says of them.

#![allow(clippy::print_stdout, reason = "what was counted is said")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{ErrorKind, Event, EventSink as _, MemoryStore, Store, TriggerSource, TriggerSpec};
use sas_files::{Files, FilesBelow};
use sas_testkit::{
    broker::{Broker, Running, events_of_a_test, kill_at_random, until},
    fake::{FakeEventSink, FakeStore},
};

struct Kit {
    dir: tempfile::TempDir,
    store: Arc<dyn Store>,
    sink: Arc<FakeEventSink>,
}

impl Kit {
    fn new() -> Self {
        let store = Arc::new(MemoryStore::default());
        Self { dir: tempfile::tempdir().unwrap(), store, sink: FakeEventSink::new(4) }
    }

    fn spec(&self) -> TriggerSpec {
        TriggerSpec::new("shop/uploads", "files", "shop/resize")
            .with_option("directory", self.dir.path().to_str().unwrap())
            .with_option("settle", "50ms")
            // So long that what comes was told by the kernel.
            .with_option("rescan", "1h")
    }

    fn run_as(&self, spec: &TriggerSpec) -> Running {
        let source: Arc<Files> = Arc::new(FilesBelow::new([self.dir.path()]).source(spec).unwrap());
        Running::with(source, &self.sink, Arc::clone(&self.store), None)
    }

    /// Runs it, and waits until it has looked once.
    async fn run(&self) -> Running {
        let source: Arc<Files> = Arc::new(FilesBelow::new([self.dir.path()]).source(&self.spec()).unwrap());
        let running = Running::with(Arc::clone(&source) as _, &self.sink, Arc::clone(&self.store), None);
        until("it has looked once", async || source.backlog().await.unwrap().is_some()).await;
        running
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What was delivered: kinds and subjects, without order.
    fn seen(&self) -> BTreeSet<(String, String)> {
        let of = |event: &Event| (event.kind().to_owned(), event.subject().unwrap().to_owned());
        self.sink.delivered().iter().map(of).collect()
    }

    async fn sees(&self, change: &str, path: &str) {
        let wanted = (format!("dev.sas.files.{change}"), path.to_owned());
        until(&format!("{change} {path}"), async || self.seen().contains(&wanted)).await;
    }
}

#[tokio::test]
async fn files_that_are_created_changed_and_removed_are_events_and_what_was_there_is_none() {
    let kit = Kit::new();
    kit.write("old.txt", "old");
    let running = kit.run().await;
    let path = kit.write("in/new.txt", "12345");
    kit.sees("created", "in/new.txt").await;
    kit.write("in/new.txt", "1234567");
    kit.sees("changed", "in/new.txt").await;
    std::fs::remove_file(path).unwrap();
    kit.sees("removed", "in/new.txt").await;
    kit.write("old.txt", "newer");
    kit.sees("changed", "old.txt").await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.delivered().len(), 4, "{:?}", kit.seen());
    let created = &kit.sink.delivered()[0];
    let data: serde_json::Value = serde_json::from_slice(created.data()).unwrap();
    assert_eq!((data["path"].as_str(), data["bytes"].as_u64()), (Some("in/new.txt"), Some(5)));
    assert_eq!(created.source(), format!("/files{}", kit.dir.path().display()));
    let ids: BTreeSet<String> = kit.sink.delivered().iter().map(|event| event.id().to_owned()).collect();
    assert_eq!(ids.len(), 4, "each has an id of its own");
}

#[tokio::test]
async fn a_restart_finds_what_happened_meanwhile_and_a_crash_loses_nothing() {
    let kit = Kit::new();
    let running = kit.run().await;
    for name in ["kept.txt", "changed.txt", "removed.txt"] {
        kit.write(name, name);
        kit.sees("created", name).await;
    }
    running.crash().await;
    kit.write("changed.txt", "another text");
    std::fs::remove_file(kit.dir.path().join("removed.txt")).unwrap();
    kit.write("meanwhile.txt", "!");
    // What failed is not taken as done, and comes again in the next run.
    kit.sink.fail_next(ErrorKind::Unavailable);
    kit.run_as(&kit.spec()).ended().await.expect_err("a delivery failed");
    let running = kit.run().await;
    kit.sees("changed", "changed.txt").await;
    kit.sees("removed", "removed.txt").await;
    kit.sees("created", "meanwhile.txt").await;
    running.stop().await.unwrap();
    let before = kit.sink.offered();
    let running = kit.run().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.offered(), before, "what was delivered does not come again");
}

#[tokio::test]
async fn a_file_that_is_written_to_is_one_event_when_it_is_left_alone() {
    let kit = Kit::new();
    let spec = kit.spec().with_option("settle", "700ms").with_option("start", "earliest");
    kit.write("there.txt", "it begins with what is there");
    let running = kit.run_as(&spec);
    kit.sees("created", "there.txt").await;
    for length in 1..8 {
        kit.write("growing.txt", &"x".repeat(length));
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(kit.sink.delivered().len(), 1, "it is still being written");
    kit.sees("created", "growing.txt").await;
    running.stop().await.unwrap();
    let last = kit.sink.delivered().pop().unwrap();
    let data: serde_json::Value = serde_json::from_slice(last.data()).unwrap();
    assert_eq!((kit.sink.delivered().len(), data["bytes"].as_u64()), (2, Some(7)));
}

#[tokio::test]
async fn only_what_was_asked_for_and_no_links() {
    let kit = Kit::new();
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::write(elsewhere.path().join("secret.txt"), "?").unwrap();
    let spec = kit.spec().with_option("events", "removed");
    let running = kit.run_as(&spec);
    until("it has begun", async || !kit.store.list("trigger/", None, 10).await.unwrap().is_empty()).await;
    std::os::unix::fs::symlink(elsewhere.path(), kit.dir.path().join("link")).unwrap();
    kit.write("a.txt", "a");
    until("it is kept", async || {
        kit.store.list("trigger/testkit/source/file/", None, 10).await.unwrap().len() == 1
    })
    .await;
    std::fs::remove_file(kit.dir.path().join("a.txt")).unwrap();
    kit.sees("removed", "a.txt").await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.delivered().len(), 1, "{:?}", kit.seen());
}

#[tokio::test]
async fn two_thousand_files_at_once_are_all_delivered() {
    let kit = Kit::new();
    let running = kit.run().await;
    for number in 0..2000 {
        kit.write(&format!("{}/{number}.txt", number % 10), "x");
    }
    until("all come", async || kit.seen().len() == 2000).await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.delivered().len(), 2000, "none twice");
}

#[tokio::test]
async fn the_backlog_is_what_the_directory_holds_also_while_the_target_is_down() {
    let kit = Kit::new();
    kit.write("old.txt", "was there before");
    let spec = kit.spec().with_option("events", "created,removed");
    let source = Arc::new(FilesBelow::new([kit.dir.path()]).source(&spec).unwrap());
    assert_eq!(source.backlog().await.unwrap(), None, "it has not looked");
    let mut slots = Vec::new();
    for _ in 0..kit.sink.free_slots() {
        slots.push(kit.sink.ready().await.unwrap());
    }
    let running = Running::with(Arc::clone(&source) as _, &kit.sink, Arc::clone(&kit.store), None);
    let holds = async |count: u64| {
        until(&format!("the backlog is {count}"), async || source.backlog().await.unwrap() == Some(count))
            .await;
    };
    holds(0).await;
    // More than the target takes at once; a change is none that was asked for.
    for number in 0..20 {
        kit.write(&format!("{number}.txt"), "x");
    }
    kit.write("old.txt", "changed");
    holds(20).await;
    // And more, while none of those is delivered.
    for number in 20..50 {
        kit.write(&format!("in/{number}.txt"), "x");
    }
    holds(50).await;
    std::fs::remove_file(kit.dir.path().join("old.txt")).unwrap();
    holds(51).await;
    drop(slots);
    holds(0).await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.delivered().len(), 51, "none twice");
}

#[tokio::test]
async fn a_directory_that_is_away_is_an_error_and_not_one_in_which_all_was_removed() {
    let kit = Kit::new();
    let (watched, elsewhere) = (kit.dir.path().join("in"), kit.dir.path().join("elsewhere"));
    kit.write("in/a/1.txt", "1");
    let spec =
        kit.spec().with_option("directory", watched.to_str().unwrap()).with_option("start", "earliest");
    let running = kit.run_as(&spec);
    kit.sees("created", "a/1.txt").await;
    // As when a volume is no longer mounted: an empty directory is in its place.
    std::fs::rename(&watched, &elsewhere).unwrap();
    std::fs::create_dir(&watched).unwrap();
    // What the kernel watches is the other one: it tells that at least.
    kit.write("elsewhere/a/2.txt", "2");
    let error = running.ended().await.expect_err("another took its place").chain();
    assert!(error.contains("another directory took its place"), "{error}");
    std::fs::remove_dir(&watched).unwrap();
    std::fs::rename(&elsewhere, &watched).unwrap();
    let running = kit.run_as(&spec);
    kit.sees("created", "a/2.txt").await;
    running.stop().await.unwrap();
    assert_eq!(kit.sink.delivered().len(), 2, "{:?}", kit.seen());
}

/// A directory that is full. At a "kill" it is moved away under the source, and the store takes nothing.
struct Full {
    kit: Kit,
    store: Arc<FakeStore>,
    spec: TriggerSpec,
    watched: PathBuf,
    away: PathBuf,
    files: u64,
}

impl Full {
    fn with(files: usize) -> Self {
        let kit = Kit::new();
        let (watched, away) = (kit.dir.path().join("in"), kit.dir.path().join("away"));
        for number in 0..files {
            kit.write(&format!("in/{}/{number}.txt", number % 100), "x");
        }
        let directory = watched.to_str().unwrap();
        let spec = kit.spec().with_option("directory", directory).with_option("start", "earliest");
        Self { kit, store: Arc::default(), spec, watched, away, files: files as u64 }
    }
}

#[async_trait]
impl Broker for Full {
    fn source(&self) -> Arc<dyn TriggerSource> {
        Arc::new(FilesBelow::new([self.kit.dir.path()]).source(&self.spec).unwrap())
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    fn delivery_time(&self) -> Duration {
        Duration::from_millis(2)
    }

    fn kill(&mut self) {
        self.store.break_after(0);
        std::fs::rename(&self.watched, &self.away).unwrap();
    }

    async fn restart(&mut self) {
        tokio::time::sleep(Duration::from_millis(150)).await;
        std::fs::rename(&self.away, &self.watched).unwrap();
        self.store.mend();
    }

    /// Files of which the store has no record.
    async fn unacknowledged(&mut self) -> Option<u64> {
        let (mut records, mut after) = (0, None::<String>);
        loop {
            let page = self.store.list("trigger/testkit/source/file/", after.as_deref(), 1000).await.unwrap();
            let Some(last) = page.last() else { return Some(self.files - records) };
            records += page.len() as u64;
            after = Some(last.key.clone());
        }
    }
}

/// The host crashes at random, and the directory is moved away and the store fails while files are delivered: each comes, as what
/// it is. 2,000 files; 100,000 with `SAS_LONG=1`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_loses_nothing() {
    let count = events_of_a_test(2000);
    let mut directory = Full::with(count);
    let what = |event: &Event| format!("{} {}", event.kind(), event.subject().unwrap());
    let kills = kill_at_random(&mut directory, count, (3, 12), 0x5a5, what).await;
    println!("{kills}");
}

#[test]
fn options_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("in")).unwrap();
    std::os::unix::fs::symlink(other.path(), dir.path().join("out")).unwrap();
    let below = FilesBelow::new([dir.path()]);
    let spec = |directory: &Path| {
        TriggerSpec::new("t/t", "files", "t/x").with_option("directory", directory.to_str().unwrap())
    };
    below.source(&spec(&dir.path().join("in"))).unwrap();
    for directory in [
        Path::new("in"),
        other.path(),
        &dir.path().join("out"),
        &dir.path().join("in/..").join(".."),
        &dir.path().join("none"),
    ] {
        let errors = below.source(&spec(directory)).unwrap_err().to_string();
        assert!(errors.contains("options.directory"), "{}: {errors}", directory.display());
    }
    for (option, value) in [
        ("events", "moved"),
        ("settle", "soon"),
        ("rescan", "10ms"),
        ("start", "3"),
        ("most-files", "0"),
        ("colour", "red"),
    ] {
        let errors = below.source(&spec(dir.path()).with_option(option, value)).unwrap_err().to_string();
        assert!(errors.contains(&format!("options.{option}")), "{option}: {errors}");
    }
}
