//! Checkpoints: a run keeps little, however long it is, and goes on from there as from its records.

use sas_core::{RunAction, RunStatus, WorkflowHost as _};

use super::*;

fn config(change: impl FnOnce(&mut WorkflowConfig)) -> WorkflowConfig {
    let mut config = WorkflowConfig::default();
    change(&mut config);
    config
}

/// How many values there are below a key, and their bytes.
async fn kept(store: &MemoryStore, prefix: &str) -> (usize, usize) {
    let (mut count, mut bytes, mut after) = (0, 0, None::<String>);
    loop {
        let page = store.list(prefix, after.as_deref(), 500).await.expect("a store");
        let Some(last) = page.last() else { return (count, bytes) };
        after = Some(last.key.clone());
        count += page.len();
        bytes += page.iter().map(|entry| entry.value.len()).sum::<usize>();
    }
}

const EVENTFUL: &str = "
document: {dsl: '1.0.3', namespace: shop, name: eventful, version: '1.0.0'}
do:
  - each:
      for: {each: k, in: '${ [1, 2.5, 3] }'}
      do: [{c: {call: stock, with: {n: '${ $k }'}, export: {as: '{last: .n}'}}}]
  - both:
      fork:
        branches:
          - pay:
              try: [{charge: {call: flaky, with: {n: '${ $context.last + 1 }'}}}]
              catch: {retry: {delay: PT5S, jitter: {from: PT0S, to: PT9S}, limit: {attempt: {count: 2}}}}
          - rest: {do: [{w: {wait: PT1M}}, {x: {call: stock, with: {n: 7}, export: {as: '$context + {also: 9}'}}}]}
          - hear: {listen: {to: {any: [{with: {type: go}}], until: 'length == 2'}}}
  - tell: {emit: {event: {with: {type: paid, data: '${ [.[0], .[2], $context] }'}}}, output: {as: .data}}
";

fn go(id: &str) -> Json {
    json!({"specversion": "1.0", "id": id, "source": "s", "type": "go", "data": id})
}

/// Starts the run, or finds it there, and goes with it to its end.
async fn go_through(host: &Host) {
    define(host, EVENTFUL).await;
    host.workflows.start("shop", "eventful", "1.0.0", "e", json!({"n": 1})).await.expect("started");
    tokio::time::sleep(Duration::from_secs(1)).await;
    for id in ["one", "one", "two"] {
        // The store may be gone; then the second host is told.
        let _ = tokio::time::timeout(Duration::from_secs(5), host.workflows.event("shop/e", go(id))).await;
    }
}

/// With `SAS_LONG=1`, with checkpoints after more counts of records.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_commit_around_a_checkpoint_changes_neither_output_nor_keys() {
    let every = if std::env::var_os("SAS_LONG").is_some() { 1..=12 } else { 1..=3 };
    let (output, keys) = {
        let whole = host(Arc::new(MemoryStore::default()), clock()).await;
        go_through(&whole).await;
        let state = end(&whole, "e").await;
        assert_eq!(state.phase, Phase::Completed, "{state:?}");
        whole.stop.cancel();
        (state.output.expect("an output"), whole.services.keys())
    };
    assert_eq!(output, json!([{"by": "flaky", "n": 4}, ["one", "two"], {"last": 3, "also": 9}]));
    let mut crashes = 0;
    for every in every {
        let few = || config(|config| config.checkpoint_records = every);
        for left in 2.. {
            let (store, clock) = (Arc::new(MemoryStore::default()), clock());
            let dying = Arc::new(Dying { store: store.clone(), left: AtomicU64::new(left) });
            let first = host_with(dying.clone(), clock.clone(), Services::default(), few()).await;
            go_through(&first).await;
            tokio::time::sleep(Duration::from_secs(120)).await;
            first.workflows.halt().await;
            first.stop.cancel();
            let second = host_with(store.clone(), clock, Services::default(), few()).await;
            if second.workflows.state("shop/e").await.expect("a store").expect("a run").phase
                == Phase::Running
            {
                go_through(&second).await;
            }
            let state = end(&second, "e").await;
            let ended = (state.phase, state.output);
            let at = format!("a checkpoint each {every}, {left} commits");
            assert_eq!(ended, (Phase::Completed, Some(output.clone())), "{at}");
            let both: BTreeSet<_> = first.services.keys().union(&second.services.keys()).cloned().collect();
            assert_eq!(both, keys, "{at}");
            let view = second.workflows.detail("shop", "e").await.expect("a run");
            assert_eq!(view.unreadable, None, "{at}");
            assert_eq!(view.steps.len(), 13, "{at}: {:?}", view.steps);
            second.workflows.halt().await;
            second.stop.cancel();
            let (records, _) = kept(&store, "workflow/record/").await;
            assert!(records as u64 <= 2 * every, "{at}: {records} records are kept of {}", state.records);
            if dying.left.load(SeqCst) > 0 {
                break;
            }
            crashes += 1;
        }
    }
    println!("{crashes} crashes");
    assert!(crashes > 60, "{crashes} crashes");
}

/// Two hundred thousand tasks, a call after each fifty. With `SAS_LONG=1`, a call after each.
#[tokio::test(start_paused = true)]
async fn a_long_loop_keeps_little() {
    let inner = if std::env::var_os("SAS_LONG").is_some() { 1 } else { 48 };
    let rounds = 200_000 / (inner + 2);
    let store = Arc::new(MemoryStore::default());
    let host = host_with(
        store.clone(),
        clock(),
        Services::default(),
        config(|config| config.checkpoint_records = 100),
    )
    .await;
    let text = format!(
        "
document: {{dsl: '1.0.3', namespace: shop, name: loop, version: '1.0.0'}}
do:
  - work: {{for: {{in: '${{ [range({inner})] }}'}}, do: [{{s: {{set: {{n: '${{ .n }}'}}}}}}]}}
  - ask: {{call: stock, with: {{n: '${{ .n + 1 }}'}}, output: {{as: '{{n: .n}}'}}}}
  - more: {{if: .n < {rounds}, set: {{n: '${{ .n }}'}}, then: work}}
"
    );
    define(&host, &text).await;
    host.workflows.start("shop", "loop", "1.0.0", "l", json!({"n": 0})).await.expect("started");
    let mut most = (0, 0);
    let state = loop {
        tokio::time::sleep(Duration::from_secs(5)).await;
        let state = host.workflows.state("shop/l").await.expect("a store").expect("a run");
        let (records, own) = kept(&store, "workflow/record/shop/l/").await;
        let (_, checkpoint) = kept(&store, "workflow/checkpoint/shop/l/").await;
        most = (most.0.max(records), most.1.max(own + checkpoint));
        if state.phase != Phase::Running {
            break state;
        }
    };
    assert_eq!(
        (state.phase, state.output),
        (Phase::Completed, Some(json!({"n": rounds}))),
        "{:?}",
        state.error
    );
    assert_eq!(state.records, rounds + 1);
    assert!(most.0 <= 201, "{most:?}");
    assert!(most.1 <= 1 << 20, "{most:?}");
    println!("{} records; at most {} of them and {} bytes were kept", state.records, most.0, most.1);
    let view = host.workflows.detail("shop", "l").await.expect("a run");
    assert_eq!(view.steps.len(), 1_000);
    assert!(view.earlier_steps > 190_000, "{}", view.earlier_steps);
    assert!(view.steps.iter().rev().take(10).any(|step| step.task == "ask" && step.state == "answered"));
    host.stop.cancel();
}

const SECRETIVE: &str = "
use: {secrets: [key, user]}
do:
  - ask:
      call: http
      with:
        method: post
        endpoint: {uri: 'http://peer/x', authentication: {basic: {username: '${ $secrets.user.username }', password: '${ $secrets.user.password }'}}}
        headers: {x-key: '${ $secrets.key }'}
        body: {n: '${ .n }'}
      output: {as: '{n: ($input.n // 0)}'}
  - count: {set: {n: '${ .n + 1 }'}}
  - more: {if: '$secrets.key != \"\" and .n < 30', set: {n: '${ .n }'}, then: ask}
";

fn secrets(key: &str) -> Services {
    let user = json!({"username": "merchant", "password": format!("pass-{key}")});
    let secrets = BTreeMap::from([("key".to_owned(), json!(key)), ("user".to_owned(), user)]);
    Services { secrets, answers: true, ..Services::default() }
}

#[tokio::test(start_paused = true)]
async fn no_secret_is_in_a_checkpoint_and_a_call_under_way_is_made_with_the_secret_of_now() {
    let (store, clock) = (Arc::new(MemoryStore::default()), clock());
    let few = || config(|config| config.checkpoint_records = 5);
    let first = host_with(store.clone(), clock.clone(), secrets("old-key-1"), few()).await;
    shop(&first, "secretive", SECRETIVE).await;
    first.workflows.start("shop", "secretive", "1.0.0", "s", json!({"n": 0})).await.expect("started");
    tokio::time::sleep(Duration::from_millis(330)).await;
    first.workflows.halt().await;
    let before = first.services.asked.lock().clone();
    assert!(before.len() > 12, "{} calls", before.len());
    let (parts, _) = kept(&store, "workflow/checkpoint/shop/s/").await;
    assert_eq!(parts, 1, "one checkpoint");
    let second = host_with(store.clone(), clock, secrets("new-key-2"), few()).await;
    let state = end(&second, "s").await;
    assert_eq!((state.phase, state.output), (Phase::Completed, Some(json!({"n": 30}))), "{:?}", state.error);
    let after = second.services.asked.lock().clone();
    let last = before.last().expect("a call");
    assert_eq!(
        (&after[0].uri, &after[0].body),
        (&last.uri, &last.body),
        "the call under way is asked for again"
    );
    assert!(after[0].headers.contains(&("x-key".to_owned(), "new-key-2".to_owned())));
    let entries = store.list("workflow/", None, 1_000).await.expect("a store");
    for entry in entries {
        let text = String::from_utf8_lossy(&entry.value);
        // As they are, and in the header of basic authentication.
        for secret in ["old-key-1", "new-key-2", "pass-", "bWVyY2hhbnQ6"] {
            assert!(!text.contains(secret), "{} has {secret}: {text}", entry.key);
        }
    }
    second.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_makes_data_of_a_secret_has_no_checkpoint_and_says_why_it_ends() {
    let store = Arc::new(MemoryStore::default());
    let bounds = config(|config| (config.checkpoint_records, config.records_per_run) = (5, 20));
    let host = host_with(store.clone(), clock(), secrets("old-key-1"), bounds).await;
    let tasks = "
use: {secrets: [key]}
do:
  - copy: {set: {n: '${ .n + 1 }', key: '${ $secrets.key }'}}
  - ask: {call: stock, with: {n: '${ .n }'}}
  - more: {set: {n: '${ .n }'}, then: copy}
";
    shop(&host, "copies", tasks).await;
    host.workflows.start("shop", "copies", "1.0.0", "c", json!({"n": 0})).await.expect("started");
    let state = end(&host, "c").await;
    let detail = state.error.expect("an error")["detail"].as_str().expect("a text").to_owned();
    assert!(
        detail.contains("keeps 21 records") && detail.contains("/do/0/copy makes data of a secret"),
        "{detail}"
    );
    assert_eq!(kept(&store, "workflow/checkpoint/").await.0, 0);
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_with_a_checkpoint_is_retried_told_twice_and_forgotten_like_any() {
    let store = Arc::new(MemoryStore::default());
    let few =
        config(|config| (config.checkpoint_records, config.retention) = (2, Some(Duration::from_secs(60))));
    let host = host_with(store.clone(), clock(), Services::default(), few).await;
    let tasks = "
do:
  - hear: {listen: {to: {any: [{with: {type: go}}], until: 'length == 3'}}}
  - ask: {call: stock, with: {n: 1}}
  - fails: {call: http, with: {method: get, endpoint: 'http://nobody/'}}
  - then: {call: stock, with: {n: 2}}
";
    shop(&host, "tries", tasks).await;
    start(&host, "tries", "t").await;
    for id in ["a", "a", "b", "a", "b", "c"] {
        host.workflows.event("shop/t", go(id)).await.expect("stored");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let state = end(&host, "t").await;
    assert_eq!(state.phase, Phase::Faulted, "{state:?}");
    // Started, three events, the call, and what failed.
    assert_eq!(state.records, 6, "an event that a checkpoint knows of is not kept again");
    host.workflows.steer("shop", "t", RunAction::Retry).await.expect("it goes on");
    let again = end(&host, "t").await;
    assert_eq!((again.phase, again.records), (Phase::Faulted, 8));
    let skip = RunAction::Skip { step: "/do/2/fails".to_owned(), output: json!("none") };
    host.workflows.steer("shop", "t", skip).await.expect("it goes on");
    let state = end(&host, "t").await;
    assert_eq!((state.phase, state.output), (Phase::Completed, Some(json!({"by": "stock", "n": 2}))));
    let view = host.workflows.detail("shop", "t").await.expect("a run");
    assert_eq!(view.run.status, RunStatus::Completed);
    let steps: Vec<(&str, u64, &str)> =
        view.steps.iter().map(|step| (step.task.as_str(), step.retries, step.state)).collect();
    let expected =
        [("hear", 0, "passed"), ("ask", 0, "answered"), ("fails", 2, "answered"), ("then", 0, "answered")];
    assert_eq!(steps, expected);
    assert_eq!(view.steps[1].outcome, json!({"output": {"by": "stock", "n": 1}}), "its record is gone");
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(host.workflows.state("shop/t").await.expect("a store"), None);
    for prefix in ["workflow/record/", "workflow/checkpoint/", "workflow/run/"] {
        assert_eq!(kept(&store, prefix).await.0, 0, "{prefix}");
    }
    host.stop.cancel();
}

/// A checkpoint of several values, in a store that takes no more than any must.
#[tokio::test(start_paused = true)]
async fn a_large_checkpoint_stands_in_parts() {
    let store = Arc::new(Unsure { store: MemoryStore::default(), of: "nothing", once: AtomicU64::new(0) });
    let few = || config(|config| config.checkpoint_records = 3);
    let (clock, large) = (clock(), "x".repeat(100_000));
    let first = host_with(store.clone(), clock.clone(), Services::default(), few()).await;
    let tasks = "
do:
  - hear: {listen: {to: {any: [{with: {type: go}}], until: 'length == 40'}}, output: {as: 'map(length)'}}
  - rest: {wait: PT1H}
  - ask: {call: stock, with: {n: '${ length }'}}
";
    shop(&first, "large", tasks).await;
    start(&first, "large", "l").await;
    for n in 0..40 {
        let data = format!("{n:02}{large}");
        let event =
            json!({"specversion": "1.0", "id": n.to_string(), "source": "s", "type": "go", "data": data});
        first.workflows.event("shop/l", event).await.expect("stored");
        if n == 38 {
            assert!(kept(&store.store, "workflow/checkpoint/shop/l/").await.0 > 2, "several parts");
        }
    }
    first.workflows.halt().await;
    let second = host_with(store.clone(), clock, Services::default(), few()).await;
    let state = end(&second, "l").await;
    assert_eq!(
        (state.phase, state.output),
        (Phase::Completed, Some(json!({"by": "stock", "n": 40}))),
        "{:?}",
        state.error
    );
    assert!(kept(&store.store, "workflow/record/shop/l/").await.0 <= 4);
    second.stop.cancel();
}
