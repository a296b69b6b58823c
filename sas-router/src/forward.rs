//! What a proxy must take out of a message and put into it (RFC 9110 section 7.6, RFC 7239).

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Headers that a `Connection` header can't declare hop-by-hop: without them the message would mean another thing.
const END_TO_END: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::CONTENT_TYPE, header::AUTHORIZATION];

/// Who a request came from, rendered once per connection.
#[derive(Debug)]
pub(crate) struct Origin {
    address: HeaderValue,
    forwarded: HeaderValue,
    proto: HeaderValue,
}

impl Origin {
    pub(crate) fn new(peer: Option<SocketAddr>, secure: bool) -> Self {
        let proto = if secure { "https" } else { "http" };
        let (address, node) = match peer.map(|peer| peer.ip().to_canonical()) {
            Some(ip @ std::net::IpAddr::V4(_)) => (ip.to_string(), ip.to_string()),
            Some(ip @ std::net::IpAddr::V6(_)) => (ip.to_string(), format!("\"[{ip}]\"")),
            None => ("unknown".to_owned(), "unknown".to_owned()),
        };
        let value = |text: String| HeaderValue::from_str(&text).expect("addresses are visible ASCII");
        Self {
            address: value(address),
            forwarded: value(format!("for={node};proto={proto}")),
            proto: HeaderValue::from_static(proto),
        }
    }
}

/// Whether the request asks to switch protocols on an HTTP/1.1 connection.
///
/// To HTTP itself there is no switching (RFC 9113, section 3.1): requests inside of such a connection would reach the
/// instance past routes, hooks and quotas.
pub(crate) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && has_token(headers, &header::CONNECTION, "upgrade")
        && !["h2c", "h2", "http", "tls"].into_iter().any(|http| {
            let named = |item: &str| {
                item.trim().split('/').next().is_some_and(|name| name.eq_ignore_ascii_case(http))
            };
            let offers = headers.get_all(header::UPGRADE).iter();
            offers.into_iter().any(|value| value.to_str().map_or(true, |list| list.split(',').any(named)))
        })
}

/// Whether a comma-separated header holds `token`.
pub(crate) fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',').any(|item| item.split(';').next().unwrap_or("").trim().eq_ignore_ascii_case(token))
    })
}

/// Whether a header is for the next hop only. Looking at each name once costs less than looking each of these up.
fn is_for_this_hop(name: &HeaderName) -> bool {
    match name.as_str().len() {
        2 => name == header::TE,
        7 => name == header::UPGRADE,
        10 => name == header::CONNECTION || name == KEEP_ALIVE,
        16 => name == PROXY_CONNECTION,
        17 => name == header::TRANSFER_ENCODING,
        18 => name == header::PROXY_AUTHENTICATE,
        19 => name == header::PROXY_AUTHORIZATION,
        _ => false,
    }
}

/// Takes out what is meant for the next hop only. `Upgrade` and its `Connection` stay when `upgrade` is asked for.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    if !headers.keys().any(is_for_this_hop) {
        return;
    }
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|list| list.split(','))
            .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
            .filter(|name| !END_TO_END.contains(name) && (*name != header::UPGRADE || !upgrade))
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    if headers.contains_key(header::TE) {
        // Trailers are passed on, so an instance may send them to whoever takes them.
        let trailers = has_token(headers, &header::TE, "trailers");
        headers.remove(header::TE);
        if trailers {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    for name in [
        &KEEP_ALIVE,
        &PROXY_CONNECTION,
        &header::PROXY_AUTHENTICATE,
        &header::PROXY_AUTHORIZATION,
        &header::TRANSFER_ENCODING,
    ] {
        headers.remove(name);
    }
    if upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::UPGRADE);
    }
}

/// Takes out what says where a request came from: all of it, or, of a trusted proxy, only spellings with `_`, which
/// programs behind CGI and WSGI can't tell from those with `-`, and which no proxy of one's own uses.
fn strip_origin(headers: &mut HeaderMap, trusted: bool) {
    let about_origin = |name: &str| {
        let dashed = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
        let is = |other: &str| name.len() == other.len() && dashed.clone().eq(other.bytes());
        let begins = |prefix: &str| dashed.clone().take(prefix.len()).eq(prefix.bytes());
        begins("x-forwarded") || is("forwarded") || is("x-real-ip")
    };
    let underscored = |name: &str| name.contains('_');
    let lies: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            let underscored = underscored(name);
            (name.starts_with(['x', 'f']) && about_origin(name) && (underscored || !trusted))
                || (underscored && name.replace('_', "-") == "x-request-id")
        })
        .cloned()
        .collect();
    for name in lies {
        headers.remove(name);
    }
}

/// Says where the request came from. What the client said of that is kept only when it is trusted.
pub(crate) fn stamp(headers: &mut HeaderMap, origin: &Origin, trusted: bool) {
    strip_origin(headers, trusted);
    let host = headers.get(header::HOST).cloned();
    if !trusted {
        headers.insert(header::FORWARDED, origin.forwarded.clone());
        headers.insert(FORWARDED_FOR, origin.address.clone());
        headers.insert(REAL_IP, origin.address.clone());
        headers.insert(FORWARDED_PROTO, origin.proto.clone());
        if let Some(host) = host {
            headers.insert(FORWARDED_HOST, host);
        }
        return;
    }
    join(headers, header::FORWARDED, &origin.forwarded);
    join(headers, FORWARDED_FOR, &origin.address);
    headers.entry(REAL_IP).or_insert_with(|| origin.address.clone());
    headers.entry(FORWARDED_PROTO).or_insert_with(|| origin.proto.clone());
    if let Some(host) = host {
        headers.entry(FORWARDED_HOST).or_insert(host);
    }
}

/// Appends to a comma-separated header, as one line.
fn join(headers: &mut HeaderMap, name: HeaderName, value: &HeaderValue) {
    let mut list = Vec::new();
    for line in headers.get_all(&name).iter().chain([value]) {
        if !list.is_empty() {
            list.extend_from_slice(b", ");
        }
        list.extend_from_slice(line.as_bytes());
    }
    let joined = HeaderValue::from_bytes(&list).expect("valid values joined by a comma");
    headers.insert(name, joined);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_is_meant_for_the_next_hop_does_not_pass() {
        let mut message = headers(&[
            ("connection", "close, X-Private"),
            ("connection", "keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic Zm9v"),
            ("te", "gzip, trailers;q=0.5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("trailer", "x-checksum"),
            ("accept", "*/*"),
        ]);
        strip_hop_by_hop(&mut message, false);
        assert_eq!(message, headers(&[("te", "trailers"), ("trailer", "x-checksum"), ("accept", "*/*")]));
    }

    #[test]
    fn a_connection_header_can_not_take_out_what_frames_and_routes_the_message() {
        let mut message = headers(&[
            ("connection", "host, content-length, authorization"),
            ("host", "a"),
            ("content-length", "3"),
            ("authorization", "x"),
        ]);
        strip_hop_by_hop(&mut message, false);
        assert_eq!(message, headers(&[("host", "a"), ("content-length", "3"), ("authorization", "x")]));
    }

    #[test]
    fn an_upgrade_that_is_asked_for_passes() {
        let mut message = headers(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(wants_upgrade(&message));
        strip_hop_by_hop(&mut message, true);
        assert_eq!(message, headers(&[("upgrade", "websocket"), ("connection", "upgrade")]));
        assert!(!wants_upgrade(&headers(&[("upgrade", "websocket")])), "without Connection it means nothing");
    }

    #[test]
    fn strangers_can_not_say_where_a_request_came_from() {
        let origin = Origin::new(Some("192.0.2.7:4711".parse().unwrap()), true);
        let mut message = headers(&[
            ("host", "a.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("forwarded", "for=10.0.0.1"),
            ("x-forwarded-host", "evil"),
        ]);
        stamp(&mut message, &origin, false);
        assert_eq!(message["x-forwarded-for"], "192.0.2.7");
        assert_eq!(message["forwarded"], "for=192.0.2.7;proto=https");
        assert_eq!(message["x-forwarded-host"], "a.example");
        assert_eq!(message["x-forwarded-proto"], "https");
    }

    #[test]
    fn each_spelling_of_an_origin_is_one() {
        let origin = Origin::new(Some("192.0.2.7:4711".parse().unwrap()), false);
        // What came, and what reaches the instance from a stranger and from a trusted proxy.
        let table: [(&'static str, Option<&str>, Option<&str>); 14] = [
            ("x-forwarded-for", Some("192.0.2.7"), Some("evil, 192.0.2.7")),
            ("forwarded", Some("for=192.0.2.7;proto=http"), Some("evil, for=192.0.2.7;proto=http")),
            ("x-real-ip", Some("192.0.2.7"), Some("evil")),
            ("x-forwarded-proto", Some("http"), Some("evil")),
            ("x-forwarded-port", None, Some("evil")),
            ("x-forwarded-prefix", None, Some("evil")),
            ("x-forwarded-server", None, Some("evil")),
            ("x-forwarded", None, Some("evil")),
            ("x_forwarded_for", None, None),
            ("x-forwarded_for", None, None),
            ("x_forwarded-proto", None, None),
            ("x_real_ip", None, None),
            ("x_request_id", None, None),
            ("x-forward", Some("evil"), Some("evil")),
        ];
        for (name, stranger, proxy) in table {
            for (trusted, expected) in [(false, stranger), (true, proxy)] {
                let mut message = headers(&[(name, "evil"), ("x_other", "kept")]);
                stamp(&mut message, &origin, trusted);
                assert_eq!(
                    message.get(name).map(|value| value.to_str().unwrap()),
                    expected,
                    "{name} {trusted}"
                );
                assert_eq!(message["x_other"], "kept");
            }
        }
    }

    #[test]
    fn a_trusted_proxy_is_added_to() {
        let origin = Origin::new(Some("[2001:db8::1]:443".parse().unwrap()), false);
        let mut message = headers(&[
            ("host", "a.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-for", "10.0.0.2"),
            ("x-forwarded-proto", "https"),
        ]);
        stamp(&mut message, &origin, true);
        assert_eq!(message["x-forwarded-for"], "10.0.0.1, 10.0.0.2, 2001:db8::1");
        assert_eq!(message["forwarded"], "for=\"[2001:db8::1]\";proto=http");
        assert_eq!(message["x-forwarded-proto"], "https");
        assert_eq!(message["x-forwarded-host"], "a.example");
    }
}
