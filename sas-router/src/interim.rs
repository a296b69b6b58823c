//! Interim answers (RFC 9110, section 15.2) on their way to an HTTP/1.1 client.
//!
//! hyper's server writes none but 100. So they are kept here until the connection's [`super::server`] finds that
//! nothing of another message is half written, and puts them before the answer that they belong to.

use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;

/// Bytes of interim answers that may wait for a client; more are left out.
const MOST: usize = 64 * 1024;

/// The interim answers of one connection.
#[derive(Debug)]
pub(crate) struct Interim {
    /// Whether the connection has nothing half written.
    clean: AtomicBool,
    some: AtomicBool,
    bytes: Mutex<Vec<u8>>,
}

impl Default for Interim {
    fn default() -> Self {
        Self { clean: AtomicBool::new(true), some: AtomicBool::new(false), bytes: Mutex::default() }
    }
}

impl Interim {
    /// An instance gave this answer, and another will follow. 100 is for our own connection to the instance: the
    /// ingress has told the client already.
    pub(crate) fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if !status.is_informational() || matches!(status.as_u16(), 100 | 101) {
            return;
        }
        let mut headers = headers.clone();
        crate::forward::strip_hop_by_hop(&mut headers, false);
        headers.remove(header::CONTENT_LENGTH);
        let mut text =
            format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or("Interim"))
                .into_bytes();
        for (name, value) in &headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value.as_bytes());
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"\r\n");
        let mut bytes = self.bytes.lock();
        if bytes.len() + text.len() <= MOST {
            bytes.append(&mut text);
            self.some.store(true, Ordering::Relaxed);
        }
    }

    /// The answer itself is there. What can't go before it any more is left out.
    pub(crate) fn close(&self) {
        if self.some.load(Ordering::Relaxed) && !self.clean.load(Ordering::Relaxed) {
            self.some.store(false, Ordering::Relaxed);
            self.bytes.lock().clear();
        }
    }

    /// The connection was written to, or flushed.
    pub(crate) fn set_clean(&self, clean: bool) {
        self.clean.store(clean, Ordering::Relaxed);
    }

    /// Whether there is something to be written now.
    pub(crate) fn is_due(&self) -> bool {
        self.some.load(Ordering::Relaxed) && self.clean.load(Ordering::Relaxed)
    }

    /// What is to be written before anything else.
    pub(crate) fn take(&self) -> Option<Vec<u8>> {
        if !self.is_due() {
            return None;
        }
        self.some.store(false, Ordering::Relaxed);
        Some(std::mem::take(&mut self.bytes.lock()))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn nothing_is_put_into_a_message_that_is_half_written() {
        let interim = Interim::default();
        let mut headers = HeaderMap::new();
        headers.insert("link", HeaderValue::from_static("</a.css>; rel=preload"));
        headers.insert("connection", HeaderValue::from_static("x-hop"));
        headers.insert("x-hop", HeaderValue::from_static("1"));
        interim.set_clean(false);
        interim.push(StatusCode::EARLY_HINTS, &headers);
        assert_eq!(interim.take(), None);
        interim.set_clean(true);
        let bytes = interim.take().unwrap();
        assert_eq!(bytes, b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n");
        assert_eq!(interim.take(), None);
        // Too late for its answer: it must not come before the next one.
        interim.set_clean(false);
        interim.push(StatusCode::PROCESSING, &headers);
        interim.close();
        interim.set_clean(true);
        assert_eq!(interim.take(), None);
        for other in [StatusCode::CONTINUE, StatusCode::SWITCHING_PROTOCOLS, StatusCode::OK] {
            interim.push(other, &headers);
            assert_eq!(interim.take(), None);
        }
    }
}
