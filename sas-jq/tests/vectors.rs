//! jq's own tests.

use std::{fs, path::PathBuf};

use sas_jq::{Limits, Program, Value};

fn directory() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("jq"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/jq"),
    }
}

/// What does not pass, by a part of the program, and why.
const EXCEPTIONS: [(&str, &str); 14] = [
    (".[] = 1", "NaN and Infinity in the input are no JSON"),
    ("9E999999999, 9999999999E999999990", "numbers are doubles: no decNumber"),
    ("import ", "no modules"),
    ("modulemeta", "no modules"),
    ("try input catch .", "input is refused when the program is read: an expression has one input"),
    ("| contains($x)) catch .", DEEP),
    ("$x * $x) catch .", DEEP),
    ("$x == $y) catch .", DEEP),
    ("reduce range(10000) as $_ ([]; [.]) | contains([[]])", DEEP),
    ("[$x, $x] | sort) catch .", DEEP),
    ("[$x, $x] | unique) catch .", DEEP),
    ("reduce range(9999) as $_ ([];[.])", DEEP),
    ("reduce range(10001) as $_ ([];[.])", DEEP),
    ("try (reduce range(10001) as $_ ([]; [.]) as $x", DEEP),
];
const DEEP: &str = "a value is nested at most 127 deep: what serde_json reads back";

struct Block {
    program: String,
    input: String,
    outputs: Vec<String>,
    fails: bool,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let fails = line.starts_with("%%FAIL");
        let program = if fails { lines.next().unwrap_or_default() } else { line };
        let mut rest = Vec::new();
        while let Some(line) = lines.next_if(|line| !line.trim().is_empty()) {
            if !line.starts_with('#') {
                rest.push(line.to_owned());
            }
        }
        let input = if fails || rest.is_empty() { String::new() } else { rest.remove(0) };
        blocks.push(Block { program: program.to_owned(), input, outputs: rest, fails });
    }
    blocks
}

fn value(json: &str) -> Result<Value, String> {
    let parsed =
        serde_json::from_str::<serde_json::Value>(json).map_err(|error| format!("{json}: {error}"))?;
    Value::from_json(&parsed).map_err(|error| format!("{json}: {error}"))
}

fn wrong(block: &Block) -> Option<String> {
    let program = match (Program::parse(&block.program, &[]), block.fails) {
        (Err(_), true) => return None,
        (Ok(_), true) => return Some("was read, though it is wrong".to_owned()),
        (Err(error), false) => return Some(error.to_string()),
        (Ok(program), false) => program,
    };
    let input = match value(&block.input) {
        Ok(input) => input,
        Err(error) => return Some(format!("input: {error}")),
    };
    let mut results = program.run(input, &[], &Limits::default());
    for output in &block.outputs {
        let wanted = match value(output) {
            Ok(wanted) => wanted,
            Err(error) => return Some(format!("output: {error}")),
        };
        match results.next() {
            Some(Ok(result)) if result == wanted || result.to_string() == wanted.to_string() => {}
            Some(Ok(result)) => return Some(format!("gave {result}, not {wanted}")),
            Some(Err(error)) => return Some(format!("failed with {error}, not {wanted}")),
            None => return Some(format!("gave nothing more, not {wanted}")),
        }
    }
    match results.next() {
        Some(Ok(result)) => Some(format!("gave {result} beyond what it should")),
        Some(Err(error)) if !block.outputs.is_empty() => Some(format!("failed with {error} at the end")),
        _ => None,
    }
}

#[test]
fn jqs_own_tests() {
    let mut files: Vec<PathBuf> = fs::read_dir(directory())
        .expect("a directory of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "test"))
        .collect();
    files.sort();
    let mut failed = Vec::new();
    let (mut total, mut all_excepted) = (0, 0);
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let blocks = blocks(&fs::read_to_string(&path).expect("a file"));
        let mut passed = 0;
        let mut excepted = 0;
        for block in &blocks {
            total += 1;
            match wrong(block) {
                None => passed += 1,
                Some(_) if EXCEPTIONS.iter().any(|(part, _)| block.program.contains(part)) => excepted += 1,
                Some(wrong) => failed.push(format!("{name}: {}: {wrong}", block.program)),
            }
        }
        all_excepted += excepted;
        println!("{name}: {} cases, {passed} passed, {excepted} excepted", blocks.len());
    }
    assert!(total > 0 && all_excepted * 20 <= total, "{all_excepted} of {total} are excepted");
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
