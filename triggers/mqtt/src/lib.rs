#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod message;
mod session;
mod sink;
mod source;

pub use session::MqttBrokers;
pub use sink::MqttSink;
pub use source::MqttSource;
