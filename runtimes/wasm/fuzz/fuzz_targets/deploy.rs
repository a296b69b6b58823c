//! Feeds bytes to deploy: `cargo +nightly fuzz run deploy` in `runtimes/wasm`.
//!
//! Whatever the bytes are, `prepare` takes them or refuses them as an invalid spec; it neither panics nor hangs. The
//! guests of the repository are good seeds: copy `guests/**/*.wasm` and `guests/*.wat` into `fuzz/corpus/deploy`.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use sas_core::{ErrorKind, RevisionSpec, Runtime as _, Source};
use sas_runtime_wasm::{CompileLimits, WasmConfig, WasmRuntime};

static STAGE: LazyLock<(tokio::runtime::Runtime, WasmRuntime)> = LazyLock::new(|| {
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an executor");
    let compile = CompileLimits { code_bytes: 256 << 10, time: Duration::from_secs(20), ..CompileLimits::default() };
    let runtime = WasmRuntime::new(WasmConfig { slots: 4, compile, ..WasmConfig::default() }).expect("a runtime");
    (executor, runtime)
});

fuzz_target!(|bytes: &[u8]| {
    let (executor, runtime) = &*STAGE;
    let source = Source::Bytes { name: "fuzz.wasm".into(), bytes: bytes.to_vec().into() };
    if let Err(error) = executor.block_on(runtime.prepare(&RevisionSpec::new("wasm", source))) {
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    }
});
