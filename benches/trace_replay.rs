//! Bench g: traces through the production policies at CPU speed.
//!
//! `cargo bench --bench trace_replay [-- FILE...]`: traces of functions and of demand, plain or `.gz`; without a file
//! the excerpts in `sas-pool/tests/traces`. The scores are exact and the same in each run; speed is the median of five
//! runs with min and max, on one thread. An event is a call (keep-alive) or a stem that is taken (capacity); decisions
//! are what the policy was asked: active minutes, and slots.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use sas_pool::{
    capacity::Seasonal,
    trace::{Function, Series, replay_capacity},
};
use tokio::time::Instant;

#[allow(dead_code, reason = "the example also draws curves")]
#[path = "../examples/shared/replay.rs"]
mod replay;

use replay::{Loaded, evict, keep, keepers, laws, load, miss, percent, scored_from};

const RUNS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut files: Vec<PathBuf> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).map(PathBuf::from).collect();
    if files.is_empty() {
        let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("sas-pool/tests/traces");
        files = ["azure2019_functions_sample.csv", "huawei2025_coldstarts_d14-15.csv"]
            .map(|name| samples.join(name))
            .into();
    }
    for path in &files {
        println!("\n{}", path.display());
        match load(path)? {
            Loaded::Functions(rows) => keep_alive(&rows.iter().step_by(2).collect::<Vec<_>>()),
            Loaded::Demand(series) => capacity(&series),
        }
    }
    Ok(())
}

fn keep_alive(rows: &[&Function]) {
    println!(
        "{:<38} {:>9} {:>8} {:>7} {:>7} {:>26} {:>12}",
        "even rows", "cold", "P75", "waste", "bytes", "M events/s/core (min-max)", "M decisions/s"
    );
    let mut ten = None;
    let mut lines = Vec::new();
    for keeper in keepers() {
        let (totals, active, bytes) = keep(&keeper, rows);
        let [low, seconds, high] = timed(|| {
            keep(&keeper, rows);
        });
        if keeper.name == "fixed 10 min" {
            ten = Some(totals.waste());
        }
        lines.push((keeper.name, totals, active, bytes / rows.len().max(1), [low, seconds, high]));
    }
    for share in [1.0, 2.0] {
        let (totals, active, bytes) = evict(share, rows);
        let times = timed(|| {
            evict(share, rows);
        });
        let name = format!("greedy dual, {share} × 10 min's memory");
        lines.push((name, totals, active, bytes / rows.len().max(1), times));
    }
    let ten = ten.unwrap_or(f64::NAN);
    for (name, totals, active, bytes, [low, seconds, high]) in lines {
        let events = |seconds: f64| totals.calls() as f64 / seconds / 1e6;
        println!(
            "{name:<38} {:>9} {:>8} {:>7.3} {bytes:>7} {:>8.1} ({:.1}-{:.1}) {:>16.2}",
            percent(Some(totals.cold()), 2),
            percent(totals.p75(), 1),
            totals.waste() / ten,
            events(seconds),
            events(high),
            events(low),
            active as f64 / seconds / 1e6,
        );
    }
}

fn capacity(series: &[Series]) {
    let Some(first) = series.first() else { return };
    let from = scored_from(first, None);
    let names: Vec<_> = series.iter().map(|series| format!("{:>12}", series.name)).collect();
    println!("{:<28}{}   miss at over 0.5, from slot {from}", "law", names.concat());
    for law in laws(first.slot) {
        let cells: Vec<_> =
            series.iter().map(|series| format!("{:>12}", percent(miss(&law, series, from), 3))).collect();
        println!("{:<28}{}", law.name, cells.concat());
    }
    let demand: u64 = series.iter().flat_map(|series| &series.demand).map(|&taken| u64::from(taken)).sum();
    let slots: usize = series.iter().map(|series| series.demand.len()).sum();
    let [low, seconds, high] = timed(|| {
        for series in series {
            replay_capacity(&mut Seasonal::default(), series, from);
        }
    });
    let rate = |count: f64, seconds: f64| count / seconds / 1e6;
    println!(
        "seasonal: {:.1} M events/s/core ({:.1}-{:.1}), {:.2} M decisions/s",
        rate(demand as f64, seconds),
        rate(demand as f64, high),
        rate(demand as f64, low),
        rate(slots as f64, seconds),
    );
}

/// Seconds of five runs: least, median, most.
fn timed(mut run: impl FnMut()) -> [f64; 3] {
    let mut seconds: Vec<f64> = (0..RUNS)
        .map(|_| {
            let begin = Instant::now();
            run();
            begin.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    [seconds[0], seconds[RUNS / 2], seconds[RUNS - 1]]
}
