//! The last decisions of each revision.

use std::collections::VecDeque;

use dashmap::DashMap;
use sas_core::{DecisionRecord, DecisionSink, RevisionKey};

/// A [`DecisionSink`] that keeps the last decisions of each revision, so that an operator can ask why.
///
/// Bounded: `per_revision` decisions of at most `revisions` revisions; the one whose last decision is oldest goes first.
#[derive(Debug)]
pub struct DecisionLog {
    records: DashMap<RevisionKey, VecDeque<DecisionRecord>>,
    per_revision: usize,
    revisions: usize,
}

impl Default for DecisionLog {
    fn default() -> Self {
        Self::new(256, 4096)
    }
}

impl DecisionLog {
    /// A log of `per_revision` decisions of at most `revisions` revisions.
    pub fn new(per_revision: usize, revisions: usize) -> Self {
        Self { records: DashMap::new(), per_revision: per_revision.max(1), revisions: revisions.max(1) }
    }

    /// The last `most` decisions of a revision, oldest first.
    pub fn tail(&self, revision: RevisionKey, most: usize) -> Vec<DecisionRecord> {
        self.records.get(&revision).map_or_else(Vec::new, |records| {
            let skip = records.len().saturating_sub(most);
            records.iter().skip(skip).cloned().collect()
        })
    }

    /// Forgets a revision.
    pub fn forget(&self, revision: RevisionKey) {
        self.records.remove(&revision);
    }
}

impl DecisionSink for DecisionLog {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        if !self.records.contains_key(&revision) {
            while self.records.len() >= self.revisions {
                let oldest = self
                    .records
                    .iter()
                    .map(|records| (records.back().map(|record| record.at), *records.key()))
                    .min();
                let Some((_, key)) = oldest else { break };
                self.records.remove(&key);
            }
        }
        let mut records = self.records.entry(revision).or_default();
        if records.len() >= self.per_revision {
            records.pop_front();
        }
        records.push_back(record.clone());
    }
}
