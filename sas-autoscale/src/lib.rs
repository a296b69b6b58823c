#![forbid(unsafe_code)]
//! Pure, replayable autoscalers of the sas serverless SDK and the driver that ticks them

pub mod kpa;
mod window;

pub use window::{MaxWindow, Nanos, Window};

/// One second in the unit of [`Nanos`].
pub const SECOND_NS: Nanos = window::SECOND;
