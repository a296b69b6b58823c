//! `kill -9` of a real `platform`, again and again on one state directory, while runs of a workflow wait, are tried again, listen and
//! fork: no run that was acknowledged is lost, none forks, and each journal grows, replays bit for bit, and tells what its run is.
//!
//! `SAS_LONG=1 cargo test --test programs workflow_kills -- --nocapture` kills it 200 times with 1,000 runs in flight; `SAS_KILLS` and
//! `SAS_RUNS` say other numbers, `SAS_SEED` other moments.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use crate::shared::{PlatformProcess, call_admin};
use async_trait::async_trait;
use axum::{Json as Sent, Router, extract::State, http::HeaderMap, http::StatusCode, routing::post};
use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::SliceRandom as _};
use sas::{
    core::SystemClock,
    workflow::{
        Actions, Command, Definition, Machine, Outcome, Phase, Record, Request, RunState, Status, StepKey,
        Workflows,
    },
};
use sas_store_redb::RedbStore;
use serde_json::{Value as Json, json};
use tokio::{net::TcpListener, task::JoinSet, time::Instant};

/// Clients that start runs and tell them of events.
const CLIENTS: usize = 8;
/// How many runs that have not ended are replayed at each kill; those that have are, all of them.
const REPLAYED: usize = 50;
/// How long all may take to end after the last kill.
const PATIENCE: Duration = Duration::from_secs(900);
/// `asks` answers 503 to the first two requests of a run. What it and `tells` answer has a number that no other answer has: who did a
/// step's successor twice after two answers to the step would send two bodies under one key.
const MIX: &str = "
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: mix}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - rests: {wait: '${ {milliseconds: .rests} }'}
    - parts:
        fork:
          branches:
            - waits: {wait: '${ {milliseconds: .waits} }'}
            - hears: {listen: {to: {one: {with: {type: go}}}}}
            - tries:
                try: [{asks: {call: http, with: {method: post, endpoint: 'http://SERVICES/asks', body: {run: '${ .run }'}}}}]
                catch: {retry: {delay: {milliseconds: 200}, limit: {attempt: {count: 5}}}}
    - tells:
        call: http
        with: {method: post, endpoint: 'http://SERVICES/tells', body: {asked: '${ .[2] }', heard: '${ .[1][0] }'}}
";

fn number(variable: &str) -> Option<usize> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// The services that runs call, in the test's own process: no kill takes what they know.
#[derive(Default)]
struct Services {
    asked: Mutex<Asked>,
}

#[derive(Default)]
struct Asked {
    answers: u64,
    /// How often each run asked for its number.
    attempts: BTreeMap<String, u32>,
    keys: BTreeMap<String, Call>,
    /// The keys of each run.
    of: BTreeMap<String, BTreeSet<String>>,
    again: usize,
    wrong: Vec<String>,
}

/// What was sent under a key, where to, and what was answered.
struct Call {
    path: &'static str,
    sent: Json,
    answers: Vec<Json>,
}

impl Services {
    async fn start() -> (Arc<Self>, SocketAddr) {
        let services = Arc::new(Self::default());
        let routes = Router::new().route("/asks", post(asks)).route("/tells", post(tells));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let routes = routes.with_state(Arc::clone(&services));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        (services, address)
    }

    fn answered(
        &self,
        headers: &HeaderMap,
        (path, run): (&'static str, &Json),
        sent: &Json,
        answer: impl FnOnce(u64) -> Json,
    ) -> Json {
        let key = headers["idempotency-key"].to_str().expect("text").to_owned();
        let mut asked = self.asked.lock();
        let asked = &mut *asked;
        asked.answers += 1;
        let answer = answer(asked.answers);
        asked.of.entry(run.as_str().expect("a run").to_owned()).or_default().insert(key.clone());
        let call = asked.keys.entry(key.clone());
        let call = call.or_insert_with(|| Call { path, sent: sent.clone(), answers: Vec::new() });
        asked.again += usize::from(!call.answers.is_empty());
        if (call.path, &call.sent) != (path, sent) {
            asked.wrong.push(format!("{key}: {} {}, and then {path} {sent}", call.path, call.sent));
        }
        call.answers.push(answer.clone());
        answer
    }
}

async fn asks(
    State(services): State<Arc<Services>>,
    headers: HeaderMap,
    Sent(sent): Sent<Json>,
) -> (StatusCode, Sent<Json>) {
    let attempts = {
        let mut asked = services.asked.lock();
        let attempts = asked.attempts.entry(sent["run"].as_str().expect("a run").to_owned()).or_default();
        *attempts += 1;
        *attempts
    };
    let answer = services.answered(
        &headers,
        ("asks", &sent["run"]),
        &sent,
        |n| json!({"run": sent["run"], "number": n}),
    );
    let status = if attempts <= 2 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (status, Sent(answer))
}

async fn tells(
    State(services): State<Arc<Services>>,
    headers: HeaderMap,
    Sent(sent): Sent<Json>,
) -> Sent<Json> {
    let told = |n| json!({"asked": sent["asked"], "heard": sent["heard"], "number": n});
    Sent(services.answered(&headers, ("tells", &sent["asked"]["run"]), &sent, told))
}

/// What reads runs does nothing for them.
#[derive(Debug)]
struct Reads;

#[async_trait]
impl Actions for Reads {
    async fn call(&self, step: &StepKey, _: &Request) -> Outcome {
        panic!("{step:?} is not to be done by a reader")
    }

    async fn invoke(&self, step: &StepKey, _: &str, _: &Json) -> Outcome {
        panic!("{step:?} is not to be done by a reader")
    }

    async fn emit(&self, step: &StepKey, _: &Json) -> Outcome {
        panic!("{step:?} is not to be done by a reader")
    }

    async fn secrets(&self, _: &str, _: &[String]) -> sas::core::Result<BTreeMap<String, Json>> {
        Ok(BTreeMap::new())
    }
}

/// What clients ask of the platform.
#[derive(Clone)]
enum Word {
    Start { run: String, input: Json },
    Event { run: String, id: u64 },
}

/// What is known of the runs, by what was acknowledged and by what the store had at each kill.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<String>,
    /// The events that each run has for good.
    told: BTreeMap<String, Vec<u64>>,
    events: u64,
    /// The records of runs that have not ended, as they were.
    records: BTreeMap<String, Vec<Record>>,
    /// How a replay of so many records stood.
    points: BTreeMap<String, (usize, String)>,
    ended: BTreeMap<String, RunState>,
    /// What the runs that were replayed at a kill waited for.
    waited: BTreeMap<&'static str, usize>,
    appended: u64,
}

fn replayed(definition: &Definition, records: &[Record]) -> Machine {
    let mut machine = Machine::new(definition.clone(), &BTreeMap::new()).expect("it has no secrets");
    records.iter().for_each(|record| machine.apply(record));
    machine
}

impl Known {
    /// Asks until all words are said or the platform is gone.
    async fn say(known: &Arc<Mutex<Self>>, admin: SocketAddr, words: Vec<Word>) {
        let words: Arc<Mutex<VecDeque<Word>>> = Arc::new(Mutex::new(words.into()));
        let client = |known: Arc<Mutex<Self>>, words: Arc<Mutex<VecDeque<Word>>>| async move {
            loop {
                let Some(word) = words.lock().pop_front() else { return };
                let (path, body) = match &word {
                    Word::Start { run, input } => {
                        ("/v1/workflows/default/mix/runs".to_owned(), json!({"id": run, "input": input}))
                    }
                    Word::Event { run, id } => {
                        let event = json!({"specversion": "1.0", "id": id.to_string(), "source": "trial", "type": "go", "data": id});
                        (format!("/v1/runs/default/{run}/events"), event)
                    }
                };
                let Ok(answer) = call_admin(admin, "POST", &path, &body.to_string()).await else { return };
                match (word, answer.status) {
                    (Word::Start { run, .. }, 200 | 202) => drop(known.lock().acknowledged.insert(run)),
                    (Word::Event { run, id }, 200) => {
                        known.lock().told.entry(run).or_default().push(id);
                    }
                    // It has ended meanwhile.
                    (Word::Event { .. }, 409) => {}
                    _ => panic!("{path} {body}: {answer:?}"),
                }
            }
        };
        let clients: JoinSet<()> =
            (0..CLIENTS).map(|_| client(Arc::clone(known), Arc::clone(&words))).collect();
        clients.join_all().await;
    }

    /// An event for each of these runs, in no order.
    fn events(&mut self, runs: &[String], dice: &mut SmallRng) -> Vec<Word> {
        let mut runs = runs.to_vec();
        runs.shuffle(dice);
        let event = |run: String| {
            self.events += 1;
            Word::Event { run, id: self.events }
        };
        runs.into_iter().map(event).collect()
    }

    /// Reads the state of a platform that is not there any more; gives the runs that have not ended.
    async fn look(&mut self, state: &Path, services: &Services, dice: &mut SmallRng) -> Vec<String> {
        let store = Arc::new(RedbStore::open(state.join("state.redb")).await.expect("it opens"));
        let workflows = Workflows::new(store.clone(), Arc::new(SystemClock), Arc::new(Reads));
        let definition =
            workflows.definition("default", "mix", "1.0.0").await.expect("a store").expect("there");
        let mut states: BTreeMap<String, RunState> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = workflows.list(after.as_deref(), 500).await.expect("a page");
            let Some(last) = page.last() else { break };
            after = Some(last.path());
            states.extend(page.into_iter().map(|state| (state.id.clone(), state)));
        }
        let lost: Vec<&String> = self.acknowledged.iter().filter(|run| !states.contains_key(*run)).collect();
        assert!(lost.is_empty(), "runs that were acknowledged and are lost: {lost:?}");
        let (mut unended, mut readings) = (Vec::new(), Vec::new());
        for (run, state) in states {
            if let Some(before) = self.ended.get(&run) {
                assert_eq!(&state, before, "a run that has ended stays as it is");
                continue;
            }
            let records = workflows.history(&state.path()).await.expect("records");
            self.grown(&state, &records);
            if state.phase == Phase::Running {
                unended.push(run);
                readings.push((state, records));
            } else {
                self.over(&definition, services, &state, &records);
                self.records.remove(&run);
                self.ended.insert(run, state);
            }
        }
        readings.shuffle(dice);
        for (state, records) in readings.iter().take(REPLAYED) {
            self.stands(&definition, state, records);
        }
        self.records.extend(readings.into_iter().map(|(state, records)| (state.id, records)));
        drop(workflows);
        store.close().await;
        let wrong = std::mem::take(&mut services.asked.lock().wrong);
        assert!(wrong.is_empty(), "one key for two things: {wrong:#?}");
        unended
    }

    /// The journal is what it was, and what came after it; what was acknowledged is in it, and nothing is in it twice.
    fn grown(&mut self, state: &RunState, records: &[Record]) {
        let run = &state.id;
        assert_eq!(records.len() as u64, state.records, "{run}: no gap, and no record that does not count");
        let before = self.records.get(run).map(Vec::as_slice).unwrap_or_default();
        assert!(records.starts_with(before), "{run}: it was {before:#?}, and is {records:#?}");
        self.appended += (records.len() - before.len()) as u64;
        let (mut steps, mut events) = (BTreeSet::new(), BTreeSet::new());
        for record in records {
            match record {
                Record::Done { step, .. } => {
                    assert!(steps.insert(step), "{run}: {step} is done twice: {records:#?}")
                }
                Record::Event { event, .. } => {
                    let id = event["data"].as_u64().expect("its number");
                    assert!(events.insert(id), "{run}: {event} is there twice: {records:#?}");
                }
                _ => {}
            }
        }
        let told = self.told.get(run).map(Vec::as_slice).unwrap_or_default();
        let lost: Vec<&u64> = told.iter().filter(|id| !events.contains(id)).collect();
        assert!(lost.is_empty(), "{run}: the events {lost:?} were acknowledged and are lost: {records:#?}");
    }

    /// A replay of a run that goes on stands where its state says, and where an earlier replay stood at its record.
    fn stands(&mut self, definition: &Definition, state: &RunState, records: &[Record]) {
        let run = &state.id;
        self.stood(definition, run, records);
        let machine = replayed(definition, records);
        let timers = machine.commands().iter().filter_map(|command| match command {
            Command::Arm { at, .. } => Some(*at),
            _ => None,
        });
        // The state that is written with the first record knows of nothing that it asks for: the next one does.
        if records.len() > 1 {
            assert_eq!(timers.min(), state.wakes, "{run}: {state:?} {records:#?}");
        }
        for command in machine.commands() {
            let tried_again = matches!(command, Command::Arm { step, .. } if step.contains("tries"));
            *self.waited.entry(if tried_again { "retry" } else { command.kind() }).or_default() += 1;
        }
        if let Ok(point) = machine.checkpoint() {
            self.points.insert(run.clone(), (records.len(), point));
        }
    }

    fn stood(&mut self, definition: &Definition, run: &str, records: &[Record]) {
        if let Some((at, point)) = self.points.remove(run) {
            let again = replayed(definition, &records[..at]).checkpoint();
            assert_eq!(again.as_ref(), Ok(&point), "{run}: {at} records make the same machine, bit for bit");
        }
    }

    /// A run that has ended is what its records make it, and gave what it was given.
    fn over(&mut self, definition: &Definition, services: &Services, state: &RunState, records: &[Record]) {
        let run = &state.id;
        self.stood(definition, run, records);
        assert_eq!(state.phase, Phase::Completed, "{run}: {state:?} {records:#?}");
        let output = state.output.clone().expect("an output");
        assert_eq!(replayed(definition, records).status(), &Status::Completed(output.clone()), "{run}");
        let asked = services.asked.lock();
        let calls: Vec<&Call> = asked.of[run].iter().map(|key| &asked.keys[key]).collect();
        let (tells, asks): (Vec<&Call>, Vec<&Call>) = calls.iter().partition(|call| call.path == "tells");
        let [Call { sent, answers, .. }] = tells[..] else { panic!("{run} tells under one key") };
        assert!(answers.contains(&output), "{run}: {output} is none of {answers:?}");
        let given = asks.iter().any(|call| call.answers.contains(&sent["asked"]));
        assert!(given, "{run}: {} was not given to it", sent["asked"]);
        let heard = sent["heard"].as_u64().expect("a number");
        assert!(heard <= self.events, "{run}: {heard} was told to nobody");
    }
}

fn start(state: &Path, services: SocketAddr) -> PlatformProcess {
    let host = services.to_string();
    PlatformProcess::start(&[
        "--state",
        state.to_str().expect("UTF-8"),
        "--workflow-host",
        &host,
        "--log",
        "error",
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_survive_kills_with_their_journals_whole_and_no_step_is_told_two_things() {
    let long = std::env::var_os("SAS_LONG").is_some();
    let kills = number("SAS_KILLS").unwrap_or(if long { 200 } else { 4 });
    let runs = number("SAS_RUNS").unwrap_or(if long { 1_000 } else { 40 });
    let longest = if long { 20_000 } else { 1_500 };
    let mut dice = SmallRng::seed_from_u64(number("SAS_SEED").unwrap_or(1) as u64);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let state = dir.path().join("state");
    let (services, address) = Services::start().await;
    let mut platform = start(&state, address);
    let manifest = MIX.replace("SERVICES", &address.to_string());
    let answer = call_admin(platform.admin, "POST", "/v1/services", &manifest).await.expect("it answers");
    assert!((200..300).contains(&answer.status), "{answer:?}");

    let known = Arc::new(Mutex::new(Known::default()));
    let mut next = 0;
    let mut starts = |count: usize, dice: &mut SmallRng| -> Vec<Word> {
        let start = |_| {
            next += 1;
            let run = format!("run-{next:06}");
            let (rests, waits) = (dice.random_range(0..longest), dice.random_range(0..longest));
            Word::Start { input: json!({"run": run, "rests": rests, "waits": waits}), run }
        };
        (0..count).map(start).collect()
    };
    let mut words = starts(runs, &mut dice);
    Known::say(&known, platform.admin, words.clone()).await;
    let (mut back, mut in_flight) = (Vec::new(), Vec::new());
    for _ in 0..kills {
        let life = Duration::from_millis(dice.random_range(100..2_000));
        let admin = platform.admin;
        let killed = async {
            tokio::time::sleep(life).await;
            platform.kill();
        };
        tokio::join!(Known::say(&known, admin, words.clone()), killed);
        let mut now = std::mem::take(&mut *known.lock());
        let unended = now.look(&state, &services, &mut dice).await;
        in_flight.push(unended.len());
        // As many begin as have ended. Who was not answered asks again, under the same id.
        let asked = words
            .into_iter()
            .filter(|word| matches!(word, Word::Start { run, .. } if !now.acknowledged.contains(run)));
        words = asked.collect();
        words.extend(starts(runs.saturating_sub(unended.len() + words.len()), &mut dice));
        words.extend(now.events(&unended, &mut dice));
        *known.lock() = now;
        let began = Instant::now();
        platform = start(&state, address);
        back.push(began.elapsed());
    }

    let late = Instant::now() + PATIENCE;
    loop {
        Known::say(&known, platform.admin, words).await;
        let path = "/v1/runs/default?status=running&limit=1000";
        let page = call_admin(platform.admin, "GET", path, "").await.expect("it answers").json();
        let left = page["runs"].as_array().expect("a list").iter();
        let left: Vec<String> = left.map(|run| run["id"].as_str().expect("an id").to_owned()).collect();
        if left.is_empty() && page["next"].is_null() {
            break;
        }
        assert!(Instant::now() < late, "{} runs have not ended", left.len());
        tokio::time::sleep(Duration::from_millis(500)).await;
        words = known.lock().events(&left, &mut dice);
    }
    assert!(platform.terminate().success());
    let mut now = std::mem::take(&mut *known.lock());
    let left = now.look(&state, &services, &mut dice).await;
    assert!(left.is_empty(), "{left:?}");
    assert!(
        now.ended.keys().eq(&now.acknowledged),
        "each run that was acknowledged, and no other, has ended"
    );
    back.sort_unstable();
    in_flight.sort_unstable();
    let asked = services.asked.lock();
    println!(
        "{kills} kills with {} runs in flight (median; {} to {}): {} runs, {} records and {} events that were acknowledged, none lost, \
         none forked, all replayed; {} calls, {} of them again under their keys; of {REPLAYED} at each kill waited for {:?}; \
         answers again after {:?} (median), {:?} at most",
        in_flight[in_flight.len() / 2],
        in_flight[0],
        in_flight[in_flight.len() - 1],
        now.ended.len(),
        now.appended,
        now.told.values().map(Vec::len).sum::<usize>(),
        asked.answers,
        asked.again,
        now.waited,
        back[back.len() / 2],
        back[back.len() - 1],
    );
}
