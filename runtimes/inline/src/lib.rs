#![forbid(unsafe_code)]
//! Functions that are async Rust closures, run in the host's own process.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), sas_core::Error> {
//! use sas_core::{Body, Response, RevisionSpec, Runtime, Source};
//! use sas_runtime_inline::InlineRuntime;
//!
//! let runtime = InlineRuntime::new().with("hello", |_request, _cx| async { Response::new(Body::from("hello")) });
//! let artifact = runtime.prepare(&RevisionSpec::new("inline", Source::Function("hello".into()))).await?;
//! assert!(artifact.info().digest.is_empty()); // a closure has no bytes
//! # Ok(())
//! # }
//! ```
//!
//! A start is immediate ([`sas_core::Runtime::try_start`]) and costs one allocation; a call costs one. A panic ends
//! the call that it happened in and nothing else. There is no isolation: [`sas_core::Isolation::None`].

mod artifact;
mod call;
mod instance;
mod life;
mod reply;
mod runtime;

pub use life::Env;
pub use reply::IntoReply;
pub use runtime::InlineRuntime;
