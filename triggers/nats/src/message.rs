//! What a message of a stream is as an event: the NATS binding of CloudEvents 1.0.2.

use async_nats::HeaderMap;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use sas_cloudevents::{DecodeError, Limits, Mode, from_message, mode_of, readable, uri_path};
use sas_core::{Error, ErrorKind, Event, EventError, Result, Timestamp};

/// A message, and what the server says of it.
#[derive(Debug)]
pub(crate) struct Received<'a> {
    pub(crate) stream: &'a str,
    pub(crate) sequence: u64,
    /// How often the server has given it out, this time included.
    pub(crate) deliveries: i64,
    pub(crate) published: Timestamp,
    pub(crate) subject: &'a str,
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) payload: Bytes,
}

impl Received<'_> {
    /// The event. A message that says to be a CloudEvent is that one; one that says so and is none is an event of the type
    /// `dev.sas.nats.malformed`, so that it can be seen and kept; any other is `dev.sas.nats.message`.
    pub(crate) fn event(&self) -> Result<Event> {
        let event = match self.decoded() {
            Ok(Some(event)) => Ok(event),
            Ok(None) => self.plain("dev.sas.nats.message"),
            Err(problem) => {
                tracing::warn!(stream = self.stream, sequence = self.sequence, %problem, "a message is no event");
                self.plain("dev.sas.nats.malformed")
            }
        };
        let position = format!("{}@{}", self.stream, self.sequence);
        event
            .and_then(|event| event.with_extension("sasposition", readable(&position)))
            .and_then(|event| {
                let deliveries = i32::try_from(self.deliveries).unwrap_or(i32::MAX);
                if deliveries > 1 { event.with_extension("sasdeliveries", deliveries) } else { Ok(event) }
            })
            .map_err(|error| Error::new(ErrorKind::Unexpected, "nats", format!("{position}: {error}")))
    }

    fn decoded(&self) -> std::result::Result<Option<Event>, DecodeError> {
        let Some(headers) = self.headers else { return Ok(None) };
        let mut read = http::HeaderMap::new();
        let (mut of_message, mut of_data) = (None, None);
        for (name, values) in headers.iter() {
            let name: &str = name.as_ref();
            let lower = name.to_ascii_lowercase();
            for value in values {
                let fail = |problem: &str| DecodeError::new(name, value.as_str(), problem);
                match lower.as_str() {
                    "content-type" => of_message = Some(value.as_str().to_owned()),
                    "ce-datacontenttype" => {
                        let text = percent_decode_str(value.as_str().trim_matches('"')).decode_utf8();
                        let text = text.map_err(|_| fail("percent-encoded UTF-8"))?;
                        of_data = Some(text.into_owned());
                    }
                    attribute if attribute.starts_with("ce-") => {
                        let name =
                            HeaderName::try_from(attribute).map_err(|_| fail("a name of an attribute"))?;
                        let value =
                            HeaderValue::try_from(value.as_str()).map_err(|_| fail("printable ASCII"))?;
                        read.append(name, value);
                    }
                    _ => {}
                }
            }
        }
        let structured = match mode_of(of_message.as_deref())? {
            Mode::Structured => true,
            Mode::Batched => {
                let problem = "application/cloudevents+json: this binding has no batches";
                return Err(DecodeError::new("content-type", of_message.unwrap_or_default(), problem));
            }
            _ => false,
        };
        if read.is_empty() && !structured {
            return Ok(None);
        }
        // The binding has the media type of the data in an attribute's header; many who send have it where HTTP has it.
        if let Some(kind) = if structured { of_message } else { of_data.or(of_message) } {
            let fail = |_| DecodeError::new("datacontenttype", kind.as_str(), "a media type (RFC 2046)");
            read.insert(CONTENT_TYPE, HeaderValue::try_from(kind.as_str()).map_err(fail)?);
        }
        // The server bounds messages, by `max_payload`.
        let mut limits = Limits::default();
        limits.bytes = usize::MAX;
        Ok(from_message(&read, self.payload.clone(), &limits)?.pop())
    }

    fn plain(&self, kind: &str) -> std::result::Result<Event, EventError> {
        let event = Event::new(self.sequence.to_string(), format!("/nats/{}", uri_path(self.stream)), kind)?
            .with_subject(readable(self.subject))?
            .with_time(self.published);
        let stated = self.headers.and_then(|headers| headers.get("Content-Type"));
        let data = self.payload.clone();
        match stated {
            Some(kind) => match event.clone().with_data(kind.as_str(), data.clone()) {
                Ok(event) => Ok(event),
                Err(_) => Ok(event.with_untyped_data(data)),
            },
            None => Ok(event.with_untyped_data(data)),
        }
    }
}

/// What the binding has encoded in the value of an attribute's header, beside what is no ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// An event as a message: its headers, among them what the server knows a repetition by, and its body.
pub(crate) fn message(event: &Event, structured: bool) -> Result<(HeaderMap, Bytes)> {
    let message =
        if structured { sas_cloudevents::structured(event) } else { sas_cloudevents::binary(event)? };
    let mut headers = HeaderMap::new();
    let name = format!("{}#{}", uri_path(event.source()), uri_path(event.id()));
    headers.insert("Nats-Msg-Id", name.as_str());
    for (name, value) in &message.headers {
        // Where HTTP has the media type of the data, NATS has an attribute.
        let of_data = name == CONTENT_TYPE && !structured;
        let value = value.to_str().unwrap_or_default();
        match of_data {
            true => headers.insert("ce-datacontenttype", utf8_percent_encode(value, ENCODED).to_string()),
            false => headers.insert(name.as_str(), value),
        }
    }
    Ok((headers, message.body))
}
