#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod message;
mod sink;
mod source;

pub use access::NatsServers;
pub use sink::NatsSink;
pub use source::NatsJetStream;
