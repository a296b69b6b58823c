#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod accepts;
mod board;
mod cluster;
mod config;
mod engine;
mod failure;
mod instance;
mod lease;
mod logs;
pub mod metrics;
mod orphans;
mod output;
mod pod;
mod runtime;
mod start;
mod status;
mod usage;
mod watch;

pub use config::{Access, KubernetesConfig, PodOverlay};
pub use runtime::KubernetesRuntime;
