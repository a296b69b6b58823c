#![forbid(unsafe_code)]
//! Prove a backend of the `sas` SDK, and try a platform under load and faults.
//!
//! A backend author writes one test per trait. Each check of a suite is named by the sentence of the contract that it
//! proves; what a backend does not claim in its [`sas_core::Capabilities`], or has no fixture for, is skipped and
//! says so.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! use sas_testkit::{fake::FakeRuntime, runtime};
//!
//! // `FakeRuntime::fixtures()` is where you put your own runtime and the programs that it can run.
//! let report = runtime::suite(async || ((), FakeRuntime::fixtures())).await;
//! println!("{report}");
//! report.assert_passed();
//! # }
//! ```
//!
//! | Module | For |
//! |---|---|
//! | [`runtime`], [`pool`], [`router`], [`scaler`], [`store`], [`event_log`], [`blobs`], [`trigger`], [`logs`], [`meter`] | the suite of each trait |
//! | [`fake`] | stand-ins for every trait, scripted by tests |
//! | [`load`] | an open-loop load generator, and a ledger that pairs each request with its answer |
//! | [`server`] | real brokers and databases, started on free ports by a test, killed, and started again |
//! | [`broker`] | sources of events against real brokers, both killed at random |
//! | [`skip`](fn@skip), [`kernel_lacks`] | a test that can't run says so, and fails in CI |
//! | [`fault`] | killing and pausing real processes, closed ports |

pub mod blobs;
pub mod broker;
mod check;
mod client;
pub mod event_log;
pub mod fake;
pub mod fault;
pub mod load;
pub mod logs;
mod medium;
pub mod meter;
pub mod pool;
mod report;
pub mod router;
pub mod runtime;
pub mod scaler;
#[cfg(unix)]
pub mod server;
mod skip;
pub mod soup;
pub mod store;
pub mod trigger;

pub use report::{CheckResult, Checked, Report};
pub use skip::{kernel_lacks, skip};
