//! The JSON schema of manifests, made of what the reader asks for: it reads documents that have everything, and every field
//! that it asks for, with the type that it wants, is written down. So the schema can't say anything else than the reader.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use sas_core::SpecErrors;
use serde_json::{Map, Value, json};

use super::{KINDS, ParseOptions, parse, read_all};

/// What the reader wants at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    Any,
    Object,
    /// A mapping whose names are not all known.
    Open,
    Map,
    List,
    Text,
    Bool,
    Integer(i128, i128),
}

thread_local! {
    static SEEN: RefCell<BTreeMap<String, BTreeSet<Shape>>> = const { RefCell::new(BTreeMap::new()) };
}

/// Writes down what the reader asks for.
pub(super) fn saw(path: &str, shape: Shape) {
    let mut plain = String::with_capacity(path.len());
    for letter in path.chars() {
        if !(letter.is_ascii_digit() && plain.ends_with('[')) {
            plain.push(letter);
        }
    }
    SEEN.with_borrow_mut(|seen| seen.entry(plain).or_default().insert(shape));
}

/// A document of each kind that has everything.
const EVERYTHING: [(&str, &str); 10] = [
    (
        "Service",
        r#"
metadata: {name: a, namespace: b, labels: {}, annotations: {}}
spec:
  traffic: [{}]
  template:
    metadata: {labels: {}, annotations: {}}
    spec:
      securityContext: {capabilities: {}, seccompProfile: {}}
      imagePullSecrets: [{}]
      initContainers: [&container {
        name: x, ports: [{}], resources: {requests: {}, limits: {}}, securityContext: {capabilities: {}, seccompProfile: {}},
        env: [{valueFrom: {secretKeyRef: {}, configMapKeyRef: {}}}], envFrom: [{secretRef: {}, configMapRef: {}}],
        volumeMounts: [{}],
        readinessProbe: &probe {httpGet: {httpHeaders: [{}]}, tcpSocket: {}, exec: {}, grpc: {}},
        livenessProbe: *probe, startupProbe: *probe}]
      containers: [*container]
      volumes:
        - {emptyDir: {}, configMap: {items: [{}]}, secret: {items: [{}]}, persistentVolumeClaim: {},
           projected: {sources: [{secret: {items: [{}]}, configMap: {items: [{}]}}]}}
        - {secret: {secretName: x, items: [{}]}}
"#,
    ),
    ("DomainMapping", "metadata: {name: a}\nspec: {ref: {}}"),
    ("PingSource", "metadata: {name: a}\nspec: {sink: {ref: {}}, ceOverrides: {}}"),
    (
        "KafkaSource",
        r#"
metadata: {name: a}
spec:
  net:
    tls: {caCert: &secret {secretKeyRef: {}}, cert: *secret, key: *secret}
    sasl: {enable: true, user: *secret, password: *secret, type: *secret}
  sink: {ref: {}}
  delivery: {deadLetterSink: {ref: {}}}
"#,
    ),
    ("Broker", "metadata: {name: a}\nspec: {delivery: {deadLetterSink: {ref: {}}}}"),
    (
        "Trigger",
        "metadata: {name: a}\nspec: {filter: {}, subscriber: {ref: {}}, delivery: {deadLetterSink: {ref: {}}}}",
    ),
    ("Channel", "metadata: {name: a}\nspec: {delivery: {deadLetterSink: {ref: {}}}}"),
    (
        "Subscription",
        "metadata: {name: a}\nspec: {channel: {}, subscriber: {ref: {}}, reply: {ref: {}}, delivery: {deadLetterSink: {ref: {}}}}",
    ),
    (
        "Trigger",
        "metadata: {name: a}\nspec: {source: {}, target: {}, reply: {}, delivery: {deadLetterSink: {ref: {}}}}",
    ),
    ("Workflow", "metadata: {name: a}\nspec: {document: {}}"),
];

/// The schema of what is at `path`.
fn at(path: &str, seen: &BTreeMap<String, BTreeSet<Shape>>) -> Value {
    let shapes = seen.get(path).cloned().unwrap_or_default();
    let has = |shape| shapes.contains(&shape);
    // A reply may also be a word, `none`.
    if has(Shape::Object) && !path.ends_with(".reply") {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        let mut properties = Map::new();
        for below in seen.keys() {
            let Some(name) = below.strip_prefix(&prefix) else { continue };
            if !name.is_empty() && !name.contains(['.', '[']) {
                properties.insert(name.to_owned(), at(below, seen));
            }
        }
        let mut schema = json!({"type": ["object", "null"], "properties": properties});
        if !has(Shape::Open) {
            schema["additionalProperties"] = false.into();
        }
        return schema;
    }
    if has(Shape::List) {
        return json!({"type": ["array", "null"], "items": at(&format!("{path}[]"), seen)});
    }
    if has(Shape::Map) {
        return json!({"type": ["object", "null"], "additionalProperties": {"type": "string"}});
    }
    if has(Shape::Text) {
        return json!({"type": ["string", "null"]});
    }
    if has(Shape::Bool) {
        return json!({"type": ["boolean", "null"]});
    }
    let integer = shapes.iter().find_map(|shape| match shape {
        Shape::Integer(least, most) => Some((*least, *most)),
        _ => None,
    });
    match integer {
        Some((least, most)) => json!({
            "type": ["integer", "null"],
            "minimum": i64::try_from(least).expect("small"),
            "maximum": i64::try_from(most).expect("small"),
        }),
        None => json!({}),
    }
}

fn schema() -> Value {
    let mut kinds = Vec::new();
    let mut definitions = Map::new();
    for ((api, kind), (named, body)) in KINDS.iter().zip(EVERYTHING) {
        assert_eq!(*kind, named, "in the order of KINDS");
        SEEN.take();
        // It is wrong in many ways; what matters is what it is asked for.
        read_all(&format!("apiVersion: {api}\nkind: {kind}\n{body}"), &mut SpecErrors::default());
        let seen = SEEN.take();
        let mut schema = at("", &seen);
        schema["type"] = "object".into();
        let others: &[&str] = match *kind {
            "DomainMapping" => &["serving.knative.dev/v1alpha1"],
            "KafkaSource" => &["sources.knative.dev/v1beta1"],
            _ => &[],
        };
        let apis: Vec<&str> = std::iter::once(*api).chain(others.iter().copied()).collect();
        schema["properties"]["apiVersion"] = json!({"enum": apis});
        let names: &[&str] = if *kind == "Channel" { &["Channel", "InMemoryChannel"] } else { &[kind] };
        schema["properties"]["kind"] = json!({"enum": names});
        schema["required"] = json!(["apiVersion", "kind", "metadata"]);
        schema["properties"]["metadata"]["required"] = json!(["name"]);
        schema["properties"]["status"] = json!({});
        let name = if api.starts_with("sas.dev/") { format!("sas.{kind}") } else { (*kind).to_owned() };
        kinds.push(json!({"$ref": format!("#/$defs/{name}")}));
        definitions.insert(name, schema);
    }
    let list = json!({
        "type": "object",
        "required": ["apiVersion", "kind", "items"],
        "additionalProperties": false,
        "properties": {
            "apiVersion": {"enum": ["v1", "serving.knative.dev/v1"]},
            "kind": {"enum": ["List", "ServiceList"]},
            "metadata": {},
            "items": {"type": "array", "minItems": 1, "items": {"anyOf": kinds.clone()}},
        },
    });
    kinds.push(json!({"$ref": "#/$defs/List"}));
    definitions.insert("List".to_owned(), list);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Manifests of a sas platform",
        "anyOf": kinds,
        "$defs": definitions,
    })
}

/// Whether `value` is as `schema` says, for the words of JSON schema that are used here.
fn fits(schema: &Value, value: &Value, root: &Value) -> bool {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.strip_prefix("#/$defs/").expect("a definition");
        return fits(&root["$defs"][name], value, root);
    }
    if let Some(any) = schema["anyOf"].as_array() {
        return any.iter().any(|schema| fits(schema, value, root));
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.contains(value);
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let of_kind = match &schema["type"] {
        Value::String(one) => one == kind,
        Value::Array(several) => several.iter().any(|one| one == kind),
        _ => true,
    };
    let bounded = value.as_i64().is_none_or(|number| {
        schema["minimum"].as_i64().is_none_or(|least| number >= least)
            && schema["maximum"].as_i64().is_none_or(|most| number <= most)
    });
    let items = value
        .as_array()
        .into_iter()
        .flatten()
        .all(|item| schema.get("items").is_none_or(|schema| fits(schema, item, root)));
    let fields = value.as_object().is_none_or(|fields| {
        let required = schema["required"].as_array().into_iter().flatten();
        required.filter_map(Value::as_str).all(|name| fields.contains_key(name))
            && fields.iter().all(|(name, value)| {
                match (&schema["properties"][name], &schema["additionalProperties"]) {
                    (Value::Null, Value::Bool(false)) => false,
                    (Value::Null, Value::Null) => true,
                    (Value::Null, other) => fits(other, value, root),
                    (known, _) => fits(known, value, root),
                }
            })
    });
    of_kind && bounded && items && fields
}

#[test]
fn the_schema_is_what_the_reader_asks_for() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests.schema.json");
    let text = format!("{}\n", serde_json::to_string_pretty(&schema()).expect("JSON"));
    if std::env::var_os("SAS_WRITE_DOCS").is_some() {
        std::fs::write(&file, &text).expect("written");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(written == text, "{} differs: write it with SAS_WRITE_DOCS=1", file.display());
}

/// Whatever is accepted fits the schema; whatever has a field that is not known, or of a wrong type, does not.
#[test]
fn real_manifests_fit_the_schema_if_their_fields_are_known() {
    let schema = schema();
    let dir = match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("knative/services"),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/knative/services"),
    };
    let (mut fitting, mut unfit) = (0, 0);
    for file in std::fs::read_dir(dir).expect("the vectors") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("text");
        let document = super::document(&text).expect("a document");
        match parse(&text, &ParseOptions::default()) {
            Ok(_) => {
                assert!(fits(&schema, &document, &schema), "{text}");
                fitting += 1;
            }
            Err(errors) if errors.0.iter().any(|error| error.problem.starts_with("unknown field")) => {
                assert!(!fits(&schema, &document, &schema), "{text}");
                unfit += 1;
            }
            Err(_) => {}
        }
    }
    assert!(fitting > 50 && unfit > 0, "{fitting} fit, {unfit} do not");
    for wrong in [
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service"}),
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": 7}}),
        json!({"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "a"},
            "spec": {"template": {"spec": {"containerConcurrency": 1001}}}}),
        json!({"apiVersion": "v1", "kind": "List", "items": [{"kind": "Service"}]}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}),
    ] {
        assert!(!fits(&schema, &wrong, &schema), "{wrong}");
    }
}
