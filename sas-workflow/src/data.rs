//! Expressions, and data with expressions in it.

use std::{collections::BTreeMap, time::Duration};

use sas_jq::{Error, Limits, Program, Value};
use serde_json::Value as Json;

use crate::mistakes::{Mistakes, below, shown};

/// What every expression may ask for.
pub(crate) const ARGUMENTS: [&str; 9] =
    ["context", "input", "output", "secrets", "secret", "authorization", "task", "workflow", "runtime"];

/// What one evaluation may take.
pub(crate) const LIMITS: Limits = Limits { steps: 500_000, bytes: 8 << 20 };

/// How many bytes a fork, or a listener, may hold of what came of its branches, or of events.
pub(crate) const HELD: usize = 64 << 20;

/// The values of the variables, by name.
pub(crate) type Variables = BTreeMap<String, Value>;

/// An expression in jq.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    program: Program,
    /// Whether it may give a secret's value.
    secret: bool,
}

impl Expression {
    /// Reads an expression, with or without `${ }` around it.
    pub(crate) fn read(at: &str, text: &str, names: &[String], mistakes: &mut Mistakes) -> Option<Self> {
        let inner = whole(text).unwrap_or(text);
        let variables: Vec<&str> = ARGUMENTS.into_iter().chain(names.iter().map(String::as_str)).collect();
        let read = Program::parse(inner, &variables);
        // jq has no apostrophes outside of texts, so that they may quote texts, as other runtimes of the language let them.
        let read = read.or_else(|error| Program::parse(&quoted(inner), &variables).map_err(|_| error));
        match read {
            // No name is split, so that every mention is written like this.
            Ok(program) => Some(Self { program, secret: inner.contains("$secret") }),
            Err(error) => {
                mistakes.push(at, format!("no expression in jq: {error}"));
                None
            }
        }
    }

    pub(crate) fn evaluate(&self, input: Value, variables: &Variables) -> Result<Value, Error> {
        let values: Vec<Value> =
            self.program.variables().map(|name| variables.get(name).cloned().unwrap_or_default()).collect();
        Ok(self.program.first(input, &values, &LIMITS)?.unwrap_or_default())
    }

    pub(crate) fn mentions_secrets(&self) -> bool {
        self.secret
    }
}

/// The expression with quotation marks where apostrophes quote.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    let (mut inside, mut escaped) = (None, false);
    for c in text.chars() {
        match (inside, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (None, '"' | '\'') => inside = Some(c),
            (Some(quote), c) if quote == c => inside = None,
            (Some('\''), '"') => out.push('\\'),
            _ => {}
        }
        out.push(if c == '\'' && inside != Some('"') { '"' } else { c });
    }
    out
}

/// The inside of `${ ... }`, when that is all that a text is.
fn whole(text: &str) -> Option<&str> {
    let text = text.trim();
    let (inner, rest) = first(text.strip_prefix("${")?)?;
    rest.is_empty().then_some(inner)
}

/// Up to the brace that closes an expression, and what follows it.
fn first(text: &str) -> Option<(&str, &str)> {
    let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'{' if !quoted => depth += 1,
            b'}' if !quoted && depth == 0 => return Some((&text[..at], &text[at + 1..])),
            b'}' if !quoted => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Data in which `${ }` stands for what it evaluates to.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    Constant(Value),
    Expression(Expression),
    Text(Vec<Piece>),
    List(Vec<Data>),
    Map(Vec<(String, Data)>),
}

#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Text(String),
    Expression(Expression),
}

impl Data {
    pub(crate) fn read(at: &str, json: &Json, names: &[String], mistakes: &mut Mistakes) -> Option<Self> {
        Some(match json {
            Json::String(text) if text.contains("${") => Self::text(at, text, names, mistakes)?,
            Json::Array(items) => Self::List(
                items
                    .iter()
                    .enumerate()
                    .filter_map(|(n, item)| Self::read(&format!("{at}/{n}"), item, names, mistakes))
                    .collect(),
            ),
            Json::Object(members) => Self::Map(
                members
                    .iter()
                    .filter_map(|(name, value)| {
                        Some((name.clone(), Self::read(&below(at, name), value, names, mistakes)?))
                    })
                    .collect(),
            ),
            constant => Self::Constant(Value::from_json(constant).ok()?),
        })
    }

    /// As `read`, but that a bare text is an expression.
    pub(crate) fn expression(
        at: &str,
        json: &Json,
        names: &[String],
        mistakes: &mut Mistakes,
    ) -> Option<Self> {
        match json {
            Json::String(text) => Expression::read(at, text, names, mistakes).map(Self::Expression),
            Json::Object(_) | Json::Array(_) => Self::read(at, json, names, mistakes),
            other => {
                mistakes.push(at, format!("is {}, must be an expression or an object", shown(other)));
                None
            }
        }
    }

    fn text(at: &str, text: &str, names: &[String], mistakes: &mut Mistakes) -> Option<Self> {
        if let Some(inner) = whole(text) {
            return Expression::read(at, inner, names, mistakes).map(Self::Expression);
        }
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            if !before.is_empty() {
                pieces.push(Piece::Text(before.to_owned()));
            }
            let Some((inner, after)) = first(after) else {
                mistakes.push(at, format!("{text:?}: an expression has no end: write ${{ ... }}"));
                return None;
            };
            pieces.push(Piece::Expression(Expression::read(at, inner, names, mistakes)?));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Some(Self::Text(pieces))
    }

    pub(crate) fn mentions_secrets(&self) -> bool {
        match self {
            Self::Constant(_) => false,
            Self::Expression(expression) => expression.mentions_secrets(),
            Self::Text(pieces) => pieces.iter().any(|piece| match piece {
                Piece::Text(_) => false,
                Piece::Expression(expression) => expression.mentions_secrets(),
            }),
            Self::List(items) => items.iter().any(Self::mentions_secrets),
            Self::Map(members) => members.iter().any(|(_, data)| data.mentions_secrets()),
        }
    }

    /// The data with its expressions evaluated; in all, they may make of it what one of them may.
    pub(crate) fn evaluate(&self, input: &Value, variables: &Variables) -> Result<Value, Error> {
        match self {
            Self::Expression(expression) => expression.evaluate(input.clone(), variables),
            data => {
                let mut left = LIMITS.bytes;
                data.within(input, variables, &mut left)
            }
        }
    }

    fn within(&self, input: &Value, variables: &Variables, left: &mut usize) -> Result<Value, Error> {
        let made = match self {
            Self::Constant(value) => return Ok(value.clone()),
            Self::Expression(expression) => expression.evaluate(input.clone(), variables)?,
            Self::Text(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        Piece::Text(piece) => text.push_str(piece),
                        Piece::Expression(expression) => {
                            let value = expression.evaluate(input.clone(), variables)?;
                            match value.as_str() {
                                Some(piece) => text.push_str(piece),
                                None => text.push_str(&value.to_string()),
                            }
                        }
                    }
                    if text.len() > LIMITS.bytes {
                        return Err(Error::Bytes(LIMITS.bytes));
                    }
                }
                text.into()
            }
            Self::List(items) => {
                let items = items.iter().map(|item| item.within(input, variables, left));
                return Value::list(items.collect::<Result<_, _>>()?);
            }
            Self::Map(members) => {
                let members = members
                    .iter()
                    .map(|(name, data)| Ok((name.clone(), data.within(input, variables, left)?)));
                return Value::object(members.collect::<Result<Vec<_>, Error>>()?);
            }
        };
        *left = left.checked_sub(made.weight()).ok_or(Error::Bytes(LIMITS.bytes))?;
        Ok(made)
    }
}

/// A time to wait: fixed, or what an expression says.
#[derive(Clone, Debug)]
pub(crate) enum Span {
    Fixed(Duration),
    Computed(Expression),
}

/// The longest span: a hundred years.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 86_400);

impl Span {
    pub(crate) fn mentions_secrets(&self) -> bool {
        matches!(self, Self::Computed(expression) if expression.mentions_secrets())
    }

    pub(crate) fn read(at: &str, json: &Json, names: &[String], mistakes: &mut Mistakes) -> Option<Self> {
        if let Json::String(text) = json
            && let Some(inner) = whole(text)
        {
            return Expression::read(at, inner, names, mistakes).map(Self::Computed);
        }
        match span(json) {
            Ok(span) => Some(Self::Fixed(span)),
            Err((below, problem)) => {
                mistakes.push(&format!("{at}{below}"), problem);
                None
            }
        }
    }

    pub(crate) fn evaluate(&self, input: &Value, variables: &Variables) -> Result<Duration, Error> {
        match self {
            Self::Fixed(span) => Ok(*span),
            Self::Computed(expression) => {
                let value = expression.evaluate(input.clone(), variables)?;
                span(&value.to_json()).map_err(|(_, problem)| Error::Raised(problem.into()))
            }
        }
    }
}

fn span(json: &Json) -> Result<Duration, (String, String)> {
    let wrong = |problem: String| (String::new(), problem);
    let total = match json {
        Json::Object(members) if !members.is_empty() => {
            let mut total = Duration::ZERO;
            for (name, value) in members {
                let below = below("", name);
                let Some(count) = value.as_u64() else {
                    return Err((below, format!("is {}, must be a whole number, 0 or more", shown(value))));
                };
                let millis: u64 = match name.as_str() {
                    "days" => 86_400_000,
                    "hours" => 3_600_000,
                    "minutes" => 60_000,
                    "seconds" => 1_000,
                    "milliseconds" => 1,
                    _ => {
                        let problem = "unknown; known are days, hours, minutes, seconds, milliseconds";
                        return Err((below, problem.to_owned()));
                    }
                };
                let millis = count.saturating_mul(millis);
                total = total.saturating_add(Duration::from_millis(millis));
            }
            total
        }
        Json::String(text) => {
            let span: jiff::Span = text.parse().ok().filter(|_| text.starts_with('P')).ok_or_else(|| {
                wrong(format!("is {text:?}, must be a duration as in PT1M30S or {{seconds: 90}}"))
            })?;
            // A year has 365 days here, a month 30: a wait has no calendar.
            let days = i64::from(span.get_years()) * 365
                + i64::from(span.get_months()) * 30
                + i64::from(span.get_weeks()) * 7
                + i64::from(span.get_days());
            let seconds = days
                .saturating_mul(86_400)
                .saturating_add(i64::from(span.get_hours()).saturating_mul(3_600))
                .saturating_add(span.get_minutes().saturating_mul(60))
                .saturating_add(span.get_seconds());
            let millis = seconds
                .saturating_mul(1_000)
                .saturating_add(span.get_milliseconds())
                .saturating_add(span.get_microseconds() / 1_000)
                .saturating_add(span.get_nanoseconds() / 1_000_000);
            Duration::from_millis(
                u64::try_from(millis).map_err(|_| wrong(format!("is {text:?}, must not be negative")))?,
            )
        }
        other => {
            return Err(wrong(format!(
                "is {}, must be a duration as in PT1M30S or {{seconds: 90}}",
                shown(other)
            )));
        }
    };
    if total > LONGEST {
        return Err(wrong(format!("is {}, must be at most a hundred years", shown(json))));
    }
    Ok(total)
}
