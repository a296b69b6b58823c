//! Events, and those who take them.

use std::{any::Any, collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, ErrorKind, Result, SpecErrors, Timestamp};

/// When something recurs; `sas-trigger`'s cron is one.
pub trait Schedule: fmt::Debug + Send + Sync + 'static {
    /// The first time strictly after `after`; `None`: never again.
    fn next_after(&self, after: Timestamp) -> Option<Timestamp>;
}

/// A CloudEvent 1.0, valid by construction.
///
/// ```
/// use sas_core::Event;
/// let event = Event::new("1", "/sensors/7", "com.example.reading")?.with_data("text/plain", "21.5")?;
/// assert_eq!(event.kind(), "com.example.reading");
/// # Ok::<(), sas_core::EventError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    id: String,
    source: String,
    kind: String,
    subject: Option<String>,
    time: Option<Timestamp>,
    data_schema: Option<String>,
    data_content_type: Option<String>,
    extensions: BTreeMap<String, AttributeValue>,
    data: Bytes,
}

/// The value of an extension attribute: those of CloudEvents' types that a format can tell from text. A URI, a
/// timestamp and binary data are their canonical text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AttributeValue {
    /// `true` or `false`.
    Boolean(bool),
    /// A whole number of 32 bits.
    Integer(i32),
    /// Text without control characters and noncharacters.
    String(String),
}

impl AttributeValue {
    /// The canonical text: what stands in a header.
    pub fn to_text(&self) -> std::borrow::Cow<'_, str> {
        match self {
            Self::Boolean(value) => if *value { "true" } else { "false" }.into(),
            Self::Integer(value) => value.to_string().into(),
            Self::String(value) => value.as_str().into(),
        }
    }
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

impl From<bool> for AttributeValue {
    fn from(value: bool) -> Self {
        Self::Boolean(value)
    }
}

impl From<i32> for AttributeValue {
    fn from(value: i32) -> Self {
        Self::Integer(value)
    }
}

impl From<String> for AttributeValue {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<&str> for AttributeValue {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<&String> for AttributeValue {
    fn from(value: &String) -> Self {
        Self::String(value.clone())
    }
}

impl PartialEq<str> for AttributeValue {
    fn eq(&self, other: &str) -> bool {
        self.to_text() == other
    }
}

impl PartialEq<&str> for AttributeValue {
    fn eq(&self, other: &&str) -> bool {
        self.to_text() == *other
    }
}

/// What is wrong with an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{attribute}: {value:?}: {problem}")]
pub struct EventError {
    /// The name of the attribute that is wrong.
    pub attribute: String,
    /// The value that stands there.
    pub value: String,
    /// What should stand there instead.
    pub problem: &'static str,
}

/// `InvalidSpec`; the attribute is the field of [`Error::fields`].
impl From<EventError> for Error {
    fn from(error: EventError) -> Self {
        let mut fields = SpecErrors::default();
        fields.push(&error.attribute, &error.value, error.problem);
        Self::new(ErrorKind::InvalidSpec, "event", error.to_string()).with_source(fields)
    }
}

fn non_empty(attribute: &str, value: String) -> Result<String, EventError> {
    if value.is_empty() {
        return Err(EventError { attribute: attribute.to_owned(), value, problem: "must not be empty" });
    }
    text(attribute, value)
}

/// CloudEvents' strings: Unicode without control characters and noncharacters.
fn text(attribute: &str, value: String) -> Result<String, EventError> {
    let forbidden = |letter: char| {
        letter.is_control()
            || ('\u{FDD0}'..='\u{FDEF}').contains(&letter)
            || u32::from(letter) & 0xFFFE == 0xFFFE
    };
    if value.chars().any(forbidden) {
        let problem = "must hold no control characters and no noncharacters of Unicode";
        return Err(EventError { attribute: attribute.to_owned(), value, problem });
    }
    Ok(value)
}

impl Event {
    /// An event without data.
    ///
    /// # Errors
    /// When one of the attributes is empty or holds control characters.
    pub fn new(
        id: impl Into<String>,
        source: impl Into<String>,
        kind: impl Into<String>,
    ) -> Result<Self, EventError> {
        Ok(Self {
            id: non_empty("id", id.into())?,
            source: non_empty("source", source.into())?,
            kind: non_empty("type", kind.into())?,
            subject: None,
            time: None,
            data_schema: None,
            data_content_type: None,
            extensions: BTreeMap::new(),
            data: Bytes::new(),
        })
    }

    /// With data.
    ///
    /// # Errors
    /// When the content type is empty.
    pub fn with_data(
        mut self,
        content_type: impl Into<String>,
        data: impl Into<Bytes>,
    ) -> Result<Self, EventError> {
        self.data_content_type = Some(non_empty("datacontenttype", content_type.into())?);
        self.data = data.into();
        Ok(self)
    }

    /// With data of which nobody says what it is.
    #[must_use]
    pub fn with_untyped_data(mut self, data: impl Into<Bytes>) -> Self {
        self.data_content_type = None;
        self.data = data.into();
        self
    }

    /// With a subject.
    ///
    /// # Errors
    /// When it is empty or holds control characters.
    pub fn with_subject(mut self, subject: impl Into<String>) -> Result<Self, EventError> {
        self.subject = Some(non_empty("subject", subject.into())?);
        Ok(self)
    }

    /// With the time of the occurrence.
    #[must_use]
    pub fn with_time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// With a schema that the data follows.
    ///
    /// # Errors
    /// When it is empty.
    pub fn with_data_schema(mut self, schema: impl Into<String>) -> Result<Self, EventError> {
        self.data_schema = Some(non_empty("dataschema", schema.into())?);
        Ok(self)
    }

    /// With an extension attribute.
    ///
    /// # Errors
    /// When the name is not of lower-case letters and digits, or is one of the specification's own; when a text holds
    /// control characters.
    pub fn with_extension(
        mut self,
        name: impl Into<String>,
        value: impl Into<AttributeValue>,
    ) -> Result<Self, EventError> {
        const OWN: [&str; 9] = [
            "id",
            "source",
            "type",
            "specversion",
            "subject",
            "time",
            "datacontenttype",
            "dataschema",
            "data",
        ];
        let name = name.into();
        let well_formed =
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !well_formed || OWN.contains(&name.as_str()) {
            let problem =
                "an extension's name has only lower-case letters and digits, and none of the core names";
            return Err(EventError { attribute: "extension".into(), value: name, problem });
        }
        let value = match value.into() {
            AttributeValue::String(value) => AttributeValue::String(text(&name, value)?),
            other => other,
        };
        self.extensions.insert(name, value);
        Ok(self)
    }

    /// Identifies the event within its source.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// The attribute `source`: where it happened.
    pub fn source(&self) -> &str {
        &self.source
    }
    /// What kind of thing happened: the attribute `type`.
    pub fn kind(&self) -> &str {
        &self.kind
    }
    /// The attribute `subject`: what the event is about.
    pub fn subject(&self) -> Option<&str> {
        self.subject.as_deref()
    }
    /// The attribute `time`: when it happened.
    pub fn time(&self) -> Option<Timestamp> {
        self.time
    }
    /// The schema of the data.
    pub fn data_schema(&self) -> Option<&str> {
        self.data_schema.as_deref()
    }
    /// The media type of the data.
    pub fn data_content_type(&self) -> Option<&str> {
        self.data_content_type.as_deref()
    }
    /// The extension attributes, by their names.
    pub fn extensions(&self) -> &BTreeMap<String, AttributeValue> {
        &self.extensions
    }
    /// The data of the event, as bytes; empty for none.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

/// How far an event got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ack {
    /// Its target answered.
    Completed,
    /// It is kept durably and will be delivered, or it went to the dead-letter target.
    Stored,
    /// No filter wanted it.
    Filtered,
    /// An event with the same source and id was taken shortly before; this one was left out, as CloudEvents allows.
    /// How far back that is looked for is the sink's to say; `sas-trigger`'s remembers the last 1,024 events of each
    /// trigger for an hour, unless the trigger says otherwise, in memory: after a restart a repetition is delivered again.
    Duplicate,
}

/// Room for one event. Anything that must be given back on drop goes inside.
pub struct Slot(pub Box<dyn Any + Send>);

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot(..)")
    }
}

/// Takes events from sources to their targets.
#[async_trait]
pub trait EventSink: fmt::Debug + Send + Sync + 'static {
    /// Waits for room, before the source takes more from upstream.
    ///
    /// **Cancel safety:** dropping the future gives up the place.
    ///
    /// # Errors
    /// `Unavailable` when the platform shuts down.
    async fn ready(&self) -> Result<Slot>;

    /// Delivers, with retries and dead letter as configured. The source acknowledges upstream after `Ok` only.
    ///
    /// **Cancel safety:** the event may have reached its target.
    ///
    /// # Errors
    /// When it was neither delivered nor stored: the source must offer it again.
    async fn deliver(&self, slot: Slot, event: Event) -> Result<Ack>;

    /// The most events that [`EventSink::deliver_batch`] makes one call of; 1: it delivers one by one, so that a source
    /// gains nothing by collecting events.
    fn batch_limit(&self) -> usize {
        1
    }

    /// Delivers several events that came together, in their order, with an answer for each: those that have `Ok` may be
    /// acknowledged upstream, the others are to be offered again. One that fails does not keep those behind it back.
    /// The first goes with `slot`; room for each further one is waited for, so a batch takes no more than its turn.
    ///
    /// **Cancel safety:** each of the events may have reached its target.
    async fn deliver_batch(&self, slot: Slot, events: Vec<Event>) -> Vec<Result<Ack>> {
        let mut answers = Vec::with_capacity(events.len());
        let mut slot = Some(slot);
        for event in events {
            let room = match slot.take() {
                Some(slot) => Ok(slot),
                None => self.ready().await,
            };
            answers.push(match room {
                Ok(room) => self.deliver(room, event).await,
                Err(error) => Err(error),
            });
        }
        answers
    }
}

/// Sends events out of the platform: to a broker's topic, a webhook, a channel of the host. The way out beside
/// [`EventSink`], the way in. `sas-trigger` has one that posts to a service and one for a program in this process.
///
/// Deliveries and outboxes call it. The builder's `trigger_sink` takes what makes them of a declared sink;
/// `triggers/sinks/src/file.rs` is a short one.
#[async_trait]
pub trait EventPublisher: fmt::Debug + Send + Sync + 'static {
    /// Hands the event over, and returns when whoever takes it answers for it: at least once, so that with an error it
    /// is to be published again.
    ///
    /// **Cancel safety:** the event may have gone out.
    ///
    /// # Errors
    /// `Unavailable` when nobody takes it now; `InvalidSpec` when it never can be.
    async fn publish(&self, event: Event) -> Result<()>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: EventPublisher + ?Sized> EventPublisher for Arc<T> {
    async fn publish(&self, event: Event) -> Result<()> {
        (**self).publish(event).await
    }
}
