//! What is below a directory.

use std::{collections::BTreeMap, io, path::Path, time::UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    /// When its content was changed last, in nanoseconds of the epoch.
    pub(crate) modified: i64,
    pub(crate) bytes: u64,
    /// Tells a file that took another's place from that one; 0 where the system has no such number.
    pub(crate) inode: u64,
}

/// What tells a directory from another that took its place: one that was moved away, or that is mounted no more, would else be
/// one in which all was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root(Option<(u64, u64)>);

impl Root {
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(directory)?;
        if !metadata.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt as _;
            Some((metadata.dev(), metadata.ino()))
        };
        // The system has no such number.
        #[cfg(not(unix))]
        let identity = None;
        Ok(Self(identity))
    }
}

/// The regular files below `root`, by their paths from there with `/` between. Links are not followed, so that nothing
/// outside is reached. A name that is no UTF-8 is left out, with a line in the log. More than `most` are an error, and so is a
/// directory that is, at the end, another than `expected`.
pub(crate) fn scan(root: &Path, expected: Root, most: usize) -> io::Result<BTreeMap<String, Stamp>> {
    let mut found = BTreeMap::new();
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((dir, prefix)) = open.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !prefix.is_empty() => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                tracing::warn!(directory = %dir.display(), name = %name.display(), "no UTF-8: left out");
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.is_dir() {
                open.push((entry.path(), format!("{prefix}{name}/")));
            } else if metadata.is_file() {
                if found.len() >= most {
                    let message =
                        format!("more than {most} files: watch a directory below, or raise `most-files`");
                    return Err(io::Error::other(message));
                }
                found.insert(format!("{prefix}{name}"), stamp(&metadata));
            }
        }
    }
    // What was not there any more on the way had been removed only if all of it is still where it was.
    if Root::of(root)? != expected {
        return Err(io::Error::other("another directory took its place"));
    }
    Ok(found)
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let inode = 0;
    Stamp {
        modified: modified.and_then(|at| i64::try_from(at.as_nanos()).ok()).unwrap_or(0),
        bytes: metadata.len(),
        inode,
    }
}
