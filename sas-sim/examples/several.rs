//! Runs several hosts on one store by seeds: `several [--from A] [--count N] [--plant NAME]`. Exit status 1 when a promise
//! was broken, unless by a bug that was planted for it.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{collections::BTreeMap, process::ExitCode};

use sas_sim::{SeveralPlant, run_several};

const USAGE: &str = "usage: several [--from A] [--count N] [--plant NAME]";

fn main() -> ExitCode {
    let (mut from, mut count, mut plant) = (0_u64, 100_u64, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments.next().unwrap_or_default();
        match (argument.as_str(), value.parse()) {
            ("--from", Ok(number)) => from = number,
            ("--count", Ok(number)) => count = number,
            ("--plant", _) => {
                plant = SeveralPlant::ALL.into_iter().find(|(it, _)| format!("{it:?}") == value);
                if plant.is_none() {
                    println!("--plant: {value}: must be one of {:?}", SeveralPlant::ALL.map(|(it, _)| it));
                    return ExitCode::from(2);
                }
            }
            _ => {
                println!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    std::panic::set_hook(Box::new(|_| {}));
    let (mut faults, mut sums, mut broken) = (BTreeMap::<&str, u64>::new(), [0; 5], 0_u64);
    for seed in from..from + count {
        let run = run_several(seed, plant.map(|(plant, _)| plant));
        for (kind, times) in &run.faults {
            *faults.entry(kind).or_default() += times;
        }
        let counted = [run.requests, run.served, run.changes, run.fires, run.refused];
        for (sum, number) in sums.iter_mut().zip(counted) {
            *sum += number;
        }
        if run.violation.is_some() {
            broken += 1;
            print!("{run}");
        }
    }
    let [requests, served, changes, fires, refused] = sums;
    println!(
        "{count} seeds from {from}: {requests} requests, {served} of them served, {changes} changes, {fires} fires, {refused} \
         writes of former owners refused"
    );
    for (kind, times) in faults {
        println!("  {times:>8} x {kind}");
    }
    println!("runs with a broken promise: {broken}");
    match (broken, plant) {
        (0, None) => ExitCode::SUCCESS,
        (1.., Some(_)) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
