#![forbid(unsafe_code)]
//! What runtimes of the sas serverless SDK share that run programs of this machine.
//!
//! Processes and containers need the same of the operating system: control groups, ports that no two hosts give out,
//! an end for everything that a dead host has left. A backend author uses it as a leaf: it depends on `sas-core` only.
//!
//! It does something on Linux only; elsewhere it has its settings and nothing else.
//!
//! ```
//! # #[cfg(target_os = "linux")] {
//! let dir = std::env::temp_dir().join(format!("sas-locks-{}", std::process::id()));
//! let ports = sas_runtime_os::ports::Ports::new(31_400..=31_409, &[], &dir)?;
//! let port = ports.take()?;
//! assert!((31_400..=31_409).contains(&port.number()));
//! # std::fs::remove_dir_all(dir).ok();
//! # }
//! # Ok::<(), sas_core::Error>(())
//! ```

mod config;

#[cfg(target_os = "linux")]
pub use closed_ports::ClosedPorts;
pub use config::{ControlGroups, Egress, JailConfig, JailLevel};

#[cfg(target_os = "linux")]
pub mod cell;
#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
mod closed_ports;
#[cfg(target_os = "linux")]
pub mod guardian;
#[cfg(target_os = "linux")]
pub mod jail;
#[cfg(target_os = "linux")]
pub mod limits;
#[cfg(target_os = "linux")]
pub mod network;
#[cfg(target_os = "linux")]
pub mod ports;
#[cfg(target_os = "linux")]
mod rtnetlink;
#[cfg(target_os = "linux")]
mod rules;
#[cfg(target_os = "linux")]
mod seccomp;
#[cfg(target_os = "linux")]
pub mod strays;
#[cfg(target_os = "linux")]
pub mod usage;
#[cfg(target_os = "linux")]
pub mod view;
