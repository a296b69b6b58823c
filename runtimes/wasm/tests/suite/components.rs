//! Components of `wasi:http@0.2`.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, EnvValue, ErrorKind, LogStream, RevisionSpec};
use sas_runtime_wasm::{CallLimits, CallUsage, WasmConfig, options};

use crate::support::{Stage, ask, bytes_spec, call, cx, fails, get, post, text};

const HELLO: &[u8] = include_bytes!("../../guests/wasi-http/hello.wasm");
const PROBE: &[u8] = include_bytes!("../../guests/wasi-http/probe.wasm");
const COUNT: &[u8] = include_bytes!("../../guests/rust/count.wasm");

fn probe() -> RevisionSpec {
    bytes_spec("probe.wasm", PROBE.to_vec())
}

fn with(option: &str, value: &str) -> RevisionSpec {
    let mut spec = probe();
    spec.options.insert(option.into(), value.into());
    spec
}

#[tokio::test]
async fn a_component_answers_and_its_kind_is_noted() {
    let stage = Stage::small();
    let spec = bytes_spec("hello.wasm", HELLO.to_vec());
    let hello = stage.instance(&spec).await;
    let response = call(&*hello, get("/"), &cx()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert_eq!(text(response).await.unwrap(), "hello, world!\n");
    let artifact = sas_core::Runtime::prepare(&*stage.runtime, &spec).await.unwrap();
    assert_eq!(artifact.info().notes, ["kind: wasi-http-0.2"]);
    assert!(artifact.info().digest.starts_with("sha256:") && artifact.info().bytes > 0);
}

#[tokio::test]
async fn a_component_in_rust_reads_a_body_of_any_length_in_little_memory() {
    let stage = Stage::small();
    let count = stage.instance(&bytes_spec("count.wasm", COUNT.to_vec())).await;
    for (body, counts) in [("", "0 0 0\n"), ("one two\nthree", "1 3 13\n"), (" \n\n ", "2 0 4\n")] {
        assert_eq!(ask(&*count, post("/", body)).await, (200, counts.to_owned()));
    }
    let line = "a few words\n";
    let response = call(&*count, post("/", line.repeat(500_000)), &cx()).await.unwrap();
    let meter = Arc::clone(response.extensions().get::<Arc<CallUsage>>().unwrap());
    assert_eq!(text(response).await.unwrap(), "500000 1500000 6000000\n");
    assert!(meter.memory_high_water() <= 1 << 20, "{} bytes", meter.memory_high_water());
}

#[tokio::test]
async fn a_request_without_a_host_is_served_too() {
    let stage = Stage::small();
    let probe = stage.instance(&probe()).await;
    let request = http::Request::new(Body::empty());
    assert_eq!(ask(&*probe, request).await, (200, "hello, world!\n".to_owned()));
}

#[tokio::test]
async fn each_request_has_a_sandbox_of_its_own_unless_reuse_is_asked_for() {
    let stage = Stage::small();
    let fresh = stage.instance(&probe()).await;
    for _ in 0..5 {
        assert_eq!(ask(&*fresh, get("/count")).await.1, "1");
    }
    let reused = stage.instance(&with(options::REUSE, "3")).await;
    let mut counts = Vec::new();
    for _ in 0..7 {
        counts.push(ask(&*reused, get("/count")).await.1);
    }
    assert_eq!(counts, ["1", "2", "3", "1", "2", "3", "1"]);
}

#[tokio::test(start_paused = true)]
async fn a_kept_sandbox_grows_old() {
    let stage = Stage::small();
    let mut spec = with(options::REUSE, "100");
    spec.options.insert(options::REUSE_AGE.into(), "10s".into());
    let reused = stage.instance(&spec).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "1");
    tokio::time::advance(Duration::from_secs(9)).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "2");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "1");
}

#[tokio::test]
async fn an_instance_that_is_let_go_without_a_stop_takes_its_kept_sandboxes_along() {
    let stage = Stage::small();
    let reused = stage.instance(&with(options::REUSE, "100")).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "1");
    drop(reused);
    assert_eq!(stage.told.exits.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_sandbox_that_failed_is_never_kept() {
    let stage = Stage::small();
    let reused = stage.instance(&with(options::REUSE, "100")).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "1");
    fails(&*reused, get("/crash")).await;
    assert_eq!(ask(&*reused, get("/count")).await.1, "1");
}

#[tokio::test]
async fn kept_sandboxes_leave_room_for_fresh_ones() {
    let stage = Stage::new(WasmConfig { slots: 4, queue: 1, ..WasmConfig::default() });
    let mut instances = Vec::new();
    for _ in 0..8 {
        let instance = stage.instance(&with(options::REUSE, "100")).await;
        assert_eq!(ask(&*instance, get("/count")).await.1, "1");
        instances.push(instance);
    }
    let memory: u64 = instances.iter().map(|instance| instance.usage().unwrap().memory_bytes).sum();
    assert!(memory > 0);
    // Those that were kept go with their instances.
    for instance in instances {
        instance.stop(Duration::ZERO).await.unwrap();
    }
    let held = stage.instance(&probe()).await;
    let (first, second) = tokio::join!(ask(&*held, get("/")), ask(&*held, get("/")));
    assert_eq!((first.0, second.0), (200, 200));
}

#[tokio::test]
async fn every_limit_ends_its_request_with_an_error_that_names_it() {
    let limits =
        CallLimits { cpu: Duration::from_millis(60), memory_bytes: 2 << 20, ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 16, limits, ..WasmConfig::default() });
    let probe = stage.instance(&probe()).await;
    let cases = [
        ("/loop", ErrorKind::Exhausted, "the CPU limit of 60ms"),
        ("/bomb", ErrorKind::Exhausted, "the memory limit of 2097152 bytes"),
        ("/recurse", ErrorKind::Exhausted, "the stack limit"),
        ("/crash", ErrorKind::Crashed, "unreachable"),
        ("/never", ErrorKind::Crashed, "response-outparam.set was never called"),
    ];
    for (path, kind, message) in cases {
        let error = fails(&*probe, get(path)).await;
        assert_eq!(error.kind, kind, "{path}: {error}");
        assert!(error.message.contains(message), "{path}: {error}");
        assert_eq!(ask(&*probe, get("/")).await.0, 200, "after {path}");
    }
}

#[tokio::test]
async fn a_guest_that_fails_after_its_head_never_ends_its_body_as_if_all_were_well() {
    let stage = Stage::small();
    let probe = stage.instance(&probe()).await;
    // The second answer of `/twice` is a trap, after a first that was whole.
    for (path, problem) in [("/partial", "unreachable"), ("/twice", "the guest")] {
        let error = match call(&*probe, get(path), &cx()).await {
            Ok(response) => text(response).await.unwrap_err().to_string(),
            Err(failed) => failed.error.message,
        };
        assert!(error.contains(problem), "{path}: {error}");
    }
}

#[tokio::test]
async fn headers_that_belong_to_the_platform_are_refused() {
    let stage = Stage::small();
    let probe = stage.instance(&probe()).await;
    // The number of `forbidden` in `header-error`.
    assert_eq!(ask(&*probe, get("/forbidden")).await.1, "refused 1");
}

#[tokio::test]
async fn a_body_larger_than_the_guests_memory_streams_both_ways() {
    let limits = CallLimits { memory_bytes: 1 << 20, ..CallLimits::default() };
    let stage = Stage::new(WasmConfig { slots: 4, limits, ..WasmConfig::default() });
    let probe = stage.instance(&probe()).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let piece = Bytes::from((0..=250).cycle().take(100_000).collect::<Vec<u8>>());
    let (pieces, expected) = (50, piece.clone());
    let sending = tokio::spawn(async move {
        for _ in 0..pieces {
            sender.send_data(piece.clone()).await.unwrap();
        }
    });
    let mut body = call(&*probe, post("/echo", Body::new(body)), &cx()).await.unwrap().into_body();
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        for byte in data {
            assert_eq!(byte, expected[at % expected.len()], "at {at}");
            at += 1;
        }
    }
    assert_eq!(at, pieces * expected.len());
    sending.await.unwrap();
}

#[tokio::test]
async fn output_is_logged_with_the_id_of_its_request_also_when_the_sandbox_is_kept() {
    let stage = Stage::small();
    let probe = stage.instance(&with(options::REUSE, "10")).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let cx = cx();
        let response = call(&*probe, post("/log", "x"), &cx).await.unwrap();
        assert_eq!(text(response).await.unwrap(), "x");
        ids.push(cx.request);
    }
    let lines = stage.told.lines.lock().unwrap();
    let line = || (LogStream::Stderr, "conformance-output".to_owned());
    let expected: Vec<_> = ids.into_iter().map(|id| (Some(id), line().0, line().1)).collect();
    assert_eq!(*lines, expected);
}

#[tokio::test]
async fn the_guest_has_the_declared_environment_and_nothing_else() {
    let stage = Stage::small();
    let mut spec = probe();
    spec.env.insert("GREETING".into(), EnvValue::Literal("hi".into()));
    let probe = stage.instance(&spec).await;
    assert_eq!(ask(&*probe, get("/environment")).await.1, "GREETING=hi\n");
}

#[tokio::test]
async fn what_can_be_called_but_is_not_granted_is_noted_at_deploy() {
    let stage = Stage::small();
    let artifact = sas_core::Runtime::prepare(&*stage.runtime, &probe()).await.unwrap();
    let notes = artifact.info().notes.join("; ");
    assert!(notes.contains(options::ALLOW_HOSTS), "{notes}");
}
