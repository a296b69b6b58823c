//! Commands as people write them in an annotation: a JSON list, or words with quotes as in a shell.

/// Splits `text`, or says what is wrong with it. Nothing is expanded: there is no shell.
pub(crate) fn command(text: &str) -> Result<Vec<String>, String> {
    let words = if text.trim_start().starts_with('[') {
        serde_json::from_str::<Vec<String>>(text)
            .map_err(|error| format!("not a JSON list of strings: {error}"))?
    } else {
        split(text)?
    };
    match words.first() {
        None => Err("names no program; leave the annotation out to have the start command found".to_owned()),
        Some(program) if program.is_empty() => Err("the program's name is empty".to_owned()),
        Some(_) => Ok(words),
    }
}

fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            letter if letter.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        Some('\'') => break,
                        Some(letter) => word.push(letter),
                        None => return Err("a single quote is never closed".to_owned()),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match letters.next() {
                        Some('"') => break,
                        Some('\\') => match letters.next() {
                            Some(letter @ ('"' | '\\' | '$' | '`')) => word.push(letter),
                            Some(letter) => word.extend(['\\', letter]),
                            None => return Err("a double quote is never closed".to_owned()),
                        },
                        Some(letter) => word.push(letter),
                        None => return Err("a double quote is never closed".to_owned()),
                    }
                }
            }
            '\\' => match letters.next() {
                Some(letter) => word.get_or_insert_default().push(letter),
                None => return Err("ends with a backslash".to_owned()),
            },
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::command;

    #[test]
    fn commands_are_split_as_a_shell_would() {
        for (text, expected) in [
            ("python3 app.py", vec!["python3", "app.py"]),
            (r#"["sh", "-c", "exec ./a b"]"#, vec!["sh", "-c", "exec ./a b"]),
            (r#"sh -c 'exec "$0"' "a b" c\ d"#, vec!["sh", "-c", "exec \"$0\"", "a b", "c d"]),
            (r#"a "" '' b"#, vec!["a", "", "", "b"]),
            (r#"a "x\"y\n""#, vec!["a", "x\"y\\n"]),
            ("  ./run\t--port=1 ", vec!["./run", "--port=1"]),
        ] {
            assert_eq!(command(text).as_deref(), Ok(&expected.map_to_strings()[..]), "{text}");
        }
        for text in ["", "  ", "[]", "[1]", "[\"a\"", "'a", "\"a", "a \\", "\"\" b"] {
            assert!(command(text).is_err(), "{text}");
        }
    }

    trait MapToStrings {
        fn map_to_strings(&self) -> Vec<String>;
    }
    impl MapToStrings for Vec<&str> {
        fn map_to_strings(&self) -> Vec<String> {
            self.iter().map(|word| (*word).to_owned()).collect()
        }
    }
}
