//! CloudEvents over HTTP: binary, structured and batched messages.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use sas_core::{AttributeValue, Body, Error, ErrorKind, Event, Request, Result};

use super::{
    DecodeError,
    attributes::Attributes,
    json::{from_json, from_json_batch, to_json, to_json_batch},
    rfc3339,
};

/// What the binding has to be encoded: space, double quote, percent, and all that is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The media type of one event in JSON.
const JSON: &str = "application/cloudevents+json; charset=utf-8";
/// The media type of a batch in JSON.
const JSON_BATCH: &str = "application/cloudevents-batch+json; charset=utf-8";

/// How events stand in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// Attributes in headers, data in the body.
    Binary,
    /// One event in the body.
    Structured,
    /// A list of events in the body.
    Batched,
}

/// What is taken of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Bytes of the body. Default 1 MiB; the specification has intermediaries take 64 KiB at least.
    pub bytes: usize,
    /// Events in a batch. Default 1,000.
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 20, events: 1000 }
    }
}

/// The part of a message that carries events, of a request as of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The headers that say what it is, `content-type` among them.
    pub headers: HeaderMap,
    /// The body of the message.
    pub body: Bytes,
}

/// In which mode a message with this `content-type` carries events.
///
/// # Errors
/// When it is CloudEvents' media type with a format other than JSON.
pub fn mode_of(content_type: Option<&str>) -> Result<Mode, DecodeError> {
    let essence = content_type
        .and_then(|kind| kind.split(';').next())
        .map(|kind| kind.trim().to_ascii_lowercase())
        .unwrap_or_default();
    let (mode, format) = match essence.strip_prefix("application/cloudevents") {
        None => return Ok(Mode::Binary),
        Some(rest) => match rest.strip_prefix("-batch") {
            Some(format) => (Mode::Batched, format),
            None => (Mode::Structured, rest),
        },
    };
    if format == "+json" {
        return Ok(mode);
    }
    Err(DecodeError::new(
        "content-type",
        essence,
        "application/cloudevents+json or application/cloudevents-batch+json",
    ))
}

/// The events of a message: one, or those of a batch.
///
/// # Errors
/// [`DecodeError`] names the header or member, what stands there and what should.
pub fn from_message(headers: &HeaderMap, body: Bytes, limits: &Limits) -> Result<Vec<Event>, DecodeError> {
    if body.len() > limits.bytes {
        let problem = format!("a body of at most {} bytes", limits.bytes);
        return Err(DecodeError::new("", format!("{} bytes", body.len()), problem));
    }
    let kind = match headers.get(header::CONTENT_TYPE) {
        None => None,
        Some(kind) => Some(
            kind.to_str()
                .map_err(|_| DecodeError::new("content-type", format!("{kind:?}"), "printable ASCII"))?,
        ),
    };
    match mode_of(kind)? {
        Mode::Structured => Ok(vec![from_json(&body)?]),
        Mode::Batched => from_json_batch(&body, limits.events),
        Mode::Binary => Ok(vec![from_headers(headers, kind, body)?]),
    }
}

fn from_headers(headers: &HeaderMap, kind: Option<&str>, body: Bytes) -> Result<Event, DecodeError> {
    let mut attributes = Attributes::default();
    for name in headers.keys() {
        let Some(attribute) = name.as_str().strip_prefix("ce-") else { continue };
        let mut values = headers.get_all(name).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(DecodeError::new(name.as_str(), "several headers", "each attribute once"));
        };
        if attribute == "datacontenttype" {
            return Err(DecodeError::new(name.as_str(), "", "the data's media type stands in content-type"));
        }
        attributes.set(attribute, AttributeValue::String(decoded(name, value)?))?;
    }
    let event = attributes.into_event()?;
    Ok(match kind {
        Some(kind) => event.with_data(kind, body)?,
        None if body.is_empty() => event,
        None => event.with_untyped_data(body),
    })
}

/// The text of a header: quoted strings unquoted, then one round of percent-decoding.
fn decoded(name: &HeaderName, value: &HeaderValue) -> Result<String, DecodeError> {
    let fail = |problem: &str| DecodeError::new(name.as_str(), format!("{value:?}"), problem);
    let raw = value.to_str().map_err(|_| fail("printable ASCII"))?;
    let unquoted = unquote(raw).ok_or_else(|| fail("a quoted string that ends"))?;
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(&unquoted).collect();
    String::from_utf8(bytes).map_err(|_| fail("percent-encoded UTF-8"))
}

/// Takes the quotation marks of quoted strings off, and the backslashes in them; `None`: one does not end.
fn unquote(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut quoted = false;
    let mut letters = raw.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' => quoted = !quoted,
            '\\' if quoted => text.push(letters.next()?),
            other => text.push(other),
        }
    }
    (!quoted).then_some(text)
}

/// The event as a binary message.
///
/// # Errors
/// `InvalidSpec` when the data's media type does not fit into a header.
pub fn binary(event: &Event) -> Result<Message> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidSpec, "event", message);
    let mut headers = HeaderMap::new();
    let mut set = |name: &str, value: &str| {
        let encoded = percent_encode(value.as_bytes(), ENCODED).to_string();
        let name = HeaderName::try_from(format!("ce-{name}"));
        let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(encoded)) else {
            return Err(invalid(format!("attribute {value:?} does not fit into a header")));
        };
        headers.insert(name, value);
        Ok(())
    };
    set("specversion", "1.0")?;
    set("id", event.id())?;
    set("source", event.source())?;
    set("type", event.kind())?;
    if let Some(subject) = event.subject() {
        set("subject", subject)?;
    }
    if let Some(time) = event.time().and_then(rfc3339) {
        set("time", &time)?;
    }
    if let Some(schema) = event.data_schema() {
        set("dataschema", schema)?;
    }
    for (name, value) in event.extensions() {
        set(name, &value.to_text())?;
    }
    if let Some(kind) = event.data_content_type() {
        let value = HeaderValue::try_from(kind)
            .map_err(|_| invalid(format!("datacontenttype {kind:?} does not fit into a header")))?;
        headers.insert(header::CONTENT_TYPE, value);
    }
    Ok(Message { headers, body: event.data().clone() })
}

/// The event as a structured message in JSON.
pub fn structured(event: &Event) -> Message {
    json_message(JSON, to_json(event))
}

/// The events as a batch in JSON. Only for a receiver that asked for batches.
pub fn batched(events: &[Event]) -> Message {
    json_message(JSON_BATCH, to_json_batch(events))
}

fn json_message(kind: &'static str, document: String) -> Message {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    Message { headers, body: document.into() }
}

/// A `POST` of the event to `path`.
///
/// ```
/// use sas_core::Event;
/// let event = Event::new("1", "/sensors", "reading")?.with_data("text/plain", "21.5")?;
/// let request = sas_cloudevents::to_request(&event, "/events").expect("a path");
/// assert_eq!(request.headers()["ce-id"], "1");
/// assert_eq!(request.headers()["content-type"], "text/plain");
/// # Ok::<(), sas_core::EventError>(())
/// ```
///
/// # Errors
/// `InvalidSpec` when `path` is not the path of a URL.
pub fn to_request(event: &Event, path: &str) -> Result<Request> {
    message_request(binary(event)?, path)
}

/// A `POST` of a message to `path`, such as of one that [`batched`] made.
///
/// # Errors
/// `InvalidSpec` when `path` is not the path of a URL.
pub fn message_request(message: Message, path: &str) -> Result<Request> {
    let mut request =
        http::Request::builder().method(Method::POST).uri(path).body(Body::from(message.body)).map_err(
            |error| Error::new(ErrorKind::InvalidSpec, "deliver", format!("path {path:?}: {error}")),
        )?;
    *request.headers_mut() = message.headers;
    Ok(request)
}
