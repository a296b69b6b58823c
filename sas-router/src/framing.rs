//! How an answer is delimited, said once and in one way (RFC 9112 section 6.3, RFC 9110 section 8.6).

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use sas_core::{BoxError, Request};

/// Makes the head of an answer say its length in one way, and returns that length if it says one.
///
/// The coding counts and a length beside it is dropped; a length that is said several times alike is said once.
///
/// # Errors
/// What makes the answer one that can be read in two ways, or in none.
pub(crate) fn settle(status: StatusCode, headers: &mut HeaderMap) -> Result<Option<u64>, String> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(format!(
                "its Transfer-Encoding is {}; an answer is chunked once and in no other coding, or says its length",
                shown(headers, &header::TRANSFER_ENCODING),
            ));
        }
        headers.remove(header::TRANSFER_ENCODING);
        headers.remove(header::CONTENT_LENGTH);
        return Ok(None);
    }
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lines.next() else { return Ok(None) };
    let single = lines.next().is_none() && !first.as_bytes().contains(&b',');
    let mut length = None;
    for line in headers.get_all(header::CONTENT_LENGTH) {
        for item in line.as_bytes().split(|byte| *byte == b',') {
            let said = digits(item.trim_ascii());
            if said.is_none() || length.is_some_and(|length| said != Some(length)) {
                let text = shown(headers, &header::CONTENT_LENGTH);
                return Err(format!("its Content-Length is {text}; an answer has one length, in digits"));
            }
            length = said;
        }
    }
    // With 304 it would be allowed, and hyper leaves it out over HTTP/1.1.
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        headers.remove(header::CONTENT_LENGTH);
        return Ok(None);
    }
    if let (false, Some(length)) = (single, length) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    Ok(length)
}

/// Makes the head of a request whose body is in memory say that body's length, and say it once. Hooks and direct calls may
/// have left lines that differ from it, or from each other, and an instance would take the rest of one request for the
/// beginning of the next.
pub(crate) fn measure(request: &mut Request) {
    let Some(length) = request.body().in_memory().map(<[u8]>::len) else { return };
    let headers = request.headers_mut();
    let mut lines = headers.get_all(header::CONTENT_LENGTH).iter();
    let said = lines.next();
    let right =
        said.is_none_or(|said| digits(said.as_bytes()) == Some(length as u64)) && lines.next().is_none();
    if right && !headers.contains_key(header::TRANSFER_ENCODING) {
        return;
    }
    headers.remove(header::TRANSFER_ENCODING);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}

/// Whether an answer has no body, whatever it says of its length.
pub(crate) fn is_bodiless(asked_for_head: bool, status: StatusCode) -> bool {
    asked_for_head || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

/// A number in digits alone.
pub(crate) fn digits(text: &[u8]) -> Option<u64> {
    let all = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text).ok().filter(|_| all)?.parse().ok()
}

/// The values of a header, for a message.
fn shown(headers: &HeaderMap, name: &header::HeaderName) -> String {
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    format!("{:?}", values.join(", ").chars().take(100).collect::<String>())
}

/// A body that breaks off where it differs from the length that its head says.
#[derive(Debug)]
pub(crate) struct Measured<B> {
    body: B,
    length: Option<u64>,
    passed: u64,
}

impl<B> Measured<B> {
    /// `None`: any length.
    pub(crate) fn new(body: B, length: Option<u64>) -> Self {
        Self { body, length, passed: 0 }
    }

    fn differs(&self, length: u64) -> BoxError {
        format!("the answer's Content-Length is {length}, and its body has another length ({})", self.passed)
            .into()
    }
}

impl<B> HttpBody for Measured<B>
where
    B: HttpBody<Data = Bytes, Error = BoxError> + Unpin,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let Some(length) = self.length else { return Poll::Ready(frame) };
        if let Some(Ok(frame)) = &frame {
            self.passed += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        let ended = frame.is_none() || (!matches!(frame, Some(Err(_))) && self.body.is_end_stream());
        if self.passed > length || (ended && self.passed < length) {
            return Poll::Ready(Some(Err(self.differs(length))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.length.is_none_or(|length| self.passed == length)
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length.saturating_sub(self.passed)),
            None => self.body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use sas_core::Body;

    use super::*;

    type Lines = &'static [(&'static str, &'static str)];

    #[test]
    fn a_length_is_said_once_or_not_at_all() {
        type Delimited = Option<(Option<u64>, Option<&'static str>)>;
        let table: [(Lines, Delimited); 17] = [
            (&[], Some((None, None))),
            (&[("content-length", "5")], Some((Some(5), Some("5")))),
            (&[("content-length", "5, 5")], Some((Some(5), Some("5")))),
            (&[("content-length", "5"), ("content-length", "5")], Some((Some(5), Some("5")))),
            (&[("content-length", "05")], Some((Some(5), Some("05")))),
            (&[("content-length", "5"), ("content-length", "6")], None),
            (&[("content-length", "5, 6")], None),
            (&[("content-length", "5,")], None),
            (&[("content-length", "")], None),
            (&[("content-length", "+5")], None),
            (&[("content-length", "-1")], None),
            (&[("content-length", "0x5")], None),
            (&[("content-length", "99999999999999999999")], None),
            (&[("transfer-encoding", "chunked"), ("content-length", "3")], Some((None, None))),
            (&[("transfer-encoding", "Chunked"), ("content-length", "nonsense")], Some((None, None))),
            (&[("transfer-encoding", "gzip, chunked")], None),
            (&[("transfer-encoding", "identity"), ("content-length", "3")], None),
        ];
        for (lines, expected) in table {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, HeaderValue::from_static(value));
            }
            let settled = settle(StatusCode::OK, &mut headers);
            let said = headers.get_all("content-length").iter().collect::<Vec<_>>();
            match expected {
                None => assert!(settled.is_err(), "{lines:?}"),
                Some((length, line)) => {
                    assert_eq!(settled, Ok(length), "{lines:?}");
                    assert_eq!(said, line.into_iter().collect::<Vec<_>>(), "{lines:?}");
                    assert!(!headers.contains_key("transfer-encoding"));
                }
            }
        }
        let mut empty = HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from_static("7"))]);
        assert_eq!(settle(StatusCode::NO_CONTENT, &mut empty), Ok(None));
        assert!(empty.is_empty());
    }

    #[tokio::test]
    async fn a_body_of_another_length_never_looks_whole() {
        for (text, length, sound) in
            [("hello", 5, true), ("hello", 4, false), ("hello", 6, false), ("", 1, false), ("", 0, true)]
        {
            let pieces = text.bytes().map(|byte| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![byte]))));
            let stream = Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)));
            let collected = Measured::new(stream, Some(length)).collect().await;
            assert_eq!(collected.is_ok(), sound, "{text:?} {length}");
            assert_eq!(Measured::new(Body::from(text), Some(length)).collect().await.is_ok(), sound);
        }
    }
}
