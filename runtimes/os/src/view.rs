//! Copies of packages, where no overlay can be had.

use std::{fs, io, path::Path};

/// Copies a package for one instance: by shared extents where the file system has them (Btrfs, XFS), else byte by
/// byte. A jar is linked to, since programs read it and never write to it. Links stay as they are. Returns the bytes that
/// the copy takes, as [`bytes`] counts them.
///
/// # Errors
/// Those of the file system; what was copied so far is the caller's to remove.
pub fn copy(package: &Path, to: &Path) -> io::Result<u64> {
    let mut taken = 0;
    fs::create_dir(to)?;
    let mut open = vec![(package.to_path_buf(), to.to_path_buf())];
    while let Some((from, to)) = open.pop() {
        for entry in fs::read_dir(&from)? {
            let entry = entry?;
            let (from, to) = (entry.path(), to.join(entry.file_name()));
            let kind = entry.file_type()?;
            if kind.is_dir() {
                fs::create_dir(&to)?;
                open.push((from, to));
            } else if kind.is_symlink() {
                std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            } else if from.extension().is_some_and(|extension| extension == "jar" || extension == "war") {
                std::os::unix::fs::symlink(&from, &to)?;
            } else {
                // `copy` takes copy_file_range, which shares extents where it can.
                fs::copy(&from, &to)?;
                use std::os::unix::fs::PermissionsExt as _;
                let metadata = fs::metadata(&to)?;
                taken += taken_by(&metadata);
                let mode = metadata.permissions().mode();
                fs::set_permissions(&to, fs::Permissions::from_mode(mode | 0o200))?;
            }
        }
    }
    Ok(taken)
}

/// What a file takes of the disk: no holes, and nothing that the file system has set aside for it.
fn taken_by(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    file.len().next_multiple_of(4096).min(file.blocks() * 512)
}

/// The bytes that all files below a directory take. What goes meanwhile counts as nothing.
pub fn bytes(dir: &Path) -> u64 {
    let mut taken = 0;
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => open.push(entry.path()),
                Ok(metadata) if metadata.is_file() => taken += taken_by(&metadata),
                _ => {}
            }
        }
    }
    taken
}

/// The bytes of files that a process and its descendants still write to though no directory has them any more, on the
/// disk of `dir`.
pub fn unlinked_bytes(pid: i32, dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(disk) = fs::metadata(dir).map(|metadata| metadata.dev()) else { return 0 };
    let mut files = std::collections::HashMap::new();
    let mut open = vec![pid];
    let mut seen = 0;
    while let Some(pid) = open.pop() {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(file) = fs::metadata(entry.path())
                && file.is_file()
                && file.nlink() == 0
                && file.dev() == disk
            {
                files.insert(file.ino(), taken_by(&file));
            }
        }
        seen += 1;
        if seen < 256 {
            open.extend(crate::usage::children(pid));
        }
    }
    files.values().sum()
}
