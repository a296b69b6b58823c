//! Regular expressions, by `regex`: time is linear in the text, and what looks around or refers back is refused.

use regex::{Captures, Regex, RegexBuilder};

use super::{Native, native};
use crate::{
    Error,
    access::described,
    cx::{Cx, Pattern},
    value::{Members, Value},
};

pub(crate) const NATIVES: &[Native] = &[native("_match", 3, matches)];

/// Sizes that a compiled expression may have, in bytes: the smallest that holds it is what it pays for, with each byte of
/// the text, as the larger it is, the more places of it a search may be at.
const SIZES: [usize; 6] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 512 << 10];
/// What `\w` and `\d` take of that, of which a search is at a few places only.
const WORD: usize = 12 << 10;
const DIGIT: usize = 6 << 10;
/// What all that are kept compiled may take.
const KEPT_BYTES: usize = 512 << 10;
/// How many are kept compiled.
const KEPT: usize = 8;
/// The longest pattern, in bytes.
const LONGEST: usize = 4 << 10;
/// What a class of Unicode (`\w`, `\p{…}`) takes while a pattern is read, in bytes, and the steps for it.
const CLASS: (usize, u64) = (8 << 10, 250);
/// The steps for it where case is ignored: each of its characters is looked at.
const FOLDED: u64 = 20_000;

/// What reading a pattern takes: steps and bytes.
fn reading(pattern: &str, ignores_case: bool) -> (u64, usize) {
    let ignores_case = ignores_case || pattern.contains("(?");
    let (mut steps, mut bytes) = (pattern.len() as u64 * 20, pattern.len() * 256);
    let mut bracketed = 0_usize;
    let mut rest = pattern.chars().peekable();
    let mut last = None;
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                let escaped = rest.next();
                if matches!(escaped, Some('w' | 'W' | 'd' | 'D' | 's' | 'S' | 'p' | 'P')) {
                    steps += CLASS.1;
                    bytes += CLASS.0;
                }
                if ignores_case && matches!(escaped, Some('p' | 'P')) {
                    steps += FOLDED;
                }
                last = None;
                continue;
            }
            '[' => bracketed += 1,
            ']' => bracketed = bracketed.saturating_sub(1),
            // A range, of all characters where its ends are not plain to see.
            '-' if ignores_case && bracketed > 0 => match (last, rest.peek()) {
                (Some(from), Some(to)) if *to != '\\' => {
                    steps += u64::from(u32::from(*to).saturating_sub(u32::from(from))) / 32;
                }
                _ => steps += FOLDED,
            },
            _ => {}
        }
        last = Some(c);
    }
    (steps, bytes)
}

/// The most flags: each of them counts once.
const MOST_FLAGS: usize = 64;

/// Compiles, or takes what was compiled before; with it the steps for 64 bytes of text.
fn compiled(cx: &Cx, pattern: &str, flags: &str) -> Result<(Regex, u64), Error> {
    if flags.len() > MOST_FLAGS {
        return Err(cx.raise(format!("{} flags; at most {MOST_FLAGS}", flags.len())));
    }
    if pattern.len() > LONGEST {
        return Err(cx.raise(format!("a regex of {} bytes; at most {LONGEST}", pattern.len())));
    }
    cx.spend_bytes(pattern.len() * 2)?;
    let key = format!("{flags}/{pattern}");
    let mut kept = cx.patterns.borrow_mut();
    if let Some(known) = kept.iter().find(|known| known.key == key) {
        return Ok((known.regex.clone(), known.per_block));
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.nest_limit(50);
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
    let (steps, bytes) = reading(pattern, flags.contains('i'));
    let mut built = None;
    for size in SIZES {
        cx.spend(steps + 250 + size as u64 / 4)?;
        cx.make.room(bytes + size)?;
        let one = builder.size_limit(size).dfa_size_limit(size.max(64 << 10)).build();
        let larger = matches!(one, Err(regex::Error::CompiledTooBig(_)));
        built = Some((one, size));
        if !larger {
            break;
        }
    }
    let Some((regex, size)) = built else {
        return Err(cx.raise(format!("{pattern} is not compiled")));
    };
    let classes = pattern.matches("\\w").count() * WORD + pattern.matches("\\d").count() * DIGIT;
    let per_block = size.saturating_sub(classes).max(size / 4) as u64 / 64;
    let regex = regex.map_err(|error| {
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        cx.raise(format!("{pattern} (at offset 0) is not a valid regex: {reason}"))
    })?;
    while kept.len() == KEPT || kept.iter().map(|one| one.size).sum::<usize>() + size > KEPT_BYTES {
        if kept.pop_front().is_none() {
            break;
        }
    }
    // Beside the expression itself there is what it remembers of a search.
    let charge = cx.make.charge(size * 2)?;
    kept.push_back(Pattern { key, regex: regex.clone(), size, per_block, _charge: charge });
    Ok((regex, per_block))
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
    let (regex, per_block) = compiled(cx, pattern, flags)?;
    let search = |bytes: usize| cx.spend((bytes as u64).saturating_mul(per_block) / 64);
    search(text.len())?;
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
    // What each group matched is looked for once more.
    search(text.len())?;
    let names: Vec<Option<&str>> = regex.capture_names().skip(1).collect();
    let mut found = Vec::new();
    let mut counter = Counter { text, at: 0, chars: 0 };
    let mut from = 0;
    // Each search may go over all of the rest.
    while from <= text.len() {
        cx.spend(4 + names.len() as u64 * 4)?;
        search((text.len() - from) / 8)?;
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
