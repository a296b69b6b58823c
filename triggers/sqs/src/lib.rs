#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod message;
mod queue;
mod sink;
mod source;

pub use access::SqsServers;
pub use sink::SqsSink;
pub use source::SqsQueue;
