//! The suite for [`sas_core::Store`].

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use sas_core::{Change, Commit, ErrorKind, Store, StoreLimits, Version, Watched};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, drop_after_polls, ensure, ok, refused, within},
    medium::Medium,
};

/// An empty store, and how to open it again if it outlives its process.
#[derive(Debug)]
pub struct Subject(Medium<dyn Store>);

impl Subject {
    /// A store that is empty.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(Medium::new(store))
    }

    /// Opens the same medium again. The suite has dropped its handle by then.
    #[must_use]
    pub fn reopen<F>(mut self, reopen: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Store>> + 'static,
    {
        self.0.reopen(reopen);
        self
    }

    fn store(&self) -> Arc<dyn Store> {
        self.0.part()
    }

    async fn opened_again(&self) -> Verdict<Arc<dyn Store>> {
        self.0.opened_again("the store").await
    }
}

impl From<Arc<dyn Store>> for Subject {
    fn from(store: Arc<dyn Store>) -> Self {
        Self::new(store)
    }
}

/// Runs every check on an empty store of its own, made by `builder`.
pub async fn suite<G, T: Into<Subject>>(builder: impl AsyncFn() -> (G, T)) -> Report {
    check::run(
        "Store",
        check::LIMIT,
        builder,
        Into::into,
        checks![
            "a key that was never written is absent" => absent,
            "what was put is read back with its version" => read_back,
            "a put that expects absence conflicts with what is there" => create_conflicts,
            "a put that expects another version conflicts and changes nothing" => stale_put,
            "every write gets a higher version, store-wide" => versions_rise,
            "a deletion needs the version, and the key is absent then" => deletion,
            "a deleted key can be made anew and its old version is never valid again" => anew,
            "keys are listed by prefix, in the order of their bytes" => ordered,
            "a list goes on after a key and ends at its limit" => paged,
            "changes come once each, oldest first, deletions included" => changes,
            "a history that is too short says so, never a gap" => short_history,
            "the writes of a commit are done together, under one version" => together,
            "one guard that does not hold stops every write" => guards,
            "a guard may stand on a key that is not written, and a write without a guard" => guard_alone,
            "a commit that changes nothing makes no version" => nothing,
            "a key that is guarded or written twice in a commit is refused" => twice,
            "of concurrent commits over two keys nobody sees a half" => transfers,
            "a watch waits for a change of its keys, and for nothing else" => watch_waits,
            "watches that go on where the last one was see every commit once and whole" => watch_resumes,
            "a dropped watch takes nothing with it" => watch_dropped,
            "a watch from a version that was never reached lists again" => watch_ahead,
            "the limits are no smaller than every store's" => limits,
            "keys and values out of bounds are refused, those at the bounds are kept" => bounds,
            "any bytes and an empty value are values" => any_bytes,
            "of concurrent writers one wins each version" => race,
            "a dropped write is done or not done at all" => dropped,
            "what was acknowledged is there after it was opened again" => durable,
            "versions go on rising after it was opened again" => durable_versions,
        ],
    )
    .await
}

async fn put(store: &dyn Store, key: &str, expected: Option<Version>, value: &str) -> Verdict<Version> {
    ok("put", store.put(key, expected, Bytes::copy_from_slice(value.as_bytes())).await)
}

async fn value(store: &dyn Store, key: &str) -> Verdict<Option<(Version, Bytes)>> {
    let entry = ok("get", store.get(key).await)?;
    if let Some(entry) = &entry {
        ensure!(entry.key == key, "get of {key:?} answers with the key {:?}", entry.key);
    }
    Ok(entry.map(|entry| (entry.version, entry.value)))
}

async fn absent(subject: &Subject) -> Verdict {
    let store = subject.store();
    ensure!(value(&*store, "nobody/was/here").await?.is_none(), "a key that was never written has a value");
    ensure!(ok("list", store.list("", None, 10).await)?.is_empty(), "an empty store lists something");
    refused("delete of an absent key", ErrorKind::Conflict, store.delete("nobody", Version(1)).await)?;
    refused(
        "put over an absent key",
        ErrorKind::Conflict,
        store.put("nobody", Some(Version(1)), Bytes::new()).await,
    )
}

async fn read_back(subject: &Subject) -> Verdict {
    let store = subject.store();
    let first = put(&*store, "a", None, "one").await?;
    ensure!(
        value(&*store, "a").await? == Some((first, "one".into())),
        "after a put, get says {:?}",
        value(&*store, "a").await?
    );
    let second = put(&*store, "a", Some(first), "two").await?;
    ensure!(value(&*store, "a").await? == Some((second, "two".into())), "the second put is not read back");
    let listed = ok("list", store.list("a", None, 10).await)?;
    ensure!(
        listed.len() == 1 && listed[0].version == second && listed[0].value == "two",
        "the list says {listed:?}"
    );
    Ok(())
}

async fn create_conflicts(subject: &Subject) -> Verdict {
    let store = subject.store();
    let version = put(&*store, "a", None, "mine").await?;
    refused("a second creation", ErrorKind::Conflict, store.put("a", None, "theirs".into()).await)?;
    ensure!(value(&*store, "a").await? == Some((version, "mine".into())), "the conflict changed the value");
    Ok(())
}

async fn stale_put(subject: &Subject) -> Verdict {
    let store = subject.store();
    let old = put(&*store, "a", None, "1").await?;
    let new = put(&*store, "a", Some(old), "2").await?;
    for (what, version) in [("an old version", old), ("a version of the future", Version(new.0 + 100))] {
        refused(what, ErrorKind::Conflict, store.put("a", Some(version), "3".into()).await)?;
        refused(what, ErrorKind::Conflict, store.delete("a", version).await)?;
    }
    ensure!(value(&*store, "a").await? == Some((new, "2".into())), "a conflict changed the value");
    let seen = told(&*store, "", new).await?;
    ensure!(seen.is_empty(), "a conflict is in the history: {seen:?}");
    Ok(())
}

async fn versions_rise(subject: &Subject) -> Verdict {
    let store = subject.store();
    let mut last = Version(0);
    for round in 0..20 {
        let version = put(&*store, &format!("key/{}", (round * 7) % 20), None, "x").await?;
        ensure!(version > last, "version {version:?} came after {last:?}");
        last = version;
    }
    Ok(())
}

async fn deletion(subject: &Subject) -> Verdict {
    let store = subject.store();
    let version = put(&*store, "a", None, "x").await?;
    put(&*store, "b", None, "y").await?;
    ok("delete", store.delete("a", version).await)?;
    ensure!(value(&*store, "a").await?.is_none(), "a deleted key has a value");
    ensure!(value(&*store, "b").await?.is_some(), "the deletion took another key with it");
    refused("a second deletion", ErrorKind::Conflict, store.delete("a", version).await)?;
    ensure!(ok("list", store.list("", None, 10).await)?.len() == 1, "a deleted key is listed");
    Ok(())
}

async fn anew(subject: &Subject) -> Verdict {
    let store = subject.store();
    let old = put(&*store, "a", None, "old").await?;
    ok("delete", store.delete("a", old).await)?;
    refused(
        "a put over the deleted version",
        ErrorKind::Conflict,
        store.put("a", Some(old), "x".into()).await,
    )?;
    let new = put(&*store, "a", None, "new").await?;
    ensure!(new > old, "the new version {new:?} is not above the old one {old:?}");
    refused(
        "a put with the version from before",
        ErrorKind::Conflict,
        store.put("a", Some(old), "x".into()).await,
    )?;
    refused("a deletion with the version from before", ErrorKind::Conflict, store.delete("a", old).await)
}

const KEYS: [&str; 9] = ["a", "a!", "a/", "a/1", "a/10", "a/2", "ab", "b", "ä/1"];

async fn keys(store: &dyn Store, prefix: &str, after: Option<&str>, limit: usize) -> Verdict<Vec<String>> {
    Ok(ok("list", store.list(prefix, after, limit).await)?.into_iter().map(|entry| entry.key).collect())
}

async fn ordered(subject: &Subject) -> Verdict {
    let store = subject.store();
    for key in [3, 7, 0, 8, 5, 1, 4, 6, 2].map(|at| KEYS[at]) {
        put(&*store, key, None, key).await?;
    }
    let all = keys(&*store, "", None, 100).await?;
    ensure!(all == KEYS, "all keys are listed as {all:?}");
    let below = keys(&*store, "a/", None, 100).await?;
    ensure!(below == ["a/", "a/1", "a/10", "a/2"], "those that start with a/ are {below:?}");
    ensure!(keys(&*store, "c", None, 100).await?.is_empty(), "a prefix of nothing lists something");
    Ok(())
}

async fn paged(subject: &Subject) -> Verdict {
    let store = subject.store();
    for key in KEYS {
        put(&*store, key, None, key).await?;
    }
    let mut seen: Vec<String> = Vec::new();
    loop {
        let page = keys(&*store, "a", seen.last().map(String::as_str), 2).await?;
        ensure!(page.len() <= 2, "a page of two has {}", page.len());
        if page.is_empty() {
            break;
        }
        seen.extend(page);
        ensure!(seen.len() <= KEYS.len(), "paging goes in circles: {seen:?}");
    }
    ensure!(seen == KEYS[..7], "page by page: {seen:?}");
    ensure!(keys(&*store, "", None, 0).await?.is_empty(), "a limit of 0 lists something");
    // A key to go on after need not exist, and may lie outside of the prefix.
    let after = keys(&*store, "a/", Some("a/15"), 100).await?;
    ensure!(after == ["a/2"], "after a/15 come {after:?}");
    let before = keys(&*store, "a/", Some("A"), 100).await?;
    ensure!(before.len() == 4, "after a key before the prefix come {before:?}");
    ensure!(
        keys(&*store, "a/", Some("b"), 100).await?.is_empty(),
        "after a key behind the prefix comes something"
    );
    Ok(())
}

async fn changes(subject: &Subject) -> Verdict {
    let store = subject.store();
    let one = put(&*store, "x/1", None, "a").await?;
    let two = put(&*store, "y/1", None, "b").await?;
    let three = put(&*store, "x/1", Some(one), "c").await?;
    ok("delete", store.delete("x/1", three).await)?;
    let four = told(&*store, "", three).await?;
    ensure!(
        four.len() == 1 && four[0].key == "x/1" && four[0].value.is_none() && four[0].version > three,
        "the deletion is told as {four:?}"
    );
    let all: Vec<Change> = told(&*store, "", Version(0)).await?;
    let seen: Vec<(&str, Option<&[u8]>)> =
        all.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect();
    let expected: [(&str, Option<&[u8]>); 4] =
        [("x/1", Some(b"a")), ("y/1", Some(b"b")), ("x/1", Some(b"c")), ("x/1", None)];
    ensure!(seen == expected, "the history is {seen:?}");
    ensure!(
        all.windows(2).all(|pair| pair[0].version < pair[1].version),
        "the versions of the history do not rise: {all:?}"
    );
    ensure!(all[1].version == two, "the history gives y/1 version {:?}, put gave {two:?}", all[1].version);
    let some = told(&*store, "x/", one).await?;
    ensure!(some.len() == 2, "below x/ after the first there are {some:?}");
    let last = all[3].version;
    ensure!(told(&*store, "", last).await?.is_empty(), "after the last change there is another");
    Ok(())
}

async fn short_history(subject: &Subject) -> Verdict {
    let store = subject.store();
    let mut version = None;
    for round in 0..300 {
        version = Some(put(&*store, "counter", version, &round.to_string()).await?);
    }
    if let Some(all) = collected(&*store, "", Version(0)).await? {
        ensure!(all.len() == 300, "of 300 changes the history has {}, and says nothing", all.len());
    }
    Ok(())
}

/// Every change after `since`; `None`: the history is too short. A mark of its own ends it.
async fn collected(store: &dyn Store, prefix: &str, since: Version) -> Verdict<Option<Vec<Change>>> {
    let mark = format!("{prefix}\u{10FFFF}mark");
    let end = ok("a mark", store.commit(Commit::new().put(mark.as_str(), "x")).await)?;
    let (mut since, mut all) = (since, Vec::new());
    loop {
        let watched = within(Duration::from_secs(10), "a watch", store.watch(prefix, since)).await?;
        let Watched::Changes(changes) = ok("watch", watched)? else { return Ok(None) };
        let Some(last) = changes.last().map(|change| change.version) else {
            return Err(Stop::fail("a watch gave nothing"));
        };
        ensure!(last > since, "a watch after {since:?} gave changes until {last:?}");
        let strange = changes.iter().find(|change| !change.key.starts_with(prefix));
        ensure!(strange.is_none(), "a watch of {prefix:?} gave {strange:?}");
        since = last;
        all.extend(changes.into_iter().filter(|change| !change.key.ends_with("\u{10FFFF}mark")));
        if last >= end {
            return Ok(Some(all));
        }
    }
}

async fn told(store: &dyn Store, prefix: &str, since: Version) -> Verdict<Vec<Change>> {
    let told = collected(store, prefix, since).await?;
    told.ok_or_else(|| Stop::fail(format!("a history of a few changes does not reach back to {since:?}")))
}

async fn together(subject: &Subject) -> Verdict {
    let store = subject.store();
    let one = put(&*store, "a", None, "1").await?;
    let two = put(&*store, "gone", None, "2").await?;
    let commit = Commit::new().guard("a", Some(one)).guard("gone", Some(two)).guard("b", None);
    let commit = commit.put("a", "3").put("b", "4").delete("gone");
    let version = ok("commit", store.commit(commit).await)?;
    ensure!(version > two, "the commit's version {version:?} is not above {two:?}");
    for (key, expected) in [("a", "3"), ("b", "4")] {
        let found = value(&*store, key).await?;
        ensure!(
            found == Some((version, expected.into())),
            "after the commit of {version:?}, {key} is {found:?}"
        );
    }
    ensure!(value(&*store, "gone").await?.is_none(), "the commit did not delete");
    ensure!(ok("version", store.version().await)? == version, "version() is not that of the last commit");
    let changes = told(&*store, "", two).await?;
    ensure!(
        changes.len() == 3 && changes.iter().all(|change| change.version == version),
        "the history tells the commit {version:?} as {changes:?}"
    );
    // Each key goes on from the version of the commit.
    put(&*store, "b", Some(version), "5").await.map(drop)
}

async fn guards(subject: &Subject) -> Verdict {
    let store = subject.store();
    let old = put(&*store, "a", None, "1").await?;
    let new = put(&*store, "a", Some(old), "2").await?;
    let other = put(&*store, "b", None, "1").await?;
    for (what, key, expected) in [
        ("an old version", "a", Some(old)),
        ("a key that should be absent", "a", None),
        ("an absent key that should be there", "c", Some(old)),
    ] {
        for first in [true, false] {
            let commit = Commit::new();
            let commit = if first {
                commit.guard(key, expected).guard("b", Some(other))
            } else {
                commit.guard("b", Some(other)).guard(key, expected)
            };
            let commit = commit.put("b", "3").put("d", "3").delete("a");
            refused(what, ErrorKind::Conflict, store.commit(commit).await)?;
        }
    }
    let found = (value(&*store, "a").await?, value(&*store, "b").await?, value(&*store, "d").await?);
    ensure!(
        found == (Some((new, "2".into())), Some((other, "1".into())), None),
        "a commit that was refused left {found:?}"
    );
    ensure!(ok("version", store.version().await)? == other, "a commit that was refused made a version");
    ensure!(told(&*store, "", other).await?.is_empty(), "a commit that was refused is in the history");
    Ok(())
}

async fn guard_alone(subject: &Subject) -> Verdict {
    let store = subject.store();
    let fence = put(&*store, "fence", None, "1").await?;
    let first = ok("commit", store.commit(Commit::new().guard("fence", Some(fence)).put("a", "1")).await)?;
    let over = ok("commit", store.commit(Commit::new().guard("fence", Some(fence)).put("a", "2")).await)?;
    ensure!(over > first, "writing over made no higher version");
    ensure!(
        value(&*store, "fence").await? == Some((fence, "1".into())),
        "a guard changed the key that it stands on"
    );
    put(&*store, "fence", Some(fence), "2").await?;
    let late = store.commit(Commit::new().guard("fence", Some(fence)).put("a", "3")).await;
    refused("a write behind a fence that has moved", ErrorKind::Conflict, late)?;
    ensure!(value(&*store, "a").await? == Some((over, "2".into())), "it was written all the same");
    Ok(())
}

async fn nothing(subject: &Subject) -> Verdict {
    let store = subject.store();
    ensure!(ok("version", store.version().await)? == Version(0), "an empty store has a version");
    let version = put(&*store, "a", None, "1").await?;
    for (what, commit) in [
        ("a commit of nothing", Commit::new()),
        ("a commit of guards", Commit::new().guard("a", Some(version)).guard("b", None)),
        ("a deletion of what is absent", Commit::new().delete("b")),
    ] {
        let told = ok(what, store.commit(commit).await)?;
        ensure!(told == version, "{what} gives {told:?}; the last commit that wrote is {version:?}");
    }
    ensure!(ok("version", store.version().await)? == version, "a commit of nothing made a version");
    refused("a guard alone", ErrorKind::Conflict, store.commit(Commit::new().guard("a", None)).await)?;
    ensure!(told(&*store, "", version).await?.is_empty(), "a commit of nothing is in the history");
    Ok(())
}

async fn twice(subject: &Subject) -> Verdict {
    let store = subject.store();
    for (what, commit) in [
        ("a key that is written twice", Commit::new().put("a", "1").put("b", "1").put("a", "2")),
        ("a key that is written and deleted", Commit::new().put("a", "1").delete("a")),
        (
            "a key that is guarded twice",
            Commit::new().guard("a", None).guard("a", Some(Version(1))).put("a", "1"),
        ),
    ] {
        refused(what, ErrorKind::InvalidSpec, store.commit(commit).await)?;
    }
    ensure!(ok("list", store.list("", None, 10).await)?.is_empty(), "a commit that was refused wrote");
    Ok(())
}

async fn transfers(subject: &Subject) -> Verdict {
    let store = subject.store();
    let amount = |value: &Bytes| String::from_utf8_lossy(value).parse::<u64>().unwrap_or(0);
    ok("commit", store.commit(Commit::new().put("sum/a", "100").put("sum/b", "100")).await)?;
    let mover = |from: &'static str, to: &'static str| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let (mut done, mut attempts) = (0, 0);
            while done < 8 && attempts < 5_000 {
                attempts += 1;
                let (Some(source), Some(target)) = (store.get(from).await?, store.get(to).await?) else {
                    return Ok(false);
                };
                tokio::task::yield_now().await;
                let commit = Commit::new().guard(from, Some(source.version)).guard(to, Some(target.version));
                let commit = commit
                    .put(from, (amount(&source.value) - 1).to_string())
                    .put(to, (amount(&target.value) + 1).to_string());
                match store.commit(commit).await {
                    Ok(_) => done += 1,
                    Err(error) if error.kind == ErrorKind::Conflict => {}
                    Err(error) => return Err(error),
                }
            }
            Ok::<_, sas_core::Error>(done == 8)
        })
    };
    let movers = join_all([mover("sum/a", "sum/b"), mover("sum/a", "sum/b"), mover("sum/b", "sum/a")]);
    let reader = async {
        for _ in 0..60 {
            let listed = ok("list", store.list("sum/", None, 10).await)?;
            let sum: u64 = listed.iter().map(|entry| amount(&entry.value)).sum();
            ensure!(sum == 200, "a list between commits shows a sum of {sum}, not 200: {listed:?}");
            tokio::task::yield_now().await;
        }
        Ok(())
    };
    let (moved, read) = tokio::join!(movers, reader);
    read?;
    for moved in moved {
        let done = moved.map_err(|error| Stop::fail(format!("a mover ended: {error}")))?;
        ensure!(ok("a mover", done)?, "a mover did not come through in 5,000 attempts");
    }
    let found = (value(&*store, "sum/a").await?, value(&*store, "sum/b").await?);
    let found = (found.0.map(|(_, value)| amount(&value)), found.1.map(|(_, value)| amount(&value)));
    ensure!(found == (Some(92), Some(108)), "sixteen moved to b and eight back left {found:?}");
    Ok(())
}

async fn watch_waits(subject: &Subject) -> Verdict {
    let store = subject.store();
    put(&*store, "x/1", None, "before").await?;
    let from = ok("version", store.version().await)?;
    let watching = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.watch("x/", from).await })
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    ensure!(!watching.is_finished(), "a watch ended without a change");
    put(&*store, "y/1", None, "other").await?;
    tokio::time::sleep(Duration::from_millis(50)).await;
    ensure!(!watching.is_finished(), "a watch of x/ ended without a change of x/");
    let version = put(&*store, "x/2", None, "mine").await?;
    let ended = within(Duration::from_secs(10), "a watch that is due", watching).await?;
    let ended = ended.map_err(|error| Stop::fail(format!("the watch ended: {error}")))?;
    let expected = Change { key: "x/2".to_owned(), version, value: Some("mine".into()) };
    ensure!(
        ok("watch", ended)? == Watched::Changes(vec![expected]),
        "the watch did not give the one change of x/ after {from:?}"
    );
    Ok(())
}

async fn watch_resumes(subject: &Subject) -> Verdict {
    const COMMITS: usize = 60;
    let store = subject.store();
    let start = put(&*store, "w/0", None, "0").await?;
    let writing = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 0..COMMITS {
                let value = round.to_string();
                let commit =
                    Commit::new().put("w/0", value.clone()).put("w/1", value.clone()).put("w/2", value);
                store.commit(commit).await?;
                if round % 7 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            Ok::<_, sas_core::Error>(())
        })
    };
    let (mut since, mut seen) = (start, 0);
    while seen < COMMITS {
        let watched = within(Duration::from_secs(10), "a watch", store.watch("w/", since)).await?;
        let Watched::Changes(changes) = ok("watch", watched)? else {
            // A very short history: that it says so is another check's.
            return Err(Stop::skip("the history holds fewer than 180 changes"));
        };
        ensure!(!changes.is_empty(), "a watch gave nothing");
        ensure!(changes.len().is_multiple_of(3), "a watch gave a part of a commit: {changes:?}");
        for commit in changes.chunks(3) {
            let expected = seen.to_string();
            let whole = commit.iter().all(|change| {
                change.version == commit[0].version && change.value.as_deref() == Some(expected.as_bytes())
            });
            ensure!(whole && commit[0].version > since, "commit {seen} came as {commit:?} after {since:?}");
            since = commit[0].version;
            seen += 1;
        }
    }
    let wrote = writing.await.map_err(|error| Stop::fail(format!("the writer ended: {error}")))?;
    ok("a writer", wrote)
}

async fn watch_dropped(subject: &Subject) -> Verdict {
    let store = subject.store();
    let from = put(&*store, "a", None, "0").await?;
    let mut version = from;
    for round in 0..10_u32 {
        drop(drop_after_polls(round % 4, store.watch("a", version)).await);
        let next = put(&*store, "a", Some(version), &round.to_string()).await?;
        if let Some(ended) = drop_after_polls(round % 3 + 1, store.watch("a", version)).await {
            ok("watch", ended)?;
        }
        let again = within(Duration::from_secs(10), "a watch", store.watch("a", version)).await?;
        let Watched::Changes(changes) = ok("watch", again)? else {
            return Err(Stop::fail("a history of a few changes is too short"));
        };
        ensure!(
            changes.len() == 1 && changes[0].version == next,
            "after watches that were dropped, a change is told as {changes:?}"
        );
        version = next;
    }
    Ok(())
}

async fn watch_ahead(subject: &Subject) -> Verdict {
    let store = subject.store();
    let last = put(&*store, "a", None, "1").await?;
    let ahead = store.watch("", Version(last.0 + 1000));
    let watched =
        within(Duration::from_secs(5), "a watch from a version that was never reached", ahead).await?;
    ensure!(ok("watch", watched)? == Watched::ListAgain, "it goes on, as if nothing had been lost");
    Ok(())
}

async fn limits(subject: &Subject) -> Verdict {
    let (has, least) = (subject.store().limits(), StoreLimits::SMALLEST);
    let enough = has.key_bytes >= least.key_bytes
        && has.value_bytes >= least.value_bytes
        && has.commit_writes >= least.commit_writes
        && has.commit_bytes >= least.commit_bytes
        && has.commit_bytes >= has.value_bytes;
    ensure!(enough, "{has:?} is less than {least:?}");
    Ok(())
}
async fn bounds(subject: &Subject) -> Verdict {
    let store = subject.store();
    refused("an empty key", ErrorKind::InvalidSpec, store.put("", None, "x".into()).await)?;
    refused("get of an empty key", ErrorKind::InvalidSpec, store.get("").await)?;
    let limits = store.limits();
    let long = "k".repeat(limits.key_bytes);
    put(&*store, &long, None, "x").await?;
    ensure!(value(&*store, &long).await?.is_some(), "a key of {} bytes was not kept", limits.key_bytes);
    let longer = "k".repeat(limits.key_bytes + 1);
    refused("a key that is too long", ErrorKind::InvalidSpec, store.put(&longer, None, "x".into()).await)?;
    let big = Bytes::from(vec![7; limits.value_bytes]);
    ok("a value of the most bytes", store.put("big", None, big.clone()).await)?;
    ensure!(value(&*store, "big").await?.is_some_and(|(_, value)| value == big), "it came back different");
    let bigger = Bytes::from(vec![7; limits.value_bytes + 1]);
    refused("a value that is too big", ErrorKind::InvalidSpec, store.put("bigger", None, bigger).await)?;
    ensure!(value(&*store, "bigger").await?.is_none(), "a refused value was kept");

    let many =
        |count: usize| (0..count).fold(Commit::new(), |commit, at| commit.put(format!("many/{at}"), "x"));
    ok("a commit of the most writes", store.commit(many(limits.commit_writes)).await)?;
    let listed = ok("list", store.list("many/", None, limits.commit_writes + 1).await)?.len();
    ensure!(listed == limits.commit_writes, "of {} writes {listed} are there", limits.commit_writes);
    let more = many(limits.commit_writes + 1);
    refused("a commit of too many writes", ErrorKind::InvalidSpec, store.commit(more).await)?;
    let half = Bytes::from(vec![7; limits.value_bytes]);
    let heavy = (0..=limits.commit_bytes / limits.value_bytes)
        .fold(Commit::new(), |commit, at| commit.put(format!("heavy/{at}"), half.clone()));
    refused("a commit of too many bytes", ErrorKind::InvalidSpec, store.commit(heavy).await)?;
    ensure!(keys(&*store, "heavy/", None, 1).await?.is_empty(), "a part of a refused commit was kept");
    Ok(())
}

async fn any_bytes(subject: &Subject) -> Verdict {
    let store = subject.store();
    let every: Bytes = (0..=255).collect();
    ok("put", store.put("bytes", None, every.clone()).await)?;
    ok("put", store.put("empty", None, Bytes::new()).await)?;
    put(&*store, "schlüssel/鍵 \n", None, "x").await?;
    ensure!(
        value(&*store, "bytes").await?.is_some_and(|(_, value)| value == every),
        "bytes came back different"
    );
    ensure!(
        value(&*store, "empty").await?.is_some_and(|(_, value)| value.is_empty()),
        "an empty value counts as absent"
    );
    ensure!(value(&*store, "schlüssel/鍵 \n").await?.is_some(), "a key beyond ASCII was lost");
    let listed = keys(&*store, "schlüssel/", None, 10).await?;
    ensure!(listed == ["schlüssel/鍵 \n"], "a key beyond ASCII is listed as {listed:?}");
    Ok(())
}

async fn race(subject: &Subject) -> Verdict {
    let store = subject.store();
    put(&*store, "n", None, "0").await?;
    let writer = |_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let (mut done, mut attempts) = (0, 0);
            while done < 10 {
                attempts += 1;
                if attempts > 5_000 {
                    let message = "5,000 attempts of read and write were all conflicts";
                    return Err(sas_core::Error::new(ErrorKind::Conflict, "put", message));
                }
                let entry = store.get("n").await?.ok_or_else(|| {
                    sas_core::Error::new(ErrorKind::Unexpected, "get", "the counter is gone")
                })?;
                let next = String::from_utf8_lossy(&entry.value).parse::<u64>().unwrap_or(0) + 1;
                tokio::task::yield_now().await;
                match store.put("n", Some(entry.version), next.to_string().into()).await {
                    Ok(_) => done += 1,
                    Err(error) if error.kind == ErrorKind::Conflict => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(())
        })
    };
    for joined in join_all((0..4).map(writer)).await {
        ok(
            "a writer",
            joined
                .map_err(|error| sas_core::Error::new(ErrorKind::Unexpected, "join", error.to_string()))
                .flatten(),
        )?;
    }
    let last = value(&*store, "n").await?.map(|(_, value)| value);
    ensure!(last.as_deref() == Some(b"40"), "four writers of ten increments each counted to {last:?}");
    Ok(())
}

async fn dropped(subject: &Subject) -> Verdict {
    let store = subject.store();
    let mut version = put(&*store, "a", None, "0").await?;
    let mut before = Bytes::from_static(b"0");
    for round in 1..20_u32 {
        let next = Bytes::from(round.to_string());
        let ended = drop_after_polls(round % 5, store.put("a", Some(version), next.clone())).await;
        if let Some(ended) = ended {
            ok("put", ended)?;
        }
        // A write that goes on without its future is done soon, or not at all.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Some((now, value)) = value(&*store, "a").await? else {
            return Err(Stop::fail("a dropped write took the key away"));
        };
        let whole = (now == version && value == before) || (now > version && value == next);
        ensure!(whole, "a dropped write of {next:?} over {before:?} left {value:?} at {now:?}");
        let told = told(&*store, "a", version).await?.len();
        ensure!(told == usize::from(now > version), "the history tells {told} changes for one write");
        (version, before) = (now, value);
    }
    Ok(())
}

async fn durable(subject: &Subject) -> Verdict {
    let mut expected = Vec::new();
    {
        let store = subject.store();
        for key in KEYS {
            let version = put(&*store, key, None, key).await?;
            expected.push((key, version));
        }
        let (gone, version) = expected.remove(4);
        ok("delete", store.delete(gone, version).await)?;
        let (changed, version) = expected[0];
        expected[0].1 = put(&*store, changed, Some(version), "changed").await?;
    }
    let store = within(Duration::from_secs(30), "opening again", subject.opened_again()).await??;
    let listed = ok("list", store.list("", None, 100).await)?;
    let found: Vec<(&str, Version)> =
        listed.iter().map(|entry| (entry.key.as_str(), entry.version)).collect();
    ensure!(found == expected, "opened again it has {found:?}, not {expected:?}");
    ensure!(listed[0].value == "changed", "an acknowledged change was lost");
    Ok(())
}

async fn durable_versions(subject: &Subject) -> Verdict {
    let last = {
        let store = subject.store();
        let version = put(&*store, "a", None, "x").await?;
        ok("delete", store.delete("a", version).await)?;
        version
    };
    let store = subject.opened_again().await?;
    let next = put(&*store, "a", None, "y").await?;
    ensure!(
        next.0 > last.0 + 1,
        "after opening again the version is {next:?}; it was {last:?} and a deletion"
    );
    if let Some(told) = collected(&*store, "", last).await? {
        ensure!(told.len() == 2, "since {last:?} it tells {told:?}");
    }
    Ok(())
}
