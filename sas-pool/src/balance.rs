//! Which instance a request gets. Pure and seeded: slots, claim, a draw and the time decide.
//!
//! | | |
//! |---|---|
//! | [`PowerOfTwo`] | the default: of two at random, the one with less to do |
//! | [`FirstAvailable`] | the first with room, which packs (Knative's for concurrency 1 to 3) |
//! | [`RoundRobin`] | in turn (Knative's for a concurrency above 3) |
//! | [`Knative`] | the three above as Knative chooses them by concurrency |
//! | [`LeastLoaded`] | the one with least to do |
//! | [`BoundedHash`] | a home for each key, unless it has more than its share to do |
//! | [`SessionAffinity`] | a home for each key while it has room |
//! | [`SlowStart`] | power of two choices, where a fresh instance counts for less |
//!
//! Outlier ejection ([`Outliers`]) is no balancer: the pool marks an instance that keeps failing, and every balancer
//! leaves marked ones out.

mod affinity;
mod first_available;
mod hash;
mod knative;
mod least_loaded;
mod outlier;
mod p2c;
mod round_robin;
mod slow_start;

pub use affinity::SessionAffinity;
pub use first_available::FirstAvailable;
pub use hash::BoundedHash;
pub use knative::Knative;
pub use least_loaded::LeastLoaded;
pub use outlier::Outliers;
pub use p2c::PowerOfTwo;
pub use round_robin::RoundRobin;
pub use slow_start::SlowStart;
