//! Of texts.

use super::{Native, native};
use crate::{
    Error,
    access::{described, indices},
    arithmetic,
    cx::Cx,
    format,
    read::{Wrong, read},
    value::Value,
};

pub(crate) const NATIVES: &[Native] = &[
    native("tostring", 0, |cx, input, _| format::to_text(cx, &input)),
    native("tojson", 0, |cx, input, _| format::json(cx, &input)),
    native("fromjson", 0, fromjson),
    native("tonumber", 0, tonumber),
    native("toboolean", 0, |cx, input, _| match &input {
        Value::Bool(_) => Ok(input),
        Value::String(text) if text.as_str() == "true" => Ok(Value::Bool(true)),
        Value::String(text) if text.as_str() == "false" => Ok(Value::Bool(false)),
        other => Err(cx.raise(format!("{} cannot be parsed as a boolean", described(other)))),
    }),
    native("ascii_downcase", 0, |cx, input, _| {
        each(cx, &input, "ascii_downcase input must be a string", str::to_ascii_lowercase)
    }),
    native("ascii_upcase", 0, |cx, input, _| {
        each(cx, &input, "ascii_upcase input must be a string", str::to_ascii_uppercase)
    }),
    native("trim", 0, |cx, input, _| {
        each(cx, &input, "trim input must be a string", |text| text.trim().to_owned())
    }),
    native("ltrim", 0, |cx, input, _| {
        each(cx, &input, "trim input must be a string", |text| text.trim_start().to_owned())
    }),
    native("rtrim", 0, |cx, input, _| {
        each(cx, &input, "trim input must be a string", |text| text.trim_end().to_owned())
    }),
    native("startswith", 1, |cx, input, arguments| {
        both(cx, &input, &arguments[0], "startswith() requires string inputs")
            .map(|(a, b)| a.starts_with(b).into())
    }),
    native("endswith", 1, |cx, input, arguments| {
        both(cx, &input, &arguments[0], "endswith() requires string inputs")
            .map(|(a, b)| a.ends_with(b).into())
    }),
    native("ltrimstr", 1, |cx, input, arguments| {
        let (text, part) = both(cx, &input, &arguments[0], "startswith() requires string inputs")?;
        text.strip_prefix(part).map_or_else(|| Ok(input.clone()), |rest| cx.make.text(rest))
    }),
    native("rtrimstr", 1, |cx, input, arguments| {
        let (text, part) = both(cx, &input, &arguments[0], "endswith() requires string inputs")?;
        text.strip_suffix(part).map_or_else(|| Ok(input.clone()), |rest| cx.make.text(rest))
    }),
    native("split", 1, |cx, input, arguments| {
        let (text, separator) = both(cx, &input, &arguments[0], "split input and separator must be strings")?;
        arithmetic::split(cx, text, separator)
    }),
    native("explode", 0, |cx, input, _| match &input {
        Value::String(text) => {
            cx.spend_bytes(text.as_str().len() * 16)?;
            cx.make.list(text.as_str().chars().map(|c| Value::Int(u32::from(c).into())).collect())
        }
        other => Err(cx.raise(format!("{} cannot be exploded", described(other)))),
    }),
    native("implode", 0, implode),
    native("_indices", 1, |cx, input, arguments| match (&input, &arguments[0]) {
        (Value::Null, _) => Ok(Value::Null),
        (Value::String(text), Value::String(part)) => text_indices(cx, text.as_str(), part.as_str()),
        (Value::Array(list), Value::Array(part)) => indices(cx, list.as_slice(), part.as_slice()),
        (Value::Array(list), one) => indices(cx, list.as_slice(), std::slice::from_ref(one)),
        (input, key) => crate::access::get(cx, input, key),
    }),
];

fn each(cx: &Cx, input: &Value, wrong: &str, change: impl Fn(&str) -> String) -> Result<Value, Error> {
    match input {
        Value::String(text) => {
            cx.spend_bytes(text.as_str().len())?;
            cx.make.room(text.as_str().len())?;
            cx.make.text(change(text.as_str()))
        }
        _ => Err(cx.raise(wrong)),
    }
}

fn both<'v>(cx: &Cx, a: &'v Value, b: &'v Value, wrong: &str) -> Result<(&'v str, &'v str), Error> {
    match (a, b) {
        (Value::String(a), Value::String(b)) => {
            cx.spend_bytes(a.as_str().len())?;
            Ok((a.as_str(), b.as_str()))
        }
        _ => Err(cx.raise(wrong)),
    }
}

fn fromjson(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let Value::String(text) = &input else {
        return Err(cx.raise(format!("{} cannot be parsed as JSON", described(&input))));
    };
    let text = text.as_str();
    match text.trim() {
        "nan" | "NaN" | "-nan" | "-NaN" => return Ok(Value::Float(f64::NAN)),
        _ => {}
    }
    cx.spend_bytes(text.len() * 8)?;
    read(&cx.make, text).map_err(|error| match error {
        Wrong::Json(error) => cx.raise(format!("{} cannot be parsed as JSON: {error}", described(&input))),
        Wrong::Limit(error) => error,
    })
}

fn tonumber(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    match &input {
        Value::Int(_) | Value::Float(_) => Ok(input),
        Value::String(text) => {
            let text = text.as_str();
            cx.spend_bytes(text.len() * 4)?;
            let digits = text.strip_prefix('-').unwrap_or(text);
            let number = (digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
                && !digits.contains(['_', 'x', 'i', 'n']))
            .then(|| match text.parse::<i64>() {
                Ok(whole) => Some(Value::Int(whole)),
                Err(_) => text.parse().ok().map(Value::Float),
            });
            match number.flatten() {
                Some(number) => Ok(number),
                None if text == "nan" => Ok(Value::Float(f64::NAN)),
                None => Err(cx.raise(format!("{} cannot be parsed as a number", described(&input)))),
            }
        }
        other => Err(cx.raise(format!("{} cannot be parsed as a number", described(other)))),
    }
}

fn implode(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let Value::Array(list) = &input else {
        return Err(cx.raise(format!("{} cannot be imploded", described(&input))));
    };
    cx.spend(list.as_slice().len() as u64)?;
    cx.make.room(list.as_slice().len() * 4)?;
    let mut text = String::new();
    for item in list.as_slice() {
        let Some(number) = item.as_f64().filter(|number| !number.is_nan()) else {
            return Err(cx.raise("Unicode codepoint must be numeric"));
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to what fits")]
        let code = if number < 0.0 { u32::MAX } else { number.min(f64::from(u32::MAX)) as u32 };
        text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
    }
    cx.make.text(text)
}

fn text_indices(cx: &Cx, text: &str, part: &str) -> Result<Value, Error> {
    cx.spend_bytes(text.len() * 8)?;
    if part.is_empty() {
        return Ok(Value::Null);
    }
    let mut found = Vec::new();
    let (mut from, mut chars) = (0, 0);
    while let Some(at) = text[from..].find(part) {
        // Each search looks over the part first, and where parts overlap it reads one in full for each that it finds.
        cx.spend(1 + part.len() as u64 / 8)?;
        chars += text[from..from + at].chars().count();
        found.push(Value::from(chars));
        // They may overlap.
        let next = text[from + at..].chars().next().map_or(1, char::len_utf8);
        from += at + next;
        chars += 1;
    }
    cx.make.list(found)
}
