//! A store that takes its time holds up no step that is under way.

use tokio::time::{Instant, sleep};

use super::*;

/// A store whose commits of one kind take long.
#[derive(Debug)]
struct Slow {
    store: MemoryStore,
    /// What stands in the commit.
    of: &'static str,
    takes: Duration,
}

#[async_trait]
impl Store for Slow {
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
        if format!("{commit:?}").contains(self.of) {
            sleep(self.takes).await;
        }
        self.store.commit(commit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.store.watch(prefix, since).await
    }
}

/// `quick` answers when `long` has begun; `long` in three seconds, if it gets on with it. Both say how many it took.
#[derive(Debug)]
struct Paced;

#[async_trait]
impl Actions for Paced {
    async fn call(&self, _: &StepKey, request: &Request) -> Outcome {
        Outcome::Failed { reason: format!("nobody is at {}", request.uri) }
    }

    async fn invoke(&self, _: &StepKey, service: &str, _: &Json) -> Outcome {
        let began = Instant::now();
        let pauses = if service == "long" { [1_000, 1_000, 1_000].as_slice() } else { &[500] };
        for pause in pauses {
            sleep(Duration::from_millis(*pause)).await;
        }
        Outcome::Output(json!(began.elapsed().as_secs()))
    }

    async fn emit(&self, _: &StepKey, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> Result<BTreeMap<String, Json>> {
        Ok(BTreeMap::new())
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_goes_on_while_the_store_writes_what_another_one_answered() {
    // The number of the second record, which is the first answer.
    let takes = Duration::from_secs(60);
    let store = Arc::new(Slow { store: MemoryStore::default(), of: "00000000000000000001", takes });
    let workflows = Workflows::new(store, clock(), Arc::new(Paced));
    let stop = CancellationToken::new();
    let (running, token) = (workflows.clone(), stop.clone());
    tokio::spawn(async move { running.run(token).await });
    let text = "
document: {dsl: '1.0.3', namespace: shop, name: both, version: '1.0.0'}
do: [{both: {fork: {branches: [{q: {call: quick}}, {l: {call: long}}]}}}]
";
    workflows.define(&Definition::parse(text).expect("right")).await.expect("stored");
    let began = Instant::now();
    workflows.start("shop", "both", "1.0.0", "o-1", Json::Null).await.expect("started");
    let state = workflows.ended("shop/o-1").await.expect("ends");
    assert!(began.elapsed() >= takes, "the store was slow: {:?}", began.elapsed());
    assert_eq!(state.output, Some(json!([0, 3])), "of `long` three seconds: {state:?}");
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_timer_that_is_due_does_not_wait_for_the_runs_that_were_started_before() {
    let mut config = WorkflowConfig::default();
    config.active_per_namespace = 4;
    let workflows =
        Workflows::with_config(Arc::new(MemoryStore::default()), clock(), Arc::new(Paced), config);
    let stop = CancellationToken::new();
    let (running, token) = (workflows.clone(), stop.clone());
    tokio::spawn(async move { running.run(token).await });
    for (name, tasks) in [("waits", "{w: {wait: PT10S}}"), ("works", "{l: {call: long}}")] {
        let head = format!("document: {{dsl: '1.0.3', namespace: shop, name: {name}, version: '1.0.0'}}");
        let definition = Definition::parse(&format!("{head}\ndo: [{tasks}]")).expect("right");
        workflows.define(&definition).await.expect("stored");
    }
    workflows.start("shop", "waits", "1.0.0", "timer", Json::Null).await.expect("started");
    sleep(Duration::from_secs(9)).await;
    // At three seconds each, in the three turns that are not kept free, they take a minute.
    for n in 0..60 {
        workflows.start("shop", "works", "1.0.0", &format!("w-{n}"), Json::Null).await.expect("started");
    }
    let state = workflows.ended("shop/timer").await.expect("ends");
    let late = state.updated - state.started - 10_000;
    assert!(late <= 50, "{late} ms late: {state:?}");
    let last = workflows.ended("shop/w-59").await.expect("ends");
    assert!(last.updated - last.started >= 50_000, "there was a queue: {last:?}");
    stop.cancel();
}
