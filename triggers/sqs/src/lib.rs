#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
mod message;
mod queue;
mod sink;
mod source;

pub use access::SqsServers;
pub use sink::SqsSink;
pub use source::SqsQueue;
