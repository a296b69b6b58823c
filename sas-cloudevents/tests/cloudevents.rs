//! CloudEvents on the wire: the specification's examples and conformance cases, and each MUST that a sender may break.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use proptest::prelude::*;
use sas_cloudevents::{self as cloudevents, DecodeError, Limits, Mode};
use sas_core::{AttributeValue, Event};
use serde_json::{Value, json};

fn directory() -> PathBuf {
    match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("cloudevents"),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/cloudevents"),
    }
}

fn message(fields: &[(&str, &str)], body: &str) -> Result<Vec<Event>, DecodeError> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::try_from(*name).expect("a name");
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    cloudevents::from_message(&headers, Bytes::copy_from_slice(body.as_bytes()), &Limits::default())
}

/// An attribute as text, by its name.
fn attribute(event: &Event, name: &str) -> Option<String> {
    match name {
        "specversion" => Some("1.0".to_owned()),
        "id" => Some(event.id().to_owned()),
        "source" => Some(event.source().to_owned()),
        "type" => Some(event.kind().to_owned()),
        "subject" => event.subject().map(str::to_owned),
        "dataschema" => event.data_schema().map(str::to_owned),
        "datacontenttype" => event.data_content_type().map(str::to_owned),
        "time" => event.time().and_then(|time| {
            jiff::Timestamp::from_nanosecond(i128::from(time.0)).ok().map(|time| time.to_string())
        }),
        name => event.extensions().get(name).map(ToString::to_string),
    }
}

#[test]
fn the_examples_of_the_specification_survive_each_mode() {
    let text = fs::read_to_string(directory().join("spec-example-events.json")).expect("examples");
    let examples: Vec<Value> = serde_json::from_str(&text).expect("a list");
    for example in &examples {
        let document = &example["event"];
        let event = cloudevents::from_json(document.to_string().as_bytes())
            .unwrap_or_else(|error| panic!("{document}: {error}"));
        for (name, value) in document.as_object().expect("an object") {
            let wanted = match value {
                Value::Null => None,
                Value::String(text) => Some(text.clone()),
                other => Some(other.to_string()),
            };
            if name != "data" && name != "data_base64" {
                assert_eq!(attribute(&event, name), wanted, "{name} of {document}");
            }
        }
        let again =
            cloudevents::from_json(cloudevents::to_json(&event).as_bytes()).expect("what was written");
        assert_eq!(again, event, "{document}");
        let binary = cloudevents::binary(&event).expect("fits into headers");
        let read = cloudevents::from_message(&binary.headers, binary.body, &Limits::default())
            .unwrap_or_else(|error| panic!("{document}: {error}"));
        assert_eq!(read.len(), 1);
        for name in ["id", "source", "type", "subject", "time", "dataschema", "datacontenttype"] {
            assert_eq!(attribute(&read[0], name), attribute(&event, name), "{name} of {document}");
        }
        for (name, value) in event.extensions() {
            assert_eq!(attribute(&read[0], name), Some(value.to_string()), "{name} of {document}");
        }
        assert_eq!(read[0].data(), event.data());
    }
    println!("spec-example-events.json: {0} cases, {0} passed", examples.len());
    assert!(!examples.is_empty());
}

/// The scenarios of a feature file: its requests, its tables of attributes, its data; outlines filled in.
#[test]
fn the_conformance_feature_of_the_http_binding() {
    let text = fs::read_to_string(directory().join("conformance/http-protocol-binding.feature")).expect("it");
    let mut passed = 0;
    for scenario in text.split("Scenario").skip(1) {
        let (body, examples) = scenario.split_once("Examples:").expect("an outline");
        for example in examples.lines().filter(|line| line.trim().starts_with('|')).skip(1) {
            let kind = example.trim().trim_matches('|').trim();
            let body = body.replace("<contentType>", kind);
            let blocks: Vec<&str> = body.split("\"\"\"").collect();
            let lines: Vec<&str> = blocks[1].lines().skip(1).map(str::trim).collect();
            let end = lines.iter().position(|line| line.is_empty()).expect("an empty line after the headers");
            let fields: Vec<(&str, &str)> = lines[1..end]
                .iter()
                .map(|line| line.split_once(':').map(|(name, value)| (name, value.trim())).expect("a header"))
                .collect();
            let events = message(&fields, &lines[end + 1..].join("\n")).expect("a valid event");
            assert_eq!(events.len(), 1);
            let rows = blocks[2].lines().filter(|line| line.trim().starts_with('|')).skip(1);
            for row in rows {
                let cells: Vec<&str> = row.trim().trim_matches('|').split('|').map(str::trim).collect();
                assert_eq!(
                    attribute(&events[0], cells[0]).as_deref(),
                    Some(cells[1]),
                    "{kind}: {}",
                    cells[0]
                );
            }
            let wanted: Value = serde_json::from_str(blocks[3]).expect("JSON");
            let found: Value = serde_json::from_slice(events[0].data()).expect("JSON data");
            assert_eq!(found, wanted);
            passed += 1;
        }
    }
    println!("http-protocol-binding.feature: {passed} cases, {passed} passed");
    assert!(passed >= 4);
}

#[test]
fn the_minimal_events_of_the_conformance_suite() {
    let text = fs::read_to_string(directory().join("conformance/v1_minimum.yaml")).expect("it");
    let mut passed = 0;
    for document in text.split("\n---\n") {
        let case: Value = serde_saphyr::from_str(document).expect("YAML");
        let attributes = &case["ContextAttributes"];
        let field = |name: &str| attributes[name].as_str().unwrap_or("1.0");
        let data = case["Data"].as_str().expect("data").trim_end();
        let fields = [
            ("ce-specversion", "1.0"),
            ("ce-type", field("type")),
            ("ce-id", field("id")),
            ("ce-source", field("source")),
            ("content-type", field("datacontenttype")),
        ];
        let events = message(&fields, data).expect("a valid event");
        assert_eq!(events[0].data(), data.as_bytes());
        assert_eq!(events[0].data_content_type(), Some(field("datacontenttype")));
        let structured = cloudevents::structured(&events[0]);
        let again = cloudevents::from_message(&structured.headers, structured.body, &Limits::default());
        assert_eq!(again.expect("what was written"), events);
        passed += 1;
    }
    println!("v1_minimum.yaml: {passed} cases, {passed} passed");
    assert!(passed >= 6);
}

#[test]
fn what_breaks_a_must_is_refused_with_the_member_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut document = json!({"specversion": "1.0", "id": "1", "source": "/s", "type": "t"});
        change(&mut document);
        cloudevents::from_json(document.to_string().as_bytes())
    };
    assert!(with(&|_| {}).is_ok());
    for (field, value) in [
        ("specversion", json!("0.3")),
        ("specversion", json!(1.0)),
        ("specversion", Value::Null),
        ("id", json!("")),
        ("id", json!(7)),
        ("id", Value::Null),
        ("source", json!("")),
        ("source", json!("a space")),
        ("source", json!("1:no-scheme")),
        ("source", json!("/half%2")),
        ("type", json!("")),
        ("type", json!("line\nbreak")),
        ("type", json!("non\u{FFFE}character")),
        ("subject", json!("")),
        ("subject", json!(["a"])),
        ("time", json!("yesterday")),
        ("time", json!("2018-04-05")),
        ("time", json!("2018-04-05 17:31:00Z")),
        ("time", json!("2018-04-05T17:31:00")),
        ("time", json!("2018-13-05T17:31:00Z")),
        ("time", json!("2018-04-05T17:31:00.Z")),
        ("dataschema", json!("")),
        ("dataschema", json!("/relative")),
        ("datacontenttype", json!("")),
        ("datacontenttype", json!("text")),
        ("extension", json!({"a": 1})),
        ("extension", json!(2_147_483_648_i64)),
        ("extension", json!(1.5)),
        ("extension", json!("tab\there")),
        ("data_base64", json!("not base 64!")),
        ("data_base64", json!("QQ")),
    ] {
        let error = with(&|document| document[field] = value.clone()).expect_err(&format!("{field} {value}"));
        assert_eq!(error.field, field, "{value}: {error}");
    }
    for name in ["Extension", "ex-tension", "ex_tension", ""] {
        assert!(with(&|document| document[name] = json!("x")).is_err(), "{name}");
    }
    for (document, problem) in [
        ("", "JSON"),
        ("[1]", "object"),
        ("{\"id\":\"1\"", "JSON"),
        ("{\"specversion\":\"1.0\",\"id\":\"1\",\"id\":\"2\",\"source\":\"/s\",\"type\":\"t\"}", "once"),
        ("{\"specversion\":\"1.0\",\"id\":\"\\ud800\",\"source\":\"/s\",\"type\":\"t\"}", ""),
    ] {
        let error = cloudevents::from_json(document.as_bytes()).expect_err(document);
        assert!(error.to_string().contains(problem), "{document}: {error}");
    }
    assert!(
        with(&|document| {
            document["data"] = json!(1);
            document["data_base64"] = json!("QUI=");
        })
        .is_err()
    );
    assert!(
        with(&|document| {
            document["datacontenttype"] = json!("text/plain");
            document["data"] = json!({"a": 1});
        })
        .is_err()
    );
    let deep =
        format!("{{\"specversion\":\"1.0\",\"data\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(cloudevents::from_json(deep.as_bytes()).is_err(), "deeper than a stack is");
}

#[test]
fn binary_headers_are_read_as_the_binding_says() {
    let base = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    let with = |name: &str, value: &str| {
        let mut fields: Vec<(&str, &str)> =
            base.iter().copied().filter(|(known, _)| *known != name).collect();
        fields.push((name, value));
        message(&fields, "")
    };
    for (value, wanted) in [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        ("%e2%82%ac", "€"),
        ("%41", "A"),
        ("\"quoted \\\"text\\\"\"", "quoted \"text\""),
        ("100%25", "100%"),
        ("%2541", "%41"),
        ("plain", "plain"),
    ] {
        let events = with("ce-subject", value).unwrap_or_else(|error| panic!("{value}: {error}"));
        assert_eq!(events[0].subject(), Some(wanted), "{value}");
        let again = cloudevents::binary(&events[0]).expect("fits");
        let read = cloudevents::from_message(&again.headers, again.body, &Limits::default()).expect("reads");
        assert_eq!(read, events);
    }
    for (name, value) in [
        ("ce-subject", "%C0%A0"),
        ("ce-subject", "\"open"),
        ("ce-subject", "%0A"),
        ("ce-subject", ""),
        ("ce-datacontenttype", "text/plain"),
        ("ce-time", "now"),
        ("ce-specversion", "2.0"),
        ("ce-ext_x", "1"),
        ("content-type", "application/cloudevents+avro"),
    ] {
        assert!(with(name, value).is_err(), "{name}: {value}");
    }
    let mut twice = base.to_vec();
    twice.push(("ce-id", "2"));
    assert_eq!(message(&twice, "").expect_err("twice").field, "ce-id");
    for missing in ["ce-specversion", "ce-id", "ce-source", "ce-type"] {
        let fields: Vec<(&str, &str)> = base.iter().copied().filter(|(name, _)| *name != missing).collect();
        let error = message(&fields, "").expect_err(missing);
        assert_eq!(format!("ce-{}", error.field), missing);
    }
    let upper = [("CE-SpecVersion", "1.0"), ("CE-ID", "1"), ("Ce-Source", "/s"), ("cE-type", "t")];
    assert_eq!(message(&upper, "x").expect("names have no case")[0].data(), "x".as_bytes());
}

#[test]
fn the_mode_is_told_by_the_media_type_in_any_case() {
    for (kind, mode) in [
        (None, Mode::Binary),
        (Some("application/json"), Mode::Binary),
        (Some("application/cloudevents+json"), Mode::Structured),
        (Some("Application/CloudEvents+JSON; charset=UTF-8"), Mode::Structured),
        (Some("application/cloudevents-batch+json"), Mode::Batched),
    ] {
        assert_eq!(cloudevents::mode_of(kind).expect("known"), mode, "{kind:?}");
    }
    for kind in ["application/cloudevents", "application/cloudevents+xml", "application/cloudevents-batch"] {
        assert!(cloudevents::mode_of(Some(kind)).is_err(), "{kind}");
    }
}

#[test]
fn a_batch_is_read_whole_or_not_at_all() {
    let one =
        Event::new("1", "/s", "t").unwrap().with_data("application/json", "{\"n\": 12345678901234567890123}");
    let two = Event::new("2", "/s", "t").unwrap().with_data("application/octet-stream", vec![0xFF_u8, 0]);
    let events = [one.expect("valid"), two.expect("valid")];
    let batch = cloudevents::batched(&events);
    assert_eq!(batch.headers[header::CONTENT_TYPE], "application/cloudevents-batch+json; charset=utf-8");
    let read = cloudevents::from_message(&batch.headers, batch.body.clone(), &Limits::default());
    assert_eq!(read.expect("reads"), events, "no digit of a number is lost");
    assert!(cloudevents::from_json_batch(b"[]", 10).expect("none is a batch").is_empty());
    let error = cloudevents::from_json_batch(
        br#"[{"specversion":"1.0","id":"1","source":"/s","type":"t"},{"id":"2"}]"#,
        10,
    )
    .expect_err("the second lacks its version");
    assert_eq!(error.field, "[1].specversion");
    assert!(cloudevents::from_json_batch(&batch.body, 1).is_err(), "more than the receiver takes");
    let mut limits = Limits::default();
    limits.bytes = 10;
    assert!(cloudevents::from_message(&batch.headers, batch.body, &limits).is_err());
}

#[test]
fn data_is_what_its_type_says() {
    let read = |members: &str| {
        let document =
            format!("{{\"specversion\":\"1.0\",\"id\":\"1\",\"source\":\"/s\",\"type\":\"t\"{members}}}");
        cloudevents::from_json(document.as_bytes()).unwrap_or_else(|error| panic!("{document}: {error}"))
    };
    for (members, kind, data) in [
        ("", None, &b""[..]),
        (r#","data":"I'm just a string""#, Some("application/json"), br#""I'm just a string""#),
        (r#","data":null"#, Some("application/json"), b"null"),
        (r#","data":1.50"#, Some("application/json"), b"1.50"),
        (
            r#","datacontenttype":"application/vnd.x+json; v=1","data":{"b":1,"a":2}"#,
            Some("application/vnd.x+json; v=1"),
            br#"{"b":1,"a":2}"#,
        ),
        (r#","datacontenttype":"text/xml","data":"<a b=\"c\"/>""#, Some("text/xml"), br#"<a b="c"/>"#),
        (r#","data_base64":"AP8=""#, None, b"\x00\xFF"),
    ] {
        let event = read(members);
        assert_eq!((event.data_content_type(), event.data().as_ref()), (kind, data), "{members}");
        assert_eq!(
            cloudevents::from_json(cloudevents::to_json(&event).as_bytes()).expect("reads"),
            event,
            "{members}"
        );
    }
    let typed = read(r#","number":5,"flag":true,"text":"5""#);
    assert_eq!(typed.extensions()["number"], AttributeValue::Integer(5));
    assert_eq!(typed.extensions()["flag"], AttributeValue::Boolean(true));
    assert_eq!(typed.extensions()["text"], AttributeValue::String("5".to_owned()));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_event_survives_every_mode(
        id in "\\PC{1,20}",
        subject in prop::option::of("\\PC{1,30}"),
        extension in "\\PC{0,30}",
        data in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let Ok(mut event) = Event::new(id, "/s", "t") else { return Ok(()) };
        if let Some(subject) = subject {
            let Ok(with) = event.clone().with_subject(subject) else { return Ok(()) };
            event = with;
        }
        let Ok(event) = event.with_extension("ext", extension) else { return Ok(()) };
        let event = event.with_data("application/octet-stream", data).expect("a media type");
        let structured = cloudevents::structured(&event);
        let read = cloudevents::from_message(&structured.headers, structured.body, &Limits::default());
        prop_assert_eq!(read.expect("structured"), vec![event.clone()]);
        let binary = cloudevents::binary(&event).expect("fits");
        let read = cloudevents::from_message(&binary.headers, binary.body, &Limits::default());
        prop_assert_eq!(read.expect("binary"), vec![event]);
    }

    #[test]
    fn no_document_panics(document in "[\\[\\]{}\":,a-z0-9\\\\ ]{0,80}") {
        let _ = cloudevents::from_json(document.as_bytes());
        let _ = cloudevents::from_json_batch(document.as_bytes(), 10);
    }
}

#[test]
fn named_values_are_an_event_or_say_which_of_them_is_wrong() {
    let event = Event::new("7", "/shop", "order.paid")
        .and_then(|event| event.with_subject("grüße"))
        .and_then(|event| event.with_extension("partitionkey", "a"))
        .and_then(|event| event.with_data("application/json", "{}"))
        .expect("an event");
    let named = sas_cloudevents::attributes(&event);
    let read = |named: &[(&str, String)], kind: Option<&str>| {
        let named = named.iter().map(|(name, value)| (*name, value.as_str().into()));
        sas_cloudevents::from_attributes(named, kind, event.data().clone())
    };
    assert_eq!(read(&named, event.data_content_type()), Ok(event.clone()));
    let without =
        |left: &str| -> Vec<_> { named.iter().filter(|(name, _)| *name != left).cloned().collect() };
    for (given, kind, field) in [
        (without("id"), None, "id"),
        (without("specversion"), None, "specversion"),
        ([&named[..], &named[..1]].concat(), None, "specversion"),
        ([&named[..], &[("time", "noon".to_owned())]].concat(), None, "time"),
        ([&named[..], &[("datacontenttype", "text/plain".to_owned())]].concat(), None, "datacontenttype"),
        ([&named[..], &[("Shop", "x".to_owned())]].concat(), None, "extension"),
        (named.clone(), Some("json"), "datacontenttype"),
    ] {
        let error = read(&given, kind).expect_err("it is no event");
        assert_eq!(error.field, field, "{error}");
    }
}
