#![forbid(unsafe_code)]
//! Prove a backend of the `sas` SDK.

mod check;
mod client;
pub mod fake;
mod report;
pub mod runtime;

pub use report::{Checked, Outcome, Report};
