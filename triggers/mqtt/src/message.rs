//! CloudEvents' MQTT binding: what a message is as an event, and an event as a message.

use bytes::Bytes;
use sas_cloudevents::{DecodeError, Mode};
use sas_core::{AttributeValue, Error, ErrorKind, Event, EventError, Result};

/// A message, without what acknowledges it. In MQTT 3.1.1 there are neither media types nor properties.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) content_type: Option<String>,
    pub(crate) properties: Vec<(String, String)>,
}

impl Message {
    /// The event. A message in binary or structured mode of the binding is that one; one that only says so is of the type
    /// `dev.sas.mqtt.malformed`; any other is a `dev.sas.mqtt.message` with `id`, since messages have none of their own.
    pub(crate) fn event(&self, id: String) -> Result<Event> {
        let event = match self.decoded() {
            Some(Ok(event)) => Ok(event),
            Some(Err(problem)) => {
                tracing::warn!(topic = self.topic, %problem, "a message says that it is an event, and is none");
                self.plain(id, "dev.sas.mqtt.malformed")
            }
            None => self.plain(id, "dev.sas.mqtt.message"),
        };
        event
            .and_then(|event| event.with_extension("sasposition", sas_cloudevents::readable(&self.topic)))
            .map_err(|error| Error::new(ErrorKind::Unexpected, "mqtt", format!("{}: {error}", self.topic)))
    }

    /// The event that the message says it holds; `None`: it does not say so.
    fn decoded(&self) -> Option<std::result::Result<Event, DecodeError>> {
        match sas_cloudevents::mode_of(self.content_type.as_deref()) {
            Err(problem) => Some(Err(problem)),
            Ok(Mode::Structured) => Some(sas_cloudevents::from_json(&self.payload)),
            Ok(Mode::Batched) => {
                Some(Err(DecodeError::new("content type", "a batch", "one event a message")))
            }
            Ok(_) if self.properties.iter().any(|(name, _)| name == "specversion") => {
                let named = self
                    .properties
                    .iter()
                    .map(|(name, value)| (name.as_str(), AttributeValue::from(value.as_str())));
                let kind = self.content_type.as_deref();
                Some(sas_cloudevents::from_attributes(named, kind, self.payload.clone()))
            }
            // MQTT 3.1.1 has structured events only, and nothing beside the payload that says so.
            Ok(_) if self.content_type.is_none() && says_event(&self.payload) => {
                Some(sas_cloudevents::from_json(&self.payload))
            }
            Ok(_) => None,
        }
    }

    fn plain(&self, id: String, kind: &str) -> std::result::Result<Event, EventError> {
        let event = Event::new(id, "/mqtt", kind)?.with_subject(sas_cloudevents::readable(&self.topic))?;
        // A media type that no attribute can hold is as none.
        let typed = self
            .content_type
            .as_deref()
            .and_then(|kind| event.clone().with_data(kind, self.payload.clone()).ok());
        Ok(typed.unwrap_or_else(|| event.with_untyped_data(self.payload.clone())))
    }

    /// The event as a message to a topic: its attributes in properties, or structured.
    pub(crate) fn of(event: &Event, topic: &str, structured: bool) -> Self {
        let topic = topic.to_owned();
        if structured {
            return Self {
                topic,
                payload: sas_cloudevents::to_json(event).into(),
                content_type: Some("application/cloudevents+json; charset=utf-8".to_owned()),
                properties: Vec::new(),
            };
        }
        let named = sas_cloudevents::attributes(event).into_iter();
        Self {
            topic,
            payload: event.data().clone(),
            content_type: event.data_content_type().map(str::to_owned),
            properties: named.map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }
}

/// Whether it is an object in JSON that looks like an event, well-formed or not.
fn says_event(payload: &[u8]) -> bool {
    let payload = payload.trim_ascii_start();
    payload.starts_with(b"{") && payload.windows(13).any(|part| part == b"\"specversion\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_the_same_after_its_way_through_a_message() {
        let event = Event::new("7", "/shop", "order.paid")
            .and_then(|event| event.with_subject("grüße"))
            .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
            .unwrap();
        let expected = event.clone().with_extension("sasposition", "orders/new").unwrap();
        for structured in [false, true] {
            let message = Message::of(&event, "orders/new", structured);
            assert_eq!(message.event("x".to_owned()).unwrap(), expected);
        }
        let old = Message { content_type: None, ..Message::of(&event, "orders/new", true) };
        assert_eq!(old.event("x".to_owned()).unwrap(), expected, "3.1.1 has no media types");
    }

    #[test]
    fn others_are_wrapped_and_what_only_says_that_it_is_an_event_is_malformed() {
        let message = |payload: &'static str, properties: &[(&str, &str)]| Message {
            topic: "t".to_owned(),
            payload: payload.into(),
            content_type: None,
            properties: properties
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        let plain = message("21.5", &[]).event("1".to_owned()).unwrap();
        assert_eq!((plain.id(), plain.kind(), plain.subject()), ("1", "dev.sas.mqtt.message", Some("t")));
        for bad in [message("x", &[("specversion", "1.0")]), message("{\"specversion\": 3}", &[])] {
            assert_eq!(bad.event("1".to_owned()).unwrap().kind(), "dev.sas.mqtt.malformed");
        }
    }
}
