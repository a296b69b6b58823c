//! What no expression may do: end the host, hold it up, fill its memory, or reach it.

use std::fs;

use proptest::prelude::*;
use sas_jq::{Error, Limits, Program, Value};

/// The most memory that this process ever had since it was last asked, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let peak = line.split_whitespace().nth(1).expect("a number").parse().expect("a number");
    fs::write("/proc/self/clear_refs", "5").expect("resets the peak");
    peak
}

/// What this thread has computed, in milliseconds: other tests run beside it.
fn computed() -> f64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    let first = text.split_whitespace().next().expect("three numbers");
    first.parse::<f64>().expect("nanoseconds") / 1e6
}

fn evaluate(text: &str) -> Result<usize, String> {
    let program = Program::parse(text, &[]).map_err(|error| error.to_string())?;
    let mut count = 0;
    for result in program.run(Value::Null, &[], &Limits::default()) {
        result.map_err(|error| error.to_string())?;
        count += 1;
    }
    Ok(count)
}

#[test]
fn the_hostile_are_refused_at_once_and_in_little_memory() {
    let parentheses = format!("{}1{}", "(".repeat(200_000), ")".repeat(200_000));
    let brackets = format!("{}1{}", "[".repeat(2_000), "]".repeat(2_000));
    let negated = format!("{}1", "-".repeat(10_000));
    let optional = format!(".{}", "?".repeat(10_000));
    let fields = format!(".{}", "a.".repeat(5_000));
    let sum = format!("1{}", "+1".repeat(5_000));
    let bindings = "1 as $x|".repeat(1_500) + "$x";
    let definitions = "def f: 1; ".repeat(1_000) + "f";
    let nested = "def f: ".repeat(1_000);
    let text = format!("\"{}", "\\(\"".repeat(2_000));
    let conditions = "if 1 then ".repeat(1_000);
    let alternatives = ". as [$a] ?// [$b] ?// [$c] ?// $d | ".repeat(12) + "1";
    let pattern = format!(". as {}$x{} | 1", "[".repeat(3_000), "]".repeat(3_000));
    let hostile = [
        "def f: 1 + f; f",
        "def f: [f]; f",
        r#""abc" * 1000000000"#,
        "reduce range(1e7) as $x (null; [.])",
        &parentheses,
        "def f: f; f",
        "[range(1e9)]",
        "last(range(1e12))",
        "[recurse(. + 1)]",
        r#""a" | until(false; . + .)"#,
        "[limit(1e9; repeat(1))]",
        "reduce range(1e5) as $x ([]; [., .]) | tojson",
        "reduce range(60) as $x ([1]; [., .]) | . == (reduce range(60) as $x ([1]; [., .]))",
        "reduce range(30) as $x (\"a\"; . + .)",
        r#"("a" * 100000) | [match("(a|a?)+"; "g")] | until(false; .)"#,
        r#""a" | test("((a{100}){100}){100}")"#,
        "[][1e9] = 1",
        "[range(1000)] | [combinations(4)]",
        "def f(g): f(g | g); f(.)",
        "def f(g): g | f(f(g)); f(.)",
        "[1] | recurse([., .])",
        r#"("x" * 1000000) | gsub(""; "yyyyyyyyyyyyyyyyyyyyyyy")"#,
        "try repeat(error) catch repeat(.)",
        "[range(1e6)] | sort",
        "[range(1e5)] - [range(1e5)]",
        "[range(1e5) | tostring] | join(\",\") | [splits(\",\")]",
        "[range(0; 1e9; 1e-300)]",
        "range(1e9) as $x | empty",
        "label $out | repeat(1) | empty",
        "[range(1e5)] | [paths] | map(tojson) | add * 1000",
        "reduce range(1e6) as $x ({}; .[$x | tostring] = $x)",
        "[range(1e6)] | map({(tostring): .}) | add",
        "reduce range(1e6) as $x ({}; setpath([range(100) | tostring]; $x))",
        r#"[limit(1e6; repeat("\u0000"))] | implode | @uri | @html | @sh | @base64"#,
        "[range(200)] | map([range(200)]) | transpose | .[] |= transpose? | until(false; transpose)",
        "[range(1e4)] | map([range(1e4)])",
        "null | path(repeat(.a))",
        "def a: b; def b: a; a",
        r#""[" * 100000 | fromjson"#,
        r#"[range(100000)] | tojson | until(false; tojson)"#,
        "foreach range(1e12) as $x (0; . + 1; empty)",
        "def f(a; b; c): f(a, b; b, c; c, a) | f(b; c; a); f(1; 2; 3)",
        "try (def f: f | f; f) catch 1",
        "last(repeat(.))",
        "while(true; .)",
        "[.[]?] | until(length > 1e9; . + [1, 2, 3])",
        r#"("ab" * 50000) | ascii_downcase | explode | map([.]) | flatten | implode | indices("b") | length | until(false; .)"#,
        "limit(1e15; range(1e15)) | select(false)",
        "skip(1e15; repeat(1))",
        "[range(1e5)] | group_by(. % 2) | map(map([.])) | until(false; map(add))",
        "reduce range(1e9) as [$a, {b: $c}] (0; .)",
        "getpath([range(1e6)])",
        "[range(5000)] | tojson | test(\"(.*,){50}$\") | until(false; .)",
        "@json \"\\(range(1e9))\" | empty",
        &brackets,
        &negated,
        &optional,
        &fields,
        &sum,
        &bindings,
        &definitions,
        &nested,
        &text,
        &conditions,
        &alternatives,
        &pattern,
        "env",
        "$ENV.PATH",
        "input",
        "[inputs]",
        "now",
        "halt",
        "\"x\" | halt_error",
        "debug",
        "input_filename",
        "import \"a\" as a; 1",
        "include \"a\"; 1",
        "get_search_list",
        "$__prog_args",
        "input_line_number",
    ];
    // What is loaded at the first use counts for none of them.
    evaluate("[1] | map(. + 1) | tojson | test(\"a\")").expect("is fine");
    let mut wrong = Vec::new();
    let (mut slowest, mut largest) = (0.0_f64, 0);
    for text in hostile {
        let shown: String = text.chars().take(60).collect();
        peak();
        let before = peak();
        let begun = computed();
        let result = evaluate(text);
        let took = computed() - begun;
        let grown = peak().saturating_sub(before);
        println!("{took:7.1} ms {grown:6} KiB  {shown}: {result:?}");
        slowest = slowest.max(took);
        largest = largest.max(grown);
        if let Ok(count) = result {
            wrong.push(format!("{shown}: gave {count} results"));
        }
        if took > 100.0 || grown > 16 << 10 {
            wrong.push(format!("{shown}: {took:.0} ms, {grown} KiB"));
        }
    }
    println!("{} expressions: at most {slowest:.1} ms and {largest} KiB", hostile.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(evaluate("1, 2"), Ok(2), "the host goes on");
}

#[test]
fn limits_are_no_errors_that_an_expression_can_catch() {
    let limits = Limits { steps: 10_000, bytes: 1 << 20 };
    for text in ["try (def f: f; f) catch 1", "(def f: f; f)? // 1", "[.[]?, (def f: f; f)] | 1"] {
        let program = Program::parse(text, &[]).expect(text);
        assert_eq!(program.first(Value::Null, &[], &limits), Err(Error::Steps(10_000)), "{text}");
    }
    let program = Program::parse("try ([range(1e6)]) catch 1", &[]).expect("reads");
    let limits = Limits { steps: 10_000_000, bytes: 1 << 20 };
    assert_eq!(program.first(Value::Null, &[], &limits), Err(Error::Bytes(1 << 20)));
}

#[test]
fn loops_that_hold_nothing_run_as_long_as_they_have_steps() {
    let limits = Limits { steps: 100_000_000, bytes: 1 << 20 };
    for text in [
        "0 | until(. == 200000; . + 1)",
        "last(range(200001))",
        "reduce range(200000) as $x (0; . + 1)",
        "def f(g): if . == 200000 then . else . + 1 | f(g) end; 0 | f(.)",
        "[limit(1; repeat(1))] | last(foreach range(200000) as $x (0; . + 1))",
    ] {
        let program = Program::parse(text, &[]).expect(text);
        assert_eq!(program.first(Value::Null, &[], &limits), Ok(Some(Value::Int(200_000))), "{text}");
    }
}

/// Programs of a small grammar, most of which mean something.
fn programs() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        ".",
        "..",
        "1",
        "-1.5",
        "null",
        "true",
        "\"a\"",
        "[]",
        "{}",
        ".a",
        ".[]",
        ".[0]",
        ".[1:]",
        ".a?",
        "$x",
        "$x[0]",
        "empty",
        "error",
        "nan",
        "infinite",
        "length",
        "keys",
        "add",
        "tojson",
        "tostring",
        "not",
        "type",
        "sort",
        "f",
        "break $out",
        "tojson | fromjson?",
        "paths",
        "to_entries?",
        "flatten?",
        "range(3)",
        "@base64",
        "input_output?",
        "\"\\(.)-\\(1, 2)\"",
        "unique?",
        "reverse?",
        "transpose?",
        "ascii?",
        "implode?",
        "explode?",
        "min",
        "tostream",
    ])
    .prop_map(str::to_owned);
    leaf.prop_recursive(6, 40, 3, |inner| {
        let two = (inner.clone(), inner.clone());
        let three = (inner.clone(), inner.clone(), inner.clone());
        let operators = prop::sample::select(vec![
            "|", ",", "+", "-", "*", "/", "%", "//", "and", "or", "==", "<", "=", "|=", "+=", "//=",
        ]);
        prop_oneof![
            (inner.clone(), operators, inner.clone()).prop_map(|(a, o, b)| format!("({a}) {o} ({b})")),
            inner.clone().prop_map(|a| format!("[{a}]")),
            two.clone().prop_map(|(a, b)| format!("{{(({a}) | tostring): ({b})}}")),
            three.clone().prop_map(|(a, b, c)| format!("if {a} then {b} else {c} end")),
            two.clone().prop_map(|(a, b)| format!("try ({a}) catch ({b})")),
            three.clone().prop_map(|(a, b, c)| format!("reduce ({a}) as $x ({b}; {c})")),
            three.prop_map(|(a, b, c)| format!("foreach ({a}) as [$x] ({b}; {c}; .)")),
            two.clone().prop_map(|(a, b)| format!("({a}) as [$x, {{a: $y}}] ?// $x | {b}")),
            inner.clone().prop_map(|a| format!("(label $out | {a})")),
            two.clone().prop_map(|(a, b)| format!("(def f: {a}; {b})")),
            two.clone().prop_map(|(a, b)| format!("(def f(g): g, {a}; f({b}))")),
            inner.clone().prop_map(|a| format!("path({a})")),
            inner.clone().prop_map(|a| format!("del({a})")),
            inner.clone().prop_map(|a| format!("first({a})")),
            two.clone().prop_map(|(a, b)| format!("limit({a}; {b})")),
            inner.clone().prop_map(|a| format!("map({a})")),
            inner.clone().prop_map(|a| format!("walk({a})")),
            two.clone().prop_map(|(a, b)| format!("recurse({a}; {b})")),
            inner.clone().prop_map(|a| format!("sort_by({a})")),
            two.clone().prop_map(|(a, b)| format!("setpath([{a}]; {b})")),
            inner.clone().prop_map(|a| format!("({a})[]")),
            two.prop_map(|(a, b)| format!("({a})[{b}]?")),
            inner.clone().prop_map(|a| format!("with_entries({a})")),
            inner.prop_map(|a| format!("gsub(\"a\"; {a})")),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_program_panics_or_takes_more_than_it_may(program in programs(), at in 0_usize..6) {
        let inputs = ["null", "1", "\"aba\"", "[1,[2,null],{\"a\":3}]", "{\"a\":[1,2],\"b\":{\"a\":null}}", "[]"];
        let input = Value::from_json(&serde_json::from_str(inputs[at]).expect("JSON")).expect("flat");
        let limits = Limits { steps: 20_000, bytes: 1 << 20 };
        let whole = format!("def f: .; label $out | . as $x | {program}");
        if let Ok(program) = Program::parse(&whole, &[]) {
            let mut results = program.run(input.clone(), &[], &limits);
            let all: Vec<_> = results.by_ref().take(1_000).collect();
            prop_assert!(results.steps() <= 20_000);
            // The same gives the same, to the last bit and step.
            let mut again = program.run(input, &[], &limits);
            let same: Vec<_> = again.by_ref().take(1_000).collect();
            prop_assert_eq!(format!("{all:?}"), format!("{same:?}"));
            prop_assert_eq!(results.steps(), again.steps());
        }
    }

    #[test]
    fn no_text_panics(text in "[ a-z0-9$@.,|()\\[\\]{}:;\"\\\\?/+*=<>-]{0,60}") {
        if let Ok(program) = Program::parse(&text, &[]) {
            let _ = program.run(Value::Null, &[], &Limits { steps: 10_000, bytes: 1 << 20 }).count();
        }
    }
}
