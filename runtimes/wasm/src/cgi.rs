//! The CGI convention (RFC 3875): a request as environment and standard input, an answer on standard output.

use std::net::SocketAddr;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, request::Parts, response};

use crate::ends::{BadAnswer, Limit};

/// A head longer than this is refused.
const LONGEST_HEAD: usize = 64 * 1024;
/// Body bytes that the guest may be ahead of its reader.
const AHEAD: usize = 256 * 1024;

/// Headers between two neighbours, which a function has no say in.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::TE,
    header::TRAILER,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("keep-alive"),
];

/// A block of `name=value\0` and how many there are, as preview 1 hands them out.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) bytes: Vec<u8>,
    pub(crate) count: u32,
}

impl Block {
    pub(crate) fn push(&mut self, parts: &[&[u8]]) {
        for part in parts {
            self.bytes.extend(part.iter().filter(|byte| **byte != 0));
        }
        self.bytes.push(0);
        self.count += 1;
    }

    fn variable(&mut self, name: &str, value: &[u8]) {
        self.push(&[name.as_bytes(), b"=", value]);
    }
}

/// The environment of a request: what the revision declares, then the meta-variables, which can't be overridden.
pub(crate) fn environment(declared: &[(String, String)], head: &Parts, length: Option<u64>) -> Block {
    let mut block = Block::default();
    for (name, value) in declared {
        if !is_meta(name) {
            block.variable(name, value.as_bytes());
        }
    }
    let host = head
        .uri
        .host()
        .map(str::as_bytes)
        .or_else(|| head.headers.get(header::HOST).map(HeaderValue::as_bytes))
        .unwrap_or(b"localhost");
    let host_text = std::str::from_utf8(host).unwrap_or("localhost");
    let (name, port) = match host_text.parse::<http::uri::Authority>() {
        Ok(authority) => (authority.host().to_owned(), authority.port_u16()),
        Err(_) => ("localhost".to_owned(), None),
    };
    let secure = head.uri.scheme() == Some(&http::uri::Scheme::HTTPS);
    let port = port.or(head.uri.port_u16()).unwrap_or(if secure { 443 } else { 80 });
    block.variable("GATEWAY_INTERFACE", b"CGI/1.1");
    block.variable("REQUEST_METHOD", head.method.as_str().as_bytes());
    block.variable("SCRIPT_NAME", b"");
    block.variable("PATH_INFO", &percent_decoded(head.uri.path()));
    block.variable(
        "REQUEST_URI",
        head.uri.path_and_query().map_or(b"/".as_slice(), |uri| uri.as_str().as_bytes()),
    );
    block.variable("QUERY_STRING", head.uri.query().unwrap_or("").as_bytes());
    block.variable("SERVER_NAME", name.as_bytes());
    block.variable("SERVER_PORT", port.to_string().as_bytes());
    block.variable("SERVER_PROTOCOL", format!("{:?}", head.version).as_bytes());
    block.variable("SERVER_SOFTWARE", concat!("sas/", env!("CARGO_PKG_VERSION")).as_bytes());
    if secure {
        block.variable("HTTPS", b"on");
    }
    let remote = head.extensions.get::<SocketAddr>();
    block.variable("REMOTE_ADDR", remote.map_or(String::new(), |at| at.ip().to_string()).as_bytes());
    if let Some(length) = length {
        block.variable("CONTENT_LENGTH", length.to_string().as_bytes());
    }
    if let Some(kind) = head.headers.get(header::CONTENT_TYPE) {
        block.variable("CONTENT_TYPE", kind.as_bytes());
    }
    headers(&mut block, &head.headers);
    block
}

/// Names that a request decides, whatever the revision declares.
fn is_meta(name: &str) -> bool {
    name.starts_with("HTTP_")
        || matches!(
            name,
            "GATEWAY_INTERFACE"
                | "REQUEST_METHOD"
                | "SCRIPT_NAME"
                | "PATH_INFO"
                | "REQUEST_URI"
                | "QUERY_STRING"
                | "SERVER_NAME"
                | "SERVER_PORT"
                | "SERVER_PROTOCOL"
                | "SERVER_SOFTWARE"
                | "HTTPS"
                | "REMOTE_ADDR"
                | "CONTENT_LENGTH"
                | "CONTENT_TYPE"
        )
}

fn headers(block: &mut Block, headers: &HeaderMap) {
    for name in headers.keys() {
        // `Proxy` would become HTTP_PROXY, which many programs take for their own configuration.
        let skipped = HOP_BY_HOP.contains(name)
            || *name == header::CONTENT_LENGTH
            || *name == header::CONTENT_TYPE
            || name == "proxy";
        // A name with an underscore could pass for another header.
        if skipped || name.as_str().contains('_') {
            continue;
        }
        let variable = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
        let separator: &[u8] = if *name == header::COOKIE { b"; " } else { b", " };
        let values: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        block.variable(&variable, &values.join(separator));
    }
}

fn percent_decoded(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |offset: usize| bytes.get(at + offset).and_then(|byte| char::from(*byte).to_digit(16));
        match (bytes[at], hex(1), hex(2)) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

/// Standard output, read as a CGI answer while it is written.
#[derive(Debug)]
pub(crate) struct Output {
    head: Option<response::Parts>,
    parsed: bool,
    buffer: BytesMut,
    written: u64,
    promised: Option<u64>,
    limit: u64,
    is_head_request: bool,
}

impl Output {
    pub(crate) fn new(limit: u64, is_head_request: bool) -> Self {
        Self {
            head: None,
            parsed: false,
            buffer: BytesMut::new(),
            written: 0,
            promised: None,
            limit,
            is_head_request,
        }
    }

    /// Whether the guest must wait until more has been read.
    pub(crate) fn is_ahead(&self) -> bool {
        self.parsed && self.buffer.len() >= AHEAD
    }

    /// Takes what the guest wrote.
    ///
    /// # Errors
    /// When the head is not one, or a limit is met: the guest is ended by it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> wasmtime::Result<()> {
        if self.parsed {
            return self.body(bytes);
        }
        let seen = self.buffer.len().saturating_sub(3);
        self.buffer.extend_from_slice(bytes);
        match end_of_head(&self.buffer, seen) {
            Some((head, body)) => {
                let rest = self.buffer.split_off(body);
                let (head, promised) = parse_head(&self.buffer[..head])?;
                self.head = Some(head);
                self.promised = promised;
                self.parsed = true;
                self.buffer = BytesMut::new();
                self.body(&rest)
            }
            None if self.buffer.len() > LONGEST_HEAD => Err(bad(format!(
                "the answer's head has more than {LONGEST_HEAD} bytes and no blank line: a CGI answer is headers, a \
                 blank line and the body"
            ))),
            None => Ok(()),
        }
    }

    fn body(&mut self, bytes: &[u8]) -> wasmtime::Result<()> {
        self.written += bytes.len() as u64;
        if self.written > self.limit {
            return Err(Limit::Response(self.limit).into());
        }
        if self.promised.is_some_and(|promised| self.written > promised) && !self.is_head_request {
            return Err(bad(format!(
                "the answer's body is longer than its Content-Length of {}",
                self.promised.unwrap_or(0)
            )));
        }
        if !self.is_head_request {
            self.buffer.extend_from_slice(bytes);
        }
        Ok(())
    }

    /// The head, once it is there; `None` before, and after it was taken.
    pub(crate) fn take_head(&mut self) -> Option<response::Parts> {
        self.head.take()
    }

    /// What can be read now.
    pub(crate) fn take_body(&mut self) -> Option<Bytes> {
        (self.parsed && !self.buffer.is_empty()).then(|| self.buffer.split().freeze())
    }

    /// The guest is done: is its answer whole?
    ///
    /// # Errors
    /// When it is not.
    pub(crate) fn finish(&self) -> wasmtime::Result<()> {
        if !self.parsed {
            return Err(bad(if self.buffer.is_empty() {
                "the guest ended without an answer: write headers, a blank line and the body to standard output".into()
            } else {
                let start = String::from_utf8_lossy(&self.buffer[..self.buffer.len().min(60)]);
                format!(
                    "the guest ended inside the answer's head, which begins {start:?}: write headers, a blank line \
                     and the body to standard output"
                )
            }));
        }
        match self.promised {
            Some(promised) if promised != self.written && !self.is_head_request => Err(bad(format!(
                "the answer's body has {} bytes, but its Content-Length says {promised}",
                self.written
            ))),
            _ => Ok(()),
        }
    }
}

fn bad(message: String) -> wasmtime::Error {
    BadAnswer(message).into()
}

/// The end of the head and the start of the body, looking from `seen` on.
fn end_of_head(buffer: &[u8], seen: usize) -> Option<(usize, usize)> {
    let mut at = seen;
    while let Some(offset) = buffer.get(at..)?.iter().position(|byte| *byte == b'\n') {
        let line_end = at + offset;
        match buffer.get(line_end + 1..)? {
            [b'\n', ..] => return Some((line_end + 1, line_end + 2)),
            [b'\r', b'\n', ..] => return Some((line_end + 1, line_end + 3)),
            _ => at = line_end + 1,
        }
    }
    None
}

fn parse_head(head: &[u8]) -> wasmtime::Result<(response::Parts, Option<u64>)> {
    let mut parts = http::Response::new(()).into_parts().0;
    let mut status = None;
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            continue;
        }
        let shown = || String::from_utf8_lossy(&line[..line.len().min(80)]).into_owned();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            return Err(bad(format!("the answer's head has a line without a colon: {:?}", shown())));
        };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"status") {
            let code = value.get(..3).and_then(|code| StatusCode::from_bytes(code).ok());
            let whole = matches!(value.get(3), None | Some(b' '));
            match code {
                Some(code) if whole && code.as_u16() >= 200 && code.as_u16() < 600 => status = Some(code),
                _ => return Err(bad(format!("the answer's Status is not 200 to 599: {:?}", shown()))),
            }
            continue;
        }
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) else {
            return Err(bad(format!("the answer has an illegal header: {:?}", shown())));
        };
        if HOP_BY_HOP.contains(&name) {
            return Err(bad(format!("the answer has the header {name}, which belongs to the platform")));
        }
        parts.headers.append(name, value);
    }
    // A bare Location is a redirection.
    let redirects = parts.headers.contains_key(header::LOCATION);
    parts.status = status.unwrap_or(if redirects { StatusCode::FOUND } else { StatusCode::OK });
    let promised = content_length(&parts.headers)?;
    Ok((parts, promised))
}

fn content_length(headers: &HeaderMap) -> wasmtime::Result<Option<u64>> {
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = lengths.next() else {
        return Ok(None);
    };
    let digits = first.as_bytes();
    let legal = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) && lengths.next().is_none();
    match first.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(length) if legal => Ok(Some(length)),
        _ => Err(bad(format!("the answer's Content-Length is not one number: {first:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment_of(request: http::request::Builder, declared: &[(&str, &str)]) -> Vec<String> {
        let declared: Vec<(String, String)> =
            declared.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (head, ()) = request.body(()).unwrap().into_parts();
        let block = environment(&declared, &head, Some(5));
        let text = String::from_utf8(block.bytes).unwrap();
        let all: Vec<String> = text.split_terminator('\0').map(str::to_owned).collect();
        assert_eq!(all.len(), block.count as usize);
        all
    }

    #[test]
    fn a_request_becomes_meta_variables() {
        let request = http::Request::builder()
            .method("POST")
            .uri("/a%20b/c?x=1&y=%20")
            .header("host", "hello.example.com:8080")
            .header("content-type", "text/plain")
            .header("x-many", "1")
            .header("x-many", "2")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("proxy", "http://evil.test")
            .header("x_fake", "1")
            .header("connection", "close");
        let all =
            environment_of(request, &[("GREETING", "hi"), ("REQUEST_METHOD", "FAKE"), ("HTTP_X", "fake")]);
        for expected in [
            "GREETING=hi",
            "GATEWAY_INTERFACE=CGI/1.1",
            "REQUEST_METHOD=POST",
            "PATH_INFO=/a b/c",
            "REQUEST_URI=/a%20b/c?x=1&y=%20",
            "QUERY_STRING=x=1&y=%20",
            "SERVER_NAME=hello.example.com",
            "SERVER_PORT=8080",
            "SERVER_PROTOCOL=HTTP/1.1",
            "CONTENT_LENGTH=5",
            "CONTENT_TYPE=text/plain",
            "HTTP_X_MANY=1, 2",
            "HTTP_COOKIE=a=1; b=2",
            "HTTP_HOST=hello.example.com:8080",
        ] {
            assert!(all.iter().any(|variable| variable == expected), "{expected} in {all:?}");
        }
        for absent in [
            "HTTP_PROXY",
            "HTTP_X_FAKE",
            "HTTP_CONNECTION",
            "HTTP_CONTENT_TYPE",
            "REQUEST_METHOD=FAKE",
            "HTTP_X=",
        ] {
            assert!(!all.iter().any(|variable| variable.starts_with(absent)), "{absent} in {all:?}");
        }
    }

    fn answer(text: &str) -> Result<(response::Parts, String), String> {
        let mut output = Output::new(1 << 20, false);
        let whole = output.write(text.as_bytes()).and_then(|()| output.finish());
        whole.map_err(|error| error.to_string())?;
        let head = output.take_head().unwrap();
        let body = output.take_body().unwrap_or_default();
        Ok((head, String::from_utf8(body.to_vec()).unwrap()))
    }

    #[test]
    fn answers_are_read_with_either_line_end() {
        for text in ["Content-Type: text/plain\n\nhello", "Content-Type:text/plain\r\n\r\nhello"] {
            let (head, body) = answer(text).unwrap();
            assert_eq!((head.status, body.as_str()), (StatusCode::OK, "hello"));
            assert_eq!(head.headers["content-type"], "text/plain");
        }
        let (head, _) = answer("Status: 404 Not Found\nX-A: 1\nx-a: 2\n\n").unwrap();
        assert_eq!(head.status, StatusCode::NOT_FOUND);
        assert_eq!(head.headers.get_all("x-a").iter().count(), 2);
        assert_eq!(answer("Location: /elsewhere\n\n").unwrap().0.status, StatusCode::FOUND);
        assert_eq!(answer("Location: /elsewhere\nStatus: 201\n\n").unwrap().0.status, StatusCode::CREATED);
    }

    #[test]
    fn illegal_answers_say_what_is_wrong() {
        let cases = [
            ("", "without an answer"),
            ("Content-Type: text/plain\n", "inside the answer's head"),
            ("hello\n\n", "without a colon"),
            ("Status: 99\n\n", "not 200 to 599"),
            ("Status: 1000\n\n", "not 200 to 599"),
            ("Status: 101 Switching\n\n", "not 200 to 599"),
            ("Bad Name: 1\n\n", "illegal header"),
            ("X: a\u{1}b\n\n", "illegal header"),
            ("Connection: close\n\n", "belongs to the platform"),
            ("Transfer-Encoding: chunked\n\n", "belongs to the platform"),
            ("Content-Length: 5\n\nhell", "has 4 bytes"),
            ("Content-Length: 5\n\nhello!", "longer than its Content-Length"),
            ("Content-Length: +5\n\nhello", "not one number"),
            ("Content-Length: 5\nContent-Length: 5\n\nhello", "not one number"),
        ];
        for (text, problem) in cases {
            let error = answer(text).unwrap_err();
            assert!(error.contains(problem), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_answer_may_come_byte_by_byte() {
        let mut output = Output::new(1_000, false);
        for byte in b"A: 1\r\n\r\nbody" {
            output.write(&[*byte]).unwrap();
        }
        assert_eq!(output.take_head().unwrap().headers["a"], "1");
        assert_eq!(output.take_body().unwrap(), "body");
        output.finish().unwrap();
    }

    #[test]
    fn bodies_over_the_limit_and_endless_heads_are_refused() {
        let mut output = Output::new(4, false);
        let error = output.write(b"A: 1\n\n12345").unwrap_err();
        assert_eq!(error.downcast_ref::<Limit>(), Some(&Limit::Response(4)));
        let mut output = Output::new(4, false);
        assert!(output.write(&vec![b'x'; LONGEST_HEAD + 1]).is_err());
    }

    #[test]
    fn the_answer_to_head_may_promise_a_body_it_does_not_send() {
        let mut output = Output::new(100, true);
        output.write(b"Content-Length: 5\n\n").unwrap();
        output.finish().unwrap();
        output.write(b"hello").unwrap();
        assert!(output.take_body().is_none());
    }

    proptest::proptest! {
        #[test]
        fn no_output_makes_the_reader_panic(pieces: Vec<Vec<u8>>) {
            let mut output = Output::new(10_000, false);
            for piece in pieces {
                if output.write(&piece).is_err() {
                    break;
                }
            }
            let _ = output.finish();
            let _ = (output.take_head(), output.take_body());
        }
    }
}
