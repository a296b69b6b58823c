//! What [h2spec](https://github.com/summerwind/h2spec) says of the ingress, in front of an instance that reads the body and
//! answers after a while: 145 cases of RFC 9113 and RFC 7541. CI installs it by `go install`; elsewhere its absence is said.

use std::{
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::*;

/// Cases that are judged otherwise on purpose; `docs/data-plane.md` says why.
const DEVIATIONS: [&str; 2] = ["http2/3.5/2", "http2/6.9.1/3"];

fn h2spec() -> Option<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect();
    for (name, below) in [("GOBIN", ""), ("GOPATH", "bin"), ("HOME", "go/bin")] {
        dirs.extend(std::env::var_os(name).map(|dir| PathBuf::from(dir).join(below)));
    }
    dirs.into_iter().map(|dir| dir.join("h2spec")).find(|path| path.is_file())
}

/// The cases of a JUnit report, as `http2/6.9.1/3`, with whether they passed.
fn cases(report: &str) -> Vec<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    let mut last = (String::new(), 0);
    for case in report.split("<testcase ").skip(1) {
        let package =
            case.split("package=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
        last = if last.0 == package { (last.0, last.1 + 1) } else { (package.to_owned(), 1) };
        let good = !case.contains("<failure") && !case.contains("<error");
        found.push((format!("{package}/{}", last.1), good));
    }
    found
}

#[allow(clippy::print_stdout, reason = "the test's output says why it was skipped")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ingress_passes_h2spec() {
    let Some(h2spec) = h2spec() else {
        return sas_testkit::skip(
            "h2spec is not installed (go install github.com/summerwind/h2spec/cmd/h2spec@latest)",
        );
    };
    let platform = Platform::start().await;
    route(&platform.table, "127.0.0.1", platform.revision);
    let slow = handler(|request: sas_core::Request| async move {
        match request.into_body().collect(1 << 20).await {
            Ok(_) => {
                // Long enough for what comes after a request to meet it, short enough to be waited for.
                tokio::time::sleep(Duration::from_millis(50)).await;
                text(200, "hello")
            }
            Err(_) => text(400, "broken"),
        }
    });
    platform.pool.add_inside(platform.revision, slow);
    let report = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("h2spec.xml");
    let (path, port) = (report.clone(), platform.address().port().to_string());
    let run = move || {
        Command::new(h2spec)
            .args(["-h", "127.0.0.1", "-p", &port, "-o", "5", "-j"])
            .arg(path)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let cases = cases(&std::fs::read_to_string(report).unwrap());
    assert!(cases.len() >= 140, "{} cases: {said}", cases.len());
    let failed: Vec<&str> = cases.iter().filter(|(_, good)| !good).map(|(case, _)| case.as_str()).collect();
    println!("{} of {} pass; not: {failed:?}", cases.len() - failed.len(), cases.len());
    let wrong: Vec<&&str> = failed.iter().filter(|case| !DEVIATIONS.contains(case)).collect();
    assert!(wrong.is_empty(), "{wrong:?}: {said}");
    platform.pool.until_idle().await;
}
