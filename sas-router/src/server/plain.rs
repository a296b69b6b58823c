//! The plain way: a request whose head and body are there at once, an answer that is in memory.
//!
//! Over it goes most of what a gateway answers, and it needs little: parse, ask the handler, write. The buffers are the
//! thread's, the connection's own task does everything, and an idle connection keeps nothing but its socket. Whatever is
//! otherwise (a head in an odd form, an upload, an upgrade, an answer that streams) goes to hyper with the bytes that were
//! read, and the connection stays there. Nothing is refused here: what can't be read is hyper's to judge.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Method, Uri, Version, header};
use sas_core::{Body, Request, Response};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{
    Shared,
    detect::Replayed,
    transport::{Carrier, Transport},
    watch::{Busy, Signal, Watched},
};
use crate::{
    connection::ClientConnection,
    framing,
    wire::{self, MOST, Scratch, put_line},
};

/// Longest answer that is written here.
const MOST_ANSWER: usize = 64 * 1024;

/// The bytes of a client's connection.
type Io = Transport<Replayed<Carrier>>;

/// An answer that hyper is to write.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) busy: Busy,
}

/// Where a connection goes from here.
pub(super) enum Left {
    Ended,
    /// To hyper. An answer belongs to the first request that hyper reads.
    Hyper(Option<Answered>),
}

#[allow(clippy::large_enum_variant, reason = "it is that variant nearly always, and is taken apart at once")]
enum Parsed {
    Partial,
    /// Not for here.
    Odd,
    /// A request, how many bytes it had, and whether it is the last one.
    Request(Request, usize, bool),
}

/// Reads a request, if it is a plain one.
fn parse(read: &[u8], shared: &Shared) -> Parsed {
    let most = MOST.min(shared.config.max_header_bytes as usize);
    let mut lines = wire::lines();
    let mut head = httparse::Request::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut head, read, &mut lines);
    let bytes = match parsed {
        Ok(httparse::Status::Complete(bytes)) if bytes <= most => bytes,
        Ok(httparse::Status::Partial) if read.len() < most => return Parsed::Partial,
        _ => return Parsed::Odd,
    };
    let (Some(method), Some(target), Some(1)) = (head.method, head.path, head.version) else {
        return Parsed::Odd;
    };
    if !target.starts_with('/') || head.headers.len() > shared.config.max_headers {
        return Parsed::Odd;
    }
    let (mut length, mut last, mut connections) = (None, false, 0);
    for line in head.headers.iter() {
        // By length first: most names are none of these.
        match line.name.len() {
            17 if line.name.eq_ignore_ascii_case("transfer-encoding") => return Parsed::Odd,
            7 if line.name.eq_ignore_ascii_case("upgrade") => return Parsed::Odd,
            6 if line.name.eq_ignore_ascii_case("expect") => return Parsed::Odd,
            14 if line.name.eq_ignore_ascii_case("content-length") => match framing::digits(line.value) {
                Some(said) if length.is_none() => length = Some(said),
                _ => return Parsed::Odd,
            },
            10 if line.name.eq_ignore_ascii_case("connection") => {
                connections += 1;
                last = line.value.eq_ignore_ascii_case(b"close");
                if connections > 1 || !(last || line.value.eq_ignore_ascii_case(b"keep-alive")) {
                    return Parsed::Odd;
                }
            }
            _ => {}
        }
    }
    let Ok(length) = usize::try_from(length.unwrap_or(0)) else { return Parsed::Odd };
    let end = bytes.saturating_add(length);
    if end > MOST || end > read.len() {
        return Parsed::Odd;
    }
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Parsed::Odd };
    if matches!(method, Method::HEAD | Method::CONNECT) {
        return Parsed::Odd;
    }
    let copied = Bytes::copy_from_slice(&read[..end]);
    let at = wire::place(target.as_bytes(), read);
    let Ok(target) = Uri::from_maybe_shared(copied.slice(at..at + target.len())) else { return Parsed::Odd };
    // And what the gateway puts in: where it comes from (five lines), its id, its trace.
    let Some(headers) = wire::headers(head.headers, read, &copied, 7) else { return Parsed::Odd };
    let mut request = Request::new(Body::from(copied.slice(bytes..)));
    *request.method_mut() = method;
    *request.uri_mut() = target;
    *request.headers_mut() = headers;
    Parsed::Request(request, end, last)
}

/// What comes of waiting for a request.
#[allow(clippy::large_enum_variant, reason = "it is that variant nearly always, and is taken apart at once")]
enum Came {
    Request(Request, bool),
    /// Something that is hyper's: bytes, or a word of the watch.
    Odd,
    End,
}

/// Waits for a request. What was read and not used is left in `read`.
fn poll_request(
    io: &mut Io,
    read: &mut Vec<u8>,
    watched: &Watched,
    shared: &Shared,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Came>> {
    if !read.is_empty()
        && let Some(came) = take(read, shared)
    {
        return Poll::Ready(Ok(came));
    }
    wire::scratch(|scratch| {
        loop {
            let mut buffer = ReadBuf::new(&mut scratch.read);
            match Pin::new(&mut *io).poll_read(cx, &mut buffer) {
                Poll::Pending => {
                    let told = watched.poll_signal(Signal::Continue, cx).is_ready();
                    return if told { Poll::Ready(Ok(Came::Odd)) } else { Poll::Pending };
                }
                Poll::Ready(done) => done?,
            }
            let came = buffer.filled();
            if came.is_empty() {
                let end = if read.is_empty() { Came::End } else { Came::Odd };
                return Poll::Ready(Ok(end));
            }
            // Mostly all of a request and no more: then nothing is copied here.
            if read.is_empty()
                && let Parsed::Request(request, bytes, last) = parse(came, shared)
            {
                read.extend_from_slice(&came[bytes..]);
                return Poll::Ready(Ok(Came::Request(request, last)));
            }
            read.extend_from_slice(came);
            if let Some(came) = take(read, shared) {
                return Poll::Ready(Ok(came));
            }
        }
    })
}

/// Takes a request off `read`. `None`: it is not whole.
fn take(read: &mut Vec<u8>, shared: &Shared) -> Option<Came> {
    match parse(read, shared) {
        Parsed::Partial => None,
        Parsed::Odd => Some(Came::Odd),
        Parsed::Request(request, bytes, last) => {
            if bytes == read.len() {
                // An idle connection keeps no buffer.
                *read = Vec::new();
            } else {
                read.drain(..bytes);
            }
            Some(Came::Request(request, last))
        }
    }
}

/// Writes an answer into the scratch. `false`: it is none for here.
fn encode(response: &Response, last: bool, seconds: u64, scratch: &mut Scratch) -> bool {
    let status = response.status();
    let Some(body) = response.body().in_memory().filter(|body| body.len() <= MOST_ANSWER) else {
        return false;
    };
    let said =
        response.extensions().get::<hyper::ext::ReasonPhrase>().map(hyper::ext::ReasonPhrase::as_bytes);
    let Some(reason) = said.or_else(|| status.canonical_reason().map(str::as_bytes)) else { return false };
    if response.version() != Version::HTTP_11
        || status.is_informational()
        || framing::is_bodiless(false, status)
    {
        return false;
    }
    let out = &mut scratch.out;
    out.clear();
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason);
    out.extend_from_slice(b"\r\n");
    let (mut measured, mut dated) = (false, false);
    for (name, value) in response.headers() {
        match *name {
            header::CONNECTION | header::TRANSFER_ENCODING => return false,
            header::CONTENT_LENGTH => {
                if measured || framing::digits(value.as_bytes()) != Some(body.len() as u64) {
                    return false;
                }
                measured = true;
            }
            header::DATE => dated = true,
            _ => {}
        }
        put_line(name.as_str(), value.as_bytes(), out);
    }
    if !measured {
        put_line("content-length", body.len().to_string().as_bytes(), out);
    }
    if last {
        put_line("connection", b"close", out);
    }
    if !dated {
        scratch.put_date(seconds);
    }
    scratch.out.extend_from_slice(b"\r\n");
    scratch.out.extend_from_slice(body);
    true
}

/// What came of writing an answer.
enum Wrote {
    All,
    /// It is none for here, and nothing of it was written.
    Odd,
    /// The connection is over.
    End,
}

/// A connection on the plain way.
struct Plain<'a> {
    io: &'a mut Io,
    watched: &'a Watched,
    shared: &'a Shared,
    client: &'a ClientConnection,
    /// What was read and not used.
    read: Vec<u8>,
    /// What was said last by the watch.
    known: Signal,
    /// Interim answers are on their way to the client.
    flushing: bool,
}

impl Plain<'_> {
    /// Ready when the connection is to end at once, or has.
    fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match ready!(self.watched.poll_signal(self.known, cx)) {
                Signal::Drain => self.known = Signal::Drain,
                Signal::Abort => {
                    self.shared.metrics.aborted();
                    return Poll::Ready(());
                }
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Looks at the client while its request is being answered. Ready when it has left, or must go.
    fn poll_client(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.flushing |= self.client.interim().is_some_and(|interim| interim.is_due());
        if self.flushing {
            match Pin::new(&mut *self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.flushing = false,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        let left = wire::scratch(|scratch| {
            // The next requests may come already; no more of them than fit.
            while self.read.len() < MOST {
                let mut buffer = ReadBuf::new(&mut scratch.read[..MOST]);
                match Pin::new(&mut *self.io).poll_read(cx, &mut buffer) {
                    Poll::Pending => return false,
                    Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                        self.read.extend_from_slice(buffer.filled());
                    }
                    Poll::Ready(_) => return true,
                }
            }
            false
        });
        if left { Poll::Ready(()) } else { self.poll_told(cx) }
    }

    /// Says the last word, if the client takes it. That may be more than a socket's: a connection that is encrypted says
    /// that it ends.
    async fn shutdown(&mut self) -> io::Result<()> {
        poll_fn(|cx| match Pin::new(&mut *self.io).poll_shutdown(cx) {
            Poll::Ready(done) => Poll::Ready(done),
            Poll::Pending => self.poll_told(cx).map(Ok),
        })
        .await
    }

    async fn write(&mut self, response: &Response, last: bool) -> io::Result<Wrote> {
        let mut started = false;
        let mut rest = Vec::new();
        poll_fn(|cx| {
            if !started {
                started = true;
                let seconds = self.shared.watch.seconds();
                let plain = wire::scratch(|scratch| {
                    if !encode(response, last, seconds, scratch) {
                        return Ok(false);
                    }
                    match Pin::new(&mut *self.io).poll_write(cx, &scratch.out) {
                        Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                        Poll::Ready(Ok(count)) => rest.extend_from_slice(&scratch.out[count..]),
                        Poll::Ready(Err(error)) => return Err(error),
                        Poll::Pending => rest.extend_from_slice(&scratch.out),
                    }
                    Ok(true)
                })?;
                if !plain {
                    return Poll::Ready(Ok(Wrote::Odd));
                }
            }
            while !rest.is_empty() {
                match Pin::new(&mut *self.io).poll_write(cx, &rest) {
                    Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    Poll::Ready(Ok(count)) => drop(rest.drain(..count)),
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending => return self.poll_told(cx).map(|()| Ok(Wrote::End)),
                }
            }
            match Pin::new(&mut *self.io).poll_flush(cx) {
                Poll::Ready(done) => Poll::Ready(done.map(|()| Wrote::All)),
                Poll::Pending => self.poll_told(cx).map(|()| Ok(Wrote::End)),
            }
        })
        .await
    }
}

/// Serves a connection as long as its requests and answers are plain. The watch has said `known` so far.
///
/// # Errors
/// What the socket says.
pub(super) async fn serve(
    io: &mut Io,
    client: &Arc<ClientConnection>,
    watched: &Arc<Watched>,
    shared: &Shared,
    known: Signal,
) -> io::Result<Left> {
    let mut plain = Plain { io, watched, shared, client, read: Vec::new(), known, flushing: false };
    loop {
        let came = poll_fn(|cx| poll_request(plain.io, &mut plain.read, watched, shared, cx)).await?;
        let (mut request, mut last) = match came {
            Came::Request(request, last) => (request, last),
            Came::Odd => {
                plain.io.unread(&plain.read);
                return Ok(Left::Hyper(None));
            }
            Came::End => return Ok(Left::Ended),
        };
        let busy = watched.begin();
        request.extensions_mut().insert(Arc::clone(client));
        let mut handling = super::handle(shared, client, request);
        let answered = poll_fn(|cx| match handling.as_mut().poll(cx) {
            Poll::Ready(response) => Poll::Ready(Some(response)),
            Poll::Pending => plain.poll_client(cx).map(|()| None),
        });
        let Some(response) = answered.await else { return Ok(Left::Ended) };
        drop(handling);
        // Writing the answer flushes what is before it.
        plain.flushing = false;
        if let Some(interim) = client.interim() {
            interim.close();
        }
        last |= watched.is_draining();
        match plain.write(&response, last).await? {
            Wrote::All => {}
            Wrote::Odd => {
                // The request is answered: all that hyper needs of it is that it was there, and whether it is the last.
                let asked: &[u8] = match last {
                    true => b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
                    false => b"GET / HTTP/1.1\r\n\r\n",
                };
                plain.io.unread(&[asked, &plain.read].concat());
                return Ok(Left::Hyper(Some(Answered { response, busy })));
            }
            Wrote::End => return Ok(Left::Ended),
        }
        drop(response);
        drop(busy);
        if last {
            plain.shutdown().await?;
            return Ok(Left::Ended);
        }
    }
}
