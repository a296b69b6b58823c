//! Values as another type, and the errors that are remembered while an expression is evaluated.

use super::{EvaluationError, Value};

/// The errors of one evaluation, of which the first is told.
#[derive(Debug, Default)]
pub(super) struct Errors(Option<EvaluationError>);

impl Errors {
    pub(super) fn push(&mut self, error: EvaluationError) {
        self.0.get_or_insert(error);
    }

    pub(super) fn first(self) -> Option<EvaluationError> {
        self.0
    }
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::Boolean(value) => value.to_string(),
        Value::Integer(value) => value.to_string(),
        Value::String(value) => value.clone(),
    }
}

/// As an integer; `None` after an error.
pub(super) fn integer(value: &Value, errors: &mut Errors) -> Option<i32> {
    match value {
        Value::Boolean(value) => Some(i32::from(*value)),
        Value::Integer(value) => Some(*value),
        Value::String(value) => {
            let parsed = value.parse().ok();
            if parsed.is_none() {
                errors.push(EvaluationError::Cast { value: value.clone(), wanted: "an integer" });
            }
            parsed
        }
    }
}

/// As a boolean; `None` after an error.
pub(super) fn boolean(value: &Value, errors: &mut Errors) -> Option<bool> {
    match value {
        Value::Boolean(value) => Some(*value),
        Value::Integer(value) => Some(*value != 0),
        Value::String(value) if value.eq_ignore_ascii_case("true") => Some(true),
        Value::String(value) if value.eq_ignore_ascii_case("false") => Some(false),
        Value::String(value) => {
            errors.push(EvaluationError::Cast { value: value.clone(), wanted: "a boolean" });
            None
        }
    }
}
