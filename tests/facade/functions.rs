//! WebAssembly functions as the platform's users meet them: a file and a manifest, over HTTP.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use sas::prelude::*;

use crate::shared::{PlatformProcess, call};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_platform_takes_a_manifest_with_a_package_of_webassembly() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let guests = Path::new(ROOT).join("runtimes/wasm/guests");
    fs::copy(guests.join("hello.wat"), dir.path().join("hello.wat")).expect("copied");
    let manifest =
        fs::read_to_string(Path::new(ROOT).join("examples/manifests/hello-wasm.yaml")).expect("read");
    let beside = manifest
        .replace("../../runtimes/wasm/guests/wasi-http/hello.wasm", "hello.wat")
        .replace("name: hello-wasm", "name: hello-wat");
    assert!(beside.contains("sas.dev/package: hello.wat\n") && beside.contains("name: hello-wat\n"));
    let file = dir.path().join("hello.yaml");
    fs::write(&file, beside).expect("written");
    let example = Path::new(ROOT).join("examples/manifests/hello-wasm.yaml");
    let platform = PlatformProcess::start(&[example.to_str().expect("UTF-8"), file.to_str().expect("UTF-8")]);
    for name in ["hello-wasm", "hello-wat"] {
        let host = format!("{name}.default.localhost");
        let answer = call(platform.listen, "GET", &host, "/", "").await.expect("the ingress answers");
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello, world!\n"), "{name}");
    }
    assert!(platform.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_sandboxes_and_queue_a_request_is_answered_503_with_a_time_to_come_back() {
    let config = WasmConfig { slots: 2, queue: 3, ..WasmConfig::default() };
    let platform = Platform::builder()
        .runtime(WasmRuntime::new(config).expect("a runtime"))
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await
        .expect("a platform");
    let package = Path::new(ROOT).join("runtimes/wasm/guests/probe.wat");
    platform
        .deploy("default", "probe", RevisionSpec::new("wasm", Source::Path(package)))
        .await
        .expect("deployed");
    let ingress = platform.listen_addr().expect("it listens");
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        calls.spawn(async move { call(ingress, "GET", "probe.default.localhost", "/slow", "").await });
    }
    let (mut served, mut refused) = (0, 0);
    while let Some(answer) = calls.join_next().await {
        let answer = answer.expect("no panic").expect("an answer");
        match answer.status {
            200 => served += 1,
            503 => {
                assert!(answer.head.to_ascii_lowercase().contains("retry-after: "), "{}", answer.head);
                refused += 1;
            }
            status => panic!("{status}: {}", answer.body),
        }
    }
    // Later ones may find a place that an earlier one left.
    assert!(served >= 5 && refused >= 1 && served + refused == 20, "{served} served, {refused} refused");
    platform.shutdown(Duration::from_secs(5)).await;
}
