//! Settings that every system has, and that do something on Linux.

use std::path::PathBuf;

/// Whether instances with limits get a control group of their own, which holds them to their limits of CPU and memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlGroups {
    /// Below the host's own group, where it may make groups there: version 2 where it has the controllers, else
    /// version 1. Where it may not, limits of memory are bounded per process by an rlimit on its data, those of CPU
    /// not at all, and the notes of what is prepared say why.
    #[default]
    Auto,
    /// No groups.
    Off,
    /// Below this directory of version 2, which was delegated to this host and holds no processes itself (systemd:
    /// `Delegate=yes`, and a group beside the host's own).
    Under(PathBuf),
}
