//! Decisions that are kept, and the state that they began from: a stretch that can be replayed.

use std::collections::VecDeque;

use sas_core::{DecisionRecord, Resources, ScalingSpec};
use serde::{Deserialize, Serialize};

use crate::govern::Governor;

/// Everything that the decisions after it came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Checkpoint {
    /// The name of the scaler that decided.
    pub scaler: String,
    /// The version of that scaler's state.
    pub version: u32,
    /// Its state of the revision; `None`: it had none yet.
    pub state: Option<serde_json::Value>,
    /// The state of bounds and sleep.
    pub governor: Governor,
    /// The decision in force.
    pub desired: Option<u32>,
}

/// Consecutive decisions of one revision with all that is needed to make them again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stretch {
    /// The configuration by which was decided.
    pub spec: ScalingSpec,
    /// Requests at once per instance; 0: unlimited.
    pub concurrency: u32,
    /// What an instance may use.
    pub resources: Resources,
    /// The state before the first record.
    pub checkpoint: Checkpoint,
    /// The records, without a gap.
    pub records: Vec<DecisionRecord>,
}

/// The kept decisions of one revision: two segments, each with a checkpoint, of which the older one goes when the
/// newer one is full. So at least half of the bound is always there, and a checkpoint costs once per half.
#[derive(Debug)]
pub(crate) struct History {
    segments: VecDeque<Segment>,
    segment: usize,
    interrupted: bool,
}

#[derive(Debug)]
struct Segment {
    checkpoint: Checkpoint,
    records: Vec<DecisionRecord>,
    /// Whether it does not follow from the one before it: the revision slept in between.
    begins: bool,
}

impl History {
    /// Keeps at most `bound` records.
    pub(crate) fn new(bound: usize) -> Self {
        Self { segments: VecDeque::new(), segment: bound.div_ceil(2).max(1), interrupted: true }
    }

    /// Whether the next record begins a segment, and so needs a checkpoint.
    pub(crate) fn needs_checkpoint(&self) -> bool {
        self.interrupted || self.segments.back().is_none_or(|segment| segment.records.len() >= self.segment)
    }

    pub(crate) fn begin(&mut self, checkpoint: Checkpoint) {
        if self.segments.len() >= 2 {
            self.segments.pop_front();
        }
        let begins = std::mem::take(&mut self.interrupted);
        self.segments.push_back(Segment { checkpoint, records: Vec::new(), begins });
    }

    pub(crate) fn push(&mut self, record: DecisionRecord) {
        if let Some(segment) = self.segments.back_mut() {
            segment.records.push(record);
        }
    }

    /// Keeps a decision that follows from nothing before it, and that nothing will follow from.
    pub(crate) fn alone(&mut self, checkpoint: Checkpoint, record: DecisionRecord) {
        self.interrupt();
        self.begin(checkpoint);
        self.push(record);
        self.interrupt();
    }

    pub(crate) fn records(&self) -> Vec<DecisionRecord> {
        self.segments.iter().flat_map(|segment| segment.records.iter().cloned()).collect()
    }

    pub(crate) fn last_sequence(&self) -> u64 {
        self.segments.back().and_then(|segment| segment.records.last()).map_or(0, |record| record.sequence)
    }

    /// The next record will not follow from the last one.
    pub(crate) fn interrupt(&mut self) {
        self.interrupted = true;
    }

    /// The records that follow from one checkpoint without a gap, up to the newest.
    pub(crate) fn stretch(&self) -> Option<(&Checkpoint, Vec<DecisionRecord>)> {
        let from = self.segments.iter().rposition(|segment| segment.begins).unwrap_or(0);
        let first = self.segments.get(from)?;
        let records =
            self.segments.range(from..).flat_map(|segment| segment.records.iter().cloned()).collect();
        Some((&first.checkpoint, records))
    }
}
