//! Definitions: those of the specification and of other SDKs, and what is wrong with others.

use std::{fs, path::PathBuf};

use sas_workflow::Definition;
use serde_json::Value as Json;

fn directory() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"),
    }
}

#[test]
fn every_valid_file_is_read_and_none_of_its_fields_is_lost() {
    let index = fs::read_to_string(directory().join("workflow/index.json")).expect("an index");
    let index: Vec<Json> = serde_json::from_str(&index).expect("a list");
    let mut wrong = Vec::new();
    let (mut read, mut refused) = (0, 0);
    for entry in &index {
        let name = entry["file"].as_str().expect("a name");
        let text = fs::read_to_string(directory().join(name)).expect("a file");
        match (Definition::parse(&text), entry["schema_valid"] == true) {
            (Ok(definition), true) => {
                // The reader takes every field, or finds it unknown; what it keeps is what was written.
                let written: Json = serde_saphyr::from_str(&text).expect("YAML");
                let again = Definition::parse(&definition.document().to_string()).expect("its own JSON");
                if *definition.document() != written || again.digest() != definition.digest() {
                    wrong.push(format!("{name}: not the same after a round trip"));
                }
                read += 1;
            }
            (Err(mistakes), false) => {
                assert!(mistakes.0.iter().all(|mistake| mistake.pointer.starts_with('/')), "{mistakes}");
                refused += 1;
            }
            (Ok(_), false) => wrong.push(format!("{name}: read, though it is wrong")),
            (Err(mistakes), true) => wrong.push(format!("{name}: {mistakes}")),
        }
    }
    println!("index.json: {} files, {read} read and written back, {refused} refused", index.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), index.len(), wrong.join("\n"));
}

/// A definition with this in `do`, and the pointers of its mistakes.
fn pointers(tasks: &str) -> Vec<String> {
    let text = format!("document: {{dsl: '1.0.3', namespace: a, name: b, version: '1.0.0'}}\ndo:\n{tasks}");
    match Definition::parse(&text) {
        Ok(_) => Vec::new(),
        Err(mistakes) => mistakes.0.into_iter().map(|mistake| mistake.pointer).collect(),
    }
}

#[test]
fn all_mistakes_come_at_once_with_their_places() {
    let text = r#"
document: {dsl: '2.0.0', namespace: -a, version: x, extra: 1}
use:
  retries: {r: {backoff: {constant: {}, linear: {}}}}
  functions:
    f: {call: g}
    g: {call: f}
timeout: nowhere
input: {schema: {document: {type: nonsense}}}
schedule: {every: {weeks: 1}, read: data}
do:
  - a: {set: {}}
  - b: {wait: PT}
  - c: {call: http, with: {method: get}}
  - d: {switch: [{x: {when: '.a ==', then: nowhere}}]}
  - e: {fork: {branches: [{f: {set: {a: 1}, do: []}}]}}
  - a: {raise: {error: missing}}
  - g: {for: {each: input, in: '.x'}, do: [{h: {set: {a: '${ $nope }'}}}]}
  - h: {try: [], catch: {errors: {with: {}}, retry: none}}
  - i: {listen: {to: {one: {with: {}}, any: []}}}
  - j: {emit: {event: {with: {source: x}}}}
  - k: {}
  - l: {then: m, do: []}
unknown: 1
"#;
    let mistakes = Definition::parse(text).unwrap_err();
    let found: Vec<&str> = mistakes.0.iter().map(|mistake| mistake.pointer.as_str()).collect();
    for pointer in [
        "/document/dsl",
        "/document/namespace",
        "/document",
        "/document/version",
        "/document/extra",
        "/use/retries/r/backoff",
        "/use/functions/f",
        "/use/functions/g",
        "/timeout",
        "/input/schema/document",
        "/schedule/every/weeks",
        "/schedule/read",
        "/do/0/a/set",
        "/do/1/b/wait",
        "/do/2/c/with",
        "/do/3/d/switch/0/x/when",
        "/do/4/e/fork/branches/0/f",
        "/do/5/a",
        "/do/5/a/raise/error",
        "/do/6/g/for/each",
        "/do/6/g/do/0/h/set/a",
        "/do/7/h/catch/errors/with",
        "/do/7/h/catch/retry",
        "/do/8/i/listen/to",
        "/do/9/j/emit/event/with",
        "/do/10/k",
        "/do/11/l/then",
        "/unknown",
    ] {
        assert!(found.contains(&pointer), "{pointer} is not in {found:#?}");
    }
}

#[test]
fn functions_call_each_other_neither_in_circles_nor_in_long_chains() {
    let chain = |length: usize| {
        let calls: String = (1..length).map(|n| format!("    f{n}: {{call: f{}}}\n", n + 1)).collect();
        let head = "document: {dsl: '1.0.3', namespace: a, name: b, version: '1.0.0'}\nuse:\n  functions:\n";
        let text = format!("{head}{calls}    f{length}: {{set: {{n: 1}}}}\ndo: [{{c: {{call: f1}}}}]\n");
        match Definition::parse(&text) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.0.into_iter().map(|mistake| mistake.pointer).collect(),
        }
    };
    assert!(chain(32).is_empty());
    assert_eq!(chain(33), ["/use/functions/f1"]);
    assert_eq!(chain(4_000), ["/use/functions/f3968"], "and that at once");
}

#[test]
fn what_is_no_definition_at_all_is_refused() {
    let deep = format!("{}{}", "{\"a\":".repeat(5_000), "}".repeat(5_000));
    let many = "a: &a [1,1]\nb: [*a,*a]\n".to_owned() + &"c: [*a]\n".repeat(2_000);
    for text in ["", "[]", "1", "a: [", "{", "&a [*a]", &deep, &many, &"x".repeat(2 << 20), "do: []"] {
        let shown: String = text.chars().take(20).collect();
        assert!(Definition::parse(text).is_err(), "{shown}");
    }
    let nested = "{do: [{a: ".repeat(40) + "{set: {b: 1}}" + &"}]}".repeat(40);
    assert!(!pointers(&format!("  - a: {nested}")).is_empty());
    assert_eq!(pointers("  - a: {set: {b: '${ env }'}}"), ["/do/0/a/set/b"]);
    assert_eq!(pointers("  - a: {set: {b: 'x ${ .a'}}"), ["/do/0/a/set/b"]);
    assert!(pointers("  - a: {set: {b: 'Hello ${ \"}\" + .x }, ${ .y }!'}}").is_empty());
}

#[test]
fn what_cannot_be_run_is_read_and_named() {
    let text = "
document: {dsl: '1.0.3', namespace: a, name: b, version: '1.0.0'}
do:
  - shell: {run: {shell: {command: ls}}}
  - grpc: {call: grpc, with: {proto: {endpoint: file://x}, service: {name: s, host: h}, method: m}}
";
    let definition = Definition::parse(text).expect("right");
    let refused: Vec<&str> = definition.refused().iter().map(|refused| refused.pointer.as_str()).collect();
    assert_eq!(refused, ["/do/0/shell/run/shell", "/do/1/grpc/call"]);
}
