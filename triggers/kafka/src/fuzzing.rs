//! A law of what comes from outside, as a plain function that panics when it is broken, so that fuzzers can call it. The test here
//! runs it on 5,000 inputs.

use bytes::Bytes;
use sas_cloudevents::{Mode, attributes, from_json, mode_of, to_json};

use crate::record::{Record, encoded};

/// Whatever a record holds, it is an event, and one that can be sent is the same after its way through a record.
///
/// # Panics
/// When it is not.
pub fn record(key: Option<Vec<u8>>, value: Option<Vec<u8>>, headers: Vec<(String, Option<Vec<u8>>)>) {
    let at = Record { topic: "t".to_owned(), partition: 1, offset: 2, timestamp: 3, ..Record::default() };
    let headers = headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();
    let read = Record { key: key.map(Bytes::from), value: value.map(Bytes::from), headers, ..at.clone() };
    let event = read.event().expect("whatever it holds");
    // What is wrapped keeps the media type that it came with, also one that no event can be sent with.
    if from_json(to_json(&event).as_bytes()).is_err()
        || !matches!(mode_of(event.data_content_type()), Ok(Mode::Binary))
    {
        return;
    }
    for structured in [false, true] {
        let sent = encoded(&event, structured);
        let headers = sent.headers.into_iter().map(|(name, value)| (name, Some(value))).collect();
        let again = Record { key: sent.key, value: Some(sent.value), headers, ..at.clone() };
        let again = again.event().expect("it was sent by us");
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
    fn whatever_a_record_holds_is_an_event() {
        let mut soup = Soup::of_events(0x5eed, &["content-type"]);
        for _ in 0..5_000 {
            let mut headers = soup.headers("ce_", Some);
            headers.extend(soup.maybe(|soup| ("content-type".to_owned(), soup.maybe(Soup::bytes))));
            record(soup.maybe(Soup::bytes), soup.maybe(Soup::bytes), headers);
        }
    }
}
