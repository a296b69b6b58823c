//! The suite for [`sas_core::Pool`]. It brings its own runtime, a [`FakeRuntime`](crate::fake::FakeRuntime).

mod claims;
mod drains;
mod faults;
mod kit;
mod sizes;
mod stress;

use std::{fmt, sync::Arc, time::Duration};

use sas_core::Pool;

use crate::{
    Report,
    check::{self, checks},
    fake::FakeClock,
};
use kit::Kit;

/// A pool without revisions.
#[derive(Clone)]
pub struct Subject {
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) settle: Duration,
    pub(crate) clock: Option<FakeClock>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("settle", &self.settle).finish_non_exhaustive()
    }
}

impl Subject {
    /// A pool that mends what breaks within `settle`: its longest back-off after a failed start and what else it
    /// waits before it acts. The suite waits that long, so run it on paused time.
    pub fn new(pool: Arc<dyn Pool>, settle: Duration) -> Self {
        Self { pool, settle, clock: None }
    }

    /// The pool's wall clock, if it has one that can be set: the suite makes it jump.
    #[must_use]
    pub fn on_clock(mut self, clock: FakeClock) -> Self {
        self.clock = Some(clock);
        self
    }
}

/// Runs every check on a pool of its own, made by `builder`. Meant for paused time
/// (`#[tokio::test(start_paused = true)]`): it waits for minutes.
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Subject)) -> Report {
    check::run(
        "Pool",
        check::PAUSED_LIMIT,
        builder,
        Kit::new,
        checks![
            "a registered revision has no instance, no start and no load" => claims::asleep,
            "try_claim never starts anything" => claims::try_never_starts,
            "a cold claim starts an instance and tells how its start went" => claims::cold,
            "a warm claim takes the instance that is there" => claims::warm,
            "an instance never has more leases out than its limit" => claims::limit,
            "a lease that comes back goes to the next in line" => claims::in_line,
            "a dropped claim leaves the queue, and its start goes on" => claims::dropped,
            "a claim dropped at any point leaves no trace" => claims::dropped_anywhere,
            "a claim is answered at the latest at its deadline" => claims::deadline,
            "a full queue refuses at once and says when to come back" => claims::full_queue,
            "a probe wakes nothing" => claims::probe,
            "an excluded instance is not given out while there is another" => claims::excluded,
            "a lease may be dropped by any thread" => claims::threads,
            "unregistering fails what waits, stops what runs, and is idempotent" => claims::unregister,
            "a key is never used again" => claims::keys_unique,
            "revisions do not get each other's instances" => claims::apart,
            "a thousand first claims of unlimited concurrency start one instance" => sizes::single_flight,
            "a hundred first claims at concurrency ten start exactly ten" => sizes::exact_flight,
            "max holds, and those beyond it are served in turn" => sizes::max_holds,
            "a wish grows and shrinks the pool" => sizes::wishes,
            "wishes that are told together are as those told one by one" => sizes::wishes_together,
            "a wish is kept within min and max" => sizes::bounds,
            "an older wish does not keep waiting claims out" => sizes::demand_floor,
            "a revision with a minimum has it without a claim" => sizes::minimum,
            "shrinking stops idle instances before busy ones" => sizes::idle_first,
            "a busy instance is stopped only after its drain" => sizes::after_drain,
            "a revision that wants none sleeps and wakes again" => sizes::to_zero,
            "drain resolves when all are gone, and the next claim wakes" => drains::drain,
            "drain ends at its grace, whatever is still out" => drains::grace,
            "a drain that is dropped leaves a revision that serves" => drains::dropped,
            "a lease on an instance that drains is told until when" => drains::told,
            "load tells what was asked for, and only while there is something to tell" => sizes::load,
            "usage that lies never makes a load that is no number" => sizes::lying_usage,
            "a wall clock that jumps keeps nobody from a slot" => faults::clock_jumps,
            "a failed start fails what waits, with its error" => faults::failed_start,
            "repeated failures fail fast, and the pool recovers" => faults::recovers,
            "a start that hangs is given up, and others take its place" => faults::hung_start,
            "a dead instance is replaced, and never given out" => faults::dead,
            "an exit that is told twice counts once" => faults::exit_twice,
            "an instance that dies between its start and its first claim is no answer" => faults::dies_early,
            "recycle replaces an instance once its leases are back" => faults::recycle,
            "shutdown lets running calls finish, refuses new ones and leaves nothing" => faults::shutdown,
            "a pool that shuts down takes no revision in" => faults::closed,
            "a shutdown that is dropped may be called again" => faults::shutdown_dropped,
            "shutdown ends at its deadline even when leases stay out" => faults::shutdown_deadline,
            "shutdown answers those who wait" => faults::shutdown_waiting,
            "under random use with kills and cancellations every promise holds" => stress::random,
        ],
    )
    .await
}
