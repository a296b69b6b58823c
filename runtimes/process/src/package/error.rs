//! The errors of `prepare`: a package that is refused, and a disk that fails.

use std::{io, path::Path};

use sas_core::{Error, ErrorKind};

/// What was given can never run.
pub(crate) fn refused(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", message)
}

/// `what` could not be done with `path`.
pub(crate) fn disk(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "prepare", format!("{what} {}: {error}", path.display())).with_source(error)
}
