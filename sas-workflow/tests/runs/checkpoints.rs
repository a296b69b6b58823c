//! Checkpoints of the machine: what they hold, what they never hold, and what is refused. That a restored machine goes on in the same way,
//! each test of a run shows: [`Run::tell`] goes on with one.

use std::collections::BTreeMap;

use sas_workflow::{Command, Definition, Machine, NoCheckpoint, NoRestore, Outcome, Record, Status};
use serde_json::{Value as Json, json};

use crate::driver::{BEGAN, Run};

const HEAD: &str = "document: {dsl: '1.0.3', namespace: a, name: b, version: '1.0.0'}\n";

fn definition(rest: &str) -> Definition {
    Definition::parse(&format!("{HEAD}{rest}")).unwrap_or_else(|mistakes| panic!("{mistakes}\n{rest}"))
}

fn key() -> Vec<(&'static str, Json)> {
    vec![("key", json!("hidden-1"))]
}

/// A request that is under way was made before another branch changed what it was made of.
#[test]
fn a_request_is_made_again_of_what_it_was_made_of() {
    let fork = "
use: {secrets: [key]}
do:
  - f:
      fork:
        branches:
          - asks: {call: http, with: {method: post, endpoint: 'http://x.example/', headers: {k: '${ $secrets.key }'}, body: '${ $context }'}}
          - tells: {call: other, export: {as: '{now: .told}'}}
";
    let mut run = Run::begin(&definition(fork), json!({}), &key());
    let outcome = Outcome::Output(json!({"told": 7}));
    run.tell(Record::Done { step: "/do/0/f/fork/branches/1/tells".to_owned(), outcome, at: BEGAN });
    let [Command::Call { request, .. }] = run.machine.commands() else {
        panic!("{:?}", run.machine.commands());
    };
    assert_eq!(request.body, "null", "what the context was then");
    assert!(request.headers.contains(&("k".to_owned(), "hidden-1".to_owned())));
    let text = run.machine.checkpoint().expect("one");
    assert!(text.contains(r#"{"now":7}"#) && !text.contains("hidden-1"), "{text}");
}

#[test]
fn what_makes_data_of_a_secret_has_no_checkpoint() {
    let http =
        |with: &str| format!("{{call: http, with: {{method: get, endpoint: 'http://x.example/'{with}}}}}");
    let secret = "'${ $secrets.key }'";
    // Each is followed by a wait, so that the run runs.
    let exposing = [
        format!("{{set: {{k: {secret}}}}}"),
        format!("{{call: other, with: {{k: {secret}}}}}"),
        format!("{{emit: {{event: {{with: {{type: t, data: {secret}}}}}}}}}"),
        format!("{{wait: PT1S, input: {{from: {secret}}}}}"),
        format!("{{wait: PT1S, output: {{as: {secret}}}}}"),
        "{wait: PT1S, export: {as: '{k: $secret.key}'}}".to_owned(),
        "{do: [{s: {set: {k: 'a ${ $secrets.key } b'}}}]}".to_owned(),
        "{for: {in: '[$secrets.key]'}, do: [{w: {wait: PT1S}}]}".to_owned(),
        format!("{{try: [{{w: {{wait: PT1S}}}}], catch: {{do: [{{s: {{set: {{k: {secret}}}}}}}]}}}}"),
        format!("{{raise: {{error: {{type: t, status: 400, detail: {secret}}}}}}}"),
        http(&format!(", headers: {{k: {secret}}}, output: response")),
        format!("{{run: {{workflow: {{namespace: a, name: c, version: '1.0.0', input: {{k: {secret}}}}}}}}}"),
    ];
    let closed = [
        http(&format!(", headers: {{k: {secret}}}, query: {{q: {secret}}}, body: {secret}")),
        http("").replace("'http://x.example/'", "{uri: 'http://x.example/${ $secrets.key }', authentication: {bearer: {token: '${ $secrets.key }'}}}"),
        "{switch: [{a: {when: '$secrets.key == \"x\"', then: end}}]}".to_owned(),
        "{if: '$secrets.key != null', set: {k: secrets}}".to_owned(),
        "{set: {k: '${ .secrets }'}}".to_owned(),
    ];
    for (tasks, exposes) in
        exposing.iter().map(|task| (task, true)).chain(closed.iter().map(|task| (task, false)))
    {
        let text = format!("use: {{secrets: [key]}}\ndo: [{{w: {{wait: PT1S}}}}, {{t: {tasks}}}]");
        let run = Run::begin(&definition(&text), json!({}), &key());
        match run.machine.checkpoint() {
            Ok(_) => assert!(!exposes, "{tasks}"),
            Err(NoCheckpoint::Exposes(pointer)) => {
                assert!(exposes && pointer.starts_with("/do/1/t"), "{tasks}: {pointer}");
            }
            Err(error) => panic!("{tasks}: {error}"),
        }
    }
}

/// What jq says of an error quotes what it was about; it would stand in the run's error, and in what a handler makes of it.
#[test]
fn no_error_quotes_a_secret() {
    let call =
        |with: &str| format!("{{call: http, with: {{method: get, endpoint: 'http://x.example/', {with}}}}}");
    for task in [
        "{set: {a: '${ $secrets.key + 1 }'}}".to_owned(),
        "{if: '$secrets.key + 1 == 2', set: {a: 1}}".to_owned(),
        "{wait: '${ $secrets.key }'}".to_owned(),
        call("headers: '${ $secrets.key }'"),
        call("query: '${ $secrets.key }'"),
        call("").replace("'http://x.example/'", "'${ $secrets.key }'"),
        call("").replace("'http://x.example/'", "'http://{${ $secrets.key }'"),
        call("").replace("method: get", "method: '${ $secrets.key }'"),
    ] {
        let text = format!("use: {{secrets: [key]}}\ndo: [{{t: {task}}}]");
        let run = Run::begin(&definition(&text), json!({}), &key());
        let fault = run.fault();
        assert!(!fault.to_string().to_lowercase().contains("hidden"), "{task}: {fault}");
    }
}

#[test]
fn what_is_no_checkpoint_of_the_definition_is_refused() {
    let waits = definition("use: {secrets: [key]}\ndo: [{w: {wait: PT1H}}]");
    let run = Run::begin(&waits, json!({"n": [1, 2.0]}), &key());
    let text = run.machine.checkpoint().expect("one");
    let secrets: BTreeMap<String, Json> =
        key().into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let missing = Machine::restore(waits.clone(), &BTreeMap::new(), &text).unwrap_err();
    assert!(matches!(missing, NoRestore::Secret(_)), "{missing}");
    let other = definition("use: {secrets: [key]}\ndo: [{w: {wait: PT2H}}]");
    for (definition, text, problem) in [
        (&other, text.clone(), "another definition"),
        (&waits, text.replace(r#""checkpoint":1"#, r#""checkpoint":2"#), "the form 2"),
        (&waits, text.split('\n').next().expect("a line").to_owned(), "no line"),
        (&waits, text.replace(r#""task":0"#, r#""task":1"#), "the row 1"),
        (&waits, String::new(), "cannot be read"),
    ] {
        let refused = Machine::restore(definition.clone(), &secrets, &text).unwrap_err().to_string();
        assert!(refused.contains(problem), "{refused}");
    }
    let mut ended =
        Machine::new(definition("do: [{s: {set: {a: 1}}}]"), &BTreeMap::new()).expect("no secrets");
    assert_eq!(ended.checkpoint(), Err(NoCheckpoint::NotRunning));
    ended.apply(&Record::Started { id: "r".to_owned(), input: json!({}), seed: 1, at: 1 });
    assert_eq!(*ended.status(), Status::Completed(json!({"a": 1})));
    assert_eq!(ended.checkpoint(), Err(NoCheckpoint::NotRunning));
}
