//! Command lines as people write them into a Procfile or a package.json.

/// A command without anything that only a shell can do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Command {
    /// Variables set in front of it.
    pub(super) env: Vec<(String, String)>,
    /// The words; `$(PORT)` stands for the port, and `$$` for a `$`.
    pub(super) words: Vec<String>,
}

/// Reads a command line that needs no shell: words, quotes, variables in front, and `$PORT`. `None`: it needs one.
pub(super) fn simple(line: &str) -> Option<Command> {
    let mut command = Command::default();
    let mut word: Option<String> = None;
    // Only what stands before the `=` unquoted makes a word an assignment.
    let mut plain_name = true;
    let mut rest = line.trim();
    let finish = |command: &mut Command, word: String, plain_name: bool| {
        let assignment = word.split_once('=').filter(|(name, _)| {
            plain_name
                && command.words.is_empty()
                && !name.is_empty()
                && !name.starts_with(|c: char| c.is_ascii_digit())
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        });
        match assignment {
            Some((name, value)) => command.env.push((name.to_owned(), value.to_owned())),
            None => command.words.push(word),
        }
    };
    while let Some(c) = rest.chars().next() {
        let after = &rest[c.len_utf8()..];
        match c {
            ' ' | '\t' => {
                if let Some(word) = word.take() {
                    finish(&mut command, word, plain_name);
                }
                plain_name = true;
                rest = after;
            }
            '\'' => {
                let end = after.find('\'')?;
                let text = word.get_or_insert_default();
                plain_name &= text.contains('=');
                text.push_str(&after[..end].replace('$', "$$"));
                rest = &after[end + 1..];
            }
            '"' => {
                let text = word.get_or_insert_default();
                plain_name &= text.contains('=');
                rest = after;
                loop {
                    let c = rest.chars().next()?;
                    match c {
                        '"' => break,
                        '\\' | '`' => return None,
                        '$' => rest = port(rest, text)?,
                        c => {
                            text.push(c);
                            rest = &rest[c.len_utf8()..];
                        }
                    }
                }
                rest = &rest[1..];
            }
            '$' => rest = port(rest, word.get_or_insert_default())?,
            '#' | '~' if word.is_none() => return None,
            '|' | '&' | ';' | '<' | '>' | '(' | ')' | '`' | '\\' | '*' | '?' | '[' | ']' | '{' | '}'
            | '!' | '\n' | '\r' => return None,
            c => {
                word.get_or_insert_default().push(c);
                rest = after;
            }
        }
    }
    if let Some(word) = word {
        finish(&mut command, word, plain_name);
    }
    if command.words.first().is_some_and(|word| word == "exec") {
        command.words.remove(0);
    }
    (!command.words.is_empty()).then_some(command)
}

/// `$PORT`, `${PORT}` or `${PORT:-8080}`: the port is always set.
fn port<'a>(text: &'a str, word: &mut String) -> Option<&'a str> {
    let rest = match text.strip_prefix("${PORT") {
        Some(rest) => {
            let end = rest.find('}')?;
            if !(end == 0 || rest.starts_with(":-") || rest.starts_with('-')) || rest[..end].contains('$') {
                return None;
            }
            &rest[end + 1..]
        }
        None => {
            let rest = text.strip_prefix("$PORT")?;
            if rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_') {
                return None;
            }
            rest
        }
    };
    word.push_str("$(PORT)");
    Some(rest)
}

/// The builtins with which a line may begin that no program stands for.
pub(super) fn is_builtin(word: &str) -> bool {
    matches!(
        word,
        "cd" | "export"
            | "set"
            | "source"
            | "."
            | "eval"
            | "ulimit"
            | "umask"
            | "trap"
            | "unset"
            | "if"
            | "while"
            | "for"
            | "test"
            | "true"
            | "false"
            | "echo"
            | "printf"
            | ":"
            | "command"
            | "wait"
            | "exit"
            | "time"
    )
}

#[cfg(test)]
mod tests {
    use super::{Command, simple};

    #[test]
    fn a_line_is_words_or_needs_a_shell() {
        let command = |env: &[(&str, &str)], words: &[&str]| {
            Some(Command {
                env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
                words: words.iter().map(|word| (*word).to_owned()).collect(),
            })
        };
        for (line, expected) in [
            ("node server.js", command(&[], &["node", "server.js"])),
            ("  exec node  .  ", command(&[], &["node", "."])),
            (
                "gunicorn app:app -b 0.0.0.0:$PORT",
                command(&[], &["gunicorn", "app:app", "-b", "0.0.0.0:$(PORT)"]),
            ),
            ("x --p=${PORT:-8080} \"a b\" 'c $d'", command(&[], &["x", "--p=$(PORT)", "a b", "c $$d"])),
            (
                "A=1 B=\"x y\" QUERY_PORT=$PORT java -jar a.jar",
                command(&[("A", "1"), ("B", "x y"), ("QUERY_PORT", "$(PORT)")], &["java", "-jar", "a.jar"]),
            ),
            (
                "java -Dserver.port=$PORT -jar a.jar",
                command(&[], &["java", "-Dserver.port=$(PORT)", "-jar", "a.jar"]),
            ),
            ("python -m http.server \"$PORT\"", command(&[], &["python", "-m", "http.server", "$(PORT)"])),
            ("x ''", command(&[], &["x", ""])),
            ("x a#b", command(&[], &["x", "a#b"])),
            ("x 'PORT=1'", command(&[], &["x", "PORT=1"])),
            ("'A'=1 x", command(&[], &["A=1", "x"])),
            ("x $PORTAL", None),
            ("x $HOME", None),
            ("x ${PORT:+1}", None),
            ("a && b", None),
            ("a | b", None),
            ("java -jar target/*.jar", None),
            ("x \"a", None),
            ("x 'a", None),
            ("x \\n", None),
            ("x `y`", None),
            ("A=1", None),
            ("", None),
        ] {
            assert_eq!(simple(line), expected, "{line}");
        }
    }
}
