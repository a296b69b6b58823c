#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
mod row;
mod sink;
mod source;
mod table;

pub use access::PostgresServers;
pub use sink::PostgresSink;
pub use source::PostgresOutbox;
