#![deny(unsafe_code)]
//! Runtime of the `sas` serverless SDK: WebAssembly functions, a fresh sandbox per request.
//!
//! A [`WasmRuntime`] takes components of `wasi:http` 0.2 (0.3 where it is turned on) and CGI modules of WASI preview 1, in binary or as text. What
//! it prepares is compiled once; an instance of it is a cheap handle, and each request gets a sandbox from a pool,
//! with limits on CPU time, memory, tables, stack and output, and with no more than its revision was granted.
//!
//! ```
//! use sas_runtime_wasm::{CallLimits, Ceilings, WasmConfig};
//! use std::time::Duration;
//!
//! let config = WasmConfig {
//!     slots: 200,
//!     limits: CallLimits { cpu: Duration::from_millis(500), ..CallLimits::default() },
//!     // Revisions may ask for public hosts; without this, for nothing.
//!     grants: Ceilings::public_hosts(),
//!     ..WasmConfig::default()
//! };
//! config.validate()?;
//! # Ok::<(), sas_core::SpecErrors>(())
//! ```
//!
//! | Part | Where |
//! |---|---|
//! | configuration, ceilings | [`WasmConfig`] |
//! | options of a revision, `sas.dev/wasm-*` | [`options`] |
//! | what a request used | [`CallUsage`], in the extensions of its response |
//! | metrics | [`metrics`] |

mod budget;
mod cache;
mod cgi;
mod component;
mod config;
mod context;
mod ends;
mod files;
mod function;
mod host;
mod http02;
mod http03;
mod http_guest;
mod inspect;
mod instance;
mod kind;
mod lifecycle;
mod limits;
mod linkers;
mod logs;
mod memory;
pub mod metrics;
mod network;
pub mod options;
mod outbound;
mod preview1;
mod program;
mod roots;
mod run;
mod runtime;
mod sandbox;
mod slots;
mod stdin;
mod stint;
mod sync;
mod ticker;
mod usage;

pub use config::{CallLimits, Ceilings, CompileLimits, WasmConfig};

pub use network::{HostRule, Network, NotAHost, NotANetwork, is_public};
pub use runtime::WasmRuntime;
pub use usage::CallUsage;
