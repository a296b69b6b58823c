//! Commands that run beside a program, as probes do.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::process::Resource;
use sas_core::{Error, ErrorKind, ExecOutput, Result};
use sas_runtime_os::{cgroup::Limits, jail::JailRequest};

use crate::{
    engine::Engine,
    spawn::{self, Environment, Plan},
};

/// What a command beside an instance runs with: the same environment, directory, limits of each process, and a jail of
/// its own that is made like the instance's: it reaches the instance's port, and sees neither its processes nor what it
/// wrote.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    pub(crate) engine: Arc<Engine>,
    with: Arc<With>,
}

#[derive(Debug)]
struct With {
    env: Environment,
    cwd: PathBuf,
    rlimits: Vec<(Resource, u64)>,
    jail: JailRequest,
}

impl Beside {
    pub(crate) fn new(
        engine: &Arc<Engine>,
        env: &Environment,
        cwd: &Path,
        rlimits: &[(Resource, u64)],
        jail: &JailRequest,
    ) -> Self {
        let (env, cwd) = (env.clone(), cwd.to_owned());
        let with = With { env, cwd, rlimits: rlimits.to_vec(), jail: jail.clone() };
        Self { engine: Arc::clone(engine), with: Arc::new(with) }
    }

    /// Runs it to its end. Dropping the future kills it with its group.
    pub(crate) async fn run(&self, command: &[String]) -> Result<ExecOutput> {
        let Some((name, args)) = command.split_first() else {
            return Err(Error::new(ErrorKind::InvalidSpec, "exec", "command: name a program"));
        };
        let program = self.find(name).ok_or_else(|| {
            let path = self.with.env.0.get("PATH").map(String::as_str).unwrap_or_default();
            Error::new(ErrorKind::NotFound, "exec", format!("{name}: no such program in {path}"))
        })?;
        let plan = Plan {
            program,
            args: args.iter().map(|arg| self.with.env.expand(arg)).collect(),
            env: self.with.env.clone(),
            cwd: self.with.cwd.clone(),
            stdin: None,
            rlimits: self.with.rlimits.clone(),
            limits: Limits::default(),
            logs: None,
            jail: self.with.jail.clone(),
        };
        let spawned = spawn::spawn(&self.engine, plan).await?;
        let report = spawned.proc().exited().await;
        Ok(ExecOutput::new(report.code, spawned.proc().last_words().unwrap_or_default().into_bytes()))
    }

    /// A name is looked for in `PATH`, a path from the working directory on.
    fn find(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(self.with.cwd.join(name)).filter(|path| path.is_file());
        }
        let path = self.with.env.0.get("PATH")?;
        std::env::split_paths(path).map(|dir| self.with.cwd.join(dir).join(name)).find(|path| path.is_file())
    }
}
