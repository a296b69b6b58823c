#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod file;
mod request;
mod webhook;

pub use file::{FileSink, FileSinks};
pub use webhook::{Webhook, Webhooks};
