//! Runs seeds of the simulator: `seeds [--seed N | --from A --count N] [--plant NAME]
//! [--write N[a|tPERCENT] | --every-write yes] [--keep N,N,...]`.
//!
//! A failing seed is shrunk and printed; the exit status is then 1. `--write 7` kills the host at the eighth write to
//! the store, before it is applied, `--write 7a` after, `--write 7t50` when half of the value is; `--every-write yes`
//! tries each write of each seed in these three ways. `--keep 0,3` leaves out all steps of the plan but these.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{collections::BTreeMap, process::ExitCode};

use sas_sim::{
    Plant, SeedRun,
    plan::{self, Step},
    run, shrink,
    store::Applied,
};

const USAGE: &str = "usage: seeds [--seed N | --from A --count N] [--plant NAME] [--write N[a|tPERCENT] | --every-write yes] \
     [--keep N,N,...]";

#[derive(Clone, Copy, Debug)]
enum Crash {
    AsPlanned,
    At(u64, Applied),
    AtEachWrite,
}

#[derive(Default)]
struct Sums {
    runs: u64,
    facts: u64,
    requests: u64,
    failing: u64,
    combined: u64,
    faults: BTreeMap<&'static str, u64>,
}

impl Sums {
    /// Takes an outcome in; a failing one is shrunk and printed, with its history where one is asked for.
    fn take(&mut self, outcome: SeedRun, plant: Option<Plant>, tell: bool) {
        self.runs += 1;
        self.facts += outcome.facts;
        self.requests += outcome.requests;
        self.combined = self.combined.rotate_left(5) ^ outcome.hash;
        for (kind, times) in &outcome.faults {
            *self.faults.entry(kind).or_default() += times;
        }
        if outcome.violations.is_empty() {
            return;
        }
        self.failing += 1;
        let seed = outcome.seed;
        let shortest = shrink(outcome, plant, 120);
        println!("{shortest}");
        if tell {
            for (at, fact) in sas_sim::run_told(seed, shortest.steps, plant).told {
                println!("{:>12.6} {fact:?}", at.as_secs_f64());
            }
        }
    }
}

/// `7`, `7a` or `7t50`.
fn at_write(text: &str) -> Option<(u64, Applied)> {
    if let Some((write, percent)) = text.split_once('t') {
        return Some((write.parse().ok()?, Applied::Part(percent.parse().ok()?)));
    }
    match text.strip_suffix('a') {
        Some(write) => Some((write.parse().ok()?, Applied::Whole)),
        None => Some((text.parse().ok()?, Applied::Not)),
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let mut keep: Option<Vec<usize>> = None;
    let (mut from, mut count, mut plant, mut crash) = (0_u64, 1000_u64, None, Crash::AsPlanned);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        let number = value.parse::<u64>();
        match (argument.as_str(), number) {
            ("--seed", Ok(seed)) => (from, count) = (seed, 1),
            ("--from", Ok(first)) => from = first,
            ("--count", Ok(seeds)) => count = seeds,
            ("--plant", _) => {
                plant = Plant::ALL.into_iter().map(|(plant, _)| plant).find(|it| format!("{it:?}") == value);
                if plant.is_none() {
                    println!("--plant: {value}: must be one of {:?}", Plant::ALL.map(|(plant, _)| plant));
                    return ExitCode::from(2);
                }
            }
            ("--every-write", _) if value == "yes" => crash = Crash::AtEachWrite,
            ("--write", _) => match at_write(&value) {
                Some((write, applied)) => crash = Crash::At(write, applied),
                None => {
                    println!(
                        "--write: {value}: must be a number, followed by an a if the write is applied, by t and \
                         percents if a part of it is"
                    );
                    return ExitCode::from(2);
                }
            },
            ("--keep", _) => match value.split(',').map(str::parse).collect() {
                Ok(steps) => keep = Some(steps),
                Err(_) => {
                    println!("--keep: {value}: must be numbers of steps with commas between");
                    return ExitCode::from(2);
                }
            },
            _ => {
                println!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    // Panics are violations, with their seed; the hook's text would only hide them.
    std::panic::set_hook(Box::new(|_| {}));
    let mut sums = Sums::default();
    for seed in from..from + count {
        let plans: Vec<Vec<Step>> = match crash {
            Crash::AsPlanned => vec![plan::plan(seed)],
            Crash::At(write, applied) => vec![plan::with_crash(seed, write, applied)],
            Crash::AtEachWrite => {
                let writes = run(seed, plan::sound_store(seed), plant).writes;
                let each = (0..writes).flat_map(|write| {
                    // Another part each time, the same for the same seed.
                    let percent = ((seed * 31 + write * 17) % 100) as u32;
                    [Applied::Not, Applied::Whole, Applied::Part(percent)].map(|applied| (write, applied))
                });
                each.map(|(write, applied)| plan::with_crash(seed, write, applied)).collect()
            }
        };
        for steps in plans {
            let steps = match &keep {
                Some(kept) => plan::only(steps, kept),
                None => steps,
            };
            sums.take(run(seed, steps, plant), plant, count == 1);
        }
    }
    println!(
        "{count} seeds from {from}, {} runs: {} requests, {} facts, combined hash {:016x}",
        sums.runs, sums.requests, sums.facts, sums.combined
    );
    for (kind, times) in sums.faults {
        println!("  {times:>8} x {kind}");
    }
    println!("runs with violations: {}", sums.failing);
    if sums.failing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
