//! Who acts alone: a lease with an epoch, on any [`Store`].

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{Commit, Error, ErrorKind, Guard, Result, Store, Version};

/// What stands under the key of an ownership. It changes only with the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// The owner; empty: it was given up.
    holder: String,
    /// How often the owner changed.
    epoch: u64,
}

/// A part of the platform that one host at a time may act for: a shard of services, a schedule, a roll-out.
///
/// Every process that may own it makes one with the same key and a holder's name of its own, which no other process
/// has, not even its own next life, and calls [`Candidacy::try_take`] now and then.
///
/// Two clocks are never compared. The owner stops at two thirds of the term by its own clock, counted from before its
/// last renewal was sent. Whoever takes over has seen no renewal for a whole term by *its* own clock. And what an owner
/// writes is guarded by [`Owned::guard`], so that the writes of one that was paused meanwhile are refused.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use sas_core::{Candidacy, Commit, MemoryStore, Store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// let store = Arc::new(MemoryStore::default());
/// let mut candidacy = Candidacy::new(store.clone(), "shards/7", "host-1/4711", Duration::from_secs(15));
/// let owned = candidacy.try_take().await?.expect("nobody owns it");
/// assert_eq!(owned.epoch(), 1);
/// store.commit(Commit::new().put("services/a", "…").guarded_by(owned.guard())).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Candidacy {
    store: Arc<dyn Store>,
    key: String,
    holder: String,
    term: Duration,
    /// The last renewal that was seen, and since when it is the last.
    seen: Option<(Option<Version>, Instant)>,
}

/// An ownership that was taken. It is kept up by [`Owned::renew`], at least every third of the term.
#[derive(Debug)]
pub struct Owned {
    store: Arc<dyn Store>,
    key: String,
    holder: String,
    term: Duration,
    epoch: u64,
    version: Version,
    until: Instant,
}

/// Where renewals of the ownership under `key` stand.
fn renewals(key: &str) -> String {
    format!("{key}/renewed")
}

impl Candidacy {
    /// A candidacy for what stands under `key`, with a term for which an owner is not disturbed.
    pub fn new(
        store: Arc<dyn Store>,
        key: impl Into<String>,
        holder: impl Into<String>,
        term: Duration,
    ) -> Self {
        Self { store, key: key.into(), holder: holder.into(), term, seen: None }
    }

    /// Takes the ownership if nobody has it, if it was given up, or if its owner was silent for a whole term since this
    /// candidacy first saw it so. `None`: not now; ask again.
    ///
    /// **Cancel safety:** dropping it may leave the ownership taken; the next call finds that out.
    ///
    /// # Errors
    /// Those of the store, `InvalidSpec` for a record that is none of an ownership. A conflict with another candidate is
    /// no error: it was first.
    pub async fn try_take(&mut self) -> Result<Option<Owned>> {
        let renewals = renewals(&self.key);
        let asked = Instant::now();
        let found = self.store.get(&self.key).await?;
        let renewed = self.store.get(&renewals).await?.map(|entry| entry.version);
        let (epoch, expected) = match &found {
            None => (0, None),
            Some(entry) => {
                let record: Record = serde_json::from_slice(&entry.value).map_err(|error| {
                    let message = format!("{:?} holds no record of an ownership: {error}", self.key);
                    Error::new(ErrorKind::InvalidSpec, "ownership", message)
                })?;
                // An answer that was lost: it was taken all the same.
                if record.holder == self.holder {
                    let mut owned = self.owned(record.epoch, entry.version, asked);
                    return Ok(owned.renew().await?.then_some(owned));
                }
                let silent = match &self.seen {
                    Some((seen, since)) if *seen == renewed => asked.duration_since(*since) >= self.term,
                    _ => {
                        self.seen = Some((renewed, asked));
                        false
                    }
                };
                if !record.holder.is_empty() && !silent {
                    return Ok(None);
                }
                (record.epoch, Some(entry.version))
            }
        };
        let record = Record { holder: self.holder.clone(), epoch: epoch + 1 };
        let value = serde_json::to_vec(&record).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "ownership", error.to_string()).with_source(error)
        })?;
        let commit = Commit::new()
            .guard(&self.key, expected)
            .guard(&renewals, renewed)
            .put(&self.key, value)
            .put(&renewals, self.holder.clone());
        match self.store.commit(commit).await {
            Ok(version) => {
                self.seen = None;
                Ok(Some(self.owned(epoch + 1, version, asked)))
            }
            Err(error) if error.kind == ErrorKind::Conflict => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn owned(&self, epoch: u64, version: Version, asked: Instant) -> Owned {
        Owned {
            store: Arc::clone(&self.store),
            key: self.key.clone(),
            holder: self.holder.clone(),
            term: self.term,
            epoch,
            version,
            until: asked + self.term * 2 / 3,
        }
    }
}

impl Owned {
    /// How often the owner changed, this time included: higher with every owner, also over restarts.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Until when its owner may act without having renewed it.
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Whether its owner may act now.
    pub fn is_held(&self) -> bool {
        Instant::now() < self.until
    }

    /// What every write of the owner is guarded by: it fails when somebody else has taken over.
    pub fn guard(&self) -> Guard {
        Guard { key: self.key.clone(), expected: Some(self.version) }
    }

    /// Renews the ownership. False: somebody else has it, and nothing may be done any more.
    ///
    /// **Cancel safety:** dropping it leaves the ownership as it was, or renewed without this owner's knowledge.
    ///
    /// # Errors
    /// Those of the store. The owner may go on until [`Owned::until`] and try again.
    pub async fn renew(&mut self) -> Result<bool> {
        let asked = Instant::now();
        let commit = Commit::new().guarded_by(self.guard()).put(renewals(&self.key), self.holder.clone());
        match self.store.commit(commit).await {
            Ok(_) => {
                self.until = asked + self.term * 2 / 3;
                Ok(true)
            }
            Err(error) if error.kind == ErrorKind::Conflict => {
                self.until = asked;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the ownership up: the next candidate has it at once, with a higher epoch.
    ///
    /// # Errors
    /// Those of the store; without it, others wait for the term to end. A conflict is no error: somebody else has it.
    pub async fn give_up(self) -> Result<()> {
        let record = Record { holder: String::new(), epoch: self.epoch };
        let value = serde_json::to_vec(&record).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "ownership", error.to_string()).with_source(error)
        })?;
        match self.store.commit(Commit::new().guarded_by(self.guard()).put(&self.key, value)).await {
            Err(error) if error.kind != ErrorKind::Conflict => Err(error),
            _ => Ok(()),
        }
    }
}
