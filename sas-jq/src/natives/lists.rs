//! Of arrays, objects and any value.

use std::cmp::Ordering;

use super::{Native, native};
use crate::{
    Error,
    access::{self, described},
    arithmetic,
    ast::Arithmetic,
    cx::Cx,
    value::{List, Members, Value},
};

pub(crate) const NATIVES: &[Native] = &[
    native("length", 0, length),
    native("utf8bytelength", 0, |cx, input, _| match &input {
        Value::String(text) => Ok(text.as_str().len().into()),
        other => Err(cx.raise(format!("{} only strings have UTF-8 byte length", described(other)))),
    }),
    native("type", 0, |cx, input, _| cx.make.text(input.kind())),
    native("keys", 0, |cx, input, _| keys(cx, &input, true)),
    native("keys_unsorted", 0, |cx, input, _| keys(cx, &input, false)),
    native("has", 1, |cx, input, arguments| has(cx, &input, &arguments[0])),
    native("contains", 1, |cx, input, arguments| contains(cx, &input, &arguments[0]).map(Value::Bool)),
    native("add", 0, add),
    native("any", 0, |cx, input, _| values(cx, &input).map(|all| all.iter().any(|v| v.is_truthy()).into())),
    native("all", 0, |cx, input, _| values(cx, &input).map(|all| all.iter().all(|v| v.is_truthy()).into())),
    native("flatten", 0, |cx, input, _| flatten(cx, &input, 1e9)),
    native("flatten", 1, |cx, input, arguments| match arguments[0].as_f64() {
        Some(depth) if depth < 0.0 => Err(cx.raise("flatten depth must not be negative")),
        Some(depth) => flatten(cx, &input, depth),
        None => Err(cx.raise("flatten depth must be a number")),
    }),
    native("reverse", 0, reverse),
    native("sort", 0, |cx, input, _| {
        sorted(cx, &input, None, "sorted").map(|pairs| pairs.1).and_then(|s| cx.make.list(s))
    }),
    native("_sort_by", 1, |cx, input, arguments| {
        sorted(cx, &input, Some(&arguments[0]), "sorted").and_then(|pairs| cx.make.list(pairs.1))
    }),
    native("_group_by", 1, |cx, input, arguments| {
        let mut groups = Vec::new();
        for group in grouped(cx, &input, Some(&arguments[0]), "grouped")? {
            groups.push(cx.make.list(group)?);
        }
        cx.make.list(groups)
    }),
    native("unique", 0, |cx, input, _| unique(cx, &input, None)),
    native("_unique_by", 1, |cx, input, arguments| unique(cx, &input, Some(&arguments[0]))),
    native("min", 0, |cx, input, _| extreme(cx, &input, None, Ordering::Less)),
    native("max", 0, |cx, input, _| extreme(cx, &input, None, Ordering::Greater)),
    native("_min_by", 1, |cx, input, arguments| extreme(cx, &input, Some(&arguments[0]), Ordering::Less)),
    native("_max_by", 1, |cx, input, arguments| extreme(cx, &input, Some(&arguments[0]), Ordering::Greater)),
    native("bsearch", 1, bsearch),
    native("setpath", 2, |cx, input, arguments| {
        access::set_path_value(cx, input, &arguments[0], arguments[1].clone())
    }),
    native("delpaths", 1, |cx, input, arguments| access::delete_paths(cx, input, &arguments[0])),
    native("to_entries", 0, to_entries),
    native("from_entries", 0, from_entries),
    native("transpose", 0, transpose),
    native("builtins", 0, |cx, _, _| {
        let names = crate::compile::builtins();
        cx.spend(names.len() as u64)?;
        cx.make.list(names.into_iter().map(|name| cx.make.text(name)).collect::<Result<_, _>>()?)
    }),
];

fn length(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    Ok(match &input {
        Value::Null => 0.into(),
        Value::Bool(_) => return Err(cx.raise(format!("{} has no length", described(&input)))),
        Value::Int(_) | Value::Float(_) => Value::Float(input.as_f64().unwrap_or_default().abs()),
        Value::String(text) => {
            cx.spend_bytes(text.as_str().len())?;
            text.as_str().chars().count().into()
        }
        Value::Array(list) => list.as_slice().len().into(),
        Value::Object(map) => map.len().into(),
    })
}

fn keys(cx: &Cx, input: &Value, sort: bool) -> Result<Value, Error> {
    match input {
        Value::Object(map) => {
            cx.spend(map.len() as u64)?;
            let mut names: Vec<&str> = map.iter().map(|(name, _)| name).collect();
            if sort {
                names.sort_unstable();
            }
            cx.make.list(names.into_iter().map(|name| cx.make.text(name)).collect::<Result<_, _>>()?)
        }
        Value::Array(list) => {
            cx.spend(list.as_slice().len() as u64 / 4)?;
            cx.make.list((0..list.as_slice().len()).map(Value::from).collect())
        }
        other => Err(cx.raise(format!("{} has no keys", described(other)))),
    }
}

fn has(cx: &Cx, input: &Value, key: &Value) -> Result<Value, Error> {
    match (input, key) {
        (Value::Object(map), Value::String(name)) => Ok(map.get(name.as_str()).is_some().into()),
        (Value::Array(list), Value::Int(_) | Value::Float(_)) => {
            let index = key.as_f64().unwrap_or(f64::NAN);
            #[expect(clippy::cast_precision_loss, reason = "no array is that long")]
            Ok((index >= 0.0 && index < list.as_slice().len() as f64).into())
        }
        _ => Err(cx.raise(format!("Cannot check whether {} has a {} key", input.kind(), key.kind()))),
    }
}

fn contains(cx: &Cx, a: &Value, b: &Value) -> Result<bool, Error> {
    cx.spend(1)?;
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            for (name, b) in b.iter() {
                match a.get(name) {
                    Some(a) if contains(cx, a, b)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        (Value::Array(a), Value::Array(b)) => {
            for b in b.as_slice() {
                let mut found = false;
                for a in a.as_slice() {
                    cx.spend(1)?;
                    if a.kind() == b.kind() && contains(cx, a, b)? {
                        found = true;
                        break;
                    }
                }
                if !found {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        (Value::String(a), Value::String(b)) => {
            cx.spend_bytes(a.as_str().len())?;
            Ok(a.as_str().contains(b.as_str()))
        }
        (a, b) if a.kind() == b.kind() => Ok(a == b),
        (a, b) => {
            let message =
                format!("{} and {} cannot have their containment checked", described(a), described(b));
            Err(cx.raise(message))
        }
    }
}

/// The elements, or the members' values.
fn values(cx: &Cx, input: &Value) -> Result<Vec<Value>, Error> {
    match input {
        Value::Array(list) => {
            cx.spend(list.as_slice().len() as u64)?;
            cx.make.room(list.as_slice().len() * 16)?;
            Ok(list.as_slice().to_vec())
        }
        Value::Object(map) => {
            cx.spend(map.len() as u64)?;
            cx.make.room(map.len() * 16)?;
            Ok(map.members().values().cloned().collect())
        }
        other => Err(cx.raise(format!("Cannot iterate over {}", described(other)))),
    }
}

fn add(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let mut sum = Value::Null;
    for value in values(cx, &input)? {
        sum = arithmetic::apply(cx, Arithmetic::Add, sum, value)?;
    }
    Ok(sum)
}

fn list<'v>(cx: &Cx, input: &'v Value, what: &str) -> Result<&'v List, Error> {
    match input {
        Value::Array(list) => Ok(list),
        other => Err(cx.raise(format!("{} cannot be {what}, as it is not an array", described(other)))),
    }
}

fn flatten(cx: &Cx, input: &Value, depth: f64) -> Result<Value, Error> {
    fn into(cx: &Cx, items: &[Value], depth: f64, out: &mut Vec<Value>) -> Result<(), Error> {
        cx.spend(items.len() as u64)?;
        cx.make.room((out.len() + items.len()) * 16)?;
        for item in items {
            match item {
                Value::Array(inner) if depth > 0.0 => into(cx, inner.as_slice(), depth - 1.0, out)?,
                other => out.push(other.clone()),
            }
        }
        Ok(())
    }
    let mut out = Vec::new();
    into(cx, &values(cx, input)?, depth, &mut out)?;
    cx.make.list(out)
}

fn reverse(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    match &input {
        Value::Array(list) => {
            cx.spend(list.as_slice().len() as u64 / 4)?;
            cx.make.list(list.as_slice().iter().rev().cloned().collect())
        }
        Value::String(text) => {
            cx.spend_bytes(text.as_str().len())?;
            cx.make.text(text.as_str().chars().rev().collect::<String>())
        }
        Value::Null => cx.make.list(Vec::new()),
        other => Err(cx.raise(format!("Cannot reverse {}", described(other)))),
    }
}

/// Keys and elements, by keys; equal ones stay in order.
fn sorted(cx: &Cx, input: &Value, by: Option<&Value>, what: &str) -> Result<(Vec<Value>, Vec<Value>), Error> {
    let items = list(cx, input, what)?.as_slice();
    let keys = match by {
        Some(Value::Array(keys)) => keys.as_slice(),
        _ => items,
    };
    // Each comparison may walk over both keys.
    let heaviest = keys.iter().map(Value::weight).max().unwrap_or(0);
    let rounds = usize::BITS - items.len().leading_zeros();
    let total: usize = keys.iter().map(Value::weight).sum();
    cx.spend(items.len() as u64 * u64::from(rounds) / 4)?;
    cx.spend_bytes(total.saturating_mul(rounds as usize).max(heaviest))?;
    cx.make.room(items.len() * 40)?;
    let mut pairs: Vec<(&Value, &Value)> = keys.iter().zip(items).collect();
    pairs.sort_by(|a, b| a.0.order(b.0));
    Ok(pairs.into_iter().map(|(key, item)| (key.clone(), item.clone())).unzip())
}

fn grouped(cx: &Cx, input: &Value, by: Option<&Value>, what: &str) -> Result<Vec<Vec<Value>>, Error> {
    let (keys, items) = sorted(cx, input, by, what)?;
    let mut groups: Vec<Vec<Value>> = Vec::new();
    let mut last: Option<&Value> = None;
    for (key, item) in keys.iter().zip(items) {
        match (last, groups.last_mut()) {
            (Some(last), Some(group)) if last.order(key).is_eq() => group.push(item),
            _ => groups.push(vec![item]),
        }
        last = Some(key);
    }
    Ok(groups)
}

fn unique(cx: &Cx, input: &Value, by: Option<&Value>) -> Result<Value, Error> {
    let groups = grouped(cx, input, by, "sorted")?;
    cx.make.list(groups.into_iter().filter_map(|group| group.into_iter().next()).collect())
}

fn extreme(cx: &Cx, input: &Value, by: Option<&Value>, wanted: Ordering) -> Result<Value, Error> {
    let items = list(cx, input, "searched")?.as_slice();
    let keys = match by {
        Some(Value::Array(keys)) => keys.as_slice(),
        _ => items,
    };
    cx.spend(items.len() as u64)?;
    cx.spend_bytes(keys.iter().map(Value::weight).sum())?;
    let mut best: Option<(&Value, &Value)> = None;
    for (key, item) in keys.iter().zip(items) {
        let better = match best {
            None => true,
            Some((best, _)) => {
                let order = key.order(best);
                order == wanted || (order.is_eq() && wanted == Ordering::Greater)
            }
        };
        if better {
            best = Some((key, item));
        }
    }
    Ok(best.map(|(_, item)| item.clone()).unwrap_or_default())
}

fn bsearch(cx: &Cx, input: Value, arguments: &[Value]) -> Result<Value, Error> {
    let Value::Array(list) = &input else {
        return Err(cx.raise(format!("{} cannot be searched from", described(&input))));
    };
    // Each look may sort the members of all objects in both.
    let wanted = arguments[0].weight();
    let (mut from, mut to) = (0, list.as_slice().len());
    while from < to {
        let at = from.midpoint(to);
        let item = &list.as_slice()[at];
        cx.spend(1)?;
        cx.spend_bytes(wanted.saturating_add(item.weight()))?;
        match item.order(&arguments[0]) {
            Ordering::Equal => return Ok(at.into()),
            Ordering::Less => from = at + 1,
            Ordering::Greater => to = at,
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "no array is that long")]
    Ok(Value::Float(-1.0 - from as f64))
}

fn to_entries(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let Value::Object(map) = &input else {
        return Err(cx.raise(format!("{} has no keys", described(&input))));
    };
    cx.spend(map.len() as u64 * 2)?;
    let (key, value): (std::sync::Arc<str>, std::sync::Arc<str>) = ("key".into(), "value".into());
    let mut entries = Vec::new();
    for (name, member) in map.iter() {
        let mut entry = Members::with_capacity(2);
        entry.insert(key.clone(), cx.make.text(name)?);
        entry.insert(value.clone(), member.clone());
        entries.push(cx.make.map(entry)?);
    }
    cx.make.list(entries)
}

fn from_entries(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let mut members = Members::new();
    for entry in values(cx, &input)? {
        let field = |names: &[&str]| -> Result<Option<Value>, Error> {
            let mut found = None;
            for name in names {
                match &entry {
                    Value::Object(map) => {
                        if let Some(value) = map.get(name) {
                            if value.is_truthy() {
                                return Ok(Some(value.clone()));
                            }
                            found = found.or_else(|| Some(value.clone()));
                        }
                    }
                    Value::Null => {}
                    other => {
                        return Err(cx.raise(format!("Cannot index {} with \"{name}\"", other.kind())));
                    }
                }
            }
            Ok(found)
        };
        let key = field(&["key", "k", "name", "Name", "Key", "K"])?.unwrap_or_default();
        let key = match &key {
            Value::String(text) => text.as_str().to_owned(),
            Value::Int(_) | Value::Float(_) | Value::Bool(_) | Value::Null => key.to_string(),
            other => {
                return Err(cx.raise(format!("Cannot use {} as object key", described(other))));
            }
        };
        cx.make.room(members.len() * 64 + key.len())?;
        members.insert(key.into(), field(&["value", "v", "Value", "V"])?.unwrap_or_default());
    }
    cx.make.map(members)
}

fn transpose(cx: &Cx, input: Value, _: &[Value]) -> Result<Value, Error> {
    let rows = values(cx, &input)?;
    let row = |row: &Value| match row {
        Value::Array(list) => Ok(list.as_slice().to_vec()),
        other => Err(cx.raise(format!("Cannot transpose {}", described(other)))),
    };
    let widths = rows.iter().map(|row| match row {
        Value::Array(list) => list.as_slice().len(),
        _ => 0,
    });
    let width = widths.max().unwrap_or(0);
    cx.make.room(width.saturating_mul(rows.len()).saturating_mul(16))?;
    cx.spend((width * rows.len()) as u64)?;
    let rows: Vec<Vec<Value>> = rows.iter().map(row).collect::<Result<_, _>>()?;
    let columns = (0..width)
        .map(|at| cx.make.list(rows.iter().map(|row| row.get(at).cloned().unwrap_or_default()).collect()));
    cx.make.list(columns.collect::<Result<_, _>>()?)
}
