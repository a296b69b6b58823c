//! Code by its digest.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{Result, Source};

/// A package as it was when it was put: its digest, and where it is to be run from on this host.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Blob {
    /// `sha256:` and 64 hexadecimal digits, of the names, executable bits and content of all files.
    pub digest: String,
    /// The copy on this host.
    pub source: Source,
    /// Bytes of all files, for quotas of storage; `None`: not known, and not counted.
    pub bytes: Option<u64>,
}

impl Blob {
    /// A package of that digest, at that place.
    pub fn new(digest: impl Into<String>, source: Source) -> Self {
        Self { digest: digest.into(), source, bytes: None }
    }

    /// With the bytes of all files.
    #[must_use]
    pub const fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }
}

/// Where the code of revisions is kept, by digest: a directory of this host, or a place that several hosts share and
/// from which each brings what it runs to itself, once.
///
/// The control plane puts and gets packages as services are deployed and brought back. It is given to the builder's `packages`;
/// `examples/custom_parts.rs` wraps a directory.
///
/// What is stored never changes and has nothing of the user's machine in it: no set-user-id, no link out of the package,
/// no device. The same content has the same digest wherever it came from.
///
/// What was put, and the owner, are there for whoever opens the place later. Every method may be dropped at any point: a
/// package is then wholly there or not at all.
///
/// # Errors
/// `Unavailable` when the medium fails; where else said.
#[async_trait]
pub trait BlobStore: fmt::Debug + Send + Sync + 'static {
    /// Takes a checked copy of a file or directory of this host, or of bytes. What is there already is not written again.
    ///
    /// `InvalidSpec` for what is no package (missing, too large, a device, a link out of it), with the field
    /// `source`; never with content of a file. `Unsupported` for other sources.
    async fn put(&self, source: &Source) -> Result<Blob>;

    /// Where the package is on this host, brought here if need be; `None` when there is none of that digest, also when
    /// `digest` is the digest of nothing, such as a path.
    async fn get(&self, digest: &str) -> Result<Option<Source>>;

    /// Removes a package; fine when there is none. Who runs it has a copy of its own or is through.
    async fn delete(&self, digest: &str) -> Result<()>;

    /// The digests of all packages, in no order.
    async fn list(&self) -> Result<Vec<String>>;

    /// Whether there is a package of that digest.
    async fn exists(&self, digest: &str) -> Result<bool> {
        Ok(self.list().await?.iter().any(|known| known == digest))
    }

    /// Whose packages these are: what [`BlobStore::set_owner`] was last told, `None` before it was told anything. A control plane removes nothing from a
    /// place that is another's, such as one that is older than its database.
    async fn owner(&self) -> Result<Option<String>>;

    /// Notes whose packages these are from now on.
    async fn set_owner(&self, owner: &str) -> Result<()>;

    /// Removes what a crash left half done. Called when nothing is being put.
    async fn tidy(&self) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: BlobStore + ?Sized> BlobStore for Arc<T> {
    async fn put(&self, source: &Source) -> Result<Blob> {
        (**self).put(source).await
    }

    async fn get(&self, digest: &str) -> Result<Option<Source>> {
        (**self).get(digest).await
    }

    async fn delete(&self, digest: &str) -> Result<()> {
        (**self).delete(digest).await
    }

    async fn list(&self) -> Result<Vec<String>> {
        (**self).list().await
    }

    async fn exists(&self, digest: &str) -> Result<bool> {
        (**self).exists(digest).await
    }

    async fn owner(&self) -> Result<Option<String>> {
        (**self).owner().await
    }

    async fn set_owner(&self, owner: &str) -> Result<()> {
        (**self).set_owner(owner).await
    }

    async fn tidy(&self) -> Result<()> {
        (**self).tidy().await
    }
}
