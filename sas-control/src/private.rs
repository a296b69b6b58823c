//! Directories that are their owner's alone.

use std::{fs, io, path::Path};

use sas_core::{Error, ErrorKind, Result};

/// Makes a directory of the platform's own, with those above it, or mends the one that is there: afterwards it is this
/// user's and nobody else can look into it (mode 0700). For state and packages: what is in them must neither be read
/// nor changed by the code that the platform runs. Blocking.
///
/// # Errors
/// `Conflict` when it belongs to another user, who could change what is in it, or when its mode can't be mended;
/// `Unavailable` when it can't be made.
pub fn private_dir(path: &Path) -> Result<()> {
    let failed = |error: io::Error| {
        let message = format!("{}: the directory can't be made: {error}", path.display());
        Error::new(ErrorKind::Unavailable, "private directory", message).with_source(error)
    };
    make(path).map_err(failed)?;
    let metadata = fs::metadata(path).map_err(failed)?;
    if !metadata.is_dir() {
        return Err(failed(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    mend(path, &metadata)
}

#[cfg(unix)]
fn make(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn make(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

#[cfg(unix)]
fn mend(path: &Path, metadata: &fs::Metadata) -> Result<()> {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let conflict = |problem: String| {
        let message = format!("{}: {problem}", path.display());
        Error::new(ErrorKind::Conflict, "private directory", message)
    };
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own {
        let problem = format!(
            "it belongs to user {owner}, who could change what is in it, and this is user {own}: choose another \
             directory, or give it to this user (chown)"
        );
        return Err(conflict(problem));
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(|error| {
        conflict(format!(
            "others can look into it (mode {mode:o}), and that can't be mended ({error}): chmod 700"
        ))
    })?;
    tracing::info!(path = %path.display(), was = %format_args!("{mode:o}"), "made private");
    Ok(())
}

#[cfg(not(unix))]
fn mend(_: &Path, _: &fs::Metadata) -> Result<()> {
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn it_is_made_private_and_mended_when_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("above/state");
        private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(private_dir(&file).is_err());
    }

    #[test]
    fn one_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root can give a directory away");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(dir.path(), Some(65_534), None).unwrap();
        let error = private_dir(dir.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
        assert!(error.message.contains("chown"), "{error}");
    }
}
