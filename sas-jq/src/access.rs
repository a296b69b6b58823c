//! Into values and out of them: indices, slices, paths.

use std::cmp::Ordering;

use crate::{
    Error,
    cx::Cx,
    value::{DEEPEST, List, Maker, Members, Value},
};

/// The longest path.
const LONGEST_PATH: usize = 10_000;

/// A value in a message: as JSON, short.
pub(crate) fn shown(value: &Value) -> String {
    const MOST: usize = 29;
    let mut text = String::new();
    value.write(&mut text, MOST);
    if text.len() <= MOST {
        return text;
    }
    let mut cut = MOST - 3;
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    text.truncate(cut);
    text.push_str("...");
    text
}

/// `kind (value)`.
pub(crate) fn described(value: &Value) -> String {
    format!("{} ({})", value.kind(), shown(value))
}

#[expect(clippy::cast_possible_truncation, reason = "floats become integers at their bounds")]
fn whole(number: f64) -> i64 {
    number.floor() as i64
}

fn length(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The place that an index means, when it is one.
fn place(list: &List, index: f64) -> Option<usize> {
    if index.is_nan() {
        return None;
    }
    let index = whole(index);
    let index = if index < 0 { index + length(list.as_slice().len()) } else { index };
    usize::try_from(index).ok()
}

/// The object that a slice is known by.
pub(crate) fn slice_key(cx: &Cx, from: Value, to: Value) -> Result<Value, Error> {
    let mut members = Members::new();
    members.insert("start".into(), from);
    members.insert("end".into(), to);
    cx.make.map(members)
}

/// From where to where a slice of so many goes.
fn bounds(cx: &Cx, key: &Value, count: usize) -> Result<(usize, usize), Error> {
    let bound = |name: &str, other: f64, up: bool| match key {
        Value::Object(map) => match map.get(name) {
            None | Some(Value::Null) => Ok(other),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_nan() => Ok(if up { f64::INFINITY } else { 0.0 }),
                Some(number) => Ok(number),
                None => Err(cx.raise("Start and end indices of an array slice must be numbers")),
            },
        },
        _ => Err(cx.raise("A slice is an object of start and end")),
    };
    #[expect(clippy::cast_precision_loss, reason = "no array is that long")]
    let count_f = count as f64;
    let turn = |bound: f64| if bound < 0.0 { bound + count_f } else { bound }.clamp(0.0, count_f);
    let from = turn(bound("start", 0.0, false)?);
    let to = turn(bound("end", count_f, true)?).max(from);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
    let (from, to) = (from.floor() as usize, (to.ceil() as usize).min(count));
    Ok((from, to.max(from)))
}

/// `value[key]`.
pub(crate) fn get(cx: &Cx, value: &Value, key: &Value) -> Result<Value, Error> {
    match (value, key) {
        (Value::Object(map), Value::String(name)) => Ok(map.get(name.as_str()).cloned().unwrap_or_default()),
        (Value::Array(list), Value::Int(_) | Value::Float(_)) => {
            let at = key.as_f64().and_then(|index| place(list, index));
            Ok(at.and_then(|at| list.as_slice().get(at)).cloned().unwrap_or_default())
        }
        (Value::Array(list), Value::Object(_)) => {
            let (from, to) = bounds(cx, key, list.as_slice().len())?;
            cx.spend((to - from) as u64 / 8)?;
            cx.make.list(list.as_slice()[from..to].to_vec())
        }
        (Value::String(text), Value::Object(_)) => {
            let text = text.as_str();
            cx.spend_bytes(text.len())?;
            let (from, to) = bounds(cx, key, text.chars().count())?;
            let mut places = text.char_indices().map(|(at, _)| at).chain([text.len()]);
            let start = places.nth(from).unwrap_or(text.len());
            let end = if to == from { start } else { places.nth(to - from - 1).unwrap_or(text.len()) };
            cx.make.text(&text[start..end])
        }
        (Value::Null, Value::String(_) | Value::Int(_) | Value::Float(_) | Value::Null) => Ok(Value::Null),
        (Value::Null, Value::Object(_)) => bounds(cx, key, 0).map(|_| Value::Null),
        (Value::Array(list), Value::Array(part)) => indices(cx, list.as_slice(), part.as_slice()),
        _ => Err(cannot_index(cx, value, key)),
    }
}

fn cannot_index(cx: &Cx, value: &Value, key: &Value) -> Error {
    match (value, key) {
        (Value::Array(_) | Value::Object(_), Value::Null)
        | (_, Value::String(_) | Value::Int(_) | Value::Float(_)) => {
            cx.raise(format!("Cannot index {} with {}", value.kind(), described(key)))
        }
        _ => cx.raise(format!("Cannot index {} with {}", value.kind(), described(key))),
    }
}

/// Where `part` begins in `list`.
pub(crate) fn indices(cx: &Cx, list: &[Value], part: &[Value]) -> Result<Value, Error> {
    if part.is_empty() || part.len() > list.len() {
        return cx.make.list(Vec::new());
    }
    let mut found = Vec::new();
    let cost: usize = part.iter().map(Value::weight).sum();
    let first = part.first().map_or(0, Value::weight);
    for (at, window) in list.windows(part.len()).enumerate() {
        cx.spend(1)?;
        cx.spend_bytes(first.min(window.first().map_or(0, Value::weight)))?;
        if window.first() == part.first() {
            cx.spend_bytes(cost)?;
            if window == part {
                found.push(at.into());
            }
        }
    }
    cx.make.list(found)
}

/// `value[key] = new`.
fn set(cx: &Cx, value: Value, key: &Value, new: Value) -> Result<Value, Error> {
    match (value, key) {
        (Value::Null, Value::String(_)) => set(cx, cx.make.map(Members::new())?, key, new),
        (Value::Null, Value::Int(_) | Value::Float(_) | Value::Object(_)) => {
            set(cx, cx.make.list(Vec::new())?, key, new)
        }
        (Value::Object(mut map), Value::String(name)) => {
            if let Some((at, _, _)) = map.members().get_full(name.as_str()) {
                let name = map.members().get_index(at).map(|(name, _)| name.clone());
                cx.make.set_member(&mut map, name.unwrap_or_else(|| name_of(key)), new)?;
            } else {
                cx.make.set_member(&mut map, name.as_str().into(), new)?;
            }
            Ok(Value::Object(map))
        }
        (Value::Array(mut list), Value::Int(_) | Value::Float(_)) => {
            let index = key.as_f64().unwrap_or(f64::NAN);
            if index.is_nan() {
                return Err(cx.raise("Cannot set array element at NaN index"));
            }
            let Some(at) = place(&list, index) else {
                return Err(cx.raise("Out of bounds negative array index"));
            };
            if at > cx.make.most / 16 {
                return Err(cx.raise("Array index too large"));
            }
            cx.spend((at.saturating_sub(list.as_slice().len())) as u64 / 8)?;
            cx.make.set_element(&mut list, at, new)?;
            Ok(Value::Array(list))
        }
        (Value::Array(list), Value::Object(_)) => {
            let Value::Array(new) = new else {
                return Err(cx.raise("A slice of an array can only be assigned another array"));
            };
            let (from, to) = bounds(cx, key, list.as_slice().len())?;
            cx.spend((list.as_slice().len() + new.as_slice().len()) as u64 / 8)?;
            let old = list.as_slice();
            cx.make.list([&old[..from], new.as_slice(), &old[to..]].concat())
        }
        (Value::String(_), Value::Object(_)) => Err(cx.raise("Cannot update string slices")),
        (Value::Object(_), Value::Object(_)) => Err(cx.raise("Cannot update field at array index of object")),
        (Value::Array(_), Value::Array(_)) => Err(cx.raise("Cannot update field at array index of array")),
        (value, key) => Err(cannot_index(cx, &value, key)),
    }
}

fn name_of(key: &Value) -> std::sync::Arc<str> {
    key.as_str().unwrap_or_default().into()
}

fn elements<'v>(cx: &Cx, path: &'v Value) -> Result<&'v [Value], Error> {
    let Value::Array(path) = path else {
        return Err(cx.raise("Path must be specified as an array"));
    };
    if path.as_slice().len() > LONGEST_PATH {
        return Err(cx.raise("Path too deep"));
    }
    cx.spend(path.as_slice().len() as u64)?;
    Ok(path.as_slice())
}

pub(crate) fn get_path(cx: &Cx, value: &Value, path: &Value) -> Result<Value, Error> {
    let mut value = value.clone();
    for key in elements(cx, path)? {
        if matches!(value, Value::Null) {
            break;
        }
        value = get(cx, &value, key)?;
    }
    Ok(value)
}

/// The value at the path, which leaves `null` in its place where nothing else holds it: it may be changed without a copy.
pub(crate) fn take_path(cx: &Cx, root: &mut Value, path: &[Value]) -> Result<Value, Error> {
    let Some((key, rest)) = path.split_first() else {
        return Ok(std::mem::take(root));
    };
    if matches!(root, Value::Null) {
        return Ok(Value::Null);
    }
    let mut inner = match (&mut *root, key) {
        (Value::Array(list), Value::Int(_) | Value::Float(_)) => {
            match key.as_f64().and_then(|index| place(list, index)) {
                Some(at) => Maker::take_element(list, at),
                None => Value::Null,
            }
        }
        (Value::Object(map), Value::String(name)) => Maker::take_member(map, name.as_str()),
        (other, key) => get(cx, other, key)?,
    };
    if rest.is_empty() {
        return Ok(inner);
    }
    let value = take_path(cx, &mut inner, rest)?;
    // Puts back what is around the value, into what is there already.
    match (&mut *root, key) {
        (Value::Array(list), Value::Int(_) | Value::Float(_)) => {
            if let Some(at) = key.as_f64().and_then(|index| place(list, index))
                && at < list.as_slice().len()
            {
                cx.make.set_element(list, at, inner)?;
            }
        }
        (Value::Object(map), Value::String(name)) => {
            if let Some(name) = map.members().get_full(name.as_str()).map(|(_, name, _)| name.clone()) {
                cx.make.set_member(map, name, inner)?;
            }
        }
        _ => {}
    }
    Ok(value)
}

pub(crate) fn set_path(cx: &Cx, mut root: Value, path: &[Value], new: Value) -> Result<Value, Error> {
    if path.len() > LONGEST_PATH {
        return Err(cx.raise("Path too deep"));
    }
    if path.len() > DEEPEST.into() {
        return Err(Error::Depth(DEEPEST.into()));
    }
    cx.spend(path.len() as u64)?;
    let Some((key, rest)) = path.split_first() else {
        return Ok(new);
    };
    if rest.is_empty() {
        return set(cx, root, key, new);
    }
    let inner = match (&mut root, key) {
        (Value::Array(list), Value::Int(_) | Value::Float(_)) => {
            match key.as_f64().and_then(|index| place(list, index)) {
                Some(at) => Maker::take_element(list, at),
                None => Value::Null,
            }
        }
        (Value::Object(map), Value::String(name)) => Maker::take_member(map, name.as_str()),
        (other, key) => get(cx, other, key)?,
    };
    let inner = set_path(cx, inner, rest, new)?;
    set(cx, root, key, inner)
}

pub(crate) fn set_path_value(cx: &Cx, root: Value, path: &Value, new: Value) -> Result<Value, Error> {
    let path = elements(cx, path)?;
    set_path(cx, root, path, new)
}

/// Deletes what the paths lead to, as they led there before any was deleted.
pub(crate) fn delete_paths(cx: &Cx, root: Value, paths: &Value) -> Result<Value, Error> {
    let Value::Array(paths) = paths else {
        return Err(cx.raise("Paths must be specified as an array"));
    };
    let mut sorted = Vec::new();
    for path in paths.as_slice() {
        sorted.push(elements(cx, path)?);
    }
    let weight: usize = paths.as_slice().iter().map(Value::weight).sum();
    cx.spend_bytes(weight * 8)?;
    sorted.sort_by(|a, b| {
        let differs = a.iter().zip(*b).map(|(a, b)| a.order(b)).find(|order| order.is_ne());
        differs.unwrap_or_else(|| a.len().cmp(&b.len()))
    });
    match sorted.first() {
        None => Ok(root),
        Some([]) => Ok(Value::Null),
        Some(_) => delete_sorted(cx, root, &sorted, 0),
    }
}

fn delete_sorted(cx: &Cx, mut root: Value, paths: &[&[Value]], start: usize) -> Result<Value, Error> {
    let mut keys: Vec<Value> = Vec::new();
    let mut at = 0;
    while at < paths.len() {
        let key = &paths[at][start];
        let end =
            at + paths[at..].iter().take_while(|path| path[start].order(key) == Ordering::Equal).count();
        cx.spend((end - at) as u64)?;
        // The shortest comes first: it takes with it what lies further in.
        if paths[at].len() == start + 1 {
            keys.push(key.clone());
        } else {
            let inner = get(cx, &root, key)?;
            if !matches!(inner, Value::Null) {
                let inner = delete_sorted(cx, inner, &paths[at..end], start + 1)?;
                root = set(cx, root, key, inner)?;
            }
        }
        at = end;
    }
    delete_keys(cx, root, &keys)
}

fn delete_keys(cx: &Cx, value: Value, keys: &[Value]) -> Result<Value, Error> {
    if keys.is_empty() {
        return Ok(value);
    }
    match value {
        Value::Null => Ok(Value::Null),
        Value::Array(list) => {
            let items = list.as_slice();
            let mut keep = vec![true; items.len()];
            cx.make.room(items.len())?;
            for key in keys {
                match key {
                    Value::Int(_) | Value::Float(_) => {
                        let at = key.as_f64().and_then(|index| place(&list, index));
                        if let Some(at) = at.filter(|at| *at < items.len()) {
                            keep[at] = false;
                        }
                    }
                    Value::Object(_) => {
                        let (from, to) = bounds(cx, key, items.len())?;
                        cx.spend((to - from) as u64 / 8)?;
                        keep[from..to].fill(false);
                    }
                    Value::String(_) => return Err(cx.raise("Cannot delete field at object index of array")),
                    other => {
                        let message = format!("Cannot delete field at array index of {}", other.kind());
                        return Err(cx.raise(message));
                    }
                }
            }
            cx.spend(items.len() as u64 / 8)?;
            let kept = items.iter().zip(keep).filter(|(_, keep)| *keep).map(|(item, _)| item.clone());
            cx.make.list(kept.collect())
        }
        Value::Object(map) => {
            let mut members = map.members().clone();
            cx.make.room(members.len() * 64)?;
            for key in keys {
                match key {
                    Value::String(name) => {
                        cx.spend(1)?;
                        members.swap_remove(name.as_str());
                    }
                    _ => return Err(cx.raise("Cannot delete field at array index of object")),
                }
            }
            // In the order in which they were.
            let kept = map.members().iter().filter(|(name, _)| members.contains_key(&**name));
            cx.spend(map.len() as u64 / 4)?;
            cx.make.map(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
        }
        other => Err(cx.raise(format!("Cannot delete fields from {}", described(&other)))),
    }
}
