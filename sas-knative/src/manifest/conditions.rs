//! What requests are told by, wherever an annotation says it: path, methods, headers and cookies.

use std::collections::BTreeMap;

use sas_core::{RouteMatch, SpecErrors, ValueMatch};

/// What the router matches by.
pub(super) fn matches(
    path: &str,
    methods: &[String],
    headers: &BTreeMap<String, String>,
    cookies: &BTreeMap<String, String>,
) -> RouteMatch {
    let all = |of: &BTreeMap<String, String>| -> Vec<(String, ValueMatch)> {
        of.iter()
            .map(|(name, value)| {
                let want = match value.strip_suffix('*') {
                    Some("") => ValueMatch::Present,
                    Some(prefix) => ValueMatch::Prefix(prefix.to_owned()),
                    None => ValueMatch::Exact(value.clone()),
                };
                (name.clone(), want)
            })
            .collect()
    };
    let mut matches = RouteMatch::default();
    path.clone_into(&mut matches.path_prefix);
    matches.methods = methods.to_vec();
    (matches.headers, matches.cookies) = (all(headers), all(cookies));
    matches
}

/// Checks path, methods, headers and cookies that requests are told by.
pub(super) fn check_conditions(
    at: &impl Fn(&str) -> String,
    (path, methods, headers, cookies): (
        &str,
        &[String],
        &BTreeMap<String, String>,
        &BTreeMap<String, String>,
    ),
    errors: &mut SpecErrors,
) {
    let good = path.is_empty() || (path.starts_with('/') && !path.contains(['?', '#']));
    if !good {
        errors.push(at("path"), path, "must begin with /, without query and fragment");
    }
    for method in methods {
        if method.parse::<http::Method>().is_err() || method.bytes().any(|b| b.is_ascii_lowercase()) {
            errors.push(at("methods"), method, "must be a method such as GET, in upper case");
        }
    }
    for name in headers.keys() {
        if !is_token(name) || name.bytes().any(|b| b.is_ascii_uppercase()) {
            errors.push(at("headers"), name, "must be the name of a header, in lower case");
        }
    }
    for name in cookies.keys() {
        if !is_token(name) {
            errors.push(at("cookies"), name, "must be the name of a cookie");
        }
    }
}

pub(super) fn is_token(name: &str) -> bool {
    name.parse::<http::HeaderName>().is_ok()
}
