//! What functions return.

use sas_core::{Answer, BoxError, Response, Result};

/// What a function may return: a [`Response`], an [`Answer`] (for a switch of protocols), or a `Result` of one.
///
/// An `Err` is answered with status 500 and logged with its text; the caller does not get to see the text.
pub trait IntoReply {
    /// The answer, or the error that becomes a 500.
    ///
    /// # Errors
    /// The function's own.
    fn into_reply(self) -> Result<Answer, BoxError>;
}

impl IntoReply for Response {
    fn into_reply(self) -> Result<Answer, BoxError> {
        Ok(Answer::Http(self))
    }
}

impl IntoReply for Answer {
    fn into_reply(self) -> Result<Answer, BoxError> {
        Ok(self)
    }
}

impl<R: IntoReply, E: Into<BoxError>> IntoReply for Result<R, E> {
    fn into_reply(self) -> Result<Answer, BoxError> {
        self.map_err(Into::into)?.into_reply()
    }
}
