//! Code that no honest toolchain makes.

use std::{fmt::Write as _, sync::Arc, time::Duration};

use sas_core::{ErrorKind, Retry, Runtime, TenantKey};
use sas_runtime_wasm::{CallLimits, CompileLimits, WasmConfig};

use crate::support::{HELLO, Stage, always, ask, bytes_spec, call, cx, cx_within, fails, get, spec};

/// An unsigned number as WebAssembly writes it.
fn leb(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let byte = u8::try_from(n & 0x7f).unwrap();
        n >>= 7;
        out.push(if n > 0 { byte | 0x80 } else { byte });
        if n == 0 {
            return out;
        }
    }
}

#[tokio::test]
async fn what_is_not_webassembly_is_refused_with_a_word_about_what_it_is() {
    let stage = Stage::small();
    let cases: [(&[u8], &str); 8] = [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"\x7fELF", "ELF"),
        (b"\0asm", "cut short at byte"),
        (b"\0asm\x07\0\0\0", "damaged"),
        (b"(module", "function.wasm"),
        (b"(module (func (export \"_start\") (unknown)))", "line:column 1:34"),
        (b"(\xff\xfe)", "not UTF-8"),
    ];
    for (code, problem) in cases {
        let error = stage.refusal(&bytes_spec("function.wasm", code.to_vec())).await;
        assert!(error.contains(problem), "{code:?}: {error}");
    }
}

#[tokio::test]
async fn errors_never_quote_what_is_in_a_file() {
    let stage = Stage::small();
    for secret in [
        "hunter2-secret",
        "(hunter2 secret)",
        "; hunter2\n(module hunter2",
        "(module (func $hunter2 (call $hunter3)))",
    ] {
        let error = stage.refusal(&bytes_spec("passwd", secret.into())).await;
        assert!(!error.contains("hunter"), "{error}");
    }
}

/// A module of functions of so many locals, each of which reads one of them so often.
fn heavy(functions: usize, locals: usize, reads: usize) -> Vec<u8> {
    let mut body = vec![1];
    body.extend(leb(locals));
    body.push(0x7f);
    body.extend([0x20, 0, 0x1a].repeat(reads));
    body.push(0x0b);
    let body = [leb(body.len()), body].concat();
    let section = |id: u8, content: Vec<u8>| [vec![id], leb(content.len()), content].concat();
    [
        b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0".to_vec(),
        section(3, [leb(functions), vec![0; functions]].concat()),
        b"\x05\x03\x01\0\x01\x07\x13\x02\x06_start\0\0\x06memory\x02\0".to_vec(),
        section(10, [leb(functions), body.repeat(functions)].concat()),
    ]
    .concat()
}

#[tokio::test]
async fn a_function_of_many_locals_and_much_code_is_refused_before_the_compiler_sees_it() {
    let stage = Stage::small();
    // 20,000 locals and a megabyte took the compiler seconds and a gigabyte.
    let module = heavy(1, 20_000, 300_000);
    let began = tokio::time::Instant::now();
    let error = stage.refusal(&bytes_spec("bomb.wasm", module)).await;
    assert!(error.contains("20000 locals") && error.contains("function_weight"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn many_functions_that_are_each_just_allowed_are_refused_together() {
    let compile =
        CompileLimits { function_weight: 4_000_000, module_weight: 8_000_000, ..CompileLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, compile, ..WasmConfig::default() });
    // 1,000 locals times 3,005 bytes.
    assert!(stage.runtime.prepare(&bytes_spec("two.wasm", heavy(2, 1_000, 1_000))).await.is_ok());
    let error = stage.refusal(&bytes_spec("three.wasm", heavy(3, 1_000, 1_000))).await;
    assert!(error.contains("more than 8000000") && error.contains("module_weight"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_with_two_modules_at_the_compiler_leaves_another_its_turn() {
    let stage = Stage::shared(WasmConfig { slots: 16, ..WasmConfig::default() });
    let mut told = Vec::new();
    // The threads of the compiler are this program's: what tests beside this one compile may have them for a while.
    for round in 0..4 {
        let mut busy = tokio::task::JoinSet::new();
        // Almost what the bounds allow.
        for reads in [340_000 - 2 * round, 340_001 - 2 * round] {
            let (runtime, spec) =
                (Arc::clone(&stage.runtime), bytes_spec("busy.wasm", heavy(1, 1_050, reads)));
            busy.spawn(async move { runtime.prepare_for(&spec, TenantKey(7)).await.map(drop) });
        }
        let (began, mut longest, mut others) = (tokio::time::Instant::now(), Duration::ZERO, 0);
        let first = loop {
            if let Some(first) = busy.try_join_next() {
                break first;
            }
            let small = format!(
                "(module (memory (export \"memory\") 1) (func (export \"_start\") (drop (i32.const {round}{others:04}))))"
            );
            let asked = tokio::time::Instant::now();
            stage.runtime.prepare_for(&spec(&small), TenantKey(8)).await.unwrap();
            longest = longest.max(asked.elapsed());
            others += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        first.unwrap().unwrap();
        let busy_for = began.elapsed();
        while let Some(done) = busy.join_next().await {
            done.unwrap().unwrap();
        }
        if others >= 5 && longest * 2 < busy_for {
            return;
        }
        told.push(format!("{others} of the other, the longest in {longest:?} of {busy_for:?}"));
    }
    panic!("{told:#?}");
}

#[tokio::test]
async fn all_guests_together_have_no_more_memory_than_the_host_gives() {
    let limits = CallLimits { cpu: Duration::from_millis(300), ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 8, limits, memory_bytes: 32 << 20, ..WasmConfig::default() });
    // 25 MB each, and busy until its CPU time is over.
    let hog = "(module (memory (export \"memory\") 400) (func (export \"_start\") (loop $l (br $l))))";
    let (one, other) = (stage.instance(&spec(hog)).await, stage.instance(&spec(hog)).await);
    let (first, second) = tokio::join!(fails(&*one, get("/")), fails(&*other, get("/")));
    let told = [first, second].map(|error| (error.kind, error.retry, error.message));
    let refused: Vec<_> =
        told.iter().filter(|(.., message)| message.contains("WasmConfig.memory_bytes")).collect();
    assert_eq!(refused.len(), 1, "one of the two fits: {told:?}");
    assert_eq!(refused[0].0, ErrorKind::Exhausted);
    assert_eq!(refused[0].1, Retry::After(Duration::from_secs(1)));
    // What they held came back.
    for _ in 0..3 {
        assert!(fails(&*one, get("/")).await.message.contains("CPU limit"));
    }
    let grows = "(module (memory (export \"memory\") 1) (func (export \"_start\")
        (drop (memory.grow (i32.const 600)))))";
    let grower = stage.instance(&spec(grows)).await;
    assert!(fails(&*grower, get("/")).await.message.contains("33554432 bytes that they may have together"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_takes_all_memory_it_can_leaves_another_enough_to_answer() {
    let limits = CallLimits { cpu: Duration::from_secs(20), ..CallLimits::default() };
    let config = WasmConfig { slots: 16, limits, memory_bytes: 32 << 20, ..WasmConfig::default() };
    let stage = Stage::shared(config);
    // 8 MB each, and busy for as long as it is asked: three of them are the share of 24 MiB.
    let hog = "(module (memory (export \"memory\") 128) (func (export \"_start\") (loop $l (br $l))))";
    let hungry = stage.instance_of(TenantKey(7), &spec(hog)).await;
    let polite = stage.instance_of(TenantKey(8), &spec(HELLO)).await;
    let mut held = tokio::task::JoinSet::new();
    for _ in 0..3 {
        let hungry = Arc::clone(&hungry);
        held.spawn(async move { call(&*hungry, get("/"), &cx_within(Duration::from_secs(15))).await });
    }
    while hungry.usage().unwrap().memory_bytes < 24 << 20 {
        assert!(held.try_join_next().is_none(), "all three fit");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let refused = fails(&*hungry, get("/")).await;
    assert_eq!((refused.kind, refused.retry), (ErrorKind::Exhausted, Retry::After(Duration::from_secs(1))));
    assert!(refused.message.contains("25165824 bytes that a tenant's may have together"), "{refused}");
    assert!(refused.message.contains("WasmConfig.tenant_memory_bytes"), "{refused}");
    for _ in 0..5 {
        assert_eq!(ask(&*polite, get("/")).await.0, 200);
    }
    hungry.stop(Duration::ZERO).await.unwrap();
    while let Some(outcome) = held.join_next().await {
        assert!(outcome.unwrap().is_err(), "it was stopped while it held its memory");
    }
    let again = stage.instance_of(TenantKey(7), &spec(HELLO)).await;
    assert_eq!(ask(&*again, get("/")).await.0, 200, "what was held came back");
}

#[test]
fn a_share_that_is_none_is_refused_by_name() {
    for (most, fine) in [(65_535, false), (65_536, true), (1 << 20, true), ((1 << 20) + 1, false)] {
        let config =
            WasmConfig { memory_bytes: 1 << 20, tenant_memory_bytes: Some(most), ..WasmConfig::default() };
        let said = config.validate().err().map(|errors| errors.to_string()).unwrap_or_default();
        assert_eq!(said.is_empty(), fine, "{most}: {said}");
        assert!(fine || (said.contains("tenant_memory_bytes") && said.contains(&most.to_string())), "{said}");
    }
}

#[tokio::test]
async fn every_truncation_of_a_module_is_refused() {
    let stage = Stage::small();
    // Without names: a module that is cut inside of them is whole.
    let nameless = HELLO
        .replace(
            "(func $fd_write (param $fd i32) (param $vectors i32) (param $count i32) (param $written i32)",
            "(func (param i32 i32 i32 i32)",
        )
        .replace("$fd_write", "0");
    assert!(!nameless.contains('$'));
    let whole = wat::parse_str(nameless).unwrap();
    let mut taken = 0;
    for length in 0..whole.len() {
        match stage.runtime.prepare(&bytes_spec("cut.wasm", whole[..length].to_vec())).await {
            Ok(_) => taken += 1,
            Err(error) => assert_eq!(error.kind, ErrorKind::InvalidSpec, "cut at {length}"),
        }
    }
    // Cut right in front of its data, it is a whole module without data.
    assert!(taken <= 1, "{taken} cuts were taken");
}

#[tokio::test]
async fn missing_exports_and_foreign_imports_are_named() {
    let stage = Stage::small();
    let cases = [
        ("(module (memory (export \"memory\") 1))", "does not export _start"),
        (
            "(module (memory (export \"memory\") 1) (func (export \"_start\") (param i32)))",
            "does not export _start",
        ),
        ("(module (func (export \"_start\")))", "does not export memory"),
        (
            "(module (import \"env\" \"steal\" (func)) (import \"wasi_snapshot_preview1\" \"fd_dance\" (func)))",
            "env.steal, wasi_snapshot_preview1.fd_dance",
        ),
        (
            "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func)) (memory (export \"memory\") 1) (func (export \"_start\")))",
            "does not fit WASI preview 1",
        ),
        ("(component)", "exports nothing"),
        (
            "(component (component $c) (instance $i (instantiate $c)) (export \"wasi:http/handler@0.3.0\" (instance $i)))",
            "WASI 0.3, which this platform does not take",
        ),
        (
            "(component (component $c) (instance $i (instantiate $c)) (export \"wasi:cli/run@0.2.0\" (instance $i)))",
            "exports wasi:cli/run@0.2.0",
        ),
        (
            "(component (import \"acme:secret/vault@1.0.0\" (instance (export \"open\" (func)))) (component $c) (instance $i (instantiate $c)) (export \"wasi:http/incoming-handler@0.2.0\" (instance $i)))",
            "acme:secret/vault@1.0.0",
        ),
        (
            "(component (component $c) (instance $i (instantiate $c)) (export \"wasi:http/incoming-handler@0.2.0\" (instance $i)))",
            "does not export wasi:http as it should",
        ),
    ];
    for (code, problem) in cases {
        let error = stage.refusal(&spec(code)).await;
        assert!(error.contains(problem), "{code}: {error}");
    }
}

#[tokio::test]
async fn a_hundred_thousand_imports_are_not_listed_one_by_one() {
    let stage = Stage::small();
    let mut code = "(module".to_owned();
    for at in 0..90_000 {
        let _ = write!(code, "(import \"e\" \"f{at}\"(func))");
    }
    code.push(')');
    let error = stage.refusal(&spec(code.clone())).await;
    assert!(error.contains("e.f19 and 89980 more") && error.len() < 2_000, "{error}");
    for at in 90_000..100_002 {
        code.truncate(code.len() - 1);
        let _ = write!(code, "(import \"e\" \"f{at}\"(func)))");
    }
    let error = stage.refusal(&spec(code)).await;
    assert!(error.contains("100002 imports: at most 100000"), "{error}");
}

#[tokio::test]
async fn a_million_imports_are_refused_by_their_count() {
    let stage = Stage::small();
    // One type, then 1,000,000 times the function `e.f`.
    let imports = [&leb(1_000_000)[..], &b"\x01e\x01f\0\0".repeat(1_000_000)].concat();
    let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x02".to_vec();
    module.extend(leb(imports.len()));
    module.extend(imports);
    let error = stage.refusal(&bytes_spec("imports.wasm", module)).await;
    assert!(error.contains("1000000 imports: at most 100000"), "{error}");
}

#[tokio::test]
async fn what_would_cost_the_compiler_out_of_proportion_never_reaches_it() {
    let compile = CompileLimits {
        code_bytes: 300_000,
        text_bytes: 100_000,
        function_bytes: 10_000,
        nested: 8,
        ..CompileLimits::default()
    };
    let stage = Stage::new(WasmConfig { slots: 4, compile, ..WasmConfig::default() });
    let big = format!(
        "(module (memory (export \"memory\") 1) (func (export \"_start\") {}))",
        "(drop (i32.const 7))".repeat(4_000)
    );
    let error = stage.refusal(&spec(big)).await;
    assert!(error.contains("a function at byte") && error.contains("compile.function_bytes"), "{error}");
    let nested = format!("{}{}", "(component ".repeat(10), ")".repeat(10));
    let error = stage.refusal(&spec(nested)).await;
    assert!(error.contains("9 nested modules and components: at most 8"), "{error}");
    let long = format!("(module {})", "(func)".repeat(20_000));
    let error = stage.refusal(&spec(long)).await;
    assert!(
        error.contains("120009 bytes: at most 100000") && error.contains("compile.text_bytes"),
        "{error}"
    );
    let error = stage.refusal(&bytes_spec("large.wasm", vec![0; 300_001])).await;
    assert!(error.contains("300001 bytes: at most 300000"), "{error}");
}

#[tokio::test]
async fn deep_nesting_in_text_and_code_is_an_error_and_no_overflow() {
    let stage = Stage::small();
    let text = format!("(module (func {} {}))", "(block ".repeat(50_000), ")".repeat(50_000));
    stage.refusal(&spec(text)).await;
    // In binary: one function of 100,000 blocks.
    let mut body = vec![0];
    body.extend([0x02, 0x40].repeat(100_000));
    body.extend([0x0b].repeat(100_001));
    let mut code = leb(body.len());
    code.extend(&body);
    code.insert(0, 1);
    let mut module = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x05\x03\x01\0\x01".to_vec();
    module.extend(b"\x07\x13\x02\x06_start\0\0\x06memory\x02\0");
    module.push(10);
    module.extend(leb(code.len()));
    module.extend(code);
    let error = stage.refusal(&bytes_spec("deep.wasm", module)).await;
    assert!(error.contains("blocks 5001 deep"), "{error}");
}

#[tokio::test]
async fn components_that_double_with_each_level_are_refused_before_they_are_unrolled() {
    let stage = Stage::small();
    let mut code = "(component (component)".to_owned();
    for level in 0..60 {
        let _ = write!(
            code,
            "(component (alias outer 1 {level} (component $c)) (instance (instantiate $c)) (instance (instantiate $c)))"
        );
    }
    let error = stage.refusal(&spec(code + ")")).await;
    assert!(error.contains("instances of each other"), "{error}");
    let error = stage.refusal(&spec("(component (component (import \"c\" (component $c))))")).await;
    assert!(error.contains("components as imports"), "{error}");
}

#[tokio::test]
async fn huge_memories_and_tables_are_refused_at_deploy() {
    let stage = Stage::small();
    let start = "(func (export \"_start\"))";
    let cases = [
        (
            format!("(module (memory (export \"memory\") 65536) {start})"),
            "starts with a memory of 4294967296 bytes",
        ),
        (format!("(module (memory (export \"memory\") 1) (table 10000000 funcref) {start})"), "table"),
        (
            format!("(module (memory (export \"memory\") 1) {} {start})", "(table 1 funcref)".repeat(200)),
            "table",
        ),
    ];
    for (code, problem) in cases {
        let error = stage.refusal(&spec(code)).await;
        assert!(error.contains(problem), "{error}");
    }
}

#[tokio::test]
async fn a_start_function_that_loops_is_within_the_limits_too() {
    let limits = CallLimits { cpu: Duration::from_millis(50), ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, limits, ..WasmConfig::default() });
    let code = "(module (memory (export \"memory\") 1) (func $loop (loop $l (br $l))) (start $loop)
                (func (export \"_start\")))";
    let instance = stage.instance(&spec(code)).await;
    assert!(fails(&*instance, get("/")).await.message.contains("CPU limit"));
}

#[tokio::test]
async fn pointers_outside_of_the_memory_are_errors_of_the_call() {
    let stage = Stage::small();
    // Each call gets pointers past the end; the sum of the error numbers is the status.
    let code = r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $w (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $r (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $x (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "environ_get" (func $e (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $p (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $c (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (call $exit
                (i32.add (call $w (i32.const 1) (i32.const -8) (i32.const 2) (i32.const 0))
                (i32.add (call $w (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -1))
                (i32.add (call $r (i32.const 0) (i32.const 65532) (i32.const 1) (i32.const 0))
                (i32.add (call $x (i32.const 65535) (i32.const 2))
                (i32.add (call $e (i32.const -1) (i32.const -1))
                (i32.add (call $p (i32.const 65500) (i32.const 0) (i32.const 1) (i32.const 0))
                         (call $c (i32.const 0) (i64.const 0) (i32.const 65530))))))))))
    )"#;
    let instance = stage.instance(&spec(code)).await;
    let error = fails(&*instance, get("/")).await;
    assert!(error.message.contains(&format!("status {}", 7 * 21)), "{error}");
}

#[tokio::test]
async fn a_guest_can_not_sleep_past_its_deadline_or_wait_for_what_never_comes() {
    let stage = Stage::small();
    let instance = stage.instance(&spec(always("idle"))).await;
    let response = call(&*instance, get("/"), &cx_within(Duration::from_millis(100))).await.unwrap();
    let error = crate::support::text(response).await.unwrap_err();
    assert!(error.to_string().contains("deadline"), "{error}");
}

/// What the fuzz target `deploy` does without end, for a moment and always the same.
#[tokio::test]
async fn flipped_bytes_are_taken_or_refused_and_nothing_worse() {
    let limits = CallLimits { cpu: Duration::from_millis(20), ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, limits, ..WasmConfig::default() });
    let seeds =
        [wat::parse_str(HELLO).unwrap(), include_bytes!("../../guests/wasi-http/hello.wasm").to_vec()];
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % below as u64).unwrap()
    };
    let mut taken = 0;
    for case in 0..400 {
        let mut code = seeds[case % seeds.len()].clone();
        for _ in 0..=next(3) {
            let at = 8 + next(code.len() - 8);
            code[at] ^= 1 << next(8);
        }
        let spec = bytes_spec("flipped.wasm", code);
        match stage.runtime.prepare(&spec).await {
            Ok(_) => {
                taken += 1;
                let instance = stage.instance(&spec).await;
                if let Ok(response) = call(&*instance, get("/"), &cx()).await {
                    let _ = crate::support::text(response).await;
                }
            }
            Err(error) => assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}"),
        }
    }
    assert!(taken > 0, "no flip was harmless: the test reaches no guest");
}
