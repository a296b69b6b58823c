//! Directories as packages: a digest over the tree, and a checked copy of it.

use std::{
    ffi::OsString,
    fs,
    io::Read as _,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use sas_core::Result;
use sha2::{Digest as _, Sha256};

use super::{
    PackageLimits,
    archive::Unpacker,
    error::{disk, refused},
};

#[derive(Debug)]
enum Kind {
    Directory,
    File { mode: u32, size: u64 },
    Link(PathBuf),
}

/// Everything below `root`, by name, parents before children.
fn walk(root: &Path, limits: &PackageLimits) -> Result<Vec<(PathBuf, Kind)>> {
    let mut found: Vec<(PathBuf, Kind)> = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(directory) = open.pop() {
        let path = root.join(&directory);
        let entries = fs::read_dir(&path).map_err(|error| disk("read", &path, error))?;
        let mut names: Vec<OsString> = Vec::new();
        for entry in entries {
            names.push(entry.map_err(|error| disk("read", &path, error))?.file_name());
        }
        names.sort_unstable();
        for name in names {
            let relative = directory.join(name);
            let path = root.join(&relative);
            let metadata = fs::symlink_metadata(&path).map_err(|error| disk("read", &path, error))?;
            let kind = if metadata.is_dir() {
                open.push(relative.clone());
                Kind::Directory
            } else if metadata.is_file() {
                Kind::File { mode: metadata.permissions().mode() & 0o777, size: metadata.len() }
            } else if metadata.is_symlink() {
                Kind::Link(fs::read_link(&path).map_err(|error| disk("read", &path, error))?)
            } else {
                return Err(refused(format!(
                    "package entry {:?}: a device file, socket or pipe; a package may hold files, directories and \
                     links only",
                    relative.display().to_string()
                )));
            };
            found.push((relative, kind));
            if found.len() as u64 > limits.entries {
                return Err(refused(format!(
                    "the package has more than the {} entries that a package may have; leave out what the program \
                     does not need, or raise PackageLimits::entries",
                    limits.entries
                )));
            }
        }
    }
    found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

fn header(digest: &mut Sha256, tag: u8, path: &Path) {
    digest.update([tag]);
    digest.update((path.as_os_str().len() as u64).to_le_bytes());
    digest.update(path.as_os_str().as_bytes());
}

fn file_header(digest: &mut Sha256, path: &Path, mode: u32, size: u64) {
    header(digest, b'F', path);
    // Whether it can be run is part of a program; who may write to it is not.
    digest.update([u8::from(mode & 0o111 != 0)]);
    digest.update(size.to_le_bytes());
}

/// The digest of the tree: names, executable bits, contents and link targets.
pub(crate) fn digest(root: &Path, limits: &PackageLimits) -> Result<[u8; 32]> {
    let mut digest = Sha256::new();
    let mut total = 0u64;
    let mut buffer = vec![0u8; 128 * 1024];
    for (relative, kind) in walk(root, limits)? {
        match kind {
            Kind::Directory => header(&mut digest, b'D', &relative),
            Kind::Link(target) => {
                header(&mut digest, b'L', &relative);
                header(&mut digest, b'T', &target);
            }
            Kind::File { mode, size } => {
                total = total.saturating_add(size);
                if total > limits.unpacked_bytes {
                    return Err(refused(format!(
                        "package entry {:?}: with it the package has more than {} bytes; leave out what the program \
                         does not need, or raise PackageLimits::unpacked_bytes",
                        relative.display().to_string(),
                        limits.unpacked_bytes
                    )));
                }
                file_header(&mut digest, &relative, mode, size);
                let path = root.join(&relative);
                let mut file = fs::File::open(&path).map_err(|error| disk("read", &path, error))?;
                loop {
                    let n = file.read(&mut buffer).map_err(|error| disk("read", &path, error))?;
                    if n == 0 {
                        break;
                    }
                    digest.update(&buffer[..n]);
                }
            }
        }
    }
    Ok(digest.finalize().into())
}

/// Copies the tree and returns the digest of what was copied, which differs from [`digest`]'s only when somebody
/// changed the directory in between.
pub(crate) fn copy(root: &Path, limits: &PackageLimits, unpacker: &mut Unpacker<'_>) -> Result<[u8; 32]> {
    let mut digest = Sha256::new();
    for (relative, kind) in walk(root, limits)? {
        let name = relative.as_os_str().as_bytes();
        match kind {
            Kind::Directory => {
                header(&mut digest, b'D', &relative);
                unpacker.directory(name)?;
            }
            Kind::Link(target) => {
                header(&mut digest, b'L', &relative);
                header(&mut digest, b'T', &target);
                unpacker.link(name, target.as_os_str().as_bytes())?;
            }
            Kind::File { mode, size } => {
                file_header(&mut digest, &relative, mode, size);
                let path = root.join(&relative);
                let mut file = fs::File::open(&path).map_err(|error| disk("read", &path, error))?;
                unpacker.file(name, Some(mode), Some(size), &mut file, &mut |bytes| digest.update(bytes))?;
            }
        }
    }
    Ok(digest.finalize().into())
}
