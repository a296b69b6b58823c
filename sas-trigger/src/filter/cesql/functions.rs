//! The functions of the language.

use super::{
    EvaluationError, Value,
    cast::{Errors, boolean, integer, text},
};

/// A function that was found by its name and how many arguments it was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Int,
    Bool,
    String,
    IsInt,
    IsBool,
    Length,
    Concat,
    ConcatWs,
    Lower,
    Upper,
    Trim,
    Left,
    Right,
    Substring,
    Abs,
}

pub(super) fn find(name: &str, arguments: usize) -> Option<Function> {
    Some(match (name, arguments) {
        ("INT", 1) => Function::Int,
        ("BOOL", 1) => Function::Bool,
        ("STRING", 1) => Function::String,
        ("IS_INT", 1) => Function::IsInt,
        ("IS_BOOL", 1) => Function::IsBool,
        ("LENGTH", 1) => Function::Length,
        ("CONCAT", _) => Function::Concat,
        ("CONCAT_WS", 1..) => Function::ConcatWs,
        ("LOWER", 1) => Function::Lower,
        ("UPPER", 1) => Function::Upper,
        ("TRIM", 1) => Function::Trim,
        ("LEFT", 2) => Function::Left,
        ("RIGHT", 2) => Function::Right,
        ("SUBSTRING", 2 | 3) => Function::Substring,
        ("ABS", 1) => Function::Abs,
        _ => return None,
    })
}

impl Function {
    /// The zero value of the type that it returns.
    pub(super) fn zero(self) -> Value {
        match self {
            Self::Int | Self::Length | Self::Abs => Value::Integer(0),
            Self::Bool | Self::IsInt | Self::IsBool => Value::Boolean(false),
            _ => Value::String(String::new()),
        }
    }

    pub(super) fn call(self, arguments: &[Value], errors: &mut Errors) -> Value {
        self.apply(arguments, errors).unwrap_or_else(|| self.zero())
    }

    /// `None` after an error for which the zero value stands.
    fn apply(self, arguments: &[Value], errors: &mut Errors) -> Option<Value> {
        let texts = |arguments: &[Value]| arguments.iter().map(text).collect::<Vec<_>>();
        let first = || text(&arguments[0]);
        Some(match self {
            Self::Int => Value::Integer(integer(&arguments[0], errors)?),
            Self::Bool => Value::Boolean(boolean(&arguments[0], errors)?),
            Self::String => Value::String(first()),
            Self::IsInt => Value::Boolean(integer(&arguments[0], &mut Errors::default()).is_some()),
            Self::IsBool => Value::Boolean(boolean(&arguments[0], &mut Errors::default()).is_some()),
            Self::Length => Value::Integer(i32::try_from(first().chars().count()).unwrap_or(i32::MAX)),
            Self::Concat => Value::String(texts(arguments).concat()),
            Self::ConcatWs => Value::String(texts(&arguments[1..]).join(&first())),
            Self::Lower => Value::String(first().to_lowercase()),
            Self::Upper => Value::String(first().to_uppercase()),
            Self::Trim => Value::String(first().trim().to_owned()),
            Self::Left | Self::Right => {
                let (whole, count) = (first(), integer(&arguments[1], errors)?);
                let Ok(count) = usize::try_from(count) else {
                    errors.push(EvaluationError::Function(format!("{count} characters of a text")));
                    return Some(Value::String(whole));
                };
                let length = whole.chars().count();
                let part = match self {
                    Self::Left => whole.chars().take(count).collect(),
                    _ => whole.chars().skip(length.saturating_sub(count)).collect(),
                };
                Value::String(part)
            }
            Self::Substring => {
                let position = integer(&arguments[1], errors)?;
                let length = arguments.get(2).map(|length| integer(length, errors));
                let length = match length {
                    Some(length) => Some(length?),
                    None => None,
                };
                substring(&first(), position, length, errors)
            }
            Self::Abs => {
                let value = integer(&arguments[0], errors)?;
                Value::Integer(value.checked_abs().unwrap_or_else(|| {
                    errors.push(EvaluationError::Math(format!("{value} has no absolute value in 32 bits")));
                    i32::MAX
                }))
            }
        })
    }
}

fn substring(whole: &str, position: i32, length: Option<i32>, errors: &mut Errors) -> Value {
    let there = whole.chars().count() as i64;
    let position = i64::from(position);
    if position > there || position < -there || length.is_some_and(|length| length < 0) {
        let problem = format!("no part of {there} characters begins at {position} with this length");
        errors.push(EvaluationError::Function(problem));
        return Value::String(String::new());
    }
    let skipped = match position {
        0 => return Value::String(String::new()),
        1.. => position - 1,
        _ => there + position,
    };
    let rest = whole.chars().skip(skipped as usize);
    Value::String(match length {
        Some(length) => rest.take(length as usize).collect(),
        None => rest.collect(),
    })
}
