#![forbid(unsafe_code)]
//! Runs a whole platform in virtual time, breaks it, and looks whether it keeps its promises.
//!
//! One seed gives one plan: deploys, traffic and faults over forty seconds (the safety phase). Then the faults end and
//! everything must serve, settle and sleep (the liveness phase). The platform is built by the facade, as a host builds
//! it, so that what is tested is what runs: quotas, health checks, reports of backlogs, schedules and roll-outs too.
//! Instances, the store's medium, the wall clock, a queue upstream and the clients are simulated, and given to the
//! builder as its parts. The same seed gives the same history, down to its hash.
//!
//! ```
//! let outcome = sas_sim::run_seed(7, None);
//! assert!(outcome.violations.is_empty(), "{outcome}");
//! assert_eq!(outcome.hash, sas_sim::run_seed(7, None).hash);
//! ```

mod books;
pub mod clock;
pub mod draw;
pub mod history;
mod host;
pub mod invariants;
mod overload;
pub mod plan;
mod pool_day;
mod queue;
pub mod runtime;
mod several;
mod shrink;
pub mod store;
mod storm;
mod timed;
mod watch;
mod what_if;
mod world;

pub use overload::{Asked, Got, Overload, overload};
pub use pool_day::{Minute, PoolDay, pool_day};
pub use several::{SeveralPlant, SeveralRun, run_several};
pub use shrink::shrink;
pub use storm::storm;
pub use what_if::{Setup, Summary, what_if, what_if_watched};
pub use world::{SeedRun, Violation, run, run_seed, run_told};

/// A bug to plant, one for each invariant, to see that it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(clippy::exhaustive_enums, reason = "tests go through all of them")]
pub enum Plant {
    /// Some requests never get an answer.
    LosesAnswers,
    /// Instances get one request more than they may.
    RaisesLimits,
    /// Some that wait are overlooked, though a slot is free.
    LosesWakeups,
    /// Some leases never come back.
    LeaksLeases,
    /// Some meter readings are dropped.
    DropsReadings,
    /// Some requests are not metered.
    DropsRequests,
    /// A revision that should sleep does not.
    NeverSleeps,
    /// The pool's size is changed without a decision.
    WishesOfItsOwn,
    /// A request that was used is said to be unsent.
    HandsBackUsedRequests,
    /// The store acknowledges what it does not keep.
    AcknowledgesLostWrites,
    /// Events count as delivered that nobody got.
    SwallowsEvents,
    /// The decisions that are kept are not those that were made.
    RewritesHistory,
    /// Quotas that were acknowledged hold nobody.
    ForgetsQuotas,
    /// Instances that were found ill are not replaced.
    KeepsTheIll,
    /// What the pool starts for the first requests is not told as a decision.
    HidesActivations,
    /// The keep-alive policy lets nothing go.
    KeepsForever,
    /// What holds for the sizes of the two revisions of a roll-out is not put in force.
    ForgetsBounds,
    /// Which commit of readings was the last is not kept, so that one whose answer was lost is made again.
    ForgetsMarks,
}

impl Plant {
    /// All of them, with the invariant that each breaks.
    pub const ALL: [(Self, &'static str); 18] = [
        (Self::LosesAnswers, "one answer"),
        (Self::RaisesLimits, "limits"),
        (Self::LosesWakeups, "no lost wake-up"),
        (Self::LeaksLeases, "no leaks"),
        (Self::DropsReadings, "metering"),
        (Self::DropsRequests, "requests reconcile"),
        (Self::NeverSleeps, "desired is reached"),
        (Self::WishesOfItsOwn, "reasons"),
        (Self::HandsBackUsedRequests, "executed once"),
        (Self::AcknowledgesLostWrites, "durable"),
        (Self::SwallowsEvents, "triggers fire"),
        (Self::RewritesHistory, "decisions replay"),
        (Self::ForgetsQuotas, "quotas"),
        (Self::KeepsTheIll, "health"),
        (Self::HidesActivations, "reasons"),
        (Self::KeepsForever, "desired is reached"),
        (Self::ForgetsBounds, "roll-outs conserve capacity"),
        (Self::ForgetsMarks, "books"),
    ];
}
