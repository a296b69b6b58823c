use std::io;

/// Why a trace was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A row that is not what its format says.
    #[error("line {line}: {column}: `{value}` should be {should}")]
    Row {
        /// Its line, from 1.
        line: u64,
        /// The column, as the header names it.
        column: String,
        /// What stands there, shortened.
        value: String,
        /// What should.
        should: String,
    },
    /// The input could not be read.
    #[error("line {line}: {source}")]
    Read {
        /// The line that could not be read, from 1.
        line: u64,
        /// What stopped the reading, as the system or the parser says it.
        #[source]
        source: io::Error,
    },
}

impl TraceError {
    pub(super) fn at(line: u64, column: &str, value: &str, should: impl Into<String>) -> Self {
        // A broken row may be megabytes long.
        let value = if value.chars().count() > 40 {
            value.chars().take(40).chain(['…']).collect()
        } else {
            value.to_owned()
        };
        Self::Row { line, column: column.to_owned(), value, should: should.into() }
    }

    /// The line, from 1.
    pub fn line(&self) -> u64 {
        match self {
            Self::Row { line, .. } | Self::Read { line, .. } => *line,
        }
    }
}
