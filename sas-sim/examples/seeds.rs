//! Runs seeds of the simulator: `seeds [--seed N | --from A --count N] [--plant NAME]`.
//! A failing seed is shrunk and printed; the exit status is then 1.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{collections::BTreeMap, process::ExitCode};

use sas_sim::{Plant, run_seed, shrink};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let (mut from, mut count, mut plant) = (0_u64, 1000_u64, None);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let number = value.parse::<u64>();
        match (argument.as_str(), number) {
            ("--seed", Ok(seed)) => (from, count) = (seed, 1),
            ("--from", Ok(first)) => from = first,
            ("--count", Ok(seeds)) => count = seeds,
            ("--plant", _) => {
                plant = Plant::ALL.into_iter().map(|(plant, _)| plant).find(|it| format!("{it:?}") == value)
            }
            _ => {
                println!("usage: seeds [--seed N | --from A --count N] [--plant NAME]");
                return ExitCode::from(2);
            }
        }
    }
    // Panics are violations, with their seed; the hook's text would only hide them.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut facts, mut requests, mut failing) = (0, 0, 0_u64);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut combined = 0_u64;
    for seed in from..from + count {
        let outcome = run_seed(seed, plant);
        facts += outcome.facts;
        requests += outcome.requests;
        combined = combined.rotate_left(5) ^ outcome.hash;
        for (kind, times) in &outcome.faults {
            *faults.entry(kind).or_default() += times;
        }
        if !outcome.violations.is_empty() {
            failing += 1;
            let shortest = shrink(outcome, plant, 120);
            println!("{shortest}");
            if count == 1 {
                for (at, fact) in sas_sim::run_told(seed, shortest.steps).told {
                    println!("{:>12.6} {fact:?}", at.as_secs_f64());
                }
            }
        }
    }
    println!("{count} seeds from {from}: {requests} requests, {facts} facts, combined hash {combined:016x}");
    for (kind, times) in faults {
        println!("  {times:>8} x {kind}");
    }
    println!("seeds with violations: {failing}");
    if failing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
