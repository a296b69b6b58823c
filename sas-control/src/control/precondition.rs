//! Changes that are done only if what is stored is what the caller has seen.

use std::{cell::Cell, future::Future};

use sas_core::{Error, ErrorKind, Result, Version};

use super::{BROKERS, Control, ENGINES, TRIGGERS};

/// The operation of an error of a condition that does not hold; its kind is `Conflict`.
pub(crate) const PRECONDITION: &str = "precondition";

/// What a caller expects to be stored of the one thing that they change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Anything,
    Absent,
    Present,
    At(Version),
}

tokio::task_local! {
    /// What the change of this task expects, until its first write has been held to it. It stands beside the task and
    /// not in the arguments, since it is between whoever asks and the write, and all that is between them need not know.
    static EXPECTED: Cell<Expected>;
}

/// Does `change` only if its first write of what it is about finds what is expected. The writes that follow are held to what
/// that one left, as ever.
pub(crate) fn expecting<T>(expected: Expected, change: impl Future<Output = T>) -> impl Future<Output = T> {
    EXPECTED.scope(Cell::new(expected), change)
}

/// Holds the first write of the task to what it expects; `found` is the version that is stored. To be asked while
/// nobody else can change it, or before a write that is guarded by `found`.
pub(super) fn check(what: &str, found: Option<Version>) -> Result<()> {
    let expected = EXPECTED.try_with(|expected| expected.replace(Expected::Anything));
    let problem = match (expected.unwrap_or(Expected::Anything), found) {
        (Expected::Anything, _) | (Expected::Absent, None) | (Expected::Present, Some(_)) => return Ok(()),
        (Expected::At(expected), Some(found)) if expected == found => return Ok(()),
        (Expected::Absent, Some(_)) => "is there already",
        (Expected::Present | Expected::At(_), None) => "is not there",
        (Expected::At(_), Some(_)) => "was changed since it was read; read it again",
    };
    Err(Error::new(ErrorKind::Conflict, PRECONDITION, format!("{what} {problem}")))
}

/// What is declared by name, and kept as it was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Declaration {
    Broker,
    Engine,
    Trigger,
}

impl Control {
    /// The version of a declaration that is stored.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub(crate) async fn declared_version(&self, kind: Declaration, name: &str) -> Result<Option<Version>> {
        let prefix = match kind {
            Declaration::Broker => BROKERS,
            Declaration::Engine => ENGINES,
            Declaration::Trigger => TRIGGERS,
        };
        Ok(self.store.get(&format!("{prefix}{name}")).await?.map(|entry| entry.version))
    }
}
