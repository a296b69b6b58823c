//! Ruby: Rails, Rack, scripts.

use sas_core::Result;

use super::{Project, Start, host::interpreter};

pub(super) fn detect(project: &mut Project<'_>) -> Result<Option<Start>> {
    let gems = project.text("Gemfile")?;
    let gem = |name: &str| {
        let quoted = [format!("\"{name}\""), format!("'{name}'")];
        gems.as_deref().unwrap_or_default().lines().any(|line| {
            let line = line.trim_start();
            line.starts_with("gem") && quoted.iter().any(|quoted| line.contains(quoted.as_str()))
        })
    };
    let rails = project.has("config/application.rb") && (project.has("bin/rails") || gem("rails"));
    let rack = project.has("config.ru");
    let script = ["app.rb", "main.rb", "server.rb"].into_iter().find(|name| project.has(name));
    if !(rails || rack || script.is_some()) {
        if gems.is_some() {
            project.note("Gemfile: the project has no config.ru, config/application.rb, app.rb or main.rb");
        }
        return Ok(None);
    }
    let what = if gems.is_some() { "a project with a Gemfile" } else { "a Ruby project" };
    let ruby = interpreter(project.config, &["ruby"], what)?;
    let words: Vec<&str> = if rails {
        vec!["rails", "server", "-b", "127.0.0.1", "-p", "$(PORT)"]
    } else if rack && gem("puma") {
        vec!["puma", "-b", "tcp://127.0.0.1:$(PORT)"]
    } else if rack {
        vec!["rackup", "-o", "127.0.0.1", "-p", "$(PORT)"]
    } else {
        vec!["ruby", script.unwrap_or("app.rb")]
    };
    // With a Gemfile what runs is what it locks.
    if gems.is_some() {
        let bundle = interpreter(project.config, &["bundle"], "a project with a Gemfile")?;
        let args = ["exec"].into_iter().chain(words);
        return Ok(Some(Start::program(bundle, args)));
    }
    let program = if words[0] == "ruby" { ruby } else { interpreter(project.config, &[words[0]], what)? };
    Ok(Some(Start::program(program, words[1..].iter().copied())))
}
