//! What a message of a queue is as an event.

use bytes::Bytes;
use lapin::{
    BasicProperties,
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use sas_cloudevents::{DecodeError, Mode, from_attributes, from_json, mode_of, readable, rfc3339};
use sas_core::{AttributeValue, Error, ErrorKind, Event, EventError, Result, Timestamp};

/// What stands before the names of attributes in headers: the two of CloudEvents' AMQP binding, which is for AMQP 1.0 and
/// taken over to 0.9.1, and that of its HTTP binding, which many who bridge from HTTP leave as it is.
const PREFIXES: [&str; 3] = ["cloudEvents_", "cloudEvents:", "ce-"];

/// The event of a message. One that says to be a CloudEvent is that one; one that says so and is none is an event of the
/// type `dev.sas.rabbitmq.malformed`, so that it can be seen and kept; any other is `dev.sas.rabbitmq.message`. `unnamed`
/// is the id of a message that has none.
pub(crate) fn event(delivery: &Delivery, queue: &str, unnamed: &str) -> Result<Event> {
    let event = match decoded(delivery) {
        Ok(Some(event)) => Ok(event),
        Ok(None) => plain(delivery, queue, unnamed, "dev.sas.rabbitmq.message"),
        Err(problem) => {
            tracing::warn!(queue, %problem, "a message is no event");
            plain(delivery, queue, unnamed, "dev.sas.rabbitmq.malformed")
        }
    };
    event
        .and_then(|event| {
            let exchange = readable(delivery.exchange.as_str());
            let key = readable(delivery.routing_key.as_str());
            event.with_extension("sasposition", format!("{}@{exchange}/{key}", readable(queue)))
        })
        .and_then(|event| match deliveries(delivery) {
            ..=1 => Ok(event),
            many => event.with_extension("sasdeliveries", many),
        })
        .and_then(|event| with_death(event, delivery))
        .map_err(|error| Error::new(ErrorKind::Unexpected, "rabbitmq", format!("queue {queue}: {error}")))
}

fn headers(delivery: &Delivery) -> Option<&FieldTable> {
    delivery.properties.headers().as_ref()
}

fn header<'a>(delivery: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    headers(delivery)?.inner().get(name)
}

/// How often the message was given out, this time included: as a quorum queue counts it; a classic queue knows only that it
/// was given out before.
fn deliveries(delivery: &Delivery) -> i32 {
    let before =
        header(delivery, "x-delivery-count").and_then(integer).unwrap_or(i64::from(delivery.redelivered));
    i32::try_from(before.saturating_add(1)).unwrap_or(i32::MAX)
}

/// Where a message was first dead-lettered from, and why, as RabbitMQ says it of messages of a dead-letter queue.
fn with_death(event: Event, delivery: &Delivery) -> std::result::Result<Event, EventError> {
    let text = |name: &str| header(delivery, name).and_then(text);
    let (Some(queue), Some(reason)) = (text("x-first-death-queue"), text("x-first-death-reason")) else {
        return Ok(event);
    };
    event
        .with_extension("sasdeathqueue", readable(&queue))?
        .with_extension("sasdeathreason", readable(&reason))
}

fn text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => String::from_utf8(text.as_bytes().to_vec()).ok(),
        AMQPValue::ShortString(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn integer(value: &AMQPValue) -> Option<i64> {
    Some(match value {
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => *number,
        _ => return None,
    })
}

/// A value of a header as that of an attribute, which keeps its type where CloudEvents have it.
fn attribute(name: &str, value: &AMQPValue) -> std::result::Result<AttributeValue, DecodeError> {
    if let Some(text) = text(value) {
        return Ok(text.into());
    }
    if let Some(number) = integer(value) {
        let fail = |_| DecodeError::new(name, number.to_string(), "a whole number of 32 bits");
        return Ok(i32::try_from(number).map_err(fail)?.into());
    }
    match value {
        AMQPValue::Boolean(value) => Ok((*value).into()),
        AMQPValue::Timestamp(at) => {
            let time = at_second(*at).and_then(rfc3339);
            time.map(Into::into)
                .ok_or_else(|| DecodeError::new(name, at.to_string(), "a time of the calendar"))
        }
        other => Err(DecodeError::new(
            name,
            format!("{other:?}"),
            "text in UTF-8, a whole number, a truth value or a time",
        )),
    }
}

/// `None`: out of the range of 64 bits of nanoseconds.
fn at_second(seconds: u64) -> Option<Timestamp> {
    i64::try_from(seconds).ok()?.checked_mul(1_000_000_000).map(Timestamp)
}

fn decoded(delivery: &Delivery) -> std::result::Result<Option<Event>, DecodeError> {
    let content_type = delivery.properties.content_type().as_ref().map(|kind| kind.as_str());
    match mode_of(content_type)? {
        Mode::Structured => return from_json(&delivery.data).map(Some),
        Mode::Batched => {
            let problem = "application/cloudevents+json: this binding has no batches";
            return Err(DecodeError::new("content-type", content_type.unwrap_or_default(), problem));
        }
        _ => {}
    }
    let mut named = Vec::new();
    for (name, value) in headers(delivery).into_iter().flat_map(|headers| headers.inner()) {
        let name = name.as_str();
        if let Some(plain) = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)) {
            named.push((plain, attribute(name, value)?));
        }
    }
    if named.is_empty() {
        return Ok(None);
    }
    from_attributes(named, content_type, delivery.data.clone().into()).map(Some)
}

fn plain(
    delivery: &Delivery,
    queue: &str,
    unnamed: &str,
    kind: &str,
) -> std::result::Result<Event, EventError> {
    let properties = &delivery.properties;
    let id = properties.message_id().as_ref().map(|id| readable(id.as_str())).filter(|id| !id.is_empty());
    let mut event = Event::new(
        id.unwrap_or_else(|| unnamed.to_owned()),
        format!("/rabbitmq/{}", sas_cloudevents::uri_path(queue)),
        kind,
    )?;
    let key = readable(delivery.routing_key.as_str());
    if !key.is_empty() {
        event = event.with_subject(key)?;
    }
    if let Some(at) = properties.timestamp().and_then(at_second) {
        event = event.with_time(at);
    }
    let stated = properties.content_type().as_ref().map(|kind| kind.as_str());
    let typed = stated.and_then(|kind| event.clone().with_data(kind, delivery.data.clone()).ok());
    Ok(typed.unwrap_or_else(|| event.with_untyped_data(delivery.data.clone())))
}

/// The properties of an event as a message: its attributes in headers, or the media type that says that it is structured.
pub(crate) fn properties(event: &Event, structured: bool) -> BasicProperties {
    let kind = match structured {
        true => Some("application/cloudevents+json; charset=utf-8"),
        false => event.data_content_type(),
    };
    let mut properties = BasicProperties::default();
    if let Some(kind) = kind.and_then(|kind| ShortString::try_new(kind).ok()) {
        properties = properties.with_content_type(kind);
    }
    if let Ok(id) = ShortString::try_new(event.id()) {
        properties = properties.with_message_id(id);
    }
    if structured {
        return properties;
    }
    let mut headers = FieldTable::default();
    for (name, value) in sas_cloudevents::attributes(event) {
        // The specification bounds names far below what does not fit.
        if let Ok(name) = ShortString::try_new(format!("{}{name}", PREFIXES[0])) {
            headers.insert(name, AMQPValue::LongString(value.into()));
        }
    }
    properties.with_headers(headers)
}

/// What of an event stands in the body of its message.
pub(crate) fn body(event: &Event, structured: bool) -> Bytes {
    if structured { sas_cloudevents::to_json(event).into() } else { event.data().clone() }
}
