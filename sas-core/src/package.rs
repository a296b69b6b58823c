//! What everybody who copies or unpacks a code package holds it to, so that a package that one part of the platform
//! accepts is not refused by another.

use std::path::Path;

/// Most files, directories and links of a package, unless the host says another number to who unpacks it.
pub const MOST_ENTRIES: u64 = 200_000;
/// Most bytes of all files of a package, unless the host says another number to who unpacks it: 4 GiB.
pub const MOST_BYTES: u64 = 4 << 30;

/// The mode that a file of a package gets, of the mode that it was packed with: its executable bits and who may read
/// it stay; set-user-id, set-group-id and sticky go, nobody but the owner may write, and the owner can always read and
/// replace it.
///
/// ```
/// use sas_core::package::file_mode;
/// assert_eq!(file_mode(0o4777), 0o755);
/// assert_eq!(file_mode(0o100_464), 0o644);
/// ```
#[must_use]
pub const fn file_mode(mode: u32) -> u32 {
    mode & 0o755 | 0o600
}

/// Whether a link that leads out of the package may be a Python virtual environment's link to its interpreter:
/// `<environment>/bin/python3.11` to `/usr/bin/python3.11`. `link` is its path in the package. It is one if its
/// environment, the directory above `bin`, holds a `pyvenv.cfg`, which is for the caller to see. Such a link may be
/// kept in a copy. Who runs the package replaces it by an interpreter of its own host and never reads through it.
///
/// ```
/// use std::path::Path;
/// use sas_core::package::is_interpreter_link;
/// assert!(is_interpreter_link(Path::new(".venv/bin/python"), Path::new("/usr/bin/python3.11")));
/// assert!(!is_interpreter_link(Path::new(".venv/bin/python"), Path::new("/etc/shadow")));
/// assert!(!is_interpreter_link(Path::new("lib/python"), Path::new("/usr/bin/python3")));
/// ```
#[must_use]
pub fn is_interpreter_link(link: &Path, target: &Path) -> bool {
    let is_python = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let version = ["python", "pypy"].iter().find_map(|stem| name.strip_prefix(stem));
        version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.'))
    };
    let parent = link.parent().and_then(Path::file_name);
    target.is_absolute()
        && parent.is_some_and(|parent| parent == "bin")
        && is_python(link)
        && is_python(target)
}

/// Whether a name is what a desktop leaves in every directory that it shows, or beside every file that it packs:
/// `.DS_Store`, `__MACOSX`, `Thumbs.db`, `desktop.ini`. It is no part of a program.
///
/// ```
/// use sas_core::package::is_clutter;
/// assert!(is_clutter("__MACOSX") && is_clutter(".DS_Store") && !is_clutter("main.py"));
/// ```
#[must_use]
pub fn is_clutter(name: &str) -> bool {
    matches!(name, "__MACOSX" | ".DS_Store" | "Thumbs.db" | "desktop.ini")
}

/// The text of a small file that people write, such as a `Procfile` or a `package.json`, without the byte order mark
/// that editors of Windows put before it.
///
/// ```
/// assert_eq!(sas_core::package::without_mark("\u{feff}web: ./run"), "web: ./run");
/// ```
#[must_use]
pub fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}
