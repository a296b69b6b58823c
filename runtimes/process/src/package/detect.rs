//! How a package is started: what the spec says, else what the package is.

use std::{
    fs,
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use sas_core::{Result, RevisionSpec};

use super::{
    archive::{disk, refused},
    store::{Kind, Package},
};
use crate::config::ProcessConfig;

/// What is run, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Launch {
    /// Absolute, so that a start never searches.
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) cwd: PathBuf,
    /// Directories before the `PATH` of the configuration.
    pub(crate) path_prefix: Option<PathBuf>,
    /// Set when it is `java -jar` of a jar that was found here.
    pub(crate) jar: Option<PathBuf>,
}

/// Searches the directories of the configured `PATH` for an executable file.
pub(crate) fn search(path: &str, name: &str) -> Option<PathBuf> {
    path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

/// Finds out how to start `package`.
pub(crate) fn launch(package: &Package, spec: &RevisionSpec, config: &ProcessConfig) -> Result<Launch> {
    let root = effective_root(package.dir())?;
    let cwd = match &spec.working_dir {
        None => root.clone(),
        Some(dir) => {
            let cwd = root.join(dir);
            let real =
                fs::canonicalize(&cwd).ok().filter(|real| real.is_dir() && real.starts_with(package.dir()));
            real.ok_or_else(|| {
                refused(format!(
                    "working_dir {dir:?}: no such directory in the package; name one that it has"
                ))
            })?
        }
    };
    let mut launch = if spec.command.is_empty() {
        detect(package, &root, &cwd, config)?
    } else {
        explicit(&spec.command, &root, &cwd, config)?
    };
    launch.args.extend(spec.args.iter().cloned());
    Ok(launch)
}

/// Archives of a project directory hold that one directory and nothing else: that is the root then.
fn effective_root(dir: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(dir).map_err(|error| disk("read", dir, error))?.flatten();
    if let (Some(only), None) = (entries.next(), entries.next())
        && only.file_type().is_ok_and(|kind| kind.is_dir())
    {
        return Ok(only.path());
    }
    Ok(dir.to_path_buf())
}

fn explicit(command: &[String], root: &Path, cwd: &Path, config: &ProcessConfig) -> Result<Launch> {
    let name = command[0].as_str();
    let program = if name.contains('/') {
        let from_cwd = cwd.join(name);
        let found = if from_cwd.exists() { from_cwd } else { root.join(name) };
        if !found.exists() {
            return Err(refused(format!(
                "command {name:?}: no such file in the package (nor on this host, if it is absolute); name a program \
                 that the package holds, or one of the PATH {}",
                config.path
            )));
        }
        if !is_executable(&found) {
            return Err(refused(format!(
                "command {name:?}: it is not executable; set its executable bit (chmod +x) before packing, or name \
                 its interpreter first"
            )));
        }
        found
    } else if name.is_empty() {
        return Err(refused("command \"\": name a program, or leave the command out to have it found"));
    } else {
        let in_package = cwd.join(name);
        match search(&config.path, name) {
            Some(found) => found,
            None if is_executable(&in_package) => in_package,
            None => {
                return Err(refused(format!(
                    "command {name:?}: not found in {} nor in the package; install it, or write ./{name} for a file of \
                     the package",
                    config.path
                )));
            }
        }
    };
    check_program(&program)?;
    // `java -jar some.jar` said explicitly is the same as found.
    let jar = match command {
        [java, flag, jar] if is_java(java) && flag == "-jar" => {
            Some(cwd.join(jar)).filter(|jar| jar.is_file())
        }
        _ => None,
    };
    let args = match &jar {
        Some(_) => Vec::new(),
        None => command[1..].to_vec(),
    };
    Ok(Launch { program, args, cwd: cwd.to_path_buf(), path_prefix: None, jar })
}

fn is_java(name: &str) -> bool {
    name == "java" || name.ends_with("/java")
}

/// What the kernel would refuse to run, in words.
fn check_program(program: &Path) -> Result<()> {
    let mut head = Vec::new();
    let file = fs::File::open(program).map_err(|error| disk("read", program, error))?;
    file.take(256).read_to_end(&mut head).map_err(|error| disk("read", program, error))?;
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
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
    Ok(())
}

fn interpreter(config: &ProcessConfig, names: &[&str], what: &str) -> Result<PathBuf> {
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

fn detect(package: &Package, root: &Path, cwd: &Path, config: &ProcessConfig) -> Result<Launch> {
    let plain = |program: PathBuf, args: Vec<String>| Launch {
        program,
        args,
        cwd: cwd.to_path_buf(),
        path_prefix: None,
        jar: None,
    };
    match package.kind() {
        Kind::Jar => return jar(root.join("app.jar"), cwd, config),
        Kind::Python => {
            return Ok(plain(interpreter(config, &["python3"], "main.py")?, python(&root.join("main.py"))));
        }
        Kind::Node => {
            let main = root.join("main.js").display().to_string();
            return Ok(plain(interpreter(config, &["node", "nodejs"], "main.js")?, vec![main]));
        }
        Kind::Program => {
            let program = root.join("program");
            check_program(&program)?;
            return Ok(plain(program, Vec::new()));
        }
        Kind::Tree | Kind::TarGz | Kind::Tar | Kind::Zip => {}
    }
    let mut files: Vec<PathBuf> = fs::read_dir(root)
        .map_err(|error| disk("read", root, error))?
        .flatten()
        .map(|entry| entry.path())
        .collect();
    files.sort();
    let jars: Vec<&PathBuf> = files
        .iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "jar") && path.is_file())
        .filter(|path| crate::jvm::Manifest::read(path).is_ok_and(|manifest| manifest.main_class().is_some()))
        .collect();
    match jars.as_slice() {
        [] => {}
        [only] => return jar((*only).clone(), cwd, config),
        several => {
            let names: Vec<_> = several.iter().map(|path| file_name(path)).collect();
            return Err(refused(format!(
                "the package has several jars with a Main-Class ({}); set command: [java, -jar, <one of them>]",
                names.join(", ")
            )));
        }
    }
    if root.join("package.json").is_file() {
        return node(root, cwd, config);
    }
    for name in ["main.py", "app.py"] {
        let main = root.join(name);
        if main.is_file() {
            return Ok(plain(interpreter(config, &["python3"], name)?, python(&main)));
        }
    }
    let programs: Vec<&PathBuf> = files
        .iter()
        .filter(|path| is_executable(path))
        .filter(|path| {
            let mut head = [0u8; 4];
            fs::File::open(path).and_then(|mut file| file.read_exact(&mut head)).is_ok()
                && (&head == b"\x7fELF" || head.starts_with(b"#!"))
        })
        .collect();
    match programs.as_slice() {
        [only] => {
            check_program(only)?;
            Ok(plain((*only).clone(), Vec::new()))
        }
        [] => Err(refused(
            "no way to start the package was found: it has no jar with a Main-Class, no package.json, no main.py or \
             app.py and no executable program at its root; add one of these, or set the command",
        )),
        several => {
            let names: Vec<_> = several.iter().map(|path| file_name(path)).collect();
            Err(refused(format!(
                "the package has several programs at its root ({}); set command: [./<one of them>]",
                names.join(", ")
            )))
        }
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Unbuffered, so that a line is in the log when it was printed.
fn python(main: &Path) -> Vec<String> {
    vec!["-u".into(), main.display().to_string()]
}

fn jar(jar: PathBuf, cwd: &Path, config: &ProcessConfig) -> Result<Launch> {
    let manifest = crate::jvm::Manifest::read(&jar)?;
    if manifest.main_class().is_none() {
        return Err(refused(format!(
            "jar {:?}: its META-INF/MANIFEST.MF names no Main-Class; build it with one (jar --main-class), or set \
             command: [java, -cp, {}, <the class>]",
            file_name(&jar),
            file_name(&jar)
        )));
    }
    Ok(Launch {
        program: java(config)?,
        args: Vec::new(),
        cwd: cwd.to_path_buf(),
        path_prefix: None,
        jar: Some(jar),
    })
}

fn node(root: &Path, cwd: &Path, config: &ProcessConfig) -> Result<Launch> {
    let path = root.join("package.json");
    let text = fs::read(&path).map_err(|error| disk("read", &path, error))?;
    let json: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| refused(format!("package.json: not valid JSON ({error}); mend it")))?;
    let bin = root.join("node_modules/.bin");
    let path_prefix = bin.is_dir().then_some(bin);
    if let Some(start) = json.pointer("/scripts/start") {
        let start = start.as_str().map(str::trim).filter(|start| !start.is_empty()).ok_or_else(|| {
            refused(format!(
                "package.json: scripts.start is {start}; it must be a command such as \"node server.js\""
            ))
        })?;
        let words: Vec<&str> = start.split_whitespace().collect();
        let simple = !start.contains(|c: char| "|&;<>()$`\\\"'*?[]#~=%{}\n".contains(c));
        if simple && words[0] == "node" {
            if let Some(script) = words.iter().skip(1).find(|word| !word.starts_with('-'))
                && resolve_node(cwd, script).is_none()
            {
                return Err(refused(format!(
                    "package.json: scripts.start runs {script:?}, which is not in the package; pack it, or mend the \
                     script"
                )));
            }
            let program = interpreter(config, &["node", "nodejs"], "package.json")?;
            let args = words[1..].iter().map(|word| (*word).to_owned()).collect();
            return Ok(Launch { program, args, cwd: cwd.to_path_buf(), path_prefix, jar: None });
        }
        // As npm does: a shell, with the package's own programs in its PATH.
        interpreter(config, &["node", "nodejs"], "package.json")?;
        let first = words[0];
        let found = search(&config.path, first).is_some()
            || path_prefix.as_ref().is_some_and(|bin| bin.join(first).exists())
            || cwd.join(first).exists();
        if simple && !found {
            return Err(refused(format!(
                "package.json: scripts.start runs {first:?}, which is neither in node_modules/.bin nor in {}; pack it \
                 with its dependencies installed",
                config.path
            )));
        }
        let script = if simple { format!("exec {start}") } else { start.to_owned() };
        return Ok(Launch {
            program: interpreter(config, &["sh"], "scripts.start")?,
            args: vec!["-c".into(), script],
            cwd: cwd.to_path_buf(),
            path_prefix,
            jar: None,
        });
    }
    let main = json.get("main").and_then(serde_json::Value::as_str).unwrap_or("index.js");
    let Some(main) = resolve_node(root, main) else {
        return Err(refused(format!(
            "package.json: it has no scripts.start, and its main {main:?} is not in the package; set one of them"
        )));
    };
    Ok(Launch {
        program: interpreter(config, &["node", "nodejs"], "package.json")?,
        args: vec![main.display().to_string()],
        cwd: cwd.to_path_buf(),
        path_prefix,
        jar: None,
    })
}

fn resolve_node(root: &Path, main: &str) -> Option<PathBuf> {
    ["", ".js", ".mjs", ".cjs", "/index.js"]
        .iter()
        .map(|suffix| root.join(format!("{main}{suffix}")))
        .find(|path| path.is_file())
}
