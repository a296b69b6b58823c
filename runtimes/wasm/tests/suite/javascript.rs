//! A function in JavaScript, where the tools that make a component of it are installed.

use std::{path::Path, process::Command};

use sas_core::{RevisionSpec, Source};
use sas_runtime_wasm::WasmConfig;

use crate::support::{Stage, ask, post};

#[tokio::test]
async fn a_function_in_javascript_is_built_and_served() {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guests/javascript");
    if !guest.join("node_modules/componentize-qjs").is_dir() {
        let place = guest.display();
        return sas_testkit::skip(&format!(
            "in {place}, run npm install --no-package-lock to have this test"
        ));
    }
    let dir = tempfile::tempdir().unwrap();
    let component = dir.path().join("hello.wasm");
    let built = Command::new(guest.join("build.sh")).arg(&component).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let stage = Stage::new(WasmConfig { slots: 4, wasi_03: true, ..WasmConfig::default() });
    let hello = stage.instance(&RevisionSpec::new("wasm", Source::Path(component))).await;
    for name in ["world", "Bob", "Eve"] {
        assert_eq!(ask(&*hello, post("/", name)).await, (200, format!("hello, {name}!\n")));
    }
    assert_eq!(ask(&*hello, post("/", "")).await.1, "hello, world!\n");
}
