//! Every case of the vectors against the code: a table of files, rows and mismatches, which must all be 0.
//!
//! `SAS_VECTORS_DIR` names a directory with a `kpa` folder of further cases of the same shapes.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::knative::{
    Breaker, Collector, MultiScaler, Picker, RequestStats, Stat, activator_subset, assign_slice, capacity,
    num_activators,
};
use crate::{
    kpa::{
        Activity, ActivityReason, Averages, Decider, DeciderSpec, Lifecycle, LifecycleSpec, Mode, Observed,
        Ready, ScaleCall, scale,
    },
    window::MaxWindow,
    window::SECOND as SECOND_NS,
    window::Window,
};
use sas_core::{Aggregation, ScalingSpec};
use sas_knative::{AutoscalerConfig, Reachability, Resolved, resolve, validate_annotations};
use serde_json::Value;

const MS: i64 = 1_000_000;

/// Counts rows and shows the first mismatches of a file.
struct Tally {
    file: &'static str,
    rows: usize,
    mismatches: Vec<String>,
}

impl Tally {
    fn check(&mut self, same: bool, what: impl FnOnce() -> String) {
        self.rows += 1;
        if !same {
            self.mismatches.push(what());
        }
    }

    #[allow(clippy::print_stdout, reason = "the line per file is what a reader of the report looks for")]
    fn finish(self) {
        println!("{}: {} rows, {} mismatches", self.file, self.rows, self.mismatches.len());
        assert!(self.rows > 0, "{} holds no row", self.file);
        let shown: Vec<_> = self.mismatches.iter().take(5).collect();
        assert!(self.mismatches.is_empty(), "{}: first mismatches: {shown:#?}", self.file);
    }
}

fn lines(file: &'static str) -> (Tally, Vec<Value>) {
    let path = match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => PathBuf::from(dir).join("kpa").join(file),
        None => PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(file),
    };
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{file}: {error}")))
        .collect();
    (Tally { file, rows: 0, mismatches: Vec::new() }, lines)
}

/// Access that fails loudly on a row of unknown shape.
trait Json {
    fn at(&self, key: &str) -> &Value;
    fn nth(&self, index: usize) -> &Value;
    fn int(&self) -> i64;
    fn i32(&self) -> i32;
    fn num(&self) -> f64;
    fn text(&self) -> &str;
    fn list(&self) -> &Vec<Value>;
    fn yes(&self) -> bool;
    fn map(&self) -> BTreeMap<String, String>;
}

impl Json for Value {
    fn at(&self, key: &str) -> &Value {
        self.get(key).unwrap_or_else(|| panic!("no {key} in {self}"))
    }
    fn nth(&self, index: usize) -> &Value {
        self.get(index).unwrap_or_else(|| panic!("no [{index}] in {self}"))
    }
    fn int(&self) -> i64 {
        self.as_i64().unwrap_or_else(|| panic!("not a whole number: {self}"))
    }
    fn i32(&self) -> i32 {
        i32::try_from(self.int()).unwrap_or_else(|_| panic!("not 32 bits: {self}"))
    }
    fn num(&self) -> f64 {
        self.as_f64().unwrap_or_else(|| panic!("not a number: {self}"))
    }
    fn text(&self) -> &str {
        self.as_str().unwrap_or_else(|| panic!("not a text: {self}"))
    }
    fn list(&self) -> &Vec<Value> {
        self.as_array().unwrap_or_else(|| panic!("not a list: {self}"))
    }
    fn yes(&self) -> bool {
        match self {
            Value::Bool(flag) => *flag,
            other => match other.int() {
                0 => false,
                1 => true,
                _ => panic!("not a flag: {other}"),
            },
        }
    }
    fn map(&self) -> BTreeMap<String, String> {
        self.as_object()
            .unwrap_or_else(|| panic!("not an object: {self}"))
            .iter()
            .map(|(key, value)| (key.clone(), value.text().to_owned()))
            .collect()
    }
}

fn level(scenario: &Value, names: &[&str]) {
    assert!(names.contains(&scenario.at("level").text()), "unknown level in {scenario}");
}

fn columns(scenario: &Value, names: &[&str]) {
    let found: Vec<_> = scenario.at("columns").list().iter().map(Json::text).collect();
    assert_eq!(found, names, "unknown columns");
}

fn reachability(text: &str) -> Reachability {
    match text {
        "" => Reachability::Unknown,
        "Reachable" => Reachability::Reachable,
        "Unreachable" => Reachability::Unreachable,
        other => panic!("unknown reachability {other:?}"),
    }
}

fn decider_of(resolved: &Resolved) -> DeciderSpec {
    let mut spec = DeciderSpec::for_target(resolved.target_value, resolved.total_value);
    spec.max_scale_up_rate = resolved.max_scale_up_rate;
    spec.max_scale_down_rate = resolved.max_scale_down_rate;
    spec.target_burst_capacity = resolved.target_burst_capacity;
    spec.activator_capacity = resolved.activator_capacity;
    spec.panic_threshold = resolved.panic_threshold;
    spec.stable_window_ns = resolved.stable_window_ns;
    spec.scale_down_delay_ns = resolved.scale_down_delay_ns;
    spec.initial_scale = resolved.initial_scale;
    spec.activation_scale = resolved.activation_scale;
    spec.reachable = resolved.reachable;
    spec
}

fn lifecycle_of(resolved: &Resolved, config: &AutoscalerConfig) -> LifecycleSpec {
    let mut spec = LifecycleSpec::from_scaling(&ScalingSpec::default());
    spec.min = resolved.min_scale;
    spec.max = resolved.max_scale;
    spec.initial = resolved.initial_scale;
    spec.reachable = resolved.reachable;
    spec.scale_to_zero = config.enable_scale_to_zero;
    spec.stable_window = resolved.stable_window_ns;
    spec.activation_timeout = resolved.activation_timeout_ns();
    spec.grace = i64::try_from(config.scale_to_zero_grace_period.as_nanos()).unwrap();
    spec.retention = resolved.retention_ns;
    spec.always_proxied = resolved.target_burst_capacity == -1.0;
    spec
}

fn decider_spec(spec: &Value) -> DeciderSpec {
    // Through the resolver, since the struct grows: then every field is set from the vector.
    let mut built = DeciderSpec::for_target(70.0, 100.0);
    let mut known = 1; // scaling_metric
    let object = spec.as_object().expect("a spec");
    let mut take = |key: &str| {
        known += 1;
        object.get(key).unwrap_or_else(|| panic!("no {key} in {spec}"))
    };
    built.activation_scale = take("activation_scale").i32();
    built.activator_capacity = take("activator_capacity").num();
    built.initial_scale = take("initial_scale").i32();
    built.max_scale_down_rate = take("max_scale_down_rate").num();
    built.max_scale_up_rate = take("max_scale_up_rate").num();
    built.panic_threshold = take("panic_threshold").num();
    built.reachable = take("reachable").yes();
    built.scale_down_delay_ns = take("scale_down_delay_ms").int() * MS;
    built.stable_window_ns = take("stable_window_ms").int() * MS;
    built.target_burst_capacity = take("target_burst_capacity").num();
    built.target_value = take("target_value").num();
    built.total_value = take("total_value").num();
    assert_eq!(known, object.len(), "unknown fields in {spec}");
    built
}

#[test]
fn every_decision_of_the_scaler_is_knatives() {
    let (mut tally, scenarios) = lines("scaler.jsonl");
    for scenario in &scenarios {
        level(scenario, &["scaler"]);
        columns(
            scenario,
            &[
                "t_ms",
                "stable",
                "panic",
                "ready",
                "fault",
                "desired",
                "ebc",
                "valid",
                "panicking",
                "max_panic_pods",
            ],
        );
        let epoch = scenario.at("epoch_unix_ms").int() * MS;
        let mut spec = decider_spec(scenario.at("spec"));
        let initial = if scenario.at("initial_ready_error").yes() {
            Ready::Unknown
        } else {
            Ready::Count(scenario.at("initial_ready").i32())
        };
        let mut decider = Decider::new(&spec, epoch, initial);
        let updates = scenario.at("updates").list();
        for (at, row) in scenario.at("rows").list().iter().enumerate() {
            for update in updates {
                if update.at("before_row").int() == at as i64 {
                    spec = decider_spec(update.at("spec"));
                }
            }
            let now = epoch + row.nth(0).int() * MS;
            let averages = Averages { stable: row.nth(1).num(), panic: row.nth(2).num() };
            let count = Ready::Count(row.nth(3).i32());
            let (ready, averages) = match row.nth(4).int() {
                0 => (count, Some(averages)),
                1 | 2 => (count, None),
                3 => (Ready::NotFound, Some(averages)),
                4 => (Ready::Unknown, Some(averages)),
                other => panic!("unknown fault {other}"),
            };
            let (desired, excess, valid) = decider
                .scale(&spec, now, ready, averages)
                .map_or((0, 0, false), |scaled| (scaled.desired, scaled.excess_burst, true));
            let got = (desired, excess, valid, decider.is_panicking(), decider.max_panic_pods());
            let want =
                (row.nth(5).i32(), row.nth(6).i32(), row.nth(7).yes(), row.nth(8).yes(), row.nth(9).i32());
            tally
                .check(got == want, || format!("{} row {at}: got {got:?}, want {want:?}", scenario.at("id")));
        }
    }
    tally.finish();
}

#[test]
fn every_window_is_knatives() {
    let (mut tally, scenarios) = lines("windows.jsonl");
    for scenario in &scenarios {
        level(scenario, &["windows", "max_window"]);
        let epoch = scenario.at("epoch_unix_ms").int() * MS;
        let granularity = scenario.at("granularity_ms").int() * MS;
        let rows = scenario.at("rows").list();
        if scenario.at("level").text() == "max_window" {
            columns(scenario, &["t_ms", "record", "current"]);
            let mut window = MaxWindow::new(scenario.at("duration_ms").int() * MS, granularity);
            for (at, row) in rows.iter().enumerate() {
                window.record(epoch + row.nth(0).int() * MS, row.nth(1).i32());
                let (got, want) = (window.current(), row.nth(2).i32());
                tally
                    .check(got == want, || format!("{} row {at}: got {got}, want {want}", scenario.at("id")));
            }
            continue;
        }
        columns(scenario, &["op", "t_ms", "value"]);
        let aggregation = match scenario.at("kind").text() {
            "linear" => Aggregation::Linear,
            "weighted" => Aggregation::WeightedExponential,
            other => panic!("unknown kind {other:?}"),
        };
        let mut window = Window::new(scenario.at("window_ms").int() * MS, granularity, aggregation);
        for (at, row) in rows.iter().enumerate() {
            let now = epoch + row.nth(1).int() * MS;
            match row.nth(0).text() {
                "rec" => {
                    window.record(now, row.nth(2).num());
                    tally.rows += 1;
                }
                "resize" => {
                    window.resize(now, row.nth(2).int() * MS);
                    tally.rows += 1;
                }
                "empty" => {
                    let (got, want) = (window.is_empty(now), row.nth(2).yes());
                    tally.check(got == want, || format!("{} row {at}: empty {got}", scenario.at("id")));
                }
                "avg" => {
                    let (got, want) = (window.average(now), row.nth(2).num());
                    let same = match aggregation {
                        Aggregation::Linear => got.to_bits() == want.to_bits(),
                        _ => close(got, want),
                    };
                    tally.check(same, || format!("{} row {at}: got {got}, want {want}", scenario.at("id")));
                }
                other => panic!("unknown operation {other:?}"),
            }
        }
    }
    tally.finish();
}

fn close(got: f64, want: f64) -> bool {
    (got - want).abs() <= 1e-9 * want.abs().max(f64::MIN_POSITIVE)
}

#[test]
fn from_samples_to_decisions_all_is_knatives() {
    let (mut tally, scenarios) = lines("pipeline.jsonl");
    for scenario in &scenarios {
        level(scenario, &["pipeline"]);
        let config = AutoscalerConfig::from_map(&scenario.at("configmap").map()).expect("a valid ConfigMap");
        let concurrency = u32::try_from(scenario.at("container_concurrency").int()).unwrap();
        let resolved =
            resolve(&scenario.at("annotations").map(), concurrency, Reachability::Unknown, &config);
        check_resolved(&mut tally, scenario, &resolved);
        let scraped = scenario.at("scrape_target").yes();
        assert_eq!(scraped, resolved.target_burst_capacity != -1.0);
        let weighted = resolved.aggregation() == Aggregation::WeightedExponential;
        let epoch = scenario.at("epoch_unix_ms").int() * MS;
        let mut collector = Collector::new(
            resolved.stable_window_ns,
            resolved.panic_window_ns,
            resolved.aggregation(),
            resolved.metric == "rps",
            scraped,
        );
        let created = epoch + scenario.at("decider_created_at_ms").int() * MS;
        let ready = Ready::Count(scenario.at("initial_ready").i32());
        let mut scaler = MultiScaler::new(&decider_of(&resolved), created, ready);
        // What must follow: a poke after an activator's report, an inform after a change.
        let (mut poke_due, mut inform_due) = (false, false);
        for event in scenario.at("events").list() {
            let op = event.nth(0).text();
            let now = epoch + event.nth(1).int() * MS;
            let id = || format!("{} {event}", scenario.at("id"));
            tally.check(poke_due == (op == "poke"), || format!("{}: poke due: {poke_due}", id()));
            tally.check(inform_due == (op == "inform"), || format!("{}: inform due: {inform_due}", id()));
            (poke_due, inform_due) = (false, false);
            match op {
                "scrape" => collector.record(
                    now,
                    &Stat {
                        concurrency: event.nth(2).num(),
                        proxied_concurrency: event.nth(3).num(),
                        requests: event.nth(4).num(),
                        proxied_requests: event.nth(5).num(),
                    },
                ),
                "activator" => {
                    let concurrency = event.nth(2).num();
                    let stat = Stat { concurrency, requests: event.nth(3).num(), ..Stat::default() };
                    collector.record(now.div_euclid(SECOND_NS) * SECOND_NS, &stat);
                    poke_due = scaler.is_poked_by(concurrency);
                }
                "tick" | "poke" => {
                    let averages = collector.averages(now).ok();
                    let (scaled, told) =
                        scaler.tick(&decider_of(&resolved), now, Ready::Count(event.nth(2).i32()), averages);
                    inform_due = told;
                    let shown = averages.unwrap_or(Averages { stable: 0.0, panic: 0.0 });
                    let same = |got: f64, want: f64| {
                        if weighted { close(got, want) } else { got.to_bits() == want.to_bits() }
                    };
                    tally.check(same(shown.stable, event.nth(3).num()), || {
                        format!("{}: stable {}", id(), shown.stable)
                    });
                    tally.check(same(shown.panic, event.nth(4).num()), || {
                        format!("{}: panic {}", id(), shown.panic)
                    });
                    let (desired, excess) =
                        scaled.map_or((0, 0), |scaled| (scaled.desired, scaled.excess_burst));
                    let decider = scaler.decider();
                    let got = (
                        averages.is_none(),
                        desired,
                        excess,
                        scaled.is_some(),
                        decider.is_panicking(),
                        decider.max_panic_pods(),
                    );
                    let want = (
                        event.nth(5).yes(),
                        event.nth(6).i32(),
                        event.nth(7).i32(),
                        event.nth(8).yes(),
                        event.nth(9).yes(),
                        event.nth(10).i32(),
                    );
                    tally.check(got == want, || format!("{}: got {got:?}, want {want:?}", id()));
                }
                "inform" => {}
                "status" => {
                    let got = (scaler.desired(), scaler.excess_burst());
                    let want = (event.nth(2).i32(), event.nth(3).i32());
                    tally.check(got == want, || format!("{}: got {got:?}", id()));
                }
                other => panic!("unknown operation {other:?}"),
            }
        }
    }
    tally.finish();
}

fn check_resolved(tally: &mut Tally, scenario: &Value, got: &Resolved) {
    let want = scenario.at("resolved");
    let object = want.as_object().expect("an object");
    assert_eq!(object.len(), 9, "unknown fields in {want}");
    let same = got.aggregation == want.at("aggregation").text()
        && got.class == want.at("class").text()
        && got.initial_scale == want.at("initial_scale").i32()
        && got.max_scale == want.at("max_scale").i32()
        && got.min_scale == want.at("min_scale").i32()
        && got.metric == want.at("metric").text()
        && got.metric == want.at("spec").at("scaling_metric").text()
        && got.stable_window_ns == want.at("metric_stable_window_ms").int() * MS
        && got.panic_window_ns == want.at("metric_panic_window_ms").int() * MS
        && decider_of(got) == decider_spec(want.at("spec"));
    tally.check(same, || format!("{}: got {got:?}, want {want}", scenario.at("id")));
}

#[test]
fn every_configuration_means_what_it_means_to_knative() {
    let (mut tally, scenarios) = lines("config.jsonl");
    for scenario in &scenarios {
        level(scenario, &["config"]);
        let id = scenario.at("id");
        let config = AutoscalerConfig::from_map(&scenario.at("configmap").map());
        if let Some(expected) = scenario.get("config_error") {
            tally.check(config.is_err(), || format!("{id}: accepted, but {expected}"));
            continue;
        }
        let config = match config {
            Ok(config) => config,
            Err(error) => {
                tally.check(false, || format!("{id}: refused: {error}"));
                continue;
            }
        };
        let annotations = scenario.at("annotations").map();
        let checked = validate_annotations(&annotations, &config);
        let expected = scenario.get("annotation_error");
        tally.check(checked.is_err() == expected.is_some(), || {
            format!("{id}: {checked:?}, want {expected:?}, {annotations:?}")
        });
        let concurrency = u32::try_from(scenario.at("container_concurrency").int()).unwrap();
        let reach = reachability(scenario.at("reachability").text());
        check_resolved(&mut tally, scenario, &resolve(&annotations, concurrency, reach, &config));
    }
    tally.finish();
}

fn activity(text: &str) -> Activity {
    match text {
        "activating" => Activity::Activating,
        "active" => Activity::Active,
        "inactive" => Activity::Inactive,
        other => panic!("unknown condition {other:?}"),
    }
}

fn mode(text: &str) -> Mode {
    match text {
        "Proxy" => Mode::Proxy,
        "Serve" => Mode::Serve,
        other => panic!("unknown mode {other:?}"),
    }
}

fn setup(case: &Value) -> (Resolved, LifecycleSpec) {
    let mut config = AutoscalerConfig::from_map(&case.at("configmap").map()).expect("a valid ConfigMap");
    // What `config-deployment` says; an annotation goes before it.
    let deadline = u64::try_from(case.at("progress_deadline_ms").int()).expect("not negative");
    config.progress_deadline = Duration::from_millis(deadline);
    let concurrency = u32::try_from(case.at("container_concurrency").int()).unwrap();
    let reach = reachability(case.at("reachability").text());
    let resolved = resolve(&case.at("annotations").map(), concurrency, reach, &config);
    let spec = lifecycle_of(&resolved, &config);
    (resolved, spec)
}

fn optional(value: &Value) -> Option<i32> {
    (!value.is_null()).then(|| value.i32())
}

/// Timers in milliseconds; `[]` and null are none.
fn timers(value: &Value) -> Vec<i64> {
    if value.is_null() { Vec::new() } else { value.list().iter().map(Json::int).collect() }
}

#[test]
fn every_call_of_the_reconciler_answers_as_knatives() {
    let (mut tally, scenarios) = lines("scale_call.jsonl");
    for scenario in &scenarios {
        level(scenario, &["scale_call"]);
        for (at, case) in scenario.at("cases").list().iter().enumerate() {
            let (resolved, spec) = setup(case);
            let given = case.at("in");
            let mut call = ScaleCall::new(given.at("desired").i32(), given.at("replicas").i32());
            call.activity = activity(given.at("active").text());
            call.activity_age = given.at("active_for_ms").int() * MS;
            call.initialized = given.at("scale_target_initialized").yes();
            call.mode = mode(given.at("sks_mode").text());
            let proxied = given.at("proxy_for_ms");
            call.proxied_for = (!proxied.is_null()).then(|| proxied.int() * MS);
            call.probe_ok = given.at("probe_ok").yes();
            let answer = scale(&spec, &call);
            let activators = num_activators(
                given.at("ready_for_num_activators").i32(),
                resolved.total_value,
                resolved.target_burst_capacity,
                resolved.activator_capacity,
            );
            let got = (
                answer.want,
                answer.patched,
                answer.enqueue.map(|after| after / MS).into_iter().collect::<Vec<_>>(),
                answer.probed,
                answer.async_probe,
                activators,
                spec.active_threshold(call.initialized),
                spec.always_proxied,
            );
            let out = case.at("out");
            let want = (
                out.at("scale").i32(),
                optional(out.at("patched")),
                timers(out.at("enqueue_ms")),
                out.at("probed").yes(),
                out.at("async_probe_offered").yes(),
                out.at("num_activators").i32(),
                out.at("active_threshold").i32(),
                out.at("scrape_target_empty").yes(),
            );
            tally.check(got == want, || {
                format!("{} case {at}: got {got:?}, want {want:?} for {case}", scenario.at("id"))
            });
        }
    }
    tally.finish();
}

#[test]
fn every_life_is_knatives() {
    let (mut tally, scenarios) = lines("lifecycle.jsonl");
    for scenario in &scenarios {
        level(scenario, &["lifecycle"]);
        columns(
            scenario,
            &[
                "t_ms",
                "desired",
                "ebc",
                "ready",
                "probe_ok",
                "sks",
                "want",
                "patched",
                "mode",
                "num_activators",
                "active",
                "reason",
                "scale_target_initialized",
                "enqueue_ms",
                "probed",
                "async_probe_offered",
            ],
        );
        let (resolved, spec) = setup(scenario);
        let epoch = scenario.at("epoch_unix_ms").int() * MS;
        let mut life = Lifecycle::new(epoch, scenario.at("initial_replicas").i32());
        for (at, row) in scenario.at("rows").list().iter().enumerate() {
            let now = epoch + row.nth(0).int() * MS;
            let ready = row.nth(3).i32();
            let mut activators = num_activators(
                ready,
                resolved.total_value,
                resolved.target_burst_capacity,
                resolved.activator_capacity,
            );
            let answer = match row.nth(5).text() {
                "no_sks" => {
                    life.create(&spec, now);
                    activators = 2;
                    let mut answer = crate::kpa::ScaleAnswer::default();
                    answer.want = -1;
                    answer
                }
                "ok" => {
                    let mut seen = Observed::new(now, row.nth(1).i32(), row.nth(2).i32(), ready);
                    seen.probe_ok = row.nth(4).yes();
                    life.reconcile(&spec, &seen)
                }
                other => panic!("unknown sks {other:?}"),
            };
            let (active, reason) = life.activity();
            let got = (
                answer.want,
                answer.patched,
                life.mode(),
                activators,
                active,
                match reason {
                    ActivityReason::None => "",
                    ActivityReason::Queued => "Queued",
                    ActivityReason::NoTraffic => "NoTraffic",
                    ActivityReason::TimedOut => "TimedOut",
                },
                life.is_initialized(),
                answer.enqueue.map(|after| after / MS).into_iter().collect::<Vec<_>>(),
                answer.probed,
                answer.async_probe,
            );
            let want = (
                row.nth(6).i32(),
                optional(row.nth(7)),
                mode(row.nth(8).text()),
                row.nth(9).i32(),
                activity(row.nth(10).text()),
                row.nth(11).text(),
                row.nth(12).yes(),
                timers(row.nth(13)),
                row.nth(14).yes(),
                row.nth(15).yes(),
            );
            tally
                .check(got == want, || format!("{} row {at}: got {got:?}, want {want:?}", scenario.at("id")));
        }
    }
    tally.finish();
}

fn names(value: &Value) -> Vec<String> {
    value.list().iter().map(|name| name.text().to_owned()).collect()
}

#[test]
fn the_activators_side_is_knatives() {
    let (mut tally, scenarios) = lines("activator.jsonl");
    for scenario in &scenarios {
        level(scenario, &["activator"]);
        match scenario.at("kind").text() {
            "capacity" => {
                columns(
                    scenario,
                    &["container_concurrency", "backends", "trackers", "activators", "capacity"],
                );
                for row in scenario.at("rows").list() {
                    let got =
                        capacity(row.nth(0).int(), row.nth(1).int(), row.nth(2).int(), row.nth(3).int());
                    tally.check(got == row.nth(4).i32(), || format!("capacity {row}: got {got}"));
                }
            }
            "assign_slice" => {
                columns(scenario, &["trackers", "self_index", "activators", "assigned_indices"]);
                for row in scenario.at("rows").list() {
                    let size = |at: usize| usize::try_from(row.nth(at).int()).unwrap();
                    let got = assign_slice(size(0), row.nth(1).int(), size(2));
                    let want: Vec<usize> =
                        row.nth(3).list().iter().map(|at| usize::try_from(at.int()).unwrap()).collect();
                    tally.check(got == want, || format!("slice {row}: got {got:?}"));
                }
            }
            "choose_subset" => {
                columns(scenario, &["from", "n", "target", "selected_sorted"]);
                for row in scenario.at("rows").list() {
                    let n = usize::try_from(row.nth(1).int()).unwrap();
                    let got = activator_subset(&names(row.nth(0)), n, row.nth(2).text());
                    tally.check(got == names(row.nth(3)), || format!("subset {row}: got {got:?}"));
                }
            }
            kind @ ("lb_first_available" | "lb_round_robin") => {
                let slots = u32::try_from(scenario.at("container_concurrency").int()).unwrap();
                let mut picker = if kind == "lb_round_robin" {
                    Picker::round_robin(slots)
                } else {
                    Picker::first_available(slots)
                };
                let mut held = BTreeMap::new();
                for op in scenario.at("ops").list() {
                    match op.nth(0).text() {
                        "targets" => {
                            picker.set_targets(names(op.nth(1)));
                            tally.rows += 1;
                        }
                        "acquire" => {
                            let got = picker.acquire();
                            let want = op.nth(2);
                            let same = match &got {
                                Some(name) => want.as_str() == Some(name),
                                None => want.as_i64() == Some(-1),
                            };
                            tally.check(same, || format!("{} {op}: got {got:?}", scenario.at("id")));
                            if let Some(name) = got {
                                held.insert(op.nth(1).int(), name);
                            }
                        }
                        "release" => {
                            let name = held.remove(&op.nth(1).int()).expect("an acquired slot");
                            picker.release(&name);
                            tally.rows += 1;
                        }
                        other => panic!("unknown operation {other:?}"),
                    }
                }
            }
            "breaker" => {
                columns(
                    scenario,
                    &["op", "arg", "running", "waiting", "rejected_full_now", "in_flight", "capacity"],
                );
                let size = |key: &str| u64::try_from(scenario.at(key).int()).unwrap();
                let mut breaker =
                    Breaker::new(size("queue_depth"), size("max_concurrency"), size("initial_capacity"));
                for op in scenario.at("ops").list() {
                    let before = breaker.counts().rejected;
                    match op.nth(0).text() {
                        "start" => {
                            breaker.start();
                        }
                        "finish_one" => breaker.finish(),
                        "cancel_waiting" => breaker.cancel_waiting(),
                        "capacity" => breaker.set_capacity(u64::try_from(op.nth(1).int()).unwrap()),
                        other => panic!("unknown operation {other:?}"),
                    }
                    let counts = breaker.counts();
                    let got = [
                        counts.running,
                        counts.waiting,
                        counts.rejected - before,
                        counts.in_flight(),
                        breaker.capacity(),
                    ];
                    let want: Vec<u64> = (2..7).map(|at| u64::try_from(op.nth(at).int()).unwrap()).collect();
                    tally.check(want == got, || format!("{} {op}: got {got:?}", scenario.at("id")));
                }
            }
            "request_stats" => {
                columns(
                    scenario,
                    &[
                        "op",
                        "t_us",
                        "avg_concurrency",
                        "avg_proxied_concurrency",
                        "request_count",
                        "proxied_count",
                    ],
                );
                let mut stats = RequestStats::new(0);
                for op in scenario.at("ops").list() {
                    let now = op.nth(1).int() * 1_000;
                    match op.nth(0).text() {
                        "in" => stats.begin(now, false),
                        "proxied_in" => stats.begin(now, true),
                        "out" => stats.end(now, false),
                        "proxied_out" => stats.end(now, true),
                        "report" => {
                            let report = stats.report(now);
                            let got = [
                                report.concurrency,
                                report.proxied_concurrency,
                                report.requests,
                                report.proxied_requests,
                            ];
                            let same = (0..4).all(|at| got[at].to_bits() == op.nth(at + 2).num().to_bits());
                            tally.check(same, || format!("{} {op}: got {got:?}", scenario.at("id")));
                            continue;
                        }
                        other => panic!("unknown operation {other:?}"),
                    }
                    tally.rows += 1;
                }
            }
            other => panic!("unknown kind {other:?}"),
        }
    }
    tally.finish();
}
