//! Knative's activator side as pure tables and state machines, for those who replay it. The platform itself balances
//! and queues in its pool.

mod balance;
mod breaker;
mod request_stats;
mod subset;

pub use balance::{LeastLoaded, Picker};
pub use breaker::{Admission, Breaker, BreakerCounts};
pub use request_stats::{ActivatorStats, RequestReport, RequestStats};
pub use subset::{activator_subset, assign_slice, capacity, sample_size};
