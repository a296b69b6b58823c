//! What Knative has around its decider, as pure tables and state machines, so that the vectors can be replayed from
//! samples to decisions. The platform itself has none of it: it measures, balances and queues in its pool.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "written down whole, whatever the vectors ask for"
)]

mod balance;
mod breaker;
mod collector;
mod request_stats;
mod subset;

pub use balance::Picker;
pub use breaker::Breaker;
pub use collector::{Collector, MultiScaler, Stat};
pub use request_stats::RequestStats;
pub use subset::{activator_subset, assign_slice, capacity, num_activators};
