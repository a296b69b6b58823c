//! The JSON event format, one event and batches of them.

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use sas_core::{AttributeValue, Event};
use serde_json::{Value, value::Number};

use super::{DecodeError, attributes::Attributes, is_json, rfc3339};

/// Reads one event.
///
/// The data is taken as it stands: the bytes of a JSON value are those of the document, so that no number loses a
/// digit on its way.
///
/// # Errors
/// [`DecodeError`] names the member, what stands there and what should.
pub fn from_json(document: &[u8]) -> Result<Event, DecodeError> {
    event(checked(document)?, "")
}

/// Reads a batch of at most `most` events; none is a batch, too.
///
/// # Errors
/// As [`from_json`], with the event's place in the batch; and when there are more than `most`.
pub fn from_json_batch(document: &[u8], most: usize) -> Result<Vec<Event>, DecodeError> {
    let text = checked(document)?;
    if !text.starts_with('[') {
        return Err(DecodeError::new("", head(text), "a JSON array of events"));
    }
    let elements = items(text);
    if elements.len() > most {
        let problem = format!("at most {most} events in a batch");
        return Err(DecodeError::new("", format!("{} events", elements.len()), problem));
    }
    elements.into_iter().enumerate().map(|(at, element)| event(element, &format!("[{at}]."))).collect()
}

/// The event as a JSON document.
pub fn to_json(event: &Event) -> String {
    let mut members = vec![
        ("specversion".to_owned(), Value::from("1.0")),
        ("id".to_owned(), Value::from(event.id())),
        ("source".to_owned(), Value::from(event.source())),
        ("type".to_owned(), Value::from(event.kind())),
    ];
    let mut optional = |name: &str, value: Option<String>| {
        members.extend(value.map(|value| (name.to_owned(), Value::from(value))));
    };
    optional("subject", event.subject().map(str::to_owned));
    optional("time", event.time().and_then(rfc3339));
    optional("datacontenttype", event.data_content_type().map(str::to_owned));
    optional("dataschema", event.data_schema().map(str::to_owned));
    members.extend(event.extensions().iter().map(|(name, value)| {
        let value = match value {
            AttributeValue::Boolean(value) => Value::from(*value),
            AttributeValue::Integer(value) => Value::from(*value),
            AttributeValue::String(value) => Value::from(value.as_str()),
        };
        (name.clone(), value)
    }));
    let mut document = String::from("{");
    for (name, value) in &members {
        if document.len() > 1 {
            document.push(',');
        }
        document.push_str(&format!("{}:{value}", Value::from(name.as_str())));
    }
    match data(event) {
        Data::None => {}
        Data::Json(text) => document.push_str(&format!(",\"data\":{text}")),
        Data::Text(text) => document.push_str(&format!(",\"data\":{}", Value::from(text))),
        Data::Binary(bytes) => document.push_str(&format!(",\"data_base64\":\"{}\"", STANDARD.encode(bytes))),
    }
    document.push('}');
    document
}

/// A batch as a JSON document.
pub fn to_json_batch(events: &[Event]) -> String {
    let documents: Vec<String> = events.iter().map(to_json).collect();
    format!("[{}]", documents.join(","))
}

enum Data<'a> {
    None,
    Json(&'a str),
    Text(&'a str),
    Binary(&'a [u8]),
}

/// How the data stands in a document: as JSON where it is declared and is JSON, as text where it is text, else in
/// base 64.
fn data(event: &Event) -> Data<'_> {
    let bytes = event.data();
    let text = std::str::from_utf8(bytes);
    match (event.data_content_type(), text) {
        _ if bytes.is_empty() => Data::None,
        (Some(kind), Ok(text)) if is_json(kind) && checked(bytes).is_ok() => Data::Json(text),
        (Some(kind), Ok(text)) if !is_json(kind) => Data::Text(text),
        _ => Data::Binary(bytes),
    }
}

fn event(text: &str, place: &str) -> Result<Event, DecodeError> {
    let fail = |name: &str, found: &str, problem: &str| {
        Err(DecodeError::new(format!("{place}{name}"), head(found), problem.to_owned()))
    };
    if !text.starts_with('{') {
        return fail("", text, "a JSON object");
    }
    let mut attributes = Attributes::default();
    let (mut data, mut binary) = (None, None);
    let mut seen = BTreeSet::new();
    for (name, raw) in members(text) {
        if !seen.insert(name.clone()) {
            return fail(&name, raw, "each member once");
        }
        match name.as_str() {
            "data" => data = Some(raw),
            "data_base64" if raw == "null" => {}
            "data_base64" => {
                let Ok(Value::String(encoded)) = serde_json::from_str(raw) else {
                    return fail(&name, raw, "a JSON string in base 64");
                };
                match STANDARD.decode(&encoded) {
                    Ok(bytes) => binary = Some(Bytes::from(bytes)),
                    Err(_) => return fail(&name, raw, "base 64 with its padding"),
                }
            }
            // An attribute that is null is not there.
            _ if raw == "null" => {}
            _ => {
                let value = match serde_json::from_str(raw) {
                    Ok(Value::String(text)) => AttributeValue::String(text),
                    Ok(Value::Bool(value)) => AttributeValue::Boolean(value),
                    Ok(Value::Number(number)) if integer(&number).is_some() => {
                        AttributeValue::Integer(integer(&number).unwrap_or_default())
                    }
                    _ => return fail(&name, raw, "a string, a boolean or a whole number of 32 bits"),
                };
                attributes.set(&name, value).map_err(|error| error.below(place))?;
            }
        }
    }
    let declared = attributes.data_content_type().map(str::to_owned);
    let event = attributes.into_event().map_err(|error| error.below(place))?;
    let json = declared.as_deref().is_none_or(is_json);
    let bytes = match (data, binary) {
        (Some(raw), Some(_)) => return fail("data_base64", raw, "either data or data_base64"),
        (None, None) => return Ok(event),
        (None, Some(bytes)) => bytes,
        (Some(raw), None) if json => Bytes::copy_from_slice(raw.as_bytes()),
        (Some(raw), None) => match serde_json::from_str(raw) {
            Ok(Value::String(text)) => Bytes::from(text),
            _ => return fail("data", raw, "a JSON string, since datacontenttype does not declare JSON"),
        },
    };
    // What is JSON without being declared is declared from here on, so that another format says the same.
    let kind = declared.or_else(|| data.is_some().then(|| "application/json".to_owned()));
    Ok(match kind {
        Some(kind) => event.with_data(kind, bytes)?,
        None => event.with_untyped_data(bytes),
    })
}

fn integer(number: &Number) -> Option<i32> {
    number.as_i64().and_then(|value| i32::try_from(value).ok())
}

/// The first of a text, for an error.
fn head(text: &str) -> String {
    let mut head: String = text.chars().take(60).collect();
    if head.len() < text.len() {
        head.push('…');
    }
    head
}

/// The text of a document that is JSON, without the white space around it.
fn checked(document: &[u8]) -> Result<&str, DecodeError> {
    let text = std::str::from_utf8(document).map_err(|error| {
        DecodeError::new("", "", format!("UTF-8, which ends at byte {}", error.valid_up_to()))
    })?;
    serde_json::from_str::<serde::de::IgnoredAny>(text)
        .map_err(|error| DecodeError::new("", head(text), format!("JSON: {error}")))?;
    Ok(text.trim_ascii())
}

/// The members of an object, whose text is known to be JSON: their names, and their values as they stand.
fn members(text: &str) -> Vec<(String, &str)> {
    let mut scan = Scan { text, at: 1 };
    let mut members = Vec::new();
    while let Some(name) = scan.next() {
        // A name may be escaped; one with half a surrogate pair has no text.
        let name = serde_json::from_str(name).unwrap_or_else(|_| name.to_owned());
        scan.skip(b':');
        members.extend(scan.next().map(|value| (name, value)));
        scan.skip(b',');
    }
    members
}

/// The elements of an array, whose text is known to be JSON.
fn items(text: &str) -> Vec<&str> {
    let mut scan = Scan { text, at: 1 };
    let mut items = Vec::new();
    while let Some(item) = scan.next() {
        items.push(item);
        scan.skip(b',');
    }
    items
}

/// Cuts a JSON text into its values, without looking into them.
struct Scan<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Scan<'t> {
    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while self.byte().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn skip(&mut self, expected: u8) {
        self.space();
        if self.byte() == Some(expected) {
            self.at += 1;
        }
    }

    /// The next value; `None` at the end of what holds it.
    fn next(&mut self) -> Option<&'t str> {
        self.space();
        let begin = self.at;
        let mut depth = 0;
        loop {
            match self.byte() {
                None => break,
                Some(b'"') => self.string(),
                Some(b'{' | b'[') => depth += 1,
                Some(b'}' | b']') if depth == 0 => break,
                Some(b'}' | b']') => depth -= 1,
                Some(b',' | b':') if depth == 0 => break,
                Some(byte) if depth == 0 && byte.is_ascii_whitespace() => break,
                Some(_) => {}
            }
            self.at += 1;
            if depth == 0 && matches!(self.text.as_bytes()[self.at - 1], b'"' | b'}' | b']') {
                break;
            }
        }
        (self.at > begin).then(|| &self.text[begin..self.at])
    }

    /// From the opening quotation mark to the closing one.
    fn string(&mut self) {
        self.at += 1;
        while let Some(byte) = self.byte() {
            match byte {
                b'"' => return,
                b'\\' => self.at += 2,
                _ => self.at += 1,
            }
        }
    }
}
