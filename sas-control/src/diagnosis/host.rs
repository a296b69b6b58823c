//! What is left of the host: descriptors and disk.

use std::path::{Path, PathBuf};

/// What a process holds, and how full file systems are.
#[derive(Clone, Debug, Default)]
pub(super) struct Host {
    /// Open descriptors and their soft limit; `None`: not known here.
    pub(super) descriptors: Option<(u64, u64)>,
    pub(super) disks: Vec<Disk>,
}

/// A file system.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    pub(super) directory: PathBuf,
    pub(super) bytes: u64,
    pub(super) free: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
}

/// Looks; reads a directory of `/proc` and asks each file system.
pub(super) fn look(directories: &[PathBuf]) -> Host {
    Host { descriptors: descriptors(), disks: directories.iter().filter_map(|path| disk(path)).collect() }
}

fn descriptors() -> Option<(u64, u64)> {
    let open = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    Some((open, limit))
}

fn disk(directory: &Path) -> Option<Disk> {
    let stat = rustix::fs::statvfs(directory).ok()?;
    Some(Disk {
        directory: directory.to_owned(),
        bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        files: stat.f_files,
        files_free: stat.f_favail,
    })
}
