//! Several hosts on one state: who is there, and who acts for what.
//!
//! Services are put into shards by their names, and shards onto live hosts by rendezvous hashing. A host says that it lives
//! by one write to the store per quarter of its term, however many shards it owns. A shard has one owner, with an epoch, in
//! a record that is written only when the owner changes; what an owner writes is guarded by the version of that record, so
//! that a host that slept is refused when it wakes. It runs on every [`Store`](sas_core::Store), and elects nobody: the store
//! orders all writes.
//!
//! ```
//! use std::sync::Arc;
//! use sas_cluster::{Cluster, ClusterConfig};
//! use sas_core::{Hosts, MemoryStore, Place};
//! use tokio_util::sync::CancellationToken;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> sas_core::Result<()> {
//! let store = Arc::new(MemoryStore::default());
//! let cluster = Cluster::new(ClusterConfig::new(store, "host-a", ([127, 0, 0, 1], 8080).into())).await?;
//! let stop = CancellationToken::new();
//! let running = tokio::spawn(Arc::clone(&cluster).run(stop.clone()));
//! let mut round = cluster.round();
//! while !matches!(cluster.place("shop/orders"), Place::Here(_)) {
//!     round = cluster.changed(round).await;
//! }
//! stop.cancel();
//! running.await.expect("it ends");
//! # Ok(())
//! # }
//! ```

mod assignment;
mod cluster;
pub mod metrics;
mod record;
mod view;

pub use assignment::{host_of, shard_of};
pub use cluster::{Cluster, ClusterConfig};
