//! Reads the options of a trigger or a sink.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use crate::SpecErrors;

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
        match parse_span(text).filter(|span| *span <= most) {
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

/// A duration: numbers, each with a unit of `ns`, `us`, `ms`, `s`, `m` or `h`, with fractions; `0` alone.
fn parse_span(text: &str) -> Option<Duration> {
    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    if text == "0" {
        return Some(Duration::ZERO);
    }
    if text.is_empty() || text.len() > 64 {
        return None;
    }
    let (mut rest, mut nanos) = (text, 0_u128);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let end = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || fraction.len() > 18 {
            return None;
        }
        let parse = |digits: &str| if digits.is_empty() { Some(0) } else { digits.parse::<u128>().ok() };
        let scale = u128::from(*scale);
        nanos = nanos.checked_add(parse(whole)?.checked_mul(scale)?)?;
        nanos += parse(fraction)? * scale / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
        rest = after;
    }
    u64::try_from(nanos).ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_read_as_go_writes_them() {
        for (text, nanos) in [
            ("0", Some(0)),
            ("10s", Some(10_000_000_000)),
            ("1h30m", Some(5_400_000_000_000)),
            ("1.5s", Some(1_500_000_000)),
            ("500ms", Some(500_000_000)),
            (".5s", Some(500_000_000)),
            ("", None),
            ("10", None),
            ("s", None),
            ("-1s", None),
            ("1.2.3s", None),
            ("1d", None),
            ("99999999999999h", None),
        ] {
            assert_eq!(parse_span(text), nanos.map(Duration::from_nanos), "{text}");
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
