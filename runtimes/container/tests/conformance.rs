//! The container runtime passes the suite for runtimes, with real containers: needs root and crun or runc.

mod support;

use std::time::Duration;

use sas_core::{RevisionSpec, Runtime, Source};
use sas_testkit::runtime::{self, Fixtures};
use std::sync::Arc;
use support::Workplace;

/// Starts take time, calls go over a socket and belong to the data plane, and a container has no stem.
const SKIPPED: [&str; 7] = [
    "try_start does what start does",
    "a call ends at its deadline",
    "running calls finish within the grace",
    "stem becomes",
    "stem that is stopped",
    "suspend and resume",
    "a suspended instance",
];

fn fixtures() -> (Workplace, Fixtures) {
    let place = Workplace::new();
    let runtime = place.runtime();
    let mut no_name = place.app(&[]);
    no_name.source = Source::Image("not a name".into());
    let mut elsewhere = place.app(&[]);
    elsewhere.source = Source::Image("oci:/etc:app".into());
    let mut relative = place.app(&[]);
    relative.working_dir = Some("somewhere".into());
    let store = place.store();
    let fixtures = Fixtures::new(runtime as Arc<dyn Runtime>, place.app(&[]))
        .slow(place.app(&["always=/slow"]))
        .endless(place.app(&["always=/endless"]))
        .crash_on_start(place.app(&["exit"]))
        .never_ready(place.app(&["deaf"]))
        .crash_on_call(place.app(&[]))
        .ignores_stop(place.app(&["stubborn"]))
        .chatty(place.app(&[]))
        .environment(place.app(&["always=/env"]))
        .invalid(RevisionSpec::new("container", Source::Path("no/such/file".into())), "source")
        .invalid(no_name, "not a name")
        .invalid(elsewhere, "local_images")
        .invalid(relative, "working_dir")
        .census(move || support::census(&store))
        .start_limit(Duration::from_secs(20));
    (place, fixtures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn containers_pass_the_runtime_suite() {
    support::needs_containers!();
    let report = runtime::suite(async || fixtures()).await;
    println!("{report}");
    report.assert_passed_skipping(&SKIPPED);
}
