//! Programs that the runtime itself runs: JVMs that write an archive.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sas_core::{Error, ErrorKind, Result};

use sas_runtime_os::{JailLevel, cgroup::Limits, jail::JailRequest};

use crate::{
    engine::Engine,
    spawn::{self, Environment, SpawnRequest},
};

/// Runs a program to its end, which must be status 0. A dropped future kills it.
pub(crate) async fn run(
    engine: &Arc<Engine>,
    program: PathBuf,
    args: Vec<String>,
    cwd: PathBuf,
    limit: Duration,
) -> Result<()> {
    let name = program.display().to_string();
    let mut env = Environment::default();
    env.0.insert("PATH".into(), engine.config.path.clone());
    let plan = SpawnRequest {
        program,
        args,
        env,
        cwd,
        stdin: None,
        rlimits: Vec::new(),
        limits: Limits::default(),
        beside: None,
        logs: None,
        // The host's own tools, on the host's own files.
        jail: JailRequest::new(JailLevel::None, None),
    };
    let (spawned, _) = spawn::spawn(engine, plan).await?;
    let failed = |what: String| {
        let words = spawned.proc().last_words().map(|words| format!(": {words}")).unwrap_or_default();
        Error::new(ErrorKind::Unavailable, "prepare", format!("{name} {what}{words}"))
    };
    match tokio::time::timeout(limit, spawned.proc().exited()).await {
        Ok(report) if report.code == Some(0) => Ok(()),
        Ok(report) => Err(failed(report.to_string())),
        Err(_) => Err(failed(format!("took longer than {limit:?}"))),
    }
}
