//! Files on storage that hosts share.

use std::{fmt, path::Path, sync::Arc};

use async_trait::async_trait;

use crate::Result;

/// Objects by name, each the bytes of a file, on storage that several hosts share: a bucket, or tables of a database. Packages
/// are kept on one by `sas_control::SharedPackages`.
///
/// A name has 1 to 200 bytes of ASCII letters, digits and `-_./`. An object is wholly there or not at all, also when a
/// call is dropped or the process ends in the middle of it; who puts it again replaces it. What was put is there for every
/// host when the call returns.
///
/// # Errors
/// `Unavailable` when the storage or the local file fails.
#[async_trait]
pub trait ObjectStore: fmt::Debug + Send + Sync + 'static {
    /// Keeps the bytes of a local file under a name.
    async fn put(&self, name: &str, file: &Path) -> Result<()>;

    /// Writes an object to a local file, which is made; false where there is none of that name.
    async fn get(&self, name: &str, file: &Path) -> Result<bool>;

    /// Removes an object; fine when there is none.
    async fn delete(&self, name: &str) -> Result<()>;

    /// The names of all objects that begin with `prefix`, in no order.
    async fn list(&self, prefix: &str) -> Result<Vec<String>>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: ObjectStore + ?Sized> ObjectStore for Arc<T> {
    async fn put(&self, name: &str, file: &Path) -> Result<()> {
        (**self).put(name, file).await
    }

    async fn get(&self, name: &str, file: &Path) -> Result<bool> {
        (**self).get(name, file).await
    }

    async fn delete(&self, name: &str) -> Result<()> {
        (**self).delete(name).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        (**self).list(prefix).await
    }
}
