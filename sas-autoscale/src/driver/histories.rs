//! How many histories there are, and those of revisions that sleep.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use sas_core::{Deployed, RevisionKey};

use super::config::DriverConfig;
use crate::history::History;

/// Counts all histories, and holds those of revisions without a row. The history of an active revision stands in its row.
#[derive(Debug)]
pub(super) struct Histories {
    /// Decisions that one keeps.
    length: usize,
    most: usize,
    most_asleep: usize,
    count: AtomicUsize,
    asleep: Mutex<Asleep>,
}

#[derive(Debug, Default)]
struct Asleep {
    /// By the order in which they went to sleep.
    order: BTreeMap<u64, RevisionKey>,
    histories: HashMap<RevisionKey, (u64, Arc<Deployed>, Box<History>)>,
    turn: u64,
}

impl Histories {
    pub(super) fn new(config: &DriverConfig) -> Self {
        Self {
            length: config.history,
            most: config.history_revisions,
            most_asleep: config.asleep_histories,
            count: AtomicUsize::new(0),
            asleep: Mutex::default(),
        }
    }

    /// A new one; `None`: none are kept, or as many as there may be.
    pub(super) fn begin(&self) -> Option<Box<History>> {
        if self.length == 0 {
            return None;
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.give_up();
            return None;
        }
        Some(Box::new(History::new(self.length)))
    }

    /// One of those that were begun is let go of.
    pub(super) fn give_up(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }

    /// The history of a revision that slept, for a row.
    pub(super) fn take_asleep(&self, revision: RevisionKey) -> Option<Box<History>> {
        let mut asleep = self.asleep.lock();
        let (turn, _, history) = asleep.histories.remove(&revision)?;
        asleep.order.remove(&turn);
        Some(history)
    }

    /// Keeps the history of a revision that sleeps; the oldest goes when there are too many.
    pub(super) fn keep_asleep(&self, revision: RevisionKey, deployed: Arc<Deployed>, history: Box<History>) {
        if self.most_asleep == 0 {
            return self.give_up();
        }
        let mut asleep = self.asleep.lock();
        asleep.turn += 1;
        let turn = asleep.turn;
        asleep.order.insert(turn, revision);
        asleep.histories.insert(revision, (turn, deployed, history));
        if asleep.order.len() > self.most_asleep
            && let Some((_, oldest)) = asleep.order.pop_first()
        {
            asleep.histories.remove(&oldest);
            self.give_up();
        }
    }

    /// Reads the history of a revision that sleeps, where there is one.
    pub(super) fn read_asleep<T>(
        &self,
        revision: RevisionKey,
        read: impl FnOnce(&Deployed, &History) -> T,
    ) -> Option<T> {
        let asleep = self.asleep.lock();
        asleep.histories.get(&revision).map(|(_, deployed, history)| read(deployed, history))
    }
}
