#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod objects;

pub use objects::S3Objects;
