//! Unpacks what strangers packed: every entry is checked before anything of it touches the disk.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read, Seek, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Component, Path, PathBuf},
};

use sas_core::{
    Error, Result,
    package::{file_mode, is_clutter, is_interpreter_link},
};

use super::{
    PackageLimits, directory,
    error::{disk, refused},
    venv::Environments,
};

/// Names longer than this are refused by Linux in any case, and long before that by people.
const MAX_PATH_BYTES: usize = 4096;
/// The longest extended header (a long name, a PAX record) that is read into memory.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;
/// The most bytes of links' names and targets that are kept until all files are there.
const MAX_KEPT: usize = 16 << 20;
/// How a file begins in which macOS keeps what other file systems have no place for.
const APPLE_DOUBLE: [u8; 4] = [0, 5, 0x16, 7];
/// Below this size the compression ratio says nothing.
const RATIO_FREE_BYTES: u64 = 1 << 20;

/// Writes checked entries below one directory, counting against the limits.
///
/// Links are made last, so that no entry is ever written *through* a link.
#[derive(Debug)]
pub(crate) struct Unpacker<'a> {
    root: &'a Path,
    limits: &'a PackageLimits,
    /// Size of the archive; `None` where the ratio means nothing (a directory).
    packed: Option<u64>,
    bytes: u64,
    entries: u64,
    links: Vec<(PathBuf, PathBuf)>,
    /// Bytes of names that are kept in memory until the end.
    kept: usize,
    /// Links out of the package that may be a virtual environment's to its interpreter.
    interpreters: Vec<(PathBuf, PathBuf)>,
    environments: Environments,
    /// Files that macOS may have packed beside others.
    doubles: Vec<PathBuf>,
    /// Where a Python for virtual environments is looked for.
    search: &'a str,
}

impl<'a> Unpacker<'a> {
    /// `packed`: the size of the archive. `search`: the `PATH` with this host's programs.
    pub(crate) fn new(
        root: &'a Path,
        limits: &'a PackageLimits,
        packed: Option<u64>,
        search: &'a str,
    ) -> Self {
        Self {
            root,
            limits,
            packed,
            bytes: 0,
            entries: 0,
            links: Vec::new(),
            kept: 0,
            interpreters: Vec::new(),
            environments: Environments::default(),
            doubles: Vec::new(),
            search,
        }
    }

    /// Counts a name that is kept, so that links cannot fill the memory.
    fn keep(&mut self, bytes: usize) -> Result<()> {
        self.kept += bytes;
        if self.kept > MAX_KEPT {
            return Err(refused(format!(
                "the package's links have more than {MAX_KEPT} bytes of names; pack fewer links"
            )));
        }
        Ok(())
    }

    /// Whether an entry is no part of the program: what desktops leave.
    fn is_clutter(relative: &Path) -> bool {
        let is = |part: &OsStr| part.to_str().is_some_and(is_clutter);
        relative.file_name().is_some_and(is)
            || relative.components().next().is_some_and(|top| top.as_os_str() == "__MACOSX")
    }

    /// The entry's path below the root, or why it may not be unpacked. `None`: the root itself.
    fn relative(name: &[u8]) -> Result<Option<PathBuf>> {
        let shown = String::from_utf8_lossy(name);
        if name.len() > MAX_PATH_BYTES {
            return Err(refused(format!(
                "package entry with a name of {} bytes: at most {MAX_PATH_BYTES} are allowed; shorten its path",
                name.len()
            )));
        }
        if name.contains(&0) {
            return Err(refused(format!("package entry {shown:?}: a name may not hold NUL; rename it")));
        }
        let mut relative = PathBuf::new();
        for part in Path::new(OsStr::from_bytes(name)).components() {
            match part {
                Component::Normal(part) if part.len() > 255 => {
                    return Err(refused(format!(
                        "package entry {shown:?}: a part of its path is longer than 255 bytes; shorten it"
                    )));
                }
                Component::Normal(part) => relative.push(part),
                Component::CurDir => {}
                Component::ParentDir => {
                    return Err(refused(format!(
                        "package entry {shown:?}: it leads out of the package by \"..\"; pack paths relative to \
                         the package's root"
                    )));
                }
                Component::RootDir | Component::Prefix(_) => {
                    return Err(refused(format!(
                        "package entry {shown:?}: its path is absolute; pack paths relative to the package's root"
                    )));
                }
            }
        }
        Ok((!relative.as_os_str().is_empty()).then_some(relative))
    }

    fn count(&mut self, shown: &str) -> Result<()> {
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(refused(format!(
                "package entry {shown:?}: it is one more than the {} entries that a package may have; leave out what \
                 the program does not need, or raise PackageLimits::entries",
                self.limits.entries
            )));
        }
        Ok(())
    }

    fn grow(&mut self, shown: &str, by: u64) -> Result<()> {
        self.bytes += by;
        if self.bytes > self.limits.unpacked_bytes {
            return Err(refused(format!(
                "package entry {shown:?}: with it the package unpacks to more than {} bytes; leave out what the \
                 program does not need, or raise PackageLimits::unpacked_bytes",
                self.limits.unpacked_bytes
            )));
        }
        if let Some(packed) = self.packed
            && self.bytes > packed.saturating_mul(self.limits.ratio).saturating_add(RATIO_FREE_BYTES)
        {
            return Err(refused(format!(
                "package entry {shown:?}: the package unpacks to more than {} times its {packed} bytes, as a \
                 decompression bomb does; pack the data in another form, or raise PackageLimits::ratio",
                self.limits.ratio
            )));
        }
        Ok(())
    }

    fn parent(&self, shown: &str, relative: &Path) -> Result<PathBuf> {
        let path = self.root.join(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|error| self.clash(shown, parent, error))?;
        }
        Ok(path)
    }

    fn clash(&self, shown: &str, path: &Path, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory => {
                refused(format!(
                    "package entry {shown:?}: the same path is a file and a directory or link; pack it again"
                ))
            }
            _ => disk("write", path, error),
        }
    }

    pub(crate) fn directory(&mut self, name: &[u8]) -> Result<()> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(relative) = Self::relative(name)?.filter(|path| !Self::is_clutter(path)) else {
            return Ok(());
        };
        self.count(&shown)?;
        let path = self.root.join(relative);
        fs::create_dir_all(&path).map_err(|error| self.clash(&shown, &path, error))
    }

    /// Writes a file of exactly `size` bytes if that is known. Returns nothing half-written as success.
    pub(crate) fn file(
        &mut self,
        name: &[u8],
        mode: Option<u32>,
        size: Option<u64>,
        content: &mut dyn Read,
        on_read: &mut dyn FnMut(&[u8]),
    ) -> Result<()> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(relative) = Self::relative(name)? else {
            return Err(refused(format!("package entry {shown:?}: a file without a name; pack it again")));
        };
        self.count(&shown)?;
        // Refuse by the declared size first: a bomb that is honest about itself costs nothing.
        if let Some(size) = size {
            let before = self.bytes;
            self.grow(&shown, size)?;
            self.bytes = before;
        }
        if Self::is_clutter(&relative) {
            let read = io::copy(content, &mut io::sink()).map_err(|error| damaged(&shown, error))?;
            // It counts, so that nothing comes past the limits this way.
            return self.grow(&shown, read);
        }
        let path = self.parent(&shown, &relative)?;
        self.environments.see(&relative);
        if relative.file_name().is_some_and(|name| name.as_bytes().starts_with(b"._")) {
            self.keep(relative.as_os_str().len())?;
            self.doubles.push(relative.clone());
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| self.clash(&shown, &path, error))?;
        let mut buffer = vec![0u8; 64 * 1024];
        let mut written = 0u64;
        let mut head = [0u8; 4];
        loop {
            let n = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(damaged(&shown, error)),
            };
            if written < 4 {
                let at = usize::try_from(written).unwrap_or(4);
                let take = n.min(4 - at);
                head[at..at + take].copy_from_slice(&buffer[..take]);
            }
            written += n as u64;
            self.grow(&shown, n as u64)?;
            on_read(&buffer[..n]);
            file.write_all(&buffer[..n]).map_err(|error| disk("write", &path, error))?;
        }
        if let Some(size) = size
            && written != size
        {
            return Err(refused(format!(
                "package entry {shown:?}: only {written} of its {size} bytes are there: the archive is truncated; \
                 pack or upload it again"
            )));
        }
        let mode = match mode {
            Some(mode) => file_mode(mode),
            // Archives without modes: programs and scripts are known by their first bytes.
            None if &head == b"\x7fELF" || head.starts_with(b"#!") => 0o755,
            None => 0o644,
        };
        file.set_permissions(fs::Permissions::from_mode(mode)).map_err(|error| disk("write", &path, error))
    }

    pub(crate) fn link(&mut self, name: &[u8], target: &[u8]) -> Result<()> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let Some(relative) = Self::relative(name)? else {
            return Err(refused(format!("package entry {shown:?}: a link without a name; pack it again")));
        };
        self.count(&shown)?;
        let target = PathBuf::from(OsStr::from_bytes(target));
        self.keep(relative.as_os_str().len() + target.as_os_str().len())?;
        if is_interpreter_link(&relative, &target) {
            self.interpreters.push((relative, target));
            return Ok(());
        }
        if target.is_absolute() || target.as_os_str().is_empty() || target.as_os_str().len() > MAX_PATH_BYTES
        {
            return Err(escapes(&shown, &target));
        }
        // Said by its text already; `finish` proves it for links that go through other links.
        let mut depth = relative.components().count() - 1;
        for part in target.components() {
            depth = match part {
                Component::ParentDir => depth.checked_sub(1).ok_or_else(|| escapes(&shown, &target))?,
                Component::Normal(_) => depth + 1,
                _ => depth,
            };
        }
        self.links.push((relative, target));
        Ok(())
    }

    /// A hard link becomes a copy: the content that the package had under the other name.
    pub(crate) fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<()> {
        let shown = String::from_utf8_lossy(name).into_owned();
        let of = String::from_utf8_lossy(target).into_owned();
        let Some(other) = Self::relative(target)? else {
            return Err(refused(format!("package entry {shown:?}: a hard link to nothing; pack it again")));
        };
        let source = self.root.join(other);
        let metadata = fs::symlink_metadata(&source).ok().filter(fs::Metadata::is_file).ok_or_else(|| {
            refused(format!(
                "package entry {shown:?}: a hard link to {of:?}, which is no file before it in the package; pack it \
                 again with the files themselves"
            ))
        })?;
        if Self::relative(name)? == Self::relative(target)? {
            return Ok(());
        }
        let mut content = fs::File::open(&source).map_err(|error| disk("read", &source, error))?;
        let mode = metadata.permissions().mode();
        self.file(name, Some(mode), Some(metadata.len()), &mut content, &mut |_| {})
    }

    /// Makes the links and proves that each leads to something inside of the package. Returns the bytes unpacked.
    pub(crate) fn finish(self) -> Result<u64> {
        for double in &self.doubles {
            self.drop_double(double)?;
        }
        for (link, target) in &self.interpreters {
            let environment = link.parent().and_then(Path::parent);
            if !environment.is_some_and(|directory| self.environments.is_virtual(directory)) {
                return Err(escapes(&link.display().to_string(), target));
            }
            self.parent(&link.display().to_string(), link)?;
        }
        let interpreters: Vec<PathBuf> = self.interpreters.iter().map(|(link, _)| link.clone()).collect();
        // No link has been made yet, so that nothing is read or written through one.
        self.environments.fit(self.root, &interpreters, self.search)?;
        if self.links.is_empty() {
            return Ok(self.bytes);
        }
        let root = fs::canonicalize(self.root).map_err(|error| disk("open", self.root, error))?;
        for (relative, target) in &self.links {
            let shown = relative.display().to_string();
            let path = self.root.join(relative);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(|error| self.clash(&shown, parent, error))?;
                // A link made before this one may be a part of the path.
                let real = fs::canonicalize(parent).map_err(|error| disk("open", parent, error))?;
                if !real.starts_with(&root) {
                    return Err(escapes(&shown, target));
                }
            }
            std::os::unix::fs::symlink(target, &path).map_err(|error| self.clash(&shown, &path, error))?;
        }
        for (relative, target) in &self.links {
            match fs::canonicalize(root.join(relative)) {
                Ok(real) if real.starts_with(&root) => {}
                // By way of the interpreter's link, as `python3` to `python`.
                Ok(_) | Err(_) if self.is_interpreter(relative, target) => {}
                Ok(_) => return Err(escapes(&relative.display().to_string(), target)),
                Err(_) => {
                    return Err(refused(format!(
                        "package entry {:?}: a link to {:?}, which is not in the package; pack what it points to",
                        relative.display().to_string(),
                        target.display().to_string()
                    )));
                }
            }
        }
        Ok(self.bytes)
    }
}

impl Unpacker<'_> {
    /// Whether a link leads to the link of an interpreter beside it, through others beside it.
    fn is_interpreter(&self, link: &Path, target: &Path) -> bool {
        let (mut link, mut target) = (link, target);
        // Links in a circle come to an end here.
        for _ in 0..8 {
            let Some(parent) = link.parent().filter(|_| target.components().count() == 1) else {
                return false;
            };
            let next = parent.join(target);
            if self.interpreters.iter().any(|(interpreter, _)| *interpreter == next) {
                return true;
            }
            match self.links.iter().find(|(link, _)| *link == next) {
                Some((found, leads)) => (link, target) = (found, leads),
                None => return false,
            }
        }
        false
    }

    /// Removes `._name` if it is what macOS keeps beside `name`, by its content or by its name.
    fn drop_double(&self, relative: &Path) -> Result<()> {
        let path = self.root.join(relative);
        let name = relative.file_name().unwrap_or_default().as_bytes();
        let beside = OsStr::from_bytes(name.strip_prefix(b"._").unwrap_or(name));
        let mut head = [0u8; 4];
        let is_double = fs::File::open(&path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
            && head == APPLE_DOUBLE;
        let named = fs::symlink_metadata(path.with_file_name(beside)).is_ok();
        if is_double || (named && !beside.is_empty()) {
            fs::remove_file(&path).map_err(|error| disk("remove", &path, error))?;
        }
        Ok(())
    }
}

fn escapes(shown: &str, target: &Path) -> Error {
    refused(format!(
        "package entry {shown:?}: a link to {:?}, which leads out of the package; pack what it points to in its place \
         (cp -L, tar -h), or leave it out",
        target.display().to_string()
    ))
}

fn damaged(shown: &str, error: io::Error) -> Error {
    refused(format!(
        "package entry {shown:?}: the archive is truncated or damaged here ({error}); pack or upload it again"
    ))
    .with_source(error)
}

fn not_an_archive(kind: &str, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return refused(format!("the {kind} archive: {error}"));
    }
    refused(format!("the package is no whole {kind} archive: it is truncated or damaged ({error}); pack or upload it again"))
        .with_source(error)
}

/// Stops a stream that grows beyond all limits, whatever part of the archive it belongs to.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "it unpacks to more than PackageLimits allows, as a decompression bomb does",
            )
        })?;
        Ok(n)
    }
}

/// Unpacks a tar stream, compressed or not.
pub(crate) fn untar(archive: impl Read, gzip: bool, packed: u64, unpacker: &mut Unpacker<'_>) -> Result<()> {
    if gzip {
        untar_stream(flate2::read::MultiGzDecoder::new(archive), "gzip-compressed tar", packed, unpacker)
    } else {
        untar_stream(archive, "tar", packed, unpacker)
    }
}

fn untar_stream(
    stream: impl Read,
    kind: &'static str,
    packed: u64,
    unpacker: &mut Unpacker<'_>,
) -> Result<()> {
    let limits = *unpacker.limits;
    // Headers and padding count too: 1 KiB per entry, and as much again as the content may take by ratio.
    let left = (limits.unpacked_bytes.saturating_add(limits.entries.saturating_mul(1024)))
        .min(packed.saturating_mul(limits.ratio).saturating_add(4 * RATIO_FREE_BYTES));
    let mut archive = tar::Archive::new(Bounded { inner: stream, left });
    let mut long_name: Option<Vec<u8>> = None;
    let mut long_link: Option<Vec<u8>> = None;
    let mut seen = false;
    {
        let entries = archive.entries().map_err(|error| not_an_archive(kind, error))?.raw(true);
        for entry in entries {
            let mut entry = entry.map_err(|error| not_an_archive(kind, error))?;
            seen = true;
            let header_name = entry.path_bytes().into_owned();
            let size = entry.header().entry_size().map_err(|error| not_an_archive(kind, error))?;
            let entry_type = entry.header().entry_type();
            let mut extension = |what: &str| -> Result<Vec<u8>> {
                if size > MAX_EXTENSION_BYTES {
                    return Err(refused(format!(
                        "the package has a {what} of {size} bytes: at most {MAX_EXTENSION_BYTES} are read; pack it \
                         again"
                    )));
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(|error| not_an_archive(kind, error))?;
                if bytes.len() as u64 != size {
                    return Err(damaged(what, io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(bytes)
            };
            if entry_type.is_gnu_longname() {
                long_name = Some(until_nul(extension("long name")?));
                continue;
            }
            if entry_type.is_gnu_longlink() {
                long_link = Some(until_nul(extension("long link name")?));
                continue;
            }
            if entry_type.is_pax_local_extensions() {
                let records = extension("PAX header")?;
                if let Some(path) = pax(&records, "path") {
                    long_name = Some(path);
                }
                if let Some(path) = pax(&records, "linkpath") {
                    long_link = Some(path);
                }
                continue;
            }
            if entry_type.is_pax_global_extensions() {
                extension("PAX header")?;
                continue;
            }
            let name = long_name.take().unwrap_or(header_name);
            let shown = String::from_utf8_lossy(&name).into_owned();
            let target = long_link
                .take()
                .or_else(|| entry.link_name_bytes().map(|target| target.into_owned()))
                .unwrap_or_default();
            match entry_type {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    // Old tars mark a directory by its last slash only.
                    if name.ends_with(b"/") && size == 0 {
                        unpacker.directory(&name)?;
                    } else {
                        let mode = entry.header().mode().ok();
                        unpacker.file(&name, mode, Some(size), &mut entry, &mut |_| {})?;
                    }
                }
                tar::EntryType::Directory => unpacker.directory(&name)?,
                tar::EntryType::Symlink => unpacker.link(&name, &target)?,
                tar::EntryType::Link => unpacker.hard_link(&name, &target)?,
                tar::EntryType::Block | tar::EntryType::Char | tar::EntryType::Fifo => {
                    return Err(refused(format!(
                        "package entry {shown:?}: a device file or pipe; a package may hold files, directories and \
                         links only"
                    )));
                }
                other => {
                    return Err(refused(format!(
                        "package entry {shown:?}: tar entry type {:?} is not supported; pack it with plain files \
                         (GNU tar without --sparse)",
                        char::from(other.as_byte())
                    )));
                }
            }
        }
    }
    if !seen {
        return Err(refused(format!(
            "the package is an empty {kind} archive; pack the program and what it needs"
        )));
    }
    // To the very end, so that a cut or damaged compressed stream is noticed by its checksum.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|error| not_an_archive(kind, error))?;
    Ok(())
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// The last value of `key` in PAX records (`<length> <key>=<value>\n`).
fn pax(mut records: &[u8], key: &str) -> Option<Vec<u8>> {
    let mut found = None;
    while let Some(space) = records.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
        let record = records.get(space + 1..length)?;
        let (name, value) = record.split_at(record.iter().position(|byte| *byte == b'=')?);
        if name == key.as_bytes() {
            found = Some(value[1..].strip_suffix(b"\n").unwrap_or(&value[1..]).to_vec());
        }
        records = &records[length..];
    }
    found
}

/// Unpacks a zip archive.
pub(crate) fn unzip(archive: impl Read + Seek, unpacker: &mut Unpacker<'_>) -> Result<()> {
    let limit = unpacker.limits.entries;
    let mut archive = directory::open(archive, limit).map_err(|error| not_an_archive("zip", error))?;
    if archive.is_empty() {
        return Err(refused("the package is an empty zip archive; pack the program and what it needs"));
    }
    // Windows' own tools once wrote its separator, against the format. No other name of such an archive has a slash.
    let of_windows = !archive.file_names().any(|name| name.contains('/'));
    for index in 0..archive.len() {
        let shown = archive.name_for_index(index).unwrap_or("?").to_owned();
        let mut entry = archive.by_index(index).map_err(|error| damaged(&shown, io::Error::other(error)))?;
        let mut name = entry.name_raw().to_vec();
        // Windows has no modes: the crate makes these of its attributes.
        let mode = entry.unix_mode().filter(|mode| !matches!(mode, 0o100_664 | 0o100_444));
        if of_windows || (mode.is_none_or(|mode| mode == 0o040_775) && !name.contains(&b'/')) {
            name.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
        }
        let size = entry.size();
        match mode.map(|mode| mode & 0o170_000) {
            _ if name.ends_with(b"/") => unpacker.directory(&name)?,
            Some(0o120_000) => {
                if size > MAX_PATH_BYTES as u64 {
                    return Err(escapes(&shown, Path::new("…")));
                }
                let mut target = Vec::new();
                (&mut entry)
                    .take(MAX_PATH_BYTES as u64 + 1)
                    .read_to_end(&mut target)
                    .map_err(|error| damaged(&shown, error))?;
                unpacker.link(&name, &target)?;
            }
            None | Some(0 | 0o100_000) => {
                // Windows and some tools write no mode, or an empty one.
                let mode = mode.filter(|mode| mode & 0o777 != 0);
                unpacker.file(&name, mode, Some(size), &mut entry, &mut |_| {})?;
            }
            Some(_) => {
                return Err(refused(format!(
                    "package entry {shown:?}: a device file or pipe; a package may hold files, directories and links \
                     only"
                )));
            }
        }
    }
    Ok(())
}
