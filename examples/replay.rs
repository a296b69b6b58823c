//! Why did it scale? Kept decisions are made again, bit for bit, and with another configuration.
//!
//! `cargo run --example replay [-- STRETCH.json [CHART.svg]]`
//!
//! Without a file, a small simulation makes the decisions: a revision wakes, bursts, calms down and sleeps. With one,
//! it is read: the JSON of a `sas_autoscale::Stretch`, as `Driver::stretch` gives it.

#[path = "shared/chart.rs"]
mod chart;

use std::{error::Error, path::PathBuf, time::Duration};

use sas_autoscale::{Stretch, default_scalers, replay, simulate, what_if};
use sas_core::{Decision, Load, RevisionKey, Scaler, ScalingSpec, Timestamp, Verdict};

/// Requests per second at a second of the demonstration.
fn arrivals(second: u32) -> f64 {
    match second {
        0..10 => 4.0,
        10..40 => 4.0 + f64::from(second - 10),
        40..55 => 120.0,
        55..120 => 30.0,
        _ => 0.0,
    }
}

/// Decisions of a revision whose instances take four seconds to start and answer a request in half a second.
fn demonstration(scaler: &dyn Scaler) -> Result<Stretch, Box<dyn Error>> {
    let mut spec = ScalingSpec::default();
    spec.target = 10.0;
    spec.stable_window = Duration::from_secs(30);
    spec.scale_to_zero_grace = Duration::from_secs(10);
    let mut starts: Vec<u32> = Vec::new();
    let mut waiting = 0.0_f64;
    let stretch =
        simulate(scaler, &spec, 10, Timestamp::from_secs(1_700_000_000), 200, |second, desired| {
            let desired = desired.unwrap_or(0) as usize;
            while starts.len() < desired.max(usize::from(second == 0)) {
                starts.push(second);
            }
            starts.truncate(desired.max(usize::from(second == 0)));
            let ready = starts.iter().filter(|at| second >= **at + 4).count() as u32;
            let asked = waiting + arrivals(second) * 0.5;
            let running = asked.min(f64::from(ready) * 10.0);
            waiting = asked - running;
            let mut load = Load::idle(RevisionKey::new(0, 0));
            load.concurrency = running + waiting;
            load.requests = arrivals(second) as u32;
            load.queued = waiting as u32;
            load.ready = ready;
            load.starting = starts.len() as u32 - ready;
            load
        })?;
    Ok(stretch)
}

fn shown(decision: &Decision) -> String {
    match decision.verdict {
        Verdict::Set(desired) => desired.to_string(),
        Verdict::Hold => "hold".to_owned(),
    }
}

#[allow(clippy::print_stdout, reason = "the table is what the example is for")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let scalers = default_scalers();
    let find = |name: &str| {
        scalers.iter().find(|scaler| scaler.name() == name).ok_or_else(|| {
            format!("no scaler is called {name:?}; a custom one has to be given to this program")
        })
    };
    let stretch = match arguments.next() {
        Some(file) => serde_json::from_str::<Stretch>(&std::fs::read_to_string(file)?)?,
        None => demonstration(&**find("kpa")?)?,
    };
    let scaler = find(&stretch.checkpoint.scaler)?;
    let again = replay(&**scaler, &stretch)?;
    let same = again.iter().zip(&stretch.records).filter(|(made, record)| **made == record.decision).count();
    println!("{same} of {} decisions are the same, bit for bit\n", stretch.records.len());

    let mut other = stretch.spec.clone();
    other.target *= 2.0;
    let instead = what_if(&**scaler, &stretch, &other)?;

    println!(
        "| second | load | queued | ready | starting | desired | reason | clamps | excess | at twice the target |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let begin = stretch.records.first().map_or(Timestamp::default(), |record| record.at);
    let mut last = None;
    for (record, instead) in stretch.records.iter().zip(&instead) {
        let decision = &record.decision;
        // A line for each change, and one in ten of the others.
        let second = record.at.since(begin).as_secs();
        if last == Some(decision.verdict) && second % 10 != 0 {
            continue;
        }
        last = Some(decision.verdict);
        let clamps: Vec<_> = decision.clamps.names().collect();
        println!(
            "| {second} | {:.1} | {} | {} | {} | {} | {:?} | {} | {} | {} |",
            record.load.concurrency,
            record.load.queued,
            record.load.ready,
            record.load.starting,
            shown(decision),
            decision.reason,
            clamps.join(" "),
            decision.excess_burst,
            shown(instead),
        );
    }

    let path = arguments.next().map_or_else(|| PathBuf::from("target/replay.svg"), PathBuf::from);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let line = |name: &str, value: &dyn Fn(usize) -> f64| chart::Series {
        name: name.to_owned(),
        points: stretch
            .records
            .iter()
            .enumerate()
            .map(|(at, record)| (record.at.since(begin).as_secs_f64(), value(at)))
            .collect(),
    };
    let mut in_force = (0.0, 0.0);
    let mut desired = Vec::new();
    for (record, instead) in stretch.records.iter().zip(&instead) {
        in_force.0 = record.decision.desired().map_or(in_force.0, f64::from);
        in_force.1 = instead.desired().map_or(in_force.1, f64::from);
        desired.push(in_force);
    }
    let target = stretch.spec.target * stretch.spec.utilization;
    chart::lines(
        &path,
        "Desired, ready and load",
        "seconds",
        "instances",
        &[
            line("desired", &|at| desired[at].0),
            line("ready", &|at| f64::from(stretch.records[at].load.ready)),
            line("load in instances", &|at| stretch.records[at].load.concurrency / target),
            line("desired at twice the target", &|at| desired[at].1),
        ],
    )?;
    println!("\n{} shows it", path.display());
    Ok(())
}
