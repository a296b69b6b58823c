//! What happens when the group's partitions are dealt anew, and how far its offsets follow.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::Duration,
};

use krafka::consumer::{Consumer, ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition};
use sas_core::Result;
use tokio::{sync::Notify, time::timeout};

use crate::{
    access::failed,
    ledger::{Ledger, Place, Receipt},
};

/// How long another host waits for what is under way here; what takes longer is broken off, and comes again there.
const HANDING_OVER: Duration = Duration::from_secs(30);

/// The ledger of a run, which its loop and its part in the group share.
#[derive(Debug)]
pub(crate) struct Shared {
    ledger: Mutex<Ledger>,
    over: Notify,
    /// One commit at a time, which looks at the ledger when it is its turn: else an older offset could follow a newer one.
    committing: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn new(ledger: Ledger) -> Self {
        Self { ledger: Mutex::new(ledger), over: Notify::new(), committing: tokio::sync::Mutex::new(()) }
    }

    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work is over.
    pub(crate) fn over(&self, receipt: &Receipt, delivered: impl Fn(usize) -> bool) {
        self.ledger().over(receipt, delivered);
        self.over.notify_waiters();
    }

    /// Waits until nothing of these partitions is under way.
    async fn all_over(&self, places: &[Place]) {
        loop {
            let over = self.over.notified();
            tokio::pin!(over);
            // Registered before it is looked, so that no end is missed.
            over.as_mut().enable();
            if self.ledger().running(places) == 0 {
                return;
            }
            over.await;
        }
    }
}

/// Commits what was delivered; of these partitions, or of all.
pub(crate) async fn commit(consumer: &Consumer, shared: &Shared, of: Option<&[Place]>) -> Result<()> {
    let _alone = shared.committing.lock().await;
    let commits: Vec<_> = shared
        .ledger()
        .commits()
        .into_iter()
        .filter(|commit| of.is_none_or(|places| places.contains(&commit.place)))
        .collect();
    if commits.is_empty() {
        return Ok(());
    }
    let offsets = commits.iter().map(|commit| {
        let offset = match commit.leader_epoch {
            Some(epoch) => OffsetAndMetadata::with_epoch(commit.offset, epoch),
            None => OffsetAndMetadata::new(commit.offset),
        };
        (TopicPartition::new(commit.place.0.clone(), commit.place.1), offset)
    });
    consumer.commit_offsets(offsets).await.map_err(failed("committing"))?;
    let mut ledger = shared.ledger();
    for commit in &commits {
        ledger.committed(commit);
    }
    Ok(())
}

/// This host's part in the group.
#[derive(Debug)]
pub(crate) struct Members {
    shared: Arc<Shared>,
    consumer: OnceLock<Weak<Consumer>>,
}

fn places(partitions: &[TopicPartition]) -> Vec<Place> {
    partitions.iter().map(|partition| (partition.topic().to_owned(), partition.partition())).collect()
}

impl Members {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, consumer: OnceLock::new() }
    }

    /// The consumer by which it commits.
    pub(crate) fn serve(&self, consumer: &Arc<Consumer>) {
        // Set once, by the run that made it.
        let _ = self.consumer.set(Arc::downgrade(consumer));
    }
}

impl ConsumerRebalanceListener for Members {
    async fn on_partitions_assigned(&self, partitions: &[TopicPartition]) {
        let mut ledger = self.shared.ledger();
        for place in places(partitions) {
            ledger.assign(place);
        }
    }

    /// Begins nothing more of them, waits for what is under way, and commits: the next owner goes on behind it, so that no
    /// key has two events under way on two hosts.
    async fn on_partitions_revoked(&self, partitions: &[TopicPartition]) {
        let places = places(partitions);
        self.shared.ledger().retire(&places);
        if timeout(HANDING_OVER, self.shared.all_over(&places)).await.is_err() {
            tracing::warn!(?places, "broken off: other hosts of the group wait for these partitions");
            self.shared.ledger().abandon(&places);
            self.shared.all_over(&places).await;
        }
        if let Some(consumer) = self.consumer.get().and_then(Weak::upgrade)
            && let Err(error) = commit(&consumer, &self.shared, Some(&places)).await
        {
            tracing::warn!(%error, ?places, "given back without the last offsets: records come again");
        }
        self.shared.ledger().remove(&places);
    }

    /// They may be another's already: what is under way is broken off, and nothing is committed.
    async fn on_partitions_lost(&self, partitions: &[TopicPartition]) {
        let places = places(partitions);
        let mut ledger = self.shared.ledger();
        ledger.abandon(&places);
        ledger.remove(&places);
    }
}
