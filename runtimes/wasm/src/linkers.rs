//! What guests may import, by the kind of function: made once for a runtime.

use sas_core::{Error, ErrorKind, Result};
use wasmtime::{Engine, component};

use crate::{
    files::{self, FilesGuest},
    http_guest::HttpGuest,
    preview1::{self, CgiGuest},
};

/// The linkers of a runtime.
pub(crate) struct Linkers {
    pub(crate) modules: wasmtime::Linker<CgiGuest>,
    pub(crate) modules_with_files: wasmtime::Linker<FilesGuest>,
    pub(crate) components: component::Linker<HttpGuest>,
}

impl std::fmt::Debug for Linkers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linkers").finish_non_exhaustive()
    }
}

impl Linkers {
    /// Links all that `engine` offers; WASI 0.3 where it is turned on.
    pub(crate) fn new(engine: &Engine, wasi_03: bool) -> Result<Self> {
        let failed = |what: &str, error: wasmtime::Error| {
            Error::new(ErrorKind::Unexpected, "start wasm runtime", format!("{what}: {error:#}"))
        };
        let mut modules = wasmtime::Linker::new(engine);
        preview1::add_to_linker(&mut modules).map_err(|error| failed("link preview 1", error))?;
        let mut modules_with_files = wasmtime::Linker::new(engine);
        files::add_to_linker(&mut modules_with_files)
            .map_err(|error| failed("link preview 1 with files", error))?;
        let mut components = component::Linker::new(engine);
        link_02(&mut components).map_err(|error| failed("link WASI 0.2", error))?;
        if wasi_03 {
            wasmtime_wasi::p3::add_to_linker(&mut components)
                .and_then(|()| wasmtime_wasi_http::p3::add_to_linker(&mut components))
                .map_err(|error| failed("link WASI 0.3", error))?;
        }
        Ok(Self { modules, modules_with_files, components })
    }
}

fn link_02(linker: &mut component::Linker<HttpGuest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    // Once more, straight to the table: the others' way to it goes through the WASI context, and most guests write
    // their answer to a stream without ever needing one.
    linker.allow_shadowing(true);
    wasmtime_wasi_io::add_to_linker_async(linker)?;
    linker.allow_shadowing(false);
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)
}
