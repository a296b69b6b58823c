#![forbid(unsafe_code)]
//! Instances, leases, activation queues, stems and warm-pool policies of the `sas` serverless SDK.

mod bounds;
mod core;
mod draw;
mod effects;
mod gate;
mod instance;
mod load;
mod pool;
mod queue;
mod reclaim;
mod revision;
mod shard;
mod start;
mod state;
mod stems;
mod sync;
mod timer;

pub mod balance;
pub mod capacity;
pub mod config;
pub mod keep_alive;
pub mod metrics;
pub mod trace;

pub use config::PoolConfig;
pub use pool::InstancePool;
