#![forbid(unsafe_code)]
//! Triggers.
mod cron;
pub use cron::{CronError, CronOptions, CronSchedule, Dialect, Fold, Gap};
