//! What stays warm after its last call, and what is woken ahead of its next one.
//!
//! | Policy | Warm | Remembers per revision that was called |
//! |---|---|---|
//! | [`Fixed`] | for a constant time after each call | nothing |
//! | [`HybridHistogram`] | as the histogram of its idle times says, else for a fall-back time | 0.5 kB |
//! | [`GreedyDual`] | until memory is short; then the cheapest to lose goes first | 0.1 kB |
//! | [`Hazard`] | in the minutes in which a call is likely enough; the default | 0.5 kB |
//!
//! All are deterministic: times come in by argument. A revision that was never called costs nothing. The figures on
//! public traces and the formulas are in `docs/policies.md`.
//!
//! ```
//! use sas_core::{KeepAlivePolicy, RevisionKey, Timestamp};
//! use sas_pool::keep_alive::Fixed;
//! use std::time::Duration;
//!
//! let mut policy = Fixed::new(Duration::from_secs(600));
//! let revision = RevisionKey::new(0, 0);
//! policy.called(revision, Timestamp::from_secs(60));
//! assert_eq!(policy.idle(revision, Timestamp::from_secs(61)).sleep_at, Timestamp::from_secs(661));
//! assert_eq!(policy.bytes(), 0);
//! ```

mod fixed;
mod greedy_dual;
mod hazard;
mod hybrid_histogram;
#[cfg(test)]
mod tests;

pub use fixed::Fixed;
pub use greedy_dual::{Evicting, Footprint, GreedyDual};
pub use hazard::{Fit, Hazard, HazardConfig, HazardTable, Tree};
pub use hybrid_histogram::HybridHistogram;

use sas_core::Timestamp;

/// The minute since the epoch in which `now` lies.
fn minute(now: Timestamp) -> i64 {
    now.as_secs().div_euclid(60)
}
