//! Python: Django, applications behind a WSGI or ASGI server that the project names, and scripts.

use std::path::{Path, PathBuf};

use sas_core::Result;

use super::{Project, Start, file_name, host};
use crate::config::ProcessConfig;

/// Where a project's Python and its packages are.
#[derive(Debug, Default)]
pub(super) struct Home {
    /// The interpreter of its virtual environment.
    own: Option<PathBuf>,
    /// Directories of installed packages that it brings.
    sites: Vec<PathBuf>,
    /// The texts in which it names what it needs, without comments.
    needs: String,
}

impl Home {
    pub(super) fn program(&self, config: &ProcessConfig) -> Option<PathBuf> {
        let host = || ["python3", "python"].iter().find_map(|name| host::search(&config.path, name));
        self.own.clone().or_else(host)
    }
}

/// Unbuffered, so that a line is in the log when it was printed.
pub(super) fn script(main: &Path) -> Vec<String> {
    vec!["-u".into(), main.display().to_string()]
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Whether packages were installed into a directory, as `pip install --target` does.
fn holds_packages(dir: &Path) -> bool {
    children(dir).iter().any(|path| host::has_extension(path, "dist-info") && path.is_dir())
}

/// `lib/pythonX.Y/site-packages` of a prefix, and what Debian calls them.
fn sites_of(prefix: &Path) -> Vec<PathBuf> {
    let versions = children(&prefix.join("lib"))
        .into_iter()
        .filter(|path| file_name(path).starts_with("python") || file_name(path).starts_with("pypy"));
    versions
        .flat_map(|dir| [dir.join("site-packages"), dir.join("dist-packages")])
        .filter(|site| site.is_dir())
        .collect()
}

/// Looks for the project's virtual environment and vendored packages, and makes them known to its programs.
pub(super) fn surround(project: &mut Project<'_>) {
    const NEEDS: [&str; 7] = [
        "requirements.txt",
        "pyproject.toml",
        "Pipfile",
        "setup.cfg",
        "setup.py",
        "environment.yml",
        "requirements/production.txt",
    ];
    let root = project.root.clone();
    let environment = [".venv", "venv", "env"]
        .map(|name| root.join(name))
        .into_iter()
        .chain(children(&root))
        .find(|dir| dir.join("pyvenv.cfg").is_file());
    let mut vendored: Vec<PathBuf> = std::iter::once(root.clone())
        .chain(children(&root).into_iter().filter(|path| path.is_dir() && !path.is_symlink()))
        .chain(std::iter::once(root.join(".python_packages/lib/site-packages")))
        .chain(children(&root.join("__pypackages__")).into_iter().map(|dir| dir.join("lib")))
        .filter(|dir| holds_packages(dir))
        .collect();
    let needs: Vec<String> = NEEDS.iter().filter_map(|name| project.text(name).ok().flatten()).collect();
    let is_python = environment.is_some()
        || !vendored.is_empty()
        || !needs.is_empty()
        || project.files.iter().any(|path| host::has_extension(path, "py"));
    if !is_python {
        return;
    }
    let uncommented = needs.iter().flat_map(|text| text.lines());
    let uncommented = uncommented.map(|line| line.split('#').next().unwrap_or_default());
    project.python.needs = uncommented.collect::<Vec<_>>().join("\n").to_ascii_lowercase();
    project.env.push(("PYTHONUNBUFFERED".into(), "1".into()));
    let mut paths = vendored.clone();
    if let Some(dir) = environment {
        project.bins.push(dir.join("bin"));
        project.env.push(("VIRTUAL_ENV".into(), dir.display().to_string()));
        let own = ["python3", "python"].map(|name| dir.join("bin").join(name));
        let own = own.into_iter().find(|path| host::is_executable(path));
        let host = ["python3", "python"].iter().find_map(|name| host::search(&project.config.path, name));
        if own.is_none() && !dir.join("bin").is_dir() {
            project.note(format!(
                "the virtual environment {} was made on another system and is not used; make it on Linux",
                project.shown(&dir)
            ));
        }
        let made_with = sites_of(&dir).first().and_then(|site| site.parent().map(file_name));
        let runs = own.as_ref().or(host.as_ref()).and_then(|path| std::fs::canonicalize(path).ok());
        let runs = runs.map(|path| file_name(&path));
        if let (Some(made_with), Some(runs)) = (&made_with, &runs)
            && made_with != runs
            && runs.contains('.')
        {
            project.note(format!(
                "the virtual environment {} was made with {made_with}, this host runs {runs}: its packages are tried \
                 all the same",
                project.shown(&dir)
            ));
            paths.extend(sites_of(&dir));
        } else if own.is_none() {
            paths.extend(sites_of(&dir));
        }
        project.python.own = own;
        vendored.extend(sites_of(&dir));
    }
    for dir in &vendored {
        let bin = dir.join("bin");
        if bin.is_dir() && !project.bins.contains(&bin) {
            project.bins.push(bin);
        }
    }
    if !paths.contains(&root) {
        paths.push(root);
    }
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    project.env.push(("PYTHONPATH".into(), paths.join(":")));
    project.python.sites = vendored;
}

/// What answers requests for an application object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    Wsgi,
    Asgi,
}

/// Servers by what they speak, the best first, with the module that is run and its arguments.
type Server = (&'static str, Interface, fn(&str) -> Vec<String>);
const SERVERS: [Server; 6] = [
    ("uvicorn", Interface::Asgi, |app| {
        words(&["-m", "uvicorn", app, "--host", "127.0.0.1", "--port", "$(PORT)"])
    }),
    ("hypercorn", Interface::Asgi, |app| words(&["-m", "hypercorn", app, "--bind", "127.0.0.1:$(PORT)"])),
    ("daphne", Interface::Asgi, |app| words(&["-m", "daphne", "-b", "127.0.0.1", "-p", "$(PORT)", app])),
    ("gunicorn", Interface::Wsgi, |app| words(&["-m", "gunicorn", app, "--bind", "127.0.0.1:$(PORT)"])),
    ("waitress", Interface::Wsgi, |app| words(&["-m", "waitress", "--listen=127.0.0.1:$(PORT)", app])),
    ("hypercorn", Interface::Wsgi, |app| {
        let app = format!("wsgi:{app}");
        words(&["-m", "hypercorn", &app, "--bind", "127.0.0.1:$(PORT)"])
    }),
];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

pub(super) fn detect(project: &mut Project<'_>) -> Result<Option<Start>> {
    if let Some(text) = project.text("manage.py")?
        && text.contains("django")
    {
        return django(project, &text).map(Some);
    }
    const MAINS: [&str; 12] = [
        "main.py",
        "app.py",
        "wsgi.py",
        "asgi.py",
        "server.py",
        "application.py",
        "run.py",
        "app/main.py",
        "app/__init__.py",
        "src/main.py",
        "src/app.py",
        "__main__.py",
    ];
    for name in MAINS {
        let Some(text) = project.text(name)? else { continue };
        let application = application(&text);
        // In a package only an application counts: a module of another kind may be anything.
        if name.contains('/') && application.is_none() {
            continue;
        }
        return module(project, name, &text, application).map(Some);
    }
    let script = project.text("pyproject.toml")?.and_then(|text| only_script(&text));
    if let Some((name, module, function)) = script {
        let python = python(project, "pyproject.toml")?;
        project.note(format!("it is tried by {name} of project.scripts in pyproject.toml"));
        let code = format!("import sys; from {module} import {function}; sys.exit({function}())");
        return Ok(Some(Start::program(python, ["-u", "-c", &code])));
    }
    if !project.python.needs.is_empty() {
        project.note(
            "it names Python packages, but has no main.py, app.py, manage.py or Procfile that says how it starts",
        );
    }
    Ok(None)
}

fn python(project: &Project<'_>, what: &str) -> Result<PathBuf> {
    match project.python.program(project.config) {
        Some(python) => Ok(python),
        None => host::interpreter(project.config, &["python3"], what),
    }
}

/// Starts the module `name`, whose text is `text`.
fn module(
    project: &mut Project<'_>,
    name: &str,
    text: &str,
    application: Option<(String, Interface)>,
) -> Result<Start> {
    let python = python(project, name)?;
    let plain = || Start::program(&python, script(&project.root.join(name)));
    let Some((object, interface)) = application else { return Ok(plain()) };
    // Its author's own way to start it, if that listens where it is told.
    let reads_port = text.contains("\"PORT\"") || text.contains("'PORT'");
    if text.contains("__main__") && reads_port {
        return Ok(plain());
    }
    let mut path = name.trim_end_matches(".py");
    if let Some(below) = path.strip_prefix("src/") {
        path = below;
        let src = project.root.join("src").display().to_string();
        if let Some((_, value)) = project.env.iter_mut().find(|(name, _)| name == "PYTHONPATH") {
            *value = format!("{src}:{value}");
        }
    }
    let path = path.trim_end_matches("/__init__").replace('/', ".");
    let target = format!("{path}:{object}");
    if let Some((_, _, args)) = server(project, interface) {
        return Ok(Start::program(&python, args(&target)));
    }
    if interface == Interface::Wsgi && text.contains("Flask") && installed(project, &python, "flask") {
        project.note(format!(
            "{name} is started by Flask's development server; name gunicorn or waitress in requirements.txt and pack \
             it for more than trials"
        ));
        let args = words(&[
            "-m",
            "flask",
            "--app",
            &target,
            "run",
            "--no-reload",
            "--host",
            "127.0.0.1",
            "--port",
            "$(PORT)",
        ]);
        return Ok(Start::program(&python, args));
    }
    let kind = match interface {
        Interface::Wsgi => "a WSGI application, and gunicorn or waitress",
        Interface::Asgi => "an ASGI application, and uvicorn or hypercorn",
    };
    project.note(format!(
        "{name} has {kind} is neither named by the project and packed with it nor on this host: it is tried as a script"
    ));
    Ok(Start::program(&python, script(&project.root.join(name))))
}

/// The first server for `interface` that the project names, or brings, and that can be imported.
fn server(project: &mut Project<'_>, interface: Interface) -> Option<Server> {
    let python = project.python.program(project.config)?;
    for server in SERVERS.into_iter().filter(|(_, speaks, _)| *speaks == interface) {
        let name = server.0;
        let brought = project.python.sites.iter().any(|site| importable(site, name));
        let named = names(&project.python.needs, name);
        if brought || (named && installed(project, &python, name)) {
            return Some(server);
        }
        if named {
            project.note(format!(
                "it names {name}, which is neither in the package nor on this host; install its requirements into it \
                 (pip install --target . -r requirements.txt) before packing"
            ));
        }
    }
    None
}

fn importable(site: &Path, module: &str) -> bool {
    site.join(module).join("__init__.py").is_file() || site.join(format!("{module}.py")).is_file()
}

/// Whether the project's packages or those of the interpreter hold a module.
fn installed(project: &Project<'_>, python: &Path, module: &str) -> bool {
    let real = std::fs::canonicalize(python).unwrap_or_else(|_| python.to_path_buf());
    let prefix = real.parent().and_then(Path::parent).map(sites_of).unwrap_or_default();
    let usual = ["/usr", "/usr/local"].into_iter().flat_map(|prefix| sites_of(Path::new(prefix)));
    project.python.sites.iter().cloned().chain(prefix).chain(usual).any(|site| importable(&site, module))
}

/// Whether a text that lists requirements names a package.
fn names(needs: &str, package: &str) -> bool {
    needs.split(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c))).any(|word| word == package)
}

/// The object at the top of a module that serves requests.
pub(super) fn application(text: &str) -> Option<(String, Interface)> {
    let asgi_module = ["fastapi", "starlette", "quart", "litestar", "falcon.asgi", "asgiref"]
        .iter()
        .any(|name| text.contains(&format!("from {name}")) || text.contains(&format!("import {name}")));
    let mut found: Vec<(String, Interface)> = Vec::new();
    for line in text.lines() {
        let signature = line.strip_prefix("async def ").map(|rest| (rest, Interface::Asgi));
        if let Some((rest, interface)) =
            signature.or_else(|| line.strip_prefix("def ").map(|r| (r, Interface::Wsgi)))
        {
            let Some((name, parameters)) = rest.split_once('(') else { continue };
            let count = parameters.split(')').next().unwrap_or_default().split(',').count();
            let wanted = if interface == Interface::Asgi { 3 } else { 2 };
            if matches!(name, "app" | "application") && count == wanted {
                found.push((name.to_owned(), interface));
            }
            continue;
        }
        let Some((name, value)) = line.split_once('=') else { continue };
        let name = name.split(':').next().unwrap_or_default().trim_end();
        let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if name.is_empty() || !is_name || line.starts_with(char::is_whitespace) {
            continue;
        }
        let Some((callee, _)) = value.trim().split_once('(') else { continue };
        let interface = match callee.rsplit('.').next().unwrap_or_default() {
            "FastAPI"
            | "Starlette"
            | "Quart"
            | "Litestar"
            | "get_asgi_application"
            | "ASGIApp"
            | "WsgiToAsgi" => Interface::Asgi,
            "Flask" | "Bottle" | "default_app" | "get_wsgi_application" | "make_wsgi_app" | "WSGIApp" => {
                Interface::Wsgi
            }
            "App" | "API" | "create_app" | "make_app" if asgi_module => Interface::Asgi,
            "App" | "API" if text.contains("falcon") => Interface::Wsgi,
            "create_app" | "make_app" => Interface::Wsgi,
            _ => continue,
        };
        found.push((name.to_owned(), interface));
    }
    let best = ["app", "application"].iter().find_map(|wanted| found.iter().find(|(name, _)| name == wanted));
    best.or(found.first()).cloned()
}

/// A Django project: behind a server that it names, else by Django's own.
fn django(project: &mut Project<'_>, text: &str) -> Result<Start> {
    let python = python(project, "manage.py")?;
    let settings = text.split_once("DJANGO_SETTINGS_MODULE").and_then(|(_, rest)| {
        let rest = rest.trim_start_matches(['"', '\'', ',', ' ', ')', ']', '=']);
        let end = rest.find(['"', '\''])?;
        Some(rest[..end].to_owned())
    });
    let package = settings.as_deref().and_then(|settings| settings.split('.').next()).unwrap_or_default();
    for (file, interface) in [("wsgi", Interface::Wsgi), ("asgi", Interface::Asgi)] {
        if !package.is_empty()
            && project.has(&format!("{package}/{file}.py"))
            && let Some((_, _, args)) = server(project, interface)
        {
            return Ok(Start::program(python, args(&format!("{package}.{file}:application"))));
        }
    }
    project.note(
        "manage.py is started by Django's development server; name gunicorn or uvicorn in requirements.txt and pack it \
         for more than trials",
    );
    let manage = project.root.join("manage.py").display().to_string();
    Ok(Start::program(python, ["-u", &manage, "runserver", "--noreload", "127.0.0.1:$(PORT)"]))
}

/// The only entry of `[project.scripts]`: its name, module and function.
fn only_script(text: &str) -> Option<(String, String, String)> {
    let section = text.lines().map(str::trim).skip_while(|line| *line != "[project.scripts]").skip(1);
    let mut entries =
        section.take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once('='));
    let (name, target) = entries.next()?;
    if entries.next().is_some() {
        return None;
    }
    let target = target.split('#').next()?.trim().trim_matches(['"', '\'']);
    let (module, function) = target.split_once(':')?;
    let is_path = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte))
    };
    (is_path(module) && is_path(function) && !function.contains('.'))
        .then(|| (name.trim().trim_matches('"').to_owned(), module.to_owned(), function.to_owned()))
}
