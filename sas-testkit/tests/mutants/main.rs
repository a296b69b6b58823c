//! Backends with one bug each: a suite that lets one pass proves nothing. The table that the tests print says which
//! check caught which bug.

mod event_log;
mod runtime;
mod scaler;
mod sinks;
mod store;
mod trigger;

use sas_testkit::Report;

#[allow(clippy::print_stdout, reason = "the table is what the tests are read for")]
/// The bug was caught, and by the check that is there for it.
#[track_caller]
fn caught(bug: impl std::fmt::Debug, report: &Report, by: &str) {
    let bug = format!("{bug:?}");
    let failed: Vec<&str> = report.failed().map(|(name, _)| name).collect();
    println!("| {} | {bug} | {} |", report.suite(), failed.join("; "));
    assert!(!failed.is_empty(), "{bug} passed\n{report}");
    assert!(
        failed.iter().any(|name| name.contains(by)),
        "{bug} was caught by other checks than {by:?}\n{report}"
    );
}
