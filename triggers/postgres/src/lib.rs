#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod row;
mod source;
mod table;

pub use source::{PostgresOutbox, PostgresServers};
