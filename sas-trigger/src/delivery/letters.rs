//! Events that could not be delivered.

use jiff::Timestamp as Instant;
use sas_core::{Error, ErrorKind, Event, Result};
use serde_json::{Value, json};

/// Why an event was given up.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// What happened, for people.
    pub(crate) reason: String,
    /// What happened, one of few words: `status-503`, `timeout`, `unavailable`, `refused`, `transform`, `reply`, `hops`.
    pub(crate) class: String,
    /// The answer's status, if there was an answer.
    pub(crate) status: Option<u16>,
    /// Attempts that were made.
    pub(crate) attempts: u32,
}

impl Failure {
    pub(crate) fn new(class: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), class: class.into(), status: None, attempts: 0 }
    }
}

/// Where the dead letters of a trigger are in the store.
pub(crate) fn prefix(trigger: &str) -> String {
    format!("deadletter/{trigger}/")
}

/// The letter as it is stored: what to show, and the event as structured JSON.
pub(crate) fn stored(
    event: &Event,
    trigger: &str,
    target: &str,
    failure: &Failure,
    at: i64,
) -> Result<Value> {
    let structured: Value = serde_json::from_str(&sas_cloudevents::to_json(event)).map_err(|error| {
        Error::new(ErrorKind::Unexpected, "dead letter", format!("{} can't be written: {error}", event.id()))
    })?;
    Ok(json!({
        "id": event.id(),
        "source": event.source(),
        "type": event.kind(),
        "event": structured,
        "trigger": trigger,
        "target": target,
        "reason": failure.reason,
        "class": failure.class,
        "status": failure.status,
        "attempts": failure.attempts,
        "at": Instant::from_nanosecond(i128::from(at)).map(|at| at.to_string()).unwrap_or_default(),
    }))
}

/// The event of a stored letter.
pub(crate) fn event_of(letter: &Value) -> Result<Event> {
    let event = letter.get("event").map(Value::to_string).unwrap_or_default();
    sas_cloudevents::from_json(event.as_bytes()).map_err(|error| {
        Error::new(ErrorKind::InvalidSpec, "dead letter", format!("holds no event that can be read: {error}"))
    })
}

/// The event with what went wrong, in the attributes that Knative uses, and with the trigger and the attempts.
pub(crate) fn addressed(event: &Event, trigger: &str, target: &str, failure: &Failure) -> Result<Event> {
    let text: String = failure.reason.chars().filter(|letter| !letter.is_control()).take(1024).collect();
    let attempts = i32::try_from(failure.attempts).unwrap_or(i32::MAX);
    event
        .clone()
        .with_extension("knativeerrordest", target)
        .and_then(|event| {
            event.with_extension("knativeerrorcode", failure.status.map_or("0".to_owned(), |s| s.to_string()))
        })
        .and_then(|event| event.with_extension("knativeerrordata", text))
        .and_then(|event| event.with_extension("sastrigger", trigger))
        .and_then(|event| event.with_extension("sasattempts", attempts))
        .map_err(|error| Error::new(ErrorKind::Unexpected, "deliver", error.to_string()))
}
