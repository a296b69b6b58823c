//! A law of what comes from outside, as a plain function that panics when it is broken, so that fuzzers can call it. The test here
//! runs it on 5,000 inputs.

use crate::queue::{Attribute, Message};

/// Whatever a message holds, it is one event or several, each with another id.
///
/// # Panics
/// When it is not.
pub fn message(body: String, group: Option<String>, stated: Vec<(String, Option<String>)>) {
    let stated = stated.into_iter().map(|(name, string_value)| (name, Attribute { string_value })).collect();
    let message = Message {
        message_id: "m-1".to_owned(),
        receipt_handle: "r".to_owned(),
        body,
        attributes: group.into_iter().map(|group| ("MessageGroupId".to_owned(), group)).collect(),
        message_attributes: stated,
    };
    let events = message.events("1/orders").expect("whatever it holds");
    let ids: std::collections::BTreeSet<&str> = events.iter().map(sas_core::Event::id).collect();
    assert!(!events.is_empty() && ids.len() == events.len(), "{ids:?}");
}

#[cfg(test)]
mod tests {
    use sas_testkit::soup::Soup;

    use super::*;

    #[test]
    fn whatever_a_message_holds_is_an_event() {
        let mut soup = Soup::of_events(0x5eed, &["aws:s3", "\"Records\""]);
        for _ in 0..5_000 {
            let mut stated = soup.headers("ce-", |text| String::from_utf8(text).ok());
            stated.extend(soup.maybe(|soup| ("content-type".to_owned(), soup.maybe(Soup::text))));
            message(soup.text(), soup.maybe(Soup::text), stated);
        }
    }
}
