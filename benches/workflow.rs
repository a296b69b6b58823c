//! What workflows cost: a step, a waiting run, and how late timers are; in memory, and on redb with a flush for each record.
//!
//! `cargo bench --no-default-features --features workflow,redb --bench workflow [-- [RUNS] [memory|redb]]`
//!
//! Steps are answered at once, so that what is left is the driver's and the store's. `RUNS` is how many wait, 100,000 by default.

#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::{
    collections::BTreeMap, fs::File, os::unix::fs::FileExt as _, path::Path, sync::Arc, time::Duration,
};

use async_trait::async_trait;
use sas::{
    core::{Commit, MemoryStore, Store, SystemClock},
    workflow::{Actions, Definition, Outcome, Phase, Request, StepKey, WorkflowConfig, Workflows},
};
use sas_store_redb::RedbStore;
use serde_json::{Value as Json, json};
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

/// Steps of one run.
const STEPS: u64 = 500;
/// Runs that make steps side by side.
const SIDE: u64 = 64;
/// Runs whose timers are measured, and the longest that they wait.
const TIMERS: u64 = 5_000;
const WITHIN: u64 = 20_000;

/// Answers at once.
#[derive(Debug)]
struct Nothing;

#[async_trait]
impl Actions for Nothing {
    async fn call(&self, _: &StepKey, _: &Request) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn invoke(&self, _: &StepKey, _: &str, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn emit(&self, _: &StepKey, _: &Json) -> Outcome {
        Outcome::Output(Json::Null)
    }

    async fn secrets(&self, _: &str, _: &[String]) -> sas::core::Result<BTreeMap<String, Json>> {
        Ok(BTreeMap::new())
    }
}

async fn define(workflows: &Workflows, name: &str, tasks: &str) {
    let head = format!("document: {{dsl: '1.0.3', namespace: bench, name: {name}, version: '1.0.0'}}");
    let definition = Definition::parse(&format!("{head}\ndo: {tasks}")).expect("a definition");
    workflows.define(&definition).await.expect("stored");
}

async fn run(workflows: &Workflows, name: &str, id: &str, input: Json) -> Phase {
    workflows.start("bench", name, "1.0.0", id, input).await.expect("started");
    workflows.ended(&format!("bench/{id}")).await.expect("ended").phase
}

/// Bytes of this process that are in memory.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

fn at(sorted: &[u64], percent: usize) -> u64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// What a step writes, its record and the run's state, without a workflow: one commit after the other, and so many side by side.
async fn measure_commits(what: &str, store: &Arc<dyn Store>, side: u64) -> Duration {
    let (began, each) = (Instant::now(), STEPS);
    let mut all = JoinSet::new();
    for n in 0..side {
        let store = Arc::clone(store);
        all.spawn(async move {
            let (record, state) = (vec![b'r'; 100], vec![b's'; 400]);
            let mut version = None;
            for step in 0..each {
                let key = format!("bare/state/{side}-{n}");
                let commit = Commit::new().guard(&key, version).put(&key, state.clone());
                let commit = commit.put(format!("bare/record/{side}-{n}/{step:020}"), record.clone());
                version = Some(store.commit(commit).await.expect("the store is there"));
            }
        });
    }
    all.join_all().await;
    let took = began.elapsed();
    println!(
        "{what}: {side} x {each} commits without workflows: {:?} each",
        took / u32::try_from(each).expect("small")
    );
    took
}

/// How late timers are: of runs that merely wait, or while others are started as fast as it goes.
async fn measure_timers(what: &str, workflows: &Workflows, busy: bool) {
    let (kind, beside) = if busy { ("busy", ", while others start") } else { ("timer", "") };
    let (began, mut all) = (Instant::now(), JoinSet::new());
    for n in 0..TIMERS {
        let workflows = workflows.clone();
        // Spread evenly, in no order.
        let wait = 1_000 + n * 7_919 % WITHIN;
        all.spawn(async move {
            let id = format!("{kind}-{n}");
            workflows.start("bench", "waits", "1.0.0", &id, json!({ "ms": wait })).await.expect("started");
        });
        if all.len() >= 64 {
            all.join_next().await;
        }
    }
    all.join_all().await;
    let rate = TIMERS as f64 / began.elapsed().as_secs_f64();
    println!("{what}: {TIMERS} runs started, {rate:.0} a second");
    let until = Instant::now() + Duration::from_millis(WITHIN + 1_000);
    let mut starters = JoinSet::new();
    let sides = if busy { SIDE } else { 0 };
    for side in 0..sides {
        let workflows = workflows.clone();
        starters.spawn(async move {
            let mut started = 0;
            while Instant::now() < until {
                let id = format!("beside-{side}-{started}");
                workflows.start("bench", "waits", "1.0.0", &id, json!({ "ms": 1 })).await.expect("started");
                started += 1;
            }
            started
        });
    }
    let beside_them: u64 = starters.join_all().await.iter().sum();
    tokio::time::sleep_until(until + Duration::from_secs(2)).await;
    let mut late = Vec::new();
    for n in 0..TIMERS {
        let state = workflows.state(&format!("bench/{kind}-{n}")).await.expect("a store").expect("a run");
        assert_eq!(state.phase, Phase::Completed, "its time has come");
        let due = state.started + 1_000 + n * 7_919 % WITHIN;
        late.push(state.updated.checked_sub(due).expect("no timer is early"));
    }
    late.sort_unstable();
    println!(
        "{what}: {TIMERS} timers within {} s{beside} ({beside_them}) are late by p50 {} ms, p99 {} ms, at most {} ms",
        WITHIN / 1_000,
        at(&late, 50),
        at(&late, 99),
        at(&late, 100)
    );
}

/// What the disk takes to keep 4 KiB, without a store.
fn measure_flushes(file: &Path) {
    let file = File::create(file).expect("a file");
    file.set_len(4 << 20).and_then(|()| file.sync_all()).expect("room");
    let mut took: Vec<u64> = (0..200_u64)
        .map(|n| {
            let began = Instant::now();
            file.write_all_at(&[1; 4096], n * 7_919 % 1_000 * 4096)
                .and_then(|()| file.sync_data())
                .expect("kept");
            u64::try_from(began.elapsed().as_micros()).expect("less than an age")
        })
        .collect();
    took.sort_unstable();
    println!(
        "the disk: a flush of 4 KiB: {} us (median), {} us (slowest tenth)",
        at(&took, 50),
        at(&took, 90)
    );
}

async fn measure(what: &str, store: Arc<dyn Store>, waiting: u64) {
    measure_commits(what, &store, 1).await;
    measure_commits(what, &store, SIDE).await;
    let mut config = WorkflowConfig::default();
    config.runs_per_namespace = usize::MAX;
    let workflows = Workflows::with_config(store, Arc::new(SystemClock), Arc::new(Nothing), config);
    let stop = CancellationToken::new();
    let (running, token) = (workflows.clone(), stop.clone());
    let running = tokio::spawn(async move { running.run(token).await });
    let each = "[{all: {for: {each: n, in: .items}, do: [{c: {call: nothing, with: {n: '${ $n }'}}}]}}]";
    define(&workflows, "steps", each).await;
    define(&workflows, "waits", "[{w: {wait: '${ {milliseconds: .ms} }'}}]").await;
    define(&workflows, "long", "[{w: {wait: PT12H}}, {c: {call: nothing}}]").await;
    let items = json!({ "items": (0..STEPS).collect::<Vec<_>>() });

    for round in 0..3 {
        let began = Instant::now();
        assert_eq!(run(&workflows, "steps", &format!("one-{round}"), items.clone()).await, Phase::Completed);
        let step = began.elapsed() / u32::try_from(STEPS).expect("small");
        println!("{what}: one run of {STEPS} steps: {step:?} a step");
    }
    let began = Instant::now();
    let mut all = JoinSet::new();
    for n in 0..SIDE {
        let (workflows, items) = (workflows.clone(), items.clone());
        all.spawn(async move { run(&workflows, "steps", &format!("side-{n}"), items).await });
    }
    while let Some(phase) = all.join_next().await {
        assert_eq!(phase.expect("it ends"), Phase::Completed);
    }
    let rate = (SIDE * STEPS) as f64 / began.elapsed().as_secs_f64();
    println!("{what}: {SIDE} runs side by side: {rate:.0} steps a second");

    measure_timers(what, &workflows, false).await;
    measure_timers(what, &workflows, true).await;

    let (before, began) = (resident(), Instant::now());
    let mut all = JoinSet::new();
    for n in 0..waiting {
        let workflows = workflows.clone();
        all.spawn(
            async move { workflows.start("bench", "long", "1.0.0", &format!("long-{n}"), json!({})).await },
        );
        if all.len() >= 256 {
            all.join_next().await.expect("one").expect("it ends").expect("started");
        }
    }
    all.join_all().await;
    while workflows.driven() > 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let bytes = resident().saturating_sub(before) / waiting.max(1);
    println!("{what}: {waiting} runs wait, started in {:?}: {bytes} bytes of memory each", began.elapsed());
    stop.cancel();
    running.await.expect("it ends").expect("the store is there");
}

#[tokio::main]
async fn main() {
    let given: Vec<String> = std::env::args().skip(1).collect();
    let waiting = given.iter().filter_map(|given| given.parse().ok()).next().unwrap_or(100_000);
    let only = given.iter().find(|given| ["memory", "redb"].contains(&given.as_str()));
    if only.is_none_or(|only| only == "memory") {
        measure("in memory", Arc::new(MemoryStore::default()), waiting).await;
    }
    if only.is_none_or(|only| only == "redb") {
        let dir = tempfile::tempdir_in(".").expect("a directory on the disk");
        measure_flushes(&dir.path().join("flushes"));
        let store = RedbStore::open(dir.path().join("state.redb")).await.expect("a store");
        measure("on redb", Arc::new(store), waiting).await;
    }
}
