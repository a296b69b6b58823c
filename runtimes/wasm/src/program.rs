//! The code of a function, compiled and linked: how a request reaches it.

use std::sync::Arc;

use crate::{
    component::Linked,
    files::FilesGuest,
    preview1::{CgiGuest, CgiProgram},
};

/// How a request reaches the code.
#[derive(Clone)]
pub(crate) enum Program {
    /// Without folders, the cheap way.
    Cgi(Arc<CgiProgram<CgiGuest>>),
    /// With granted folders.
    Files(Arc<CgiProgram<FilesGuest>>),
    /// A component of `wasi:http`.
    Http(Arc<Linked>),
}
