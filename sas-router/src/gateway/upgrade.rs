//! Connections that switched protocols: bytes both ways, with the lease, until one side ends.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{HeaderMap, StatusCode, header, response::Parts};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sas_core::{Body, Io, Lease, Outcome, Response};
use tokio::{io::ReadBuf, time::timeout};

use super::tailed::Farewell;
use crate::{
    access::End,
    connection::ClientConnection,
    failure::Failure,
    forward,
    metrics::GatewayMetrics,
    tail::Tail,
    websocket::{GOING_AWAY, WebSocketFrames},
};

/// How long a client may take to answer a Close frame.
const CLOSING: Duration = Duration::from_secs(2);

/// How long the switch may take after it was agreed on.
const SWITCHING: Duration = Duration::from_secs(10);

/// The instance's side of an upgraded connection.
pub(super) enum InstanceEnd {
    Socket(OnUpgrade),
    Inside(Box<dyn Io>),
}

/// Answers 101 and joins the two sides in a task of their own, which a shutdown of the listener waits for.
pub(super) fn splice(
    mut head: Parts,
    instance: InstanceEnd,
    client: Option<OnUpgrade>,
    connection: &Arc<ClientConnection>,
    metrics: &Arc<GatewayMetrics>,
    mut lease: Lease,
    tail: &mut Tail,
) -> Result<Response, Failure> {
    let Some(client) = client else {
        lease.outcome = Outcome::Unused;
        let text = "the instance switched protocols, but the request did not come over a connection that can";
        return Err(Failure::new(StatusCode::BAD_GATEWAY, "instance", "bad_response", text));
    };
    lease.outcome = Outcome::Ok;
    let mut tail = std::mem::take(tail);
    let websocket = is_websocket(&head.headers);
    let (connection, metrics) = (Arc::clone(connection), Arc::clone(metrics));
    let ending = Arc::clone(connection.ending());
    ending.clone().tasks.spawn(async move {
        let mut farewell = Farewell::new(&ending);
        let joined = async {
            let mut splice = match timeout(SWITCHING, ends(client, instance)).await {
                Ok(ends) => Splice::new(ends?, websocket),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            };
            let parted = poll_fn(|cx| splice.poll(&mut farewell, &lease, cx)).await;
            tail.passed(splice.to_client.passed);
            tail.received(splice.to_instance.passed);
            match parted {
                // The instance was stopped before we saw that its time was over.
                Err(_) if farewell.is_late() => Ok(false),
                Err(error) => Err(error),
                Ok(Parting::Ended) => Ok(!farewell.is_late()),
                Ok(Parting::Deadline) => Ok(false),
                Ok(Parting::OneSide) => {
                    // A WebSocket of which one side has hung up is over; the other may still read what is there.
                    let rest = timeout(CLOSING, poll_fn(|cx| splice.poll_rest(cx))).await;
                    rest.unwrap_or(Ok(())).map(|()| true)
                }
                Ok(Parting::Farewell) => {
                    metrics.websockets.increment(1);
                    // Between two frames of the instance: the client is told, and answers with a Close of its own,
                    // which reaches the instance as any frame does.
                    let _late = timeout(CLOSING, poll_fn(|cx| splice.poll_closing(cx))).await;
                    Ok(true)
                }
            }
        };
        let ended: Option<io::Result<bool>> = tokio::select! {
            biased;
            () = ending.abort.cancelled() => None,
            joined = joined => Some(joined),
        };
        match ended {
            None | Some(Ok(false)) => {
                metrics.forced.increment(1);
                tail.ended(End::Aborted);
            }
            Some(Ok(true)) => tail.ended(End::Complete),
            Some(Err(error)) => {
                tracing::debug!(instance = %lease.instance.id(), %error, "an upgraded connection broke");
                tail.ended(End::Aborted);
            }
        }
        drop(lease);
    });
    forward::strip_hop_by_hop(&mut head.headers, true);
    Ok(Response::from_parts(head, Body::empty()))
}

fn is_websocket(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

type Ends = (Box<dyn Io>, Box<dyn Io>);

async fn ends(client: OnUpgrade, instance: InstanceEnd) -> io::Result<Ends> {
    let client = client.await.map_err(io::Error::other)?;
    let instance: Box<dyn Io> = match instance {
        InstanceEnd::Socket(upgrade) => Box::new(TokioIo::new(upgrade.await.map_err(io::Error::other)?)),
        InstanceEnd::Inside(io) => io,
    };
    Ok((Box::new(TokioIo::new(client)), instance))
}

/// One direction. It owns bytes only while the receiver is slower than the sender: a quiet connection holds none.
#[derive(Default)]
struct Direction {
    stuck: Vec<u8>,
    sent: usize,
    ended: bool,
    shut: bool,
    passed: usize,
    frames: Option<WebSocketFrames>,
}

/// Bytes that are moved at once.
const PIECE: usize = 16 * 1024;

impl Direction {
    /// Moves bytes until nothing can be moved. Ready: this direction is over. When `cut` is set, it stops with
    /// `Ok(true)` at the end of a frame.
    fn poll(
        &mut self,
        from: &mut (dyn Io + '_),
        to: &mut (dyn Io + '_),
        cut: bool,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<bool>> {
        loop {
            ready!(self.poll_stuck(to, cx))?;
            if cut && self.frames.as_ref().is_some_and(WebSocketFrames::between) {
                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                return Poll::Ready(Ok(true));
            }
            if self.ended {
                if !self.shut {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.shut = true;
                }
                return Poll::Ready(Ok(false));
            }
            let mut piece = [std::mem::MaybeUninit::uninit(); PIECE];
            let mut piece = ReadBuf::uninit(&mut piece);
            if Pin::new(&mut *from).poll_read(cx, &mut piece)?.is_pending() {
                ready!(Pin::new(&mut *to).poll_flush(cx))?;
                return Poll::Pending;
            }
            let mut bytes = piece.filled();
            if bytes.is_empty() {
                self.ended = true;
                continue;
            }
            if let Some(frames) = &mut self.frames {
                let end = if cut {
                    follow_to_end(frames, bytes)
                } else {
                    frames.follow(bytes).map(|_| bytes.len())
                };
                bytes = &bytes[..end.unwrap_or(bytes.len())];
            }
            self.passed += bytes.len();
            match Pin::new(&mut *to).poll_write(cx, bytes)? {
                Poll::Ready(count) if count == bytes.len() => {}
                Poll::Ready(count) => self.stuck.extend_from_slice(&bytes[count..]),
                Poll::Pending => self.stuck.extend_from_slice(bytes),
            }
        }
    }

    fn poll_stuck(&mut self, to: &mut (dyn Io + '_), cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.stuck.len() {
            let count = ready!(Pin::new(&mut *to).poll_write(cx, &self.stuck[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
        }
        if self.sent > 0 {
            self.stuck = Vec::new();
            self.sent = 0;
        }
        Poll::Ready(Ok(()))
    }
}

/// Follows `bytes` up to the end of the first frame that ends in them.
fn follow_to_end(frames: &mut WebSocketFrames, bytes: &[u8]) -> Option<usize> {
    let mut probe = frames.clone();
    for (at, byte) in bytes.iter().enumerate() {
        if probe.follow(std::slice::from_ref(byte)).is_some() {
            *frames = probe;
            return Some(at + 1);
        }
    }
    *frames = probe;
    None
}

enum Parting {
    /// Both directions are over.
    Ended,
    /// One direction of a WebSocket is over.
    OneSide,
    /// The platform ends it, between two frames.
    Farewell,
    /// The instance's drain is over; no frame ended before that, or it is no WebSocket.
    Deadline,
}

struct Splice {
    client: Box<dyn Io>,
    instance: Box<dyn Io>,
    to_client: Direction,
    to_instance: Direction,
    websocket: bool,
}

impl Splice {
    fn new((client, instance): Ends, websocket: bool) -> Self {
        let direction =
            || Direction { frames: websocket.then(WebSocketFrames::default), ..Direction::default() };
        Self { client, instance, to_client: direction(), to_instance: direction(), websocket }
    }

    fn poll(
        &mut self,
        farewell: &mut Farewell,
        lease: &Lease,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Parting>> {
        let leaving = farewell.poll(Some(lease), cx).is_ready();
        if leaving && farewell.poll_deadline(cx).is_ready() {
            return Poll::Ready(Ok(Parting::Deadline));
        }
        // Only a WebSocket can be told: other protocols go on until the deadline.
        let cut = self.websocket && leaving;
        let up = self.to_instance.poll(&mut *self.client, &mut *self.instance, false, cx)?;
        let down = self.to_client.poll(&mut *self.instance, &mut *self.client, cut, cx)?;
        if let Poll::Ready(true) = down {
            self.to_client.stuck = GOING_AWAY.to_vec();
            return Poll::Ready(Ok(Parting::Farewell));
        }
        match (up, down) {
            (Poll::Ready(_), Poll::Ready(_)) => Poll::Ready(Ok(Parting::Ended)),
            (Poll::Ready(_), _) | (_, Poll::Ready(_)) if self.websocket => Poll::Ready(Ok(Parting::OneSide)),
            _ => Poll::Pending,
        }
    }

    /// Moves what is left in both directions.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let up = self.to_instance.poll(&mut *self.client, &mut *self.instance, false, cx)?;
        let down = self.to_client.poll(&mut *self.instance, &mut *self.client, false, cx)?;
        if up.is_ready() && down.is_ready() { Poll::Ready(Ok(())) } else { Poll::Pending }
    }

    /// Sends the Close frame, and passes on what the client still says until it has closed.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.to_client.poll_stuck(&mut *self.client, cx)?.is_ready()
            && Pin::new(&mut *self.client).poll_flush(cx)?.is_ready();
        let up = self.to_instance.poll(&mut *self.client, &mut *self.instance, false, cx)?;
        let closed = self.to_instance.frames.as_ref().is_some_and(WebSocketFrames::closed);
        if sent && (up.is_ready() || closed) {
            ready!(Pin::new(&mut *self.client).poll_shutdown(cx))?;
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}
