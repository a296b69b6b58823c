//! A day of a large platform in virtual time, on one thread: router, pool and scaler are the production ones.
//!
//! `day [--revisions 1000000] [--requests 50000000] [--seconds 86400] [--zipf 1.0] [--concurrency 10]
//! [--start-ms 500] [--service-ms 100] [--step-ms 100] [--window 60]`; `--revisions` takes several, ascending, with
//! commas between. Traffic follows a sine with its low at midnight.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::time::Duration;

use sas_sim::{Setup, what_if};

struct Wanted {
    revisions: Vec<u32>,
    requests: f64,
    seconds: u32,
    zipf: f64,
    concurrency: u32,
    start: Duration,
    service: Duration,
    step: Duration,
    window: Duration,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let wanted = read(std::env::args().skip(1))?;
    println!(
        "{:>9} {:>10} {:>9} {:>7} {:>9} {:>7} {:>8} {:>8} {:>8} {:>9} {:>5} {:>8} {:>8} {:>8} {:>9}",
        "revisions",
        "requests",
        "cold",
        "failed",
        "woken",
        "peak",
        "p50",
        "p99",
        "waste",
        "stops",
        "cut",
        "set up s",
        "run s",
        "µs/req",
        "peak MiB"
    );
    for revisions in &wanted.revisions {
        let (before, started) = (memory("VmRSS:"), cpu());
        let mut setup = Setup::new(Vec::new());
        setup.revisions = *revisions;
        setup.zipf = wanted.zipf;
        setup.concurrency = wanted.concurrency;
        (setup.start, setup.service, setup.step) = (wanted.start, wanted.service, wanted.step);
        setup.scaling.stable_window = wanted.window;
        // First without load: what the revisions alone take.
        what_if(&setup)?;
        let empty = cpu();
        let mean = wanted.requests / f64::from(wanted.seconds);
        setup.arrivals = (0..wanted.seconds)
            .map(|second| {
                let turn = f64::from(second) / f64::from(wanted.seconds) * std::f64::consts::TAU;
                mean * 0.8_f64.mul_add(-turn.cos(), 1.0)
            })
            .collect();
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let summary = what_if(&setup)?;
        let (set_up, all) = (empty - started, cpu() - empty);
        let ran = (all - set_up).max(0.0);
        println!(
            "{revisions:>9} {:>10} {:>9} {:>7} {:>9} {:>7} {:>5.0} ms {:>5.0} ms {:>7.1}% {:>9} {:>5} {:>8.2} {:>8.1} {:>8.2} {:>9.0}",
            summary.requests,
            summary.cold,
            summary.failed,
            summary.woken,
            summary.peak,
            summary.wait(0.5).as_secs_f64() * 1000.0,
            summary.wait(0.99).as_secs_f64() * 1000.0,
            summary.waste() * 100.0,
            summary.stops,
            summary.cut,
            set_up,
            ran,
            ran * 1e6 / summary.requests.max(1) as f64,
            (memory("VmHWM:") - before.min(memory("VmHWM:"))) as f64 / 1024.0,
        );
    }
    Ok(())
}

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Wanted, Box<dyn std::error::Error>> {
    let mut wanted = Wanted {
        revisions: vec![1_000_000],
        requests: 50e6,
        seconds: 86_400,
        zipf: 1.0,
        concurrency: 10,
        start: Duration::from_millis(500),
        service: Duration::from_millis(100),
        step: Duration::from_millis(100),
        window: Duration::from_secs(60),
    };
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument}: needs a value"))?;
        let bad = |_| format!("{argument}: {value}: must be a number");
        let number = || value.parse::<f64>().map_err(bad);
        match argument.as_str() {
            "--revisions" => {
                let each = value.split(',').map(str::parse);
                wanted.revisions = each
                    .collect::<Result<_, _>>()
                    .map_err(|_| format!("{argument}: {value}: must be numbers"))?;
            }
            "--requests" => wanted.requests = number()?,
            "--seconds" => wanted.seconds = number()? as u32,
            "--zipf" => wanted.zipf = number()?,
            "--concurrency" => wanted.concurrency = number()? as u32,
            "--start-ms" => wanted.start = Duration::from_secs_f64(number()? / 1000.0),
            "--service-ms" => wanted.service = Duration::from_secs_f64(number()? / 1000.0),
            "--step-ms" => wanted.step = Duration::from_secs_f64(number()? / 1000.0),
            "--window" => wanted.window = Duration::from_secs_f64(number()?),
            _ => {
                return Err(
                    format!("{argument}: unknown; the head of this example lists what is known").into()
                );
            }
        }
    }
    Ok(wanted)
}

/// Seconds of CPU that this thread took; 0 where the kernel does not tell.
fn cpu() -> f64 {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    told.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) / 1e9
}

/// A field of the kernel's memory report, in KiB; 0 where there is none.
fn memory(field: &str) -> u64 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}
