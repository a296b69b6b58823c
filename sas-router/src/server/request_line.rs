//! Characters of a request line that RFC 3986 does not allow in a target, and that clients send all the same.

/// Where in the head of a request the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the line: empty lines may come first.
    Start,
    Method,
    /// In a target in absolute form, before its path; how many slashes there were.
    Authority(u8),
    Path,
    Query,
    /// Past the target, or in something that is no request line.
    Rest,
}

/// Percent-encodes, as the bytes of an HTTP/1.1 connection pass by, what a target may not hold and browsers encode
/// themselves: `"`, `<`, `>` and bytes over 0x7F, and in a path `` ` `` as well. What may stand in a target, and what
/// ends one (blanks, control characters, `#`), stays as it is, so that a line is still read in the way it was sent.
///
/// Everything else that is sent passes untouched.
#[derive(Debug)]
pub(super) struct RequestLine {
    at: At,
}

impl RequestLine {
    /// At the first byte of a request.
    pub(super) fn new() -> Self {
        Self { at: At::Start }
    }

    /// The next bytes are those of a new request.
    pub(super) fn begins(&mut self) {
        self.at = At::Start;
    }

    /// Takes the next bytes. `None`: they may pass as they are; otherwise what goes in their place.
    pub(super) fn encode(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        let mut encoded: Option<Vec<u8>> = None;
        for (place, &byte) in bytes.iter().enumerate() {
            if self.at == At::Rest {
                if let Some(encoded) = &mut encoded {
                    encoded.extend_from_slice(&bytes[place..]);
                }
                break;
            }
            if self.takes(byte) {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                let [high, low] = [byte >> 4, byte & 15].map(|digit| HEX[usize::from(digit)]);
                encoded.get_or_insert_with(|| bytes[..place].to_vec()).extend_from_slice(&[b'%', high, low]);
            } else if let Some(encoded) = &mut encoded {
                encoded.push(byte);
            }
        }
        encoded
    }

    /// Moves on by a byte. Whether it must be encoded.
    fn takes(&mut self, byte: u8) -> bool {
        self.at = match (self.at, byte) {
            (At::Start, b'\r' | b'\n') => At::Start,
            (At::Start | At::Method, b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_') => At::Method,
            (At::Method, b' ') => At::Authority(0),
            // A target in origin form has no authority.
            (At::Authority(0), b'/') => At::Path,
            (At::Authority(0), b'A'..=b'Z' | b'a'..=b'z') => At::Authority(1),
            (At::Authority(3) | At::Path, b'?') => At::Query,
            (At::Authority(3), b'/') => At::Path,
            (At::Authority(slashes @ 1..), b'/') => At::Authority(slashes + 1),
            (At::Authority(slashes @ 1..), b'!'..=b'~') => At::Authority(slashes),
            (At::Path | At::Query, b'#' | ..=b' ' | 0x7F) => At::Rest,
            (At::Path | At::Query, _) => self.at,
            _ => At::Rest,
        };
        match self.at {
            At::Path => matches!(byte, b'"' | b'<' | b'>' | b'`' | 0x80..),
            At::Query => matches!(byte, b'"' | b'<' | b'>' | 0x80..),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(sent: &[u8], cut: usize) -> Vec<u8> {
        let mut line = RequestLine::new();
        let mut through = Vec::new();
        for part in [&sent[..cut], &sent[cut..]] {
            through.extend(line.encode(part).unwrap_or_else(|| part.to_vec()));
        }
        through
    }

    #[test]
    fn what_a_target_may_not_hold_is_encoded_and_nothing_else() {
        let table: [(&[u8], &[u8]); 17] = [
            (b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\n"),
            (br#"GET /x?q={"a":1} HTTP/1.1"#, b"GET /x?q={%22a%22:1} HTTP/1.1"),
            (b"GET /x?q=<b>|^`\\[1] HTTP/1.1", b"GET /x?q=%3Cb%3E|^`\\[1] HTTP/1.1"),
            (b"GET /<a>/`\"|{} HTTP/1.1", b"GET /%3Ca%3E/%60%22|{} HTTP/1.1"),
            (b"GET /caf\xc3\xa9?\xe9 HTTP/1.1", b"GET /caf%C3%A9?%E9 HTTP/1.1"),
            (b"GET /?a=%22%zz?\" HTTP/1.1", b"GET /?a=%22%zz?%22 HTTP/1.1"),
            // Only the target: not what follows it, not the lines after it.
            (b"GET /?a \" HTTP/1.1\r\n", b"GET /?a \" HTTP/1.1\r\n"),
            (
                b"GET /?\" HTTP/1.1\r\nx: GET /?\"<\r\n\r\n<\"",
                b"GET /?%22 HTTP/1.1\r\nx: GET /?\"<\r\n\r\n<\"",
            ),
            (b"\r\n\r\nGET /?\" HTTP/1.1", b"\r\n\r\nGET /?%22 HTTP/1.1"),
            (b"M-SEARCH /?\" HTTP/1.1", b"M-SEARCH /?%22 HTTP/1.1"),
            (b"GET /#\" HTTP/1.1", b"GET /#\" HTTP/1.1"),
            (b"GET /\r\nx: \"", b"GET /\r\nx: \""),
            (b"GET /?\t\" HTTP/1.1", b"GET /?\t\" HTTP/1.1"),
            (b"GET http://a/<?\" HTTP/1.1", b"GET http://a/%3C?%22 HTTP/1.1"),
            // Never in an authority: it would name another host.
            (b"GET http://a\"<b/ HTTP/1.1", b"GET http://a\"<b/ HTTP/1.1"),
            (b"GET  /?\" HTTP/1.1", b"GET  /?\" HTTP/1.1"),
            (b"\"GET /?\" HTTP/1.1", b"\"GET /?\" HTTP/1.1"),
        ];
        for (sent, expected) in table {
            for cut in 0..=sent.len() {
                let through = through(sent, cut);
                assert_eq!(through, expected, "{} cut at {cut}", String::from_utf8_lossy(sent));
            }
        }
    }

    #[test]
    fn a_line_of_allowed_characters_is_not_copied_and_a_new_request_begins_anew() {
        let mut line = RequestLine::new();
        assert_eq!(line.encode(b"GET /x?y=z HTTP/1.1\r\nhost: \"a\"\r\n\r\n"), None);
        assert_eq!(line.encode(b"GET /?\" HTTP/1.1"), None, "a body");
        line.begins();
        assert_eq!(line.encode(b"GET /?\""), Some(b"GET /?%22".to_vec()));
        // What the http crate refuses in a target is what is encoded, or it is no target at all.
        for byte in 0..=u8::MAX {
            for target in [&[b'/', byte][..], &[b'/', b'?', byte]] {
                line.begins();
                let sent = [b"GET ", target, b" HTTP/1.1"].concat();
                let through = line.encode(&sent).unwrap_or(sent);
                let target = &through[4..through.len() - 9];
                let taken = http::Uri::try_from(target).is_ok();
                assert_eq!(taken, byte > b' ' && byte != 0x7F, "{byte:#x} in {target:?}");
            }
        }
    }
}
