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
/// In a pool the budget is the pool's own ([`crate::config::BudgetConfig`]): when a start waits for memory, the idle
/// instances of the revisions with the least priority go first. As the idle rule it lets nothing sleep before;
/// [`GreedyDual::with`] puts it beside another policy, which says how long it is worth it.
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

impl Held {
    fn priority(&self, clock: f64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a priority needs no more than 52 bits")]
        let worth = self.footprint.start.as_secs_f64() / (self.footprint.bytes.max(1) as f64);
        clock + f64::from(self.calls) * worth
    }
}

impl GreedyDual {
    /// Holds at most `budget` bytes of instances, as far as busy ones allow. The budget is for
    /// [`GreedyDual::make_room`]; a pool has its own.
    pub fn new(budget: u64) -> Self {
        Self { budget, held: 0, clock: 0.0, revisions: HashMap::new(), idle: BTreeSet::new() }
    }

    /// Keeps alive as `keep` says, and evicts as this policy does when memory is short.
    pub fn with<P: KeepAlivePolicy>(self, keep: P) -> Evicting<P> {
        Evicting { keep, evict: self }
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
            let Some(&(_, revision)) = self.idle.first() else { break };
            self.evict(revision);
            out.push(revision);
        }
        out
    }

    fn evict(&mut self, revision: RevisionKey) {
        let Some(held) = self.revisions.get_mut(&revision).filter(|held| held.warm) else { return };
        let priority = held.priority(self.clock);
        let idle_as = held.idle_as;
        self.held = self.held.saturating_sub(held.footprint.bytes);
        *held = Held { footprint: held.footprint, ..Held::default() };
        if let Some(bits) = idle_as {
            self.idle.remove(&(bits, revision));
        }
        self.clock = self.clock.max(idle_as.map_or(priority, f64::from_bits));
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
            let priority = held.priority(self.clock).to_bits();
            held.idle_as = Some(priority);
            self.idle.insert((priority, revision));
        }
        KeepAlive::until(Timestamp(i64::MAX))
    }

    fn started(&mut self, revision: RevisionKey, bytes: u64, start: Duration) {
        self.measured(revision, Footprint { bytes, start });
    }

    fn worth(&self, revision: RevisionKey) -> Option<f64> {
        let held = self.revisions.get(&revision).filter(|held| held.warm)?;
        Some(held.idle_as.map_or_else(|| held.priority(self.clock), f64::from_bits))
    }

    fn evicted(&mut self, revision: RevisionKey) {
        self.evict(revision);
    }

    fn resolution(&self) -> Duration {
        Duration::ZERO
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

/// A keep-alive policy, with [`GreedyDual`] for what goes first when memory is short.
#[derive(Clone, Debug)]
pub struct Evicting<P> {
    keep: P,
    evict: GreedyDual,
}

#[deny(clippy::missing_trait_methods)]
impl<P: KeepAlivePolicy> KeepAlivePolicy for Evicting<P> {
    fn called(&mut self, revision: RevisionKey, now: Timestamp) {
        self.keep.called(revision, now);
        self.evict.called(revision, now);
    }

    fn idle(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        self.evict.idle(revision, now);
        self.keep.idle(revision, now)
    }

    fn unused(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        self.keep.unused(revision, now)
    }

    fn started(&mut self, revision: RevisionKey, bytes: u64, start: Duration) {
        self.keep.started(revision, bytes, start);
        self.evict.started(revision, bytes, start);
    }

    fn worth(&self, revision: RevisionKey) -> Option<f64> {
        self.evict.worth(revision)
    }

    fn evicted(&mut self, revision: RevisionKey) {
        self.keep.evicted(revision);
        self.evict.evicted(revision);
    }

    fn resolution(&self) -> Duration {
        self.keep.resolution()
    }

    fn forget(&mut self, revision: RevisionKey) {
        self.keep.forget(revision);
        self.evict.forget(revision);
    }

    fn bytes(&self) -> usize {
        self.keep.bytes() + self.evict.bytes()
    }
}
