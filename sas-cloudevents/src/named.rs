//! Messages of protocols that have named values beside their body, such as the headers of Kafka, NATS and AMQP or the user
//! properties of MQTT.

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sas_core::{AttributeValue, Event};

use super::{DecodeError, attributes::Attributes, rfc3339};

/// The event that a message in binary mode holds: its attributes by their plain names, with the protocol's prefix taken
/// off, the media type from where the protocol has it, and the data.
///
/// ```
/// use sas_core::Event;
/// use sas_cloudevents::{attributes, from_attributes};
///
/// let event = Event::new("1", "/sensors", "reading")?.with_data("text/plain", "21.5")?;
/// let named = attributes(&event);
/// let named = named.iter().map(|(name, value)| (*name, value.as_str().into()));
/// let read = from_attributes(named, event.data_content_type(), event.data().clone()).expect("an event");
/// assert_eq!(read, event);
/// # Ok::<(), sas_core::EventError>(())
/// ```
///
/// # Errors
/// [`DecodeError`] names the attribute, what stands there and what should: one that is missing, that is there twice, or
/// that the specification does not allow.
pub fn from_attributes<'a>(
    named: impl IntoIterator<Item = (&'a str, AttributeValue)>,
    content_type: Option<&str>,
    data: Bytes,
) -> Result<Event, DecodeError> {
    let mut attributes = Attributes::default();
    let mut seen = Vec::new();
    for (name, value) in named {
        if seen.contains(&name) {
            return Err(DecodeError::new(name, value.to_text(), "each attribute once"));
        }
        seen.push(name);
        if name == "datacontenttype" {
            return Err(DecodeError::new(
                name,
                value.to_text(),
                "the data's media type stands where the protocol has it",
            ));
        }
        attributes.set(name, value)?;
    }
    if let Some(kind) = content_type {
        attributes.set("datacontenttype", kind.into())?;
    }
    let event = attributes.into_event()?;
    Ok(match content_type {
        Some(kind) => event.with_data(kind, data)?,
        None if data.is_empty() => event,
        None => event.with_untyped_data(data),
    })
}

/// A text of somebody else, such as a topic or the name of a file, as an attribute can hold it: control characters and
/// noncharacters, which CloudEvents' strings must not have, are question marks. A message must not be lost, or come for ever, for
/// the sake of its name.
///
/// ```
/// assert_eq!(sas_cloudevents::readable("grüße\u{7}\u{FFFF}"), "grüße??");
/// ```
pub fn readable(text: &str) -> String {
    let noncharacter =
        |letter: char| ('\u{FDD0}'..='\u{FDEF}').contains(&letter) || u32::from(letter) & 0xFFFE == 0xFFFE;
    text.replace(|letter: char| letter.is_control() || noncharacter(letter), "?")
}

/// A name, such as that of a queue or a table, as it may stand in the path of a `source`; slashes and colons stay.
///
/// ```
/// assert_eq!(sas_cloudevents::uri_path("orders/new ones"), "orders/new%20ones");
/// ```
pub fn uri_path(name: &str) -> String {
    const KEPT: &AsciiSet =
        &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/').remove(b':');
    utf8_percent_encode(name, KEPT).to_string()
}

/// The attributes of an event by their plain names, in their canonical text, for a message in binary mode. The media type
/// of its data ([`Event::data_content_type`]) is not among them: each protocol has a place of its own for that.
pub fn attributes(event: &Event) -> Vec<(&str, String)> {
    let mut named = vec![
        ("specversion", "1.0".to_owned()),
        ("id", event.id().to_owned()),
        ("source", event.source().to_owned()),
        ("type", event.kind().to_owned()),
    ];
    named.extend(event.subject().map(|subject| ("subject", subject.to_owned())));
    named.extend(event.time().and_then(rfc3339).map(|time| ("time", time)));
    named.extend(event.data_schema().map(|schema| ("dataschema", schema.to_owned())));
    named
        .extend(event.extensions().iter().map(|(name, value)| (name.as_str(), value.to_text().into_owned())));
    named
}
