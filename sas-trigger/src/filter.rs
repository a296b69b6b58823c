//! Which events a target wants: the filters of CloudEvents' Subscriptions API, but for its SQL dialect.

use std::collections::BTreeMap;

use sas_core::Event;
use serde::{Deserialize, Serialize};

/// A condition on an event's attributes. Attributes are compared as text; one that is absent matches nothing.
///
/// ```
/// use sas_core::Event;
/// use sas_trigger::Filter;
///
/// let filter: Filter = serde_json::from_str(r#"{"all": [
///     {"exact": {"type": "order.created"}},
///     {"not": {"prefix": {"source": "/test/"}}}
/// ]}"#).unwrap();
/// assert!(filter.wants(&Event::new("1", "/shop", "order.created")?));
/// assert!(!filter.wants(&Event::new("1", "/test/shop", "order.created")?));
/// # Ok::<(), sas_core::EventError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Filter {
    /// Each attribute is exactly this.
    Exact(BTreeMap<String, String>),
    /// Each attribute begins with this.
    Prefix(BTreeMap<String, String>),
    /// Each attribute ends with this.
    Suffix(BTreeMap<String, String>),
    /// All of them want it; none: every event.
    All(Vec<Filter>),
    /// One of them wants it; none: no event.
    Any(Vec<Filter>),
    /// This one does not want it.
    Not(Box<Filter>),
}

impl Filter {
    /// Whether the event is wanted.
    pub fn wants(&self, event: &Event) -> bool {
        let each = |expected: &BTreeMap<String, String>, matches: fn(&str, &str) -> bool| {
            expected
                .iter()
                .all(|(name, expected)| attribute(event, name).is_some_and(|value| matches(value, expected)))
        };
        match self {
            Self::Exact(expected) => each(expected, |value, expected| value == expected),
            Self::Prefix(expected) => each(expected, |value, expected| value.starts_with(expected)),
            Self::Suffix(expected) => each(expected, |value, expected| value.ends_with(expected)),
            Self::All(filters) => filters.iter().all(|filter| filter.wants(event)),
            Self::Any(filters) => filters.iter().any(|filter| filter.wants(event)),
            Self::Not(filter) => !filter.wants(event),
        }
    }
}

fn attribute<'e>(event: &'e Event, name: &str) -> Option<&'e str> {
    match name {
        "id" => Some(event.id()),
        "source" => Some(event.source()),
        "type" => Some(event.kind()),
        "specversion" => Some("1.0"),
        "subject" => event.subject(),
        "dataschema" => event.data_schema(),
        "datacontenttype" => event.data_content_type(),
        extension => event.extensions().get(extension).map(String::as_str),
    }
}
