//! Input of anybody: never a panic, and never long work.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use proptest::prelude::*;
use sas_core::{Event, Schedule as _, Timestamp};
use sas_trigger::{
    CronSchedule, Filter, Transform,
    cesql::Expression,
    cloudevents::{self, Limits},
};

/// What one case may take at most; each takes far less.
const MOST: Duration = Duration::from_secs(2);

fn event() -> Event {
    Event::new("1", "/s", "t")
        .and_then(|event| event.with_extension("n", 5))
        .and_then(|event| event.with_data("application/json", r#"{"a": [{"b": "c"}], "d": "e"}"#))
        .expect("valid")
}

fn timed(work: impl FnOnce()) {
    #[expect(clippy::disallowed_methods, reason = "real time is what is measured")]
    let began = Instant::now();
    work();
    assert!(began.elapsed() < MOST);
}

fn soup(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(prop::sample::select(words), 0..60).prop_map(|words| words.concat()),
        ".{0,200}",
    ]
}

const CRON: &[&str] = &[
    "*",
    " ",
    "/",
    "-",
    ",",
    "0",
    "1",
    "59",
    "60",
    "7",
    "L",
    "W",
    "#",
    "?",
    "SUN",
    "FRI",
    "JAN",
    "@every ",
    "1h",
    "@daily",
    "TZ=UTC ",
    "CRON_TZ=",
    "Europe/Berlin",
    "cron(",
    "rate(",
    ")",
    "99999999999",
];
const SQL: &[&str] = &[
    "type",
    " ",
    "(",
    ")",
    "AND ",
    "OR ",
    "XOR ",
    "NOT ",
    "LIKE ",
    "'%_%'",
    "IN ",
    "EXISTS ",
    "1",
    "-",
    "+",
    "*",
    "/",
    "%",
    "=",
    "!=",
    "<",
    ">=",
    "'a'",
    "\"b\"",
    "\\",
    ",",
    "ABS(",
    "LEN(",
    "SUBSTRING(",
    "TRUE",
    "FALSE",
    "2147483648",
];
const JSON: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"specversion\"",
    "\"1.0\"",
    "\"id\"",
    "\"source\"",
    "\"type\"",
    "\"data\"",
    "\"data_base64\"",
    "\"x\"",
    "1",
    "-1e999",
    "null",
    "true",
    "\"\\u0000\"",
    " ",
];
const TEMPLATE: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"type\"",
    "\"data\"",
    "\"extensions\"",
    "\"{{ data }}\"",
    "\"{{ data.a[0].b }}\"",
    "\"{{ n? }}\"",
    "\"{{\"",
    "\"}}\"",
    "\"{{ data..x }}\"",
    "\"{{ data[99999999999999999999] }}\"",
    "1",
    "null",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn cron(text in soup(CRON), at in any::<i64>()) {
        timed(|| {
            if let Ok(schedule) = CronSchedule::new(&text, "Europe/Berlin") {
                let _ = schedule.next_after(Timestamp(at));
            }
        });
    }

    #[test]
    fn cesql(text in soup(SQL)) {
        timed(|| {
            if let Ok(expression) = text.parse::<Expression>() {
                let _ = expression.evaluate(&event());
            }
        });
    }

    #[test]
    fn structured_events(text in soup(JSON)) {
        timed(|| {
            if let Ok(event) = cloudevents::from_json(text.as_bytes()) {
                assert_eq!(cloudevents::from_json(cloudevents::to_json(&event).as_bytes()).as_ref(), Ok(&event));
            }
            let _ = cloudevents::from_json_batch(text.as_bytes(), 1000);
        });
    }

    #[test]
    fn headers(fields in prop::collection::vec(("(ce-[a-z0-9]{1,12}|content-type)", prop::collection::vec(32_u8..=255, 0..60)), 0..12), body: Vec<u8>) {
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_bytes(value)) {
                headers.append(name, value);
            }
        }
        headers.insert("ce-specversion", HeaderValue::from_static("1.0"));
        timed(|| {
            if let Ok(events) = cloudevents::from_message(&headers, Bytes::from(body), &Limits::default()) {
                for event in events {
                    let _ = cloudevents::binary(&event);
                }
            }
        });
    }

    #[test]
    fn templates(text in soup(TEMPLATE)) {
        timed(|| {
            if let Ok(transform) = Transform::parse(&text) {
                let _ = transform.apply(&event());
            }
        });
    }

    #[test]
    fn filters(text in soup(JSON)) {
        timed(|| {
            if let Ok(filter) = serde_json::from_str::<Filter>(&text) {
                let _ = (filter.validate(), filter.wants(&event()));
            }
        });
    }
}

#[test]
fn depth_and_size_are_bounded() {
    timed(|| {
        let deep =
            |open: &str, close: &str, times: usize| format!("{}1{}", open.repeat(times), close.repeat(times));
        assert!(deep("(", ")", 100_000).parse::<Expression>().is_err());
        assert!("NOT ".repeat(100_000).parse::<Expression>().is_err());
        assert!(Transform::parse(&format!("{{\"data\": {}}}", deep("[", "]", 100_000))).is_err());
        assert!(Transform::parse(&format!("{{\"data\": {}}}", deep("[", "]", 60))).is_err());
        assert!(Transform::parse(&format!("{{\"type\": \"{}\"}}", "{{ type }}".repeat(300))).is_err());
        assert!(
            serde_json::from_str::<Filter>(&format!(
                "{}{{\"exact\":{{\"type\":\"a\"}}}}{}",
                "{\"not\":".repeat(100_000),
                "}".repeat(100_000)
            ))
            .is_err()
        );
        assert!(CronSchedule::new(&"1,".repeat(100_000), "UTC").is_err());
        // Each reference to all of the data: what comes out is bounded, not what goes in.
        let large =
            Event::new("1", "/s", "t").and_then(|event| event.with_data("text/plain", "x".repeat(100_000)));
        let many = Transform::parse(&format!("{{\"data\": [{}]}}", vec!["\"{{ data }}\""; 200].join(",")))
            .expect("a template");
        assert!(many.apply(&large.expect("valid")).is_err());
    });
}
