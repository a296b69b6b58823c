//! Python environments that were made elsewhere, fitted to where they stand.
//!
//! A virtual environment names its interpreter in a link, the interpreter's directory in `pyvenv.cfg`, and itself in
//! the first line of each script; none of these means anything in another place. `pip install --target` writes such
//! scripts, too. Here the link leads to an interpreter of this host, and scripts ask for one by the `PATH`.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use sas_core::Result;

use super::{detect::search, error::disk};

/// What the first lines of a script may take.
const MAX_SCRIPT: u64 = 1 << 20;

/// The Python environments that were met while a package was unpacked, relative to its root.
#[derive(Debug, Default)]
pub(super) struct Environments {
    /// They hold a `pyvenv.cfg`.
    virtuals: BTreeSet<PathBuf>,
    /// Packages were installed into them.
    installed: BTreeSet<PathBuf>,
}

impl Environments {
    /// Takes note of a file of the package.
    pub(super) fn see(&mut self, relative: &Path) {
        let (Some(name), Some(parent)) = (relative.file_name(), relative.parent()) else { return };
        if name == "pyvenv.cfg" {
            self.virtuals.insert(parent.to_path_buf());
        } else if name == "METADATA" && parent.extension().is_some_and(|extension| extension == "dist-info") {
            self.installed.insert(parent.parent().unwrap_or(Path::new("")).to_path_buf());
        }
    }

    pub(super) fn is_virtual(&self, directory: &Path) -> bool {
        self.virtuals.contains(directory)
    }

    /// Makes the links `interpreters` (paths below `root` that are not there yet) lead to a Python of `path`, and the
    /// scripts of all environments run by it. A link stays out where this host has no Python.
    pub(super) fn fit(&self, root: &Path, interpreters: &[PathBuf], path: &str) -> Result<()> {
        for environment in &self.virtuals {
            let version = version(&root.join(environment));
            let python = version
                .iter()
                .map(|version| format!("python{version}"))
                .chain(["python3".to_owned(), "python".to_owned()])
                .find_map(|name| search(path, &name));
            let Some(python) = python else { continue };
            for link in interpreters.iter().filter(|link| link.starts_with(environment)) {
                let link = root.join(link);
                std::os::unix::fs::symlink(&python, &link).map_err(|error| disk("link", &link, error))?;
            }
            home(&root.join(environment).join("pyvenv.cfg"), &python)?;
            scripts(&root.join(environment).join("bin"), path)?;
        }
        for directory in self.installed.iter().filter(|directory| !directory.ends_with("site-packages")) {
            scripts(&root.join(directory).join("bin"), path)?;
        }
        Ok(())
    }
}

/// `3.11`, by `lib/python3.11` of an environment.
fn version(environment: &Path) -> Option<String> {
    let entries = fs::read_dir(environment.join("lib")).ok()?.flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("python").map(str::to_owned))
        .find(|version| version.contains('.'))
}

fn rewrite(path: &Path, text: &[u8]) -> Result<()> {
    let failed = |error| disk("write", path, error);
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode();
    fs::remove_file(path).map_err(failed)?;
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    file.write_all(text).map_err(failed)?;
    file.set_permissions(fs::Permissions::from_mode(mode & 0o777)).map_err(failed)
}

/// Has `pyvenv.cfg` name the directory of `python`.
fn home(config: &Path, python: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(config) else { return Ok(()) };
    let directory = python.parent().unwrap_or(Path::new("/usr/bin")).display();
    let lines: Vec<String> = text
        .lines()
        .map(|line| match line.split_once('=') {
            Some((name, _)) if name.trim() == "home" => format!("home = {directory}"),
            Some((name, _)) if matches!(name.trim(), "executable" | "command") => String::new(),
            _ => line.to_owned(),
        })
        .filter(|line| !line.is_empty())
        .collect();
    rewrite(config, (lines.join("\n") + "\n").as_bytes())
}

/// Has the scripts in `bin` ask for their interpreter, unless it is one of the search path's.
fn scripts(bin: &Path, path: &str) -> Result<()> {
    for entry in fs::read_dir(bin).into_iter().flatten().flatten() {
        let file = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let mut text = Vec::new();
        let opened = fs::File::open(&file).map_err(|error| disk("read", &file, error))?;
        opened.take(MAX_SCRIPT + 1).read_to_end(&mut text).map_err(|error| disk("read", &file, error))?;
        if text.len() as u64 <= MAX_SCRIPT
            && let Some(fitted) = fitted(&text, path)
        {
            rewrite(&file, &fitted)?;
        }
    }
    Ok(())
}

/// The script with an interpreter of the `PATH`; `None`: it has one that is good, or is no script of Python.
fn fitted(text: &[u8], path: &str) -> Option<Vec<u8>> {
    let line = |text: &[u8]| text.iter().position(|byte| *byte == b'\n');
    let first = line(text)?;
    let named = std::str::from_utf8(text.get(2..first)?).ok()?.trim();
    let (named, body) = if text.starts_with(b"#!/bin/sh\n'''exec' ") {
        // pip's way around paths that are too long for the kernel: three lines.
        let second = std::str::from_utf8(&text[first + 1..]).ok()?.lines().next()?;
        let named = quoted(second)?;
        let mut at = 0;
        for _ in 0..3 {
            at += line(&text[at..])? + 1;
        }
        (named, &text[at..])
    } else if text.starts_with(b"#!") {
        (named.split(' ').next()?, &text[first + 1..])
    } else {
        return None;
    };
    let named = Path::new(named);
    let name = named.file_name()?.to_str()?;
    let is_python = name.starts_with("python") || name.starts_with("pypy");
    let is_hosts = path.split(':').any(|dir| named.parent() == Some(Path::new(dir))) && named.exists();
    if !is_python || is_hosts {
        return None;
    }
    let mut fitted = b"#!/usr/bin/env python3\n".to_vec();
    fitted.extend_from_slice(body);
    Some(fitted)
}

/// The interpreter in pip's second line: `'''exec' "/a path/python" "$0" "$@"`.
pub(super) fn quoted(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("'''exec' ")?;
    match rest.strip_prefix('"') {
        Some(rest) => rest.split('"').next(),
        None => rest.split(' ').next(),
    }
}

#[cfg(test)]
mod tests {
    use super::fitted;

    #[test]
    fn a_scripts_interpreter_is_asked_for_unless_it_is_the_hosts() {
        for (text, expected) in [
            ("#!/home/me/app/.venv/bin/python3.11\nimport x\n", Some("#!/usr/bin/env python3\nimport x\n")),
            ("#!/home/me/app/.venv/bin/python -I\nx\n", Some("#!/usr/bin/env python3\nx\n")),
            (
                "#!/bin/sh\n'''exec' \"/a long/way/bin/python\" \"$0\" \"$@\"\n' '''\nimport x\n",
                Some("#!/usr/bin/env python3\nimport x\n"),
            ),
            ("#!/no/such/dir/bash\nx\n", None),
            ("#!/bin/sh\nx\n", None),
            ("import x\n", None),
            ("#!/usr/bin/env python3\nx\n", None),
            ("", None),
        ] {
            let fitted =
                fitted(text.as_bytes(), "/bin:/usr/bin").map(|text| String::from_utf8(text).unwrap());
            assert_eq!(fitted.as_deref(), expected, "{text}");
        }
    }
}
