//! Where integrators put their own code into a request's way.

use std::fmt;

use async_trait::async_trait;
use sas_core::{Request, RequestId, Response};

use crate::{ClientConnection, Failure};

/// What a hook knows besides the message.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct HookCx<'a> {
    /// The id of the request, as in logs and answers.
    pub id: RequestId,
    /// The connection it came over.
    pub connection: &'a ClientConnection,
}

impl<'a> HookCx<'a> {
    /// The context of a request on `connection`.
    pub const fn new(id: RequestId, connection: &'a ClientConnection) -> Self {
        Self { id, connection }
    }
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Step {
    /// It goes on.
    Continue,
    /// This is the answer; what comes after is not asked.
    Answer(Box<Response>),
}

/// Code of the host platform that sees every request from outside: to authenticate, to rewrite, to observe, to answer
/// early.
///
/// Hooks run in the order in which they were given, before routing, so what they change decides the route. Their
/// [`Hook::on_response`] runs in the opposite order, for answers of instances, of hooks and of the platform alike.
/// `examples/jwt_hook.rs` checks tokens this way.
#[async_trait]
pub trait Hook: fmt::Debug + Send + Sync + 'static {
    /// Sees a request whose head was checked.
    ///
    /// **Cancel safety:** dropped when the client leaves.
    ///
    /// # Errors
    /// The refusal to give, as JSON like all others.
    async fn on_request(&self, request: &mut Request, cx: &HookCx<'_>) -> Result<Step, Failure> {
        let _ = (request, cx);
        Ok(Step::Continue)
    }

    /// Sees the head of an answer. Returns soon: it is not async, so that no answer can be held up.
    fn on_response(&self, response: &mut Response, cx: &HookCx<'_>) {
        let _ = (response, cx);
    }
}
