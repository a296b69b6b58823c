//! What one host knows of all, and what follows from it. Pure: changes and the time go in, steps come out.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sas_core::{Change, Entry, Guard, HostStatus, Place, Result, Version};
use tokio::time::Instant;

use crate::{
    assignment::{host_of, score, shard_of},
    record::{About, HostRecord, ShardRecord, about, decode, shard_key},
};

/// Hosts that notice together that one is gone say so one after the other, this far apart.
const APART: Duration = Duration::from_millis(50);
/// And no more than so many places behind the first.
const PLACES: u32 = 8;

/// What one host knows of all.
#[derive(Debug)]
pub(crate) struct View {
    me: String,
    term: Duration,
    hosts: BTreeMap<String, Known>,
    renewals: BTreeMap<String, Version>,
    /// When the last renewal of each was first seen. It outlives a list that was read again.
    last_seen: BTreeMap<String, (Option<Version>, Instant)>,
    shards: Vec<Option<Owner>>,
    membership: Option<Membership>,
    /// Nothing was learned since no shard was to be moved.
    settled: bool,
    /// The last change of a host or a shard that is in here.
    pub(crate) seen: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    record: HostRecord,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    holder: Arc<str>,
    life: String,
    epoch: u64,
    version: Version,
}

/// That this host is a member, and until when it may act as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Membership {
    pub(crate) life: String,
    pub(crate) version: Version,
    pub(crate) until: Instant,
    pub(crate) draining: bool,
}

/// Something that this host should write. What each is guarded by makes it fail when the view is behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A host was silent for a whole term: it is none any more.
    Expel { host: String, version: Version, renewed: Option<Version> },
    /// These shards have no owner, and belong here.
    Take(Vec<(u16, Option<Version>, ShardRecord)>),
    /// These shards are this host's and belong on another one: shard, its version, the new record, and the version of the
    /// record of the host that gets it.
    Give { to: String, version: Version, shards: Vec<(u16, Version, ShardRecord)> },
}

impl View {
    pub(crate) fn new(me: &str, term: Duration, shards: u16) -> Self {
        Self {
            me: me.to_owned(),
            term,
            hosts: BTreeMap::new(),
            renewals: BTreeMap::new(),
            last_seen: BTreeMap::new(),
            shards: vec![None; usize::from(shards)],
            membership: None,
            settled: false,
            seen: Version(0),
        }
    }

    /// Takes over what the store holds now. Whether a host or a shard is another than before.
    pub(crate) fn replace(&mut self, entries: &[Entry], at: Version, now: Instant) -> Result<bool> {
        let before = (std::mem::take(&mut self.hosts), self.shards.clone());
        self.renewals.clear();
        self.shards.fill(None);
        for entry in entries {
            self.learn(&entry.key, entry.version, Some(&entry.value))?;
        }
        let names: BTreeSet<&String> = self.hosts.keys().chain(self.renewals.keys()).collect();
        self.last_seen.retain(|name, _| names.contains(name));
        self.hear(now);
        let changed = before.0 != self.hosts || before.1 != self.shards;
        if changed {
            self.seen = self.seen.max(at);
        }
        Ok(changed)
    }

    /// Takes over changes, oldest first. Whether a host or a shard is another than before.
    pub(crate) fn apply(&mut self, changes: &[Change], now: Instant) -> Result<bool> {
        let mut changed = false;
        for change in changes {
            if self.learn(&change.key, change.version, change.value.as_deref())? {
                changed = true;
                self.seen = self.seen.max(change.version);
            }
        }
        self.hear(now);
        Ok(changed)
    }

    fn learn(&mut self, key: &str, version: Version, value: Option<&[u8]>) -> Result<bool> {
        self.settled &= matches!(about(key), About::Renewal(_) | About::Other);
        match (about(key), value) {
            (About::Host(name), Some(value)) => {
                let record = decode(key, value)?;
                self.hosts.insert(name.to_owned(), Known { record, version });
                Ok(true)
            }
            (About::Host(name), None) => Ok(self.hosts.remove(name).is_some()),
            (About::Renewal(name), Some(_)) => {
                self.renewals.insert(name.to_owned(), version);
                Ok(false)
            }
            (About::Renewal(name), None) => {
                self.renewals.remove(name);
                self.last_seen.remove(name);
                Ok(false)
            }
            (About::Shard(shard), value) => {
                let Some(owner) = self.shards.get_mut(usize::from(shard)) else { return Ok(false) };
                *owner = match value {
                    Some(value) => {
                        let record: ShardRecord = decode(key, value)?;
                        let ShardRecord { holder, life, epoch } = record;
                        Some(Owner { holder: holder.into(), life, epoch, version })
                    }
                    None => None,
                };
                Ok(true)
            }
            (About::Other, _) => Ok(false),
        }
    }

    /// Notes when renewals were seen that were not seen before.
    fn hear(&mut self, now: Instant) {
        for name in self.hosts.keys() {
            let renewed = self.renewals.get(name).copied();
            let last_seen = self.last_seen.entry(name.clone()).or_insert((renewed, now));
            if last_seen.0 != renewed {
                *last_seen = (renewed, now);
            }
        }
    }

    pub(crate) fn membership(&self) -> Option<&Membership> {
        self.membership.as_ref()
    }

    /// From now on this host is a member, or none. Who could not act for a while could not listen either: what it did not
    /// hear meanwhile tells nothing.
    pub(crate) fn set_membership(&mut self, membership: Option<Membership>, now: Instant) {
        if membership.is_some() && !self.acts(now) {
            self.listen_anew(now);
        }
        self.membership = membership;
        self.settled = false;
    }

    /// Silence counts from now on: it was not listened to without a break.
    pub(crate) fn listen_anew(&mut self, now: Instant) {
        for (_, since) in self.last_seen.values_mut() {
            *since = now;
        }
    }

    /// Whether this host may act now.
    pub(crate) fn acts(&self, now: Instant) -> bool {
        self.membership.as_ref().is_some_and(|membership| now < membership.until)
    }

    fn is_mine(&self, owner: &Owner) -> bool {
        *owner.holder == *self.me && self.membership.as_ref().is_some_and(|mine| mine.life == owner.life)
    }

    /// Whether the membership that an owner had is over. Once it is, it is for ever.
    fn is_over(&self, owner: &Owner) -> bool {
        !self.is_mine(owner)
            && self.hosts.get(&*owner.holder).is_none_or(|host| host.record.life != owner.life)
    }

    pub(crate) fn place(&self, path: &str, now: Instant) -> Place {
        let shard = shard_of(path, u16::try_from(self.shards.len()).unwrap_or(u16::MAX));
        match &self.shards[usize::from(shard)] {
            Some(owner) if self.is_mine(owner) && self.acts(now) => {
                Place::Here(Guard { key: shard_key(shard), expected: Some(owner.version) })
            }
            Some(owner) if !self.is_mine(owner) && !self.is_over(owner) => {
                Place::There(Arc::clone(&owner.holder))
            }
            _ => Place::Undecided,
        }
    }

    /// The epoch of a shard, and whether it is this host's to act for.
    pub(crate) fn epoch(&self, shard: u16, now: Instant) -> Option<u64> {
        let owner = self.shards.get(usize::from(shard))?.as_ref()?;
        (self.is_mine(owner) && self.acts(now)).then_some(owner.epoch)
    }

    /// How many shards this host owns, whether it may act for them now or not.
    pub(crate) fn owned(&self) -> usize {
        self.shards.iter().flatten().filter(|owner| self.is_mine(owner)).count()
    }

    pub(crate) fn list(&self) -> Vec<HostStatus> {
        let mut hosts: Vec<HostStatus> = Vec::new();
        for (name, known) in &self.hosts {
            let mut status = HostStatus::new(name, known.record.address.to_string());
            status.draining = known.record.draining;
            status.here = *name == self.me;
            let owns = |owner: &&Owner| *owner.holder == **name && owner.life == known.record.life;
            status.shards = self.shards.iter().flatten().filter(owns).count();
            hosts.push(status);
        }
        hosts
    }

    /// Hosts that may take a part of what a path is about, best first.
    pub(crate) fn ranked(&self, path: &str) -> Vec<String> {
        let shard = shard_of(path, u16::try_from(self.shards.len()).unwrap_or(u16::MAX));
        let mut takers = self.takers();
        takers.sort_by_key(|host| std::cmp::Reverse((score(shard, host), *host)));
        takers.into_iter().map(str::to_owned).collect()
    }

    /// Hosts that shards may go to.
    fn takers(&self) -> Vec<&str> {
        let staying = self.hosts.iter().filter(|(_, known)| !known.record.draining);
        staying.map(|(name, _)| name.as_str()).collect()
    }

    /// Whether shards of this host could go to another one.
    pub(crate) fn has_other_takers(&self) -> bool {
        self.takers().iter().any(|taker| *taker != self.me)
    }

    /// What this host should write now. Nothing while it may not act, but for saying that its own former life is gone.
    pub(crate) fn due(&mut self, now: Instant, most: usize) -> Vec<Step> {
        let mut steps = Vec::new();
        let acts = self.acts(now);
        let mine = self.membership.as_ref().map(|membership| membership.life.as_str());
        for (name, known) in &self.hosts {
            if mine == Some(known.record.life.as_str()) || (!acts && *name != self.me) {
                continue;
            }
            let Some((renewed, since)) = self.last_seen.get(name) else { continue };
            if now.duration_since(*since) >= self.term + self.patience(name) {
                steps.push(Step::Expel { host: name.clone(), version: known.version, renewed: *renewed });
            }
        }
        if !acts || self.settled {
            return steps;
        }
        let takers = self.takers();
        let mut takes = Vec::new();
        let mut gives: BTreeMap<&str, Vec<(u16, Version, ShardRecord)>> = BTreeMap::new();
        for (shard, owner) in (0_u16..).zip(&self.shards) {
            let Some(target) = host_of(shard, takers.iter().copied()) else { break };
            let Some(known) = self.hosts.get(target) else { continue };
            let record =
                |life: &str, epoch| ShardRecord { holder: target.to_owned(), life: life.to_owned(), epoch };
            match (owner, mine) {
                (None, Some(life)) if target == self.me => takes.push((shard, None, record(life, 1))),
                (Some(owner), Some(life)) if target == self.me && self.is_over(owner) => {
                    takes.push((shard, Some(owner.version), record(life, owner.epoch + 1)));
                }
                (Some(owner), _) if target != self.me && self.is_mine(owner) => {
                    let record = record(&known.record.life, owner.epoch + 1);
                    gives.entry(target).or_default().push((shard, owner.version, record));
                }
                _ => {}
            }
        }
        let settled = takes.is_empty() && gives.is_empty();
        let most = most.max(1);
        steps.extend(takes.chunks(most).map(|chunk| Step::Take(chunk.to_vec())));
        for (to, shards) in gives {
            let version = self.hosts[to].version;
            let chunks = shards.chunks(most);
            steps.extend(chunks.map(|chunk| Step::Give {
                to: to.to_owned(),
                version,
                shards: chunk.to_vec(),
            }));
        }
        self.settled = settled;
        steps
    }

    /// How much longer than the others this host waits before it says that one is gone: all would be refused but one.
    fn patience(&self, gone: &str) -> Duration {
        let mine = score(u16::MAX, &format!("{gone}/{}", self.me));
        let before = self
            .hosts
            .keys()
            .filter(|host| **host != gone && **host != self.me)
            .filter(|host| score(u16::MAX, &format!("{gone}/{host}")) > mine)
            .count();
        APART * u32::try_from(before).unwrap_or(PLACES).min(PLACES)
    }
}
