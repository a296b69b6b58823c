//! What the host has: programs of the search path, and what the kernel would say of a file.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sas_core::Result;

use super::{Project, file_name};
use crate::{
    config::ProcessConfig,
    package::error::{disk, refused},
};

/// Searches the directories of the configured `PATH` for an executable file.
pub(crate) fn search(path: &str, name: &str) -> Option<PathBuf> {
    path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| is_executable(path))
}

pub(super) fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// One of the programs `names`, which `what` cannot do without.
pub(super) fn interpreter(config: &ProcessConfig, names: &[&str], what: &str) -> Result<PathBuf> {
    names.iter().find_map(|name| search(&config.path, name)).ok_or_else(|| {
        refused(format!(
            "{what} needs {}, which is not in {}; install it, or set ProcessConfig::path to where it is",
            names.join(" or "),
            config.path
        ))
    })
}

/// The `java` that jars are run with.
pub(crate) fn java(config: &ProcessConfig) -> Result<PathBuf> {
    if let Some(home) = &config.java.home {
        let java = home.join("bin/java");
        if is_executable(&java) {
            return Ok(java);
        }
        return Err(refused(format!(
            "java.home {}: it has no bin/java; name the directory of a JDK",
            home.display()
        )));
    }
    interpreter(config, &["java"], "a jar")
}

/// The first bytes of a file; none if it can't be read.
pub(super) fn head(path: &Path) -> Vec<u8> {
    let mut head = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(256).read_to_end(&mut head);
    }
    head
}

/// What the kernel would refuse to run, in words.
pub(super) fn check_program(program: &Path) -> Result<()> {
    let mut head = Vec::new();
    let file = fs::File::open(program).map_err(|error| disk("read", program, error))?;
    file.take(256).read_to_end(&mut head).map_err(|error| disk("read", program, error))?;
    let name = file_name(program);
    if head.starts_with(b"\xef\xbb\xbf#!") {
        return Err(refused(format!(
            "program {name:?}: it begins with a byte order mark, so that no interpreter is found; save it without one"
        )));
    }
    if let Some(line) = head.strip_prefix(b"#!") {
        let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let line = String::from_utf8_lossy(line);
        let interpreter = line.split_whitespace().next().unwrap_or_default();
        if line.ends_with('\r') {
            return Err(refused(format!(
                "program {name:?}: its first line ends in CR LF, so that no interpreter is found; save it with LF"
            )));
        }
        if !Path::new(interpreter).exists() {
            return Err(refused(format!(
                "program {name:?}: its interpreter {interpreter:?} does not exist on this host; install it or change \
                 the first line"
            )));
        }
    }
    if head.starts_with(b"\x7fELF") && head.len() > 19 {
        let machine = u16::from_le_bytes([head[18], head[19]]);
        let wanted: &[u16] = match std::env::consts::ARCH {
            "x86_64" => &[62, 3],
            "aarch64" => &[183, 40],
            _ => return Ok(()),
        };
        if !wanted.contains(&machine) {
            return Err(refused(format!(
                "program {name:?}: built for another processor (ELF machine {machine}), this host is {}; build it for \
                 this host",
                std::env::consts::ARCH
            )));
        }
    }
    if head.starts_with(b"\xcf\xfa\xed\xfe") || head.starts_with(b"MZ") {
        return Err(refused(format!(
            "program {name:?}: built for another system ({}); build it for Linux",
            if head.starts_with(b"MZ") { "Windows" } else { "macOS" }
        )));
    }
    Ok(())
}

/// The Python for a script whose own, by its first line, is not on this host.
fn python_for(project: &Project<'_>, head: &[u8]) -> Option<PathBuf> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.lines();
    let first = lines.next()?.strip_prefix("#!")?.trim();
    let is_python = |path: &str| {
        Path::new(path).file_name().is_some_and(|name| name.to_string_lossy().starts_with("python"))
    };
    // pip writes paths that are too long for the kernel behind a line for the shell.
    let named = lines.next().and_then(crate::package::venv::quoted).unwrap_or(first);
    (is_python(named) && !Path::new(named).exists()).then(|| project.python.program(project.config)).flatten()
}

/// How a file of the package is run: itself, or by an interpreter where it lacks its executable bit.
pub(super) fn run_file(project: &mut Project<'_>, file: &Path, said: &str) -> Result<(PathBuf, Vec<String>)> {
    let name = file_name(file);
    let path = file.display().to_string();
    let head = head(file);
    let executable = is_executable(file);
    if executable && (head.starts_with(b"#!") || !has_extension(file, "sh")) {
        // What pip or a virtual environment of another machine left: any Python of the package's will do.
        if let Some(python) = python_for(project, &head) {
            return Ok((python, vec![path]));
        }
        check_program(file)?;
        return Ok((file.to_path_buf(), Vec::new()));
    }
    let by = |project: &mut Project<'_>, program: PathBuf, mut args: Vec<String>| {
        if !executable {
            project.note(format!("{name} has no executable bit: it is run by {}", file_name(&program)));
        }
        args.push(path.clone());
        Ok((program, args))
    };
    if head.starts_with(b"#!") {
        check_program(file)?;
        let line = String::from_utf8_lossy(&head[2..]).lines().next().unwrap_or_default().to_owned();
        let mut words = line.split_whitespace();
        let program = PathBuf::from(words.next().unwrap_or_default());
        let args = words.map(str::to_owned).collect();
        return by(project, program, args);
    }
    if has_extension(file, "sh") {
        let sh = interpreter(project.config, &["sh"], &name)?;
        return by(project, sh, Vec::new());
    }
    if !executable {
        return Err(refused(format!(
            "{said}: it is not executable; set its executable bit (chmod +x) before packing, or name its interpreter \
             first"
        )));
    }
    check_program(file)?;
    Ok((file.to_path_buf(), Vec::new()))
}

pub(super) fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|found| found == extension)
}
