//! Answers per revision, counted only where somebody wants to know.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use sas_core::{AnswerCounts, RevisionKey};

/// Requests of a revision since it is watched.
#[derive(Debug, Default)]
pub struct Tally {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl Tally {
    /// Requests so far, and how many of them failed: a status of 500 or more, or none at all.
    pub fn read(&self) -> AnswerCounts {
        // Errors first: one that is counted in between is missing here, and does not exceed the requests.
        let errors = self.errors.load(Ordering::Acquire);
        AnswerCounts { requests: self.requests.load(Ordering::Acquire), errors }
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

    pub(crate) fn count(&self, revision: RevisionKey, failed: bool) {
        let watched = self.0.load();
        if let Some((_, tally)) = watched.iter().find(|(key, _)| *key == revision) {
            tally.requests.fetch_add(1, Ordering::AcqRel);
            if failed {
                tally.errors.fetch_add(1, Ordering::AcqRel);
            }
        }
    }
}
