//! The machine: each kind of task, errors and retries, times, events; and what ends a run that does not end.

use crate::driver::{BEGAN, Run};
use sas_workflow::{Body, Command, Definition, Machine, Outcome, Record, Request, Status};
use serde_json::{Value as Json, json};

fn definition(rest: &str) -> Definition {
    let head = "document: {dsl: '1.0.3', namespace: a, name: b, version: '1.0.0'}\n";
    Definition::parse(&format!("{head}{rest}")).unwrap_or_else(|mistakes| panic!("{mistakes}\n{rest}"))
}

fn run(rest: &str, input: Json) -> Run {
    let mut run = Run::begin(&definition(rest), input, &[]);
    run.go_on(&mut |request| panic!("calls {request:?}"));
    run
}

fn answer(status: u16, body: &Json) -> Outcome {
    let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
    Outcome::Answer { status, headers, body: Body::of(body.to_string().as_bytes()) }
}

const CALL: &str = "
do:
  - attempt:
      try:
        - call: {call: http, with: {method: post, endpoint: 'https://x.example/{id}', body: {n: '${ .id }'}}}
      catch:
        errors: {with: {status: 503}}
        retry:
          delay: {seconds: 2}
          backoff: {exponential: {}}
          limit: {attempt: {count: 3}}
";

#[test]
fn a_call_is_tried_again_with_back_off_and_an_id_of_its_own_each_time() {
    let mut seen: Vec<Request> = Vec::new();
    let mut run = Run::begin(&definition(CALL), json!({"id": "a b"}), &[]);
    run.go_on(&mut |request| {
        seen.push(request.clone());
        if seen.len() < 3 { answer(503, &json!("later")) } else { answer(200, &json!({"ok": true})) }
    });
    assert_eq!(run.output(), json!({"ok": true}));
    assert_eq!(seen[0].uri, "https://x.example/a%20b");
    assert_eq!((seen[0].method.as_str(), seen[0].body.as_str()), ("POST", r#"{"n":"a b"}"#));
    let done: Vec<(&str, u64)> = run
        .records
        .iter()
        .filter_map(|record| match record {
            Record::Done { step, at, .. } => Some((step.as_str(), at - BEGAN)),
            _ => None,
        })
        .collect();
    assert_eq!(
        done,
        [
            ("/do/0/attempt/try/0/call", 1),
            ("/do/0/attempt/try@1/0/call", 2_002),
            ("/do/0/attempt/try@2/0/call", 6_003),
        ]
    );
}

#[test]
fn what_fails_for_good_faults_with_the_place_of_the_task() {
    let mut run = Run::begin(&definition(CALL), json!({"id": 1}), &[]);
    let mut count = 0;
    run.go_on(&mut |_| {
        count += 1;
        answer(503, &json!("later"))
    });
    assert_eq!(count, 4, "one attempt and three more");
    let fault = run.fault();
    assert_eq!((&fault["status"], &fault["instance"]), (&json!(503), &json!("/do/0/attempt/try/0/call")));
    let mut other = Run::begin(&definition(CALL), json!({"id": 1}), &[]);
    other.go_on(&mut |_| answer(500, &json!("broken")));
    assert_eq!(other.fault()["status"], 500, "it is not caught");
    let mut gone = Run::begin(&definition(CALL), json!({"id": 1}), &[]);
    gone.go_on(&mut |_| Outcome::Failed { reason: "connection refused".to_owned() });
    assert_eq!(gone.fault()["detail"], "connection refused");
    let fault = run_fault(CALL, json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("no member id"), "{fault}");
}

fn run_fault(rest: &str, input: Json) -> Json {
    run(rest, input).fault()
}

#[test]
fn a_timer_is_never_early() {
    let waits = definition("do: [{nap: {wait: PT1M}}, {done: {set: {ok: true}}}]");
    let mut run = Run::begin(&waits, json!({}), &[]);
    let due = BEGAN + 60_000;
    assert_eq!(run.machine.commands(), [Command::Arm { step: "/do/0/nap".to_owned(), at: due }]);
    run.tell(Record::Time { at: due - 1 });
    assert_eq!(*run.machine.status(), Status::Running);
    // A clock that goes back changes nothing.
    run.tell(Record::Time { at: BEGAN });
    run.tell(Record::Time { at: due });
    assert_eq!(run.output(), json!({"ok": true}));
    run.replays();
}

#[test]
fn a_task_and_a_workflow_that_take_too_long_fault() {
    let fault = run_fault("do: [{nap: {wait: {hours: 1}, timeout: {after: {seconds: 5}}}}]", json!({}));
    assert_eq!((&fault["status"], &fault["instance"]), (&json!(408), &json!("/do/0/nap")));
    let fault = run_fault(
        "use: {timeouts: {t: {after: PT5S}}}\ntimeout: t\ndo: [{a: {do: [{nap: {wait: {hours: 1}}}]}}]",
        json!({}),
    );
    assert!(fault["type"].as_str().expect("a text").ends_with("/timeout"));
    let caught = run(
        "do: [{t: {try: [{nap: {wait: PT1H, timeout: {after: PT1S}}}], catch: {as: e, do: [{s: {set: {was: '${ $e.status }'}}}]}}}]",
        json!({}),
    );
    assert_eq!(caught.output(), json!({"was": 408}));
}

#[test]
fn branches_run_side_by_side_and_the_first_wins_where_they_compete() {
    let fork = |compete: bool| {
        format!(
            "do: [{{f: {{fork: {{compete: {compete}, branches: [
               {{slow: {{do: [{{w: {{wait: PT9S}}}}, {{s: {{set: {{by: slow}}}}}}]}}}},
               {{fast: {{do: [{{w: {{wait: PT1S}}}}, {{s: {{set: {{by: fast}}}}}}]}}}}]}}}}}}]"
        )
    };
    let all = run(&fork(false), json!({}));
    assert_eq!(all.output(), json!([{"by": "slow"}, {"by": "fast"}]));
    assert_eq!(all.now - BEGAN, 9_000, "they wait at the same time");
    let first = run(&fork(true), json!({}));
    assert_eq!((first.output(), first.now - BEGAN), (json!({"by": "fast"}), 1_000));
    let fault = run_fault(
        "do: [{f: {fork: {branches: [{a: {wait: PT1H}}, {b: {raise: {error: {type: t, status: 418}}}}]}}}]",
        json!({}),
    );
    assert_eq!((&fault["status"], &fault["instance"]), (&json!(418), &json!("/do/0/f/fork/branches/1/b")));
}

#[test]
fn loops_know_item_and_index_and_end_with_while() {
    let looped = run(
        "do: [{l: {for: {in: .items}, while: '$item < 3', do: [{s: {set: {sum: '${ .sum + $item }', last: '${ $index }'}}}]}}]",
        json!({"items": [1, 2, 3, 4]}),
    );
    assert_eq!(looped.output(), json!({"sum": 3, "last": 1}));
    let none = run("do: [{l: {for: {in: .items}, do: [{s: {set: {a: 1}}}]}}]", json!({"items": []}));
    assert_eq!(none.output(), json!({"items": []}));
    // A list that goes back to a task: the rounds stand in the ids.
    let back = run(
        "do: [{add: {set: {n: '${ .n + 1 }'}}}, {again: {switch: [{yes: {when: .n < 3, then: add}}]}}]",
        json!({"n": 0}),
    );
    assert_eq!(back.output(), json!({"n": 3}));
    let steps: Vec<&str> = back.machine.visits().iter().map(|visit| visit.step.as_str()).collect();
    assert_eq!(steps[..4], ["/do/0/add", "/do/1/again", "/do/0/add#1", "/do/1/again#1"]);
}

#[test]
fn loops_without_end_are_ended() {
    let fault = run_fault("do: [{a: {set: {n: 1}, then: b}}, {b: {set: {n: 2}, then: a}}]", json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("100000 tasks"), "{fault}");
    let fault = run_fault("do: [{a: {set: {n: '${ def f: f; f }'}}}]", json!({}));
    assert!(fault["type"].as_str().expect("a text").ends_with("/expression"), "{fault}");
    let fault = run_fault("do: [{a: {for: {in: '[range(200000)]'}, do: [{s: {set: {n: 1}}}]}}]", json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("200000 items"), "{fault}");
}

#[test]
fn data_is_checked_on_its_way_in_and_out() {
    let checked = "
input: {schema: {document: {type: object, required: [n]}}, from: '{m: .n}'}
output: {schema: {document: {type: integer}}, as: .m}
do:
  - a: {set: {m: '${ .m * 2 }'}, output: {as: '{m: .m}', schema: {document: {properties: {m: {maximum: 10}}}}}, export: {as: '{seen: .m}'}}
  - b: {if: '$context.seen == 8', set: {m: '${ $context.seen + 1 }'}}
";
    assert_eq!(run(checked, json!({"n": 4})).output(), 9);
    assert_eq!(run(checked, json!({"n": 3})).output(), 6, "b is left out");
    let fault = run_fault(checked, json!({}));
    assert!(fault["type"].as_str().expect("a text").ends_with("/validation"), "{fault}");
    let fault = run_fault(checked, json!({"n": 9}));
    assert_eq!((&fault["instance"], &fault["status"]), (&json!("/do/0/a"), &json!(400)), "{fault}");
}

#[test]
fn functions_services_children_and_secrets() {
    let calls = "
use:
  secrets: [key]
  functions:
    double: {input: {from: '.x'}, set: '${ {y: (. * 2)} }'}
do:
  - f: {call: double, with: {x: '${ .n }'}}
  - s: {call: billing, with: {amount: '${ .y }'}}
  - c: {run: {workflow: {namespace: a, name: child, version: '1.0.0'}, await: false}}
  - h: {call: http, with: {method: get, endpoint: {uri: 'https://x.example/', authentication: {bearer: {use: key}}}, output: response}}
";
    let definition = definition(calls);
    assert!(Machine::new(definition.clone(), &std::collections::BTreeMap::new()).is_err());
    let mut run = Run::begin(&definition, json!({"n": 4}), &[("key", json!({"token": "hidden"}))]);
    run.go_on(&mut |request| {
        assert_eq!(request.headers, [("authorization".to_owned(), "Bearer hidden".to_owned())]);
        assert!(!format!("{request:?}").contains("hidden"));
        answer(200, &json!({}))
    });
    let told = run.records.iter().find_map(|record| match record {
        Record::Done { step, outcome: Outcome::Output(made), .. } if step == "/do/1/s" => Some(made.clone()),
        _ => None,
    });
    assert_eq!(told, Some(json!({"by": "billing", "told": {"amount": 8}})));
    assert!(!serde_json::to_string(&run.records).expect("JSON").contains("hidden"));
    assert!(!run.output().to_string().contains("hidden"), "{}", run.output());
}

#[test]
fn events_are_waited_for_by_one_all_any_and_until() {
    let event = |kind: &str, data: Json| json!({"specversion": "1.0", "id": "1", "source": "s", "type": kind, "data": data});
    let one = "do: [{l: {listen: {to: {one: {with: {type: t, data: '${ .n > 3 }'}}}}}}]";
    let mut run = Run::begin(&definition(one), json!({}), &[]);
    assert_eq!(
        run.machine.commands(),
        [Command::Subscribe { step: "/do/0/l".to_owned(), types: vec!["t".to_owned()] }]
    );
    for (kind, n) in [("other", 9), ("t", 1), ("t", 5)] {
        run.event(event(kind, json!({"n": n})));
    }
    assert_eq!(run.output(), json!([{"n": 5}]));
    run.replays();

    let all = "do: [{l: {listen: {to: {all: [{with: {type: a}, correlate: {o: {from: .data.o}}}, {with: {type: b}, correlate: {o: {from: .data.o}}}]}}}}]";
    let mut run = Run::begin(&definition(all), json!({}), &[]);
    for (kind, o) in [("a", 1), ("b", 2), ("a", 1), ("b", 1)] {
        run.event(event(kind, json!({"o": o})));
    }
    assert_eq!(run.output(), json!([{"o": 1}, {"o": 1}]), "those that belong together, each once");

    let until = "do: [{l: {listen: {to: {any: [{with: {type: a}}], until: 'length >= 2'}}, foreach: {item: e, do: [{s: {set: {got: '${ $e.n }', at: '${ $index }'}}}]}}}]";
    let mut run = Run::begin(&definition(until), json!({}), &[]);
    run.event(event("a", json!({"n": 7})));
    assert_eq!(*run.machine.status(), Status::Running);
    run.event(event("a", json!({"n": 8})));
    assert_eq!(run.output(), json!([{"got": 7, "at": 0}, {"got": 8, "at": 1}]));

    let ended = "do: [{l: {listen: {read: envelope, to: {any: [], until: {one: {with: {type: stop}}}}}}}]";
    let mut run = Run::begin(&definition(ended), json!({}), &[]);
    run.event(event("x", json!(1)));
    run.event(event("stop", json!(2)));
    assert_eq!(run.output(), json!([event("x", json!(1))]), "what ends it is not of it");

    let expects = "input: {from: '{id: .p}'}\ndo: [{l: {listen: {to: {one: {with: {type: a}, correlate: {p: {from: .data.p, expect: .id}}}}}}}]";
    let mut run = Run::begin(&definition(expects), json!({"p": "x"}), &[]);
    run.event(event("a", json!({"p": "y"})));
    run.event(event("a", json!({"p": "x"})));
    assert_eq!(run.output(), json!([{"p": "x"}]));
}

#[test]
fn extensions_stand_around_the_tasks_that_they_extend() {
    let extended = run(
        "
use:
  extensions:
    - log: {extend: set, when: .n > 0, before: [{before: {emit: {event: {with: {type: before}}}}}], after: [{after: {wait: PT1S}}]}
do: [{s: {set: {n: 2}}}, {t: {set: {n: 0}}}, {u: {set: {n: 3}}}]
",
        json!({"n": 1}),
    );
    assert_eq!(extended.output(), json!({"n": 3}));
    assert_eq!(extended.path(), ["s", "before", "after", "t", "before", "after", "u"]);
}

#[test]
fn what_cannot_be_run_faults_with_its_reason() {
    let fault = run_fault("do: [{s: {run: {shell: {command: ls}}}}]", json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("call a service"), "{fault}");
}

#[test]
fn records_out_of_place_change_nothing() {
    let definition = definition("do: [{n: {wait: PT1M}}, {c: {call: s}}]");
    let mut run = Run::begin(&definition, json!({}), &[]);
    let before = run.machine.commands().to_vec();
    let late = Record::Done { step: "/do/1/c".to_owned(), outcome: Outcome::Output(json!(1)), at: 5 };
    for record in [
        late.clone(),
        Record::Started { id: "2".to_owned(), input: json!(1), seed: 1, at: BEGAN },
        Record::Event { event: json!("x"), at: BEGAN },
        Record::Done {
            step: "/nowhere".to_owned(),
            outcome: Outcome::Failed { reason: String::new() },
            at: BEGAN,
        },
    ] {
        run.tell(record);
        assert_eq!(run.machine.commands(), before);
    }
    run.tell(Record::Cancelled { at: BEGAN + 1 });
    assert_eq!((run.machine.status(), run.machine.commands().len()), (&Status::Cancelled, 0));
    run.tell(late);
    assert_eq!(*run.machine.status(), Status::Cancelled);
    run.replays();
}

#[test]
fn a_retry_is_scattered_by_the_seed_of_the_run_alone() {
    let jitter = "do: [{t: {try: [{r: {raise: {error: {type: t, status: 500}}}}], catch: {retry: {delay: PT1S, jitter: {from: PT0S, to: PT10S}, limit: {attempt: {count: 1}}}}}}]";
    let due = |seed| {
        let mut machine =
            Machine::new(definition(jitter), &std::collections::BTreeMap::new()).expect("no secrets");
        machine.apply(&Record::Started { id: "1".to_owned(), input: json!({}), seed, at: BEGAN });
        match machine.commands() {
            [Command::Arm { at, .. }] => at - BEGAN,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(due(1), due(1));
    assert_ne!(due(1), due(2));
    assert!((1..50).map(due).all(|due| (1_000..11_000).contains(&due)));
}

#[test]
fn an_event_is_for_those_that_waited_for_it() {
    let twice = "do: [{a: {listen: {to: {one: {with: {type: go}}}}}}, {s: {set: {n: 1}}}, {b: {listen: {to: {one: {with: {type: go}}}}}}]";
    let go =
        |n: u64| json!({"specversion": "1.0", "id": n.to_string(), "source": "s", "type": "go", "data": n});
    let mut run = Run::begin(&definition(twice), json!({}), &[]);
    run.event(go(1));
    assert_eq!(*run.machine.status(), Status::Running, "the second one waits for another event");
    run.event(go(2));
    assert_eq!(run.output(), json!([2]));
    run.replays();
    let side = "do: [{f: {fork: {branches: [{a: {listen: {to: {one: {with: {type: go}}}}}}, {b: {listen: {to: {one: {with: {type: go}}}}}}]}}}]";
    let mut run = Run::begin(&definition(side), json!({}), &[]);
    run.event(go(3));
    assert_eq!(run.output(), json!([[3], [3]]), "both waited for it");
}

#[test]
fn tasks_in_tasks_without_end_fault() {
    let circle = "
use:
  extensions: [{log: {extend: all, before: [{c: {call: f}}]}}]
  functions: {f: {set: {n: 1}}}
do: [{s: {set: {n: 2}}}]
";
    let fault = run_fault(circle, json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("64 others"), "{fault}");
    let calls: String = (1..32).map(|n| format!("    f{n}: {{call: f{}}}\n", n + 1)).collect();
    let chain = format!("use:\n  functions:\n{calls}    f32: {{set: {{n: 1}}}}\ndo: [{{c: {{call: f1}}}}]\n");
    assert_eq!(run(&chain, json!({})).output(), json!({"n": 1}));
    for (open, close) in [
        ("{try: [{t: ", "}], catch: {errors: {with: {status: 1}}}}"),
        ("{fork: {branches: [{t: ", "}]}}"),
        ("{for: {in: '[1]'}, do: [{t: ", "}]}"),
    ] {
        let nested = |inner: &str| format!("{}{inner}{}", open.repeat(12), close.repeat(12));
        let functions: String =
            (1..7).map(|n| format!("    f{n}: {}\n", nested(&format!("{{call: f{}}}", n + 1)))).collect();
        let text =
            format!("use:\n  functions:\n{functions}    f7: {{set: {{n: 1}}}}\ndo: [{{c: {{call: f1}}}}]\n");
        let fault = run_fault(&text, json!({}));
        assert!(fault["detail"].as_str().expect("a text").contains("64 others"), "{fault}");
    }
}

#[test]
fn what_is_put_together_of_large_parts_is_bounded() {
    let large = "a".repeat(500_000);
    let holes = "{a}".repeat(20_000);
    let call = format!("do: [{{c: {{call: http, with: {{method: get, endpoint: 'http://x/{holes}'}}}}}}]");
    let fault = run_fault(&call, json!({"a": large}));
    assert!(fault["detail"].as_str().expect("a text").contains("65534 bytes"), "{fault}");
    let query = "do: [{c: {call: http, with: {method: get, endpoint: 'http://x/', query: {a: '${ .a }'}}}}]";
    let fault = run_fault(query, json!({"a": large}));
    assert!(fault["detail"].as_str().expect("a text").contains("65534 bytes"), "{fault}");
    let members: String = (0..1_000).map(|n| format!("m{n}: '${{ \"x\" * 7000000 }}', ")).collect();
    let fault = run_fault(&format!("do: [{{s: {{set: {{{members}}}}}}}]"), json!({}));
    assert!(fault["type"].as_str().expect("a text").ends_with("/expression"), "{fault}");
    let branches: String =
        (0..100).map(|n| format!("{{b{n}: {{set: '${{ \"x\" * 7000000 }}'}}}}, ")).collect();
    let fault = run_fault(&format!("do: [{{f: {{fork: {{branches: [{branches}]}}}}}}]"), json!({}));
    assert!(fault["detail"].as_str().expect("a text").contains("67108864 bytes"), "{fault}");
    let same = "do: [{s: {set: {a: '${ .a }', b: ['${ .a }', 'x${ .a }']}}}]";
    assert_eq!(run(same, json!({"a": large})).output()["b"][0], large);
}

#[test]
fn the_address_of_an_operation_is_bounded() {
    let document = json!({
        "openapi": "3.1.0",
        "paths": {format!("/{}", "{a}".repeat(20_000)): {"get": {
            "operationId": "o",
            "parameters": [{"name": "a", "in": "path"}, {"name": "q", "in": "query"}]
        }}}
    });
    let call = |with: &str| {
        let text = format!(
            "do: [{{c: {{call: openapi, with: {{document: {{endpoint: 'http://x/d'}}, operationId: o, parameters: {with}}}}}}}]"
        );
        let mut run = Run::begin(&definition(&text), json!({"a": "a".repeat(500_000)}), &[]);
        run.go_on(&mut |_| answer(200, &document));
        run.fault()["detail"].as_str().expect("a text").to_owned()
    };
    for with in ["{a: '${ .a }'}", "{a: '', q: '${ [range(30000)] }'}"] {
        let detail = call(with);
        assert!(detail.contains("65534 bytes"), "{detail}");
    }
}

#[test]
fn the_version_that_a_run_sees_is_not_the_package_s() {
    let seen = run("do: [{s: {set: {v: '${ $runtime.version }'}}}]", json!({}));
    assert_eq!(
        seen.output(),
        json!({"v": "1.0.0"}),
        "it is part of runs that are stored: it does not change"
    );
}
