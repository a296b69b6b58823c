//! Words about the host of a platform: its configuration, its backup, its upgrade.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    Failed,
    client::Client,
    words::{cell, table},
};

/// How long a new process may take to serve.
const UPGRADES: Duration = Duration::from_secs(180);

/// What the platform was configured with: what somebody said, or all of it.
pub(crate) async fn config(client: &Client, all: bool) -> Result<(Value, String), Failed> {
    let answer = client.get("/v1/config").await?;
    let fields = answer["fields"].as_array().into_iter().flatten();
    let rows: Vec<Vec<String>> = fields
        .filter(|field| all || !field["value"].is_null())
        .map(|field| ["name", "value", "origin", "changes", "help"].map(|part| cell(&field[part])).to_vec())
        .collect();
    let text = match rows.is_empty() {
        true => "nobody configured anything: all has its default (--all shows what there is)".to_owned(),
        false => table(&["FIELD", "VALUE", "FROM", "CHANGES AT", "WHAT"], &rows),
    };
    Ok((answer, text))
}

/// Has the configuration read again.
pub(crate) async fn reload(client: &Client) -> Result<(Value, String), Failed> {
    let answer = client.post("/v1/config/reload", &json!({})).await?;
    let changed: Vec<&str> =
        answer["changed"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let text = match changed.is_empty() {
        true => "read again: no field has another value; files that fields name were read too".to_owned(),
        false => format!("in force: {}", changed.join(", ")),
    };
    Ok((answer, text))
}

/// Writes a copy of the state to a file, which has its name once all of it is on disk.
pub(crate) async fn backup(client: &Client, file: &Path) -> Result<(Value, String), Failed> {
    let failed = |error: std::io::Error| Failed(format!("{}: {error}", file.display()));
    if file.exists() {
        return Err(Failed(format!("{} is there already: name another file", file.display())));
    }
    let mut beside = file.as_os_str().to_owned();
    beside.push(".part");
    let beside = Unfinished(PathBuf::from(beside));
    let mut options = OpenOptions::new();
    let mut written =
        options.write(true).create(true).truncate(true).mode(0o600).open(&beside.0).map_err(failed)?;
    let bytes = client.download("/v1/backup", &mut written).await?;
    written.sync_all().map_err(failed)?;
    fs::rename(&beside.0, file).map_err(failed)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(failed)?;
    let answer = json!({"file": file, "bytes": bytes});
    let text = format!(
        "{}: {bytes} bytes; `platform --restore {0} --state DIR` makes a state of it",
        file.display()
    );
    Ok((answer, text))
}

/// A file that is no backup yet.
struct Unfinished(PathBuf);

impl Drop for Unfinished {
    fn drop(&mut self) {
        // It has another name when it is finished.
        let _gone = fs::remove_file(&self.0);
    }
}

/// Has the platform of a state directory hand over to a new process, and waits until that serves.
pub(crate) async fn upgrade(state: Option<&Path>) -> Result<(Value, String), Failed> {
    let state = state.ok_or_else(|| {
        Failed("upgrade: name the platform's state directory by --state; one without is told by `kill -USR2 PID`".to_owned())
    })?;
    let file = state.join("platform.json");
    let left = || -> Result<Value, Failed> {
        let text = fs::read_to_string(&file).map_err(|error| {
            Failed(format!("{}: {error}; does a platform serve this state?", file.display()))
        })?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    };
    let pid = |left: &Value| -> Result<i32, Failed> {
        let pid = left["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 0);
        pid.ok_or_else(|| {
            Failed(format!("{}: names no process; is it of an older platform?", file.display()))
        })
    };
    let written = left()?;
    let before = pid(&written)?;
    // Another program may have the id of one that is gone.
    if let Some(began) = written["started"].as_u64()
        && let Ok(stat) = fs::read_to_string(format!("/proc/{before}/stat"))
        && stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19))
            != Some(&*began.to_string())
    {
        let problem = "is another program now; the platform of this state has ended without a word: start it";
        return Err(Failed(format!("{}: the process {before} {problem}", file.display())));
    }
    let process =
        rustix::process::Pid::from_raw(before).ok_or_else(|| Failed(format!("{before}: no process")))?;
    let gone = |error: rustix::io::Errno| Failed(format!("the process {before} of this state: {error}"));
    let began = Instant::now();
    rustix::process::kill_process(process, rustix::process::Signal::USR2).map_err(gone)?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = left().and_then(|left| pid(&left)).unwrap_or(before);
        if now != before {
            let took = began.elapsed();
            let answer = json!({"before": before, "pid": now, "seconds": took.as_secs_f64()});
            return Ok((answer, format!("the process {now} serves, in place of {before}, after {took:.1?}")));
        }
        if rustix::process::test_kill_process(process).is_err() {
            return Err(Failed(format!(
                "the process {before} ended, and no new one serves: its log says why"
            )));
        }
        if began.elapsed() > UPGRADES {
            let problem = "no new process serves; the one before goes on, and its log says why";
            return Err(Failed(problem.to_owned()));
        }
    }
}
