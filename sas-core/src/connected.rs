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
/// let run = connected.begin("a connection".into());
/// assert_eq!(connected.get("orders")?.as_deref(), Some("a connection"));
/// drop(run);
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
    /// A run has connected. It ends when what this returns is dropped, also when the run itself is.
    #[must_use = "the run ends when this is dropped"]
    pub fn begin(&self, connection: Arc<T>) -> ConnectedRun<'_, T> {
        *self.0.lock() = Kept::Now(connection);
        ConnectedRun(self)
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

/// A run that has connected, from [`Connected::begin`].
#[derive(Debug)]
pub struct ConnectedRun<'a, T: ?Sized>(&'a Connected<T>);

impl<T: ?Sized> Drop for ConnectedRun<'_, T> {
    fn drop(&mut self) {
        *self.0.0.lock() = Kept::Away;
    }
}
