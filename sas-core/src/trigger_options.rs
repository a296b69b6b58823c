//! Reads the options of a trigger or a sink.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    time::Duration,
};

use crate::{SpecErrors, parse_duration};

/// Reads options each once, collects what is wrong with them, and at the end refuses those that nobody asked for. For
/// those who write a kind of source or sink.
///
/// ```
/// use std::{collections::BTreeMap, time::Duration};
/// use sas_core::TriggerOptions;
///
/// let given = BTreeMap::from([("topic".to_owned(), "orders".to_owned()), ("poll".to_owned(), "1m30s".to_owned())]);
/// let mut options = TriggerOptions::new(&given, "options.");
/// assert_eq!(options.required("topic"), "orders");
/// assert_eq!(options.span("poll", Duration::from_secs(3600), Duration::from_secs(1)), Duration::from_secs(90));
/// options.finish()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Debug)]
pub struct TriggerOptions<'a> {
    left: BTreeMap<&'a str, &'a str>,
    known: Vec<&'static str>,
    place: &'static str,
    /// What was wrong so far.
    pub errors: SpecErrors,
}

impl<'a> TriggerOptions<'a> {
    /// The options of `given`; fields of errors begin with `place`, such as `options.`.
    pub fn new(given: &'a BTreeMap<String, String>, place: &'static str) -> Self {
        let left = given.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Self { left, known: Vec::new(), place, errors: SpecErrors::default() }
    }

    /// Notes that an option is wrong.
    pub fn wrong(&mut self, name: &str, value: &str, problem: impl Into<String>) {
        self.errors.push(format!("{}{name}", self.place), value, problem);
    }

    /// Whether it is there and was not read yet.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// The option, when it is there.
    pub fn take(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.push(name);
        self.left.remove(name)
    }

    /// The option, which must be there and not be empty; else that is noted, and an empty text given.
    pub fn required(&mut self, name: &'static str) -> &'a str {
        match self.take(name).filter(|value| !value.trim().is_empty()) {
            Some(value) => value,
            None => {
                self.wrong(name, "", "missing: this kind needs it");
                ""
            }
        }
    }

    /// A list of words with commas between them; empty when it is not there.
    pub fn list(&mut self, name: &'static str) -> Vec<&'a str> {
        let Some(text) = self.take(name) else { return Vec::new() };
        text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect()
    }

    /// Reads an option that is `true` or `false`.
    pub fn flag(&mut self, name: &'static str, default: bool) -> bool {
        self.word(name, &[("true", true), ("false", false)], default)
    }

    /// One of several words.
    pub fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.take(name) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.wrong(name, text, format!("must be one of {}", words.join(", ")));
                default
            }
        }
    }

    /// A duration such as `10s`, `500ms` or `1h30m`, at most `most`.
    pub fn span(&mut self, name: &'static str, most: Duration, default: Duration) -> Duration {
        let Some(text) = self.take(name) else { return default };
        let nanos = parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok());
        match nanos.map(Duration::from_nanos).filter(|span| *span <= most) {
            Some(span) => span,
            None => {
                let problem = format!("must be a duration such as 10s, at most {}s", most.as_secs());
                self.wrong(name, text, problem);
                default
            }
        }
    }

    /// A whole number of a range.
    pub fn number(&mut self, name: &'static str, range: RangeInclusive<u64>, default: u64) -> u64 {
        let Some(text) = self.take(name) else { return default };
        match text.parse::<u64>().ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let problem = format!("must be a whole number from {} to {}", range.start(), range.end());
                self.wrong(name, text, problem);
                default
            }
        }
    }

    /// The URL of a server, which must be there: with one of `schemes`, without credentials, and at one of the addresses
    /// that the platform's operator allows (`host:port`), by the means that `allowed_by` names. What is wrong is noted, and
    /// never shows a password.
    pub fn server(
        &mut self,
        name: &'static str,
        schemes: &[&'static str],
        allowed: &BTreeSet<String>,
        allowed_by: &str,
    ) -> ServerUrl<'a> {
        const HIDDEN: &str = "(not shown)";
        let url = self.required(name);
        let nowhere =
            ServerUrl { scheme: schemes.first().copied().unwrap_or_default(), address: "", path: "" };
        if url.is_empty() {
            return nowhere;
        }
        let of = |scheme: &&'static str| {
            url.strip_prefix(*scheme).and_then(|rest| rest.strip_prefix("://")).map(|rest| (*scheme, rest))
        };
        let Some((scheme, rest)) = schemes.iter().find_map(of) else {
            let forms: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://host:port")).collect();
            let shown = if url.contains('@') { HIDDEN } else { url };
            self.wrong(name, shown, format!("must be {}", forms.join(" or ")));
            return nowhere;
        };
        if url.contains('@') {
            let problem = "must hold no credentials: name them by `username` and the references to secrets";
            self.wrong(name, HIDDEN, problem);
            return nowhere;
        }
        let (address, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        if !allowed.contains(address) {
            let problem = format!("is none of the servers that the platform allows ({allowed_by})");
            self.wrong(name, address, problem);
        }
        ServerUrl { scheme, address, path: path.strip_prefix('/').unwrap_or(path) }
    }

    /// A reference to a secret, or a name that goes with one; `None` where it is not there or empty.
    pub fn reference(&mut self, name: &'static str) -> Option<String> {
        self.take(name).map(str::to_owned).filter(|text| !text.is_empty())
    }

    /// What nobody has read yet.
    pub fn rest(&self) -> BTreeMap<String, String> {
        self.left.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All that was wrong, and each option that nobody asked for.
    pub fn finish(mut self) -> Result<(), SpecErrors> {
        for (name, value) in std::mem::take(&mut self.left) {
            let problem = format!("unknown option; known are {}", self.known.join(", "));
            self.wrong(name, value, problem);
        }
        self.errors.into_result()
    }
}

/// Where a server is, as [`TriggerOptions::server`] reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerUrl<'a> {
    /// How it is spoken to.
    pub scheme: &'static str,
    /// `host:port`; empty where the URL was wrong.
    pub address: &'a str,
    /// What comes after the address, without the slash.
    pub path: &'a str,
}

impl<'a> ServerUrl<'a> {
    /// The host, without the brackets of an IPv6 address, and the port; `None`: one of them is missing.
    pub fn host_and_port(&self) -> Option<(&'a str, u16)> {
        let (host, port) = self.address.rsplit_once(':')?;
        Some((host.trim_start_matches('[').trim_end_matches(']'), port.parse().ok()?))
    }
}

/// The machine's name, which tells hosts apart and is the same after a restart; `sas` where it has none. For those who
/// write a kind of source.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "sas".to_owned() } else { name.trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_one_of_those_that_are_allowed_and_its_url_holds_no_password() {
        let allowed = BTreeSet::from(["broker:4222".to_owned(), "[::1]:4222".to_owned()]);
        let read = |url: &str| {
            let given = BTreeMap::from([("url".to_owned(), url.to_owned())]);
            let mut options = TriggerOptions::new(&given, "options.");
            let server = options.server("url", &["nats", "tls"], &allowed, "`nats_hosts`");
            let found = (server.scheme, server.host_and_port().map(|(host, port)| format!("{host} {port}")));
            let found = (found.0, found.1, server.path.to_owned());
            options.finish().map(|()| found).map_err(|errors| errors.to_string())
        };
        let found = Ok(("tls", Some("broker 4222".to_owned()), "a".to_owned()));
        assert_eq!(read("tls://broker:4222/a"), found);
        assert_eq!(read("nats://[::1]:4222").unwrap().1.unwrap(), "::1 4222");
        for (url, says) in [
            ("", "missing"),
            ("http://broker:4222", "must be nats://host:port or tls://host:port"),
            ("nats://other:4222", "none of the servers that the platform allows (`nats_hosts`)"),
            ("nats://me:hidden@broker:4222", "no credentials"),
            ("x://me:hidden@broker:4222", "must be nats"),
        ] {
            let errors = read(url).unwrap_err();
            assert!(errors.contains("options.url") && errors.contains(says), "{url}: {errors}");
            assert!(!errors.contains("hidden"), "{errors}");
        }
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let given = BTreeMap::from([("a".to_owned(), "x".to_owned()), ("b".to_owned(), String::new())]);
        let mut options = TriggerOptions::new(&given, "options.");
        assert_eq!(options.number("a", 1..=9, 3), 3);
        let errors = options.finish().expect_err("a is no number, b is unknown");
        let fields: Vec<&str> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["options.a", "options.b"]);
    }
}
