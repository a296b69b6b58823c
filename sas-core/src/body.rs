//! HTTP messages as the platform passes them on.

use std::{
    fmt,
    pin::Pin,
    sync::{Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::BoxError;

/// A request inside the platform.
pub type Request = http::Request<Body>;
/// A response inside the platform.
pub type Response = http::Response<Body>;

type Stream = Pin<Box<dyn http_body::Body<Data = Bytes, Error = BoxError> + Send>>;

enum Inner {
    Empty,
    Full(Bytes),
    /// Streams need not be `Sync`; bodies are, so that errors which hand a request back can be boxed. Whoever polls
    /// has the body to itself and takes no lock.
    Stream(Mutex<Stream>),
}

impl Inner {
    /// What `look` sees of a stream.
    fn peek<T>(stream: &Mutex<Stream>, look: impl FnOnce(&Stream) -> T) -> T {
        look(&stream.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn exclusive(stream: &mut Mutex<Stream>) -> &mut Stream {
        stream.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a request or a response: none, in memory, or a stream.
///
/// Empty and one-piece bodies allocate nothing. A body is `Sync`, so that requests and responses can travel in errors.
///
/// ```
/// use sas_core::Body;
/// assert_eq!(http_body::Body::size_hint(&Body::from("abc")).exact(), Some(3));
/// ```
pub struct Body {
    inner: Inner,
}

impl Body {
    /// A body of no bytes.
    pub const fn empty() -> Self {
        Self { inner: Inner::Empty }
    }

    /// A body that streams from `body`.
    pub fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        use http_body_util::BodyExt as _;
        Self { inner: Inner::Stream(Mutex::new(Box::pin(body.map_err(Into::into)))) }
    }

    /// Whether a second, identical attempt can be made with what this body still holds: true for bodies in memory.
    pub fn try_clone(&self) -> Option<Self> {
        match &self.inner {
            Inner::Empty => Some(Self::empty()),
            Inner::Full(bytes) => Some(Self::from(bytes.clone())),
            Inner::Stream(_) => None,
        }
    }

    /// The bytes of a body that is in memory; `None`: it streams.
    ///
    /// ```
    /// assert_eq!(sas_core::Body::from("abc").in_memory(), Some(&b"abc"[..]));
    /// assert_eq!(sas_core::Body::empty().in_memory(), Some(&b""[..]));
    /// ```
    pub fn in_memory(&self) -> Option<&[u8]> {
        match &self.inner {
            Inner::Empty => Some(&[]),
            Inner::Full(bytes) => Some(bytes),
            Inner::Stream(_) => None,
        }
    }

    /// Reads the whole body, refusing more than `limit` bytes.
    ///
    /// # Errors
    /// The body's own error, or [`http_body_util::LengthLimitError`] when it is longer than `limit`.
    pub async fn collect(self, limit: usize) -> Result<Bytes, BoxError> {
        use http_body_util::BodyExt as _;
        Ok(http_body_util::Limited::new(self, limit).collect().await?.to_bytes())
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        let inner = if bytes.is_empty() { Inner::Empty } else { Inner::Full(bytes) };
        Self { inner }
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.inner {
            Inner::Empty => "empty",
            Inner::Full(_) => "full",
            Inner::Stream(_) => "stream",
        };
        f.debug_struct("Body").field("kind", &kind).finish()
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.inner {
            Inner::Empty => Poll::Ready(None),
            Inner::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                self.inner = Inner::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Inner::Stream(stream) => Inner::exclusive(stream).as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(_) => false,
            Inner::Stream(stream) => Inner::peek(stream, |stream| stream.is_end_stream()),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Inner::Stream(stream) => Inner::peek(stream, |stream| stream.size_hint()),
        }
    }
}
