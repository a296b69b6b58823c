//! What a request must satisfy before anything else looks at it.

use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use sas_core::Request;

use crate::{failure::Failure, host_of};

/// Checks the head of a request from outside and makes `Host` say what it is routed by.
///
/// hyper has parsed and framed it; here is what a proxy must refuse beyond that.
///
/// # Errors
/// The answer to give.
pub(super) fn vet(request: &mut Request, max_uri_bytes: usize) -> Result<(), Failure> {
    if *request.method() == Method::CONNECT {
        return Err(method_not_allowed("CONNECT is for forward proxies; this is a gateway"));
    }
    if *request.method() == Method::TRACE {
        return Err(method_not_allowed("TRACE would show a page's scripts what they must not see"));
    }
    let uri_bytes = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if uri_bytes > max_uri_bytes {
        let text = format!("path and query have {uri_bytes} bytes; at most {max_uri_bytes} are taken");
        return Err(Failure::new(StatusCode::URI_TOO_LONG, "ingress", "uri_too_long", text));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(Failure::malformed("several_hosts", "a request has one Host header"));
    }
    let authority = match (request.uri().authority(), host) {
        // RFC 9112, section 3.2.2: an authority in the request line goes before Host.
        (Some(authority), host) => {
            if host_of(authority.as_str()).is_none() {
                return Err(bad_host(authority.as_str()));
            }
            let same = host.is_some_and(|host| host.as_bytes() == authority.as_str().as_bytes());
            (!same)
                .then(|| HeaderValue::from_str(authority.as_str()).map_err(|_| bad_host(authority.as_str())))
        }
        (None, Some(host)) => {
            if !host.to_str().is_ok_and(|host| host_of(host).is_some()) {
                return Err(bad_host(&String::from_utf8_lossy(host.as_bytes())));
            }
            None
        }
        (None, None) if request.version() == Version::HTTP_10 => {
            return Err(Failure::malformed("missing_host", "services are told apart by Host; send one"));
        }
        (None, None) => return Err(Failure::malformed("missing_host", "a request has a Host header")),
    };
    if let Some(authority) = authority {
        request.headers_mut().insert(header::HOST, authority?);
    }
    let frames = |name: &HeaderName| *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING;
    if request.headers().keys().any(frames) {
        one_framing(request)?;
    }
    let path = request.uri().path();
    let asks_the_server = path == "*" && *request.method() == Method::OPTIONS;
    if !path.starts_with('/') && !asks_the_server {
        return Err(Failure::malformed("bad_path", "a path begins with /"));
    }
    Ok(())
}

/// A request with a body says its length in one way.
fn one_framing(request: &Request) -> Result<(), Failure> {
    let lengths = request.headers().get_all(header::CONTENT_LENGTH).iter().count();
    if lengths > 1 || (lengths == 1 && request.headers().contains_key(header::TRANSFER_ENCODING)) {
        return Err(Failure::malformed("ambiguous_length", "a request says its length once and in one way"));
    }
    let mut codings = request.headers().get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        // Framing is `chunked` alone. Any other coding would be lost with the header, which is for this hop only.
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err(Failure::malformed(
                "unknown_coding",
                "a request is chunked once, and in no other coding",
            ));
        }
    }
    Ok(())
}

fn bad_host(host: &str) -> Failure {
    let shown: String = host.chars().take(100).collect();
    Failure::malformed("bad_host", format!("{shown:?} is no host"))
}

fn method_not_allowed(text: &str) -> Failure {
    let mut failure = Failure::new(StatusCode::METHOD_NOT_ALLOWED, "ingress", "method_not_allowed", text);
    failure.close = true;
    failure
}
