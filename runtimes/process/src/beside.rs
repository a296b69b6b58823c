//! Commands that run beside a program, as probes do.

use std::{path::PathBuf, sync::Arc};

use rustix::process::Resource;
use sas_core::{Error, ErrorKind, ExecOutput, Result};
use sas_runtime_os::cgroup::Limits;

use crate::{
    engine::{Engine, Proc},
    spawn::{self, Placed, SpawnRequest},
};

/// What a command beside an instance runs with: the instance's environment, directory and limits, in its namespaces and
/// control group, as its user. So it sees its processes and what it wrote, reaches its port, and ends with it.
#[derive(Clone, Debug)]
pub(crate) struct Beside {
    pub(crate) engine: Arc<Engine>,
    with: Arc<With>,
}

#[derive(Debug)]
struct With {
    proc: Arc<Proc>,
    placed: Placed,
    rlimits: Vec<(Resource, u64)>,
}

impl Beside {
    pub(crate) fn new(
        engine: &Arc<Engine>,
        proc: &Arc<Proc>,
        placed: Placed,
        rlimits: &[(Resource, u64)],
    ) -> Self {
        let with = With { proc: Arc::clone(proc), placed, rlimits: rlimits.to_vec() };
        Self { engine: Arc::clone(engine), with: Arc::new(with) }
    }

    /// Runs it to its end. Dropping the future kills it with its group.
    pub(crate) async fn run(&self, command: &[String]) -> Result<ExecOutput> {
        let Some((name, args)) = command.split_first() else {
            return Err(Error::new(ErrorKind::InvalidSpec, "exec", "command: name a program"));
        };
        let program = self.find(name).ok_or_else(|| {
            let path = self.with.placed.env.0.get("PATH").map(String::as_str).unwrap_or_default();
            Error::new(ErrorKind::NotFound, "exec", format!("{name}: no such program in {path}"))
        })?;
        let plan = SpawnRequest {
            program,
            args: args.iter().map(|arg| self.with.placed.env.expand(arg)).collect(),
            env: self.with.placed.env.clone(),
            cwd: self.with.placed.cwd.clone(),
            stdin: None,
            rlimits: self.with.rlimits.clone(),
            limits: Limits::default(),
            logs: None,
            jail: self.with.placed.jail.clone(),
            beside: Some(Arc::clone(&self.with.proc)),
        };
        let (spawned, _) = spawn::spawn(&self.engine, plan).await?;
        let report = spawned.proc().exited().await;
        Ok(ExecOutput::new(report.code, spawned.proc().last_words().unwrap_or_default().into_bytes()))
    }

    /// A name is looked for in `PATH`, a path from the working directory on.
    fn find(&self, name: &str) -> Option<PathBuf> {
        if name.contains('/') {
            return Some(self.with.placed.cwd.join(name)).filter(|path| path.is_file());
        }
        let path = self.with.placed.env.0.get("PATH")?;
        std::env::split_paths(path)
            .map(|dir| self.with.placed.cwd.join(dir).join(name))
            .find(|path| path.is_file())
    }
}
