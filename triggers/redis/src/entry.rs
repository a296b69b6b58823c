//! What an entry of a stream is as an event.

use base64::{Engine, engine::general_purpose::STANDARD};
use sas_core::{Error, ErrorKind, Event, EventError, Result, Timestamp};

/// An entry: its id, and its fields in their order.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) id: String,
    pub(crate) fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// Deleted from the stream while it was pending: nothing is left to deliver.
    pub(crate) deleted: bool,
}

impl Entry {
    /// The event. An entry whose field `cloudevent` holds one in CloudEvents' JSON format is that one; one that has this
    /// field and holds none is an event of the type `dev.sas.redis.malformed`, so that it can be seen and kept.
    pub(crate) fn event(&self, stream: &str) -> Result<Event> {
        let structured = self.fields.iter().find(|(name, _)| name == b"cloudevent");
        let decoded = structured.map(|(_, document)| sas_cloudevents::from_json(document));
        let event = match decoded {
            Some(Ok(event)) => Ok(event),
            Some(Err(problem)) => {
                tracing::warn!(stream, entry = self.id, %problem, "an entry's field cloudevent is no event");
                self.plain(stream, "dev.sas.redis.malformed")
            }
            None => self.plain(stream, "dev.sas.redis.entry"),
        };
        event
            .and_then(|event| {
                event.with_extension(
                    "sasposition",
                    sas_cloudevents::readable(&format!("{stream}@{}", self.id)),
                )
            })
            .map_err(|error| {
                Error::new(ErrorKind::Unexpected, "redis", format!("{stream}@{}: {error}", self.id))
            })
    }

    fn plain(&self, stream: &str, kind: &str) -> std::result::Result<Event, EventError> {
        let fields: serde_json::Map<_, _> = self
            .fields
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), text(value)))
            .collect();
        let event =
            Event::new(self.id.clone(), format!("/redis/{}", sas_cloudevents::uri_path(stream)), kind)?
                .with_data("application/json", serde_json::Value::Object(fields).to_string())?;
        let millis = self.id.split('-').next().and_then(|millis| millis.parse().ok());
        Ok(match millis {
            Some(millis) => event.with_time(Timestamp::from_millis(millis)),
            None => event,
        })
    }
}

/// The value as it is where it is text, else as `{"base64": ...}`.
fn text(value: &[u8]) -> serde_json::Value {
    match std::str::from_utf8(value) {
        Ok(text) => text.into(),
        Err(_) => serde_json::json!({"base64": STANDARD.encode(value)}),
    }
}
