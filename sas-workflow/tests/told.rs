//! What is told of runs: events of their lives, spans, and those that do not go on.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    DeliverySpan, Error, ErrorKind, MemoryStore, ParentSpan, RequestSpan, Result, RunAction, StepSpan, Store,
    Timestamp, TokioClock, TraceContext, TraceSink, WorkflowHost as _,
};
use sas_workflow::{Actions, Definition, Outcome, Phase, Request, StepKey, WorkflowConfig, Workflows};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

/// A span as it was told: trace, span and parent, what and which, why it failed.
type Told = (TraceContext, Option<ParentSpan>, &'static str, String, Option<String>);

#[derive(Debug, Default)]
struct Ears {
    events: Mutex<Vec<Json>>,
    /// Whether nobody takes events now.
    deaf: AtomicBool,
    spans: Mutex<Vec<Told>>,
    keys: Mutex<Vec<StepKey>>,
}

impl TraceSink for Ears {
    fn samples(&self, _: u128, _: Option<ParentSpan>) -> bool {
        true
    }

    fn request(&self, _: &RequestSpan<'_>) {}

    fn delivery(&self, _: &DeliverySpan<'_>) {}

    fn step(&self, span: &StepSpan<'_>) {
        let error = span.error.map(str::to_owned);
        self.spans.lock().push((span.context, span.parent, span.kind, span.step.to_owned(), error));
    }
}

#[async_trait]
impl Actions for Ears {
    async fn call(&self, _: &StepKey, _: &Request) -> Outcome {
        Outcome::Failed { reason: "there is no network".to_owned() }
    }

    async fn invoke(&self, step: &StepKey, service: &str, _: &Json) -> Outcome {
        self.keys.lock().push(step.clone());
        match service {
            "hangs" => std::future::pending().await,
            "breaks" => Outcome::Failed { reason: "broken".to_owned() },
            _ => Outcome::Output(Json::Null),
        }
    }

    async fn emit(&self, _: &StepKey, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> Result<BTreeMap<String, Json>> {
        Ok(BTreeMap::new())
    }

    async fn lifecycle(&self, _: &str, event: &Json) -> Result<()> {
        if self.deaf.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "publish", "the broker is away"));
        }
        self.events.lock().push(event.clone());
        Ok(())
    }
}

struct Host {
    workflows: Workflows,
    ears: Arc<Ears>,
    stop: CancellationToken,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn host(store: Arc<MemoryStore>, ears: Arc<Ears>) -> Host {
    let clock = Arc::new(TokioClock::starting_at(Timestamp(1_767_225_600_000_000_000)));
    let mut config = WorkflowConfig::default();
    config.lifecycle = true;
    config.traces = Some(ears.clone());
    let workflows = Workflows::with_config(store, clock, ears.clone(), config);
    let stop = CancellationToken::new();
    let (running, token) = (workflows.clone(), stop.clone());
    tokio::spawn(async move { running.run(token).await });
    tokio::task::yield_now().await;
    Host { workflows, ears, stop }
}

async fn define(host: &Host, name: &str, tasks: &str) {
    let head = format!("document: {{dsl: '1.0.3', namespace: shop, name: {name}, version: '1.0.0'}}");
    let definition = Definition::parse(&format!("{head}\ndo: {tasks}")).expect("right");
    host.workflows.define(&definition).await.expect("stored");
}

async fn start(host: &Host, name: &str, run: &str) {
    host.workflows.start("shop", name, "1.0.0", run, json!({})).await.expect("started");
}

#[tokio::test(start_paused = true)]
async fn events_of_a_life_are_as_the_specification_names_them_and_survive_a_broker_that_is_away_and_a_restart()
 {
    let (store, ears) = (Arc::new(MemoryStore::default()), Arc::new(Ears::default()));
    ears.deaf.store(true, SeqCst);
    let first = host(store.clone(), ears.clone()).await;
    define(&first, "order", "[{w: {wait: PT1M}}, {l: {listen: {to: {one: {with: {type: go}}}}}}]").await;
    define(&first, "fails", "[{c: {call: breaks}}]").await;
    start(&first, "order", "o").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.workflows.steer("shop", "o", RunAction::Suspend).await.expect("suspended");
    first.workflows.steer("shop", "o", RunAction::Resume).await.expect("resumed");
    start(&first, "fails", "f").await;
    start(&first, "order", "c").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    first.workflows.cancel("shop/c").await.expect("cancelled");
    tokio::time::sleep(Duration::from_secs(70)).await;
    let event = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "go"});
    first.workflows.event("shop/o", event).await.expect("stored");
    assert_eq!(first.workflows.ended("shop/o").await.expect("ended").phase, Phase::Completed);
    first.workflows.halt().await;
    assert_eq!(ears.events.lock().len(), 0, "nobody took any");

    ears.deaf.store(false, SeqCst);
    let second = host(store.clone(), ears.clone()).await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let events = ears.events.lock().clone();
    let of = |run: &str| -> Vec<String> {
        let own = events.iter().filter(|event| event["subject"] == run);
        own.map(|event| event["type"].as_str().expect("a type").to_owned()).collect()
    };
    let kinds = |kinds: &[&str]| -> Vec<String> {
        kinds.iter().map(|kind| format!("io.serverlessworkflow.workflow.{kind}.v1")).collect()
    };
    let life =
        ["started", "suspended", "resumed", "correlation-started", "correlation-completed", "completed"];
    assert_eq!(of("o"), kinds(&life));
    assert_eq!(of("f"), kinds(&["started", "faulted"]));
    assert_eq!(of("c"), kinds(&["started", "cancelled"]));
    let started = &events.iter().find(|event| event["subject"] == "o").expect("one")["data"];
    assert_eq!(started["name"], "order-o.shop");
    assert_eq!(started["definition"], json!({"name": "order", "namespace": "shop", "version": "1.0.0"}));
    assert_eq!(started["startedAt"], "2026-01-01T00:00:00Z");
    let faulted = events.iter().find(|event| event["subject"] == "f" && event["data"]["error"].is_object());
    assert!(faulted.expect("one")["data"]["faultedAt"].is_string());
    let ids: std::collections::BTreeSet<String> =
        events.iter().map(|event| event["id"].to_string()).collect();
    assert_eq!(ids.len(), events.len(), "each has an id of its own");
    assert_eq!(store.list("workflow/outbox/", None, 10).await.expect("a store"), [], "none is left");
    drop(second);
}

#[tokio::test(start_paused = true)]
async fn the_steps_of_a_run_are_spans_of_one_trace_below_the_run() {
    let ears = Arc::new(Ears::default());
    let host = host(Arc::new(MemoryStore::default()), ears.clone()).await;
    let tasks =
        "[{a: {call: stock}}, {b: {try: [{c: {call: breaks}}], catch: {do: [{s: {set: {ok: true}}}]}}}]";
    define(&host, "order", tasks).await;
    for run in ["r-1", "r-2"] {
        start(&host, "order", run).await;
        assert_eq!(
            host.workflows.ended(&format!("shop/{run}")).await.expect("ended").phase,
            Phase::Completed
        );
    }
    let spans = std::mem::take(&mut *host.ears.spans.lock());
    assert_eq!(spans.len(), 6, "two steps and the run, twice: {spans:?}");
    let (first, second) = spans.split_at(3);
    assert_ne!(first[0].0.trace, second[0].0.trace, "each run has a trace of its own");
    let root = &first[2];
    assert_eq!((root.1, root.2), (None, "run"), "the run comes last: {root:?}");
    for step in &first[..2] {
        assert_eq!(step.0.trace, root.0.trace);
        assert_eq!(step.1.expect("a parent").context.span, root.0.span);
        assert!(step.0.sampled());
    }
    assert_eq!((first[0].3.as_str(), &first[0].4), ("/do/0/a", &None));
    assert_eq!(first[1].4.as_deref(), Some("broken"));
    // Who is called hangs its own spans below the step's.
    assert_eq!(host.ears.keys.lock()[0].trace(), first[0].0);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_waits_for_another_run_is_a_span_of_its_own_run_when_that_one_has_ended() {
    let ears = Arc::new(Ears::default());
    let host = host(Arc::new(MemoryStore::default()), ears.clone()).await;
    define(
        &host,
        "child",
        "[{w: {wait: PT5M}}, {f: {raise: {error: {type: 'about:blank', status: 500, title: lost}}}}]",
    )
    .await;
    let child = "{run: {workflow: {namespace: shop, name: child, version: '1.0.0'}}}";
    define(
        &host,
        "parent",
        &format!("[{{c: {{try: [{{r: {child}}}], catch: {{do: [{{s: {{set: {{ok: true}}}}}}]}}}}}}]"),
    )
    .await;
    start(&host, "parent", "p").await;
    assert_eq!(host.workflows.ended("shop/p").await.expect("ended").phase, Phase::Completed);
    let spans = std::mem::take(&mut *host.ears.spans.lock());
    let kinds: Vec<&str> = spans.iter().map(|span| span.2).collect();
    assert_eq!(kinds, ["run", "workflow", "run"], "the child, the step, the parent: {spans:?}");
    let (child, step, parent) = (&spans[0], &spans[1], &spans[2]);
    assert_ne!(child.0.trace, step.0.trace, "the child has a trace of its own");
    assert_eq!(step.0.trace, parent.0.trace);
    assert_eq!(step.1.expect("a parent").context.span, parent.0.span);
    assert_eq!((step.3.as_str(), step.4.as_deref()), ("/do/0/c/try/0/r", Some("lost")));
}

#[tokio::test(start_paused = true)]
async fn runs_that_do_not_go_on_are_named_until_they_do() {
    let (store, ears) = (Arc::new(MemoryStore::default()), Arc::new(Ears::default()));
    let host = host(store.clone(), ears).await;
    define(&host, "silent", "[{c: {call: hangs}}]").await;
    define(&host, "gone", "[{w: {wait: PT2M}}]").await;
    define(&host, "well", "[{w: {wait: PT9H}}]").await;
    for name in ["silent", "gone", "well"] {
        start(&host, name, name).await;
    }
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(host.workflows.stuck(), [], "all is well");
    // The document is lost behind its back; another start of the host reads it anew.
    let key = "workflow/definition/shop/gone/1.0.0";
    let entry = store.get(key).await.expect("a store").expect("a definition");
    store.delete(key, entry.version).await.expect("deleted");
    host.workflows.halt().await;
    let host = self::host(store.clone(), Arc::new(Ears::default())).await;
    tokio::time::sleep(Duration::from_secs(130)).await;
    let why = |host: &Host| -> Vec<(String, &'static str)> {
        host.workflows.stuck().into_iter().map(|stuck| (stuck.id, stuck.why)).collect()
    };
    assert_eq!(why(&host), [("gone".to_owned(), "unreadable")]);
    assert!(host.workflows.stuck()[0].message.contains("shop/gone 1.0.0 is not there"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(why(&host), [("gone".to_owned(), "unreadable"), ("silent".to_owned(), "silent")]);
    assert!(host.workflows.stuck()[1].since.is_some());
    store.put(key, None, entry.value).await.expect("back");
    host.workflows.cancel("shop/silent").await.expect("cancelled");
    assert_eq!(host.workflows.ended("shop/gone").await.expect("ended").phase, Phase::Completed);
    tokio::time::sleep(Duration::from_secs(130)).await;
    assert_eq!(why(&host), [], "both have gone on");
}
