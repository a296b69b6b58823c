//! What a package is and how it is started, for who takes it elsewhere: the same files, the same command, by names that
//! hold where they are put.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use sas_core::{EnvValue, Result, RevisionSpec};

use crate::{
    config::ProcessConfig,
    package::{detect, store::Package},
};

/// A package, unpacked, with the start that was found for it.
///
/// Its words name files of the package as they will stand below the place that was given, and programs of the host by their
/// names only, such as `python3`: whatever runs it elsewhere has its own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PackageStart {
    /// The directory with its files. It is there as long as this is.
    pub files: PathBuf,
    /// The program and its arguments, for a program that takes them as they are. It is a shell's where a variable has to be
    /// put in, such as the port.
    pub command: Vec<String>,
    /// What the kind of project expects, and what the spec declares but secrets.
    pub env: BTreeMap<String, String>,
    /// Where it starts.
    pub working_dir: String,
    /// What was passed over, what is only tried, and what is left out.
    pub notes: Vec<String>,
    _package: Arc<Package>,
}

/// Where programs are looked for in an image that says nothing else.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Finds how a package starts when it lies at `at`. Blocks.
pub(crate) fn start(
    package: Arc<Package>,
    spec: &RevisionSpec,
    config: &ProcessConfig,
    at: &Path,
) -> Result<PackageStart> {
    let launch = detect::launch(&package, spec, config)?;
    let dir = package.dir().to_path_buf();
    let moved = |text: &str| text.replace(&*dir.to_string_lossy(), &at.to_string_lossy());
    let moved_path = |path: &Path| moved(&path.to_string_lossy());
    let program = match launch.program.strip_prefix(&dir) {
        Ok(own) => at.join(own).display().to_string(),
        // Debian's name for what everybody else calls node.
        Err(_) => match launch.program.file_name().unwrap_or_default().to_string_lossy() {
            name if name == "nodejs" => "node".to_owned(),
            name => name.into_owned(),
        },
    };
    let mut words = vec![Words::plain(&program)];
    if let Some(jar) = &launch.jar {
        words.extend([Words::plain("-jar"), Words::plain(&moved_path(jar))]);
    }
    words.extend(launch.args.iter().map(|arg| Words::of(&moved(arg))));
    let mut notes = launch.notes.clone();
    let (mut env, mut later) = (BTreeMap::new(), Vec::new());
    for (name, value) in &launch.env {
        let value = Words::of(&moved(value));
        match value.text() {
            Some(text) => drop(env.insert(name.clone(), text)),
            None => later.push((name.clone(), value)),
        }
    }
    if !launch.path_prefix.is_empty() {
        let dirs: Vec<String> = launch.path_prefix.iter().map(|dir| moved_path(dir)).collect();
        env.insert("PATH".to_owned(), format!("{}:{PATH}", dirs.join(":")));
    }
    for (name, value) in &spec.env {
        match value {
            EnvValue::Literal(text) => {
                later.retain(|(known, _)| known != name);
                env.insert(name.clone(), text.clone());
            }
            _ => notes.push(format!("env.{name}: a secret, which is left out: give it where it runs")),
        }
    }
    let whole: Option<Vec<String>> = words.iter().map(Words::text).collect();
    let command = match whole {
        Some(command) if later.is_empty() => command,
        _ => {
            let set = later.iter().map(|(name, value)| format!("export {name}={}; ", value.quoted()));
            let line = words.iter().map(Words::quoted).collect::<Vec<_>>().join(" ");
            let script = format!("{}exec {line}", set.collect::<String>());
            vec!["/bin/sh".to_owned(), "-c".to_owned(), script]
        }
    };
    let working_dir = moved_path(&launch.cwd);
    Ok(PackageStart { files: dir, command, env, working_dir, notes, _package: package })
}

/// A word in which variables may stand, `$(NAME)`, as Kubernetes writes them.
struct Words(Vec<Part>);

enum Part {
    Text(String),
    Variable(String),
}

impl Words {
    fn plain(text: &str) -> Self {
        Self(vec![Part::Text(text.to_owned())])
    }

    /// `$$` is a `$`.
    fn of(text: &str) -> Self {
        let (mut parts, mut plain, mut rest) = (Vec::new(), String::new(), text);
        while let Some(at) = rest.find('$') {
            plain.push_str(&rest[..at]);
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                plain.push('$');
                rest = after;
            } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|named| named.split_once(')'))
                && !name.is_empty()
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                && !name.starts_with(|first: char| first.is_ascii_digit())
            {
                parts.extend([Part::Text(std::mem::take(&mut plain)), Part::Variable(name.to_owned())]);
                rest = after;
            } else {
                plain.push('$');
            }
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        Self(parts)
    }

    /// `None` where a variable is in it.
    fn text(&self) -> Option<String> {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                Part::Variable(_) => None,
            })
            .collect()
    }

    /// For a shell.
    fn quoted(&self) -> String {
        let word: String = self
            .0
            .iter()
            .map(|part| match part {
                Part::Text(text) if text.is_empty() => String::new(),
                Part::Text(text) => format!("'{}'", text.replace('\'', r"'\''")),
                Part::Variable(name) => format!("\"${{{name}}}\""),
            })
            .collect();
        if word.is_empty() { "''".to_owned() } else { word }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_variables_are_a_shells_and_others_are_taken_as_they_are() {
        for (word, text, quoted) in [
            ("plain", Some("plain"), "'plain'"),
            ("", Some(""), "''"),
            ("it's", Some("it's"), r"'it'\''s'"),
            ("$$HOME", Some("$HOME"), "'$HOME'"),
            ("--port=$(PORT)", None, "'--port='\"${PORT}\""),
            ("$(not a name)", Some("$(not a name)"), "'$(not a name)'"),
        ] {
            let words = Words::of(word);
            assert_eq!(words.text().as_deref(), text, "{word}");
            assert_eq!(words.quoted(), quoted, "{word}");
        }
    }
}
