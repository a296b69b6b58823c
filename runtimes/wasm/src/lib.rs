#![deny(unsafe_code)]
//! Runtime of the `sas` serverless SDK: WebAssembly functions, a fresh sandbox per request.

mod admission;
mod cache;
mod cgi;
mod config;
mod files;
mod function;
mod host;
mod http02;
mod inspect;
mod instance;
mod limits;
mod logs;
pub mod metrics;
mod network;
pub mod options;
mod outbound;
mod preview1;
mod run;
mod runtime;
mod sandbox;
mod sync;
mod ticker;

pub use config::{CallLimits, Ceilings, CompileLimits, WasmConfig};
pub use inspect::Kind;
pub use instance::WasmInstance;
pub use limits::{Limit, Meter};
pub use network::{HostRule, Network, NotAHost, NotANetwork, is_public};
pub use runtime::WasmRuntime;
