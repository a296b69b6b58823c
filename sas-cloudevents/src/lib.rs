#![forbid(unsafe_code)]
//! CloudEvents 1.0 on the wire: the HTTP binding in its three modes, both ways, the JSON format, and what the bindings to
//! protocols with named values (Kafka, MQTT, NATS, AMQP) share.
//!
//! The crate `cloudevents-sdk` was weighed and left: its 0.9 has no batches, compares media types by case, takes empty
//! attributes and any name of an extension, and does not decode what the binding encodes (ADR 77).
//!
//! ```
//! use sas_core::Event;
//! use sas_cloudevents::{self as cloudevents, Limits};
//!
//! let event = Event::new("1", "/sensors", "reading").unwrap().with_data("application/json", "21.5").unwrap();
//! let message = cloudevents::structured(&event);
//! let read = cloudevents::from_message(&message.headers, message.body, &Limits::default())?;
//! assert_eq!(read, [event]);
//! # Ok::<(), cloudevents::DecodeError>(())
//! ```

mod attributes;
mod http;
mod json;
mod named;

use jiff::Timestamp as Instant;
use sas_core::{Error, ErrorKind, EventError, Timestamp};

pub use self::http::{
    Limits, Message, Mode, batched, binary, from_message, message_request, mode_of, structured, to_request,
};
pub use self::json::{from_json, from_json_batch, to_json, to_json_batch};
pub use self::named::{attributes, from_attributes, readable, uri_path};

/// Why a message is no CloudEvent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {value:?}: {problem}")]
#[non_exhaustive]
pub struct DecodeError {
    /// The attribute, member or header; empty: the message as a whole.
    pub field: String,
    /// What stands there, cut to its first letters.
    pub value: String,
    /// What should stand there instead.
    pub problem: String,
}

impl DecodeError {
    /// What is wrong with which field, for those who write a binding to another protocol.
    pub fn new(field: impl Into<String>, value: impl Into<String>, problem: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.into(), problem: problem.into() }
    }

    /// The same, of an event that is part of something.
    fn below(mut self, place: &str) -> Self {
        self.field.insert_str(0, place);
        self
    }
}

impl From<EventError> for DecodeError {
    fn from(error: EventError) -> Self {
        Self::new(error.attribute, error.value, error.problem)
    }
}

impl From<DecodeError> for Error {
    fn from(error: DecodeError) -> Self {
        Self::new(ErrorKind::InvalidSpec, "event", error.to_string()).with_source(error)
    }
}

/// Whether a media type declares JSON: `*/json` or `*/*+json`, in any case, with any parameters.
fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.split_once('/').is_some_and(|(_, subtype)| subtype == "json" || subtype.ends_with("+json"))
}

/// A time as CloudEvents write it, in RFC 3339; `None`: out of the range of the calendar.
pub fn rfc3339(time: Timestamp) -> Option<String> {
    Instant::from_nanosecond(i128::from(time.0)).ok().map(|instant| instant.to_string())
}
