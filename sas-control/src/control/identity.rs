//! What makes two revisions the same.

use std::path::PathBuf;

use sas_core::{Error, ErrorKind, Result, RevisionSpec, Source};

use crate::record::sha256;

/// The digest of spec and content, wherever the content lies.
pub(super) fn identity(spec: &RevisionSpec, package: Option<&str>) -> Result<String> {
    let mut spec = spec.clone();
    if package.is_some() {
        // The copy's file name is part of the package's digest.
        spec.source = Source::Path(PathBuf::new());
    }
    let text = serde_json::to_vec(&spec).map_err(|error| {
        Error::new(ErrorKind::InvalidSpec, "deploy", format!("the spec can't be written: {error}"))
            .with_source(error)
    })?;
    Ok(sha256(&[&text, package.unwrap_or_default().as_bytes()]))
}
