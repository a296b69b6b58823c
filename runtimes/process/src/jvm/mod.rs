//! Java: manifests, the JDK of the host, class archives, and JVM stems.

pub(crate) mod archive;
pub(crate) mod equal;
pub(crate) mod jdk;
pub(crate) mod manifest;
pub(crate) mod stem;
pub(crate) mod tool;

pub(crate) use manifest::Manifest;
