//! The connection that a source has while it runs.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::{Error, ErrorKind, Result};

/// Keeps the connection of a source's run for questions from outside of it, such as for the backlog. For those who write
/// a source.
///
/// ```
/// use sas_core::Connected;
/// let connected = Connected::default();
/// assert_eq!(connected.get("orders")?, None, "nothing is known before the first run");
/// connected.begin("a connection".into());
/// assert_eq!(connected.get("orders")?.as_deref(), Some("a connection"));
/// connected.end();
/// assert!(connected.get("orders").is_err(), "a run is to come, and has not connected yet");
/// # Ok::<(), sas_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Connected<T: ?Sized>(Mutex<Kept<T>>);

#[derive(Debug)]
enum Kept<T: ?Sized> {
    /// No run has connected yet.
    Never,
    Now(Arc<T>),
    /// The run that had connected has ended.
    Away,
}

impl<T: ?Sized> Default for Connected<T> {
    fn default() -> Self {
        Self(Mutex::new(Kept::Never))
    }
}

impl<T: ?Sized> Connected<T> {
    /// A run has connected.
    pub fn begin(&self, connection: Arc<T>) {
        *self.0.lock() = Kept::Now(connection);
    }

    /// The run has ended. Without effect where none had connected.
    pub fn end(&self) {
        let mut kept = self.0.lock();
        if matches!(*kept, Kept::Now(_)) {
            *kept = Kept::Away;
        }
    }

    /// The connection; `None` before the first run has connected.
    ///
    /// # Errors
    /// `Unavailable`, naming `upstream`, while there is none any more.
    pub fn get(&self, upstream: &str) -> Result<Option<Arc<T>>> {
        match &*self.0.lock() {
            Kept::Never => Ok(None),
            Kept::Now(connection) => Ok(Some(Arc::clone(connection))),
            Kept::Away => {
                Err(Error::new(ErrorKind::Unavailable, "trigger", format!("no connection to {upstream}")))
            }
        }
    }
}
