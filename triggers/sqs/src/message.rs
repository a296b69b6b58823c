//! What a message of a queue is as an event.

use bytes::Bytes;
use sas_cloudevents::{DecodeError, Mode, from_attributes, from_json, mode_of, uri_path};
use sas_core::{Error, ErrorKind, Event, EventError, Result, Timestamp};
use serde_json::{Value, json};

use crate::queue::Message;

/// What a message says it is.
enum Said {
    Event(Box<Event>),
    /// Notifications of S3, one for each object.
    Objects(Vec<Value>),
    /// Nothing that is known here.
    Nothing,
}

impl Message {
    /// The events of a message of the queue `path` (`account/name`): as many as it has notifications of S3, else one. A message
    /// that says to be a CloudEvent is that one; one that says so and is none is an event of the type `dev.sas.sqs.malformed`,
    /// so that it can be seen and kept; any other is `dev.sas.sqs.message`.
    pub(crate) fn events(&self, path: &str) -> Result<Vec<Event>> {
        let said = self.said().and_then(|said| match said {
            Said::Event(event) => Ok(vec![*event]),
            Said::Objects(records) => {
                let objects = records.iter().enumerate();
                let objects =
                    objects.map(|(at, record)| object(record, &format!("{}.{at}", self.message_id)));
                Ok(objects.collect::<std::result::Result<_, _>>()?)
            }
            Said::Nothing => Ok(Vec::new()),
        });
        let made = match said {
            Ok(events) if events.is_empty() => {
                self.plain(path, "dev.sas.sqs.message").map(|event| vec![event])
            }
            Ok(events) => Ok(events),
            Err(problem) => {
                tracing::warn!(queue = path, message = self.message_id, %problem, "a message is no event");
                self.plain(path, "dev.sas.sqs.malformed").map(|event| vec![event])
            }
        };
        let position = format!("{}@{}", path.rsplit('/').next().unwrap_or_default(), self.message_id);
        let placed = |event: Event| -> std::result::Result<Event, EventError> {
            let mut event = event.with_extension("sasposition", position.as_str())?;
            let deliveries = self.attribute("ApproximateReceiveCount").and_then(|text| text.parse().ok());
            if let Some(deliveries @ 2_i32..) = deliveries {
                event = event.with_extension("sasdeliveries", deliveries)?;
            }
            Ok(match self.group() {
                Some(group) if !event.extensions().contains_key("partitionkey") => {
                    // One that no attribute can hold is told by nothing but the order.
                    event.clone().with_extension("partitionkey", group).unwrap_or(event)
                }
                _ => event,
            })
        };
        let placed = made.and_then(|events| events.into_iter().map(placed).collect());
        placed.map_err(|error: EventError| {
            Error::new(ErrorKind::Unexpected, "sqs", format!("{position}: {error}"))
        })
    }

    fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.get(name).map(String::as_str)
    }

    /// The group whose messages a FIFO queue keeps in order.
    pub(crate) fn group(&self) -> Option<&str> {
        self.attribute("MessageGroupId")
    }

    /// An attribute of its sender, by its name in small letters.
    fn stated(&self, name: &str) -> Option<&str> {
        let found = self.message_attributes.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        found.and_then(|(_, attribute)| attribute.string_value.as_deref())
    }

    fn said(&self) -> std::result::Result<Said, DecodeError> {
        let content_type = self.stated("content-type");
        match mode_of(content_type)? {
            Mode::Structured => {
                return from_json(self.body.as_bytes()).map(|event| Said::Event(Box::new(event)));
            }
            Mode::Batched => {
                let problem = "application/cloudevents+json: a message is one event";
                return Err(DecodeError::new("content-type", content_type.unwrap_or_default(), problem));
            }
            _ => {}
        }
        let mut named = Vec::new();
        for (name, attribute) in &self.message_attributes {
            let lower = name.to_ascii_lowercase();
            let Some(plain) = lower.strip_prefix("ce-") else { continue };
            let value = attribute.string_value.as_deref();
            let value = value.ok_or_else(|| DecodeError::new(name, "", "an attribute of the type String"))?;
            named.push((plain.to_owned(), value));
        }
        if !named.is_empty() {
            let named = named.iter().map(|(name, value)| (name.as_str(), (*value).into()));
            let event = from_attributes(named, content_type, Bytes::from(self.body.clone()))?;
            return Ok(Said::Event(Box::new(event)));
        }
        Ok(match records(&self.body) {
            Some(records) => Said::Objects(records),
            None => Said::Nothing,
        })
    }

    fn plain(&self, path: &str, kind: &str) -> std::result::Result<Event, EventError> {
        let event = Event::new(self.message_id.as_str(), format!("/sqs/{}", uri_path(path)), kind)?;
        let sent = self.attribute("SentTimestamp").and_then(|millis| millis.parse().ok());
        let event = match sent {
            Some(millis) => event.with_time(Timestamp::from_millis(millis)),
            None => event,
        };
        let data = Bytes::from(self.body.clone());
        match self.stated("content-type") {
            Some(kind) => match event.clone().with_data(kind, data.clone()) {
                Ok(event) => Ok(event),
                Err(_) => Ok(event.with_untyped_data(data)),
            },
            None => Ok(event.with_untyped_data(data)),
        }
    }
}

/// The records of a notification of S3; `None`: it is none, also where any of them lacks what makes an event.
fn records(body: &str) -> Option<Vec<Value>> {
    if !body.starts_with('{') || !body.contains("\"aws:s3\"") {
        return None;
    }
    let mut body: Value = serde_json::from_str(body).ok()?;
    let Value::Array(records) = body.get_mut("Records")?.take() else { return None };
    let is_of_object = |record: &Value| {
        record["eventSource"] == "aws:s3"
            && record["eventName"].is_string()
            && record["awsRegion"].is_string()
            && record["s3"]["bucket"]["name"].is_string()
            && record["s3"]["object"]["key"].as_str().is_some_and(|key| !key.is_empty())
    };
    (!records.is_empty() && records.iter().all(is_of_object)).then_some(records)
}

/// What S3 tells of one object, as CloudEvents' adapter for S3 has it, but for the id: the adapter's is the request's, which
/// several objects may share, and events of one id would be taken for one.
fn object(record: &Value, id: &str) -> std::result::Result<Event, EventError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let source =
        format!("aws:s3.{}.{}", text(&record["awsRegion"]), uri_path(&text(&record["s3"]["bucket"]["name"])));
    // Older notifications have the prefix in the name itself.
    let name = text(&record["eventName"]);
    let kind = format!("com.amazonaws.s3.{}", name.strip_prefix("s3:").unwrap_or(&name));
    let event = Event::new(id, source, kind)?
        .with_subject(text(&record["s3"]["object"]["key"]))?
        .with_data("application/json", record.to_string())?;
    let at = text(&record["eventTime"]).parse::<jiff::Timestamp>().ok();
    let nanos = at.and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    Ok(match nanos {
        Some(nanos) => event.with_time(Timestamp(nanos)),
        None => event,
    })
}

/// An event as what is sent to a queue; of a FIFO queue, with its group and what the queue knows a repetition by.
pub(crate) fn sent(event: &Event, fifo: bool) -> Value {
    let mut message = json!({
        "MessageBody": sas_cloudevents::to_json(event),
        "MessageAttributes": {
            "content-type": {"DataType": "String", "StringValue": "application/cloudevents+json"},
        },
    });
    if fifo {
        let key = event.extensions().get("partitionkey").map(|key| key.to_text().into_owned());
        message["MessageGroupId"] = short(key.as_deref().unwrap_or(event.source())).into();
        message["MessageDeduplicationId"] = digest(&format!("{}\n{}", event.source(), event.id())).into();
    }
    message
}

fn digest(text: &str) -> String {
    use sha2::Digest as _;
    data_encoding::HEXLOWER.encode(&sha2::Sha256::digest(text))
}

/// The text where a queue takes it for a group, else its digest.
fn short(text: &str) -> String {
    let fits = (1..=128).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { text.to_owned() } else { digest(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(body: &str, stated: &[(&str, &str)]) -> Message {
        let stated: serde_json::Map<String, Value> = stated
            .iter()
            .map(|(name, value)| ((*name).to_owned(), json!({"DataType": "String", "StringValue": value})))
            .collect();
        serde_json::from_value(json!({
            "MessageId": "m-1",
            "ReceiptHandle": "r",
            "Body": body,
            "Attributes": {"SentTimestamp": "1700000000123", "ApproximateReceiveCount": "3", "MessageGroupId": "g"},
            "MessageAttributes": stated,
        }))
        .unwrap()
    }

    fn kinds(message: &Message) -> Vec<String> {
        let events = message.events("1/orders").unwrap();
        events.iter().map(|event| event.kind().to_owned()).collect()
    }

    #[test]
    fn events_plain_messages_and_malformed_ones() {
        let plain = message("hello", &[("Content-Type", "text/plain")]).events("1/orders").unwrap().remove(0);
        assert_eq!(
            (plain.id(), plain.source(), plain.kind()),
            ("m-1", "/sqs/1/orders", "dev.sas.sqs.message")
        );
        assert_eq!((plain.data_content_type(), &plain.data()[..]), (Some("text/plain"), &b"hello"[..]));
        assert_eq!(plain.time(), Some(Timestamp::from_millis(1_700_000_000_123)));
        assert_eq!(plain.extensions()["sasposition"], "orders@m-1");
        assert_eq!(plain.extensions()["sasdeliveries"].to_text(), "3");
        assert_eq!(plain.extensions()["partitionkey"], "g");

        let whole =
            r#"{"specversion":"1.0","id":"7","source":"/shop","type":"order.paid","partitionkey":"k"}"#;
        let structured = [("content-type", "application/cloudevents+json; charset=utf-8")];
        let event = message(whole, &structured).events("1/orders").unwrap().remove(0);
        assert_eq!(
            (event.kind(), event.extensions()["partitionkey"].to_text().as_ref()),
            ("order.paid", "k")
        );
        let binary = [("ce-specversion", "1.0"), ("CE-Id", "8"), ("ce-source", "/shop"), ("ce-type", "paid")];
        assert_eq!(kinds(&message("x", &binary)), ["paid"]);
        for malformed in [
            message("{", &structured),
            message("x", &binary[..2]),
            message("[]", &[("content-type", "application/cloudevents-batch+json")]),
        ] {
            assert_eq!(kinds(&malformed), ["dev.sas.sqs.malformed"], "{malformed:?}");
        }
    }

    #[test]
    fn each_object_that_s3_tells_of_is_an_event() {
        let record = |key: &str| {
            json!({
                "eventSource": "aws:s3", "awsRegion": "eu-central-1", "eventTime": "2026-01-05T00:00:01.500Z",
                "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "in"}, "object": {"key": key, "size": 3}},
            })
        };
        let body = json!({"Records": [record("a+b.csv"), record("c")]}).to_string();
        let events = message(&body, &[]).events("1/orders").unwrap();
        assert_eq!(events.len(), 2);
        assert_eq!((events[0].id(), events[1].id()), ("m-1.0", "m-1.1"));
        assert_eq!(events[0].source(), "aws:s3.eu-central-1.in");
        assert_eq!(events[0].kind(), "com.amazonaws.s3.ObjectCreated:Put");
        assert_eq!(events[0].subject(), Some("a+b.csv"));
        assert_eq!(events[0].time(), Some(Timestamp::from_millis(1_767_571_201_500)));
        let data: Value = serde_json::from_slice(events[1].data()).unwrap();
        assert_eq!(data, record("c"));
        let strange = json!({"Records": [record("a\u{1}b")]}).to_string();
        assert_eq!(kinds(&message(&strange, &[])), ["dev.sas.sqs.malformed"]);
        // Others of its form are as they are.
        let mut other = record("c");
        other["eventSource"] = "aws:other".into();
        for body in [
            json!({"Records": []}).to_string(),
            json!({"Records": [record("c"), other]}).to_string(),
            json!({"Records": [record("")]}).to_string(),
            json!({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": "in"}).to_string(),
            "{\"aws:s3\"".to_owned(),
        ] {
            assert_eq!(kinds(&message(&body, &[])), ["dev.sas.sqs.message"], "{body}");
        }
    }

    #[test]
    fn an_event_of_a_fifo_queue_has_its_group_and_what_a_repetition_is_known_by() {
        let event = Event::new("7", "/shop", "paid").unwrap();
        assert_eq!(sent(&event, false).get("MessageGroupId"), None);
        let message = sent(&event, true);
        assert_eq!(message["MessageGroupId"], "/shop");
        assert_eq!(message["MessageDeduplicationId"].as_str().unwrap().len(), 64);
        let keyed = event.with_extension("partitionkey", "ä ".repeat(90)).unwrap();
        assert_eq!(sent(&keyed, true)["MessageGroupId"].as_str().unwrap().len(), 64);
        assert_eq!(
            sent(&keyed, true)["MessageDeduplicationId"],
            message["MessageDeduplicationId"],
            "source and id alone tell"
        );
    }
}
