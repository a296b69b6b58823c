#![forbid(unsafe_code)]
#![cfg(target_os = "linux")]
#![doc = include_str!("../README.md")]

mod artifact;
mod cgroups;
mod compression;
mod config;
mod container;
mod credentials;
mod digest;
mod engine;
mod export;
mod images;
mod instance;
mod local;
mod logs;
mod manifest;
pub mod metrics;
mod name;
mod place;
mod pod;
mod progress;
mod refresh;
mod registry;
mod runtime;
mod seccomp;
mod spec;
mod start;
mod store;
mod transfer;
mod unpack;
mod volumes;

pub use config::{ContainerConfig, Network, Registries};
pub use credentials::{CredentialProvider, Credentials, DockerConfig, StaticCredentials};
pub use export::{ImageBase, ImageSettings, write_image};
pub use progress::{PullObserver, PullProgress};
pub use runtime::ContainerRuntime;
pub use transfer::Transfer;
pub use unpack::ImageLimits;
