#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod answer;
mod options;
mod session;
mod settling;
mod statements;
mod store;
mod writer;

pub use options::PostgresOptions;
pub use store::PostgresStore;
