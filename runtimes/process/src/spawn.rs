//! From a launch plan to a watched process, always by `posix_spawn`.
//!
//! `std::process::Command` uses `posix_spawn` (a `vfork` that shares the host's memory until the exec) as long as no
//! `pre_exec`, user, group or chroot is set, and the program is a path where `PATH` is set for the child. All of that
//! is so here, and a test holds it: a start costs the same whatever the host's memory.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ffi::OsStr,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use rustix::process::{Pid, PidfdFlags, Resource};
use sas_core::{Error, ErrorKind, Result, Retry, StartRequest};

use sas_runtime_os::{JailLevel, cgroup::Limits, jail::JailRequest};

use crate::{
    engine::{Engine, NewProc, Proc, Spawned},
    home,
    logs::LogTarget,
    package::{detect::Launch, store::Discard},
};

/// Everything about a new process.
#[derive(Debug)]
pub(crate) struct SpawnRequest {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) env: Environment,
    pub(crate) cwd: PathBuf,
    /// What it has as standard input; `None`: an empty file.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) rlimits: Vec<(Resource, u64)>,
    /// What it is held to as a whole, where there are control groups.
    pub(crate) limits: Limits,
    pub(crate) logs: Option<LogTarget>,
    /// What is kept from it.
    pub(crate) jail: JailRequest,
    /// Whose namespaces, places and control group it shares: a command that belongs to an instance.
    pub(crate) beside: Option<Arc<Proc>>,
}

/// Where a program found its places.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) env: Environment,
    pub(crate) cwd: PathBuf,
    pub(crate) jail: JailRequest,
    /// What its copy of the package takes of the disk, where it has one.
    pub(crate) copied: u64,
}

/// Variables of a process. Holds secrets: no `Debug`.
#[derive(Clone, Default)]
pub(crate) struct Environment(pub(crate) BTreeMap<String, String>);

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Environment {
    /// What programs expect of any environment; whatever is declared overrides it.
    pub(crate) fn bare(home: &Path) -> Self {
        let text = |path: &Path| path.display().to_string();
        let variables = [
            ("HOME", text(home)),
            ("TMPDIR", text(&home::tmp(home))),
            ("LANG", home::LANG.to_owned()),
            ("USER", home::USER.to_owned()),
            ("LOGNAME", home::USER.to_owned()),
        ];
        Self(variables.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Knative's runtime contract, a `PATH`, what the kind of project expects, and what was declared: nothing of the
    /// host's.
    pub(crate) fn of(request: &StartRequest, port: u16, path: &str, launch: &Launch, home: &Path) -> Self {
        let mut env = Self::bare(home);
        let dirs = launch.path_prefix.iter().map(|dir| dir.display().to_string());
        let dirs: Vec<String> = dirs.chain([path.to_owned()]).collect();
        env.0.insert("PATH".to_owned(), dirs.join(":"));
        env.add_expected(launch, port);
        let Self(mut env) = env;
        for (name, value) in request.environment() {
            env.insert(name.to_owned(), value.to_owned());
        }
        env.insert("PORT".to_owned(), port.to_string());
        // A service's configuration has the service's name in Knative.
        env.insert("K_SERVICE".to_owned(), request.name().service().to_owned());
        env.insert("K_CONFIGURATION".to_owned(), request.name().service().to_owned());
        env.insert("K_REVISION".to_owned(), request.name().revision().to_owned());
        Self(env)
    }

    /// Adds what the kind of project expects, in which `$(PORT)` is the port.
    pub(crate) fn add_expected(&mut self, launch: &Launch, port: u16) {
        self.0.insert("PORT".to_owned(), port.to_string());
        for (name, value) in &launch.env {
            let value = self.expand(value);
            self.0.insert(name.clone(), value);
        }
    }

    /// Replaces `$(NAME)` as Kubernetes does in commands and arguments: unknown names stay, `$$` is a `$`.
    pub(crate) fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            out.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some(named) = rest.strip_prefix('(')
                && let Some(end) = named.find(')')
                && let Some(value) = self.0.get(&named[..end])
            {
                out.push_str(value);
                rest = &named[end + 1..];
            } else {
                out.push('$');
            }
        }
        out.push_str(rest);
        out
    }
}

/// An output pipe: our end never blocks, the program's does.
pub(crate) fn output_pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = io::pipe()?;
    let reader = OwnedFd::from(reader);
    rustix::io::ioctl_fionbio(&reader, true)?;
    Ok((reader, OwnedFd::from(writer)))
}

/// Spawns on a thread where blocking is allowed. A dropped future kills what was spawned.
pub(crate) async fn spawn(engine: &Arc<Engine>, plan: SpawnRequest) -> Result<(Spawned, Placed)> {
    let engine = Arc::clone(engine);
    tokio::task::spawn_blocking(move || spawn_now(&engine, plan)).await.map_err(|error| {
        Error::new(ErrorKind::Unavailable, "start", "the host shuts down").with_source(error)
    })?
}

/// Limits a process that runs already.
pub(crate) fn limit(
    engine: &Arc<Engine>,
    proc: &Proc,
    rlimits: &[(Resource, u64)],
    limits: &Limits,
) -> Result<()> {
    if let Some(pid) = proc.pid_for_limits() {
        set_limits(pid, rlimits)?;
    }
    hold(engine, proc, limits)
}

fn set_limits(pid: Pid, limits: &[(Resource, u64)]) -> Result<()> {
    sas_runtime_os::limits::set(pid, limits).map_err(not_limited)
}

fn not_limited(error: rustix::io::Errno) -> Error {
    let what = format!(
        "the limits of the process could not be set: {error}; one may be above what the host may give"
    );
    Error::new(ErrorKind::Unavailable, "start", what).with_source(error)
}

/// Puts a process into a group of its own, where there are groups and limits.
fn hold(engine: &Arc<Engine>, proc: &Proc, limits: &Limits) -> Result<()> {
    let held = match proc.group() {
        // A stem is in one already.
        Some(group) => group.set(limits),
        None => engine.cgroups.make(limits).and_then(|group| group.map_or(Ok(()), |group| proc.enter(group))),
    };
    held.map_err(no_group)
}

fn no_group(error: io::Error) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "start",
        format!(
            "resources: the limits could not be set by a control group: {error}; a limit may be below what the \
             kernel takes, else set ProcessConfig::cgroups to Off to go without"
        ),
    )
    .with_source(error)
}

/// Names the places of its own that a program has in a cell; what somebody declared stays.
pub(crate) fn own_places(env: &mut Environment, run: &Path) {
    for (name, place) in [("HOME", sas_runtime_os::cell::HOME), ("TMPDIR", "/tmp")] {
        match env.0.entry(name.to_owned()) {
            Entry::Occupied(mut value) if Path::new(value.get()).starts_with(run) => {
                value.insert(place.to_owned());
            }
            Entry::Vacant(_) => {}
            Entry::Occupied(_) => {}
        }
    }
}

/// Where a program finds its own places: in its cell, or, where there are none, in directories of the run, among them a
/// copy of its package.
fn place(engine: &Engine, plan: &mut SpawnRequest, jail: &mut JailRequest) -> Result<Option<(Discard, u64)>> {
    if jail.level == JailLevel::None {
        return Ok(None);
    }
    let own = engine.store.run_dir();
    let cells = engine.jails.has_namespaces() && jail.namespaces;
    if cells {
        own_places(&mut plan.env, own);
    } else {
        let places =
            ["HOME", "TMPDIR"].into_iter().filter_map(|name| plan.env.0.get(name).map(PathBuf::from));
        jail.writable.extend(places.filter(|place| place.starts_with(own)));
    }
    let Some(package) = jail.package.clone().filter(|_| !cells && jail.namespaces) else { return Ok(None) };
    let copy = engine.store.discard(engine.store.temporary("view"));
    let copied = sas_runtime_os::view::copy(&package, copy.path()).map_err(|error| {
        let what = format!("a copy of the package for the instance: {}: {error}", copy.path().display());
        Error::new(ErrorKind::Exhausted, "start", what).with_source(error)
    })?;
    let moved = |path: &Path| path.strip_prefix(&package).ok().map(|path| copy.path().join(path));
    plan.cwd = moved(&plan.cwd).unwrap_or_else(|| plan.cwd.clone());
    plan.program = moved(&plan.program).unwrap_or_else(|| plan.program.clone());
    for arg in &mut plan.args {
        // A jar stays where its archive of classes was made for it.
        if let Some(path) = moved(Path::new(arg.as_str())).filter(|_| !arg.ends_with(".jar")) {
            *arg = path.display().to_string();
        }
    }
    jail.writable.push(copy.path().to_path_buf());
    Ok(Some((copy, copied)))
}

fn spawn_now(engine: &Arc<Engine>, mut plan: SpawnRequest) -> Result<(Spawned, Placed)> {
    if engine.is_closed() {
        return Err(Error::new(ErrorKind::Unavailable, "start", "the process runtime was closed"));
    }
    let mut jail = plan.jail.clone();
    let (copy, copied) = match &plan.beside {
        Some(_) => None,
        None => place(engine, &mut plan, &mut jail)?,
    }
    .unzip();
    let gone = |error: io::Error| {
        Error::new(ErrorKind::Crashed, "exec", format!("the instance is gone: {error}")).with_source(error)
    };
    let entrance = plan.beside.as_ref().map(|proc| proc.entrance()).transpose().map_err(gone)?.flatten();
    let shared = plan.beside.as_ref().and_then(|proc| proc.group());
    let group = match &plan.beside {
        Some(_) => None,
        None => engine.cgroups.make(&plan.limits).map_err(no_group)?,
    };
    let stdin = plan.stdin.take();
    let failed = |error: io::Error| {
        let program = plan.program.display();
        let (kind, remedy) = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::AGAIN) => (ErrorKind::Exhausted, "the limit on processes was met"),
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                (ErrorKind::Exhausted, "the limit on open files was met; raise it (ulimit -n)")
            }
            Some(rustix::io::Errno::NOMEM) => (ErrorKind::Exhausted, "no memory is left"),
            Some(rustix::io::Errno::NOEXEC) => (
                ErrorKind::InvalidSpec,
                "it is no program for this host; a script needs #! in its first line",
            ),
            Some(rustix::io::Errno::NOENT) => {
                (ErrorKind::InvalidSpec, "it, its interpreter or its loader is missing; deploy it again")
            }
            Some(rustix::io::Errno::ACCESS) => (
                ErrorKind::InvalidSpec,
                "it may not be executed; set its executable bit, and have everybody pass the directories above it",
            ),
            Some(rustix::io::Errno::TOOBIG) => {
                (ErrorKind::InvalidSpec, "arguments and environment together, or one of them, are too long")
            }
            None if error.kind() == io::ErrorKind::NotFound => {
                (ErrorKind::InvalidSpec, "it, its interpreter or its loader is missing; deploy it again")
            }
            _ => (ErrorKind::Unavailable, "the host could not start it"),
        };
        let mut error_text = format!("{program}: {error}; {remedy}");
        if error.raw_os_error() == Some(rustix::io::Errno::TOOBIG.raw_os_error())
            && let Some((name, value)) =
                plan.env.0.iter().max_by_key(|(name, value)| name.len() + value.len())
        {
            error_text.push_str(&format!("; the largest variable is {name} with {} bytes", value.len()));
        }
        let wrapped = Error::new(kind, "start", error_text).with_source(error);
        if kind == ErrorKind::Exhausted {
            wrapped.with_retry(Retry::After(std::time::Duration::from_secs(1)))
        } else {
            wrapped
        }
    };
    let (stdout, stdout_of_child) = output_pipe().map_err(failed)?;
    let (stderr, stderr_of_child) = output_pipe().map_err(failed)?;
    let stdin = match stdin {
        Some(fd) => fd,
        None => {
            let marker = engine.store.run_dir().join("stdin");
            OwnedFd::from(std::fs::File::open(&marker).map_err(|error| {
                Error::new(
                    ErrorKind::Unavailable,
                    "start",
                    format!("{}: {error}; the package store was removed under the host", marker.display()),
                )
            })?)
        }
    };
    let placed = Placed {
        env: plan.env.clone(),
        cwd: plan.cwd.clone(),
        jail: jail.clone(),
        copied: copied.unwrap_or(0),
    };
    let jail = match &entrance {
        Some(entrance) => engine.jails.beside(entrance, jail),
        None => engine.jails.enter(jail)?,
    };
    // A command that belongs to an instance goes by its mark, and ends nobody when it ends.
    let mark = match &plan.beside {
        Some(proc) => proc.mark(),
        None => (!jail.has_view()).then(|| engine.mark()),
    };
    // The thread that spawns has a table of descriptors of its own, in which these are copied.
    let (spawned, cell, born_in) = jail
        .spawn_in(group.as_ref().or(shared.as_deref()), || {
            let spawn = || {
                Command::new(&plan.program)
                    .args(&plan.args)
                    .env_clear()
                    .envs(plan.env.0.iter().map(|(name, value)| (OsStr::new(name), OsStr::new(value))))
                    .current_dir(&plan.cwd)
                    .stdin(Stdio::from(stdin.try_clone()?))
                    .stdout(Stdio::from(stdout_of_child.try_clone()?))
                    .stderr(Stdio::from(stderr_of_child.try_clone()?))
                    .process_group(0)
                    .spawn()
                    .map(|child| Pid::from_child(&child))
            };
            let pid = engine.spawn(mark, spawn)?;
            Ok((pid, sas_runtime_os::limits::set(pid, &plan.rlimits)))
        })
        .map_err(failed)?;
    // Our copies of the child's ends go here, the listening socket too: it is the program's alone.
    drop((stdin, stdout_of_child, stderr_of_child));
    let (pid, limited) = spawned;
    // Nobody else reaps our children, so the number still means this process.
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK) {
        Ok(pidfd) => pidfd,
        Err(error) => {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            return Err(failed(error.into()));
        }
    };
    let spawned = engine.adopt(NewProc {
        pid,
        pidfd,
        stdout: Some(stdout),
        stderr: Some(stderr),
        logs: plan.logs,
        adopted: false,
        cell,
        mark: mark.filter(|_| plan.beside.is_none()),
    })?;
    if let Some(copy) = copy {
        spawned.proc().hold_dir(copy);
    }
    limited.map_err(not_limited)?;
    match (group, shared) {
        (Some(group), _) if born_in => spawned.proc().born_in(group),
        (Some(group), _) => spawned.proc().enter(group).map_err(no_group)?,
        (None, Some(shared)) if !born_in => shared.add(pid).map_err(no_group)?,
        (None, _) => {}
    }
    if engine.cgroups.wants(&plan.limits) {
        let (engine, limits) = (Arc::clone(engine), plan.limits);
        tokio::task::spawn_blocking(move || engine.cgroups.fill(&limits));
    }
    Ok((spawned, placed))
}

#[cfg(test)]
mod tests {
    use super::Environment;

    #[test]
    fn arguments_are_expanded_as_kubernetes_does() {
        let env = Environment([("PORT".to_owned(), "8080".to_owned())].into());
        for (text, expected) in [
            ("--port=$(PORT)", "--port=8080"),
            ("$(PORT)$(PORT)", "80808080"),
            ("$$(PORT)", "$(PORT)"),
            ("$(OTHER) $PORT $", "$(OTHER) $PORT $"),
            ("$(PORT", "$(PORT"),
        ] {
            assert_eq!(env.expand(text), expected, "{text}");
        }
    }
}
