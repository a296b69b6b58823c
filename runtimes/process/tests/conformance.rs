//! The process runtime passes the suite for runtimes, with a native program.

mod support;

use std::{sync::Arc, time::Duration};

use sas_core::{RevisionSpec, Source};
use sas_testkit::runtime::{self, Fixtures};

/// Starts take time, calls go over a socket and belong to the data plane, and a native program has no stem.
const SKIPPED: [&str; 6] = [
    "try_start does what start does",
    "a call ends at its deadline",
    "running calls finish within the grace",
    "stem becomes",
    "stem that is stopped",
    "abilities that are not claimed",
];

fn fixtures() -> (tempfile::TempDir, Fixtures) {
    let (dir, runtime) = support::runtime();
    let store = std::fs::canonicalize(dir.path()).unwrap();
    let mut bad_command = support::app(&[]);
    bad_command.command = vec!["no-such-program".into()];
    let fixtures = Fixtures::new(Arc::new(runtime), support::app(&[]))
        .slow(support::app(&["always=/slow"]))
        .endless(support::app(&["always=/endless"]))
        .crash_on_start(support::app(&["exit"]))
        .never_ready(support::app(&["deaf"]))
        .crash_on_call(support::app(&[]))
        .ignores_stop(support::app(&["stubborn"]))
        .chatty(support::app(&[]))
        .environment(support::app(&["always=/env"]))
        .invalid(RevisionSpec::new("process", Source::Path("no/such/file".into())), "no/such/file")
        .invalid(RevisionSpec::new("process", Source::Image("x".into())), "source")
        .invalid(bad_command, "no-such-program")
        .census(move || {
            let mut found = support::processes_below(&store);
            for entry in std::fs::read_dir(store.join("store/runs")).into_iter().flatten().flatten() {
                for left in std::fs::read_dir(entry.path().join("tmp")).into_iter().flatten().flatten() {
                    found.push(left.path().display().to_string());
                }
            }
            found
        })
        .start_limit(Duration::from_secs(20));
    (dir, fixtures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_programs_pass_the_runtime_suite() {
    let report = runtime::suite(async || fixtures()).await;
    println!("{report}");
    report.assert_passed_skipping(&SKIPPED);
}
