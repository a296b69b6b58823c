//! Java: executable jars, exploded ones, and the start scripts that Gradle and others make.

use std::path::{Path, PathBuf};

use sas_core::Result;

use super::{
    Project, Start, file_name,
    host::{has_extension, head, run_file},
};
use crate::{jvm::Manifest, package::error::refused};

/// A jar with a `Main-Class` at the root, or a jar that was unpacked there.
pub(super) fn at_root(project: &mut Project<'_>) -> Result<Option<Start>> {
    if let Some(jar) = only_jar(project, &project.files.clone(), "the package")? {
        return jar_start(project, jar).map(Some);
    }
    let path = project.root.join("META-INF/MANIFEST.MF");
    let Some(text) = project.text("META-INF/MANIFEST.MF")? else { return Ok(None) };
    let manifest = Manifest::parse(&text);
    let Some(main) = manifest.main_class().map(str::to_owned) else {
        project.note(format!("{} names no Main-Class and was not looked at", project.shown(&path)));
        return Ok(None);
    };
    if !main.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._$".contains(&byte)) {
        return Err(refused(format!(
            "META-INF/MANIFEST.MF: Main-Class {main:?} is no name of a class; mend it"
        )));
    }
    expect_framework(project, &manifest);
    let mut args = project.config.java.options.clone();
    args.extend(["-cp".into(), project.root.display().to_string(), main.replace('$', "$$")]);
    Ok(Some(Start::Program { program: super::java(project.config)?, args }))
}

/// What a build left in its own directories: `target`, `build/libs`, or `bin` with start scripts and `lib`.
pub(super) fn built(project: &mut Project<'_>) -> Result<Option<Start>> {
    for dir in ["target", "build/libs"] {
        let files = listing(&project.root.join(dir));
        if let Some(jar) = only_jar(project, &files, dir)? {
            return jar_start(project, jar).map(Some);
        }
    }
    let libraries = listing(&project.root.join("lib"));
    if !libraries.iter().any(|path| has_extension(path, "jar")) {
        return Ok(None);
    }
    let scripts: Vec<PathBuf> = listing(&project.root.join("bin"))
        .into_iter()
        .filter(|path| path.is_file() && !has_extension(path, "bat") && head(path).starts_with(b"#!"))
        .collect();
    let script = match scripts.as_slice() {
        [] => return Ok(None),
        [only] => only.clone(),
        several => {
            let root = file_name(&project.root);
            let of_project = several.iter().find(|path| root.starts_with(&file_name(path)));
            of_project.cloned().ok_or_else(|| {
                let names: Vec<_> = several.iter().map(|path| project.shown(path)).collect();
                refused(format!(
                    "the package has several start scripts ({}); set command: [{}], or write a Procfile",
                    names.join(", "),
                    names[0]
                ))
            })?
        }
    };
    // It looks for JAVA_HOME, then for java.
    super::java(project.config)?;
    if let Some(home) = &project.config.java.home {
        project.env.push(("JAVA_HOME".into(), home.display().to_string()));
    }
    for (library, variable) in
        [("spring-boot-", "SERVER_PORT"), ("com.typesafe.play.play-server", "PLAY_HTTP_PORT")]
    {
        if libraries.iter().any(|path| file_name(path).starts_with(library)) {
            project.env.push((variable.into(), "$(PORT)".into()));
        }
    }
    let said = project.shown(&script);
    let (program, args) = run_file(project, &script, &said)?;
    Ok(Some(Start::Program { program, args }))
}

/// The one jar with a `Main-Class` among `files`.
fn only_jar(project: &mut Project<'_>, files: &[PathBuf], place: &str) -> Result<Option<PathBuf>> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for path in files.iter().filter(|path| has_extension(path, "jar") && path.is_file()) {
        match Manifest::read(path) {
            Ok(manifest) if manifest.main_class().is_some() => with.push(path),
            Ok(_) => without.push(format!("{} names no Main-Class", project.shown(path))),
            Err(error) => without.push(error.message),
        }
    }
    match with.as_slice() {
        [] => {
            for why in without {
                project.note(format!("{why}: it was not looked at"));
            }
            Ok(None)
        }
        [only] => Ok(Some((*only).clone())),
        several => {
            let names: Vec<_> = several.iter().map(|path| file_name(path)).collect();
            Err(refused(format!(
                "{place} has several jars with a Main-Class ({}); set command: [java, -jar, <one of them>]",
                names.join(", ")
            )))
        }
    }
}

/// `java -jar` of a jar that must be executable.
pub(super) fn jar(project: &mut Project<'_>, jar: PathBuf) -> Result<Start> {
    let manifest = Manifest::read(&jar)?;
    if manifest.main_class().is_none() {
        return Err(refused(format!(
            "jar {:?}: its META-INF/MANIFEST.MF names no Main-Class; build it with one (jar --main-class), or set \
             command: [java, -cp, {}, <the class>]",
            file_name(&jar),
            file_name(&jar)
        )));
    }
    jar_start(project, jar)
}

fn jar_start(project: &mut Project<'_>, jar: PathBuf) -> Result<Start> {
    expect(project, &jar)?;
    Ok(Start::Jar { jar, args: Vec::new() })
}

/// Tells the framework of a jar the port in the variable that it reads.
pub(super) fn expect(project: &mut Project<'_>, jar: &Path) -> Result<()> {
    let manifest = Manifest::read(jar)?;
    expect_framework(project, &manifest);
    Ok(())
}

fn expect_framework(project: &mut Project<'_>, manifest: &Manifest) {
    let main = manifest.main_class().unwrap_or_default();
    let variable = if manifest.get("Spring-Boot-Version").is_some()
        || main.starts_with("org.springframework.boot.loader.")
    {
        "SERVER_PORT"
    } else if main.starts_with("io.quarkus.") {
        "QUARKUS_HTTP_PORT"
    } else {
        return;
    };
    project.env.push((variable.into(), "$(PORT)".into()));
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}
