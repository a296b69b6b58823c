//! The kinds of functions, and the error of a prepare that refuses one.

use sas_core::{Error, ErrorKind};

/// What a function is made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A core module of WASI preview 1 that speaks CGI.
    Cgi,
    /// A component that exports `wasi:http/incoming-handler` of WASI 0.2.
    Http02,
    /// A component that exports `wasi:http/handler` of WASI 0.3.
    Http03,
}

impl Kind {
    /// The name as notes and metrics show it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Cgi => "cgi",
            Self::Http02 => "wasi-http-0.2",
            Self::Http03 => "wasi-http-0.3",
        }
    }
}

/// What `prepare` says of code or a spec that it refuses.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", message)
}
