//! The mounts and the network of one instance, which all of its containers share.
//!
//! All of it lies in a mount namespace of its own: root file systems, volumes, files, even the state of the program that
//! runs containers, in memory and bounded. The host sees none of it, and when the last process and descriptor of it are
//! gone, however that came, nothing of it is left.

use std::{
    ffi::CString,
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::{
    fs::{AtFlags, OFlags},
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
};
use sas_runtime_os::network::Network;

use crate::{
    store::Layer,
    unpack::{open_in, open_root},
};

/// The mounts and the network of one instance.
#[derive(Debug)]
pub(crate) struct Pod {
    mounts: OwnedFd,
    network: Option<Arc<Network>>,
    /// Where its own mounts begin.
    pub(crate) dir: PathBuf,
}

/// Bytes for the instance's own files beside what it may write: configuration and state.
const OWN_BYTES: u64 = 16 << 20;

fn at(error: impl Into<io::Error>, what: &str, path: &Path) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn on_thread<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_panic| io::Error::other("the thread ended"))?
    })
}

fn tmpfs(target: &Path, data: &str) -> io::Result<()> {
    let data = CString::new(data)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, data.as_c_str())
        .map_err(|error| at(error, "tmpfs on", target))
}

pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    fs::create_dir(path).map_err(|error| at(error, "create", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

impl Pod {
    /// Makes it at `dir`, with `bytes` of room for files. `hidden` is unmounted in it. Blocks for some mounts.
    pub(crate) fn make(
        dir: &Path,
        network: Option<Arc<Network>>,
        bytes: u64,
        hidden: Option<&Path>,
    ) -> io::Result<Self> {
        let mounts = on_thread("sas-pod", || {
            unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
            let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", flags)
                .map_err(|error| at(error, "make private", Path::new("/")))?;
            if let Some(hidden) = hidden {
                rustix::mount::unmount(hidden, UnmountFlags::DETACH)
                    .map_err(|error| at(error, "unmount", hidden))?;
            }
            tmpfs(dir, &format!("mode=700,size={}", bytes.saturating_add(OWN_BYTES)))?;
            for (part, mode) in
                [("vol", 0o755), ("etc", 0o755), ("sub", 0o755), ("state", 0o700), ("empty", 0o755)]
            {
                make_dir(&dir.join(part), mode)?;
            }
            Ok(OwnedFd::from(fs::File::open("/proc/thread-self/ns/mnt")?))
        })?;
        Ok(Self { mounts, network, dir: dir.to_path_buf() })
    }

    pub(crate) fn network(&self) -> Option<&Arc<Network>> {
        self.network.as_ref()
    }

    /// Runs `work` on a thread that is in the instance's mounts and network, with no descriptor of the host that a
    /// program would inherit. What is spawned there is in both as well.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        on_thread("sas-enter", || {
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
            if let Some(network) = &self.network {
                network.enter()?;
            }
            // A table of its own: what is marked in it stays as it is in the host.
            unshare(CloneFlags::CLONE_FILES)?;
            close_fds::CloseFdsBuilder::new().cloexecfrom(3);
            work()
        })
    }
}

/// The options of a mount are one page.
const MOST_OPTIONS: usize = 4000;

/// Mounts the layers, the topmost first, at a root below `home`. Called within the instance's mounts.
pub(crate) fn overlay(home: &Path, empty: &Path, layers: &[Arc<Layer>]) -> io::Result<PathBuf> {
    let (upper, work, root) = (home.join("upper"), home.join("work"), home.join("rootfs"));
    for dir in [&upper, &work, &root] {
        make_dir(dir, 0o755)?;
    }
    // An overlay looks as its uppermost directory does, and the image's root may have another owner or mode.
    if let Some(top) = layers.last() {
        let like = fs::metadata(&top.dir)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(like.mode() & 0o7777))?;
        std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))?;
    }
    let mut lower: Vec<&Path> = layers.iter().rev().map(|layer| layer.dir.as_path()).collect();
    if lower.is_empty() {
        lower.push(empty);
    }
    let joined = lower.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={joined},upperdir={},workdir={}", upper.display(), work.display());
    if options.len() <= MOST_OPTIONS {
        let options = CString::new(options)?;
        rustix::mount::mount("overlay", &root, "overlay", MountFlags::NODEV, options.as_c_str())
            .map_err(|error| at(error, "overlay on", &root))?;
        return Ok(root);
    }
    // One option for each layer, which Linux takes from 6.5 on.
    use rustix::mount as m;
    let failed = |error: rustix::io::Errno| {
        at(error, &format!("overlay of {} layers (Linux 6.5 is needed for so many) on", lower.len()), &root)
    };
    let fs = m::fsopen("overlay", m::FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed)?;
    for dir in &lower {
        m::fsconfig_set_string(&fs, "lowerdir+", dir.as_os_str()).map_err(failed)?;
    }
    m::fsconfig_set_string(&fs, "upperdir", upper.as_os_str()).map_err(failed)?;
    m::fsconfig_set_string(&fs, "workdir", work.as_os_str()).map_err(failed)?;
    m::fsconfig_create(&fs).map_err(failed)?;
    let mounted = m::fsmount(&fs, m::FsMountFlags::FSMOUNT_CLOEXEC, m::MountAttrFlags::MOUNT_ATTR_NODEV)
        .map_err(failed)?;
    m::move_mount(&mounted, "", rustix::fs::CWD, &root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(failed)?;
    Ok(root)
}

/// Whether layers can be stacked here: tried out with two.
pub(crate) fn overlay_works(scratch: &Path) -> Result<(), String> {
    let tried = on_thread("sas-overlay", || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
        let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags)?;
        fs::create_dir_all(scratch)?;
        tmpfs(scratch, "mode=700,size=1m")?;
        let below = scratch.join("below");
        make_dir(&below, 0o755)?;
        overlay(scratch, &below, &[]).map(drop)
    });
    let _ = fs::remove_dir(scratch);
    tried.map_err(|error| error.to_string())
}

/// Copies the layers over each other into `root`, as an overlay would show them.
pub(crate) fn copy(root: &Path, layers: &[Arc<Layer>]) -> io::Result<()> {
    make_dir(root, 0o755)?;
    for layer in layers {
        copy_over(&layer.dir, root)?;
    }
    Ok(())
}

fn copy_over(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&from)?;
        let kind = metadata.file_type();
        let there = fs::symlink_metadata(&to).ok();
        use std::os::unix::fs::FileTypeExt as _;
        let whiteout = kind.is_char_device() && metadata.rdev() == 0;
        let keeps = kind.is_dir() && there.as_ref().is_some_and(|there| there.is_dir()) && !is_opaque(&from);
        if let Some(there) = &there
            && !keeps
        {
            if there.is_dir() { fs::remove_dir_all(&to)? } else { fs::remove_file(&to)? }
        }
        if whiteout {
            continue;
        }
        if kind.is_dir() {
            if !keeps {
                fs::create_dir(&to)?;
            }
            copy_over(&from, &to)?;
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(&from)?, &to)?;
            std::os::unix::fs::lchown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
        } else if kind.is_file() {
            // `copy` takes copy_file_range, which shares extents where it can.
            fs::copy(&from, &to)?;
            std::os::unix::fs::chown(&to, Some(metadata.uid()), Some(metadata.gid()))?;
            fs::set_permissions(&to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        } else if kind.is_fifo() {
            let mode = rustix::fs::Mode::from_raw_mode(metadata.mode() & 0o7777);
            rustix::fs::mknodat(rustix::fs::CWD, &to, rustix::fs::FileType::Fifo, mode, 0)?;
        }
    }
    Ok(())
}

fn is_opaque(dir: &Path) -> bool {
    let mut value = [0u8; 4];
    rustix::fs::getxattr(dir, "trusted.overlay.opaque", &mut value)
        .is_ok_and(|read| read == 1 && value[0] == b'y')
}

/// A directory for a volume that is empty at first; with a limit of its own where it has one.
pub(crate) fn empty_volume(path: &Path, limit: Option<u64>, group: Option<u32>) -> io::Result<()> {
    make_dir(path, 0o777)?;
    if let Some(limit) = limit {
        tmpfs(path, &format!("mode=777,size={}", limit.max(4096)))?;
    }
    if let Some(group) = group {
        std::os::unix::fs::chown(path, None, Some(group))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o2777))?;
    }
    Ok(())
}

/// The part `sub` of a volume, as a mount of its own at `to`. What is in the volume may have been written by a program, so
/// that links are followed within the volume only.
pub(crate) fn part(volume: &Path, sub: &str, to: &Path) -> io::Result<()> {
    let root = open_root(volume)?;
    let found = match open_in(&root, Path::new(sub), OFlags::PATH) {
        Err(rustix::io::Errno::NOENT) => {
            let mut so_far = PathBuf::new();
            for name in Path::new(sub) {
                let parent = match so_far.as_os_str().is_empty() {
                    true => root.try_clone()?,
                    false => open_in(&root, &so_far, OFlags::PATH | OFlags::DIRECTORY)?,
                };
                match rustix::fs::mkdirat(&parent, name, rustix::fs::Mode::from_raw_mode(0o777)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                so_far.push(name);
            }
            open_in(&root, Path::new(sub), OFlags::PATH)?
        }
        other => other?,
    };
    if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_dir() {
        make_dir(to, 0o755)?;
    } else {
        fs::write(to, "")?;
    }
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&found, "", clone)?;
    rustix::mount::move_mount(&tree, "", rustix::fs::CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(())
}

/// A file of a root file system, read without leaving it; at most `most` bytes.
pub(crate) fn read_in(root: &Path, path: &str, most: u64) -> io::Result<String> {
    use io::Read as _;
    let dir = open_root(root)?;
    let file = open_in(&dir, Path::new(path), OFlags::RDONLY | OFlags::NONBLOCK)?;
    let stat = rustix::fs::fstat(&file)?;
    if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(io::Error::other("no file"));
    }
    let mut text = String::new();
    fs::File::from(file).take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// Whether a root file system has something at `path`.
pub(crate) fn has(root: &Path, path: &str) -> bool {
    open_root(root)
        .ok()
        .and_then(|dir| open_in(&dir, Path::new(path.trim_start_matches('/')), OFlags::PATH).ok())
        .is_some()
}

/// Gives what a volume holds to a group.
pub(crate) fn give(path: &Path, group: u32) -> io::Result<()> {
    let gid = Some(rustix::fs::Gid::from_raw(group));
    rustix::fs::chownat(rustix::fs::CWD, path, None, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}
