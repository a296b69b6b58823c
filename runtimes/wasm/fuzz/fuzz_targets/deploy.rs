//! Feeds bytes to deploy, and asks once what was taken: `runtimes/wasm/fuzz/run 600`, or on a nightly toolchain
//! `cargo +nightly fuzz run deploy` in `runtimes/wasm`.
//!
//! Whatever the bytes are, `prepare` takes them or refuses them as an invalid spec, and a function that was taken answers
//! or is ended by a limit; nothing panics or hangs.
#![no_main]

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use libfuzzer_sys::fuzz_target;
use sas_core::{
    Answer, Body, Cx, Deployed, ErrorKind, ExitReport, InstanceEvents, InstanceId, NoSink, RequestId, RevisionKey,
    RevisionName, RevisionSpec, Runtime as _, Source, StartPhase, StartRequest, TenantKey,
};
use sas_runtime_wasm::{CallLimits, CompileLimits, WasmConfig, WasmRuntime};
use tokio::time::Instant;

static STAGE: LazyLock<(tokio::runtime::Runtime, Arc<WasmRuntime>)> = LazyLock::new(|| {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    let compile = CompileLimits { code_bytes: 256 << 10, time: Duration::from_secs(20), ..CompileLimits::default() };
    let limits = CallLimits { cpu: Duration::from_millis(20), memory_bytes: 16 << 20, ..CallLimits::default() };
    let config = WasmConfig { slots: 64, compile, limits, ..WasmConfig::default() };
    (executor, Arc::new(WasmRuntime::new(config).expect("a runtime")))
});

#[derive(Debug)]
struct NoEvents;

impl InstanceEvents for NoEvents {
    fn phase(&self, _: InstanceId, _: StartPhase) {}
    fn exited(&self, _: InstanceId, _: ExitReport) {}
}

fuzz_target!(|bytes: &[u8]| {
    let (executor, runtime) = &*STAGE;
    executor.block_on(deploy(runtime, bytes));
});

async fn deploy(runtime: &Arc<WasmRuntime>, bytes: &[u8]) {
    let source = Source::Bytes { name: "fuzz.wasm".into(), bytes: bytes.to_vec().into() };
    let spec = RevisionSpec::new("wasm", source);
    let artifact = match runtime.prepare(&spec).await {
        Ok(artifact) => artifact,
        Err(error) => {
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
            return;
        }
    };
    let deployed = Deployed::new(Arc::clone(runtime) as _, artifact, Arc::new(spec), RevisionName::new("default", "fuzz", "00001"), TenantKey(1));
    let deadline = Instant::now() + Duration::from_secs(5);
    let start = StartRequest::new(
        InstanceId(1),
        RevisionKey::new(1, 1),
        Arc::new(deployed),
        NoSink::logs(),
        Arc::new(NoEvents),
        deadline,
    );
    let instance = runtime.start(start).await.expect("a start");
    let request = http::Request::builder().uri("/").header("host", "f.test").body(Body::empty()).expect("a request");
    // A guest may wait for ever: the deadline is the only end of that.
    let cx = Cx::new(TenantKey(1), RequestId(1), Instant::now() + Duration::from_millis(100));
    let asked = async {
        if let Ok(Answer::Http(response)) = instance.call(request, &cx).await {
            // Its body may end by a limit, too.
            let _ = response.into_body().collect(1 << 20).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked).await.expect("neither an answer nor an end");
    instance.stop(Duration::ZERO).await.expect("a stop");
}
