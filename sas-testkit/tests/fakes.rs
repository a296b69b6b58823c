//! The fakes keep the contracts that they stand in for.

use sas_testkit::{fake::FakeRuntime, runtime};

#[tokio::test(start_paused = true)]
async fn the_fake_runtime_passes_its_suite() {
    let report = runtime::suite(async || ((), FakeRuntime::fixtures())).await;
    println!("{report}");
    report.assert_passed_skipping(&["try_start", "stem becomes", "stem that is stopped"]);
}

#[tokio::test(start_paused = true)]
async fn the_fake_runtime_passes_its_suite_when_it_starts_at_once() {
    let clock = std::sync::Arc::new(sas_core::SystemClock);
    let builder = async || ((), FakeRuntime::with(clock.clone(), true).into_fixtures());
    runtime::suite(builder).await.assert_passed_skipping(&["stem becomes", "stem that is stopped"]);
}
