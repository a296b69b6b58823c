//! The suite for [`sas_core::Store`].

use std::{fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use sas_core::{ErrorKind, Result, Store, Version};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, drop_after_polls, ensure, within},
};

type Reopen = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Arc<dyn Store>>>>>;

/// An empty store, and how to open it again if it outlives its process.
pub struct Subject {
    store: Mutex<Option<Arc<dyn Store>>>,
    reopen: Option<Reopen>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("reopen", &self.reopen.is_some()).finish_non_exhaustive()
    }
}

impl Subject {
    /// A store that is empty.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store: Mutex::new(Some(store)), reopen: None }
    }

    /// Opens the same medium again. The suite has dropped its handle by then.
    #[must_use]
    pub fn reopen<F>(mut self, reopen: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Arc<dyn Store>> + 'static,
    {
        self.reopen = Some(Box::new(move || Box::pin(reopen())));
        self
    }

    fn store(&self) -> Arc<dyn Store> {
        self.store.lock().clone().expect("present except while it is opened again")
    }

    async fn opened_again(&self) -> Verdict<Arc<dyn Store>> {
        let Some(reopen) = &self.reopen else {
            return Err(Stop::skip("the store does not outlive its process (no `reopen`)"));
        };
        drop(self.store.lock().take());
        let store = reopen().await;
        *self.store.lock() = Some(Arc::clone(&store));
        Ok(store)
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
            "a history that is too short is a conflict, never a gap" => short_history,
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

fn ok<T>(what: &str, result: Result<T>) -> Verdict<T> {
    result.map_err(|error| Stop::fail(format!("{what}: {}", error.chain())))
}

fn refused<T: fmt::Debug>(what: &str, kind: ErrorKind, result: Result<T>) -> Verdict {
    match result {
        Err(error) if error.kind == kind => Ok(()),
        other => Err(Stop::fail(format!("{what}: expected {kind:?}, got {other:?}"))),
    }
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
    let seen = ok("changes", store.changes("", new).await)?;
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
    let four = ok("changes", store.changes("", three).await)?;
    ensure!(
        four.len() == 1 && four[0].key == "x/1" && four[0].value.is_none() && four[0].version > three,
        "the deletion is told as {four:?}"
    );
    let all = ok("changes", store.changes("", Version(0)).await)?;
    let told: Vec<(&str, Option<&[u8]>)> =
        all.iter().map(|change| (change.key.as_str(), change.value.as_deref())).collect();
    let expected: [(&str, Option<&[u8]>); 4] =
        [("x/1", Some(b"a")), ("y/1", Some(b"b")), ("x/1", Some(b"c")), ("x/1", None)];
    ensure!(told == expected, "the history is {told:?}");
    ensure!(
        all.windows(2).all(|pair| pair[0].version < pair[1].version),
        "the versions of the history do not rise: {all:?}"
    );
    ensure!(all[1].version == two, "the history gives y/1 version {:?}, put gave {two:?}", all[1].version);
    let some = ok("changes", store.changes("x/", one).await)?;
    ensure!(some.len() == 2, "below x/ after the first there are {some:?}");
    let last = all[3].version;
    ensure!(
        ok("changes", store.changes("", last).await)?.is_empty(),
        "after the last change there is another"
    );
    Ok(())
}

async fn short_history(subject: &Subject) -> Verdict {
    let store = subject.store();
    let mut version = None;
    for round in 0..300 {
        version = Some(put(&*store, "counter", version, &round.to_string()).await?);
    }
    match store.changes("", Version(0)).await {
        Ok(all) => {
            ensure!(all.len() == 300, "of 300 changes the history has {}, and says nothing", all.len())
        }
        Err(error) => ensure!(error.kind == ErrorKind::Conflict, "a short history is {:?}", error.kind),
    }
    Ok(())
}

async fn bounds(subject: &Subject) -> Verdict {
    let store = subject.store();
    refused("an empty key", ErrorKind::InvalidSpec, store.put("", None, "x".into()).await)?;
    refused("get of an empty key", ErrorKind::InvalidSpec, store.get("").await)?;
    let long = "k".repeat(1024);
    put(&*store, &long, None, "x").await?;
    ensure!(value(&*store, &long).await?.is_some(), "a key of 1 KiB was not kept");
    let longer = "k".repeat(1025);
    refused("a key of 1,025 bytes", ErrorKind::InvalidSpec, store.put(&longer, None, "x".into()).await)?;
    let big = Bytes::from(vec![7; 16 << 20]);
    ok("a value of 16 MiB", store.put("big", None, big.clone()).await)?;
    ensure!(
        value(&*store, "big").await?.is_some_and(|(_, value)| value == big),
        "16 MiB came back different"
    );
    let bigger = Bytes::from(vec![7; (16 << 20) + 1]);
    refused("a value above 16 MiB", ErrorKind::InvalidSpec, store.put("bigger", None, bigger).await)?;
    ensure!(value(&*store, "bigger").await?.is_none(), "a refused value was kept");
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
        let told = ok("changes", store.changes("a", version).await)?.len();
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
    match store.changes("", last).await {
        Ok(told) => ensure!(told.len() == 2, "since {last:?} it tells {told:?}"),
        Err(error) => {
            ensure!(error.kind == ErrorKind::Conflict, "a history that is gone is {:?}", error.kind)
        }
    }
    Ok(())
}
