//! Hosts as clients send them and as routes name them.

use sas_core::HostPattern;

/// The longest host that DNS can carry.
pub(crate) const MAX_HOST: usize = 253;

/// The host of an authority (`example.com:8080`, `[::1]:80`), without its port; `None` when it is malformed.
///
/// ```
/// assert_eq!(sas_router::host_of("example.com:8080"), Some("example.com"));
/// assert_eq!(sas_router::host_of("[::1]:80"), Some("[::1]"));
/// assert_eq!(sas_router::host_of("user@example.com"), None);
/// assert_eq!(sas_router::host_of("a b"), None);
/// ```
pub fn host_of(authority: &str) -> Option<&str> {
    let (host, port) = if authority.starts_with('[') {
        let end = authority.find(']')?;
        let literal = &authority[1..end];
        if literal.parse::<std::net::Ipv6Addr>().is_err() {
            return None;
        }
        (&authority[..=end], &authority[end + 1..])
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        (&authority[..end], &authority[end..])
    };
    let port_is_sound = match port.strip_prefix(':') {
        None => port.is_empty(),
        Some(digits) => digits.len() <= 5 && digits.bytes().all(|b| b.is_ascii_digit()),
    };
    let sound = host.starts_with('[') || is_name(host.strip_suffix('.').unwrap_or(host));
    (port_is_sound && sound).then_some(host)
}

/// Whether `host` is a DNS name or an IPv4 address as RFC 1123 and practice (underscores) allow.
fn is_name(host: &str) -> bool {
    // How long the label is that is being read.
    let mut label = 0;
    for byte in host.bytes() {
        label = match byte {
            b'.' if label == 0 => return false,
            b'.' => 0,
            b'-' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' if label < 63 => label + 1,
            _ => return false,
        };
    }
    label > 0 && host.len() <= MAX_HOST
}

/// `host` in lower case and without a final dot, written into `buffer`; `None` when it is too long to be one.
pub(crate) fn normalized<'a>(host: &str, buffer: &'a mut [u8; MAX_HOST]) -> Option<&'a [u8]> {
    let bytes = host.as_bytes();
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    let target = buffer.get_mut(..bytes.len())?;
    target.copy_from_slice(bytes);
    target.make_ascii_lowercase();
    Some(target)
}

/// What is wrong with a host that a route names, if anything.
pub(crate) fn problem(pattern: &HostPattern) -> Option<&'static str> {
    let (HostPattern::Exact(host) | HostPattern::Wildcard(host)) = pattern else { return None };
    let literal = matches!(pattern, HostPattern::Exact(_)) && host.starts_with('[');
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        return Some("write it in lower case");
    }
    if literal {
        return (host_of(host) != Some(host)).then_some("an IPv6 address in brackets, without a port");
    }
    (!is_name(host)).then_some(
        "a host of DNS labels (letters, digits, - and _) without port, at most 253 bytes; *.example.com is \
         Wildcard(\"example.com\")",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn malformed_authorities_are_no_hosts() {
        for bad in [
            "",
            ":80",
            "a:b",
            "a:123456",
            "a..b",
            ".a",
            "a/b",
            "a%20b",
            "[::1",
            "[nonsense]",
            "a@b",
            "a\u{e9}",
            "a:80:80",
            "[::1]x",
            "a,b",
            "a b",
            "a\tb",
        ] {
            assert_eq!(host_of(bad), None, "{bad:?}");
        }
        assert_eq!(host_of(&"a".repeat(64)), None);
        assert_eq!(host_of(&format!("{}com", "abc.".repeat(70))), None);
    }

    #[test]
    fn ports_and_final_dots_do_not_matter() {
        assert_eq!(host_of("Example.COM."), Some("Example.COM."));
        assert_eq!(host_of("127.0.0.1:65535"), Some("127.0.0.1"));
        assert_eq!(host_of("example.com:"), Some("example.com"));
        let mut buffer = [0; MAX_HOST];
        assert_eq!(normalized("Example.COM.", &mut buffer), Some(b"example.com".as_slice()));
    }
}
