//! Programs that are built, in Go, Rust or anything else, and scripts of the shell.

use std::path::PathBuf;

use sas_core::Result;

use super::{
    Project, Start, file_name,
    host::{has_extension, head, is_executable, run_file},
};
use crate::package::error::refused;

/// Names that say that a program is the one that is started.
const START: [&str; 10] = [
    "start",
    "start.sh",
    "run",
    "run.sh",
    "server",
    "main",
    "app",
    "bootstrap",
    "entrypoint.sh",
    "docker-entrypoint.sh",
];

/// The executable program at the root, or where the tools of Go and Rust leave it.
pub(super) fn at_root(project: &mut Project<'_>) -> Result<Option<Start>> {
    let is_program = |path: &PathBuf| {
        let head = head(path);
        is_executable(path)
            && (head.starts_with(b"\x7fELF") || head.starts_with(b"#!") || has_extension(path, "sh"))
    };
    let mut programs: Vec<PathBuf> = project.files.iter().filter(|path| is_program(path)).cloned().collect();
    for dir in ["bin", "target/release"] {
        if !programs.is_empty() || (dir == "target/release" && !project.has("Cargo.toml")) {
            break;
        }
        let entries = std::fs::read_dir(project.root.join(dir)).into_iter().flatten().flatten();
        programs =
            entries.map(|entry| entry.path()).filter(|path| path.is_file() && is_program(path)).collect();
        programs.sort();
    }
    let found = match programs.as_slice() {
        [] => return Ok(None),
        [only] => only.clone(),
        several => {
            let said = START.iter().find_map(|name| several.iter().find(|path| file_name(path) == *name));
            let Some(said) = said else {
                let names: Vec<_> = several.iter().map(|path| project.shown(path)).collect();
                return Err(refused(format!(
                    "the package has several programs ({}); set command: [./<one of them>], or write a Procfile",
                    names.join(", ")
                )));
            };
            for other in several.iter().filter(|path| *path != said) {
                project.note(format!(
                    "{} was not started, but {}",
                    project.shown(other),
                    project.shown(said)
                ));
            }
            said.clone()
        }
    };
    let said = project.shown(&found);
    let (program, args) = run_file(project, &found, &said)?;
    Ok(Some(Start::Program { program, args }))
}

/// A script of the shell without its executable bit, as archives of other systems hold it.
pub(super) fn scripts(project: &mut Project<'_>) -> Result<Option<Start>> {
    let scripts: Vec<PathBuf> = project
        .files
        .iter()
        .filter(|path| {
            path.is_file() && (has_extension(path, "sh") || START.contains(&file_name(path).as_str()))
        })
        .filter(|path| has_extension(path, "sh") || head(path).starts_with(b"#!"))
        .cloned()
        .collect();
    let said = START.iter().find_map(|name| scripts.iter().find(|path| file_name(path) == *name));
    let script = match (said, scripts.as_slice()) {
        (Some(said), _) => said.clone(),
        (None, [only]) => only.clone(),
        (None, []) => return Ok(None),
        (None, several) => {
            let names: Vec<_> = several.iter().map(|path| project.shown(path)).collect();
            return Err(refused(format!(
                "the package has several scripts ({}); set command: [sh, <one of them>], or write a Procfile",
                names.join(", ")
            )));
        }
    };
    let name = project.shown(&script);
    let (program, args) = run_file(project, &script, &name)?;
    Ok(Some(Start::Program { program, args }))
}

/// What a package of mere source is told.
pub(super) fn source_only(project: &Project<'_>) -> Option<&'static str> {
    [
        (
            "go.mod",
            "it is the source of a Go program: build it (CGO_ENABLED=0 go build -o app) and pack the program",
        ),
        (
            "Cargo.toml",
            "it is the source of a Rust program: build it (cargo build --release) and pack the program",
        ),
        ("pom.xml", "it is the source of a Java program: build it (mvn package) and pack it with target"),
        (
            "build.gradle",
            "it is the source of a Java program: build it (gradle build) and pack it with build/libs",
        ),
        (
            "build.gradle.kts",
            "it is the source of a Java program: build it (gradle build) and pack it with build/libs",
        ),
        (
            "tsconfig.json",
            "it is the source of a TypeScript program: build it, and give package.json a start script",
        ),
        (
            "Dockerfile",
            "a Dockerfile describes an image: build it and deploy the image where a container runtime is",
        ),
    ]
    .into_iter()
    .find_map(|(file, advice)| project.has(file).then_some(advice))
}
