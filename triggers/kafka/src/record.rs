//! CloudEvents' Kafka binding: what a record is as an event, and an event as a record.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use sas_cloudevents::{DecodeError, Mode};
use sas_core::{AttributeValue, Error, ErrorKind, Event, EventError, Result, Timestamp};

/// The header that holds the data's media type, and says whether a record is structured.
pub(crate) const CONTENT_TYPE: &str = "content-type";
/// What the headers of attributes begin with in binary mode.
const PREFIX: &str = "ce_";
/// The longest header of a plain record that becomes an attribute.
const LONGEST_HEADER: usize = 4096;

/// A record as it was read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    /// Milliseconds since 1970; negative: the broker has none.
    pub(crate) timestamp: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    pub(crate) headers: Vec<(String, Option<Bytes>)>,
}

impl Record {
    /// Where it stands: `topic/partition@offset`.
    pub(crate) fn position(&self) -> String {
        format!("{}/{}@{}", self.topic, self.partition, self.offset)
    }

    /// What it takes of memory, about.
    pub(crate) fn bytes(&self) -> usize {
        let part = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        let headers: usize = self.headers.iter().map(|(name, value)| name.len() + part(value)).sum();
        64 + part(&self.key) + part(&self.value) + headers
    }

    fn header(&self, name: &str) -> Option<&[u8]> {
        let same = |(known, _): &&(String, Option<Bytes>)| known.eq_ignore_ascii_case(name);
        self.headers.iter().find(same).and_then(|(_, value)| value.as_deref())
    }

    /// The event. A record in binary or structured mode of the binding is that one; a record that only says so is one of
    /// the type `dev.sas.kafka.malformed`, so that it can be seen and kept; any other is a `dev.sas.kafka.record`.
    pub(crate) fn event(&self) -> Result<Event> {
        let event = match self.decoded() {
            Some(Ok(event)) => Ok(event),
            Some(Err(problem)) => {
                tracing::warn!(record = self.position(), %problem, "a record says that it is an event, and is none");
                self.plain("dev.sas.kafka.malformed")
            }
            None => self.plain("dev.sas.kafka.record"),
        };
        event
            .and_then(|event| self.with_key(event))
            .and_then(|event| event.with_extension("sasposition", self.position()))
            .map_err(|error| {
                Error::new(ErrorKind::Unexpected, "kafka", format!("{}: {error}", self.position()))
            })
    }

    /// The event that the record says it holds; `None`: it does not say so.
    fn decoded(&self) -> Option<std::result::Result<Event, DecodeError>> {
        let kind = self.header(CONTENT_TYPE).map(String::from_utf8_lossy);
        match sas_cloudevents::mode_of(kind.as_deref()) {
            Err(problem) => Some(Err(problem)),
            Ok(Mode::Structured) => {
                Some(sas_cloudevents::from_json(self.value.as_deref().unwrap_or_default()))
            }
            Ok(Mode::Batched) => {
                Some(Err(DecodeError::new(CONTENT_TYPE, kind.unwrap_or_default(), "one event a record")))
            }
            Ok(_) => {
                self.header("ce_specversion")?;
                Some(self.binary(kind.as_deref()))
            }
        }
    }

    fn binary(&self, kind: Option<&str>) -> std::result::Result<Event, DecodeError> {
        let mut named = Vec::with_capacity(self.headers.len());
        for (name, value) in &self.headers {
            // A header without a value is an attribute that is not there.
            let (Some(name), Some(value)) = (name.strip_prefix(PREFIX), value) else { continue };
            let text = std::str::from_utf8(value)
                .map_err(|_| DecodeError::new(name, String::from_utf8_lossy(value), "UTF-8"))?;
            named.push((name, AttributeValue::from(text)));
        }
        sas_cloudevents::from_attributes(named, kind, self.value.clone().unwrap_or_default())
    }

    fn plain(&self, kind: &str) -> std::result::Result<Event, EventError> {
        let id = format!("{}@{}", self.partition, self.offset);
        let mut event = Event::new(id, format!("/kafka/{}", self.topic), kind)?;
        let data = self.value.clone().unwrap_or_default();
        let media = self.header(CONTENT_TYPE).and_then(|kind| std::str::from_utf8(kind).ok());
        // A media type that no attribute can hold is as none.
        let typed = media.and_then(|media| event.clone().with_data(media, data.clone()).ok());
        event = typed.unwrap_or_else(|| event.with_untyped_data(data));
        if self.timestamp >= 0 {
            event = event.with_time(Timestamp::from_millis(self.timestamp));
        }
        for (name, value) in &self.headers {
            let Some(text) = value.as_deref().and_then(|value| std::str::from_utf8(value).ok()) else {
                continue;
            };
            let letters: String = name
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .map(|letter| letter.to_ascii_lowercase())
                .collect();
            let name = match letters.as_str() {
                "contenttype" | "" => continue,
                "traceparent" | "tracestate" => letters,
                _ => format!("kafkaheader{letters}"),
            };
            if text.len() > LONGEST_HEADER {
                continue;
            }
            // What is no text of CloudEvents stays behind: the header of a plain record is no part of its data.
            event = match event.clone().with_extension(name, text) {
                Ok(with) => with,
                Err(_) => event,
            };
        }
        Ok(event)
    }

    /// With the record's key as the attribute `partitionkey`, unless the event brings its own: as text, or in base 64 where
    /// it is none.
    fn with_key(&self, event: Event) -> std::result::Result<Event, EventError> {
        let Some(key) = self.key.as_deref().filter(|key| !key.is_empty()) else { return Ok(event) };
        if event.extensions().contains_key("partitionkey") {
            return Ok(event);
        }
        if let Ok(text) = std::str::from_utf8(key)
            && let Ok(with) = event.clone().with_extension("partitionkey", text)
        {
            return Ok(with);
        }
        event.with_extension("partitionkey", STANDARD.encode(key))
    }
}

/// What an event is as a record.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Bytes,
    pub(crate) headers: Vec<(String, Bytes)>,
}

/// The event as a record: its attributes in headers, or structured. Its `partitionkey` is the key.
pub(crate) fn encoded(event: &Event, structured: bool) -> Encoded {
    let key = event.extensions().get("partitionkey").map(|key| Bytes::from(key.to_text().into_owned()));
    let traces = ["traceparent", "tracestate"].into_iter().filter_map(|name| {
        let value = event.extensions().get(name)?.to_text().into_owned();
        Some((name.to_owned(), Bytes::from(value)))
    });
    let mut headers: Vec<(String, Bytes)> = traces.collect();
    if structured {
        let kind = Bytes::from_static(b"application/cloudevents+json; charset=utf-8");
        headers.push((CONTENT_TYPE.to_owned(), kind));
        return Encoded { key, value: sas_cloudevents::to_json(event).into(), headers };
    }
    headers.extend(
        sas_cloudevents::attributes(event)
            .into_iter()
            .map(|(name, value)| (format!("{PREFIX}{name}"), Bytes::from(value))),
    );
    headers.extend(
        event.data_content_type().map(|kind| (CONTENT_TYPE.to_owned(), Bytes::from(kind.to_owned()))),
    );
    Encoded { key, value: event.data().clone(), headers }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(headers: &[(&str, &str)], value: &str) -> Record {
        Record {
            topic: "orders".to_owned(),
            partition: 3,
            offset: 41,
            timestamp: 1_000,
            key: Some("anna".into()),
            value: Some(Bytes::from(value.to_owned())),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), Some(Bytes::from((*value).to_owned()))))
                .collect(),
        }
    }

    const BINARY: [(&str, &str); 5] = [
        ("ce_specversion", "1.0"),
        ("ce_id", "7"),
        ("ce_source", "/shop"),
        ("ce_type", "order.paid"),
        ("content-type", "application/json"),
    ];

    #[test]
    fn an_event_is_the_same_after_its_way_through_a_record() {
        let event = Event::new("7", "/shop", "order.paid")
            .and_then(|event| event.with_subject("grüße"))
            .and_then(|event| event.with_extension("partitionkey", "anna"))
            .and_then(|event| event.with_data("application/json", "{\"a\":1}"))
            .unwrap();
        for structured in [false, true] {
            let encoded = encoded(&event, structured);
            assert_eq!(encoded.key.as_deref(), Some(b"anna".as_slice()));
            let record = Record {
                key: encoded.key,
                value: Some(encoded.value),
                headers: encoded.headers.into_iter().map(|(name, value)| (name, Some(value))).collect(),
                ..record(&[], "")
            };
            let expected = event.clone().with_extension("sasposition", "orders/3@41").unwrap();
            assert_eq!(record.event().unwrap(), expected);
        }
    }

    #[test]
    fn plain_records_are_wrapped_with_their_coordinates() {
        let event =
            record(&[("Trace-Id", "t"), ("traceparent", "00-1"), ("content-type", "text/csv")], "a;b")
                .event()
                .unwrap();
        assert_eq!(
            (event.id(), event.source(), event.kind()),
            ("3@41", "/kafka/orders", "dev.sas.kafka.record")
        );
        assert_eq!((event.data_content_type(), &event.data()[..]), (Some("text/csv"), b"a;b".as_slice()));
        assert_eq!(event.time(), Some(Timestamp::from_millis(1_000)));
        let extension = |name: &str| event.extensions()[name].to_text().into_owned();
        assert_eq!(extension("partitionkey"), "anna");
        assert_eq!(extension("sasposition"), "orders/3@41");
        assert_eq!(extension("kafkaheadertraceid"), "t");
        assert_eq!(extension("traceparent"), "00-1");
        let binary_key = Record { key: Some(Bytes::from_static(&[0xff, 0])), ..record(&[], "x") };
        assert_eq!(binary_key.event().unwrap().extensions()["partitionkey"], "/wA=");
        let deleted = Record { value: None, ..record(&[], "") };
        assert_eq!(deleted.event().unwrap().data().len(), 0);
    }

    #[test]
    fn what_says_that_it_is_an_event_and_is_none_is_seen_as_malformed() {
        let without_id: Vec<_> = BINARY.iter().filter(|(name, _)| *name != "ce_id").copied().collect();
        for (headers, value) in [
            (&without_id[..], "{}"),
            (&[("content-type", "application/cloudevents+json")][..], "{\"specversion\":\"1.0\"}"),
            (&[("content-type", "application/cloudevents+avro")][..], "x"),
            (&[("content-type", "application/cloudevents-batch+json")][..], "[]"),
        ] {
            let event = record(headers, value).event().unwrap();
            assert_eq!(event.kind(), "dev.sas.kafka.malformed", "{headers:?}");
            assert_eq!(&event.data()[..], value.as_bytes());
        }
        assert_eq!(record(&BINARY, "{}").event().unwrap().kind(), "order.paid");
    }
}
