//! The last decisions of each revision.

use std::collections::VecDeque;

use async_trait::async_trait;
use dashmap::DashMap;
use sas_core::{DecisionQuery, DecisionRecord, DecisionSink, Result, RevisionKey};

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

    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        Some(self)
    }

    fn forget(&self, revision: RevisionKey) {
        self.records.remove(&revision);
    }
}

#[async_trait]
impl DecisionQuery for DecisionLog {
    async fn last_decisions(&self, revision: RevisionKey, most: usize) -> Result<Vec<DecisionRecord>> {
        Ok(self.tail(revision, most))
    }
}
