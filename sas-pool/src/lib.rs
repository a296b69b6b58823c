#![forbid(unsafe_code)]
//! Instances, leases, activation queues, stems and warm-pool policies of the `sas` serverless SDK.
//!
//! [`InstancePool`] is the default [`sas_core::Pool`]: it holds the instances of all revisions and gives out their
//! slots. A revision that sleeps costs bytes; the first claim wakes it.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//! use sas_core::*;
//! use sas_pool::{InstancePool, PoolConfig};
//!
//! /// A runtime whose instances exist by being named.
//! #[derive(Debug)]
//! struct Names;
//! #[derive(Debug)]
//! struct Name(InstanceId);
//!
//! #[async_trait::async_trait]
//! impl Runtime for Names {
//!     fn name(&self) -> &'static str { "names" }
//!     fn capabilities(&self) -> Capabilities { Capabilities::new(Isolation::None) }
//!     async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
//!         Ok(Artifact::new((), ArtifactInfo::default()))
//!     }
//!     async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
//!         Ok(Arc::new(Name(request.id)))
//!     }
//!     async fn quiesce(&self) {}
//! }
//!
//! #[async_trait::async_trait]
//! impl Call for Name {
//!     async fn call(&self, _: Request, _: &Cx) -> Result<Answer, CallError> {
//!         Ok(Answer::Http(Response::new(Body::from(self.0.to_string()))))
//!     }
//! }
//!
//! #[async_trait::async_trait]
//! impl Instance for Name {
//!     fn id(&self) -> InstanceId { self.0 }
//!     fn target(&self) -> InstanceTarget<'_> { InstanceTarget::Call(self) }
//!     async fn stop(&self, _: Duration) -> Result<()> { Ok(()) }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let pool = InstancePool::new(PoolConfig::seeded(7));
//! let spec = RevisionSpec::new("names", Source::Function("hello".into()));
//! let key = pool.register(Arc::new(Deployed::new(
//!     Arc::new(Names),
//!     Names.prepare(&spec).await?,
//!     Arc::new(spec),
//!     RevisionName::new("default", "hello", "hello-00001"),
//!     TenantKey(1),
//! )))?;
//!
//! let claim = Claim::new(key, TenantKey(1));
//! assert!(pool.try_claim(&claim).is_none(), "it sleeps");
//! let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
//! let cold = pool.claim(&claim, &Cx::new(TenantKey(1), RequestId(1), deadline)).await?;
//! assert!(cold.start.is_some(), "this claim waited for the start");
//! let warm = pool.try_claim(&claim).expect("concurrency is unlimited");
//! assert_eq!(warm.instance.id(), cold.instance.id());
//!
//! drop((cold, warm)); // the slots go to the next in line
//! pool.shutdown(deadline).await;
//! # Ok(())
//! # }
//! ```
//!
//! | Module | What |
//! |---|---|
//! | [`config`] | what a pool is made with, and all its limits |
//! | [`balance`] | which instance a request gets |
//! | [`capacity`] | how many stems to hold |
//! | [`keep_alive`] | when an idle revision may sleep, and when to wake it ahead of its next call |
//! | [`trace`] | real traces through those policies |
//! | [`metrics`] | the names of the pool's metrics |

mod ahead_log;
mod bounds;
mod clock;
mod coordinator;
mod draw;
mod effects;
mod executor;
mod gate;
mod instance;
mod limits;
mod load;
mod pool;
mod queue;
mod revision;
mod rules;
mod shard;
mod shared;
mod start;
mod start_executor;
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
