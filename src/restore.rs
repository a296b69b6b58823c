//! A state directory from a backup.

use std::{fs, io, path::Path};

use sas_control::{PackageDir, Restored, private_dir};
use sas_core::{Error, ErrorKind, Result};

use crate::own_store::open_state;

/// Makes a state directory of a backup (`POST /v1/backup`, [`Control::backup`](sas_control::Control::backup)). The whole backup
/// is read and its digest compared before anything is written; what is written stands beside, as `NAME.restoring`, and takes
/// the directory's name when all of it is on disk. So a process that dies on the way leaves no directory that looks like a
/// state, and the next attempt clears away what it left.
///
/// The state has no admin token, which is made anew at the first start, and none of the directories that services keep
/// (`sas.dev/data`). Instances, queues and calls that were under way are not in a backup.
///
/// # Errors
/// `Conflict` when `state` is there and not empty; `InvalidSpec` for what is no backup, a torn one, or one of a younger format;
/// `Unavailable` when files fail.
pub async fn restore(backup: &Path, state: &Path) -> Result<Restored> {
    let unwritable = |path: &Path| {
        let path = path.to_owned();
        move |error: io::Error| {
            let message = format!("{} can't be written: {error}", path.display());
            Error::new(ErrorKind::Unavailable, "restore", message).with_source(error)
        }
    };
    let name = state.file_name().ok_or_else(|| {
        let message = format!("{}: name a directory, which is made", state.display());
        Error::new(ErrorKind::InvalidSpec, "restore", message)
    })?;
    match fs::read_dir(state) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                let message = format!(
                    "{} is not empty: name a new directory, or move this one away first",
                    state.display()
                );
                return Err(Error::new(ErrorKind::Conflict, "restore", message));
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(unwritable(state)(error)),
    }
    let mut beside = name.to_owned();
    beside.push(".restoring");
    let beside = state.with_file_name(beside);
    let scratch = beside.join("unpacking");
    match fs::remove_dir_all(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritable(&beside)(error)),
        _ => {}
    }
    let outcome = fill(backup, &beside, &scratch).await;
    let placed = outcome.and_then(|restored| {
        fs::remove_dir_all(&scratch).map_err(unwritable(&scratch))?;
        sync(&beside).map_err(unwritable(&beside))?;
        // An empty directory is replaced, and nothing else is.
        fs::rename(&beside, state).map_err(unwritable(state))?;
        let parent = state.parent().filter(|parent| !parent.as_os_str().is_empty());
        sync(parent.unwrap_or(Path::new("."))).map_err(unwritable(state))?;
        Ok(restored)
    });
    if placed.is_err() {
        // The first error says more than one about clearing up, which the next attempt does too.
        let _ = fs::remove_dir_all(&beside);
    }
    placed
}

async fn fill(backup: &Path, beside: &Path, scratch: &Path) -> Result<Restored> {
    private_dir(beside)?;
    private_dir(scratch)?;
    let store = open_state(beside).await?;
    let packages = PackageDir::new(beside.join("packages"));
    let restored = sas_control::restore(backup, &*store, &packages, scratch).await;
    store.close().await;
    restored
}

fn sync(dir: &Path) -> io::Result<()> {
    fs::File::open(dir)?.sync_all()
}
