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
            taken += ENTRY;
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

/// What a file, a directory or a link takes by being there: a disk can be full of empty ones.
const ENTRY: u64 = 256;

/// What a file takes of the disk: no holes, and nothing that the file system has set aside for it by itself.
fn taken_by(file: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let (length, held) = (file.len().next_multiple_of(4096), file.blocks().saturating_mul(512));
    // Behind the end of a file that grows XFS sets as much again aside. More than that somebody has asked for, by
    // `fallocate`, to hold a disk by an empty file.
    if held > length.saturating_mul(2).saturating_add(1 << 20) { held } else { length.min(held) }
}

/// The bytes that all files below a directory take. What goes meanwhile counts as nothing.
pub fn bytes(dir: &Path) -> u64 {
    let mut taken = 0;
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            taken += ENTRY;
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

#[cfg(test)]
mod tests {
    use rustix::fs::{FallocateFlags, fallocate};

    use super::*;

    #[test]
    fn a_disk_that_is_held_by_an_empty_file_counts_and_holes_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(dir.path().join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        assert!(bytes(dir.path()) < 1 << 20, "{}", bytes(dir.path()));
        let empty = fs::File::create(dir.path().join("empty")).unwrap();
        if let Err(error) = fallocate(&empty, FallocateFlags::KEEP_SIZE, 0, 32 << 20) {
            println!("SKIPPED: this file system sets nothing aside: {error}");
            return;
        }
        let taken = bytes(dir.path());
        assert!((32 << 20..34 << 20).contains(&taken), "{taken}");
    }

    #[test]
    fn a_thousand_empty_files_are_not_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..1000 {
            fs::write(dir.path().join(number.to_string()), "").unwrap();
        }
        assert_eq!(bytes(dir.path()), 256_000);
        let copy = dir.path().with_extension("copy");
        assert_eq!(super::copy(dir.path(), &copy).unwrap(), 256_000, "what the copy takes is known as well");
        assert_eq!(bytes(&copy), 256_000);
        fs::remove_dir_all(copy).unwrap();
    }
}
