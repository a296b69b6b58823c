//! Pure policies of the pool: which instance, how many stems, what stays warm.

use std::{fmt, time::Duration};

use crate::{Claim, InstanceId, RevisionKey, Timestamp};

/// An instance as a [`Balancer`] sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SlotView {
    /// The id of the instance.
    pub id: InstanceId,
    /// How many leases of it are out.
    pub in_flight: u32,
    /// Leases at most; `u32::MAX`: unlimited.
    pub limit: u32,
    /// When it became ready, in milliseconds of the pool's life, for slow starts.
    pub ready_ms: u32,
    /// Left out for its failures, or not ready: may not be picked.
    pub ejected: bool,
}

impl SlotView {
    /// A view of an instance that just became ready.
    pub const fn new(id: InstanceId, limit: u32) -> Self {
        Self { id, in_flight: 0, limit, ready_ms: 0, ejected: false }
    }

    /// Whether it can take one more.
    pub const fn has_room(&self) -> bool {
        !self.ejected && self.in_flight < self.limit
    }
}

/// What a [`Balancer`] chooses for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Pick<'a> {
    /// The claim that a slot is picked for.
    pub claim: &'a Claim,
    /// Uniform, and seeded by the pool: the only randomness that a balancer has.
    pub draw: u64,
    /// Now, in milliseconds of the pool's life, to be compared with [`SlotView::ready_ms`].
    pub now_ms: u32,
}

impl<'a> Pick<'a> {
    /// A choice for `claim`.
    pub const fn new(claim: &'a Claim, draw: u64, now_ms: u32) -> Self {
        Self { claim, draw, now_ms }
    }
}

/// Chooses among a revision's instances. Pure and short: it is called under the shard's lock.
///
/// The pool asks it for each request. It is given by `PoolConfig::balancer`, or by name in `PoolConfig::balancers`.
pub trait Balancer: fmt::Debug + Send + Sync + 'static {
    /// The index of an instance with room, or `None` when none has. `slots` are in the order in which the instances
    /// became ready; `cursor` is the balancer's own memory for this revision, 0 at first.
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, cursor: &mut u32) -> Option<usize>;
}

/// What a slot of time looked like to a stem pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CapacityInput {
    /// The end of the slot.
    pub now: Timestamp,
    /// The length of the slot of time that has just ended.
    pub slot: Duration,
    /// Stems taken in it, those that were missing included.
    pub taken: u32,
    /// Of these, starts that found no stem.
    pub missed: u32,
    /// Stems that are ready at its end: what nobody took.
    pub ready: u32,
    /// How many stems are booting now.
    pub booting: u32,
    /// How long one boots.
    pub boot_time: Duration,
    /// The least to hold.
    pub min: u32,
    /// The most to hold.
    pub max: u32,
}

impl CapacityInput {
    /// A slot in which `taken` stems were asked for, with no bounds.
    pub const fn new(now: Timestamp, slot: Duration, taken: u32) -> Self {
        Self {
            now,
            slot,
            taken,
            missed: 0,
            ready: 0,
            booting: 0,
            boot_time: Duration::ZERO,
            min: 0,
            max: u32::MAX,
        }
    }
}

/// How many stems of one class to hold for the next slot. Deterministic: its state and the inputs decide.
///
/// The pool asks it once per slot of time and class. It is made by `StemsConfig::capacity`; `sas_pool::capacity` has those
/// that come with the platform.
pub trait CapacityPolicy: fmt::Debug + Send + 'static {
    /// The size for the slot that begins at `input.now`, within `min` and `max`.
    fn target(&mut self, input: &CapacityInput) -> u32;
}

/// When an idle revision may sleep, and when to wake it ahead of its next call.
///
/// A plan ends with `wake_until`, or with `sleep_at` where nothing wakes it before a call. At its `sleep_at`, if that
/// lies in the future and there is no `wake_at`, and at its `wake_until`, [`KeepAlivePolicy::unused`] gives the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeepAlive {
    /// Its last instance may stop at this time; in the past: now.
    pub sleep_at: Timestamp,
    /// Start one again at this time; `None`: when it is called.
    pub wake_at: Option<Timestamp>,
    /// After a wake, keep it until this time if no call comes.
    pub wake_until: Option<Timestamp>,
}

impl KeepAlive {
    /// Sleep at `sleep_at`, wake when called.
    pub const fn until(sleep_at: Timestamp) -> Self {
        Self { sleep_at, wake_at: None, wake_until: None }
    }

    /// Sleep at `sleep_at`, be warm from `wake_at` to `wake_until`.
    pub const fn with_wake(sleep_at: Timestamp, wake_at: Timestamp, wake_until: Timestamp) -> Self {
        Self { sleep_at, wake_at: Some(wake_at), wake_until: Some(wake_until) }
    }
}

/// Learns when revisions are called and says what stays warm. Deterministic; what it remembers per revision is
/// bounded, and a revision that was never called costs nothing.
///
/// The pool tells it of calls and asks it when a revision is idle. It is given by `IdleRule::policy`; `sas_pool::keep_alive`
/// has those that come with the platform.
pub trait KeepAlivePolicy: fmt::Debug + Send + 'static {
    /// `revision` was called at `now`, after being idle or asleep.
    fn called(&mut self, revision: RevisionKey, now: Timestamp);
    /// The last running call of `revision` ended at `now`.
    fn idle(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive;
    /// The time that a plan gave has come (`sleep_at`, or `wake_until` after a wake) and no call came: what next? A
    /// `sleep_at` later than `now` keeps it warm on; otherwise it sleeps, until `wake_at` if there is one. A policy
    /// that plans once and for all sleeps here, which is the default.
    fn unused(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        let _ = revision;
        KeepAlive::until(now)
    }
    /// An instance of `revision` became ready: its share of the memory budget, and how long its start took.
    fn started(&mut self, revision: RevisionKey, bytes: u64, start: Duration) {
        let _ = (revision, bytes, start);
    }
    /// Memory is short: what it is worth to keep an idle instance of `revision`. The least goes first, and of equals
    /// the one that was idle longest; `None`, the default, is worth nothing.
    fn worth(&self, revision: RevisionKey) -> Option<f64> {
        let _ = revision;
        None
    }
    /// An idle instance of `revision` was stopped because memory was short.
    fn evicted(&mut self, revision: RevisionKey) {
        let _ = revision;
    }
    /// How finely the policy tells times apart: calls of a revision closer together may be told as one, and
    /// [`KeepAlivePolicy::idle`] is asked when the revision has been idle for so long, so that what is called all the
    /// time costs no plan at each call. Zero, the default: at once.
    fn resolution(&self) -> Duration {
        Duration::ZERO
    }
    /// `revision` was unregistered.
    fn forget(&mut self, revision: RevisionKey);
    /// Bytes remembered now, for all revisions.
    fn bytes(&self) -> usize;
}
