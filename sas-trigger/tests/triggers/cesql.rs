//! CESQL: the specification's own cases, and what they leave open.

use std::{fs, path::PathBuf};

use proptest::prelude::*;
use sas_core::Event;
use sas_trigger::cesql::{EvaluationError, Expression, Value};
use serde_json::Value as Json;

fn directory() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("cesql"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cesql"),
    }
}

fn event(case: &Json) -> Event {
    let mut members = serde_json::json!({"id": "1", "source": "/cases", "type": "case"});
    for from in ["event", "eventOverrides"] {
        for (name, value) in case[from].as_object().into_iter().flatten() {
            members[name] = value.clone();
        }
    }
    let text = |name: &str| members[name].as_str().unwrap_or_default().to_owned();
    let mut event = Event::new(text("id"), text("source"), text("type")).expect("a valid event");
    for (name, value) in members.as_object().expect("members") {
        event = match (name.as_str(), value) {
            ("id" | "source" | "type" | "specversion", _) => event,
            ("subject", _) => event.with_subject(text(name)).expect("a subject"),
            ("datacontenttype", _) => event.with_data(text(name), "").expect("a media type"),
            ("dataschema", _) => event.with_data_schema(text(name)).expect("a schema"),
            ("time", _) => {
                let time: jiff::Timestamp = text(name).parse().expect("a time");
                event.with_time(sas_core::Timestamp(i64::try_from(time.as_nanosecond()).expect("in range")))
            }
            (_, Json::Bool(value)) => event.with_extension(name, *value).expect("an extension"),
            (_, Json::Number(value)) => {
                let value = value.as_i64().and_then(|value| i32::try_from(value).ok()).expect("an integer");
                event.with_extension(name, value).expect("an extension")
            }
            _ => event.with_extension(name, text(name)).expect("an extension"),
        };
    }
    event
}

fn kind(error: &EvaluationError) -> &'static str {
    match error {
        EvaluationError::Math(_) => "math",
        EvaluationError::Cast { .. } => "cast",
        EvaluationError::MissingAttribute(_) => "missingAttribute",
        EvaluationError::MissingFunction { .. } => "missingFunction",
        EvaluationError::Function(_) => "functionEvaluation",
        _ => "generic",
    }
}

/// What is wrong with a case; `None`: it passes.
fn fails(case: &Json) -> Option<String> {
    // A file may write a literal without quotation marks.
    let text = match &case["expression"] {
        Json::String(text) => text.clone(),
        literal => literal.to_string(),
    };
    let text = text.as_str();
    let wanted_error = case["error"].as_str();
    let expression = match Expression::parse(text) {
        Ok(expression) => expression,
        Err(_) if wanted_error == Some("parse") => return None,
        Err(error) => return Some(format!("{text}: {error}")),
    };
    if wanted_error == Some("parse") {
        return Some(format!("{text}: was parsed"));
    }
    let evaluation = expression.evaluate(&event(case));
    let value = match &evaluation.value {
        Value::Boolean(value) => Json::from(*value),
        Value::Integer(value) => Json::from(*value),
        Value::String(value) => Json::from(value.as_str()),
    };
    let error = evaluation.error.as_ref().map(kind);
    let right = (case.get("result").is_none_or(|wanted| *wanted == value)) && error == wanted_error;
    (!right).then(|| format!("{text}: {value} with {error:?}, not {} with {wanted_error:?}", case["result"]))
}

#[test]
fn the_cases_of_the_specification() {
    let mut total = 0;
    let mut failed = Vec::new();
    let mut files: Vec<PathBuf> = fs::read_dir(directory())
        .expect("a directory of cases")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    for path in files {
        let file: Json =
            serde_saphyr::from_str(&fs::read_to_string(&path).expect("a file")).expect("a file of cases");
        let cases = file["tests"].as_array().expect("tests");
        let wrong: Vec<String> = cases.iter().filter_map(fails).collect();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        println!("{name}: {} cases, {} passed", cases.len(), cases.len() - wrong.len());
        total += cases.len();
        failed.extend(wrong.into_iter().map(|wrong| format!("{name}: {wrong}")));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(total > 0);
}

#[test]
fn what_the_specification_says_in_words() {
    let yes = Value::Boolean(true);
    let no = Value::Boolean(false);
    let text = |text: &str| Value::String(text.to_owned());
    for (expression, value, error) in [
        // 3.2: the value of a subexpression with a missing attribute.
        ("true AND (missing = \"\")", no.clone(), Some("missingAttribute")),
        ("1 / missing", Value::Integer(0), Some("missingAttribute")),
        ("missing", no.clone(), Some("missingAttribute")),
        ("LENGTH(missing)", Value::Integer(0), Some("missingAttribute")),
        ("CONCAT('a', missing)", text(""), Some("missingAttribute")),
        ("missing NOT IN ('a')", no.clone(), Some("missingAttribute")),
        ("missing NOT LIKE 'a'", no.clone(), Some("missingAttribute")),
        ("NOT missing", no.clone(), Some("missingAttribute")),
        // 3.4.2: what is decided is not evaluated on.
        ("true OR missing", yes.clone(), None),
        ("false AND (1 / 0 = 1)", no.clone(), None),
        ("false OR (1 / 0 = 1)", no.clone(), Some("math")),
        // 3.4.2: arithmetic.
        ("5 / 0", Value::Integer(0), Some("math")),
        ("-7 / 2", Value::Integer(-3), None),
        ("-7 % 2", Value::Integer(-1), None),
        ("7 % -2", Value::Integer(1), None),
        ("-2147483648", Value::Integer(i32::MIN), None),
        ("2147483647 + 1", Value::Integer(0), Some("math")),
        ("-2147483648 / -1", Value::Integer(0), Some("math")),
        ("-2147483648 % -1", Value::Integer(0), None),
        ("4 -1", Value::Integer(3), None),
        ("4-1-1", Value::Integer(2), None),
        ("2 + 3 * 4", Value::Integer(14), None),
        ("(2 + 3) * 4", Value::Integer(20), None),
        // 3.6: unary operators bind tighter than the others, equal precedence goes from the left.
        ("NOT true = false", yes.clone(), None),
        ("true OR true AND false", no.clone(), None),
        ("1 = 1 = true", yes.clone(), None),
        // 3.7: casts.
        ("TRUE = \"true\" AND FALSE = \"false\"", yes.clone(), None),
        ("TRUE = \"TRUE\" OR FALSE = \"FALSE\"", no.clone(), None),
        ("'abc' = 1", no.clone(), Some("cast")),
        ("'10' = 10", yes.clone(), None),
        ("'1' AND true", no.clone(), Some("cast")),
        ("1 AND true", yes.clone(), None),
        ("'+5' + 1", Value::Integer(6), None),
        ("'99999999999' + 1", Value::Integer(0), Some("cast")),
        ("INT('abc')", Value::Integer(0), Some("cast")),
        ("BOOL('yes')", no.clone(), Some("cast")),
        ("1 IN ('1', 2)", yes.clone(), None),
        ("'1' IN (1, 2)", yes.clone(), None),
        ("true IN ('TRUE')", yes.clone(), None),
        // 3.4.3: patterns.
        ("'a%b' LIKE 'a\\%b'", yes.clone(), None),
        ("'a\\b' LIKE 'a\\b'", yes.clone(), None),
        ("'' LIKE '%'", yes.clone(), None),
        ("'' LIKE '_'", no.clone(), None),
        ("'ABC' LIKE 'abc'", no.clone(), None),
        ("'é' LIKE '_'", yes, None),
        // 2.2: literals.
        ("'it\\'s'", text("it's"), None),
        ("\"say \\\"so\\\"\"", text("say \"so\""), None),
        ("\"it's\"", text("it's"), None),
        // 3.5: functions.
        ("NOSUCH(1)", no.clone(), Some("missingFunction")),
        ("LENGTH('a', 'b')", no, Some("missingFunction")),
        ("length('äb')", Value::Integer(2), None),
        ("SUBSTRING('abcdef', 0)", text(""), None),
        ("SUBSTRING('abcdef', -2)", text("ef"), None),
        ("SUBSTRING('abcdef', -2, 9)", text("ef"), None),
        ("SUBSTRING('abcdef', 2, -1)", text(""), Some("functionEvaluation")),
        ("LEFT('abc', -1)", text("abc"), Some("functionEvaluation")),
        ("CONCAT_WS('-', 'a', 1, true)", text("a-1-true"), None),
        ("TRIM('\u{2003}a ')", text("a"), None),
    ] {
        let parsed = Expression::parse(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        let evaluation = parsed.evaluate(&Event::new("1", "/here", "kind").expect("valid"));
        assert_eq!((&evaluation.value, evaluation.error.as_ref().map(kind)), (&value, error), "{expression}");
    }
}

#[test]
fn what_is_no_expression_is_refused_with_its_place() {
    for (expression, at) in [
        ("", 0),
        ("1 +", 3),
        ("(1", 2),
        ("1)", 1),
        ("ABC(", 4),
        ("id LIKE source", 8),
        ("id LIKE ", 8),
        ("id IN ()", 8),
        ("'open", 0),
        ("2147483648", 0),
        ("a_b", 0),
        ("EXISTS 'id'", 7),
        ("id = ;", 5),
        ("1 2", 2),
        ("NOT", 3),
        ("and = 1", 0),
        ("+id", 1),
    ] {
        let error = Expression::parse(expression).expect_err(expression);
        assert_eq!(error.at, at, "{expression}: {error}");
    }
    let deep = format!("{}1{}", "(".repeat(10_000), ")".repeat(5_000));
    assert!(Expression::parse(&deep).is_err());
    for deep in
        ["NOT ".repeat(3_000) + "true", "-".repeat(9_000) + "x", "x".to_owned() + &" LIKE 'x'".repeat(1_500)]
    {
        assert!(Expression::parse(&deep).is_err(), "{}", &deep[..20]);
    }
    assert!(Expression::parse(&format!("'{}'", "x".repeat(20_000))).is_err());
    let long = format!("true{}", " AND true".repeat(1_800));
    assert!(
        Expression::parse(&long).expect("long is not deep").wants(&Event::new("1", "/", "t").expect("valid"))
    );
}

#[test]
fn a_hostile_pattern_takes_no_time() {
    let pattern = format!("id LIKE '{}b'", "%a".repeat(2_000));
    let event = Event::new("a".repeat(10_000), "/", "t").expect("valid");
    assert!(!Expression::parse(&pattern).expect("parses").wants(&event));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_text_panics(text in "[ a-zA-Z0-9_'\"%()=<>!,+*/\\\\-]{0,60}") {
        if let Ok(expression) = Expression::parse(&text) {
            expression.evaluate(&Event::new("1", "/", "t").expect("valid"));
        }
    }
}
