//! Refusals that name their fields.

use sas_core::{Error, ErrorKind, SpecErrors};

/// A refusal of one field.
pub(crate) fn invalid(
    operation: &'static str,
    field: impl Into<String>,
    value: impl std::fmt::Display,
    problem: impl Into<String>,
) -> Error {
    let mut errors = SpecErrors::default();
    errors.push(field, value, problem);
    refused(operation, errors)
}

/// A refusal of several fields.
pub(crate) fn refused(operation: &'static str, errors: SpecErrors) -> Error {
    Error::new(ErrorKind::InvalidSpec, operation, errors.to_string()).with_source(errors)
}
