//! Packages: what kind they are, how they are unpacked and where they are kept.

#[cfg(target_os = "linux")]
pub(crate) mod archive;
#[cfg(target_os = "linux")]
pub(crate) mod detect;
#[cfg(target_os = "linux")]
pub(crate) mod directory;
pub(crate) mod error;
mod limits;
#[cfg(target_os = "linux")]
pub(crate) mod store;
#[cfg(target_os = "linux")]
pub(crate) mod tree;
#[cfg(target_os = "linux")]
pub(crate) mod venv;

pub use limits::PackageLimits;
