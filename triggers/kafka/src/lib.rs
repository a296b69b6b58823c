#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod group;
mod ledger;
mod members;
mod record;
mod sink;
mod source;

pub use access::KafkaBrokers;
pub use sink::KafkaSink;
pub use source::KafkaSource;
