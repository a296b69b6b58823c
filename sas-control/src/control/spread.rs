//! Services that several hosts run: the host that acts for one allots the parts, the others run theirs and say how they are.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Commit, ErrorKind, Place, Result, RevisionKey, SizeBounds, Version, commit_as_owner};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Control, Live};
use crate::{
    record::{RevisionState, ServiceRecord},
    spread::{
        Input, Pace, Part, PartState, Report, Reported, Spread, SpreadConfig, Standing, Wanted, decode,
        encode, step,
    },
};

/// Where the parts of services and what hosts say of them are in the store.
pub(super) const SPREAD: &str = "spread/";
const PARTS: &str = "parts/";
const REPORTS: &str = "reports/";
/// How often it is looked at who needs more, or less.
const ROUND: Duration = Duration::from_millis(500);
/// A host says at most this often that it runs more or less than before.
const REPORTED: Duration = Duration::from_secs(2);
/// How long a host that gives its part back still takes requests: until all others know.
const LINGER: Duration = Duration::from_secs(2);
/// How often it is looked whether all parts are given back, by a host that ends.
const GIVEN_BACK: Duration = Duration::from_millis(20);

/// The services that several hosts run, and those of this host that may need that.
#[derive(Debug, Default)]
pub(super) struct Spreads {
    all: Mutex<BTreeMap<String, Known>>,
    config: SpreadConfig,
    /// Somebody wants it to be looked at them now.
    look: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Known {
    spread: Option<Arc<Spread>>,
    /// Of the record in the store.
    version: Option<Version>,
    /// By host.
    reports: BTreeMap<String, Report>,
    pace: Pace,
    /// Since when this host's own part is to be given back.
    leaving: Option<Instant>,
    /// When this host said something last.
    reported: Option<Instant>,
}

impl Spreads {
    pub(super) fn new(config: SpreadConfig) -> Self {
        Self { all: Mutex::default(), config, look: Arc::default() }
    }

    /// The keys in the store that are known.
    pub(super) fn keys(&self) -> Vec<String> {
        let all = self.all.lock();
        let mut keys = Vec::new();
        for (path, known) in &*all {
            keys.extend(known.spread.is_some().then(|| format!("{PARTS}{path}")));
            keys.extend(known.reports.keys().map(|host| format!("{REPORTS}{path}/{host}")));
        }
        keys
    }

    fn with<R>(&self, path: &str, change: impl FnOnce(&mut Known) -> R) -> R {
        change(self.all.lock().entry(path.to_owned()).or_default())
    }
}

impl Known {
    fn take(&mut self, host: &str, spread: Option<Arc<Spread>>, version: Option<Version>) {
        let leaves = spread.as_ref().and_then(|spread| spread.part(host)).map(|part| part.state);
        self.leaving = match leaves {
            Some(PartState::Leaving) => self.leaving.or_else(|| Some(Instant::now())),
            _ => None,
        };
        (self.spread, self.version) = (spread, version);
    }

    fn is_over(&self) -> bool {
        self.spread.is_none() && self.reports.is_empty()
    }
}

impl Control {
    /// Takes over what another host wrote, or this one did: the service that it is about, if who runs it may be another
    /// than before.
    pub(super) fn follow_spread(&self, name: &str, value: Option<&[u8]>, version: Version) -> Option<String> {
        let me = self.hosts.as_ref()?.name().to_owned();
        let read = |error: sas_core::Error| {
            tracing::error!(key = name, error = %error.chain(), "can't be read");
        };
        if let Some(path) = name.strip_prefix(PARTS) {
            let spread = match value.map(|value| decode::<Spread>(name, value)).transpose() {
                Ok(spread) => spread.map(Arc::new),
                Err(error) => {
                    read(error);
                    return None;
                }
            };
            self.spreads.with(path, |known| {
                // A list that it is not in has no version.
                if version > Version(0) && known.version.is_some_and(|known| known > version) {
                    return;
                }
                let version = spread.as_ref().map(|_| version);
                known.take(&me, spread, version);
            });
            return Some(path.to_owned());
        }
        let (path, host) = name.strip_prefix(REPORTS)?.rsplit_once('/')?;
        match value.map(|value| decode::<Report>(name, value)).transpose() {
            Ok(report) => self.spreads.with(path, |known| match report {
                Some(report) => drop(known.reports.insert(host.to_owned(), report)),
                None => drop(known.reports.remove(host)),
            }),
            Err(error) => read(error),
        }
        None
    }

    /// How a service stands with this host, if several run it.
    pub(crate) fn standing(&self, path: &str) -> Standing {
        let (Some(hosts), true) = (&self.hosts, self.shares.is_some()) else { return Standing::default() };
        let all = self.spreads.all.lock();
        let Some(known) = all.get(path) else { return Standing::default() };
        let Some(spread) = &known.spread else { return Standing::default() };
        let part = spread.part(hosts.name()).filter(|part| match part.state {
            PartState::Joining | PartState::Serving => true,
            PartState::Leaving => known.leaving.is_some_and(|since| since.elapsed() < LINGER),
        });
        Standing { part: part.cloned(), hosts: spread.serving(), version: spread.version }
    }

    /// Waits until other hosts send nothing any more to the parts that this one has of what they act for: they take parts
    /// back from a host that says that it is about to end.
    ///
    /// **Cancel safety:** dropping it changes nothing.
    pub async fn parts_given_back(&self) {
        let has_parts = || {
            let paths: Vec<String> = self.spreads.all.lock().keys().cloned().collect();
            paths.iter().any(|path| !self.acts_for(path) && self.standing(path).part.is_some())
        };
        while has_parts() {
            tokio::time::sleep(GIVEN_BACK).await;
        }
    }

    /// Whether this host is to run all of a service, and not a part.
    pub(super) fn runs_all(&self, path: &str) -> bool {
        self.acts_for(path) && self.standing(path).version == 0
    }

    /// What its part lets each revision have that runs here.
    pub(super) fn part_bounds(
        &self,
        path: &str,
        live: &Live,
        standing: &Standing,
    ) -> Vec<(RevisionKey, SizeBounds)> {
        if self.hosts.is_none() {
            return Vec::new();
        }
        let (record, running) = {
            let state = live.state.lock();
            let Some(record) = state.record.clone() else { return Vec::new() };
            let running = state.observed.registrations.iter().filter(|r| r.routable && !r.retiring);
            let running: Vec<(String, RevisionKey)> =
                running.map(|registration| (registration.revision.clone(), registration.key)).collect();
            (record, running)
        };
        let acts = self.acts_for(path);
        let bounds = running.into_iter().filter_map(|(revision, key)| {
            let bounds = match &standing.part {
                Some(part) => part.revisions.get(&revision)?.bounds(),
                // It has just begun to act for what others run: it gets its part first.
                None if acts && standing.version > 0 => SizeBounds::part(0, 0),
                None if acts => {
                    // It came here as a part of another host's, without a minimum of its own.
                    let min = record.revision(&revision)?.spec.scaling.min;
                    let has = self.pool.deployed(key)?.spec.scaling.min;
                    (has < min).then(|| SizeBounds::part(min, u32::MAX))?
                }
                None => return None,
            };
            Some((key, bounds))
        });
        bounds.collect()
    }

    /// Who runs which part of the service, and what they say of it; empty where one host runs it.
    pub(crate) fn parts_of(&self, path: &str) -> Vec<(Part, Option<Report>)> {
        let Some(hosts) = &self.hosts else { return Vec::new() };
        let (parts, reports) = {
            let all = self.spreads.all.lock();
            let Some(known) = all.get(path) else { return Vec::new() };
            let Some(spread) = &known.spread else { return Vec::new() };
            (spread.hosts.clone(), known.reports.clone())
        };
        let said = |host: &str| match host == hosts.name() {
            true => self.live(path).map(|live| self.own_report(&live)),
            false => reports.get(host).cloned(),
        };
        parts.into_iter().map(|part| (said(&part.host), part)).map(|(report, part)| (part, report)).collect()
    }

    /// One look at who needs more hosts or fewer, and what this host has to say of its own parts.
    async fn spread_round(self: &Arc<Self>) {
        let mut paths: BTreeSet<String> = self.spreads.all.lock().keys().cloned().collect();
        for shard in 0..self.pool.shards() {
            self.pool.visit_short(shard, &mut |deployed| {
                paths.insert(deployed.name.service_path().to_owned());
            });
        }
        for path in paths {
            if self.lifecycle.is_stopping() {
                return;
            }
            let done = match self.place(&path) {
                Some(Place::Here(_)) => self.allot(&path).await,
                Some(Place::There(_)) => self.report(&path).await,
                // Nothing is begun and nothing is given back.
                _ => Ok(()),
            };
            if let Err(error) = done
                && error.kind != ErrorKind::Conflict
            {
                tracing::warn!(service = %path, error = %error.chain(), "its parts could not be written; it is tried again");
            }
        }
    }

    /// Decides who runs the service, and writes it down.
    async fn allot(self: &Arc<Self>, path: &str) -> Result<()> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let me = hosts.name();
        let live = self.live(path);
        let record = live.as_ref().and_then(|live| live.record());
        let revisions = record.as_deref().map_or_else(BTreeMap::new, |record| self.shared_out(record));
        let alive: BTreeSet<String> = hosts.list().into_iter().map(|host| host.name).collect();
        let candidates = hosts.ranked(path);
        let own = live.as_ref().map(|live| self.own_report(live)).unwrap_or_default();
        let (next, version, stale) = self.spreads.with(path, |known| {
            let mut reports = known.reports.clone();
            reports.insert(me.to_owned(), own);
            let input = Input {
                now: self.clock.now(),
                owner: me,
                candidates: &candidates,
                alive: &alive,
                revisions: &revisions,
                quota: record.as_deref().and_then(|record| record.quota),
                reports: &reports,
            };
            let before = match &known.spread {
                Some(spread) => Spread::clone(spread),
                // Beyond whatever was said of an earlier one.
                None => Spread { version: hosts.seen().0, ..Spread::default() },
            };
            let next = step(&before, &input, &mut known.pace, &self.spreads.config);
            let spread = next.as_ref().unwrap_or(&before);
            let of_nobody = |host: &&String| **host == me || spread.part(host).is_none();
            let stale: Vec<String> = known.reports.keys().filter(of_nobody).cloned().collect();
            (next, known.version, stale)
        });
        if next.is_none() && stale.is_empty() {
            let idle = |known: &mut Known| known.is_over() && known.pace.is_quiet();
            let mut all = self.spreads.all.lock();
            if all.get_mut(path).is_some_and(idle) {
                all.remove(path);
            }
            return Ok(());
        }
        let mut commit = Commit::new();
        if let Some(next) = &next {
            let key = format!("{SPREAD}{PARTS}{path}");
            commit = commit.guard(&key, version);
            commit = match next.hosts.is_empty() {
                true => commit.delete(key),
                false => commit.put(key, encode(next)?),
            };
        }
        for host in &stale {
            commit = commit.delete(format!("{SPREAD}{REPORTS}{path}/{host}"));
        }
        let written = commit_as_owner(&*self.store, Some(hosts), path, commit).await?;
        if let Some(next) = next {
            let told: Vec<String> =
                next.hosts.iter().map(|part| format!("{} ({:?})", part.host, part.state)).collect();
            tracing::info!(service = %path, hosts = told.join(", "), "another set of hosts runs it");
            self.spreads.with(path, |known| {
                let spread = (!next.hosts.is_empty()).then(|| Arc::new(next));
                let version = spread.as_ref().map(|_| written);
                known.take(me, spread, version);
            });
            self.follow_one(path);
        }
        Ok(())
    }

    /// Says how this host's part of a service is, where that is news.
    async fn report(self: &Arc<Self>, path: &str) -> Result<()> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let me = hosts.name();
        let key = format!("{SPREAD}{REPORTS}{path}/{me}");
        let live = self.live(path);
        let own = live.as_ref().map(|live| self.own_report(live));
        let here = self.standing(path).part;
        let (told, reported, part, ended) = self.spreads.with(path, |known| {
            known.pace = Pace::default();
            let part = known.spread.as_ref().and_then(|spread| spread.part(me)).cloned();
            let ended = known.leaving.is_some_and(|since| since.elapsed() >= LINGER);
            (known.reports.get(me).cloned(), known.reported, part, ended)
        });
        if ended || here.is_none() && part.is_some() {
            // Nobody sends anything any more: what runs is let go.
            self.follow_one(path);
        }
        let runs = live.as_ref().is_some_and(|live| {
            live.state.lock().observed.registrations.iter().any(|registration| registration.routable)
        });
        let commit = match (own, part) {
            (Some(own), Some(part)) if here.is_some() || runs && part.state == PartState::Leaving => {
                let news = told.as_ref().is_none_or(|told| {
                    let late = reported.is_none_or(|at| at.elapsed() >= REPORTED);
                    (told.applied, told.ready, &told.error) != (own.applied, own.ready, &own.error)
                        || late && told.revisions != own.revisions
                });
                if !news {
                    return Ok(());
                }
                Commit::new().put(key, encode(&own)?)
            }
            _ if told.is_some() && !runs => Commit::new().delete(key),
            _ => {
                let mut all = self.spreads.all.lock();
                if all.get(path).is_some_and(Known::is_over) {
                    all.remove(path);
                }
                return Ok(());
            }
        };
        self.store.commit(commit).await?;
        self.spreads.with(path, |known| known.reported = Some(Instant::now()));
        Ok(())
    }

    /// Looks soon at who needs more hosts or fewer: another host acts, or came, or went.
    pub(super) fn look_at_spreads(&self) {
        self.spreads.look.notify_one();
    }

    /// What runs here of a service.
    fn own_report(&self, live: &Live) -> Report {
        let (applied, running, error, record) = {
            let state = live.state.lock();
            let running = state.observed.registrations.iter().filter(|r| r.routable && !r.retiring);
            let running: Vec<(String, RevisionKey)> =
                running.map(|registration| (registration.revision.clone(), registration.key)).collect();
            let blocked = state.observed.blocked.iter().next();
            let error = blocked.map(|(revision, blocked)| format!("{revision}: {}", blocked.message));
            (state.applied, running, error, state.record.clone())
        };
        let wanted = record.as_deref().map_or_else(BTreeMap::new, |record| self.shared_out(record));
        let ready = wanted.keys().all(|wanted| running.iter().any(|(revision, _)| revision == wanted));
        let revisions = running.into_iter().filter_map(|(revision, key)| {
            let status = self.pool.status(key)?;
            let least = self.pool.deployed(key)?.spec.scaling.min;
            let room = status.room.unwrap_or(u32::MAX);
            // What waits for room is not there.
            let have = (status.ready + status.starting).min(room);
            Some((revision, Reported { asked: status.asked, least, have, room }))
        });
        Report { applied, ready, error, revisions: revisions.collect() }
    }

    /// The revisions that get requests, with what all hosts together may have of each.
    fn shared_out(&self, record: &ServiceRecord) -> BTreeMap<String, Wanted> {
        if record.disabled.is_some() {
            return BTreeMap::new();
        }
        let shares = record.shares(self.clock.now()).into_iter();
        let revisions = shares.filter_map(|share| {
            let revision = record.revision(&share.revision)?;
            let ready = revision.state == RevisionState::Ready;
            let scaling = &revision.spec.scaling;
            ready.then_some((share.revision, Wanted { min: scaling.min, max: scaling.max }))
        });
        revisions.collect()
    }

    /// Reads who runs which service, before anything of it runs here.
    pub(super) async fn recover_spreads(&self) -> Result<()> {
        if self.hosts.is_none() {
            return Ok(());
        }
        for entry in self.entries(SPREAD).await? {
            self.follow_spread(&entry.key[SPREAD.len()..], Some(&entry.value), entry.version);
        }
        Ok(())
    }
}

pub(super) async fn spreading(control: Weak<Control>, stop: CancellationToken) {
    let Some(look) = control.upgrade().map(|control| Arc::clone(&control.spreads.look)) else { return };
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = look.notified() => {}
            () = tokio::time::sleep(ROUND) => {}
        }
        let Some(control) = control.upgrade() else { return };
        control.spread_round().await;
    }
}
