#![forbid(unsafe_code)]
//! Runtime of the sas serverless SDK: code packages as native processes.
//!
//! A package is a directory, `.tar.gz`, `.zip`, `.jar` or a single program, by path or as bytes. It is unpacked once
//! into a store addressed by its SHA-256, and started by what it is, or by a command. The instance gets Knative's
//! runtime contract and listens on the port in `PORT`.
//!
//! ```
//! use sas_core::{RevisionSpec, Runtime, Source};
//! use sas_runtime_process::{ProcessConfig, ProcessRuntime};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let store = dir.path().join("store");
//! let runtime = ProcessRuntime::new(ProcessConfig::in_store(store))?;
//! let script = "#!/bin/sh\nexec my-server --port=$PORT\n";
//! let source = Source::Bytes { name: "app".into(), bytes: script.into() };
//! let artifact = runtime.prepare(&RevisionSpec::new("process", source)).await?;
//! assert!(artifact.info().digest.starts_with("sha256:"));
//!
//! let bad = Source::Bytes { name: "app.zip".into(), bytes: "no zip".into() };
//! let error = runtime.prepare(&RevisionSpec::new("process", bad)).await.unwrap_err();
//! assert!(error.to_string().contains("app.zip"));
//! # Ok(())
//! # }
//! ```
//!
//! It runs on Linux. Elsewhere the crate builds, and [`ProcessRuntime::new`] says what is missing.
//!
//! Everything of a running instance (exit, output, grace) is watched by one task of the runtime; a quiet instance
//! costs three descriptors. Java apps can be started from [JVM stems](JavaConfig), native ones from a [`zygote`].

#![cfg_attr(
    not(target_os = "linux"),
    allow(dead_code, reason = "settings are checked everywhere, used on Linux")
)]

// What every system has: settings, names, bounds.
mod config;
pub mod metrics;
pub mod options;
mod package;

// All that needs Linux' calls is below this line.
#[cfg(target_os = "linux")]
mod artifact;
#[cfg(target_os = "linux")]
mod beside;
#[cfg(target_os = "linux")]
mod engine;
#[cfg(target_os = "linux")]
mod export;
#[cfg(target_os = "linux")]
mod failure;
#[cfg(target_os = "linux")]
mod home;
#[cfg(target_os = "linux")]
mod instance;
#[cfg(target_os = "linux")]
mod jvm;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod logs;
#[cfg(target_os = "linux")]
mod prepare;
#[cfg(target_os = "linux")]
mod ready;
#[cfg(target_os = "linux")]
mod runtime;
#[cfg(target_os = "linux")]
mod spawn;
#[cfg(target_os = "linux")]
pub mod zygote;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

pub use config::{JavaConfig, LogLimits, ProcessConfig};
#[cfg(not(target_os = "linux"))]
pub use elsewhere::ProcessRuntime;
#[cfg(target_os = "linux")]
pub use export::PackageStart;
pub use package::PackageLimits;
#[cfg(target_os = "linux")]
pub use runtime::ProcessRuntime;
#[cfg(target_os = "linux")]
pub use sas_runtime_os::jail::{JailReport, Means};
pub use sas_runtime_os::{ControlGroups, Egress, JailConfig, JailLevel};
