use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{Commit, Entry, Result, Store, StoreLimits, Version, Watched};
use sas_testkit::{
    fake::FakeStore,
    store::{self, Subject},
};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    CreatesOverWhatIsThere,
    IgnoresTheExpectedVersion,
    DeletesAnyVersion,
    DeletesWhatIsNotThere,
    ListsBackwards,
    ListsTheKeyToGoOnAfter,
    IgnoresTheLimit,
    TakesPrefixesForDirectories,
    TellsNoDeletions,
    ForgetsHistorySilently,
    EmptyValuesAreAbsent,
    KeepsOversizedKeys,
    LosesUpdatesInARace,
    HalfWritesWhenDropped,
    ForgetsEverythingWhenOpenedAgain,
    CountsFromOneWhenOpenedAgain,
    ReadsOldValues,
    ChecksOnlyTheFirstGuard,
    WritesBeforeItChecks,
    OneVersionForEachWrite,
    GuardsOnlyWhatIsWritten,
    GuardsWhatIsNotGuarded,
    CommitsKeyByKey,
    CountsCommitsOfNothing,
    TakesTheLastOfTwoWrites,
    WatchDoesNotWait,
    WatchGivesOtherKeys,
    WatchBeginsNow,
    WatchSplitsCommits,
    WatchRemembersWhatItGave,
    WatchTrustsTheFuture,
    TakesLittle,
    TakesLessThanItSays,
}

#[derive(Debug)]
struct Broken {
    inner: FakeStore,
    bug: Bug,
    first: Mutex<Option<Entry>>,
    given: AtomicU64,
}

/// The one write of a commit that `put` or `delete` makes.
fn single(commit: &Commit) -> Option<(&str, Option<Version>, bool)> {
    let ([guard], [write]) = (&commit.guards[..], &commit.writes[..]) else { return None };
    (guard.key == write.key).then_some((&*write.key, guard.expected, write.value.is_none()))
}

impl Broken {
    fn new(bug: Bug) -> Self {
        Self { inner: FakeStore::default(), bug, first: Mutex::default(), given: AtomicU64::new(0) }
    }

    async fn found(&self, key: &str) -> Result<Option<Version>> {
        Ok(self.inner.get(key).await?.map(|entry| entry.version))
    }

    /// `put` and `delete` with the older bugs.
    async fn one(&self, mut commit: Commit) -> Result<Version> {
        let Some((key, expected, deletes)) = single(&commit) else { return self.inner.commit(commit).await };
        let key = key.to_owned();
        let found = match self.found(&key).await {
            Ok(found) => found,
            Err(_) if self.bug == Bug::KeepsOversizedKeys => None,
            Err(error) => return Err(error),
        };
        match self.bug {
            Bug::CreatesOverWhatIsThere if expected.is_none() => commit.guards.clear(),
            Bug::IgnoresTheExpectedVersion if expected.is_some() && !deletes => {
                commit.guards[0].expected = found
            }
            Bug::DeletesAnyVersion if deletes && found.is_some() => commit.guards.clear(),
            Bug::DeletesWhatIsNotThere if deletes && found.is_none() => return self.inner.version().await,
            Bug::KeepsOversizedKeys if key.len() > 1024 => {
                commit.writes[0].key.truncate(1024);
                commit.guards[0].key.truncate(1024);
                return self.inner.commit(commit).await.or(Ok(Version(9)));
            }
            Bug::LosesUpdatesInARace if found == expected => {
                tokio::task::yield_now().await;
                commit.guards.clear();
            }
            Bug::HalfWritesWhenDropped if found.is_some() && found == expected && !deletes => {
                self.inner.commit(Commit::new().delete(key.as_str())).await?;
                tokio::task::yield_now().await;
                commit.guards.clear();
            }
            _ => {}
        }
        self.inner.commit(commit).await
    }
}

#[async_trait]
impl Store for Broken {
    fn limits(&self) -> StoreLimits {
        let mut limits = self.inner.limits();
        match self.bug {
            Bug::TakesLittle => limits.value_bytes = 1000,
            Bug::TakesLessThanItSays => limits.commit_writes += 1,
            _ => {}
        }
        limits
    }

    async fn version(&self) -> Result<Version> {
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        let entry = self.inner.get(key).await?;
        if self.bug == Bug::ReadsOldValues {
            let mut first = self.first.lock();
            if first.as_ref().is_none_or(|first| first.key != key) {
                (*first).clone_from(&entry);
            }
            return Ok(first.clone().filter(|_| entry.is_some()));
        }
        Ok(entry.filter(|entry| self.bug != Bug::EmptyValuesAreAbsent || !entry.value.is_empty()))
    }

    async fn commit(&self, mut commit: Commit) -> Result<Version> {
        let of_commits = [
            Bug::ChecksOnlyTheFirstGuard,
            Bug::WritesBeforeItChecks,
            Bug::OneVersionForEachWrite,
            Bug::GuardsOnlyWhatIsWritten,
            Bug::GuardsWhatIsNotGuarded,
            Bug::CommitsKeyByKey,
            Bug::CountsCommitsOfNothing,
            Bug::TakesTheLastOfTwoWrites,
        ];
        if !of_commits.contains(&self.bug) {
            return self.one(commit).await;
        }
        if self.bug != Bug::TakesTheLastOfTwoWrites {
            commit.check(&self.inner.limits())?;
        }
        let mut one_by_one = false;
        match self.bug {
            Bug::ChecksOnlyTheFirstGuard => commit.guards.truncate(1),
            Bug::WritesBeforeItChecks if commit.writes.len() > 1 => {
                let mut writes = Commit::new();
                writes.writes.push(commit.writes[0].clone());
                let mut guards = Commit::new();
                guards.guards.clone_from(&commit.guards);
                let holds = self.inner.commit(guards).await;
                if let Err(error) = holds {
                    self.inner.commit(writes).await?;
                    return Err(error);
                }
            }
            Bug::OneVersionForEachWrite | Bug::CommitsKeyByKey => one_by_one = true,
            Bug::GuardsOnlyWhatIsWritten => {
                let written: Vec<String> = commit.writes.iter().map(|write| write.key.clone()).collect();
                commit.guards.retain(|guard| written.contains(&guard.key));
            }
            Bug::GuardsWhatIsNotGuarded => {
                let guarded: Vec<String> = commit.guards.iter().map(|guard| guard.key.clone()).collect();
                for key in commit.writes.iter().map(|write| write.key.clone()).collect::<Vec<_>>() {
                    if !guarded.contains(&key) && !key.ends_with("mark") {
                        commit = commit.guard(key, None);
                    }
                }
            }
            Bug::CountsCommitsOfNothing if commit.writes.is_empty() => {
                commit = commit.put("hidden", "");
                self.inner.commit(commit).await?;
                return self.inner.commit(Commit::new().delete("hidden")).await;
            }
            Bug::TakesTheLastOfTwoWrites => {
                let mut seen: Vec<String> = Vec::new();
                let all = std::mem::take(&mut commit.writes);
                for write in all.into_iter().rev() {
                    if !seen.contains(&write.key) {
                        seen.push(write.key.clone());
                        commit.writes.push(write);
                    }
                }
                commit.writes.reverse();
            }
            _ => {}
        }
        if !one_by_one || commit.writes.len() < 2 {
            return self.inner.commit(commit).await;
        }
        let mut guards = std::mem::take(&mut commit.guards);
        let mut version = Version(0);
        for write in commit.writes {
            let mut one = Commit::new();
            one.guards = std::mem::take(&mut guards);
            one.writes.push(write);
            version = self.inner.commit(one).await?;
            if self.bug == Bug::CommitsKeyByKey {
                tokio::task::yield_now().await;
            }
        }
        Ok(version)
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        let all = self.inner.list(prefix, after, usize::MAX).await?;
        Ok(match self.bug {
            Bug::ListsBackwards => all.into_iter().rev().take(limit).collect(),
            Bug::IgnoresTheLimit => all,
            Bug::ListsTheKeyToGoOnAfter => {
                let all = self.inner.list(prefix, None, usize::MAX).await?.into_iter();
                all.filter(|entry| after.is_none_or(|after| entry.key.as_str() >= after))
                    .take(limit)
                    .collect()
            }
            Bug::TakesPrefixesForDirectories if !prefix.is_empty() => {
                let directory = format!("{}/", prefix.trim_end_matches('/'));
                all.into_iter().filter(|entry| entry.key.starts_with(&directory)).take(limit).collect()
            }
            _ => all.into_iter().take(limit).collect(),
        })
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let last = self.inner.version().await?;
        let (prefix, since) = match self.bug {
            Bug::WatchGivesOtherKeys => ("", since),
            Bug::WatchBeginsNow => (prefix, since.max(last)),
            Bug::WatchTrustsTheFuture if since > last => (prefix, last),
            Bug::WatchRemembersWhatItGave => (prefix, since.max(Version(self.given.load(SeqCst)))),
            Bug::WatchDoesNotWait if since == last => return Ok(Watched::Changes(Vec::new())),
            _ => (prefix, since),
        };
        let mut watched = self.inner.watch(prefix, since).await?;
        if let Watched::Changes(changes) = &mut watched {
            match self.bug {
                Bug::TellsNoDeletions => changes.retain(|change| change.value.is_some()),
                Bug::ForgetsHistorySilently => {
                    let keep = changes.len().saturating_sub(100);
                    changes.drain(..keep);
                }
                Bug::WatchSplitsCommits => changes.truncate(2),
                Bug::WatchRemembersWhatItGave => {
                    let last = changes.last().map_or(0, |change| change.version.0);
                    self.given.store(last, SeqCst);
                    tokio::task::yield_now().await;
                }
                _ => {}
            }
        }
        Ok(watched)
    }
}

/// Opened again it has what it had, except for the bug.
#[derive(Debug)]
struct Again(Arc<Broken>);

#[async_trait]
impl Store for Again {
    fn limits(&self) -> StoreLimits {
        self.0.limits()
    }
    async fn version(&self) -> Result<Version> {
        self.0.version().await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.0.get(key).await
    }
    async fn commit(&self, commit: Commit) -> Result<Version> {
        let version = self.0.commit(commit).await?;
        Ok(if self.0.bug == Bug::CountsFromOneWhenOpenedAgain { Version(1) } else { version })
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.0.list(prefix, after, limit).await
    }
    async fn watch(&self, _: &str, _: Version) -> Result<Watched> {
        Ok(Watched::ListAgain)
    }
}

fn subject(bug: Bug) -> Subject {
    let make = move || Arc::new(Broken::new(bug));
    let broken = make();
    let kept = Arc::clone(&broken);
    Subject::new(broken).reopen(move || {
        let kept = if bug == Bug::ForgetsEverythingWhenOpenedAgain { make() } else { Arc::clone(&kept) };
        async move { Arc::new(Again(kept)) as Arc<dyn Store> }
    })
}

const MUTANTS: [(Bug, &str); 33] = [
    (Bug::CreatesOverWhatIsThere, "expects absence"),
    (Bug::IgnoresTheExpectedVersion, "expects another version"),
    (Bug::DeletesAnyVersion, "expects another version"),
    (Bug::DeletesWhatIsNotThere, "a deletion needs the version"),
    (Bug::ListsBackwards, "order of their bytes"),
    (Bug::ListsTheKeyToGoOnAfter, "a list goes on after a key"),
    (Bug::IgnoresTheLimit, "a list goes on after a key"),
    (Bug::TakesPrefixesForDirectories, "a list goes on after a key"),
    (Bug::TellsNoDeletions, "changes come once each"),
    (Bug::ForgetsHistorySilently, "never a gap"),
    (Bug::EmptyValuesAreAbsent, "an empty value"),
    (Bug::KeepsOversizedKeys, "out of bounds are refused"),
    (Bug::LosesUpdatesInARace, "concurrent writers"),
    (Bug::HalfWritesWhenDropped, "a dropped write"),
    (Bug::ForgetsEverythingWhenOpenedAgain, "there after it was opened again"),
    (Bug::CountsFromOneWhenOpenedAgain, "go on rising after"),
    (Bug::ReadsOldValues, "read back with its version"),
    (Bug::ChecksOnlyTheFirstGuard, "one guard that does not hold"),
    (Bug::WritesBeforeItChecks, "one guard that does not hold"),
    (Bug::OneVersionForEachWrite, "under one version"),
    (Bug::GuardsOnlyWhatIsWritten, "a guard may stand on a key that is not written"),
    (Bug::GuardsWhatIsNotGuarded, "a write without a guard"),
    (Bug::CommitsKeyByKey, "nobody sees a half"),
    (Bug::CountsCommitsOfNothing, "changes nothing makes no version"),
    (Bug::TakesTheLastOfTwoWrites, "written twice in a commit"),
    (Bug::WatchDoesNotWait, "a watch waits"),
    (Bug::WatchGivesOtherKeys, "and for nothing else"),
    (Bug::WatchBeginsNow, "changes come once each"),
    (Bug::WatchSplitsCommits, "see every commit once and whole"),
    (Bug::WatchRemembersWhatItGave, "a dropped watch takes nothing"),
    (Bug::WatchTrustsTheFuture, "a version that was never reached"),
    (Bug::TakesLittle, "no smaller than every store's"),
    (Bug::TakesLessThanItSays, "those at the bounds are kept"),
];

#[tokio::test(start_paused = true)]
async fn every_broken_store_is_refused() {
    for (bug, by) in MUTANTS {
        let report = store::suite(async || ((), subject(bug))).await;
        caught(bug, &report, by);
    }
}

#[tokio::test(start_paused = true)]
async fn the_fake_store_passes_its_suite() {
    let report = store::suite(async || ((), Arc::new(FakeStore::default()) as Arc<dyn Store>)).await;
    report.assert_passed_skipping(&["there after it was opened again", "go on rising after"]);
    let short = async || ((), Arc::new(FakeStore::with_history(50)) as Arc<dyn Store>);
    store::suite(short).await.assert_passed();
}
