//! The runtime is one by the suite of sas-testkit.

use std::sync::Arc;

use crate::support::{PROBE, always, bytes_spec, spec};
use sas_runtime_wasm::{WasmConfig, WasmRuntime};
use sas_testkit::runtime::{Fixtures, suite};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_runtime_passes_the_conformance_suite() {
    let report = suite(async || {
        let runtime = Arc::new(WasmRuntime::new(WasmConfig { slots: 64, ..WasmConfig::default() }).unwrap());
        let mut option = spec(PROBE);
        option.options.insert("sas.dev/wasm-cpu-limit".into(), "soon".into());
        let fixtures = Fixtures::new(Arc::clone(&runtime) as _, spec(PROBE))
            .slow(spec(always("slow")))
            .endless(spec(always("endl")))
            .crash_on_call(spec(PROBE))
            .chatty(spec(always("log")))
            .environment(spec(always("envi")))
            .invalid(bytes_spec("x.wasm", b"#!/bin/sh".to_vec()), "x.wasm")
            .invalid(option, "sas.dev/wasm-cpu-limit");
        ((), fixtures)
    })
    .await;
    println!("{report}");
    report.assert_passed();
}
