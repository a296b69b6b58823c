//! A part that may outlive its process, as the suites hold it.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use parking_lot::Mutex;

use crate::check::{Stop, Verdict};

type Reopen<T> = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Arc<T>>>>>;

/// The part, and how to open it again.
pub(crate) struct Medium<T: ?Sized> {
    part: Mutex<Option<Arc<T>>>,
    reopen: Option<Reopen<T>>,
}

impl<T: ?Sized> fmt::Debug for Medium<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Medium").field("reopen", &self.reopen.is_some()).finish_non_exhaustive()
    }
}

impl<T: ?Sized + 'static> Medium<T> {
    pub(crate) fn new(part: Arc<T>) -> Self {
        Self { part: Mutex::new(Some(part)), reopen: None }
    }

    pub(crate) fn reopen<F>(&mut self, reopen: impl Fn() -> F + 'static)
    where
        F: Future<Output = Arc<T>> + 'static,
    {
        self.reopen = Some(Box::new(move || Box::pin(reopen())));
    }

    pub(crate) fn part(&self) -> Arc<T> {
        self.part.lock().clone().expect("present except while it is opened again")
    }

    /// The part on the same medium, opened again after the handle of the suite was dropped.
    pub(crate) async fn opened_again(&self, what: &str) -> Verdict<Arc<T>> {
        let Some(reopen) = &self.reopen else {
            return Err(Stop::skip(format!("{what} does not outlive its process (no `reopen`)")));
        };
        drop(self.part.lock().take());
        let part = reopen().await;
        *self.part.lock() = Some(Arc::clone(&part));
        Ok(part)
    }
}
