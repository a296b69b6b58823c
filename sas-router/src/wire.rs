//! HTTP/1.1 heads as bytes, for the plain ways of [`crate::server`] and [`crate::upstream`]: what they have in common.

use std::{cell::RefCell, mem::MaybeUninit};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

/// Longest head of a plain message, and longest head and body of a plain request together.
pub(crate) const MOST: usize = 16 * 1024;
/// Most header lines of a plain message.
pub(crate) const MOST_LINES: usize = 64;
/// How much is read at a time.
const READ: usize = 32 * 1024;

/// Room for the lines of a head.
pub(crate) type Lines<'a> = [MaybeUninit<httparse::Header<'a>>; MOST_LINES];

/// Room for lines, none of them written.
pub(crate) const fn lines<'a>() -> Lines<'a> {
    [const { MaybeUninit::uninit() }; MOST_LINES]
}

/// What a thread writes from and reads into. Nothing stays in it from one poll to the next, so that an idle connection
/// needs no buffers.
pub(crate) struct Scratch {
    pub(crate) out: Vec<u8>,
    pub(crate) read: Vec<u8>,
    /// A second since the epoch, and how a `Date` header says it.
    date: (u64, String),
}

impl Scratch {
    /// Writes a `Date` header of `seconds` since the epoch.
    pub(crate) fn put_date(&mut self, seconds: u64) {
        if self.date.0 != seconds || self.date.1.is_empty() {
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            self.date = (seconds, httpdate::fmt_http_date(at));
        }
        put_line("date", self.date.1.as_bytes(), &mut self.out);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        out: Vec::with_capacity(4 * 1024),
        read: vec![0; READ],
        date: (0, String::new()),
    });
}

/// Works with the thread's scratch. Not to be called within itself.
pub(crate) fn scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(work)
}

/// Writes a header line.
pub(crate) fn put_line(name: &str, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes all headers of a message.
pub(crate) fn put_headers(headers: &HeaderMap, out: &mut Vec<u8>) {
    for (name, value) in headers {
        put_line(name.as_str(), value.as_bytes(), out);
    }
}

/// Where `part`, a piece of `whole`, begins in it.
pub(crate) fn place(part: &[u8], whole: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

/// The headers of a head that was parsed in `read`; their values are parts of `copied`, which begins alike. `None`: there
/// is one that is none.
pub(crate) fn headers(
    lines: &[httparse::Header<'_>],
    read: &[u8],
    copied: &Bytes,
    more: usize,
) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(lines.len() + more);
    for line in lines {
        let at = place(line.value, read);
        let name = HeaderName::from_bytes(line.name.as_bytes()).ok()?;
        let value = HeaderValue::from_maybe_shared(copied.slice(at..at + line.value.len())).ok()?;
        headers.append(name, value);
    }
    Some(headers)
}
