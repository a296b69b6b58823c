#![forbid(unsafe_code)]
//! Runtime of the sas serverless SDK: code packages as native processes.

mod artifact;
mod config;
mod engine;
mod guardian;
mod instance;
mod jvm;
mod logs;
pub mod metrics;
pub mod options;
mod package;
mod ports;
mod ready;
mod runtime;
mod spawn;
mod strays;
mod usage;

pub use config::{JavaConfig, LogLimits, ProcessConfig};
pub use package::PackageLimits;
pub use runtime::ProcessRuntime;
