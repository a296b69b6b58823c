//! The driver: what it stores it goes on from, whoever crashes or races.

mod checkpoints;
mod clocks;
mod slow;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Clock, Commit, Entry, Error, ErrorKind, MemoryStore, Result, Store, StoreLimits, Timestamp, TokioClock,
    Version, Watched,
};
use sas_workflow::{
    Actions, Body, Definition, Machine, Outcome, Phase, Record, Request, StepKey, WorkflowConfig, Workflows,
};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

/// Services that note who calls them under which key.
#[derive(Debug, Default)]
struct Services {
    called: Mutex<Vec<(String, StepKey)>>,
    /// What is asked for at URLs, with the headers; nobody answers there until somebody does.
    asked: Mutex<Vec<Request>>,
    answers: bool,
    secrets: BTreeMap<String, Json>,
}

#[async_trait]
impl Actions for Services {
    async fn call(&self, _: &StepKey, request: &Request) -> Outcome {
        self.asked.lock().push(request.clone());
        tokio::time::sleep(Duration::from_millis(20)).await;
        match self.answers {
            true => Outcome::Answer { status: 200, headers: Vec::new(), body: Body::Text(String::new()) },
            false => Outcome::Failed { reason: format!("nobody is at {}", request.uri) },
        }
    }

    async fn invoke(&self, step: &StepKey, service: &str, input: &Json) -> Outcome {
        self.called.lock().push((service.to_owned(), step.clone()));
        tokio::time::sleep(Duration::from_millis(20)).await;
        match service {
            "breaks" => panic!("the action is broken"),
            // Fails at its first attempt, wherever that is.
            "flaky" if !step.step.contains('@') => Outcome::Failed { reason: "not yet".to_owned() },
            _ => Outcome::Output(json!({"by": service, "n": input["n"]})),
        }
    }

    async fn emit(&self, step: &StepKey, _: &Json) -> Outcome {
        self.called.lock().push(("emit".to_owned(), step.clone()));
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> Result<BTreeMap<String, Json>> {
        Ok(self.secrets.clone())
    }
}

impl Services {
    /// Each service with each step that it was called for, once.
    fn keys(&self) -> BTreeSet<(String, String)> {
        self.called.lock().iter().map(|(service, key)| (service.clone(), key.step.clone())).collect()
    }
}

/// A store that takes no more than it must, does what it is told, and says of one commit that it did not.
#[derive(Debug)]
struct Unsure {
    store: MemoryStore,
    /// What stands in the commit.
    of: &'static str,
    once: AtomicU64,
}

#[async_trait]
impl Store for Unsure {
    fn limits(&self) -> StoreLimits {
        StoreLimits::SMALLEST
    }

    async fn version(&self) -> Result<Version> {
        self.store.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits())?;
        let unsure = format!("{commit:?}").contains(self.of) && self.once.fetch_add(1, SeqCst) == 0;
        let version = self.store.commit(commit).await?;
        if unsure { Err(Error::new(ErrorKind::Unavailable, "store", "no answer")) } else { Ok(version) }
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.store.watch(prefix, since).await
    }
}

/// A store that is gone after so many commits: for who uses it, the process has died.
#[derive(Debug)]
struct Dying {
    store: Arc<MemoryStore>,
    left: AtomicU64,
}

#[async_trait]
impl Store for Dying {
    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.store.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        if self.left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err() {
            return Err(Error::new(ErrorKind::Unavailable, "store", "gone"));
        }
        self.store.commit(commit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.store.watch(prefix, since).await
    }
}

const ORDER: &str = "
document: {dsl: '1.0.3', namespace: shop, name: order, version: '1.0.0'}
do:
  - reserve: {call: stock, with: {n: '${ .n }'}}
  - both:
      fork:
        branches:
          - pay:
              try: [{charge: {call: flaky, with: {n: '${ .n + 1 }'}}}]
              catch: {retry: {delay: PT5S, jitter: {from: PT0S, to: PT9S}, limit: {attempt: {count: 2}}}}
          - rest: {wait: PT1M}
  - tell: {emit: {event: {with: {type: paid, data: '${ .[0] }'}}}, output: {as: .data}}
";

const WAITS: &str = "
document: {dsl: '1.0.3', namespace: shop, name: waits, version: '1.0.0'}
do: [{w: {wait: PT1H}}, {s: {set: {ok: true}}}]
";

fn clock() -> Arc<TokioClock> {
    Arc::new(TokioClock::starting_at(Timestamp(1_767_225_600_000_000_000)))
}

struct Host {
    workflows: Workflows,
    services: Arc<Services>,
    stop: CancellationToken,
}

async fn host(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Host {
    host_with(store, clock, Services::default(), WorkflowConfig::default()).await
}

async fn host_with(
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    services: Services,
    config: WorkflowConfig,
) -> Host {
    let services = Arc::new(services);
    let workflows = Workflows::with_config(store, clock, services.clone(), config);
    let stop = CancellationToken::new();
    let (running, token) = (workflows.clone(), stop.clone());
    tokio::spawn(async move { running.run(token).await });
    tokio::task::yield_now().await;
    Host { workflows, services, stop }
}

async fn define(host: &Host, text: &str) {
    let definition = Definition::parse(text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    host.workflows.define(&definition).await.expect("stored");
}

async fn order(host: &Host) -> Json {
    ordered(host, "o-1").await
}

async fn ordered(host: &Host, id: &str) -> Json {
    define(host, ORDER).await;
    host.workflows.start("shop", "order", "1.0.0", id, json!({"n": 1})).await.expect("started");
    let state = host.workflows.ended(&format!("shop/{id}")).await.expect("ends");
    assert_eq!(state.phase, Phase::Completed, "{state:?}");
    state.output.expect("an output")
}

/// Applied to a new machine, the records end as the run did.
async fn replays(host: &Host, run: &str, text: &str) {
    let state = host.workflows.state(run).await.expect("a store").expect("a run");
    let records = host.workflows.history(run).await.expect("records");
    assert_eq!(records.len() as u64, state.records);
    let mut machine =
        Machine::new(Definition::parse(text).expect("right"), &BTreeMap::new()).expect("no secrets");
    records.iter().for_each(|record| machine.apply(record));
    assert_eq!(*machine.status(), sas_workflow::Status::Completed(state.output.expect("an output")));
}

#[tokio::test(start_paused = true)]
async fn a_run_goes_to_its_end() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    assert_eq!(order(&host).await, json!({"by": "flaky", "n": 2}));
    replays(&host, "shop/o-1", ORDER).await;
    let keys = host.services.keys();
    assert_eq!(keys.len(), host.services.called.lock().len(), "each step once");
    assert_eq!(keys.len(), 4);
    let again =
        host.workflows.start("shop", "order", "1.0.0", "o-1", json!({"n": 9})).await.expect("is there");
    assert_eq!((again.phase, again.output), (Phase::Completed, Some(json!({"by": "flaky", "n": 2}))));
    assert_eq!(host.workflows.driven(), 0);
    host.stop.cancel();
}

/// With `SAS_LONG=1`, a thousand seeds: the seed of a run is made of its id, and its jitter of that.
#[tokio::test(start_paused = true)]
async fn a_crash_at_any_commit_changes_neither_output_nor_keys() {
    let seeds = if std::env::var_os("SAS_LONG").is_some() { 1_000 } else { 2 };
    let mut crashes = 0;
    for seed in 0..seeds {
        let id = format!("o-{seed}");
        let path = format!("shop/{id}");
        let whole = host(Arc::new(MemoryStore::default()), clock()).await;
        let (output, keys) = (ordered(&whole, &id).await, whole.services.keys());
        let commits = 1 + whole.workflows.state(&path).await.expect("a store").expect("a run").records;
        whole.stop.cancel();
        for left in 2..=commits {
            let (store, clock) = (Arc::new(MemoryStore::default()), clock());
            let dying = Arc::new(Dying { store: store.clone(), left: AtomicU64::new(left) });
            let first = host(dying, clock.clone()).await;
            define(&first, ORDER).await;
            first.workflows.start("shop", "order", "1.0.0", &id, json!({"n": 1})).await.expect("started");
            tokio::time::sleep(Duration::from_secs(120)).await;
            first.stop.cancel();
            let second = host(store, clock).await;
            let state = second.workflows.ended(&path).await.expect("ends");
            let ended = (state.phase, state.output);
            assert_eq!(ended, (Phase::Completed, Some(output.clone())), "{id} after {left} commits");
            replays(&second, &path, ORDER).await;
            let both: BTreeSet<_> = first.services.keys().union(&second.services.keys()).cloned().collect();
            assert_eq!(both, keys, "{id} after {left} commits");
            second.stop.cancel();
            crashes += 1;
        }
    }
    println!("{crashes} crashes in {seeds} seeds");
}

#[tokio::test(start_paused = true)]
async fn two_drivers_make_one_run() {
    let (store, clock) = (Arc::new(MemoryStore::default()), clock());
    let (a, b) = (host(store.clone(), clock.clone()).await, host(store, clock).await);
    define(&a, ORDER).await;
    let (one, other) = tokio::join!(
        a.workflows.start("shop", "order", "1.0.0", "o-1", json!({"n": 1})),
        b.workflows.start("shop", "order", "1.0.0", "o-1", json!({"n": 1})),
    );
    assert_eq!((one.expect("starts").records, other.expect("is there").records), (1, 1));
    let state = a.workflows.ended("shop/o-1").await.expect("ends");
    assert_eq!(state.output, Some(json!({"by": "flaky", "n": 2})));
    replays(&b, "shop/o-1", ORDER).await;
    let records = a.workflows.history("shop/o-1").await.expect("records");
    let starts = records.iter().filter(|record| matches!(record, Record::Started { .. })).count();
    assert_eq!(starts, 1);
    let keys: BTreeSet<_> = b.services.keys().union(&a.services.keys()).cloned().collect();
    assert_eq!(keys.len(), 4, "both call for the same steps: {keys:?}");
    for host in [&a, &b] {
        assert_eq!(host.services.keys().len(), host.services.called.lock().len(), "each at most once");
    }
}

#[tokio::test(start_paused = true)]
async fn runs_that_wait_take_no_task_and_no_timer_is_early() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    define(&host, WAITS).await;
    for n in 0..2_000 {
        host.workflows
            .start("shop", "waits", "1.0.0", &format!("w-{n:05}"), json!({}))
            .await
            .expect("started");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.workflows.driven(), 0);
    tokio::time::sleep(Duration::from_secs(3_590)).await;
    let states = host.workflows.list(None, 3_000).await.expect("a list");
    assert!(states.iter().all(|state| state.phase == Phase::Running && state.records == 1), "none is early");
    tokio::time::sleep(Duration::from_secs(15)).await;
    let states = host.workflows.list(None, 3_000).await.expect("a list");
    assert_eq!(states.len(), 2_000);
    assert!(
        states
            .iter()
            .all(|state| state.phase == Phase::Completed && state.updated >= state.started + 3_600_000)
    );
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn events_children_and_cancels() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    define(&host, WAITS).await;
    define(
        &host,
        "
document: {dsl: '1.0.3', namespace: shop, name: parent, version: '1.0.0'}
do:
  - l: {listen: {to: {one: {with: {type: go}}}}}
  - c: {run: {workflow: {namespace: shop, name: waits, version: '1.0.0', input: {}}}}
",
    )
    .await;
    host.workflows.start("shop", "parent", "1.0.0", "p", json!({})).await.expect("started");
    let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "go", "data": 1});
    host.workflows.event("shop/p", event.clone()).await.expect("stored");
    let state = host.workflows.ended("shop/p").await.expect("ends");
    assert_eq!(state.output, Some(json!({"ok": true})), "the child's output, an hour later");
    assert_eq!(host.workflows.event("shop/p", event.clone()).await.unwrap_err().kind, ErrorKind::Conflict);
    assert_eq!(host.workflows.event("shop/q", event).await.unwrap_err().kind, ErrorKind::NotFound);
    host.workflows.start("shop", "waits", "1.0.0", "w", json!({})).await.expect("started");
    host.workflows.cancel("shop/w").await.expect("stored");
    assert_eq!(host.workflows.ended("shop/w").await.expect("ends").phase, Phase::Cancelled);
    for (run, kind) in
        [("w", ErrorKind::Conflict), ("", ErrorKind::InvalidSpec), ("a/b", ErrorKind::InvalidSpec)]
    {
        let started = host.workflows.start("shop", "parent", "1.0.0", run, json!({})).await;
        assert_eq!(started.unwrap_err().kind, kind, "{run:?}");
    }
    let missing = host.workflows.start("shop", "parent", "2.0.0", "x", json!({})).await;
    assert_eq!(missing.unwrap_err().kind, ErrorKind::NotFound);
    let other = Definition::parse(&WAITS.replace("PT1H", "PT2H")).expect("right");
    assert_eq!(host.workflows.define(&other).await.unwrap_err().kind, ErrorKind::Conflict);
    host.stop.cancel();
}

/// The state of a run that ends within two hours, or at once.
async fn end(host: &Host, run: &str) -> sas_workflow::RunState {
    let run = format!("shop/{run}");
    let ended = tokio::time::timeout(Duration::from_secs(7_200), host.workflows.ended(&run)).await;
    ended.unwrap_or_else(|_| panic!("{run} does not end")).expect("a store")
}

/// Defines `shop/<name>` with this after its head.
async fn shop(host: &Host, name: &str, rest: &str) {
    let head = format!("document: {{dsl: '1.0.3', namespace: shop, name: {name}, version: '1.0.0'}}");
    define(host, &format!("{head}\n{rest}")).await;
}

async fn start(host: &Host, name: &str, run: &str) {
    host.workflows.start("shop", name, "1.0.0", run, json!({})).await.expect("started");
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_for_nothing_ends() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    shop(&host, "sets", "do: [{s: {set: {ok: true}}}]").await;
    shop(&host, "faults", "do: [{s: {set: '${ error(\"no\") }'}}]").await;
    shop(&host, "input", "input: {schema: {document: {type: array}}}\ndo: [{s: {set: {ok: true}}}]").await;
    let child = |name: &str| {
        format!("do: [{{c: {{run: {{workflow: {{namespace: shop, name: {name}, version: '1.0.0'}}}}}}}}]")
    };
    shop(&host, "parent", &child("sets")).await;
    shop(&host, "grieves", &child("faults")).await;
    for (name, phase, output) in [
        ("sets", Phase::Completed, Some(json!({"ok": true}))),
        ("faults", Phase::Faulted, None),
        ("input", Phase::Faulted, None),
        ("parent", Phase::Completed, Some(json!({"ok": true}))),
        ("grieves", Phase::Faulted, None),
    ] {
        start(&host, name, name).await;
        let state = end(&host, name).await;
        assert_eq!((state.phase, &state.output), (phase, &output), "{state:?}");
        assert_eq!(state.error.is_some(), phase == Phase::Faulted, "{state:?}");
    }
    assert_eq!(host.workflows.driven(), 0);
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_action_panics_can_still_be_told() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    shop(&host, "panics", "do: [{c: {call: breaks}}]").await;
    start(&host, "panics", "p").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.workflows.driven(), 0, "the panic has ended the task");
    let cancelled = tokio::time::timeout(Duration::from_secs(60), host.workflows.cancel("shop/p")).await;
    cancelled.expect("an answer").expect("stored");
    assert_eq!(end(&host, "p").await.phase, Phase::Cancelled);
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_without_its_secret_faults_and_so_does_one_whose_error_is_too_large() {
    let store = Unsure { store: MemoryStore::default(), of: "nothing", once: AtomicU64::new(0) };
    let host = host(Arc::new(store), clock()).await;
    shop(&host, "secret", "use: {secrets: [vault]}\ndo: [{w: {wait: PT1S}}]").await;
    start(&host, "secret", "s").await;
    let state = end(&host, "s").await;
    assert!(state.error.expect("an error").to_string().contains("vault"));
    let large = "do: [{w: {wait: PT1S}}, {r: {raise: {error: {type: 'urn:x', status: 418, detail: '${ \"x\" * 7000000 }'}}}}]";
    shop(&host, "large", large).await;
    start(&host, "large", "l").await;
    let state = end(&host, "l").await;
    let error = state.error.expect("an error");
    assert_eq!(
        (state.phase, &error["type"], &error["status"]),
        (Phase::Faulted, &json!("urn:x"), &json!(418))
    );
    assert!(error.to_string().len() < 3_000);
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_a_driver_that_died_has_begun_another_one_ends() {
    let (store, clock) = (Arc::new(MemoryStore::default()), clock());
    let other = host(store.clone(), clock.clone()).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // It has looked at the store; what comes now it finds later only.
    let dying = Arc::new(Dying { store, left: AtomicU64::new(5) });
    let first = host(dying, clock).await;
    define(&first, WAITS).await;
    shop(&first, "calls", "do: [{c: {call: stock}}]").await;
    start(&first, "waits", "w").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    start(&first, "calls", "c").await;
    first.stop.cancel();
    assert_eq!(end(&other, "w").await.phase, Phase::Completed);
    assert_eq!(end(&other, "c").await.phase, Phase::Completed);
    other.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn an_event_is_kept_once_however_often_it_comes_and_whatever_the_store_says() {
    let store = Arc::new(Unsure { store: MemoryStore::default(), of: "unsure", once: AtomicU64::new(0) });
    let host = host(store.clone(), clock()).await;
    shop(&host, "two", "do: [{l: {listen: {to: {any: [{with: {type: go}}], until: 'length == 2'}}}}]").await;
    start(&host, "two", "t").await;
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "s", "type": "go", "data": id});
    host.workflows.event("shop/t", event("unsure")).await.expect("stored");
    host.workflows.event("shop/t", event("unsure")).await.expect("is stored");
    let records = host.workflows.history("shop/t").await.expect("records");
    let events = records.iter().filter(|record| matches!(record, Record::Event { .. })).count();
    assert_eq!(events, 1, "{records:?}");
    assert!(store.once.load(SeqCst) > 0, "the store was unsure");
    host.workflows.event("shop/t", event("last")).await.expect("stored");
    assert_eq!(end(&host, "t").await.output, Some(json!(["unsure", "last"])));
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_ids_of_children_are_not_to_be_taken() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    define(&host, WAITS).await;
    let taken = host.workflows.start("shop", "waits", "1.0.0", "child-00", json!({})).await;
    assert_eq!(taken.unwrap_err().kind, ErrorKind::InvalidSpec);
    host.stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_definition_is_gone_can_be_cancelled() {
    let (store, clock) = (Arc::new(MemoryStore::default()), clock());
    let first = host(store.clone(), clock.clone()).await;
    define(&first, WAITS).await;
    start(&first, "waits", "w").await;
    first.stop.cancel();
    let key = "workflow/definition/shop/waits/1.0.0";
    let entry = store.get(key).await.expect("a store").expect("a definition");
    store.delete(key, entry.version).await.expect("deleted");
    let other = host(store, clock).await;
    let event = other.workflows.event("shop/w", json!({"type": "go"})).await;
    assert_eq!(event.unwrap_err().kind, ErrorKind::NotFound);
    other.workflows.cancel("shop/w").await.expect("stored");
    assert_eq!(end(&other, "w").await.phase, Phase::Cancelled);
    other.stop.cancel();
}

/// The records of a run that starts its successor and ends stay few, however long the whole goes on.
#[tokio::test(start_paused = true)]
async fn a_long_life_goes_on_as_a_new_run_with_what_it_has_come_to() {
    let host = host(Arc::new(MemoryStore::default()), clock()).await;
    let counts = "
do:
  - round: {call: stock, with: {n: '${ .n }'}, output: {as: '{n: (.n + 1)}'}}
  - rest: {wait: PT1H}
  - enough: {if: .n >= 5, set: {total: '${ .n }'}, then: end}
  - next: {run: {workflow: {namespace: shop, name: counts, version: '1.0.0', input: {n: '${ .n }'}}, await: false}}
";
    shop(&host, "counts", counts).await;
    host.workflows.start("shop", "counts", "1.0.0", "c", json!({"n": 0})).await.expect("started");
    tokio::time::sleep(Duration::from_secs(6 * 3_600)).await;
    let states = host.workflows.list(None, 100).await.expect("a list");
    assert_eq!(states.len(), 5, "one run for each round: {states:#?}");
    assert!(states.iter().all(|state| state.phase == Phase::Completed && state.records <= 4), "{states:#?}");
    let last: Vec<_> = states.iter().filter(|state| state.output == Some(json!({"total": 5}))).collect();
    assert_eq!(last.len(), 1, "the last one has what they came to: {states:#?}");
    host.stop.cancel();
}
