//! Regular expressions, by `regex`: time is linear in the text, and what looks around or refers back is refused.

use regex::{Captures, Regex, RegexBuilder};

use super::{Native, native};
use crate::{
    Error,
    access::described,
    cx::Cx,
    value::{Members, Value},
};

pub(crate) const NATIVES: &[Native] = &[native("_match", 3, matches)];

/// What a compiled expression may take, in bytes.
const COMPILED: usize = 512 << 10;
/// How many are kept compiled.
const KEPT: usize = 8;

/// The most flags: each of them counts once.
const MOST_FLAGS: usize = 64;

fn compiled(cx: &Cx, pattern: &str, flags: &str) -> Result<Regex, Error> {
    if flags.len() > MOST_FLAGS {
        return Err(cx.raise(format!("{} flags; at most {MOST_FLAGS}", flags.len())));
    }
    cx.spend_bytes(pattern.len() * 2)?;
    let key = format!("{flags}/{pattern}");
    let mut kept = cx.patterns.borrow_mut();
    if let Some((_, regex)) = kept.iter().find(|(known, _)| *known == key) {
        return Ok(regex.clone());
    }
    cx.spend(2_000 + pattern.len() as u64 * 20)?;
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(COMPILED).dfa_size_limit(COMPILED).nest_limit(50);
    for flag in flags.chars() {
        match flag {
            'g' | 'n' | 's' => {}
            'i' => {
                builder.case_insensitive(true);
            }
            'x' => {
                builder.ignore_whitespace(true);
            }
            'p' => {
                builder.dot_matches_new_line(true);
            }
            'l' => return Err(cx.raise("the flag l (longest match) is not supported")),
            _ => return Err(cx.raise(format!("{flags} is not a valid modifier string"))),
        }
    }
    let regex = builder.build().map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        cx.raise(format!("{pattern} (at offset 0) is not a valid regex: {reason}"))
    })?;
    if kept.len() == KEPT {
        kept.pop_front();
    }
    kept.push_back((key, regex.clone()));
    Ok(regex)
}

/// Of a text: all matches of `[pattern, flags, whether it is only asked whether there is one]`.
fn matches(cx: &Cx, input: Value, arguments: &[Value]) -> Result<Value, Error> {
    let Value::String(text) = &input else {
        return Err(cx.raise(format!("{} cannot be matched, as it is not a string", described(&input))));
    };
    let text = text.as_str();
    let pattern = match &arguments[0] {
        Value::String(pattern) => pattern.as_str(),
        other => {
            return Err(cx.raise(format!("{} cannot be matched, as it is not a string", described(other))));
        }
    };
    let flags = match &arguments[1] {
        Value::Null => "",
        Value::String(flags) => flags.as_str(),
        other => return Err(cx.raise(format!("{} is not a string", described(other)))),
    };
    let regex = compiled(cx, pattern, flags)?;
    cx.spend_bytes(text.len() * 16)?;
    let skips_empty = flags.contains('n');
    let all = flags.contains('g');
    if arguments[2].is_truthy() {
        let found = if skips_empty {
            regex.find_iter(text).any(|found| !found.is_empty())
        } else {
            regex.is_match(text)
        };
        return Ok(found.into());
    }
    let names: Vec<Option<&str>> = regex.capture_names().skip(1).collect();
    let mut found = Vec::new();
    let mut counter = Counter { text, at: 0, chars: 0 };
    let mut from = 0;
    // Each search may go over all of the rest.
    while from <= text.len() {
        cx.spend(4 + names.len() as u64 * 4)?;
        cx.spend_bytes(text.len() - from)?;
        let Some(captures) = regex.captures_at(text, from) else { break };
        let whole = captures.get(0).map_or(from..from, |whole| whole.range());
        from = if whole.is_empty() {
            whole.end + text[whole.end..].chars().next().map_or(1, char::len_utf8)
        } else {
            whole.end
        };
        if skips_empty && whole.is_empty() {
            continue;
        }
        found.push(one(cx, &mut counter, &captures, &names)?);
        if !all {
            break;
        }
    }
    cx.make.list(found)
}

/// Offsets in characters, counted on from the last.
struct Counter<'t> {
    text: &'t str,
    at: usize,
    chars: usize,
}

impl Counter<'_> {
    fn chars(&mut self, at: usize) -> usize {
        if at >= self.at {
            self.chars += self.text[self.at..at].chars().count();
        } else {
            self.chars -= self.text[at..self.at].chars().count();
        }
        self.at = at;
        self.chars
    }
}

fn one(
    cx: &Cx,
    counter: &mut Counter<'_>,
    captures: &Captures<'_>,
    names: &[Option<&str>],
) -> Result<Value, Error> {
    let mut part = |group: usize| -> Result<Members, Error> {
        let mut members = Members::new();
        match captures.get(group) {
            Some(found) => {
                cx.spend_bytes(found.len() * 2)?;
                members.insert("offset".into(), counter.chars(found.start()).into());
                members.insert("length".into(), found.as_str().chars().count().into());
                members.insert("string".into(), cx.make.text(found.as_str())?);
            }
            None => {
                members.insert("offset".into(), Value::Int(-1));
                members.insert("length".into(), Value::Int(0));
                members.insert("string".into(), Value::Null);
            }
        }
        Ok(members)
    };
    let mut whole = part(0)?;
    let mut groups = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let mut group = part(at + 1)?;
        group.insert("name".into(), name.map_or(Ok(Value::Null), |name| cx.make.text(name))?);
        groups.push(cx.make.map(group)?);
    }
    whole.insert("captures".into(), cx.make.list(groups)?);
    cx.make.map(whole)
}
