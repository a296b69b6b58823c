#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
mod message;
mod sink;
mod source;

pub use access::NatsServers;
pub use sink::NatsSink;
pub use source::NatsJetStream;
