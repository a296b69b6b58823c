//! What operators do with runs, what they see of them, and how events and definitions come and go.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    ErrorKind, GraphOf, MemoryStore, RunAction, RunQuery, RunStart, RunStatus, Store, Timestamp, TokioClock,
    WorkflowHost, WorkflowSpec,
};
use sas_workflow::{Actions, Outcome, Request, StepKey, WorkflowConfig, Workflows};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

/// Services that answer as they are told, with who called them.
#[derive(Debug, Default)]
struct Services {
    called: Mutex<Vec<(String, String)>>,
    /// What a service answers its next calls, first to last; then it gives its name.
    next: Mutex<HashMap<String, Vec<Outcome>>>,
    takes: Mutex<Duration>,
    /// Whether the secrets cannot be read now.
    away: Mutex<bool>,
    /// Whether whoever keeps the secrets says so.
    refuses: Mutex<bool>,
}

#[async_trait]
impl Actions for Services {
    async fn call(&self, _: &StepKey, request: &Request) -> Outcome {
        Outcome::Failed { reason: format!("nobody is at {}", request.uri) }
    }

    async fn invoke(&self, step: &StepKey, service: &str, _: &Json) -> Outcome {
        self.called.lock().push((service.to_owned(), step.step.clone()));
        let takes = *self.takes.lock();
        tokio::time::sleep(takes).await;
        let mut next = self.next.lock();
        match next.get_mut(service).filter(|next| !next.is_empty()) {
            Some(next) => next.remove(0),
            None => Outcome::Output(json!(service)),
        }
    }

    async fn emit(&self, _: &StepKey, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> sas_core::Result<BTreeMap<String, Json>> {
        if *self.refuses.lock() {
            return Err(sas_core::Error::new(ErrorKind::Unavailable, "secret", "the vault is sealed"));
        }
        while *self.away.lock() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(BTreeMap::from([("key".to_owned(), json!("k"))]))
    }
}

struct Host {
    workflows: Workflows,
    services: Arc<Services>,
    stop: CancellationToken,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn host_on(store: Arc<dyn Store>, config: WorkflowConfig) -> Host {
    let clock = Arc::new(TokioClock::starting_at(Timestamp(1_767_225_600_000_000_000)));
    let services = Arc::new(Services::default());
    let workflows = Workflows::with_config(store, clock, services.clone(), config);
    let (stop, running) = (CancellationToken::new(), workflows.clone());
    let token = stop.clone();
    tokio::spawn(async move { running.run(token).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    Host { workflows, services, stop }
}

async fn host() -> Host {
    host_on(Arc::new(MemoryStore::default()), WorkflowConfig::default()).await
}

fn spec(name: &str, version: &str, tasks: &Json) -> WorkflowSpec {
    let mut document =
        json!({"document": {"dsl": "1.0.3", "namespace": "shop", "name": name, "version": version}});
    match tasks {
        Json::Array(_) => document["do"] = tasks.clone(),
        rest => {
            for (field, value) in rest.as_object().expect("an object") {
                document[field] = value.clone();
            }
        }
    }
    WorkflowSpec::new("shop", name, version, document)
}

async fn applied(host: &Host, name: &str, version: &str, tasks: Json) {
    host.workflows.apply(&spec(name, version, &tasks)).await.expect("right");
}

async fn started(host: &Host, name: &str, id: &str) {
    let mut start = RunStart::new("shop", name, json!({}));
    start.id = Some(id.to_owned());
    host.workflows.start_run(start).await.expect("starts");
}

async fn ended(host: &Host, id: &str) -> sas_core::RunView {
    tokio::time::timeout(Duration::from_secs(3_600), WorkflowHost::ended(&host.workflows, "shop", id))
        .await
        .expect("in time")
        .expect("a run")
}

fn pay() -> Json {
    json!([{"stock": {"call": "stock"}}, {"pay": {"call": "billing"}}, {"ship": {"call": "shipping"}}])
}

fn refused() -> Outcome {
    Outcome::Failed { reason: "no".to_owned() }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_faulted_goes_on_from_the_step_that_failed_under_another_key() {
    let host = host().await;
    applied(&host, "pay", "1.0.0", pay()).await;
    host.services.next.lock().insert("billing".to_owned(), vec![refused()]);
    started(&host, "pay", "r").await;
    let run = ended(&host, "r").await;
    assert_eq!((run.status, &run.error["detail"]), (RunStatus::Faulted, &json!("no")));
    let shown = host.workflows.detail("shop", "r").await.expect("there");
    let states: Vec<_> = shown.steps.iter().map(|step| (step.task.as_str(), step.state)).collect();
    assert_eq!(states, [("stock", "answered"), ("pay", "failed")]);

    let run = host.workflows.steer("shop", "r", RunAction::Retry).await.expect("goes on");
    assert_eq!(run.status, RunStatus::Running);
    let run = ended(&host, "r").await;
    assert_eq!((run.status, &run.output), (RunStatus::Completed, &json!("shipping")));
    let called = host.services.called.lock().clone();
    let steps: Vec<&str> = called.iter().map(|(_, step)| step.as_str()).collect();
    assert_eq!(steps, ["/do/0/stock", "/do/1/pay", "/do/1/pay~1", "/do/2/ship"], "stock is not done again");
    let shown = host.workflows.detail("shop", "r").await.expect("there");
    assert_eq!((shown.steps[1].state, shown.steps[1].retries), ("answered", 1));
    let again = host.workflows.steer("shop", "r", RunAction::Retry).await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::Conflict, "it has completed");
}

#[tokio::test(start_paused = true)]
async fn a_step_is_skipped_where_it_failed_and_where_it_hangs() {
    let host = host().await;
    applied(&host, "pay", "1.0.0", pay()).await;
    host.services.next.lock().insert("billing".to_owned(), vec![refused()]);
    started(&host, "pay", "r").await;
    ended(&host, "r").await;
    let wrong = RunAction::Skip { step: "/do/0/stock".to_owned(), output: json!(1) };
    let wrong = host.workflows.steer("shop", "r", wrong).await.unwrap_err();
    assert!(wrong.kind == ErrorKind::InvalidSpec && wrong.message.contains("/do/1/pay"), "{wrong}");
    let skip = RunAction::Skip { step: "/do/1/pay".to_owned(), output: json!({"paid": "by hand"}) };
    host.workflows.steer("shop", "r", skip.clone()).await.expect("goes on");
    let run = ended(&host, "r").await;
    assert_eq!((run.status, run.output), (RunStatus::Completed, json!("shipping")));

    *host.services.takes.lock() = Duration::from_secs(300);
    started(&host, "pay", "hangs").await;
    tokio::time::sleep(Duration::from_secs(301)).await;
    host.workflows.steer("shop", "hangs", skip).await.expect("is told");
    let run = host.workflows.detail("shop", "hangs").await.expect("there");
    assert_eq!(run.steps.last().map(|step| (step.task.as_str(), step.state)), Some(("ship", "active")));
    assert_eq!(ended(&host, "hangs").await.status, RunStatus::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_suspended_run_begins_nothing_keeps_what_comes_and_stays_so_over_a_restart() {
    let store = Arc::new(MemoryStore::default());
    let first = host_on(store.clone(), WorkflowConfig::default()).await;
    *first.services.takes.lock() = Duration::from_secs(10);
    applied(&first, "pay", "1.0.0", pay()).await;
    started(&first, "pay", "r").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let run = first.workflows.steer("shop", "r", RunAction::Suspend).await.expect("suspended");
    assert_eq!(run.status, RunStatus::Suspended);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(first.services.called.lock().len(), 1, "stock was under way, and nothing began after it");
    let shown = first.workflows.detail("shop", "r").await.expect("there");
    assert_eq!(shown.steps[0].state, "answered", "what came was kept");
    drop(first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = host_on(store, WorkflowConfig::default()).await;
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    assert!(second.services.called.lock().is_empty());
    second.workflows.steer("shop", "r", RunAction::Resume).await.expect("goes on");
    assert_eq!(ended(&second, "r").await.status, RunStatus::Completed);
    assert_eq!(second.services.called.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_definition_goes_only_when_no_run_needs_it_and_none_starts_meanwhile() {
    let host = host().await;
    applied(&host, "waits", "1.0.0", json!([{"w": {"wait": "PT1H"}}])).await;
    applied(&host, "waits", "1.2.0", json!([{"w": {"wait": "PT1M"}}])).await;
    applied(&host, "waits", "1.10.0", json!([{"w": {"wait": "PT1S"}}])).await;
    let mut old = RunStart::new("shop", "waits", json!({}));
    (old.id, old.version) = (Some("old".to_owned()), Some("1.0.0".to_owned()));
    host.workflows.start_run(old.clone()).await.expect("starts");
    started(&host, "waits", "new").await;
    assert_eq!(ended(&host, "new").await.version, "1.10.0", "the greatest version, by numbers");
    let held = WorkflowHost::remove(&host.workflows, "shop", "waits", "1.0.0").await.unwrap_err();
    assert!(held.kind == ErrorKind::Conflict && held.message.contains("\"old\""), "{held}");
    let mut other = old.clone();
    other.id = Some("other".to_owned());
    host.workflows.start_run(other).await.expect("a refused removal holds up no start");
    for id in ["old", "other"] {
        host.workflows.steer("shop", id, RunAction::Cancel).await.expect("ends");
    }
    WorkflowHost::remove(&host.workflows, "shop", "waits", "1.0.0").await.expect("gone");
    old.id = Some("late".to_owned());
    assert_eq!(host.workflows.start_run(old).await.unwrap_err().kind, ErrorKind::NotFound);
    let (left, _) = host.workflows.definitions(Some("shop"), None, 10).await.expect("a list");
    assert_eq!(left.iter().map(|info| info.version.as_str()).collect::<Vec<_>>(), ["1.10.0", "1.2.0"]);
    let other = spec("waits", "1.2.0", &json!([{"w": {"wait": "PT2M"}}]));
    assert_eq!(host.workflows.apply(&other).await.unwrap_err().kind, ErrorKind::Conflict, "it is for ever");
}

#[tokio::test(start_paused = true)]
async fn runs_are_found_by_what_they_are_and_pages_miss_none() {
    let host = host().await;
    applied(&host, "pay", "1.0.0", pay()).await;
    host.services.next.lock().insert("stock".to_owned(), vec![refused()]);
    for at in 0..25 {
        let mut start = RunStart::new("shop", "pay", json!({}));
        start.id = Some(format!("r-{at:02}"));
        start.labels = [("customer".to_owned(), format!("c{}", at % 5))].into();
        host.workflows.start_run(start).await.expect("starts");
        ended(&host, &format!("r-{at:02}")).await;
    }
    let mut query = RunQuery::new("shop");
    query.limit = 4;
    let mut seen = Vec::new();
    loop {
        let page = host.workflows.runs(&query).await.expect("a page");
        seen.extend(page.runs.into_iter().map(|run| run.id));
        query.after = page.next;
        if query.after.is_none() {
            break;
        }
    }
    assert_eq!(seen, (0..25).map(|at| format!("r-{at:02}")).collect::<Vec<_>>());
    let found = async |change: &dyn Fn(&mut RunQuery)| {
        let mut query = RunQuery::new("shop");
        change(&mut query);
        host.workflows.runs(&query).await.expect("a page").runs.len()
    };
    assert_eq!(found(&|query| query.status = Some(RunStatus::Faulted)).await, 1);
    assert_eq!(found(&|query| query.error = Some("no".to_owned())).await, 1);
    assert_eq!(found(&|query| query.label = Some(("customer".to_owned(), "c3".to_owned()))).await, 5);
    assert_eq!(found(&|query| query.workflow = Some("other".to_owned())).await, 0);
    assert_eq!(found(&|query| query.namespace = "sho".to_owned()).await, 0, "a namespace is no prefix");
}

#[tokio::test(start_paused = true)]
async fn an_event_reaches_those_that_listen_for_its_type_and_starts_what_a_schedule_asks_for() {
    let host = host().await;
    let listens = |kind: &str| json!([{"l": {"listen": {"to": {"one": {"with": {"type": kind}}}}}}]);
    applied(&host, "paid", "1.0.0", listens("paid")).await;
    applied(&host, "sent", "1.0.0", listens("sent")).await;
    for (name, id) in [("paid", "a"), ("paid", "b"), ("sent", "c")] {
        started(&host, name, id).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let event = |id: &str| json!({"specversion": "1.0", "id": id, "source": "s", "type": "paid", "data": 7});
    assert_eq!(host.workflows.deliver("shop", event("1")).await.expect("told"), 2);
    assert_eq!(ended(&host, "a").await.output, json!([7]));
    assert_eq!(ended(&host, "b").await.output, json!([7]));
    assert_eq!(host.workflows.deliver("shop", event("2")).await.expect("told"), 0, "nobody listens any more");
    let run = host.workflows.detail("shop", "c").await.expect("there");
    assert_eq!((run.run.status, run.steps[0].waits_for), (RunStatus::Running, Some("event")));
    assert_eq!(host.workflows.deliver("other", event("3")).await.expect("told"), 0);
    assert!(host.workflows.deliver("shop", json!({"type": "paid"})).await.is_err());

    let on = json!({"schedule": {"on": {"one": {"with": {"type": "paid"}}}}, "do": [{"s": {"set": {"got": "${ .[0] }"}}}]});
    applied(&host, "starts", "1.0.0", on).await;
    let input = host.workflows.scheduled_by("shop", "starts", &event("4")).await.expect("a store");
    assert_eq!(input, Some(json!([7])));
    let other = json!({"id": "5", "source": "s", "type": "sent"});
    assert_eq!(host.workflows.scheduled_by("shop", "starts", &other).await.expect("a store"), None);
}

#[tokio::test(start_paused = true)]
async fn ended_runs_go_after_their_time_and_long_ones_and_many_are_refused() {
    let mut config = WorkflowConfig::default();
    (config.retention, config.records_per_run, config.runs_per_namespace) =
        (Some(Duration::from_secs(3_600)), 20, 2);
    let host = host_on(Arc::new(MemoryStore::default()), config).await;
    applied(&host, "pay", "1.0.0", pay()).await;
    started(&host, "pay", "r").await;
    ended(&host, "r").await;
    tokio::time::sleep(Duration::from_secs(3_000)).await;
    assert!(host.workflows.state("shop/r").await.expect("a store").is_some());
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    assert!(host.workflows.state("shop/r").await.expect("a store").is_none());
    assert!(host.workflows.history("shop/r").await.expect("a store").is_empty());

    let forever = json!([{"a": {"call": "stock", "then": "a"}}]);
    applied(&host, "forever", "1.0.0", forever).await;
    started(&host, "forever", "long").await;
    let run = ended(&host, "long").await;
    assert!(run.status == RunStatus::Faulted && run.error.to_string().contains("21 records"), "{run:?}");

    applied(&host, "waits", "1.0.0", json!([{"w": {"wait": "PT1H"}}])).await;
    started(&host, "waits", "one").await;
    started(&host, "waits", "two").await;
    let start = RunStart::new("shop", "waits", json!({}));
    assert_eq!(host.workflows.start_run(start).await.unwrap_err().kind, ErrorKind::Exhausted);
    started(&host, "waits", "one").await;
    host.workflows.steer("shop", "one", RunAction::Cancel).await.expect("ends");
    started(&host, "waits", "three").await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_whose_runs_keep_too_many_bytes_starts_none_until_some_are_forgotten() {
    let mut config = WorkflowConfig::default();
    (config.retention, config.bytes_per_namespace) = (Some(Duration::from_secs(3_600)), 10_000);
    let store = Arc::new(MemoryStore::default());
    let host = host_on(store.clone(), config.clone()).await;
    applied(&host, "pay", "1.0.0", pay()).await;
    let large = |id: &str| {
        let mut start = RunStart::new("shop", "pay", json!({ "text": "x".repeat(4_000) }));
        start.id = Some(id.to_owned());
        host.workflows.start_run(start)
    };
    for id in ["a", "b", "c"] {
        large(id).await.expect("there is room");
        ended(&host, id).await;
    }
    let refused = large("d").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exhausted);
    assert!(
        refused.message.contains("the runs of shop keep") && refused.message.contains("10000"),
        "{refused}"
    );
    large("a").await.expect("it is there already");
    let mut other = spec("quick", "1.0.0", &json!([{"s": {"set": {"ok": true}}}]));
    other.namespace = "calm".to_owned();
    other.document["document"]["namespace"] = json!("calm");
    host.workflows.apply(&other).await.expect("right");
    host.workflows.start_run(RunStart::new("calm", "quick", json!({}))).await.expect("another tenant's");

    host.workflows.halt().await;
    let next = host_on(store, config).await;
    let start = RunStart::new("shop", "pay", json!({}));
    let refused = next.workflows.start_run(start.clone()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Exhausted, "the next host counts what is stored: {refused}");
    tokio::time::sleep(Duration::from_secs(4_000)).await;
    next.workflows.start_run(start).await.expect("they are forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_slow_tenant_holds_up_no_other_and_steps_have_a_rate() {
    let mut config = WorkflowConfig::default();
    (config.active, config.active_per_namespace) = (4, 2);
    let host = host_on(Arc::new(MemoryStore::default()), config).await;
    *host.services.takes.lock() = Duration::from_secs(100);
    applied(&host, "pay", "1.0.0", json!([{"c": {"call": "slow"}}])).await;
    let mut other = spec("quick", "1.0.0", &json!([{"s": {"set": {"ok": true}}}]));
    other.namespace = "calm".to_owned();
    other.document["document"]["namespace"] = json!("calm");
    host.workflows.apply(&other).await.expect("right");
    for at in 0..20 {
        started(&host, "pay", &format!("r-{at}")).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(host.services.called.lock().len(), 2, "two at once of one namespace");
    let (run, _) = host.workflows.start_run(RunStart::new("calm", "quick", json!({}))).await.expect("starts");
    let quick = WorkflowHost::ended(&host.workflows, "calm", &run.id);
    let quick = tokio::time::timeout(Duration::from_secs(1), quick).await;
    assert_eq!(quick.expect("at once").expect("ends").status, RunStatus::Completed);

    let mut config = WorkflowConfig::default();
    config.steps_per_second = Some(2.0);
    let host = host_on(Arc::new(MemoryStore::default()), config).await;
    applied(&host, "pay", "1.0.0", pay()).await;
    let began = tokio::time::Instant::now();
    for at in 0..4 {
        started(&host, "pay", &format!("r-{at}")).await;
    }
    for at in 0..4 {
        ended(&host, &format!("r-{at}")).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(5_500), "12 steps in {:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_picture_is_the_same_each_time_holds_no_markup_of_tenants_and_has_a_bound() {
    let host = host().await;
    let hostile = json!([{"<script>alert(1)</script>\u{1}&\"": {"call": "stock"}}, {"b": {"set": {"x": 1}}}]);
    applied(&host, "hostile", "1.0.0", hostile).await;
    started(&host, "hostile", "r").await;
    ended(&host, "r").await;
    let svg = host.workflows.graph("shop", GraphOf::Run("r")).await.expect("drawn");
    assert!(!svg.contains("<script") && !svg.contains('\u{1}'), "{svg}");
    assert!(svg.contains("&lt;script&gt;") && svg.ends_with("</svg>\n"));
    assert_eq!(svg, host.workflows.graph("shop", GraphOf::Run("r")).await.expect("drawn"));
    let of = GraphOf::Definition { name: "hostile", version: None };
    let plain = host.workflows.graph("shop", of).await.expect("drawn");
    assert!(svg.matches("#e3f4e8").count() >= 3 && !plain.contains("#e3f4e8"), "only a run has a path");

    let many: Vec<Json> = (0..900).map(|at| json!({format!("t{at}"): {"set": {"x": at}}})).collect();
    applied(&host, "many", "1.0.0", json!(many)).await;
    let of = GraphOf::Definition { name: "many", version: None };
    let large = host.workflows.graph("shop", of).await.expect("drawn");
    assert!(large.len() < 500_000 && large.contains("and 400 more"), "{}", large.len());
}

#[tokio::test(start_paused = true)]
async fn no_run_starts_one_of_another_namespace_with_the_secrets_of_that_one() {
    let host = host().await;
    let mut theirs = spec("theirs", "1.0.0", &json!([{"c": {"call": "billing"}}]));
    theirs.namespace = "calm".to_owned();
    theirs.document["document"]["namespace"] = json!("calm");
    host.workflows.apply(&theirs).await.expect("right");
    let crossing =
        json!([{"w": {"run": {"workflow": {"namespace": "calm", "name": "theirs", "version": "1.0.0"}}}}]);
    let crossing = spec("crossing", "1.0.0", &crossing);
    let refused = host.workflows.apply(&crossing).await.unwrap_err().to_string();
    assert!(
        refused.contains("spec.do[0].w.run.workflow.namespace") && refused.contains("must be shop"),
        "{refused}"
    );
    // One that is stored already starts none either.
    let stored = sas_workflow::Definition::from_json(crossing.document).expect("right");
    host.workflows.define(&stored).await.expect("stored");
    started(&host, "crossing", "r").await;
    let run = ended(&host, "r").await;
    assert_eq!(run.status, RunStatus::Faulted);
    assert!(
        run.error["detail"].as_str().is_some_and(|detail| detail.contains("another namespace")),
        "{}",
        run.error
    );
    assert!(host.services.called.lock().is_empty());
    assert!(host.workflows.runs(&RunQuery::new("calm")).await.expect("a list").runs.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_large_output_and_a_large_error_are_whole_where_one_run_is_read_and_short_in_lists() {
    let host = host().await;
    let large = "x".repeat(20_000);
    applied(&host, "large", "1.0.0", json!([{"s": {"set": {"text": large}}}])).await;
    let raise = json!({"type": "https://example.org/e", "status": 500, "title": "too much", "detail": large});
    applied(&host, "raises", "1.0.0", json!([{"r": {"raise": {"error": raise}}}])).await;
    started(&host, "large", "o").await;
    started(&host, "raises", "e").await;
    assert_eq!(ended(&host, "o").await.output["text"], json!(large));
    assert_eq!(ended(&host, "e").await.error["detail"], json!(large));
    assert_eq!(
        host.workflows.state("shop/o").await.expect("read").expect("there").output.expect("has")["text"],
        large
    );
    let listed = host.workflows.list(None, 10).await.expect("a list");
    assert!(listed.iter().all(|state| format!("{state:?}").len() < 6_000));
    let mut query = RunQuery::new("shop");
    query.error = Some("too much".to_owned());
    let found = host.workflows.runs(&query).await.expect("a list").runs;
    assert_eq!(found.iter().map(|run| run.id.as_str()).collect::<Vec<_>>(), ["e"], "found by its title");
    host.workflows.purge("shop").await.expect("deleted");
    assert!(host.workflows.state("shop/o").await.expect("read").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_run_whose_secrets_are_away_holds_no_turn_is_cancelled_and_goes_on_when_they_are_back() {
    let mut config = WorkflowConfig::default();
    config.active = 1;
    let host = host_on(Arc::new(MemoryStore::default()), config).await;
    *host.services.away.lock() = true;
    let secret = json!({"use": {"secrets": ["key"]}, "do": [{"s": {"set": {"ok": true}}}]});
    applied(&host, "secret", "1.0.0", secret.clone()).await;
    for id in ["a", "b"] {
        started(&host, "secret", id).await;
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    let cancelled = host.workflows.steer("shop", "a", RunAction::Cancel);
    let run = tokio::time::timeout(Duration::from_secs(60), cancelled).await.expect("in time").expect("ends");
    assert_eq!(run.status, RunStatus::Cancelled);
    // A vault that says that it is away is no other than one that says nothing.
    *host.services.refuses.lock() = true;
    *host.services.away.lock() = false;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let waits = host.workflows.detail("shop", "b").await;
    assert_eq!(waits.unwrap_err().kind, ErrorKind::Unavailable);
    *host.services.refuses.lock() = false;
    assert_eq!(ended(&host, "b").await.status, RunStatus::Completed);
    *host.services.away.lock() = true;
    started(&host, "secret", "c").await;
    let purged = tokio::time::timeout(Duration::from_secs(60), host.workflows.purge("shop")).await;
    assert_eq!(purged.expect("in time").expect("deleted"), ["shop/secret/1.0.0"]);

    let mut long = secret;
    long["use"]["secrets"] = json!(["k".repeat(254)]);
    let refused = host.workflows.apply(&spec("long", "1.0.0", &long)).await.unwrap_err().to_string();
    assert!(refused.contains("at most 253"), "{refused}");
}

#[tokio::test]
async fn many_tasks_deep_within_others_are_drawn_at_once() {
    let host = host_on(Arc::new(MemoryStore::default()), WorkflowConfig::default()).await;
    let mut tasks: Vec<Json> = (0..400).map(|at| json!({format!("t{at}"): {"set": {"x": at}}})).collect();
    for depth in 0..19 {
        tasks = vec![json!({format!("d{depth}"): {"do": tasks}})];
    }
    applied(&host, "deep", "1.0.0", json!(tasks)).await;
    let of = GraphOf::Definition { name: "deep", version: None };
    let drawn = tokio::time::timeout(Duration::from_secs(1), host.workflows.graph("shop", of)).await;
    assert!(drawn.expect("in a second").expect("drawn").contains("t399"));
}

#[tokio::test(start_paused = true)]
async fn a_schedule_that_asks_for_what_is_not_done_is_refused() {
    let host = host().await;
    for (on, word) in [
        (json!({"on": {"one": {"with": {"type": "a"}}}, "read": "envelope"}), "read"),
        (
            json!({"on": {"one": {"with": {"type": "a"}, "correlate": {"k": {"from": "${ .k }"}}}}}),
            "correlate",
        ),
    ] {
        let document = json!({"schedule": on, "do": [{"s": {"set": {"ok": true}}}]});
        let refused = host.workflows.apply(&spec("s", "1.0.0", &document)).await.unwrap_err().to_string();
        assert!(refused.contains(word) && refused.contains("spec.schedule"), "{refused}");
    }
}
