//! The plain exchange: one request that is in memory, one answer whose head fits a buffer and says its length.
//!
//! That is what nearly all exchanges with instances are, and a general client costs several times what they need: a
//! channel between handle and connection, futures of kilobytes, buffers per connection. Here the request's own task
//! writes the head, reads the answer and is done; the buffers are the thread's. What the answer turns out to be
//! otherwise (chunked, of no length, interim, odd) goes to hyper with the bytes that were read, as if hyper had sent the
//! request: see [`InstanceIo::replaying`]. Nothing is judged here that hyper would judge.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use sas_core::{BoxError, Request};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{
    Home, UpstreamConfig,
    io::{AT_ONCE, InstanceIo},
    keep_alive::keep_for,
};
use crate::{
    forward, framing,
    wire::{self, MOST, MOST_LINES, Scratch, put_headers, put_line},
};

/// Whether `request` can be sent as it is, and again if that fails: its body is in memory. What its head says of the
/// body's length was settled by [`framing::measure`].
pub(crate) fn is_plain(request: &Request) -> bool {
    request.body().in_memory().is_some_and(|body| body.len() <= MOST) && request.headers().len() <= MOST_LINES
}

/// Writes a plain request.
fn encode(request: &Request, out: &mut Vec<u8>) {
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(request.uri().path_and_query().map_or("/", |path| path.as_str()).as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    put_headers(request.headers(), out);
    let body = request.body().in_memory().unwrap_or_default();
    if !body.is_empty() && !request.headers().contains_key(header::CONTENT_LENGTH) {
        put_line("content-length", body.len().to_string().as_bytes(), out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
}

/// The head of an answer.
struct Head {
    status: StatusCode,
    headers: HeaderMap,
    reason: Option<hyper::ext::ReasonPhrase>,
    /// Bytes of the head.
    bytes: usize,
    /// Bytes of the body.
    length: u64,
    /// The instance ends the connection after this answer.
    closes: bool,
    /// What was read, the whole answer at most; the values of the headers are parts of it.
    read: Bytes,
}

#[allow(clippy::large_enum_variant, reason = "it is that variant nearly always, and is taken apart at once")]
enum Parsed {
    Partial,
    /// Not for here.
    Odd,
    Head(Head),
}

/// Reads the head of an answer to a request of `method`, if it is a plain one. One beyond the limits is hyper's to refuse.
fn parse(read: &[u8], method: &Method, config: &UpstreamConfig) -> Parsed {
    let most = MOST.min(config.max_header_bytes);
    let mut lines = wire::lines();
    let mut answer = httparse::Response::new(&mut []);
    let parsed =
        httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, read, &mut lines);
    let bytes = match parsed {
        Ok(httparse::Status::Complete(bytes)) => bytes,
        Ok(httparse::Status::Partial) if read.len() < most => return Parsed::Partial,
        _ => return Parsed::Odd,
    };
    let (Some(1), Some(code)) = (answer.version, answer.code) else { return Parsed::Odd };
    let Ok(status) = StatusCode::from_u16(code) else { return Parsed::Odd };
    if status.is_informational() || bytes > most || answer.headers.len() > config.max_headers {
        return Parsed::Odd;
    }
    let bodiless = framing::is_bodiless(*method == Method::HEAD, status);
    let mut length = None;
    // Found first, so that what is copied ends with the answer.
    for line in answer.headers.iter() {
        if line.name.eq_ignore_ascii_case("transfer-encoding") {
            return Parsed::Odd;
        }
        if line.name.eq_ignore_ascii_case("content-length") {
            let said = framing::digits(line.value);
            if length.is_some() || said.is_none() {
                return Parsed::Odd;
            }
            length = said;
        }
    }
    let length = match (bodiless, length) {
        (true, _) => 0,
        (false, Some(length)) if length <= AT_ONCE => length,
        (false, _) => return Parsed::Odd,
    };
    let end =
        usize::try_from(length).map_or(read.len(), |length| read.len().min(bytes.saturating_add(length)));
    let copied = Bytes::copy_from_slice(&read[..end]);
    // And the id of the request, which the gateway puts in.
    let Some(headers) = wire::headers(answer.headers, read, &copied, 1) else { return Parsed::Odd };
    let reason = answer.reason.filter(|reason| status.canonical_reason() != Some(*reason));
    let reason = reason.map(|reason| hyper::ext::ReasonPhrase::try_from(reason.as_bytes()));
    let Ok(reason) = reason.transpose() else { return Parsed::Odd };
    let closes = headers.contains_key(header::CONNECTION)
        && forward::has_token(&headers, &header::CONNECTION, "close");
    Parsed::Head(Head { status, headers, reason, bytes, length, closes, read: copied })
}

/// How an exchange went.
#[allow(clippy::large_enum_variant, reason = "it is the largest nearly always")]
pub(super) enum Exchanged {
    /// With what came of the body, and what is still to come.
    Answer(http::Response<(Bytes, Option<Arriving>)>),
    /// The answer is for hyper, which reads it from here as if it had sent the request. `cut`: not all of the request
    /// was sent, so the connection is of no use after it.
    Odd { io: InstanceIo, cut: bool },
    /// The connection ended. `unsent`: before any byte of the request was sent.
    Lost { error: io::Error, unsent: bool },
}

/// A connection that has seen plain exchanges only.
#[derive(Debug)]
pub(super) struct Plain {
    io: InstanceIo,
}

/// A request that is being sent and answered.
struct Exchange<'a> {
    io: &'a mut InstanceIo,
    request: &'a Request,
    config: &'a UpstreamConfig,
    started: bool,
    /// Whether a byte of the request was sent at once.
    sent: bool,
    /// How much of it was left to be sent beside the reading.
    owed: usize,
    /// An answer's head as far as it came.
    read: Vec<u8>,
}

#[allow(clippy::large_enum_variant, reason = "it is that variant nearly always, and is taken apart at once")]
enum Step {
    Head(Head, usize),
    Odd(Vec<u8>),
}

impl Exchange<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Step>> {
        wire::scratch(|scratch| {
            self.poll_write(cx, scratch)?;
            self.poll_read(cx, scratch)
        })
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> io::Result<()> {
        if !self.started {
            self.started = true;
            scratch.out.clear();
            encode(self.request, &mut scratch.out);
            let mut from = 0;
            while from < scratch.out.len() {
                match Pin::new(&mut *self.io).poll_write(cx, &scratch.out[from..]) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => from += count,
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
                self.sent = true;
            }
            self.owed = scratch.out.len() - from;
            self.io.owe(&scratch.out[from..]);
        }
        Ok(())
    }

    /// Reads also while there is something to send: an answer may come before the whole request was taken.
    fn poll_read(&mut self, cx: &mut Context<'_>, scratch: &mut Scratch) -> Poll<io::Result<Step>> {
        loop {
            let mut buffer = ReadBuf::new(&mut scratch.read);
            match Pin::new(&mut *self.io).poll_read(cx, &mut buffer) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Ready(Ok(())) => {}
            }
            let came = buffer.filled();
            if came.is_empty() {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            let read = if self.read.is_empty() {
                came
            } else {
                self.read.extend_from_slice(came);
                &self.read
            };
            match parse(read, self.request.method(), self.config) {
                Parsed::Head(head) => {
                    let read = read.len();
                    return Poll::Ready(Ok(Step::Head(head, read)));
                }
                Parsed::Odd => {
                    let read = read.to_vec();
                    return Poll::Ready(Ok(Step::Odd(read)));
                }
                Parsed::Partial if self.read.is_empty() => self.read.extend_from_slice(came),
                Parsed::Partial => {}
            }
        }
    }
}

impl Plain {
    pub(super) fn new(io: InstanceIo) -> Self {
        Self { io }
    }

    pub(super) fn into_io(self) -> InstanceIo {
        self.io
    }

    /// Whether a request can be sent now: the instance has neither ended the connection nor said a word unasked.
    /// `doubt` looks at the socket itself, at the price of a system call.
    pub(super) fn poll_usable(&mut self, cx: &mut Context<'_>, doubt: bool) -> bool {
        let mut byte = [0];
        (!doubt || self.io.is_quiet())
            && Pin::new(&mut self.io).poll_read(cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Gives the socket to the runtime that is running, so that its readiness is told where it is waited for.
    pub(super) fn move_here(self) -> io::Result<Self> {
        self.io.move_here().map(|io| Self { io })
    }

    /// Sends `request`, which [`is_plain`], and waits for the head of the answer.
    ///
    /// **Cancel safety:** dropping the future closes the connection.
    pub(super) async fn exchange(mut self, request: &Request, home: &Home) -> Exchanged {
        let mut exchange = Exchange {
            io: &mut self.io,
            request,
            config: &home.upstream.config,
            started: false,
            sent: false,
            owed: 0,
            read: Vec::new(),
        };
        let step = poll_fn(|cx| exchange.poll(cx)).await;
        let sent = exchange.sent || exchange.io.owes() < exchange.owed;
        let cut = exchange.io.owes() > 0;
        let (head, read) = match step {
            Ok(Step::Head(head, read)) => (head, read),
            Ok(Step::Odd(read)) => return Exchanged::Odd { io: self.io.replaying(read), cut },
            Err(error) => return Exchanged::Lost { error, unsent: !sent },
        };
        let Head { status, headers, reason, bytes, length, closes, read: whole } = head;
        let keep_for = keep_for(&headers);
        let came = whole.slice(bytes..);
        let more = read > bytes + came.len();
        let left = length - came.len() as u64;
        // A connection is kept only if both sides know where they are in it.
        let back = (!closes && !cut && !more).then(|| Back { home: home.clone(), keep_for });
        let rest = Arriving { plain: self, left, back };
        let rest = if left == 0 {
            rest.finish();
            None
        } else {
            Some(rest)
        };
        let mut response = http::Response::new((came, rest));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        Exchanged::Answer(response)
    }
}

/// Where a connection goes back to after its answer, and how long it may be kept there.
#[derive(Debug)]
struct Back {
    home: Home,
    keep_for: Option<Duration>,
}

/// The rest of a plain answer, with the connection that it comes from.
#[derive(Debug)]
pub(super) struct Arriving {
    plain: Plain,
    left: u64,
    back: Option<Back>,
}

impl Arriving {
    /// Bytes that are still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next bytes of the body; never none.
    pub(super) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, BoxError>> {
        wire::scratch(|scratch| {
            let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(scratch.read.len());
            let mut buffer = ReadBuf::new(&mut scratch.read[..most]);
            match Pin::new(&mut self.plain.io).poll_read(cx, &mut buffer) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Err(error)) => Poll::Ready(Err(error.into())),
                Poll::Ready(Ok(())) if buffer.filled().is_empty() => {
                    let text = format!(
                        "the instance ended the connection {} bytes before the end of its answer",
                        self.left
                    );
                    Poll::Ready(Err(text.into()))
                }
                Poll::Ready(Ok(())) => {
                    self.left -= buffer.filled().len() as u64;
                    Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
                }
            }
        })
    }

    /// The body has come whole: the connection is free.
    pub(super) fn finish(self) {
        match self.back {
            Some(Back { home, keep_for }) => home.check_in(super::Connection::Plain(self.plain), keep_for),
            None => self.plain.io.finish_unsent(),
        }
    }
}
