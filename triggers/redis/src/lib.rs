#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod access;
mod entry;
mod list;
mod sink;
mod source;

pub use access::RedisServers;
pub use list::RedisList;
pub use sink::RedisSink;
pub use source::RedisStream;
