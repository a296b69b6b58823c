//! Components of `wasi:http@0.3`, where the operator takes them.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, ErrorKind, RevisionSpec, Runtime as _};
use sas_runtime_wasm::{CallLimits, WasmConfig, options};

use crate::support::{HELLO, Stage, ask, bytes_spec, call, cx, cx_within, fails, get, post, spec, text};

const PROBE: &[u8] = include_bytes!("../../guests/wasi-http-03/probe.wasm");
const PROBE_02: &[u8] = include_bytes!("../../guests/wasi-http/probe.wasm");

fn probe() -> RevisionSpec {
    bytes_spec("probe.wasm", PROBE.to_vec())
}

fn stage(limits: CallLimits) -> Stage {
    Stage::new(WasmConfig { slots: 16, wasi_03: true, limits, ..WasmConfig::default() })
}

#[tokio::test]
async fn a_service_answers_and_its_kind_is_noted() {
    let stage = stage(CallLimits::default());
    let artifact = stage.runtime.prepare(&probe()).await.unwrap();
    assert_eq!(artifact.info().notes[0], "kind: wasi-http-0.3");
    assert!(artifact.info().notes[1].contains(options::ALLOW_HOSTS), "{:?}", artifact.info().notes);
    let probe = stage.instance(&probe()).await;
    let response = call(&*probe, get("/"), &cx()).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain");
    assert_eq!(text(response).await.unwrap(), "hello, world!\n");
    assert_eq!(ask(&*probe, get("/host")).await.1, "function.test");
}

#[tokio::test]
async fn older_guests_run_beside_it_unchanged() {
    let stage = stage(CallLimits::default());
    let cgi = stage.instance(&spec(HELLO)).await;
    assert_eq!(ask(&*cgi, get("/")).await.1, "hello, world!\n");
    let component = stage.instance(&bytes_spec("probe.wasm", PROBE_02.to_vec())).await;
    assert_eq!(ask(&*component, post("/echo", "both ways")).await.1, "both ways");
    assert!(fails(&*component, get("/crash")).await.message.contains("unreachable"));
}

#[tokio::test]
async fn each_request_has_a_sandbox_of_its_own_unless_reuse_is_asked_for() {
    let stage = stage(CallLimits::default());
    let fresh = stage.instance(&probe()).await;
    for _ in 0..3 {
        assert_eq!(ask(&*fresh, get("/count")).await.1, "1");
    }
    let mut spec = probe();
    spec.options.insert(options::REUSE.into(), "2".into());
    let reused = stage.instance(&spec).await;
    let mut counts = Vec::new();
    for _ in 0..4 {
        counts.push(ask(&*reused, get("/count")).await.1);
    }
    assert_eq!(counts, ["1", "2", "1", "2"]);
}

#[tokio::test]
async fn bodies_larger_than_the_guests_memory_stream_both_ways() {
    let stage = stage(CallLimits { memory_bytes: 1 << 20, ..CallLimits::default() });
    let probe = stage.instance(&probe()).await;
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
    let piece = Bytes::from((0..=250).cycle().take(100_000).collect::<Vec<u8>>());
    let expected = piece.clone();
    let sending = tokio::spawn(async move {
        for _ in 0..20 {
            sender.send_data(piece.clone()).await.unwrap();
        }
    });
    let response = call(&*probe, post("/echo", Body::new(body)), &cx()).await.unwrap();
    let echoed = response.into_body().collect(4 << 20).await.unwrap();
    assert_eq!(echoed.len(), 20 * expected.len());
    assert!(echoed.chunks(expected.len()).all(|chunk| chunk == expected));
    sending.await.unwrap();

    let response = call(&*probe, get("/large"), &cx()).await.unwrap();
    let mut body = response.into_body();
    let (mut all, mut longest) = (0, 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        all += data.len();
        longest = longest.max(data.len());
    }
    assert_eq!(all, 8 << 20);
    assert!(longest <= 1 << 20, "{longest} bytes were kept for the reader");
}

#[tokio::test]
async fn every_limit_and_broken_answer_ends_its_request_and_touches_no_other() {
    let stage =
        stage(CallLimits { cpu: Duration::from_millis(60), memory_bytes: 2 << 20, ..CallLimits::default() });
    let probe = stage.instance(&probe()).await;
    let cases = [
        ("/loop", ErrorKind::Exhausted, "the CPU limit of 60ms"),
        ("/bomb", ErrorKind::Exhausted, "the memory limit of 2097152 bytes"),
        ("/crash", ErrorKind::Crashed, "unreachable"),
        ("/never", ErrorKind::Crashed, "the guest"),
        ("/error", ErrorKind::Crashed, "the error ErrorCode::HttpProtocolError"),
    ];
    for (path, kind, message) in cases {
        let error = fails(&*probe, get(path)).await;
        assert_eq!(error.kind, kind, "{path}: {error}");
        assert!(error.message.contains(message), "{path}: {error}");
        assert_eq!(ask(&*probe, get("/")).await.0, 200, "after {path}");
    }
    let broken = match call(&*probe, get("/partial"), &cx()).await {
        Ok(response) => text(response).await.unwrap_err().to_string(),
        Err(failed) => failed.error.message,
    };
    assert!(broken.contains("unreachable"), "{broken}");
}

#[tokio::test]
async fn a_guest_that_waits_for_ever_ends_at_the_deadline() {
    let stage = stage(CallLimits::default());
    let probe = stage.instance(&probe()).await;
    // The body never ends: the guest passes it on, so that its answer never ends either.
    let (sender, body) = Channel::<Bytes, BoxError>::new(1);
    let short = cx_within(Duration::from_millis(100));
    let response = call(&*probe, post("/echo", Body::new(body)), &short).await.unwrap();
    let error = text(response).await.unwrap_err();
    assert!(error.to_string().contains("deadline"), "{error}");
    drop(sender);
}

#[tokio::test]
async fn calls_out_pass_the_same_guard() {
    let stage = stage(CallLimits::default());
    let probe = stage.instance(&probe()).await;
    // The number of `HTTP-request-denied` in `error-code`.
    assert_eq!(ask(&*probe, get("/fetch?127.0.0.1:1")).await.1, "error 15");
}

#[tokio::test]
async fn where_it_is_off_the_deploy_says_so() {
    let error = Stage::small().refusal(&probe()).await;
    assert!(error.contains("WasmConfig.wasi_03"), "{error}");
}
