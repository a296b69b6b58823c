//! Unpacks a layer into a directory that an overlay can take, and never outside of it.
//!
//! Every path is resolved by the kernel as if the layer's directory were the root (`openat2`, `RESOLVE_IN_ROOT`), so
//! neither a link of the layer nor `..` leads out. Whiteouts become what overlayfs takes for them: a character device
//! 0/0, and an attribute of the directory.

use std::{
    collections::HashMap,
    ffi::OsStr,
    io::{self, Read},
    os::{
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags},
    io::Errno,
};
use sas_core::{Error, ErrorKind, Result};

/// What a layer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageLimits {
    /// Bytes of one image's layers when unpacked. Default 16 GiB.
    pub bytes: u64,
    /// Files, directories and links of one layer. Default 500,000.
    pub files: u64,
    /// How many times its packed size a layer may have when unpacked, as soon as that is more than 64 MiB. Default 200.
    pub ratio: u64,
    /// Layers of one image. Default 500.
    pub layers: usize,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { bytes: 16 << 30, files: 500_000, ratio: 200, layers: 500 }
    }
}

/// Below this size nobody asks for the ratio.
const RATIO_FROM: u64 = 64 << 20;
const MOST_PATH: usize = 4096;
const MOST_NAME: usize = 255;
/// Most parents of which the descriptor is kept.
const PARENTS: usize = 32;

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unpacked {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
    /// Device nodes, which are left out: a container gets its devices from the runtime.
    pub(crate) devices: u64,
}

fn refused(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", what)
}

fn disk(what: &str, error: impl Into<io::Error>) -> Error {
    let error = error.into();
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "prepare", format!("unpack a layer: {what}: {error}")).with_source(error)
}

/// The components of a member's name, `.` left out.
fn components(path: &[u8]) -> Result<Vec<&OsStr>> {
    let shown = || String::from_utf8_lossy(&path[..path.len().min(200)]).into_owned();
    if path.len() > MOST_PATH || path.contains(&0) {
        return Err(refused(format!("a layer has the member {:?}: longer than a path may be", shown())));
    }
    let mut out = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                return Err(refused(format!("a layer has the member {:?}, which leads out of it", shown())));
            }
            part if part.len() > MOST_NAME => {
                return Err(refused(format!(
                    "a layer has the member {:?}: longer than a name may be",
                    shown()
                )));
            }
            part => out.push(OsStr::from_bytes(part)),
        }
    }
    Ok(out)
}

struct Target<'a> {
    root: OwnedFd,
    parents: HashMap<Vec<u8>, OwnedFd>,
    limits: &'a ImageLimits,
    packed: u64,
    /// What the image's other layers took.
    before: u64,
    done: Unpacked,
    chown: bool,
    /// Directories whose times are set at the end.
    times: Vec<(OwnedFd, Timestamps)>,
}

/// Opens a directory below `root` as if that were `/`.
pub(crate) fn open_in(root: &OwnedFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat2(
        root,
        path,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

pub(crate) fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Unpacks the tar stream `reader` into the existing directory `to`. `packed` is the size of the blob, `before` what the
/// image's other layers took. Blocks.
pub(crate) fn unpack(
    reader: impl Read,
    to: &Path,
    limits: &ImageLimits,
    packed: u64,
    before: u64,
) -> Result<Unpacked> {
    let root = open_root(to).map_err(|error| disk("open", error))?;
    let mut target = Target {
        root,
        parents: HashMap::new(),
        limits,
        packed,
        before,
        done: Unpacked { bytes: before, ..Unpacked::default() },
        chown: rustix::process::geteuid().is_root(),
        times: Vec::new(),
    };
    let mut archive = tar::Archive::new(reader);
    let entries = archive.entries().map_err(|error| broken(&error))?;
    for entry in entries {
        target.take(entry.map_err(|error| broken(&error))?)?;
    }
    for (dir, times) in target.times.iter().rev() {
        let _ = rustix::fs::futimens(dir, times);
    }
    target.done.bytes -= before;
    Ok(target.done)
}

fn broken(error: &io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(own) => Error::new(own.kind, own.operation, own.message.clone()),
        None => refused(format!("a layer is no tar archive: {error}")),
    }
}

impl Target<'_> {
    fn parent(&mut self, parts: &[&OsStr]) -> Result<OwnedFd> {
        let mut path = Vec::new();
        for (at, part) in parts.iter().enumerate() {
            if at > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(part.as_bytes());
        }
        if path.is_empty() {
            path.push(b'.');
        }
        if let Some(known) = self.parents.get(&path) {
            return known.try_clone().map_err(|error| disk("descriptor", error));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let opened = match open_in(&self.root, Path::new(OsStr::from_bytes(&path)), flags) {
            Err(Errno::NOENT) if !parts.is_empty() => {
                let (last, above) = parts.split_last().expect("not empty");
                let above = self.parent(above)?;
                match rustix::fs::mkdirat(&above, *last, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(disk("create a directory", error)),
                }
                open_in(&self.root, Path::new(OsStr::from_bytes(&path)), flags)
            }
            other => other,
        };
        let opened = opened.map_err(|error| {
            let shown = String::from_utf8_lossy(&path);
            refused(format!("a layer has members below {shown:?}, which is no directory of it ({error})"))
        })?;
        if self.parents.len() >= PARENTS {
            self.parents.clear();
        }
        let kept = opened.try_clone().map_err(|error| disk("descriptor", error))?;
        self.parents.insert(path, kept);
        Ok(opened)
    }

    fn take<R: Read>(&mut self, mut entry: tar::Entry<'_, R>) -> Result<()> {
        use tar::EntryType;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader | EntryType::XHeader) {
            return Ok(());
        }
        self.done.files += 1;
        if self.done.files > self.limits.files {
            let most = self.limits.files;
            return Err(refused(format!(
                "a layer has more than {most} members, the most that images may have"
            )));
        }
        let path = entry.path_bytes().into_owned();
        let parts = components(&path)?;
        let mode = entry.header().mode().unwrap_or(0o644) & 0o7777;
        let Some((name, above)) = parts.split_last() else {
            // The root itself.
            let root = open_in(&self.root, Path::new("."), OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|error| disk("open", error))?;
            self.own(&root, &entry)?;
            return rustix::fs::fchmod(&root, Mode::from_raw_mode(mode)).map_err(|error| disk("mode", error));
        };
        let parent = self.parent(above)?;
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(&parent, hidden);
        }
        match kind {
            EntryType::Directory => self.directory(&parent, name, mode, &entry),
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.file(&parent, name, mode, &mut entry)
            }
            EntryType::Symlink => {
                let link = entry.link_name_bytes().unwrap_or_default();
                if link.is_empty() || link.contains(&0) || link.len() > MOST_PATH {
                    return Err(refused("a layer has a link to nowhere"));
                }
                self.clear(&parent, name)?;
                rustix::fs::symlinkat(OsStr::from_bytes(&link), &parent, *name)
                    .map_err(|error| disk("link", error))?;
                self.own_at(&parent, name, &entry)
            }
            EntryType::Link => {
                let link = entry.link_name_bytes().unwrap_or_default().into_owned();
                self.hard_link(&parent, name, &link)
            }
            EntryType::Fifo => {
                self.clear(&parent, name)?;
                let bits = Mode::from_raw_mode(mode);
                rustix::fs::mknodat(&parent, *name, FileType::Fifo, bits, 0)
                    .map_err(|error| disk("pipe", error))?;
                self.own_at(&parent, name, &entry)
            }
            EntryType::Char | EntryType::Block => {
                self.done.devices += 1;
                Ok(())
            }
            other => {
                let shown = String::from_utf8_lossy(&path);
                Err(refused(format!(
                    "a layer has the member {shown:?} of the unknown kind {:?}",
                    other.as_byte()
                )))
            }
        }
    }

    /// Removes what stands in the way, unless it is a directory with something in it.
    fn clear(&mut self, parent: &OwnedFd, name: &OsStr) -> Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {
                self.parents.clear();
                rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR).map_err(|error| {
                    refused(format!("a layer has {name:?} as a directory and as something else ({error})"))
                })
            }
            Err(error) => Err(disk("replace", error)),
        }
    }

    fn own<R: Read>(&self, file: &OwnedFd, entry: &tar::Entry<'_, R>) -> Result<()> {
        if !self.chown {
            return Ok(());
        }
        let (uid, gid) = owner(entry)?;
        rustix::fs::fchown(file, Some(uid), Some(gid)).map_err(|error| disk("owner", error))
    }

    fn own_at<R: Read>(&self, parent: &OwnedFd, name: &OsStr, entry: &tar::Entry<'_, R>) -> Result<()> {
        if !self.chown {
            return Ok(());
        }
        let (uid, gid) = owner(entry)?;
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| disk("owner", error))
    }

    fn directory<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        mode: u32,
        entry: &tar::Entry<'_, R>,
    ) -> Result<()> {
        let open = |parent: &OwnedFd| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::empty())
        };
        let dir = match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => open(parent),
            Err(Errno::EXIST) => match open(parent) {
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    self.clear(parent, name)?;
                    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)).and_then(|()| open(parent))
                }
                other => other,
            },
            Err(error) => Err(error),
        };
        let dir = dir.map_err(|error| disk("create a directory", error))?;
        self.own(&dir, entry)?;
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).map_err(|error| disk("mode", error))?;
        // Bounded: beyond it, directories keep the time at which they were made.
        if self.times.len() < 512 {
            self.times.push((dir, times(entry)));
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        mode: u32,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<()> {
        self.clear(parent, name)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| disk("create a file", error))?;
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let read = entry.read(&mut buffer).map_err(|error| broken(&error))?;
            if read == 0 {
                break;
            }
            self.grow(read as u64)?;
            let mut rest = &buffer[..read];
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest).map_err(|error| disk("write", error))?;
                rest = &rest[written..];
            }
        }
        self.own(&file, entry)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).map_err(|error| disk("mode", error))?;
        let times = times(entry);
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            for extension in extensions.flatten() {
                let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else { continue };
                // Those of programs and of capabilities; never those by which overlayfs is told what to do.
                if name.starts_with(b"user.") || name == b"security.capability" {
                    let value = extension.value_bytes();
                    let _ = rustix::fs::fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty());
                }
            }
        }
        let _ = rustix::fs::futimens(&file, &times);
        Ok(())
    }

    fn grow(&mut self, bytes: u64) -> Result<()> {
        self.done.bytes += bytes;
        if self.done.bytes > self.limits.bytes {
            let most = self.limits.bytes;
            return Err(refused(format!(
                "the image is larger than {most} bytes when unpacked, the most that images may be"
            )));
        }
        let most = self.packed.saturating_mul(self.limits.ratio).max(RATIO_FROM);
        if self.done.bytes - self.before > most {
            let ratio = self.limits.ratio;
            return Err(refused(format!(
                "a layer is more than {ratio} times as large as its {} packed bytes",
                self.packed
            )));
        }
        Ok(())
    }

    fn hard_link(&mut self, parent: &OwnedFd, name: &OsStr, link: &[u8]) -> Result<()> {
        let parts = components(link)?;
        let Some((target, above)) = parts.split_last() else {
            return Err(refused("a layer has a hard link to its root"));
        };
        let shown = String::from_utf8_lossy(link).into_owned();
        let outside = |error: Errno| {
            refused(format!("a layer has a hard link to {shown:?}, which is no file of the layer ({error})"))
        };
        let from = self.parent(above)?;
        if rustix::fs::statat(&from, *target, AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Err(outside(Errno::NOENT));
        }
        if **target == *name {
            let same = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
            if same(&from) == same(parent) {
                return Ok(());
            }
        }
        self.clear(parent, name)?;
        rustix::fs::linkat(&from, *target, parent, name, AtFlags::empty()).map_err(outside)
    }

    fn whiteout(&mut self, parent: &OwnedFd, hidden: &[u8]) -> Result<()> {
        if hidden == b".wh..opq" {
            // An O_PATH descriptor has no attributes; its path in /proc leads to the directory itself.
            let path = format!("/proc/self/fd/{}", parent.as_fd().as_raw_fd());
            return rustix::fs::setxattr(path, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .map_err(|error| disk("hide a directory of lower layers", error));
        }
        if hidden.starts_with(b".wh.") {
            // Book-keeping of aufs.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused("a layer hides a file without a name"));
        }
        match rustix::fs::mknodat(
            parent,
            OsStr::from_bytes(hidden),
            FileType::CharacterDevice,
            Mode::empty(),
            rustix::fs::makedev(0, 0),
        ) {
            // What the layer itself has is not hidden by it.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(disk("hide a file of lower layers", error)),
        }
    }
}

fn owner<R: Read>(entry: &tar::Entry<'_, R>) -> Result<(Uid, Gid)> {
    let id = |id: io::Result<u64>| {
        id.ok()
            .and_then(|id| u32::try_from(id).ok())
            .filter(|id| *id != u32::MAX)
            .ok_or_else(|| refused("a layer has a member of a user whose number is none"))
    };
    Ok((Uid::from_raw(id(entry.header().uid())?), Gid::from_raw(id(entry.header().gid())?)))
}

fn times<R: Read>(entry: &tar::Entry<'_, R>) -> Timestamps {
    let seconds = entry.header().mtime().ok().and_then(|time| i64::try_from(time).ok()).unwrap_or(0);
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
