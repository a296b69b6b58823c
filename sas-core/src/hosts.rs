//! Several hosts on one state: who of them acts for what.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{Commit, Error, ErrorKind, Guard, Result, Store, Version};

/// Which host acts for a part of the platform, as far as one host knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it is this host, another one, or nobody that is known")]
pub enum Place {
    /// This host. What it writes is guarded by this, so that it is refused once another host has taken over.
    Here(Guard),
    /// The host of this name.
    There(Arc<str>),
    /// Nobody that this host knows of: its own lease ran out, or an owner is gone and the next one is not there yet.
    /// Nothing is begun and nothing is taken down; requests go where they went before.
    Undecided,
}

/// A host of the platform, as the others see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HostStatus {
    /// Its name.
    pub name: String,
    /// Where it takes requests of the others: an address with a port.
    pub address: String,
    /// Whether it gives away what it acts for, because it is about to end.
    pub draining: bool,
    /// Whether it is the host that was asked.
    pub here: bool,
    /// How many shards it owns.
    pub shards: usize,
}

impl HostStatus {
    /// A live host that owns nothing.
    pub fn new(name: impl Into<String>, address: impl Into<String>) -> Self {
        Self { name: name.into(), address: address.into(), draining: false, here: false, shards: 0 }
    }
}

/// The hosts of a platform that share one store, and which of them acts for what.
///
/// # Contract
/// - Of all hosts that have a [`Place::Here`] for a path, the guard of at most one holds.
/// - `place`, `seen` and `list` do no I/O, and say nothing new without [`Hosts::changed`] ending.
#[async_trait]
pub trait Hosts: fmt::Debug + Send + Sync + 'static {
    /// This host's own name.
    fn name(&self) -> &str;

    /// Who acts for a path: `namespace/name` of a service, or a namespace for its triggers and brokers.
    fn place(&self, path: &str) -> Place;

    /// The version of the store up to which `place` knows every change.
    fn seen(&self) -> Version;

    /// All live hosts, by name.
    fn list(&self) -> Vec<HostStatus>;

    /// The names of the hosts that may take a part of what a path is about, the one that it belongs on most first. Those that
    /// are about to end are left out.
    fn ranked(&self, path: &str) -> Vec<String> {
        let _ = path;
        self.list().into_iter().filter(|host| !host.draining).map(|host| host.name).collect()
    }

    /// A number that grows whenever `place` or `list` may say something else.
    fn round(&self) -> u64;

    /// Waits until the round is not `round` any more, and gives the new one.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    async fn changed(&self, round: u64) -> u64;

    /// Is told of each write that was refused because another host has taken over; for its metrics.
    fn refused(&self, guard: &Guard);
}

/// Commits what only the host that acts for `path` may write, guarded by that.
///
/// # Errors
/// `Conflict`, and nothing was written, when another host acts for it, or nobody that is known: come back when that has
/// changed. Else those of [`Store::commit`].
pub async fn commit_as_owner(
    store: &dyn Store,
    hosts: Option<&Arc<dyn Hosts>>,
    path: &str,
    commit: Commit,
) -> Result<Version> {
    let Some(hosts) = hosts else { return store.commit(commit).await };
    let guard = match hosts.place(path) {
        Place::Here(guard) => guard,
        Place::There(host) => return Err(not_here(path, &format!("the host {host} acts for it"))),
        Place::Undecided => return Err(not_here(path, "no host acts for it now")),
    };
    let committed = store.commit(commit.guarded_by(guard.clone())).await;
    if committed.as_ref().is_err_and(|error| error.kind == ErrorKind::Conflict)
        && let Ok(found) = store.get(&guard.key).await
        && found.map(|entry| entry.version) != guard.expected
    {
        hosts.refused(&guard);
    }
    committed
}

fn not_here(path: &str, why: &str) -> Error {
    Error::new(ErrorKind::Conflict, "write", format!("{path}: {why}, so that this host may not"))
}

/// A host that takes requests of a service beside others.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostShare {
    /// The host, by the name that the data plane knows it by.
    pub host: Arc<str>,
    /// How much of what is passed on it gets, beside the weights of the others; 0: nothing.
    pub weight: u32,
}

impl HostShare {
    /// `weight` to `host`.
    pub fn new(host: impl Into<Arc<str>>, weight: u32) -> Self {
        Self { host: host.into(), weight }
    }
}

/// Passes requests of a service on to the hosts that run a part of it: the gateway.
pub trait HostShares: fmt::Debug + Send + Sync + 'static {
    /// The hosts that take requests of a service, named as `namespace/name`, from now on: this one among them, if it runs a
    /// part. Empty: only the host that its route names.
    fn set_hosts(&self, service: &str, hosts: Vec<HostShare>);
}
