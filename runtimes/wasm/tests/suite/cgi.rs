//! Modules of WASI preview 1 that speak CGI: answers, limits, ends.

use std::time::Duration;

use crate::support::{HELLO, PROBE, Stage, always, ask, call, cx, cx_within, fails, get, post, spec, text};
use bytes::Bytes;
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, ErrorKind, LogStream, Retry};
use sas_runtime_wasm::{CallLimits, CallUsage, WasmConfig};

#[tokio::test]
async fn a_module_in_text_answers() {
    let stage = Stage::small();
    let hello = stage.instance(&spec(HELLO)).await;
    let response = call(&*hello, get("/"), &cx()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert_eq!(text(response).await.unwrap(), "hello, world!\n");
}

#[tokio::test]
async fn each_request_has_a_sandbox_of_its_own() {
    let counter = HELLO
        .replace("(func (export \"_start\")", "(global $n (mut i32) (i32.const 0)) (func (export \"_start\")")
        .replace(
            "(drop (call",
            "(if (global.get $n) (then (unreachable))) (if (i32.load (i32.const 60000)) (then (unreachable)))
             (global.set $n (i32.const 1)) (i32.store (i32.const 60000) (i32.const 1)) (drop (call",
        );
    let stage = Stage::small();
    let instance = stage.instance(&spec(counter)).await;
    for _ in 0..50 {
        assert_eq!(ask(&*instance, get("/")).await.1, "hello, world!\n");
    }
}

#[tokio::test]
async fn every_limit_ends_its_request_with_an_error_that_names_it_and_touches_no_other() {
    let config = WasmConfig {
        slots: 16,
        limits: CallLimits {
            cpu: Duration::from_millis(60),
            memory_bytes: 2 << 20,
            response_bytes: 1 << 20,
            ..CallLimits::default()
        },
        ..WasmConfig::default()
    };
    let stage = Stage::new(config);
    let probe = stage.instance(&spec(PROBE)).await;
    let cases = [
        ("/loop", ErrorKind::Exhausted, "the CPU limit of 60ms"),
        ("/bomb", ErrorKind::Exhausted, "the memory limit of 2097152 bytes"),
        ("/grow", ErrorKind::Exhausted, "the memory limit of 2097152 bytes"),
        ("/recurse", ErrorKind::Exhausted, "the stack limit"),
        ("/table", ErrorKind::Exhausted, "the table limit of 20000 elements"),
        ("/crash", ErrorKind::Crashed, "trapped: wasm trap: wasm `unreachable`"),
        ("/exit", ErrorKind::Crashed, "exited with status 3"),
        ("/silent", ErrorKind::Crashed, "without an answer"),
        ("/illegal", ErrorKind::Crashed, "illegal header: \"Bad Header: 1\""),
    ];
    for (path, kind, message) in cases {
        let error = fails(&*probe, get(path)).await;
        assert_eq!(error.kind, kind, "{path}: {error}");
        assert!(error.message.contains(message), "{path}: {error}");
        assert_eq!(error.retry, Retry::Never, "{path}");
        assert_eq!(
            ask(&*probe, post("/", "still here")).await,
            (200, "still here".to_owned()),
            "after {path}"
        );
    }
    assert_eq!(stage.told.exits.lock().unwrap().len(), 0, "no instance ended");
}

#[tokio::test]
async fn a_response_over_its_limit_breaks_off() {
    let limits = CallLimits { response_bytes: 1 << 20, ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, limits, ..WasmConfig::default() });
    let probe = stage.instance(&spec(PROBE)).await;
    let response = call(&*probe, get("/flood"), &cx()).await.unwrap();
    let error = text(response).await.unwrap_err();
    assert!(error.to_string().contains("the response limit of 1048576 bytes"), "{error}");
}

#[tokio::test]
async fn a_guest_that_fails_after_its_head_breaks_the_body_off() {
    let stage = Stage::small();
    let probe = stage.instance(&spec(PROBE)).await;
    let response = call(&*probe, get("/partial"), &cx()).await.unwrap();
    assert_eq!(response.status(), 200);
    let error = text(response).await.unwrap_err();
    assert!(error.to_string().contains("unreachable"), "{error}");
}

#[tokio::test]
async fn a_guest_that_never_answers_ends_at_the_deadline() {
    let stage = Stage::small();
    let never = always("slow").replace("(i64.const 500000000)", "(i64.const 500000000000)");
    let instance = stage.instance(&spec(never)).await;
    let error = call(&*instance, get("/"), &cx_within(Duration::from_millis(50))).await.unwrap_err().error;
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.message.contains("timeouts.request"), "{error}");
}

#[tokio::test]
async fn a_body_larger_than_the_guests_memory_streams_both_ways() {
    let limits = CallLimits { memory_bytes: 1 << 20, ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, limits, ..WasmConfig::default() });
    let probe = stage.instance(&spec(PROBE)).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let piece = Bytes::from((0..=255).cycle().take(100_000).collect::<Vec<u8>>());
    let (pieces, expected) = (100, piece.clone());
    let sending = tokio::spawn(async move {
        for _ in 0..pieces {
            sender.send_data(piece.clone()).await.unwrap();
        }
    });
    let response = call(&*probe, post("/", Body::new(body)), &cx()).await.unwrap();
    let meter = response.extensions().get::<std::sync::Arc<CallUsage>>().cloned().unwrap();
    let mut body = response.into_body();
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        for byte in frame.unwrap().into_data().unwrap() {
            assert_eq!(byte, expected[at % expected.len()], "at {at}");
            at += 1;
        }
    }
    assert_eq!(at, pieces * expected.len());
    sending.await.unwrap();
    assert!(meter.memory_high_water() <= 1 << 20, "{meter:?}");
}

#[tokio::test]
async fn a_reader_that_is_slow_holds_the_guest_back() {
    let stage = Stage::small();
    let probe = stage.instance(&spec(PROBE)).await;
    let mut body = call(&*probe, get("/flood"), &cx()).await.unwrap().into_body();
    let mut longest = 0;
    for _ in 0..50 {
        let frame = body.frame().await.unwrap().unwrap().into_data().unwrap();
        longest = longest.max(frame.len());
    }
    // Each frame is all that the guest could write ahead.
    assert!(longest <= 512 * 1024, "{longest} bytes were kept for a slow reader");
}

#[tokio::test]
async fn output_is_logged_with_the_id_of_its_request() {
    let stage = Stage::small();
    let probe = stage.instance(&spec(PROBE)).await;
    let cx = cx();
    let response = call(&*probe, post("/log", "x"), &cx).await.unwrap();
    assert_eq!(text(response).await.unwrap(), "x");
    let lines = stage.told.lines.lock().unwrap();
    assert_eq!(*lines, [(Some(cx.request), LogStream::Stderr, "conformance-output".to_owned())]);
}

#[tokio::test]
async fn what_a_request_used_is_metered() {
    let stage = Stage::small();
    let probe = stage.instance(&spec(PROBE)).await;
    let response = call(&*probe, get("/grow"), &cx()).await.unwrap();
    let meter = response.extensions().get::<std::sync::Arc<CallUsage>>().cloned().unwrap();
    text(response).await.unwrap();
    assert_eq!(meter.memory_high_water(), (4 + 256) * 65_536);
    assert!(meter.cpu() > Duration::ZERO);
    let usage = probe.usage().unwrap();
    assert!(usage.cpu_ns >= u64::try_from(meter.cpu().as_nanos()).unwrap());
    assert!(usage.memory_bytes < 1 << 20, "the sandbox is gone: {usage:?}");
}

#[tokio::test]
async fn a_stop_ends_guests_whose_answer_nobody_reads() {
    let stage = Stage::small();
    let probe = stage.instance(&spec(PROBE)).await;
    let unread = call(&*probe, get("/idle"), &cx()).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), probe.stop(Duration::ZERO)).await.unwrap().unwrap();
    assert_eq!(stage.told.exits.lock().unwrap().len(), 1);
    let error = text(unread).await.unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loops_on_every_thread_do_not_starve_good_requests() {
    let stage = Stage::new(WasmConfig {
        slots: 16,
        limits: CallLimits { cpu: Duration::from_millis(500), ..CallLimits::default() },
        ..WasmConfig::default()
    });
    let probe = stage.instance(&spec(PROBE)).await;
    let loops: Vec<_> = (0..4)
        .map(|_| {
            let probe = std::sync::Arc::clone(&probe);
            tokio::spawn(async move { fails(&*probe, get("/loop")).await })
        })
        .collect();
    let mut served = 0;
    while !loops.iter().all(tokio::task::JoinHandle::is_finished) {
        let probe = std::sync::Arc::clone(&probe);
        let good = tokio::spawn(async move { ask(&*probe, post("/", "good")).await });
        assert_eq!(good.await.unwrap(), (200, "good".to_owned()));
        served += 1;
    }
    for ended in loops {
        assert!(ended.await.unwrap().message.contains("CPU limit"));
    }
    // Two seconds of loops: without time slices there would be one per half second at best.
    assert!(served >= 20, "only {served} requests were served beside four loops");
}
