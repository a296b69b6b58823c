//! The source: compares a directory with what was delivered of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use sas_core::{
    Commit, Deliveries, Error, ErrorKind, Event, Result, SpecErrors, Store, Timestamp, TriggerCx,
    TriggerOptions, TriggerSource, TriggerSpec,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use crate::scan::{Root, Stamp, scan};

/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);
/// How long changes that come together are waited for.
const CROWD: Duration = Duration::from_millis(100);
/// Records that are read from the store at once.
const PAGE: usize = 500;

/// The directories that triggers may watch, and the maker of their sources.
#[derive(Clone, Debug)]
pub struct FilesBelow {
    roots: Vec<PathBuf>,
}

/// What may happen to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Created,
    Changed,
    Removed,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Removed => "removed",
        }
    }
}

impl FilesBelow {
    /// Sources that watch these directories, or ones below them, only. Whoever declares a trigger learns of no other file
    /// by it.
    pub fn new(roots: impl IntoIterator<Item = impl Into<PathBuf>>) -> Self {
        Self { roots: roots.into_iter().map(Into::into).collect() }
    }

    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<Files, SpecErrors> {
        const DAY: Duration = Duration::from_secs(86_400);
        let mut options = TriggerOptions::new(&spec.options, "options.");
        let given = options.required("directory");
        let directory = match self.allowed(Path::new(given)) {
            _ if given.is_empty() => PathBuf::new(),
            Ok(directory) => directory,
            Err(problem) => {
                options.wrong("directory", given, problem);
                PathBuf::new()
            }
        };
        let mut changes = BTreeSet::new();
        for word in options.list("events") {
            match [Change::Created, Change::Changed, Change::Removed]
                .into_iter()
                .find(|change| change.name() == word)
            {
                Some(change) => {
                    changes.insert(change);
                }
                None => options.wrong("events", word, "must be a list of created, changed and removed"),
            }
        }
        if changes.is_empty() {
            changes = BTreeSet::from([Change::Created, Change::Changed, Change::Removed]);
        }
        let start_at_earliest = options.word("start", &[("latest", false), ("earliest", true)], false);
        let settle = options.span("settle", DAY, Duration::from_secs(1));
        let rescan = options.span("rescan", DAY, Duration::from_secs(300));
        if rescan < Duration::from_secs(1) {
            options.wrong("rescan", &format!("{rescan:?}"), "must be at least 1s");
        }
        let most =
            usize::try_from(options.number("most-files", 1..=1_000_000, 100_000)).unwrap_or(usize::MAX);
        options.finish()?;
        Ok(Files {
            source: format!("/files{}", sas_cloudevents::uri_path(given)),
            directory,
            changes,
            start_at_earliest,
            settle,
            rescan,
            most,
            progress: Arc::new(Progress { known: Mutex::default(), waiting: AtomicU64::new(UNKNOWN) }),
        })
    }

    /// The directory itself, with all links on the way to it resolved, so that a link leads to no other.
    fn allowed(&self, directory: &Path) -> Result<PathBuf, String> {
        if !directory.is_absolute() {
            return Err("must be an absolute path".to_owned());
        }
        let real =
            directory.canonicalize().map_err(|error| format!("must be a directory that exists: {error}"))?;
        if !real.is_dir() {
            return Err("must be a directory".to_owned());
        }
        let below = |root: &PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
        if !self.roots.iter().any(below) {
            return Err(
                "is in none of the directories that the platform allows (`PlatformBuilder::file_roots`)"
                    .to_owned(),
            );
        }
        Ok(real)
    }
}

/// The backlog before the first look.
const UNKNOWN: u64 = u64::MAX;

/// The files below one directory as events.
#[derive(Debug)]
pub struct Files {
    /// The source of its events.
    source: String,
    directory: PathBuf,
    changes: BTreeSet<Change>,
    start_at_earliest: bool,
    settle: Duration,
    rescan: Duration,
    most: usize,
    progress: Arc<Progress>,
}

/// What was delivered of the directory, and how much of it was not.
#[derive(Debug)]
struct Progress {
    /// As the store has it, by path.
    known: Mutex<BTreeMap<String, Stamp>>,
    /// Changes that the last look found and that were not delivered since. It is written under the lock of `known`.
    waiting: AtomicU64,
}

impl Progress {
    /// That the path is delivered as it is there: `None` where it is gone.
    fn took(&self, path: &str, stamp: Option<Stamp>, wanted: bool) {
        let mut known = self.known.lock();
        match stamp {
            Some(stamp) => known.insert(path.to_owned(), stamp),
            None => known.remove(path),
        };
        if wanted {
            let waiting = self.waiting.load(Ordering::Relaxed);
            self.waiting.store(waiting.saturating_sub(1), Ordering::Relaxed);
        }
    }
}

/// A file as the store keeps it.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    path: String,
    stamp: Stamp,
}

/// A change that was found.
#[derive(Clone, Debug)]
struct Found {
    path: String,
    change: Change,
    /// What is there now; of a file that was removed, what was there.
    stamp: Stamp,
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unavailable, "files", format!("{what}: {error}"))
}

/// What stands in the store of a trigger that has looked once.
fn begun(cx: &TriggerCx) -> String {
    format!("trigger/{}/files-begun", cx.name)
}

fn key(cx: &TriggerCx, path: &str) -> String {
    let digest: String = Sha256::digest(path).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}{digest}", prefix(cx))
}

fn prefix(cx: &TriggerCx) -> String {
    format!("trigger/{}/file/", cx.name)
}

impl Files {
    async fn scan(&self, root: Root) -> Result<BTreeMap<String, Stamp>> {
        let (directory, most) = (self.directory.clone(), self.most);
        let scanned = tokio::task::spawn_blocking(move || scan(&directory, root, most)).await;
        scanned
            .map_err(|error| failed("looking", error))?
            .map_err(|error| failed(&self.directory.display().to_string(), error))
    }

    /// What was delivered before, by path.
    async fn known(&self, cx: &TriggerCx) -> Result<BTreeMap<String, Stamp>> {
        let (prefix, mut known) = (prefix(cx), BTreeMap::new());
        let mut after: Option<String> = None;
        loop {
            let page = cx.store.list(&prefix, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { return Ok(known) };
            after = Some(last.key.clone());
            for entry in page {
                let kept: Kept =
                    serde_json::from_slice(&entry.value).map_err(|error| failed(&entry.key, error))?;
                known.insert(kept.path, kept.stamp);
            }
        }
    }

    async fn keep(store: &dyn Store, key: String, path: String, stamp: Option<Stamp>) -> Result<()> {
        let commit = match stamp {
            Some(stamp) => {
                let kept =
                    serde_json::to_vec(&Kept { path, stamp }).map_err(|error| failed("a record", error))?;
                Commit::new().put(key, kept)
            }
            None => Commit::new().delete(key),
        };
        store.commit(commit).await.map(drop)
    }

    fn event(&self, found: &Found, now: Timestamp) -> Result<Event> {
        let Found { path: name, change, stamp } = found;
        let id = format!("{name}@{}-{}-{}-{}", change.name(), stamp.modified, stamp.bytes, stamp.inode);
        let data =
            serde_json::json!({"path": name, "bytes": stamp.bytes, "modified": stamp.modified / 1_000_000});
        let at = if *change == Change::Removed { now } else { Timestamp(stamp.modified) };
        Event::new(
            sas_cloudevents::readable(&id),
            self.source.as_str(),
            format!("dev.sas.files.{}", change.name()),
        )
        .and_then(|event| event.with_subject(sas_cloudevents::readable(name)))
        .and_then(|event| event.with_time(at).with_data("application/json", data.to_string()))
        .map_err(|error| Error::new(ErrorKind::Unexpected, "files", format!("{name:?}: {error}")))
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let wake = Arc::new(Notify::new());
        let woken = Arc::clone(&wake);
        // Held for as long as it is to watch. What it says, errors and overflows too, means: look.
        let mut watcher: RecommendedWatcher = notify::recommended_watcher(move |_| woken.notify_one())
            .map_err(|error| failed("watching", error))?;
        watcher
            .watch(&self.directory, RecursiveMode::Recursive)
            .map_err(|error| failed(&self.directory.display().to_string(), error))?;
        // After the watch has begun, so that it is on this one or on none.
        let root = Root::of(&self.directory)
            .map_err(|error| failed(&self.directory.display().to_string(), error))?;
        let mut known = self.known(cx).await?;
        if cx.store.get(&begun(cx)).await?.is_none() {
            if !self.start_at_earliest {
                // What is there at the beginning is taken as delivered.
                for (path, stamp) in self.scan(root).await? {
                    Self::keep(&*cx.store, key(cx, &path), path.clone(), Some(stamp)).await?;
                    known.insert(path, stamp);
                }
            }
            cx.store.commit(Commit::new().put(begun(cx), "1")).await?;
        }
        *self.progress.known.lock() = known;
        loop {
            let (found, next) = self.find(cx, root).await?;
            if found.is_empty() {
                let _ = timeout_at(next, wake.notified()).await;
            } else {
                tokio::select! {
                    delivered = self.deliver(cx, found) => delivered?,
                    never = self.count(cx, root, &wake) => match never {},
                }
            }
            // Changes come in crowds: one look is for all of them.
            tokio::time::sleep(self.settle.min(CROWD)).await;
        }
    }

    /// Looks again whenever the kernel says something while changes are delivered, so that the backlog is what the directory
    /// holds also where the target is slow or down. What it finds is delivered by the next look.
    async fn count(&self, cx: &TriggerCx, root: Root, wake: &Notify) -> Infallible {
        loop {
            wake.notified().await;
            tokio::time::sleep(self.settle.max(CROWD)).await;
            // What is wrong is told by the look that delivers.
            let _ = self.find(cx, root).await;
        }
    }

    /// What changed since it was known, of files that are left alone, and when to look again.
    /// The backlog is what it found.
    async fn find(&self, cx: &TriggerCx, root: Root) -> Result<(Vec<Found>, Instant)> {
        let there = self.scan(root).await?;
        let known = self.progress.known.lock();
        let now = cx.clock.now();
        let mut wait = self.rescan;
        let mut found = Vec::new();
        for (path, stamp) in &there {
            let change = match known.get(path) {
                Some(before) if before == stamp => continue,
                Some(_) => Change::Changed,
                None => Change::Created,
            };
            let age = now.since(Timestamp(stamp.modified));
            if age < self.settle {
                wait = wait.min(self.settle - age);
                continue;
            }
            found.push(Found { path: path.clone(), change, stamp: *stamp });
        }
        for (path, stamp) in known.iter() {
            if !there.contains_key(path) {
                found.push(Found { path: path.clone(), change: Change::Removed, stamp: *stamp });
            }
        }
        let wanted = found.iter().filter(|found| self.changes.contains(&found.change)).count();
        self.progress.waiting.store(wanted as u64, Ordering::Relaxed);
        Ok((found, Instant::now() + wait))
    }

    /// Delivers changes, each as there is room for it, and keeps what was delivered.
    async fn deliver(&self, cx: &TriggerCx, found: Vec<Found>) -> Result<()> {
        let mut deliveries = Deliveries::default();
        let done = async {
            for change in found {
                let stamp = (change.change != Change::Removed).then_some(change.stamp);
                let key = key(cx, &change.path);
                let (store, progress) = (Arc::clone(&cx.store), Arc::clone(&self.progress));
                if !self.changes.contains(&change.change) {
                    Self::keep(&*store, key, change.path.clone(), stamp).await?;
                    progress.took(&change.path, stamp, false);
                    continue;
                }
                let slot = deliveries.meanwhile(cx.sink.ready()).await??;
                let event = self.event(&change, cx.clock.now())?;
                let sink = Arc::clone(&cx.sink);
                deliveries.begin(async move {
                    sink.deliver(slot, event).await?;
                    Self::keep(&*store, key, change.path.clone(), stamp).await?;
                    progress.took(&change.path, stamp, true);
                    Ok(())
                });
            }
            // The next look compares with what was delivered, so all of this one is done first.
            while !deliveries.is_empty() {
                deliveries.meanwhile(tokio::time::sleep(Duration::from_millis(20))).await?;
            }
            deliveries.meanwhile(std::future::ready(())).await
        };
        let done = done.await;
        if done.is_err() {
            let _ = timeout(LAST, deliveries.finish()).await;
        }
        done
    }
}

#[async_trait]
impl TriggerSource for Files {
    fn kind(&self) -> &'static str {
        "files"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            ended = self.follow(&cx) => ended,
        }
    }

    /// Changes that were found and not delivered.
    async fn backlog(&self) -> Result<Option<u64>> {
        Ok(Some(self.progress.waiting.load(Ordering::Relaxed)).filter(|waiting| *waiting != UNKNOWN))
    }
}
