//! `+ - * / %` on all kinds of values.

use crate::{
    Error,
    access::described,
    ast::Arithmetic,
    cx::Cx,
    value::{Map, Members, Value},
};

pub(crate) fn negate(cx: &Cx, value: &Value) -> Result<Value, Error> {
    match value.as_f64() {
        Some(number) => Ok(Value::Float(-number)),
        None => Err(cx.raise(format!("{} cannot be negated", described(value)))),
    }
}

pub(crate) fn apply(cx: &Cx, operator: Arithmetic, left: Value, right: Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_f64(), right.as_f64()) {
        return numbers(cx, operator, a, b, &left, &right);
    }
    let failed = |what: &str| {
        Err(cx.raise(format!("{} and {} cannot be {what}", described(&left), described(&right))))
    };
    match operator {
        Arithmetic::Add => match (left, right) {
            (Value::Null, other) | (other, Value::Null) => Ok(other),
            (Value::String(mut left), Value::String(right)) => {
                cx.spend_bytes(right.as_str().len())?;
                cx.make.extend_text(&mut left, right.as_str())?;
                Ok(Value::String(left))
            }
            (Value::Array(mut left), Value::Array(right)) => {
                cx.spend(right.as_slice().len() as u64 / 8)?;
                cx.make.append(&mut left, right.as_slice())?;
                Ok(Value::Array(left))
            }
            (Value::Object(mut left), Value::Object(right)) => {
                cx.spend(right.len() as u64)?;
                for (name, value) in right.members() {
                    cx.make.set_member(&mut left, name.clone(), value.clone())?;
                }
                Ok(Value::Object(left))
            }
            (left, right) => {
                Err(cx.raise(format!("{} and {} cannot be added", described(&left), described(&right))))
            }
        },
        Arithmetic::Subtract => match (&left, &right) {
            (Value::Array(a), Value::Array(b)) => {
                let mut kept = Vec::new();
                for item in a.as_slice() {
                    let mut keep = true;
                    for other in b.as_slice() {
                        cx.spend_bytes(item.weight().min(other.weight()))?;
                        keep &= item != other;
                    }
                    cx.spend(b.as_slice().len() as u64 / 4)?;
                    if keep {
                        kept.push(item.clone());
                    }
                }
                cx.make.list(kept)
            }
            _ => failed("subtracted"),
        },
        Arithmetic::Multiply => match (&left, &right) {
            (Value::String(text), _) | (_, Value::String(text))
                if left.as_f64().or(right.as_f64()).is_some() =>
            {
                repeat(cx, text.as_str(), left.as_f64().or(right.as_f64()).unwrap_or_default())
            }
            (Value::Object(a), Value::Object(b)) => merge(cx, a, b),
            _ => failed("multiplied"),
        },
        Arithmetic::Divide => match (&left, &right) {
            (Value::String(text), Value::String(separator)) => split(cx, text.as_str(), separator.as_str()),
            _ => failed("divided"),
        },
        Arithmetic::Remainder => failed("divided (remainder)"),
    }
}

fn repeat(cx: &Cx, text: &str, count: f64) -> Result<Value, Error> {
    if count.is_nan() || count <= 0.0 {
        return Ok(Value::Null);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive; large is refused below"
    )]
    let count = if count < 1.0 { 1 } else { count as usize };
    let bytes = text.len().saturating_mul(count);
    cx.make.room(bytes)?;
    cx.spend_bytes(bytes)?;
    cx.make.text(text.repeat(count))
}

pub(crate) fn split(cx: &Cx, text: &str, separator: &str) -> Result<Value, Error> {
    cx.spend_bytes(text.len())?;
    if text.is_empty() {
        return cx.make.list(Vec::new());
    }
    let mut parts = Vec::new();
    let mut add = |part: &str| {
        cx.spend(1)?;
        parts.push(cx.make.text(part)?);
        Ok::<_, Error>(())
    };
    if separator.is_empty() {
        let mut buffer = [0; 4];
        for c in text.chars() {
            add(c.encode_utf8(&mut buffer))?;
        }
    } else {
        for part in text.split(separator) {
            add(part)?;
        }
    }
    cx.make.list(parts)
}

fn merge(cx: &Cx, a: &Map, b: &Map) -> Result<Value, Error> {
    cx.spend((a.len() + b.len()) as u64)?;
    cx.make.room((a.len() + b.len()) * 64)?;
    let mut members: Members = a.members().clone();
    for (name, value) in b.members() {
        let merged = match (members.get(name), value) {
            (Some(Value::Object(a)), Value::Object(b)) => merge(cx, a, b)?,
            _ => value.clone(),
        };
        members.insert(name.clone(), merged);
    }
    cx.make.map(members)
}

fn numbers(
    cx: &Cx,
    operator: Arithmetic,
    a: f64,
    b: f64,
    left: &Value,
    right: &Value,
) -> Result<Value, Error> {
    let by_zero = |what: &str| {
        let message = format!(
            "{} and {} cannot be divided{what} because the divisor is zero",
            described(left),
            described(right)
        );
        Err(cx.raise(message))
    };
    Ok(Value::Float(match operator {
        Arithmetic::Add => a + b,
        Arithmetic::Subtract => a - b,
        Arithmetic::Multiply => a * b,
        Arithmetic::Divide if b == 0.0 => return by_zero(""),
        Arithmetic::Divide => a / b,
        Arithmetic::Remainder if a.is_nan() || b.is_nan() => f64::NAN,
        Arithmetic::Remainder => {
            #[expect(clippy::cast_possible_truncation, reason = "floats become integers at their bounds")]
            let (a, b) = (a as i64, b as i64);
            if b == 0 {
                return by_zero(" (remainder)");
            }
            #[expect(clippy::cast_precision_loss, reason = "jq computes with doubles")]
            let remainder = (a.unsigned_abs() % b.unsigned_abs()) as f64;
            if a < 0 { -remainder } else { remainder }
        }
    }))
}
