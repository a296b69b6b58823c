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
