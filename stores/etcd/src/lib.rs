#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod answer;
mod options;
mod store;

pub use options::EtcdOptions;
pub use store::EtcdStore;
