//! Packages: what kind they are, how they are unpacked and where they are kept.

#[cfg(target_os = "linux")]
pub(crate) mod archive;
#[cfg(target_os = "linux")]
pub(crate) mod detect;
mod limits;
#[cfg(target_os = "linux")]
pub(crate) mod store;
#[cfg(target_os = "linux")]
pub(crate) mod tree;

pub use limits::PackageLimits;
