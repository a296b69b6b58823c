#![forbid(unsafe_code)]
//! Control plane.
pub mod manifest;
mod store;
pub use store::{MemoryStore, RedbStore};
