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

/// A connection that is made with the first use, and anew after a failure, so with the credentials as they are then. For
/// those who write a sink.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// let connection = sas_core::Reconnecting::default();
/// let first = connection.get(async || Ok("a connection")).await?;
/// let same = connection.get(async || unreachable!("there is one")).await?;
/// connection.failed(&same).await;
/// let other = connection.get(async || Ok("another")).await?;
/// assert_eq!((*first, *other), ("a connection", "another"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Reconnecting<T>(tokio::sync::Mutex<Option<Arc<T>>>);

impl<T> Default for Reconnecting<T> {
    fn default() -> Self {
        Self(tokio::sync::Mutex::new(None))
    }
}

impl<T> Reconnecting<T> {
    /// The connection, which is made by `connect` where there is none; others who want it wait for that.
    ///
    /// **Cancel safety:** what was being made is dropped.
    ///
    /// # Errors
    /// That of `connect`.
    pub async fn get(&self, connect: impl AsyncFnOnce() -> Result<T>) -> Result<Arc<T>> {
        let mut kept = self.0.lock().await;
        if let Some(connection) = &*kept {
            return Ok(Arc::clone(connection));
        }
        let made = Arc::new(connect().await?);
        *kept = Some(Arc::clone(&made));
        Ok(made)
    }

    /// Says that this connection is of no use any more: the next who wants one makes another. Whether it was the one that
    /// is kept.
    pub async fn failed(&self, connection: &Arc<T>) -> bool {
        let mut kept = self.0.lock().await;
        let was_kept = kept.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, connection));
        if was_kept {
            *kept = None;
        }
        was_kept
    }
}
