//! Node.js: what `npm start` does.

use std::path::{Path, PathBuf};

use sas_core::Result;
use serde_json::Value;

use super::{Project, Start, host::interpreter, words};
use crate::package::error::refused;

/// Options of `node` that take the next word as their value.
const WITH_VALUE: [&str; 21] = [
    "-r",
    "--require",
    "--import",
    "--loader",
    "--experimental-loader",
    "-C",
    "--conditions",
    "--env-file",
    "--env-file-if-exists",
    "--title",
    "--icu-data-dir",
    "--openssl-config",
    "--max-old-space-size",
    "--max-http-header-size",
    "--dns-result-order",
    "--disable-warning",
    "--watch-path",
    "--unhandled-rejections",
    "--input-type",
    "--inspect-port",
    "--stack-trace-limit",
];

pub(super) fn detect(project: &mut Project<'_>) -> Result<Option<Start>> {
    let Some(text) = project.text("package.json")? else {
        for name in ["server.js", "index.js"] {
            if project.has(name) {
                let node = node(project, name)?;
                return Ok(Some(Start::program(node, [project.root.join(name).display().to_string()])));
            }
        }
        return Ok(None);
    };
    let json: Value = serde_json::from_str(&text)
        .map_err(|error| refused(format!("package.json: not valid JSON ({error}); mend it")))?;
    if let Some(start) = json.pointer("/scripts/start") {
        let start = start.as_str().map(str::trim).filter(|start| !start.is_empty()).ok_or_else(|| {
            refused(format!(
                "package.json: scripts.start is {start}; it must be a command such as \"node server.js\""
            ))
        })?;
        return scripts(project, &json, start).map(Some);
    }
    // Without a script, `npm start` is `node server.js`; then what `node .` would run.
    let main = json.get("main").and_then(Value::as_str).filter(|main| !main.is_empty());
    let found = resolve(&project.root, "server.js")
        .or_else(|| main.and_then(|main| resolve(&project.root, main)))
        .or_else(|| resolve(&project.root, "index.js"))
        .or_else(|| resolve(&project.root, "index.mjs"));
    let Some(file) = found else {
        let what = match main {
            Some(main) => format!("its main {main:?} is not in the package"),
            None => "it has no main, server.js or index.js".into(),
        };
        project.note(format!("package.json: it has no scripts.start, and {what}: it was not looked at"));
        return Ok(None);
    };
    package_env(project, &json, "start", "node server.js");
    Ok(Some(Start::program(node(project, "package.json")?, [file.display().to_string()])))
}

fn node(project: &Project<'_>, what: &str) -> Result<PathBuf> {
    interpreter(project.config, &["node", "nodejs"], what)
}

/// `npm start` with a script: `prestart`, then `start`, each by a shell unless it needs none.
fn scripts(project: &mut Project<'_>, json: &Value, start: &str) -> Result<Start> {
    node(project, "package.json")?;
    let text = |name: &str| {
        let script = json.pointer(&format!("/scripts/{name}")).and_then(Value::as_str).unwrap_or_default();
        (!script.trim().is_empty()).then(|| script.trim().to_owned())
    };
    if text("poststart").is_some() {
        project.note("package.json: scripts.poststart is not run, since a server that ends has failed");
    }
    package_env(project, json, "start", start);
    let Some(before) = text("prestart") else {
        if let Some(command) = words::simple(start)
            && command.words[0] == "node"
            && let Some(script) = script_of(&command.words[1..])
            && resolve(&project.cwd, script).is_none()
        {
            return Err(refused(format!(
                "package.json: scripts.start runs {script:?}, which is not in the package; pack it, or mend the script"
            )));
        }
        return project.command_line("package.json: scripts.start", start, &["sh"]);
    };
    // What it makes is not there yet, so that nothing of `start` is certain.
    // Each is a script of its own, as it is for npm: its variables and `exit` do not reach the other.
    let sh = interpreter(project.config, &["sh"], "package.json: scripts.prestart")?;
    let script = format!(
        "npm_lifecycle_event=prestart npm_lifecycle_script={quoted} sh -c {quoted} && exec sh -c {start}",
        quoted = quoted(&before),
        start = quoted(start),
    );
    Ok(Start::Shell { shell: sh, script })
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The script among the words after `node`; `None` where it can't be told, or there is none.
fn script_of(words: &[String]) -> Option<&str> {
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "-e" | "--eval" | "-p" | "--print" | "-pe" | "-i" | "--interactive" | "-" | "--test"
            | "--run" => {
                return None;
            }
            "--" => return words.next().map(String::as_str),
            option if WITH_VALUE.contains(&option) => drop(words.next()),
            option if is_flag(option) => {}
            // It may take the next word or not.
            option if option.starts_with('-') => return None,
            script if script.contains('$') => return None,
            script => return Some(script),
        }
    }
    None
}

/// Whether an option of `node` certainly takes no further word.
fn is_flag(option: &str) -> bool {
    let flags = [
        "--inspect",
        "--no-",
        "--trace-",
        "--enable-",
        "--expose",
        "--harmony",
        "--use-",
        "--preserve-",
        "--watch",
    ];
    option.starts_with('-')
        && (option.contains('=')
            || flags.iter().any(|flag| option.starts_with(flag))
            || (option.starts_with("--experimental-") && !option.ends_with("loader")))
}

/// The file that `node NAME` runs, in `dir`.
fn resolve(dir: &Path, name: &str) -> Option<PathBuf> {
    let path = dir.join(name);
    let as_file = |path: &Path| {
        ["", ".js", ".json", ".node", ".mjs", ".cjs", ".ts"]
            .iter()
            .map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())))
            .find(|path| path.is_file())
    };
    if let Some(file) = as_file(&path) {
        return Some(file);
    }
    if !path.is_dir() {
        return None;
    }
    // A directory: its own package.json's main, else its index.
    let text = std::fs::read_to_string(path.join("package.json")).unwrap_or_default();
    let json: Value = serde_json::from_str(sas_core::package::without_mark(&text)).unwrap_or_default();
    let main = json.get("main").and_then(Value::as_str).filter(|main| !main.is_empty() && *main != ".");
    main.and_then(|main| as_file(&path.join(main)).or_else(|| as_file(&path.join(main).join("index"))))
        .or_else(|| as_file(&path.join("index")))
}

/// The variables that npm sets for a script.
fn package_env(project: &mut Project<'_>, json: &Value, event: &str, script: &str) {
    let root = project.root.display().to_string();
    let mut env: Vec<(String, String)> = vec![
        ("npm_lifecycle_event".into(), event.into()),
        ("npm_lifecycle_script".into(), script.replace('$', "$$")),
        ("npm_command".into(), "start".into()),
        ("npm_package_json".into(), format!("{root}/package.json")),
        ("INIT_CWD".into(), root),
    ];
    for field in ["name", "version", "config", "engines", "bin"] {
        if let Some(value) = json.get(field) {
            flatten(&format!("npm_package_{field}"), value, &mut env);
        }
    }
    if let Ok(node) = node(project, "package.json") {
        let node = node.display().to_string();
        env.extend([("NODE".to_owned(), node.clone()), ("npm_node_execpath".to_owned(), node)]);
    }
    project.env.extend(env);
}

/// As npm makes variables of a `package.json`: `config.port` is `npm_package_config_port`.
fn flatten(name: &str, value: &Value, env: &mut Vec<(String, String)>) {
    let is_name = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./@".contains(&byte));
    // A variable is one line of a description, not a place for data.
    if !is_name || env.len() > 256 {
        return;
    }
    let text = match value {
        Value::Object(fields) => {
            return fields.iter().for_each(|(field, value)| flatten(&format!("{name}_{field}"), value, env));
        }
        Value::Array(items) => {
            return items
                .iter()
                .enumerate()
                .for_each(|(index, value)| flatten(&format!("{name}_{index}"), value, env));
        }
        Value::Null | Value::Bool(false) => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if !text.contains('\0') {
        env.push((name.to_owned(), text.replace('$', "$$")));
    }
}

#[cfg(test)]
mod tests {
    use super::script_of;

    #[test]
    fn the_script_is_found_behind_options_that_take_values() {
        for (line, expected) in [
            ("server.js", Some("server.js")),
            (".", Some(".")),
            ("-r dotenv/config dist/index.js", Some("dist/index.js")),
            ("--require ./a.js --import=./b.js .", Some(".")),
            ("--import dotenv/config.js index.js --port 1", Some("index.js")),
            ("--max-old-space-size=512 --enable-source-maps a", Some("a")),
            ("-- -odd.js", Some("-odd.js")),
            ("-e 1 x.js", None),
            ("--inspect", None),
            ("--some-option x y.js", None),
            ("", None),
        ] {
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            assert_eq!(script_of(&words), expected, "{line}");
        }
    }
}
