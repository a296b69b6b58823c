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
    let members = named_members(2_000);
    let shared = format!("[1, 2] | def f: {{{members}, zzz: f}}; f");
    let parts = "\\(.[])".repeat(2_000);
    let shared_text = format!("[1, 2] | def f: \"\\(f){parts}\"; f");
    let empty_parts = format!("range(1e9) as $i | \"\" | \"{}\" | empty", "\\(.)".repeat(3_900));
    let names: Vec<String> = (0..1_300).map(|at| format!("{}", Letters(at))).collect();
    let passed = names.join(";");
    let ones = vec!["1"; names.len()].join(";");
    let passes = format!("def f({passed}): f({passed}); f({ones})");
    let far = format!("1 as $x | def f({passed}): range(1e9) | $x | empty; f({ones})");
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
        r#"("x" * 7000000) as $s | range(1e9) | try -$s catch empty"#,
        r#"{("x" * 7000000): 1} as $s | range(1e9) | try -$s catch empty"#,
        r#"("x" * 3000000) as $s | range(1e9) | ($s + "y") | empty"#,
        r#"("[" + "1," * 100000 + "1]" | fromjson) as $s | range(1e9) | ($s + [1]) | empty"#,
        r#"("[" + "1," * 100000 + "1]" | fromjson) as $s | range(1e9) | ($s | .[0] = 2) | empty"#,
        "(reduce range(10000) as $i ({}; .[$i | tostring] = $i)) as $o | range(1e9) | ($o | .a = 1) | empty",
        "(reduce range(10000) as $i ({}; .[$i | tostring] = $i)) as $o | range(1e9) | ($o + {a: 1}) | empty",
        r#"("x" * 200000) | gsub("x"; "yy") | until(false; .)"#,
        "(reduce range(20000) as $i ({}; .[$i | tostring] = $i)) as $o | range(1e9) | select($o == {})",
        "(reduce range(20000) as $i ({}; .[$i | tostring] = $i)) as $o | range(1e9) | select($o < {})",
        "(reduce range(20000) as $i ({}; .[$i | tostring] = $i)) as $o | range(1e9) | select([$o] < [{}])",
        "(reduce range(9999) as $i ({}; .[$i | tostring] = $i)) as $o | [range(9999) | {}] | range(1e9) as $i | ([$o | .a = $i] | bsearch({})) | empty",
        "(reduce range(9999) as $i ({}; .[$i | tostring] = $i)) as $o | [range(5000) | {}] + [$o] + [range(5000) | {}] | until(false; sort)",
        r#"("1" * 3000000) as $s | range(1e9) | ($s | tonumber) | empty"#,
        r#"("a" * 20000) as $p | ("a" * 40000) | indices($p) | until(false; .)"#,
        r#"("ab" * 100000) as $p | ("a" * 100000) as $s | range(1e9) | ($s | indices($p)) | empty"#,
        "[range(20000)] as $a | [range(20000) | $a] | indices([$a | .[19999] = 0]) | until(false; .)",
        r#"("a" * 20000) as $s | range(1e9) | ($s | test("(a?){300}b")) | empty"#,
        r#"("a" * 20000) as $s | range(1e9) | ($s | test("(a?b?c?){30}!")) | empty"#,
        r#"("a" * 20000) as $s | range(1e9) | ($s | test("(.*,){50}$")) | empty"#,
        r#"("a" * 2000) as $s | range(1e9) | ($s | [match("(a?){90}$"; "g")]) | empty"#,
        r#"("ab" * 2000) as $s | range(1e9) | ($s | [match("((a|b)?){400}$"; "g")]) | empty"#,
        r#"("abcdefghij" * 2000) as $s | range(1e9) | ($s | test("[a-q][^u-z]{13}x")) | empty"#,
        r#"("abcdefghij" * 2000) as $s | range(1e9) | ($s | test("(a|b|ab)*[ac].{300}x")) | empty"#,
        r#"("\u00e9b" * 2000) as $s | range(1e9) | ($s | test("(\\w?\\d?){20}!")) | empty"#,
        r#"("\u00e9b" * 2000) as $s | range(1e9) | ($s | [match("(\\w?){9}(\\pL|\\d)+!"; "g")]) | empty"#,
        r#"range(1e9) as $i | ("" | test("\\w{\($i % 40)}x{\($i % 30)}\($i)")) | empty"#,
        r#"range(1e9) as $i | ("" | test("x{\(1000 + $i)}")) | empty"#,
        r#"range(1e9) as $i | ("" | try test("\\w{\(200 + $i)}") catch .) | empty"#,
        r#""a" | test("\\w" * 8000) | until(false; .)"#,
        r#"range(1e9) as $i | ("a" | try test("\\w" * 900 + "\($i)") catch .) | empty"#,
        r#"range(1e9) as $i | ("a" | try test("(?i)" + "\\p{Any}" * 500 + "\($i)") catch .) | empty"#,
        r#"range(1e9) as $i | ("a" | try test("[ -\uffff]" * 500 + "\($i)"; "i") catch .) | empty"#,
        r#"range(1e9) as $i | ("a" | try test("[^-\\w]" * 50 + "\($i)"; "i") catch .) | empty"#,
        r#""[" + "{\"\":0}," * 130000 + "1]" | fromjson | until(false; .)"#,
        r#""[" + "[[]]," * 130000 + "1]" | fromjson | until(false; .)"#,
        r#""{\"a\":" * 100 + "1" + ",\"b\":[1,1,1]}" * 100 | fromjson | until(false; .)"#,
        &empty_parts,
        &passes,
        &far,
        &shared,
        &shared_text,
        r#"("y" * 7000000) as $s | [range(190) | try ("a" | test("a"; $s)) catch .] | until(false; .)"#,
        r#"("y" * 2000) as $s | [range(1e9) | try ("a" | strptime($s)) catch .]"#,
        "[range(1e9) | try error catch .] | length",
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

/// A name of three letters.
struct Letters(u32);

impl std::fmt::Display for Letters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let letter = |at: u32| char::from_u32(u32::from('a') + at % 26).expect("a letter");
        write!(f, "{}{}{}", letter(self.0 / 676), letter(self.0 / 26), letter(self.0))
    }
}

/// `aaa: .[], aab: .[], …`
fn named_members(count: u32) -> String {
    (0..count).map(|at| format!("{}:.[]", Letters(at))).collect::<Vec<_>>().join(",")
}

/// Runs on a stack as small as the threads of a host have.
fn on_a_small_stack(run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(run)
        .expect("a thread")
        .join()
        .expect("does not panic");
}

#[test]
fn patterns_of_any_width_leave_the_stack_alone() {
    on_a_small_stack(|| {
        for count in [101, 1_000, 4_000] {
            let variables = vec!["$a"; count].join(",");
            for text in [
                format!("1 as [{variables}] | 1"),
                format!("1 as {{{variables}}} | 1"),
                format!("reduce 1 as [{variables}] (0; 1)"),
                format!("1 as $b ?// [{variables}] | 1"),
            ] {
                let error = Program::parse(&text, &[]).expect_err("too wide");
                assert!(error.message.contains("more than 100 parts"), "{error}");
            }
        }
        // In all that a term is in, not in each.
        let fifty = format!("1 as [{}] | ", vec!["$a"; 50].join(","));
        assert!(Program::parse(&format!("{}1", fifty.repeat(3)), &[]).is_err());
        // One after another they may have any number.
        let row = vec![format!("({fifty} $a)"); 60].join(",");
        assert_eq!(evaluate(&row.replace("1 as", "[1] as")), Ok(60));
        let hundred = format!("[range(100)] as [{}] | $a", vec!["$a"; 100].join(","));
        let deep = format!("{}{hundred}{}", "[".repeat(20), "]".repeat(20));
        assert_eq!(evaluate(&deep), Ok(1));
        let most = "def f: 1; ".repeat(190) + &hundred + &"+ 1".repeat(190);
        assert_eq!(evaluate(&most), Ok(1));
    });
}

#[test]
fn whole_numbers_beyond_doubles_are_sorted_with_doubles() {
    let sorts =
        [("sort", "sort"), ("unique", "unique"), ("group_by(.)", "group"), ("min", "min"), ("max", "max")];
    let numbers = [
        Value::Int(9_007_199_254_740_992),
        Value::Float(9_007_199_254_740_992.0),
        Value::Int(9_007_199_254_740_993),
        Value::Int(i64::MAX),
        Value::Float(9_223_372_036_854_775_808.0),
        Value::Int(i64::MIN),
        Value::Float(-9_223_372_036_854_775_808.0),
        Value::Float(f64::NAN),
        Value::Float(f64::NEG_INFINITY),
        Value::Float(0.5),
        Value::Float(-0.5),
        Value::Int(0),
        Value::Float(-0.0),
    ];
    // Any numbers that repeat themselves late will do.
    let mut state = 1_u64;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).expect("31 bits")
    };
    for round in 0..400 {
        let few = if round % 2 == 0 { 3 } else { numbers.len() };
        let items: Vec<Value> = (0..24 + round).map(|_| numbers[next() % few].clone()).collect();
        let list = Value::list(items).expect("flat");
        for (text, name) in sorts {
            let program = Program::parse(text, &[]).expect(name);
            program.first(list.clone(), &[], &Limits::default()).expect(name).expect("one");
        }
    }
    let sorted =
        Program::parse("[9007199254740993, 9007199254740992, 9007199254740993] | sort | tojson", &[]);
    let sorted = sorted.expect("reads").first(Value::Null, &[], &Limits::default()).expect("is fine");
    assert_eq!(sorted, Some("[9007199254740992,9007199254740993,9007199254740993]".into()));
    let less = Program::parse("[.[0] < .[1], .[1] < .[2], .[0] == .[1], .[0] < .[2]]", &[]).expect("reads");
    let input = Value::list(numbers[..3].to_vec()).expect("flat");
    let order = less.first(input, &[], &Limits::default()).expect("is fine").expect("one");
    assert_eq!(order.to_string(), "[false,true,true,true]");
}

#[test]
fn what_is_done_takes_the_same_steps_whoever_holds_the_input() {
    let text = r#".a += "y" | .b += [1] | .c.d = 1 | .a + "z" | length"#;
    let program = Program::parse(text, &[]).expect("reads");
    let large = || {
        let json = serde_json::json!({"a": "x".repeat(10_000), "b": vec![0; 10_000], "c": {"e": 1}});
        Value::from_json(&json).expect("flat")
    };
    let held = large();
    let mut shared = program.run(held.clone(), &[], &Limits::default());
    let mut alone = program.run(large(), &[], &Limits::default());
    assert_eq!(shared.next(), alone.next());
    assert_eq!(shared.steps(), alone.steps());
    assert_eq!(held, large(), "what is held stays as it was");
    // And what an evaluation made counts in the next as what was read from a store.
    let made = Program::parse(".", &[]).expect("reads").first(large(), &[], &Limits::default());
    let made = made.expect("is fine").expect("one");
    let copied = Program::parse(".b += [1]", &[]).expect("reads").first(made, &[], &Limits::default());
    let copied = copied.expect("is fine").expect("one");
    let again = Value::from_json(&copied.to_json()).expect("flat");
    let (mut live, mut read) =
        (program.run(copied, &[], &Limits::default()), program.run(again, &[], &Limits::default()));
    assert_eq!(live.next(), read.next());
    assert_eq!(live.steps(), read.steps());
}

#[test]
fn replacing_many_matches_takes_steps_in_proportion() {
    let program = Program::parse(r#""ab" * 500 | gsub("(?<x>a)"; .x + "-") | length"#, &[]).expect("reads");
    assert_eq!(program.first(Value::Null, &[], &Limits::default()), Ok(Some(Value::Int(1500))));
}

#[test]
fn what_expressions_are_written_for_is_within_the_limit() {
    let usual = [
        (
            r#"[range(1000) | "2024-05-\(10 + . % 20)" | capture("(?<y>\\d{4})-(?<m>\\d{2})-(?<d>\\d{2})")] | length"#,
            1000,
        ),
        (
            r#"[range(100) | "user\(.)@example.com" | select(test("^[\\w.+-]+@[\\w-]+\\.[\\w.]+$"; "i"))] | length"#,
            100,
        ),
        (r#"("error: code 17\n" * 500) | [scan("code [0-9]+")] | length"#, 500),
        (r#"("some words here " * 100) | [splits(" +")] | length"#, 301),
        (r#"("{\"a\":[1,2]}," * 2000 | "[" + . + "1]" | fromjson | length)"#, 2001),
        (r#"[range(2000) | {id: ., name: "n\(.)"}] | map(select(.id < 100)) | length"#, 100),
    ];
    for (text, expected) in usual {
        let program = Program::parse(text, &[]).expect(text);
        let mut results = program.run(Value::Null, &[], &Limits::default());
        assert_eq!(results.next(), Some(Ok(Value::Int(expected))), "{text}");
        println!("{:6} steps  {text}", results.steps());
    }
}

#[test]
fn messages_are_short() {
    for text in
        [r#""a" | test("(" * 9000)"#, r#""a" | test("a"; "q" * 9000)"#, r#""a" | strptime("y" * 9000)"#]
    {
        let program = Program::parse(text, &[]).expect("reads");
        match program.first(Value::Null, &[], &Limits::default()) {
            Err(Error::Raised(Value::String(message))) => assert!(message.as_str().len() <= 1024, "{text}"),
            other => panic!("{text}: {other:?}"),
        }
    }
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
