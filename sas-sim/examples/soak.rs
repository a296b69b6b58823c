//! A week of a thousand apps in virtual time, and whether memory, tasks or files grow. `soak [HOURS] [APPS]`
//!
//! Memory is read each simulated hour; the slope is that of a straight line through what comes after the first day. A
//! line is printed for each six simulated hours; a week takes three to eight minutes of one core. Exit status 1 when
//! memory grows by more than 1 % an hour, or when tasks or files grew.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::{io::Write as _, process::ExitCode};

use sas_sim::{Setup, what_if_watched};

fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let hours = arguments.next().map_or(Ok(168), |text| text.parse::<usize>())?;
    let apps = arguments.next().map_or(Ok(1000), |text| text.parse::<u32>())?;
    // A day has its low at midnight; on average one request a minute for each app.
    let arrivals = (0..hours * 3600)
        .map(|second| {
            let turn = (second % 86_400) as f64 / 86_400.0 * std::f64::consts::TAU;
            f64::from(apps) / 60.0 * 0.8_f64.mul_add(-turn.cos(), 1.0)
        })
        .collect();
    let mut setup = Setup::new(arrivals);
    setup.revisions = apps;
    let mut samples = Vec::with_capacity(hours);
    let summary = what_if_watched(&setup, |second, live| {
        if (second + 1).is_multiple_of(3600) {
            let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
            samples.push((memory(), tasks, files(), live));
            if samples.len().is_multiple_of(6) {
                let (memory, tasks, files, live) = samples[samples.len() - 1];
                println!(
                    "hour {:>4}: {memory} KiB, {tasks} tasks, {files} files, {live} instances",
                    samples.len()
                );
                // Seen at once also when it goes into a file.
                let _ = std::io::stdout().flush();
            }
        }
    })?;
    println!(
        "{apps} apps, {hours} hours: {} requests, {} cold, {} failed, {} instances stopped, {} requests cut",
        summary.requests, summary.cold, summary.failed, summary.stops, summary.cut
    );
    let warm = &samples[samples.len().min(24)..];
    let Some(slope) = slope(&warm.iter().map(|(memory, ..)| *memory as f64).collect::<Vec<_>>()) else {
        println!("too short for a slope: more than 25 hours are needed");
        return Ok(ExitCode::SUCCESS);
    };
    let first = warm[0].0 as f64;
    println!("memory grows by {slope:.1} KiB an hour, {:.4} % of {first} KiB", slope / first * 100.0);
    // What the simulator writes down for its own summary is in that, and is no growth of the platform.
    let own = size_of_val(&summary.series[..]) + size_of_val(&summary.waits[..]);
    println!(
        "  of which the simulator's own summary takes {:.1} KiB an hour",
        own as f64 / 1024.0 / hours as f64
    );
    // The same hour of two days: their load is alike.
    let grew = |of: fn(&(u64, usize, usize, u64)) -> usize| {
        let last = samples.len() - 1;
        let before = of(&samples[23 + (last - 23) % 24]);
        of(&samples[last]).saturating_sub(before.max(20) * 3 / 2)
    };
    let (tasks, files) = (grew(|sample| sample.1), grew(|sample| sample.2));
    println!("tasks and files beyond half more than a day before: {tasks}, {files}");
    let sound = slope / first <= 0.01 && tasks == 0 && files == 0 && summary.cut == 0;
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Of the straight line through `values` at 0, 1, 2, ...
fn slope(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    if values.len() < 2 {
        return None;
    }
    let (mean_x, mean_y) = ((n - 1.0) / 2.0, values.iter().sum::<f64>() / n);
    let (mut above, mut below) = (0.0, 0.0);
    for (x, y) in values.iter().enumerate() {
        above += (x as f64 - mean_x) * (y - mean_y);
        below += (x as f64 - mean_x).powi(2);
    }
    Some(above / below)
}

/// Resident memory in KiB; 0 where the kernel does not tell.
fn memory() -> u64 {
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse().ok()).unwrap_or(0)
}

/// Open files; 0 where the kernel does not tell.
fn files() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}
