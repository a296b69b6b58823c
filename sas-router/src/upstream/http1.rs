//! HTTP/1.1 to an instance, driven by the request that uses the connection.
//!
//! A connection has no task of its own: the future that awaits the response polls it, then the response's body
//! does, and between requests it lies in the pool, unpolled. That saves a wake-up and a switch of tasks per
//! request, and an idle connection costs no task.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, Connection, SendRequest},
};
use hyper_util::rt::TokioIo;
use sas_core::{Body, BoxError};
use tokio::time::Instant;

use super::{
    Home, UpstreamConfig,
    io::{AT_ONCE, Doubt, InstanceIo},
    keep_alive::keep_for,
    plain::Arriving,
};
use crate::stall::{Handover, Limit, Writing};

/// The least that hyper buffers of a connection before it waits: its own default.
const LEAST_BUFFER: usize = 8 * 1024 + 400 * 1024;

/// A request's body on its way to an instance, which tells how far it got.
#[derive(Debug)]
pub(crate) struct Outgoing {
    body: Body,
    progress: Option<Arc<Progress>>,
    /// HTTP/2: where the task that will write the body finds its marks. Until the first frame is asked for.
    handover: Option<Arc<Handover>>,
}

/// How far a request's body got.
#[derive(Debug)]
pub(crate) struct Progress {
    bytes: AtomicU64,
    done: AtomicBool,
    writing: Arc<Writing>,
}

impl Progress {
    /// Of a body that the instance must have taken by `deadline`.
    pub(crate) fn until(deadline: Instant) -> Arc<Self> {
        let writing = Arc::<Writing>::default();
        writing.begins(Some(deadline));
        Arc::new(Self { bytes: AtomicU64::new(0), done: AtomicBool::new(false), writing })
    }

    /// Bytes of the body that were handed to the connection.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The body went out whole.
    pub(super) fn went(&self, bytes: usize) {
        self.bytes.store(bytes as u64, Ordering::Relaxed);
        self.done.store(true, Ordering::Release);
        self.writing.ends();
    }

    fn is_done(&self) -> bool {
        self.done.load(Ordering::Acquire)
    }
}

impl Outgoing {
    pub(crate) fn new(body: Body, progress: Option<Arc<Progress>>) -> Self {
        Self { body, progress, handover: None }
    }

    /// The same, for a connection that makes tasks for bodies.
    pub(super) fn handed_over(mut self, handover: Arc<Handover>) -> Self {
        self.handover = Some(handover);
        self
    }

    pub(crate) fn into_body(mut self) -> Body {
        std::mem::take(&mut self.body)
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.writing.ends();
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Some(progress) = &self.progress {
            progress.writing.asked(matches!(polled, Poll::Ready(Some(Ok(_)))));
        }
        if let (Some(handover), Some(progress)) = (self.handover.take(), &self.progress) {
            handover.put(Arc::clone(&progress.writing));
        }
        if let (Poll::Ready(frame), Some(progress)) = (&polled, &self.progress) {
            if let Some(Ok(frame)) = frame
                && let Some(data) = frame.data_ref()
            {
                progress.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
            }
            if frame.is_none() || self.body.is_end_stream() {
                progress.done.store(true, Ordering::Release);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection and the handle that feeds it.
#[derive(Debug)]
pub(super) struct Http1 {
    sender: SendRequest<Outgoing>,
    connection: Connection<TokioIo<InstanceIo>, Outgoing>,
    doubt: Doubt,
    open: bool,
    /// It is of no use after its answer.
    once: bool,
    /// How long the instance keeps it when it is unused, as it said; `None`: it said nothing.
    keep_for: Option<Duration>,
}

/// A call that came to nothing, with the request when none of it was sent.
pub(super) struct Failed {
    pub(super) error: hyper::Error,
    pub(super) unsent: Option<Box<http::Request<Outgoing>>>,
}

impl Http1 {
    /// Takes a connection over that was used by nobody, or that is replaying an exchange.
    pub(super) async fn over(io: InstanceIo, config: &UpstreamConfig) -> io::Result<Box<Self>> {
        let doubt = io.doubt();
        let mut builder = Builder::new();
        builder
            .max_headers(config.max_headers)
            .max_header_size(config.max_header_bytes)
            .max_buf_size(config.max_header_bytes.max(LEAST_BUFFER));
        let handshake = builder.handshake(TokioIo::new(io)).await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        Ok(Box::new(Self { sender, connection, doubt, open: true, once: false, keep_for: None }))
    }

    /// The same, for one more answer only.
    pub(super) fn once(mut self: Box<Self>) -> Box<Self> {
        self.once = true;
        self
    }

    /// Drives the connection; it never goes on after its end.
    fn poll(&mut self, cx: &mut Context<'_>) {
        if self.open && Pin::new(&mut self.connection).poll(cx).is_ready() {
            self.open = false;
        }
    }

    /// Whether a request can be sent now. `doubt` looks at the socket itself, at the price of a system call.
    pub(super) fn poll_usable(&mut self, cx: &mut Context<'_>, doubt: bool) -> bool {
        if doubt {
            self.doubt.raise();
        }
        self.poll(cx);
        self.open && self.sender.is_ready()
    }

    /// Sends `request` and waits for the head of the response.
    pub(super) async fn send(
        mut self: Box<Self>,
        request: http::Request<Outgoing>,
        home: Home,
    ) -> Result<http::Response<InstanceBody>, Failed> {
        let progress = request.body().progress.clone();
        let mut response = pin!(self.sender.try_send_request(request));
        let answered = poll_fn(|cx| {
            self.poll(cx);
            if let Poll::Ready(answered) = response.as_mut().poll(cx) {
                return Poll::Ready(answered);
            }
            // The end of the connection drops what it had not answered, and so ends the response too.
            if self.open { Poll::Pending } else { response.as_mut().poll(cx) }
        });
        let response = answered.await.map_err(|mut error| Failed {
            unsent: error.take_message().map(Box::new),
            error: error.into_error(),
        })?;
        let (head, incoming) = response.into_parts();
        self.keep_for = keep_for(&head.headers);
        let uploads = progress.filter(|progress| !progress.is_done());
        if let Some(progress) = uploads {
            // The upload must go on whatever the reader of the response does, so it gets a task after all.
            tokio::spawn(drive(self, home, Limit::new(Arc::clone(&progress.writing), None)));
            return Ok(http::Response::from_parts(head, InstanceBody::driven(incoming)));
        }
        let mut body = InstanceBody { first: None, source: From::Hyper(incoming, self, home) };
        body.take_what_is_here().await;
        Ok(http::Response::from_parts(head, body))
    }

    /// Gives the connection up to an upgrade: it is driven by a task until it was handed over.
    pub(super) fn upgradable(self) -> SendRequest<Outgoing> {
        tokio::spawn(async move {
            if let Err(error) = self.connection.with_upgrades().await {
                tracing::debug!(%error, "a connection to an instance ended while it was to be upgraded");
            }
        });
        self.sender
    }
}

/// Drives a connection until it is free again, has ended, or does not take the upload in time.
async fn drive(mut connection: Box<Http1>, home: Home, mut limit: Limit) {
    let free = poll_fn(|cx| {
        connection.poll(cx);
        if !connection.open {
            return Poll::Ready(false);
        }
        if let Poll::Ready(ready) = connection.sender.poll_ready(cx) {
            return Poll::Ready(ready.is_ok());
        }
        limit.poll(cx).map(|()| false)
    });
    if free.await {
        check_in(connection, &home);
    }
}

/// Gives a connection back whose answer is over, if it can take another request.
fn free(mut connection: Box<Http1>, home: &Home, cx: &mut Context<'_>) {
    if connection.once || connection.poll_usable(cx, false) {
        check_in(connection, home);
    }
}

fn check_in(connection: Box<Http1>, home: &Home) {
    if !connection.once {
        let keep_for = connection.keep_for;
        home.check_in(super::Connection::Hyper(connection), keep_for);
    } else {
        connection.connection.into_parts().io.into_inner().finish_unsent();
    }
}

/// A response's body, which drives the connection that it comes from and gives it back at its end.
#[derive(Debug)]
pub(crate) struct InstanceBody {
    first: Option<Bytes>,
    source: From,
}

/// Where the rest of a body comes from.
#[derive(Debug)]
enum From {
    Nowhere,
    Plain(Arriving),
    /// A connection that somebody else drives.
    Driven(Incoming),
    Hyper(Incoming, Box<Http1>, Home),
}

impl InstanceBody {
    /// A body whose connection somebody else drives.
    pub(super) fn driven(incoming: Incoming) -> Self {
        Self { first: None, source: From::Driven(incoming) }
    }

    /// A body that is here.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self { first: (!bytes.is_empty()).then_some(bytes), source: From::Nowhere }
    }

    /// A body of which `first` is here.
    pub(super) fn arriving(first: Bytes, rest: Arriving) -> Self {
        Self { first: (!first.is_empty()).then_some(first), source: From::Plain(rest) }
    }

    /// The whole body, when it has arrived already and the instance is done.
    pub(crate) fn complete(&mut self) -> Option<Bytes> {
        matches!(self.source, From::Nowhere).then(|| self.first.take().unwrap_or_default())
    }

    fn incoming(&self) -> Option<&Incoming> {
        match &self.source {
            From::Driven(incoming) | From::Hyper(incoming, ..) => Some(incoming),
            From::Nowhere | From::Plain(_) => None,
        }
    }

    /// Small bodies mostly come in one read with the head: taking them now frees connection and slot at once.
    async fn take_what_is_here(&mut self) {
        let small = self.incoming().and_then(|body| body.size_hint().exact()).is_some_and(|n| n <= AT_ONCE);
        if !small {
            return;
        }
        poll_fn(|cx| {
            if self.incoming().is_some_and(http_body::Body::is_end_stream) {
                self.finish(cx);
            } else if let Poll::Ready(Some(Ok(frame))) = self.poll_source(cx) {
                // A body of known length has no trailers here: only chunked ones carry them.
                self.first = frame.into_data().ok().map(unshared);
            }
            Poll::Ready(())
        })
        .await;
    }

    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = match &mut self.source {
            From::Nowhere => return Poll::Ready(None),
            From::Plain(arriving) => {
                let data = ready!(arriving.poll_data(cx));
                if data.is_err() || arriving.left() == 0 {
                    self.finish(cx);
                }
                return Poll::Ready(Some(data.map(Frame::data)));
            }
            From::Driven(incoming) => Pin::new(incoming).poll_frame(cx),
            From::Hyper(incoming, connection, _) => match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Pending => {
                    connection.poll(cx);
                    Pin::new(incoming).poll_frame(cx)
                }
                ready => ready,
            },
        };
        match ready!(polled) {
            Some(Ok(frame)) => {
                if self.incoming().is_some_and(http_body::Body::is_end_stream) {
                    self.finish(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.source = From::Nowhere;
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                self.finish(cx);
                Poll::Ready(None)
            }
        }
    }

    fn finish(&mut self, cx: &mut Context<'_>) {
        match std::mem::replace(&mut self.source, From::Nowhere) {
            From::Plain(arriving) if arriving.left() == 0 => arriving.finish(),
            From::Hyper(_, connection, home) => free(connection, &home, cx),
            _ => {}
        }
    }
}

/// A small body is copied out of the connection's read buffer, which can then be used again at once. To hold on to
/// it would cost the next response a new buffer of eight kilobytes.
fn unshared(bytes: Bytes) -> Bytes {
    if bytes.len() <= 4 * 1024 { Bytes::copy_from_slice(&bytes) } else { bytes }
}

impl http_body::Body for InstanceBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        self.poll_source(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && matches!(self.source, From::Nowhere)
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = match &self.source {
            From::Nowhere => SizeHint::with_exact(0),
            From::Plain(arriving) => SizeHint::with_exact(arriving.left()),
            From::Driven(incoming) | From::Hyper(incoming, ..) => incoming.size_hint(),
        };
        if let Some(first) = &self.first {
            let read = first.len() as u64;
            if let Some(upper) = hint.upper() {
                hint.set_upper(upper + read);
            }
            hint.set_lower(hint.lower() + read);
        }
        hint
    }
}
