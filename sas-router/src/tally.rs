//! Answers per revision, counted only where somebody wants to know.

use std::{
    array,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use sas_core::{AnswerCounts, LatencyCounts, RevisionKey};

/// Requests of a revision since it is watched.
#[derive(Debug)]
pub struct Tally {
    requests: AtomicU64,
    errors: AtomicU64,
    latencies: [AtomicU64; LatencyCounts::BUCKETS],
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            latencies: array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl Tally {
    /// Requests so far, and how many of them failed: a status of 500 or more, or none at all.
    pub fn read(&self) -> AnswerCounts {
        // Errors first: one that is counted in between is missing here, and does not exceed the requests.
        let errors = self.errors.load(Ordering::Acquire);
        AnswerCounts { requests: self.requests.load(Ordering::Acquire), errors }
    }

    /// How long instances took to begin the answers that were no failures.
    pub fn latencies(&self) -> LatencyCounts {
        LatencyCounts::from_buckets(self.latencies.iter().map(|bucket| bucket.load(Ordering::Relaxed)))
    }
}

type Watched = Vec<(RevisionKey, Arc<Tally>)>;

/// The revisions that are watched: those of roll-outs under way, so a handful.
#[derive(Debug, Default)]
pub(crate) struct Tallies(ArcSwap<Watched>);

impl Tallies {
    pub(crate) fn watch(&self, revision: RevisionKey) -> Arc<Tally> {
        let tally = Arc::<Tally>::default();
        self.0.rcu(|watched| {
            let mut watched = Watched::clone(watched);
            watched.retain(|(key, _)| *key != revision);
            watched.push((revision, Arc::clone(&tally)));
            watched
        });
        tally
    }

    pub(crate) fn unwatch(&self, revision: RevisionKey) {
        self.0.rcu(|watched| {
            let mut watched = Watched::clone(watched);
            watched.retain(|(key, _)| *key != revision);
            watched
        });
    }

    pub(crate) fn read(&self, revision: RevisionKey) -> Option<AnswerCounts> {
        self.0.load().iter().find(|(key, _)| *key == revision).map(|(_, tally)| tally.read())
    }

    pub(crate) fn latencies(&self, revision: RevisionKey) -> Option<LatencyCounts> {
        self.0.load().iter().find(|(key, _)| *key == revision).map(|(_, tally)| tally.latencies())
    }

    /// No instance answered, or one with a failure.
    pub(crate) fn failed(&self, revision: RevisionKey) {
        self.count(revision, |tally| {
            tally.errors.fetch_add(1, Ordering::AcqRel);
        });
    }

    /// An instance began its answer after so long.
    pub(crate) fn answered(&self, revision: RevisionKey, took: Duration) {
        self.count(revision, |tally| {
            tally.latencies[LatencyCounts::bucket(took)].fetch_add(1, Ordering::Relaxed);
        });
    }

    fn count(&self, revision: RevisionKey, how: impl FnOnce(&Tally)) {
        let watched = self.0.load();
        if let Some((_, tally)) = watched.iter().find(|(key, _)| *key == revision) {
            tally.requests.fetch_add(1, Ordering::AcqRel);
            how(tally);
        }
    }
}
