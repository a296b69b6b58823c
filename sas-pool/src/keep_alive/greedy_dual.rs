use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use sas_core::{KeepAlive, KeepAlivePolicy, RevisionKey, Timestamp};

/// What it costs to hold a revision, and to lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Memory of an idle instance, in bytes.
    pub bytes: u64,
    /// How long a cold start takes.
    pub start: Duration,
}

impl Default for Footprint {
    /// 128 MiB and 100 ms, for a revision of which nothing was measured.
    fn default() -> Self {
        Self { bytes: 128 << 20, start: Duration::from_millis(100) }
    }
}

/// Greedy-Dual-Size-Frequency eviction, as FaasCache (Fuerst and Sharma, ASPLOS'21) has it.
///
/// Everything stays warm until memory is short. Then the idle revision with the least priority goes:
///
/// ```text
/// priority = clock + calls · start / bytes        (at each call)
/// clock ← priority of what was evicted            (so that old priorities age)
/// ```
///
/// `calls` begins again when a revision was evicted. What is busy is never a victim.
///
/// ```
/// use sas_core::{KeepAlivePolicy, RevisionKey, Timestamp};
/// use sas_pool::keep_alive::{Footprint, GreedyDual};
/// use std::time::Duration;
///
/// let mut cache = GreedyDual::new(300 << 20);
/// for (slot, start) in [(0, 2_000), (1, 100)] {
///     let revision = RevisionKey::new(slot, 0);
///     cache.measured(revision, Footprint { bytes: 128 << 20, start: Duration::from_millis(start) });
///     cache.called(revision, Timestamp(0));
///     cache.idle(revision, Timestamp(0));
/// }
/// assert_eq!(cache.make_room(128 << 20), [RevisionKey::new(1, 0)]); // the one that starts fast
/// ```
#[derive(Clone, Debug)]
pub struct GreedyDual {
    budget: u64,
    held: u64,
    /// Non-negative, so that the order of its bits is the order of the numbers.
    clock: f64,
    revisions: HashMap<RevisionKey, Held>,
    idle: BTreeSet<(u64, RevisionKey)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Held {
    footprint: Footprint,
    calls: u32,
    warm: bool,
    idle_as: Option<u64>,
}

impl GreedyDual {
    /// Holds at most `budget` bytes of instances, as far as busy ones allow.
    pub fn new(budget: u64) -> Self {
        Self { budget, held: 0, clock: 0.0, revisions: HashMap::new(), idle: BTreeSet::new() }
    }

    /// The footprint of `revision` was measured; until then the default one counts.
    pub fn measured(&mut self, revision: RevisionKey, footprint: Footprint) {
        let held = self.revisions.entry(revision).or_default();
        if held.warm {
            self.held = self.held - held.footprint.bytes + footprint.bytes;
        }
        held.footprint = footprint;
    }

    /// Bytes of what is warm.
    pub fn held(&self) -> u64 {
        self.held
    }

    /// Evicts idle revisions until `needed` bytes more fit; returns them in order. When all idle ones together are not
    /// enough, they are all returned, and [`GreedyDual::held`] stays above what would fit.
    pub fn make_room(&mut self, needed: u64) -> Vec<RevisionKey> {
        let mut out = Vec::new();
        while self.held.saturating_add(needed) > self.budget {
            let Some((priority, revision)) = self.idle.pop_first() else { break };
            self.clock = self.clock.max(f64::from_bits(priority));
            if let Some(held) = self.revisions.get_mut(&revision) {
                self.held = self.held.saturating_sub(held.footprint.bytes);
                *held = Held { footprint: held.footprint, ..Held::default() };
            }
            out.push(revision);
        }
        out
    }

    fn leave_idle(&mut self, revision: RevisionKey) {
        if let Some(priority) = self.revisions.get_mut(&revision).and_then(|held| held.idle_as.take()) {
            self.idle.remove(&(priority, revision));
        }
    }
}

impl KeepAlivePolicy for GreedyDual {
    fn called(&mut self, revision: RevisionKey, _: Timestamp) {
        self.leave_idle(revision);
        let held = self.revisions.entry(revision).or_default();
        held.calls = held.calls.saturating_add(1);
        if !std::mem::replace(&mut held.warm, true) {
            self.held = self.held.saturating_add(held.footprint.bytes);
        }
    }

    fn idle(&mut self, revision: RevisionKey, _: Timestamp) -> KeepAlive {
        self.leave_idle(revision);
        if let Some(held) = self.revisions.get_mut(&revision).filter(|held| held.warm) {
            #[allow(clippy::cast_precision_loss, reason = "a priority needs no more than 52 bits")]
            let worth = held.footprint.start.as_secs_f64() / (held.footprint.bytes.max(1) as f64);
            let priority = (self.clock + f64::from(held.calls) * worth).to_bits();
            held.idle_as = Some(priority);
            self.idle.insert((priority, revision));
        }
        KeepAlive::until(Timestamp(i64::MAX))
    }

    fn forget(&mut self, revision: RevisionKey) {
        self.leave_idle(revision);
        if let Some(held) = self.revisions.remove(&revision).filter(|held| held.warm) {
            self.held = self.held.saturating_sub(held.footprint.bytes);
        }
    }

    fn bytes(&self) -> usize {
        self.revisions.capacity() * size_of::<(RevisionKey, Held)>()
            + self.idle.len() * size_of::<(u64, RevisionKey)>()
    }
}
