//! Ten times what a platform can serve, for ten simulated minutes; and a tenant beside one that sends a hundred times as
//! much. `overload [SECONDS]`
//!
//! Exit status 1 when a refusal came more than 100 ms after its deadline, without a reason, or as 429 or 503 without
//! `Retry-After`, or when the small tenant's p99 grew by more than half.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{process::ExitCode, time::Duration};

use sas_sim::{Asked, Got, Overload, overload};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let seconds = std::env::args().nth(1).map_or(Ok(600), |text| text.parse())?;
    let length = Duration::from_secs(seconds);
    let (mut sound, before) = (true, memory());

    // A hundred slots of 100 ms serve 1,000 requests a second.
    let mut ten_times = Overload::new(vec![Asked { tenant: 1, rate: 10_000.0, max: 10 }]);
    ten_times.length = length;
    let mut most = 0;
    let got = overload(&ten_times, |_| most = most.max(memory()))?;
    println!(
        "ten times the capacity for {seconds} s; memory {before} KiB before, {most} KiB at most (latencies kept)"
    );
    sound &= print("all", &got[0]);

    let small = Asked { tenant: 2, rate: 50.0, max: 0 };
    let mut alone = Overload::new(vec![small.clone()]);
    alone.length = length;
    let alone = overload(&alone, |_| {})?;
    sound &= print("small tenant, alone", &alone[0]);
    let mut beside = Overload::new(vec![small, Asked { tenant: 1, rate: 5_000.0, max: 0 }]);
    beside.length = length;
    let beside = overload(&beside, |_| {})?;
    sound &= print("small tenant, beside", &beside[0]);
    sound &= print("large tenant", &beside[1]);
    let grown = beside[0].latency(0.99).as_secs_f64() / alone[0].latency(0.99).as_secs_f64();
    println!("the small tenant's p99 beside the large one: {grown:.2} x alone");
    sound &= grown <= 1.5;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(name: &str, got: &Got) -> bool {
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let slowest = got.refusals.last().copied().unwrap_or(0) as f64 / 1000.0;
    println!(
        "{name}: {} arrived, {} served (p50 {:.0} ms, p99 {:.0} ms), {} waited at most; refused {:?}, slowest after \
         {slowest:.0} ms, {:.0} ms after a deadline, {} unexplained",
        got.arrived,
        got.served,
        ms(got.latency(0.5)),
        ms(got.latency(0.99)),
        got.waited,
        got.refused,
        ms(got.late),
        got.unexplained
    );
    got.unexplained == 0 && got.late <= Duration::from_millis(100)
}

/// Resident memory in KiB; 0 where the kernel does not tell.
fn memory() -> u64 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}
