//! The runtime from outside: one binary, because linking is what its tests take longest for.
#![allow(clippy::print_stdout, reason = "reports of tests")]

mod admission;
mod cgi;
mod components;
mod components03;
mod conformance;
mod folders;
mod hostile;
mod javascript;
mod outside;
mod support;
