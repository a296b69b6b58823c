//! Attributes by name, checked as the specification has them, and made an event.

use jiff::Timestamp as Instant;
use sas_core::{AttributeValue, Event, Timestamp};

use super::DecodeError;

/// What was read of an event so far.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    version: Option<String>,
    id: Option<String>,
    source: Option<String>,
    kind: Option<String>,
    subject: Option<String>,
    time: Option<Timestamp>,
    schema: Option<String>,
    content_type: Option<String>,
    extensions: Vec<(String, AttributeValue)>,
}

impl Attributes {
    /// Takes an attribute in.
    pub(super) fn set(&mut self, name: &str, value: AttributeValue) -> Result<(), DecodeError> {
        let slot = match name {
            "specversion" => &mut self.version,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.kind,
            "subject" => &mut self.subject,
            "dataschema" => &mut self.schema,
            "datacontenttype" => &mut self.content_type,
            "time" => {
                let text = value.to_text();
                self.time = Some(time(&text).ok_or_else(|| {
                    DecodeError::new(
                        "time",
                        text.as_ref(),
                        "a time of RFC 3339, such as 2026-11-29T22:00:00Z",
                    )
                })?);
                return Ok(());
            }
            _ => {
                self.extensions.push((name.to_owned(), value));
                return Ok(());
            }
        };
        match value {
            AttributeValue::String(text) => *slot = Some(text),
            other => return Err(DecodeError::new(name, other.to_text().as_ref(), "a string")),
        }
        Ok(())
    }

    pub(super) fn data_content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    /// Checks what was read, and makes it an event without data.
    pub(super) fn into_event(self) -> Result<Event, DecodeError> {
        let required = |name: &'static str, value: Option<String>| {
            value.ok_or_else(|| DecodeError::new(name, "", "it is required"))
        };
        let version = required("specversion", self.version)?;
        if version != "1.0" {
            return Err(DecodeError::new("specversion", &version, "1.0"));
        }
        let (id, source) = (required("id", self.id)?, required("source", self.source)?);
        if !is_reference(&source) {
            return Err(DecodeError::new("source", &source, "a URI reference (RFC 3986)"));
        }
        let mut event = Event::new(id, source, required("type", self.kind)?)?;
        if let Some(subject) = self.subject {
            event = event.with_subject(subject)?;
        }
        if let Some(time) = self.time {
            event = event.with_time(time);
        }
        if let Some(schema) = self.schema {
            if !is_absolute(&schema) {
                return Err(DecodeError::new("dataschema", &schema, "an absolute URI (RFC 3986)"));
            }
            event = event.with_data_schema(schema)?;
        }
        if let Some(kind) = self.content_type {
            if !is_media_type(&kind) {
                return Err(DecodeError::new("datacontenttype", &kind, "a media type (RFC 2046)"));
            }
            event = event.with_data(kind, "")?;
        }
        for (name, value) in self.extensions {
            event = event.with_extension(name, value)?;
        }
        Ok(event)
    }
}

/// A time of RFC 3339; `None`: it is none, or out of the range of 64 bits of nanoseconds.
fn time(text: &str) -> Option<Timestamp> {
    let bytes = text.as_bytes();
    // RFC 3339 is stricter than what is read in other places: T or t between, an offset, no week dates.
    let shaped = bytes.len() >= 20
        && bytes[4] == b'-'
        && bytes[7] == b'-'
        && matches!(bytes[10], b'T' | b't')
        && bytes[13] == b':'
        && bytes[16] == b':'
        && bytes[..4].iter().all(u8::is_ascii_digit)
        && offset(&text[19..]);
    let instant: Instant = shaped.then(|| text.parse().ok()).flatten()?;
    i64::try_from(instant.as_nanosecond()).ok().map(Timestamp)
}

/// A fraction, if there is one, and `Z` or `+hh:mm`.
fn offset(rest: &str) -> bool {
    let rest = match rest.strip_prefix('.') {
        Some(fraction) => {
            let digits =
                fraction.len() - fraction.trim_start_matches(|digit: char| digit.is_ascii_digit()).len();
            if digits == 0 {
                return false;
            }
            &fraction[digits..]
        }
        None => rest,
    };
    match rest.as_bytes() {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', a, b, b':', c, d] => [a, b, c, d].iter().all(|digit| digit.is_ascii_digit()),
        _ => false,
    }
}

/// Characters that a URI may have; `%` with two digits after it.
fn is_uri_text(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().all(|(at, byte)| match byte {
        b'%' => bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)),
        byte => byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=".contains(byte),
    })
}

fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let mut letters = scheme.bytes();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_alphabetic())
        && letters.all(|letter| letter.is_ascii_alphanumeric() || b"+-.".contains(&letter));
    well_formed.then_some(scheme)
}

fn is_reference(text: &str) -> bool {
    if text.is_empty() || !is_uri_text(text) || text.matches('#').count() > 1 {
        return false;
    }
    // A first segment with a colon is a scheme, or no reference.
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    !first.contains(':') || scheme(text).is_some()
}

fn is_absolute(text: &str) -> bool {
    is_reference(text) && scheme(text).is_some_and(|scheme| text.len() > scheme.len() + 1)
}

/// `type/subtype` of tokens, with parameters after it.
fn is_media_type(text: &str) -> bool {
    let token = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
    };
    let essence = text.split(';').next().unwrap_or_default().trim();
    essence.split_once('/').is_some_and(|(kind, subtype)| token(kind) && token(subtype))
}
