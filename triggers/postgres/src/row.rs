//! What a row of an outbox table is as an event.

use sas_core::{Error, ErrorKind, Event, EventError, Result, Timestamp};

/// A row that was leased.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) key: Option<String>,
    pub(crate) event: String,
    /// How often it was leased, this time included.
    pub(crate) deliveries: i32,
    pub(crate) created_millis: Option<i64>,
}

impl Row {
    /// The event. A row whose `event` is a CloudEvent in JSON is that one; one that says to be one and is none, or is no
    /// JSON, is an event of the type `dev.sas.postgres.malformed`, so that it can be seen and kept; any other JSON is the
    /// data of a `dev.sas.postgres.row`.
    pub(crate) fn event(&self, database: &str, table: &str) -> Result<Event> {
        let read: std::result::Result<serde_json::Value, _> = serde_json::from_str(&self.event);
        let event = match read {
            Ok(value) if value.get("specversion").is_some() => {
                sas_cloudevents::from_json(self.event.as_bytes()).or_else(|problem| {
                    tracing::warn!(table, row = self.id, %problem, "a row's event is none");
                    self.plain(database, table, "dev.sas.postgres.malformed", "application/json")
                })
            }
            Ok(_) => self.plain(database, table, "dev.sas.postgres.row", "application/json"),
            Err(problem) => {
                tracing::warn!(table, row = self.id, %problem, "a row's event is no JSON");
                self.plain(database, table, "dev.sas.postgres.malformed", "text/plain; charset=utf-8")
            }
        };
        let position = format!("{table}@{}", self.id);
        let event = event
            .and_then(|event| event.with_extension("sasposition", position.as_str()))
            .and_then(|event| match self.deliveries {
                ..=1 => Ok(event),
                many => event.with_extension("sasdeliveries", many),
            })
            .map_err(|error| Error::new(ErrorKind::Unexpected, "postgres", format!("{position}: {error}")))?;
        let keyed = match &self.key {
            Some(key) if !event.extensions().contains_key("partitionkey") => {
                event.clone().with_extension("partitionkey", key.as_str()).ok()
            }
            _ => None,
        };
        Ok(keyed.unwrap_or(event))
    }

    fn plain(
        &self,
        database: &str,
        table: &str,
        kind: &str,
        media: &str,
    ) -> std::result::Result<Event, EventError> {
        let source =
            format!("/postgres/{}/{}", sas_cloudevents::uri_path(database), sas_cloudevents::uri_path(table));
        let event = Event::new(self.id.to_string(), source, kind)?.with_data(media, self.event.clone())?;
        Ok(match self.created_millis {
            Some(millis) => event.with_time(Timestamp::from_millis(millis)),
            None => event,
        })
    }
}
