//! Copies of packages, where no overlay can be had.

use std::{fs, io, path::Path};

/// Copies a package for one instance: by shared extents where the file system has them (Btrfs, XFS), else byte by
/// byte. A jar is linked to, since programs read it and never write to it. Links stay as they are.
///
/// # Errors
/// Those of the file system; what was copied so far is the caller's to remove.
pub fn copy(package: &Path, to: &Path) -> io::Result<()> {
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
                let mode = fs::metadata(&to)?.permissions().mode();
                fs::set_permissions(&to, fs::Permissions::from_mode(mode | 0o200))?;
            }
        }
    }
    Ok(())
}
