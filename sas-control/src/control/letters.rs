//! Events that could not be delivered, as the delivery of their trigger kept them.

use sas_core::Event;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An event that could not be delivered, and why.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
#[non_exhaustive]
pub struct DeadLetter {
    /// The letter's own id, by which it can be delivered again.
    pub letter: String,
    /// The event's id.
    pub id: String,
    /// The event's source.
    pub source: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub kind: String,
    /// The event, as structured JSON; `null` in letters of versions that did not keep it whole, which can't be delivered
    /// again.
    #[serde(with = "structured")]
    #[schema(value_type = Option<Object>)]
    pub event: Option<Event>,
    /// The trigger that could not deliver it, `namespace/name`.
    pub trigger: String,
    /// Where it was to go.
    pub target: String,
    /// Why it was given up, for people.
    pub reason: String,
    /// Why it was given up, one of few words, such as `status-503` or `timeout`; empty in letters of versions that did not
    /// say it.
    pub class: String,
    /// The status of the last answer; `null`: there was none.
    pub status: Option<u16>,
    /// Attempts that were made.
    pub attempts: u32,
    /// When it was given up, in RFC 3339.
    pub at: String,
}

/// An event as a JSON object.
mod structured {
    use sas_core::Event;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de, ser};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(event: &Option<Event>, to: S) -> Result<S::Ok, S::Error> {
        let Some(event) = event else { return to.serialize_none() };
        let object: Value =
            serde_json::from_str(&sas_cloudevents::to_json(event)).map_err(ser::Error::custom)?;
        object.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Event>, D::Error> {
        let Some(object) = Option::<Value>::deserialize(from)? else { return Ok(None) };
        sas_cloudevents::from_json(object.to_string().as_bytes()).map(Some).map_err(de::Error::custom)
    }
}
