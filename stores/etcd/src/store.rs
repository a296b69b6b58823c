//! The store: commits as transactions, watches as etcd's own.

use std::{collections::HashMap, fmt};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, GetResponse, KeyValue, Txn, TxnOp, TxnOpResponse,
    TxnResponse, WatchOptions,
};
use sas_core::{
    Change, Commit, Entry, Error, ErrorKind, Result, Settling, Store, StoreLimits, Version, Watched,
    guard_failed,
};

use crate::{
    answer::{answer, failed, unavailable},
    options::EtcdOptions,
};

const COMMIT: &str = "commit";
/// Keys of a list that are asked for at once: 64 MiB of values at most.
const PAGE: i64 = 64;
/// How often a commit looks again at keys that it deletes.
const ATTEMPTS: u32 = 64;
/// The format of what is stored.
const FORMAT: u32 = 1;

/// A [`Store`] in etcd, 3.4 or later, which hosts may share. It may be cloned by `Arc`.
///
/// A version is the revision of the commit in etcd. A commit is durable on a majority of the members when it returns; one
/// whose answer does not come may be done or not, and the `Unavailable` says so.
pub struct EtcdStore {
    client: Client,
    settling: Settling,
    /// All keys begin with it.
    prefix: String,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Opens the store.
    ///
    /// # Errors
    /// `Unavailable` when the cluster can't be reached or lets this user not in; `InvalidSpec` when what is under the prefix was
    /// written by a later version.
    pub async fn open(options: EtcdOptions) -> Result<Self> {
        const OPEN: &str = "open";
        let connecting = Client::connect(&options.endpoints, Some(options.connect));
        let client = answer(OPEN, connecting).await?;
        let store = Self { client, settling: Settling::default(), prefix: options.prefix };
        let format = format!("{}format", store.prefix);
        let making = Txn::new()
            .when([Compare::create_revision(format.as_str(), CompareOp::Equal, 0)])
            .and_then([TxnOp::put(format.as_str(), FORMAT.to_string(), None)])
            .or_else([TxnOp::get(format, None)]);
        let made = answer(OPEN, store.client.kv_client().txn(making)).await?;
        if let Some(found) = gets(&made).first() {
            let written = found.kvs().first().map(KeyValue::value).unwrap_or_default();
            if written != FORMAT.to_string().as_bytes() {
                let message = format!(
                    "what is under {:?} was written in format {}; this version reads {FORMAT}: use the version that wrote \
                     it, or another prefix in the store's URL",
                    store.prefix,
                    String::from_utf8_lossy(written)
                );
                return Err(Error::new(ErrorKind::InvalidSpec, OPEN, message));
            }
        }
        Ok(store)
    }

    /// The name of a key in etcd.
    fn name(&self, key: &str) -> Vec<u8> {
        format!("{}k/{key}", self.prefix).into_bytes()
    }

    /// The key that every commit writes that changes anything: its revision is the store's version.
    fn last(&self) -> String {
        format!("{}last", self.prefix)
    }

    async fn last_version(&self, operation: &'static str) -> Result<Version> {
        let options = GetOptions::new().with_keys_only();
        let found = answer(operation, self.client.kv_client().get(self.last(), Some(options))).await?;
        Ok(revision_of(&found).unwrap_or_default())
    }

    fn entry(&self, operation: &'static str, pair: &KeyValue) -> Result<Entry> {
        let (key, version) = (self.key(operation, pair.key())?, Version(pair.mod_revision().unsigned_abs()));
        Ok(Entry { key, version, value: Bytes::copy_from_slice(pair.value()) })
    }

    fn key(&self, operation: &'static str, name: &[u8]) -> Result<String> {
        let key = name.get(self.prefix.len() + 2..).map(<[u8]>::to_vec);
        key.and_then(|key| String::from_utf8(key).ok()).ok_or_else(|| {
            unavailable(operation, "etcd holds a key that is no text below the store's prefix")
        })
    }

    /// Up to `limit` entries of one revision. `None`: it was compacted meanwhile.
    async fn page_through(&self, mut start: Vec<u8>, end: &[u8], limit: usize) -> Result<Option<Vec<Entry>>> {
        const LIST: &str = "list";
        let (mut found, mut revision) = (Vec::new(), 0);
        // Values of a MiB each may be more than four, which the client takes by itself.
        let mut reads = self.client.kv_client().max_decoding_message_size(usize::MAX);
        while found.len() < limit {
            let most = i64::try_from(limit - found.len()).unwrap_or(PAGE).min(PAGE);
            let options = GetOptions::new().with_range(end).with_limit(most).with_revision(revision);
            let page = match answer(LIST, reads.get(start.clone(), Some(options))).await {
                Ok(page) => page,
                Err(error) if error.message.contains("compacted") => return Ok(None),
                Err(error) => return Err(error),
            };
            revision = page.header().map_or(0, |header| header.revision());
            for pair in page.kvs() {
                found.push(self.entry(LIST, pair)?);
            }
            let Some(last) = page.kvs().last().filter(|_| page.more()) else { break };
            start = last.key().to_vec();
            start.push(0);
        }
        Ok(Some(found))
    }
}

fn revision_of(found: &GetResponse) -> Option<Version> {
    found.kvs().first().map(|pair| Version(pair.mod_revision().unsigned_abs()))
}

fn gets(response: &TxnResponse) -> Vec<GetResponse> {
    let responses = response.op_responses().into_iter();
    responses
        .filter_map(|response| match response {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        })
        .collect()
}

/// Where a prefix ends.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // No text has the byte 255, and none is empty: all begin with the store's prefix.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn comparison(name: Vec<u8>, expected: Option<Version>) -> Compare {
    match expected.map(|version| i64::try_from(version.0)) {
        None => Compare::create_revision(name, CompareOp::Equal, 0),
        Some(Ok(revision @ 1..)) => Compare::mod_revision(name, CompareOp::Equal, revision),
        // No key has such a version.
        Some(_) => Compare::create_revision(name, CompareOp::Less, 0),
    }
}

fn keys_only(name: Vec<u8>) -> TxnOp {
    TxnOp::get(name, Some(GetOptions::new().with_keys_only()))
}

/// What a commit needs to be made without the future that asked for it.
struct Making {
    client: Client,
    commit: Commit,
    names: HashMap<String, Vec<u8>>,
    last: String,
}

impl Making {
    fn name(&self, key: &str) -> Vec<u8> {
        self.names.get(key).cloned().unwrap_or_default()
    }

    async fn make(&self) -> Result<Version> {
        if self.commit.writes.iter().any(|write| write.value.is_some()) {
            let made = self.attempt(&[], true).await?;
            return made.ok_or_else(|| unavailable(COMMIT, "etcd: the guards held and did not hold"));
        }
        // Deletions alone: whether they change anything is seen first, and must hold still.
        for _ in 0..ATTEMPTS {
            let names = self.commit.writes.iter().map(|write| self.name(&write.key));
            let looking = Txn::new().and_then(names.map(keys_only).collect::<Vec<_>>());
            let looked = answer(COMMIT, self.client.kv_client().txn(looking)).await?;
            let found: Vec<Option<Version>> = gets(&looked).iter().map(revision_of).collect();
            let changes = found.iter().any(Option::is_some);
            if let Some(version) = self.attempt(&found, changes).await? {
                return Ok(version);
            }
        }
        let message = format!("others changed the keys to be deleted {ATTEMPTS} times in a row; try again");
        Err(unavailable(COMMIT, message))
    }

    /// One transaction. `None`: the guards hold, and what was seen of the keys to be deleted does not any more.
    async fn attempt(&self, seen: &[Option<Version>], changes: bool) -> Result<Option<Version>> {
        let guards = self.commit.guards.iter().map(|guard| comparison(self.name(&guard.key), guard.expected));
        let seen =
            self.commit.writes.iter().zip(seen).map(|(write, seen)| comparison(self.name(&write.key), *seen));
        let mut operations = Vec::new();
        if changes {
            operations.push(TxnOp::put(self.last.as_str(), "", None));
            for write in &self.commit.writes {
                let name = self.name(&write.key);
                operations.push(match &write.value {
                    Some(value) => TxnOp::put(name, value.as_ref(), None),
                    None => TxnOp::delete(name, None),
                });
            }
        } else {
            operations.push(keys_only(self.last.clone().into_bytes()));
        }
        let looks: Vec<TxnOp> =
            self.commit.guards.iter().map(|guard| keys_only(self.name(&guard.key))).collect();
        let transaction =
            Txn::new().when(guards.chain(seen).collect::<Vec<_>>()).and_then(operations).or_else(looks);
        let made = match answer(COMMIT, self.client.kv_client().txn(transaction)).await {
            Ok(made) => made,
            Err(error) => return Err(self.unknown(error, changes)),
        };
        if made.succeeded() {
            let revision = made.header().map_or(0, |header| header.revision().unsigned_abs());
            let last = gets(&made).first().and_then(revision_of).unwrap_or_default();
            return Ok(Some(if changes { Version(revision) } else { last }));
        }
        let found = gets(&made);
        let failed = self.commit.guards.iter().zip(&found).find_map(|(guard, found)| {
            let found = revision_of(found);
            (found != guard.expected).then(|| guard_failed(guard, found))
        });
        failed.map_or(Ok(None), Err)
    }

    /// Says where a commit may be done although there was no answer.
    fn unknown(&self, error: Error, changes: bool) -> Error {
        let refused = ["space exceeded", "too large", "too many", "permission denied", "user name is empty"];
        if !changes || refused.iter().any(|part| error.message.contains(part)) {
            return error;
        }
        let message = format!("{}; the commit may be done or not: read it again", error.message);
        Error::new(error.kind, COMMIT, message).with_source(error)
    }
}

#[async_trait]
impl Store for EtcdStore {
    fn limits(&self) -> StoreLimits {
        StoreLimits::SMALLEST
    }

    async fn version(&self) -> Result<Version> {
        self.settling.settled().await;
        self.last_version("version").await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        const GET: &str = "get";
        self.limits().check_key(key)?;
        self.settling.settled().await;
        let found = answer(GET, self.client.kv_client().get(self.name(key), None)).await?;
        found.kvs().first().map(|pair| self.entry(GET, pair)).transpose()
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.settling.settled().await;
        let (mut start, end) = (self.name(prefix), end_of(&self.name(prefix)));
        if let Some(after) = after.filter(|after| *after >= prefix) {
            start = self.name(after);
            // The first key that is greater.
            start.push(0);
        }
        if start >= end {
            return Ok(Vec::new());
        }
        for _ in 0..2 {
            if let Some(found) = self.page_through(start.clone(), &end, limit).await? {
                return Ok(found);
            }
        }
        Err(unavailable("list", "etcd was compacted twice while a list was read; compact it less often"))
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits())?;
        let keys = commit.guards.iter().map(|guard| &guard.key).chain(commit.writes.iter().map(|it| &it.key));
        let names = keys.map(|key| (key.clone(), self.name(key))).collect();
        let making = Making { client: self.client.clone(), commit, names, last: self.last() };
        let (_caller, work) = self.settling.begin();
        // It goes on when nobody waits any more: given up in the middle, nobody would know what became of it.
        let made = tokio::spawn(async move {
            let made = making.make().await;
            drop(work);
            made
        });
        made.await.map_err(|error| Error::new(ErrorKind::Unexpected, COMMIT, error.to_string()))?
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        const WATCH: &str = "watch";
        self.settling.settled().await;
        if since > self.last_version(WATCH).await? {
            return Ok(Watched::ListAgain);
        }
        let start = self.name(prefix);
        let from = i64::try_from(since.0).unwrap_or(i64::MAX).saturating_add(1);
        let options = WatchOptions::new().with_range(end_of(&start)).with_start_revision(from);
        let mut watches = self.client.watch_client().max_decoding_message_size(usize::MAX);
        let mut stream = answer(WATCH, watches.watch(start, Some(options))).await?;
        loop {
            let message = stream.message().await.map_err(|error| failed(WATCH, error))?;
            let Some(message) = message else { return Err(unavailable(WATCH, "etcd ended the watch")) };
            if message.compact_revision() > 0 {
                return Ok(Watched::ListAgain);
            }
            if message.canceled() {
                return Err(unavailable(WATCH, format!("etcd ended the watch: {}", message.cancel_reason())));
            }
            let mut changes = Vec::with_capacity(message.events().len());
            for event in message.events() {
                let Some(pair) = event.kv() else { continue };
                changes.push(Change {
                    key: self.key(WATCH, pair.key())?,
                    version: Version(pair.mod_revision().unsigned_abs()),
                    value: (event.event_type() == EventType::Put)
                        .then(|| Bytes::copy_from_slice(pair.value())),
                });
            }
            if !changes.is_empty() {
                return Ok(Watched::Changes(changes));
            }
        }
    }
}
