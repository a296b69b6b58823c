//! Triggers, brokers and delivery, part by part. One program, since each more is built and linked for seconds; `idle` is apart, which
//! measures its process.

mod broker;
mod cesql;
#[cfg(feature = "cron")]
mod cron;
#[cfg(feature = "cron")]
mod cron_vectors;
mod delivery;
#[cfg(feature = "cron")]
mod hostile;
mod hosts;
mod ingress;
#[cfg(feature = "cron")]
mod scheduled;
mod traces;
#[cfg(feature = "cron")]
mod zones;
