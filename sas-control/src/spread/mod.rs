//! One service over several hosts: which of them have a part of it, and how large each part is.

mod allotment;
mod record;

pub use allotment::SpreadConfig;
pub(crate) use allotment::{Input, Pace, Wanted, step};
#[cfg(test)]
pub(crate) use record::Range;
pub(crate) use record::{Part, PartState, Report, Reported, Spread, Standing, decode, encode};
