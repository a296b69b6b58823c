//! What the pool keeps of a revision: two words and a reference while it sleeps, an activation record while something
//! of it waits or runs.

use std::sync::Arc;

use sas_core::{Deployed, Error, QuotaExceeded, RevisionKey, SlotView, TenantKey, Timestamp};

use crate::queue::Line;

/// Where the rest of a revision is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    /// Nowhere: it sleeps.
    Asleep,
    /// In this activation record.
    Active(u32),
    /// In this record of a load that no scaler has seen yet.
    Ended(u32),
}

/// A link in 32 bits, with whether an instance was ever ready: a sleeping revision is to be small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackedLink(u32);

impl PackedLink {
    const ENDED: u32 = 1 << 31;
    const STARTED: u32 = 1 << 30;
    const NOWHERE: u32 = !Self::STARTED;
    /// Of a revision that has not started yet.
    pub(crate) const ASLEEP: Self = Self(Self::NOWHERE);

    /// Changes where the rest is; whether it has started stays.
    pub(crate) fn set(&mut self, link: Link) {
        let packed = match link {
            Link::Asleep => Self::NOWHERE,
            Link::Active(at) => at,
            Link::Ended(at) => at | Self::ENDED,
        };
        debug_assert_eq!(packed & Self::STARTED, 0, "fewer than 2^30 records");
        self.0 = packed | (self.0 & Self::STARTED);
    }

    pub(crate) fn get(self) -> Link {
        match self.0 & !Self::STARTED {
            Self::NOWHERE => Link::Asleep,
            at if at & Self::ENDED != 0 => Link::Ended(at & !Self::ENDED),
            at => Link::Active(at),
        }
    }

    /// Whether an instance was ever ready.
    pub(crate) fn started(self) -> bool {
        self.0 & Self::STARTED != 0
    }

    /// An instance is ready.
    pub(crate) fn set_started(&mut self) {
        self.0 |= Self::STARTED;
    }
}

/// A registered revision: all that it costs the pool while it sleeps.
#[derive(Debug)]
pub(crate) struct RevisionSlot {
    /// `None`: the slot is free.
    pub(crate) deployed: Option<Arc<Deployed>>,
    pub(crate) generation: u32,
    pub(crate) link: PackedLink,
}

/// The load of a revision that fell asleep since the last visit of a scaler.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) slot: u32,
    pub(crate) area: u128,
    pub(crate) requests: u32,
    pub(crate) start_time: u64,
}

/// The activation record. Its buffers are kept for the next revision that wakes in the shard.
#[derive(Debug, Default)]
pub(crate) struct Active {
    pub(crate) key: RevisionKey0,
    /// The slot of the revision; meaningless once it is an orphan.
    pub(crate) slot: u32,
    /// Its own reference: to look a sleeping million through for it at each visit would cost a memory miss for each.
    /// `None`: the record is free.
    pub(crate) deployed: Option<Arc<Deployed>>,
    /// The revision was unregistered while instances were still there.
    pub(crate) orphan: bool,
    /// Its runtime tells what its instances use.
    pub(crate) sampled: bool,
    /// Whose the revision is.
    pub(crate) tenant: Owner,
    /// Leases per instance; `u32::MAX`: unlimited.
    pub(crate) limit: u32,
    pub(crate) min: u32,
    /// `u32::MAX`: unlimited.
    pub(crate) max: u32,
    pub(crate) balancer: u32,
    pub(crate) cursor: u32,
    /// Position in the shard's list of live records.
    pub(crate) listed: u32,

    /// The last decision as the scaler made it.
    pub(crate) asked: u32,
    /// Most instances that a decision may make; `u32::MAX`: the maximum alone holds.
    pub(crate) ceiling: u32,
    /// The last decision, within bounds.
    pub(crate) decided: u32,
    /// Raised by demand since the last decision.
    pub(crate) raised: u32,
    /// Set by a drain: the minimum does not hold until the next claim or decision.
    pub(crate) drained: bool,

    /// Instances in rotation, in the order in which they became ready.
    pub(crate) slots: Vec<SlotView>,
    /// Free leases over all slots in rotation that are not ejected.
    pub(crate) free: u64,
    pub(crate) ejected: u32,
    /// Waiting for the gate, starting, or being resumed; each knows its position here.
    pub(crate) coming: Vec<u32>,
    /// How many of these wait at the gate without a request that waits for them.
    pub(crate) unclaimed: u32,
    /// Suspended instances, the latest last.
    pub(crate) suspended: Vec<u32>,
    /// Draining instances that a shrink took out and that may come back.
    pub(crate) draining: Vec<u32>,
    /// Instances of any kind, those on their way out included.
    pub(crate) instances: u32,
    pub(crate) leases: u32,

    pub(crate) line: Line,
    pub(crate) line_bytes: u64,
    /// Claims that start an instance themselves and so wait without a place in the line.
    pub(crate) inline: u32,

    /// Metered requests in the revision, running and waiting.
    pub(crate) load: u32,
    pub(crate) area: u128,
    pub(crate) changed: u64,
    pub(crate) since: u64,
    pub(crate) requests: u32,
    pub(crate) start_time: u64,

    /// Failed starts in a row.
    pub(crate) failures: u32,
    /// Instances in a row that ended right after they were ready, without a good answer between.
    pub(crate) deaths: u32,
    pub(crate) error: Option<Arc<Error>>,
    pub(crate) retry_at: u64,
    pub(crate) retry: Option<(u64, u64)>,

    /// The tenant's quota has no room for a first instance of it, as the last claim found.
    pub(crate) over: Option<Box<QuotaExceeded>>,

    /// The keep-alive policy's timers.
    pub(crate) sleep: Option<(u64, u64)>,
    /// It was called, and the policy was not asked for a plan since.
    pub(crate) called: bool,
    /// Memory that an instance of it uses, in bytes, as last measured; 0: not measured since it woke.
    pub(crate) measured: u64,
    /// When the policy was last told of a call.
    pub(crate) told_at: u64,
    /// The keep-alive policy rules its last instance; otherwise the decisions do.
    pub(crate) kept: bool,
    /// It was started ahead of a call that has not come yet.
    pub(crate) woken: bool,
    /// Requests found it without an instance since the last visit of a driver, which is to be told.
    pub(crate) activation: Option<Activation>,
}

/// What requests that met no instance have had started so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Activation {
    pub(crate) at: Timestamp,
    /// Instances at the most.
    pub(crate) started: u32,
    /// Requests that found no slot.
    pub(crate) waited: u32,
}

/// A key with a default, for records that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RevisionKey0(pub(crate) RevisionKey);

impl Default for RevisionKey0 {
    fn default() -> Self {
        Self(RevisionKey(u64::MAX))
    }
}

/// A tenant with a default, for records that are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner(pub(crate) TenantKey);

impl Default for Owner {
    fn default() -> Self {
        Self(TenantKey::HOST)
    }
}

impl Active {
    /// Requests that wait.
    pub(crate) fn waiting(&self) -> u32 {
        self.line.len() + self.inline
    }

    /// Instances that serve or will.
    pub(crate) fn have(&self) -> u32 {
        (self.slots.len() + self.coming.len() + self.suspended.len()) as u32
    }

    /// The demand floor: what waits must find room, whatever was decided before it came.
    pub(crate) fn floor(&self) -> u32 {
        self.waiting().div_ceil(self.limit)
    }

    /// What a claim that must wait asks for. Until a scaler decided, those who have a slot already count too: a first
    /// burst gets what it needs whether starts take time or complete in the claim that makes them.
    pub(crate) fn demand(&self) -> u32 {
        let running: u32 =
            if self.decided == 0 { self.slots.iter().map(|slot| slot.in_flight).sum() } else { 0 };
        self.waiting().saturating_add(running).div_ceil(self.limit)
    }

    /// How many instances there should be.
    pub(crate) fn target(&self) -> u32 {
        let least = if self.drained { 0 } else { self.min };
        self.decided.max(self.raised).max(self.floor()).max(least).min(self.max)
    }

    /// Puts the bounds on what the scaler asked for.
    pub(crate) fn bind(&mut self) {
        self.decided = self.asked.min(self.ceiling).clamp(self.min, self.max);
    }

    /// Moves the time-weighted concurrency on to `now`.
    pub(crate) fn account(&mut self, now: u64) {
        self.area += u128::from(self.load) * u128::from(now.saturating_sub(self.changed));
        self.changed = self.changed.max(now);
    }

    pub(crate) fn arrive(&mut self, metered: bool, now: u64) {
        if metered {
            self.account(now);
            self.load += 1;
            self.requests = self.requests.saturating_add(1);
        }
    }

    pub(crate) fn depart(&mut self, metered: bool, now: u64) {
        if metered {
            self.account(now);
            self.load -= 1;
        }
    }

    /// Whether nothing of it waits or runs, and nothing has to be remembered.
    pub(crate) fn is_over(&self) -> bool {
        self.instances == 0
            && self.waiting() == 0
            && self.leases == 0
            && self.failures == 0
            && self.decided == 0
            && (self.drained || self.min == 0)
    }

    /// Makes the record ready for another revision. Large buffers are given back.
    pub(crate) fn reset(&mut self) {
        let mut fresh = Self {
            slots: std::mem::take(&mut self.slots),
            coming: std::mem::take(&mut self.coming),
            suspended: std::mem::take(&mut self.suspended),
            draining: std::mem::take(&mut self.draining),
            line: std::mem::take(&mut self.line),
            ..Self::default()
        };
        fresh.slots.clear();
        fresh.coming.clear();
        fresh.suspended.clear();
        fresh.draining.clear();
        if fresh.slots.capacity() > 256 {
            fresh.slots = Vec::new();
            fresh.coming = Vec::new();
            fresh.line = Line::default();
        }
        *self = fresh;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeping_revision_is_sixteen_bytes_beside_its_config() {
        assert_eq!(size_of::<RevisionSlot>(), 16);
    }

    #[test]
    fn links_survive_packing() {
        for link in [Link::Asleep, Link::Active(0), Link::Active(7), Link::Ended(0), Link::Ended(9)] {
            let mut packed = PackedLink::ASLEEP;
            packed.set(link);
            assert_eq!((packed.get(), packed.started()), (link, false));
            packed.set_started();
            assert_eq!((packed.get(), packed.started()), (link, true));
            packed.set(Link::Asleep);
            assert_eq!((packed.get(), packed.started()), (Link::Asleep, true));
        }
    }

    #[test]
    fn the_floor_fits_what_waits() {
        let mut active = Active { limit: 10, max: u32::MAX, ..Active::default() };
        active.inline = 1000;
        assert_eq!((active.floor(), active.target()), (100, 100));
        active.limit = u32::MAX;
        assert_eq!(active.floor(), 1);
        active.limit = 1;
        active.max = 50;
        assert_eq!(active.target(), 50);
    }
}
