//! The books in the store.
//!
//! | Key | Holds |
//! |---|---|
//! | `usage/hour/HOUR/NAMESPACE/SERVICE/REVISION` | what the revision used within the hour |
//! | `usage/hour/HOUR/~gap/FROM` | a gap that ended within the hour |
//! | `usage/total/NAMESPACE/SERVICE/REVISION` | what it used in all, and its last hour |
//! | `usage/gap/FROM` | a gap, for those who look for gaps alone |
//! | `usage/checkpoint/HOST` | when the host wrote last, and whether more follows |
//! | `usage/mark/HOST` | which commit of readings was the host's last |
//! | `usage/export/NAME` | how far an exporter is |
//! | `usage/damaged/HOUR/KEY` | the bytes of a record below `usage/` that could not be read when the books needed it |
//!
//! The hour of a revision and its total are written in one commit, and guarded: they can't differ, and two writers can't
//! overwrite each other. A record that can't be read is set aside for as long as hours are kept, and the books go on
//! without it: what one revision used must not be lost for what was written of another.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use sas_core::{
    Clock, Commit, Entry, Error, ErrorKind, Hour, HourUsage, MeterTotals, Result, RevisionName,
    RevisionUsage, Store, Timestamp, UsageGap, UsagePage, UsageScope, Version,
};
use serde::{Deserialize, Serialize};

use super::MeterConfig;

pub(super) const HOURS: &str = "usage/hour/";
const CHECKPOINTS: &str = "usage/checkpoint/";
const TOTALS: &str = "usage/total/";
const GAPS: &str = "usage/gap/";
const DAMAGED: &str = "usage/damaged/";
pub(super) const EXPORTS: &str = "usage/export/";
pub(super) const GAP: &str = "~gap";
/// Entries that are read from the store in one go.
const PAGE: usize = 256;
/// How often a commit is tried again that another writer was faster than.
const ATTEMPTS: u32 = 16;
const FORMAT: u32 = 1;
/// How long ago a host may have written that more follows and is still waited for: one that was killed and never came back
/// would hold up exports for ever.
const AWAY: Duration = Duration::from_secs(3_600);

/// A value of `usage/hour/` or `usage/total/`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Sum {
    v: u32,
    /// The last hour in which it grew; of a total alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last: Option<Hour>,
    used: MeterTotals,
}

/// The value of `usage/checkpoint/`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Checkpoint {
    v: u32,
    at: Timestamp,
    /// Whether more was to follow: found by a start, it means a gap.
    open: bool,
    /// The hour that readings counted for, which never goes back, whatever the clock does.
    hour: Hour,
}

/// The value of `usage/mark/`. It is the host's alone, so that a commit that failed without a word can be found out about
/// whatever other hosts wrote since.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Mark {
    v: u32,
    mark: u64,
}

/// What the store holds of a revision, as far as it is known.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    hour: (Option<Version>, MeterTotals),
    total: (Option<Version>, MeterTotals),
}

#[derive(Debug)]
pub(super) struct Ledger {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    keep: u64,
    checkpoint_key: String,
    mark_key: String,
    /// The hour that readings count for.
    hour: Hour,
    /// When readings were last taken over: what came later is not in what is written.
    taken: Timestamp,
    /// Whether the last checkpoint said that more follows.
    open: bool,
    /// Readings that are not in the store yet, by hour and path.
    pending: BTreeMap<(Hour, String), MeterTotals>,
    /// Readings whose commit failed in a way that may have done it, with its mark.
    doubtful: Option<(u64, Vec<Reading>)>,
    /// The mark of the last commit.
    mark: u64,
    /// Of revisions that used something in this hour.
    known: HashMap<String, Known>,
}

/// What a revision used within an hour, on its way to the store.
type Reading = ((Hour, String), MeterTotals);

/// The path of a revision; of the host's stems without a name.
fn path(name: Option<&RevisionName>) -> String {
    match name {
        Some(name) => name.as_str().to_owned(),
        None => format!("//{}", RevisionUsage::STEMS),
    }
}

fn parts(path: &str) -> Option<(&str, &str, &str)> {
    let (namespace, rest) = path.split_once('/')?;
    let (service, revision) = rest.split_once('/')?;
    Some((namespace, service, revision))
}

fn hour_key(hour: Hour, path: &str) -> String {
    format!("{HOURS}{:010}/{path}", hour.0)
}

/// The hour and the path of a key below `usage/hour/`.
pub(super) fn hour_of(key: &str) -> Option<(Hour, &str)> {
    let (hour, path) = key.strip_prefix(HOURS)?.split_once('/')?;
    Some((Hour(hour.parse().ok()?), path))
}

pub(super) fn unreadable(key: &str, problem: impl std::fmt::Display) -> Error {
    let message = format!("{key:?} in the store can't be read: {problem}");
    Error::new(ErrorKind::InvalidSpec, "usage", message)
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and flags")
}

fn decode<'a, T: Deserialize<'a>>(key: &str, value: &'a [u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| unreadable(key, error))
}

/// The same; what can't be read is named in the log and passed over.
fn decode_or_skip<'a, T: Deserialize<'a>>(key: &str, value: &'a [u8]) -> Option<T> {
    let read = decode(key, value);
    read.inspect_err(|error| tracing::error!(error = %error.chain(), "the books go on without it")).ok()
}

/// What an entry below `usage/hour/` holds; `None`: it can't be read, which the log says.
pub(super) fn used(key: &str, value: &[u8]) -> Option<MeterTotals> {
    decode_or_skip::<Sum>(key, value).map(|sum| sum.used)
}

/// What an entry below `usage/hour/HOUR/~gap/` holds; `None` as with [`used`].
pub(super) fn gap(key: &str, value: &[u8]) -> Option<UsageGap> {
    decode_or_skip(key, value)
}

/// Keeps the bytes of an entry that can't be read, and whose place the commit writes over.
pub(super) fn set_aside(commit: Commit, hour: Hour, found: &Entry) -> Commit {
    let key = found.key.strip_prefix("usage/").unwrap_or(&found.key);
    commit.put(format!("{DAMAGED}{:010}/{key}", hour.0), found.value.clone())
}

impl Ledger {
    pub(super) fn new(config: &MeterConfig) -> Self {
        Self {
            store: Arc::clone(&config.store),
            clock: Arc::clone(&config.clock),
            keep: config.keep_hours.max(1),
            checkpoint_key: format!("{CHECKPOINTS}{}", config.host),
            mark_key: format!("usage/mark/{}", config.host),
            hour: Hour::of(config.clock.now()),
            taken: config.clock.now(),
            open: false,
            pending: BTreeMap::new(),
            doubtful: None,
            // No commit of another life has the same.
            mark: config.clock.now().0 as u64,
            known: HashMap::new(),
        }
    }

    /// The hours before this one are complete, on each host that says that it has more to write.
    pub(super) async fn complete_before(&self) -> Result<Hour> {
        let now = self.clock.now();
        let mut first = self.hour;
        for entry in self.all(CHECKPOINTS).await? {
            let Some(of) = decode_or_skip::<Checkpoint>(&entry.key, &entry.value) else { continue };
            if of.open && now.since(of.at) < AWAY {
                first = first.min(of.hour);
            }
        }
        Ok(first)
    }

    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    pub(super) async fn begin(&mut self) -> Result<Option<UsageGap>> {
        let now = self.clock.now();
        self.hour = self.hour.max(Hour::of(now));
        self.taken = now;
        // A clock that was ahead has ended hours that this one is in: what was exported stays as it is.
        for entry in self.all(EXPORTS).await? {
            // The exporter sets aside what it can't read, and begins anew.
            let last = std::str::from_utf8(&entry.value).ok().and_then(hour_of);
            let Some((exported, _)) = last else { continue };
            self.hour = self.hour.max(Hour(exported.0 + 1));
        }
        let Some(entry) = self.store.get(&self.checkpoint_key).await? else { return Ok(None) };
        let Some(last) = decode_or_skip::<Checkpoint>(&entry.key, &entry.value) else {
            return self.begin_without_checkpoint(&entry, now).await.map(Some);
        };
        self.hour = self.hour.max(last.hour);
        if !last.open {
            return Ok(None);
        }
        let gap = UsageGap::new(last.at, now.max(last.at));
        self.write_gap(Commit::new().guard(&self.checkpoint_key, Some(entry.version)), &gap).await?;
        Ok(Some(gap))
    }

    async fn write_gap(&self, commit: Commit, gap: &UsageGap) -> Result<()> {
        let value = encode(gap);
        let from = format!("{:020}", gap.from.0.max(0));
        let commit = self
            .stamp(commit, false)
            .put(format!("{GAPS}{from}"), value.clone())
            .put(hour_key(self.hour, &format!("{GAP}/{from}")), value);
        self.store.commit(commit).await.map(drop)
    }

    /// When the host wrote last can't be read: it was in the last hour that has usage or later, so the gap begins with that.
    async fn begin_without_checkpoint(&mut self, found: &Entry, now: Timestamp) -> Result<UsageGap> {
        let totals = self.all(TOTALS).await?;
        let sums = totals.iter().filter_map(|entry| decode::<Sum>(&entry.key, &entry.value).ok());
        let last = sums.filter_map(|sum| sum.last).max().unwrap_or(self.hour);
        self.hour = self.hour.max(last);
        let gap = UsageGap::new(last.start().min(now), now);
        let commit = Commit::new().guard(&self.checkpoint_key, Some(found.version));
        self.write_gap(set_aside(commit, self.hour, found), &gap).await?;
        Ok(gap)
    }

    /// Readings are taken over now. After a quiet time the hour is that which it is now: nothing was read in those between.
    pub(super) fn catch_up(&mut self) {
        self.taken = self.clock.now();
        let now = Hour::of(self.taken);
        if !self.open && now > self.hour {
            self.hour = now;
            self.known.clear();
        }
    }

    /// Readings, for the present hour.
    pub(super) fn add(&mut self, name: Option<&RevisionName>, totals: &MeterTotals) {
        self.pending.entry((self.hour, path(name))).or_default().add_all(totals);
    }

    fn stamp(&self, commit: Commit, open: bool) -> Commit {
        let stamp = Checkpoint { v: FORMAT, at: self.taken, open, hour: self.hour };
        commit.put(&self.checkpoint_key, encode(&stamp))
    }

    /// Writes what is pending, and that more follows or not. Afterwards readings count for the hour that it is then.
    pub(super) async fn write(&mut self, open: bool) -> Result<()> {
        // Two for a revision, and beside them the mark and the checkpoint.
        let most = (self.store.limits().commit_writes.saturating_sub(2) / 2).max(1);
        self.settle().await?;
        let mut stamped = false;
        let mut conflicts = 0;
        while !self.pending.is_empty() {
            let batch: Vec<Reading> =
                self.pending.iter().take(most).map(|(key, totals)| (key.clone(), *totals)).collect();
            let last = batch.len() == self.pending.len();
            match self.write_batch(&batch, last.then_some(open)).await {
                Ok(()) => {
                    for (key, _) in &batch {
                        self.pending.remove(key);
                    }
                    stamped |= last;
                    conflicts = 0;
                }
                Err(error) if error.kind == ErrorKind::Conflict && conflicts < ATTEMPTS => {
                    // Another host wrote the same revision: read it again.
                    self.known.clear();
                    conflicts += 1;
                }
                Err(error) => {
                    self.known.clear();
                    if error.kind != ErrorKind::Conflict {
                        // It may have been done all the same: only the store knows.
                        for (key, _) in &batch {
                            self.pending.remove(key);
                        }
                        self.doubtful = Some((self.mark, batch));
                    }
                    return Err(error);
                }
            }
        }
        let now = Hour::of(self.clock.now());
        let over = now > self.hour;
        if over {
            self.hour = now;
            self.known.clear();
        }
        // Once more at the end of an hour: exports wait for hosts that are in an earlier one.
        if over || !stamped && (open != self.open || open) {
            self.store.commit(self.stamp(Commit::new(), open)).await?;
        }
        self.open = open;
        if over {
            self.forget_old().await?;
        }
        Ok(())
    }

    /// Finds out whether a commit was done that failed without a word.
    async fn settle(&mut self) -> Result<()> {
        let Some((mark, batch)) = &self.doubtful else { return Ok(()) };
        let found = self.store.get(&self.mark_key).await?;
        let last = found.and_then(|entry| decode_or_skip::<Mark>(&entry.key, &entry.value));
        if last.is_none_or(|last| last.mark != *mark) {
            for (key, totals) in batch {
                self.pending.entry(key.clone()).or_default().add_all(totals);
            }
        }
        self.doubtful = None;
        Ok(())
    }

    async fn write_batch(&mut self, batch: &[Reading], stamp: Option<bool>) -> Result<()> {
        self.mark = self.mark.wrapping_add(1);
        let mark = Mark { v: FORMAT, mark: self.mark };
        let mut commit = Commit::new().put(&self.mark_key, encode(&mark));
        let mut written = Vec::new();
        for ((hour, path), totals) in batch {
            let known = self.look_up(*hour, path).await?;
            let (mut in_hour, mut in_all) = (known.hour.1, known.total.1);
            in_hour.add_all(totals);
            in_all.add_all(totals);
            let (hour_key, total_key) = (hour_key(*hour, path), format!("{TOTALS}{path}"));
            commit = commit.guard(&hour_key, known.hour.0).guard(&total_key, known.total.0);
            commit = commit
                .put(hour_key, encode(&Sum { v: FORMAT, last: None, used: in_hour }))
                .put(total_key, encode(&Sum { v: FORMAT, last: Some(*hour), used: in_all }));
            written.push((*hour, path, in_hour, in_all));
        }
        if let Some(open) = stamp {
            commit = self.stamp(commit, open);
        }
        let version = self.store.commit(commit).await?;
        for (hour, path, in_hour, in_all) in written {
            if hour == self.hour {
                let known = Known { hour: (Some(version), in_hour), total: (Some(version), in_all) };
                self.known.insert(path.clone(), known);
            } else {
                self.known.remove(path);
            }
        }
        Ok(())
    }

    async fn look_up(&self, hour: Hour, path: &str) -> Result<Known> {
        if hour == self.hour
            && let Some(known) = self.known.get(path)
        {
            return Ok(*known);
        }
        let read = async |key: String| {
            let Some(entry) = self.store.get(&key).await? else {
                return Ok::<_, Error>((None, Some(MeterTotals::default())));
            };
            if let Some(sum) = decode_or_skip::<Sum>(&key, &entry.value) {
                return Ok((Some(entry.version), Some(sum.used)));
            }
            // In a commit of its own: that of the readings may have no room for another write.
            let commit = Commit::new().guard(&key, Some(entry.version)).delete(&key);
            self.store.commit(set_aside(commit, self.hour, &entry)).await?;
            Ok((None, None))
        };
        let in_hour = read(hour_key(hour, path)).await?;
        let in_all = read(format!("{TOTALS}{path}")).await?;
        let used = in_hour.1.unwrap_or_default();
        // A total is not less than what the hour has.
        Ok(Known { hour: (in_hour.0, used), total: (in_all.0, in_all.1.unwrap_or(used)) })
    }

    /// Deletes hours that are no longer kept. A revision whose last hour goes is added to what its service's retired ones
    /// used together.
    async fn forget_old(&mut self) -> Result<()> {
        let Some(first) = self.hour.0.checked_sub(self.keep) else { return Ok(()) };
        loop {
            let page = self.store.list(HOURS, None, PAGE).await?;
            let old: Vec<_> = page
                .iter()
                .filter_map(|entry| hour_of(&entry.key).map(|(hour, path)| (entry, hour, path)))
                .filter(|(_, hour, _)| hour.0 < first)
                .collect();
            for (entry, hour, path) in &old {
                self.retire(&entry.key, *hour, path).await?;
            }
            if old.len() < PAGE {
                break;
            }
        }
        let gaps = self.store.list(GAPS, None, PAGE).await?;
        for entry in gaps {
            let of = decode_or_skip::<UsageGap>(&entry.key, &entry.value);
            if of.is_some_and(|gap| Hour::of(gap.until).0 < first) {
                self.store.commit(Commit::new().delete(entry.key)).await?;
            }
        }
        for entry in self.store.list(DAMAGED, None, PAGE).await? {
            let hour = entry.key[DAMAGED.len()..].split('/').next().and_then(|hour| hour.parse::<u64>().ok());
            if hour.is_some_and(|hour| hour < first) {
                self.store.commit(Commit::new().delete(entry.key)).await?;
            }
        }
        Ok(())
    }

    async fn retire(&self, key: &str, hour: Hour, path: &str) -> Result<()> {
        let mut commit = Commit::new().delete(key);
        if let Some((namespace, service, revision)) = parts(path)
            && namespace != GAP
            && !revision.starts_with('~')
        {
            let total_key = format!("{TOTALS}{path}");
            if let Some(entry) = self.store.get(&total_key).await? {
                // A total that can't be read stays where it is.
                if let Some(total) = decode_or_skip::<Sum>(&total_key, &entry.value)
                    && total.last.is_none_or(|last| last <= hour)
                {
                    let retired_key = format!("{TOTALS}{namespace}/{service}/{}", RevisionUsage::RETIRED);
                    let retired = self.store.get(&retired_key).await?;
                    let mut sum = match &retired {
                        Some(entry) => match decode_or_skip::<Sum>(&retired_key, &entry.value) {
                            Some(sum) => sum.used,
                            None => {
                                commit = set_aside(commit, self.hour, entry);
                                MeterTotals::default()
                            }
                        },
                        None => MeterTotals::default(),
                    };
                    sum.add_all(&total.used);
                    commit = commit
                        .guard(&total_key, Some(entry.version))
                        .guard(&retired_key, retired.map(|entry| entry.version))
                        .delete(total_key)
                        .put(retired_key, encode(&Sum { v: FORMAT, last: None, used: sum }));
                }
            }
        }
        self.store.commit(commit).await.map(drop)
    }

    /// All entries below a prefix.
    async fn all(&self, prefix: &str) -> Result<Vec<Entry>> {
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.key.clone());
            let page = self.store.list(prefix, after.as_deref(), PAGE).await?;
            let more = page.len() == PAGE;
            entries.extend(page);
            if !more {
                return Ok(entries);
            }
        }
    }

    pub(super) async fn totals(&mut self, scope: &UsageScope) -> Result<Vec<RevisionUsage>> {
        self.settle().await?;
        let mut sums: BTreeMap<String, MeterTotals> = BTreeMap::new();
        for entry in self.all(&format!("{TOTALS}{}", below(scope))).await? {
            let path = &entry.key[TOTALS.len()..];
            let Some(sum) = decode_or_skip::<Sum>(&entry.key, &entry.value) else { continue };
            sums.entry(path.to_owned()).or_default().add_all(&sum.used);
        }
        for ((_, path), totals) in &self.pending {
            sums.entry(path.clone()).or_default().add_all(totals);
        }
        Ok(sums.into_iter().filter_map(|(path, totals)| in_scope(scope, &path, totals)).collect())
    }

    pub(super) async fn hours(
        &mut self,
        scope: &UsageScope,
        from: Hour,
        until: Hour,
        after: Option<&str>,
        limit: usize,
    ) -> Result<UsagePage> {
        self.settle().await?;
        let limit = limit.clamp(1, 10_000);
        let after = match after {
            Some(after) => {
                let key = format!("{HOURS}{after}");
                if hour_of(&key).is_none() {
                    let message = format!("after: {after:?} is not the `next` of a page of usage");
                    return Err(Error::new(ErrorKind::InvalidSpec, "usage", message));
                }
                Some(key)
            }
            None => None,
        };
        // Behind every key of the hour before.
        let begin = hour_key(from, "");
        let mut at = after.clone().filter(|after| *after > begin).unwrap_or(begin);
        let mut found: BTreeMap<String, MeterTotals> = BTreeMap::new();
        let mut complete = false;
        while found.len() <= limit && !complete {
            let page = self.store.list(HOURS, Some(&at), PAGE).await?;
            complete = page.len() < PAGE;
            for entry in page {
                at.clone_from(&entry.key);
                let Some((hour, path)) = hour_of(&entry.key) else { continue };
                if hour >= until {
                    complete = true;
                    break;
                }
                if !is_gap(path) && matches(scope, path) {
                    let Some(sum) = decode_or_skip::<Sum>(&entry.key, &entry.value) else { continue };
                    found.insert(entry.key, sum.used);
                }
            }
        }
        let upper = if complete { Bound::Unbounded } else { Bound::Included(at) };
        for ((hour, path), totals) in &self.pending {
            let key = hour_key(*hour, path);
            let wanted = *hour >= from && *hour < until && matches(scope, path);
            let seen = after.as_ref().is_some_and(|after| key <= *after);
            let beyond = matches!(&upper, Bound::Included(last) if key > *last);
            if wanted && !seen && !beyond {
                found.entry(key).or_default().add_all(totals);
            }
        }
        let more = found.len() > limit || !complete;
        let mut hours = Vec::new();
        let mut next = None;
        for (key, totals) in found.into_iter().take(limit) {
            let Some((hour, path)) = hour_of(&key) else { continue };
            next = Some(key[HOURS.len()..].to_owned());
            if let Some(usage) = in_scope(scope, path, totals) {
                hours.push(HourUsage::new(hour, usage));
            }
        }
        Ok(UsagePage::new(hours, next.filter(|_| more)))
    }

    pub(super) async fn gaps(&self) -> Result<Vec<UsageGap>> {
        let gaps = self.all(GAPS).await?;
        Ok(gaps.iter().filter_map(|entry| decode_or_skip(&entry.key, &entry.value)).collect())
    }
}

pub(super) fn is_gap(path: &str) -> bool {
    path.split_once('/').is_some_and(|(namespace, _)| namespace == GAP)
}

/// The part of the path that all of the scope begin with.
fn below(scope: &UsageScope) -> String {
    match (&scope.namespace, &scope.service) {
        (Some(namespace), Some(service)) => format!("{namespace}/{service}/"),
        (Some(namespace), None) => format!("{namespace}/"),
        (None, _) => String::new(),
    }
}

fn matches(scope: &UsageScope, path: &str) -> bool {
    parts(path).is_some_and(|(namespace, service, revision)| scope.contains(namespace, service, revision))
}

pub(super) fn in_scope(scope: &UsageScope, path: &str, totals: MeterTotals) -> Option<RevisionUsage> {
    let (namespace, service, revision) = parts(path)?;
    scope
        .contains(namespace, service, revision)
        .then(|| RevisionUsage::new(namespace, service, revision, totals))
}
