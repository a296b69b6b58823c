//! Exchanges that go wrong, are cut, or could be read in two ways: on both ways of HTTP/1.1, since CI runs this program
//! again with `SAS_TEST_HTTP1=general`.

mod answers;
mod bad_input;
mod drain;
#[path = "../support/frames.rs"]
mod frames;
#[path = "../support/raw.rs"]
mod raw;
mod smuggling;
mod stalled;
#[path = "../support/mod.rs"]
mod support;
