#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod scan;
mod source;

pub use source::{Files, FilesBelow};
