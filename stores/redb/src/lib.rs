#![forbid(unsafe_code)]
//! The platform's state in one file, on redb.
//!
//! | You want to | Use |
//! |---|---|
//! | keep state in a file | [`RedbStore`] |
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> sas_core::Result<()> {
//! # let dir = tempfile::tempdir().expect("a temporary directory");
//! # let path = dir.path().join("state.redb");
//! use sas_core::Store;
//! use sas_store_redb::RedbStore;
//!
//! let store = RedbStore::open(&path).await?;
//! store.put("greeting", None, "hello".into()).await?;
//! store.close().await;
//!
//! let again = RedbStore::open(&path).await?;
//! assert_eq!(again.get("greeting").await?.map(|entry| entry.value), Some("hello".into()));
//! # Ok(())
//! # }
//! ```

mod store;
#[cfg(test)]
mod torn;

pub use store::RedbStore;
