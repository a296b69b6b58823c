//! State that moves from one store to another.

use std::{
    error::Error,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use sas::core::{Store, copy_store};

use crate::{assemble::open_store, config::Config};

type Failure = Box<dyn Error>;

/// Copies all state from a state directory, or from the store at a URL, to the store that the configuration names, which is
/// empty.
pub(crate) async fn copy(from: &str, config: &Config) -> Result<(), Failure> {
    let source = match Path::new(from).is_dir() {
        true => in_directory(Path::new(from), false).await?,
        false => open_store("--copy-from", from).await?,
    };
    let target = match (&config.store, &config.state) {
        (Some(place), _) => open_store("--store", place).await?,
        (None, Some(dir)) => in_directory(dir, true).await?,
        (None, None) => {
            return Err(
                "--copy-from: name the store to copy to with --store, or --state for one in a directory"
                    .into(),
            );
        }
    };
    let copied = copy_store(&*source, &*target).await?;
    writeln!(std::io::stdout(), "copied {} entries, {} bytes", copied.entries, copied.bytes)?;
    Ok(())
}

/// The store of a state directory. One that is to be read is there already.
async fn in_directory(dir: &Path, make: bool) -> Result<Arc<dyn Store>, Failure> {
    let file: PathBuf = dir.join("state.redb");
    if make {
        sas::control::private_dir(dir)?;
    } else if !file.is_file() {
        return Err(format!("--copy-from {}: there is no state.redb in it", dir.display()).into());
    }
    Ok(Arc::new(sas_store_redb::RedbStore::open(file).await?))
}
