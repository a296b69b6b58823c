//! A law of what comes from outside, as a plain function that panics when it is broken, so that fuzzers can call it. The test here
//! runs it on 5,000 inputs.

use lapin::{
    message::Delivery,
    types::{AMQPValue, FieldTable, ShortString},
};
use sas_cloudevents::{Mode, attributes, from_json, mode_of, to_json};

use crate::message::{body, event, properties};

/// A value of a header, of the types that have a place in an event and of some that have none.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Value {
    /// A long string, which need not be UTF-8.
    Text(Vec<u8>),
    /// A whole number of 64 bits.
    Number(i64),
    /// A truth value.
    Truth(bool),
    /// Seconds of the epoch.
    Time(u64),
    /// A value of a type that no attribute has.
    Nothing,
}

/// Whatever a message holds, it is an event, and one that can be sent is the same after its way through a message.
///
/// # Panics
/// When it is not.
pub fn message(
    routing_key: &str,
    data: Vec<u8>,
    content_type: Option<&str>,
    id: Option<&str>,
    headers: Vec<(String, Value)>,
) {
    let short = |text: &str| ShortString::try_new(text).ok();
    let mut table = FieldTable::default();
    for (name, value) in headers {
        let value = match value {
            Value::Text(text) => AMQPValue::LongString(text.into()),
            Value::Number(number) => AMQPValue::LongLongInt(number),
            Value::Truth(truth) => AMQPValue::Boolean(truth),
            Value::Time(at) => AMQPValue::Timestamp(at),
            Value::Nothing => AMQPValue::Void,
        };
        if let Some(name) = short(&name) {
            table.insert(name, value);
        }
    }
    let of = |data: Vec<u8>| {
        Delivery::mock(1, ShortString::default(), short(routing_key).unwrap_or_default(), false, data)
    };
    let mut read = of(data);
    read.properties = read.properties.with_headers(table);
    if let Some(kind) = content_type.and_then(short) {
        read.properties = read.properties.with_content_type(kind);
    }
    if let Some(id) = id.and_then(short) {
        read.properties = read.properties.with_message_id(id);
    }
    let first = event(&read, "orders", "unnamed").expect("whatever it holds");
    // What is wrapped keeps the media type that it came with, also one that no event can be sent with.
    if from_json(to_json(&first).as_bytes()).is_err()
        || !matches!(mode_of(first.data_content_type()), Ok(Mode::Binary))
    {
        return;
    }
    for structured in [false, true] {
        let mut sent = of(body(&first, structured).to_vec());
        sent.properties = properties(&first, structured);
        let again = event(&sent, "orders", "another").expect("it was sent by us");
        assert_eq!(attributes(&again), attributes(&first), "{structured}");
        match structured {
            true => assert_eq!(to_json(&again), to_json(&first)),
            false => assert_eq!(
                (again.data_content_type(), again.data()),
                (first.data_content_type(), first.data())
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use sas_testkit::soup::Soup;

    use super::*;

    #[test]
    fn whatever_a_message_holds_is_an_event() {
        let mut soup = Soup::of_events(0x5eed, &["x-delivery-count", "x-first-death-queue"]);
        for _ in 0..5_000 {
            let mut headers = soup.headers("cloudEvents_", Value::Text);
            for value in [
                Value::Number(5),
                Value::Number(i64::MAX),
                Value::Truth(true),
                Value::Time(u64::MAX),
                Value::Nothing,
            ] {
                headers.extend(soup.maybe(|soup| (format!("cloudEvents:{}", soup.text()), value)));
            }
            for name in ["x-first-death-queue", "x-first-death-reason", "x-delivery-count"] {
                headers.extend(soup.maybe(|soup| (name.to_owned(), Value::Text(soup.bytes()))));
            }
            let (kind, id) = (soup.maybe(Soup::text), soup.maybe(Soup::text));
            message(&soup.text(), soup.bytes(), kind.as_deref(), id.as_deref(), headers);
        }
    }
}
