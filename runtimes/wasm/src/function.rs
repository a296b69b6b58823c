//! A function that can start: compiled, linked, with what its revision asked for.

use std::{fmt, sync::Arc};

use crate::{
    admission::Admission,
    cgi::Block,
    files::FilesGuest,
    host::Host,
    http02::Linked,
    inspect::Kind,
    options::Options,
    preview1::{CgiGuest, CgiProgram},
};

/// How a request reaches the code.
pub(crate) enum Program {
    Cgi(Arc<CgiProgram<CgiGuest>>),
    /// With granted folders.
    Files(Arc<CgiProgram<FilesGuest>>),
    Http(Arc<Linked>),
}

/// What `prepare` makes.
pub(crate) struct Function {
    pub(crate) program: Program,
    pub(crate) kind: Kind,
    pub(crate) options: Arc<Options>,
    pub(crate) arguments: Arc<Block>,
    pub(crate) admission: Arc<Admission>,
    /// Slots that one sandbox takes.
    pub(crate) units: u32,
    /// Bytes of the compiled code, which all instances share.
    pub(crate) code_bytes: u64,
    pub(crate) host: Arc<Host>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("kind", &self.kind)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
