//! Mistakes in what a user wrote, each with its field, its value and what should stand there.

use std::fmt;

use serde::Serialize;

/// One mistake in what a user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecError {
    /// Where, such as `spec.template.spec.containers[0].ports[0].containerPort`.
    pub field: String,
    /// The value that stands in that field.
    pub value: String,
    /// What should stand there instead.
    pub problem: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.field, self.value, self.problem)
    }
}

/// All mistakes that were found in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SpecErrors(pub Vec<SpecError>);

impl SpecErrors {
    /// Adds one: the field's path, its value, and what it should be.
    pub fn push(&mut self, field: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) {
        self.0.push(SpecError { field: field.into(), value: value.to_string(), problem: problem.into() });
    }

    /// Adds those of a part, with `prefix.` before their fields.
    pub fn extend_under(&mut self, prefix: &str, errors: SpecErrors) {
        self.0.extend(errors.0.into_iter().map(|mut error| {
            error.field = format!("{prefix}.{}", error.field);
            error
        }));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` when there are none.
    ///
    /// # Errors
    /// Itself, when there are some.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}
