//! What the crate is on systems that are not Linux, compiled and run here.

#[allow(unreachable_pub, reason = "it is public where it is built in")]
#[path = "../src/elsewhere.rs"]
mod elsewhere;

use sas_core::{ErrorKind, Runtime};
use sas_runtime_process::ProcessConfig;

/// The same calls as on Linux, so that a host that compiles there compiles here.
#[allow(dead_code, reason = "it only has to compile")]
async fn has_the_same_calls(runtime: &elsewhere::ProcessRuntime) -> impl Sized + use<> {
    let called = (runtime.java_stem_class().await.is_ok(), runtime.processes(), runtime.guardian_pid());
    let _: &dyn Runtime = runtime;
    called
}

#[test]
fn it_cannot_be_opened_and_says_what_is_missing_and_what_to_do() {
    assert_eq!(elsewhere::ProcessRuntime::NAME, sas_runtime_process::ProcessRuntime::NAME);
    let dir = tempfile::tempdir().unwrap();
    let error = elsewhere::ProcessRuntime::new(ProcessConfig::in_store(dir.path())).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    for part in ["needs Linux", "pidfd", std::env::consts::OS, "wasm"] {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
    let mut wrong = ProcessConfig::in_store("");
    wrong.ports = 1..=2;
    let error = elsewhere::ProcessRuntime::new(wrong).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
}
