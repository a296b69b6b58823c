//! The pool's one clock: a task that sleeps until the earliest timer of any shard. A waiting claim costs an entry in
//! its shard's tree, not a timer of the runtime; a sleeping revision costs nothing.

use std::collections::BTreeMap;

use sas_core::{InstanceId, RevisionKey};

/// What falls due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The deadline of the waiter in this slot of the shard.
    Waiter(u32),
    /// A draining instance is stopped with its leases.
    Grace(InstanceId),
    /// An idle instance goes off the CPU, if it still is idle.
    Suspend(InstanceId),
    /// An ejected instance comes back.
    Readmit(InstanceId),
    /// The pause after a failed start is over.
    Retry(RevisionKey),
    /// The keep-alive policy lets the revision sleep.
    Sleep(RevisionKey),
    /// The keep-alive policy wakes it ahead of its next call.
    Wake(RevisionKey),
}

/// Timers of a shard in nanoseconds of the pool's life, equal ones in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    due: BTreeMap<(u64, u64), Timer>,
    sequence: u64,
}

impl Timers {
    pub(crate) fn set(&mut self, at: u64, timer: Timer) -> (u64, u64) {
        self.sequence += 1;
        self.due.insert((at, self.sequence), timer);
        (at, self.sequence)
    }

    pub(crate) fn cancel(&mut self, key: (u64, u64)) {
        self.due.remove(&key);
    }

    pub(crate) fn pop_due(&mut self, now: u64) -> Option<Timer> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }

    /// When the next one is due; `u64::MAX`: none is set.
    pub(crate) fn next(&self) -> u64 {
        self.due.first_key_value().map_or(u64::MAX, |((at, _), _)| *at)
    }

    pub(crate) fn clear(&mut self) {
        self.due.clear();
    }
}
