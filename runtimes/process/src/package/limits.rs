//! Bounds on packages.

use sas_core::package::{MOST_BYTES, MOST_ENTRIES};

/// What a package may take. Anything beyond is refused before it fills the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PackageLimits {
    /// Bytes of the archive or file as it was handed in. Default 1 GiB.
    pub packed_bytes: u64,
    /// Bytes of all files once unpacked. Default 4 GiB.
    pub unpacked_bytes: u64,
    /// Files, directories and links. Default 200,000.
    pub entries: u64,
    /// Unpacked bytes per packed byte, judged beyond the first MiB. Default 200; code compresses 3 to 10 times.
    pub ratio: u64,
}

impl Default for PackageLimits {
    fn default() -> Self {
        Self { packed_bytes: 1 << 30, unpacked_bytes: MOST_BYTES, entries: MOST_ENTRIES, ratio: 200 }
    }
}
