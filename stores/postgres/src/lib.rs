#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod answer;
mod objects;
mod options;
mod session;
mod statements;
mod store;
mod tables;
mod writer;

pub use objects::PostgresObjects;
pub use options::PostgresOptions;
pub use store::PostgresStore;
