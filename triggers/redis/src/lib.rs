#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod entry;
mod source;

pub use source::{RedisStream, RedisStreams};
