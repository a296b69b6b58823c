//! Files that show records as they were stored, and what is compared of them: the names and types of their fields.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::recording::Written;

pub(crate) const DIR: &str = "tests/records/golden";

/// Where records are in a store, each with what reads them.
pub(crate) const KINDS: [&str; 39] = [
    "app/",
    "async/answer/",
    "async/call/",
    "async/calls-of/",
    "async/expiry/",
    "audit/",
    "broker/",
    "brokers/",
    "cluster/host/",
    "cluster/renewed/",
    "cluster/shard/",
    "cluster/terms",
    "deadletter/",
    "domain/",
    "engine/",
    "events/last/",
    "events/records/",
    "platform/id",
    "purge/",
    "quota/",
    "service/",
    "tenant/",
    "tenants/numbers",
    "token/",
    "trigger/",
    "triggers/",
    "usage/checkpoint/",
    "usage/export/",
    "usage/gap/",
    "usage/hour/",
    "usage/mark/",
    "usage/total/",
    "workflow/definition/",
    "workflow/ended/",
    "workflow/listens/",
    "workflow/record/",
    "workflow/retired/",
    "workflow/run/",
    "workflow/told/",
];

/// Which kind a key is of; `None`: of none that this test knows.
pub(crate) fn kind(key: &str) -> Option<&'static str> {
    KINDS.into_iter().find(|kind| key.starts_with(kind))
}

/// Records by their keys.
pub(crate) type Records = BTreeMap<String, Vec<u8>>;

/// What a file shows: of a key that had several forms in its life each of them, the last one as it stood in the end.
pub(crate) type Shown = Vec<(String, Vec<u8>)>;

/// All files, the oldest first.
pub(crate) fn files() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(DIR);
    let mut files: Vec<_> = std::fs::read_dir(&dir)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// Where the file stands that follows `newest`.
pub(crate) fn following(newest: Option<&PathBuf>) -> PathBuf {
    let number = newest.map_or(1, |path| {
        let stem = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
        stem.parse::<u32>().expect("files are called by numbers") + 1
    });
    Path::new(env!("CARGO_MANIFEST_DIR")).join(DIR).join(format!("{number:04}.txt"))
}

/// A key on a line of its own, and below it, indented, the value: as JSON if it is that, else `bytes` and a JSON string with a
/// character for each byte.
pub(crate) fn print(records: &[(String, Vec<u8>)]) -> String {
    let mut text = String::new();
    for (key, value) in records {
        let shown = match serde_json::from_slice::<Value>(value) {
            Ok(value) => serde_json::to_string_pretty(&value).expect("JSON"),
            Err(_) => {
                let latin: String = value.iter().map(|byte| char::from(*byte)).collect();
                format!("bytes {}", Value::from(latin))
            }
        };
        writeln!(text, "{key}").expect("memory");
        for line in shown.lines() {
            writeln!(text, "  {line}").expect("memory");
        }
    }
    text
}

pub(crate) fn read(text: &str) -> Shown {
    let mut records = Shown::new();
    let mut lines = text.lines().peekable();
    while let Some(key) = lines.next() {
        let mut shown = String::new();
        while let Some(line) = lines.next_if(|line| line.starts_with("  ")) {
            shown += &line[2..];
        }
        let value = match shown.strip_prefix("bytes ") {
            Some(latin) => {
                let latin: String = serde_json::from_str(latin).expect("a JSON string");
                latin.chars().map(|c| u8::try_from(c).expect("a byte")).collect()
            }
            None => {
                let value: Value =
                    serde_json::from_str(&shown).unwrap_or_else(|error| panic!("{key}: {error}"));
                value.to_string().into_bytes()
            }
        };
        records.push((key.to_owned(), value));
    }
    records
}

/// The fields of a value with their types, as `a.b[].c: number`.
pub(crate) type Shape = BTreeSet<(String, &'static str)>;

/// What a value of this kind consists of.
pub(crate) fn shape(kind: &str, value: &[u8]) -> Shape {
    let mut shape = Shape::new();
    match kind {
        // A head as JSON on one line, then the body.
        "async/answer/" | "async/call/" | "async/calls-of/" => {
            let end = value.iter().position(|byte| *byte == b'\n').expect("a head on one line");
            let head: Value = serde_json::from_slice(&value[..end]).expect("the head is JSON");
            fields(&head, "", &mut shape);
            shape.insert(("body".to_owned(), "bytes"));
        }
        // The time of acceptance in eight bytes, then the event as structured JSON.
        "events/records/" => {
            let event: Value = serde_json::from_slice(&value[8..]).expect("the event is JSON");
            fields(&event, "", &mut shape);
            shape.insert(("time of acceptance".to_owned(), "8 bytes"));
        }
        _ => match serde_json::from_slice::<Value>(value) {
            Ok(value) => fields(&value, "", &mut shape),
            Err(_) => {
                shape.insert((String::new(), if value.is_empty() { "nothing" } else { "text" }));
            }
        },
    }
    shape
}

fn fields(value: &Value, at: &str, shape: &mut Shape) {
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(items) => {
            items.iter().for_each(|item| fields(item, &format!("{at}[]"), shape));
            "array"
        }
        Value::Object(members) => {
            for (name, value) in members {
                let name = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                fields(value, &name, shape);
            }
            "object"
        }
    };
    shape.insert((at.to_owned(), kind));
}

/// The shapes of all records of each kind together.
pub(crate) fn shapes<'r>(
    records: impl IntoIterator<Item = (&'r String, &'r Vec<u8>)>,
) -> BTreeMap<&'static str, Shape> {
    let mut shapes: BTreeMap<&'static str, Shape> = BTreeMap::new();
    for (key, value) in records {
        let kind = kind(key).unwrap_or_else(|| {
            panic!("{key:?} is of a kind that the golden file of records has not: add it to KINDS, and what reads it to `opens`")
        });
        shapes.entry(kind).or_default().extend(shape(kind, value));
    }
    shapes
}

/// Those that show all that was written: what the stores had in the end, and before it what of its key was written earlier and
/// has a field that nothing else has. Of a key that was gone by then the last that was written is among them, since it is what
/// opens.
pub(crate) fn chosen(kept: &Records, written: &Written) -> Shown {
    let mut known = shapes(kept);
    let mut earlier: BTreeMap<&String, Vec<&Vec<u8>>> = BTreeMap::new();
    for (key, values) in written {
        let kind = kind(key).expect("known by now");
        let known = known.entry(kind).or_default();
        let mut told = Vec::new();
        for value in values {
            let shape = shape(kind, value);
            if !shape.is_subset(known) {
                known.extend(shape);
                told.push(value);
            }
        }
        let last = values.last().expect("it was written");
        if !told.is_empty() && !kept.contains_key(key) && told.last() != Some(&last) {
            told.push(last);
        }
        earlier.insert(key, told);
    }
    let keys: BTreeSet<&String> = kept.keys().chain(earlier.keys().copied()).collect();
    let all = keys.into_iter().flat_map(|key| {
        let earlier = earlier.remove(key).unwrap_or_default();
        earlier.into_iter().chain(kept.get(key)).map(|value| (key.clone(), value.clone()))
    });
    all.collect()
}
