//! The host's part: it keeps its membership, follows the others, takes what belongs to it and gives the rest away.

use std::{
    collections::hash_map::RandomState,
    fmt,
    hash::{BuildHasher as _, Hasher as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Commit, Error, ErrorKind, Guard, HostStatus, Hosts, Place, Recorder, Result, SpecErrors, Store, Version,
    Watched,
};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    record::{HostRecord, PREFIX, TERMS, Terms, decode, encode, host_key, renewal_key, shard_key},
    view::{Membership, Step, View},
};

/// Entries that are read in one go.
const PAGE: usize = 256;

/// What a host of a cluster is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// The state that all hosts share.
    pub store: Arc<dyn Store>,
    /// This host's name: 1 to 253 letters, digits, dashes, dots or underscores, and no other live host's.
    pub name: String,
    /// Where the other hosts reach this one's listener of requests.
    pub address: SocketAddr,
    /// For how long a silent host is not disturbed, 1 s to 5 min; the same on all hosts. It renews at each quarter, and stops
    /// to act at two thirds. 10 s by default.
    pub term: Duration,
    /// Into how many shards services are put, 1 to 4096; the same on all hosts, for ever. 256 by default.
    pub shards: u16,
    /// Where the metrics go.
    pub recorder: Recorder,
    /// What tells this process from all others, also from its own next start; random by default.
    pub process: String,
}

impl ClusterConfig {
    /// A host at `address`, with the defaults.
    pub fn new(store: Arc<dyn Store>, name: impl Into<String>, address: SocketAddr) -> Self {
        // The standard library seeds it with random bits of the system.
        let random = || RandomState::new().build_hasher().finish();
        Self {
            store,
            name: name.into(),
            address,
            term: Duration::from_secs(10),
            shards: 256,
            recorder: Recorder::default(),
            process: format!("{:016x}{:016x}", random(), random()),
        }
    }

    /// Refuses what no cluster can run with.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        if self.name.is_empty() || self.name.len() > 253 || !self.name.bytes().all(sound) {
            errors.push("name", &self.name, "must be 1 to 253 letters, digits, dashes, dots or underscores");
        }
        if self.address.port() == 0 || self.address.ip().is_unspecified() {
            let problem = "must be an address and a port that the other hosts can connect to";
            errors.push("address", self.address, problem);
        }
        if self.term < Duration::from_secs(1) || self.term > Duration::from_secs(300) {
            errors.push("term", format!("{:?}", self.term), "must be 1 s to 5 min");
        }
        if !(1..=4096).contains(&self.shards) {
            errors.push("shards", self.shards, "must be 1 to 4096");
        }
        if self.process.is_empty() {
            errors.push("process", &self.process, "must be what no other process has");
        }
        errors.into_result()
    }
}

/// This host among the hosts of a platform. It acts by [`Cluster::run`], and is asked as [`Hosts`].
pub struct Cluster {
    config: ClusterConfig,
    view: Mutex<View>,
    round: watch::Sender<u64>,
    joined: AtomicU64,
    drain: watch::Sender<bool>,
    /// Wakes who follows the store: a membership that began or ended changes what is due.
    act: Notify,
    refused: AtomicU64,
    metrics: Metrics,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("name", &self.config.name)
            .field("hosts", &self.view.lock().list())
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// A host that knows the others, and is none of them before it runs. It reads the store: whoever is asked afterwards
    /// knows who owned what at that moment.
    ///
    /// # Errors
    /// `InvalidSpec` for a configuration that is refused, or that differs from what the hosts of this store have in common;
    /// `Unavailable` when the store fails.
    pub async fn new(config: ClusterConfig) -> Result<Arc<Self>> {
        config.validate().map_err(|errors| {
            Error::new(ErrorKind::InvalidSpec, "cluster", errors.to_string()).with_source(errors)
        })?;
        agree(&config).await?;
        let cluster = Arc::new(Self {
            view: Mutex::new(View::new(&config.name, config.term, config.shards)),
            round: watch::Sender::new(0),
            joined: AtomicU64::new(0),
            drain: watch::Sender::new(false),
            act: Notify::new(),
            refused: AtomicU64::new(0),
            metrics: Metrics::new(&config.recorder),
            config,
        });
        cluster.list_again().await?;
        Ok(cluster)
    }

    /// Is a host until `stop`: joins, renews, follows the others, takes over and hands over. At the end it leaves, so that
    /// nobody has to wait for its silence; [`Cluster::drained`] before that lets others take over first.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            // One that waits for a slow store must not hold up the other: a host that can't read in time still renews.
            _ = async { tokio::join!(self.stay(), self.follow(), self.watch_lease()) } => {}
        }
        self.leave().await;
    }

    /// Gives what this host owns to the others from now on, and takes nothing more.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// [`Cluster::drain`]s, and waits until this host owns nothing, or nobody is there to take it.
    ///
    /// **Cancel safety:** dropping it lets the draining go on.
    pub async fn drained(&self) {
        self.drain();
        let mut round = self.round.subscribe();
        loop {
            let done = {
                let view = self.view.lock();
                view.membership().is_none_or(|membership| membership.draining)
                    && (view.owned() == 0 || !view.has_other_takers())
            };
            if done || round.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes of this host that were refused because another host had taken over.
    pub fn refused_writes(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// The epoch of a shard if this host acts for it now.
    pub fn epoch(&self, shard: u16) -> Option<u64> {
        self.view.lock().epoch(shard, Instant::now())
    }

    /// Whether this host is a member whose lease has not run out.
    pub fn is_member(&self) -> bool {
        self.view.lock().acts(Instant::now())
    }

    /// For how long one question to the store may keep this host waiting.
    fn patience(&self) -> Duration {
        self.config.term / 6
    }

    async fn asked<T>(&self, question: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::time::timeout(self.patience(), question).await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Timeout, "cluster", "the store did not answer in time"))
        })
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        self.metrics.writes.increment(1);
        self.asked(self.config.store.commit(commit)).await
    }

    /// Tells who waits that something may be another now.
    fn tell(&self) {
        {
            let view = self.view.lock();
            self.metrics.hosts.set(view.list().len() as f64);
            self.metrics.shards.set(view.owned() as f64);
        }
        self.round.send_modify(|round| *round += 1);
    }

    // Membership.

    async fn stay(&self) {
        let mut drain = self.drain.subscribe();
        loop {
            let kept = self.keep().await;
            if let Err(error) = &kept {
                tracing::warn!(host = self.config.name, error = %error.chain(), "its membership was not renewed; it is tried again");
            }
            let wait = if kept.is_ok() { self.config.term / 4 } else { self.config.term / 20 };
            tokio::select! {
                biased;
                _ = drain.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Joins, or renews. An error: it is to be tried again soon.
    async fn keep(&self) -> Result<()> {
        let membership = self.view.lock().membership().cloned();
        let Some(membership) = membership else { return self.join().await };
        let (host, renewal) = (host_key(&self.config.name), renewal_key(&self.config.name));
        let asked = Instant::now();
        let draining = *self.drain.borrow();
        let mut commit =
            Commit::new().guard(&host, Some(membership.version)).put(&renewal, membership.life.clone());
        let says_so = draining && !membership.draining;
        if says_so {
            commit = commit.put(&host, encode(&self.record(&membership.life, true))?);
        }
        match self.commit(commit).await {
            Ok(version) => {
                let mut kept = membership;
                kept.until = asked + self.config.term * 2 / 3;
                if says_so {
                    (kept.version, kept.draining) = (version, true);
                }
                self.view.lock().set_membership(Some(kept), Instant::now());
                if says_so {
                    // Somebody may wait for just that, with nothing to hand over.
                    self.tell();
                }
                Ok(())
            }
            // Somebody else wrote it, or an answer of ours was lost.
            Err(error) if error.kind == ErrorKind::Conflict => {
                let found = self.asked(self.config.store.get(&host)).await?;
                let record = match &found {
                    Some(entry) => Some(decode::<HostRecord>(&host, &entry.value)?),
                    None => None,
                };
                if let (Some(entry), Some(record)) = (&found, &record)
                    && record.life == membership.life
                {
                    let kept = Membership { version: entry.version, draining: record.draining, ..membership };
                    self.view.lock().set_membership(Some(kept), Instant::now());
                    return Err(error);
                }
                tracing::warn!(host = self.config.name, "was declared gone; it joins anew");
                self.view.lock().set_membership(None, Instant::now());
                self.tell();
                self.join().await
            }
            Err(error) => Err(error),
        }
    }

    fn record(&self, life: &str, draining: bool) -> HostRecord {
        HostRecord { life: life.to_owned(), address: self.config.address, draining }
    }

    async fn join(&self) -> Result<()> {
        let (host, renewal) = (host_key(&self.config.name), renewal_key(&self.config.name));
        let asked = Instant::now();
        let draining = *self.drain.borrow();
        let found = self.asked(self.config.store.get(&host)).await?;
        let (life, version) = match found {
            Some(entry) => {
                let record: HostRecord = decode(&host, &entry.value)?;
                if !record.life.starts_with(&format!("{}/", self.config.process)) {
                    let message = format!(
                        "a host of the name {} is there already: if that was an earlier start of this one, it is let in \
                         after {:?} of silence; else give this host another name",
                        self.config.name, self.config.term
                    );
                    return Err(Error::new(ErrorKind::Conflict, "cluster", message));
                }
                // The answer to an earlier try was lost. When that was is not known, so it is renewed before it counts.
                let commit =
                    Commit::new().guard(&host, Some(entry.version)).put(&renewal, record.life.clone());
                self.commit(commit).await?;
                (record.life, entry.version)
            }
            None => {
                let number = self.joined.fetch_add(1, Ordering::Relaxed);
                let life = format!("{}/{number}", self.config.process);
                let commit = Commit::new()
                    .guard(&host, None)
                    .put(&host, encode(&self.record(&life, draining))?)
                    .put(&renewal, life.clone());
                let version = self.commit(commit).await?;
                (life, version)
            }
        };
        tracing::info!(host = self.config.name, "is a host of the cluster");
        let until = asked + self.config.term * 2 / 3;
        self.view.lock().set_membership(Some(Membership { life, version, until, draining }), Instant::now());
        self.tell();
        self.act.notify_one();
        Ok(())
    }

    async fn leave(&self) {
        let Some(membership) = self.view.lock().membership().cloned() else { return };
        self.view.lock().set_membership(None, Instant::now());
        self.tell();
        let (host, renewal) = (host_key(&self.config.name), renewal_key(&self.config.name));
        let commit = Commit::new().guard(&host, Some(membership.version)).delete(host).delete(renewal);
        if let Err(error) = self.commit(commit).await
            && error.kind != ErrorKind::Conflict
        {
            tracing::warn!(host = self.config.name, error = %error.chain(), "could not leave; the others wait for its silence");
        }
    }

    // Following the others.

    async fn follow(&self) {
        loop {
            match self.list_again().await {
                Ok(since) => self.follow_from(since).await,
                Err(error) => {
                    tracing::warn!(host = self.config.name, error = %error.chain(), "the cluster can't be read; it is tried again");
                    self.view.lock().listen_anew(Instant::now());
                    tokio::time::sleep(self.config.term / 20).await;
                }
            }
        }
    }

    /// Until the history breaks off or the store fails.
    async fn follow_from(&self, mut since: Version) {
        let tick = self.tick();
        loop {
            tokio::select! {
                biased;
                watched = self.config.store.watch(PREFIX, since) => match watched {
                    Ok(Watched::Changes(changes)) => {
                        since = changes.last().map_or(since, |change| change.version);
                        let applied = self.view.lock().apply(&changes, Instant::now());
                        match applied {
                            Ok(true) => self.tell(),
                            Ok(false) => {}
                            Err(error) => {
                                tracing::error!(host = self.config.name, error = %error.chain(), "the cluster's state is damaged");
                                return;
                            }
                        }
                    }
                    Ok(Watched::ListAgain) => return,
                    Err(error) => {
                        tracing::warn!(host = self.config.name, error = %error.chain(), "the cluster can't be followed; it is tried again");
                        tokio::time::sleep(tick).await;
                        return;
                    }
                },
                () = self.act.notified() => {}
                () = tokio::time::sleep(tick) => {}
            }
            self.act().await;
        }
    }

    /// Tells when this host begins or ceases to act, whatever the store does meanwhile.
    async fn watch_lease(&self) {
        let mut acted = self.is_member();
        loop {
            tokio::time::sleep(self.tick()).await;
            let acts = self.is_member();
            if acted == acts {
                continue;
            }
            if !acts {
                self.metrics.lapses.increment(1);
                tracing::warn!(
                    host = self.config.name,
                    "its lease ran out: it acts for nothing until it is renewed"
                );
            }
            acted = acts;
            self.tell();
        }
    }

    fn tick(&self) -> Duration {
        (self.config.term / 20).min(Duration::from_millis(200))
    }

    async fn list_again(&self) -> Result<Version> {
        let since = self.asked(self.config.store.version()).await?;
        let mut entries: Vec<sas_core::Entry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.key.clone());
            let page = self.asked(self.config.store.list(PREFIX, after.as_deref(), PAGE)).await?;
            let more = page.len() == PAGE;
            entries.extend(page);
            if !more {
                break;
            }
        }
        let changed = self.view.lock().replace(&entries, since, Instant::now())?;
        if changed {
            self.tell();
        }
        Ok(since)
    }

    /// Does what is due. What is refused was seen too late: the watch will tell.
    async fn act(&self) {
        // A commit takes so many guards, and one is for who writes.
        let most = self.config.store.limits().commit_writes.saturating_sub(1);
        let steps = self.view.lock().due(Instant::now(), most);
        for step in steps {
            if let Err(error) = self.step(step).await
                && error.kind != ErrorKind::Conflict
            {
                tracing::warn!(host = self.config.name, error = %error.chain(), "ownership was not written; it is tried again");
                return;
            }
        }
    }

    async fn step(&self, step: Step) -> Result<()> {
        match step {
            Step::Expel { host, version, renewed } => {
                let (key, renewal) = (host_key(&host), renewal_key(&host));
                // Had it renewed since it was last seen, this would fail.
                let commit = Commit::new()
                    .guard(&key, Some(version))
                    .guard(&renewal, renewed)
                    .delete(key)
                    .delete(renewal);
                self.commit(commit).await?;
                self.metrics.expelled.increment(1);
                tracing::warn!(
                    host = self.config.name,
                    gone = host,
                    "a host was silent for a whole term and is none any more"
                );
            }
            Step::Take(shards) => {
                let Some(commit) = self.guarded() else { return Ok(()) };
                let count = shards.len() as u64;
                self.commit(written(commit, shards)?).await?;
                self.metrics.taken.increment(count);
            }
            Step::Give { to, version, shards } => {
                if !self.is_member() {
                    return Ok(());
                }
                let count = shards.len() as u64;
                // Only to a host that is there. The versions of the shards say that they are still this host's.
                let commit = Commit::new().guard(host_key(&to), Some(version));
                let shards =
                    shards.into_iter().map(|(shard, version, record)| (shard, Some(version), record));
                self.commit(written(commit, shards)?).await?;
                self.metrics.handed.increment(count);
            }
        }
        Ok(())
    }

    /// A commit that fails when this host is none any more.
    fn guarded(&self) -> Option<Commit> {
        let view = self.view.lock();
        let membership = view.membership().filter(|membership| Instant::now() < membership.until)?;
        Some(Commit::new().guard(host_key(&self.config.name), Some(membership.version)))
    }
}

fn written(
    mut commit: Commit,
    shards: impl IntoIterator<Item = (u16, Option<Version>, crate::record::ShardRecord)>,
) -> Result<Commit> {
    for (shard, version, record) in shards {
        let key = shard_key(shard);
        commit = commit.guard(&key, version).put(key, encode(&record)?);
    }
    Ok(commit)
}

/// All hosts of a store have the same term and the same shards.
async fn agree(config: &ClusterConfig) -> Result<()> {
    let term_ms = u64::try_from(config.term.as_millis()).unwrap_or(u64::MAX);
    let ours = Terms { format: 1, shards: config.shards, term_ms };
    loop {
        let found = config.store.get(TERMS).await?;
        let Some(entry) = found else {
            match config.store.put(TERMS, None, encode(&ours)?.into()).await {
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                written => return written.map(drop),
            }
        };
        let theirs: Terms = decode(TERMS, &entry.value)?;
        let mut errors = SpecErrors::default();
        if theirs.format != ours.format {
            errors.push("format", ours.format, format!("the hosts of this store write {}", theirs.format));
        }
        if theirs.shards != ours.shards {
            errors.push("shards", ours.shards, format!("the hosts of this store have {}", theirs.shards));
        }
        if theirs.term_ms != ours.term_ms {
            let problem = format!("the hosts of this store have {} ms", theirs.term_ms);
            errors.push("term", format!("{term_ms} ms"), problem);
        }
        return errors.into_result().map_err(|errors| {
            let message = format!("{errors}; to change it, stop all hosts and delete the key {TERMS}");
            Error::new(ErrorKind::InvalidSpec, "cluster", message).with_source(errors)
        });
    }
}

#[async_trait]
impl Hosts for Cluster {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn place(&self, path: &str) -> Place {
        self.view.lock().place(path, Instant::now())
    }

    fn seen(&self) -> Version {
        self.view.lock().seen
    }

    fn list(&self) -> Vec<HostStatus> {
        self.view.lock().list()
    }

    fn ranked(&self, path: &str) -> Vec<String> {
        self.view.lock().ranked(path)
    }

    fn round(&self) -> u64 {
        *self.round.borrow()
    }

    async fn changed(&self, round: u64) -> u64 {
        let mut rounds = self.round.subscribe();
        while *rounds.borrow_and_update() == round {
            // The sender lives as long as `self`.
            let _ = rounds.changed().await;
        }
        self.round()
    }

    fn refused(&self, _guard: &Guard) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.metrics.refused.increment(1);
    }
}
