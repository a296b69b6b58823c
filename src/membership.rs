//! One of several hosts that share a state.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_cluster::{Cluster, ClusterConfig};
use sas_control::Control;
use sas_core::{
    Clock, Commit, Endpoint, Entry, Error, Hosts as _, Protocol, Recorder, Result, Secret, Store,
    StoreLimits, Version, Watched,
};
use sas_router::Peers;
use tokio_util::sync::CancellationToken;

/// After a change of the hosts that could not be followed to its end; it doubles.
const AGAIN: Duration = Duration::from_millis(200);
const LONGEST_AGAIN: Duration = Duration::from_secs(10);

/// Makes a platform one of several that share a store; see [`PlatformBuilder::cluster`](crate::PlatformBuilder::cluster).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClusterOptions {
    /// This host's name: 1 to 253 letters, digits, dashes, dots or underscores, and no other host's.
    pub name: String,
    /// Where the other hosts reach this one's listener of requests.
    pub advertise: SocketAddr,
    /// What the hosts know each other by: at least 32 random bytes, the same on all.
    pub secret: Secret,
    /// For how long a silent host is not disturbed, 1 s to 5 min; the same on all. 10 s by default.
    pub term: Duration,
    /// Into how many shards services are put, 1 to 4096; the same on all, for ever. 256 by default.
    pub shards: u16,
    /// For how long a request waits when the host that acts for its service is not known or can't be reached, while nothing
    /// was sent; up to 1,000 wait at once. A term and a second by default: until another host has taken over.
    pub hold: Option<Duration>,
}

impl ClusterOptions {
    /// A host with the defaults.
    pub fn new(name: impl Into<String>, advertise: SocketAddr, secret: Secret) -> Self {
        Self { name: name.into(), advertise, secret, term: Duration::from_secs(10), shards: 256, hold: None }
    }

    pub(crate) async fn join(
        self,
        store: &Arc<dyn Store>,
        recorder: &Recorder,
        clock: &Arc<dyn Clock>,
    ) -> Result<Joined, Error> {
        let peers = Peers::with_clock(&self.name, self.secret.expose().as_bytes(), Arc::clone(clock))?;
        peers.set_hold(self.hold.unwrap_or(self.term.saturating_add(Duration::from_secs(1))));
        let mut config = ClusterConfig::new(Arc::clone(store), self.name, self.advertise);
        config.term = self.term;
        config.shards = self.shards;
        config.recorder = recorder.clone();
        Ok(Joined { cluster: Cluster::new(config).await?, peers })
    }
}

/// This host among the others.
#[derive(Clone)]
pub(crate) struct Joined {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) peers: Arc<Peers>,
}

/// Makes routes and peers follow the hosts until `stop`.
pub(crate) async fn follow(joined: Joined, control: Arc<Control>, stop: CancellationToken) {
    let Joined { cluster, peers } = joined;
    let mut delay = AGAIN;
    loop {
        let (round, seen) = (cluster.round(), cluster.seen());
        reach(&cluster, &peers);
        let followed = control.follow_hosts().await;
        // The routes are as the hosts are, whatever became of triggers.
        peers.set_view(seen.0);
        let again = match followed {
            Ok(()) => {
                delay = AGAIN;
                Duration::MAX
            }
            Err(error) => {
                tracing::warn!(error = %error.chain(), "a change of the hosts is not done yet; it is tried again");
                let again = delay;
                delay = (delay * 2).min(LONGEST_AGAIN);
                again
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = cluster.changed(round) => delay = AGAIN,
            () = tokio::time::sleep(again) => {}
        }
    }
}

/// Tells the gateway where the others are.
fn reach(cluster: &Cluster, peers: &Peers) {
    let hosts = cluster.list();
    for name in peers.names() {
        if !hosts.iter().any(|host| host.name == name && !host.here) {
            peers.remove(&name);
        }
    }
    for host in hosts.iter().filter(|host| !host.here) {
        if let Ok(address) = host.address.parse::<SocketAddr>() {
            peers.set_over_if_new(&host.name, Endpoint::Tcp(address), Protocol::H2c);
        }
    }
}

/// A store where the calls of this host that wait to be made are its own: each host makes those that it accepted.
#[derive(Debug)]
pub(crate) struct OwnCalls {
    inner: Arc<dyn Store>,
    own: String,
}

const CALLS: &str = "async/call/";

impl OwnCalls {
    pub(crate) fn new(inner: Arc<dyn Store>, host: &str) -> Self {
        Self { inner, own: format!("async/calls-of/{host}/") }
    }

    fn inside(&self, key: &str) -> String {
        key.strip_prefix(CALLS).map_or_else(|| key.to_owned(), |rest| format!("{}{rest}", self.own))
    }

    fn outside(&self, key: String) -> String {
        match key.strip_prefix(&self.own) {
            Some(rest) => format!("{CALLS}{rest}"),
            None => key,
        }
    }

    fn entry(&self, entry: Entry) -> Entry {
        Entry { key: self.outside(entry.key), ..entry }
    }
}

#[async_trait]
impl Store for OwnCalls {
    fn limits(&self) -> StoreLimits {
        self.inner.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.inner.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        Ok(self.inner.get(&self.inside(key)).await?.map(|entry| self.entry(entry)))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        let after = after.map(|after| self.inside(after));
        let entries = self.inner.list(&self.inside(prefix), after.as_deref(), limit).await?;
        Ok(entries.into_iter().map(|entry| self.entry(entry)).collect())
    }

    async fn commit(&self, mut commit: Commit) -> Result<Version> {
        for guard in &mut commit.guards {
            guard.key = self.inside(&guard.key);
        }
        for write in &mut commit.writes {
            write.key = self.inside(&write.key);
        }
        self.inner.commit(commit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let mut watched = self.inner.watch(&self.inside(prefix), since).await?;
        if let Watched::Changes(changes) = &mut watched {
            for change in changes {
                change.key = self.outside(std::mem::take(&mut change.key));
            }
        }
        Ok(watched)
    }
}
