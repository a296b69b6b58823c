#![forbid(unsafe_code)]
//! Triggers of the `sas` serverless SDK: where events come from, and how they reach a service, waking it if it sleeps.
//!
//! ```
//! use std::sync::Arc;
//! use sas_core::{Triggers, TriggerSpec};
//! use sas_trigger::{TriggerHost, TriggerHostConfig};
//! # use sas_core::*;
//! # async fn example(gateway: Arc<dyn Invoker>, store: Arc<dyn Store>) -> Result<()> {
//! let host = TriggerHost::new(TriggerHostConfig::new(gateway, store));
//! let nightly = TriggerSpec::new("default/nightly", "cron", "default/report")
//!     .with_option("schedule", "0 30 2 * * *")
//!     .with_option("timezone", "Europe/Berlin")
//!     .with_option("misfire", "fire-once")
//!     .with_option("overlap", "forbid");
//! host.apply(nightly).await?;
//! // ...
//! host.shutdown(tokio::time::Instant::now() + std::time::Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! | To | See |
//! |---|---|
//! | know when something recurs | [`CronSchedule`], [`Every`] |
//! | fire by it, over restarts, sleeps and overlaps | [`CronTrigger`], [`TimerTrigger`], [`Scheduled`], [`SchedulePolicy`] |
//! | bring events to a service | [`Delivery`], [`Filter`], [`cesql`], [`RetryPolicy`], [`DeadLetter`] |
//! | take events out of the platform | [`Outbox`], [`Inbox`] |
//! | run sources, one's own too | [`TriggerHost`] |

mod answers;
mod async_calls;
mod broker;
mod channel;
#[cfg(feature = "cron")]
mod cron;
mod declared;
mod delivery;
mod every;
mod filter;
mod host;
mod ingress;
pub mod metrics;
mod outbox;
mod quotas;
mod scheduled;
mod sources;
mod transform;
mod under_way;
mod webhook;

pub use async_calls::{AsyncCalls, AsyncConfig};
pub use channel::{ChannelSender, ChannelSource, channel};
#[cfg(feature = "cron")]
pub use cron::{CronError, CronOptions, CronSchedule, Dialect, Fold, Gap};
pub use delivery::{Backoff, CircuitPolicy, DeadLetter, Dedup, Delivery, DeliveryConfig, RetryPolicy};
pub use every::{Every, Within};
pub use filter::{Filter, cesql};
pub use host::{SinkFactory, SourceFactory, TriggerHost, TriggerHostConfig};
pub use ingress::EventIngress;
pub use outbox::{Inbox, Outbox, outbox};
pub use sas_cloudevents::{self as cloudevents, to_request};
pub use scheduled::{EventTemplate, Misfire, Overlap, SchedulePolicy, Scheduled, fire_id};
#[cfg(feature = "cron")]
pub use sources::CronTrigger;
pub use sources::TimerTrigger;
pub use transform::Transform;
