//! The runtime from outside: one binary, because linking is what its tests take longest for.
#![allow(clippy::print_stdout, reason = "reports of tests")]

mod cgi;
mod conformance;
mod support;
