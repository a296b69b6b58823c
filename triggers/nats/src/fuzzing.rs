//! A law of what comes from outside, as a plain function that panics when it is broken, so that fuzzers can call it. The test here
//! runs it on 5,000 inputs.

use std::str::FromStr as _;

use async_nats::{HeaderMap, HeaderName, HeaderValue};
use sas_cloudevents::{Mode, attributes, from_json, mode_of, to_json};
use sas_core::Timestamp;

use crate::message::{Received, message as sent};

/// Whatever a message holds, it is an event, and one that can be sent is the same after its way through a message.
///
/// # Panics
/// When it is not.
pub fn message(subject: &str, payload: Vec<u8>, named: &[(String, String)]) {
    let mut headers = HeaderMap::new();
    for (name, value) in named {
        // The client takes no others from the server.
        if let (Ok(name), Ok(value)) = (HeaderName::from_str(name), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    let subject = if subject.is_empty() { "s" } else { subject };
    let read = |headers: &HeaderMap, payload| {
        let (stream, sequence, deliveries, headers) = ("orders", 7, 1, Some(headers));
        Received { stream, sequence, deliveries, published: Timestamp(3), subject, headers, payload }.event()
    };
    let event = read(&headers, payload.into()).expect("whatever it holds");
    // What is wrapped keeps the media type that it came with, also one that no event can be sent with.
    if from_json(to_json(&event).as_bytes()).is_err()
        || !matches!(mode_of(event.data_content_type()), Ok(Mode::Binary))
    {
        return;
    }
    for structured in [false, true] {
        // Not all that an event holds can stand in a header: who sends is told so.
        let Ok((headers, payload)) = sent(&event, structured) else { continue };
        let again = read(&headers, payload).expect("it was sent by us");
        assert_eq!(attributes(&again), attributes(&event), "{structured}");
        match structured {
            true => assert_eq!(to_json(&again), to_json(&event)),
            false => assert_eq!(
                (again.data_content_type(), again.data()),
                (event.data_content_type(), event.data())
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
        let mut soup = Soup::of_events(0x5eed, &["Content-Type", "ce-datacontenttype", "orders.new"]);
        for _ in 0..5_000 {
            let mut headers = soup.headers("ce-", |text| String::from_utf8_lossy(&text).into_owned());
            headers.extend(soup.maybe(|soup| ("Content-Type".to_owned(), soup.text())));
            headers.extend(soup.maybe(|soup| ("ce-datacontenttype".to_owned(), soup.text())));
            message(&soup.text(), soup.bytes(), &headers);
        }
    }
}
