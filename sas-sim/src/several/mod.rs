//! Several hosts on one store, in virtual time: what is killed, asleep, cut off and restarted, and what they promise
//! together.
//!
//! One seed gives one run: thirty seconds of deploys, requests and fires of a schedule at two to four platforms of the
//! facade, while hosts are killed, leave, sleep, lose the store or each other, and their wall clocks jump. Then the faults
//! end, and all must be served, known and owned again. Requests between hosts go over real sockets, so that a history is
//! not the same to the bit from run to run, as that of one host is ([`run_seed`](crate::run_seed)).

mod link;
mod lives;
mod promises;
mod world;

use std::{collections::BTreeMap, fmt, panic::AssertUnwindSafe};

use crate::world::{Violation, panicked};

/// A bug to plant in how hosts share a store, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "tests go through all of them")]
pub enum SeveralPlant {
    /// A host that can't renew its lease takes itself for alive.
    BelievesItself,
    /// The store does what a former owner asks.
    ForgetsGuards,
    /// The store acknowledges changes of services that it does not keep.
    LosesChanges,
    /// What was fired is not kept.
    ForgetsFires,
    /// A host hears of no change of a service.
    HearsNothing,
    /// A host that is shut down leaves its instances behind.
    LeavesInstances,
    /// A request whose answer is lost is sent again.
    RepeatsRequests,
}

impl SeveralPlant {
    /// All of them, with the promise that each breaks.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::BelievesItself, "one owner"),
        (Self::ForgetsGuards, "former owners write nothing"),
        (Self::LosesChanges, "changes are kept"),
        (Self::ForgetsFires, "one fire"),
        (Self::HearsNothing, "all know and serve"),
        (Self::LeavesInstances, "nothing is left"),
        (Self::RepeatsRequests, "executed once"),
    ];
}

/// How a run of several hosts went.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SeveralRun {
    /// Its seed.
    pub seed: u64,
    /// Requests that were sent.
    pub requests: u64,
    /// Requests that were answered with 200.
    pub served: u64,
    /// Changes that were acknowledged.
    pub changes: u64,
    /// Events that triggers sent.
    pub fires: u64,
    /// Writes of former owners that the store refused.
    pub refused: u64,
    /// Faults, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// The first promise that was broken.
    pub violation: Option<Violation>,
}

impl fmt::Display for SeveralRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, requests, served, changes, fires, refused, faults, violation } = self;
        writeln!(
            f,
            "seed {seed}: {requests} requests ({served} served), {changes} changes, {fires} fires, {refused} refused writes"
        )?;
        if let Some(Violation { invariant, message }) = violation {
            writeln!(f, "  {invariant}: {message}")?;
            writeln!(f, "  faults: {faults:?}")?;
            writeln!(
                f,
                "  again: cargo run --release -p sas-sim --example several -- --from {seed} --count 1"
            )?;
        }
        Ok(())
    }
}

/// Runs several hosts by a seed.
///
/// # Panics
/// When no runtime can be built.
pub fn run_several(seed: u64, plant: Option<SeveralPlant>) -> SeveralRun {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { Box::pin(world::run(seed, plant)).await })
    }));
    // What hosts that were killed still do has nobody to tell.
    runtime.shutdown_background();
    ran.unwrap_or_else(|panic| SeveralRun {
        seed,
        violation: Some(Violation { invariant: "no panic", message: panicked(&*panic) }),
        ..SeveralRun::default()
    })
}
