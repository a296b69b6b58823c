//! Values: JSON with the order of keys kept, whose memory an evaluation can count and whose size is always known.

use std::{
    cmp::Ordering,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use indexmap::IndexMap;

use crate::{Error, fuel::Fuel};

/// How deep a value may be nested: what `serde_json` reads back. So every walk over a value may recurse.
pub(crate) const DEEPEST: u16 = 127;

/// A JSON value as jq knows it.
///
/// Numbers are doubles, but whole numbers that nothing was computed with keep their digits up to 64 bits. Objects keep
/// the order of their keys. A clone is cheap: texts, arrays and objects are shared.
#[derive(Clone, Default)]
pub enum Value {
    /// `null`.
    #[default]
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number as it was written.
    Int(i64),
    /// Any other number, and what is computed.
    Float(f64),
    /// A text.
    String(Text),
    /// An array.
    Array(List),
    /// An object.
    Object(Map),
}

/// A text of a [`Value`].
#[derive(Clone, Debug)]
pub struct Text(pub(crate) Arc<TextNode>);

/// The elements of an array.
#[derive(Clone, Debug)]
pub struct List(pub(crate) Arc<ListNode>);

/// The members of an object.
#[derive(Clone, Debug)]
pub struct Map(pub(crate) Arc<MapNode>);

#[derive(Clone, Debug)]
pub(crate) struct TextNode {
    pub(crate) text: String,
    charge: Charge,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ListNode {
    items: Vec<Value>,
    weight: usize,
    depth: u16,
    charge: Charge,
}

pub(crate) type Members = IndexMap<Arc<str>, Value>;

#[derive(Clone, Debug, Default)]
pub(crate) struct MapNode {
    members: Members,
    /// The places of the members in the order of their names, once anything asked for it.
    order: OnceLock<Box<[u32]>>,
    weight: usize,
    depth: u16,
    charge: Charge,
}

/// The bytes that live values of one evaluation take.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<AtomicUsize>);

impl Meter {
    pub(crate) fn live(&self) -> usize {
        self.0.load(Relaxed)
    }
}

/// Bytes on a meter, given back when the value goes. What came from outside is on none.
#[derive(Debug, Default)]
pub(crate) struct Charge {
    meter: Option<Meter>,
    bytes: usize,
}

impl Charge {
    pub(crate) fn new(meter: &Meter, bytes: usize) -> Self {
        meter.0.fetch_add(bytes, Relaxed);
        Self { meter: Some(meter.clone()), bytes }
    }
}

impl Clone for Charge {
    fn clone(&self) -> Self {
        match &self.meter {
            Some(meter) => Self::new(meter, self.bytes),
            None => Self::default(),
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(meter) = &self.meter {
            meter.0.fetch_sub(self.bytes, Relaxed);
        }
    }
}

/// What a slot of an array or an object takes beside the value behind it.
const SLOT: usize = 16;
const NODE: usize = 64;
/// An object with its tables, beside its members.
const MAP: usize = 256;
const MEMBER: usize = 64;

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0.text
    }
}

impl List {
    /// The elements.
    pub fn as_slice(&self) -> &[Value] {
        &self.0.items
    }
}

impl Map {
    /// The member of this name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.members.get(name)
    }

    /// The members in the order that they were written in.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.members.iter().map(|(name, value)| (&**name, value))
    }

    /// How many members.
    pub fn len(&self) -> usize {
        self.0.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.members.is_empty()
    }

    pub(crate) fn members(&self) -> &Members {
        &self.0.members
    }

    /// In the order of the names. It is found once, so that comparing with a small object takes no time for a large one.
    fn sorted(&self) -> impl Iterator<Item = (&Arc<str>, &Value)> {
        let members = &self.0.members;
        let order = self.0.order.get_or_init(|| {
            let mut order: Box<[u32]> = (0..u32::try_from(members.len()).unwrap_or(u32::MAX)).collect();
            order.sort_unstable_by_key(|at| members.get_index(*at as usize).map(|(name, _)| name));
            order
        });
        order.iter().filter_map(|at| members.get_index(*at as usize))
    }
}

/// Makes values, counts them and has what is copied for it paid; no meter is how values come in from outside.
pub(crate) struct Maker {
    pub(crate) meter: Option<Meter>,
    /// The most bytes: of one value written out in full, and of all that live.
    pub(crate) most: usize,
    pub(crate) fuel: Fuel,
}

impl Maker {
    pub(crate) fn outside() -> Self {
        Self { meter: None, most: usize::MAX, fuel: Fuel::new(u64::MAX) }
    }

    /// Whether there is room for so many bytes more.
    pub(crate) fn room(&self, bytes: usize) -> Result<(), Error> {
        let live = self.meter.as_ref().map_or(0, Meter::live);
        if live.saturating_add(bytes) > self.most { Err(Error::Bytes(self.most)) } else { Ok(()) }
    }

    pub(crate) fn charge(&self, bytes: usize) -> Result<Charge, Error> {
        match &self.meter {
            None => Ok(Charge::default()),
            Some(meter) => {
                self.room(bytes)?;
                Ok(Charge::new(meter, bytes))
            }
        }
    }

    /// Whether what has this charge may be changed in place without being copied or charged anew. What came from outside
    /// may not, whether anything still holds it there or not: the same takes the same steps.
    fn owns(&self, charge: &Charge) -> bool {
        match (&self.meter, &charge.meter) {
            (Some(mine), Some(of)) => Arc::ptr_eq(&mine.0, &of.0),
            _ => false,
        }
    }

    fn check(&self, weight: usize, depth: u16) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(Error::Depth(DEEPEST.into()));
        }
        if weight > self.most { Err(Error::Bytes(self.most)) } else { Ok(()) }
    }

    pub(crate) fn text(&self, text: impl Into<String>) -> Result<Value, Error> {
        let text = text.into();
        let charge = self.charge(NODE + text.capacity())?;
        Ok(Value::String(Text(Arc::new(TextNode { text, charge }))))
    }

    pub(crate) fn list(&self, items: Vec<Value>) -> Result<Value, Error> {
        let weight = items.iter().fold(NODE, |sum, item| sum.saturating_add(item.weight()));
        let depth = items.iter().map(Value::depth).max().unwrap_or(0) + 1;
        self.check(weight, depth)?;
        let charge = self.charge(NODE + items.capacity() * SLOT)?;
        Ok(Value::Array(List(Arc::new(ListNode { items, weight, depth, charge }))))
    }

    pub(crate) fn map(&self, members: Members) -> Result<Value, Error> {
        let weight = members
            .iter()
            .fold(NODE, |sum, (name, value)| sum.saturating_add(MEMBER + name.len() + value.weight()));
        let depth = members.values().map(Value::depth).max().unwrap_or(0) + 1;
        self.check(weight, depth)?;
        let names: usize = members.keys().map(|name| name.len()).sum();
        let charge = self.charge(MAP + names + members.capacity() * MEMBER)?;
        Ok(Value::Object(Map(Arc::new(MapNode { members, order: OnceLock::new(), weight, depth, charge }))))
    }

    /// Sets the element, in place where nothing else holds the array. `at` may be past the end: `null` fills up.
    pub(crate) fn set_element(&self, list: &mut List, at: usize, value: Value) -> Result<(), Error> {
        let grown = (at + 1).saturating_sub(list.0.items.len());
        self.room(grown.saturating_mul(SLOT))?;
        if !self.owns(&list.0.charge) || Arc::get_mut(&mut list.0).is_none() {
            self.fuel.spend(list.0.items.len() as u64 / 4)?;
            self.room(list.0.items.len() * SLOT)?;
        }
        let node = Arc::make_mut(&mut list.0);
        let owned = self.owns(&node.charge);
        let depth = node.depth.max(value.depth() + 1);
        let weight = node.weight.saturating_add(value.weight()).saturating_add(grown.saturating_mul(SLOT));
        self.check(weight, depth)?;
        let before = node.items.capacity();
        if grown > 0 {
            node.items.resize(at + 1, Value::Null);
        }
        let old = std::mem::replace(&mut node.items[at], value);
        node.weight = weight.saturating_sub(old.weight());
        node.depth = depth;
        if node.items.capacity() != before || !owned {
            node.charge = self.charge(NODE + node.items.capacity() * SLOT)?;
        }
        Ok(())
    }

    /// Appends, in place where nothing else holds the array.
    pub(crate) fn append(&self, list: &mut List, more: &[Value]) -> Result<(), Error> {
        let extra = more.len() * SLOT;
        let copied = if self.owns(&list.0.charge) && Arc::get_mut(&mut list.0).is_some() {
            0
        } else {
            list.0.items.len()
        };
        self.fuel.spend(copied as u64 / 4)?;
        self.room(extra + copied * SLOT)?;
        let node = Arc::make_mut(&mut list.0);
        let owned = self.owns(&node.charge);
        let weight = more.iter().fold(node.weight, |sum, item| sum.saturating_add(item.weight()));
        let depth = more.iter().map(Value::depth).max().unwrap_or(0) + 1;
        self.check(weight, depth)?;
        let before = node.items.capacity();
        node.items.extend_from_slice(more);
        node.weight = weight;
        node.depth = node.depth.max(depth);
        if node.items.capacity() != before || !owned {
            node.charge = self.charge(NODE + node.items.capacity() * SLOT)?;
        }
        Ok(())
    }

    /// Sets the member, in place where nothing else holds the object.
    pub(crate) fn set_member(&self, map: &mut Map, name: Arc<str>, value: Value) -> Result<(), Error> {
        if !self.owns(&map.0.charge) || Arc::get_mut(&mut map.0).is_none() {
            self.fuel.spend(map.0.members.len() as u64)?;
            self.room(map.0.members.len() * MEMBER)?;
        }
        let node = Arc::make_mut(&mut map.0);
        let owned = self.owns(&node.charge);
        let depth = node.depth.max(value.depth() + 1);
        let weight = node.weight.saturating_add(value.weight());
        self.check(weight, depth)?;
        let before = node.members.capacity();
        let length = name.len();
        let old = node.members.insert(name, value);
        if old.is_none() {
            node.order = OnceLock::new();
        }
        node.weight = match &old {
            Some(old) => weight.saturating_sub(old.weight()),
            None => weight.saturating_add(MEMBER + length),
        };
        node.depth = depth;
        if node.members.capacity() != before || !owned {
            let names: usize = node.members.keys().map(|name| name.len()).sum();
            node.charge = self.charge(MAP + names + node.members.capacity() * MEMBER)?;
        } else if old.is_none()
            && let Some(meter) = &self.meter
        {
            meter.0.fetch_add(length, Relaxed);
            node.charge.bytes += length;
        }
        Ok(())
    }

    /// Appends to a text, in place where nothing else holds it.
    pub(crate) fn extend_text(&self, text: &mut Text, more: &str) -> Result<(), Error> {
        let copied = if self.owns(&text.0.charge) && Arc::get_mut(&mut text.0).is_some() {
            0
        } else {
            text.0.text.len()
        };
        self.fuel.spend(copied as u64 / 32)?;
        self.room(more.len() + copied)?;
        let node = Arc::make_mut(&mut text.0);
        let owned = self.owns(&node.charge);
        let before = node.text.capacity();
        node.text.push_str(more);
        if node.text.capacity() != before || !owned {
            node.charge = self.charge(NODE + node.text.capacity())?;
        }
        Ok(())
    }

    /// Takes the element out, leaving `null`, so that what changes it may do so in place.
    pub(crate) fn take_element(list: &mut List, at: usize) -> Value {
        match Arc::get_mut(&mut list.0) {
            Some(node) => match node.items.get_mut(at) {
                Some(item) => {
                    let taken = std::mem::take(item);
                    node.weight = node.weight.saturating_sub(taken.weight()) + SLOT;
                    taken
                }
                None => Value::Null,
            },
            None => list.0.items.get(at).cloned().unwrap_or_default(),
        }
    }

    pub(crate) fn take_member(map: &mut Map, name: &str) -> Value {
        match Arc::get_mut(&mut map.0) {
            Some(node) => match node.members.get_mut(name) {
                Some(member) => {
                    let taken = std::mem::take(member);
                    node.weight = node.weight.saturating_sub(taken.weight()) + SLOT;
                    taken
                }
                None => Value::Null,
            },
            None => map.0.members.get(name).cloned().unwrap_or_default(),
        }
    }

    /// Reads a value from outside.
    pub(crate) fn json(&self, json: &serde_json::Value, left: u16) -> Result<Value, Error> {
        use serde_json::Value as Json;
        if left == 0 {
            return Err(Error::Depth(DEEPEST.into()));
        }
        Ok(match json {
            Json::Null => Value::Null,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match number.as_i64() {
                Some(whole) => Value::Int(whole),
                None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => self.text(text.as_str())?,
            Json::Array(items) => {
                self.list(items.iter().map(|item| self.json(item, left - 1)).collect::<Result<_, _>>()?)?
            }
            Json::Object(members) => self.map(
                members
                    .iter()
                    .map(|(name, value)| Ok((name.as_str().into(), self.json(value, left - 1)?)))
                    .collect::<Result<_, Error>>()?,
            )?,
        })
    }
}

impl Value {
    /// The value that `serde_json` read.
    ///
    /// # Errors
    /// It is nested deeper than 127.
    pub fn from_json(json: &serde_json::Value) -> Result<Self, Error> {
        Maker::outside().json(json, DEEPEST + 1)
    }

    /// An array.
    ///
    /// # Errors
    /// It would be nested deeper than 127.
    pub fn list(items: Vec<Self>) -> Result<Self, Error> {
        Maker::outside().list(items)
    }

    /// An object; the last of members with one name counts.
    ///
    /// # Errors
    /// It would be nested deeper than 127.
    pub fn object(members: impl IntoIterator<Item = (String, Self)>) -> Result<Self, Error> {
        Maker::outside().map(members.into_iter().map(|(name, value)| (name.into(), value)).collect())
    }

    /// The value for `serde_json`, as jq would print it: what is not a number is `null`, what is infinite is the largest double.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Int(whole) => Json::from(*whole),
            Value::Float(number) => crate::number::to_json(*number),
            Value::String(text) => Json::String(text.as_str().to_owned()),
            Value::Array(list) => Json::Array(list.as_slice().iter().map(Value::to_json).collect()),
            Value::Object(map) => {
                Json::Object(map.iter().map(|(name, value)| (name.to_owned(), value.to_json())).collect())
            }
        }
    }

    /// How many bytes it takes at most when nothing of it is shared.
    pub fn weight(&self) -> usize {
        match self {
            Value::Null | Value::Bool(_) | Value::Int(_) | Value::Float(_) => SLOT,
            Value::String(text) => SLOT + NODE + text.0.text.len(),
            Value::Array(list) => SLOT + list.0.weight,
            Value::Object(map) => SLOT + map.0.weight,
        }
    }

    pub(crate) fn depth(&self) -> u16 {
        match self {
            Value::Array(list) => list.0.depth.max(1),
            Value::Object(map) => map.0.depth.max(1),
            _ => 0,
        }
    }

    /// The name of its kind, as jq's `type` says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Int(_) | Value::Float(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// All but `null` and `false`.
    pub fn is_truthy(&self) -> bool {
        !matches!(self, Value::Null | Value::Bool(false))
    }

    /// Its text, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// Its number, when it is one.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            #[expect(clippy::cast_precision_loss, reason = "jq computes with doubles")]
            Value::Int(whole) => Some(*whole as f64),
            Value::Float(number) => Some(*number),
            _ => None,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Value::Null => 0,
            Value::Bool(false) => 1,
            Value::Bool(true) => 2,
            Value::Int(_) | Value::Float(_) => 3,
            Value::String(_) => 4,
            Value::Array(_) => 5,
            Value::Object(_) => 6,
        }
    }

    /// jq's order of all values, made total: what is not a number is below all numbers and equal to itself.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::String(a), Value::String(b)) => a.as_str().cmp(b.as_str()),
            (Value::Array(a), Value::Array(b)) => {
                if Arc::ptr_eq(&a.0, &b.0) {
                    return Ordering::Equal;
                }
                let pairs = a.as_slice().iter().zip(b.as_slice());
                pairs
                    .map(|(a, b)| a.order(b))
                    .find(|order| order.is_ne())
                    .unwrap_or_else(|| a.as_slice().len().cmp(&b.as_slice().len()))
            }
            (Value::Object(a), Value::Object(b)) => {
                if Arc::ptr_eq(&a.0, &b.0) {
                    return Ordering::Equal;
                }
                let names = a.sorted().map(|member| member.0).cmp(b.sorted().map(|member| member.0));
                names.then_with(|| {
                    let pairs = a.sorted().zip(b.sorted());
                    pairs.map(|(a, b)| a.1.order(b.1)).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
                })
            }
            (Value::Int(a), Value::Float(b)) => whole_with_double(*a, *b),
            (Value::Float(a), Value::Int(b)) => whole_with_double(*b, *a).reverse(),
            _ => match (self.as_f64(), other.as_f64()) {
                (Some(a), Some(b)) => {
                    a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()).reverse())
                }
                _ => self.rank().cmp(&other.rank()),
            },
        }
    }

    /// Whether both are the same in [`order`](Self::order), for which no members are sorted: it takes what the smaller
    /// weighs.
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::String(a), Value::String(b)) => a.as_str() == b.as_str(),
            (Value::Array(a), Value::Array(b)) => {
                Arc::ptr_eq(&a.0, &b.0)
                    || (a.as_slice().len() == b.as_slice().len()
                        && a.as_slice().iter().zip(b.as_slice()).all(|(a, b)| a.is_same(b)))
            }
            (Value::Object(a), Value::Object(b)) => {
                Arc::ptr_eq(&a.0, &b.0)
                    || (a.len() == b.len()
                        && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| a.is_same(b))))
            }
            _ => self.order(other).is_eq(),
        }
    }

    /// jq's comparison for `<`: what is not a number is below everything that is one, itself too.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Value::Float(a), Value::Float(b)) if a.is_nan() && b.is_nan() => Ordering::Less,
            _ => self.order(other),
        }
    }
}

/// Exactly: as doubles, two whole numbers that differ may both be equal to a third, and that is no order to sort by.
fn whole_with_double(whole: i64, double: f64) -> Ordering {
    const BEYOND: f64 = 9_223_372_036_854_775_808.0;
    if double >= BEYOND {
        return Ordering::Less;
    }
    if double.is_nan() || double < -BEYOND {
        return Ordering::Greater;
    }
    #[expect(clippy::cast_possible_truncation, reason = "within the bounds of whole numbers")]
    let below = double.floor() as i64;
    whole.cmp(&below).then(if double > double.floor() { Ordering::Less } else { Ordering::Equal })
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Value::Float(a), Value::Float(b)) if a.is_nan() && b.is_nan() => false,
            _ => self.is_same(other),
        }
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// As JSON, in one line, the way that jq prints it.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut text = String::new();
        self.write(&mut text, usize::MAX);
        f.write_str(&text)
    }
}

impl Value {
    /// Writes JSON until there are more than `most` bytes.
    pub(crate) fn write(&self, out: &mut String, most: usize) {
        if out.len() > most {
            return;
        }
        match self {
            Value::Null => out.push_str("null"),
            Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Value::Int(whole) => out.push_str(&whole.to_string()),
            Value::Float(number) => crate::number::write(*number, out),
            Value::String(text) => quote(text.as_str(), out, most),
            Value::Array(list) => {
                out.push('[');
                for (at, item) in list.as_slice().iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    item.write(out, most);
                    if out.len() > most {
                        return;
                    }
                }
                out.push(']');
            }
            Value::Object(map) => {
                out.push('{');
                for (at, (name, value)) in map.iter().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    quote(name, out, most);
                    if out.len() > most {
                        return;
                    }
                    out.push(':');
                    value.write(out, most);
                    if out.len() > most {
                        return;
                    }
                }
                out.push('}');
            }
        }
    }
}

/// Until there are more than `most` bytes.
fn quote(text: &str, out: &mut String, most: usize) {
    out.push('"');
    for c in text.chars() {
        if out.len() > most {
            return;
        }
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(Text(Arc::new(TextNode { text: text.to_owned(), charge: Charge::default() })))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(Text(Arc::new(TextNode { text, charge: Charge::default() })))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Value::Bool(value)
    }
}

impl From<usize> for Value {
    fn from(number: usize) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "jq computes with doubles")]
        i64::try_from(number).map_or(Value::Float(number as f64), Value::Int)
    }
}
