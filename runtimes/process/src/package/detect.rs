//! How a package is started: what the spec says, else what the project says of itself, else what its files are.
//!
//! `docs/packages.md` has the order for users. A detector says `None` when the project is none of its kind, an error
//! when it certainly is and cannot start, and notes what it passed over.

mod host;
mod java;
mod node;
mod php;
mod procfile;
mod program;
mod python;
mod ruby;
#[cfg(test)]
mod tests;
mod words;

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

pub(crate) use host::{java, search};
use sas_core::{
    Result, RevisionSpec,
    package::{is_clutter, without_mark},
};

use self::host::{check_program, interpreter, is_executable, run_file};
use super::{
    error::{disk, refused},
    store::{Kind, Package},
};
use crate::config::ProcessConfig;

/// The longest file of a project that is read to find out how it starts.
const MAX_TEXT: u64 = 1 << 20;

/// What is run, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Absolute, so that a start never searches.
    pub(crate) program: PathBuf,
    /// Before variables are expanded.
    pub(crate) args: Vec<String>,
    pub(crate) cwd: PathBuf,
    /// Directories before the `PATH` of the configuration.
    pub(crate) path_prefix: Vec<PathBuf>,
    /// Variables that the kind of project expects; what a spec declares goes before. Before variables are expanded.
    pub(crate) env: Vec<(String, String)>,
    /// Set when it is `java -jar` of a jar that was found here.
    pub(crate) jar: Option<PathBuf>,
    /// What was passed over, and what is only tried.
    pub(crate) notes: Vec<String>,
}

/// How a project starts.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Start {
    Program { program: PathBuf, args: Vec<String> },
    Shell { shell: PathBuf, script: String },
    Jar { jar: PathBuf, args: Vec<String> },
}

impl Start {
    fn program(program: impl Into<PathBuf>, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self::Program { program: program.into(), args: args.into_iter().map(Into::into).collect() }
    }
}

/// A package that is looked at.
#[derive(Debug)]
struct Project<'a> {
    root: PathBuf,
    cwd: PathBuf,
    config: &'a ProcessConfig,
    /// What stands at the root, by name, without what desktops leave.
    files: Vec<PathBuf>,
    /// Directories of programs that the project brings.
    bins: Vec<PathBuf>,
    env: Vec<(String, String)>,
    python: python::Home,
    notes: Vec<String>,
}

impl<'a> Project<'a> {
    fn open(root: PathBuf, cwd: PathBuf, config: &'a ProcessConfig) -> Result<Self> {
        let mut files: Vec<PathBuf> = fs::read_dir(&root)
            .map_err(|error| disk("read", &root, error))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| !is_left_behind(&file_name(path)))
            .collect();
        files.sort();
        let mut project = Self {
            root,
            cwd,
            config,
            files,
            bins: Vec::new(),
            env: Vec::new(),
            python: python::Home::default(),
            notes: Vec::new(),
        };
        for base in [&project.cwd, &project.root] {
            let bin = base.join("node_modules/.bin");
            if bin.is_dir() && !project.bins.contains(&bin) {
                project.bins.push(bin);
            }
        }
        python::surround(&mut project);
        Ok(project)
    }

    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    fn has(&self, name: &str) -> bool {
        self.root.join(name).is_file()
    }

    /// The text of a file at the root; `None` if there is none.
    fn text(&self, name: &str) -> Result<Option<String>> {
        let path = self.root.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        let file = fs::File::open(&path).map_err(|error| disk("read", &path, error))?;
        let mut text = Vec::new();
        file.take(MAX_TEXT + 1).read_to_end(&mut text).map_err(|error| disk("read", &path, error))?;
        if text.len() as u64 > MAX_TEXT {
            return Err(refused(format!(
                "{name}: longer than {MAX_TEXT} bytes; shorten it, or set the command"
            )));
        }
        if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
            return Err(refused(format!("{name}: its text is UTF-16; save it as UTF-8")));
        }
        Ok(Some(without_mark(&String::from_utf8_lossy(&text)).to_owned()))
    }

    /// A program that the project brings, or the host has.
    fn find(&self, name: &str) -> Option<PathBuf> {
        let own = self.bins.iter().map(|bin| bin.join(name)).find(|path| path.is_file());
        let also = match name {
            "java" => java(self.config).ok(),
            "python" => self.python.program(self.config),
            "node" => search(&self.config.path, "nodejs"),
            _ => None,
        };
        own.or_else(|| search(&self.config.path, name)).or(also)
    }

    /// Reads a command line. One that only a shell can read is given to the first of `shells` that the host has, and
    /// tried; of another it is known whether its program is there.
    fn command_line(&mut self, said: &str, line: &str, shells: &[&str]) -> Result<Start> {
        let simple = words::simple(line).filter(|command| {
            let first = &command.words[0];
            !first.contains('$') && (self.find(first).is_some() || !words::is_builtin(first))
        });
        let Some(command) = simple else {
            let shell = interpreter(self.config, shells, said)?;
            return Ok(Start::Shell { shell, script: line.to_owned() });
        };
        let first = command.words[0].as_str();
        let file = if first.contains('/') {
            Some(below(&self.cwd, first)).filter(|path| path.is_file()).ok_or_else(|| {
                refused(format!(
                    "{said} runs {first:?}, which is not in the package; pack it, or mend the command"
                ))
            })?
        } else {
            self.find(first).ok_or_else(|| {
                refused(format!(
                    "{said} runs {first:?}, which is neither in the package ({}) nor in {}; pack the project with its \
                     dependencies installed, or install {first} on this host",
                    if self.bins.is_empty() {
                        "which has no node_modules/.bin, virtual environment or other directory of programs".to_owned()
                    } else {
                        let bins = self.bins.iter().map(|bin| self.shown(bin)).collect::<Vec<_>>();
                        bins.join(", ")
                    },
                    self.config.path
                ))
            })?
        };
        self.env.extend(command.env);
        let (program, mut args) = if file.starts_with(&self.root) {
            run_file(self, &file, &format!("{said}: {first:?}"))?
        } else {
            (file, Vec::new())
        };
        if is_java(first)
            && command.words.get(1).is_some_and(|word| word == "-jar")
            && let Some(jar) = command.words.get(2).map(|jar| self.cwd.join(jar)).filter(|jar| jar.is_file())
        {
            java::expect(self, &jar)?;
            return Ok(Start::Jar { jar, args: command.words[3..].to_vec() });
        }
        args.extend(command.words.into_iter().skip(1));
        Ok(Start::Program { program, args })
    }

    /// A path as a user of the package knows it.
    fn shown(&self, path: &Path) -> String {
        path.strip_prefix(&self.root).unwrap_or(path).display().to_string()
    }
}

/// Tried in this order; `docs/packages.md` repeats it.
type Detector = fn(&mut Project<'_>) -> Result<Option<Start>>;
const DETECTORS: [Detector; 9] = [
    procfile::detect,
    java::at_root,
    node::detect,
    python::detect,
    ruby::detect,
    php::detect,
    java::built,
    program::at_root,
    program::scripts,
];

/// Finds out how to start `package`.
pub(crate) fn launch(package: &Package, spec: &RevisionSpec, config: &ProcessConfig) -> Result<Launch> {
    launch_in(package.dir(), package.kind(), spec, config)
}

fn launch_in(dir: &Path, kind: Kind, spec: &RevisionSpec, config: &ProcessConfig) -> Result<Launch> {
    let root = effective_root(dir)?;
    let cwd = match &spec.working_dir {
        None => root.clone(),
        Some(named) => {
            let cwd = root.join(named);
            let real = fs::canonicalize(&cwd).ok().filter(|real| real.is_dir() && real.starts_with(dir));
            real.ok_or_else(|| {
                refused(format!(
                    "working_dir {named:?}: no such directory in the package; name one that it has"
                ))
            })?
        }
    };
    let mut project = Project::open(root, cwd, config)?;
    let start = if spec.command.is_empty() {
        detect(&mut project, kind)?
    } else {
        explicit(&spec.command, &mut project)?
    };
    let (program, mut args, jar) = match start {
        Start::Program { program, args } => (program, args, None),
        Start::Shell { shell, script } => {
            // A `$` is the shell's.
            let mut script = script.replace('$', "$$");
            let mut args = vec!["-c".to_owned()];
            if spec.args.is_empty() {
                args.push(script);
            } else {
                script.push_str(" \"$$@\"");
                args.extend([script, file_name(&shell)]);
            }
            (shell, args, None)
        }
        Start::Jar { jar, args } => (java(config)?, args, Some(jar)),
    };
    args.extend(spec.args.iter().cloned());
    Ok(Launch {
        program,
        args,
        cwd: project.cwd,
        path_prefix: project.bins,
        env: project.env,
        jar,
        notes: project.notes,
    })
}

fn is_left_behind(name: &str) -> bool {
    is_clutter(name) || name.starts_with("._")
}

/// Archives of a project directory hold that one directory and nothing else: that is the root then.
fn effective_root(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir)
        .map_err(|error| disk("read", dir, error))?
        .flatten()
        .filter(|entry| !is_left_behind(&entry.file_name().to_string_lossy()));
    if let (Some(only), None) = (entries.next(), entries.next())
        && only.file_type().is_ok_and(|kind| kind.is_dir())
    {
        return Ok(only.path());
    }
    Ok(dir.to_path_buf())
}

fn explicit(command: &[String], project: &mut Project<'_>) -> Result<Start> {
    let name = command[0].as_str();
    let said = format!("command {name:?}");
    let file = if name.contains('/') {
        let from_cwd = below(&project.cwd, name);
        let found = if from_cwd.exists() { from_cwd } else { below(&project.root, name) };
        if !found.exists() {
            return Err(refused(format!(
                "{said}: no such file in the package (nor on this host, if it is absolute); name a program that the \
                 package holds, or one of the PATH {}",
                project.config.path
            )));
        }
        found
    } else if name.is_empty() {
        return Err(refused("command \"\": name a program, or leave the command out to have it found"));
    } else {
        let in_package = project.cwd.join(name);
        match project.find(name) {
            Some(found) => found,
            None if is_executable(&in_package) => in_package,
            None => {
                return Err(refused(format!(
                    "{said}: not found in {} nor in the package; install it, or write ./{name} for a file of the \
                     package",
                    project.config.path
                )));
            }
        }
    };
    let (program, mut args) = if file.starts_with(&project.root) {
        run_file(project, &file, &said)?
    } else if is_executable(&file) {
        check_program(&file)?;
        (file, Vec::new())
    } else {
        return Err(refused(format!("{said}: it is not executable on this host")));
    };
    // `java -jar some.jar` said explicitly is the same as found; but its java is the one that was named.
    if let [java, flag, jar, rest @ ..] = command
        && is_java(java)
        && flag == "-jar"
        && let Some(jar) = Some(project.cwd.join(jar)).filter(|jar| jar.is_file())
        && args.is_empty()
    {
        java::expect(project, &jar)?;
        if self::java(project.config).is_ok_and(|found| found == program) {
            return Ok(Start::Jar { jar, args: rest.to_vec() });
        }
    }
    args.extend(command[1..].iter().cloned());
    Ok(Start::Program { program, args })
}

/// `name` in `dir`, without the `./` that people write before it.
fn below(dir: &Path, name: &str) -> PathBuf {
    dir.join(name.strip_prefix("./").unwrap_or(name))
}

fn is_java(name: &str) -> bool {
    name == "java" || name.ends_with("/java")
}

fn detect(project: &mut Project<'_>, kind: Kind) -> Result<Start> {
    match kind {
        Kind::Jar => return java::jar(project, project.root.join("app.jar")),
        Kind::Python => {
            let program = interpreter(project.config, &["python3"], "main.py")?;
            return Ok(Start::program(program, python::script(&project.root.join("main.py"))));
        }
        Kind::Node => {
            let program = interpreter(project.config, &["node", "nodejs"], "main.js")?;
            return Ok(Start::program(program, [project.root.join("main.js").display().to_string()]));
        }
        Kind::Program => {
            let program = project.root.join("program");
            check_program(&program)?;
            return Ok(Start::Program { program, args: Vec::new() });
        }
        Kind::Tree | Kind::TarGz | Kind::Tar | Kind::Zip => {}
    }
    for detector in DETECTORS {
        if let Some(start) = detector(project)? {
            return Ok(start);
        }
    }
    let mut problem = String::from(
        "no way to start the package was found: it has no Procfile, no jar with a Main-Class, no package.json with a \
         start script, main, server.js or index.js, no main.py, app.py or manage.py, no config.ru, no index.php and no \
         executable program at its root",
    );
    if let Some(source) = program::source_only(project) {
        problem.push_str("; ");
        problem.push_str(source);
    }
    for note in &project.notes {
        problem.push_str("; ");
        problem.push_str(note);
    }
    problem.push_str("; add one of these, or set the command");
    Err(refused(problem))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
