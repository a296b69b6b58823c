//! YAML (and so JSON) as a tree, bounded in size, and the reader that walks it and remembers where it is.

use std::{collections::BTreeMap, fmt};

use sas_core::SpecErrors;
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};

/// Most bytes of one call's manifests.
pub(crate) const INPUT_LIMIT: usize = 4 << 20;
/// Most nodes of one call's manifests, aliases counted as often as they are used.
const NODE_LIMIT: usize = 200_000;
/// Deepest nesting; a Service is 12 deep.
const DEPTH_LIMIT: usize = 64;

/// A node. Scalars keep their type as YAML 1.2's core schema has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Node {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl Node {
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }

    /// The node as an error shows it: scalars as they are, cut where they are long.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Null => String::new(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(text) => cut(text),
            Self::List(items) => format!("[{} items]", items.len()),
            Self::Map(fields) => {
                format!(
                    "{{{}}}",
                    cut(&fields.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>().join(", "))
                )
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match self {
            Self::Map(fields) => fields.iter().find(|(key, _)| key == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// A mapping without one of its fields; anything else as it is.
    pub(crate) fn without(&self, name: &str) -> Node {
        match self {
            Self::Map(fields) => Self::Map(fields.iter().filter(|(key, _)| key != name).cloned().collect()),
            other => other.clone(),
        }
    }

    pub(crate) fn into_json(self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => value.into(),
            // What no integer of JSON's readers holds stays readable as text.
            Self::Int(value) => match (u64::try_from(value), i64::try_from(value)) {
                (Ok(value), _) => value.into(),
                (_, Ok(value)) => value.into(),
                _ => value.to_string().into(),
            },
            Self::Float(value) => value.into(),
            Self::Text(text) => text.into(),
            Self::List(items) => items.into_iter().map(Self::into_json).collect(),
            Self::Map(fields) => fields
                .into_iter()
                .map(|(name, node)| (name, node.into_json()))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

fn cut(text: &str) -> String {
    const MOST: usize = 120;
    match text.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Node;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a YAML node")
            }
            fn visit_unit<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_none<E>(self) -> Result<Node, E> {
                Ok(Node::Null)
            }
            fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
                Node::deserialize(deserializer)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
                Ok(Node::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
                Ok(Node::Int(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
                Ok(Node::Int(value.into()))
            }
            fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
                Ok(Node::Int(value))
            }
            fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
                Ok(i128::try_from(value).map_or(Node::Float(value as f64), Node::Int))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
                Ok(Node::Float(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Node, E> {
                Ok(Node::Text(value.to_owned()))
            }
            fn visit_string<E>(self, value: String) -> Result<Node, E> {
                Ok(Node::Text(value))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Node::List(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
                let mut map = Vec::new();
                while let Some((key, value)) = fields.next_entry::<Key, Node>()? {
                    map.push((key.0, value));
                }
                Ok(Node::Map(map))
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// A key is text; a number or a boolean in its place is shown as it would be written.
struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Node::deserialize(deserializer)? {
            Node::Text(text) => Ok(Self(text)),
            node @ (Node::Bool(_) | Node::Int(_) | Node::Float(_) | Node::Null) => Ok(Self(node.shown())),
            node => Err(serde::de::Error::custom(format!("a key must be a string, not {}", node.kind()))),
        }
    }
}

/// The documents of a stream, empty ones left out.
pub(crate) fn documents(text: &str) -> Result<Vec<Node>, SpecErrors> {
    let fail = |field: &str, value: String, problem: String| {
        let mut errors = SpecErrors::default();
        errors.push(field, value, problem);
        errors
    };
    if text.len() > INPUT_LIMIT {
        let problem = format!("manifests of one call have at most {INPUT_LIMIT} bytes");
        return Err(fail("$", format!("{} bytes", text.len()), problem));
    }
    let documents = read(text).map_err(|(at, problem)| fail("$", at, problem))?;
    Ok(documents.into_iter().filter(|document| *document != Node::Null).collect())
}

/// All documents, or where one is wrong and why.
#[cfg(feature = "yaml")]
fn read(text: &str) -> Result<Vec<Node>, (String, String)> {
    let mut options = serde_saphyr::Options::default();
    options.strict_booleans = true;
    options.with_snippet = false;
    let mut budget = serde_saphyr::budget::Budget::default();
    budget.max_nodes = NODE_LIMIT;
    budget.max_depth = DEPTH_LIMIT;
    budget.max_events = 4 * NODE_LIMIT;
    budget.max_aliases = 1_000;
    options.budget = Some(budget);
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let at = error
            .location()
            .map_or(String::new(), |at| format!("line {}, column {}", at.line(), at.column()));
        (at, format!("not YAML: {error}"))
    })
}

/// All documents, or where one is wrong and why. The parser itself refuses what nests deeper than 128.
#[cfg(not(feature = "yaml"))]
fn read(text: &str) -> Result<Vec<Node>, (String, String)> {
    fn nodes(node: &Node, depth: usize) -> Option<usize> {
        if depth > DEPTH_LIMIT {
            return None;
        }
        match node {
            Node::List(items) => items.iter().try_fold(1, |sum, item| Some(sum + nodes(item, depth + 1)?)),
            Node::Map(fields) => {
                fields.iter().try_fold(1, |sum, (_, field)| Some(sum + nodes(field, depth + 1)?))
            }
            _ => Some(1),
        }
    }
    let documents: Vec<Node> =
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().map_err(|error| {
            let at = format!("line {}, column {}", error.line(), error.column());
            (at, format!("not JSON: {error} (this platform was built without the feature manifests, which reads YAML)"))
        })?;
    match documents.iter().try_fold(0, |sum, document| Some(sum + nodes(document, 1)?)) {
        Some(sum) if sum <= NODE_LIMIT => Ok(documents),
        _ => {
            Err((String::new(), format!("more than {NODE_LIMIT} nodes, or nested deeper than {DEPTH_LIMIT}")))
        }
    }
}

/// One document that is no manifest, such as a table of prices, as JSON has it. Held to the bounds of manifests.
///
/// # Errors
/// What is no YAML, or more than one document.
pub fn document(text: &str) -> Result<serde_json::Value, SpecErrors> {
    let mut documents = documents(text)?.into_iter();
    match (documents.next(), documents.next()) {
        (Some(document), None) => Ok(document.into_json()),
        (first, _) => {
            let mut errors = SpecErrors::default();
            let found = if first.is_some() { "several documents" } else { "nothing" };
            errors.push("$", found, "must be one document");
            Err(errors)
        }
    }
}

/// Reads the fields of a mapping, each once; what was not read at the end is unknown.
pub(crate) struct Fields<'a> {
    path: String,
    fields: Vec<(&'a str, &'a Node, bool)>,
    /// All names that were asked for, for suggestions.
    known: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// The fields of `node`; anything else than a mapping is an error, and nothing a mapping without fields.
    pub(crate) fn new(path: impl Into<String>, node: &'a Node, errors: &mut SpecErrors) -> Self {
        let path = path.into();
        let fields = match node {
            Node::Map(fields) => fields.iter().map(|(key, node)| (key.as_str(), node, false)).collect(),
            Node::Null => Vec::new(),
            other => {
                errors.push(path.clone(), other.shown(), format!("must be a mapping, not {}", other.kind()));
                Vec::new()
            }
        };
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::Object);
        Self { path, fields, known: Vec::new() }
    }

    /// The path of `name` below this mapping.
    pub(crate) fn at(&self, name: &str) -> String {
        join(&self.path, name)
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The field, when it is there and not null.
    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'a Node> {
        self.known.push(name);
        #[cfg(test)]
        super::schema::saw(&self.at(name), super::schema::Shape::Any);
        let (.., node, read) = self.fields.iter_mut().find(|(key, ..)| *key == name)?;
        *read = true;
        (**node != Node::Null).then_some(*node)
    }

    /// Whether the field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.fields.iter().any(|(key, ..)| *key == name)
    }

    /// The fields that nobody has asked for, for a mapping whose names are not all known here.
    pub(crate) fn rest(&mut self) -> Vec<(&'a str, &'a Node)> {
        #[cfg(test)]
        super::schema::saw(&self.path, super::schema::Shape::Open);
        let unread = self.fields.iter_mut().filter(|(_, _, read)| !read);
        unread
            .map(|(key, node, read)| {
                *read = true;
                (*key, *node)
            })
            .collect()
    }

    /// A field that is known and means nothing here.
    pub(crate) fn ignore(&mut self, names: &[&'static str]) {
        for name in names {
            let _ = self.take(name);
        }
    }

    pub(crate) fn string(&mut self, name: &'static str, errors: &mut SpecErrors) -> Option<&'a str> {
        let path = self.at(name);
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::Text);
        let node = self.take(name)?;
        match node {
            Node::Text(text) => Some(text),
            other => {
                errors.push(
                    path,
                    other.shown(),
                    format!("must be a string, not {}; write it in quotes", other.kind()),
                );
                None
            }
        }
    }

    pub(crate) fn boolean(&mut self, name: &'static str, errors: &mut SpecErrors) -> Option<bool> {
        let path = self.at(name);
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::Bool);
        let node = self.take(name)?;
        match node {
            Node::Bool(value) => Some(*value),
            other => {
                errors.push(path, other.shown(), format!("must be true or false, not {}", other.kind()));
                None
            }
        }
    }

    /// An integer of `range`.
    pub(crate) fn integer(
        &mut self,
        name: &'static str,
        range: std::ops::RangeInclusive<i128>,
        errors: &mut SpecErrors,
    ) -> Option<i128> {
        let path = self.at(name);
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::Integer(*range.start(), *range.end()));
        let node = self.take(name)?;
        match node {
            Node::Int(value) if range.contains(value) => Some(*value),
            other => {
                let problem = format!("must be an integer from {} to {}", range.start(), range.end());
                errors.push(path, other.shown(), problem);
                None
            }
        }
    }

    /// The items of a list, with their paths.
    pub(crate) fn list(
        &mut self,
        name: &'static str,
        errors: &mut SpecErrors,
    ) -> Option<Vec<(String, &'a Node)>> {
        let path = self.at(name);
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::List);
        let node = self.take(name)?;
        match node {
            Node::List(items) => {
                Some(items.iter().enumerate().map(|(at, item)| (format!("{path}[{at}]"), item)).collect())
            }
            other => {
                errors.push(path, other.shown(), format!("must be a list, not {}", other.kind()));
                None
            }
        }
    }

    /// A list of strings.
    pub(crate) fn strings(&mut self, name: &'static str, errors: &mut SpecErrors) -> Option<Vec<String>> {
        #[cfg(test)]
        super::schema::saw(&format!("{}[0]", self.at(name)), super::schema::Shape::Text);
        let items = self.list(name, errors)?;
        let mut strings = Vec::with_capacity(items.len());
        for (path, item) in items {
            match item {
                Node::Text(text) => strings.push(text.clone()),
                other => errors.push(path, other.shown(), format!("must be a string, not {}", other.kind())),
            }
        }
        Some(strings)
    }

    /// A mapping of strings, such as labels.
    pub(crate) fn string_map(
        &mut self,
        name: &'static str,
        errors: &mut SpecErrors,
    ) -> BTreeMap<String, String> {
        let path = self.at(name);
        #[cfg(test)]
        super::schema::saw(&path, super::schema::Shape::Map);
        let mut map = BTreeMap::new();
        match self.take(name) {
            None => {}
            Some(Node::Map(fields)) => {
                for (key, value) in fields {
                    match value {
                        Node::Text(text) => {
                            map.insert(key.clone(), text.clone());
                        }
                        other => errors.push(
                            join(&path, key),
                            other.shown(),
                            format!("must be a string, not {}; write it in quotes", other.kind()),
                        ),
                    }
                }
            }
            Some(other) => {
                errors.push(path, other.shown(), format!("must be a mapping, not {}", other.kind()))
            }
        }
        map
    }

    /// Reports every field that nobody asked for.
    pub(crate) fn finish(self, errors: &mut SpecErrors) {
        for (key, node, read) in &self.fields {
            if *read {
                continue;
            }
            let mut problem = "unknown field".to_owned();
            if let Some(near) = nearest(key, &self.known) {
                problem = format!("{problem}; did you mean {near}?");
            } else if !self.known.is_empty() {
                let mut known = self.known.clone();
                known.sort_unstable();
                known.dedup();
                problem = format!("{problem}; known here: {}", known.join(", "));
            }
            errors.push(self.at(key), node.shown(), problem);
        }
    }
}

/// `path.name`, or `path["name"]` for names that hold dots or slashes, as annotations do.
pub(crate) fn join(path: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    match (path.is_empty(), plain) {
        (true, true) => name.to_owned(),
        (false, true) => format!("{path}.{name}"),
        (_, false) => format!("{path}[{name}]"),
    }
}

/// The known name that differs in at most a third of its letters.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    if name.len() > 64 {
        return None;
    }
    known
        .iter()
        .map(|known| (distance(&name.to_ascii_lowercase(), &known.to_ascii_lowercase()), *known))
        .filter(|(distance, known)| *distance <= (known.len() / 3).max(1))
        .min()
        .map(|(_, known)| known)
}

/// Levenshtein's distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[b.len()]
}
