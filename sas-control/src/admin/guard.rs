//! What the admin API refuses whoever asks: names that are not its own, web pages of other origins, and bodies that a
//! page could send without being asked.

use std::net::IpAddr;

use http::{HeaderMap, StatusCode, header, request::Parts};

use super::{problem::Failure, token::bearer};

/// Names and origins that are let in beside those of this machine's loopback.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard {
    pub(super) hosts: Vec<String>,
    pub(super) origins: Vec<String>,
}

fn forbidden(reason: &str, message: impl Into<String>) -> Failure {
    Failure::new(StatusCode::FORBIDDEN, reason, message)
}

impl Guard {
    /// Refuses requests for other hosts, which is what a name that was rebound to this address asks for, and requests
    /// of web pages that are not this host's own.
    pub(super) fn check(&self, head: &Parts) -> Result<(), Failure> {
        let mut asked = head.headers.get_all(header::HOST).iter();
        let (named, more) = (asked.next(), asked.next());
        if more.is_some() {
            return Err(forbidden("foreign_host", "there are several Host headers"));
        }
        let named = named.map(|host| host.to_str().unwrap_or_default());
        let authority = head.uri.authority().map(http::uri::Authority::as_str);
        if named.is_none() && authority.is_none() {
            return Err(forbidden("foreign_host", "there is no Host header; send Host: localhost"));
        }
        for host in [named, authority].into_iter().flatten() {
            if !self.knows(host) {
                let message = format!(
                    "the admin API does not answer for the host {host:?}, only for localhost, loopback addresses and \
                     the hosts that are configured"
                );
                return Err(forbidden("foreign_host", message));
            }
        }
        self.check_origin(&head.headers, authority.or(named).unwrap_or_default())
    }

    fn knows(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        is_loopback(name)
            || self.hosts.iter().any(|own| {
                own.eq_ignore_ascii_case(host) || own.eq_ignore_ascii_case(name) || {
                    let (own, name) = (own.parse::<IpAddr>(), bare(name).parse::<IpAddr>());
                    own.is_ok() && own == name
                }
            })
    }

    fn check_origin(&self, headers: &HeaderMap, host: &str) -> Result<(), Failure> {
        const ONLY: &str = "pages of other origins may not use the admin API";
        let known = |origin: &str| {
            let own = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
            own.is_some_and(|own| own.eq_ignore_ascii_case(host))
                || self.origins.iter().any(|known| known.eq_ignore_ascii_case(origin))
        };
        let origins: Vec<&str> =
            headers.get_all(header::ORIGIN).iter().map(|o| o.to_str().unwrap_or_default()).collect();
        if let Some(foreign) = origins.iter().find(|origin| !known(origin)) {
            return Err(forbidden("foreign_origin", format!("the origin {foreign:?} is not known: {ONLY}")));
        }
        for site in headers.get_all("sec-fetch-site") {
            let own = site == "same-origin" || site == "none";
            // A page whose origin is known was told apart above.
            if !own && origins.is_empty() {
                return Err(forbidden("foreign_origin", format!("this is a request across sites: {ONLY}")));
            }
        }
        Ok(())
    }
}

/// Refuses credentials in the URL, whoever sends them beside it: URLs are written to logs and histories.
pub(super) fn check_query(head: &Parts) -> Result<(), Failure> {
    let names =
        head.uri.query().unwrap_or_default().split('&').map(|pair| pair.split('=').next().unwrap_or(pair));
    for name in names {
        let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
        if matches!(name.as_str(), "token" | "access_token" | "authorization" | "api_key" | "apikey") {
            let message = "a token in a URL is refused, since URLs are written to logs; send it in the Authorization \
                           header, and replace this one";
            return Err(Failure::new(StatusCode::BAD_REQUEST, "token_in_url", message));
        }
    }
    Ok(())
}

/// Refuses a body that a web page can send without asking first (as text, as a form, or without a type), unless the
/// request carries a bearer token, which a page can't add unasked.
pub(super) fn check_media_type(head: &Parts, empty: bool) -> Result<(), Failure> {
    let mut authorizations = head.headers.get_all(header::AUTHORIZATION).iter();
    if empty || authorizations.any(|value| bearer(value).is_some()) {
        return Ok(());
    }
    let mut kinds = head.headers.get_all(header::CONTENT_TYPE).iter();
    let kind = match (kinds.next(), kinds.next()) {
        (Some(kind), None) => kind.to_str().unwrap_or_default(),
        _ => "",
    };
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let known = matches!(
        essence.as_str(),
        "application/json"
            | "application/octet-stream"
            | "application/yaml"
            | "application/x-yaml"
            | "text/yaml"
            | "text/x-yaml"
    );
    if known
        || (essence.starts_with("application/") && (essence.ends_with("+json") || essence.ends_with("+yaml")))
    {
        return Ok(());
    }
    let message = format!("a body of type {kind:?} is not taken; send application/json or application/yaml");
    Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message))
}

/// A host without its port; `None` for what is no host.
fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let end = rest.find(']')? + 1;
            host.split_at(end + 1)
        }
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let port = port.strip_prefix(':').unwrap_or(port);
    let digits = port.is_empty() || port.parse::<u16>().is_ok();
    (digits && !name.is_empty() && !name.contains('@')).then_some(name)
}

fn bare(name: &str) -> &str {
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

fn is_loopback(name: &str) -> bool {
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    bare(name).parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::post("/v1/services");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    #[test]
    fn hosts_are_loopback_or_configured() {
        let guard =
            Guard { hosts: vec!["admin.example.org".into(), "192.168.1.5".into()], origins: Vec::new() };
        for host in [
            "localhost",
            "LOCALHOST:8081",
            "127.0.0.1",
            "127.1.2.3:1",
            "[::1]",
            "[::1]:8081",
            "[::ffff:127.0.0.1]",
            "admin.example.org",
            "Admin.Example.org:8081",
            "192.168.1.5:8081",
        ] {
            assert!(guard.check(&head(&[("host", host)])).is_ok(), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example:8081",
            "192.168.1.6",
            "0.0.0.0",
            "[::]",
            "[::1",
            "[::1]x",
            "localhost:99999",
            "2130706433",
            "hello.default.localhost",
            "x.admin.example.org",
        ] {
            assert!(guard.check(&head(&[("host", host)])).is_err(), "{host}");
        }
        assert!(guard.check(&head(&[])).is_err(), "no host at all");
        assert!(guard.check(&head(&[("host", "localhost"), ("host", "localhost")])).is_err(), "two hosts");
    }

    #[test]
    fn an_authority_in_the_target_counts_as_well_as_the_host() {
        let of = |target: &str, host: &str| {
            let request = http::Request::get(target).header("host", host).body(()).expect("a request");
            Guard::default().check(&request.into_parts().0).is_ok()
        };
        assert!(of("http://localhost:1/v1/services", "localhost:1"));
        assert!(!of("http://evil.example/v1/services", "localhost"));
        assert!(!of("http://localhost/v1/services", "evil.example"));
    }

    #[test]
    fn origins_are_the_host_s_own_or_configured() {
        let guard = Guard { hosts: Vec::new(), origins: vec!["https://console.example.org".into()] };
        for (origin, site, fine) in [
            (None, None, true),
            (None, Some("none"), true),
            (None, Some("same-origin"), true),
            (Some("http://localhost:8081"), Some("same-origin"), true),
            (Some("https://console.example.org"), Some("cross-site"), true),
            (Some("http://localhost:8080"), Some("same-site"), false),
            (Some("http://hello.default.localhost:8081"), None, false),
            (Some("https://evil.example"), None, false),
            (Some("null"), None, false),
            (Some(""), None, false),
            (None, Some("cross-site"), false),
            (None, Some("same-site"), false),
        ] {
            let mut fields = vec![("host", "localhost:8081")];
            fields.extend(origin.map(|origin| ("origin", origin)));
            fields.extend(site.map(|site| ("sec-fetch-site", site)));
            assert_eq!(guard.check(&head(&fields)).is_ok(), fine, "{origin:?} {site:?}");
        }
    }

    #[test]
    fn bodies_that_a_page_may_send_unasked_need_a_bearer_token() {
        for kind in
            ["application/json", "application/yaml; charset=utf-8", "Text/YAML", "application/ld+json"]
        {
            assert!(check_media_type(&head(&[("content-type", kind)]), false).is_ok(), "{kind}");
        }
        for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "text/json"] {
            let simple = [("content-type", kind)];
            assert!(check_media_type(&head(&simple), false).is_err(), "{kind}");
            assert!(check_media_type(&head(&simple), true).is_ok(), "nothing is no body");
            let with =
                |auth| check_media_type(&head(&[("content-type", kind), ("authorization", auth)]), false);
            assert!(with("Bearer x").is_ok());
            assert!(with("Basic eDp5").is_err(), "browsers add what they remember");
        }
        assert!(check_media_type(&head(&[]), false).is_err());
        let two = [("content-type", "application/json"), ("content-type", "text/plain")];
        assert!(check_media_type(&head(&two), false).is_err());
    }
}
