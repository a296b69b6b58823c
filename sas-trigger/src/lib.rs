#![forbid(unsafe_code)]
//! Triggers.
mod binding;
mod cron;
mod declared;
mod delivery;
mod every;
mod filter;
mod host;
pub mod metrics;
mod scheduled;
mod sources;

pub use binding::to_request;
pub use cron::{CronError, CronOptions, CronSchedule, Dialect, Fold, Gap};
pub use delivery::{Backoff, DeadLetter, Delivery, DeliveryConfig, RetryPolicy};
pub use every::Every;
pub use filter::Filter;
pub use host::{SourceFactory, TriggerHost, TriggerHostConfig};
pub use scheduled::{EventTemplate, Keeping, Misfire, Overlap, Scheduled, fire_id};
pub use sources::{CronTrigger, TimerTrigger};
