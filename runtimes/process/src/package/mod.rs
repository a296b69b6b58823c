//! Packages: what kind they are, how they are unpacked and where they are kept.

pub(crate) mod archive;
pub(crate) mod detect;
pub(crate) mod store;
pub(crate) mod tree;

pub use archive::PackageLimits;
