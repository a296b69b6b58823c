//! Several hosts on one state share the runs of workflows: one drives each, whatever pauses, cuts and kills do.

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
use sas::{
    cluster::{Cluster, ClusterConfig},
    core::{
        ErrorKind, Hosts as _, MemoryStore, Place, Result, RunAction, Store, Timestamp, TokioClock,
        WorkflowHost as _,
    },
    workflow::{
        Actions, Definition, Machine, Outcome, Phase, Record, Request, Schedule, Status, StepKey,
        WorkflowConfig, Workflows,
    },
};
use sas_testkit::fault::{LinkFault, StoreLink};
use serde_json::{Value as Json, json};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

const TERM: Duration = Duration::from_secs(10);
const NAMESPACES: [&str; 6] = ["shop", "bank", "post", "farm", "mill", "dock"];
/// A call, a retry, a timer, an event and a child.
const MIX: &str = "
document: {dsl: '1.0.3', namespace: NS, name: mix, version: '1.0.0'}
do:
  - reserve: {call: stock, with: {n: '${ .n }'}}
  - both:
      fork:
        branches:
          - pay:
              try: [{charge: {call: flaky, with: {n: '${ .n + 1 }'}}}]
              catch: {retry: {delay: PT5S, limit: {attempt: {count: 2}}}}
          - rest: {wait: PT40S}
          - sent: {listen: {to: {one: {with: {type: sent}}}}}
          - child: {run: {workflow: {namespace: NS, name: part, version: '1.0.0', input: {n: '${ .n }'}}}}
  - done: {set: {paid: '${ .[0].n }', sent: '${ .[2][0] }', part: '${ .[3].n }'}}
";
const PART: &str = "
document: {dsl: '1.0.3', namespace: NS, name: part, version: '1.0.0'}
do: [{w: {wait: PT20S}}, {c: {call: stock, with: {n: '${ .n }'}}}]
";

/// What the steps of all hosts asked for: the host, the namespace, the run and the step.
type Called = Arc<Mutex<Vec<(String, StepKey)>>>;

#[derive(Debug)]
struct Services {
    host: String,
    called: Called,
    /// Definitions whose schedules this host keeps.
    kept: Mutex<BTreeSet<String>>,
}

#[async_trait]
impl Actions for Services {
    async fn call(&self, _: &StepKey, request: &Request) -> Outcome {
        Outcome::Failed { reason: format!("nobody is at {}", request.uri) }
    }

    async fn invoke(&self, step: &StepKey, service: &str, input: &Json) -> Outcome {
        self.called.lock().push((self.host.clone(), step.clone()));
        sleep(Duration::from_millis(700)).await;
        match service {
            "flaky" if !step.step.contains('@') => Outcome::Failed { reason: "not yet".to_owned() },
            _ => Outcome::Output(json!({"by": service, "n": input["n"]})),
        }
    }

    async fn emit(&self, _: &StepKey, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> Result<BTreeMap<String, Json>> {
        Ok(BTreeMap::new())
    }

    async fn schedule(&self, namespace: &str, name: &str, schedule: Option<&Schedule>) -> Result<()> {
        let path = format!("{namespace}/{name}");
        match schedule {
            Some(_) => self.kept.lock().insert(path),
            None => self.kept.lock().remove(&path),
        };
        Ok(())
    }

    async fn release_schedule(&self, namespace: &str, name: &str) {
        self.kept.lock().remove(&format!("{namespace}/{name}"));
    }
}

struct Host {
    cluster: Arc<Cluster>,
    link: Arc<StoreLink>,
    workflows: Workflows,
    services: Arc<Services>,
    stop: CancellationToken,
    running: Vec<JoinHandle<()>>,
}

struct World {
    store: Arc<MemoryStore>,
    clock: Arc<TokioClock>,
    called: Called,
    hosts: BTreeMap<&'static str, Host>,
    lives: u64,
}

impl World {
    async fn of(names: &[&'static str]) -> Self {
        let mut world = Self {
            store: Arc::new(MemoryStore::default()),
            clock: Arc::new(TokioClock::starting_at(Timestamp(1_767_225_600_000_000_000))),
            called: Called::default(),
            hosts: BTreeMap::new(),
            lives: 0,
        };
        for name in names {
            world.start(name).await;
        }
        world.until_shared().await;
        world
    }

    async fn start(&mut self, name: &'static str) {
        self.lives += 1;
        let link = Arc::new(StoreLink::new(self.store.clone()));
        let mut config = ClusterConfig::new(link.clone(), name, ([127, 0, 0, 1], 8080).into());
        config.term = TERM;
        config.process = format!("{name}-{}", self.lives);
        let cluster = Cluster::new(config).await.expect("a host");
        let services =
            Arc::new(Services { host: name.to_owned(), called: self.called.clone(), kept: Mutex::default() });
        let mut config = WorkflowConfig::default();
        config.hosts = Some(cluster.clone());
        let workflows = Workflows::with_config(link.clone(), self.clock.clone(), services.clone(), config);
        let stop = CancellationToken::new();
        let (member, token) = (cluster.clone(), stop.clone());
        let joined = tokio::spawn(async move { member.run(token).await });
        let (driver, token) = (workflows.clone(), stop.clone());
        let driven = tokio::spawn(async move { driver.run(token).await.expect("the store is there") });
        self.hosts
            .insert(name, Host { cluster, link, workflows, services, stop, running: vec![joined, driven] });
    }

    /// As `kill -9`: nothing is said to anybody.
    async fn kill(&mut self, name: &str) {
        let host = self.hosts.remove(name).expect("a host");
        host.link.set(LinkFault::Hangs);
        for task in &host.running {
            task.abort();
        }
        host.workflows.halt().await;
    }

    fn owners(&self, namespace: &str) -> Vec<&'static str> {
        let acts = |host: &Host| matches!(host.cluster.place(namespace), Place::Here(_));
        self.hosts.iter().filter(|(_, host)| acts(host)).map(|(name, _)| *name).collect()
    }

    async fn until_shared(&self) {
        for _ in 0..300 {
            if NAMESPACES.iter().all(|namespace| self.owners(namespace).len() == 1)
                && self.hosts.values().all(|host| host.cluster.list().len() == self.hosts.len())
                && self.hosts.keys().all(|name| NAMESPACES.iter().any(|ns| self.owners(ns) == [*name]))
            {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("the hosts do not agree: {:?}", NAMESPACES.map(|namespace| self.owners(namespace)));
    }

    /// Any host that answers, by number.
    fn any(&self, number: u64) -> &Host {
        let answers: Vec<&Host> =
            self.hosts.values().filter(|host| host.link.fault() == LinkFault::None).collect();
        answers[usize::try_from(number).expect("small") % answers.len()]
    }

    /// Nothing is lost, done twice in its records, or other than its records make it.
    async fn check(&self, path: &str, n: u64) {
        let workflows = &self.any(0).workflows;
        let state = workflows.state(path).await.expect("a store").expect("a run");
        let output = json!({"paid": n + 1, "sent": format!("to {path}"), "part": n});
        assert_eq!((state.phase, &state.output), (Phase::Completed, &Some(output)), "{path}: {state:?}");
        let records = workflows.history(path).await.expect("records");
        assert_eq!(records.len() as u64, state.records, "{path}: no gap and no second line");
        let steps: Vec<&String> = records
            .iter()
            .filter_map(|record| match record {
                Record::Done { step, .. } => Some(step),
                _ => None,
            })
            .collect();
        let once: BTreeSet<_> = steps.iter().collect();
        assert_eq!(once.len(), steps.len(), "{path}: each step once: {steps:?}");
        let definition = Definition::parse(&MIX.replace("NS", &state.namespace)).expect("right");
        let mut machine = Machine::new(definition, &BTreeMap::new()).expect("no secrets");
        records.iter().for_each(|record| machine.apply(record));
        assert_eq!(machine.status(), &Status::Completed(state.output.expect("an output")));
    }
}

async fn define(world: &World) {
    for (number, namespace) in NAMESPACES.iter().enumerate() {
        for text in [MIX, PART] {
            let definition = Definition::parse(&text.replace("NS", namespace)).expect("right");
            world.any(number as u64).workflows.define(&definition).await.expect("stored");
        }
    }
}

/// Until a host takes it: hosts stop and are cut off meanwhile.
async fn tried<T>(what: &str, mut ask: impl AsyncFnMut(u64) -> Result<T>) -> T {
    for number in 0..200 {
        match tokio::time::timeout(Duration::from_secs(5), ask(number)).await {
            Ok(Ok(done)) => return done,
            Ok(Err(error)) if error.kind != ErrorKind::Unavailable => panic!("{what}: {error}"),
            _ => sleep(Duration::from_millis(500)).await,
        }
    }
    panic!("{what}: nobody takes it");
}

fn sent(path: &str) -> Json {
    json!({"specversion": "1.0", "id": path, "source": "s", "type": "sent", "data": format!("to {path}")})
}

async fn started(world: &World, path: &str, n: u64) {
    let (namespace, id) = path.split_once('/').expect("a path");
    tried(path, async |number| {
        world.any(number + n).workflows.start(namespace, "mix", "1.0.0", id, json!({"n": n})).await
    })
    .await;
}

/// Tells a run its event when it listens.
async fn told(world: &World, path: &str, n: u64) {
    let (namespace, id) = path.split_once('/').expect("a path");
    for _ in 0..2_000 {
        let workflows = &world.any(n).workflows;
        let shown = tokio::time::timeout(Duration::from_secs(5), workflows.detail(namespace, id)).await;
        if let Ok(Ok(shown)) = shown
            && shown.steps.iter().any(|step| step.waits_for == Some("event"))
        {
            let event = RunAction::Event(sent(path));
            tried(path, async |number| {
                world.any(number + n).workflows.steer(namespace, id, event.clone()).await
            })
            .await;
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("{path} does not listen");
}

async fn all_ended(world: &World, runs: &[(String, u64)]) {
    for _ in 0..600 {
        let states = world.any(0).workflows.list(None, 10_000).await.expect("a store");
        if states.iter().all(|state| state.phase != Phase::Running) {
            assert!(states.len() >= runs.len(), "none is lost");
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    let states = world.any(0).workflows.list(None, 10_000).await.expect("a store");
    let left: Vec<_> = states.iter().filter(|state| state.phase == Phase::Running).collect();
    panic!("{} runs do not end: {left:#?}", left.len());
}

fn runs(each: u64) -> Vec<(String, u64)> {
    NAMESPACES
        .iter()
        .flat_map(|namespace| (0..each).map(move |n| (format!("{namespace}/r-{n}"), n)))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_run_is_driven_by_the_host_of_its_namespace_whoever_is_asked_and_each_step_is_done_once() {
    let world = World::of(&["a", "b"]).await;
    define(&world).await;
    let runs = runs(3);
    for (path, n) in &runs {
        started(&world, path, *n).await;
    }
    for (path, n) in &runs {
        told(&world, path, n + 1).await;
    }
    all_ended(&world, &runs).await;
    for (path, n) in &runs {
        world.check(path, *n).await;
    }
    let called = world.called.lock().clone();
    assert_eq!(called.len(), runs.len() * 4, "each step once, at one host");
    for (host, key) in &called {
        assert_eq!(world.owners(&key.namespace), [host.as_str()], "{key:?}");
    }
    let hosts: BTreeSet<&String> = called.iter().map(|(host, _)| host).collect();
    assert_eq!(hosts.len(), 2, "both drive some");
    let left = world.store.list("workflow/told/", None, 10).await.expect("a store");
    assert_eq!(left, [], "what was told is heard, and put away");
}

#[tokio::test(start_paused = true)]
async fn what_is_done_to_a_run_at_another_host_reaches_the_one_that_drives_it() {
    let world = World::of(&["a", "b"]).await;
    define(&world).await;
    let owner = world.owners("shop")[0];
    let other = &world.hosts[if owner == "a" { "b" } else { "a" }];
    let stock = "do: [{w: {wait: PT1H}}]";
    let head = "document: {dsl: '1.0.3', namespace: shop, name: long, version: '1.0.0'}";
    other
        .workflows
        .define(&Definition::parse(&format!("{head}\n{stock}")).expect("right"))
        .await
        .expect("ok");
    for id in ["l-1", "l-2"] {
        other.workflows.start("shop", "long", "1.0.0", id, json!({})).await.expect("started");
    }
    sleep(Duration::from_secs(1)).await;
    other.workflows.steer("shop", "l-1", RunAction::Suspend).await.expect("suspended");
    other.workflows.steer("shop", "l-1", RunAction::Resume).await.expect("resumed");
    other.workflows.cancel("shop/l-1").await.expect("cancelled");
    assert_eq!(other.workflows.ended("shop/l-1").await.expect("ended").phase, Phase::Cancelled);
    // The timer of the other one is told at the owner.
    let ended = tokio::time::timeout(Duration::from_secs(3_700), other.workflows.ended("shop/l-2")).await;
    assert_eq!(ended.expect("in time").expect("ended").phase, Phase::Completed);
    let again = other.workflows.event("shop/l-2", sent("shop/l-2")).await;
    assert_eq!(again.unwrap_err().kind, ErrorKind::Conflict, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn schedules_are_kept_by_one_host_and_move_with_the_namespace() {
    let mut world = World::of(&["a", "b"]).await;
    for (number, namespace) in NAMESPACES.iter().enumerate() {
        let text = format!(
            "document: {{dsl: '1.0.3', namespace: {namespace}, name: ticks, version: '1.0.0'}}\n\
             schedule: {{every: PT1M}}\ndo: [{{s: {{set: {{ok: true}}}}}}]"
        );
        let document = Definition::parse(&text).expect("right").document().clone();
        let spec = sas::core::WorkflowSpec::new(*namespace, "ticks", "1.0.0", document);
        // Half of them at the host that does not keep them.
        world.any(number as u64).workflows.apply(&spec).await.expect("applied");
    }
    sleep(Duration::from_secs(1)).await;
    let keepers = |world: &World, namespace: &str| -> Vec<&'static str> {
        let path = format!("{namespace}/ticks");
        world
            .hosts
            .iter()
            .filter(|(_, host)| host.services.kept.lock().contains(&path))
            .map(|(n, _)| *n)
            .collect()
    };
    for namespace in NAMESPACES {
        assert_eq!(keepers(&world, namespace), world.owners(namespace), "{namespace}");
    }
    world.kill("a").await;
    sleep(TERM + Duration::from_secs(3)).await;
    assert!(NAMESPACES.iter().all(|namespace| keepers(&world, namespace) == ["b"]), "b keeps all");
    world.start("a").await;
    sleep(TERM + Duration::from_secs(3)).await;
    world.until_shared().await;
    sleep(Duration::from_secs(1)).await;
    for namespace in NAMESPACES {
        assert_eq!(keepers(&world, namespace), world.owners(namespace), "{namespace}");
    }
    let owner = world.owners("shop")[0];
    let other = if owner == "a" { "b" } else { "a" };
    sas::core::WorkflowHost::remove(&world.hosts[other].workflows, "shop", "ticks", "1.0.0")
        .await
        .expect("gone");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(keepers(&world, "shop"), [] as [&str; 0]);
}

/// SplitMix64.
struct Dice(AtomicU64);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        let mut z = self.0.fetch_add(0x9E37_79B9_7F4A_7C15, SeqCst).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// With `SAS_LONG=1`, two hundred seeds.
#[tokio::test(start_paused = true)]
async fn kills_pauses_and_cuts_lose_no_run_and_fork_none() {
    let seeds = if std::env::var_os("SAS_LONG").is_some() { 200 } else { 3 };
    let (mut faults, mut repeated, mut total) = (0, 0, 0);
    for seed in 0..seeds {
        let dice = Dice(AtomicU64::new(seed));
        let mut world = World::of(&["a", "b", "c"]).await;
        define(&world).await;
        let runs = runs(4);
        for (path, n) in &runs {
            started(&world, path, *n).await;
        }
        for _ in 0..5 {
            sleep(Duration::from_millis(dice.roll(4_000))).await;
            let name = ["a", "b", "c"][usize::try_from(dice.roll(3)).expect("small")];
            faults += 1;
            match dice.roll(3) {
                0 => {
                    world.kill(name).await;
                    sleep(Duration::from_millis(dice.roll(15_000))).await;
                    world.start(name).await;
                }
                fault => {
                    let fault = if fault == 1 { LinkFault::Hangs } else { LinkFault::Fails };
                    world.hosts[name].link.set(fault);
                    sleep(Duration::from_millis(dice.roll(25_000))).await;
                    world.hosts[name].link.set(LinkFault::None);
                }
            }
        }
        for (path, n) in &runs {
            told(&world, path, *n).await;
        }
        all_ended(&world, &runs).await;
        for (path, n) in &runs {
            world.check(path, *n).await;
        }
        let called = world.called.lock().clone();
        let keys: BTreeSet<String> = called.iter().map(|(_, key)| key.idempotency().to_string()).collect();
        assert_eq!(keys.len(), runs.len() * 4, "seed {seed}: the same steps under the same keys");
        total += keys.len();
        repeated += called.len() - keys.len();
        for (_, host) in world.hosts {
            host.stop.cancel();
            host.workflows.halt().await;
        }
    }
    println!(
        "{faults} faults in {seeds} seeds: {repeated} of {total} steps were done again, under their keys"
    );
}
