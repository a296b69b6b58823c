//! The store that a platform opens by itself.

use std::{path::Path, sync::Arc};

use sas_core::Error;
#[cfg(not(feature = "redb"))]
use sas_core::{ErrorKind, MemoryStore};

/// The store that a platform opened by itself, and closes.
#[cfg(feature = "redb")]
pub(crate) type OwnStore = sas_store_redb::RedbStore;
/// Without the feature `redb` it opens none.
#[cfg(not(feature = "redb"))]
pub(crate) type OwnStore = MemoryStore;

/// The platform's state in a directory.
#[cfg(feature = "redb")]
pub(crate) async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    OwnStore::open(dir.join("state.redb")).await.map(Arc::new)
}

#[cfg(not(feature = "redb"))]
pub(crate) async fn open_state(dir: &Path) -> Result<Arc<OwnStore>, Error> {
    let message = format!(
        "{}: this build keeps no state in directories: build with the feature `redb`, or give a `store`",
        dir.display()
    );
    Err(Error::new(ErrorKind::Unsupported, "state directory", message))
}
