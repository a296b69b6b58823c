//! Which requests a rule is for. Pure, and free of allocations but for paths with dot segments.

use http::{HeaderMap, HeaderName, Method, header};
use sas_core::{RouteMatch, RouteQuery, ValueMatch};

/// The conditions of a rule beyond its path, compiled.
#[derive(Debug)]
pub(crate) struct Conditions {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, ValueMatch)>,
    query: Vec<(String, ValueMatch)>,
    cookies: Vec<(String, ValueMatch)>,
}

impl Conditions {
    /// Compiles; `None` when there are no conditions.
    ///
    /// # Errors
    /// The field, its value and what it should be.
    pub(crate) fn compile(matches: &RouteMatch) -> Result<Option<Self>, (String, String, &'static str)> {
        let mut methods = Vec::with_capacity(matches.methods.len());
        for (at, method) in matches.methods.iter().enumerate() {
            let parsed = Method::from_bytes(method.as_bytes()).map_err(|_| {
                (format!("matches.methods[{at}]"), method.clone(), "a method such as GET, in upper case")
            })?;
            methods.push(parsed);
        }
        let mut headers = Vec::with_capacity(matches.headers.len());
        for (at, (name, value)) in matches.headers.iter().enumerate() {
            let parsed = HeaderName::from_lowercase(name.as_bytes()).map_err(|_| {
                (format!("matches.headers[{at}]"), name.clone(), "a header name in lower case")
            })?;
            headers.push((parsed, value.clone()));
        }
        for (at, (name, _)) in matches.query.iter().enumerate() {
            if name.is_empty() {
                return Err((format!("matches.query[{at}]"), String::new(), "the name of a query parameter"));
            }
        }
        for (at, (name, _)) in matches.cookies.iter().enumerate() {
            if name.is_empty() {
                return Err((format!("matches.cookies[{at}]"), String::new(), "the name of a cookie"));
            }
        }
        let (query, cookies) = (matches.query.clone(), matches.cookies.clone());
        let none = methods.is_empty() && headers.is_empty() && query.is_empty() && cookies.is_empty();
        Ok((!none).then_some(Self { methods, headers, query, cookies }))
    }

    /// How many there are: more conditions go first.
    pub(crate) fn count(&self) -> usize {
        usize::from(!self.methods.is_empty()) + self.headers.len() + self.query.len() + self.cookies.len()
    }

    pub(crate) fn matches(&self, request: &RouteQuery<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(request.method))
            && self.headers.iter().all(|(name, want)| {
                request.headers.get_all(name).iter().any(|value| is_wanted(value.as_bytes(), want))
            })
            && self
                .cookies
                .iter()
                .all(|(name, want)| cookie(request.headers, name).is_some_and(|value| is_wanted(value, want)))
            && self.query.iter().all(|(name, want)| query_matches(request.query.unwrap_or(""), name, want))
    }
}

fn is_wanted(value: &[u8], want: &ValueMatch) -> bool {
    match want {
        ValueMatch::Exact(text) => value == text.as_bytes(),
        ValueMatch::Prefix(text) => value.starts_with(text.as_bytes()),
        _ => true,
    }
}

fn query_matches(query: &str, name: &str, want: &ValueMatch) -> bool {
    query.split('&').filter(|pair| !pair.is_empty()).any(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        decoded(key).eq(name.bytes())
            && match want {
                ValueMatch::Exact(text) => decoded(value).eq(text.bytes()),
                ValueMatch::Prefix(text) => {
                    let mut value = decoded(value);
                    text.bytes().all(|byte| value.next() == Some(byte))
                }
                _ => true,
            }
    })
}

/// The bytes of a form-encoded text: `%41` and `+` decoded, broken escapes as they stand.
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, after) = rest.split_first()?;
        let byte = match (first, after) {
            (b'%', [high, low, tail @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = tail;
                    return Some(high << 4 | low);
                }
                _ => b'%',
            },
            (b'+', _) => b' ',
            _ => first,
        };
        rest = after;
        Some(byte)
    })
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Whether `path` is `prefix` or lies below it. `prefix` has no final slash; the empty one holds every path.
///
/// A path with dot segments (`/a/../b`, also when written `%2e`) is matched as the one that it resolves to, so
/// that no rule can be walked around.
pub(crate) fn under(prefix: &str, path: &str) -> bool {
    if prefix.is_empty() {
        return true;
    }
    if has_dots(path) {
        return below(prefix, &resolved(path));
    }
    below(prefix, path)
}

fn below(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn has_dots(path: &str) -> bool {
    path.as_bytes().windows(2).any(|pair| pair[0] == b'/' && (pair[1] == b'.' || pair[1] == b'%'))
        && path.split('/').any(|segment| dots(segment) > 0)
}

/// 1 for `.`, 2 for `..`, else 0.
fn dots(segment: &str) -> usize {
    let mut rest = segment.as_bytes();
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', tail @ ..] | [b'%', b'2', b'e' | b'E', tail @ ..] => tail,
            _ => return 0,
        };
        count += 1;
    }
    if count <= 2 { count } else { 0 }
}

/// RFC 3986, section 5.2.4.
fn resolved(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.strip_prefix('/').unwrap_or(path).split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match dots(segment) {
            0 => kept.push(segment),
            count => {
                if count == 2 {
                    kept.pop();
                }
                if last {
                    kept.push("");
                }
            }
        }
    }
    format!("/{}", kept.join("/"))
}

/// The value of a cookie, as sent.
pub(crate) fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    headers.get_all(header::COOKIE).iter().flat_map(|line| line.as_bytes().split(|b| *b == b';')).find_map(
        |pair| {
            let pair = pair.trim_ascii();
            let at = pair.iter().position(|b| *b == b'=')?;
            (&pair[..at] == name.as_bytes()).then(|| &pair[at + 1..])
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_a_segment() {
        let table = [
            ("", "/", true),
            ("/api", "/api", true),
            ("/api", "/api/", true),
            ("/api", "/api/v1", true),
            ("/api", "/apix", false),
            ("/api", "/", false),
            ("/api", "/API", false),
            ("/a/b", "/a/b/c", true),
            ("/a/b", "/a/bc", false),
            ("/api", "*", false),
        ];
        for (prefix, path, want) in table {
            assert_eq!(under(prefix, path), want, "{prefix:?} {path:?}");
        }
    }

    #[test]
    fn a_cookie_is_matched_by_its_name_and_value_among_others() {
        let mut matches = RouteMatch::default();
        matches.cookies.push(("track".to_owned(), ValueMatch::Prefix("b".to_owned())));
        let conditions = Conditions::compile(&matches).expect("sound").expect("one condition");
        assert_eq!(conditions.count(), 1);
        for (cookies, want) in [
            ("track=beta", true),
            ("a=1; track=b; c=2", true),
            ("track=stable", false),
            ("xtrack=beta", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("cookie", cookies.parse().expect("a value"));
            let query =
                RouteQuery { method: &Method::GET, host: "a", path: "/", query: None, headers: &headers };
            assert_eq!(conditions.matches(&query), want, "{cookies:?}");
        }
        matches.cookies.push((String::new(), ValueMatch::Present));
        assert_eq!(Conditions::compile(&matches).unwrap_err().0, "matches.cookies[1]");
    }

    #[test]
    fn dot_segments_are_resolved_before_matching() {
        let table = [
            ("/admin", "/public/../admin", true),
            ("/public", "/public/../admin", false),
            ("/admin", "/public/%2e%2E/admin/x", true),
            ("/admin", "/./admin", true),
            ("/admin", "/x/.%2e/admin", true),
            ("/admin", "/../../admin", true),
            ("/public", "/public/..", false),
            ("/public", "/public/.", true),
            ("/files", "/files/.hidden", true),
            ("/files", "/files/...", true),
            ("/a", "/a/%41", true),
        ];
        for (prefix, path, want) in table {
            assert_eq!(under(prefix, path), want, "{prefix:?} {path:?}");
        }
    }

    #[test]
    fn query_parameters_are_compared_decoded() {
        let exact = |text: &str| ValueMatch::Exact(text.to_owned());
        assert!(query_matches("a=1&b=x%20y", "b", &exact("x y")));
        assert!(query_matches("b=x+y", "b", &exact("x y")));
        assert!(query_matches("%62=1", "b", &exact("1")));
        assert!(!query_matches("ab=1", "b", &exact("1")));
        assert!(query_matches("b", "b", &ValueMatch::Present));
        assert!(query_matches("b=%zz", "b", &exact("%zz")));
        assert!(query_matches("b=canary-7", "b", &ValueMatch::Prefix("canary".into())));
        assert!(!query_matches("b=can", "b", &ValueMatch::Prefix("canary".into())));
        assert!(!query_matches("", "b", &ValueMatch::Present));
    }

    #[test]
    fn cookies_are_found_in_any_line_and_place() {
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, "a=1; session=abc=; b=2".parse().unwrap());
        headers.append(header::COOKIE, "other=x".parse().unwrap());
        assert_eq!(cookie(&headers, "session"), Some(b"abc=".as_slice()));
        assert_eq!(cookie(&headers, "other"), Some(b"x".as_slice()));
        assert_eq!(cookie(&headers, "sess"), None);
    }
}
