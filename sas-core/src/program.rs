//! What any program is given: variables and resources.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EnvValue {
    /// The value itself.
    Literal(String),
    /// A reference that [`crate::SecretSource`] resolves at every start.
    Secret(String),
}

/// A resolved secret. Its `Debug` never shows it, and its memory is overwritten when the last clone is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<String>>);

impl Secret {
    /// A secret with this value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(Arc::new(Zeroizing::new(value.into())))
    }

    /// The value, for the one place that hands it to an instance.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What one instance may use; `None`: no limit, and for requests: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Resources {
    /// Expected CPU use in thousandths of a core.
    pub cpu_request_millis: Option<u32>,
    /// Limit of CPU in thousandths of a core.
    pub cpu_limit_millis: Option<u32>,
    /// Expected memory in bytes, for budgets and for targets in percent.
    pub memory_request_bytes: Option<u64>,
    /// Limit of memory in bytes.
    pub memory_limit_bytes: Option<u64>,
}
