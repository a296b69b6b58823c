//! `@text`, `@json` and the others.

use std::fmt::Write as _;

use base64::Engine as _;

use crate::{Error, access::described, cx::Cx, value::Value};

#[derive(Clone, Copy, Debug)]
pub(crate) enum Format {
    Text,
    Json,
    Csv,
    Tsv,
    Html,
    Uri,
    Urid,
    Sh,
    Base64,
    Base64d,
    Base32,
    Base32d,
}

impl Format {
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "@text" => Self::Text,
            "@json" => Self::Json,
            "@csv" => Self::Csv,
            "@tsv" => Self::Tsv,
            "@html" => Self::Html,
            "@uri" => Self::Uri,
            "@urid" => Self::Urid,
            "@sh" => Self::Sh,
            "@base64" => Self::Base64,
            "@base64d" => Self::Base64d,
            "@base32" => Self::Base32,
            "@base32d" => Self::Base32d,
            _ => return None,
        })
    }

    pub(crate) fn apply(self, cx: &Cx, value: &Value) -> Result<Value, Error> {
        match self {
            Self::Text if matches!(value, Value::String(_)) => return Ok(value.clone()),
            Self::Csv => return row(cx, value, "csv", ",", csv),
            Self::Tsv => return row(cx, value, "tsv", "\t", tsv),
            Self::Sh => return sh(cx, value),
            Self::Json => return json(cx, value),
            _ => {}
        }
        let text = to_text(cx, value)?;
        let text = text.as_str().unwrap_or_default();
        cx.spend_bytes(text.len() * 4)?;
        cx.make.room(text.len() * 6)?;
        let wrong = |what: &str| cx.raise(format!("{} {what}", described(value)));
        let out = match self {
            Self::Html => {
                let mut out = String::new();
                for c in text.chars() {
                    match c {
                        '<' => out.push_str("&lt;"),
                        '>' => out.push_str("&gt;"),
                        '&' => out.push_str("&amp;"),
                        '\'' => out.push_str("&#39;"),
                        '"' => out.push_str("&quot;"),
                        c => out.push(c),
                    }
                }
                out
            }
            Self::Uri => {
                let mut out = String::new();
                for b in text.bytes() {
                    if b.is_ascii_alphanumeric() || b"-_.~".contains(&b) {
                        out.push(char::from(b));
                    } else {
                        let _ = write!(out, "%{b:02X}");
                    }
                }
                out
            }
            Self::Urid => unescaped(text).ok_or_else(|| wrong("is not a valid uri encoding"))?,
            Self::Base64 => base64::engine::general_purpose::STANDARD.encode(text),
            Self::Base64d => {
                let digits = text.trim_end_matches('=');
                if digits.len() % 4 == 1 {
                    return Err(wrong("trailing base64 byte found"));
                }
                let engine = base64::engine::GeneralPurpose::new(
                    &base64::alphabet::STANDARD,
                    base64::engine::general_purpose::NO_PAD.with_decode_allow_trailing_bits(true),
                );
                let bytes = engine.decode(digits).map_err(|_| wrong("is not valid base64 data"))?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Self::Base32 => data_encoding::BASE32.encode(text.as_bytes()),
            Self::Base32d => {
                let digits = text.trim_end_matches('=').as_bytes();
                let bytes = data_encoding::BASE32_NOPAD
                    .decode(digits)
                    .map_err(|_| wrong("is not valid base32 data"))?;
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Self::Text | Self::Json | Self::Csv | Self::Tsv | Self::Sh => text.to_owned(),
        };
        cx.make.text(out)
    }
}

fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, more)) = rest.split_first() {
        rest = more;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = rest.get(..2).filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

pub(crate) fn json(cx: &Cx, value: &Value) -> Result<Value, Error> {
    cx.spend_bytes(value.weight())?;
    let live = cx.make.meter.as_ref().map_or(0, crate::value::Meter::live);
    let most = cx.make.most.saturating_sub(live);
    let mut out = String::new();
    value.write(&mut out, most);
    if out.len() > most {
        return Err(Error::Bytes(cx.make.most));
    }
    cx.make.text(out)
}

/// `tostring`.
pub(crate) fn to_text(cx: &Cx, value: &Value) -> Result<Value, Error> {
    match value {
        Value::String(_) => Ok(value.clone()),
        other => json(cx, other),
    }
}

fn row(
    cx: &Cx,
    value: &Value,
    name: &str,
    separator: &str,
    field: fn(&str, &mut String),
) -> Result<Value, Error> {
    let Value::Array(list) = value else {
        return Err(
            cx.raise(format!("{} cannot be {name}-formatted, only an array can be", described(value)))
        );
    };
    cx.spend_bytes(value.weight())?;
    cx.make.room(value.weight())?;
    let mut out = String::new();
    for (at, item) in list.as_slice().iter().enumerate() {
        if at > 0 {
            out.push_str(separator);
        }
        match item {
            Value::Null => {}
            Value::String(text) => field(text.as_str(), &mut out),
            Value::Array(_) | Value::Object(_) => {
                return Err(cx.raise(format!("{} is not valid in a {name} row", described(item))));
            }
            other => other.write(&mut out, usize::MAX),
        }
    }
    cx.make.text(out)
}

fn csv(text: &str, out: &mut String) {
    out.push('"');
    out.push_str(&text.replace('"', "\"\""));
    out.push('"');
}

fn tsv(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\\' => out.push_str("\\\\"),
            c => out.push(c),
        }
    }
}

fn sh(cx: &Cx, value: &Value) -> Result<Value, Error> {
    let one = std::slice::from_ref(value);
    let items = if let Value::Array(list) = value { list.as_slice() } else { one };
    cx.spend_bytes(value.weight())?;
    cx.make.room(value.weight() * 4)?;
    let mut out = String::new();
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            out.push(' ');
        }
        match item {
            Value::String(text) => {
                out.push('\'');
                out.push_str(&text.as_str().replace('\'', "'\\''"));
                out.push('\'');
            }
            Value::Array(_) | Value::Object(_) => {
                return Err(cx.raise(format!("{} can not be escaped for shell", described(item))));
            }
            other => other.write(&mut out, usize::MAX),
        }
    }
    cx.make.text(out)
}
