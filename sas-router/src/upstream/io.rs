//! Connections to instances.

use std::{
    future::poll_fn,
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::net::RecvFlags;
use sas_core::Endpoint;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::oneshot,
    time::timeout,
};

/// How long an instance may go on taking a request that it has answered in full.
const LINGER: Duration = Duration::from_secs(5);

/// How much of a response is read at once when it has arrived with the head.
pub(super) const AT_ONCE: u64 = 64 * 1024;

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A socket that can be asked, past tokio's cached readiness, whether the other side has hung up.
///
/// Tokio learns of an end only when its driver turns. A request that may not be sent twice can't wait for that: a
/// keep-alive connection that the instance has just closed must be noticed before the first byte goes out.
#[derive(Debug)]
pub(super) struct InstanceIo {
    socket: Socket,
    doubt: Doubt,
    /// The instance takes no more bytes.
    deaf: bool,
    /// What is still to be sent of a request whose answer is read already. It goes out beside the reading.
    unsent: Vec<u8>,
    /// For a client that takes the connection over in the middle of an exchange.
    replay: Option<Box<Replay>>,
}

/// What a client finds that takes a connection over after the request was sent and the answer has begun.
#[derive(Debug)]
struct Replay {
    /// The request was sent: what the client writes of it, up to its first flush, goes nowhere.
    sending: bool,
    wrote: bool,
    /// The beginning of the answer.
    read: Vec<u8>,
    from: usize,
}

/// Asks an [`InstanceIo`] to look at the socket itself with its next read.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt(Arc<AtomicBool>);

impl Doubt {
    pub(super) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A connection that tells when its other end has said its first byte.
#[derive(Debug)]
pub(super) struct Answering<S> {
    io: S,
    first: Option<oneshot::Sender<()>>,
}

impl<S> Answering<S> {
    pub(super) fn new(io: S) -> (Self, oneshot::Receiver<()>) {
        let (first, heard) = oneshot::channel();
        (Self { io, first: Some(first) }, heard)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Answering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(cx, buf);
        if buf.filled().len() > before
            && let Some(first) = this.first.take()
        {
            // Nobody waits for it any more.
            let _ = first.send(());
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Answering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl InstanceIo {
    pub(super) async fn connect(endpoint: &Endpoint) -> io::Result<Self> {
        let socket = match endpoint {
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            Endpoint::Host { name, port } => {
                let stream = TcpStream::connect((&**name, *port)).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            Endpoint::Within(address, sockets) => {
                let socket = std::net::TcpStream::from(sockets.tcp_socket(address)?);
                let stream = tokio::net::TcpSocket::from_std_stream(socket).connect(*address).await?;
                stream.set_nodelay(true)?;
                Socket::Tcp(stream)
            }
            Endpoint::Unix(path) => Socket::Unix(UnixStream::connect(path).await?),
            other => {
                let text = format!("this version can't connect to an endpoint of the kind {other:?}");
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        };
        Ok(Self { socket, doubt: Doubt::default(), deaf: false, unsent: Vec::new(), replay: None })
    }

    /// The connection for a client that is to go on in the middle of an exchange: it sends the request, which goes
    /// nowhere, since it was sent, and then reads `read` and what comes after it.
    pub(super) fn replaying(mut self, read: Vec<u8>) -> Self {
        self.replay = Some(Box::new(Replay { sending: true, wrote: false, read, from: 0 }));
        self
    }

    /// The connection among those that the running runtime waits for.
    pub(super) fn move_here(self) -> io::Result<Self> {
        let socket = match self.socket {
            Socket::Tcp(stream) => Socket::Tcp(TcpStream::from_std(stream.into_std()?)?),
            Socket::Unix(stream) => Socket::Unix(UnixStream::from_std(stream.into_std()?)?),
        };
        Ok(Self { socket, ..self })
    }

    /// Whether a write of `bytes` goes nowhere, since the request was sent before.
    fn swallows(&mut self, bytes: usize) -> bool {
        let Some(replay) = &mut self.replay else { return false };
        replay.wrote |= replay.sending && bytes > 0;
        replay.sending
    }

    pub(super) fn doubt(&self) -> Doubt {
        self.doubt.clone()
    }

    /// A write that failed because the instance takes no more is no end: it may have answered before it hung up, and
    /// that answer is read as long as there is something to read. The end itself is read too.
    fn written(&mut self, polled: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        match polled {
            Poll::Ready(Err(error))
                if matches!(error.kind(), BrokenPipe | ConnectionReset | ConnectionAborted) =>
            {
                self.deaf = true;
                // What is to be read may have come since it was looked for.
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            other => other,
        }
    }

    /// Takes what is still to be sent of a request.
    pub(super) fn owe(&mut self, unsent: &[u8]) {
        self.unsent.extend_from_slice(unsent);
    }

    /// Bytes that are still to be sent.
    pub(super) fn owes(&self) -> usize {
        self.unsent.len()
    }

    /// Sends what is still to be sent.
    fn poll_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.unsent.is_empty() && !self.deaf {
            let polled = match &mut self.socket {
                Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, &self.unsent),
                Socket::Unix(stream) => Pin::new(stream).poll_write(cx, &self.unsent),
            };
            let count = ready!(self.written(polled, cx))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.drain(..count);
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what is left of a request that was answered early, as far as the instance takes it soon; then the
    /// connection ends.
    pub(super) fn finish_unsent(mut self) {
        if self.unsent.is_empty() || self.deaf {
            return;
        }
        tokio::spawn(async move {
            let sending = poll_fn(|cx| self.poll_unsent(cx));
            if let Ok(Err(error)) = timeout(LINGER, sending).await {
                tracing::debug!(%error, "an instance that had answered did not take the rest of its request");
            }
        });
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(stream) => stream.as_fd(),
            Socket::Unix(stream) => stream.as_fd(),
        }
    }

    /// Whether the socket itself says that the instance has hung up.
    pub(super) fn has_ended(&self) -> bool {
        let mut byte = [0_u8; 1];
        match rustix::net::recv(self.fd(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((_, 0)) => true,
            Ok(_) => false,
            Err(error) => error != rustix::io::Errno::AGAIN && error != rustix::io::Errno::INTR,
        }
    }

    /// Whether the socket itself says that the instance has neither hung up nor said anything.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0_u8; 1];
        let peeked = rustix::net::recv(self.fd(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

impl AsyncRead for InstanceIo {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(Err(error)) = this.poll_unsent(cx) {
            return Poll::Ready(Err(error));
        }
        if let Some(replay) = &mut this.replay {
            if replay.sending {
                // The flush that ends the request wakes the reader.
                return Poll::Pending;
            }
            let left = &replay.read[replay.from..];
            let count = left.len().min(buf.remaining());
            buf.put_slice(&left[..count]);
            replay.from += count;
            if replay.from == replay.read.len() {
                this.replay = None;
            }
            return Poll::Ready(Ok(()));
        }
        if this.doubt.0.load(Ordering::Relaxed)
            && this.doubt.0.swap(false, Ordering::Relaxed)
            && this.has_ended()
        {
            return Poll::Ready(Ok(()));
        }
        match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for InstanceIo {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.swallows(buf.len()) {
            return Poll::Ready(Ok(buf.len()));
        }
        if this.deaf {
            return Poll::Pending;
        }
        let polled = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Socket::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        this.written(polled, cx)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(replay) = &mut this.replay
            && replay.wrote
        {
            replay.wrote = false;
            replay.sending = false;
            cx.waker().wake_by_ref();
        }
        match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Socket::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let all = bufs.iter().map(|buf| buf.len()).sum();
        if this.swallows(all) {
            return Poll::Ready(Ok(all));
        }
        if this.deaf {
            return Poll::Pending;
        }
        let polled = match &mut this.socket {
            Socket::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Socket::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        };
        this.written(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
