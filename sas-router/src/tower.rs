//! The gateway as a [`tower_service::Service`], for hosts that bring a server or a framework of their own.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use sas_core::{Body, BoxError, Handler, Response};

/// Any [`Handler`] as a service: always ready, and never failing, since a failure is a response with a status.
///
/// `examples/mounted.rs` of the repository mounts a platform in axum this way: the gateway as the fallback, the admin API
/// below a path.
#[derive(Clone, Debug)]
pub struct HandlerService(Arc<dyn Handler>);

impl HandlerService {
    /// A service over `handler`.
    pub fn new(handler: Arc<dyn Handler>) -> Self {
        Self(handler)
    }
}

impl<B> tower_service::Service<http::Request<B>> for HandlerService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let handler = Arc::clone(&self.0);
        let request = request.map(|body| if body.is_end_stream() { Body::empty() } else { Body::new(body) });
        Box::pin(async move { Ok(handler.handle(request).await) })
    }
}
