//! CESQL 1.0, CloudEvents' expression language: predicates on the attributes of an event.
//!
//! Every expression ends: the language has no loop, an expression is at most [`LONGEST`] bytes long and [`DEEPEST`]
//! deep, and matching a pattern takes time in the product of pattern and text at most.

mod cast;
mod eval;
mod functions;
mod like;
mod parse;

use std::fmt;

use sas_core::{AttributeValue, Event};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use parse::Node;

/// The longest expression, in bytes.
pub const LONGEST: usize = 16 << 10;
/// How deep an expression may be nested.
pub const DEEPEST: usize = 64;

/// A parsed expression.
///
/// ```
/// use sas_core::Event;
/// use sas_trigger::cesql::{Expression, Value};
///
/// let expression: Expression = "type LIKE 'order.%' AND amount > 100".parse()?;
/// let event = Event::new("1", "/shop", "order.created").unwrap().with_extension("amount", "250").unwrap();
/// assert_eq!(expression.evaluate(&event).value, Value::Boolean(true));
/// assert!(expression.wants(&event));
/// # Ok::<(), sas_trigger::cesql::ParseError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    root: Node,
}

impl Expression {
    /// Parses an expression.
    ///
    /// # Errors
    /// [`ParseError`] says at which byte the text stops being CESQL, and what was expected there.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        Ok(Self { text: text.to_owned(), root: parse::parse(text)? })
    }

    /// The value of the expression for an event, and the first error that came up. An error does not end the
    /// evaluation: every operator has a value for it.
    pub fn evaluate(&self, event: &Event) -> Evaluation {
        self.evaluate_with(&|name| attribute(event, name))
    }

    /// As [`Expression::evaluate`], for attributes that are found by name.
    pub fn evaluate_with(&self, attributes: &dyn Fn(&str) -> Option<Value>) -> Evaluation {
        let mut errors = cast::Errors::default();
        let value = eval::evaluate(&self.root, attributes, &mut errors);
        Evaluation { value: value.unwrap_or(Value::Boolean(false)), error: errors.first() }
    }

    /// Whether the event passes: the value is `true`, without any error.
    pub fn wants(&self, event: &Event) -> bool {
        let evaluation = self.evaluate(event);
        evaluation.error.is_none() && evaluation.value == Value::Boolean(true)
    }

    /// The text that was parsed.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Expression {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Expression {}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::str::FromStr for Expression {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text)
    }
}

impl Serialize for Expression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(|error| de::Error::custom(format!("{text:?}: {error}")))
    }
}

/// What an expression can be worth.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// True or false.
    Boolean(bool),
    /// A whole number of 32 bits.
    Integer(i32),
    /// A text.
    String(String),
}

impl From<AttributeValue> for Value {
    fn from(value: AttributeValue) -> Self {
        match value {
            AttributeValue::Boolean(value) => Self::Boolean(value),
            AttributeValue::Integer(value) => Self::Integer(value),
            AttributeValue::String(value) => Self::String(value),
        }
    }
}

/// What came of an evaluation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The value that the expression has, also beside an error.
    pub value: Value,
    /// The first error; `None`: there was none.
    pub error: Option<EvaluationError>,
}

/// What can go wrong while an expression is evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluationError {
    /// A division by zero, or a result that 32 bits do not hold.
    #[error("{0}")]
    Math(String),
    /// A value that can't be made the type that an operator or function takes.
    #[error("{value:?} is not {wanted}")]
    Cast {
        /// The value.
        value: String,
        /// What was wanted: `an integer` or `a boolean`.
        wanted: &'static str,
    },
    /// The event has no such attribute.
    #[error("the event has no attribute {0}")]
    MissingAttribute(String),
    /// There is no function of this name that takes so many arguments.
    #[error("there is no function {name} of {arguments} arguments")]
    MissingFunction {
        /// Its name.
        name: String,
        /// How many arguments it was given.
        arguments: usize,
    },
    /// A function can't do what it was asked.
    #[error("{0}")]
    Function(String),
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {problem}")]
pub struct ParseError {
    /// Where, in bytes from the start.
    pub at: usize,
    /// What stands in the way, and what was expected.
    pub problem: String,
}

/// The attribute of an event, as an expression sees it.
pub(crate) fn attribute(event: &Event, name: &str) -> Option<Value> {
    let text = |text: &str| Some(Value::String(text.to_owned()));
    match name {
        "id" => text(event.id()),
        "source" => text(event.source()),
        "type" => text(event.kind()),
        "specversion" => text("1.0"),
        "subject" => text(event.subject()?),
        "time" => Some(Value::String(sas_cloudevents::rfc3339(event.time()?)?)),
        "dataschema" => text(event.data_schema()?),
        "datacontenttype" => text(event.data_content_type()?),
        extension => event.extensions().get(extension).cloned().map(Value::from),
    }
}
