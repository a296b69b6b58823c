//! A law of what comes from outside, as a plain function that panics when it is broken, so that fuzzers can call it. The test here
//! runs it on 5,000 inputs.

use sas_cloudevents::{Mode, attributes, from_json, mode_of, to_json};

use crate::message::Message;

/// Whatever a message holds, it is an event, and one that can be sent is the same after its way through a message.
///
/// # Panics
/// When it is not.
pub fn message(
    topic: String,
    payload: Vec<u8>,
    content_type: Option<String>,
    properties: Vec<(String, String)>,
) {
    // The protocol has none without a topic.
    let topic = if topic.is_empty() { "t".to_owned() } else { topic };
    let read = Message { topic: topic.clone(), payload: payload.into(), content_type, properties };
    let event = read.event("7".to_owned()).expect("whatever it holds");
    // What is wrapped keeps the media type that it came with, also one that no event can be sent with.
    if from_json(to_json(&event).as_bytes()).is_err()
        || !matches!(mode_of(event.data_content_type()), Ok(Mode::Binary))
    {
        return;
    }
    for structured in [false, true] {
        let again = Message::of(&event, &topic, structured).event("8".to_owned()).expect("it was sent by us");
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
        let mut soup = Soup::of_events(0x5eed, &["orders/new"]);
        for _ in 0..5_000 {
            let properties = soup.headers("", |text| String::from_utf8_lossy(&text).into_owned());
            message(soup.text(), soup.bytes(), soup.maybe(Soup::text), properties);
        }
    }
}
