//! Which events a target wants: the filters of CloudEvents' Subscriptions API.

pub mod cesql;

use std::collections::BTreeMap;

use sas_core::{Event, SpecErrors};
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
    /// A CESQL expression is true of it. Written `sql` as in the Subscriptions API, or `cesql` as in Knative.
    #[serde(alias = "cesql")]
    Sql(cesql::Expression),
}

/// How deep filters may be nested.
const DEEPEST: usize = 32;

impl Filter {
    /// Whether the event is wanted.
    pub fn wants(&self, event: &Event) -> bool {
        let each = |expected: &BTreeMap<String, String>, matches: fn(&str, &str) -> bool| {
            expected
                .iter()
                .all(|(name, expected)| attribute(event, name).is_some_and(|value| matches(&value, expected)))
        };
        match self {
            Self::Exact(expected) => each(expected, |value, expected| value == expected),
            Self::Prefix(expected) => each(expected, |value, expected| value.starts_with(expected)),
            Self::Suffix(expected) => each(expected, |value, expected| value.ends_with(expected)),
            Self::All(filters) => filters.iter().all(|filter| filter.wants(event)),
            Self::Any(filters) => filters.iter().any(|filter| filter.wants(event)),
            Self::Not(filter) => !filter.wants(event),
            Self::Sql(expression) => expression.wants(event),
        }
    }

    /// Checks what parsing does not: as the Subscriptions API has it, a dialect names at least one attribute, `all` and
    /// `any` hold at least one filter, names are those of attributes and values are not empty; and nothing is nested
    /// deeper than 32.
    ///
    /// # Errors
    /// All mistakes, each with its place below `filter`.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        self.check("filter", DEEPEST, &mut errors);
        errors.into_result()
    }

    fn check(&self, place: &str, deeper: usize, errors: &mut SpecErrors) {
        let (dialect, nested): (_, &[Self]) = match self {
            Self::Exact(expected) => return check_attributes(&format!("{place}.exact"), expected, errors),
            Self::Prefix(expected) => return check_attributes(&format!("{place}.prefix"), expected, errors),
            Self::Suffix(expected) => return check_attributes(&format!("{place}.suffix"), expected, errors),
            Self::Sql(_) => return,
            Self::All(filters) => ("all", filters),
            Self::Any(filters) => ("any", filters),
            Self::Not(filter) => ("not", std::slice::from_ref(&**filter)),
        };
        if nested.is_empty() {
            errors.push(format!("{place}.{dialect}"), "[]", "at least one filter");
        }
        if deeper == 0 {
            errors.push(format!("{place}.{dialect}"), "", format!("filters nested at most {DEEPEST} deep"));
            return;
        }
        for (at, filter) in nested.iter().enumerate() {
            let place =
                if dialect == "not" { format!("{place}.not") } else { format!("{place}.{dialect}[{at}]") };
            filter.check(&place, deeper - 1, errors);
        }
    }
}

fn check_attributes(place: &str, expected: &BTreeMap<String, String>, errors: &mut SpecErrors) {
    if expected.is_empty() {
        errors.push(place, "{}", "at least one attribute");
    }
    for (name, value) in expected {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            errors.push(place, name, "the name of an attribute: lower-case letters and digits");
        }
        if value.is_empty() {
            errors.push(format!("{place}.{name}"), value, "a value that is not empty");
        }
    }
}

pub(crate) fn attribute(event: &Event, name: &str) -> Option<String> {
    match cesql::attribute(event, name)? {
        cesql::Value::Boolean(value) => Some(value.to_string()),
        cesql::Value::Integer(value) => Some(value.to_string()),
        cesql::Value::String(value) => Some(value),
    }
}
