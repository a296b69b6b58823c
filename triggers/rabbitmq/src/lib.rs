#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod message;
mod source;

pub use source::{RabbitQueue, RabbitServers};
