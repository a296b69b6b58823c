//! `Procfile`, in which a project says itself how it is started.

use sas_core::Result;

use super::{Project, Start};
use crate::package::error::refused;

/// The command of the process `web`.
pub(super) fn detect(project: &mut Project<'_>) -> Result<Option<Start>> {
    let Some(text) = project.text("Procfile")? else { return Ok(None) };
    let mut others = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        let Some((name, command)) = line.split_once(':') else { continue };
        if line.starts_with('#') || name.is_empty() || name.contains(char::is_whitespace) {
            continue;
        }
        let command = command.trim();
        if name != "web" {
            others.push(name.to_owned());
            continue;
        }
        if command.is_empty() {
            return Err(refused(
                "Procfile: the process web has no command; write one, such as web: ./server --port $PORT",
            ));
        }
        let start = project.command_line("Procfile: web", command, &["bash", "sh"])?;
        return Ok(Some(start));
    }
    project.note(match others.as_slice() {
        [] => "the Procfile names no process and was not looked at".to_owned(),
        others => {
            format!("the Procfile has no process web, only {}: it was not looked at", others.join(", "))
        }
    });
    Ok(None)
}
