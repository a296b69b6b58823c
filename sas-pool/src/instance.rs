//! What the pool keeps of an instance from the decision to start it until it is gone.

use std::sync::Arc;

use sas_core::{EngineKey, Instance, InstanceId, MeterPhase, StartTimings, Usage};

use crate::{balance::Outliers, gate::Need};

/// How far an instance is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The slot is free.
    #[default]
    Free,
    /// Decided, waiting for its turn.
    Gated,
    /// Being started.
    Starting,
    /// In rotation.
    Ready,
    /// Off the CPU, or on its way there.
    Suspended,
    /// On its way back.
    Resuming,
    /// Out of rotation, finishing its leases.
    Draining,
    /// Being stopped.
    Stopping,
    /// Gone, but leases of it are still out.
    Gone,
}

impl Phase {
    /// Whether it counts among those that serve or will.
    pub(crate) fn is_coming(self) -> bool {
        matches!(self, Self::Gated | Self::Starting | Self::Resuming)
    }
}

/// An instance.
#[derive(Debug, Default)]
pub(crate) struct InstanceSlot {
    pub(crate) generation: u32,
    pub(crate) phase: Phase,
    pub(crate) active: u32,
    /// Where it was last seen in the slots of its revision; it can only have moved to the front since.
    pub(crate) position: u32,
    /// Leases out, while it is not in rotation.
    pub(crate) in_flight: u32,
    pub(crate) instance: Option<Arc<dyn Instance>>,
    pub(crate) start: Option<Arc<StartTimings>>,

    pub(crate) asked: u64,
    pub(crate) begun: u64,
    pub(crate) spawned: u64,
    pub(crate) listening: u64,
    pub(crate) ready: u64,
    /// Since when it has no lease.
    pub(crate) idle: u64,
    pub(crate) from_stem: bool,

    /// It holds a permit of the start gate.
    pub(crate) permit: bool,
    /// Who needs it, while it waits at the gate; who needed it then, afterwards.
    pub(crate) need: Need,
    /// It holds a part of the budgets, of so many bytes.
    pub(crate) budget: Option<u64>,
    /// It is not wanted any more and is stopped as soon as its start is over.
    pub(crate) cancelled: bool,
    /// Its exit was told before its start was over.
    pub(crate) exited: bool,
    /// A shrink took it out; it may come back.
    pub(crate) may_return: bool,
    /// The call that takes it off the CPU is still under way.
    pub(crate) freezing: bool,
    pub(crate) grace: Option<(u64, u64)>,
    pub(crate) suspend: Option<(u64, u64)>,

    /// Good answers.
    pub(crate) served: u32,
    pub(crate) outliers: Outliers,

    pub(crate) sampled: Option<(u64, Usage)>,
}

/// The time of an instance by phase, in nanoseconds. All time from `asked` on is in exactly one phase.
///
/// It lies beside the instance, not in it: every visit reads all meters, and nothing else of most instances.
#[derive(Debug)]
pub(crate) struct PhaseMeter {
    pub(crate) id: InstanceId,
    pub(crate) active: u32,
    phase: Option<MeterPhase>,
    since: u64,
    spent: [u64; 5],
}

const PHASES: [MeterPhase; 5] =
    [MeterPhase::Starting, MeterPhase::Pooled, MeterPhase::Idle, MeterPhase::Busy, MeterPhase::Draining];

impl PhaseMeter {
    /// Begins, for an instance of the revision in this activation record.
    pub(crate) fn begin(id: InstanceId, active: u32, now: u64) -> Self {
        Self { id, active, phase: Some(MeterPhase::Starting), since: now, spent: [0; 5] }
    }

    /// Whether its instance is there.
    pub(crate) fn runs(&self) -> bool {
        self.phase.is_some()
    }

    /// From `now` on it is in `phase`.
    pub(crate) fn enter(&mut self, phase: MeterPhase, now: u64) {
        self.settle(now);
        self.phase = Some(phase);
    }

    /// Its instance is gone: the phase that it was in ends at `now`, and no other begins.
    pub(crate) fn end(&mut self, now: u64) {
        self.settle(now);
        self.phase = None;
    }

    fn settle(&mut self, now: u64) {
        if let Some(phase) = self.phase {
            let at = PHASES.iter().position(|known| *known == phase).expect("every phase is listed");
            self.spent[at] += now.saturating_sub(self.since);
        }
        self.since = self.since.max(now);
    }

    /// Takes what was spent up to `now`.
    pub(crate) fn take(&mut self, now: u64) -> impl Iterator<Item = (MeterPhase, u64)> + use<> {
        self.settle(now);
        let spent = std::mem::take(&mut self.spent);
        PHASES.into_iter().zip(spent).filter(|(_, ns)| *ns > 0)
    }
}

/// Ids and lease tokens are one word: shard and slot below, generation above, and in a token the top bit says whether
/// the request is metered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IdLayout {
    pub(crate) shard_bits: u32,
    /// The generations of the engine whose pool it is: a slot that has reached the last is not used again.
    pub(crate) first: u32,
    pub(crate) last: u32,
}

/// The bit of a token that says that its request counts for scaling.
pub(crate) const METERED: u64 = 1 << 63;

impl IdLayout {
    pub(crate) const fn new(shards: u32, engine: EngineKey) -> Self {
        Self {
            shard_bits: shards.trailing_zeros(),
            first: engine.first_generation(),
            last: engine.last_generation(),
        }
    }

    pub(crate) fn id(self, shard: u32, slot: u32, generation: u32) -> InstanceId {
        InstanceId(u64::from(generation) << 32 | u64::from(slot << self.shard_bits | shard))
    }

    pub(crate) fn shard(self, id: InstanceId) -> u32 {
        (id.0 as u32) & ((1 << self.shard_bits) - 1)
    }

    pub(crate) fn slot(self, id: InstanceId) -> u32 {
        (id.0 as u32) >> self.shard_bits
    }

    pub(crate) fn generation(id: InstanceId) -> u32 {
        ((id.0 & !METERED) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_of_a_life_add_up_to_it() {
        let mut meter = PhaseMeter::begin(InstanceId(1), 0, 100);
        meter.enter(MeterPhase::Idle, 150);
        meter.enter(MeterPhase::Busy, 151);
        let first: u64 = meter.take(160).map(|(_, ns)| ns).sum();
        meter.enter(MeterPhase::Draining, 1_000);
        meter.end(1_007);
        let second: Vec<_> = meter.take(9_999).collect();
        assert_eq!(second, [(MeterPhase::Busy, 840), (MeterPhase::Draining, 7)]);
        assert_eq!(first + 847, 1_007 - 100);
    }

    #[test]
    fn ids_say_where_the_instance_is() {
        let layout = IdLayout::new(64, EngineKey::FIRST);
        let id = layout.id(63, 1234, 7);
        assert_eq!((layout.shard(id), layout.slot(id), IdLayout::generation(id)), (63, 1234, 7));
    }
}
