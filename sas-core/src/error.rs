//! One error type for backends; callers branch on its [`ErrorKind`] and [`Retry`], never on text.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::SpecErrors;

/// An error of any type in a box, which can be sent between threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What went wrong, coarsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// What was asked for is malformed; the same request can never succeed.
    InvalidSpec,
    /// The thing named does not exist.
    NotFound,
    /// Somebody else changed it first, or it exists already.
    Conflict,
    /// This backend does not do that; see [`crate::Capabilities`].
    Unsupported,
    /// It can't be done now (not reachable, shutting down).
    Unavailable,
    /// A limit was met: memory, instances, queue, quota.
    Exhausted,
    /// A deadline passed.
    Timeout,
    /// The code that was run ended, or closed its connection, before it had answered.
    Crashed,
    /// A defect, of this SDK or of a backend.
    Unexpected,
}

impl ErrorKind {
    /// The kind as it appears in JSON, in snake case.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "invalid_spec",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Unsupported => "unsupported",
            Self::Unavailable => "unavailable",
            Self::Exhausted => "exhausted",
            Self::Timeout => "timeout",
            Self::Crashed => "crashed",
            Self::Unexpected => "unexpected",
        }
    }
}

/// What a caller may do next: a classification, not a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call fails again.
    Never,
    /// Another instance may do it.
    AnotherInstance,
    /// The same call may succeed after this long.
    After(Duration),
}

/// The error of every backend.
///
/// ```
/// use sas_core::{Error, ErrorKind, Retry};
/// let error = Error::new(ErrorKind::Exhausted, "start", "memory budget of 512 MiB is used up")
///     .with_retry(Retry::After(std::time::Duration::from_secs(1)));
/// assert_eq!(error.to_string(), "start: exhausted: memory budget of 512 MiB is used up");
/// ```
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {}: {message}", kind.as_str())]
#[non_exhaustive]
pub struct Error {
    /// What went wrong, coarsely.
    pub kind: ErrorKind,
    /// Whether trying again may help, and how.
    pub retry: Retry,
    /// The contract method or step that failed, such as `start` or `prepare`.
    pub operation: &'static str,
    /// What, where and what to do about it, for a human. Never holds a secret.
    pub message: String,
    /// The error that caused this one, if there was one.
    #[source]
    pub source: Option<BoxError>,
}

impl Error {
    /// An error with the kind's usual retry class: [`Retry::AnotherInstance`] for [`ErrorKind::Crashed`],
    /// [`Retry::Never`] for all others.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        let retry = match kind {
            ErrorKind::Crashed => Retry::AnotherInstance,
            _ => Retry::Never,
        };
        Self { kind, retry, operation, message: message.into(), source: None }
    }

    /// `operation` is an optional ability that this backend does not have.
    pub fn unsupported(operation: &'static str) -> Self {
        Self::new(ErrorKind::Unsupported, operation, "this backend does not support it; see its Capabilities")
    }

    /// The same error with another retry class.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The same error with a cause.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The mistakes with their fields, where it is about a configuration: of whatever was given, so that the errors
    /// of a document name fields of the document, and those of a value of this library its fields.
    ///
    /// ```
    /// use sas_core::{Error, SpecErrors};
    /// let mut mistakes = SpecErrors::default();
    /// mistakes.push("concurrency", 0, "must be at least 1");
    /// let error = Error::from(mistakes);
    /// assert_eq!(error.fields().map(|fields| fields.0[0].field.as_str()), Some("concurrency"));
    /// ```
    pub fn fields(&self) -> Option<&SpecErrors> {
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            if let Some(fields) = cause.downcast_ref() {
                return Some(fields);
            }
            next = cause.source();
        }
        None
    }

    /// The message followed by those of all causes, for a log line or an answer.
    pub fn chain(&self) -> String {
        use std::fmt::Write as _;
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            let _ = write!(text, ": {cause}");
            next = cause.source();
        }
        text
    }
}

/// The result of a backend.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl From<SpecErrors> for Error {
    fn from(errors: SpecErrors) -> Self {
        Self::new(ErrorKind::InvalidSpec, "validate", errors.to_string()).with_source(errors)
    }
}
