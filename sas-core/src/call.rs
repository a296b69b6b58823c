//! Calls within this process: what is answered, and what a failed one hands back.

use std::fmt;

use async_trait::async_trait;

use crate::{Cx, Error, Request, Response};

/// What answers requests within this process. The data plane calls it for each request that has a lease of the
/// instance.
#[async_trait]
pub trait Call: Send + Sync {
    /// Answers one request.
    ///
    /// **Cancel safety:** dropping the future (or the response's body) aborts the call.
    ///
    /// # Errors
    /// `Crashed` when the instance ended or trapped; `Exhausted` when a limit of the call was met; `Timeout` at
    /// `cx.deadline`. The request is handed back iff nothing of it was used.
    async fn call(&self, request: Request, cx: &Cx) -> Result<Answer, CallError>;
}

/// Bytes both ways, after an upgrade.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin> Io for T {}

/// What an instance in this process answers.
pub enum Answer {
    /// A response.
    Http(Response),
    /// A switch of protocols.
    Upgrade {
        /// The head of the 101 answer.
        head: http::Response<()>,
        /// The instance's end of the connection.
        io: Box<dyn Io>,
    },
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(response) => f.debug_tuple("Http").field(response).finish(),
            Self::Upgrade { head, .. } => f.debug_tuple("Upgrade").field(head).finish(),
        }
    }
}

/// A failed call. It hands the request back when nothing of it was sent, so that another instance can have it.
#[derive(Debug)]
pub struct CallError {
    /// Why the call has failed.
    pub error: Error,
    /// The request, whole, when no byte of it reached an instance.
    pub unsent: Option<Box<Request>>,
}

impl CallError {
    /// A call that failed after (a part of) the request may have been sent.
    pub fn sent(error: Error) -> Self {
        Self { error, unsent: None }
    }

    /// A call that failed before anything was sent.
    pub fn unsent(error: Error, request: Request) -> Self {
        Self { error, unsent: Some(Box::new(request)) }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for CallError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.error)
    }
}

/// The reason alone; a request that was handed back is dropped.
impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        error.error
    }
}

/// An error after which the request can't be had back.
impl From<Error> for CallError {
    fn from(error: Error) -> Self {
        Self::sent(error)
    }
}
