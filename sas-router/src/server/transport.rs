//! The bytes of a client's connection: plain or encrypted, watched.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::StatusCode;
use sas_core::RequestId;
#[cfg(unix)]
use tokio::net::UnixStream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

use super::{
    request_line::RequestLine,
    watch::{Came, Watched},
};
use crate::{Failure, identity::IdSource, interim::Interim};

/// A socket that tells the watch whether it takes what is written to it.
///
/// It stands below the encryption: what is above it takes a write into its buffers, and waits for the socket in a flush
/// or a shutdown.
#[derive(Debug)]
pub(super) struct Socket<S> {
    stream: S,
    watched: Arc<Watched>,
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, watched: &Arc<Watched>) -> Self {
        Self { stream, watched: Arc::clone(watched) }
    }

    fn note<T>(&self, polled: Poll<T>) -> Poll<T> {
        self.watched.wrote(polled.is_ready());
        polled
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.note(polled)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.note(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// What carries a connection.
#[derive(Debug)]
pub(super) enum Carrier {
    Plain(Socket<TcpStream>),
    #[cfg(unix)]
    Unix(Socket<UnixStream>),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::server::TlsStream<Socket<TcpStream>>>),
}

macro_rules! carry {
    ($self:expr, $stream:ident => $call:expr) => {
        match $self {
            Carrier::Plain($stream) => $call,
            #[cfg(unix)]
            Carrier::Unix($stream) => $call,
            #[cfg(feature = "tls")]
            Carrier::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        carry!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        carry!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carry!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        carry!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        carry!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        carry!(self, stream => stream.is_write_vectored())
    }
}

/// A connection that leaves marks for the [`super::watch::Watch`], and whose errors speak.
///
/// A request that can't be parsed never reaches a handler: hyper answers it itself, with a status and nothing else.
/// That answer is recognised here (no request is being answered, and it has just the three headers that hyper
/// writes) and replaced by one that gives the reason and an id.
#[derive(Debug)]
pub(super) struct Transport<S> {
    stream: S,
    watched: Arc<Watched>,
    ids: Arc<IdSource>,
    /// An answer of ours that is still to be written.
    answer: Vec<u8>,
    /// HTTP/1.1: interim answers to be put between hyper's; and a client may close its sending side.
    interim: Option<Arc<Interim>>,
    /// HTTP/1.1, as long as it is known where a request begins.
    line: Option<RequestLine>,
    /// What was read and did not fit once it was encoded.
    left: Vec<u8>,
    /// Until when it reads on, after its last word.
    lingering: Option<Pin<Box<Sleep>>>,
}

/// How long a client of HTTP/2 has to see that its connection ends.
const LINGER: Duration = Duration::from_secs(1);

impl<S> Transport<S> {
    pub(super) fn new(
        stream: S,
        watched: Arc<Watched>,
        ids: Arc<IdSource>,
        interim: Option<Arc<Interim>>,
    ) -> Self {
        let line = interim.is_some().then(RequestLine::new);
        Self { stream, watched, ids, answer: Vec::new(), interim, line, left: Vec::new(), lingering: None }
    }

    /// The connection without its marks.
    pub(super) fn into_stream(self) -> S {
        self.stream
    }

    /// Puts back what was read last and not used.
    pub(super) fn unread(&mut self, read: &[u8]) {
        self.left.splice(..0, read.iter().copied());
    }

    fn set_clean(&self, clean: bool) {
        if let Some(interim) = &self.interim {
            interim.set_clean(clean);
        }
    }

    /// Bytes came, from `before` on: what a target may not hold is percent-encoded.
    fn encode(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let came = self.watched.read();
        let Some(line) = &mut self.line else { return };
        match came {
            Came::Head => line.begins(),
            Came::MoreOfHead => {}
            Came::Body => return,
            Came::Ahead => {
                // Whether the head that is read next begins in these bytes or after them is not known.
                self.line = None;
                return;
            }
        }
        if let Some(encoded) = line.encode(&buf.filled()[before..]) {
            buf.set_filled(before);
            self.left = encoded;
            self.give_left(buf);
        }
    }

    fn give_left(&mut self, buf: &mut ReadBuf<'_>) {
        let count = self.left.len().min(buf.remaining());
        buf.put_slice(&self.left[..count]);
        self.left.drain(..count);
    }

    fn put_interim(&mut self) {
        if let Some(bytes) = self.interim.as_ref().and_then(|interim| interim.take()) {
            self.answer.extend_from_slice(&bytes);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.left.is_empty() {
            this.give_left(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            this.encode(buf, before);
        } else if matches!(polled, Poll::Ready(Ok(())))
            && buf.remaining() > 0
            && this.interim.is_some()
            && this.watched.hides_end(cx)
        {
            return Poll::Pending;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> Transport<S> {
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.answer.is_empty() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.answer))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.answer.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.put_interim();
        this.set_clean(false);
        ready!(this.poll_answer(cx))?;
        if !this.watched.is_busy()
            && let Some(status) = bare_error(buf)
        {
            this.answer = error_answer(status, this.ids.next());
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut this.stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(cx))?;
        // hyper flushes when it has nothing left to write.
        this.set_clean(true);
        this.put_interim();
        ready!(this.poll_answer(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_answer(cx))?;
        ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        if this.interim.is_some() {
            return Poll::Ready(Ok(()));
        }
        // A socket that is closed on bytes that nobody reads is reset, and the client's system then drops what it has not
        // read itself: the GOAWAY that says which of its streams it may ask for again.
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        let mut unwanted = [0; 1024];
        loop {
            let mut buffer = ReadBuf::new(&mut unwanted);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {}
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => return lingering.as_mut().poll(cx).map(Ok),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = bufs {
            return self.poll_write(cx, only);
        }
        let this = self.get_mut();
        this.put_interim();
        this.set_clean(false);
        ready!(this.poll_answer(cx))?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

/// The status of an error that hyper answers itself: `connection: close`, `content-length: 0`, a date, no body.
fn bare_error(bytes: &[u8]) -> Option<StatusCode> {
    let text = std::str::from_utf8(bytes.strip_prefix(b"HTTP/1.1 4")?).ok()?;
    let mut lines = text.strip_suffix("\r\n\r\n")?.split("\r\n");
    let status = lines.next()?.get(..2)?;
    let (mut count, mut closes) = (0, false);
    for line in lines {
        count += 1;
        closes |= line.eq_ignore_ascii_case("connection: close");
        let known = ["connection:", "content-length: 0", "date:"];
        let lower = line.to_ascii_lowercase();
        if !known.iter().any(|known| lower.starts_with(known)) {
            return None;
        }
    }
    if !closes || count > 3 {
        return None;
    }
    StatusCode::from_bytes(format!("4{status}").as_bytes()).ok()
}

/// What is said instead.
pub(super) fn error_answer(status: StatusCode, id: RequestId) -> Vec<u8> {
    let (reason, message) = match status {
        StatusCode::URI_TOO_LONG => ("uri_too_long", "the request line is longer than is taken here"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            ("headers_too_large", "the request has more or longer headers than are taken here")
        }
        StatusCode::REQUEST_TIMEOUT => ("head_timeout", "the head of the request took too long"),
        _ => ("malformed", "this is no HTTP request, or one that can be read in two ways"),
    };
    let failure = Failure::new(status, "ingress", reason, message);
    let body = failure.json(id);
    let phrase = status.canonical_reason().unwrap_or("Error");
    format!(
        "HTTP/1.1 {} {phrase}\r\ncontent-type: application/json\r\nx-request-id: {id}\r\nconnection: close\r\n\
         content-length: {}\r\n\r\n{body}",
        status.as_u16(),
        body.len(),
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_that_says_nothing_is_replaced() {
        let bare = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\ndate: now\r\n\r\n";
        assert_eq!(bare_error(bare), Some(StatusCode::BAD_REQUEST));
        let large =
            b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(bare_error(large), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\ndate: now\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 2\r\ndate: now\r\n\r\n{}",
            b"HTTP/1.1 404 Not Found\r\nconnection: close\r\ncontent-length: 0\r\nx-request-id: 1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 4",
            b"",
        ] {
            assert_eq!(bare_error(other), None, "{}", String::from_utf8_lossy(other));
        }
    }
}
