//! The seam that triggers, workflows and test runs call through.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::Serialize;

use crate::{CallError, Cx, InstanceId, Request, Response, RevisionKey, StartTimings};

/// What an [`Invoker`] calls: a service, or one revision of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Target {
    /// `namespace/service`: the service's traffic split decides the revision.
    Service(Arc<str>),
    /// One revision, whatever traffic it gets.
    Revision(RevisionKey),
}

/// The one way in for triggers, workflows and test runs; the gateway implements it over Router and Pool.
#[async_trait]
pub trait Invoker: fmt::Debug + Send + Sync + 'static {
    /// Sends `request` to `target`, waking it if [`crate::Purpose::wakes`], and answers with the head of the response.
    /// The response carries [`CallTimings`] in its extensions, and its body the lease.
    ///
    /// **Cancel safety:** dropping the future gives up the place in the queue or aborts the call; an instance that
    /// was started for it stays with the pool.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] when nothing has that name; `Exhausted` and `Timeout` as the queue answers;
    /// `Crashed` when the instance was lost. An HTTP answer of any status is no error.
    async fn invoke(&self, target: Target, request: Request, cx: &Cx) -> Result<Response, CallError>;
}

/// How long the steps of a call took. Found in the extensions of every response that came from an instance.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct CallTimings {
    /// The instance that answered; `None` when none did.
    pub instance: Option<InstanceId>,
    /// Whether the request waited for an instance to start.
    pub cold: bool,
    /// From arrival to a lease.
    pub queued: Duration,
    /// The phases of the start that this request waited for; `None` when warm.
    pub start: Option<StartTimings>,
    /// From the lease to the first byte of the response.
    pub first_byte: Duration,
    /// From arrival to the first byte of the response.
    pub total: Duration,
}

/// Something that answers HTTP requests in this process: a gateway, an admin API, an inline function.
#[async_trait]
pub trait Handler: fmt::Debug + Send + Sync + 'static {
    /// Answers. There is no error: a failure is a response with a status.
    ///
    /// **Cancel safety:** dropping the future means that the client has gone.
    async fn handle(&self, request: Request) -> Response;
}
