//! What a test says that can't run where it is.

use std::io::Write as _;

/// Says that the test does not run, and why: a user, a program or a setting is missing. In CI, where the environment has
/// `CI`, that is a failure, since CI is that user and installs that program.
///
/// ```no_run
/// # fn is_root() -> bool { true }
/// if !is_root() {
///     return sas_testkit::skip("namespaces need root");
/// }
/// ```
///
/// # Panics
/// Where the environment has `CI`.
#[track_caller]
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "this test is not skipped in CI, and can't run: {why}");
    say(why);
}

/// Says that the test does not run, since the kernel of this machine lacks what it is about, such as a controller of control
/// groups. No CI can install that: it is said there, too, and is no failure.
pub fn kernel_lacks(what: &str) {
    say(&format!("the kernel has no {what}"));
}

/// To the real stderr: what `eprintln` says is kept from the eyes of whoever runs a test that passes.
fn say(why: &str) {
    let thread = std::thread::current();
    // Nobody reads it, where stderr is closed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {}: {why}", thread.name().unwrap_or("a test"));
}
