//! Makes another event of an event, by a template.

use std::{borrow::Cow, collections::BTreeMap};

use sas_core::{AttributeValue, Event, SpecErrors};
use sas_jq::{Limits, Program};
use serde_json::{Map, Value};

/// The longest template, in bytes of its JSON.
const LONGEST: usize = 64 << 10;
/// How deep a template's data may be nested.
const DEEPEST: usize = 32;
/// Most references of a template.
const MOST_REFERENCES: usize = 256;
/// The most bytes that a template makes of an event.
const OUTPUT: usize = 1 << 20;

/// What one evaluation of a jq program may take: some 20 ms.
const JQ: Limits = Limits { steps: 200_000, bytes: 8 << 20 };

/// How one event becomes another: a template, or a program in jq.
///
/// # Templates
/// A template of an event: attributes and data with `{{ references }}` to those of the event that came.
///
/// A JSON object of `type`, `source`, `subject`, `dataschema`, `datacontenttype`, `extensions` and `data`; what it does not
/// name stays as it was. A reference is the name of an attribute, or `data` with a path of names and indices:
/// `{{ data.lines[0].sku }}`. A text that is nothing but one reference takes its value with its type. A reference to what
/// is not there makes the event undeliverable, unless it ends in `?`: then it is nothing (`null`, or an empty text).
/// There are no loops and no functions, so the work is bounded by template and event; at most 256 references, nested at
/// most 32 deep, and at most 1 MiB comes out.
///
/// # jq
/// `{"jq": "..."}`: the program's input is the event in the JSON format of CloudEvents, with `data` as JSON where it is JSON, and its
/// one result is the event that it becomes, whose id stays. Steps and memory are bounded (see `sas-jq`); nothing of the host is seen.
///
/// ```
/// # use sas_core::Event;
/// # use sas_trigger::Transform;
/// let transform = Transform::parse(r#"{"jq": ".type = \"billing\" | .data |= {total: (.lines | map(.price) | add)}"}"#).unwrap();
/// let event = Event::new("1", "/shop", "order")?.with_data("application/json", r#"{"lines": [{"price": 2}, {"price": 3}]}"#)?;
/// assert_eq!(transform.apply(&event).unwrap().data(), r#"{"total":5}"#);
/// # Ok::<(), sas_core::EventError>(())
/// ```
///
/// ```
/// use sas_core::Event;
/// use sas_trigger::Transform;
///
/// let transform = Transform::parse(
///     r#"{"type": "billing.{{ type }}", "data": {"order": "{{ data.id }}", "note": "for {{ subject? }}"}}"#,
/// ).unwrap();
/// let event = Event::new("1", "/shop", "order")?.with_data("application/json", r#"{"id": 7}"#)?;
/// let made = transform.apply(&event).unwrap();
/// assert_eq!(made.kind(), "billing.order");
/// assert_eq!(made.data(), r#"{"note":"for ","order":7}"#);
/// # Ok::<(), sas_core::EventError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Transform {
    /// When there is one, it is all that there is.
    program: Option<Program>,
    attributes: Vec<(&'static str, Vec<Piece>)>,
    /// `None`: the attribute is taken off.
    extensions: BTreeMap<String, Option<Vec<Piece>>>,
    data: Option<Node>,
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Reference(Reference),
}

#[derive(Clone, Debug, PartialEq)]
struct Reference {
    attribute: String,
    path: Vec<Step>,
    optional: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Name(String),
    Index(usize),
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Text(Vec<Piece>),
    List(Vec<Node>),
    Map(BTreeMap<String, Node>),
    Constant(Value),
}

/// The attributes that a template may set.
const SET: [&str; 5] = ["type", "source", "subject", "dataschema", "datacontenttype"];

impl Transform {
    /// Reads a template.
    ///
    /// # Errors
    /// All mistakes, each with its place below `transform`.
    pub fn parse(text: &str) -> Result<Self, SpecErrors> {
        let mut errors = SpecErrors::default();
        if text.len() > LONGEST {
            errors.push("transform", format!("{} bytes", text.len()), format!("at most {LONGEST} bytes"));
            return Err(errors);
        }
        let fields: Map<String, Value> = match serde_json::from_str(text) {
            Ok(fields) => fields,
            Err(error) => {
                errors.push("transform", head(text), format!("must be a JSON object: {error}"));
                return Err(errors);
            }
        };
        if let Some(program) = fields.get("jq") {
            if let Some(other) = fields.keys().find(|name| *name != "jq") {
                errors.push(
                    format!("transform.{other}"),
                    "",
                    "a program in jq makes all of the event: leave this out",
                );
            }
            let program = match program {
                Value::String(text) => Program::parse(text, &[])
                    .map_err(|error| errors.push("transform.jq", text, error.to_string()))
                    .ok(),
                other => {
                    errors.push("transform.jq", other, "must be a text: a program in jq");
                    None
                }
            };
            errors.into_result()?;
            return Ok(Self { program, ..Self::default() });
        }
        let mut transform =
            Self { program: None, attributes: Vec::new(), extensions: BTreeMap::new(), data: None };
        let mut left = MOST_REFERENCES;
        for (name, value) in &fields {
            let place = format!("transform.{name}");
            match (name.as_str(), value) {
                ("data", data) => transform.data = node(&place, data, DEEPEST, &mut left, &mut errors),
                ("extensions", Value::Object(extensions)) => {
                    for (name, value) in extensions {
                        let place = format!("{place}.{name}");
                        match value {
                            Value::Null => {
                                transform.extensions.insert(name.clone(), None);
                            }
                            Value::String(text) => {
                                let pieces = pieces(&place, text, &mut left, &mut errors);
                                transform.extensions.insert(name.clone(), Some(pieces));
                            }
                            Value::Bool(_) | Value::Number(_) => {
                                let text = vec![Piece::Text(value.to_string())];
                                transform.extensions.insert(name.clone(), Some(text));
                            }
                            other => errors.push(place, other, "must be a text, or null to take it off"),
                        }
                    }
                }
                (_, Value::String(text)) if SET.contains(&name.as_str()) => {
                    let pieces = pieces(&place, text, &mut left, &mut errors);
                    if let Some(known) = SET.iter().find(|known| *known == name) {
                        transform.attributes.push((known, pieces));
                    }
                }
                (name, value) if SET.contains(&name) => errors.push(place, value, "must be a text"),
                (_, value) => {
                    let known = SET.join(", ");
                    errors.push(place, value, format!("unknown; known are {known}, extensions and data"));
                }
            }
        }
        errors.into_result()?;
        Ok(transform)
    }

    /// The event that the template makes of `event`. Its id stays, so that a repetition is known for what it is.
    ///
    /// # Errors
    /// What is missing or does not fit, for people.
    pub fn apply(&self, event: &Event) -> Result<Event, String> {
        if let Some(program) = &self.program {
            return compute(program, event);
        }
        let seen = Seen { event, data: std::cell::OnceCell::new() };
        let mut attributes: BTreeMap<&str, String> = BTreeMap::new();
        for (name, pieces) in &self.attributes {
            attributes.insert(name, seen.text(pieces)?);
        }
        let set = |name: &str, was: Option<&str>| match attributes.get(name) {
            Some(text) if text.is_empty() => None,
            Some(text) => Some(text.clone()),
            None => was.map(str::to_owned),
        };
        let wrong = |error: sas_core::EventError| error.to_string();
        let source = attributes.get("source").map_or(event.source(), String::as_str);
        let kind = attributes.get("type").map_or(event.kind(), String::as_str);
        let mut made = Event::new(event.id(), source, kind).map_err(wrong)?;
        if let Some(subject) = set("subject", event.subject()) {
            made = made.with_subject(subject).map_err(wrong)?;
        }
        if let Some(time) = event.time() {
            made = made.with_time(time);
        }
        if let Some(schema) = set("dataschema", event.data_schema()) {
            made = made.with_data_schema(schema).map_err(wrong)?;
        }
        let content_type = set("datacontenttype", event.data_content_type());
        made = match &self.data {
            None => match content_type {
                Some(kind) => made.with_data(kind, event.data().clone()).map_err(wrong)?,
                None => made.with_untyped_data(event.data().clone()),
            },
            Some(node) => {
                let value = seen.value(node)?;
                let json = content_type.as_deref().is_none_or(is_json);
                let data = match value {
                    Value::String(text) if !json => text,
                    value => value.to_string(),
                };
                if data.len() > OUTPUT {
                    return Err(format!("the template makes {} bytes of it; at most {OUTPUT}", data.len()));
                }
                made.with_data(content_type.unwrap_or_else(|| "application/json".to_owned()), data)
                    .map_err(wrong)?
            }
        };
        for (name, value) in event.extensions() {
            if !self.extensions.contains_key(name) {
                made = made.with_extension(name.as_str(), value.clone()).map_err(wrong)?;
            }
        }
        for (name, pieces) in &self.extensions {
            let Some(pieces) = pieces else { continue };
            let value = match &pieces[..] {
                [Piece::Reference(reference)] => match seen.get(reference)?.as_deref() {
                    None | Some(Value::Null) => continue,
                    Some(Value::Bool(value)) => AttributeValue::Boolean(*value),
                    Some(Value::Number(number)) => {
                        match number.as_i64().and_then(|n| i32::try_from(n).ok()) {
                            Some(number) => AttributeValue::Integer(number),
                            None => AttributeValue::String(number.to_string()),
                        }
                    }
                    Some(Value::String(text)) => AttributeValue::String(text.clone()),
                    Some(other) => AttributeValue::String(other.to_string()),
                },
                pieces => AttributeValue::String(seen.text(pieces)?),
            };
            made = made.with_extension(name.as_str(), value).map_err(wrong)?;
        }
        Ok(made)
    }
}

fn compute(program: &Program, event: &Event) -> Result<Event, String> {
    let document: Value =
        serde_json::from_str(&sas_cloudevents::to_json(event)).map_err(|error| error.to_string())?;
    let input = sas_jq::Value::from_json(&document).map_err(|error| error.to_string())?;
    let mut results = program.run(input, &[], &JQ);
    let mut result = || results.next().transpose().map_err(|error| format!("jq: {error}"));
    let Some(mut made) = result()?.map(|made| made.to_json()) else {
        return Err("jq: the program gives no event; leave events out by a filter".to_owned());
    };
    if result()?.is_some() {
        return Err("jq: the program gives more than one event".to_owned());
    }
    let Some(members) = made.as_object_mut() else {
        return Err(format!("jq: the program gives no event but {}", head(&made.to_string())));
    };
    members.insert("id".to_owned(), Value::from(event.id()));
    let text = made.to_string();
    if text.len() > OUTPUT {
        return Err(format!("jq: the program makes {} bytes of it; at most {OUTPUT}", text.len()));
    }
    sas_cloudevents::from_json(text.as_bytes())
        .map_err(|error| format!("jq: the program gives no event: {error}"))
}

fn head(text: &str) -> String {
    text.chars().take(80).collect()
}

fn is_json(kind: &str) -> bool {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.ends_with("/json") || essence.ends_with("+json")
}

fn node(
    place: &str,
    value: &Value,
    deeper: usize,
    left: &mut usize,
    errors: &mut SpecErrors,
) -> Option<Node> {
    if deeper == 0 {
        errors.push(place, "", format!("nested at most {DEEPEST} deep"));
        return None;
    }
    Some(match value {
        Value::String(text) => Node::Text(pieces(place, text, left, errors)),
        Value::Array(items) => Node::List(
            items
                .iter()
                .enumerate()
                .filter_map(|(at, item)| node(&format!("{place}[{at}]"), item, deeper - 1, left, errors))
                .collect(),
        ),
        Value::Object(fields) => Node::Map(
            fields
                .iter()
                .filter_map(|(name, value)| {
                    Some((name.clone(), node(&format!("{place}.{name}"), value, deeper - 1, left, errors)?))
                })
                .collect(),
        ),
        constant => Node::Constant(constant.clone()),
    })
}

fn pieces(place: &str, text: &str, left: &mut usize, errors: &mut SpecErrors) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        let Some((inside, after)) = after.split_once("}}") else {
            errors.push(place, text, "a reference is never closed: write {{ data.name }}");
            return pieces;
        };
        match reference(inside.trim()) {
            Some(_) if *left == 0 => {
                errors.push(place, inside, format!("at most {MOST_REFERENCES} references"));
                return pieces;
            }
            Some(reference) => {
                *left -= 1;
                pieces.push(Piece::Reference(reference));
            }
            None => errors.push(
                place,
                inside.trim(),
                "no reference: write the name of an attribute, or data.name, data.list[0], with ? where it may be missing",
            ),
        }
        rest = after;
    }
    if !rest.is_empty() || pieces.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    pieces
}

fn reference(text: &str) -> Option<Reference> {
    let (text, optional) = match text.strip_suffix('?') {
        Some(text) => (text.trim_end(), true),
        None => (text, false),
    };
    let end = text.find(['.', '[']).unwrap_or(text.len());
    let (attribute, mut rest) = text.split_at(end);
    let well_formed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if attribute.is_empty()
        || !attribute.bytes().all(well_formed)
        || (attribute != "data" && !rest.is_empty())
    {
        return None;
    }
    let mut path = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('[') {
            let (index, after) = after.split_once(']')?;
            path.push(Step::Index(index.trim().parse().ok()?));
            rest = after;
        } else {
            let after = rest.strip_prefix('.')?;
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (name, after) = after.split_at(end);
            if name.is_empty() || name.contains(char::is_whitespace) || path.len() >= DEEPEST {
                return None;
            }
            path.push(Step::Name(name.to_owned()));
            rest = after;
        }
    }
    Some(Reference { attribute: attribute.to_owned(), path, optional })
}

/// The event that came; its data is read once, if a reference asks for it.
struct Seen<'e> {
    event: &'e Event,
    data: std::cell::OnceCell<Value>,
}

impl Seen<'_> {
    fn data(&self) -> &Value {
        self.data.get_or_init(|| {
            let bytes = self.event.data();
            serde_json::from_slice(bytes)
                .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
        })
    }

    /// `None`: it is not there, and need not be.
    fn get(&self, reference: &Reference) -> Result<Option<Cow<'_, Value>>, String> {
        let found = if reference.attribute == "data" {
            let mut value = Some(self.data());
            for step in &reference.path {
                value = value.and_then(|value| match step {
                    Step::Name(name) => value.get(name),
                    Step::Index(index) => value.get(index),
                });
            }
            value.map(Cow::Borrowed)
        } else {
            crate::filter::cesql::attribute(self.event, &reference.attribute).map(|value| {
                Cow::Owned(match value {
                    crate::filter::cesql::Value::Boolean(value) => Value::Bool(value),
                    crate::filter::cesql::Value::Integer(value) => Value::from(value),
                    crate::filter::cesql::Value::String(value) => Value::String(value),
                })
            })
        };
        match found {
            None if !reference.optional => {
                let mut path = reference.attribute.clone();
                for step in &reference.path {
                    match step {
                        Step::Name(name) => path.extend([".", name]),
                        Step::Index(index) => path.push_str(&format!("[{index}]")),
                    }
                }
                Err(format!("the event has no {path}, which the transformation needs"))
            }
            found => Ok(found),
        }
    }

    fn text(&self, pieces: &[Piece]) -> Result<String, String> {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(piece) => text.push_str(piece),
                Piece::Reference(reference) => match self.get(reference)?.as_deref() {
                    None | Some(Value::Null) => {}
                    Some(Value::String(value)) => text.push_str(value),
                    Some(other) => text.push_str(&other.to_string()),
                },
            }
            if text.len() > OUTPUT {
                return Err(format!("the template makes more than {OUTPUT} bytes of it"));
            }
        }
        Ok(text)
    }

    fn value(&self, node: &Node) -> Result<Value, String> {
        // Each reference may be to all of the data: what they make together is bounded before it is made.
        let mut room = OUTPUT;
        self.value_within(node, &mut room)
    }

    fn value_within(&self, node: &Node, room: &mut usize) -> Result<Value, String> {
        let mut take = |bytes: usize| match room.checked_sub(bytes) {
            Some(left) => {
                *room = left;
                Ok(())
            }
            None => Err(format!("the template makes more than {OUTPUT} bytes of it")),
        };
        Ok(match node {
            Node::Constant(value) => value.clone(),
            Node::Text(pieces) => match &pieces[..] {
                [Piece::Reference(reference)] => match self.get(reference)? {
                    Some(value) => {
                        if matches!(&*value, Value::Array(_) | Value::Object(_) | Value::String(_)) {
                            take(if reference.attribute == "data" { self.event.data().len() } else { 0 })?;
                        }
                        value.into_owned()
                    }
                    None => Value::Null,
                },
                pieces => {
                    let text = self.text(pieces)?;
                    take(text.len())?;
                    Value::String(text)
                }
            },
            Node::List(items) => Value::Array(
                items.iter().map(|item| self.value_within(item, room)).collect::<Result<_, _>>()?,
            ),
            Node::Map(fields) => {
                let mut map = Map::new();
                for (name, node) in fields {
                    map.insert(name.clone(), self.value_within(node, room)?);
                }
                Value::Object(map)
            }
        })
    }
}
