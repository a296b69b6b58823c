use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{Change, Entry, Error, ErrorKind, Result, Store, Version};
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
}

#[derive(Debug)]
struct Broken {
    inner: FakeStore,
    bug: Bug,
    first: Mutex<Option<Entry>>,
}

#[async_trait]
impl Store for Broken {
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

    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        let found = match self.inner.get(key).await {
            Ok(found) => found.map(|entry| entry.version),
            Err(_) if self.bug == Bug::KeepsOversizedKeys => None,
            Err(error) => return Err(error),
        };
        match self.bug {
            Bug::CreatesOverWhatIsThere if expected.is_none() => self.inner.put(key, found, value).await,
            Bug::IgnoresTheExpectedVersion if expected.is_some() => self.inner.put(key, found, value).await,
            Bug::KeepsOversizedKeys if key.len() > 1024 => {
                self.inner.put(&key[..1024], None, value).await.or(Ok(Version(9)))
            }
            Bug::LosesUpdatesInARace if found == expected => {
                tokio::task::yield_now().await;
                let now = self.inner.get(key).await?.map(|entry| entry.version);
                self.inner.put(key, now, value).await
            }
            Bug::HalfWritesWhenDropped if found.is_some() && found == expected => {
                self.inner.delete(key, found.unwrap_or_default()).await?;
                tokio::task::yield_now().await;
                self.inner.put(key, None, value).await
            }
            _ => self.inner.put(key, expected, value).await,
        }
    }

    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        let found = self.inner.get(key).await?.map(|entry| entry.version);
        match (self.bug, found) {
            (Bug::DeletesAnyVersion, Some(found)) => self.inner.delete(key, found).await,
            (Bug::DeletesWhatIsNotThere, None) => Ok(()),
            _ => self.inner.delete(key, expected).await,
        }
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

    async fn changes(&self, prefix: &str, since: Version) -> Result<Vec<Change>> {
        let mut changes = self.inner.changes(prefix, since).await?;
        match self.bug {
            Bug::TellsNoDeletions => changes.retain(|change| change.value.is_some()),
            Bug::ForgetsHistorySilently => {
                let keep = changes.len().saturating_sub(100);
                changes.drain(..keep);
            }
            _ => {}
        }
        Ok(changes)
    }
}

/// Opened again it has what it had, except for the bug.
#[derive(Debug)]
struct Again(Arc<Broken>);

#[async_trait]
impl Store for Again {
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.0.get(key).await
    }
    async fn put(&self, key: &str, expected: Option<Version>, value: Bytes) -> Result<Version> {
        let version = self.0.put(key, expected, value).await?;
        Ok(if self.0.bug == Bug::CountsFromOneWhenOpenedAgain { Version(1) } else { version })
    }
    async fn delete(&self, key: &str, expected: Version) -> Result<()> {
        self.0.delete(key, expected).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.0.list(prefix, after, limit).await
    }
    async fn changes(&self, _: &str, _: Version) -> Result<Vec<Change>> {
        Err(Error::new(ErrorKind::Conflict, "changes", "the history begins anew"))
    }
}

fn subject(bug: Bug) -> Subject {
    let make = move || Arc::new(Broken { inner: FakeStore::default(), bug, first: Mutex::default() });
    let broken = make();
    let kept = Arc::clone(&broken);
    Subject::new(broken).reopen(move || {
        let kept = if bug == Bug::ForgetsEverythingWhenOpenedAgain { make() } else { Arc::clone(&kept) };
        async move { Arc::new(Again(kept)) as Arc<dyn Store> }
    })
}

const MUTANTS: [(Bug, &str); 17] = [
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
