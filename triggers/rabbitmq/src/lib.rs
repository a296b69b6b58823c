#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod message;
mod sink;
mod source;

pub use access::RabbitServers;
pub use sink::RabbitSink;
pub use source::RabbitQueue;
